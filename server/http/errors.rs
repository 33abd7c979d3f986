//! What other rooms call their errors, and which problem each is to a client.

use std::time::Duration;

use engine::batch::BatchError;
use engine::files::FilesError;
use engine::{StoreError, SubmitError};
use image::ImageError;

use super::problem::{self, BadValue, Kind, Problem};
use crate::log::Chain;

/// When it is worth trying again where files that runs use leave no room.
const FILES_IN_USE_PAUSE: Duration = Duration::from_secs(1);

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
            SubmitError::OverQuota { retry_after } => {
                problem::QUOTA_EXCEEDED.problem().retry_after(retry_after)
            }
            SubmitError::RateLimited { retry_after } => {
                problem::RATE_LIMITED.problem().retry_after(retry_after)
            }
            SubmitError::TooLarge { limit, ref asked, ref most } => {
                let detail = format!("{limit} is {asked}; all runs together may have {most} on this server");
                Problem::invalid(vec![BadValue::at(format!("/limits/{limit}"), detail)])
            }
            SubmitError::TooLate { expected } => {
                problem::WAIT_TOO_LONG.detail(error.to_string()).retry_after(expected)
            }
            SubmitError::Stopping => problem::DRAINING.problem(),
            SubmitError::LauncherLost => problem::LAUNCHER_LOST.problem(),
            // It was there when the request was read.
            SubmitError::NoSuchFile { .. } => {
                let detail = format!("{error} any more; upload it again with `POST /files`");
                Problem::invalid(vec![BadValue::at("/files", detail)])
            }
            SubmitError::KeyReused => problem::KEY_REUSED.problem(),
            SubmitError::Store => problem::RUN_STORE_FAILED.problem(),
        }
    }
}

impl From<BatchError> for Problem {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Submit(error) => error.into(),
            BatchError::Files(error) => error.into(),
        }
    }
}

impl From<FilesError> for Problem {
    fn from(error: FilesError) -> Self {
        match &error {
            FilesError::TooLarge { .. } => problem::BODY_TOO_LARGE.detail(error.to_string()),
            // What runs use is given back as they end.
            FilesError::Full { .. } => {
                problem::FILES_FULL.detail(error.to_string()).retry_after(FILES_IN_USE_PAUSE)
            }
            FilesError::Never { .. } => problem::FILES_FULL.detail(error.to_string()),
            FilesError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                problem::FILES_FULL.detail("the disk is full")
            }
            FilesError::Io { .. } => {
                tracing::error!(error = %Chain(&error), "the store of files failed");
                problem::FILES_FAILED.problem()
            }
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %Chain(&error), "the file of runs failed");
        problem::RUN_STORE_FAILED.problem()
    }
}

/// The engine names the problem of an image in a finished run; a direct call names the same.
fn image_kind(error: &ImageError) -> &'static Kind {
    Kind::named(engine::problem_name(error)).unwrap_or(&problem::INTERNAL_ERROR)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use unpack::UnpackError;

    use super::*;

    /// The engine knows only names. Each must be a kind that is documented here.
    #[test]
    fn every_image_error_is_the_kind_that_the_engine_names() {
        let text = || "x".to_owned();
        let layer =
            |source| ImageError::BadLayer { reference: text(), layer: text(), source: Box::new(source) };
        let io = || UnpackError::Io { doing: text(), path: text(), errno: 5, reason: text() };
        for (error, kind) in [
            (ImageError::BadReference { reference: text(), reason: text() }, &problem::INVALID_REQUEST),
            (
                ImageError::NotAllowed { registry: text(), reason: text(), flag: text() },
                &problem::IMAGE_NOT_ALLOWED,
            ),
            (ImageError::NotFound { reference: text() }, &problem::IMAGE_NOT_FOUND),
            (
                ImageError::Unauthorized { registry: text(), reference: text(), reason: text() },
                &problem::IMAGE_UNAUTHORIZED,
            ),
            (
                ImageError::RateLimited { registry: text(), retry_after: None },
                &problem::REGISTRY_RATE_LIMITED,
            ),
            (ImageError::Registry { registry: text(), reason: text() }, &problem::REGISTRY_FAILED),
            (ImageError::BadImage { reference: text(), reason: text() }, &problem::BAD_IMAGE),
            (layer(UnpackError::TrailingGarbage), &problem::BAD_IMAGE),
            (layer(UnpackError::NoSpace), &problem::STORE_FULL),
            (layer(UnpackError::TooLarge { what: text(), limit: 1 }), &problem::IMAGE_TOO_LARGE),
            (layer(io()), &problem::STORE_FAILED),
            (
                ImageError::Platform { reference: text(), wanted: text(), available: text() },
                &problem::IMAGE_PLATFORM,
            ),
            (ImageError::TooLarge { reference: text(), what: text(), limit: 1 }, &problem::IMAGE_TOO_LARGE),
            (ImageError::NotPresent { reference: text() }, &problem::IMAGE_NOT_PRESENT),
            (ImageError::NoSpace { reference: text() }, &problem::STORE_FULL),
            (ImageError::NoInodes { reference: text() }, &problem::STORE_FULL),
            (ImageError::Timeout { reference: text(), limit: Duration::ZERO }, &problem::PULL_TIMEOUT),
            (ImageError::Cancelled { reference: text() }, &problem::DRAINING),
            (
                ImageError::Store { doing: text(), source: Arc::new(io::Error::other("disk")) },
                &problem::STORE_FAILED,
            ),
        ] {
            assert_eq!(image_kind(&error).name, kind.name, "{error}");
        }
    }
}
