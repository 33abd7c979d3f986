//! Whether somebody may still have what it had: its registry is asked, now and then.

use std::sync::Arc;

use run::PrincipalName;

use crate::disk::ImageRecord;
use crate::reference::Reference;
use crate::view::Asker;
use crate::{ImageError, Images};

impl Images {
    pub(crate) fn asker(&self, principal: Option<&PrincipalName>, image: &Reference) -> Asker {
        let of = |name| self.inner.accounts.of(name, &image.registry, &self.inner.puller.registries);
        Asker { name: principal.cloned(), account: principal.and_then(of) }
    }

    /// Whether the asker may still have what is its own. A registry's word is asked for once in a while, by one
    /// request for all who ask at the same time.
    pub(crate) async fn may_have(
        &self,
        asker: &Asker,
        image: &Reference,
        record: &ImageRecord,
    ) -> Result<bool, ImageError> {
        // What came as a file was brought by the asker itself.
        if record.resolved_at.is_none() || !walls::stands("proved_access") {
            return Ok(true);
        }
        let Some(account) = &asker.account else { return Ok(false) };
        let key = record.key();
        if account.has_proved(&key) {
            return Ok(true);
        }
        let mut seat = self.inner.proofs.join(&format!("{key}#{}", account.id), |()| {
            let (puller, image) = (Arc::clone(&self.inner.puller), image.clone());
            let (view, digest) = (account.view.clone(), record.digest.clone());
            async move { puller.asks_for(image, view, &digest).await }
        });
        let answer = seat.result().await;
        let proved = answer.unwrap_or(Err(ImageError::Cancelled { reference: record.reference.clone() }))?;
        if proved {
            account.prove(key, self.inner.puller.config.access_life);
        }
        Ok(proved)
    }
}
