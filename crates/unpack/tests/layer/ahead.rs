//! What is decoded ahead is looked at as if it had not been: at the same places, and as soon. That is compared below
//! `unpack_with` and `unpack_from`; what is here is what would tell the two apart.

use std::io::{self, Cursor, Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use unpack::{Limits, UnpackError};

use crate::support::{Tar, as_root, diff_id, gzip, unpack_by, unpack_from, unpack_with, zstd};

const KIB: usize = 1 << 10;

/// Bytes that no compression helps.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A file, something that is no header, and much behind it.
fn broken(behind: &[u8]) -> Vec<u8> {
    Tar::new().file("first", "content").raw(&[b'x'; 512]).raw(behind).pad().end()
}

fn is_archive(error: &UnpackError) -> bool {
    matches!(error, UnpackError::Archive { .. })
}

/// An input that comes a little at a time, and where it interrupts only when it is asked twice.
#[derive(Clone)]
struct Slow {
    bytes: Cursor<Vec<u8>>,
    most: usize,
    interrupts: bool,
    interrupted: bool,
}

impl Slow {
    fn new(bytes: Vec<u8>, most: usize, interrupts: bool) -> Self {
        Self { bytes: Cursor::new(bytes), most, interrupts, interrupted: false }
    }
}

impl Read for Slow {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.interrupted = self.interrupts && !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = buf.len().min(self.most);
        self.bytes.read(&mut buf[..most])
    }
}

#[test]
fn what_stands_before_a_limit_is_told_before_it() {
    as_root!();
    let archive = broken(&noise(400 * KIB));
    for archive in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let limits = Limits { bytes: 200 << 10, ..Limits::default() };
        let outcome = unpack_with(&archive, &diff_id(b""), limits);
        assert!(is_archive(outcome.error()), "{:?}", outcome.error());
        assert_eq!(outcome.read("first"), "content");
    }
}

#[test]
fn what_stands_before_a_decoder_s_error_is_told_before_it() {
    as_root!();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&broken(&[0; 200 * KIB])).unwrap();
    encoder.flush().unwrap();
    let mut archive = encoder.get_ref().clone();
    // No block begins like this.
    archive.extend([0xff; KIB]);
    let outcome = unpack_with(&archive, &diff_id(b""), Limits::default());
    assert!(is_archive(outcome.error()), "{:?}", outcome.error());
}

#[test]
fn a_small_bomb_is_one_whatever_comes_behind_it() {
    as_root!();
    let archive = Tar::new().file("zeros", vec![0; 130 * KIB]).file("noise", noise(300 * KIB)).end();
    let limits = || Limits { ratio: 3, ratio_free_bytes: 0, ..Limits::default() };
    for compressed in [gzip(&archive), zstd(&archive)] {
        let outcome = unpack_from(&Slow::new(compressed, KIB, false), &diff_id(&archive), limits());
        assert!(matches!(outcome.error(), UnpackError::TooLarge { .. }), "{:?}", outcome.error());
    }
}

#[test]
fn an_interrupted_read_is_read_again() {
    as_root!();
    let archive = Tar::new().file("noise", noise(300 * KIB)).end();
    for input in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let outcome = unpack_from(&Slow::new(input, 70 * KIB, true), &diff_id(&archive), Limits::default());
        assert_eq!(outcome.report().bytes, archive.len() as u64);
    }
}

/// Whoever sends a broken layer slowly would keep a pull waiting otherwise.
#[test]
fn what_is_wrong_is_told_before_more_has_come() {
    as_root!();
    let archive = broken(&noise(20 * KIB));
    for archive in [archive.clone(), gzip(&archive)] {
        let (input, mut output) = io::pipe().unwrap();
        output.write_all(&archive[..archive.len() - 1]).unwrap();
        let (tell, told) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let outcome = unpack_by(&diff_id(b""), Limits::default(), |root, job, mark| {
                unpack::layer_ahead(input, root, job, 0, mark)
            });
            let _ = tell.send(outcome.result);
        });
        let result = told.recv_timeout(Duration::from_secs(20)).expect("nothing is told");
        assert!(is_archive(&result.unwrap_err()));
        drop(output);
    }
}
