//! The one who writes: a thread that takes what has collected, writes it in one transaction, syncs the disk
//! once, and tells everybody who has waited for it.

use std::time::Duration;

use jiff::Timestamp;
use redb::{ReadableTable, Table, WriteTransaction};
use run::{Output, Run, RunId, Stream};

use super::batch_writer::BatchTables;
use super::embedded::Shared;
use super::format::{self, Claim, Head, ReadKey, Written};
use super::queue::{Answer, Change, Collected};
use super::recover::Owed;
use super::tables::{
    BATCH_EXPIRY, EXPIRY, KEY_EXPIRY, KEYS, OUTPUTS, PIECE_BYTES, PROMISED, RUNS, STARTED, failed, number,
    place,
};
use super::{Keep, Key, Known, Promise, Shape, StoreError};
use crate::clock;

pub(super) const WRITING: &str = "write to the file of runs";

/// How often old runs are looked for when nothing happens.
const IDLE: Duration = Duration::from_secs(30);

/// What the file holds of finished runs and batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub runs: usize,
    pub bytes: u64,
    pub batches: usize,
    pub batch_bytes: u64,
}

/// Writes until the store is closed.
pub(super) fn write(shared: &Shared, mut tally: Tally) {
    let mut owed = Owed::default();
    while let Some(collected) = shared.queue.next(owed.pause().unwrap_or(IDLE)) {
        let due = owed.is_due();
        write_down(shared, &mut tally, &mut owed, collected, due);
    }
    if !owed.is_empty() {
        write_down(shared, &mut tally, &mut owed, Collected::default(), true);
    }
}

/// Writes what has collected, and what is owed, unless the file failed a moment ago.
fn write_down(shared: &Shared, tally: &mut Tally, owed: &mut Owed, mut collected: Collected, due: bool) {
    owed.put_first(&mut collected);
    let must = collected.owed();
    let mut told = Vec::new();
    let written = match shared.broken() {
        Some(error) if !due => {
            // Their answers are dropped, and whoever waits for one is told that it will not come.
            collected.changes.clear();
            Err(error)
        }
        Some(_) => shared.mend().and_then(|mended| write_all(shared, &mut collected, mended, &mut told)),
        None => write_all(shared, &mut collected, *tally, &mut told),
    };
    match &written {
        Ok(now) => {
            *tally = *now;
            owed.settle();
            shared.is_mended();
        }
        Err(error) => {
            shared.fail(error);
            owed.keep(must, &mut collected, due);
        }
    }
    // First nobody finds them among the pending any more, then everybody may look for them.
    shared.queue.done(&collected.runs);
    for tell in told {
        tell(written.as_ref().err());
    }
}

/// Tells somebody who waits, once it is known whether everything was written.
pub(super) type Tell = Box<dyn FnOnce(Option<&StoreError>)>;

pub(super) fn tell<T: 'static>(answer: Answer<T>, value: T) -> Tell {
    Box::new(move |error| {
        // Who has gone away need not be told.
        let _ = answer.send(error.map_or(Ok(value), |error| Err(error.clone())));
    })
}

fn write_all(
    shared: &Shared,
    collected: &mut Collected,
    tally: Tally,
    told: &mut Vec<Tell>,
) -> Result<Tally, StoreError> {
    let now = clock::timestamp();
    let changes = std::mem::take(&mut collected.changes);
    if changes.is_empty() && !overdue(shared, now)? {
        return Ok(tally);
    }
    shared.with_file(|file| {
        let transaction = file.begin_write().map_err(failed(WRITING))?;
        let mut tables = Tables::open(&transaction, shared.keep, tally, now)?;
        let mut first = Ok(());
        for change in changes {
            let done = tables.apply(change, collected, told);
            first = first.and(done);
        }
        first?;
        tables.expire()?;
        let tally = tables.tally;
        drop(tables);
        transaction.commit().map_err(failed(WRITING))?;
        Ok(tally)
    })
}

