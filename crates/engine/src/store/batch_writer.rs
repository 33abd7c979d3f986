//! Batches in the file: what the writer does with them.

use redb::{ReadableTable, Table, WriteTransaction};
use run::RunId;

use super::batches::{BatchPromise, BatchResult, FinishedBatch};
use super::format::{self, BatchHead, EVENTS, PREPARE, ReadKey, WrittenBatch, WrittenResult};
use super::queue::BatchChange;
use super::tables::{
    BATCH_EXPIRY, BATCH_RESULTS, BATCHES, BATCHES_BEGUN, BATCHES_PROMISED, failed, number, number_of_batch,
};
use super::writer::{Tables, Tell, WRITING, tell};
use super::{Known, StoreError};
use crate::batch::BatchId;

pub(super) struct BatchTables<'t> {
    batches: Table<'t, u128, &'static [u8]>,
    results: Table<'t, (u128, u32), &'static [u8]>,
    expiry: Table<'t, (i64, u128), u64>,
    promised: Table<'t, u128, &'static [u8]>,
    begun: Table<'t, u128, i64>,
}

impl<'t> BatchTables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            batches: transaction.open_table(BATCHES).map_err(failed(WRITING))?,
            results: transaction.open_table(BATCH_RESULTS).map_err(failed(WRITING))?,
            expiry: transaction.open_table(BATCH_EXPIRY).map_err(failed(WRITING))?,
            promised: transaction.open_table(BATCHES_PROMISED).map_err(failed(WRITING))?,
            begun: transaction.open_table(BATCHES_BEGUN).map_err(failed(WRITING))?,
        })
    }

    fn insert(&mut self, id: BatchId, result: &BatchResult) -> Result<(), StoreError> {
        let place = result.test.map_or(PREPARE, |test| test as u32);
        let text = format::write(&WrittenResult::from(result))?;
        self.results.insert((number_of_batch(id), place), text.as_slice()).map_err(failed(WRITING)).map(drop)
    }

    /// How much is written of its results.
    fn result_bytes(&self, batch: u128) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for entry in self.results.range(all_of(batch)).map_err(failed(WRITING))? {
            bytes += entry.map_err(failed(WRITING))?.1.value().len() as u64;
        }
        Ok(bytes)
    }

    /// Says whether the batch had a key.
    fn end_promise(&mut self, batch: u128) -> Result<bool, StoreError> {
        self.begun.remove(batch).map_err(failed(WRITING))?;
        let promise = self.promised.remove(batch).map_err(failed(WRITING))?;
        let Some(promise) = promise else { return Ok(false) };
        Ok(format::read::<ReadKey>(promise.value())?.key.is_some())
    }

    /// Its runs, as far as it has any.
    fn runs_of(&self, batch: u128) -> Result<Vec<RunId>, StoreError> {
        let mut runs = Vec::new();
        for entry in self.results.range(all_of(batch)).map_err(failed(WRITING))? {
            let (place, text) = entry.map_err(failed(WRITING))?;
            if place.value().1 != EVENTS {
                runs.extend(format::read::<WrittenResult>(text.value())?.run_id());
            }
        }
        Ok(runs)
    }
}

impl Tables<'_> {
    pub(super) fn apply_to_batch(
        &mut self,
        change: BatchChange,
        told: &mut Vec<Tell>,
    ) -> Result<(), StoreError> {
        match change {
            BatchChange::Promise(promise, answer) => {
                let known = self.promise_batch(&promise);
                told.push(tell(answer, known.as_ref().ok().copied().flatten()));
                known.map(drop)
            }
            BatchChange::Begun(id, at, answer) => {
                told.push(tell(answer, ()));
                let begun = self.batches.begun.insert(number_of_batch(id), at.as_microsecond());
                begun.map_err(failed(WRITING)).map(drop)
            }
            BatchChange::Result(id, result, answer) => {
                told.push(tell(answer, ()));
                self.batches.insert(id, &result)
            }
            BatchChange::Finished(batch, results, answer) => {
                told.push(tell(answer, ()));
                self.finish_batch(&batch, &results)
            }
            BatchChange::Owed(batch, results) => {
                // Nobody can tell whether it was written when it failed.
                self.forget_batch_head(number_of_batch(batch.batch.id))?;
                self.finish_batch(&batch, &results)
            }
            BatchChange::Forget(id, answer) => {
                told.push(tell(answer, ()));
                let batch = number_of_batch(id);
                for run in self.batches.runs_of(batch)? {
                    self.forget(number(run))?;
                }
                self.forget_batch(batch)
            }
        }
    }

    fn promise_batch(&mut self, promise: &BatchPromise) -> Result<Option<Known>, StoreError> {
        let id = promise.batch.id;
        if let Some(known) = self.take_key(promise.key.as_ref(), RunId(id.0))? {
            return Ok(Some(known));
        }
        let written = format::write(&WrittenBatch::from(promise))?;
        let promised = self.batches.promised.insert(number_of_batch(id), written.as_slice());
        promised.map_err(failed(WRITING)).map(drop)?;
        Ok(None)
    }

    fn finish_batch(&mut self, finished: &FinishedBatch, results: &[BatchResult]) -> Result<(), StoreError> {
        let id = finished.batch.id;
        let batch = number_of_batch(id);
        let has_key = self.batches.end_promise(batch)?;
        for result in results {
            self.batches.insert(id, result)?;
        }
        let events = format::write(&finished.events)?;
        self.batches.results.insert((batch, EVENTS), events.as_slice()).map_err(failed(WRITING))?;
        let listed = finished.batch.listed();
        let (tests, tested) = (listed.tests, listed.tested);
        let (bytes, expires_us) = (self.batches.result_bytes(batch)?, self.expires_us(has_key));
        let head = BatchHead { batch: listed.batch, tests, tested, bytes, expires_us };
        let text = format::write(&head)?;
        self.batches.batches.insert(batch, text.as_slice()).map_err(failed(WRITING))?;
        self.batches.expiry.insert((expires_us, batch), bytes).map_err(failed(WRITING))?;
        self.tally.batches += 1;
        self.tally.batch_bytes += bytes;
        Ok(())
    }

    fn forget_batch(&mut self, batch: u128) -> Result<(), StoreError> {
        self.forget_batch_head(batch)?;
        self.batches.results.retain_in(all_of(batch), |_, _| false).map_err(failed(WRITING))
    }

    fn forget_batch_head(&mut self, batch: u128) -> Result<(), StoreError> {
        let text = self.batches.batches.remove(batch).map_err(failed(WRITING))?;
        let head = text.map(|text| format::read::<BatchHead>(text.value())).transpose()?;
        let Some(head) = head else { return Ok(()) };
        self.batches.expiry.remove((head.expires_us, batch)).map_err(failed(WRITING))?;
        self.tally.batches -= 1;
        self.tally.batch_bytes -= head.bytes;
        Ok(())
    }

    /// Their runs have times of their own.
    pub(super) fn expire_batches(&mut self) -> Result<(), StoreError> {
        loop {
            let first = self.batches.expiry.first().map_err(failed(WRITING))?.map(|(key, _)| key.value());
            let Some((at, batch)) = first else { return Ok(()) };
            let too_many = self.tally.batches > self.keep.batches || self.tally.batch_bytes > self.keep.bytes;
            if !too_many && at > self.now.as_microsecond() {
                return Ok(());
            }
            self.forget_batch(batch)?;
        }
    }
}

/// The places of all that is written of its results.
pub(super) fn all_of(batch: u128) -> std::ops::RangeInclusive<(u128, u32)> {
    (batch, 0)..=(batch, u32::MAX)
}
