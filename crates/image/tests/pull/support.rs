//! Images made by hand, a real registry, one that does as it is told, and a layer store in a folder.

mod folder;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use image::{Config, Eviction, ImageError, Images, Observer, PullResult};
use serde_json::json;
use sha2::Digest;

pub(crate) use self::folder::Folder;

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn hex(digest: &str) -> String {
    digest.split_once(':').unwrap().1.to_owned()
}

/// Whether the test can run; says so where it can't.
pub(crate) fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|stat| std::os::unix::fs::MetadataExt::uid(&stat) == 0);
    if !root {
        eprintln!("SKIPPED {}: unpacking needs root", std::thread::current().name().unwrap_or("a test"));
    }
    root
}

macro_rules! as_root {
    () => {
        if !crate::support::is_root() {
            return;
        }
    };
}
pub(crate) use as_root;

/// One image as a registry has it.
#[derive(Clone, Default)]
pub(crate) struct Made {
    /// By digest.
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) media_type: String,
    pub(crate) diff_ids: Vec<String>,
    pub(crate) layers: Vec<String>,
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        let is_dir = path.ends_with('/');
        header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if is_dir { 0o1777 } else { 0o644 });
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that don't compress.
pub(crate) fn noise(bytes: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + (state % 90) as u8)
    };
    (0..bytes).map(|_| next()).collect()
}

/// An image of gzipped layers for this machine.
pub(crate) fn made(layers: &[Vec<u8>]) -> Made {
    made_with(layers, |_| {}, |_| {})
}

pub(crate) fn made_with(
    layers: &[Vec<u8>],
    config: impl Fn(&mut serde_json::Value),
    manifest: impl Fn(&mut serde_json::Value),
) -> Made {
    let mut made = Made { media_type: OCI_MANIFEST.into(), ..Made::default() };
    let mut descriptors = Vec::new();
    for layer in layers {
        let compressed = gzip(layer);
        let name = digest(&compressed);
        descriptors.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": name, "size": compressed.len()}));
        made.diff_ids.push(digest(layer));
        made.layers.push(name.clone());
        made.blobs.insert(name, compressed);
    }
    let mut document = json!({
        "os": "linux", "architecture": image::Platform::default().architecture,
        "config": {"Env": ["A=b"], "Cmd": ["sh"], "WorkingDir": "/w", "User": "7"},
        "rootfs": {"type": "layers", "diff_ids": made.diff_ids},
    });
    config(&mut document);
    let bytes = serde_json::to_vec(&document).unwrap();
    let mut document = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&bytes), "size": bytes.len()},
        "layers": descriptors,
    });
    made.blobs.insert(digest(&bytes), bytes);
    manifest(&mut document);
    made.manifest = serde_json::to_vec(&document).unwrap();
    made
}

