//! Images that one principal can pull and another can't. What one has is as absent for the other as if nobody
//! had it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Daemon, Image, Layer, Liar, Registry, Request, Response, Value, json, until};

/// A file that only those may read who may have the image.
pub(crate) fn secret() -> Layer {
    Layer::build(|tar| {
        tar.file("secret", "of alice\n");
    })
}

/// `private/tool:1`, with the secret on top of busybox.
fn registry() -> Registry {
    let registry = Registry::start();
    registry.push("private/tool", "1", &Image::busybox().layer(secret()));
    registry
}

pub(crate) fn ask(daemon: &Daemon, key: &str, image: &str, pull: &str) -> Request {
    let body = json!({ "image": image, "cmd": "cat", "args": ["/secret"], "pull": pull });
    daemon.request("POST", "/runs").key(key).json(&body)
}

pub(crate) fn run(daemon: &Daemon, key: &str, image: &str, pull: &str) -> Response {
    ask(daemon, key, image, pull).send()
}

#[track_caller]
pub(crate) fn reads_the_secret(answer: &Response) {
    let run = answer.expect(200);
    assert_eq!((&run["outcome"], &run["stdout"]), (&json!("exited"), &json!("of alice\n")), "{run:#}");
}

fn names(daemon: &Daemon, key: &str) -> Vec<(String, Option<String>)> {
    let list = daemon.request("GET", "/images").key(key).send().expect(200);
    let name = |image: &Value| {
        let text = |field: &str| image[field].as_str().map(str::to_owned);
        (text("reference").expect("a name"), text("principal"))
    };
    list["images"].as_array().expect("a list").iter().map(name).collect()
}

/// What a problem says beside the name of the image and the id of the request.
fn told(answer: &Response, name: &str) -> (u16, Value, String) {
    let problem = answer.json();
    let detail = problem["detail"].as_str().expect("words").replace(name, "NAME");
    (answer.status, problem["type"].clone(), detail)
}

#[test]
fn what_one_has_pulled_with_its_own_login_is_absent_for_all_others() {
    let registry = registry();
    let liar = Liar::that_tells_apart(&registry, |user, path| !path.contains("/private/") || user == "alice");
    let builder = Daemon::builder().flag("--insecure-registry", liar.host());
    let key = |name: &str, scopes: &str| builder.key(&[name, "--scope", scopes]);
    let (alice, bob, carol) =
        (key("alice", "run,images"), key("bob", "run,images"), key("carol", "run,images"));
    let admin = key("root", "admin");
    builder.login("alice", &liar.host(), "alice", "alice");
    builder.login("bob", &liar.host(), "bob", "bob");
    let daemon = builder.start();
    let image = liar.image("private/tool:1");
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));
    // It is here now, and stays so for her without another word to the registry.
    let before = liar.asked().len();
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));
    reads_the_secret(&run(&daemon, &alice, &image, "never"));
    assert_eq!(liar.asked().len(), before);

    let digest = run(&daemon, &alice, &image, "missing").expect(200)["image"]["digest"].clone();
    let by_digest = liar.image(&format!("private/tool@{}", digest.as_str().expect("a digest")));
    reads_the_secret(&run(&daemon, &alice, &by_digest, "never"));
    let absent = liar.image("private/nothing:1");
    for (who, pull, problem) in [
        (&bob, "missing", "image-unauthorized"),
        (&bob, "always", "image-unauthorized"),
        (&bob, "never", "image-not-present"),
        (&carol, "missing", "image-unauthorized"),
        (&carol, "always", "image-unauthorized"),
        (&carol, "never", "image-not-present"),
        // Who may see everything may not have everything.
        (&admin, "missing", "image-unauthorized"),
    ] {
        let of_nothing = told(&run(&daemon, who, &absent, pull), &absent);
        for name in [&image, &by_digest] {
            let refused = run(&daemon, who, name, pull);
            refused.problem(422, problem);
            assert_eq!(told(&refused, name), of_nothing, "{pull}: more is told of an image that is here");
        }
        let fetch = json!({ "image": image, "pull": pull });
        daemon.request("POST", "/images").key(who).json(&fetch).send().problem(422, problem);
    }

    let (path, own) = (format!("/images/{image}"), format!("/images/{image}?principal=alice"));
    for who in [&bob, &carol] {
        assert_eq!(names(&daemon, who), []);
        for (method, path) in [("GET", &path), ("DELETE", &path), ("GET", &own), ("DELETE", &own)] {
            daemon.request(method, path).key(who).send().problem(404, "image-not-stored");
        }
    }
    let alices = |name: &str| (name.to_owned(), Some("alice".to_owned()));
    let mut seen = names(&daemon, &alice);
    seen.sort();
    let mut all = [alices(&image), alices(&by_digest)];
    all.sort();
    assert_eq!(seen, all);
    assert_eq!(names(&daemon, &admin).len(), 2);
    assert_eq!(daemon.request("GET", &path).key(&alice).send().expect(200)["principal"], "alice");
    daemon.request("DELETE", &path).key(&admin).send().problem(404, "image-not-stored");
    daemon
        .request("GET", &format!("{path}?principal=a%20b"))
        .key(&admin)
        .send()
        .problem(422, "invalid-request");
    assert_eq!(daemon.request("DELETE", &own).key(&admin).send().status, 204);
    daemon.request("GET", &path).key(&alice).send().problem(404, "image-not-stored");
}

