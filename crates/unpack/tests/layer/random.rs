//! Archives that nobody thought of.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use crate::support::{Tar, describe, is_root, unpack};

fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "outside",
        "secret",
        ".wh.a",
        ".wh..wh..opq",
    ]);
    prop::collection::vec(part, 1..5)
        .prop_map(|parts| parts.join("/"))
        .prop_filter("not empty", |name| !name.is_empty())
}

fn member() -> impl Strategy<Value = (u8, String, String)> {
    (
        prop::sample::select(b"0012255356".to_vec()),
        name(),
        prop_oneof![name(), name().prop_map(|name| format!("/{name}"))],
    )
}

fn tar(members: &[(u8, String, String)]) -> Tar {
    members.iter().fold(Tar::new(), |tar, (kind, path, link)| tar.entry(*kind, path, link, b""))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever the members are and however they lead through each other, nothing outside changes.
    #[test]
    fn no_archive_reaches_outside(members in prop::collection::vec(member(), 1..12)) {
        if !is_root("random archives") {
            return Ok(());
        }
        tar(&members).unpack().assert_outside_unchanged();
    }

    /// Broken bytes are an error or a tree, never a panic.
    #[test]
    fn flipped_bytes_are_survived(
        members in prop::collection::vec(member(), 1..6),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        if !is_root("random archives") {
            return Ok(());
        }
        let mut archive = tar(&members).pax(&[("path", b"x"), ("mtime", b"1.5")]).file("y", "content").end();
        for (at, byte) in flips {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        unpack(&archive).assert_outside_unchanged();
    }
}

fn plain_name() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Files and directories without links or whiteouts come out as GNU tar writes them, where both agree to.
    #[test]
    fn gnu_tar_writes_the_same_tree(members in prop::collection::btree_map(plain_name(), prop::sample::select(b"05".to_vec()), 1..8)) {
        if !is_root("random archives") {
            return Ok(());
        }
        let archive = members.iter().fold(Tar::new(), |tar, (path, kind)| tar.entry(*kind, path, "", if *kind == b'0' { path.as_bytes() } else { b"" })).end();
        let theirs = tempfile::tempdir().unwrap();
        std::fs::write(theirs.path().join("archive"), &archive).unwrap();
        std::fs::create_dir(theirs.path().join("tree")).unwrap();
        let status = Command::new("tar").args(["-xf", "archive", "-C", "tree"]).current_dir(theirs.path()).stderr(Stdio::null()).status();
        let Ok(status) = status else { return Ok(()) };
        let ours = unpack(&archive);
        if status.success() && ours.result.is_ok() {
            let mut tree = BTreeMap::new();
            describe(&theirs.path().join("tree"), "", &mut tree);
            prop_assert_eq!(ours.tree(), tree);
        }
    }
}
