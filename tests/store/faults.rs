//! Whatever goes wrong on the way of an image, the store is whole, and whoever asked is told why.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Daemon, Image, Layer, Liar, Lie, Registry, Relay, Value, json, until, within};

fn run(image: &str, script: &str) -> Value {
    json!({ "image": image, "cmd": "sh", "args": ["-c", script] })
}

/// Bytes that no compression makes smaller, the same ones for the same seed.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn noisy_layer(name: &str, bytes: usize) -> Layer {
    let seed = name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte));
    Layer::build(|tar| {
        tar.file(name, noise(bytes, seed));
    })
}

/// Between 0 and 1, another one each time.
fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

fn images(daemon: &Daemon) -> usize {
    daemon.get("/images").expect(200)["images"].as_array().expect("a list").len()
}

/// What there is in the store besides layers that have a record.
fn strays(daemon: &Daemon) -> Vec<String> {
    let (layers, records) = (daemon.data_dir().join("layers"), daemon.data_dir().join("records/layers"));
    let names = |path: &std::path::Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().expect("text")).collect::<Vec<_>>()
    };
    let known = names(&records);
    let is_stray = |name: &String| {
        !["tmp", "trash", "frozen", "former"].contains(&name.as_str())
            && !known.contains(&format!("{name}.json"))
    };
    let mut strays: Vec<_> = names(&layers).into_iter().filter(is_stray).collect();
    for folder in ["tmp", "trash", "frozen", "former"] {
        strays.extend(names(&layers.join(folder)));
    }
    strays
}

#[test]
fn a_server_killed_at_any_of_fifty_moments_of_a_pull_has_a_whole_store_when_it_starts_again() {
    const MOMENTS: u32 = 50;
    let registry = Registry::start();
    let sums: Vec<(String, Layer)> =
        (0..4).map(|at| (format!("noise-{at}"), noisy_layer(&format!("noise-{at}"), 3 << 20))).collect();
    let image = sums.iter().fold(Image::busybox(), |image, (_, layer)| image.layer(layer.clone()));
    registry.push("noise", "1", &image);
    let name = registry.image("noise:1");
    let check = "cat /noise-* | wc -c; cat /noise-* | sha256sum";
    let pull = json!({ "image": name });

    let mut daemon = Daemon::with_registry(&registry);
    let begun = Instant::now();
    daemon.post("/images", &pull).expect(200);
    let whole = begun.elapsed();
    let expected = daemon.run(&run(&name, check))["stdout"].clone();
    assert_eq!(daemon.delete(&format!("/images/{name}")).status, 204);

    let (mut before, mut after) = (0, 0);
    // How long a pull takes changes with what else the machine does: what one took is where to begin, and each
    // moment that came too late, or early enough, says where to go on.
    let mut span = whole;
    for moment in 0..MOMENTS {
        // Somewhat longer than it takes, so that some moments lie behind its end.
        let wait = span.mul_f64(1.2 * random());
        std::thread::scope(|scope| {
            // Whoever wants a run waits less long than whoever wants the image kept.
            let request = match moment % 2 {
                0 => daemon.request("POST", "/images").json(&pull),
                _ => daemon.request("POST", "/runs").json(&run(&name, "true")),
            };
            let asked = scope.spawn(move || request.try_send());
            std::thread::sleep(wait);
            daemon.kill9();
            drop(asked.join());
        });
        daemon = daemon.restart();
        // It is there with all its bytes, or it is not there at all.
        let found = images(&daemon);
        if found == 1 {
            after += 1;
            span = span.mul_f64(0.8);
            let asked = registry.seen().len();
            let run = daemon.run(&run(&name, check));
            assert_eq!(run["stdout"], expected, "moment {moment}, after {wait:?}: {run:#}");
            assert_eq!(registry.seen().len(), asked, "what is here needs no registry");
            assert_eq!(daemon.delete(&format!("/images/{name}")).status, 204);
        } else {
            before += 1;
            span = span.mul_f64(1.25);
            assert_eq!(found, 0);
        }
        within(Duration::from_secs(20), "a store without leftovers", || {
            strays(&daemon).is_empty().then_some(())
        });
    }
    println!(
        "killed {before} times before the image was there and {after} times after, of {whole:?} at first and {span:?} in the end"
    );
    assert!(before > MOMENTS / 5, "{before} of {MOMENTS} moments were in the middle of a pull");
    let last = daemon.run(&run(&name, check));
    assert_eq!(last["stdout"], expected, "{last:#}");
}

