//! Bombs, each stopped by the limit that is there for it.

use std::time::{Duration, Instant};

use unpack::{Limits, UnpackError};

use crate::support::{Outcome, Tar, as_root, diff_id, gzip, unpack_with, zstd};

fn too_large(outcome: &Outcome) -> &str {
    match outcome.error() {
        UnpackError::TooLarge { what, .. } => what,
        other => panic!("{other:?}"),
    }
}

fn limited(tar: Tar, limits: Limits) -> Outcome {
    let archive = tar.end();
    unpack_with(&archive, &diff_id(&archive), limits)
}

#[test]
fn a_small_stream_may_not_become_a_large_one() {
    as_root!();
    let zeros = Tar::new().file("zeros", vec![0; 100 << 20]).end();
    for compressed in [gzip(&zeros), zstd(&zeros)] {
        let begun = Instant::now();
        let outcome = unpack_with(&compressed, &diff_id(b""), Limits::default());
        assert_eq!(too_large(&outcome), "uncompressed bytes per compressed byte");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn bytes_entries_and_names_are_counted() {
    as_root!();
    let two = || Tar::new().file("a", vec![1; 5000]).file("b", "");
    assert_eq!(too_large(&limited(two(), Limits { bytes: 4000, ..Limits::default() })), "bytes");
    assert_eq!(too_large(&limited(two(), Limits { entries: 1, ..Limits::default() })), "entries");
    let deep = |n: usize| Tar::new().pax(&[("path", b"d/".repeat(n).as_slice())]).dir("x");
    assert_eq!(too_large(&limited(deep(129), Limits::default())), "names in a path");
    assert!(limited(deep(128), Limits::default()).result.is_ok());
    let long = Tar::new().pax(&[("path", vec![b'x'; 256].as_slice())]).file("x", "");
    assert_eq!(too_large(&limited(long, Limits::default())), "bytes in a name");
}

/// Through links a tree could grow deeper than any of its paths; whoever deletes it would run out of stack.
#[test]
fn links_don_t_make_a_deeper_tree() {
    as_root!();
    let path = |prefix: &str| format!("{prefix}/{}", "d/".repeat(100));
    let tar = Tar::new()
        .pax(&[("path", path("a").as_bytes())])
        .dir("x")
        .pax(&[("linkpath", path("a").as_bytes())])
        .symlink("l", "x")
        .pax(&[("path", path("l").as_bytes())])
        .dir("x");
    assert_eq!(too_large(&limited(tar, Limits::default())), "names in a path");
}

#[test]
fn metadata_is_not_read_before_it_is_known_to_be_small() {
    as_root!();
    for kind in *b"xLKg" {
        let outcome = limited(Tar::new().header(kind, "bomb", "", 2 << 30), Limits::default());
        assert_eq!(too_large(&outcome), "bytes of metadata for one entry");
    }
    let many = (0..20).fold(Tar::new(), |tar, _| {
        tar.entry(b'x', "x", "", &[b'x'; 0]).entry(b'L', "x", "", &[b'a'; 60_000])
    });
    assert_eq!(too_large(&limited(many.file("x", ""), Limits::default())), "bytes of metadata for one entry");
}

/// A file of one exbibyte costs its archive one header.
#[test]
fn holes_count_as_bytes() {
    as_root!();
    let begun = Instant::now();
    for size in [1u64 << 60, u64::MAX, 21 << 30] {
        let size = size.to_string();
        let sparse =
            Tar::new().pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"0,0")]).file("x", "");
        assert_eq!(too_large(&limited(sparse, Limits::default())), "bytes");
        let plain = Tar::new().pax(&[("size", size.as_bytes())]).header(b'0', "x", "", 0);
        assert_eq!(too_large(&limited(plain, Limits::default())), "bytes");
    }
    let many = (0..30).fold(Tar::new(), |tar, n| {
        tar.pax(&[("GNU.sparse.size", b"1073741824"), ("GNU.sparse.map", b"0,0")]).file(&format!("{n}"), "")
    });
    assert_eq!(too_large(&limited(many, Limits::default())), "bytes");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_sparse_map_is_bounded() {
    as_root!();
    let mut content = b"4000000000\n".to_vec();
    content.extend(b"0\n0\n".repeat(400_000));
    let tar = Tar::new()
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")])
        .file("x", content);
    let error = limited(tar, Limits::default()).result.unwrap_err();
    assert!(matches!(error, UnpackError::Archive { .. } | UnpackError::TooLarge { .. }), "{error:?}");
}

#[test]
fn a_zstd_window_of_two_gigabytes_is_refused() {
    as_root!();
    // Magic, a frame header without content size, a window of 2^31 bytes, one empty last block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let outcome = unpack_with(&frame, &diff_id(b""), Limits::default());
    assert!(matches!(outcome.error(), UnpackError::Compression { .. }), "{:?}", outcome.error());
}

#[test]
fn a_name_that_comes_thousands_of_times_is_one_file() {
    as_root!();
    let tar = (0..4_001).fold(Tar::new(), |tar, n| if n % 2 == 0 { tar.file("x", "") } else { tar.dir("x") });
    let outcome = limited(tar, Limits::default());
    assert_eq!(outcome.tree().into_values().collect::<Vec<_>>(), ["file "]);
}
