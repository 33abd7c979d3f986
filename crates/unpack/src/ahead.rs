//! Decoding ahead. To inflate a layer takes as long as all that is done with what comes out of it. A thread of its own
//! does it, so that a layer that is alone keeps two processors busy.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::UnpackError;

/// What is handed over at once.
const PIECE_BYTES: usize = 256 << 10;
/// How many of them there are: the one that is being used, and those that are decoded or being decoded.
const PIECES: usize = 4;
const STACK_BYTES: usize = 256 << 10;

pub(crate) type Decoder = Box<dyn Read + Send>;

/// What has come out of a decoder.
pub(crate) struct Piece {
    pub(crate) bytes: Vec<u8>,
    /// How many of them there are. None is the end.
    pub(crate) len: usize,
    /// How much had gone into it by then.
    pub(crate) compressed: u64,
}

/// A decoder at work. Dropping it ends that, though not before something comes that it waits for.
pub(crate) struct Ahead {
    pieces: Receiver<io::Result<Piece>>,
    /// Gives back what has been used.
    used: SyncSender<Vec<u8>>,
}

impl Ahead {
    /// The decoder comes back where there is no second processor for it, or no thread.
    pub(crate) fn begin(decoder: Decoder, compressed: Arc<AtomicU64>) -> Result<Self, Decoder> {
        if thread::available_parallelism().is_ok_and(|several| several.get() < 2) {
            return Err(decoder);
        }
        let (give, given) = sync_channel::<Decoder>(1);
        // The last word needs no piece.
        let ((send, pieces), (used, free)) = (sync_channel(PIECES + 1), sync_channel(PIECES));
        let work = move || {
            if let Ok(decoder) = given.recv() {
                decode(decoder, &compressed, &free, &send);
            }
        };
        if thread::Builder::new().stack_size(STACK_BYTES).spawn(work).is_err() {
            return Err(decoder);
        }
        let ahead = Self { pieces, used };
        for _ in 1..PIECES {
            ahead.give_back(vec![0; PIECE_BYTES]);
        }
        match give.send(decoder) {
            Ok(()) => Ok(ahead),
            Err(unused) => Err(unused.0),
        }
    }

    /// What comes next, for what was used before.
    pub(crate) fn next(&self, used: Vec<u8>) -> io::Result<Piece> {
        let fits = used.len() == PIECE_BYTES;
        self.give_back(if fits { used } else { vec![0; PIECE_BYTES] });
        let silent = || UnpackError::Input { reason: "the decoder ended without a word".into() };
        self.pieces.recv().unwrap_or_else(|_| Err(io::Error::other(silent())))
    }

    fn give_back(&self, used: Vec<u8>) {
        // Where it has ended there is nobody who would need it, and why is told by what it has sent.
        let _ = self.used.send(used);
    }
}

fn decode(
    mut decoder: Decoder,
    compressed: &AtomicU64,
    free: &Receiver<Vec<u8>>,
    pieces: &SyncSender<io::Result<Piece>>,
) {
    let send = |bytes, len| {
        let compressed = compressed.load(Ordering::Relaxed);
        pieces.send(Ok(Piece { bytes, len, compressed })).is_ok()
    };
    while let Ok(mut bytes) = free.recv() {
        let (len, goes_on) = fill(&mut decoder, &mut bytes);
        // What came before the end, or before an error, is told before it.
        if len > 0 && !send(bytes, len) {
            return;
        }
        match goes_on {
            Ok(true) => {}
            Ok(false) => {
                send(Vec::new(), 0);
                return;
            }
            Err(error) => {
                let _ = pieces.send(Err(error));
                return;
            }
        }
    }
}

/// How much there was, and whether there may be more.
fn fill(decoder: &mut Decoder, bytes: &mut [u8]) -> (usize, io::Result<bool>) {
    let mut len = 0;
    while len < bytes.len() {
        match decoder.read(&mut bytes[len..]) {
            Ok(0) => return (len, Ok(false)),
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (len, Err(error)),
        }
    }
    (len, Ok(true))
}