/// A registry that lets alice in for as long as the flag says that she may.
fn alices_registry(registry: &Registry) -> (Liar, Arc<AtomicBool>) {
    let may = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&may);
    let liar =
        Liar::that_tells_apart(registry, move |user, _| user == "alice" && still.load(Ordering::Relaxed));
    (liar, may)
}

/// A service that believes a proof for a second, with alice's login for that registry; and her key.
fn alices_service(liar: &Liar) -> (Daemon, String) {
    let builder =
        Daemon::builder().flag("--insecure-registry", liar.host()).flag("--images-access-life-s", 1);
    let alice = builder.key(&["alice", "--scope", "run,images"]);
    builder.login("alice", &liar.host(), "alice", "alice");
    (builder.start(), alice)
}

/// A login of one's own says nothing about the image: a hub that limits how much strangers pull has public ones too.
#[test]
fn an_image_that_everybody_can_have_is_everybodys_once_somebody_without_a_login_has_asked() {
    let registry = registry();
    registry.push("public/tool", "1", &Image::busybox().layer(secret()));
    let liar = Liar::that_tells_apart(&registry, |user, path| !path.contains("/private/") || user == "alice");
    let builder = Daemon::builder().flag("--insecure-registry", liar.host());
    let key = |name: &str| builder.key(&[name, "--scope", "run,images"]);
    let [alice, bob, carol, dave] = ["alice", "bob", "carol", "dave"].map(key);
    builder.login("alice", &liar.host(), "alice", "alice");
    builder.login("bob", &liar.host(), "bob", "bob");
    let daemon = builder.start();
    let image = liar.image("public/tool:1");
    let layers = registry.layers_of("public/tool", "1");
    let downloads = || {
        let asked = liar.asked();
        layers.iter().map(|layer| asked.iter().filter(|line| line.contains(layer)).count()).sum::<usize>()
    };
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));
    assert_eq!(downloads(), layers.len());
    // Nobody has asked without a login, so nobody knows whether all may have it.
    run(&daemon, &carol, &image, "never").problem(422, "image-not-present");
    reads_the_secret(&run(&daemon, &carol, &image, "missing"));
    assert_eq!(downloads(), 2 * layers.len(), "its layers are proved by their bytes");
    assert_eq!(names(&daemon, &carol), [(image.clone(), None)]);
    // From then on it is there for all, and its layers also for those who have a login of their own.
    let before = liar.asked().len();
    reads_the_secret(&run(&daemon, &dave, &image, "missing"));
    reads_the_secret(&run(&daemon, &bob, &image, "missing"));
    assert_eq!(liar.asked().len(), before);
    reads_the_secret(&run(&daemon, &bob, &image, "always"));
    assert_eq!(downloads(), 2 * layers.len());
}

