//! The door to images.

use futures_util::future::BoxFuture;
use image::{ImageError, Lease};
use run::{PrincipalName, Pull};

pub trait Images: Send + Sync + 'static {
    /// What the name means to that principal, pulled if need be. The lease keeps its layers as long as it lives.
    fn acquire<'a>(
        &'a self,
        principal: &'a PrincipalName,
        reference: &'a str,
        pull: Pull,
    ) -> BoxFuture<'a, Result<Lease, ImageError>>;
}

impl Images for image::Images {
    fn acquire<'a>(
        &'a self,
        principal: &'a PrincipalName,
        reference: &'a str,
        pull: Pull,
    ) -> BoxFuture<'a, Result<Lease, ImageError>> {
        match principal.is_anonymous() {
            true => Box::pin(image::Images::acquire(self, reference, pull)),
            false => Box::pin(self.acquire_for(principal, reference, pull)),
        }
    }
}
