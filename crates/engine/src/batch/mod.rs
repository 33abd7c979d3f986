//! Batches: one command prepares, and many runs are made over what it has left and compared with what was
//! expected of them. A batch holds no slot; each of its runs asks for one like any other.

mod record;
mod spec;

mod begin;
mod drive;
mod judge;

mod ask;
mod live;
mod resume;

mod found_again;
mod prepared;
mod room;
mod room_line;
mod shelf;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use run::{PrincipalName, Problem};
use tokio::sync::oneshot;

use crate::admission::Seat;
use crate::files::{FilesError, Reservation};
use crate::store::{BatchPromise, BatchStore, Key, Known};
use crate::{Engine, Leases, SubmitError};

pub use ask::FoundBatches;
pub use found_again::PreparedRecord;
pub use live::{BatchHandle, CancelBatchOnDrop};
pub use prepared::{Prepared, PreparedId};
pub use record::{Batch, BatchEvent, BatchId, BatchState, Listed, PreparedInfo, Test};
pub use spec::{BatchSpec, Expect, Ground, TestSpec};

use begin::Begin;
use drive::Work;
use live::LiveBatch;
use prepared::Shelf as PreparedShelf;
use room::PrepareRoom;
use room_line::RoomLine;
use shelf::Shelf;

#[derive(Clone, Debug)]
pub struct BatchConfig {
    /// Of finished batches that could not be written down.
    pub kept: usize,
    pub kept_bytes: u64,
    pub kept_for: Duration,
    /// How long what a batch has prepared is kept for others.
    pub prepared_kept_for: Duration,
    /// Of all that is prepared together.
    pub prepared_bytes_max: u64,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// What became of a batch that was asked for under a key, or that is to outlive its client.
#[derive(Debug)]
pub enum TakenBatch {
    New(BatchHandle),
    /// The same was asked before.
    Known(BatchId),
}

/// Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct Batches {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    store: Arc<dyn BatchStore>,
    prepared: PreparedShelf,
    /// Whoever waits for room for what it prepares.
    room_line: Arc<RoomLine<Reservation>>,
    shelf: Mutex<Shelf>,
}

/// What a batch holds from its submission on.
struct Held {
    /// Until the first of its runs has a place.
    seat: Seat,
    leases: Leases,
    room: Option<PrepareRoom>,
}

impl Batches {
    pub fn new(engine: Engine, store: Arc<dyn BatchStore>, config: &BatchConfig) -> Self {
        let prepared = PreparedShelf::new(config.prepared_bytes_max, config.prepared_kept_for);
        let shelf = Mutex::new(Shelf::new(config.kept, config.kept_bytes, config.kept_for));
        let room_line = RoomLine::new(room::PATIENCE);
        Self { inner: Arc::new(Inner { engine, store, prepared, room_line, shelf }) }
    }

    /// Takes a batch, or says why not. It goes on whatever becomes of the caller, but not beyond the server.
    pub fn submit(&self, spec: BatchSpec) -> Result<BatchHandle, BatchError> {
        let held = self.admit(&spec)?;
        let live = self.enlist(spec.queued(), false);
        let work = self.work(&live, held);
        self.inner.engine.inner.tasks.spawn(work.go(spec));
        Ok(BatchHandle { live })
    }

    /// Takes a batch that will come to its end even if the server does first: once this has answered, it is
    /// written down. Under a key that stands for the same request already, it is that batch; ask
    /// [`Batches::known`] first, which needs no room for it.
    pub async fn promise(&self, spec: BatchSpec, key: Option<Key>) -> Result<TakenBatch, BatchError> {
        let held = self.admit(&spec)?;
        let live = self.enlist(spec.queued(), true);
        let (answer, taken) = oneshot::channel();
        // A task of its own from here on: a client that goes away must not leave it half promised.
        self.inner.engine.inner.tasks.spawn(self.clone().write_and_go(live, spec, key, held, answer));
        taken.await.unwrap_or(Err(SubmitError::Stopping.into()))
    }

