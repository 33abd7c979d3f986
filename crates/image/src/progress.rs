//! What a pull says while it is under way: [`Progress`] to those who wait for it, [`Observer`] to
//! whoever counts.

use std::time::Duration;

use serde::Serialize;

/// One step of one pull. Layers are numbered from 0, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Progress {
    Resolving {
        reference: String,
    },
    /// The image is known; `bytes` is the sum of its compressed layers.
    Resolved {
        digest: String,
        layers: usize,
        bytes: u64,
    },
    Layer {
        layer: usize,
        state: LayerState,
    },
    /// Runs can have the image, which is being made durable.
    Committing,
    /// It is durable.
    Ready {
        digest: String,
    },
}

/// Who keeps a layer from being here sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Its bytes arrive more slowly than they could be unpacked.
    Registry,
    /// They arrive faster than they can be unpacked.
    Unpacker,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum LayerState {
    Downloading {
        bytes: u64,
        of: u64,
        waits_for: WaitsFor,
    },
    /// Every byte has arrived; the unpacker is still writing.
    Unpacking,
    /// Another image has it already, or another pull brought it.
    Shared,
    Done,
}

/// How a pull ended, as a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PullResult {
    Ok,
    /// The request was wrong: no such image, not allowed, no access, not for this machine, broken.
    Refused,
    /// The registry or the network failed.
    Registry,
    Timeout,
    /// Nobody waited for it any more.
    Cancelled,
    /// We failed: disk full, or the layer store.
    Internal,
}

impl PullResult {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Registry => "registry",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// Why an image was forgotten, as a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eviction {
    /// Somebody asked for it.
    Request,
    /// There were more bytes of images than there may be.
    Limit,
    /// The disk had too little room left.
    Disk,
    /// It was in use already, and could not be made durable.
    NotKept,
}

impl Eviction {
    pub const ALL: [Self; 4] = [Self::Request, Self::Limit, Self::Disk, Self::NotKept];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Limit => "limit",
            Self::Disk => "disk",
            Self::NotKept => "not_kept",
        }
    }
}

/// Counts what happens. Every method may be called from any thread and must not block.
pub trait Observer: Send + Sync + 'static {
    /// An image was asked for and is here.
    fn cache_hit(&self) {}
    /// An image was asked for and must be fetched, or asked about at its registry.
    fn cache_miss(&self) {}
    /// A request joined a pull that was under way.
    fn pull_coalesced(&self) {}
    fn pull_started(&self) {}
    fn pull_finished(&self, result: PullResult, took: Duration) {
        let _ = (result, took);
    }
    /// Compressed bytes that arrived.
    fn bytes_downloaded(&self, bytes: u64) {
        let _ = bytes;
    }
    /// From a layer's first byte to its commit.
    fn layer_unpacked(&self, took: Duration) {
        let _ = took;
    }
    /// How long one layer waited for bytes, and how long for its unpacker to take them.
    fn layer_waited(&self, registry: Duration, unpacker: Duration) {
        let _ = (registry, unpacker);
    }
    /// A request to a registry is repeated; the reason is one of [`RETRY_REASONS`](crate::RETRY_REASONS).
    fn retried(&self, reason: &'static str) {
        let _ = reason;
    }
    fn image_removed(&self, why: Eviction) {
        let _ = why;
    }
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}
