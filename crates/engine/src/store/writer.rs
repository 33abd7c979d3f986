//! The one who writes: a thread that takes what has collected, writes it in one transaction, syncs the disk
//! once, and tells everybody who has waited for it.

use std::time::Duration;

use jiff::Timestamp;
use redb::{ReadableTable, Table, WriteTransaction};
use run::{Output, Run, RunId, Stream};

use super::batch::{Answer, Batch, Change};
use super::embedded::Shared;
use super::format::{self, Claim, Head, ReadKey, Written};
use super::tables::{
    EXPIRY, KEY_EXPIRY, KEYS, OUTPUTS, PIECE_BYTES, PROMISED, RUNS, STARTED, failed, number, place,
};
use super::{Keep, Known, Promise, Shape, StoreError};
use crate::clock;

const WRITING: &str = "write to the file of runs";

/// How often old runs are looked for when nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// What the file holds of finished runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub runs: usize,
    pub bytes: u64,
}

/// Writes until the store is closed.
pub(super) fn write(shared: &Shared, mut tally: Tally) {
    while let Some(mut batch) = shared.queue.next(IDLE) {
        let mut told = Vec::new();
        let written = write_batch(shared, &mut batch, tally, &mut told);
        match &written {
            Ok(now) => tally = *now,
            Err(error) => shared.fail(error),
        }
        // First nobody finds them among the pending any more, then everybody may look for them.
        shared.queue.done(&batch.runs);
        for tell in told {
            tell(written.as_ref().err());
        }
    }
}

/// Tells somebody who waits, once it is known whether the whole batch was written.
type Tell = Box<dyn FnOnce(Option<&StoreError>)>;

fn tell<T: 'static>(answer: Answer<T>, value: T) -> Tell {
    Box::new(move |error| {
        // Who has gone away need not be told.
        let _ = answer.send(error.map_or(Ok(value), |error| Err(error.clone())));
    })
}

fn write_batch(
    shared: &Shared,
    batch: &mut Batch,
    tally: Tally,
    told: &mut Vec<Tell>,
) -> Result<Tally, StoreError> {
    let now = clock::timestamp();
    let changes = std::mem::take(&mut batch.changes);
    if changes.is_empty() && !overdue(shared, now)? {
        return Ok(tally);
    }
    let transaction = match shared.database.begin_write() {
        Ok(transaction) => transaction,
        Err(error) => {
            // Their answers are dropped, and whoever waits for one is told that it will not come.
            return Err(failed(WRITING)(error));
        }
    };
    let mut tables = Tables::open(&transaction, shared.keep, tally, now)?;
    let mut first = Ok(());
    for change in changes {
        let done = tables.apply(change, batch, told);
        first = first.and(done);
    }
    first?;
    tables.expire()?;
    let tally = tables.tally;
    drop(tables);
    transaction.commit().map_err(failed(WRITING))?;
    Ok(tally)
}

fn overdue(shared: &Shared, now: Timestamp) -> Result<bool, StoreError> {
    use redb::ReadableDatabase;
    let reading = shared.database.begin_read().map_err(failed(WRITING))?;
    let expiry = reading.open_table(EXPIRY).map_err(failed(WRITING))?;
    let keys = reading.open_table(KEY_EXPIRY).map_err(failed(WRITING))?;
    let run = expiry.first().map_err(failed(WRITING))?.map(|(key, _)| key.value().0);
    let key = keys.first().map_err(failed(WRITING))?.map(|(key, _)| key.value().0);
    Ok(run.into_iter().chain(key).any(|at| at <= now.as_microsecond()))
}

struct Tables<'t> {
    runs: Table<'t, u128, &'static [u8]>,
    outputs: Table<'t, (u128, u8, u32), &'static [u8]>,
    expiry: Table<'t, (i64, u128), u64>,
    promised: Table<'t, u128, &'static [u8]>,
    started: Table<'t, u128, i64>,
    keys: Table<'t, (&'static str, &'static str), &'static [u8]>,
    key_expiry: Table<'t, (i64, &'static str, &'static str), ()>,
    keep: Keep,
    tally: Tally,
    now: Timestamp,
}