    /// The batch that a key stands for already, if it is that of the same request.
    pub fn known(&self, key: Option<&Key>) -> Result<Option<BatchId>, BatchError> {
        let Some(key) = key else { return Ok(None) };
        match self.inner.store.known(key).map_err(crate::engine::not_written)?.map(taken).transpose()? {
            Some(TakenBatch::Known(id)) => Ok(Some(id)),
            Some(TakenBatch::New(_)) | None => Ok(None),
        }
    }

    async fn write_and_go(
        self,
        live: Arc<LiveBatch>,
        spec: BatchSpec,
        key: Option<Key>,
        held: Held,
        answer: oneshot::Sender<Result<TakenBatch, BatchError>>,
    ) {
        let spec = Arc::new(spec);
        let promise = BatchPromise { batch: live.batch(), spec: Arc::clone(&spec), key };
        let refused = match self.inner.store.promise(promise).await {
            Ok(None) => {
                let _ = answer.send(Ok(TakenBatch::New(BatchHandle { live: Arc::clone(&live) })));
                return self.work(&live, held).go(Arc::unwrap_or_clone(spec)).await;
            }
            // Somebody else was quicker with the same key.
            Ok(Some(known)) => taken(known),
            Err(error) => Err(crate::engine::not_written(error).into()),
        };
        self.shelf().remove(live.id());
        let _ = answer.send(refused);
    }

    fn work(&self, live: &Arc<LiveBatch>, held: Held) -> Work {
        let Held { seat, leases, room } = held;
        let begin = live.promised.then(|| Begin::new(live.id(), Arc::clone(&self.inner.store)));
        let (batches, live) = (self.clone(), Arc::clone(live));
        Work { batches, live, seat: Some(seat), leases, room, begin, finding: None }
    }

    /// Whether the first run of a batch would start within that time, as far as anybody can tell.
    pub fn check_wait(&self, spec: &BatchSpec, within: Duration) -> Result<(), SubmitError> {
        self.inner.engine.check_wait(&spec.principal, spec.first_limits(), within)
    }

    fn admit(&self, spec: &BatchSpec) -> Result<Held, BatchError> {
        let engine = &self.inner.engine;
        if engine.launcher_is_lost() {
            return Err(SubmitError::LauncherLost.into());
        }
        if engine.is_draining() {
            return Err(SubmitError::Stopping.into());
        }
        spec.limits().try_for_each(|limits| engine.check(limits))?;
        self.hold(spec, engine.sit(&spec.principal, spec.first_limits())?)
    }

    /// Every file is held from now on, so that none is missing when its test's turn comes.
    fn hold(&self, spec: &BatchSpec, seat: Seat) -> Result<Held, BatchError> {
        let files = self.inner.engine.inner.config.files.as_ref();
        let leases =
            Leases::take_all(files, spec.stored_files()).map_err(|file| SubmitError::NoSuchFile { file })?;
        let room = spec.prepare().map(|run| PrepareRoom::of(self, run, &leases)).transpose()?;
        Ok(Held { seat, leases, room })
    }

    fn enlist(&self, batch: Batch, promised: bool) -> Arc<LiveBatch> {
        let live = LiveBatch::begin(batch, promised, &self.inner.engine.inner.out_of_time);
        self.shelf().begin(Arc::clone(&live));
        live
    }

    /// What an earlier batch of this principal has prepared.
    pub fn prepared(&self, id: PreparedId, principal: &PrincipalName) -> Option<Arc<Prepared>> {
        self.inner.prepared.get(id, principal)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // A panic under this lock leaves the maps whole.
        self.inner.shelf.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn taken(known: Known) -> Result<TakenBatch, BatchError> {
    let id = BatchId(known.id.0);
    if known.same { Ok(TakenBatch::Known(id)) } else { Err(SubmitError::KeyReused.into()) }
}

/// The server died, or can't go on with what an earlier one has promised.
fn interrupted(detail: &str) -> Problem {
    Problem {
        problem_type: "/problems/interrupted".into(),
        detail: format!("tests without a result were not run to their end: {detail}"),
        retry_after_ms: None,
    }
}
