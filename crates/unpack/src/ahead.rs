//! Decoding ahead. To inflate a layer takes as long as all that is done with what comes out of it. A thread of its own
//! does it, so that a layer that is alone keeps two processors busy.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::UnpackError;

/// The most that is handed over at once. It is what is read at once where nobody decodes ahead, and each piece is what
/// one read gave: limits and errors then come between the same bytes, and what has come waits for nothing.
pub(crate) const PIECE_BYTES: usize = 128 << 10;
/// How many of them there are: the one that is being used, and those that are decoded or being decoded.
const PIECES: usize = 8;
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
        let ((send, pieces), (used, free)) = (sync_channel(PIECES), sync_channel(PIECES));
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
        self.give_back(used);
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
    while let Ok(mut bytes) = free.recv() {
        let read = decoder.read(&mut bytes);
        let goes_on = matches!(read, Ok(1..));
        let compressed = compressed.load(Ordering::Relaxed);
        let sent = pieces.send(read.map(|len| Piece { bytes, len, compressed }));
        if sent.is_err() || !goes_on {
            return;
        }
    }
}
