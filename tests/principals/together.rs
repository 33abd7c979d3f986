//! A private layer that several principals want at the same time. Until it is kept it belongs to those who pull it, and
//! who that is decides who may have it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::time::Duration;

use support::{Daemon, Image, Layer, Liar, Pending, Registry, json, within};

use crate::images::{ask, reads_the_secret, run, secret};

/// Of a test on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// What requests wait before, until it is opened.
#[derive(Clone, Default)]
struct Door(Arc<RwLock<()>>);

impl Door {
    fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().expect("nobody has panicked")
    }

    fn pass(&self) {
        // Where the test has failed, it does not matter who passes.
        drop(self.0.read());
    }
}

/// Alice's image has the secret in the middle and a layer on top for which she has to wait.
struct Stage {
    registry: Registry,
    liar: Liar,
    daemon: Daemon,
    /// Before alice's last layer.
    last: Door,
    /// Whether she gets it in the end.
    is_given: Arc<AtomicBool>,
    /// Before the secret, as dave downloads it.
    daves: Door,
    alice: String,
    bob: String,
    dave: String,
    watcher: String,
}

impl Stage {
    fn set() -> Self {
        let registry = Registry::start();
        let other = |name: &str| {
            Layer::build(|tar| {
                tar.file(name, "nothing\n");
            })
        };
        registry.push("private/slow", "1", &Image::busybox().layer(secret()).layer(other("last")));
        registry.push("private/tool", "1", &Image::busybox().layer(secret()));
        // Bob's own: one that has the hash of the secret and other bytes, and one that names the very blob.
        let forged = Layer { diff_id: secret().diff_id, ..other("forged") };
        registry.push("public/forged", "1", &Image::busybox().layer(forged));
        registry.push("public/named", "1", &Image::busybox().layer(secret()));
        let layers = registry.layers_of("private/slow", "1");
        let (last, daves) = (Door::default(), Door::default());
        let is_given = Arc::new(AtomicBool::new(true));
        let (before_last, before_daves, gives) = (last.clone(), daves.clone(), Arc::clone(&is_given));
        let liar = Liar::that_tells_apart(&registry, move |user, path| {
            let is_blob = |of: &str, layer: &str| path == format!("/v2/{of}/blobs/{layer}");
            if is_blob("private/slow", &layers[2]) {
                before_last.pass();
                return user == "alice" && gives.load(Ordering::Relaxed);
            }
            if is_blob("private/tool", &layers[1]) {
                before_daves.pass();
            }
            let is_private = path.contains("/private/") || is_blob("public/named", &layers[1]);
            !is_private || ["alice", "dave"].contains(&user)
        });
        let builder = Daemon::builder().flag("--insecure-registry", liar.host());
        let key = |name: &str, scopes: &str| builder.key(&[name, "--scope", scopes]);
        let [alice, bob, dave] = ["alice", "bob", "dave"].map(|name| key(name, "run,images"));
        let watcher = key("watcher", "metrics");
        for name in ["alice", "bob", "dave"] {
            builder.login(name, &liar.host(), name, name);
        }
        Self { daemon: builder.start(), registry, liar, last, is_given, daves, alice, bob, dave, watcher }
    }

    /// Begins alice's pull, and waits until all of it but the last layer is unpacked. Nothing of it is kept.
    fn alice_is_under_way(&self) -> Pending {
        let request = ask(&self.daemon, &self.alice, &self.liar.image("private/slow:1"), "missing");
        let pending = request.begin().expect("send a request");
        within(PATIENCE, "the secret is unpacked", || {
            let page = self.daemon.request("GET", "/metrics").key(&self.watcher).send().text();
            page.lines().find(|line| *line == "sandglass_image_unpack_seconds_count 2").map(drop)
        });
        pending
    }