/// Debian's registry on a port of its own.
pub(crate) struct Registry {
    pub(crate) host: String,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Nothing where there is no registry to start, which is said.
    pub(crate) async fn start() -> Option<Self> {
        let program = "/usr/bin/docker-registry";
        if !Path::new(program).exists() {
            eprintln!(
                "SKIPPED {}: {program} is not installed",
                std::thread::current().name().unwrap_or("a test")
            );
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let data = folder.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\nhttp: {{addr: \"{host}\"}}\n"
        );
        fs::write(folder.path().join("config.yml"), config).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { host, child, _folder: folder };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&registry.host).await.is_ok() {
                return Some(registry);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("the registry does not start");
    }

    pub(crate) async fn push(&self, repository: &str, tag: &str, made: &Made) {
        let client = plain_client();
        let base = format!("http://{}/v2/{repository}", self.host);
        for (name, bytes) in &made.blobs {
            let started = client.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
            let location = started.headers()["location"].to_str().unwrap();
            let separator = if location.contains('?') { '&' } else { '?' };
            let put = client
                .put(format!("{location}{separator}digest={name}"))
                .body(bytes.clone())
                .send()
                .await
                .unwrap();
            assert!(put.status().is_success(), "{}", put.status());
        }
        let put = client
            .put(format!("{base}/manifests/{tag}"))
            .header("content-type", &made.media_type)
            .body(made.manifest.clone());
        let put = put.send().await.unwrap();
        assert!(put.status().is_success(), "{} {}", put.status(), put.text().await.unwrap());
    }
}

fn plain_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

/// Says what a request gets instead of what it asked for; the number counts requests of its path.
type Script = dyn Fn(&str, u64, &HeaderMap) -> Option<Response> + Send + Sync;

/// A registry that lies and stalls as its script says, and counts.
pub(crate) struct Fake {
    pub(crate) host: String,
    shared: Arc<Shared>,
}

struct Shared {
    images: Mutex<HashMap<String, Made>>,
    script: Box<Script>,
    requests: Mutex<BTreeMap<String, u64>>,
}

impl Fake {
    pub(crate) async fn start(
        made: Made,
        script: impl Fn(&str, u64, &HeaderMap) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let images = Mutex::new(HashMap::from([("x".to_owned(), made)]));
        let shared = Arc::new(Shared { images, script: Box::new(script), requests: Mutex::default() });
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { host, shared }
    }

    pub(crate) async fn honest(made: Made) -> Self {
        Self::start(made, |_, _, _| None).await
    }

    pub(crate) fn serve(&self, repository: &str, made: Made) {
        self.shared.images.lock().unwrap().insert(repository.into(), made);
    }

    /// How often a path with this in it was asked for with GET.
    pub(crate) fn gets(&self, part: &str) -> u64 {
        self.count("GET", part)
    }

    pub(crate) fn count(&self, method: &str, part: &str) -> u64 {
        let requests = self.shared.requests.lock().unwrap();
        requests
            .iter()
            .filter(|(path, _)| path.starts_with(method) && path.contains(part))
            .map(|(_, count)| count)
            .sum()
    }

    pub(crate) fn all(&self) -> u64 {
        self.shared.requests.lock().unwrap().values().sum()
    }

    pub(crate) fn name(&self) -> String {
        format!("{}/x:latest", self.host)
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().as_str().to_owned();
    let key = format!("{} {path}", request.method());
    let count = {
        let mut requests = shared.requests.lock().unwrap();
        let count = requests.entry(key).or_default();
        *count += 1;
        *count
    };
    if let Some(response) = (shared.script)(&path, count, request.headers()) {
        return response;
    }
    let parts: Vec<_> = path.trim_start_matches("/v2/").split('/').collect();
    let [repository, kind, wanted] = parts[..] else { return StatusCode::NOT_FOUND.into_response() };
    let images = shared.images.lock().unwrap();
    let Some(made) = images.get(repository) else { return StatusCode::NOT_FOUND.into_response() };
    match kind {
        "blobs" => made
            .blobs
            .get(wanted)
            .map_or(StatusCode::NOT_FOUND.into_response(), |blob| blob.clone().into_response()),
        _ if made.blobs.contains_key(wanted) => {
            ([(header::CONTENT_TYPE, OCI_MANIFEST.to_owned())], made.blobs[wanted].clone()).into_response()
        }
        _ => {
            let headers = [
                (header::CONTENT_TYPE, made.media_type.clone()),
                (header::HeaderName::from_static("docker-content-digest"), digest(&made.manifest)),
            ];
            (headers, made.manifest.clone()).into_response()
        }
    }
}

/// A body that breaks off after `bytes`.
pub(crate) fn broken_off(whole: &[u8], bytes: usize) -> Response {
    let part = Bytes::copy_from_slice(&whole[..bytes]);
    let chunks = vec![Ok(part), Err(io::Error::other("broken off"))];
    let body = Body::from_stream(futures_util::stream::iter(chunks));
    ([(header::CONTENT_LENGTH, whole.len().to_string())], body).into_response()
}

/// A body that never comes.
pub(crate) fn stalled(len: usize) -> Response {
    let body = Body::from_stream(futures_util::stream::pending::<io::Result<Bytes>>());
    ([(header::CONTENT_LENGTH, len.to_string())], body).into_response()
}

pub(crate) fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

/// Counts what it is told.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) hits: AtomicU64,
    pub(crate) coalesced: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) retried: Mutex<Vec<&'static str>>,
    pub(crate) finished: Mutex<Vec<PullResult>>,
    pub(crate) evicted: Mutex<Vec<Eviction>>,
}

impl Observer for Counts {
    fn cache_hit(&self) {
        self.hits.fetch_add(1, Ordering::SeqCst);
    }

    fn pull_coalesced(&self) {
        self.coalesced.fetch_add(1, Ordering::SeqCst);
    }

    fn bytes_downloaded(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    fn retried(&self, reason: &'static str) {
        self.retried.lock().unwrap().push(reason);
    }

    fn image_removed(&self, why: Eviction) {
        self.evicted.lock().unwrap().push(why);
    }

    fn pull_finished(&self, result: PullResult, _: Duration) {
        self.finished.lock().unwrap().push(result);
    }
}

/// A store in a folder of its own.
pub(crate) struct Home {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Folder,
    pub(crate) counts: Arc<Counts>,
    pub(crate) config: Config,
}

impl Home {
    pub(crate) fn new(insecure: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("trees")).unwrap();
        let store = Folder::at(folder.path().join("trees"));
        let mut config = Config::new(folder.path().join("records"));
        config.insecure_registries = insecure.iter().map(|host| (*host).to_owned()).collect();
        config.pull_timeout = Duration::from_secs(30);
        config.idle_timeout = Duration::from_secs(5);
        config.grace = Duration::from_millis(200);
        Self { folder, store, counts: Arc::default(), config }
    }

    pub(crate) async fn open(&self) -> Images {
        let observer = Arc::clone(&self.counts) as Arc<dyn Observer>;
        Images::open(self.config.clone(), Arc::new(self.store.clone()), observer).await.unwrap()
    }

    pub(crate) fn tree(&self, layer: &str) -> PathBuf {
        self.folder.path().join("trees").join(layer)
    }

    pub(crate) fn read(&self, layer: &str, path: &str) -> String {
        fs::read_to_string(self.tree(layer).join(path)).unwrap()
    }

    /// Names of the trees that are there.
    pub(crate) fn trees(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("trees")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Waits until the trees are these.
    pub(crate) async fn trees_become(&self, expected: &[&str]) {
        let mut expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
        expected.sort();
        for _ in 0..200 {
            if self.trees() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.trees(), expected);
    }
}

/// A pull that must fail, and leave nothing.
pub(crate) async fn fails(home: &Home, reference: &str) -> ImageError {
    let images = home.open().await;
    let error = images.acquire(reference, run::Pull::Missing).await.unwrap_err();
    home.trees_become(&[]).await;
    assert!(images.list().is_empty());
    error
}
