//! Category G, what registries do: they say other things than they promised, describe images that can't be,
//! send for ever or not at all. Nothing of a refused pull is kept, and the next one is none the worse.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use support::image::{Blob, INDEX, MANIFEST, digest};
use support::{Daemon, Host, Image, Layer, Liar, Lie, Registry, Value, json};

/// A registry that answers with exactly these bytes, true or not.
#[derive(Clone)]
struct Script {
    /// What stands under the tag: media type and bytes.
    manifest: (String, Vec<u8>),
    /// What stands under a digest, manifests and blobs.
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Script {
    fn of(image: &Image) -> Self {
        let blobs = image.layers.iter().map(|layer| layer.blob.clone()).chain([image.config_blob()]);
        let blobs = blobs.map(|blob| (blob.digest.clone(), blob.bytes())).collect();
        Self { manifest: (MANIFEST.into(), image.manifest().to_string().into_bytes()), blobs }
    }

    /// The manifest with something changed, and nothing else.
    fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut manifest: Value = serde_json::from_slice(&self.manifest.1).expect("a manifest is JSON");
        change(&mut manifest);
        self.manifest.1 = manifest.to_string().into_bytes();
        self
    }

    fn raw(mut self, media_type: &str, manifest: impl Into<Vec<u8>>) -> Self {
        self.manifest = (media_type.into(), manifest.into());
        self
    }

    fn answer(&self, path: &str) -> Lie {
        let Some((kind, name)) = path.strip_prefix("/v2/x/").and_then(|rest| rest.split_once('/')) else {
            return Lie::Say(200, Vec::new(), b"{}".to_vec());
        };
        let found = match (kind, self.blobs.get(name)) {
            (_, Some(bytes)) if kind == "blobs" => Some(("application/octet-stream", bytes)),
            ("manifests", Some(bytes)) => Some((MANIFEST, bytes)),
            ("manifests", None) => Some((self.manifest.0.as_str(), &self.manifest.1)),
            _ => None,
        };
        match found {
            Some((kind, bytes)) => Lie::Say(200, vec![("Content-Type".into(), kind.into())], bytes.clone()),
            None => Lie::Say(404, Vec::new(), Vec::new()),
        }
    }
}

/// Something behind which liars stand; what it has itself nobody asks for.
struct World {
    behind: Registry,
}

/// What became of a pull.
struct Pulled {
    status: u16,
    problem: String,
    took: Duration,
}

impl World {
    fn new() -> Self {
        Self { behind: Registry::empty() }
    }

    fn pull(&self, script: Script) -> Pulled {
        self.pull_from(&Liar::before(&self.behind, move |_, path| script.answer(path)), "x:1", 60_000)
    }

    /// Asks a new server for an image of that registry; a refused one must leave nothing.
    #[track_caller]
    fn pull_from(&self, liar: &Liar, name: &str, timeout_ms: u64) -> Pulled {
        let daemon = Daemon::builder().flag("--insecure-registry", liar.host());
        let daemon = daemon.flag("--pull-timeout-ms", timeout_ms).host_image().start();
        daemon.run(&json!({ "image": "host", "cmd": "true" }));
        let host: Host = daemon.host();
        let started = Instant::now();
        let request = daemon.request("POST", "/images").json(&json!({ "image": liar.image(name) }));
        let response = request.patience(Duration::from_secs(120)).send();
        let took = started.elapsed();
        let problem = if response.status == 200 { String::new() } else { response.text() };
        if response.status != 200 {
            assert_eq!(daemon.get("/images").expect(200)["images"], json!([]), "{problem}");
            let layers = daemon.data_dir().join("layers");
            let kept = std::fs::read_dir(&layers).expect("list the store").flatten();
            let kept: Vec<_> = kept.filter(|entry| entry.file_name().len() > 40).collect();
            assert!(kept.is_empty(), "kept {kept:?} after {problem}");
        }
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        daemon.run(&json!({ "image": "host", "cmd": "true" }));
        host.assert_unchanged();
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read its status");
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its most memory");
        let kib: u64 = most.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(kib < 300 << 10, "the server held {kib} KiB");
        Pulled { status: response.status, problem, took }
    }
}