fn overdue(shared: &Shared, now: Timestamp) -> Result<bool, StoreError> {
    shared.read(|reading| {
        let expiry = reading.open_table(EXPIRY).map_err(failed(WRITING))?;
        let keys = reading.open_table(KEY_EXPIRY).map_err(failed(WRITING))?;
        let batches = reading.open_table(BATCH_EXPIRY).map_err(failed(WRITING))?;
        let run = expiry.first().map_err(failed(WRITING))?.map(|(key, _)| key.value().0);
        let batch = batches.first().map_err(failed(WRITING))?.map(|(key, _)| key.value().0);
        let key = keys.first().map_err(failed(WRITING))?.map(|(key, _)| key.value().0);
        Ok(run.into_iter().chain(batch).chain(key).any(|at| at <= now.as_microsecond()))
    })
}

pub(super) struct Tables<'t> {
    pub(super) batches: BatchTables<'t>,
    runs: Table<'t, u128, &'static [u8]>,
    outputs: Table<'t, (u128, u8, u32), &'static [u8]>,
    expiry: Table<'t, (i64, u128), u64>,
    promised: Table<'t, u128, &'static [u8]>,
    started: Table<'t, u128, i64>,
    keys: Table<'t, (&'static str, &'static str), &'static [u8]>,
    key_expiry: Table<'t, (i64, &'static str, &'static str), ()>,
    pub(super) keep: Keep,
    pub(super) tally: Tally,
    pub(super) now: Timestamp,
}

impl<'t> Tables<'t> {
    fn open(
        transaction: &'t WriteTransaction,
        keep: Keep,
        tally: Tally,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            batches: BatchTables::open(transaction)?,
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

    fn apply(
        &mut self,
        change: Change,
        collected: &Collected,
        told: &mut Vec<Tell>,
    ) -> Result<(), StoreError> {
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
                let Some(run) = collected.runs.get(&id) else { return Ok(()) };
                let key = self.end_promise(id)?;
                self.finish(run, key)
            }
            Change::Owed(id) => {
                // Nobody can tell whether it was written when it failed.
                self.forget(number(id))?;
                let Some(run) = collected.runs.get(&id) else { return Ok(()) };
                let key = self.end_promise(id)?;
                self.finish(run, key)
            }
            Change::TornDown(id, took_ms) => self.torn_down(id, took_ms),
            Change::Forget(id, answer) => {
                told.push(tell(answer, ()));
                self.forget(number(id))
            }
            Change::Batch(change) => self.apply_to_batch(change, told),
            Change::Nothing(answer) => {
                told.push(tell(answer, ()));
                Ok(())
            }
        }
    }

    fn promise(&mut self, promise: &Promise) -> Result<Option<Known>, StoreError> {
        let id = promise.run.id;
        if let Some(known) = self.take_key(promise.key.as_ref(), id)? {
            return Ok(Some(known));
        }
        let written = format::write(&Written::from(promise))?;
        self.promised.insert(number(id), written.as_slice()).map_err(failed(WRITING)).map(drop)?;
        Ok(None)
    }

    /// Makes the key stand for that run, or that batch, unless it stands for something already.
    pub(super) fn take_key(&mut self, key: Option<&Key>, id: RunId) -> Result<Option<Known>, StoreError> {
        let Some(key) = key else { return Ok(None) };
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
        let mut bare = run.clone();
        (bare.stdout, bare.stderr) = (Output::default(), Output::default());
        let expires_us = self.expires_us(has_key);
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

    /// When something that has ended now is forgotten.
    pub(super) fn expires_us(&self, has_key: bool) -> i64 {
        let time = if has_key { self.keep.time.max(self.keep.keys) } else { self.keep.time };
        after(self.now, time)
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

    pub(super) fn forget(&mut self, run: u128) -> Result<(), StoreError> {
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
        self.expire_batches()?;
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
    const COUNTING: &str = "count the kept runs";
    let reading = database.begin_read().map_err(failed(COUNTING))?;
    let count = |table| {
        let expiry = reading.open_table(table).map_err(failed(COUNTING))?;
        let (mut number, mut all_bytes) = (0, 0);
        for entry in expiry.iter().map_err(failed(COUNTING))? {
            let (_, bytes) = entry.map_err(failed(COUNTING))?;
            (number, all_bytes) = (number + 1, all_bytes + bytes.value());
        }
        Ok((number, all_bytes))
    };
    let ((runs, bytes), (batches, batch_bytes)) = (count(EXPIRY)?, count(BATCH_EXPIRY)?);
    Ok(Tally { runs, bytes, batches, batch_bytes })
}
