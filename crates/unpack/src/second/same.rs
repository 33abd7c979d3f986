//! Two hands and one make the same of every archive.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path as Place;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::{SMALL_BYTES, Second};
use crate::UnpackError;
use crate::job::{Job, Limits, Report};
use crate::member::{Member, Writer};
use crate::stream::Stream;

#[derive(Clone, Debug)]
struct Written {
    kind: u8,
    path: String,
    link: String,
    size: usize,
    mode: u32,
}

/// Few names, so that most are written more than once and lead through each other.
fn path() -> impl Strategy<Value = String> {
    let names = |last| prop::sample::select(last);
    let folders = prop::collection::vec(names(vec!["a", "b", "c"]), 0..3);
    let last = names(vec!["a", "b", "c", "d", "a", "b", "c", "d", ".wh.a", ".wh.b", ".wh..wh..opq"]);
    (folders, last).prop_map(|(mut parts, last)| {
        parts.push(last);
        parts.join("/")
    })
}

fn written() -> impl Strategy<Value = Written> {
    let kinds = prop::sample::select(b"0000000012556".to_vec());
    let sizes = prop::sample::select(vec![0, 1, 2, 3, 300, SMALL_BYTES as usize + 1]);
    let modes = prop::sample::select(vec![0o644, 0o755, 0o400, 0o1777]);
    (kinds, path(), path(), sizes, modes).prop_map(|(kind, path, link, size, mode)| Written {
        kind,
        path,
        link,
        size,
        mode,
    })
}

fn archive(all: &[Written]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    for (number, Written { kind, path, link, size, mode }) in all.iter().enumerate() {
        let (number, size) = (number as u32, if *kind == b'0' { *size } else { 0 });
        let member = Member {
            kind: *kind,
            path: path.as_bytes(),
            link: if matches!(*kind, b'1' | b'2') { link.as_bytes() } else { b"" },
            mode: *mode,
            uid: number,
            gid: number + 1,
            mtime: (number.into(), 0),
            size: size as u64,
            records: Vec::new(),
        };
        writer.member(&member).unwrap();
        writer.content(&vec![number as u8; size]).unwrap();
        writer.pad(size as u64).unwrap();
    }
    writer.end().unwrap();
    bytes
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All that can be seen of a tree, each file with the names that it has.
fn describe(folder: &Place, tree: &mut BTreeMap<String, String>, inodes: &mut HashMap<u64, usize>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, stat) = (entry.path(), entry.metadata().unwrap());
        let next = inodes.len();
        let same = *inodes.entry(stat.ino()).or_insert(next);
        let inside = match stat.file_type() {
            kind if kind.is_file() => hash(&fs::read(&path).unwrap()),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            _ => String::new(),
        };
        // Of what no entry describes it is that of now.
        let time = Some(stat.mtime()).filter(|time| *time < 1_000_000_000);
        let looks = (stat.mode(), stat.uid(), stat.gid(), stat.nlink(), stat.rdev(), time);
        tree.insert(path_bytes(&path), format!("{looks:?} {same} {inside}"));
        if stat.is_dir() {
            describe(&path, tree, inodes);
        }
    }
}

fn path_bytes(path: &Place) -> String {
    let path = path.as_os_str().as_bytes();
    let from = path.windows(6).position(|bytes| bytes == b"/layer").unwrap();
    String::from_utf8(path[from..].to_vec()).unwrap()
}

type Unpacked = (Result<Report, UnpackError>, Vec<String>, BTreeMap<String, String>);

fn unpacked(archive: &[u8], second: Second) -> Unpacked {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("layer");
    fs::create_dir(&root).unwrap();
    let mut marked = Vec::new();
    let mut mark = |directory: BorrowedFd<'_>| -> io::Result<()> {
        let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        marked.push(path_bytes(&path));
        Ok(())
    };
    let job = Job { diff_id: format!("sha256:{}", hash(archive)), limits: Limits::default(), niceness: 0 };
    let stream = Stream::new(archive, &job).unwrap();
    let root_fd = OwnedFd::from(File::open(&root).unwrap());
    let result = crate::layer::with(stream, root_fd, &job, second, &mut mark);
    let mut tree = BTreeMap::new();
    describe(&root, &mut tree, &mut HashMap::new());
    (result, marked, tree)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever entries do to each other, it comes out as if one hand did it all: when the other makes each
    /// file at once, when it makes some together, and when none is made before somebody waits for it.
    #[test]
    fn two_hands_make_what_one_makes(all in prop::collection::vec(written(), 1..30)) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: unpacking needs root");
            return Ok(());
        }
        let archive = archive(&all);
        let alone = unpacked(&archive, Second::after(u64::MAX, 1));
        prop_assert!(!matches!(alone.0, Err(UnpackError::Io { .. })), "{:?}", alone.0);
        for together in [2, usize::MAX] {
            let both = unpacked(&archive, Second::after(0, together));
            prop_assert_eq!(&both, &alone, "{} together", together);
        }
    }
}
