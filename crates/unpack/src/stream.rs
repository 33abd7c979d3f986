//! From the compressed bytes to the archive's: the compression is told from the first bytes, every
//! uncompressed byte is hashed and counted, and bombs are stopped while they are still small.

use std::io::{self, BufReader, Read};
use std::mem::{replace, take};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256, Sha512};

use crate::UnpackError;
use crate::ahead::{Ahead, Decoder, PIECE_BYTES, Piece};
use crate::job::{Compression, Job, Limits};

/// The largest zstd window that is accepted: 128 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const INPUT_BYTES: usize = 128 * 1024;

/// The archive's bytes, watched.
pub(crate) struct Stream<'a> {
    source: Source<'a>,
    compression: Compression,
    /// How much was taken from the input, by whoever decodes.
    taken: Arc<AtomicU64>,
    /// How much of that what is here was made of.
    compressed: u64,
    hash: Hash,
    bytes: u64,
    limits: Limits,
    /// What was read at once, because a header at a time costs the decoder and the hash several times as much.
    buffer: Vec<u8>,
    given: usize,
    read: usize,
}

/// Where bytes come from.
enum Source<'a> {
    /// They are decoded when they are wanted.
    Here(Box<dyn Read + 'a>),
    /// So far; once there were so many a thread goes on.
    Mobile(Decoder, u64),
    Ahead(Ahead),
    /// Nowhere any more.
    Ended,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(input: impl Read + 'a, job: &Job) -> Result<Self, UnpackError> {
        let here = |decoder| Source::Here(Box::new(decoder));
        Self::with(input, Hash::for_digest(&job.diff_id)?, &job.limits, here)
    }

    /// One that is decoded by a thread of its own once so many bytes have come out of it.
    pub(crate) fn mobile(
        input: impl Read + Send + 'static,
        job: &Job,
        worth: u64,
    ) -> Result<Self, UnpackError> {
        let mobile = |decoder| Source::Mobile(Box::new(decoder), worth);
        Self::with(input, Hash::for_digest(&job.diff_id)?, &job.limits, mobile)
    }

    /// One whose bytes nobody has promised to be certain ones.
    pub(crate) fn unhashed(input: impl Read + 'a, limits: &Limits) -> Result<Self, UnpackError> {
        Self::with(input, Hash::Nothing, limits, |decoder| Source::Here(Box::new(decoder)))
    }

    fn with<R: Read>(
        input: R,
        hash: Hash,
        limits: &Limits,
        source: impl FnOnce(Decoding<R>) -> Source<'a>,
    ) -> Result<Self, UnpackError> {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner: input, bytes: Arc::clone(&taken) };
        let mut input = BufReader::with_capacity(INPUT_BYTES, Sniffed::new(counted).map_err(from_read)?);
        let compression = sniff(&input.get_mut().first);
        let source = source(match compression {
            Compression::None => Decoding::None(input),
            Compression::Gzip => Decoding::Gzip(Box::new(MultiGzDecoder::new(input))),
            Compression::Zstd => Decoding::Zstd(zstd(input).map_err(from_read)?),
        });
        let (limits, buffer) = (limits.clone(), vec![0; PIECE_BYTES]);
        let compressed = 0;
        Ok(Self { source, compression, taken, compressed, hash, bytes: 0, limits, buffer, given: 0, read: 0 })
    }

    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// How many bytes were taken from it.
    pub(crate) fn position(&self) -> u64 {
        self.bytes - (self.read - self.given) as u64
    }

    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.compressed
    }

    /// Of everything that was read, which must be everything there was.
    pub(crate) fn digest(self) -> String {
        self.hash.finish()
    }

    /// The next bytes, as many as there are at once but no more than somebody wants; none at the end.
    pub(crate) fn piece(&mut self, most: usize) -> io::Result<&[u8]> {
        if self.given == self.read {
            self.load()?;
        }
        let from = self.given;
        self.given = self.read.min(from.saturating_add(most));
        Ok(&self.buffer[from..self.given])
    }

    /// Has new bytes in the buffer, counted and hashed.
    fn load(&mut self) -> io::Result<()> {
        (self.given, self.read) = (0, 0);
        if let Source::Mobile(_, worth) = self.source
            && self.bytes >= worth
        {
            self.go_ahead();
        }
        let read = match &mut self.source {
            Source::Here(decoder) => decoder.read(&mut self.buffer)?,
            Source::Mobile(decoder, _) => decoder.read(&mut self.buffer)?,
            Source::Ahead(ahead) => {
                let next = ahead.next(take(&mut self.buffer));
                let Piece { bytes, len, compressed } = match next {
                    Ok(piece) => piece,
                    Err(error) => {
                        self.source = Source::Ended;
                        return Err(error);
                    }
                };
                (self.buffer, self.compressed) = (bytes, compressed);
                if len == 0 {
                    self.source = Source::Ended;
                }
                len
            }
            Source::Ended => 0,
        };
        if let Source::Here(_) | Source::Mobile(..) = self.source {
            self.compressed = self.taken.load(Ordering::Relaxed);
        }
        self.hash.update(&self.buffer[..read]);
        self.bytes += read as u64;
        self.check().map_err(io::Error::other)?;
        self.read = read;
        Ok(())
    }

    /// A thread decodes from now on, if there is one to be had.
    fn go_ahead(&mut self) {
        self.source = match replace(&mut self.source, Source::Ended) {
            Source::Mobile(decoder, _) => match Ahead::begin(decoder, Arc::clone(&self.taken)) {
                Ok(ahead) => Source::Ahead(ahead),
                Err(decoder) => Source::Here(decoder),
            },
            other => other,
        };
    }

    fn check(&self) -> Result<(), UnpackError> {
        let limits = &self.limits;
        if self.bytes > limits.bytes && walls::stands("layer_bytes") {
            return Err(UnpackError::too_large("bytes", limits.bytes));
        }
        let most = self.compressed.saturating_mul(limits.ratio);
        if self.bytes > limits.ratio_free_bytes && self.bytes > most && walls::stands("layer_ratio") {
            return Err(UnpackError::too_large("uncompressed bytes per compressed byte", limits.ratio));
        }
        Ok(())
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.piece(buf.len())?.read(buf)
    }
}

/// What went wrong while reading: our own word where we said one, else the decoder's.
pub(crate) fn from_read(error: io::Error) -> UnpackError {
    match error.downcast::<UnpackError>() {
        Ok(own) => own,
        Err(error) => UnpackError::Compression { reason: error.to_string() },
    }
}

/// An input whose compression is known.
enum Decoding<R> {
    None(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<R>>),
}

type Input<R> = BufReader<Sniffed<Counted<R>>>;

impl<R: Read> Read for Decoding<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(input) => input.read(buf),
            Self::Gzip(decoder) => decoder.read(buf),
            Self::Zstd(decoder) => decoder.read(buf),
        }
    }
}

fn zstd<R: Read>(input: Input<R>) -> io::Result<zstd::stream::read::Decoder<'static, Input<R>>> {
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
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buf) {
                Ok(read) => {
                    self.bytes.fetch_add(read as u64, Ordering::Relaxed);
                    return Ok(read);
                }
                // Not every decoder asks again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(io::Error::other(UnpackError::Input { reason: error.to_string() }));
                }
            }
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
