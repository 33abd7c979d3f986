//! The door to images.

use futures_util::future::BoxFuture;
use image::{ImageError, Lease};
use run::Pull;

pub trait Images: Send + Sync + 'static {
    /// The image, pulled if need be. The lease keeps its layers as long as it lives.
    fn acquire<'a>(&'a self, reference: &'a str, pull: Pull) -> BoxFuture<'a, Result<Lease, ImageError>>;
}

impl Images for image::Images {
    fn acquire<'a>(&'a self, reference: &'a str, pull: Pull) -> BoxFuture<'a, Result<Lease, ImageError>> {
        Box::pin(image::Images::acquire(self, reference, pull))
    }
}
