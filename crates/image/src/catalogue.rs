//! What is here, for those who look and for those who tidy up.

use std::sync::Arc;

use run::PrincipalName;

use crate::disk::key;
use crate::pull::off_thread;
use crate::reference::Reference;
use crate::{Eviction, ImageError, ImageInfo, Images, Whose};

impl Images {
    /// Every image of everybody, the most recently used first.
    pub fn list(&self) -> Vec<ImageInfo> {
        self.inner.shelf.list()
    }

    /// Whether a principal could use an image as far as is known here: everybody's, its own that came as a file, or
    /// its own from a registry at which it still has its login.
    pub fn is_open_to(&self, image: &ImageInfo, principal: Option<&PrincipalName>) -> bool {
        let Some(owner) = &image.owner else { return true };
        let registry = image.reference.split('/').next().unwrap_or_default();
        Some(owner) == principal
            && (image.resolved_at.is_none() || self.inner.accounts.has_login(owner, registry))
    }

    pub fn get(&self, reference: &str) -> Result<ImageInfo, ImageError> {
        self.get_of(Whose::Everybodys, reference)
    }

    pub fn get_of(&self, whose: Whose<'_>, reference: &str) -> Result<ImageInfo, ImageError> {
        let name = Reference::parse(reference)?.to_string();
        let info = |owner: Option<&PrincipalName>| self.inner.shelf.info(&key(&name, owner));
        let own = |owner| info(Some(owner));
        let found = match whose {
            Whose::Everybodys => info(None),
            Whose::Own(owner) => own(owner),
            Whose::SeenBy(owner) => {
                own(owner).filter(|image| self.is_open_to(image, Some(owner))).or_else(|| info(None))
            }
        };
        found.ok_or(ImageError::NotPresent { reference: name })
    }

    /// Forgets the image. Layers that another image or a lease needs stay until those are gone too.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        self.remove_of(Whose::Everybodys, reference).await
    }

    pub async fn remove_of(&self, whose: Whose<'_>, reference: &str) -> Result<(), ImageError> {
        let ImageInfo { reference, owner, .. } = self.get_of(whose, reference)?;
        let (shelf, removed) = (Arc::clone(&self.inner.shelf), key(&reference, owner.as_ref()));
        if !off_thread(move || shelf.remove(&removed)).await? {
            return Err(ImageError::NotPresent { reference });
        }
        self.inner.observer.image_removed(Eviction::Request);
        Ok(())
    }

    /// Marks an image as one that is never collected, or as any other again.
    pub async fn pin(&self, reference: &str, pinned: bool) -> Result<(), ImageError> {
        self.pin_of(Whose::Everybodys, reference, pinned).await
    }

    pub async fn pin_of(&self, whose: Whose<'_>, reference: &str, pinned: bool) -> Result<(), ImageError> {
        let ImageInfo { reference, owner, .. } = self.get_of(whose, reference)?;
        let (shelf, marked) = (Arc::clone(&self.inner.shelf), key(&reference, owner.as_ref()));
        match off_thread(move || shelf.pin(&marked, pinned)).await? {
            true => Ok(()),
            false => Err(ImageError::NotPresent { reference }),
        }
    }
}
