//! Runs in one file of the server's own, with one thread that writes it. Readers see what is written and
//! what is about to be.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};
use run::{Output, Run, RunId, Stream};
use tokio::sync::oneshot;

use super::copy::{self, COPYING};
use super::format::{self, Claim, Head, Read};
use super::queue::{Answer, Change, Queue};
use super::tables::{self, KEYS, OUTPUTS, PIECE_BYTES, PROMISED, RUNS, STARTED, failed, number, place};
use super::writer::{self, Tally};
use super::{Finished, Keep, Key, Known, Page, Promise, RunStore, StoreError, Unfinished, Wanted};
use crate::clock;

pub(super) const READING: &str = "read the file of runs";

/// How many runs one page looks at: a filter that few runs pass takes several.
pub(super) const LOOKED_AT: usize = 2_000;

/// The file could not be opened when it was opened anew.
#[derive(Debug, thiserror::Error)]
#[error("the file is closed")]
struct Closed;

/// The file, and how many times it was opened.
#[derive(Debug)]
struct Opened {
    /// Nothing while it can't be opened.
    file: Option<Database>,
    times: u64,
}

/// Dropping it writes what is left.
#[derive(Debug)]
pub struct EmbeddedStore {
    pub(super) shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    file: RwLock<Opened>,
    /// Where it is; nowhere in memory.
    pub path: Option<PathBuf>,
    pub queue: Queue,
    pub keep: Keep,
    broken: Mutex<Option<StoreError>>,
}

impl Shared {
    /// Looks into the file as it stands. Once a write has failed, for want of room for instance, the file as it was
    /// opened gives nothing more; what is in it can be read all the same.
    pub(super) fn read<T>(
        &self,
        look: impl Fn(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let times = self.opened().times;
        let look = || self.with_file(|file| look(&file.begin_read().map_err(failed(READING))?));
        match look() {
            Err(error) if is_shut(&error) => {
                self.open_for_readers(times)?;
                look()
            }
            looked => looked,
        }
    }

    pub(super) fn with_file<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match &self.opened().file {
            Some(file) => work(file),
            None => Err(StoreError::new(READING, Closed)),
        }
    }

    /// Opens a file anew that has failed, and finds out whether it can be written again.
    pub(super) fn mend(&self) -> Result<Tally, StoreError> {
        if let Some(path) = &self.path {
            self.opened_mut().anew(|| tables::open(Some(path)))?;
        }
        self.with_file(tables::try_to_write)?;
        self.with_file(writer::tally)
    }

    /// Opens a file anew that has failed, without writing to it, unless somebody else has done it.
    fn open_for_readers(&self, times: u64) -> Result<(), StoreError> {
        let mut opened = self.opened_mut();
        match &self.path {
            Some(path) if opened.times == times => opened.anew(|| tables::open_as_it_is(path)),
            _ => Ok(()),
        }
    }

    fn opened(&self) -> RwLockReadGuard<'_, Opened> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened_mut(&self) -> RwLockWriteGuard<'_, Opened> {
        self.file.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn broken(&self) -> Option<StoreError> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hands a change to the writer, at once, unless the file can't be written just now; what is returned waits
    /// until it is on disk.
    pub(super) fn written<T: Send + 'static>(
        self: &Arc<Self>,
        within: Duration,
        change: impl FnOnce(Answer<T>) -> Change,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        match self.broken() {
            Some(error) => Box::pin(std::future::ready(Err(error))),
            None => self.owed(within, change),
        }
    }

    /// The same for what must be written at last, even if it can't be now.
    pub(super) fn owed<T: Send + 'static>(
        self: &Arc<Self>,
        within: Duration,
        change: impl FnOnce(Answer<T>) -> Change,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (answer, written) = oneshot::channel();
        self.queue.push(change(answer), within);
        let shared = Arc::clone(self);
        Box::pin(async move { shared.heard(written).await })
    }

    async fn heard<T>(&self, written: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
        match written.await {
            Ok(written) => written,
            Err(gone) => Err(self.broken().unwrap_or_else(|| StoreError::new("write a run down", gone))),
        }
    }

    pub(super) fn fail(&self, error: &StoreError) {
        let before = self.broken.lock().unwrap_or_else(PoisonError::into_inner).replace(error.clone());
        if before.is_none() {
            tracing::error!(error = %error, cause = %error.source, "runs can't be remembered just now");
        }
    }

    pub(super) fn is_mended(&self) {
        let before = self.broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        if before.is_some() {
            tracing::info!("runs are remembered again");
        }
    }
}

impl Opened {
    fn anew(&mut self, open: impl FnOnce() -> Result<Database, StoreError>) -> Result<(), StoreError> {
        // It must be closed before it can be opened.
        self.file = None;
        self.times += 1;
        self.file = Some(open()?);
        Ok(())
    }
}

/// Whether only opening the file anew can help.
fn is_shut(error: &StoreError) -> bool {
    error.source.is::<Closed>() || matches!(error.source.downcast_ref(), Some(redb::Error::PreviousIo))
}