impl Pulled {
    #[track_caller]
    fn refused(&self, id: &str, problems: &[&str]) {
        assert_ne!(self.status, 200, "{id} was taken for an image");
        let named = problems.iter().any(|name| self.problem.contains(&format!("\"/problems/{name}\"")));
        assert!(named, "{id}: {} is none of {problems:?}", self.problem);
        assert!(self.took < Duration::from_secs(45), "{id} took {:?}", self.took);
    }
}

fn image() -> Image {
    Image::new([Layer::build(|tar| {
        tar.file("hello", "hello");
    })])
}

const BAD: &[&str] = &["bad-image"];

#[test]
fn g_14_other_bytes_than_promised_are_refused() {
    let world = World::new();
    let good = Script::of(&image());
    assert_eq!(world.pull(good.clone()).status, 200, "what all the others are a variation of");
    let layer = image().layers[0].blob.digest.clone();
    let config = image().config_blob().digest;
    for (id, blob) in [("G-14 layer", &layer), ("G-14 config", &config)] {
        let mut script = good.clone();
        let bytes = script.blobs.get_mut(blob).expect("it is there");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        world.pull(script).refused(id, BAD);
        let mut script = good.clone();
        script.blobs.get_mut(blob).expect("it is there").push(0);
        world.pull(script).refused(&format!("{id}, one byte more"), &["bad-image", "registry-failed"]);
        let mut script = good.clone();
        script.blobs.get_mut(blob).expect("it is there").pop();
        world.pull(script).refused(&format!("{id}, one byte less"), &["bad-image", "registry-failed"]);
    }
    for delta in [-1_i64, 1] {
        let script = good.clone().with(|manifest| {
            let size = manifest["layers"][0]["size"].as_i64().expect("a number");
            manifest["layers"][0]["size"] = json!(size + delta);
        });
        world.pull(script).refused("G-14 size", &["bad-image", "registry-failed"]);
    }
    let mut lying = image();
    lying.layers[0].diff_id = digest(b"something else");
    world.pull(Script::of(&lying)).refused("G-14 diff id", BAD);
    for bad in [
        "sha256:",
        "sha256:abc",
        "SHA256:ABC",
        "sha256:../../../etc/passwd",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        &layer.to_uppercase(),
        &format!("{layer}/../x"),
        &format!("{layer}\n"),
        "",
    ] {
        let script = good.clone().with(|manifest| manifest["layers"][0]["digest"] = json!(bad));
        world.pull(script).refused(&format!("G-14 digest {bad:?}"), BAD);
        let script = good.clone().with(|manifest| manifest["config"]["digest"] = json!(bad));
        world.pull(script).refused(&format!("G-14 config's digest {bad:?}"), BAD);
    }
    // By digest, whatever the registry says its content is.
    let script = good.clone();
    let liar = Liar::before(&world.behind, move |_, path| script.answer(path));
    let wanted = digest(b"another manifest");
    world.pull_from(&liar, &format!("x@{wanted}"), 60_000).refused("G-14 pinned", BAD);
    let mut script = good;
    script.manifest.1.push(b' ');
    let promised = digest(b"not this one");
    let liar = Liar::before(&world.behind, move |_, path| match script.answer(path) {
        Lie::Say(status, mut headers, body) if path.contains("/manifests/") => {
            headers.push(("Docker-Content-Digest".into(), promised.clone()));
            Lie::Say(status, headers, body)
        }
        other => other,
    });
    world.pull_from(&liar, "x:1", 60_000).refused("G-14 header", BAD);
}