    /// Whatever bob tries.
    #[track_caller]
    fn bob_gets_nothing(&self) {
        let get = |image: &str, pull: &str, problem: &str| {
            let answer = run(&self.daemon, &self.bob, &self.liar.image(image), pull);
            answer.problem(422, problem);
            let told = answer.text().replace(image, "");
            assert!(!told.contains("alice") && !told.contains("slow"), "{told}");
        };
        for image in ["private/slow:1", "private/tool:1", "public/named:1"] {
            get(image, "missing", "image-unauthorized");
            get(image, "always", "image-unauthorized");
            get(image, "never", "image-not-present");
        }
        get("public/forged:1", "missing", "bad-image");
        get("public/forged:1", "never", "image-not-present");
        let list = self.daemon.request("GET", "/images").key(&self.bob).send().expect(200);
        assert_eq!(list["images"], json!([]));
    }

    fn of_the_secret(&self) -> usize {
        self.registry.downloads(&self.registry.layers_of("private/tool", "1")[1])
    }
}

#[test]
fn nobody_else_has_a_private_layer_while_it_is_on_its_way_nor_after_a_crash() {
    let mut stage = Stage::set();
    let last = stage.last.clone();
    let closed = last.close();
    let on_its_way = stage.alice_is_under_way();
    stage.bob_gets_nothing();
    assert_eq!(stage.of_the_secret(), 1, "bob has waited for what alice has");

    stage.daemon.kill9();
    drop(on_its_way);
    stage.daemon = stage.daemon.restart();
    stage.bob_gets_nothing();
    let image = stage.liar.image("private/slow:1");
    run(&stage.daemon, &stage.alice, &image, "never").problem(422, "image-not-present");

    drop(closed);
    reads_the_secret(&run(&stage.daemon, &stage.alice, &image, "missing"));
    stage.bob_gets_nothing();
    stage.daemon = stage.daemon.restart();
    stage.bob_gets_nothing();
    reads_the_secret(&run(&stage.daemon, &stage.alice, &image, "missing"));
    assert_eq!(stage.of_the_secret(), 2, "the layer is here already");
}

#[test]
fn who_may_have_a_layer_has_it_while_it_is_on_its_way_for_another() {
    let mut stage = Stage::set();
    let last = stage.last.clone();
    let closed = last.close();
    let on_its_way = stage.alice_is_under_way();
    let (slow, tool) = (stage.liar.image("private/slow:1"), stage.liar.image("private/tool:1"));
    // He shows that he could have it by downloading it, and keeps for both what alice has unpacked.
    reads_the_secret(&run(&stage.daemon, &stage.dave, &tool, "missing"));
    assert_eq!(stage.of_the_secret(), 2);
    stage.bob_gets_nothing();
    drop(closed);
    reads_the_secret(&on_its_way.finish().expect("an answer"));
    stage.bob_gets_nothing();

    // Who has it is written down: nobody downloads it again.
    stage.daemon = stage.daemon.restart();
    for (who, image) in [(&stage.alice, &slow), (&stage.dave, &tool), (&stage.alice, &tool)] {
        reads_the_secret(&run(&stage.daemon, who, image, "missing"));
    }
    assert_eq!(stage.of_the_secret(), 2);
    stage.bob_gets_nothing();
}

#[test]
fn whose_pull_fails_takes_no_layer_from_others() {
    let stage = Stage::set();
    let (alices, daves) = (stage.last.close(), stage.daves.close());
    let on_its_way = stage.alice_is_under_way();
    let tool = stage.liar.image("private/tool:1");
    let waiting = ask(&stage.daemon, &stage.dave, &tool, "missing").begin().expect("send a request");
    let asks = |path: &str| path.starts_with("GET /v2/private/tool/blobs/");
    // The config, and the secret; what is below it he sees like everybody else's, and downloads too.
    let secret = &stage.registry.layers_of("private/tool", "1")[1];
    within(PATIENCE, "dave downloads the secret", || {
        stage.liar.asked().iter().find(|path| asks(path) && path.ends_with(secret.as_str())).map(drop)
    });
    stage.is_given.store(false, Ordering::Relaxed);
    drop(alices);
    on_its_way.finish().expect("an answer").problem(422, "image-unauthorized");
    drop(daves);
    reads_the_secret(&waiting.finish().expect("an answer"));
    stage.bob_gets_nothing();
}
