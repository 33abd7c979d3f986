//! What the black-box tests have in common: a daemon of their own, a real registry, images made from
//! Debian packages, and an eye on the host. Nothing here knows a crate of the service: what the tests
//! know of it is HTTP and the two binaries.
//!
//! A helper that can't do its work panics with a sentence; a test has nothing better to do with an error.

pub mod daemon;
pub mod delegated;
pub mod docker;
pub mod dockerfile;
pub mod events;
pub mod http;
pub mod hub;

pub mod image;
pub mod liar;
pub mod prometheus;
pub mod registry;
pub mod relay;
pub mod stock;
pub mod user;

pub mod glimpse;
pub mod guest;
pub mod guide;
pub mod host;
pub mod marked;

mod command;
mod measured;
mod place;
mod process;
mod service;
mod skip;
mod wait;

pub use command::{Finished, sandglass, sandglass_launcher, tool};
pub use daemon::{Builder, Daemon};
pub use delegated::Delegated;
pub use docker::Docker;
pub use events::{Event, Events};
pub use glimpse::Glimpse;
pub use host::Host;
pub use http::{Pending, Request, Response};
pub use hub::Hub;
pub use image::{Compression, Image, Layer};
pub use liar::{Liar, Lie};
pub use place::{Folder, disk_bytes, repository, stamps, target};
pub use process::Process;
pub use registry::Registry;
pub use relay::Relay;
pub use service::Service;
pub use skip::skip;
pub use user::User;
pub use wait::{scaled, until, within};

pub use serde_json::{Value, json};
