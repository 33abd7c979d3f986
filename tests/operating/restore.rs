//! What `sandglass restore` takes and what it refuses: an archive may be cut off, damaged, newer, or made by somebody
//! who wants their own files in the server's places.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

use sha2::{Digest, Sha256};
use support::{Daemon, Folder, json, tool};
use tar::{Archive, Builder, EntryType, Header};

use super::backup::{restored, sandglass_on};

/// What an archive has: a name, of what kind it is, where it leads to if it is a link, and its bytes.
type Entries = Vec<(String, EntryType, String, Vec<u8>)>;

fn entries(archive: &[u8]) -> Entries {
    let mut archive = Archive::new(archive);
    let read = archive.entries().expect("an archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read an entry");
        let name = entry.path().expect("a name").display().to_string();
        (name, EntryType::Regular, String::new(), bytes)
    });
    read.collect()
}

fn packed(entries: &Entries) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, kind, link, bytes) in entries {
        let mut header = Header::new_gnu();
        // As they are: the library would refuse names that lead elsewhere.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, &bytes[..]).expect("append an entry");
    }
    archive.into_inner().expect("an archive")
}

/// The same with sums that are right: whoever makes an archive can make them, too.
fn summed(mut entries: Entries) -> Vec<u8> {
    let line = |(name, _, _, bytes): &(String, EntryType, String, Vec<u8>)| {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}  {name}\n")
    };
    let last = entries.pop().expect("sums");
    let sums: String = entries.iter().map(line).collect();
    entries.push((last.0, last.1, last.2, sums.into_bytes()));
    packed(&entries)
}

/// A backup of a server with a key and a run.
fn whole() -> Vec<u8> {
    let builder = Daemon::builder().host_image();
    let admin = builder.key(&["operator", "--scope", "admin,run"]);
    let daemon = builder.start();
    let request = daemon.request("POST", "/runs").key(&admin).header("Prefer", "wait=60");
    request.json(&json!({ "image": "host", "cmd": "true" })).send().expect(200);
    daemon.request("GET", "/backup").key(&admin).send().body
}

#[track_caller]
fn assert_refused(what: &str, archive: &[u8], words: &str) {
    let folder = Folder::new();
    let (path, data_dir) = (folder.join("archive"), folder.join("data"));
    std::fs::write(&path, archive).expect("write an archive");
    let done = sandglass_on(&["restore", &path.display().to_string()], &data_dir);
    assert_ne!(done.code(), Some(0), "{what} is restored");
    assert!(done.stderr_text().contains(words), "{what}: {}", done.stderr_text());
    let left = support::Finished::output(
        &tool("find"),
        &[&folder.path().display().to_string(), "!", "-type", "d", "-printf", "%P\n"],
    );
    let mut left: Vec<_> = left.lines().filter(|path| *path != "data/keys/lock").collect();
    left.sort_unstable();
    assert_eq!(left, ["archive"], "{what} leaves something");
}

#[test]
fn what_is_no_whole_backup_is_refused_and_leaves_nothing() {
    let whole = whole();
    assert_refused("nothing", b"", "empty");
    assert_refused("text", &[b'x'; 2000], "read the backup");
    let end = whole.len();
    for cut in [512, 700, 1024, 1300, end / 3, end / 2, end - 4096, end - 2048, end - 1536, end - 1025] {
        assert_refused(&format!("one cut off at {cut} of {end}"), &whole[..cut], "backup");
    }
    let mut entries = entries(&whole);
    assert_eq!(entries.len(), 5);
    entries.pop();
    assert_refused("one without sums", &packed(&entries), "it ends without SHA256SUMS");
}

#[test]
fn a_backup_in_which_one_bit_has_changed_is_refused() {
    let whole = entries(&whole());
    for (place, name) in
        [(0, "sandglass.json"), (1, "keys/keys.json"), (2, "records/principals.json"), (3, "runs/runs.redb")]
    {
        let mut damaged = whole.clone();
        assert_eq!(damaged[place].0, name);
        // In a number of the version, of a hash or of a count: what has it can still be read.
        let bytes = &mut damaged[place].3;
        let digit = bytes.iter().rposition(u8::is_ascii_digit).expect("a digit");
        bytes[digit] ^= 1;
        assert_refused(name, &packed(&damaged), &format!("damaged: {name} is not what its sum"));
    }
}

