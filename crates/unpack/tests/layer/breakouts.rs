//! The attacker's archives. Each may be refused or confined; none may touch what is outside.

use unpack::UnpackError;

use crate::support::{Outcome, Tar, as_root, unpack};

/// Unpacks and looks outside.
fn attack(tar: Tar) -> Outcome {
    let outcome = tar.unpack();
    outcome.assert_outside_unchanged();
    outcome
}

/// G-01: names that climb.
#[test]
fn no_name_leads_out() {
    as_root!();
    for (name, inside) in [
        ("../outside/secret", "outside/secret"),
        ("../../../../outside/secret", "outside/secret"),
        ("/outside/secret", "outside/secret"),
        ("a/../../outside/secret", "outside/secret"),
        ("./../outside/secret", "outside/secret"),
    ] {
        let outcome = attack(Tar::new().file(name, "owned"));
        assert_eq!(outcome.read(inside), "owned", "{name}");
    }
}

/// G-02: links that climb, and things below them.
#[test]
fn no_link_of_the_layer_leads_out() {
    as_root!();
    for target in
        ["/", "..", "../..", "../../../../..", "../outside", "/../outside", "./../outside/../outside"]
    {
        let outcome = attack(
            Tar::new()
                .symlink("link", target)
                .file("link/secret", "owned")
                .file("link/outside/secret", "owned")
                .dir("link/outside/new"),
        );
        outcome.report();
    }
}

#[test]
fn things_below_a_link_land_at_its_target_inside() {
    as_root!();
    let outcome =
        attack(Tar::new().symlink("var/run", "/run").file("var/run/x", "1").file("var/run/sub/y", "2"));
    assert_eq!(outcome.read("run/x"), "1");
    assert_eq!(outcome.read("run/sub/y"), "2");
    assert!(outcome.stat("var/run").is_symlink());
    assert_eq!(outcome.report().implicit_dirs, ["run", "run/sub", "var"]);
}

#[test]
fn long_chains_and_loops_of_links_are_refused() {
    as_root!();
    let outcome = attack(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""));
    assert!(matches!(outcome.error(), UnpackError::BadEntry { .. }), "{:?}", outcome.error());
    let chain = (0..60).fold(Tar::new(), |tar, n| tar.symlink(&format!("l{n}"), &format!("l{}", n + 1)));
    let outcome = attack(chain.file("l0/x", ""));
    assert!(matches!(outcome.error(), UnpackError::BadEntry { .. }), "{:?}", outcome.error());
}

/// G-03: hard links to what is not the layer's.
#[test]
fn no_hard_link_leads_out() {
    as_root!();
    for target in
        ["/etc/passwd", "../outside/secret", "../../etc/passwd", "missing", "self", "later", "/", "."]
    {
        let outcome = attack(Tar::new().hardlink("self", target).file("later", ""));
        assert!(
            matches!(outcome.error(), UnpackError::LinkTarget { .. } | UnpackError::BadEntry { .. }),
            "{target}"
        );
    }
    let outcome = attack(Tar::new().dir("d").hardlink("x", "d"));
    assert!(matches!(outcome.error(), UnpackError::BadEntry { .. }));
    let outcome = attack(Tar::new().file(".wh.w", "").hardlink("x", "w"));
    assert!(matches!(outcome.error(), UnpackError::LinkTarget { .. }));
    let outcome = attack(Tar::new().symlink("up", "../outside").hardlink("x", "up/secret"));
    assert!(matches!(outcome.error(), UnpackError::LinkTarget { .. }));
}

#[test]
fn a_hard_link_to_a_link_is_that_link_and_writing_to_it_replaces_it() {
    as_root!();
    let outcome = attack(Tar::new().symlink("s", "../outside/secret").hardlink("h", "s").file("h", "owned"));
    assert_eq!(outcome.read("h"), "owned");
    assert!(outcome.stat("s").is_symlink());
}

#[test]
fn writing_to_one_of_two_hard_links_leaves_the_other() {
    as_root!();
    let outcome = attack(Tar::new().file("a", "1").hardlink("b", "a").hardlink("./c", "/a").file("a", "2"));
    assert_eq!(
        (outcome.read("a"), outcome.read("b"), outcome.read("c")),
        ("2".into(), "1".into(), "1".into())
    );
}

#[test]
fn a_hard_link_to_itself_changes_nothing() {
    as_root!();
    let outcome = attack(Tar::new().file("a", "1").hardlink("a", "./a"));
    assert_eq!(outcome.read("a"), "1");
}

#[test]
fn a_hard_link_can_t_replace_the_directory_that_holds_its_target() {
    as_root!();
    let outcome = attack(Tar::new().file("d/a", "1").hardlink("d", "d/a"));
    assert!(matches!(outcome.error(), UnpackError::LinkTarget { .. }));
}

/// G-05: a link, then a directory of the same name with a mode (CVE-2026-33056).
#[test]
fn a_directory_over_a_link_is_a_new_directory() {
    as_root!();
    let outcome = attack(Tar::new().symlink("foo", "../outside").mode(0o777).owner(1000, 1000).dir("foo"));
    assert!(outcome.stat("foo").is_dir());
    for (first, path) in [("foo", "foo/"), ("foo", "./foo/.")] {
        attack(Tar::new().symlink(first, "/../outside").mode(0o777).dir(path));
    }
}

