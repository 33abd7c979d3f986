//! From a tree back to an archive: whoever unpacks that gets the same tree.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use unpack::{PackJob, pack};

use crate::support::{Outcome, Tar, as_root, unpack};

/// Packs what was unpacked. An overlay's mark is where the unpacker wanted it.
fn packed(outcome: &Outcome) -> Vec<u8> {
    let root = outcome.root();
    let report = outcome.report();
    let job = PackJob { implicit_dirs: report.implicit_dirs.clone(), root_described: report.root_described };
    let mut is_opaque = |dir: BorrowedFd<'_>| {
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
        let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        Ok(outcome.opaque.contains(&path))
    };
    let mut archive = Vec::new();
    let said = pack(&mut archive, File::open(&root).unwrap().as_fd(), &job, &mut is_opaque).unwrap();
    assert_eq!(said.bytes, archive.len() as u64);
    archive
}

/// All that a file system says of every file, but for attributes.
fn details(outcome: &Outcome, implicit: &[String]) -> BTreeMap<String, String> {
    let mut tree = outcome.tree();
    tree.insert(String::new(), "root".into());
    let firsts: &mut BTreeMap<u64, String> = &mut BTreeMap::new();
    let detail = |(path, content): (String, String)| {
        let stat = outcome.stat(&path);
        let first = firsts.entry(stat.ino()).or_insert_with(|| path.clone()).clone();
        let is_implied = implicit.contains(&path) || (path.is_empty() && !outcome.report().root_described);
        // Nobody has said when these were made.
        let is_undated = is_implied || content == "whiteout";
        let time = if is_undated { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) };
        let (mode, uid, gid, rdev) = (stat.mode(), stat.uid(), stat.gid(), stat.rdev());
        (path, format!("{content} {mode:o} {uid}:{gid} {time:?} {rdev} as {first}"))
    };
    tree.into_iter().map(detail).collect()
}

#[track_caller]
fn comes_back(archive: Tar) -> Vec<u8> {
    let before = archive.unpack();
    let (bytes, implicit) = (packed(&before), before.report().implicit_dirs.clone());
    let after = unpack(&bytes);
    assert_eq!(details(&after, &implicit), details(&before, &implicit));
    let (mut here, mut there) = (after.opaque.clone(), before.opaque);
    here.sort();
    there.sort();
    assert_eq!(here, there);
    assert_eq!(after.report().implicit_dirs, implicit);
    assert!(packed(&after) == bytes, "the same tree gives another archive");
    bytes
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_tree_of_every_kind_of_file_comes_back_as_it_was() {
    as_root!();
    let (long, deep) = ("n".repeat(250), format!("{}/{}", "d".repeat(120), "f".repeat(120)));
    let bytes = comes_back(
        Tar::new()
            .mode(0o751)
            .dir("./")
            .owner(1000, 100)
            .mtime(1_234_567_890)
            .mode(0o1777)
            .dir("d")
            .mode(0o640)
            .file("d/f", "content")
            .hardlink("d/g", "d/f")
            .symlink("l", "d/f")
            .hardlink("m", "l")
            .mode(0o622)
            .entry(b'6', "p", "", b"")
            .file("empty", "")
            .mode(0o000)
            .dir("closed")
            .file("closed/x", "x")
            .pax(&[("path", long.as_bytes()), ("mtime", b"-1.5"), ("uid", b"4000000000")])
            .file("short", "x")
            .pax(&[("path", deep.as_bytes()), ("gid", b"70000"), ("SCHILY.xattr.user.k", b"v\n\0")])
            .file("short", "y")
            .pax(&[("linkpath", "t".repeat(300).as_bytes())])
            .symlink("far", "short"),
    );
    assert!(contains(&bytes, "SCHILY.xattr.user.k=v\n\0"));
}

#[test]
fn what_hides_lower_layers_still_does() {
    as_root!();
    let bytes = comes_back(
        Tar::new()
            .file("a/.wh.gone", "")
            .file("a/stays", "x")
            .file("b/.wh..wh..opq", "")
            .file(".wh.c", "")
            .file("c/over", "x"),
    );
    for name in ["a/.wh.gone", "b/.wh..wh..opq", "c/.wh..wh..opq"] {
        assert!(contains(&bytes, name), "{name}");
    }
}

#[test]
fn holes_stay_holes() {
    as_root!();
    let map = b"GNU.sparse.map";
    let name = std::str::from_utf8(map).unwrap();
    let mut data = vec![b'x'; 4096];
    data.extend(vec![b'y'; 4096]);
    let bytes = comes_back(
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", b"1073741824"),
                ("GNU.sparse.numblocks", b"2"),
                (name, b"8192,4096,536870912,4096"),
            ])
            .file("sparse", &data)
            .pax(&[("GNU.sparse.size", b"1073741824"), ("GNU.sparse.numblocks", b"0"), (name, b"0,0")])
            .file("hole", ""),
    );
    assert!(bytes.len() < 64 * 1024, "{} bytes", bytes.len());
}
