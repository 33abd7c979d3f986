//! Images from a real registry, and from one that lies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::image::EntryType;
use support::{Daemon, Image, Layer, Liar, Lie, Registry, Value, json};

fn sh(image: &str, script: &str) -> Value {
    json!({ "image": image, "cmd": "sh", "args": ["-c", script] })
}

#[track_caller]
fn output(run: &Value) -> &str {
    assert_eq!((run["outcome"].as_str(), run["exit_code"].as_u64()), (Some("exited"), Some(0)), "{run:#}");
    run["stdout"].as_str().expect("text")
}

/// A layer with one file.
fn one_file(path: &str, text: &str) -> Layer {
    Layer::build(|tar| {
        tar.file(path, text);
    })
}

fn downloads(registry: &Registry, repository: &str, tag: &str) -> Vec<usize> {
    registry.layers_of(repository, tag).iter().map(|digest| registry.downloads(digest)).collect()
}

#[test]
fn a_hundred_first_requests_download_each_layer_once() {
    let registry = Registry::start();
    let image = Image::busybox().layer(one_file("one", "1")).layer(one_file("two", "2"));
    registry.push("many", "latest", &image);
    let daemon = Daemon::builder().registry(&registry).flag("--slots", 8).start();
    let body = sh(&registry.image("many"), "cat /one /two");
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..100)
            .map(|_| {
                let request = daemon.request("POST", "/runs").json(&body).patience(Duration::from_secs(120));
                scope.spawn(move || request.send().expect(200))
            })
            .collect();
        for run in asked {
            let run = run.join().expect("an answer");
            assert_eq!(output(&run), "12");
        }
    });
    assert_eq!(downloads(&registry, "many", "latest"), [1, 1, 1]);
    assert_eq!(daemon.metric("sandglass_image_pulls_total{result=\"ok\"}"), 1.0);
}

#[test]
fn every_compression_unpacks_to_the_same_files() {
    let registry = Registry::start();
    let mut listings = Vec::new();
    for tag in ["latest", "zstd", "plain"] {
        let daemon = Daemon::with_registry(&registry);
        let image = registry.image(&format!("busybox:{tag}"));
        let run = daemon.run(&sh(&image, "find / -xdev -path /proc -prune -o -path /dev -prune -o -print | sort | xargs ls -ldn | cut -c1-24"));
        listings.push(output(&run).to_owned());
        assert_eq!(run["image"]["reference"], image);
    }
    assert!(listings[0].lines().count() > 20);
    assert!(listings.iter().all(|listing| *listing == listings[0]));
}

#[test]
fn a_real_debian_runs_python_and_compiles_c() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("python:3");
    let script = "import os;print(os.getpid(),[p for p in os.listdir(\"/proc\") if p.isdigit()])";
    let run = daemon.run(&json!({ "image": image, "cmd": "python3", "args": ["-c", script] }));
    let shown = output(&run);
    let pid: u32 = shown.split(' ').next().and_then(|word| word.parse().ok()).expect("a pid");
    assert!(pid < 10 && shown == format!("{pid} ['{pid}']\n"), "{shown}");
    let compile = "cat > a.c && gcc -O2 -o a a.c && ./a";
    let program = "#include <stdio.h>\nint main(void){puts(\"compiled\");return 0;}\n";
    let run = daemon.run(&json!({
        "image": image, "cmd": "sh", "args": ["-c", compile], "stdin": program, "workdir": "/work",
    }));
    assert_eq!(output(&run), "compiled\n");
}

#[test]
fn the_pull_policy_decides_when_the_registry_is_asked() {
    let registry = Registry::start();
    registry.push("moving", "latest", &Image::busybox().layer(one_file("v", "one")));
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("moving");
    let with = |pull: &str| {
        let mut body = sh(&image, "cat /v");
        body["pull"] = json!(pull);
        body
    };
    daemon.post("/runs", &with("never")).problem(422, "image-not-present");
    assert_eq!(output(&daemon.run(&with("missing"))), "one");
    let second = registry.push("moving", "latest", &Image::busybox().layer(one_file("v", "two")));
    let asked = registry.seen().len();
    assert_eq!(output(&daemon.run(&with("missing"))), "one");
    assert_eq!(output(&daemon.run(&with("never"))), "one");
    assert_eq!(registry.seen().len(), asked, "nobody asked the registry");
    let run = daemon.run(&with("always"));
    assert_eq!((output(&run), run["image"]["digest"].as_str()), ("two", Some(second.as_str())));
    assert_eq!(output(&daemon.run(&with("never"))), "two");
    // A digest never comes to mean anything else, so the registry is asked once.
    let pinned = format!("{image}@{second}");
    assert_eq!(output(&daemon.run(&sh(&pinned, "cat /v"))), "two");
    let asked = registry.seen().len();
    let mut body = sh(&pinned, "cat /v");
    body["pull"] = json!("always");
    assert_eq!(output(&daemon.run(&body)), "two");
    assert_eq!(registry.seen().len(), asked);
}

