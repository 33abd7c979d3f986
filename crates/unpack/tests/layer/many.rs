//! Layers of so many files that a second thread makes some of them.

use std::os::unix::fs::MetadataExt;

use crate::support::{Tar, as_root};

const FILES: u64 = 3000;

fn content(number: u64) -> Vec<u8> {
    // From nothing to what is just too large to be held.
    let bytes = [0, 1, 100, 5000, (64 << 10) - 1, 64 << 10, (64 << 10) + 1];
    let len = if number.is_multiple_of(100) { bytes[(number / 100 % 7) as usize] } else { number % 300 };
    (0..len).map(|place| (place ^ number) as u8).collect()
}

fn mode(number: u64) -> u32 {
    [0o644, 0o755, 0o400, 0o000, 0o1666][(number % 5) as usize]
}

#[test]
fn each_is_what_its_entry_says() {
    as_root!();
    let mut tar = Tar::new();
    for number in 0..FILES {
        let owner = number % 3 * 1000;
        tar = tar.owner(owner, owner + 1).mtime(1000 + number).mode(mode(number));
        tar = tar.file(&format!("d{}/{number}", number % 7), content(number));
    }
    let outcome = tar.unpack();
    assert_eq!(outcome.report().entries, FILES);
    for number in 0..FILES {
        let path = format!("d{}/{number}", number % 7);
        assert_eq!(std::fs::read(outcome.root().join(&path)).unwrap(), content(number), "{path}");
        let (stat, owner) = (outcome.stat(&path), (number % 3 * 1000) as u32);
        let found = (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime());
        assert_eq!(found, (mode(number), owner, owner + 1, 1000 + number as i64), "{path}");
    }
    let bytes: u64 = (0..FILES).map(|number| content(number).len() as u64).sum();
    assert_eq!(outcome.report().file_bytes, bytes);
}

#[test]
fn what_comes_later_takes_the_place_of_what_was_before() {
    as_root!();
    let mut tar = Tar::new();
    for number in 0..FILES {
        tar = tar.file(&format!("{number}"), format!("first {number}"));
        match number % 4 {
            0 => tar = tar.file(&format!("{number}"), format!("second {number}")),
            1 => tar = tar.hardlink(&format!("link{number}"), &format!("{number}")),
            2 => tar = tar.symlink(&format!("{number}"), "0"),
            _ => tar = tar.dir(&format!("{number}")).file(&format!("{number}/in"), "x"),
        }
    }
    let outcome = tar.unpack();
    outcome.report();
    for number in 0..FILES {
        match number % 4 {
            0 => assert_eq!(outcome.read(&number.to_string()), format!("second {number}")),
            1 => {
                assert_eq!(outcome.read(&format!("link{number}")), format!("first {number}"));
                assert_eq!(outcome.stat(&number.to_string()).nlink(), 2);
            }
            2 => assert!(outcome.stat(&number.to_string()).file_type().is_symlink()),
            _ => assert_eq!(outcome.read(&format!("{number}/in")), "x"),
        }
    }
}