#[test]
fn g_15_and_16_manifests_that_can_t_be_are_refused_in_words() {
    let world = World::new();
    let good = Script::of(&image());
    let text = String::from_utf8(good.manifest.1.clone()).expect("text");
    let entry = json!({
        "mediaType": INDEX, "digest": digest(b"x"), "size": 1, "platform": { "os": "linux", "architecture": support::image::architecture() },
    });
    world
        .pull(good.clone().with(|manifest| manifest["manifests"] = json!([entry])))
        .refused("G-15 both", BAD);
    world
        .pull(good.clone().with(|manifest| manifest["schemaVersion"] = json!(1)))
        .refused("G-15 schema 1", BAD);
    let mut turtles = good.clone().raw(INDEX, "");
    let mut below = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    for _ in 0..20 {
        let this = Blob::new(below.clone());
        turtles.blobs.insert(this.digest.clone(), below.clone().into_bytes());
        let mut entry = entry.clone();
        (entry["digest"], entry["size"]) = (json!(this.digest), json!(this.len()));
        below = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    }
    turtles.manifest.1 = below.into_bytes();
    world
        .pull(turtles)
        .refused("G-15 indexes of indexes", &["bad-image", "registry-failed", "image-platform"]);
    for kind in ["application/vnd.docker.distribution.manifest.v1+prettyjws", "application/x-evil"] {
        world
            .pull(good.clone().with(|manifest| manifest["mediaType"] = json!(kind)))
            .refused("G-15 kind", BAD);
    }
    let layer_kind =
        good.clone().with(|manifest| manifest["layers"][0]["mediaType"] = json!("application/x-evil"));
    world.pull(layer_kind).refused("G-15 layer's kind", BAD);
    for (id, body) in [
        ("G-15 html", "<html>please log in</html>".to_owned()),
        ("G-15 nothing", String::new()),
        ("G-16 deep", format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
        ("G-16 huge number", text.replace("\"size\":", "\"size\":1e400,\"x\":")),
        ("G-16 number past 64 bits", text.replace("\"size\":", "\"size\":18446744073709551617,\"x\":")),
        ("G-16 twice", text.replacen("\"layers\":", "\"layers\":[],\"layers\":", 1)),
        ("G-16 not text", "{\"schemaVersion\":2,\"\u{0}\":1}".to_owned()),
    ] {
        world.pull(good.clone().raw(MANIFEST, body)).refused(id, BAD);
    }
    // What a manifest has besides is passed over, however deep it goes.
    let deep = text.replacen('{', &format!("{{\"x\":{}1{},", "[".repeat(50_000), "]".repeat(50_000)), 1);
    let pulled = world.pull(good.clone().raw(MANIFEST, deep));
    assert!([200, 422].contains(&pulled.status), "G-16 deep inside: {}", pulled.problem);
    let wide = |count: usize| {
        let mut image = image();
        image.layers = vec![image.layers[0].clone(); count];
        Script::of(&image)
    };
    world.pull(wide(501)).refused("G-16 501 layers", &["image-too-large", "bad-image"]);
    let pulled = world.pull(wide(0));
    assert!(pulled.status == 200, "G-16 an image without layers is one: {}", pulled.problem);
    let padded = good.clone().with(|manifest| manifest["annotations"] = json!({ "x": "y".repeat(64 << 20) }));
    world.pull(padded).refused("G-16 64 MiB", &["image-too-large", "bad-image"]);
    let script = good;
    let liar = Liar::before(&world.behind, move |_, path| {
        if path.contains("/manifests/") { Lie::Endless } else { script.answer(path) }
    });
    world.pull_from(&liar, "x:1", 60_000).refused("G-16 without end", &["image-too-large", "bad-image"]);
}

#[test]
fn g_17_a_layer_s_other_addresses_are_never_asked() {
    let world = World::new();
    let trap = TcpListener::bind("127.0.0.1:0").expect("listen");
    trap.set_nonblocking(true).expect("don't wait");
    let address = trap.local_addr().expect("an address");
    let urls = json!([
        format!("http://{address}/layer"),
        "http://169.254.169.254/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x"
    ]);
    let script = Script::of(&image()).with(|manifest| {
        manifest["layers"][0]["urls"] = urls.clone();
        manifest["config"]["urls"] = urls;
    });
    assert_eq!(world.pull(script.clone()).status, 200, "they are ignored");
    let mut missing = script.clone();
    missing.blobs.remove(&image().layers[0].blob.digest);
    world.pull(missing).refused("G-17 only elsewhere", BAD);
    let foreign = script.with(|manifest| {
        manifest["layers"][0]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    });
    let pulled = world.pull(foreign);
    assert!([200, 422].contains(&pulled.status), "{}", pulled.problem);
    assert!(trap.accept().is_err(), "somebody asked a layer's other address");
}

#[test]
fn g_18_a_configuration_reaches_the_program_and_nobody_else() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let busybox = || Image::busybox();
    let many: Vec<String> = (0..100_000).map(|number| format!("V{number}=x")).collect();
    for (id, image) in [
        (
            "preload",
            busybox().set("Env", json!(["PATH=/bin", "LD_PRELOAD=/evil.so", "LD_LIBRARY_PATH=/evil"])),
        ),
        ("no-equals", busybox().set("Env", json!(["PATH=/bin", "NOTHING", "=x", "", "A=b=c"]))),
        ("nul", busybox().set("Env", json!(["PATH=/bin", "A=b\u{0}c"]))),
        ("long", busybox().set("Env", json!(["PATH=/bin", format!("A={}", "x".repeat(1 << 20))]))),
        ("many", busybox().set("Env", json!(many))),
        (
            "env-null",
            busybox().set("Env", Value::Null).set("Cmd", Value::Null).set("Entrypoint", Value::Null),
        ),
        ("cmd-numbers", busybox().set("Cmd", json!([1, 2]))),
        ("cmd-text", busybox().set("Cmd", json!("sh -c evil"))),
        ("workdir-relative", busybox().set("WorkingDir", json!("a/b"))),
        ("workdir-up", busybox().set("WorkingDir", json!("../../../etc"))),
        ("workdir-descriptor", busybox().set("WorkingDir", json!("/proc/self/fd/7"))),
        ("user-high", busybox().set("User", json!("4294967295"))),
        ("user-minus", busybox().set("User", json!("-1:-1"))),
        ("user-number", busybox().set("User", json!(0))),
        ("volumes", busybox().set("Volumes", json!({ "/": {}, "/proc": {}, "../x": {} }))),
        ("hooks", busybox().set("Labels", json!({ "io.evil/hook": "/bin/sh", "x": "y".repeat(1 << 20) }))),
        (
            "health",
            busybox()
                .set("Healthcheck", json!({ "Test": ["CMD-SHELL", "evil"] }))
                .set("StopSignal", json!("99999")),
        ),
        (
            "exposed",
            busybox()
                .set("ExposedPorts", json!({ "0/tcp": {}, "x": {} }))
                .set("OnBuild", json!(["RUN evil"])),
        ),
    ] {
        registry.push(id, "1", &image);
        let request = json!({
            "image": registry.image(&format!("{id}:1")), "cmd": "/bin/sh", "args": ["-c", "/bin/busybox pwd"],
        });
        let response = daemon.post("/runs", &request);
        match response.status {
            200 => {
                let run = response.json();
                let ended = run["outcome"].as_str().expect("an outcome");
                assert!(["exited", "start_failed"].contains(&ended), "G-18 {id}: {run:#}");
                let said = run["stdout"].as_str().expect("text").trim();
                assert!(said.is_empty() || said.starts_with('/'), "G-18 {id}: {run:#}");
            }
            422 => assert!(response.text().contains("/problems/"), "G-18 {id}: {}", response.text()),
            other => panic!("G-18 {id}: {other} {}", response.text()),
        }
        // Nothing of it got into the environment of whoever handles images and sandboxes.
        for pid in [daemon.pid(), daemon.launcher_pid()] {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("read an environment");
            assert!(!environment.windows(4).any(|word| word == b"evil"), "G-18 {id}");
        }
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    let run = daemon.run(&json!({ "image": registry.image("busybox"), "cmd": "echo", "args": ["ok"] }));
    assert_eq!(run["stdout"], "ok\n");
}

#[test]
fn g_19_images_for_other_machines_say_so() {
    let world = World::new();
    let mut windows = image();
    windows.config["os"] = json!("windows");
    world.pull(Script::of(&windows)).refused("G-19 windows", &["image-platform"]);
    world.pull(Script::of(&image().architecture("s390x"))).refused("G-19 processor", &["image-platform"]);
    let entry = |os: &str, architecture: &str| json!({ "mediaType": MANIFEST, "digest": digest(b"x"), "size": 1, "platform": { "os": os, "architecture": architecture } });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry("windows", "amd64"), entry("linux", "riscv64")] });
    world.pull(Script::of(&image()).raw(INDEX, index.to_string())).refused("G-19 index", &["image-platform"]);
    let none = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
    world
        .pull(Script::of(&image()).raw(INDEX, none.to_string()))
        .refused("G-19 empty index", &["image-platform", "bad-image"]);
}