/// As after the power went, where records and layers are on different disks.
#[test]
fn a_tree_whose_record_was_lost_is_never_used() {
    let registry = Registry::start();
    registry.push("noise", "1", &Image::busybox().layer(noisy_layer("noise", 1 << 20)));
    let name = registry.image("noise:1");
    let mut daemon = Daemon::with_registry(&registry);
    let records = daemon.data_dir().join("records/layers");
    for is_cut_off in [false, true] {
        daemon.run(&run(&name, "true"));
        // Until it is durable.
        daemon.post("/images", &json!({ "image": name })).expect(200);
        daemon.kill9();
        let lost: Vec<_> = std::fs::read_dir(&records).expect("read records").flatten().collect();
        assert_eq!(lost.len(), 2);
        for record in lost {
            let layer = record.path().file_stem().expect("a name").to_owned();
            let tree = daemon.data_dir().join("layers").join(layer);
            std::fs::write(tree.join("half"), "a file").expect("write into the tree");
            std::fs::remove_file(record.path()).expect("lose a record");
            if is_cut_off {
                std::fs::write(record.path(), "").expect("lose what a record says");
            }
        }
        daemon = daemon.restart();
        assert_eq!(images(&daemon), 0);
        if is_cut_off {
            // What is known by its name goes at once.
            within(Duration::from_secs(20), "a store without leftovers", || {
                strays(&daemon).is_empty().then_some(())
            });
        }
        let found = daemon.run(&run(&name, "wc -c < /noise; ls / | grep half"));
        assert_eq!(found["stdout"], format!("{}\n", 1 << 20), "{found:#}");
    }
    daemon.delete(&format!("/images/{name}"));
    within(Duration::from_secs(20), "a store without leftovers", || strays(&daemon).is_empty().then_some(()));
}

#[test]
fn a_disk_that_is_full_is_said_hurts_no_run_and_gives_back_what_the_pull_took() {
    let registry = Registry::start();
    registry.push("fits", "1", &Image::busybox().layer(noisy_layer("fits", 8 << 20)));
    registry.push("other", "1", &Image::busybox().layer(noisy_layer("other", 9 << 20)));
    registry.push(
        "huge",
        "1",
        &Image::busybox().layer(noisy_layer("a", 20 << 20)).layer(noisy_layer("b", 20 << 20)),
    );
    let daemon = Daemon::builder().registry(&registry).flag("--slots", 3).on_disk_of(40 << 20).start();
    let [fits, other, huge] = ["fits:1", "other:1", "huge:1"].map(|name| registry.image(name));
    daemon.run(&run(&other, "true"));
    let long = daemon.run_async(&run(
        &fits,
        "i=0; while [ $i -lt 40 ]; do cat /fits | wc -c; sleep 0.1; i=$((i+1)); done",
    ));
    daemon.wait_for_state(&long, "running");
    let problem = daemon.post("/runs", &run(&huge, "true")).problem(503, "store-full");
    assert!(problem["detail"].as_str().expect("words").contains("no space left"), "{problem:#}");
    // What nobody needed was given up for it; what is in use was not.
    let evicted =
        |why: &str| daemon.metric(&format!("sandglass_image_cache_evictions_total{{reason=\"{why}\"}}"));
    assert_eq!(evicted("disk") + evicted("limit"), 1.0);
    assert_eq!(images(&daemon), 1);
    let run_ended = daemon.wait_for_state(&long, "finished");
    assert_eq!(run_ended["outcome"], "exited", "{run_ended:#}");
    assert_eq!(run_ended["stdout"], format!("{}\n", 8 << 20).repeat(40));
    // And there is room again for what fits.
    assert_eq!(daemon.run(&run(&other, "wc -c < /other"))["stdout"], format!("{}\n", 9 << 20));
}

