//! What an honest archive says is what is on the disk.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use unpack::{Compression, Limits, UnpackError};

use crate::support::{Outcome, Tar, as_root, diff_id, gzip, unpack, unpack_with, zstd};

#[test]
fn owners_modes_and_times_are_kept() {
    as_root!();
    let outcome = Tar::new()
        .owner(1000, 100)
        .mtime(1_234_567_890)
        .mode(0o750)
        .dir("d")
        .mode(0o640)
        .file("d/f", "content")
        .symlink("d/l", "anywhere")
        .mode(0o622)
        .entry(b'6', "d/p", "", b"")
        .unpack();
    outcome.report();
    for (path, mode) in [("d", 0o750), ("d/f", 0o640), ("d/p", 0o622)] {
        let stat = outcome.stat(path);
        assert_eq!(
            (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime()),
            (mode, 1000, 100, 1_234_567_890),
            "{path}"
        );
    }
    let link = outcome.stat("d/l");
    assert_eq!((link.uid(), link.gid(), link.mtime()), (1000, 100, 1_234_567_890));
    assert!(outcome.stat("d/p").file_type().is_fifo());
    assert_eq!(outcome.read("d/f"), "content");
}

#[test]
fn a_directory_that_forbids_writing_is_still_filled() {
    as_root!();
    let outcome = Tar::new()
        .mtime(77)
        .mode(0o000)
        .dir("d")
        .file("d/f", "x")
        .mode(0o555)
        .dir("d/e")
        .file("d/e/g", "y")
        .unpack();
    assert_eq!(outcome.stat("d").mode() & 0o7777, 0);
    assert_eq!((outcome.stat("d").mtime(), outcome.stat("d/e").mtime()), (77, 77));
}

#[test]
fn pax_overrules_the_header() {
    as_root!();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let outcome = Tar::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"4000000000"),
            ("gid", b"70000"),
            ("mtime", b"1700000000.123456789"),
        ])
        .file("short", "x")
        .pax(&[("linkpath", "t".repeat(300).as_bytes()), ("mtime", b"-1.5")])
        .symlink("l", "short")
        .unpack();
    let stat = outcome.stat(&long);
    assert_eq!((stat.uid(), stat.gid()), (4_000_000_000, 70_000));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(std::fs::read_link(outcome.root().join("l")).unwrap().as_os_str().len(), 300);
    assert_eq!((outcome.stat("l").mtime(), outcome.stat("l").mtime_nsec()), (-2, 500_000_000));
}

#[test]
fn gnu_long_names_are_read() {
    as_root!();
    let (name, target) = ("n".repeat(250), "t".repeat(150));
    let outcome = Tar::new()
        .entry(b'L', "././@LongLink", "", format!("{name}\0").as_bytes())
        .entry(b'K', "././@LongLink", "", format!("{target}\0").as_bytes())
        .symlink("short", "short")
        .unpack();
    assert_eq!(outcome.tree()[&name], format!("link {target}"));
}

#[test]
fn every_compression_gives_the_same_tree() {
    as_root!();
    let archive = Tar::new().dir("d").file("d/f", "content".repeat(1000)).end();
    let (half, rest) = archive.split_at(700);
    for (compressed, compression) in [
        (archive.clone(), Compression::None),
        (gzip(&archive), Compression::Gzip),
        ([gzip(half), gzip(b""), gzip(rest)].concat(), Compression::Gzip),
        (zstd(&archive), Compression::Zstd),
        (
            [zstd(half), vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], zstd(rest)].concat(),
            Compression::Zstd,
        ),
    ] {
        let outcome = unpack_with(&compressed, &diff_id(&archive), Limits::default());
        let report = outcome.report();
        assert_eq!(outcome.read("d/f").len(), 7000);
        assert_eq!(report.compression, compression);
        assert_eq!((report.bytes, report.compressed_bytes), (archive.len() as u64, compressed.len() as u64));
        assert_eq!((report.entries, report.file_bytes), (2, 7000));
    }
}

#[test]
fn sha512_names_a_layer_too() {
    as_root!();
    use sha2::Digest;
    let archive = Tar::new().file("f", "x").end();
    let hex: String = sha2::Sha512::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    unpack_with(&archive, &format!("sha512:{hex}"), Limits::default()).report();
    for bad in ["md5:00", "sha256:00", "", "sha256"] {
        assert!(matches!(unpack_with(&archive, bad, Limits::default()).error(), UnpackError::BadJob { .. }));
    }
}

#[test]
fn other_bytes_than_promised_are_refused() {
    as_root!();
    let archive = Tar::new().file("f", "x").end();
    let other = diff_id(&Tar::new().file("f", "y").end());
    assert!(matches!(unpack_with(&archive, &other, Limits::default()).error(), UnpackError::DiffId { .. }));
}

