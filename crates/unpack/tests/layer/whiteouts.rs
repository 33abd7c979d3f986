//! What a layer says about the layers below it.

use unpack::UnpackError;

use crate::support::{Tar, as_root};

#[test]
fn a_whiteout_hides_a_name() {
    as_root!();
    let outcome = Tar::new().file(".wh.a", "").file("d/.wh.b", "").file("d/.wh.b", "").unpack();
    assert!(outcome.is_whiteout("a") && outcome.is_whiteout("d/b"));
    assert_eq!(outcome.report().whiteouts, 3);
}

#[test]
fn what_the_layer_itself_has_stays_in_either_order() {
    as_root!();
    let before =
        Tar::new().file("a", "mine").file(".wh.a", "").dir("d").file("d/f", "mine").file(".wh.d", "");
    let after = Tar::new().file(".wh.a", "").file("a", "mine").file(".wh.d", "").dir("d").file("d/f", "mine");
    let implied = Tar::new().file(".wh.a", "").file("a", "mine").file(".wh.d", "").file("d/f", "mine");
    for tar in [before, after, implied] {
        let outcome = tar.unpack();
        outcome.report();
        assert_eq!((outcome.read("a"), outcome.read("d/f")), ("mine".into(), "mine".into()));
        assert_eq!(outcome.opaque, ["d"]);
    }
}

#[test]
fn an_opaque_directory_is_marked_before_or_after_it_is_described() {
    as_root!();
    for tar in [
        Tar::new().dir("d").file("d/.wh..wh..opq", "").file("d/f", ""),
        Tar::new().file("d/.wh..wh..opq", "").file("d/f", "").dir("d"),
    ] {
        let outcome = tar.unpack();
        assert_eq!(outcome.opaque, ["d"]);
        assert_eq!(outcome.tree().into_keys().collect::<Vec<_>>(), ["d", "d/f"]);
    }
}

#[test]
fn an_opaque_root_is_reported_because_no_overlay_heeds_it() {
    as_root!();
    let outcome = Tar::new().file(".wh..wh..opq", "").unpack();
    assert!(outcome.report().root_opaque && outcome.opaque.is_empty());
}

#[test]
fn whiteouts_of_nothing_are_refused_and_bookkeeping_is_ignored() {
    as_root!();
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", ".wh./x", ".wh.a/b"] {
        let outcome = Tar::new().file(name, "").unpack();
        assert!(matches!(outcome.error(), UnpackError::BadEntry { .. }), "{name}");
    }
    let outcome = Tar::new().file(".wh..wh.aufs", "").dir(".wh..wh.plnk").file(".wh..wh.plnk/1", "").unpack();
    outcome.report();
    assert!(outcome.tree().is_empty());
}

#[test]
fn a_whiteout_below_a_link_stays_inside() {
    as_root!();
    let outcome =
        Tar::new().symlink("up", "../outside").file("up/.wh.secret", "").file("up/.wh..wh..opq", "").unpack();
    outcome.assert_outside_unchanged();
    assert!(outcome.is_whiteout("outside/secret"));
    assert_eq!(outcome.opaque, ["outside"]);
}

/// A device 0:0 in the archive would be a whiteout that no rule has seen.
#[test]
fn a_device_is_no_whiteout() {
    as_root!();
    let outcome = Tar::new().entry(b'3', "fake", "", b"").unpack();
    assert!(outcome.tree().is_empty());
    assert_eq!(outcome.report().skipped, 1);
}

/// Nothing of the layers below shows through what took the place of a file, a link or a whiteout.
#[test]
fn a_directory_in_the_place_of_what_hid_a_name_hides_it_too() {
    as_root!();
    let marked = Tar::new().dir("d").file("d/.wh..wh..opq", "");
    for (tar, marks) in [
        (Tar::new().file(".wh.d", "").file("d", "").dir("d"), 1),
        (Tar::new().file("d", "").file(".wh.d", "").dir("d"), 1),
        (Tar::new().file(".wh.d", "").symlink("d", "e").dir("d"), 1),
        // The mark of the first is gone with it.
        (marked.file("d", "").dir("d"), 2),
    ] {
        let outcome = tar.unpack();
        outcome.report();
        assert_eq!(outcome.opaque, vec!["d"; marks]);
    }
}
