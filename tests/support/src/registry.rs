//! A real registry, Debian's own, on a port of its own with a storage folder of its own.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use crate::image::{Blob, INDEX, Image, MANIFEST};
use crate::place::target;
use crate::{Process, Request, Response, stock, tool};

/// Who may use a registry that asks, and the password's hash as `htpasswd -B` writes it.
pub const USER: &str = "sandglass";
pub const PASSWORD: &str = "secret";
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// A running registry. Dropping it stops it and removes what it kept.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    address: SocketAddr,
    asks: bool,
    folder: tempfile::TempDir,
}

/// One request that a registry has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub status: u16,
}

/// Where [`Registry::seen`] asks for nothing.
const MARK: &str = "/v2/mark-";

impl Registry {
    /// A registry that has the stock images: `busybox` (tags `latest`, `zstd`, `plain`) and `python:3`.
    #[track_caller]
    pub fn start() -> Self {
        Self::launch(Self::prepare_with(&stock::registry()), false)
    }

    /// A registry that has `toolbox:1`: compilers, interpreters and a database.
    #[track_caller]
    pub fn with_toolbox() -> Self {
        Self::launch(Self::prepare_with(&stock::toolbox()), false)
    }

    /// A registry that has what is measured with: `gcc:1`, `small:1`, `many:1` and `huge:1`.
    #[track_caller]
    pub fn with_bench_images() -> Self {
        Self::launch(Self::prepare_with(&stock::bench()), false)
    }

    /// A registry that has nothing yet.
    #[track_caller]
    pub fn empty() -> Self {
        Self::launch(Self::prepare(), false)
    }

    /// A registry that has the stock images and asks for [`USER`] and [`PASSWORD`].
    #[track_caller]
    pub fn that_asks() -> Self {
        Self::launch(Self::prepare_with(&stock::registry()), true)
    }

    /// A registry on storage of the caller's, to fill it.
    pub fn on(storage: &Path) -> Self {
        let folder = Self::prepare();
        std::os::unix::fs::symlink(storage, folder.path().join("storage")).expect("link the storage");
        Self::launch(folder, false)
    }

    fn prepare() -> tempfile::TempDir {
        // Beside the stock images, so that their blobs can be had by a hard link.
        let place = target().join("registries");
        fs::create_dir_all(&place).expect("make a folder for registries");
        tempfile::tempdir_in(place).expect("make a folder for a registry")
    }

    fn prepare_with(template: &Path) -> tempfile::TempDir {
        let registry = Self::prepare();
        copy(template, &registry.path().join("storage")).expect("copy images");
        registry
    }

