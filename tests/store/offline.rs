//! Images that come and go without a registry, and how a pull tells where it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Daemon, Finished, Folder, Image, Layer, Liar, Lie, Registry, Value, json, sandglass, tool};

fn run(image: &str, script: &str) -> Value {
    json!({ "image": image, "cmd": "sh", "args": ["-c", script], "pull": "missing" })
}

/// An image of two layers, in a registry.
fn registry() -> Registry {
    let registry = Registry::start();
    let top = Layer::build(|tar| {
        tar.file("who", "from a file\n").whiteout("etc/group");
    });
    registry.push("two", "1", &Image::busybox().layer(top));
    registry
}

/// What skopeo makes of an image; `kind` is its word for the form.
fn exported(registry: &Registry, folder: &Folder, kind: &str, name: &str) -> PathBuf {
    let path = folder.join(kind);
    let mut command = Command::new(tool("skopeo"));
    command.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
    command.arg(format!("docker://{}", registry.image("two:1")));
    command.arg(format!("{kind}:{}:{name}", path.display()));
    let done = Finished::of(&mut command);
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    path
}

fn gzipped(path: &Path) -> PathBuf {
    let done = Finished::of(Command::new(tool("gzip")).arg("--keep").arg("--fast").arg(path));
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    path.with_extension("gz")
}

fn put(daemon: &Daemon, name: &str, archive: impl Into<Vec<u8>>) -> support::Response {
    let request = daemon.request("PUT", &format!("/images/{name}"));
    request.header("Content-Type", "application/x-tar").body(archive).send()
}

const CHECK: &str = "cat /who; ls /etc/group 2>/dev/null; ls /bin/sh";
const CHECKED: &str = "from a file\n/bin/sh\n";

#[test]
fn what_docker_saves_and_layouts_are_loaded_without_a_registry() {
    let registry = registry();
    let folder = Folder::new();
    let docker = exported(&registry, &folder, "docker-archive", "localhost/saved:1");
    let layout = exported(&registry, &folder, "oci-archive", "1");
    drop(registry);
    // Without any registry: nobody has been named, and nobody is there.
    let daemon = Daemon::builder().start();
    for (archive, name) in
        [(&docker, "localhost/docker:1"), (&gzipped(&docker), "mine"), (&layout, "ghcr.io/o/n:2")]
    {
        let bytes = std::fs::read(archive).expect("read an archive");
        let loaded = put(&daemon, name, bytes).expect(200);
        assert!(loaded["digest"].as_str().expect("text").starts_with("sha256:"), "{loaded:#}");
        assert_eq!(loaded["resolved_at"], Value::Null, "nobody has resolved it");
        let run = daemon.run(&run(name, CHECK));
        assert_eq!(run["stdout"], CHECKED, "{run:#}");
    }
    // They are one image in three names: all layers are shared.
    let list = daemon.get("/images").expect(200);
    for image in list["images"].as_array().expect("a list") {
        assert_eq!(image["own_bytes"], 0, "{image:#}");
    }
    let daemon = daemon.restart();
    assert_eq!(daemon.run(&run("localhost/docker:1", CHECK))["stdout"], CHECKED);
}

#[test]
fn what_is_no_image_or_another_one_than_it_says_is_refused_and_leaves_nothing() {
    let registry = registry();
    let folder = Folder::new();
    let docker =
        std::fs::read(exported(&registry, &folder, "docker-archive", "localhost/saved:1")).expect("read");
    let daemon = Daemon::start();
    let name = "localhost/bad:1";
    let mut spoilt = docker.clone();
    // Somewhere in the first layer, which is most of it.
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 0xff;
    for (body, problem) in [
        (b"no archive".to_vec(), "bad-image"),
        (docker[..docker.len() / 2].to_vec(), "bad-image"),
        (spoilt, "bad-image"),
        (vec![0; 10240], "bad-image"),
    ] {
        put(&daemon, name, body).problem(422, problem);
        assert_eq!(daemon.get("/images").expect(200)["images"], json!([]));
    }
    put(&daemon, &format!("x@sha256:{}", "a".repeat(64)), docker.clone()).problem(422, "invalid-request");
    put(&daemon, "A%20b", docker.clone()).problem(422, "invalid-request");
    let request = daemon.request("PUT", "/images/x").header("Content-Encoding", "gzip").body(docker.clone());
    request.send().problem(415, "unsupported-media-type");
    let stranger = Image::busybox().architecture("s390x");
    registry.push("two", "1", &stranger);
    let foreign = std::fs::read(exported(&registry, &Folder::new(), "oci-archive", "1")).expect("read");
    let problem = put(&daemon, name, foreign).problem(422, "image-platform");
    assert!(problem["detail"].as_str().expect("words").contains("s390x"), "{problem:#}");
    // And after all that it still takes what is good.
    put(&daemon, name, docker).expect(200);
}

