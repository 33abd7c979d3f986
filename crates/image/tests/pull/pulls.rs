//! How it should be, with a real registry.

use std::sync::atomic::Ordering;

use image::{ImageError, LayerState, Progress, Rootfs};
use run::Pull;
use serde_json::json;

use crate::support::{
    Fake, Home, Made, OCI_INDEX, OCI_MANIFEST, Registry, as_root, digest, hex, layer, made, made_with,
};

fn layers(lease: &image::Lease) -> Vec<String> {
    match &lease.rootfs {
        Rootfs::Layers(layers) => layers.to_vec(),
        Rootfs::Host => panic!("not the host"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_once_and_then_is_here() {
    as_root!();
    let Some(registry) = Registry::start().await else { return };
    let made = made(&[layer(&[("a", "low"), ("b", "low")]), layer(&[("b", "high")])]);
    registry.push("team/app", "v1", &made).await;
    let home = Home::new(&[&registry.host]);
    let images = home.open().await;
    let reference = format!("{}/team/app:v1", registry.host);

    let mut steps = Vec::new();
    let lease = images
        .acquire_with_progress(None, &reference, Pull::Missing, &mut |step| steps.push(step))
        .await
        .unwrap();

    assert_eq!(lease.reference, reference);
    assert_eq!(lease.digest, Some(digest(&made.manifest)));
    assert_eq!(layers(&lease), [hex(&made.diff_ids[1]), hex(&made.diff_ids[0])]);
    assert_eq!(
        (home.read(&layers(&lease)[0], "b"), home.read(&layers(&lease)[1], "b")),
        ("high".into(), "low".into())
    );
    assert_eq!((lease.config.env.join(" "), lease.config.cmd.join(" ")), ("A=b".into(), "sh".into()));
    assert_eq!((lease.config.workdir.as_str(), lease.config.user.as_str()), ("/w", "7"));
    assert!(
        matches!(steps[..2], [Progress::Resolving { .. }, Progress::Resolved { layers: 2, .. }]),
        "{steps:?}"
    );
    assert!(steps.contains(&Progress::Layer { layer: 1, state: LayerState::Done }));
    assert!(matches!(steps.last(), Some(Progress::Ready { .. })));

    // Without its registry the image is still here, also after a restart, and found by either policy.
    drop((registry, images, lease));
    let images = home.open().await;
    images.acquire(&reference, Pull::Missing).await.unwrap();
    images.acquire(&reference, Pull::Never).await.unwrap();
    assert_eq!(home.counts.hits.load(Ordering::SeqCst), 2);
    let listed = images.list();
    assert_eq!((listed.len(), listed[0].layers, listed[0].bytes), (1, 2, 10));
    assert!(listed[0].compressed_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_layer_has_the_processors_before_the_others() {
    as_root!();
    let Some(registry) = Registry::start().await else { return };
    let large: String = (0..10_000).map(|number: u32| number.to_string()).collect();
    let made = made(&[layer(&[("a", "small")]), layer(&[("b", large.as_str())]), layer(&[("c", "small")])]);
    registry.push("x", "latest", &made).await;
    let home = Home::new(&[&registry.host]);
    home.open().await.acquire(&format!("{}/x", registry.host), Pull::Missing).await.unwrap();

    let niceness = home.store.niceness.lock().unwrap().clone();
    let of = |at: usize| niceness[&hex(&made.diff_ids[at])];
    assert_eq!(of(1), 0);
    assert!(of(0) > 0 && of(2) > 0, "{niceness:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_decide_when_the_registry_is_asked() {
    as_root!();
    let Some(registry) = Registry::start().await else { return };
    let (old, new) = (made(&[layer(&[("f", "old")])]), made(&[layer(&[("f", "new")])]));
    registry.push("x", "latest", &old).await;
    let home = Home::new(&[&registry.host]);
    let images = home.open().await;
    let reference = format!("{}/x", registry.host);

    let error = images.acquire(&reference, Pull::Never).await.unwrap_err();
    assert!(matches!(error, ImageError::NotPresent { .. }), "{error:?}");
    images.acquire(&reference, Pull::Missing).await.unwrap();
    registry.push("x", "latest", &new).await;
    let held = images.acquire(&reference, Pull::Missing).await.unwrap();
    assert_eq!(held.digest, Some(digest(&old.manifest)));
    let moved = images.acquire(&reference, Pull::Always).await.unwrap();
    assert_eq!(moved.digest, Some(digest(&new.manifest)));
    assert_eq!(home.read(&layers(&moved)[0], "f"), "new");
    // Nobody asks for the old one any more, but somebody still uses it.
    home.trees_become(&[&hex(&old.diff_ids[0]), &hex(&new.diff_ids[0])]).await;
    drop(held);
    home.trees_become(&[&hex(&new.diff_ids[0])]).await;

    let by_digest = format!("{}/x@{}", registry.host, digest(&old.manifest));
    let lease = images.acquire(&by_digest, Pull::Missing).await.unwrap();
    assert_eq!(home.read(&layers(&lease)[0], "f"), "old");
    let missing = format!("{}/x:none", registry.host);
    assert!(matches!(images.acquire(&missing, Pull::Missing).await, Err(ImageError::NotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_tag_costs_one_head() {
    as_root!();
    let fake = Fake::honest(made(&[layer(&[("f", "x")])])).await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    images.acquire(&fake.name(), Pull::Missing).await.unwrap();
    assert_eq!((fake.all(), fake.gets("manifests")), (3, 1));
    images.acquire(&fake.name(), Pull::Always).await.unwrap();
    assert_eq!((fake.all(), fake.count("HEAD", "manifests")), (4, 1));
}

fn index(of: &Made, entries: &serde_json::Value) -> Made {
    let manifest =
        serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}))
            .unwrap();
    let mut made = Made { media_type: OCI_INDEX.into(), manifest, ..of.clone() };
    // Manifests below an index are found by their digests.
    made.blobs.insert(digest(&of.manifest), of.manifest.clone());
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_for_this_machine() {
    as_root!();
    let ours = made(&[layer(&[("f", "ours")])]);
    let architecture = image::Platform::default().architecture;
    let entry = |os: &str, architecture: &str, digest: &str| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": {"os": os, "architecture": architecture}});
    let nobody = format!("sha256:{}", "0".repeat(64));
    let good = index(
        &ours,
        &json!([
            entry("unknown", "unknown", &nobody),
            entry("windows", &architecture, &nobody),
            entry("linux", &architecture, &digest(&ours.manifest))
        ]),
    );
    let fake = Fake::honest(good.clone()).await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    let lease = images.acquire(&fake.name(), Pull::Missing).await.unwrap();
    assert_eq!(lease.digest, Some(digest(&good.manifest)));

    fake.serve("other", index(&ours, &json!([entry("linux", "s390x", &nobody)])));
    let error = images.acquire(&format!("{}/other", fake.host), Pull::Missing).await.unwrap_err();
    assert!(error.to_string().contains("only for linux/s390x"), "{error}");

    fake.serve("single", made_with(&[], |config| config["architecture"] = "s390x".into(), |_| {}));
    let error = images.acquire(&format!("{}/single", fake.host), Pull::Missing).await.unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{error:?}");

    let mut endless = index(&ours, &json!([]));
    for _ in 0..4 {
        let mut entry = entry("linux", &architecture, &digest(&endless.manifest));
        entry["mediaType"] = OCI_INDEX.into();
        let inner = endless.manifest.clone();
        endless = index(&ours, &json!([entry]));
        endless.blobs.insert(digest(&inner), inner);
    }
    fake.serve("endless", endless);
    assert!(images.acquire(&format!("{}/endless", fake.host), Pull::Missing).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_comes_twice_has_two_trees_and_an_empty_one_none() {
    as_root!();
    let (twice, between, empty) = (layer(&[("f", "1")]), layer(&[("f", "2")]), layer(&[]));
    let made = made(&[twice.clone(), empty.clone(), between, empty, twice]);
    let fake = Fake::honest(made.clone()).await;
    let home = Home::new(&[&fake.host]);
    let lease = home.open().await.acquire(&fake.name(), Pull::Missing).await.unwrap();
    let (first, middle) = (hex(&made.diff_ids[0]), hex(&made.diff_ids[2]));
    assert_eq!(layers(&lease), [format!("{first}-1"), middle, first]);
    assert_eq!(home.read(&layers(&lease)[0], "f"), "1");
}

/// Bazel, ko and jib write layers like this; without the fix-up `/tmp` would be closed to all but root.
#[tokio::test(flavor = "multi_thread")]
async fn directories_that_a_layer_implies_keep_their_looks() {
    as_root!();
    let made =
        made(&[layer(&[("tmp/", ""), ("etc/passwd", "x")]), layer(&[("tmp/app", "x"), ("etc/app", "x")])]);
    let fake = Fake::honest(made.clone()).await;
    let home = Home::new(&[&fake.host]);
    let images = home.open().await;
    let lease = images.acquire(&fake.name(), Pull::Missing).await.unwrap();
    let names = layers(&lease);
    assert_eq!(names[1..], [hex(&made.diff_ids[1]), hex(&made.diff_ids[0])]);
    let mode = |layer: &str, path: &str| {
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(home.tree(layer).join(path)).unwrap())
            & 0o7777
    };
    assert_eq!((mode(&names[1], "tmp"), mode(&names[0], "tmp")), (0o755, 0o1777));
    drop(lease);
    images.remove(&fake.name()).await.unwrap();
    home.trees_become(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_s_own_programs_are_an_image_only_where_allowed() {
    let mut home = Home::new(&[]);
    let error = home.open().await.acquire("host", Pull::Missing).await.unwrap_err();
    assert!(error.to_string().contains("--allow-host-image"), "{error}");
    home.config.dir = home.folder.path().join("other");
    home.config.host_image = true;
    let lease = home.open().await.acquire("host", Pull::Always).await.unwrap();
    assert_eq!((lease.rootfs, lease.digest), (Rootfs::Host, None));
}