#[test]
fn layers_that_two_images_share_are_downloaded_once_and_survive_a_restart() {
    let registry = Registry::start();
    registry.push("a", "1", &Image::busybox().layer(one_file("x", "a")));
    registry.push("b", "1", &Image::busybox().layer(one_file("x", "b")));
    let daemon = Daemon::with_registry(&registry);
    assert_eq!(output(&daemon.run(&sh(&registry.image("a:1"), "cat /x"))), "a");
    assert_eq!(output(&daemon.run(&sh(&registry.image("b:1"), "cat /x"))), "b");
    assert_eq!(downloads(&registry, "a", "1"), [1, 1]);
    assert_eq!(downloads(&registry, "b", "1"), [1, 1]);
    let before = registry.seen().len();
    let daemon = daemon.restart();
    assert_eq!(output(&daemon.run(&sh(&registry.image("b:1"), "cat /x"))), "b");
    assert_eq!(registry.seen().len(), before, "a stored image needs no registry");
    let listed = daemon.get("/images").expect(200);
    assert_eq!(listed["images"].as_array().map(Vec::len), Some(2));
    // Removing one leaves what the other needs.
    let path = format!("/images/{}", registry.image("a:1"));
    assert_eq!(daemon.delete(&path).status, 204);
    daemon.get(&path).problem(404, "image-not-stored");
    assert_eq!(output(&daemon.run(&sh(&registry.image("b:1"), "cat /x"))), "b");
}

#[test]
fn an_index_leads_to_this_machine_s_image_or_says_what_there_is() {
    let registry = Registry::start();
    let foreign = Image::busybox().layer(one_file("arch", "foreign")).architecture("s390x");
    let ours = Image::busybox().layer(one_file("arch", "ours"));
    registry.push_index("multi", "1", &[foreign.clone(), ours]);
    registry.push_index("multi", "2", std::slice::from_ref(&foreign));
    registry.push("multi", "3", &foreign);
    let daemon = Daemon::with_registry(&registry);
    assert_eq!(output(&daemon.run(&sh(&registry.image("multi:1"), "cat /arch"))), "ours");
    for tag in ["2", "3"] {
        let problem = daemon
            .post("/runs", &sh(&registry.image(&format!("multi:{tag}")), "true"))
            .problem(422, "image-platform");
        assert!(problem["detail"].as_str().expect("words").contains("s390x"), "{problem:#}");
    }
}

#[test]
fn an_image_says_how_it_wants_to_be_run_and_a_request_overrides_it() {
    let registry = Registry::start();
    let image = Image::busybox()
        .set("Env", json!(["PATH=/bin", "A=image", "B=image"]))
        .set("WorkingDir", json!("/srv/app"))
        .set("User", json!("bob"))
        .set("Entrypoint", json!(["sh", "-c", "echo \"$0 $* $A $B $HOME\"; pwd; id -u"]))
        .set("Cmd", json!(["default"]));
    registry.push("configured", "1", &image);
    let daemon = Daemon::with_registry(&registry);
    let name = registry.image("configured:1");
    let run = daemon.run(&json!({ "image": name }));
    assert_eq!(output(&run), "default  image image /home/bob\n/srv/app\n1000\n");
    let run = daemon.run(&json!({ "image": name, "args": ["x", "y"], "env": { "A": "request" } }));
    assert_eq!(output(&run), "x y request image /home/bob\n/srv/app\n1000\n");
    let run = daemon.run(&json!({
        "image": name, "cmd": "sh", "args": ["-c", "pwd; id -u; id -g; echo $B"], "workdir": "/new/place", "user": "7:8",
    }));
    assert_eq!(output(&run), "/new/place\n7\n8\nimage\n");
}

