//! A second hand for small files. The first makes them, in the order of the archive, since what an entry does depends
//! on those before it; what is then written into one and how it looks depends on nothing else, so that another
//! thread can do that meanwhile. An image whose one layer has most of its files would keep one processor busy else.

use std::fs::File;
use std::io::Write;
use std::mem::take;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};

use crate::UnpackError;
use crate::looks::{Lost, Meta, set_xattrs};
use crate::sys;

/// What is larger is written as it comes, and never held.
pub(crate) const SMALL_BYTES: u64 = 64 << 10;
/// A layer of fewer files is done sooner than a thread has begun.
const WORTH_FILES: u64 = 256;
/// Handed over together: being woken takes longer than a file.
const TOGETHER: usize = 32;
const TOGETHER_BYTES: usize = 256 << 10;
/// Of those, the most that wait.
const WAITING: usize = 2;

/// Of so many files the sync at the end takes a second. Of fewer it takes next to nothing, and what would be begun
/// here is taken from other layers of the image.
const MANY_FILES: u64 = 8192;
const TO_THE_END: u64 = 0;

/// A file that was made and has yet to be filled.
pub(crate) struct Small {
    pub(crate) file: File,
    pub(crate) path: Vec<u8>,
    pub(crate) content: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Small {
    fn fill(&mut self, lost: &mut Lost) -> Result<(), UnpackError> {
        let fail = |doing, error| UnpackError::io(doing, &self.path, &error);
        self.file.write_all(&self.content).map_err(|error| fail("write", error))?;
        set_xattrs(self.file.as_fd(), &self.xattrs, lost);
        self.meta.give_to(self.file.as_fd(), lost).map_err(|error| fail("describe", error))
    }
}

/// Fills small files: by itself, and from a certain number on by a thread of its own.
#[derive(Default)]
pub(crate) struct Second {
    seen: u64,
    lost: Lost,
    batch: Vec<Small>,
    bytes: usize,
    thread: Option<Thread>,
    /// Where no thread can be had it stays at that.
    alone: bool,
}

struct Thread {
    files: SyncSender<Vec<Small>>,
    ends: JoinHandle<Result<Lost, UnpackError>>,
}

impl Second {
    pub(crate) fn fill(&mut self, mut small: Small) -> Result<(), UnpackError> {
        self.seen += 1;
        if self.thread.is_none() && (self.alone || self.seen < WORTH_FILES || !self.begin()) {
            return small.fill(&mut self.lost);
        }
        self.bytes += small.content.len();
        self.batch.push(small);
        if self.batch.len() >= TOGETHER || self.bytes >= TOGETHER_BYTES { self.hand_over() } else { Ok(()) }
    }

    /// Waits until everything is filled, and says what files have not got.
    pub(crate) fn finish(mut self) -> Result<Lost, UnpackError> {
        self.hand_over()?;
        let Some(Thread { files, ends }) = self.thread.take() else { return Ok(take(&mut self.lost)) };
        drop(files);
        let lost = result_of(ends)?;
        Ok(Lost { owners: self.lost.owners + lost.owners, xattrs: self.lost.xattrs + lost.xattrs })
    }

    fn begin(&mut self) -> bool {
        let several = thread::available_parallelism().is_ok_and(|several| several.get() > 1);
        let (files, received) = sync_channel(WAITING);
        let ends =
            several.then(|| thread::Builder::new().stack_size(128 << 10).spawn(move || work(&received)));
        self.thread = ends.and_then(Result::ok).map(|ends| Thread { files, ends });
        self.alone = self.thread.is_none();
        !self.alone
    }

    fn hand_over(&mut self) -> Result<(), UnpackError> {
        self.bytes = 0;
        let batch = take(&mut self.batch);
        let Some(thread) = &self.thread else { return Ok(()) };
        if batch.is_empty() || thread.files.send(batch).is_ok() {
            return Ok(());
        }
        // It has ended before its time, and says why.
        self.thread.take().map_or(Ok(()), |thread| result_of(thread.ends).map(drop))
    }
}

impl Drop for Second {
    /// Nothing is written any more when whoever unpacked has given up.
    fn drop(&mut self) {
        if let Some(Thread { files, ends }) = self.thread.take() {
            drop(files);
            let _ = ends.join();
        }
    }
}

fn result_of(ends: JoinHandle<Result<Lost, UnpackError>>) -> Result<Lost, UnpackError> {
    ends.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn work(received: &Receiver<Vec<Small>>) -> Result<Lost, UnpackError> {
    let (mut lost, mut seen) = (Lost::default(), 0);
    let mut filled: Vec<File> = Vec::new();
    while let Some(batch) = next(received, &mut filled) {
        seen += batch.len() as u64;
        filled.clear();
        for mut small in batch {
            small.fill(&mut lost)?;
            if seen > MANY_FILES && !small.content.is_empty() {
                filled.push(small.file);
            }
        }
    }
    Ok(lost)
}

/// What is to be filled next. While there is nothing the disk may begin with what is filled already.
fn next(received: &Receiver<Vec<Small>>, filled: &mut Vec<File>) -> Option<Vec<Small>> {
    while let Some(file) = filled.last() {
        match received.try_recv() {
            Err(TryRecvError::Empty) => sys::begin_to_write(file.as_fd(), 0, TO_THE_END),
            next => return next.ok(),
        }
        filled.pop();
    }
    received.recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(file: File, content: &[u8]) -> Small {
        let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (77, 0) };
        Small { file, path: b"some/where".to_vec(), content: content.to_vec(), meta, xattrs: Vec::new() }
    }

    #[test]
    fn every_file_is_filled_whoever_does_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: u64| folder.path().join(number.to_string());
        let mut second = Second::default();
        let all = WORTH_FILES + 3 * TOGETHER as u64 + 1;
        for number in 0..all {
            let file = File::create_new(path(number)).unwrap();
            second.fill(small(file, &number.to_le_bytes())).unwrap();
        }
        second.finish().unwrap();
        for number in 0..all {
            assert_eq!(std::fs::read(path(number)).unwrap(), number.to_le_bytes(), "{number}");
        }
    }

    #[test]
    fn what_goes_wrong_is_told_whoever_did_it() {
        let folder = tempfile::tempdir().unwrap();
        let good = || File::create(folder.path().join("good")).unwrap();
        let full = || File::options().write(true).open("/dev/full").unwrap();
        for (before, after) in
            [(0, 0), (WORTH_FILES, 0), (WORTH_FILES, TOGETHER), (WORTH_FILES, 10 * TOGETHER)]
        {
            let mut second = Second::default();
            (0..before).for_each(|_| second.fill(small(good(), b"x")).unwrap());
            let mut told = second.fill(small(full(), b"x"));
            for _ in 0..after {
                told = told.and_then(|()| second.fill(small(good(), b"x")));
            }
            let told = told.and_then(|()| second.finish().map(drop));
            assert!(matches!(told, Err(UnpackError::NoSpace)), "{before} before, {after} after: {told:?}");
        }
    }
}