#[test]
fn a_backup_of_a_format_to_come_is_refused_by_its_number() {
    let mut newer = entries(&whole());
    newer[0].3 = br#"{"format":2,"version":"9.9.9","more":true}"#.to_vec();
    assert_refused("a newer archive", &summed(newer), "format 2, and this version knows 1; version 9.9.9");
    let mut newer = entries(&whole());
    newer[1].3 = br#"{"version":2,"keys":[]}"#.to_vec();
    assert_refused("one with newer keys", &summed(newer), "of version 2");
    let mut foreign = entries(&whole());
    foreign[3].3 = b"SQLite format 3\0".repeat(1000);
    assert_refused("one with other runs", &summed(foreign), "read the runs of the backup");
}

/// By hand, as somebody would who wants to have their own files where the server's are, or elsewhere.
#[test]
fn a_backup_with_more_in_it_than_a_backup_has_is_refused() {
    let whole = entries(&whole());
    let with = |place: usize, name: &str, kind: EntryType, link: &str, bytes: &[u8]| {
        let mut entries = whole.clone();
        entries.insert(place, (name.into(), kind, link.into(), bytes.to_vec()));
        summed(entries)
    };
    let file = EntryType::Regular;
    for name in
        ["etc/passwd", "../outside", "runs/../../outside", "/tmp/outside", "keys/registries.json", "./x"]
    {
        assert_refused(name, &with(1, name, file, "", b"x"), "no part of one");
    }
    for (kind, words) in [
        (EntryType::Symlink, "no plain file"),
        (EntryType::Link, "no plain file"),
        (EntryType::Directory, "no plain file"),
        (EntryType::Char, "no plain file"),
        (EntryType::Fifo, "no plain file"),
    ] {
        let mut entries = whole.clone();
        entries[3] = (entries[3].0.clone(), kind, "/etc/passwd".into(), Vec::new());
        assert_refused(&format!("{kind:?}"), &summed(entries), words);
        assert_refused(&format!("a folder by {kind:?}"), &with(1, "runs", kind, "/etc", b""), words);
    }
    assert_refused("keys twice", &with(2, "keys/keys.json", file, "", b"{}"), "\"keys/keys.json\" twice");
    let mut behind = whole.clone();
    behind.push(("runs/runs.redb".into(), file, String::new(), b"x".to_vec()));
    assert_refused("more behind its end", &packed(&behind), "behind its end");
    let mut foreign = whole.clone();
    foreign.remove(0);
    assert_refused(
        "one that does not say what it is",
        &summed(foreign),
        "does not begin with sandglass.json",
    );
    let mut empty = whole.clone();
    empty.remove(3);
    assert_refused("one without runs", &summed(empty), "the backup has no runs");
}

#[test]
fn a_data_directory_that_has_something_keeps_it() {
    let folder = Folder::new();
    let archive = folder.join("archive");
    std::fs::write(&archive, whole()).expect("write an archive");
    let words = ["restore", &archive.display().to_string()];
    let refused = |data_dir: &Path| {
        let done = sandglass_on(&words, data_dir);
        assert_ne!(done.code(), Some(0));
        assert!(done.stderr_text().contains("is there already"), "{}", done.stderr_text());
    };
    // One that a server uses.
    let daemon = Daemon::start();
    let id = daemon.run_async(&json!({ "image": "host", "cmd": "echo", "args": ["mine"] }));
    daemon.wait_for_state(&id, "finished");
    refused(&daemon.data_dir());
    assert_eq!(daemon.show(&id)["stdout"], "mine\n");
    // One that has keys and no runs, and one that was restored before.
    let builder = Daemon::builder();
    builder.key(&["alice"]);
    refused(&builder.data_dir());
    let builder = restored(&archive);
    refused(&builder.data_dir());
}

#[test]
fn a_link_in_the_way_is_not_followed() {
    let folder = Folder::new();
    let (archive, data_dir, victim) = (folder.join("archive"), folder.join("data"), folder.join("victim"));
    std::fs::write(&archive, whole()).expect("write an archive");
    std::fs::write(&victim, "mine").expect("write a file");
    std::fs::create_dir_all(data_dir.join("runs")).expect("make a folder");
    symlink(&victim, data_dir.join("runs/runs.restored")).expect("make a link");
    let done = sandglass_on(&["restore", &archive.display().to_string()], &data_dir);
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    assert_eq!(std::fs::read_to_string(&victim).expect("read it"), "mine");
    assert!(data_dir.join("runs/runs.redb").is_file() && !data_dir.join("runs/runs.restored").exists());
    // Also one that leads nowhere yet is something in the way.
    let data_dir = folder.join("other");
    std::fs::create_dir_all(data_dir.join("runs")).expect("make a folder");
    symlink(folder.join("nowhere"), data_dir.join("runs/runs.redb")).expect("make a link");
    let done = sandglass_on(&["restore", &archive.display().to_string()], &data_dir);
    assert!(done.stderr_text().contains("is there already"), "{}", done.stderr_text());
    assert!(!folder.join("nowhere").exists());
}
