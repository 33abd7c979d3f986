//! A shelf whose store keeps no trees: the books alone.

use std::io;
use std::sync::mpsc;

use super::*;
use crate::pull::Puller;
use crate::store::{BoxFuture, Deleting};
use crate::{Config, ImageConfig, NoObserver, Packing, Unpacking};

/// Keeps no trees, and removes them when it is told to.
pub(crate) struct NoTrees;

impl LayerStore for NoTrees {
    fn unpack<'a>(&'a self, _: &'a str, _: &'a unpack::Job) -> BoxFuture<'a, io::Result<Box<dyn Unpacking>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn pack<'a>(&'a self, _: &'a str, _: &'a unpack::PackJob) -> BoxFuture<'a, io::Result<Box<dyn Packing>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn remove<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Deleting>> {
        Box::pin(async { Ok(Box::pin(async { Ok(()) }) as Deleting) })
    }
}

pub(crate) fn puller() -> (tempfile::TempDir, Arc<Puller>) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path()).unwrap();
    let shelf = Shelf::open(disk, Arc::new(NoTrees), Budget::UNBOUNDED, BTreeSet::new()).unwrap();
    let puller = Puller::new(Config::new(dir.path()), shelf, Arc::new(NoObserver));
    (dir, Arc::new(puller))
}

fn keep_layer(shelf: &Arc<Shelf>) {
    let layers = vec![("a".to_owned(), KeptLayer { entries: 1, ..KeptLayer::default() })];
    shelf.announce(&layers).unwrap();
    shelf.place(layers).settle().unwrap();
}

fn record() -> ImageRecord {
    let now = Timestamp::now();
    ImageRecord {
        reference: "h.io/x:1".into(),
        owner: None,
        digest: String::new(),
        manifest_digest: String::new(),
        platform: String::new(),
        config: ImageConfig::default(),
        layers: ["a".into()].into(),
        compressed_bytes: 0,
        bytes: 0,
        pulled_at: now,
        last_used_at: now,
        resolved_at: None,
        pinned: false,
        asked_at: None,
        saved_at: Some(now),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_nobody_waits_for_while_it_is_written_down_has_its_layers() {
    let (dir, puller) = puller();
    let shelf = Arc::clone(&puller.shelf);
    let pulling = shelf.hold(vec!["a".into()]);
    keep_layer(&shelf);
    // The disk takes its time.
    let (begun, (go_on, wait)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
    let slow = Arc::clone(&shelf);
    let writing = std::thread::spawn(move || {
        let _writing = slow.writing.lock().unwrap();
        begun.0.send(()).unwrap();
        wait.recv().unwrap();
    });
    begun.1.recv().unwrap();
    let pulled = puller.keep(record()).await.unwrap();
    assert!(shelf.image(&record().key()).is_some(), "runs can have it at once");
    let durable = tokio::time::timeout(Duration::from_millis(100), pulled.is_durable()).await;
    assert!(durable.is_err(), "nothing of it is written down");
    drop((pulled, pulling));
    go_on.send(()).unwrap();
    writing.join().unwrap();
    shelf.settled().await;
    assert!(shelf.image(&record().key()).is_some() && shelf.has("a"), "an image without its layer");
    assert_eq!(std::fs::read_dir(dir.path().join("images")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_shown_while_it_goes_does_not_come_back_without_its_tree() {
    let (_dir, puller) = puller();
    let shelf = Arc::clone(&puller.shelf);
    for at in 0..200 {
        let pulling = shelf.hold(vec!["a".into()]);
        keep_layer(&shelf);
        let showing = Arc::clone(&shelf);
        let shown = tokio::task::spawn_blocking(move || showing.show("a", ShownTo::one(None)));
        tokio::time::sleep(Duration::from_micros(at * 20)).await;
        // Whoever wanted it shown has given up, and the image that had it is gone.
        drop(pulling);
        shown.await.unwrap().unwrap();
        shelf.settled().await;
        assert!(!shelf.has("a"), "there is no tree behind it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_asked_for_every_run_has_no_record_written_for_every_run() {
    use std::os::unix::fs::MetadataExt;
    let (dir, puller) = puller();
    let shelf = &puller.shelf;
    let asked = shelf.hold(vec!["a".into()]);
    keep_layer(shelf);
    puller.keep(record()).await.unwrap().is_durable().await.unwrap();
    let file = || {
        let mut entries = std::fs::read_dir(dir.path().join("images")).unwrap();
        entries.next().unwrap().unwrap().metadata().unwrap().ino()
    };
    let written = file();
    shelf.confirm(&record().key());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(file(), written);
    assert!(shelf.image(&record().key()).unwrap().resolved_at.is_some());
    drop(asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_stay_for_the_last_of_those_who_hold_them_however_they_came_to() {
    let (_dir, puller) = puller();
    let shelf = &puller.shelf;
    let pulling = shelf.hold(vec!["a".into()]);
    keep_layer(shelf);
    puller.keep(record()).await.unwrap().is_durable().await.unwrap();
    drop(pulling);
    let key = record().key();
    let [first, second] = [shelf.take(&key).unwrap(), shelf.take(&key).unwrap()];
    // The same layers under another list.
    puller.keep(record()).await.unwrap().is_durable().await.unwrap();
    drop(first);
    shelf.remove(&key).unwrap();
    assert!(shelf.has("a"), "one holds it still");
    let other = shelf.hold(vec!["b".into(), "a".into()]);
    drop(second);
    assert!(shelf.has("a"), "another does");
    drop(other);
    shelf.settled().await;
    assert!(!shelf.has("a"), "nobody does");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_record_can_not_be_removed_keeps_no_layers() {
    let (dir, puller) = puller();
    let shelf = &puller.shelf;
    let pulling = shelf.hold(vec!["a".into()]);
    keep_layer(shelf);
    puller.keep(record()).await.unwrap().is_durable().await.unwrap();
    drop(pulling);
    let images = dir.path().join("images");
    let file = std::fs::read_dir(&images).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    shelf.remove(&record().key()).unwrap_err();
    shelf.settled().await;
    assert!(shelf.image(&record().key()).is_none() && !shelf.has("a"), "its layers stay for nobody");
}
