//! What stays, what goes, and what a name is taken to mean.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image::{Archive, Budget, Eviction, ImageError, Images, Whose};
use run::Pull;

use crate::support::{Fake, Home, Made, as_root, digest, hex, layer, made, made_with, noise};

const MEGABYTE: u64 = 1 << 20;

/// An image of about that many megabytes.
fn of_megabytes(name: &str, megabytes: usize) -> Made {
    made(&[layer(&[(name, &noise(megabytes << 20))])])
}

async fn four_images() -> Fake {
    let fake = Fake::honest(of_megabytes("x", 1)).await;
    for name in ["a", "b", "c", "d"] {
        fake.serve(name, of_megabytes(name, 1));
    }
    fake
}

/// As one who waits until it is durable.
async fn get(images: &Images, fake: &Fake, name: &str) -> image::Lease {
    let name = format!("{}/{name}", fake.host);
    images.acquire_with_progress(None, &name, Pull::Missing, &mut |_| {}).await.unwrap()
}

/// Names without their registry and tag.
fn here(images: &Images) -> Vec<String> {
    let short = |name: String| name.rsplit('/').next().unwrap().split(':').next().unwrap().to_owned();
    let mut names: Vec<_> = images.list().into_iter().map(|image| short(image.reference)).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_longest_ago_goes_when_there_is_too_much() {
    as_root!();
    let fake = four_images().await;
    let mut home = Home::new(&[&fake.host]);
    home.config.budget =
        // What is to come is taken to be three times as large as it travels.
        Budget { high_bytes: 5 * MEGABYTE, low_bytes: 5 * MEGABYTE, free_bytes: 0, free_inodes: 0 };
    let images = home.open().await;
    for name in ["a", "b", "c"] {
        drop(get(&images, &fake, name).await);
    }
    // Used again, so it is not the one that goes.
    drop(get(&images, &fake, "a").await);
    assert_eq!(here(&images), ["a", "b", "c"]);
    let lease = get(&images, &fake, "d").await;
    assert_eq!(here(&images), ["a", "c", "d"]);
    assert!(images.total_bytes() <= 5 * MEGABYTE);
    assert!(home.counts.evicted.lock().unwrap().iter().all(|why| *why == Eviction::Limit));
    // What went can be had again.
    drop(lease);
    assert!(get(&images, &fake, "b").await.fetched);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pinned_or_in_use_stays_however_full_it_is() {
    as_root!();
    let fake = four_images().await;
    let mut home = Home::new(&[&fake.host]);
    home.config.budget = Budget { high_bytes: 1, low_bytes: 1, free_bytes: 0, free_inodes: 0 };
    home.config.pinned = vec![format!("{}/c", fake.host)];
    let images = home.open().await;
    let used = get(&images, &fake, "a").await;
    images.pin(&format!("{}/b", fake.host), true).await.unwrap_err();
    let pinned = get(&images, &fake, "b").await;
    images.pin(&pinned.reference, true).await.unwrap();
    drop(pinned);
    drop(get(&images, &fake, "c").await);
    drop(get(&images, &fake, "d").await);
    drop(get(&images, &fake, "x").await);
    assert_eq!(here(&images), ["a", "b", "c", "x"]);
    assert!(images.list().iter().filter(|image| image.pinned).count() == 2);
    assert!(images.get(&used.reference).unwrap().in_use);

    // A pin outlives the server; a lease doesn't.
    images.close().await;
    drop((used, images));
    let images = home.open().await;
    drop(get(&images, &fake, "d").await);
    assert_eq!(here(&images), ["b", "c", "d"]);
    images.pin(&format!("{}/b", fake.host), false).await.unwrap();
    drop(get(&images, &fake, "a").await);
    assert_eq!(here(&images), ["a", "c"]);
}

/// A manifest costs its author a line, whatever it claims.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_claims_to_be_large_has_no_other_image_go() {
    as_root!();
    let fake = four_images().await;
    let huge = |manifest: &mut serde_json::Value| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"] = vec![layer; 9].into();
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["size"] = (9_u64 << 30).into();
        }
    };
    let ids = |config: &mut serde_json::Value| {
        let id = config["rootfs"]["diff_ids"][0].clone();
        config["rootfs"]["diff_ids"] = vec![id; 9].into();
    };
    fake.serve("huge", made_with(&[layer(&[("f", "x")])], ids, huge));
    let mut home = Home::new(&[&fake.host]);
    home.config.budget = Budget { high_bytes: 40 << 30, low_bytes: 38 << 30, free_bytes: 0, free_inodes: 0 };
    let images = home.open().await;
    for name in ["a", "b", "c"] {
        drop(get(&images, &fake, name).await);
    }
    let error = images.acquire(&format!("{}/huge", fake.host), Pull::Missing).await.unwrap_err();
    assert_eq!(here(&images), ["a", "b", "c"], "{error:?}");
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_too_large_as_soon_as_its_first_layers_are() {
    as_root!();
    let layers: Vec<_> = (0..8).map(|at| layer(&[(&format!("f{at}"), &"x".repeat(1 << 20))])).collect();
    let fake = Fake::honest(made(&layers)).await;
    let mut home = Home::new(&[&fake.host]);
    home.config.parallel_layers = 1;
    home.config.limits.image_bytes = 2 * MEGABYTE + 1;
    let error = crate::support::fails(&home, &fake.name()).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error:?}");
    let begun = home.store.begun.load(Ordering::SeqCst);
    assert!(begun <= 3, "{begun} layers were unpacked of an image that may have two");
}

