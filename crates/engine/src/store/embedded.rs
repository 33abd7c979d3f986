//! Runs in one file of the server's own, with one thread that writes it. Readers see what is written and
//! what is about to be.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable};
use run::{Output, Run, RunId, Stream};
use tokio::sync::oneshot;

use super::batch::{Answer, Change, Queue};
use super::format::{self, Claim, Head, Read};
use super::tables::{self, KEYS, OUTPUTS, PIECE_BYTES, PROMISED, RUNS, STARTED, failed, number, place};
use super::{Finished, Keep, Key, Known, Page, Promise, RunStore, StoreError, Unfinished, Wanted, writer};
use crate::clock;

const READING: &str = "read the file of runs";

/// How many runs one page looks at: a filter that few runs pass takes several.
const LOOKED_AT: usize = 2_000;

/// Dropping it writes what is left.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub database: Database,
    pub queue: Queue,
    pub keep: Keep,
    broken: OnceLock<StoreError>,
}

impl Shared {
    pub(super) fn fail(&self, error: &StoreError) {
        if self.broken.set(error.clone()).is_ok() {
            tracing::error!(error = %error, cause = %error.source, "runs can't be remembered any more");
        }
    }
}

impl EmbeddedStore {
    /// Opens the file, or makes it.
    pub fn open(path: &Path, keep: Keep) -> Result<Self, StoreError> {
        Self::over(tables::open(Some(path))?, keep)
    }

    /// A store whose runs are forgotten with it.
    pub fn in_memory(keep: Keep) -> Result<Self, StoreError> {
        Self::over(tables::open(None)?, keep)
    }

    fn over(database: Database, keep: Keep) -> Result<Self, StoreError> {
        let tally = writer::tally(&database)?;
        let shared = Arc::new(Shared { database, queue: Queue::default(), keep, broken: OnceLock::new() });
        let writing = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("run-store".into());
        let writer = writer.spawn(move || writer::write(&writing, tally));
        let writer = writer.map_err(|error| StoreError::new("start the thread that writes runs", error))?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)) })
    }

    /// Hands a change to the writer and waits until it is on disk.
    async fn written<T>(&self, change: impl FnOnce(Answer<T>) -> Change) -> Result<T, StoreError> {
        if let Some(error) = self.shared.broken.get() {
            return Err(error.clone());
        }
        let (answer, written) = oneshot::channel();
        self.shared.queue.urgent(change(answer));
        self.heard(written).await
    }

    async fn heard<T>(&self, written: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
        match written.await {
            Ok(written) => written,
            Err(gone) => Err(match self.shared.broken.get() {
                Some(error) => error.clone(),
                None => StoreError::new("write a run down", gone),
            }),
        }
    }

    fn head(&self, id: RunId) -> Result<Option<Head>, StoreError> {
        let reading = self.shared.database.begin_read().map_err(failed(READING))?;
        let runs = reading.open_table(RUNS).map_err(failed(READING))?;
        let text = runs.get(number(id)).map_err(failed(READING))?;
        let head = text.map(|text| format::read::<Head>(text.value())).transpose()?;
        Ok(head.filter(|head| !head.expired(clock::timestamp())))
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl RunStore for EmbeddedStore {
    fn promise(&self, promise: Promise) -> BoxFuture<'_, Result<Option<Known>, StoreError>> {
        Box::pin(self.written(|answer| Change::Promise(promise, answer)))
    }

    fn known(&self, key: &Key) -> Result<Option<Known>, StoreError> {
        let reading = self.shared.database.begin_read().map_err(failed(READING))?;
        let keys = reading.open_table(KEYS).map_err(failed(READING))?;
        let claim = keys.get((key.owner.as_str(), key.name.as_str())).map_err(failed(READING))?;
        let claim = claim.map(|claim| format::read::<Claim>(claim.value())).transpose()?;
        let stands = |claim: &Claim| claim.expires_us > clock::timestamp().as_microsecond();
        Ok(claim.filter(stands).map(|claim| Known { id: claim.id, same: claim.body == key.body }))
    }

    fn started(&self, id: RunId, at: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.written(move |answer| Change::Started(id, at, answer)))
    }

    fn kept(&self, run: Arc<Run>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (answer, written) = oneshot::channel();
            self.shared.queue.finished(run, Some(answer));
            self.heard(written).await
        })
    }

    fn remember(&self, run: Arc<Run>) {
        self.shared.queue.finished(run, None);
    }

    fn torn_down(&self, id: RunId, took_ms: f64) {
        self.shared.queue.torn_down(id, took_ms);
    }

    fn is_full(&self) -> bool {
        self.shared.queue.is_full()
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.queue.room())
    }

    fn forget(&self, id: RunId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.written(move |answer| Change::Forget(id, answer)))
    }

    fn get(&self, id: RunId) -> Result<Option<Finished>, StoreError> {
        if let Some(run) = self.shared.queue.pending(id) {
            return Ok(Some(Finished::loaded(run)));
        }
        Ok(self.head(id)?.map(Finished::from))
    }

    fn read(&self, id: RunId, stream: Stream, offset: u64, most: usize) -> Result<Vec<u8>, StoreError> {
        if let Some(run) = self.shared.queue.pending(id) {
            return Ok(part(output(&run, stream), offset, most).to_vec());
        }
        let reading = self.shared.database.begin_read().map_err(failed(READING))?;
        let outputs = reading.open_table(OUTPUTS).map_err(failed(READING))?;
        let (first, mut skipped) = (offset / PIECE_BYTES as u64, (offset % PIECE_BYTES as u64) as usize);
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        let pieces = (number(id), place(stream), first)..=(number(id), place(stream), u32::MAX);
        let mut bytes = Vec::new();
        for piece in outputs.range(pieces).map_err(failed(READING))? {
            let (_, piece) = piece.map_err(failed(READING))?;
            let rest = piece.value().get(skipped..).unwrap_or_default();
            bytes.extend_from_slice(&rest[..rest.len().min(most - bytes.len())]);
            skipped = 0;
            if bytes.len() == most {
                break;
            }
        }
        Ok(bytes)
    }

    fn page(&self, wanted: Wanted<'_>) -> Result<Page, StoreError> {
        // Looked at first: what is written meanwhile is then found twice rather than not at all.
        let pending = self.shared.queue.all_pending(wanted.before);
        let reading = self.shared.database.begin_read().map_err(failed(READING))?;
        let runs = reading.open_table(RUNS).map_err(failed(READING))?;
        let older = ..wanted.before.map_or(u128::MAX, number);
        let now = clock::timestamp();
        let written = runs.range(older).map_err(failed(READING))?.rev().filter_map(|entry| {
            let head =
                entry.map_err(failed(READING)).and_then(|(_, text)| format::read::<Head>(text.value()));
            match head {
                Ok(head) => (!head.expired(now)).then(|| Ok(Finished::from(head))),
                Err(error) => Some(Err(error)),
            }
        });
        select(&wanted, newest_first(pending, written))
    }

    fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError> {
        let reading = self.shared.database.begin_read().map_err(failed(READING))?;
        let promised = reading.open_table(PROMISED).map_err(failed(READING))?;
        let started = reading.open_table(STARTED).map_err(failed(READING))?;
        let mut unfinished = Vec::new();
        for entry in promised.iter().map_err(failed(READING))? {
            let (id, text) = entry.map_err(failed(READING))?;
            let Read { run, spec } = format::read(text.value())?;
            let at = started.get(id.value()).map_err(failed(READING))?.map(|at| at.value());
            let started_at = at.map(|at| Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH));
            unfinished.push(Unfinished { run, spec, started_at });
        }
        Ok(unfinished)
    }

    fn broken(&self) -> Option<StoreError> {
        self.shared.broken.get().cloned()
    }

    fn close(&self) {
        self.shared.queue.close();
        let writer = self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that writes runs panicked");
        }
    }
}

