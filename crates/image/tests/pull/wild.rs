//! A walk: random pulls, removals and failures of the disk, and what must be so whenever it is quiet, or killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use image::{
    BoxFuture, Commit, Deleting, Images, LayerStore, Lease, Observer, Packing, Rootfs, Unpacked, Unpacking,
};
use run::Pull;

use crate::support::{Fake, Folder, Home, Made, as_root, digest, layer, made};

struct Dice(AtomicU64);

impl Dice {
    /// Another one each time.
    fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self(AtomicU64::new(RandomState::new().hash_one(0u8)))
    }

    fn roll(&self, below: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    async fn pause(&self, below_us: u64) {
        let us = self.roll(below_us);
        if us > 200 {
            tokio::time::sleep(Duration::from_micros(us)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

#[derive(Clone)]
struct Wild {
    inner: Folder,
    dice: Arc<Dice>,
    /// Names mean something else all the time, and the disk is slow and fails often.
    is_hard: bool,
    /// Nothing goes but what is removed: the disk is never full.
    keeps_promises: bool,
}

impl Wild {
    fn fails(&self, percent: u64) -> bool {
        self.dice.roll(100) < percent
    }
}

impl LayerStore for Wild {
    fn unpack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::Job,
    ) -> BoxFuture<'a, io::Result<Box<dyn Unpacking>>> {
        Box::pin(async move {
            let inner = self.inner.unpack(layer, job).await?;
            Ok(Box::new(WildUnpacking { inner, wild: self.clone() }) as Box<dyn Unpacking>)
        })
    }

    fn pack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::PackJob,
    ) -> BoxFuture<'a, io::Result<Box<dyn Packing>>> {
        self.inner.pack(layer, job)
    }

    fn remove<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, io::Result<Deleting>> {
        Box::pin(async move {
            self.dice.pause(4000).await;
            let deleting = self.inner.remove(layer).await;
            self.dice.pause(4000).await;
            deleting
        })
    }
}

struct WildUnpacking {
    inner: Box<dyn Unpacking>,
    wild: Wild,
}

impl Unpacking for WildUnpacking {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>> {
        self.inner.write(bytes)
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<Unpacked>> {
        Box::pin(async move {
            self.wild.dice.pause(3000).await;
            let Unpacked { report, commit } = self.inner.finish().await?;
            Ok(Unpacked { report, commit: Box::new(WildCommit { inner: commit, wild: self.wild }) })
        })
    }
}

struct WildCommit {
    inner: Box<dyn Commit>,
    wild: Wild,
}

impl Commit for WildCommit {
    fn name(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.wild.dice.pause(2000).await;
            if self.wild.fails(3) {
                return Err(io::Error::other("no name"));
            }
            self.inner.name().await?;
            self.wild.dice.pause(1000).await;
            if self.wild.fails(3) { Err(io::Error::other("nobody heard it")) } else { Ok(()) }
        })
    }

    fn sync(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.wild.dice.pause(if self.wild.is_hard { 150_000 } else { 40_000 }).await;
            match self.wild.fails(if self.wild.is_hard { 50 } else { 30 }) {
                true if !self.wild.keeps_promises && self.wild.dice.roll(2) == 0 => {
                    Err(io::ErrorKind::StorageFull.into())
                }
                true => Err(io::Error::other("sync")),
                false => Ok(()),
            }
        })
    }
}

const LAYERS: u64 = 7;
const NAMES: u64 = 4;
const WORKERS: usize = 6;
/// Of the walk, each of a hundred and fifty steps.
const ROUNDS: u32 = 8;
const KILLS: u32 = 20;
/// Where the one lives that another process kills.
const TO_BE_KILLED: &str = "SANDGLASS_WILD_FOLDER";

struct World {
    root: PathBuf,
    fake: Fake,
    home: Home,
    store: Wild,
    dice: Arc<Dice>,
    /// By digest of the manifest: which layers.
    served: Mutex<BTreeMap<String, Vec<u64>>>,
    /// Names that were said to be kept, since nobody began to remove them.
    promised: Mutex<BTreeSet<String>>,
    removals: AtomicU64,
    removed: AtomicU64,
    unique: AtomicU64,
}

fn file(at: u64) -> (String, String) {
    (format!("f{at}"), format!("content {at}"))
}