#[test]
fn the_end_of_an_archive_is_lenient_and_what_follows_is_not() {
    as_root!();
    let tar = Tar::new().file("f", "x");
    let padded = [tar.clone().end(), vec![0; 10_000]].concat();
    for archive in [tar.bytes.clone(), padded.clone(), Vec::new(), vec![0; 512], vec![0; 1024]] {
        unpack(&archive).report();
    }
    let garbage = [padded, b"garbage".to_vec()].concat();
    assert_eq!(unpack(&garbage).error(), &UnpackError::TrailingGarbage);
    let behind_zeros = [tar.bytes.clone(), vec![0; 512], tar.bytes].concat();
    assert!(matches!(unpack(&behind_zeros).error(), UnpackError::Archive { .. }));
}

#[test]
fn a_stream_that_ends_early_or_goes_on_is_refused() {
    as_root!();
    let archive = Tar::new().file("f", "content".repeat(10_000)).end();
    for whole in [gzip(&archive), zstd(&archive)] {
        for compressed in
            [&whole[..whole.len() / 2], &whole[..whole.len() - 1], &[&whole[..], b"garbage!"].concat()]
        {
            let outcome = unpack_with(compressed, &diff_id(&archive), Limits::default());
            assert!(matches!(outcome.error(), UnpackError::Compression { .. }), "{:?}", outcome.error());
        }
    }
    for cut in [100, 512, 600, 5000] {
        let outcome = unpack(&archive[..cut]);
        assert!(matches!(outcome.error(), UnpackError::Archive { .. }), "{cut}: {:?}", outcome.error());
    }
}

#[test]
fn of_duplicates_the_last_one_stays() {
    as_root!();
    let outcome = Tar::new()
        .file("a", "1")
        .file("a", "2")
        .dir("a")
        .file("a/b", "3")
        .symlink("c", "a")
        .file("c", "4")
        .file("d/e/f", "5")
        .file("d", "6")
        .unpack();
    let tree: Vec<_> = outcome.tree().into_iter().map(|(path, kind)| format!("{path}={kind}")).collect();
    assert_eq!(tree, ["a=dir", "a/b=file 3", "c=file 4", "d=file 6"]);
}

#[test]
fn what_the_layer_does_not_describe_is_reported() {
    as_root!();
    let outcome = Tar::new()
        .file("usr/share/x", "")
        .dir("usr")
        .mode(0o1777)
        .dir("tmp")
        .mode(0o700)
        .owner(7, 8)
        .mtime(9)
        .dir("home/me")
        .unpack();
    let report = outcome.report();
    assert_eq!(report.implicit_dirs, ["home", "usr/share"]);
    let special: Vec<_> = report
        .special_dirs
        .iter()
        .map(|dir| (dir.path.as_str(), dir.mode, dir.uid, dir.gid, dir.mtime))
        .collect();
    assert_eq!(special, [("home/me", 0o700, 7, 8, 9), ("tmp", 0o1777, 0, 0, 0)]);
    assert_eq!(outcome.stat("home").mode() & 0o7777, 0o755);
}

#[test]
fn a_report_fits_a_packet_however_many_directories_there_are() {
    as_root!();
    let tar = (0..3000).fold(Tar::new(), |tar, n| tar.mode(0o700).dir(&format!("\"\\\u{1}{n}")));
    let outcome = tar.unpack();
    assert!(outcome.report().dirs_cut);
    let as_json = serde_json::to_string(&serde_json::to_string(outcome.report()).unwrap()).unwrap();
    assert!(as_json.len() < 60 * 1024, "{}", as_json.len());
}

/// A file with a hole from 4 to 1 MiB, in the four ways in which GNU tar says so.
#[test]
fn sparse_files_are_written_with_their_holes() {
    as_root!();
    let size = (1 << 20) + 4;
    let size_text = format!("{size}");
    let (data, map) = (b"headtail", "0,4,1048576,4");
    let in_content = b"2\n0\n4\n1048576\n4\n";
    let mut block = in_content.to_vec();
    block.resize(512, 0);
    let version_1 = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.realsize", size_text.as_bytes()),
        ])
        .file("GNUSparseFile.0/f", [&block[..], data].concat());
    let version_0_1 = Tar::new()
        .pax(&[
            ("GNU.sparse.size", size_text.as_bytes()),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .file("x", data);
    let version_0_0 = Tar::new()
        .pax(&[
            ("GNU.sparse.size", size_text.as_bytes()),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"4"),
            ("GNU.sparse.offset", b"1048576"),
            ("GNU.sparse.numbytes", b"4"),
        ])
        .file("f", data);
    for tar in [version_1, version_0_1, version_0_0, old_gnu(&[(0, 4), (1 << 20, 4)], size, data)] {
        let outcome = tar.file("after", "x").unpack();
        let read = std::fs::read(outcome.root().join("f")).unwrap();
        assert_eq!(read.len() as u64, size);
        assert_eq!((&read[..4], &read[1 << 20..]), (&b"head"[..], &b"tail"[..]));
        assert!(read[4..1 << 20].iter().all(|byte| *byte == 0));
        assert!(outcome.stat("f").blocks() * 512 < 1 << 18);
        assert_eq!(outcome.read("after"), "x");
    }
}