#[test]
fn a_disk_that_takes_no_more_files_is_said_and_hurts_nothing_else() {
    let registry = Registry::start();
    let files = Layer::build(|tar| {
        for at in 0..3000 {
            tar.file(&format!("files/{at}"), "x");
        }
    });
    registry.push("files", "1", &Image::busybox().layer(files));
    registry.push("other", "1", &Image::busybox().layer(noisy_layer("other", 1 << 20)));
    let daemon = Daemon::builder().registry(&registry).on_disk_of(64 << 20).with_inodes(2000).start();
    let problem = daemon.post("/runs", &run(&registry.image("files:1"), "true")).problem(503, "store-full");
    assert!(problem["detail"].as_str().expect("words").contains("no inode left"), "{problem:#}");
    within(Duration::from_secs(20), "a store without leftovers", || strays(&daemon).is_empty().then_some(()));
    assert_eq!(images(&daemon), 0);
    let other = daemon.run(&run(&registry.image("other:1"), "wc -c < /other"));
    assert_eq!(other["stdout"], format!("{}\n", 1 << 20), "{other:#}");
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let registry = Registry::start();
    registry.push("large", "1", &Image::busybox().layer(noisy_layer("large", 20 << 20)));
    let blob = registry.layers_of("large", "1")[1].clone();
    let (asked, wanted) = (Arc::new(AtomicUsize::new(0)), blob);
    let counter = Arc::clone(&asked);
    // Nine tenths, then a bit more, then all the rest.
    let liar = Liar::before(&registry, move |_, path| {
        if !path.ends_with(&wanted) {
            return Lie::Truth;
        }
        match counter.fetch_add(1, Ordering::SeqCst) {
            0 => Lie::Truncate(18 << 20),
            1 => Lie::Truncate(100_000),
            _ => Lie::Truth,
        }
    });
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).start();
    let run = daemon.run(&run(&liar.image("large:1"), "wc -c < /large"));
    assert_eq!(run["stdout"], format!("{}\n", 20 << 20), "{run:#}");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    let size: u64 = registry.sizes_of("large", "1").iter().sum();
    let downloaded = daemon.metric("sandglass_image_pull_bytes_total");
    assert!((downloaded - size as f64).abs() < 1.0, "{downloaded} of {size}: no byte twice");
    assert!(daemon.metric("sandglass_image_registry_retries_total{reason=\"broken\"}") >= 2.0);
    assert!(daemon.metric("sandglass_image_layer_wait_seconds_total{for=\"registry\"}") > 0.0);
}

#[test]
fn of_a_layer_that_was_cut_off_only_the_rest_is_sent_again() {
    const LAYER: usize = 24 << 20;
    let registry = Registry::start();
    registry.push("large", "1", &Image::busybox().layer(noisy_layer("large", LAYER)));
    let size: u64 = registry.sizes_of("large", "1").iter().sum();
    let relay = Relay::cut_after(&registry, size / 10 * 9);
    let daemon = Daemon::builder().flag("--insecure-registry", relay.host()).start();
    let run = daemon.run(&run(&relay.image("large:1"), "wc -c < /large"));
    assert_eq!(run["stdout"], format!("{LAYER}\n"), "{run:#}");
    assert!(relay.was_cut());
    // Counted on the wire: what the client was given before the cut and throws away now would be seen.
    let sent = relay.sent_bytes();
    assert!(sent >= size && sent <= size + (1 << 20), "{sent} bytes for {size}");
}

#[test]
fn a_registry_that_is_busy_is_asked_again_when_it_wants_to_be() {
    let registry = Registry::start();
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&times);
    let liar = Liar::before(&registry, move |_, path| {
        if !path.contains("/blobs/") {
            return Lie::Truth;
        }
        let mut seen = seen.lock().expect("no holder panics");
        seen.push(Instant::now());
        match seen.len() {
            1 => Lie::Say(429, vec![("Retry-After".into(), "2".into())], Vec::new()),
            2 => Lie::Say(503, Vec::new(), Vec::new()),
            _ => Lie::Truth,
        }
    });
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).start();
    daemon.run(&run(&liar.image("busybox"), "true"));
    let times = times.lock().expect("no holder panics");
    assert!(times[1] - times[0] >= Duration::from_secs(2), "it wanted two seconds of peace");
    for reason in ["rate_limit", "server_error"] {
        let name = format!("sandglass_image_registry_retries_total{{reason=\"{reason}\"}}");
        assert_eq!(daemon.metric(&name), 1.0, "{name}");
    }
}

#[test]
fn a_token_that_expires_in_the_middle_of_a_pull_is_fetched_anew() {
    let registry = Registry::start();
    registry.push("two", "1", &Image::busybox().layer(noisy_layer("two", 1 << 20)));
    let liar = Liar::with_tokens_for(&registry, 3);
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).start();
    let run = daemon.run(&run(&liar.image("two:1"), "wc -c < /two"));
    assert_eq!(run["stdout"], format!("{}\n", 1 << 20), "{run:#}");
    let tokens = liar.asked().iter().filter(|line| line.contains("/token")).count();
    assert!(tokens >= 2, "{:?}", liar.asked());
}