impl EmbeddedStore {
    /// Opens the file, or makes it.
    pub fn open(path: &Path, keep: Keep) -> Result<Self, StoreError> {
        Self::over(Some(path.to_owned()), keep)
    }

    /// A store whose runs are forgotten with it.
    pub fn in_memory(keep: Keep) -> Result<Self, StoreError> {
        Self::over(None, keep)
    }

    fn over(path: Option<PathBuf>, keep: Keep) -> Result<Self, StoreError> {
        let file = tables::open(path.as_deref())?;
        let tally = writer::tally(&file)?;
        let file = RwLock::new(Opened { file: Some(file), times: 1 });
        let shared = Arc::new(Shared { file, path, queue: Queue::default(), keep, broken: Mutex::default() });
        let writing = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("run-store".into());
        let writer = writer.spawn(move || writer::write(&writing, tally));
        let writer = writer.map_err(|error| StoreError::new("start the thread that writes runs", error))?;
        Ok(Self { shared, writer: Mutex::new(Some(writer)) })
    }

    /// Hands a change to the writer and waits until it is on disk.
    async fn written<T: Send + 'static>(
        &self,
        change: impl FnOnce(Answer<T>) -> Change,
    ) -> Result<T, StoreError> {
        self.shared.written(Duration::ZERO, change).await
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
        let claim = self.shared.read(|reading| {
            let keys = reading.open_table(KEYS).map_err(failed(READING))?;
            let claim = keys.get((key.owner.as_str(), key.name.as_str())).map_err(failed(READING))?;
            claim.map(|claim| format::read::<Claim>(claim.value())).transpose()
        })?;
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
            self.shared.heard(written).await
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
        let head = self.shared.read(|reading| head(reading, id))?;
        Ok(head.filter(|head| !head.expired(clock::timestamp())).map(Finished::from))
    }

    fn read(&self, id: RunId, stream: Stream, offset: u64, most: usize) -> Result<Vec<u8>, StoreError> {
        if let Some(run) = self.shared.queue.pending(id) {
            return Ok(part(output(&run, stream), offset, most).to_vec());
        }
        self.shared.read(|reading| read_output(reading, id, stream, offset, most))
    }

    fn page(&self, wanted: Wanted<'_>) -> Result<Page, StoreError> {
        // Looked at first: what is written meanwhile is then found twice rather than not at all.
        let pending = self.shared.queue.all_pending(wanted.before);
        let older = ..wanted.before.map_or(u128::MAX, number);
        let now = clock::timestamp();
        self.shared.read(|reading| {
            let runs = reading.open_table(RUNS).map_err(failed(READING))?;
            let written = runs.range(older).map_err(failed(READING))?.rev().filter_map(|entry| {
                let head =
                    entry.map_err(failed(READING)).and_then(|(_, text)| format::read::<Head>(text.value()));
                match head {
                    Ok(head) => (!head.expired(now)).then(|| Ok(Finished::from(head))),
                    Err(error) => Some(Err(error)),
                }
            });
            select(&wanted, newest_first(pending.clone(), written))
        })
    }

    fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError> {
        self.shared.read(|reading| {
            let promised = reading.open_table(PROMISED).map_err(failed(READING))?;
            let started = reading.open_table(STARTED).map_err(failed(READING))?;
            let mut unfinished = Vec::new();
            for entry in promised.iter().map_err(failed(READING))? {
                let (id, text) = entry.map_err(failed(READING))?;
                let Read { run, spec } = format::read(text.value())?;
                let at = started.get(id.value()).map_err(failed(READING))?.map(|at| at.value());
                let started_at =
                    at.map(|at| Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH));
                unfinished.push(Unfinished { run, spec, started_at });
            }
            Ok(unfinished)
        })
    }

    fn copy(&self) -> BoxFuture<'_, Result<File, StoreError>> {
        Box::pin(async move {
            self.written(Change::Nothing).await?;
            let shared = Arc::clone(&self.shared);
            let copied = tokio::task::spawn_blocking(move || copy::copy(&shared)).await;
            copied.unwrap_or_else(|error| Err(StoreError::new(COPYING, error)))
        })
    }

    fn broken(&self) -> Option<StoreError> {
        self.shared.broken()
    }

    fn close(&self) {
        self.shared.queue.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that writes runs panicked");
        }
    }
}

pub(super) fn head(reading: &ReadTransaction, id: RunId) -> Result<Option<Head>, StoreError> {
    let runs = reading.open_table(RUNS).map_err(failed(READING))?;
    let text = runs.get(number(id)).map_err(failed(READING))?;
    text.map(|text| format::read::<Head>(text.value())).transpose()
}

/// A part of a kept output; nothing where there is none any more.
pub(super) fn read_output(
    reading: &ReadTransaction,
    id: RunId,
    stream: Stream,
    offset: u64,
    most: usize,
) -> Result<Vec<u8>, StoreError> {
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
