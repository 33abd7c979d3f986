//! From submitted to finished: who may run when, what a run goes through, and what is remembered of
//! it. The engine knows images and sandboxes by their doors only, and nothing of HTTP.

mod ask;
mod clock;
mod drive;
mod engine;
mod execute;
mod found;

pub mod batch;

mod live;
mod watcher;

mod admission;
mod again;
mod output;
mod outputs;
mod over;
mod plan;
mod stdin;
mod store;

pub mod files;

mod images;
mod launcher;
mod observer;
mod pool;

pub use admission::Budget;
pub use ask::Runs;
pub use engine::{Config, Counts, Engine, SubmitError, Taken};
pub use execute::{Context, Executed, Gate, Stdin, Step, execute, problem_name};
pub use files::Leases;
pub use found::Found;
pub use images::Images;
pub use launcher::{Control, Launch, LaunchError, Launched, Launcher, SandboxLauncher};
pub use live::{CancelOnDrop, RunHandle};
pub use observer::{NoObserver, Observer, Rejection, Startup};
pub use output::Kept;
pub use over::Over;
pub use pool::PoolCounts;
pub use store::{
    BatchPromise, BatchResult, BatchStore, EmbeddedStore, Finished, FinishedBatch, Keep, Key, Known, Page,
    Promise, RunStore, Shape, StoreError, Unfinished, UnfinishedBatch, Wanted, WantedBatches,
};
pub use watcher::{Extent, Piece, Watcher};
