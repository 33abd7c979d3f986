//! A second hand for small files. The first reads the archive, and makes what depends on entries before it; a file
//! that nothing was in the place of depends on its directory alone, so that another thread can make it meanwhile.
//! An image whose one layer has most of its files would keep one processor busy else.

use std::fs::File;
use std::io::Write;
use std::mem::take;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};

use crate::UnpackError;
use crate::looks::{Lost, Meta, set_xattrs};
use crate::path::Path;
use crate::sys;
use crate::walk::{self, Handle};

/// What is larger is written as it comes, and never held.
pub(crate) const SMALL_BYTES: u64 = 64 << 10;
/// A layer of fewer files is done sooner than a thread has begun.
const WORTH_FILES: u64 = 256;
/// Handed over together: being woken takes longer than a file.
const TOGETHER: usize = 32;
const TOGETHER_BYTES: usize = 256 << 10;
/// Of those, the most that wait. While as many do, the first hand makes files itself.
const WAITING: usize = 3;

/// Of so many files the sync at the end takes a second. Of fewer it takes next to nothing, and what would be begun
/// here is taken from other layers of the image.
const MANY_FILES: u64 = 8192;
const TO_THE_END: u64 = 0;

/// A file that is to be made where nothing is.
pub(crate) struct Small {
    pub(crate) directory: Handle,
    pub(crate) path: Path,
    pub(crate) content: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Small {
    /// What it takes to hold it: a stranger's attributes may be many times what its content is.
    fn bytes(&self) -> usize {
        let around = size_of::<(Vec<u8>, Vec<u8>)>();
        let attributes = self.xattrs.iter().map(|(name, value)| around + name.len() + value.len());
        self.content.len() + attributes.sum::<usize>()
    }

    pub(crate) fn fill(&self, file: &mut File, lost: &mut Lost) -> Result<(), UnpackError> {
        let fail = |doing, error| UnpackError::io(doing, &self.path.join(), &error);
        file.write_all(&self.content).map_err(|error| fail("write", error))?;
        set_xattrs(file.as_fd(), &self.xattrs, lost);
        self.meta.give_to(file.as_fd(), lost).map_err(|error| fail("describe", error))
    }
}

/// One that makes files.
#[derive(Default)]
struct Hand {
    lost: Lost,
}

impl Hand {
    fn make(&mut self, small: &Small) -> Result<File, UnpackError> {
        let name = small.path.names().last().map_or(&[][..], Vec::as_slice);
        let made = walk::create(&small.directory, name, small.meta.mode());
        let made = made.map_err(|errno| UnpackError::io("create", &small.path.join(), &errno.into()))?;
        let mut file = File::from(made);
        small.fill(&mut file, &mut self.lost)?;
        Ok(file)
    }
}

/// Makes small files: by one hand, and from a certain number on by two.
pub(crate) struct Second {
    worth: u64,
    together: usize,
    seen: u64,
    own: Hand,
    batch: Vec<Small>,
    bytes: usize,
    thread: Option<Thread>,
    /// Where no thread can be had it stays at that.
    alone: bool,
}

struct Thread {
    files: SyncSender<Vec<Small>>,
    done: Receiver<()>,
    /// Handed over and not known to be done.
    owed: usize,
    ends: JoinHandle<Result<Lost, UnpackError>>,
}

impl Default for Second {
    fn default() -> Self {
        Self::after(WORTH_FILES, TOGETHER)
    }
}

impl Second {
    /// One that begins after so many files and gets so many at once.
    fn after(worth: u64, together: usize) -> Self {
        let (own, batch) = (Hand::default(), Vec::new());
        Self { worth, together, seen: 0, own, batch, bytes: 0, thread: None, alone: false }
    }

    /// Makes it, now or until somebody waits for it.
    pub(crate) fn make(&mut self, small: Small) -> Result<(), UnpackError> {
        self.seen += 1;
        if self.thread.is_none() && (self.alone || self.seen < self.worth || !self.begin()) {
            return self.own.make(&small).map(drop);
        }
        let is_full = self.batch.len() >= self.together || self.bytes >= TOGETHER_BYTES;
        if is_full && !self.hand_over()? {
            return self.own.make(&small).map(drop);
        }
        self.bytes += small.bytes();
        self.batch.push(small);
        Ok(())
    }