#[test]
fn layers_are_put_on_top_of_each_other_as_the_specification_says() {
    let registry = Registry::start();
    let lower = Layer::build(|tar| {
        tar.dir("d").file("d/kept", "kept").file("d/gone", "x").dir("d/sub").file("d/sub/x", "x");
        tar.dir("o").file("o/old", "x").file("plain", "lower").entry(
            EntryType::Regular,
            "owned",
            0o640,
            (7, 8),
            b"x",
        );
        tar.file("target", "hello").hard_link("linked", "target").symlink("soft", "/target");
        tar.entry(EntryType::Regular, "setuid", 0o6755, (0, 0), b"x");
    });
    let upper = Layer::build(|tar| {
        tar.whiteout("d/gone")
            .whiteout("d/sub")
            .dir("o")
            .opaque("o")
            .file("o/new", "new")
            .file("plain", "upper");
    });
    registry.push("layered", "1", &Image::busybox().layer(lower).layer(upper));
    let daemon = Daemon::with_registry(&registry);
    let script = "ls d o; cat plain linked soft; echo; stat -c '%a %u %g' owned setuid; stat -c %h target";
    let run = daemon.run(
        &json!({ "image": registry.image("layered:1"), "cmd": "sh", "args": ["-c", script], "workdir": "/" }),
    );
    assert_eq!(output(&run), "d:\nkept\n\no:\nnew\nupperhellohello\n640 7 8\n755 0 0\n2\n");
}

#[test]
fn an_image_without_layers_runs_what_the_request_brings() {
    let registry = Registry::start();
    registry.push("scratch", "1", &Image::new([]));
    let daemon = Daemon::with_registry(&registry);
    let run = daemon.run(&json!({
        "image": registry.image("scratch:1"), "cmd": "/tmp/spam", "args": ["3", "stdout"], "files": [support::guest::file("spam")],
    }));
    assert_eq!(output(&run).len(), 3);
}

#[test]
fn a_run_writes_to_itself_and_never_to_the_image() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("busybox");
    let spoil = "echo evil > /etc/passwd; rm -rf /bin/* /home; echo x > /new; mkdir /d; echo spoilt";
    assert_eq!(output(&daemon.run(&sh(&image, spoil))), "spoilt\n");
    let run = daemon.run(&sh(
        &image,
        "grep -c bob /etc/passwd; ls /new /d 2>&1 | grep -c 'No such'; stat -c %U /home/bob/note",
    ));
    assert_eq!(output(&run), "1\n2\nbob\n");
}

#[test]
fn evil_layers_touch_nothing_but_themselves() {
    let registry = Registry::start();
    let canary = support::Folder::new();
    let outside = canary.join("canary");
    std::fs::write(&outside, "untouched").expect("write a canary");
    let path = outside.to_str().expect("text").to_owned();
    let daemon = Daemon::with_registry(&registry);
    let layers: Vec<(&str, Layer)> = vec![
        ("dots", one_file(&format!("../../../../../../../..{path}"), "evil")),
        ("absolute", one_file(&path, "evil")),
        (
            "through-a-link",
            Layer::build(|tar| {
                tar.symlink("door", canary.path().to_str().expect("text")).file("door/canary", "evil");
            }),
        ),
        // Where the launcher, whose root the jail was cut out of, has the layers of all images.
        (
            "to-the-store",
            Layer::build(|tar| {
                tar.symlink("door", "/layers").file("door/evil", "evil");
            }),
        ),
        (
            "up-to-the-store",
            Layer::build(|tar| {
                tar.symlink("door", "../../../../layers").file("door/evil", "evil");
            }),
        ),
        (
            "hard-link",
            Layer::build(|tar| {
                tar.hard_link("x", &path).file("x", "evil");
            }),
        ),
        (
            "whiteout",
            Layer::build(|tar| {
                tar.symlink("door", canary.path().to_str().expect("text")).whiteout("door/canary");
            }),
        ),
        (
            "devices",
            Layer::build(|tar| {
                tar.device(EntryType::Block, "disk", 8, 0).device(EntryType::Char, "mem", 1, 1);
            }),
        ),
        (
            "root",
            Layer::build(|tar| {
                tar.symlink("./", "/");
            }),
        ),
    ];
    for (name, layer) in layers {
        registry.push(name, "1", &Image::busybox().layer(layer));
        let response = daemon
            .post("/runs", &sh(&registry.image(&format!("{name}:1")), "ls -ld /disk /mem 2>/dev/null; true"));
        match response.status {
            200 => assert_eq!(output(&response.json()), "", "{name}"),
            422 => drop(response.problem(422, "bad-image")),
            other => panic!("{name}: {other}: {}", response.text()),
        }
        assert_eq!(std::fs::read_to_string(&outside).expect("read the canary"), "untouched", "{name}");
        assert!(!daemon.data_dir().join("layers/evil").exists(), "{name}: written into the store itself");
    }
}