impl World {
    async fn new(mut home: Home, root: Option<PathBuf>, is_hard: bool, keeps_promises: bool) -> Arc<Self> {
        let content = contents();
        let fake = Fake::honest(made(std::slice::from_ref(&content[0]))).await;
        home.config.insecure_registries = vec![fake.host.clone()];
        home.config.grace = Duration::from_millis(3);
        let dice = Arc::new(Dice::new());
        let store = Wild { inner: home.store.clone(), dice: Arc::clone(&dice), is_hard, keeps_promises };
        let world = Arc::new(Self {
            root: root.unwrap_or_else(|| home.folder.path().to_owned()),
            fake,
            home,
            store,
            dice,
            served: Mutex::default(),
            promised: Mutex::default(),
            removals: AtomicU64::default(),
            removed: AtomicU64::default(),
            unique: AtomicU64::default(),
        });
        (0..NAMES).for_each(|name| world.serve(name));
        world
    }

    async fn open(&self) -> Images {
        let observer = Arc::clone(&self.home.counts) as Arc<dyn Observer>;
        Images::open(self.home.config.clone(), Arc::new(self.store.clone()), observer).await.unwrap()
    }

    fn serve(&self, name: u64) {
        let mut layers: BTreeSet<u64> = BTreeSet::new();
        layers.insert(self.dice.roll(2));
        for _ in 0..self.dice.roll(3) {
            layers.insert(self.dice.roll(LAYERS));
        }
        if self.store.is_hard {
            // One that nobody has had.
            layers.insert(LAYERS + self.unique.fetch_add(1, Ordering::SeqCst));
        }
        let layers: Vec<u64> = layers.into_iter().collect();
        let content = |at: &u64| {
            let (path, content) = file(*at);
            layer(&[(&path, &content)])
        };
        let made: Made = made(&layers.iter().map(content).collect::<Vec<_>>());
        self.served.lock().unwrap().insert(digest(&made.manifest), layers);
        self.fake.serve(&format!("x{name}"), made);
    }

    fn name(&self, name: u64) -> String {
        format!("{}/x{name}", self.fake.host)
    }

    fn check(&self, lease: &Lease) {
        let Rootfs::Layers(layers) = &lease.rootfs else { panic!() };
        let digest = lease.digest.as_ref().unwrap();
        let wanted = self.served.lock().unwrap()[digest].clone();
        assert_eq!(wanted.len(), layers.len());
        for (at, layer) in wanted.iter().zip(layers.iter().rev()) {
            let (path, content) = file(*at);
            let found = fs::read_to_string(self.root.join("trees").join(layer).join(path));
            assert_eq!(found.ok(), Some(content), "{layer} of {}", lease.reference);
        }
    }

    async fn step(&self, images: &Images, kept: &Mutex<Vec<Lease>>) {
        let at = self.dice.roll(if self.store.is_hard { 2 } else { NAMES });
        let name = self.name(at);
        match self.dice.roll(20) {
            11..13 if self.store.is_hard && self.dice.roll(10) > 0 => self.serve(at),
            0..7 => {
                let pull = if self.dice.roll(2) == 0 { Pull::Always } else { Pull::Missing };
                if let Ok(lease) = images.acquire(&name, pull).await {
                    self.check(&lease);
                    self.dice.pause(20_000).await;
                    self.check(&lease);
                    if self.dice.roll(6) == 0 {
                        kept.lock().unwrap().push(lease);
                    }
                }
            }
            7..11 => {
                let patience =
                    Duration::from_micros(self.dice.roll(if self.store.is_hard { 300_000 } else { 60_000 }));
                let mut steps = Vec::new();
                let mut on = |step| steps.push(step);
                let keeping = images.acquire_with_progress(None, &name, Pull::Always, &mut on);
                let removed = self.removed.load(Ordering::SeqCst);
                let is_calm = self.removals.load(Ordering::SeqCst) == removed;
                if let Ok(Ok(lease)) = tokio::time::timeout(patience, keeping).await {
                    let mut promised = self.promised.lock().unwrap();
                    if is_calm && self.removals.load(Ordering::SeqCst) == removed {
                        promised.insert(name.clone());
                        say(&format!("keeps {name}"));
                    }
                    drop(promised);
                    self.check(&lease);
                    assert!(matches!(steps.last(), Some(image::Progress::Ready { .. })), "{steps:?}");
                }
            }
            11..13 => {
                {
                    let mut promised = self.promised.lock().unwrap();
                    self.removals.fetch_add(1, Ordering::SeqCst);
                    promised.remove(&name);
                    say(&format!("removes {name}"));
                }
                let _ = images.remove(&name).await;
                self.removed.fetch_add(1, Ordering::SeqCst);
            }
            13 => {
                let _ = images.pin(&name, self.dice.roll(2) == 0).await;
            }
            14..16 => self.serve(at),
            16 => {
                let known = images.list().into_iter().map(|image| image.digest).next();
                if let Some(digest) = known
                    && let Ok(lease) = images.acquire(&format!("{name}@{digest}"), Pull::Never).await
                {
                    self.check(&lease);
                }
            }
            17 => {
                let leases = std::mem::take(&mut *kept.lock().unwrap());
                leases.iter().for_each(|lease| self.check(lease));
            }
            _ => self.dice.pause(5000).await,
        }
    }

