//! From an image's reference to the layers of a rootfs: which registry, which manifest for this
//! machine, which layers are missing, and who is using them. The trees themselves are kept by a
//! [`LayerStore`]; this crate never touches a file of an image.

mod config;
mod error;
mod images;
mod lease;
mod progress;
mod store;

mod access;
mod board;
mod bundle;
mod catalogue;
mod collect;
mod commit;
mod credentials;
mod digest;
mod disk;
mod download;
mod fixup;
mod flight;
mod lanes;
mod layers;
mod load;
mod manifest;
mod mirrors;
mod pull;
mod reference;
mod registry;
mod resolve;
mod retry;
mod rules;
mod save;
mod shelf;
mod token;
mod view;
mod waits;

/// For the fuzzer only.
#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub use collect::Budget;
/// The name in full of an image as Docker users write it; nothing where it is no reference.
pub fn full_name(reference: &str) -> Option<String> {
    reference::Reference::parse(reference).ok().map(|reference| reference.to_string())
}

/// The same image by its content, whatever it was called; nothing where that is no reference or no digest.
pub fn by_digest(reference: &str, digest: &str) -> Option<String> {
    reference::Reference::parse(reference).ok()?.by_digest(digest).map(|reference| reference.to_string())
}

pub use credentials::Credential;

pub use config::{Config, Limits, Platform};
pub use error::ImageError;
pub use images::Images;
pub use lease::{ImageConfig, ImageInfo, Lease, Rootfs};
pub use load::Archive;
pub use mirrors::Mirror;
pub use progress::{Eviction, LayerState, NoObserver, Observer, Progress, PullResult, WaitsFor};
pub use retry::REASONS as RETRY_REASONS;
pub use save::Saved;
pub use store::{BoxFuture, Commit, Deleting, LayerStore, Packing, Unpacked, Unpacking};
pub use view::{Logins, NoLogins, Whose};