#[test]
fn a_registry_that_fails_is_told_from_an_image_that_is_bad() {
    let registry = Registry::start();
    let blob = registry.layers_of("busybox", "latest")[0].clone();
    let lie = |decide: fn() -> Lie| {
        let wanted = blob.clone();
        Liar::before(&registry, move |_, path| if path.ends_with(&wanted) { decide() } else { Lie::Truth })
    };
    let ask = |liar: &Liar| {
        let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).start();
        let response = daemon
            .request("POST", "/runs")
            .json(&sh(&liar.image("busybox"), "true"))
            .patience(Duration::from_secs(100))
            .send();
        assert_eq!(daemon.get("/images").expect(200)["images"], json!([]), "nothing half done is listed");
        response
    };
    ask(&lie(|| Lie::Corrupt)).problem(422, "bad-image");
    ask(&lie(|| Lie::Say(404, Vec::new(), Vec::new()))).problem(422, "bad-image");
    ask(&lie(|| Lie::Say(500, Vec::new(), Vec::new()))).problem(502, "registry-failed");
    ask(&lie(|| Lie::Truncate(1000))).problem(502, "registry-failed");
    let everything = Liar::before(&registry, |_, _| Lie::Say(503, Vec::new(), b"down".to_vec()));
    ask(&everything).problem(502, "registry-failed");
    let limited = Liar::before(&registry, |_, path| {
        if path.contains("manifests") {
            Lie::Say(429, vec![("Retry-After".into(), "300".into())], Vec::new())
        } else {
            Lie::Truth
        }
    });
    let problem = ask(&limited).problem(502, "registry-rate-limited");
    assert!(problem["retry_after_ms"].as_u64().is_some_and(|ms| ms > 100_000), "{problem:#}");
}

#[test]
fn a_pull_that_fails_once_works_when_it_is_tried_again() {
    let registry = Registry::start();
    let blob = registry.layers_of("busybox", "latest")[0].clone();
    let asked = AtomicUsize::new(0);
    let liar = Liar::before(&registry, move |_, path| {
        if path.ends_with(&blob) && asked.fetch_add(1, Ordering::SeqCst) == 0 {
            Lie::Truncate(1000)
        } else {
            Lie::Truth
        }
    });
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).start();
    // A broken connection is tried again within the same pull.
    assert_eq!(output(&daemon.run(&sh(&liar.image("busybox"), "echo fine"))), "fine\n");
}

#[test]
fn a_pull_without_progress_ends_at_its_deadline() {
    let registry = Registry::start();
    let blob = registry.layers_of("busybox", "latest")[0].clone();
    let liar = Liar::before(
        &registry,
        move |_, path| if path.ends_with(&blob) { Lie::Stall(1000) } else { Lie::Truth },
    );
    let daemon =
        Daemon::builder().flag("--insecure-registry", liar.host()).flag("--pull-timeout-ms", 2000).start();
    daemon.post("/runs", &sh(&liar.image("busybox"), "true")).problem(504, "pull-timeout");
}

