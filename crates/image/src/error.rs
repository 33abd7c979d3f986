//! Why there is no rootfs. Each kind is one problem to a client, and every message says what to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use unpack::UnpackError;

/// Cloned to everybody who waited for the same pull.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{reference:?} names no image: {reason}")]
    BadReference { reference: String, reason: String },
    #[error("registry {registry} is not allowed: {reason}; {flag} would allow it")]
    NotAllowed { registry: String, reason: String, flag: String },
    #[error("there is no image {reference}")]
    NotFound { reference: String },
    #[error("registry {registry} refuses access to {reference}: {reason}")]
    Unauthorized { registry: String, reference: String, reason: String },
    #[error("registry {registry} is asked too often")]
    RateLimited { registry: String, retry_after: Option<Duration> },
    #[error("registry {registry} failed: {reason}")]
    Registry { registry: String, reason: String },
    #[error("image {reference} can't be used: {reason}")]
    BadImage { reference: String, reason: String },
    #[error("layer {layer} of image {reference} can't be unpacked")]
    BadLayer { reference: String, layer: String, source: Box<UnpackError> },
    #[error("image {reference} is not made for {wanted}, only for {available}")]
    Platform { reference: String, wanted: String, available: String },
    #[error("image {reference} has more {what} than the limit of {limit}")]
    TooLarge { reference: String, what: String, limit: u64 },
    #[error("image {reference} is not here and may not be pulled")]
    NotPresent { reference: String },
    #[error("there is no space left for image {reference}")]
    NoSpace { reference: String },
    #[error("there is no inode left for image {reference}: the store's file system takes no more files")]
    NoInodes { reference: String },
    #[error("pulling {reference} took longer than {} s", limit.as_secs())]
    Timeout { reference: String, limit: Duration },
    /// Nobody waited for the pull any more, or the server is stopping.
    #[error("pulling {reference} was given up")]
    Cancelled { reference: String },
    #[error("{doing}")]
    Store { doing: String, source: Arc<io::Error> },
}

impl ImageError {
    /// A full disk is no fault of the store's, and it is full for whoever hears of it.
    pub(crate) fn in_words(self, reference: &str) -> Self {
        let reference = reference.to_owned();
        match self {
            Self::Store { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Self::NoSpace { reference }
            }
            Self::NoSpace { .. } => Self::NoSpace { reference },
            Self::NoInodes { .. } => Self::NoInodes { reference },
            error => error,
        }
    }
}
