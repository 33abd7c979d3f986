//! Images as files for other machines: `sandglass image save`, and whoever loads what it writes.

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Daemon, Finished, Folder, Registry, Value, json, sandglass, tool};

use crate::trees::{Tree, assert_same, differences, in_podman, in_store, retimed, stacked};

/// A store in a folder of its own, used by the command line.
struct Store(Folder);

impl Store {
    fn call(&self, words: &[&str]) -> Finished {
        let mut command = Command::new(sandglass());
        command.args(words).env("SANDGLASS_DATA_DIR", self.0.path()).env("SANDGLASS_DOCKER_CONFIG", "");
        Finished::of(&mut command)
    }

    #[track_caller]
    fn expect(&self, words: &[&str]) -> String {
        let done = self.call(words);
        assert_eq!(done.code(), Some(0), "{words:?}: {}", done.stderr_text());
        done.stdout_text()
    }

    fn with(registry: &Registry, images: &[&str]) -> Self {
        let store = Self(Folder::new());
        for image in images {
            let image = registry.image(image);
            store.expect(&["pull", "--quiet", "--insecure-registry", &registry.host(), &image]);
        }
        store
    }

    fn save(&self, folder: &Folder, images: &[&str]) -> PathBuf {
        let path = folder.join(format!("{}.tar", images.len()));
        let mut words = vec!["image", "save", "--output", text(&path)];
        words.extend(images);
        let said = self.expect(&words);
        assert_eq!(said.lines().count(), images.len(), "{said}");
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn skopeo(kind: &str, archive: &Path, what: &[&str]) -> Value {
    let mut command = Command::new(tool("skopeo"));
    command.args(["--insecure-policy", "inspect"]).args(what).arg(format!("{kind}:{}", archive.display()));
    let done = Finished::of(&mut command);
    assert_eq!(done.code(), Some(0), "{kind}: {}", done.stderr_text());
    serde_json::from_str(&done.stdout_text()).expect("JSON")
}

fn podman(archive: &Path, image: &str) -> Tree {
    in_podman("p load --quiet --input \"$2\"", image, &[archive])
}

#[test]
fn an_image_that_is_saved_and_loaded_has_the_same_files() {
    let registry = Registry::start();
    registry.push("stacked", "1", &stacked());
    let folder = Folder::new();
    let (here, there) = (Store::with(&registry, &["stacked:1"]), Store(Folder::new()));
    let image = registry.image("stacked:1");
    let archive = here.save(&folder, &[&image]);
    let loaded = there.expect(&["image", "load", text(&archive)]);
    assert!(loaded.starts_with(&format!("{image}@sha256:")), "{loaded}");
    let saved = in_store(here.0.path());
    assert!(saved.len() > 20, "{} files", saved.len());
    assert_same("loaded", &differences(&in_store(there.0.path()), &saved, retimed));
    assert_same("podman", &differences(&saved, &podman(&archive, &image), retimed));
    // What was loaded is packed as what was pulled is.
    let before = std::fs::read(archive).expect("read an archive");
    let again = there.save(&folder, &[&image]);
    assert!(before == std::fs::read(again).expect("read an archive"), "it is packed in another way");
}

#[test]
fn podman_has_the_files_of_a_whole_system_that_was_saved() {
    let registry = Registry::start();
    let (folder, store) = (Folder::new(), Store::with(&registry, &["python:3"]));
    let image = registry.image("python:3");
    let archive = store.save(&folder, &[&image]);
    let saved = in_store(store.0.path());
    assert!(saved.len() > 1000, "{} files", saved.len());
    assert_same("podman", &differences(&saved, &podman(&archive, &image), |_, _| false));
}

#[test]
fn what_is_saved_is_an_oci_layout_and_what_docker_saves() {
    let registry = Registry::start();
    let (folder, images) = (Folder::new(), ["busybox:latest", "python:3"]);
    let store = Store::with(&registry, &images);
    let [busybox, python] = images.map(|name| registry.image(name));
    let archive = store.save(&folder, &[&python]);
    for kind in ["oci-archive", "docker-archive"] {
        let layers = skopeo(kind, &archive, &[])["Layers"].as_array().map(Vec::len);
        assert_eq!(layers, Some(1), "{kind}");
        let config = &skopeo(kind, &archive, &["--config"])["config"];
        assert_eq!(config["Cmd"], json!(["python3"]), "{kind}: {config:#}");
        assert_eq!(config["Env"][1], "LANG=C.UTF-8", "{kind}: {config:#}");
    }
    // Two in one file, and a server that takes one of them by its name.
    let both = store.save(&folder, &[&busybox, &python]);
    let daemon = Daemon::builder().start();
    let request = daemon.request("PUT", &format!("/images/{busybox}"));
    request
        .header("Content-Type", "application/x-tar")
        .body(std::fs::read(both).expect("read"))
        .send()
        .expect(200);
    let run = daemon.run(&json!({ "image": busybox, "cmd": "echo", "args": ["saved"], "pull": "never" }));
    assert_eq!(run["stdout"], "saved\n", "{run:#}");
}

#[test]
fn what_is_not_here_is_not_saved_and_leaves_no_file() {
    let store = Store(Folder::new());
    let folder = Folder::new();
    let path = folder.join("x.tar");
    let refused = store.call(&["image", "save", "--output", text(&path), "localhost/nowhere"]);
    assert_eq!(refused.code(), Some(1));
    assert!(refused.stderr_text().contains("localhost/nowhere"), "{}", refused.stderr_text());
    assert!(!path.exists());
}