#[test]
fn g_20_a_registry_that_holds_out_or_sends_in_circles_is_given_up() {
    let world = World::new();
    let good = Script::of(&image());
    let failed: &[&str] =
        &["registry-failed", "pull-timeout", "registry-rate-limited", "image-unauthorized", "bad-image"];
    let lie = |decide: fn(&str, &str) -> Option<Lie>| {
        let script = good.clone();
        Liar::before(&world.behind, move |method, path| {
            decide(method, path).unwrap_or_else(|| script.answer(path))
        })
    };
    for (id, liar) in [
        ("G-20 blob without end", lie(|_, path| path.contains("/blobs/").then_some(Lie::Endless))),
        ("G-20 silence", lie(|_, path| path.contains("/blobs/").then_some(Lie::Stall(0)))),
        (
            "G-20 redirects in a circle",
            lie(|_, path| {
                path.contains("/blobs/")
                    .then(|| Lie::Say(307, vec![("Location".into(), path.to_owned())], Vec::new()))
            }),
        ),
        (
            "G-20 redirect to nowhere",
            lie(|_, path| {
                path.contains("/blobs/")
                    .then(|| Lie::Say(302, vec![("Location".into(), "http://[".into())], Vec::new()))
            }),
        ),
        (
            "G-20 wants a password again and again",
            lie(|_, _| {
                Some(Lie::Say(401, vec![("WWW-Authenticate".into(), "Basic realm=\"x\"".into())], Vec::new()))
            }),
        ),
        (
            "G-20 nonsense for a challenge",
            lie(|_, _| {
                Some(Lie::Say(
                    401,
                    vec![("WWW-Authenticate".into(), "Bearer realm=\"\",,=\"".into())],
                    Vec::new(),
                ))
            }),
        ),
        (
            "G-20 huge headers",
            lie(|_, path| {
                path.contains("/manifests/").then(|| {
                    Lie::Say(
                        200,
                        (0..2000).map(|n| (format!("X-{n}"), "y".repeat(1000))).collect(),
                        b"{}".to_vec(),
                    )
                })
            }),
        ),
        (
            "G-20 no http",
            lie(|_, path| path.contains("/manifests/").then(|| Lie::Say(0, Vec::new(), Vec::new()))),
        ),
        (
            "G-20 come back next year",
            lie(|_, _| Some(Lie::Say(429, vec![("Retry-After".into(), "31536000".into())], Vec::new()))),
        ),
        (
            "G-20 come back when it suits",
            lie(|_, _| {
                Some(Lie::Say(503, vec![("Retry-After".into(), "Thu, 99 Zzz 20x6".into())], Vec::new()))
            }),
        ),
    ] {
        world.pull_from(&liar, "x:1", 8_000).refused(id, failed);
    }
    // Slow is not dead: the deadline of the whole pull ends it.
    let drip = Registry::empty();
    drip.push("x", "1", &image());
    let liar = Liar::before(&drip, |_, path| {
        if path.contains("/blobs/") { Lie::Drip(Duration::from_millis(500)) } else { Lie::Truth }
    });
    world.pull_from(&liar, "x:1", 5_000).refused("G-20 drop by drop", &["pull-timeout"]);
}