    /// Returns when everything is made that was to be made so far.
    pub(crate) fn wait(&mut self) -> Result<(), UnpackError> {
        self.bytes = 0;
        let made = take(&mut self.batch).iter().try_for_each(|small| self.own.make(small).map(drop));
        while let Some(thread) = self.thread.as_mut().filter(|thread| thread.owed > 0) {
            match thread.done.recv() {
                Ok(()) => thread.owed -= 1,
                // What the other hand could not make stood before these.
                Err(_) => self.end()?,
            }
        }
        made
    }

    /// Waits, and says what files have not got.
    pub(crate) fn finish(&mut self) -> Result<Lost, UnpackError> {
        self.wait()?;
        self.end()?;
        Ok(take(&mut self.own.lost))
    }

    fn begin(&mut self) -> bool {
        let several = thread::available_parallelism().is_ok_and(|several| several.get() > 1);
        let (files, received) = sync_channel(WAITING);
        let (tell, done) = sync_channel(WAITING);
        let ends = several
            .then(|| thread::Builder::new().stack_size(128 << 10).spawn(move || work(&received, &tell)));
        self.thread = ends.and_then(Result::ok).map(|ends| Thread { files, done, owed: 0, ends });
        self.alone = self.thread.is_none();
        !self.alone
    }

    /// Whether the other hand took what has been put together.
    fn hand_over(&mut self) -> Result<bool, UnpackError> {
        let Some(thread) = &mut self.thread else { return Ok(false) };
        loop {
            match thread.done.try_recv() {
                Ok(()) => thread.owed -= 1,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.end()?;
                    return Ok(false);
                }
            }
        }
        if thread.owed >= WAITING {
            return Ok(false);
        }
        thread.owed += 1;
        self.bytes = 0;
        if thread.files.send(take(&mut self.batch)).is_err() {
            self.end()?;
        }
        Ok(true)
    }

    /// It is done, or has ended before its time and says why.
    fn end(&mut self) -> Result<(), UnpackError> {
        let Some(Thread { files, ends, .. }) = self.thread.take() else { return Ok(()) };
        drop(files);
        self.alone = true;
        let ended = ends.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if ended.is_err() {
            // What stands behind it is not to be made, nor to go wrong.
            self.batch.clear();
        }
        let lost = ended?;
        self.own.lost.owners += lost.owners;
        self.own.lost.xattrs += lost.xattrs;
        Ok(())
    }
}

impl Drop for Second {
    /// Nothing is written any more when whoever unpacked has given up.
    fn drop(&mut self) {
        if let Some(Thread { files, ends, .. }) = self.thread.take() {
            drop(files);
            let _ = ends.join();
        }
    }
}

fn work(files: &Receiver<Vec<Small>>, done: &SyncSender<()>) -> Result<Lost, UnpackError> {
    let (mut hand, mut seen) = (Hand::default(), 0);
    let mut filled: Vec<File> = Vec::new();
    while let Some(batch) = next(files, &mut filled) {
        seen += batch.len() as u64;
        filled.clear();
        for small in batch {
            let file = hand.make(&small)?;
            if seen > MANY_FILES && !small.content.is_empty() {
                filled.push(file);
            }
        }
        // Nobody listens any more where the other has given up.
        let _ = done.send(());
    }
    Ok(hand.lost)
}

/// What is to be made next. While there is nothing the disk may begin with what is made already.
fn next(files: &Receiver<Vec<Small>>, filled: &mut Vec<File>) -> Option<Vec<Small>> {
    while let Some(file) = filled.last() {
        match files.try_recv() {
            Err(TryRecvError::Empty) => sys::begin_to_write(file.as_fd(), 0, TO_THE_END),
            next => return next.ok(),
        }
        filled.pop();
    }
    files.recv().ok()
}

