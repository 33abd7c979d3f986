//! What can be used before it is durable, and what becomes of it where the disk fails.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image::{Archive, Credential, Eviction, ImageError, Images, Lease, Logins, Progress, Rootfs};
use run::{PrincipalName, Pull};

use crate::support::{Fake, Home, as_root, layer, made};

/// Longer than anything takes here that does not wait for the disk.
const A_WHILE: Duration = Duration::from_millis(500);

/// Where an image is asked for and the disk takes its time.
struct Slow {
    fake: Fake,
    home: Home,
    images: Images,
    name: String,
}

impl Slow {
    async fn new() -> Self {
        let fake = Fake::honest(made(&[layer(&[("base", "old")]), layer(&[("x", "old")])])).await;
        let home = Home::new(&[&fake.host]);
        let images = home.open().await;
        let name = format!("{}/x", fake.host);
        home.store.disk.waits();
        Self { fake, home, images, name }
    }

    async fn run(&self) -> Lease {
        tokio::time::timeout(A_WHILE * 10, self.images.acquire(&self.name, Pull::Always))
            .await
            .unwrap()
            .unwrap()
    }

    /// Whoever wants it kept.
    fn keep(&self) -> impl Future<Output = (Result<Lease, ImageError>, Vec<Progress>)> + use<> {
        let (images, name) = (self.images.clone(), self.name.clone());
        async move {
            let mut steps = Vec::new();
            let kept =
                images.acquire_with_progress(None, &name, Pull::Missing, &mut |step| steps.push(step)).await;
            (kept, steps)
        }
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.home.folder.path().join("records").join(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn settled(&self) {
        tokio::time::timeout(A_WHILE * 10, self.images.close()).await.unwrap();
    }
}

fn content(home: &Home, lease: &Lease, file: &str) -> Option<String> {
    let Rootfs::Layers(layers) = &lease.rootfs else { panic!("it has none") };
    layers.iter().find_map(|layer| fs::read_to_string(home.tree(layer).join(file)).ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_no_sync_and_whoever_wants_an_image_kept_does() {
    as_root!();
    let slow = Slow::new().await;
    let mut keeping = tokio::spawn(slow.keep());
    let lease = slow.run().await;
    assert_eq!(content(&slow.home, &lease, "x").as_deref(), Some("old"));
    assert!(tokio::time::timeout(A_WHILE, &mut keeping).await.is_err(), "nothing is durable");
    // Also for who finds it there.
    let mut late = tokio::spawn(slow.keep());
    assert!(tokio::time::timeout(A_WHILE, &mut late).await.is_err());
    assert!(slow.names("images").is_empty(), "it is written down before its layers are durable");
    slow.home.store.disk.does(Ok(()));
    let (kept, steps) = keeping.await.unwrap();
    assert!(kept.is_ok() && late.await.unwrap().0.is_ok());
    let last_two = &steps[steps.len() - 2..];
    assert!(matches!(last_two, [Progress::Committing, Progress::Ready { .. }]), "{steps:?}");
    assert_eq!(slow.names("images").len(), 1);
    let layers = slow.names("layers");
    assert!(layers.len() == 2 && layers.iter().all(|name| name.ends_with(".json")), "{layers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_loaded_when_it_is_durable() {
    as_root!();
    let slow = Slow::new().await;
    slow.home.store.disk.does(Ok(()));
    let archive = slow.home.folder.path().join("archive.tar");
    drop(slow.run().await);
    slow.images.save(std::slice::from_ref(&slow.name), fs::File::create(&archive).unwrap()).await.unwrap();
    slow.images.remove(&slow.name).await.unwrap();
    slow.home.store.disk.waits();
    let images = slow.images.clone();
    let loading = tokio::spawn(async move {
        images.load(Archive::Path(archive), None, &mut |_| {}).await.map(|loaded| loaded.len())
    });
    tokio::time::sleep(A_WHILE).await;
    assert!(!loading.is_finished(), "nothing is durable");
    slow.home.store.disk.does(Ok(()));
    assert_eq!(loading.await.unwrap().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_can_not_be_made_durable_goes_and_takes_nothing_from_who_uses_it() {
    as_root!();
    let slow = Slow::new().await;
    // Another image that has one of its layers, and comes while that is not durable.
    slow.fake.serve("other", made(&[layer(&[("base", "old")]), layer(&[("y", "y")])]));
    let keeping = tokio::spawn(slow.keep());
    let lease = slow.run().await;
    let other = slow.images.acquire(&format!("{}/other", slow.fake.host), Pull::Missing).await.unwrap();
    slow.home.store.disk.does(Err(ErrorKind::StorageFull));
    let (kept, _) = keeping.await.unwrap();
    assert!(matches!(kept, Err(ImageError::NoSpace { .. })), "{kept:?}");
    // Each is counted when it is gone.
    while slow.home.counts.evicted.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*slow.home.counts.evicted.lock().unwrap(), [Eviction::NotKept; 2]);
    assert!(slow.images.list().is_empty());
    assert!(slow.names("images").is_empty());
    assert_eq!(content(&slow.home, &lease, "x").as_deref(), Some("old"), "a run goes on with what it has");
    // Its tree is in use, and can't be counted on.
    slow.home.store.disk.does(Ok(()));
    let again = slow.images.acquire(&slow.name, Pull::Missing).await;
    assert!(matches!(again, Err(ImageError::NoSpace { .. })), "{again:?}");
    drop((lease, other));
    let lease = slow.run().await;
    assert_eq!(content(&slow.home, &lease, "x").as_deref(), Some("old"));
    slow.settled().await;
    assert_eq!((slow.names("images").len(), slow.names("layers").len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_has_replaced_comes_back_where_it_can_not_be_kept() {
    as_root!();
    let slow = Slow::new().await;
    slow.home.store.disk.does(Ok(()));
    drop(slow.run().await);
    slow.home.store.disk.waits();
    slow.fake.serve("x", made(&[layer(&[("x", "new")])]));
    let new = slow.run().await;
    assert_eq!(content(&slow.home, &new, "x").as_deref(), Some("new"));
    slow.home.store.disk.does(Err(ErrorKind::Other));
    let is_old = || slow.images.list().iter().any(|image| image.layers == 2);
    while !is_old() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let old = slow.images.acquire(&slow.name, Pull::Never).await.unwrap();
    assert_eq!(content(&slow.home, &old, "x").as_deref(), Some("old"));
    drop((new, old));
    slow.settled().await;
    let Slow { home, images, name, .. } = slow;
    drop(images);
    let next = home.open().await;
    let old = next.acquire(&name, Pull::Never).await.unwrap();
    assert_eq!(content(&home, &old, "x").as_deref(), Some("old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_removed_replaced_and_pinned_before_it_is_durable() {
    as_root!();
    let slow = Slow::new().await;
    drop(slow.run().await);
    slow.images.pin(&slow.name, true).await.unwrap();
    slow.fake.serve("x", made(&[layer(&[("x", "new")])]));
    drop(slow.run().await);
    assert!(slow.names("images").is_empty());
    slow.fake.serve("y", made(&[layer(&[("y", "y")])]));
    let other = format!("{}/y", slow.fake.host);
    drop(slow.images.acquire(&other, Pull::Missing).await.unwrap());
    slow.images.remove(&other).await.unwrap();
    slow.home.store.disk.does(Ok(()));
    slow.settled().await;
    let Slow { home, images, name, .. } = slow;
    drop(images);
    let next = home.open().await;
    let [image] = &next.list()[..] else { panic!("{:?}", next.list()) };
    assert!(image.pinned && image.layers == 1);
    let lease = next.acquire(&name, Pull::Never).await.unwrap();
    assert_eq!(content(&home, &lease, "x").as_deref(), Some("new"));
    let Rootfs::Layers(layers) = lease.rootfs.clone() else { panic!("it has none") };
    let new = layers[0].clone();
    drop(lease);
    next.close().await;
    home.trees_become(&[&new]).await;
}

impl Slow {
    /// Has the name mean another image, and uses it before it is durable.
    async fn run_another(&self, content: &str) -> Lease {
        let asked = self.home.store.disk.asked();
        self.fake.serve("x", made(&[layer(&[("x", content)])]));
        let lease = self.run().await;
        assert_eq!(self.content(&lease).as_deref(), Some(content));
        while self.home.store.disk.asked() == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lease
    }

    fn content(&self, lease: &Lease) -> Option<String> {
        content(&self.home, lease, "x")
    }

    /// What the name means.
    async fn is(&self) -> Option<String> {
        let lease = self.images.acquire(&self.name, Pull::Never).await.ok()?;
        self.content(&lease)
    }

    async fn becomes(&self, expected: &str) {
        let becomes = async {
            while self.is().await.as_deref() != Some(expected) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let became = tokio::time::timeout(A_WHILE * 10, becomes).await;
        assert!(became.is_ok(), "{:?}", self.images.list());
    }

    /// What the name means to the next server.
    async fn meant_afterwards(self) -> Option<String> {
        self.settled().await;
        let Self { home, images, name, .. } = self;
        drop(images);
        let next = home.open().await;
        let lease = next.acquire(&name, Pull::Never).await.ok()?;
        content(&home, &lease, "x")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_durable_comes_back_however_many_have_replaced_it_meanwhile() {
    as_root!();
    let slow = Slow::new().await;
    slow.home.store.disk.does(Ok(()));
    drop(slow.run().await);
    drop(slow.keep().await);
    for order in [[1, 2], [2, 1]] {
        let before = slow.home.store.disk.asked();
        slow.home.store.disk.waits();
        drop((slow.run_another("first").await, slow.run_another("second").await));
        for which in order {
            slow.home.store.disk.does_for(before + which - 1, Err(ErrorKind::Other));
            tokio::time::sleep(A_WHILE / 5).await;
        }
        slow.becomes("old").await;
    }
    assert_eq!(slow.meant_afterwards().await.as_deref(), Some("old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_before_it_is_durable_is_not_said_to_be() {
    as_root!();
    let slow = Slow::new().await;
    drop(slow.run_another("first").await);
    drop(slow.run_another("second").await);
    slow.home.store.disk.does_for(1, Err(ErrorKind::Other));
    tokio::time::sleep(A_WHILE / 5).await;
    let mut kept = tokio::spawn(slow.keep());
    assert!(tokio::time::timeout(A_WHILE, &mut kept).await.is_err(), "nothing is durable");
    assert!(slow.names("images").is_empty(), "it is written down before its layers are durable");
    slow.home.store.disk.does_for(0, Ok(()));
    let _ = kept.await.unwrap();
    slow.becomes("first").await;
    assert_eq!(slow.meant_afterwards().await.as_deref(), Some("first"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_told_that_an_image_is_kept_finds_one_of_that_name_after_a_crash() {
    as_root!();
    let slow = Slow::new().await;
    drop(slow.run_another("first").await);
    let mut kept = tokio::spawn(slow.keep());
    tokio::time::sleep(A_WHILE / 5).await;
    drop(slow.run_another("second").await);
    slow.home.store.disk.does_for(0, Ok(()));
    let told = tokio::time::timeout(A_WHILE, &mut kept).await;
    assert!(told.is_err() || !slow.names("images").is_empty(), "nothing of that name is on the disk");
    slow.home.store.disk.does(Ok(()));
    assert!(told.is_ok() || kept.await.unwrap().0.is_ok());
    assert_eq!(slow.meant_afterwards().await.as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pins_what_can_not_be_kept_has_pinned_what_comes_back() {
    as_root!();
    let slow = Slow::new().await;
    slow.home.store.disk.does(Ok(()));
    drop(slow.run().await);
    drop(slow.keep().await);
    slow.home.store.disk.waits();
    drop(slow.run_another("new").await);
    slow.images.pin(&slow.name, true).await.unwrap();
    slow.home.store.disk.does(Err(ErrorKind::Other));
    slow.becomes("old").await;
    assert!(slow.images.get(&slow.name).unwrap().pinned, "it was said to be");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_could_not_be_kept_and_is_in_use_costs_no_other_image() {
    as_root!();
    let slow = Slow::new().await;
    slow.fake.serve("y", made(&[layer(&[("y", "y")])]));
    slow.home.store.disk.does(Ok(()));
    let other = format!("{}/y", slow.fake.host);
    drop(slow.images.acquire_with_progress(None, &other, Pull::Missing, &mut |_| {}).await.unwrap());
    slow.home.store.disk.waits();
    let lease = slow.run().await;
    slow.home.store.disk.does(Err(ErrorKind::StorageFull));
    while slow.images.list().len() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    slow.home.store.disk.does(Ok(()));
    let again = slow.images.acquire(&slow.name, Pull::Missing).await;
    assert!(matches!(again, Err(ImageError::NoSpace { .. })), "{again:?}");
    assert!(slow.images.get(&other).is_ok(), "no room was missing");
    drop(lease);
}

/// Somebody whose word has to be asked for each time.
#[derive(Debug)]
struct OneLogin;

impl Logins for OneLogin {
    fn find(&self, _: &PrincipalName, _: &str) -> Option<Credential> {
        Some(Credential::Password { user: "u".into(), password: "p".into() })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_falls_while_its_registry_is_asked_is_not_said_to_be_kept() {
    as_root!();
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = Arc::clone(&is_slow);
    let fake = Fake::start(made(&[layer(&[("x", "x")])]), move |path, _, _| {
        if path.contains("manifests/sha256:") && slow.load(Ordering::SeqCst) {
            std::thread::sleep(A_WHILE);
        }
        None
    })
    .await;
    let mut home = Home::new(&[&fake.host]);
    (home.config.logins, home.config.access_life) = (Arc::new(OneLogin), Duration::ZERO);
    let images = home.open().await;
    home.store.disk.waits();
    let (name, owner) = (format!("{}/x", fake.host), PrincipalName::parse("somebody").unwrap());
    let lease = images.acquire_for(&owner, &name, Pull::Missing).await.unwrap();
    is_slow.store(true, Ordering::SeqCst);
    let asking = images.clone();
    let kept = tokio::spawn(async move {
        asking.acquire_with_progress(Some(&owner), &name, Pull::Missing, &mut |_| {}).await
    });
    tokio::time::sleep(A_WHILE / 4).await;
    home.store.disk.does(Err(ErrorKind::Other));
    let kept = kept.await.unwrap();
    assert!(kept.is_err(), "it is gone");
    drop(lease);
}
