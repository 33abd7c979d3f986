//! How it is: registries that stall, lie, break off, lead astray, or want to be left alone.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use image::{ImageError, PullResult};
use run::Pull;
use serde_json::json;

use crate::support::{
    Fake, Home, Made, as_root, broken_off, digest, fails, layer, made, made_with, noise, stalled, status,
};

fn one() -> Made {
    made(&[layer(&[("f", "content")])])
}

fn redirect(to: &str) -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to.to_owned())]).into_response()
}

fn wait(code: u16, seconds: &str) -> Response {
    (StatusCode::from_u16(code).unwrap(), [(header::RETRY_AFTER, seconds.to_owned())]).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_to_be_left_alone_for_a_moment_is() {
    as_root!();
    let fake = Fake::start(one(), |path, count, _| {
        (path.contains("manifests") && count == 1).then(|| wait(429, "1"))
    })
    .await;
    let home = Home::new(&[&fake.host]);
    let begun = Instant::now();
    home.open().await.acquire(&fake.name(), Pull::Missing).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(*home.counts.retried.lock().unwrap(), ["rate_limit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_wants_it_for_long_is_told_to_the_client() {
    as_root!();
    let fake = Fake::start(one(), |_, _, _| Some(wait(429, "3600"))).await;
    let home = Home::new(&[&fake.host]);
    match fails(&home, &fake.name()).await {
        ImageError::RateLimited { retry_after, .. } => {
            assert_eq!(retry_after, Some(Duration::from_secs(3600)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fake.all(), 1);
    assert_eq!(*home.counts.finished.lock().unwrap(), [PullResult::Registry]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stumbles_is_asked_again_and_one_that_refuses_is_not() {
    as_root!();
    let fake = Fake::start(one(), |_, count, _| (count < 3).then(|| status(503))).await;
    let home = Home::new(&[&fake.host]);
    home.open().await.acquire(&fake.name(), Pull::Missing).await.unwrap();
    for (code, is_expected) in [
        (404, (|error| matches!(error, ImageError::NotFound { .. })) as fn(&ImageError) -> bool),
        (403, |error| matches!(error, ImageError::Unauthorized { .. })),
        (401, |error| matches!(error, ImageError::Unauthorized { .. })),
        (400, |error| matches!(error, ImageError::Registry { .. })),
    ] {
        let fake = Fake::start(one(), move |_, _, _| Some(status(code))).await;
        let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
        assert!(is_expected(&error), "{code}: {error:?}");
        assert_eq!(fake.all(), 1, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    as_root!();
    let made = made(&[layer(&[("f", &noise(2 << 20))])]);
    let (name, blob) = (made.layers[0].clone(), made.blobs[&made.layers[0]].clone());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let (seen, whole) = (Arc::clone(&ranges), blob.clone());
    let fake = Fake::start(made.clone(), move |path, count, headers: &HeaderMap| {
        if !path.contains(&name) {
            return None;
        }
        let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
        seen.lock().unwrap().push(range.clone());
        let Some(range) = range else { return Some(broken_off(&whole, 1_000_000)) };
        let from: usize = range["bytes=".len()..].trim_end_matches('-').parse().unwrap();
        // The second time the range is ignored, as some registries do.
        if count == 2 {
            return Some(broken_off(&whole, from + 100_000));
        }
        let content_range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
        Some(
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, content_range)], whole[from..].to_vec())
                .into_response(),
        )
    })
    .await;
    let home = Home::new(&[&fake.host]);
    home.open().await.acquire(&fake.name(), Pull::Missing).await.unwrap();
    let ranges = ranges.lock().unwrap();
    assert_eq!(ranges.len(), 3);
    assert!(ranges[0].is_none() && ranges[1].is_some() && ranges[2] > ranges[1], "{ranges:?}");
    let sizes: usize = made.blobs.values().filter(|bytes| **bytes == blob).map(Vec::len).sum();
    assert_eq!(home.counts.bytes.load(std::sync::atomic::Ordering::SeqCst), sizes as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_promised_ones_are_refused() {
    as_root!();
    let swapped = |part: fn(&Made) -> String, bytes: fn(&[u8]) -> Vec<u8>| {
        let mut made = one();
        let name = part(&made);
        let changed = bytes(&made.blobs[&name]);
        made.blobs.insert(name, changed);
        made
    };
    fn config(made: &Made) -> String {
        made.blobs.keys().find(|name| !made.layers.contains(name)).unwrap().clone()
    }
    let flip = |bytes: &[u8]| {
        bytes.iter().enumerate().map(|(at, byte)| if at + 9 == bytes.len() { !byte } else { *byte }).collect()
    };
    let longer = |bytes: &[u8]| [bytes, b"x"].concat();
    let shorter = |bytes: &[u8]| bytes[1..].to_vec();
    for made in [
        swapped(|made| made.layers[0].clone(), flip),
        swapped(|made| made.layers[0].clone(), longer),
        swapped(|made| made.layers[0].clone(), shorter),
        swapped(config, flip),
        swapped(config, longer),
    ] {
        let fake = Fake::honest(made).await;
        let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
        assert!(matches!(error, ImageError::BadImage { .. } | ImageError::BadLayer { .. }), "{error:?}");
    }
    let by_digest = Fake::honest(one()).await;
    let other = format!("{}/x@{}", by_digest.host, digest(b"other"));
    let error = fails(&Home::new(&[&by_digest.host]), &other).await;
    assert!(matches!(error, ImageError::BadImage { .. }), "{error:?}");
    // The right bytes for the wrong diff id.
    let lying = made_with(
        &[layer(&[("f", "x")])],
        |config| config["rootfs"]["diff_ids"][0] = digest(b"other").into(),
        |_| {},
    );
    let fake = Fake::honest(lying).await;
    let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
    assert!(matches!(error, ImageError::BadLayer { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_in_words() {
    as_root!();
    let layers = [layer(&[("f", "x")])];
    for (made, words) in [
        (
            made_with(&layers, |_| {}, |manifest| manifest["manifests"] = json!([])),
            "neither an index nor an image",
        ),
        (made_with(&layers, |_| {}, |manifest| manifest["schemaVersion"] = 1.into()), "schema 1"),
        (
            made_with(
                &layers,
                |_| {},
                |manifest| manifest["config"]["mediaType"] = "application/x.helm".into(),
            ),
            "artifact",
        ),
        (
            made_with(
                &layers,
                |_| {},
                |manifest| {
                    manifest["layers"][0]["mediaType"] =
                        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
                },
            ),
            "encrypted",
        ),
        (
            made_with(&layers, |_| {}, |manifest| manifest["layers"][0]["digest"] = "sha256:../../x".into()),
            "can't be",
        ),
        (made_with(&layers, |_| {}, |manifest| manifest["layers"][0]["size"] = (-1).into()), "can't be"),
        (made_with(&layers, |config| config["os"] = "windows".into(), |_| {}), "only for windows/"),
        (
            made_with(&layers, |config| config["rootfs"]["diff_ids"] = json!([]), |_| {}),
            "1 layers, but its config speaks of 0",
        ),
        (
            made_with(
                &layers,
                |_| {},
                |manifest| manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 257]),
            ),
            "limit of 256",
        ),
        (
            made_with(&layers, |_| {}, |manifest| manifest["layers"][0]["size"] = (11u64 << 30).into()),
            "bytes in a layer",
        ),
        (
            made_with(
                &layers,
                |_| {},
                |manifest| manifest["annotations"] = json!({"x": "y".repeat(5 << 20)}),
            ),
            "bytes in its manifest",
        ),
    ] {
        let fake = Fake::honest(made).await;
        let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
        assert!(error.to_string().contains(words), "{error} should say {words}");
        assert_eq!(fake.gets("blobs/sha256:../"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_s_other_addresses_are_never_asked() {
    as_root!();
    let elsewhere = Fake::honest(one()).await;
    let url = format!("http://{}/layer", elsewhere.host);
    let foreign = made_with(
        &[layer(&[("f", "x")])],
        |_| {},
        |manifest| {
            manifest["layers"][0]["urls"] = json!([url, "file:///etc/passwd"]);
            manifest["layers"][0]["mediaType"] =
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
        },
    );
    let name = foreign.layers[0].clone();
    let fake = Fake::start(foreign, move |path, _, _| path.contains(&name).then(|| status(404))).await;
    let error = fails(&Home::new(&[&fake.host, &elsewhere.host]), &fake.name()).await;
    assert!(matches!(error, ImageError::BadImage { .. }), "{error:?}");
    assert_eq!(elsewhere.all(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_who_was_not_named() {
    let fake = Fake::honest(one()).await;
    let images = Home::new(&[]).open().await;
    let by_name = fake.name().replace("127.0.0.1", "localhost");
    for reference in
        [&fake.name(), &by_name, "169.254.169.254/latest/meta-data", "10.0.0.1:5000/x", "0x7f.1/x"]
    {
        match images.acquire(reference, Pull::Missing).await.unwrap_err() {
            ImageError::NotAllowed { flag, .. } => assert!(flag.contains("--insecure-registry"), "{flag}"),
            other => panic!("{reference}: {other:?}"),
        }
    }
    assert_eq!(fake.all(), 0);
}

/// Listed hosts may redirect to listed hosts; what was meant for the first is not shown to the second.
#[tokio::test(flavor = "multi_thread")]
async fn redirects_go_where_the_rules_let_them_and_without_the_token() {
    as_root!();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (made, headers_seen) = (one(), Arc::clone(&seen));
    let cdn = Fake::start(made.clone(), move |_, _, headers: &HeaderMap| {
        headers_seen.lock().unwrap().push(headers.clone());
        None
    })
    .await;
    let (to, name) = (format!("http://{}", cdn.host), made.layers[0].clone());
    let script = move |path: &str, _: u64, headers: &HeaderMap| {
        if path.starts_with("/token") {
            return Some(json!({"token": "secret", "expires_in": 300}).to_string().into_response());
        }
        if headers.get(header::AUTHORIZATION).is_none() {
            let host = headers[header::HOST].to_str().unwrap();
            let challenge = format!(r#"Bearer realm="http://{host}/token",service="s""#);
            return Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response());
        }
        path.contains(&name).then(|| redirect(&format!("{to}{path}")))
    };
    let fake = Fake::start(made.clone(), script).await;
    let home = Home::new(&[&fake.host, &cdn.host]);
    home.open().await.acquire(&fake.name(), Pull::Missing).await.unwrap();
    assert_eq!(fake.gets("/token?service=s&scope=repository%3Ax%3Apull"), 1);
    assert_eq!(cdn.all(), 1);
    assert!(seen.lock().unwrap().iter().all(|headers| headers.get(header::AUTHORIZATION).is_none()));

    let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
    assert!(matches!(error, ImageError::NotAllowed { .. }), "{error:?}");
    assert_eq!(cdn.all(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_astray_and_without_end_are_refused() {
    as_root!();
    for to in [
        "https://127.0.0.1:1/x",
        "http://169.254.169.254/x",
        "https://[::ffff:10.0.0.1]/x",
        "file:///etc/passwd",
        "https://u:p@localhost/x",
    ] {
        let fake = Fake::start(one(), move |_, _, _| Some(redirect(to))).await;
        let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
        assert!(matches!(error, ImageError::NotAllowed { .. }), "{to}: {error:?}");
        assert_eq!(fake.all(), 1);
    }
    // A public name that resolves to a private address: the check is on the address.
    let fake = Fake::start(one(), |_, _, _| Some(redirect("https://localhost/x"))).await;
    let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
    assert!(error.to_string().contains("not public"), "{error}");
    let fake = Fake::start(one(), |path, _, _| Some(redirect(path))).await;
    let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
    assert!(matches!(error, ImageError::Registry { .. }), "{error:?}");
    assert_eq!(fake.all(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_server_elsewhere_is_not_asked() {
    as_root!();
    let elsewhere = Fake::honest(one()).await;
    let challenge = format!(r#"Bearer realm="http://{}/token""#, elsewhere.host);
    let fake = Fake::start(one(), move |_, _, _| {
        Some((StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge.clone())]).into_response())
    })
    .await;
    let error = fails(&Home::new(&[&fake.host]), &fake.name()).await;
    assert!(matches!(error, ImageError::NotAllowed { .. }), "{error:?}");
    assert_eq!(elsewhere.all(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_docker_login_open_private_images() {
    as_root!();
    let script = |_: &str, _: u64, headers: &HeaderMap| {
        // user:pass
        let is_right = headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Basic dXNlcjpwYXNz");
        (!is_right).then(|| {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"r\"")]).into_response()
        })
    };
    let fake = Fake::start(one(), script).await;
    let mut home = Home::new(&[&fake.host]);
    let error = fails(&home, &fake.name()).await;
    assert!(error.to_string().contains("docker login"), "{error}");

    let docker = home.folder.path().join("docker");
    fs::create_dir(&docker).unwrap();
    home.config.docker_config = Some(docker.clone());
    let auths = json!({"auths": {fake.host.clone(): {"auth": "dXNlcjpwYXNz"}}});
    fs::write(docker.join("config.json"), auths.to_string()).unwrap();
    home.config.dir = home.folder.path().join("second");
    home.open().await.acquire(&fake.name(), Pull::Missing).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_sends_nothing_runs_into_a_timeout() {
    as_root!();
    let made = one();
    let (name, len) = (made.layers[0].clone(), made.blobs[&made.layers[0]].len());
    let fake = Fake::start(made, move |path, _, _| path.contains(&name).then(|| stalled(len))).await;
    let mut home = Home::new(&[&fake.host]);
    home.config.pull_timeout = Duration::from_secs(2);
    let begun = Instant::now();
    let error = fails(&home, &fake.name()).await;
    assert!(matches!(error, ImageError::Timeout { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(*home.counts.finished.lock().unwrap(), [PullResult::Timeout]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_ended_by_its_own_timeout_and_taken_up_again() {
    as_root!();
    let made = one();
    let (name, len) = (made.layers[0].clone(), made.blobs[&made.layers[0]].len());
    let fake =
        Fake::start(made, move |path, count, _| (path.contains(&name) && count == 1).then(|| stalled(len)))
            .await;
    let mut home = Home::new(&[&fake.host]);
    home.config.idle_timeout = Duration::from_millis(300);
    home.open().await.acquire(&fake.name(), Pull::Missing).await.unwrap();
    assert_eq!(*home.counts.retried.lock().unwrap(), ["timeout"]);
}