impl<'t> Tables<'t> {
    fn open(
        transaction: &'t WriteTransaction,
        keep: Keep,
        tally: Tally,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            runs: transaction.open_table(RUNS).map_err(failed(WRITING))?,
            outputs: transaction.open_table(OUTPUTS).map_err(failed(WRITING))?,
            expiry: transaction.open_table(EXPIRY).map_err(failed(WRITING))?,
            promised: transaction.open_table(PROMISED).map_err(failed(WRITING))?,
            started: transaction.open_table(STARTED).map_err(failed(WRITING))?,
            keys: transaction.open_table(KEYS).map_err(failed(WRITING))?,
            key_expiry: transaction.open_table(KEY_EXPIRY).map_err(failed(WRITING))?,
            keep,
            tally,
            now,
        })
    }

    fn apply(&mut self, change: Change, batch: &Batch, told: &mut Vec<Tell>) -> Result<(), StoreError> {
        match change {
            Change::Promise(promise, answer) => {
                let known = self.promise(&promise);
                told.push(tell(answer, known.as_ref().ok().copied().flatten()));
                known.map(drop)
            }
            Change::Started(id, at, answer) => {
                told.push(tell(answer, ()));
                self.started.insert(number(id), at.as_microsecond()).map_err(failed(WRITING)).map(drop)
            }
            Change::Finished(id, answer) => {
                told.extend(answer.map(|answer| tell(answer, ())));
                let Some(run) = batch.runs.get(&id) else { return Ok(()) };
                let key = self.end_promise(id)?;
                self.finish(run, key)
            }
            Change::TornDown(id, took_ms) => self.torn_down(id, took_ms),
            Change::Forget(id, answer) => {
                told.push(tell(answer, ()));
                self.forget(number(id))
            }
        }
    }

    fn promise(&mut self, promise: &Promise) -> Result<Option<Known>, StoreError> {
        let id = promise.run.id;
        if let Some(key) = &promise.key {
            let expires_us = after(self.now, self.keep.keys);
            if let Some(claim) = self.claim(key.owner.as_str(), key.name.as_str())? {
                if claim.expires_us > self.now.as_microsecond() {
                    return Ok(Some(Known { id: claim.id, same: claim.body == key.body }));
                }
                self.drop_key(claim.expires_us, &key.owner, &key.name)?;
            }
            let claim = format::write(&Claim { id, body: key.body, expires_us })?;
            let names = (key.owner.as_str(), key.name.as_str());
            self.keys.insert(names, claim.as_slice()).map_err(failed(WRITING))?;
            self.key_expiry.insert((expires_us, names.0, names.1), ()).map_err(failed(WRITING))?;
        }
        let written = format::write(&Written::from(promise))?;
        self.promised.insert(number(id), written.as_slice()).map_err(failed(WRITING)).map(drop)?;
        Ok(None)
    }

    fn claim(&self, owner: &str, name: &str) -> Result<Option<Claim>, StoreError> {
        let claim = self.keys.get((owner, name)).map_err(failed(WRITING))?;
        claim.map(|claim| format::read(claim.value())).transpose()
    }

    fn drop_key(&mut self, expires_us: i64, owner: &str, name: &str) -> Result<(), StoreError> {
        self.keys.remove((owner, name)).map_err(failed(WRITING))?;
        self.key_expiry.remove((expires_us, owner, name)).map_err(failed(WRITING))?;
        Ok(())
    }

    /// Says whether the run had a key.
    fn end_promise(&mut self, id: RunId) -> Result<bool, StoreError> {
        self.started.remove(number(id)).map_err(failed(WRITING))?;
        let promise = self.promised.remove(number(id)).map_err(failed(WRITING))?;
        let Some(promise) = promise else { return Ok(false) };
        Ok(format::read::<ReadKey>(promise.value())?.key.is_some())
    }

    fn finish(&mut self, run: &Run, has_key: bool) -> Result<(), StoreError> {
        let time = if has_key { self.keep.time.max(self.keep.keys) } else { self.keep.time };
        let mut bare = run.clone();
        (bare.stdout, bare.stderr) = (Output::default(), Output::default());
        let expires_us = after(self.now, time);
        let head =
            Head { run: bare, stdout: Shape::of(&run.stdout), stderr: Shape::of(&run.stderr), expires_us };
        self.insert(&head)?;
        self.expiry.insert((head.expires_us, number(run.id)), head.bytes()).map_err(failed(WRITING))?;
        for (stream, output) in [(Stream::Stdout, &run.stdout), (Stream::Stderr, &run.stderr)] {
            for (piece, bytes) in output.bytes.chunks(PIECE_BYTES).enumerate() {
                let place = (number(run.id), place(stream), piece as u32);
                self.outputs.insert(place, bytes).map_err(failed(WRITING))?;
            }
        }
        self.tally.runs += 1;
        self.tally.bytes += head.bytes();
        Ok(())
    }

    fn insert(&mut self, head: &Head) -> Result<(), StoreError> {
        let text = format::write(head)?;
        self.runs.insert(number(head.run.id), text.as_slice()).map_err(failed(WRITING)).map(drop)
    }

    fn torn_down(&mut self, id: RunId, took_ms: f64) -> Result<(), StoreError> {
        let Some(mut head) = self.head(number(id))? else { return Ok(()) };
        head.run.timings.teardown_ms = Some(took_ms);
        self.insert(&head)
    }

    fn head(&self, run: u128) -> Result<Option<Head>, StoreError> {
        let text = self.runs.get(run).map_err(failed(WRITING))?;
        text.map(|text| format::read(text.value())).transpose()
    }

    fn forget(&mut self, run: u128) -> Result<(), StoreError> {
        let Some(head) = self.head(run)? else { return Ok(()) };
        self.runs.remove(run).map_err(failed(WRITING))?;
        self.expiry.remove((head.expires_us, run)).map_err(failed(WRITING))?;
        let all = (run, 0, 0)..=(run, u8::MAX, u32::MAX);
        self.outputs.retain_in(all, |_, _| false).map_err(failed(WRITING))?;
        self.tally.runs -= 1;
        self.tally.bytes -= head.bytes();
        Ok(())
    }

    /// Makes room: what is too old goes, and then what would be the next to go until the rest fits.
    fn expire(&mut self) -> Result<(), StoreError> {
        loop {
            let first = self.expiry.first().map_err(failed(WRITING))?.map(|(key, _)| key.value());
            let Some((at, run)) = first else { break };
            let too_many = self.tally.runs > self.keep.runs || self.tally.bytes > self.keep.bytes;
            if !too_many && at > self.now.as_microsecond() {
                break;
            }
            self.forget(run)?;
        }
        loop {
            let first = self.key_expiry.first().map_err(failed(WRITING))?;
            let first = first.map(|(key, _)| {
                let (at, owner, name) = key.value();
                (at, owner.to_owned(), name.to_owned())
            });
            match first {
                Some((at, owner, name)) if at <= self.now.as_microsecond() => {
                    self.drop_key(at, &owner, &name)?;
                }
                _ => return Ok(()),
            }
        }
    }
}

fn after(now: Timestamp, time: Duration) -> i64 {
    now.as_microsecond().saturating_add(i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}

/// What was there when the file was opened.
pub(super) fn tally(database: &redb::Database) -> Result<Tally, StoreError> {
    use redb::ReadableDatabase;
    let reading = database.begin_read().map_err(failed("count the kept runs"))?;
    let expiry = reading.open_table(EXPIRY).map_err(failed("count the kept runs"))?;
    let mut tally = Tally::default();
    for entry in expiry.iter().map_err(failed("count the kept runs"))? {
        let (_, bytes) = entry.map_err(failed("count the kept runs"))?;
        tally.runs += 1;
        tally.bytes += bytes.value();
    }
    Ok(tally)
}
