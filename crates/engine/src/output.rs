//! One output of a run, read up to its cap and counted beyond it. What is kept can be read while it grows.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use run::Output;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is asked for at once beyond the cap, where bytes are only counted.
const SCRATCH_BYTES: usize = 64 * 1024;

/// What is kept of one output: written by one, read by any number, and the bytes are there once.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Held>);

#[derive(Debug)]
enum Held {
    Growing(Vec<u8>),
    Whole(Arc<Vec<u8>>),
}

impl Default for Held {
    fn default() -> Self {
        Held::Growing(Vec::new())
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Whoever panics while looking has changed nothing.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Shows what there is so far, and whether that is all. Nothing is written meanwhile.
    pub(crate) fn look<T>(&self, see: impl FnOnce(&[u8], bool) -> T) -> T {
        match &*self.lock() {
            Held::Growing(bytes) => see(bytes, false),
            Held::Whole(bytes) => see(bytes, true),
        }
    }

    fn length(&self) -> usize {
        self.look(|bytes, _| bytes.len())
    }

    /// Reads once, straight into its place: this is the only copy on our side of the pipe.
    async fn read_from(&self, reader: &mut (dyn AsyncRead + Send + Unpin), room: usize) -> io::Result<usize> {
        poll_fn(|context| match &mut *self.lock() {
            // A read that is not ready has taken nothing: it can be begun anew each time.
            Held::Growing(bytes) => pin!((&mut *reader).take(room as u64).read_buf(bytes)).poll(context),
            Held::Whole(_) => std::task::Poll::Ready(Ok(0)),
        })
        .await
    }

    fn close(&self) -> Arc<Vec<u8>> {
        let mut held = self.lock();
        let bytes = match &mut *held {
            Held::Growing(bytes) => Arc::new(std::mem::take(bytes)),
            Held::Whole(bytes) => Arc::clone(bytes),
        };
        *held = Held::Whole(Arc::clone(&bytes));
        bytes
    }
}

pub(crate) struct Collector {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    cap: usize,
    kept: Arc<Kept>,
    length: usize,
    total: u64,
    ended: bool,
    scratch: Vec<u8>,
}

impl Collector {
    pub(crate) fn new(reader: Box<dyn AsyncRead + Send + Unpin>, cap_bytes: u64) -> Self {
        let cap_bytes = if walls::stands("output_cap") { cap_bytes } else { cap_bytes.saturating_mul(1000) };
        let cap = usize::try_from(cap_bytes).unwrap_or(usize::MAX);
        Self { reader, cap, kept: Arc::default(), length: 0, total: 0, ended: false, scratch: Vec::new() }
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn kept(&self) -> &Arc<Kept> {
        &self.kept
    }

    /// Whether more was written than is kept.
    pub(crate) fn exceeded(&self) -> bool {
        self.total > self.length as u64
    }

    /// Reads once; says whether more is kept now. Dropping the future loses nothing.
    /// An output that can't be read has ended.
    pub(crate) async fn read(&mut self) -> bool {
        let before = self.length;
        let room = self.cap - before;
        let read = if room > 0 {
            self.kept.read_from(&mut *self.reader, room).await
        } else {
            self.scratch.resize(SCRATCH_BYTES, 0);
            self.reader.read(&mut self.scratch).await
        };
        match read {
            Ok(0) | Err(_) => self.ended = true,
            Ok(bytes) => self.total += bytes as u64,
        }
        self.length = self.kept.length();
        self.length > before
    }

    /// The whole output. Whoever looks at it finds that nothing more will come.
    pub(crate) fn into_output(self) -> Output {
        Output { bytes: self.kept.close(), total: self.total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(written: &'static [u8], cap: u64) -> Collector {
        let mut collector = Collector::new(Box::new(written), cap);
        while !collector.ended() {
            collector.read().await;
        }
        collector
    }

    #[tokio::test]
    async fn what_is_kept_can_be_read_while_it_grows_and_is_there_once() {
        let (reader, mut writer) = tokio::io::duplex(100);
        let mut collector = Collector::new(Box::new(reader), 100);
        let kept = Arc::clone(collector.kept());
        tokio::io::AsyncWriteExt::write_all(&mut writer, b"ab").await.unwrap();
        assert!(collector.read().await);
        assert_eq!(kept.look(|bytes, whole| (bytes.to_vec(), whole)), (b"ab".to_vec(), false));
        drop(writer);
        assert!(!collector.read().await);
        let output = collector.into_output();
        let same = kept.look(|bytes, whole| whole && std::ptr::eq(bytes, output.bytes.as_slice()));
        assert!(same, "a copy was made");
    }

    #[tokio::test]
    async fn exactly_the_cap_is_kept_and_everything_is_counted() {
        for (cap, kept, exceeded) in [(3, "abc", true), (6, "abcdef", false), (7, "abcdef", false)] {
            let collector = collect(b"abcdef", cap).await;
            assert_eq!(collector.exceeded(), exceeded, "cap {cap}");
            let output = collector.into_output();
            assert_eq!((output.bytes.as_slice(), output.total), (kept.as_bytes(), 6), "cap {cap}");
        }
    }
}
