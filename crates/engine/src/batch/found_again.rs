//! What a batch that waits stands on outlives the server that has prepared it: with the batch it is written down
//! which layer that is and which image lies below, and the next server takes both over before the batch begins.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use image::Lease;
use run::{PrincipalName, Problem, Pull};
use serde::{Deserialize, Serialize};

use super::{Batches, Ground, Prepared, PreparedId};
use crate::over::{Base, FrozenLayer};
use crate::store::UnfinishedBatch;

/// What it takes to find something prepared again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreparedRecord {
    pub id: PreparedId,
    principal: PrincipalName,
    /// As it was asked for.
    image: String,
    /// By the clock by which things are kept.
    expires: SystemTime,
    layer: String,
    bytes: u64,
    /// The image below: its full name, and what that led to.
    reference: String,
    digest: Option<String>,
    /// The layer was never made durable: after a power cut nobody knows what is in it.
    boot: String,
}

/// Something prepared that is looked for, or why it is gone. All batches over it share one.
pub(super) type Finding = Shared<BoxFuture<'static, Result<Arc<Prepared>, String>>>;

/// For a batch of a server that did not write down what it stands on.
pub(super) fn nothing_written() -> Finding {
    async { Err("its server did not write down where it is".to_owned()) }.boxed().shared()
}

pub(super) fn lost(why: &str) -> Problem {
    Problem {
        problem_type: "/problems/prepared-lost".into(),
        detail: format!("what an earlier batch has prepared is gone since the server was restarted: {why}"),
        retry_after_ms: None,
    }
}

impl PreparedRecord {
    pub(crate) fn of(ground: &Ground) -> Option<Self> {
        let Ground::Prepared(Some(prepared)) = ground else { return None };
        let layer = prepared.base.layer.as_ref()?;
        Some(Self {
            id: prepared.id,
            principal: prepared.principal.clone(),
            image: prepared.image.clone(),
            expires: prepared.expires,
            layer: layer.name.clone(),
            bytes: layer.room.bytes(),
            reference: prepared.base.lease.reference.clone(),
            digest: prepared.base.lease.digest.clone(),
            boot: this_boot(),
        })
    }

    /// The image by its content, where a registry may have it.
    fn by_digest(&self) -> Option<String> {
        image::by_digest(&self.reference, self.digest.as_ref()?)
    }
}

impl Batches {
    /// Takes the layers over on which batches wait that have not begun, and gives up all others. The images below
    /// may take longer, and are looked for when a batch asks.
    pub(super) async fn find_again(&self, unfinished: &[UnfinishedBatch]) -> HashMap<PreparedId, Finding> {
        let waiting = unfinished.iter().filter(|batch| !batch.begun);
        let mut findings = HashMap::new();
        for record in waiting.filter_map(|batch| batch.ground.as_ref()) {
            if let Entry::Vacant(place) = findings.entry(record.id) {
                let layer = self.take_over(record).await;
                place.insert(self.clone().find(record.clone(), layer).boxed().shared());
            }
        }
        let launcher = Arc::clone(&self.inner.engine.inner.launcher);
        tokio::spawn(async move { launcher.discard_former().await });
        findings
    }

    async fn take_over(&self, record: &PreparedRecord) -> Result<FrozenLayer, String> {
        if record.boot != this_boot() {
            return Err("the machine was restarted, too".into());
        }
        let engine = &self.inner.engine.inner;
        let files = engine.config.files.as_ref().ok_or("there is no room for files any more")?;
        let room = files.reserve(record.bytes).map_err(|error| error.to_string())?;
        match engine.launcher.adopt(&record.layer).await {
            Ok(true) => Ok(FrozenLayer::new(record.layer.clone(), room, engine)),
            Ok(false) => Err("its layer is not in the store".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn find(
        self,
        record: PreparedRecord,
        layer: Result<FrozenLayer, String>,
    ) -> Result<Arc<Prepared>, String> {
        let layer = Some(layer?);
        let lease = self.find_image(&record).await?;
        let PreparedRecord { id, principal, image, expires, .. } = record;
        let base = Arc::new(Base { lease, layer });
        Ok(self.inner.prepared.put(Prepared { id, principal, image, expires, base }))
    }

    /// The very image, which may have lost its name meanwhile.
    async fn find_image(&self, record: &PreparedRecord) -> Result<Lease, String> {
        let images = &self.inner.engine.inner.images;
        let principal = &record.principal;
        let here = images.acquire(principal, &record.reference, Pull::Never).await;
        if let Some(lease) = here.ok().filter(|lease| lease.digest == record.digest) {
            return Ok(lease);
        }
        let gone = || format!("the image {} below it is not the one that it was", record.reference);
        let by_digest = record.by_digest().ok_or_else(gone)?;
        let lease = images.acquire(principal, &by_digest, Pull::Missing).await;
        lease.map_err(|error| format!("{by_digest}: {error}"))
    }
}

fn this_boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
