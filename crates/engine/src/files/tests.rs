//! The store against a real folder.

use std::io::Read;
use std::path::Path;

use super::*;

const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn open(dir: &Path, bytes_max: u64) -> Files {
    let config = FilesConfig {
        dir: dir.to_owned(),
        bytes_max,
        file_bytes_max: 1000,
        keep_for: Duration::from_secs(60),
    };
    Files::open(config).unwrap()
}

async fn put(files: &Files, owner: &str, content: &[u8]) -> Result<StoredFile, FilesError> {
    let mut upload = files.begin(owner, None)?;
    upload.write(content).await?;
    let info = upload.finish().await?;
    assert_eq!(info.size_bytes, content.len() as u64);
    Ok(StoredFile { owner: owner.into(), id: info.id })
}

fn names(dir: &Path) -> usize {
    let folders = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    folders.map(|folder| std::fs::read_dir(folder).unwrap().count()).sum()
}

#[tokio::test]
async fn a_file_is_named_by_its_content_and_belongs_to_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), 10_000);
    let hello = put(&files, "a", b"hello").await.unwrap();
    assert_eq!(hello.id.to_string(), HELLO);
    assert!(files.get(&StoredFile { owner: "b".into(), ..hello.clone() }).is_none());
    assert_eq!(put(&files, "a", b"hello").await.unwrap(), hello);
    put(&files, "b", b"hello").await.unwrap();
    assert_eq!(files.counts(), FileCounts { files: 2, bytes: 10 });
    assert!(files.remove(&hello) && !files.remove(&hello));
    assert_eq!(files.counts(), FileCounts { files: 1, bytes: 5 });
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_never_one_that_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), 1000);
    let old = put(&files, "", &[1; 400]).await.unwrap();
    let new = put(&files, "", &[2; 400]).await.unwrap();
    let lease = files.lease(&old).unwrap();
    put(&files, "", &[3; 500]).await.unwrap();
    assert!(files.get(&old).is_some() && files.get(&new).is_none());

    let full = put(&files, "", &[4; 700]).await.unwrap_err();
    assert!(matches!(full, FilesError::Full { .. }), "{full}");
    // What could not help was not dropped for it.
    assert_eq!(files.counts(), FileCounts { files: 2, bytes: 900 });
    drop(lease);
    put(&files, "", &[4; 700]).await.unwrap();
    assert_eq!(files.counts(), FileCounts { files: 1, bytes: 700 });
    assert_eq!(names(dir.path()), 1, "what was dropped is gone from the disk");
}

#[tokio::test]
async fn there_could_be_as_much_room_as_nobody_holds() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), 2000);
    let most = || (0..=2000).rev().find(|bytes| files.could_hold(*bytes, 0));
    let (one, other) = (put(&files, "", &[1; 400]).await.unwrap(), put(&files, "", &[2; 300]).await.unwrap());
    assert_eq!(most(), Some(2000));
    let leases = [files.lease(&one).unwrap(), files.lease(&one).unwrap()];
    assert_eq!(most(), Some(1600));
    // Neither that it comes again nor that it is removed makes it anybody's less.
    put(&files, "", &[1; 400]).await.unwrap();
    assert!(files.remove(&one));
    let [first, last] = leases;
    drop(first);
    assert_eq!(most(), Some(1600));
    drop(last);
    assert!(files.remove(&other));
    assert_eq!((most(), files.counts()), (Some(2000), FileCounts::default()));
    put(&files, "", &[3; 900]).await.unwrap();
    assert_eq!(most(), Some(2000));
}

#[tokio::test]
async fn a_file_in_use_is_read_to_its_end_although_its_owner_has_removed_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), 1000);
    let file = put(&files, "", b"hello").await.unwrap();
    let lease = files.lease(&file).unwrap();
    assert!(files.remove(&file));
    assert!(files.get(&file).is_none() && files.lease(&file).is_none());
    let mut text = String::new();
    lease.open().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), names(dir.path())), ("hello", 1));
    drop(lease);
    assert_eq!((names(dir.path()), files.counts()), (0, FileCounts::default()));
}

#[tokio::test]
async fn what_is_too_long_or_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), 10_000);
    assert!(matches!(files.begin("", Some(1001)), Err(FilesError::TooLarge { most_bytes: 1000 })));
    let long = put(&files, "", &[0; 1001]).await.unwrap_err();
    assert!(matches!(long, FilesError::TooLarge { .. }), "{long}");
    let mut upload = files.begin("", Some(500)).unwrap();
    upload.write(b"half").await.unwrap();
    assert_eq!(files.counts(), FileCounts { files: 0, bytes: 500 });
    drop(upload);
    assert_eq!((names(dir.path()), files.counts()), (0, FileCounts::default()));
}

#[tokio::test]
async fn after_a_crash_whole_files_are_there_and_half_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), 10_000);
    let whole = put(&files, "o", b"whole").await.unwrap();
    let mut half = files.begin("o", None).unwrap();
    half.write(b"half").await.unwrap();
    std::mem::forget(half);
    assert_eq!(names(dir.path()), 2);
    let again = open(dir.path(), 10_000);
    assert_eq!(again.get(&whole).map(|info| info.size_bytes), Some(5));
    assert_eq!((names(dir.path()), again.counts()), (1, FileCounts { files: 1, bytes: 5 }));
}

#[tokio::test]
async fn a_file_goes_when_its_time_is_over_and_stays_when_it_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let files = open(dir.path(), 10_000);
    let file = put(&files, "", b"x").await.unwrap();
    let path = dir.path().join(folder::name_of("")).join(file.id.hex());
    let old = SystemTime::now() - Duration::from_secs(61);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let later = open(dir.path(), 10_000);
    assert!(later.get(&file).is_none());
    put(&later, "", b"x").await.unwrap();
    assert!(later.get(&file).is_some() && open(dir.path(), 10_000).get(&file).is_some());
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    assert_eq!(open(dir.path(), 10_000).counts(), FileCounts::default());
    assert_eq!(names(dir.path()), 0);
}