#[test]
fn credentials_are_those_of_docker_login() {
    let registry = Registry::that_asks();
    let folder = support::Folder::new();
    let config = |name: &str, password: &str| {
        let path = folder.join(name);
        std::fs::write(&path, registry.docker_config(password).to_string()).expect("write a docker config");
        path.display().to_string()
    };
    let body = sh(&registry.image("busybox"), "echo in");
    let nobody = Daemon::with_registry(&registry);
    nobody.post("/runs", &body).problem(422, "image-unauthorized");
    let wrong =
        Daemon::builder().registry(&registry).flag("--docker-config", config("wrong", "guess")).start();
    wrong.post("/runs", &body).problem(422, "image-unauthorized");
    let right = config("right", support::registry::PASSWORD);
    let daemon = Daemon::builder().registry(&registry).flag("--docker-config", right).start();
    assert_eq!(output(&daemon.run(&body)), "in\n");
}

#[test]
fn docker_hub_s_tokens_are_fetched_with_and_without_an_account() {
    let registry = Registry::start();
    let open = Liar::that_wants_tokens(&registry, false);
    let daemon = Daemon::builder().flag("--insecure-registry", open.host()).start();
    assert_eq!(output(&daemon.run(&sh(&open.image("busybox"), "echo in"))), "in\n");
    assert!(open.asked().iter().any(|line| line.contains("token")), "{:?}", open.asked());

    let closed = Liar::that_wants_tokens(&registry, true);
    let daemon = Daemon::builder().flag("--insecure-registry", closed.host()).start();
    daemon.post("/runs", &sh(&closed.image("busybox"), "true")).problem(422, "image-unauthorized");
}

#[test]
fn registries_that_nobody_allowed_are_refused_with_the_flag_that_would_allow_them() {
    let registry = Registry::start();
    let daemon = Daemon::start();
    for (image, flag) in [
        (registry.image("busybox"), "--insecure-registry"),
        ("127.0.0.1:1/x".into(), "--insecure-registry"),
        ("169.254.169.254/latest/meta-data".into(), "--private-registry"),
        ("10.0.0.1/x".into(), "--private-registry"),
        ("localhost/x".into(), "--private-registry"),
    ] {
        let problem = daemon.post("/runs", &sh(&image, "true")).problem(422, "image-not-allowed");
        let detail = problem["detail"].as_str().expect("words");
        assert!(detail.contains("--private-registry") || detail.contains(flag), "{image}: {detail}");
    }
    assert_eq!(registry.seen().iter().filter(|seen| seen.path.contains("busybox")).count(), 0);
    // And what is no reference at all.
    for image in ["", "A b", "http://x/y", "a//b", "user:pw@host/x", "x:y:z", "x@sha256:1", "../x"] {
        let problem = daemon.post("/runs", &sh(image, "true")).problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], "/image", "{image}");
    }
    // Without the flag `host` is just such a thing.
    let strict = Daemon::builder().start();
    let problem = strict.post("/runs", &sh("host", "true")).problem(422, "image-not-allowed");
    assert!(problem["detail"].as_str().expect("words").contains("--allow-host-image"));
}

#[test]
fn an_image_can_be_pulled_ahead_listed_and_removed() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let name = registry.image("busybox:latest");
    assert_eq!(daemon.get("/images").expect(200)["images"], json!([]));
    let pulled = daemon.post("/images", &json!({ "image": name })).expect(200);
    assert_eq!(pulled["reference"], name);
    let listed = daemon.get("/images").expect(200);
    assert_eq!(listed["images"][0]["reference"], name);
    assert!(listed["images"][0]["digest"].as_str().expect("text").starts_with("sha256:"));
    for path in [format!("/images/{name}"), format!("/images/{}", name.replace('/', "%2F"))] {
        assert_eq!(daemon.get(&path).expect(200)["reference"], name);
    }
    daemon.post("/images", &json!({ "image": registry.image("nope") })).problem(422, "image-not-found");
    daemon.post("/images", &json!({ "picture": name })).problem(422, "invalid-request");
    assert_eq!(daemon.delete(&format!("/images/{name}")).status, 204);
    daemon.delete(&format!("/images/{name}")).problem(404, "image-not-stored");
    assert_eq!(daemon.get("/images").expect(200)["images"], json!([]));
}

#[test]
fn an_asynchronous_run_whose_image_fails_says_so_as_its_outcome() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let id = daemon.run_async(&sh(&registry.image("nope"), "true"));
    let run = daemon.wait_for_state(&id, "finished");
    assert_eq!(
        (run["outcome"].as_str(), run["problem"]["type"].as_str()),
        (Some("image_failed"), Some("/problems/image-not-found"))
    );
}