/// What `always` has asked about is not what came from a file meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_came_from_a_file_is_not_taken_for_the_registrys() {
    as_root!();
    let (first, loaded) = (of_megabytes("old", 1), made(&[layer(&[("loaded", "x")])]));
    let (asked, answer) = (std::sync::mpsc::sync_channel::<()>(1), std::sync::mpsc::sync_channel::<()>(1));
    let (tell, hear) = (std::sync::Mutex::new(asked.0), std::sync::Mutex::new(answer.1));
    // The first GET of the tag is let through; the HEAD of `always` waits until the file has been loaded.
    let fake = Fake::start(first.clone(), move |path, count, _| {
        if path.ends_with("manifests/latest") && count == 1 && !FIRST.swap(false, Ordering::SeqCst) {
            tell.lock().unwrap().send(()).unwrap();
            hear.lock().unwrap().recv().unwrap();
        }
        None
    })
    .await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    let old = images.acquire(&fake.name(), Pull::Missing).await.unwrap().digest;
    let (others, name) = (images.clone(), fake.name());
    let always = tokio::spawn(async move { others.acquire(&name, Pull::Always).await });
    tokio::task::spawn_blocking(move || asked.1.recv().unwrap()).await.unwrap();
    let archive = home.folder.path().join("layout");
    write_layout(&archive, &loaded);
    images.load(Archive::Path(archive), Some(&fake.name()), &mut |_| {}).await.unwrap();
    answer.0.send(()).unwrap();
    let lease = always.await.unwrap().unwrap();
    assert_eq!(lease.digest, old, "that is what the registry says");
}

static FIRST: AtomicBool = AtomicBool::new(true);