#[cfg(test)]
mod same;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path as Place;

    use super::*;
    use crate::job::Limits;
    use crate::walk::Walker;

    const LIMITS: Limits = Limits {
        bytes: 20 << 30,
        entries: 1000,
        ratio: 200,
        ratio_free_bytes: 64 << 20,
        depth: 128,
        path_bytes: 4096,
        name_bytes: 4096,
        metadata_bytes: 1 << 20,
    };

    fn small(folder: &Place, name: &str, content: &[u8]) -> Small {
        let path = |name: &str| Path::parse(name.as_bytes(), &LIMITS).unwrap();
        let directory =
            Walker::new(File::open(folder).unwrap().into(), LIMITS).open(&path("/")).unwrap().unwrap();
        let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (77, 0) };
        Small { directory, path: path(name), content: content.to_vec(), meta, xattrs: Vec::new() }
    }

    #[test]
    fn every_file_is_made_whoever_does_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut second = Second::default();
        let all = WORTH_FILES + 9 * TOGETHER as u64 + 1;
        let there = |number: u64| fs::read(folder.path().join(number.to_string()));
        for number in 0..all {
            second.make(small(folder.path(), &number.to_string(), &number.to_le_bytes())).unwrap();
            if number % 100 == 99 {
                second.wait().unwrap();
                (0..=number).for_each(|number| assert_eq!(there(number).unwrap(), number.to_le_bytes()));
            }
        }
        second.finish().unwrap();
        for number in 0..all {
            assert_eq!(there(number).unwrap(), number.to_le_bytes(), "{number}");
        }
    }

    #[test]
    fn what_goes_wrong_is_told_whoever_did_it() {
        let long = "x".repeat(300);
        for (before, after) in
            [(0, 0), (WORTH_FILES, 0), (WORTH_FILES, TOGETHER), (WORTH_FILES, 10 * TOGETHER)]
        {
            let folder = tempfile::tempdir().unwrap();
            let mut second = Second::default();
            let mut make = |name: &str| second.make(small(folder.path(), name, b"x"));
            (0..before).for_each(|number| make(&number.to_string()).unwrap());
            let mut told = make(&long);
            for number in 0..after {
                told = told.and_then(|()| make(&format!("after{number}")));
            }
            let told = told.and_then(|()| second.finish().map(drop));
            let is_told = matches!(&told, Err(UnpackError::Io { doing, .. }) if doing == "create");
            assert!(is_told, "{before} before, {after} after: {told:?}");
        }
    }

    /// So many files with one handle, those that `bad` names not to be made.
    fn smalls(folder: &Place, all: usize, bad: &[usize]) -> Vec<Small> {
        let directory = small(folder, "x", b"").directory;
        let name = |number: usize| {
            let bad = bad.contains(&number);
            if bad { format!("{number}{}", "x".repeat(300)) } else { number.to_string() }
        };
        let meta = || Meta { mode: 0o644, uid: 0, gid: 0, mtime: (77, 0) };
        let paths = (0..all).map(|number| Path::parse(name(number).as_bytes(), &LIMITS).unwrap());
        let small = |path| Small {
            directory: Handle::clone(&directory),
            path,
            content: Vec::new(),
            meta: meta(),
            xattrs: Vec::new(),
        };
        paths.map(small).collect()
    }

    #[test]
    fn of_two_that_go_wrong_the_first_is_told() {
        for (all, bad) in [(5, [1, 4]), (5, [0, 4]), (40, [1, 39])] {
            let folder = tempfile::tempdir().unwrap();
            let mut second = Second::after(0, 2);
            let mut all = smalls(folder.path(), all, &bad).into_iter();
            let told = all.try_for_each(|small| second.make(small));
            // As whoever unpacks does it: what is left goes wrong first.
            let told = second.finish().map(drop).and(told);
            let Err(UnpackError::Io { path, .. }) = told else { panic!("{told:?}") };
            assert!(path.starts_with(&format!("{}x", bad[0])), "{path}");
        }
    }

    #[test]
    fn nothing_is_made_for_long_once_the_other_hand_has_given_up() {
        const TOGETHER: usize = 300;
        let folder = tempfile::tempdir().unwrap();
        let mut second = Second::after(0, TOGETHER);
        let mut all = smalls(folder.path(), 7 * TOGETHER, &[TOGETHER - 1]).into_iter();
        let mut told = all.by_ref().take(4 * TOGETHER).try_for_each(|small| second.make(small));
        thread::sleep(std::time::Duration::from_millis(300));
        told = told.and_then(|()| all.try_for_each(|small| second.make(small)));
        assert!(told.is_err(), "{} files are left", all.len());
    }

    #[test]
    fn attributes_count_as_what_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let mut second = Second::after(0, TOGETHER);
        for mut small in smalls(folder.path(), 100, &[]) {
            small.xattrs = vec![(b"a".to_vec(), b"b".to_vec()); 10_000];
            second.make(small).unwrap();
            assert!(second.batch.len() <= 2, "{} are held", second.batch.len());
        }
        second.finish().unwrap();
    }
}