#[test]
fn access_is_proved_again_and_what_is_taken_back_opens_nothing() {
    let registry = registry();
    let (liar, may) = alices_registry(&registry);
    let (daemon, alice) = alices_service(&liar);
    let image = liar.image("private/tool:1");
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));
    may.store(false, Ordering::Relaxed);
    until("her access has to be proved again", || run(&daemon, &alice, &image, "never").status == 422);
    run(&daemon, &alice, &image, "never").problem(422, "image-not-present");
    run(&daemon, &alice, &image, "missing").problem(422, "image-unauthorized");
    may.store(true, Ordering::Relaxed);
    reads_the_secret(&run(&daemon, &alice, &image, "never"));

    // The proof is a word, not a download; and it is not kept over a restart.
    let daemon = daemon.restart();
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));
    for layer in registry.layers_of("private/tool", "1") {
        assert_eq!(registry.downloads(&layer), 1);
    }

    // A login that is another one has proved nothing, whatever its user could have had.
    daemon.builder_of().login("alice", &liar.host(), "alice", "wrong");
    until("the login is another", || run(&daemon, &alice, &image, "never").status == 422);
    run(&daemon, &alice, &image, "missing").problem(422, "image-unauthorized");
    daemon.builder_of().login("alice", &liar.host(), "alice", "alice");
    until("the login is the old one", || run(&daemon, &alice, &image, "never").status == 200);

    let listed = daemon.builder_of().key_command(&["list", "--json"]).stdout_text();
    assert!(listed.contains(&liar.host()) && !listed.contains("YWxpY2U6"), "{listed}");
    let done = daemon.builder_of().key_command(&["logout", "alice"]);
    assert!(done.status.success(), "{}", done.stderr_text());
    until("the login is gone", || run(&daemon, &alice, &image, "never").status == 422);
    assert_eq!(names(&daemon, &alice), []);
    let again = daemon.builder_of().key_command(&["logout", "alice", &liar.host()]);
    assert!(!again.status.success() && again.stderr_text().contains("no such login"));
    assert!(!daemon.log().contains("YWxpY2U6"), "a password is in the log");
}

/// A digest never comes to mean anything else, but whether somebody may have what it means does.
#[test]
fn access_to_an_image_by_its_digest_ends_as_well() {
    let registry = registry();
    let (liar, may) = alices_registry(&registry);
    let (daemon, alice) = alices_service(&liar);
    let first = run(&daemon, &alice, &liar.image("private/tool:1"), "missing").expect(200);
    let digest = first["image"]["digest"].as_str().expect("a digest");
    let image = liar.image(&format!("private/tool@{digest}"));
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));
    may.store(false, Ordering::Relaxed);
    until("her access has to be proved again", || run(&daemon, &alice, &image, "never").status == 422);
    for pull in ["missing", "always"] {
        run(&daemon, &alice, &image, pull).problem(422, "image-unauthorized");
    }
    run(&daemon, &alice, &image, "never").problem(422, "image-not-present");
    may.store(true, Ordering::Relaxed);
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));

    daemon.builder_of().login("alice", &liar.host(), "alice", "wrong");
    until("the login is another", || run(&daemon, &alice, &image, "never").status == 422);
    run(&daemon, &alice, &image, "missing").problem(422, "image-unauthorized");
}