/// G-21: pulled, removed and run by many at once, an image is either there or said not to be.
#[test]
fn g_21_pulling_removing_and_running_at_once_break_nothing() {
    let registry = Registry::start();
    let daemon = Daemon::builder().registry(&registry).flag("--slots", 4).start();
    let image = registry.image("busybox");
    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for worker in 0..12 {
            let (daemon, image) = (&daemon, &image);
            scope.spawn(move || {
                while Instant::now() < end {
                    let response = match worker % 3 {
                        0 => daemon.post("/images", &json!({ "image": image })),
                        1 => daemon.delete(&format!("/images/{image}")),
                        _ => {
                            daemon.post("/runs", &json!({ "image": image, "cmd": "echo", "args": ["fine"] }))
                        }
                    };
                    match response.status {
                        200 if worker % 3 == 2 => assert_eq!(response.json()["stdout"], "fine\n"),
                        200 | 204 | 404 => {}
                        other => panic!("G-21: {other} {}", response.text()),
                    }
                }
            });
        }
    });
    let run = daemon.run(&json!({ "image": image, "cmd": "echo", "args": ["fine"] }));
    assert_eq!(run["stdout"], "fine\n");
    assert_eq!(daemon.get("/images").expect(200)["images"].as_array().map(Vec::len), Some(1));
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