#[test]
fn a_sparse_map_may_go_on_behind_its_header() {
    as_root!();
    let map: Vec<_> = (0..30).map(|n| (n * 8192, 1)).collect();
    let outcome = old_gnu(&map, 30 * 8192, &[b'x'; 30]).file("after", "y").unpack();
    let read = std::fs::read(outcome.root().join("f")).unwrap();
    assert!(read.iter().enumerate().all(|(at, byte)| *byte == if at % 8192 == 0 { b'x' } else { 0 }));
    assert_eq!(outcome.read("after"), "y");
}

fn old_gnu(map: &[(u64, u64)], size: u64, data: &[u8]) -> Tar {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[0] = b'f';
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.set_is_extended(map.len() > 4);
    for (field, (offset, len)) in gnu.sparse.iter_mut().zip(map) {
        field.set_offset(*offset);
        field.set_length(*len);
    }
    header.set_cksum();
    let mut tar = Tar::new().raw(header.as_bytes());
    let rest = map.get(4..).unwrap_or_default();
    for (at, pairs) in rest.chunks(21).enumerate() {
        let mut block = tar::GnuExtSparseHeader::new();
        block.set_is_extended((at + 1) * 21 < rest.len());
        for (field, (offset, len)) in block.sparse_mut().iter_mut().zip(pairs) {
            field.set_offset(*offset);
            field.set_length(*len);
        }
        tar = tar.raw(block.as_bytes());
    }
    tar.raw(data).pad()
}

fn looks(outcome: &Outcome, path: &str) -> (u32, u32) {
    (outcome.stat(path).mode() & 0o7777, outcome.stat(path).uid())
}

/// What an entry says of a directory goes with it.
#[test]
fn a_directory_that_is_gone_describes_no_other() {
    as_root!();
    let gone = |tar: Tar| tar.dir("d").owner(7, 7).mode(0o700).dir("d/sub").owner(0, 0);
    let led = gone(Tar::new().dir("e").dir("e/sub")).symlink("d", "e").unpack();
    assert_eq!(looks(&led, "e/sub"), (0o755, 0));
    assert!(led.report().special_dirs.is_empty());
    let round = gone(Tar::new()).symlink("d", "d").unpack();
    assert!(round.report().special_dirs.is_empty());
    let implied = gone(Tar::new()).file("d", "").dir("d").file("d/sub/x", "").unpack();
    assert_eq!(looks(&implied, "d/sub"), (0o755, 0));
    assert!(implied.report().special_dirs.is_empty());
    assert_eq!(implied.report().implicit_dirs, ["d/sub"]);
}

#[test]
fn the_last_entry_describes_a_directory_whatever_it_calls_it() {
    as_root!();
    let merged = || Tar::new().symlink("lib", "usr/lib").dir("usr").dir("usr/lib");
    for (first, last) in [("lib/x", "usr/lib/x"), ("usr/lib/x", "lib/x")] {
        let outcome = merged().mode(0o700).dir(first).mode(0o1777).dir(last).unpack();
        assert_eq!(looks(&outcome, "usr/lib/x"), (0o1777, 0), "{first} first");
        let special: Vec<_> = outcome.report().special_dirs.iter().map(|dir| dir.path.as_str()).collect();
        assert_eq!(special, ["usr/lib/x"], "{first} first");
    }
}

#[test]
fn links_may_lead_to_a_longer_path_than_the_kernel_takes() {
    as_root!();
    let long = vec!["x".repeat(250); 15].join("/");
    let more = format!("l/{0}/{0}", "y".repeat(250));
    let tar = Tar::new().pax(&[("linkpath", long.as_bytes())]).symlink("l", "x");
    let tar = tar.pax(&[("path", long.as_bytes())]).dir("x");
    let tar = tar.pax(&[("path", &more.as_bytes()[..252])]).mode(0o700).dir("x");
    let tar = tar.pax(&[("path", more.as_bytes())]).mode(0o700).dir("x");
    let tar = tar.pax(&[("path", [more.as_bytes(), b"/f"].concat().as_slice())]).file("x", "in");
    let outcome = tar.unpack();
    outcome.report();
    assert_eq!((looks(&outcome, &more[..252]), looks(&outcome, &more)), ((0o700, 0), (0o700, 0)));
    assert_eq!(outcome.read(&format!("{more}/f")), "in");
}