/// Runs that are about to be written among those that are, each once.
fn newest_first(
    pending: Vec<Arc<Run>>,
    written: impl Iterator<Item = Result<Finished, StoreError>>,
) -> impl Iterator<Item = Result<Finished, StoreError>> {
    let mut pending = pending.into_iter().peekable();
    let mut written = written.peekable();
    std::iter::from_fn(move || {
        let (first, second) = (pending.peek().map(|run| run.id), written.peek());
        match (first, second) {
            (Some(first), Some(Ok(second))) if first == second.run.id => {
                written.next();
                pending.next().map(Finished::loaded).map(Ok)
            }
            (Some(first), Some(Ok(second))) if first < second.run.id => written.next(),
            (Some(_), Some(Ok(_)) | None) => pending.next().map(Finished::loaded).map(Ok),
            (_, Some(Err(_))) | (None, _) => written.next(),
        }
    })
}

fn select(
    wanted: &Wanted<'_>,
    runs: impl Iterator<Item = Result<Finished, StoreError>>,
) -> Result<Page, StoreError> {
    let (mut page, mut bytes) = (Page::default(), 0);
    for (looked_at, run) in runs.enumerate() {
        let run = run?;
        let matches = (wanted.matches)(&run.run);
        bytes += if matches { run.output_bytes() } else { 0 };
        let full = page.runs.len() == wanted.runs || (bytes > wanted.bytes && !page.runs.is_empty());
        if looked_at == LOOKED_AT || (matches && full) {
            return Ok(page);
        }
        // Only where it is not the last one does it say that there is more.
        page.until = Some(run.run.id);
        if matches {
            page.runs.push(run);
        }
    }
    page.until = None;
    Ok(page)
}

fn output(run: &Run, stream: Stream) -> &Output {
    match stream {
        Stream::Stdout => &run.stdout,
        Stream::Stderr => &run.stderr,
    }
}

pub(crate) fn part(output: &Output, offset: u64, most: usize) -> &[u8] {
    let rest = usize::try_from(offset).ok().and_then(|offset| output.bytes.get(offset..)).unwrap_or_default();
    &rest[..rest.len().min(most)]
}