    fn records(&self, folder: &str) -> BTreeMap<String, serde_json::Value> {
        let entries = fs::read_dir(self.root.join("records").join(folder)).unwrap();
        let read = |entry: io::Result<fs::DirEntry>| {
            let path = entry.unwrap().path();
            let text = fs::read(&path).unwrap_or_default();
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                serde_json::from_slice(&text).unwrap_or_default(),
            )
        };
        entries.map(read).collect()
    }

    /// What is wrong now that it is quiet.
    fn fault(&self, images: &Images) -> Option<String> {
        let records = self.records("images");
        let on_disk: BTreeMap<String, String> = records
            .values()
            .map(|record| {
                let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
                (text("reference"), format!("{} {}", text("digest"), record["pinned"]))
            })
            .collect();
        let listed: BTreeMap<String, String> = images
            .list()
            .into_iter()
            .map(|image| (image.reference, format!("{} {}", image.digest, image.pinned)))
            .collect();
        if on_disk != listed {
            return Some(format!("on disk {on_disk:#?}\nlisted {listed:#?}"));
        }
        let needed: BTreeSet<String> = records
            .values()
            .flat_map(|record| record["layers"].as_array().cloned().unwrap_or_default())
            .map(|layer| layer.as_str().unwrap().to_owned())
            .collect();
        let trees: BTreeSet<String> = self.home.trees().into_iter().collect();
        if trees != needed {
            return Some(format!("trees {trees:#?}\nneeded {needed:#?}"));
        }
        let layers = self.records("layers");
        let counting: BTreeSet<String> = layers
            .iter()
            .filter(|(_, record)| !record["kept"].is_null())
            .map(|(name, _)| name.trim_end_matches(".json").to_owned())
            .collect();
        if counting != needed || layers.len() != needed.len() {
            return Some(format!("records {:#?}\nneeded {needed:#?}", layers.keys()));
        }
        None
    }

    async fn quiet(&self, images: &Images) {
        let begun = Instant::now();
        while let Some(fault) = self.fault(images) {
            if begun.elapsed() > Duration::from_secs(5) {
                panic!("it does not become right: {fault}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.store.keeps_promises {
            for name in &*self.promised.lock().unwrap() {
                assert!(images.get(name).is_ok(), "{name} was kept and is gone");
            }
        }
        for image in images.list() {
            let lease = images.acquire(&image.reference, Pull::Never).await.unwrap();
            self.check(&lease);
            let mut on = |_| {};
            let kept = images.acquire_with_progress(None, &image.reference, Pull::Missing, &mut on);
            tokio::time::timeout(Duration::from_secs(5), kept).await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_happens_the_store_is_right_when_it_is_quiet() {
    as_root!();
    for is_hard in [false, true] {
        walk(&World::new(Home::new(&[]), None, is_hard, is_hard).await).await;
    }
}

async fn walk(world: &Arc<World>) {
    let mut images = world.open().await;
    for round in 0..ROUNDS {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let (world, images, kept) = (Arc::clone(world), images.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    for _ in 0..25 {
                        world.step(&images, &kept).await;
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        {
            let leases = std::mem::take(&mut *kept.lock().unwrap());
            leases.iter().for_each(|lease| world.check(lease));
        }
        world.quiet(&images).await;
        if round % 4 == 3 {
            tokio::time::timeout(Duration::from_secs(10), images.close()).await.expect("it closes");
            let before = images.list().len();
            drop(images);
            images = world.open().await;
            assert_eq!(images.list().len(), before);
            world.quiet(&images).await;
        }
    }
    assert!(!images.list().is_empty(), "nothing came to be kept");
}

fn contents() -> Vec<Vec<u8>> {
    let content = |at| {
        let (path, content) = file(at);
        layer(&[(&path, &content)])
    };
    (0..LAYERS).map(content).collect()
}

/// To whoever will kill this process.
fn say(what: &str) {
    use std::io::Write;
    if std::env::var_os(TO_BE_KILLED).is_some() {
        let line = format!("\nSAID {what}\n");
        let _ = io::stdout().write_all(line.as_bytes());
        let _ = io::stdout().flush();
    }
}

/// Does as it likes until it is killed.
async fn live(root: PathBuf) {
    let mut home = Home::new(&[]);
    home.config.dir = root.join("records");
    home.store = Folder::at(root.join("trees"));
    let world = World::new(home, Some(root), false, true).await;
    let images = world.open().await;
    for image in images.list() {
        images.remove(&image.reference).await.unwrap();
    }
    say("begins");
    let kept = Arc::new(Mutex::new(Vec::new()));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (world, images, kept) = (Arc::clone(&world), images.clone(), Arc::clone(&kept));
            tokio::spawn(async move {
                loop {
                    world.step(&images, &kept).await;
                }
            })
        })
        .collect();
    futures_util::future::join_all(workers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_at_any_moment_it_leaves_what_is_right() {
    use std::io::BufRead;
    as_root!();
    if let Some(root) = std::env::var_os(TO_BE_KILLED) {
        return live(root.into()).await;
    }
    let dice = Dice::new();
    let mut home = Home::new(&[]);
    let root = home.folder.path().to_owned();
    let names: BTreeMap<String, u64> =
        contents().iter().zip(0..).map(|(content, at)| (digest(content)[7..].to_owned(), at)).collect();
    let mut kept = 0;
    for round in 0..KILLS {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "--exact", "wild::killed_at_any_moment_it_leaves_what_is_right"])
            .env(TO_BE_KILLED, &root)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = move || {
            lines.by_ref().map_while(Result::ok).find_map(|line| Some(line.strip_prefix("SAID ")?.to_owned()))
        };
        while said().expect("it lives") != "begins" {}
        let reading = std::thread::spawn(move || {
            let mut promised = BTreeSet::new();
            while let Some(what) = said() {
                match what.split_once(' ').unwrap() {
                    ("keeps", name) => drop(promised.insert(name.to_owned())),
                    (_, name) => drop(promised.remove(name)),
                }
            }
            promised
        });
        std::thread::sleep(Duration::from_millis(20 + dice.roll(400)));
        child.kill().unwrap();
        child.wait().unwrap();
        let promised = reading.join().unwrap();
        // As the launcher does when it starts.
        for tree in home.trees().iter().filter(|name| name.starts_with("tmp-")) {
            fs::remove_dir_all(home.tree(tree)).unwrap();
        }
        let hosts = fs::read_dir(root.join("records/images")).unwrap().map(|entry| {
            let record = fs::read(entry.unwrap().path()).unwrap();
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
            record["reference"].as_str().unwrap_or_default().split('/').next().unwrap().to_owned()
        });
        home.config.insecure_registries = hosts.collect();
        let images = home.open().await;
        for name in &promised {
            assert!(images.get(name).is_ok(), "round {round}: {name} was kept and is gone");
        }
        kept += promised.len();
        let mut needed = BTreeSet::new();
        for image in images.list() {
            let lease = images.acquire(&image.reference, Pull::Never).await;
            // Its registry is gone; what is here needs none.
            let Ok(lease) = lease else { panic!("round {round}: {lease:?}") };
            let Rootfs::Layers(layers) = &lease.rootfs else { panic!() };
            for layer in layers.iter() {
                let (path, content) = file(names[layer]);
                assert_eq!(
                    fs::read_to_string(home.tree(layer).join(path)).ok(),
                    Some(content),
                    "round {round}"
                );
                needed.insert(layer.clone());
            }
        }
        let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
        home.trees_become(&needed).await;
        tokio::time::timeout(Duration::from_secs(10), images.close()).await.unwrap();
        // One may just be written anew, with when it was last used.
        let records = |folder: &str, ending: &str| {
            let entries = fs::read_dir(root.join("records").join(folder)).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.ends_with(ending)).count()
        };
        assert_eq!(records("images", ".json"), images.list().len(), "round {round}");
        assert_eq!(records("layers", ""), needed.len(), "round {round}");
    }
    assert!(kept > 0, "nothing was promised to anybody before a kill");
}
