//! Mirrors that have other things than they should.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::IntoResponse;
use image::Mirror;
use run::Pull;

use crate::support::{Fake, Home, as_root, digest, layer, made};

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_sends_another_manifest_than_it_says_is_left_alone() {
    as_root!();
    let image = made(&[layer(&[("f", "x")])]);
    let registry = Fake::honest(image.clone()).await;
    let (lies, promised) = (Arc::new(AtomicBool::new(false)), digest(&image.manifest));
    let is_lying = Arc::clone(&lies);
    let mirror = Fake::start(image.clone(), move |path, _, _| {
        let asked = path.contains("/manifests/");
        asked.then(|| is_lying.store(true, Ordering::SeqCst));
        asked.then(|| ([("docker-content-digest", promised.clone())], "{}").into_response())
    })
    .await;
    let mut home = Home::new(&[&registry.host, &mirror.host]);
    home.config.mirrors = vec![Mirror::parse(&format!("{}={}", registry.host, mirror.host)).unwrap()];
    let images = home.open().await;
    let lease = images.acquire(&registry.name(), Pull::Missing).await.unwrap();
    assert_eq!(lease.digest, Some(digest(&image.manifest)));
    assert!(lies.load(Ordering::SeqCst) && registry.gets("manifests") == 1);
    // Everything after that came from the registry, which has kept its word.
    assert_eq!(mirror.all(), 1);
    assert_eq!(registry.gets(&image.layers[0]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_whose_blob_is_not_as_long_as_it_should_be_is_left_alone() {
    as_root!();
    let image = made(&[layer(&[("f", "x")])]);
    let registry = Fake::honest(image.clone()).await;
    let mut cut = image.clone();
    cut.blobs.get_mut(&image.layers[0]).unwrap().truncate(10);
    let mirror = Fake::honest(cut).await;
    let mut home = Home::new(&[&registry.host, &mirror.host]);
    home.config.mirrors = vec![Mirror::parse(&format!("{}={}", registry.host, mirror.host)).unwrap()];
    home.open().await.acquire(&registry.name(), Pull::Missing).await.unwrap();
    assert_eq!((mirror.gets(&image.layers[0]), registry.gets(&image.layers[0])), (1, 1));
}