    fn launch(folder: tempfile::TempDir, asks: bool) -> Self {
        let htpasswd = folder.path().join("htpasswd");
        fs::write(&htpasswd, format!("{USER}:{HASH}\n")).expect("write the registry's users");
        let mut config = json!({
            "version": 0.1,
            "log": { "level": "info", "accesslog": { "disabled": false } },
            "storage": {
                "filesystem": { "rootdirectory": folder.path().join("storage") },
                "delete": { "enabled": true },
            },
            "http": { "addr": "127.0.0.1:0" },
        });
        if asks {
            config["auth"] = json!({ "htpasswd": { "realm": "tests", "path": htpasswd } });
        }
        // YAML is a superset of JSON.
        let path = folder.path().join("config.yml");
        fs::write(&path, config.to_string()).expect("write the registry's configuration");
        let mut command = Command::new(tool("docker-registry"));
        command.arg("serve").arg(&path);
        let process = Process::start("docker-registry", command);
        let address = process.wait_for_line("where it listens", Duration::from_secs(30), |line| {
            let rest = line.split_once("listening on ")?.1;
            rest.split(['"', ' ', ',']).next()?.parse().ok()
        });
        Self { process, address, asks, folder }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:PORT`, as references and flags write it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// A reference to something in this registry: `registry.image("busybox:latest")`.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Where its files are.
    pub fn storage(&self) -> std::path::PathBuf {
        self.folder.path().join("storage")
    }

    /// A Docker configuration that is logged in here.
    pub fn docker_config(&self, password: &str) -> Value {
        let auth = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{password}"));
        json!({ "auths": { self.host(): { "auth": auth } } })
    }

    /// Everything that was asked for so far.
    #[track_caller]
    pub fn seen(&self) -> Vec<Seen> {
        // The registry answers first and logs then, so what was answered before this is asked is in the log
        // when this is.
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let mark = format!("{MARK}{}/tags/list", ASKED.fetch_add(1, Ordering::Relaxed));
        self.request("GET", &mark).send();
        self.process.wait_for_line("that it was asked for a mark", Duration::from_secs(10), |line| {
            (Seen::read(line)?.path == mark).then_some(())
        });
        let seen = self.process.log().lines().filter_map(Seen::read).collect::<Vec<_>>();
        seen.into_iter().filter(|seen| !seen.path.starts_with(MARK)).collect()
    }

    /// How often a layer, or anything else with a digest, was downloaded.
    pub fn downloads(&self, digest: &str) -> usize {
        let path = format!("/blobs/{digest}");
        let download = |seen: &&Seen| seen.method == "GET" && seen.status < 300 && seen.path.ends_with(&path);
        self.seen().iter().filter(download).count()
    }

    /// The layers of an image in this registry, by digest.
    #[track_caller]
    pub fn layers_of(&self, repository: &str, tag: &str) -> Vec<String> {
        let layers = self.layers(repository, tag);
        layers
            .iter()
            .map(|layer| layer["digest"].as_str().expect("a layer has a digest").to_owned())
            .collect()
    }

    /// How long they are.
    #[track_caller]
    pub fn sizes_of(&self, repository: &str, tag: &str) -> Vec<u64> {
        let layers = self.layers(repository, tag);
        layers.iter().map(|layer| layer["size"].as_u64().expect("a layer has a size")).collect()
    }

    #[track_caller]
    fn layers(&self, repository: &str, tag: &str) -> Vec<Value> {
        let request =
            self.request("GET", &format!("/v2/{repository}/manifests/{tag}")).header("Accept", MANIFEST);
        let manifest = request.send().expect(200);
        manifest["layers"].as_array().expect("a manifest has layers").clone()
    }

    /// Pushes an image and returns its digest.
    #[track_caller]
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> String {
        self.push_blobs(repository, image);
        self.put_manifest(repository, tag, MANIFEST, &image.manifest())
    }

    /// Pushes an index of several images, each for the platform of its configuration; returns the index's digest.
    #[track_caller]
    pub fn push_index(&self, repository: &str, tag: &str, images: &[Image]) -> String {
        let mut manifests = Vec::new();
        for image in images {
            self.push_blobs(repository, image);
            let manifest = Blob::new(image.manifest().to_string());
            self.put_manifest(repository, &manifest.digest, MANIFEST, &image.manifest());
            manifests.push(json!({
                "mediaType": MANIFEST,
                "digest": manifest.digest,
                "size": manifest.len(),
                "platform": { "architecture": image.config["architecture"], "os": image.config["os"] },
            }));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.put_manifest(repository, tag, INDEX, &index)
    }

    /// Pushes an index whose only entry is another index.
    #[track_caller]
    pub fn nest_index(&self, repository: &str, tag: &str, inner: &str) -> String {
        let path = format!("/v2/{repository}/manifests/{inner}");
        let size = self.request("GET", &path).header("Accept", INDEX).send().body.len();
        let entry = json!({ "mediaType": INDEX, "digest": inner, "size": size });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        self.put_manifest(repository, tag, INDEX, &index)
    }

    /// A registry that stands for Docker Hub where a daemon has it for a mirror: `alpine`, which is busybox,
    /// `python`, `python:3.13`, `python:3.13-alpine` and `gcc:14`, which are Debian's Python with a C compiler.
    #[track_caller]
    pub fn of_examples() -> Self {
        let registry = Self::start();
        registry.copy("busybox", "latest", "library/alpine", "latest");
        for (repository, tag) in
            [("python", "latest"), ("python", "3.13"), ("python", "3.13-alpine"), ("gcc", "14")]
        {
            registry.copy("python", "3", &format!("library/{repository}"), tag);
        }
        registry
    }

    /// The same image under another name.
    #[track_caller]
    fn copy(&self, from: &str, tag: &str, to: &str, as_tag: &str) {
        let request = self.request("GET", &format!("/v2/{from}/manifests/{tag}")).header("Accept", MANIFEST);
        let manifest = request.send().expect(200);
        let layers = manifest["layers"].as_array().expect("a manifest has layers");
        for blob in layers.iter().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().expect("a blob has a digest");
            let path = format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}");
            assert_eq!(self.request("POST", &path).send().status, 201, "mount {digest}");
        }
        self.put_manifest(to, as_tag, MANIFEST, &manifest);
    }

    #[track_caller]
    pub fn push_blobs(&self, repository: &str, image: &Image) {
        let mut done = BTreeSet::new();
        let blobs = image.layers.iter().map(|layer| layer.blob.clone()).chain([image.config_blob()]);
        for blob in blobs.filter(|blob| done.insert(blob.digest.clone())) {
            self.push_blob(repository, &blob);
        }
    }

    #[track_caller]
    pub fn push_blob(&self, repository: &str, blob: &Blob) {
        let known = self.request("HEAD", &format!("/v2/{repository}/blobs/{}", blob.digest)).send();
        if known.status == 200 {
            return;
        }
        let started = self.request("POST", &format!("/v2/{repository}/blobs/uploads/")).send();
        assert_eq!(started.status, 202, "{}", started.text());
        let place = started.header("location").expect("an upload has a place");
        let place = place.strip_prefix(&format!("http://{}", self.address)).unwrap_or(place);
        let path = format!("{place}&digest={}", blob.digest);
        let stored =
            self.request("PUT", &path).header("Content-Type", "application/octet-stream").body(blob.bytes());
        let stored = stored.send();
        assert_eq!(stored.status, 201, "{}", stored.text());
    }

    /// Puts a manifest, true or not, under a tag or its digest; returns its digest.
    #[track_caller]
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, manifest: &Value) -> String {
        let bytes = manifest.to_string();
        let request = self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"));
        let stored: Response = request.header("Content-Type", media_type).body(bytes.clone()).send();
        assert_eq!(stored.status, 201, "{}", stored.text());
        Blob::new(bytes).digest
    }

    /// A request to the registry, with the password if it asks for one.
    pub fn request(&self, method: &str, path: &str) -> Request {
        let request = Request::new(self.address, method, path);
        if !self.asks {
            return request;
        }
        let auth = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
        request.header("Authorization", format!("Basic {auth}"))
    }
}

impl Seen {
    /// A line of the access log, which has the shape that Apache gave it.
    fn read(line: &str) -> Option<Self> {
        let mut quoted = line.split('"');
        let before = quoted.next()?;
        if !before.ends_with("] ") {
            return None;
        }
        let mut request = quoted.next()?.split(' ');
        let (method, path) = (request.next()?.to_owned(), request.next()?.to_owned());
        let status = quoted.next()?.split_whitespace().next()?.parse().ok()?;
        Some(Self { method, path, status })
    }
}

/// Copies a registry's storage: blobs, which never change, by hard links; the rest, which is small, in full.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, place) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&source, &place)?;
        } else if entry.file_name() == "data" && entry.metadata()?.size() > 0 {
            fs::hard_link(&source, &place)?;
        } else {
            fs::copy(&source, &place)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stock_images_are_served_and_every_download_is_counted() {
        let registry = Registry::start();
        for (repository, tag) in
            [("busybox", "latest"), ("busybox", "zstd"), ("busybox", "plain"), ("python", "3")]
        {
            let layers = registry.layers_of(repository, tag);
            assert_eq!(layers.len(), 1, "{repository}:{tag}");
            assert_eq!(registry.downloads(&layers[0]), 0, "{repository}:{tag}");
            let path = format!("/v2/{repository}/blobs/{}", layers[0]);
            let blob = registry.request("GET", &path).send();
            assert_eq!(crate::image::digest(&blob.body), layers[0]);
            crate::until("the download in the log", || registry.downloads(&layers[0]) == 1);
        }
    }

    #[test]
    fn a_registry_that_asks_lets_nobody_else_in() {
        let registry = Registry::that_asks();
        assert_eq!(registry.request("GET", "/v2/").send().status, 200);
        assert_eq!(Request::new(registry.address(), "GET", "/v2/").send().status, 401);
    }

    #[test]
    fn the_access_log_is_told_from_the_rest() {
        let line = r#"127.0.0.1 - - [24/Nov/2026:00:00:00 +0000] "GET /v2/a/blobs/sha256:ab HTTP/1.1" 200 3 "" "x/1""#;
        let seen = Seen { method: "GET".into(), path: "/v2/a/blobs/sha256:ab".into(), status: 200 };
        assert_eq!(Seen::read(line), Some(seen));
        assert_eq!(Seen::read(r#"time="now" level=info msg="listening on 127.0.0.1:5000""#), None);
    }
}
