//! Many who want the same thing, and who may take it away.

use std::sync::atomic::Ordering;
use std::time::Duration;

use image::PullResult;
use run::Pull;

use crate::support::{Fake, Home, as_root, hex, layer, made, made_with, noise, stalled};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_first_requests_download_each_layer_once() {
    as_root!();
    let base = layer(&[("base", &noise(3 << 20))]);
    let made_x = made(&[base.clone(), layer(&[("x", &noise(1 << 20))])]);
    let fake = Fake::honest(made_x.clone()).await;
    let others: Vec<_> =
        ["a", "b", "c"].iter().map(|name| made(&[base.clone(), layer(&[("f", name)])])).collect();
    ["a", "b", "c"].iter().zip(&others).for_each(|(name, made)| fake.serve(name, made.clone()));
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    let names = ["x", "a", "b", "c"];
    let requests = (0..100).map(|at| {
        let (images, reference) = (images.clone(), format!("{}/{}", fake.host, names[at % 4]));
        tokio::spawn(async move { images.acquire(&reference, Pull::Missing).await })
    });
    let mut fetched = 0;
    for request in requests.collect::<Vec<_>>() {
        fetched += u64::from(request.await.unwrap().unwrap().fetched);
    }
    assert_eq!(fetched, 100 - home.counts.hits.load(Ordering::SeqCst));
    for layer in made_x.layers.iter().chain(others.iter().map(|made| &made.layers[1])) {
        assert_eq!(fake.gets(layer), 1, "{layer}");
    }
    assert_eq!(fake.gets("manifests"), 4);
    assert_eq!(home.store.begun.load(Ordering::SeqCst), 5);
    assert!(home.counts.coalesced.load(Ordering::SeqCst) + home.counts.hits.load(Ordering::SeqCst) == 96);
    assert_eq!(images.list().len(), 4);
    let again = images.acquire(&fake.name(), Pull::Missing).await.unwrap();
    assert!(!again.fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_stops_nothing_and_the_last_one_ends_it() {
    as_root!();
    let made = made(&[layer(&[("f", "x")])]);
    let blob = made.layers[0].clone();
    let (wanted, len) = (blob.clone(), made.blobs[&blob].len());
    let fake =
        Fake::start(made, move |path, count, _| (path.contains(&wanted) && count == 1).then(|| stalled(len)))
            .await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    let ask = || {
        let (images, reference) = (images.clone(), fake.name());
        tokio::spawn(async move { images.acquire(&reference, Pull::Missing).await })
    };
    let (first, second) = (ask(), ask());
    while fake.gets(&blob) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.abort();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(home.counts.finished.lock().unwrap().is_empty());
    second.abort();
    home.trees_become(&[]).await;
    assert_eq!(*home.counts.finished.lock().unwrap(), [PullResult::Cancelled]);
    // And it can be had by whoever comes next.
    images.acquire(&fake.name(), Pull::Missing).await.unwrap();
}

/// Asks for an image that does not come, and then, as soon as that is stuck, for one that has to come all the same.
async fn comes_meanwhile(
    home: &mut Home,
    stuck: String,
    is_stuck: impl Fn() -> bool,
    wanted: &str,
    patience: Duration,
) {
    (home.config.pull_timeout, home.config.idle_timeout) =
        (Duration::from_secs(600), Duration::from_secs(600));
    let images = home.open().await;
    let others = images.clone();
    let waits = tokio::spawn(async move { others.acquire(&stuck, Pull::Missing).await });
    while !is_stuck() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let fetched = tokio::time::timeout(patience, images.acquire(wanted, Pull::Missing)).await;
    fetched.expect("it comes while the other waits").unwrap();
    assert!(!waits.is_finished());
    waits.abort();
}

/// Whoever knows a layer's hash could offer an image that names it, at a registry that never sends it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_layer_that_another_registry_does_not_send() {
    as_root!();
    let made = made(&[layer(&[("f", "x")])]);
    let blob = made.layers[0].clone();
    let (wanted, len) = (blob.clone(), made.blobs[&blob].len());
    let slow =
        Fake::start(made.clone(), move |path, _, _| path.contains(&wanted).then(|| stalled(len))).await;
    let fake = Fake::honest(made.clone()).await;
    let mut home = Home::new(&[&slow.host, &fake.host]);
    comes_meanwhile(&mut home, slow.name(), || slow.gets(&blob) > 0, &fake.name(), Duration::from_secs(60))
        .await;
    home.trees_become(&[&hex(&made.diff_ids[0])]).await;
}

/// Nor for places that layers have which never come.
#[tokio::test(flavor = "multi_thread")]
async fn layers_that_do_not_come_take_no_place_from_those_that_do() {
    as_root!();
    let stuck = made(&[layer(&[("a", "x")]), layer(&[("b", "x")]), layer(&[("c", "x")])]);
    let blobs = stuck.layers.clone();
    let wanted: Vec<_> = blobs.iter().map(|blob| (blob.clone(), stuck.blobs[blob].len())).collect();
    let slow = Fake::start(stuck, move |path, _, _| {
        wanted.iter().find(|(blob, _)| path.contains(blob)).map(|(_, len)| stalled(*len))
    });
    let slow = slow.await;
    let fake = Fake::honest(made(&[layer(&[("f", "x")])])).await;
    let mut home = Home::new(&[&slow.host, &fake.host]);
    home.config.parallel_downloads = 2;
    comes_meanwhile(
        &mut home,
        slow.name(),
        || blobs.iter().filter(|blob| slow.gets(blob) > 0).count() >= 2,
        &fake.name(),
        Duration::from_secs(60),
    )
    .await;
}

/// And so could whoever has a repository at the same registry: an image that claims another blob to be the layer.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_another_blob_that_claims_to_be_the_layer() {
    as_root!();
    let honest = made(&[layer(&[("f", "x")])]);
    let mut forged = made_with(
        &[layer(&[("g", &noise(1000))])],
        |config| config["rootfs"]["diff_ids"][0] = honest.diff_ids[0].clone().into(),
        |_| {},
    );
    forged.diff_ids.clone_from(&honest.diff_ids);
    let blob = forged.layers[0].clone();
    let (wanted, len) = (blob.clone(), forged.blobs[&blob].len());
    // It stands for one of gigabytes.
    let fake =
        Fake::start(honest.clone(), move |path, _, _| path.contains(&wanted).then(|| stalled(len))).await;
    fake.serve("forged", forged);
    let mut home = Home::new(&[&fake.host]);
    comes_meanwhile(
        &mut home,
        format!("{}/forged", fake.host),
        || fake.gets(&blob) > 0,
        &fake.name(),
        Duration::from_secs(10),
    )
    .await;
    home.trees_become(&[&hex(&honest.diff_ids[0])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_an_image_leaves_what_others_need() {
    as_root!();
    let base = layer(&[("base", "x")]);
    let (one, two) = (made(&[base.clone(), layer(&[("one", "")])]), made(&[base, layer(&[("two", "")])]));
    let (base, one_top, two_top) = (hex(&one.diff_ids[0]), hex(&one.diff_ids[1]), hex(&two.diff_ids[1]));
    let fake = Fake::honest(one).await;
    fake.serve("two", two);
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    let lease = images.acquire(&fake.name(), Pull::Missing).await.unwrap();
    let two_name = format!("{}/two", fake.host);
    drop(images.acquire(&two_name, Pull::Missing).await.unwrap());
    assert!(images.get(&fake.name()).unwrap().in_use);

    images.remove(&two_name).await.unwrap();
    assert!(images.get(&two_name).is_err() && images.remove(&two_name).await.is_err());
    home.trees_become(&[&base, &one_top]).await;
    images.remove(&fake.name()).await.unwrap();
    // A run still looks at it, also through a copy of the lease.
    let copy = lease.clone();
    drop(lease);
    home.trees_become(&[&base, &one_top]).await;
    drop(copy);
    home.trees_become(&[]).await;
    assert_eq!(images.total_bytes(), 0);
    assert!(!home.tree(&two_top).exists());
    images.acquire(&two_name, Pull::Missing).await.unwrap();
    home.trees_become(&[&base, &two_top]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_half_done_is_removed_at_the_next_start() {
    as_root!();
    let made = made(&[layer(&[("f", "x")])]);
    let fake = Fake::honest(made.clone()).await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    drop(images.acquire(&fake.name(), Pull::Missing).await.unwrap());
    images.close().await;
    drop(images);
    // As a layer is between its record's two words, and an image whose layer was never finished.
    let half = "0".repeat(64);
    let records = home.folder.path().join("records");
    std::fs::write(
        records.join("layers").join(format!("{half}.json")),
        format!(r#"{{"name":"{half}","kept":null}}"#),
    )
    .unwrap();
    std::fs::create_dir(home.tree(&half)).unwrap();
    let images = home.open().await;
    home.trees_become(&[&hex(&made.diff_ids[0])]).await;
    assert_eq!(images.list().len(), 1);
    images.close().await;
    drop(images);
    let record = records.join("layers").join(format!("{}.json", hex(&made.diff_ids[0])));
    std::fs::remove_file(record).unwrap();
    let images = home.open().await;
    assert!(images.list().is_empty());
    images.acquire(&fake.name(), Pull::Missing).await.unwrap();
}