/// A layer is kept under the hash of its content. Whoever knows the hash could name it in an image of its own, and
/// would be given a tree that it could never have downloaded.
#[test]
fn a_layer_is_for_those_who_have_its_bytes_and_not_for_those_who_know_its_hash() {
    let registry = registry();
    let other = Layer::build(|tar| {
        tar.file("other", "bob's\n");
    });
    let forged = Layer { diff_id: secret().diff_id, ..other };
    registry.push("public/forged", "1", &Image::busybox().layer(forged));
    registry.push("public/same", "1", &Image::busybox().layer(secret()));
    let liar = Liar::that_tells_apart(&registry, |user, path| {
        !path.contains("/private/") || user == "alice" || user == "dave"
    });
    let builder = Daemon::builder().flag("--insecure-registry", liar.host());
    let key = |name: &str| builder.key(&[name, "--scope", "run,images"]);
    let (alice, bob, dave) = (key("alice"), key("bob"), key("dave"));
    let admin = builder.key(&["root", "--scope", "admin"]);
    builder.login("alice", &liar.host(), "alice", "alice");
    builder.login("dave", &liar.host(), "dave", "dave");
    let daemon = builder.start();
    let image = liar.image("private/tool:1");
    reads_the_secret(&run(&daemon, &alice, &image, "missing"));
    let bytes = || {
        let list = daemon.request("GET", "/images").key(&admin).send().expect(200);
        list["disk_bytes"].as_u64().expect("a number")
    };
    let stored = bytes();
    // What others have alone is not even told as a number.
    let seen = daemon.request("GET", "/images").key(&bob).send().expect(200);
    assert!(stored > 0 && seen["images"] == support::json!([]) && seen["disk_bytes"] == 0, "{seen:#}");

    let forged = liar.image("public/forged:1");
    run(&daemon, &bob, &forged, "missing").problem(422, "bad-image");
    // Who shows the bytes gets the tree, which is there once for all.
    reads_the_secret(&run(&daemon, &dave, &image, "missing"));
    run(&daemon, &bob, &forged, "missing").problem(422, "bad-image");
    let layers = registry.layers_of("private/tool", "1");
    assert_eq!(registry.downloads(&layers[1]), 2);
    reads_the_secret(&run(&daemon, &bob, &liar.image("public/same:1"), "missing"));
    assert_eq!(registry.downloads(&layers[1]), 3);
    assert_eq!(bytes(), stored, "a layer is stored more than once");
    // Now that everybody could have it, nobody has to show anything any more.
    reads_the_secret(&run(&daemon, &bob, &liar.image("public/same:1"), "always"));
    assert_eq!(registry.downloads(&layers[1]), 3);
    let daemon = daemon.restart();
    reads_the_secret(&run(&daemon, &bob, &liar.image("public/same:1"), "never"));
    run(&daemon, &bob, &image, "never").problem(422, "image-not-present");
}

#[test]
fn what_a_key_loads_is_its_principals_and_what_an_admin_loads_is_everybodys() {
    let registry = registry();
    let folder = support::Folder::new();
    let archive = folder.join("image.tar");
    let mut command = std::process::Command::new(support::tool("skopeo"));
    command.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
    command.arg(format!("docker://{}", registry.image("private/tool:1")));
    command.arg(format!("oci-archive:{}:1", archive.display()));
    assert!(support::Finished::of(&mut command).status.success());
    let archive = std::fs::read(archive).expect("read an archive");

    let builder = Daemon::builder();
    let key = |name: &str, scopes: &str| builder.key(&[name, "--scope", scopes]);
    let (alice, bob, admin) = (key("alice", "run,images"), key("bob", "run,images"), key("root", "admin"));
    let daemon = builder.start();
    let put = |key: &str, name: &str| {
        let request = daemon.request("PUT", &format!("/images/{name}")).key(key);
        request.header("Content-Type", "application/x-tar").body(archive.clone()).send().expect(200)
    };
    let name = "localhost/mine:1";
    assert_eq!(put(&alice, name)["principal"], "alice");
    reads_the_secret(&run(&daemon, &alice, name, "missing"));
    for who in [&bob, &admin] {
        assert_ne!(run(&daemon, who, name, "never").status, 200);
    }
    assert_eq!(names(&daemon, &bob), []);
    // The same name is another image to everybody else, and deleting that one leaves hers.
    assert_eq!(put(&admin, name)["principal"], Value::Null);
    for who in [&alice, &bob, &admin] {
        reads_the_secret(&run(&daemon, who, name, "missing"));
    }
    let path = format!("/images/{name}");
    assert_eq!(daemon.request("DELETE", &path).key(&admin).send().status, 204);
    assert_ne!(run(&daemon, &bob, name, "never").status, 200);
    reads_the_secret(&run(&daemon, &alice, name, "missing"));
    assert_eq!(daemon.request("DELETE", &path).key(&alice).send().status, 204);
    assert_ne!(run(&daemon, &alice, name, "never").status, 200);
}
