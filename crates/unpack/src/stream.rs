//! From the compressed bytes to the archive's: the compression is told from the first bytes, every
//! uncompressed byte is hashed and counted, and bombs are stopped while they are still small.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::mem::take;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256, Sha512};

use crate::UnpackError;
use crate::job::{Compression, Job, Limits};

/// The largest zstd window that is accepted: 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const BUFFER_BYTES: usize = 128 * 1024;
const AHEAD_BYTES: usize = 128 * 1024;

/// The archive's bytes, watched.
pub(crate) struct Stream<'a> {
    inner: Box<dyn Read + 'a>,
    compression: Compression,
    compressed: Rc<Cell<u64>>,
    hash: Hash,
    bytes: u64,
    limits: Limits,
    /// What was read ahead, because a header at a time costs the decoder and the hash several times as much.
    ahead: Vec<u8>,
    given: usize,
    read: usize,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(input: impl Read + 'a, job: &Job) -> Result<Self, UnpackError> {
        Self::with(input, Hash::for_digest(&job.diff_id)?, &job.limits)
    }

    /// One whose bytes nobody has promised to be certain ones.
    pub(crate) fn unhashed(input: impl Read + 'a, limits: &Limits) -> Result<Self, UnpackError> {
        Self::with(input, Hash::Nothing, limits)
    }

    fn with(input: impl Read + 'a, hash: Hash, limits: &Limits) -> Result<Self, UnpackError> {
        let compressed = Rc::new(Cell::new(0));
        let counted = Counted { inner: input, bytes: Rc::clone(&compressed) };
        let mut input = BufReader::with_capacity(BUFFER_BYTES, Sniffed::new(counted).map_err(from_read)?);
        let compression = sniff(&input.get_mut().first);
        let inner: Box<dyn Read + 'a> = match compression {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(zstd(input).map_err(from_read)?),
        };
        let (limits, ahead) = (limits.clone(), vec![0; AHEAD_BYTES]);
        Ok(Self { inner, compression, compressed, hash, bytes: 0, limits, ahead, given: 0, read: 0 })
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// How many bytes were taken from it.
    pub(crate) fn position(&self) -> u64 {
        self.bytes - (self.read - self.given) as u64
    }

    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.compressed.get()
    }

    /// Of everything that was read, which must be everything there was.
    pub(crate) fn digest(self) -> String {
        self.hash.finish()
    }

    /// Counts and hashes what was just read.
    fn watch(&mut self, read: &[u8]) -> io::Result<()> {
        self.hash.update(read);
        self.bytes += read.len() as u64;
        self.check().map_err(io::Error::other)
    }

    fn check(&self) -> Result<(), UnpackError> {
        let limits = &self.limits;
        if self.bytes > limits.bytes && walls::stands("layer_bytes") {
            return Err(UnpackError::too_large("bytes", limits.bytes));
        }
        let most = self.compressed.get().saturating_mul(limits.ratio);
        if self.bytes > limits.ratio_free_bytes && self.bytes > most && walls::stands("layer_ratio") {
            return Err(UnpackError::too_large("uncompressed bytes per compressed byte", limits.ratio));
        }
        Ok(())
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.given == self.read {
            if buf.len() >= AHEAD_BYTES {
                let read = self.inner.read(buf)?;
                self.watch(&buf[..read])?;
                return Ok(read);
            }
            let mut ahead = take(&mut self.ahead);
            let read = self.inner.read(&mut ahead);
            let watched = read.and_then(|read| self.watch(&ahead[..read]).map(|()| read));
            self.ahead = ahead;
            (self.given, self.read) = (0, watched?);
        }
        let given = (&self.ahead[self.given..self.read]).read(buf)?;
        self.given += given;
        Ok(given)
    }
}

/// What went wrong while reading: our own word where we said one, else the decoder's.
pub(crate) fn from_read(error: io::Error) -> UnpackError {
    match error.downcast::<UnpackError>() {
        Ok(own) => own,
        Err(error) => UnpackError::Compression { reason: error.to_string() },
    }
}

fn zstd<'a, R: Read + 'a>(input: BufReader<R>) -> io::Result<impl Read + 'a> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

fn sniff(first: &[u8]) -> Compression {
    match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or a frame that is to be skipped.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Gives the first four bytes twice: to the one who sniffs and to the one who decodes.
struct Sniffed<R> {
    first: Vec<u8>,
    given: usize,
    rest: R,
}

impl<R: Read> Sniffed<R> {
    fn new(mut rest: R) -> io::Result<Self> {
        let mut first = Vec::with_capacity(4);
        rest.by_ref().take(4).read_to_end(&mut first)?;
        Ok(Self { first, given: 0, rest })
    }
}

impl<R: Read> Read for Sniffed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.given == self.first.len() {
            return self.rest.read(buf);
        }
        let read = (&self.first[self.given..]).read(buf)?;
        self.given += read;
        Ok(read)
    }
}

struct Counted<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buf) {
            Ok(read) => {
                self.bytes.set(self.bytes.get() + read as u64);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => Err(io::Error::other(UnpackError::Input { reason: error.to_string() })),
        }
    }
}

enum Hash {
    Nothing,
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    fn for_digest(digest: &str) -> Result<Self, UnpackError> {
        match digest.split_once(':') {
            Some(("sha256", hex)) if hex.len() == 64 => Ok(Self::Sha256(Sha256::new())),
            Some(("sha512", hex)) if hex.len() == 128 => Ok(Self::Sha512(Sha512::new())),
            _ => {
                Err(UnpackError::BadJob { reason: format!("{digest:?} is not a digest that is known here") })
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Nothing => {}
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Sha256(hash) => format!("sha256:{}", hex(&hash.finalize())),
            Self::Sha512(hash) => format!("sha512:{}", hex(&hash.finalize())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