#[test]
fn the_command_line_loads_lists_pins_and_drops() {
    let registry = registry();
    let (folder, data) = (Folder::new(), Folder::new());
    let docker = exported(&registry, &folder, "docker-archive", "localhost/saved:1");
    let layout = exported(&registry, &folder, "oci", "ghcr.io/o/n:2");
    let sandglass = |words: &[&str]| {
        let mut command = Command::new(sandglass());
        command.args(words).env("SANDGLASS_DATA_DIR", data.path()).env("SANDGLASS_DOCKER_CONFIG", "");
        Finished::of(&mut command)
    };
    let path = |path: &Path| path.display().to_string();
    let loaded = sandglass(&["image", "load", &path(&docker)]);
    assert_eq!(loaded.code(), Some(0), "{}", loaded.stderr_text());
    assert!(loaded.stdout_text().starts_with("localhost/saved:1@sha256:"), "{}", loaded.stdout_text());
    // A folder, under the name that it says, and under one of ours.
    let loaded = sandglass(&["image", "load", "--json", &path(&layout)]);
    let lines: Vec<Value> = loaded
        .stdout_text()
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    assert_eq!(lines.last().expect("an end")["reference"], "ghcr.io/o/n:2", "{lines:#?}");
    assert!(lines.iter().any(|line| line["step"] == "layer"), "{lines:#?}");
    let again = sandglass(&["image", "load", "--as", "localhost/other", &path(&layout)]);
    assert!(again.stdout_text().starts_with("localhost/other:latest@sha256:"), "{}", again.stdout_text());
    let run = sandglass(&["run", "localhost/other", "sh", "-c", CHECK]);
    assert_eq!(run.stdout_text(), CHECKED, "{}", run.stderr_text());

    let pinned = sandglass(&["image", "pin", "localhost/other", "localhost/nowhere"]);
    assert_eq!((pinned.code(), pinned.stdout_text().as_str()), (Some(1), "localhost/other:latest\n"));
    assert!(pinned.stderr_text().contains("localhost/nowhere"), "{}", pinned.stderr_text());
    let listed = sandglass(&["image", "ls", "--json"]).stdout_text();
    let pins = listed.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let pins: Vec<_> = pins.filter(|image| image["pinned"] == true).collect();
    assert_eq!(pins.len(), 1, "{listed}");
    assert_eq!(pins[0]["reference"], "localhost/other:latest");
    assert!(sandglass(&["image", "ls"]).stdout_text().contains("yes"));
    let removed = sandglass(&["image", "rm", "localhost/other", "localhost/saved:1", "ghcr.io/o/n:2"]);
    assert_eq!(removed.code(), Some(0), "{}", removed.stderr_text());
    assert_eq!(sandglass(&["images", "--json"]).stdout_text(), "");
}

#[test]
fn a_pull_tells_each_step_as_it_happens() {
    let registry = registry();
    let daemon = Daemon::with_registry(&registry);
    let follow = |image: &str| {
        let request = daemon.request("POST", "/images").header("Accept", "text/event-stream");
        let response = request.json(&json!({ "image": image })).send();
        assert_eq!(response.header("content-type"), Some("text/event-stream"));
        let text = response.text();
        let event = |block: &str| {
            let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
            Some((line("event: ")?, serde_json::from_str::<Value>(&line("data: ")?).expect("JSON")))
        };
        text.split("\n\n").filter_map(event).collect::<Vec<_>>()
    };
    let events = follow(&registry.image("two:1"));
    let (last, image) = events.last().expect("an end");
    assert_eq!((last.as_str(), image["reference"].as_str()), ("result", Some(&*registry.image("two:1"))));
    let steps: Vec<_> = events.iter().filter(|(name, _)| name == "progress").map(|(_, step)| step).collect();
    assert_eq!(steps[0]["step"], "resolving", "{events:#?}");
    assert!(steps.iter().any(|step| step["step"] == "resolved" && step["layers"] == 2), "{events:#?}");
    for layer in 0..2 {
        let state =
            |state: &str| steps.iter().any(|step| step["layer"] == layer && step["state"]["state"] == state);
        assert!(state("downloading") && state("done"), "layer {layer}: {events:#?}");
    }
    let waits = |step: &&&Value| step["state"]["waits_for"].is_string() && step["state"]["of"].is_u64();
    assert!(steps.iter().filter(waits).count() >= 2, "{events:#?}");
    let events = follow(&registry.image("nope"));
    let (last, problem) = events.last().expect("an end");
    assert_eq!((last.as_str(), problem["type"].as_str()), ("problem", Some("/problems/image-not-found")));
}

#[test]
fn who_hangs_up_while_a_pull_is_told_waits_for_it_no_more() {
    let registry = registry();
    let blob = registry.layers_of("two", "1")[1].clone();
    let liar = Liar::before(
        &registry,
        move |_, path| if path.ends_with(&blob) { Lie::Stall(10) } else { Lie::Truth },
    );
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).start();
    let request = daemon.request("POST", "/images").header("Accept", "text/event-stream");
    let request = request.json(&json!({ "image": liar.image("two:1") }));
    assert!(request.patience(std::time::Duration::from_millis(800)).try_send().is_err());
    support::within(std::time::Duration::from_secs(25), "the pull to end", || {
        (daemon.metric("sandglass_image_pulls_total{result=\"cancelled\"}") == 1.0).then_some(())
    });
}