#[test]
fn mirrors_are_asked_in_order_and_the_registry_has_the_last_word() {
    let registry = Registry::start();
    registry.push("only-here", "1", &Image::busybox());
    let mirror = Registry::start();
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let first = Liar::before(&mirror, move |_, _| {
        if is_down.load(Ordering::SeqCst) { Lie::Say(503, Vec::new(), Vec::new()) } else { Lie::Truth }
    });
    // Has the name and breaks off what it sends.
    let second =
        Liar::before(
            &mirror,
            |_, path| if path.contains("/blobs/") { Lie::Truncate(500) } else { Lie::Truth },
        );
    let mirrors =
        [first.host(), second.host(), mirror.host()].map(|host| format!("{}={host}", registry.host()));
    let hosts = [registry.host(), first.host(), second.host(), mirror.host()].join(",");
    let daemon = Daemon::builder()
        .flag("--insecure-registry", hosts)
        .flag("--images-mirrors", mirrors.join(","))
        .start();
    let before = registry.seen().len();
    let run_there = daemon.run(&run(&registry.image("busybox"), "echo from a mirror"));
    assert_eq!(run_there["stdout"], "from a mirror\n");
    assert_eq!(run_there["image"]["reference"], format!("{}:latest", registry.image("busybox")));
    assert_eq!(registry.seen().len(), before, "the registry itself had nothing to do");
    // One that fails is left alone for a while; one that lacks something is passed over.
    assert_eq!(first.asked().len(), 1, "{:?}", first.asked());
    assert!(!second.asked().is_empty());
    let here = daemon.run(&run(&registry.image("only-here:1"), "echo from the registry"));
    assert_eq!(here["stdout"], "from the registry\n");
    assert_eq!(first.asked().len(), 1, "{:?}", first.asked());
    daemon.post("/runs", &run(&registry.image("nowhere"), "true")).problem(422, "image-not-found");
}

#[test]
fn the_last_to_leave_ends_the_pull_and_the_next_one_begins_it_anew() {
    let registry = Registry::start();
    let blob = registry.layers_of("busybox", "latest")[0].clone();
    let stalls = Arc::new(AtomicBool::new(true));
    let stalling = Arc::clone(&stalls);
    let liar = Liar::before(&registry, move |_, path| {
        if path.ends_with(&blob) && stalling.load(Ordering::SeqCst) { Lie::Stall(1000) } else { Lie::Truth }
    });
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).start();
    let body = run(&liar.image("busybox"), "echo here");
    let ids = [daemon.run_async(&body), daemon.run_async(&body)];
    until("the layer is asked for", || liar.asked().iter().any(|line| line.contains("/blobs/")));
    daemon.delete(&format!("/runs/{}", ids[0])).expect(200);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(daemon.metric("sandglass_image_pulls_total{result=\"cancelled\"}"), 0.0);
    daemon.delete(&format!("/runs/{}", ids[1])).expect(200);
    // Ten seconds of grace are for those who come back.
    within(Duration::from_secs(25), "the pull to end", || {
        (daemon.metric("sandglass_image_pulls_total{result=\"cancelled\"}") == 1.0).then_some(())
    });
    until("a store without leftovers", || strays(&daemon).is_empty());
    stalls.store(false, Ordering::SeqCst);
    assert_eq!(daemon.run(&body)["stdout"], "here\n");
}

#[test]
fn a_registry_that_sends_nothing_any_more_is_asked_anew_and_goes_on_where_it_was() {
    let registry = Registry::start();
    registry.push("large", "1", &Image::busybox().layer(noisy_layer("large", 4 << 20)));
    let blob = registry.layers_of("large", "1")[1].clone();
    let asked = AtomicUsize::new(0);
    let liar = Liar::before(&registry, move |_, path| {
        let first = path.ends_with(&blob) && asked.fetch_add(1, Ordering::SeqCst) == 0;
        if first { Lie::Stall(2 << 20) } else { Lie::Truth }
    });
    let builder = Daemon::builder().flag("--insecure-registry", liar.host());
    let daemon = builder.flag("--images-idle-timeout-ms", 1000).start();
    let run = daemon.run(&run(&liar.image("large:1"), "wc -c < /large"));
    assert_eq!(run["stdout"], format!("{}\n", 4 << 20), "{run:#}");
    assert_eq!(daemon.metric("sandglass_image_registry_retries_total{reason=\"timeout\"}"), 1.0);
    let size: u64 = registry.sizes_of("large", "1").iter().sum();
    assert!((daemon.metric("sandglass_image_pull_bytes_total") - size as f64).abs() < 1.0);
}
