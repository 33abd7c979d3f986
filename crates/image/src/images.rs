//! The one door to images.

use std::sync::Arc;

use run::Pull;

use crate::{Config, ImageError, ImageInfo, Lease, LayerStore, Observer, Progress};

/// The images of this machine. Cloning it is cheap; all clones are the same store.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    #[allow(dead_code)]
    store: Arc<dyn LayerStore>,
    #[allow(dead_code)]
    observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("dir", &self.inner.config.dir).finish_non_exhaustive()
    }
}

impl Images {
    /// Reads the records and removes what an earlier life left half done.
    pub async fn open(
        config: Config,
        store: Arc<dyn LayerStore>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, ImageError> {
        Ok(Self { inner: Arc::new(Inner { config, store, observer }) })
    }

    /// The image, pulled if need be and `pull` allows it. Dropping the future leaves the pull to
    /// the others who wait for it; the last one to leave ends it, after a grace.
    pub async fn acquire(&self, reference: &str, pull: Pull) -> Result<Lease, ImageError> {
        self.acquire_with_progress(reference, pull, &mut |_| {}).await
    }

    pub async fn acquire_with_progress(
        &self,
        reference: &str,
        _pull: Pull,
        _on: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Lease, ImageError> {
        Err(ImageError::NotPresent { reference: reference.into() })
    }

    /// Every image, the most recently used first.
    pub fn list(&self) -> Vec<ImageInfo> {
        Vec::new()
    }

    pub fn get(&self, reference: &str) -> Result<ImageInfo, ImageError> {
        Err(ImageError::NotPresent { reference: reference.into() })
    }

    /// Forgets the image. Layers that another image or a lease needs stay until those are gone too.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        Err(ImageError::NotPresent { reference: reference.into() })
    }

    /// Bytes of all layers, each counted once.
    pub fn total_bytes(&self) -> u64 {
        0
    }

    /// Ends every pull and waits until none is left.
    pub async fn close(&self) {}
}