/// A file written over a link must not be written through it; nor may a directory's late mode.
#[test]
fn nothing_is_written_through_a_last_link() {
    as_root!();
    let outcome = attack(Tar::new().symlink("x", "../outside/secret").file("x", "owned"));
    assert_eq!(outcome.read("x"), "owned");
    let outcome = attack(Tar::new().mode(0o777).dir("d").symlink("d", "../outside"));
    assert!(outcome.stat("d").is_symlink());
    let outcome = attack(Tar::new().mode(0o777).dir("d/e").symlink("d", "../outside").dir("d/secret"));
    assert!(outcome.stat("d").is_symlink());
}

/// G-06: where parsers could disagree about what is a header.
#[test]
fn a_pax_size_holds_for_the_member_and_for_nothing_else() {
    as_root!();
    let smuggled = Tar::new().file("smuggled", "x").bytes;
    // The header says 0, the record says how much there is: the smuggled member is content.
    let tar = Tar::new()
        .pax(&[("size", smuggled.len().to_string().as_bytes())])
        .header(b'0', "file", "", 0)
        .raw(&smuggled)
        .file("after", "y");
    let outcome = attack(tar);
    assert_eq!(outcome.tree().into_keys().collect::<Vec<_>>(), ["after", "file"]);
    // The reverse: the header's size is overruled, and what follows are members.
    let tar =
        Tar::new().pax(&[("size", b"0")]).header(b'0', "file", "", smuggled.len() as u64).raw(&smuggled);
    let outcome = attack(tar);
    assert_eq!(outcome.tree().into_keys().collect::<Vec<_>>(), ["file", "smuggled"]);
    // The last of two sizes is the one.
    let len = smuggled.len().to_string();
    let tar = Tar::new()
        .pax(&[("size", b"0"), ("size", len.as_bytes())])
        .header(b'0', "file", "", 0)
        .raw(&smuggled);
    assert_eq!(attack(tar).tree().into_keys().collect::<Vec<_>>(), ["file"]);
}

#[test]
fn a_pax_record_does_not_describe_the_header_of_a_long_name() {
    as_root!();
    let tar = Tar::new()
        .pax(&[("size", b"3")])
        .entry(b'L', "././@LongLink", "", b"long name, short size\0")
        .header(b'0', "ignored", "", 0)
        .raw(b"abc")
        .pad()
        .file("after", "y");
    let outcome = attack(tar);
    assert_eq!(outcome.read("long name, short size"), "abc");
    assert_eq!(outcome.read("after"), "y");
}

#[test]
fn a_nul_in_a_name_or_a_link_is_refused() {
    as_root!();
    for key in ["path", "linkpath"] {
        let outcome = attack(Tar::new().pax(&[(key, b"a\0b")]).symlink("x", "y"));
        assert!(matches!(outcome.error(), UnpackError::Archive { .. }), "{key}");
    }
}

/// G-10: the root as something else (CVE-2021-29136).
#[test]
fn the_root_stays_a_directory() {
    as_root!();
    for name in ["/", ".", "./", "a/..", "../.."] {
        for kind in *b"1267" {
            let outcome = attack(Tar::new().file("x", "").entry(kind, name, "../outside", b""));
            assert!(outcome.root().is_dir());
            let is_dir_after_all = kind == b'7' && name.ends_with('/');
            assert_eq!(outcome.result.is_ok(), is_dir_after_all, "{name} {}", char::from(kind));
        }
    }
    let outcome = attack(Tar::new().mode(0o700).owner(5, 6).dir("./"));
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&outcome.stat("")), 5);
}

/// G-07 and G-08: what an image may not bring along.
#[test]
fn devices_are_left_out_and_dangerous_bits_and_attributes_are_taken_off() {
    as_root!();
    use std::os::unix::fs::MetadataExt;
    let tar = Tar::new()
        .entry(b'3', "char", "", b"")
        .entry(b'4', "block", "", b"")
        .entry(b'Z', "what", "", b"content")
        .entry(b'6', "fifo", "", b"")
        .pax(&[
            ("SCHILY.xattr.user.fine", b"1\n2"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.capability", b"\x01\x00\x00\x02\xff\xff\xff\xff"),
            ("SCHILY.xattr.system.posix_acl_access", b"\x02\x00\x00\x00"),
        ])
        .mode(0o6755)
        .file("bin", "x")
        .mode(0o3777)
        .dir("tmp");
    let outcome = attack(tar);
    let kinds = outcome.tree();
    assert_eq!(kinds.keys().collect::<Vec<_>>(), ["bin", "fifo", "tmp"]);
    assert_eq!(outcome.stat("bin").mode() & 0o7777, 0o755);
    assert_eq!(outcome.stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!((outcome.report().skipped, outcome.report().dropped_xattrs), (3, 4));
    let listed = std::process::Command::new("getfattr")
        .args(["-m", "-", "--absolute-names"])
        .arg(outcome.root().join("bin"))
        .output();
    if let Ok(listed) = listed {
        let text = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(text.lines().skip(1).collect::<String>(), "user.fine");
    }
}

#[test]
fn a_file_is_no_directory() {
    as_root!();
    let outcome = attack(Tar::new().file("a", "").file("a/b", ""));
    assert!(matches!(outcome.error(), UnpackError::BadEntry { .. }));
}

#[test]
fn a_header_s_checksum_counts() {
    as_root!();
    let mut archive = Tar::new().file("a", "x").end();
    archive[0] = b'b';
    assert!(matches!(unpack(&archive).error(), UnpackError::Archive { .. }));
}
