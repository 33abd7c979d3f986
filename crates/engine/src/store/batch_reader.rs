//! Batches in the file: what is asked about them, and the way to the writer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable};
use run::{Output, Run, Stream};

use super::batch_writer::all_of;
use super::batches::{BatchPromise, BatchResult, BatchStore, FinishedBatch, UnfinishedBatch, WantedBatches};
use super::embedded::{EmbeddedStore, LOOKED_AT, READING, head, read_output};
use super::format::{self, BatchHead, EVENTS, PREPARE, ReadBatch, WrittenResult, WrittenRun};
use super::queue::{BatchChange, Change, LINGER, SOON};
use super::tables::{BATCH_RESULTS, BATCHES, BATCHES_BEGUN, BATCHES_PROMISED, failed, number_of_batch};
use super::{Key, Known, RunStore, Shape, StoreError};
use crate::batch::{BatchEvent, BatchId, Listed, Test};
use crate::clock;

impl BatchStore for EmbeddedStore {
    fn promise(&self, promise: BatchPromise) -> BoxFuture<'_, Result<Option<Known>, StoreError>> {
        let change = move |answer| Change::Batch(BatchChange::Promise(promise, answer));
        self.shared.written(Duration::ZERO, change)
    }

    fn known(&self, key: &Key) -> Result<Option<Known>, StoreError> {
        RunStore::known(self, key)
    }

    fn begun(&self, id: BatchId) -> BoxFuture<'_, Result<(), StoreError>> {
        let change = move |answer| Change::Batch(BatchChange::Begun(id, Timestamp::now(), answer));
        self.shared.written(Duration::ZERO, change)
    }

    fn result(&self, id: BatchId, result: BatchResult) -> BoxFuture<'static, Result<(), StoreError>> {
        let change = move |answer| Change::Batch(BatchChange::Result(id, result, answer));
        self.shared.written(SOON, change)
    }

    fn kept(
        &self,
        batch: FinishedBatch,
        results: Vec<BatchResult>,
        urgent: bool,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        let change = move |answer| Change::Batch(BatchChange::Finished(batch, results, answer));
        if urgent { self.shared.owed(Duration::ZERO, change) } else { self.shared.written(LINGER, change) }
    }

    fn forget(&self, id: BatchId) -> BoxFuture<'_, Result<(), StoreError>> {
        let change = move |answer| Change::Batch(BatchChange::Forget(id, answer));
        self.shared.written(Duration::ZERO, change)
    }

    fn get(&self, id: BatchId) -> Result<Option<FinishedBatch>, StoreError> {
        self.shared.read(|reading| {
            let heads = reading.open_table(BATCHES).map_err(failed(READING))?;
            let text = heads.get(number_of_batch(id)).map_err(failed(READING))?;
            let head = text.map(|text| format::read::<BatchHead>(text.value())).transpose()?;
            let now = clock::timestamp();
            head.filter(|head| !head.expired(now)).map(|head| finished(reading, head)).transpose()
        })
    }

    fn page(&self, wanted: WantedBatches<'_>) -> Result<(Vec<Listed>, Option<BatchId>), StoreError> {
        let older = ..wanted.before.map_or(u128::MAX, number_of_batch);
        let now = clock::timestamp();
        self.shared.read(|reading| {
            let (mut page, mut until) = (Vec::new(), None);
            let heads = reading.open_table(BATCHES).map_err(failed(READING))?;
            for (looked_at, entry) in heads.range(older).map_err(failed(READING))?.rev().enumerate() {
                let (_, text) = entry.map_err(failed(READING))?;
                let head: BatchHead = format::read(text.value())?;
                let matches = !head.expired(now) && (wanted.matches)(&head.batch);
                if looked_at == LOOKED_AT || (matches && page.len() == wanted.batches) {
                    return Ok((page, until));
                }
                // Only where it is not the last one does it say that there is more.
                until = Some(head.batch.id);
                if matches {
                    page.push(Listed { batch: head.batch, tests: head.tests, tested: head.tested });
                }
            }
            Ok((page, None))
        })
    }

    fn unfinished(&self) -> Result<Vec<UnfinishedBatch>, StoreError> {
        self.shared.read(|reading| {
            let promised = reading.open_table(BATCHES_PROMISED).map_err(failed(READING))?;
            let begun = reading.open_table(BATCHES_BEGUN).map_err(failed(READING))?;
            let mut unfinished = Vec::new();
            for entry in promised.iter().map_err(failed(READING))? {
                let (id, text) = entry.map_err(failed(READING))?;
                let ReadBatch { mut batch, spec, ground } = format::read(text.value())?;
                batch.tests = spec.tests.iter().map(|test| Test::named(test.name.clone())).collect();
                let begun = begun.get(id.value()).map_err(failed(READING))?.is_some();
                let (results, _) = results(reading, id.value())?;
                unfinished.push(UnfinishedBatch { batch, spec, ground, begun, results });
            }
            Ok(unfinished)
        })
    }
}

fn finished(reading: &ReadTransaction, head: BatchHead) -> Result<FinishedBatch, StoreError> {
    let BatchHead { mut batch, tests, .. } = head;
    batch.tests = vec![Test::default(); tests];
    let (results, events) = results(reading, number_of_batch(batch.id))?;
    for BatchResult { test, result, .. } in results {
        batch.put(test, result);
    }
    Ok(FinishedBatch { batch: Arc::new(batch), events })
}

/// What is written of a batch's results, in the order in which they were told; and its events, if it has ended.
fn results(
    reading: &ReadTransaction,
    batch: u128,
) -> Result<(Vec<BatchResult>, Vec<BatchEvent>), StoreError> {
    let table = reading.open_table(BATCH_RESULTS).map_err(failed(READING))?;
    let (mut results, mut events) = (Vec::new(), Vec::new());
    for entry in table.range(all_of(batch)).map_err(failed(READING))? {
        let (place, text) = entry.map_err(failed(READING))?;
        let place = place.value().1;
        if place == EVENTS {
            events = format::read(text.value())?;
            continue;
        }
        let WrittenResult { event, name, verdict, run } = format::read(text.value())?;
        let run = run.map(|written| loaded(reading, written)).transpose()?;
        let test = (place != PREPARE).then_some(place as usize);
        results.push(BatchResult { test, event, result: Test { name, verdict, run } });
    }
    results.sort_by_key(|result| result.event);
    Ok((results, events))
}

/// A run with what it wrote, as far as that is still kept.
fn loaded(reading: &ReadTransaction, written: WrittenRun) -> Result<Arc<Run>, StoreError> {
    let WrittenRun { mut run, stdout, stderr, outputs_apart } = written;
    let output = |stream, shape: Shape| {
        let most = usize::try_from(shape.bytes).unwrap_or(usize::MAX);
        let bytes = if most == 0 { Vec::new() } else { read_output(reading, run.id, stream, 0, most)? };
        Ok::<_, StoreError>(Output { bytes: bytes.into(), total: shape.total })
    };
    let (stdout, stderr) = (output(Stream::Stdout, stdout)?, output(Stream::Stderr, stderr)?);
    if outputs_apart && let Some(head) = head(reading, run.id)? {
        run.outputs = head.run.outputs;
    }
    (run.stdout, run.stderr) = (stdout, stderr);
    Ok(Arc::new(run))
}
