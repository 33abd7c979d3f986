//! What other rooms call their errors, and which problem each is to a client.

use engine::SubmitError;
use image::ImageError;
use unpack::UnpackError;

use super::problem::{self, BadValue, Kind, Problem};
use crate::telemetry::Chain;

impl From<ImageError> for Problem {
    fn from(error: ImageError) -> Self {
        let kind = image_kind(&error);
        match &error {
            ImageError::BadReference { .. } => {
                Problem::invalid(vec![BadValue::at("/image", error.to_string())])
            }
            ImageError::RateLimited { retry_after: Some(pause), .. } => {
                kind.detail(error.to_string()).retry_after(*pause)
            }
            // Its cause is a file of ours, which is the log's business.
            ImageError::Store { .. } => {
                tracing::error!(error = %Chain(&error), "the image store failed");
                kind.problem()
            }
            _ => kind.detail(Chain(&error).to_string()),
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Busy { retry_after } => problem::QUEUE_FULL.problem().retry_after(retry_after),
            SubmitError::Stopping => problem::DRAINING.problem(),
            SubmitError::LauncherLost => problem::LAUNCHER_LOST.problem(),
        }
    }
}

/// One line per error, no wildcard: a new one must not compile until somebody has decided.
pub fn image_kind(error: &ImageError) -> &'static Kind {
    match error {
        ImageError::BadReference { .. } => &problem::INVALID_REQUEST,
        ImageError::NotAllowed { .. } => &problem::IMAGE_NOT_ALLOWED,
        ImageError::NotFound { .. } => &problem::IMAGE_NOT_FOUND,
        ImageError::Unauthorized { .. } => &problem::IMAGE_UNAUTHORIZED,
        ImageError::RateLimited { .. } => &problem::REGISTRY_RATE_LIMITED,
        ImageError::Registry { .. } => &problem::REGISTRY_FAILED,
        ImageError::BadLayer { source: UnpackError::NoSpace, .. } => &problem::STORE_FULL,
        ImageError::BadLayer { source: UnpackError::TooLarge { .. }, .. } => &problem::IMAGE_TOO_LARGE,
        ImageError::BadLayer { source: UnpackError::Io { .. } | UnpackError::BadJob { .. }, .. } => {
            &problem::STORE_FAILED
        }
        ImageError::BadImage { .. } | ImageError::BadLayer { .. } => &problem::BAD_IMAGE,
        ImageError::Platform { .. } => &problem::IMAGE_PLATFORM,
        ImageError::TooLarge { .. } => &problem::IMAGE_TOO_LARGE,
        ImageError::NotPresent { .. } => &problem::IMAGE_NOT_PRESENT,
        ImageError::NoSpace { .. } => &problem::STORE_FULL,
        ImageError::Timeout { .. } => &problem::PULL_TIMEOUT,
        ImageError::Cancelled { .. } => &problem::DRAINING,
        ImageError::Store { .. } => &problem::STORE_FAILED,
    }
}
