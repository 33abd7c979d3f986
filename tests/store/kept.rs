//! What stays, what goes, and how much there is.

use std::time::Duration;

use support::{Daemon, Image, Layer, Registry, Value, json, until, within};

const MEGABYTE: u64 = 1 << 20;

/// A layer with one file of zeros, which is small only while it travels.
fn zeros(name: &str, megabytes: usize) -> Layer {
    Layer::build(|tar| {
        tar.file(name, vec![0; megabytes << 20]);
    })
}

fn run(image: &str, script: &str) -> Value {
    json!({ "image": image, "cmd": "sh", "args": ["-c", script] })
}

/// A registry with images `a`, `b` and `c` of ten megabytes each over the same busybox.
fn three_images() -> Registry {
    let registry = Registry::start();
    for name in ["a", "b", "c"] {
        registry.push(name, "1", &Image::busybox().layer(zeros(name, 10)));
    }
    registry
}

fn listed(daemon: &Daemon) -> Vec<String> {
    let list = daemon.get("/images").expect(200);
    let images = list["images"].as_array().expect("a list").iter();
    let mut names: Vec<_> =
        images.map(|image| image["reference"].as_str().expect("text").to_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_store_stays_below_its_mark_and_keeps_what_is_used_or_pinned() {
    let registry = three_images();
    let [a, b, c] = ["a:1", "b:1", "c:1"].map(|name| registry.image(name));
    let builder = Daemon::builder().registry(&registry).flag("--slots", 2);
    let daemon =
        builder.flag("--images-high-bytes", 27 * MEGABYTE).flag("--images-low-bytes", 26 * MEGABYTE).start();
    let pinned = daemon.post("/images", &json!({ "image": a, "pinned": true })).expect(200);
    assert_eq!((pinned["pinned"].as_bool(), pinned["in_use"].as_bool()), (Some(true), Some(false)));
    // `b` is in use while `c` comes, so nothing can go, and the store is fuller than it should be.
    let long = daemon.run_async(&run(&b, "sleep 60"));
    daemon.wait_for_state(&long, "running");
    daemon.run(&run(&c, "true"));
    assert_eq!(listed(&daemon), [&*a, &*b, &*c]);
    assert!(daemon.metric("sandglass_image_cache_bytes") > 27.0 * MEGABYTE as f64);
    daemon.delete(&format!("/runs/{long}")).expect(200);
    // Used less long ago than `b`, which now goes, as `c` did not.
    daemon.run(&run(&c, "true"));
    registry.push("d", "1", &Image::busybox().layer(zeros("d", 1)));
    daemon.run(&run(&registry.image("d:1"), "true"));
    assert_eq!(listed(&daemon), [&*a, &*c, &*registry.image("d:1")]);
    assert_eq!(daemon.metric("sandglass_image_cache_evictions_total{reason=\"limit\"}"), 1.0);
    assert_eq!(daemon.metric("sandglass_image_cache_limit_bytes"), 27.0 * MEGABYTE as f64);
    assert!(daemon.metric("sandglass_image_cache_bytes") <= 27.0 * MEGABYTE as f64);
    // Let go of, it goes like any other.
    daemon.post("/images", &json!({ "image": a, "pull": "never", "pinned": false })).expect(200);
    daemon.run(&run(&registry.image("d:1"), "true"));
    daemon.run(&run(&c, "true"));
    daemon.run(&run(&b, "true"));
    assert!(!listed(&daemon).contains(&a));
    // And nothing of all this is left in the store's folder.
    let layers = daemon.data_dir().join("layers");
    until("what was collected to be deleted", || {
        std::fs::read_dir(layers.join("trash")).expect("read the trash").count() == 0
    });
}

#[test]
fn sizes_say_what_an_image_has_alone_and_what_it_shares() {
    let registry = three_images();
    let daemon = Daemon::with_registry(&registry);
    let [a, b] = ["a:1", "b:1"].map(|name| registry.image(name));
    let pull = |image: &str| daemon.post("/images", &json!({ "image": image })).expect(200);
    let alone = pull(&a);
    assert_eq!(
        (alone["own_bytes"].clone(), alone["shared_bytes"].as_u64()),
        (alone["bytes"].clone(), Some(0))
    );
    pull(&b);
    let list = daemon.get("/images").expect(200);
    let images = list["images"].as_array().expect("a list");
    let (mut shared, mut own) = (0, 0);
    for image in images {
        assert_eq!(image["own_bytes"], 10 * MEGABYTE, "{image:#}");
        assert!(image["resolved_at"].is_string() && image["last_used_at"].is_string(), "{image:#}");
        assert_eq!(image["pinned"], false);
        shared = image["shared_bytes"].as_u64().expect("a number");
        own += image["own_bytes"].as_u64().expect("a number");
    }
    // Each layer once, in whole blocks.
    let disk = list["disk_bytes"].as_u64().expect("a number");
    assert!(disk >= own + shared && disk < own + shared + 4 * MEGABYTE, "{list:#}");
    assert!(list["limit_bytes"].as_u64().expect("a number") > disk);
    let on_disk = support::disk_bytes(&daemon.data_dir().join("layers"));
    assert!(disk.abs_diff(on_disk) < MEGABYTE, "said {disk}, found {on_disk}");
}

#[test]
fn images_that_share_layers_take_of_the_disk_what_each_layer_takes_once() {
    const IMAGES: u64 = 6;
    let registry = Registry::empty();
    // Each has one file, so that its archive is hardly longer than that.
    let base = [zeros("low", 16), zeros("high", 8)];
    for at in 0..IMAGES {
        let image = base.iter().fold(Image::new([]), |image, layer| image.layer(layer.clone()));
        registry.push("stack", &at.to_string(), &image.layer(zeros(&format!("own-{at}"), 1)));
    }
    let daemon = Daemon::with_registry(&registry);
    let before = support::disk_bytes(&daemon.data_dir());
    for at in 0..IMAGES {
        let image = registry.image(&format!("stack:{at}"));
        daemon.post("/images", &json!({ "image": image })).expect(200);
    }
    let unique = (16 + 8 + IMAGES) * MEGABYTE;
    let taken = support::disk_bytes(&daemon.data_dir()) - before;
    let most = unique / 100 * 102 + IMAGES * 1_000_000;
    assert!((unique..=most).contains(&taken), "{taken} bytes for {unique}, of at most {most}");
}

#[test]
fn an_image_that_is_here_costs_no_request_and_no_write() {
    let registry = Registry::start();
    let image = registry.image("busybox");
    let daemon = Daemon::with_registry(&registry);
    daemon.post("/images", &json!({ "image": image })).expect(200);
    let records = daemon.data_dir().join("records");
    let (asked, written) = (registry.seen().len(), support::stamps(&records));
    assert!(written.len() >= 2, "{written:?}");
    for _ in 0..20 {
        daemon.run(&run(&image, "true"));
    }
    assert_eq!(registry.seen().len(), asked);
    assert_eq!(support::stamps(&records), written);
}

#[test]
fn images_that_are_wanted_ahead_are_there_before_anybody_asks_and_stay() {
    let registry = three_images();
    let a = registry.image("a:1");
    let builder = Daemon::builder().registry(&registry).flag("--images-high-bytes", 1);
    let daemon = builder.flag("--images-ahead", format!("{a},{}", registry.image("missing"))).start();
    until("the image is there", || listed(&daemon) == [&*a]);
    assert_eq!(daemon.get(&format!("/images/{a}")).expect(200)["pinned"], true);
    let mut body = run(&a, "true");
    body["pull"] = json!("never");
    daemon.run(&body);
    daemon.run(&run(&registry.image("b:1"), "true"));
    daemon.run(&run(&registry.image("c:1"), "true"));
    assert!(listed(&daemon).contains(&a));
    until("the other one is logged", || daemon.log().contains("could not be pulled ahead"));
}

#[test]
fn always_costs_one_head_and_a_tag_s_life_saves_even_that() {
    let registry = Registry::start();
    let image = registry.image("busybox");
    let daemon = Daemon::builder().registry(&registry).flag("--images-tag-life-s", 1).start();
    daemon.run(&run(&image, "true"));
    let mut always = run(&image, "true");
    always["pull"] = json!("always");
    for _ in 0..3 {
        let before = registry.seen();
        daemon.run(&always);
        let new = &registry.seen()[before.len()..];
        let [head] = new else { panic!("one request, not {new:?}") };
        assert_eq!((head.method.as_str(), head.status), ("HEAD", 200));
    }
    let before = registry.seen().len();
    daemon.run(&run(&image, "true"));
    assert_eq!(registry.seen().len(), before);
    std::thread::sleep(Duration::from_millis(1100));
    daemon.run(&run(&image, "true"));
    until("the registry is asked about the tag", || registry.seen().len() > before);
    assert_eq!(
        registry.seen()[before..].iter().map(|seen| seen.method.as_str()).collect::<Vec<_>>(),
        ["HEAD"]
    );
}

#[test]
fn an_image_is_gone_at_once_and_its_files_soon() {
    let registry = Registry::start();
    let many = Layer::build(|tar| {
        for at in 0..3000 {
            tar.file(&format!("many/{at}"), "x");
        }
    });
    registry.push("many", "1", &Image::busybox().layer(many));
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("many:1");
    daemon.run(&run(&image, "true"));
    assert_eq!(daemon.delete(&format!("/images/{image}")).status, 204);
    assert_eq!(listed(&daemon), Vec::<String>::new());
    // It may come back while the old files are still going.
    let back = daemon.run(&run(&image, "ls /many | wc -l"));
    assert_eq!(back["stdout"], "3000\n");
    let trash = daemon.data_dir().join("layers/trash");
    // How long three thousand files take is up to the disk, and to whoever else writes to it.
    within(Duration::from_secs(120), "its files are gone", || {
        (std::fs::read_dir(&trash).expect("read the trash").count() == 0).then_some(())
    });
}
