//! HTTP: what clients say becomes a [`run::RunSpec`], what became of it becomes JSON. Handlers
//! translate; they don't think.

pub mod router;

pub mod layers;

pub mod auth;

pub mod runs;
pub mod seats;

pub mod events;
pub mod raw;

pub mod batches;

pub mod batch_events;
pub mod batch_reply;

pub mod files;

pub mod image_events;
pub mod image_upload;
pub mod images;

pub mod health;

pub mod backup;
pub mod principals;

mod accept;
pub mod body;
mod checks;
pub mod content;
mod conversation;
pub mod create_batch;
pub mod create_run;
pub mod docs;
pub mod errors;
pub mod examples;
pub mod fields;
mod filter;
pub mod idempotency;
pub mod json;
mod laid;
pub mod listener;
pub mod pieces;
pub mod prefer;
pub mod problem;
pub mod proxies;
pub mod query;
pub mod reply;
pub mod serve;
mod sse;

use std::sync::Arc;

use bytes::Bytes;
use engine::Engine;
use engine::batch::Batches;
use engine::files::Files;
use image::Images;
use sandbox::protocol::Hello;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::keys::Ledger;
use crate::leaks::{Groups, Mounts};
use crate::reload::Live;
use crate::telemetry::Telemetry;
use crate::traces::Traces;

/// What every handler can reach.
#[derive(Debug)]
pub struct App {
    pub config: Config,
    pub engine: Engine,
    pub images: Images,
    pub files: Files,
    pub batches: Batches,
    pub keys: Arc<dyn auth::Authenticator>,
    pub ledger: Arc<Ledger>,
    pub hello: Hello,
    pub telemetry: Arc<Telemetry>,
    pub traces: Traces,
    pub groups: Groups,
    pub mounts: Mounts,
    /// What SIGHUP may change.
    pub settings: Live,
    pub bodies: body::BodyLimits,
    pub seats: Arc<seats::Seats>,
    /// `openapi.json`, written once.
    pub openapi: Bytes,
    /// One backup at a time: each takes room on the disk until it has been sent.
    pub backups: Arc<Semaphore>,
}
