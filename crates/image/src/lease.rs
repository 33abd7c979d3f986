//! What a run gets: the layers, how the image wants to be run, and the promise that the layers stay
//! while it looks at them.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use run::PrincipalName;
use serde::{Deserialize, Serialize};

/// An image in use. Dropping it lets the layers be collected.
#[derive(Clone, Debug)]
pub struct Lease {
    /// In full: `docker.io/library/alpine:latest`, or `host`.
    pub reference: String,
    /// Of what the reference led to: an index, or a manifest. Absent for `host`.
    pub digest: Option<String>,
    /// The principal who alone may use it; absent: it is everybody's.
    pub owner: Option<PrincipalName>,
    pub rootfs: Rootfs,
    pub config: ImageConfig,
    /// The registry had to be asked, by us or by somebody for whose pull we waited.
    pub fetched: bool,
    _guard: Option<Arc<dyn Guard>>,
}

/// Whatever has to live as long as the lease.
pub(crate) trait Guard: fmt::Debug + Send + Sync {}

impl Lease {
    /// A lease that guards nothing: for `host`, and for tests of those who use leases.
    pub fn unguarded(reference: &str, digest: Option<String>, rootfs: Rootfs, config: ImageConfig) -> Self {
        Self {
            reference: reference.into(),
            digest,
            owner: None,
            rootfs,
            config,
            fetched: false,
            _guard: None,
        }
    }

    pub(crate) fn fetched(self) -> Self {
        Self { fetched: true, ..self }
    }

    pub(crate) fn owned_by(self, owner: Option<PrincipalName>) -> Self {
        Self { owner, ..self }
    }

    pub(crate) fn guarded_by(self, guard: Arc<dyn Guard>) -> Self {
        Self { _guard: Some(guard), ..self }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// Names in the layer store, the topmost first. May be empty: an image without layers.
    Layers(Arc<[String]>),
    /// The machine's own programs.
    Host,
}

/// How the image wants to be run, as far as anybody heeds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `KEY=value`; what had no `=` or a NUL has been left out.
    pub env: Vec<String>,
    pub workdir: String,
    pub user: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
}

/// One image of the store, for lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    pub reference: String,
    /// The principal who alone may use it; absent: it is everybody's.
    #[serde(rename = "principal")]
    pub owner: Option<PrincipalName>,
    pub digest: String,
    /// `linux/amd64`.
    pub platform: String,
    pub layers: usize,
    /// Of the layers as they were downloaded.
    pub compressed_bytes: u64,
    /// Of the files of all layers, shared ones included.
    pub bytes: u64,
    /// Of those layers that no other image has that its owner could use. They go when the image does, unless an image
    /// that is somebody else's alone has them.
    pub own_bytes: u64,
    /// What all its layers take of the disk.
    pub disk_bytes: u64,
    pub pulled_at: Timestamp,
    /// When a registry last said that the name means this. Absent for what came from a file.
    pub resolved_at: Option<Timestamp>,
    pub last_used_at: Timestamp,
    pub in_use: bool,
    /// It is never collected.
    pub pinned: bool,
}