fn write_layout(folder: &Path, made: &Made) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let manifest = digest(&made.manifest);
    for (name, bytes) in made.blobs.iter().chain([(&manifest, &made.manifest)]) {
        fs::write(blobs.join(hex(name)), bytes).unwrap();
    }
    let entry =
        serde_json::json!({"mediaType": made.media_type, "digest": manifest, "size": made.manifest.len()});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layer_that_was_begun_first_syncs_for_all() {
    as_root!();
    let layers: Vec<_> = (0..5).map(|at| layer(&[("x", &noise(1000 * (5 - at) + 7))])).collect();
    let fake = Fake::honest(made(&layers)).await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    drop(get(&images, &fake, "x").await);
    // What the disk can't write it says to those who were there before it was written.
    let (synced, begun_dry) = (home.store.synced.lock().unwrap(), home.store.begun_dry.get());
    assert!(matches!(synced[..], [number] if Some(&number) < begun_dry), "{synced:?} of {begun_dry:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_images_share_are_counted_once_and_told_apart() {
    as_root!();
    let base = layer(&[("base", &noise(1 << 20))]);
    let fake = Fake::honest(made(&[base.clone(), layer(&[("x", &noise(1000))])])).await;
    fake.serve("a", made(&[base, layer(&[("a", &noise(2000))])]));
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    drop(get(&images, &fake, "x").await);
    let alone = images.get(&fake.name()).unwrap();
    assert_eq!((alone.bytes, alone.own_bytes), (MEGABYTE + 1000, MEGABYTE + 1000));
    drop(get(&images, &fake, "a").await);
    let shared = images.get(&fake.name()).unwrap();
    assert_eq!((shared.bytes, shared.own_bytes), (MEGABYTE + 1000, 1000));
    assert!((MEGABYTE..MEGABYTE + 8 * 4096).contains(&images.total_bytes()), "{}", images.total_bytes());
}

/// Whoever guesses a file could otherwise load it and see whether somebody has it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_that_an_image_of_anothers_alone_has_the_same_layer() {
    as_root!();
    let home = Home::new(&[]);
    let images = home.open().await;
    let [alice, bob] = ["alice", "bob"].map(|name| run::PrincipalName::parse(name).unwrap());
    let archive = home.folder.path().join("layout");
    write_layout(&archive, &made(&[layer(&[("guessed", "secret")])]));
    let name = "localhost/x";
    let load = async |who| {
        images.load_for(who, Archive::Path(archive.clone()), Some(name), &mut |_| {}).await.unwrap();
    };
    load(Some(&alice)).await;
    let own = |who| images.get_of(Whose::Own(who), name).unwrap().own_bytes;
    let alone = own(&alice);
    load(Some(&bob)).await;
    assert_eq!((own(&alice), own(&bob)), (alone, alone));
    load(None).await;
    assert_eq!((own(&alice), own(&bob)), (0, 0), "what is everybody's is no secret");
    assert_eq!(images.get(name).unwrap().own_bytes, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_is_here_under_any_name_is_not_asked_for() {
    as_root!();
    let made = of_megabytes("x", 1);
    let fake = Fake::honest(made.clone()).await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    let digest = images.acquire(&fake.name(), Pull::Missing).await.unwrap().digest.unwrap();
    let asked = fake.all();
    let name = format!("{}/x@{digest}", fake.host);
    for pull in [Pull::Never, Pull::Missing, Pull::Always] {
        let lease = images.acquire(&name, pull).await.unwrap();
        assert_eq!((lease.digest.as_deref(), lease.fetched), (Some(digest.as_str()), false));
    }
    assert_eq!(fake.all(), asked);
    // However it is called besides, it is one image.
    for at in 0..20 {
        let name = format!("{}/x:any-{at}@{digest}", fake.host);
        assert_eq!(images.acquire(&name, Pull::Never).await.unwrap().digest.as_ref(), Some(&digest));
    }
    assert_eq!((images.list().len(), fake.all()), (2, asked));
    // Under another repository it may be somebody else's, and private.
    let other = format!("{}/y@{digest}", fake.host);
    let error = images.acquire(&other, Pull::Never).await.unwrap_err();
    assert!(matches!(error, ImageError::NotPresent { .. }), "{error:?}");
    home.trees_become(&[&hex(&made.diff_ids[0])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_asked_about_again_after_its_life_and_nobody_waits_for_it() {
    as_root!();
    let fake = Fake::honest(of_megabytes("old", 1)).await;
    let mut home = Home::new(&[&fake.host]);
    home.config.tag_life = Some(Duration::from_millis(300));
    let images = home.open().await;
    let old = images.acquire(&fake.name(), Pull::Missing).await.unwrap().digest;
    fake.serve("x", of_megabytes("new", 1));
    let asked = fake.all();
    for _ in 0..50 {
        assert_eq!(images.acquire(&fake.name(), Pull::Missing).await.unwrap().digest, old);
    }
    assert_eq!(fake.all(), asked, "within its life nobody is asked");
    tokio::time::sleep(Duration::from_millis(400)).await;
    // Those who come at the same time have one of them ask.
    for _ in 0..20 {
        assert_eq!(images.acquire(&fake.name(), Pull::Never).await.unwrap().digest, old);
    }
    assert_eq!(fake.all(), asked, "never is never");
    let lease = images.acquire(&fake.name(), Pull::Missing).await.unwrap();
    assert!(!lease.fetched && lease.digest == old);
    for _ in 0..100 {
        if images.get(&fake.name()).unwrap().digest != old.clone().unwrap() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(images.acquire(&fake.name(), Pull::Missing).await.unwrap().digest, old);
    assert_eq!(fake.count("HEAD", "manifests/latest"), 1);
}
