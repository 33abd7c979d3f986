//! Batches over what an earlier batch has prepared, and a server that ends while they wait.

use std::path::PathBuf;

use support::{Daemon, Image, Registry, Value, json, until};

use super::{end_of, promised, runs, scripts, verdicts};

/// A daemon whose only slot is taken until it ends, and the id of something prepared that says `ok`.
fn busy(builder: support::Builder, image: &str) -> (Daemon, Value) {
    let daemon = builder.flag("--slots", 1).flag("--drain-deadline-ms", 200).start();
    let mut body = scripts(&["cat /tmp/made"]);
    body["image"] = json!(image);
    body["prepare"] = json!({ "cmd": "sh", "args": ["-c", "echo ok > /tmp/made"] });
    let first = daemon.post("/batches", &body).expect(200);
    assert_eq!(verdicts(&first), ["accepted"], "{first:#}");
    let busy = daemon.run_async(&json!({ "image": image, "cmd": "sleep", "args": ["600"] }));
    daemon.wait_for_state(&busy, "running");
    (daemon, first)
}

fn over(first: &Value, scripts_of_tests: &[&str]) -> Value {
    let mut body = scripts(scripts_of_tests);
    body["prepared"] = first["prepared"]["id"].clone();
    body.as_object_mut().expect("an object").remove("image");
    body
}

/// All that is frozen, under this launcher and under those before it.
fn layers(daemon: &Daemon) -> Vec<PathBuf> {
    let folders = ["frozen", "former"].map(|name| daemon.data_dir().join("layers").join(name));
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).collect()
}

fn show(daemon: &Daemon, batch: &Value) -> Value {
    daemon.get(&format!("/batches/{}", batch["id"].as_str().expect("an id"))).expect(200)
}

/// What it stands on was forgotten with the server, and it was `interrupted`.
#[test]
fn a_batch_over_something_prepared_that_had_not_begun_is_begun_by_the_next_server() {
    for killed in [true, false] {
        let (mut daemon, first) = busy(Daemon::builder().host_image(), "host");
        let unused = layers(&daemon);
        let waiting = [0, 1].map(|_| promised(&daemon, &over(&first, &["cat /tmp/made", "echo no"])));
        let ended = if killed { daemon.kill9() } else { daemon.stop() };
        assert_eq!(ended.success(), !killed);
        let daemon = daemon.restart();
        for path in &waiting {
            let done = end_of(&daemon, path);
            assert_eq!(verdicts(&done), ["accepted", "wrong_answer"], "{done:#}");
            assert_eq!(done["problem"], Value::Null, "{done:#}");
        }
        assert_eq!(runs(&daemon), 3 + 2 * 2, "nothing was prepared again, and each test was run once");
        // It is there for others again, and taken account of.
        assert_eq!(show(&daemon, &first)["prepared"]["id"], first["prepared"]["id"]);
        let later = daemon.post("/batches", &over(&first, &["cat /tmp/made"])).expect(200);
        assert_eq!(verdicts(&later), ["accepted"], "{later:#}");
        assert_eq!((unused.len(), layers(&daemon).len()), (1, 1));
        assert!(daemon.metric("sandglass_files_bytes") > 0.0);
        // Nobody waits for it now, so that it ends with this server.
        let daemon = daemon.restart();
        until("nothing frozen is left", || layers(&daemon).is_empty());
        assert_eq!(show(&daemon, &first)["prepared"], Value::Null);
    }
}

#[test]
fn a_batch_whose_layer_is_gone_after_the_restart_says_so() {
    let (mut daemon, first) = busy(Daemon::builder().host_image(), "host");
    let path = promised(&daemon, &over(&first, &["cat /tmp/made"]));
    daemon.kill9();
    layers(&daemon).iter().for_each(|layer| std::fs::remove_dir_all(layer).expect("remove a layer"));
    let daemon = daemon.restart();
    let done = end_of(&daemon, &path);
    assert_eq!(verdicts(&done), ["internal_error"], "{done:#}");
    assert_eq!(done["problem"]["type"], "/problems/prepared-lost", "{done:#}");
    let detail = done["problem"]["detail"].as_str().expect("a detail");
    assert!(detail.contains("its layer is not in the store"), "{detail}");
    assert_eq!(daemon.metric("sandglass_files_bytes"), 0.0, "its room is given back");
}

#[test]
fn of_a_batch_over_something_prepared_that_had_begun_nothing_is_run_again() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let mut body = scripts(&["cat made"]);
    body["prepare"] = json!({ "cmd": "sh", "args": ["-c", "echo ok > made"] });
    let first = daemon.post("/batches", &body).expect(200);
    let path = promised(&daemon, &over(&first, &["cat made", "sleep 600", "cat made"]));
    until("the second test runs", || {
        let tests = &daemon.get(&path).expect(200)["tests"];
        let running = daemon.get("/runs?state=running").expect(200);
        tests[0]["verdict"] == "accepted" && running["runs"].as_array().map(Vec::len) == Some(1)
    });
    daemon.kill9();
    let daemon = daemon.restart();
    let done = daemon.get(&path).expect(200);
    assert_eq!(verdicts(&done), ["accepted", "internal_error", "internal_error"], "{done:#}");
    assert_eq!(done["problem"]["type"], "/problems/interrupted", "{done:#}");
    // A run that comes after it finds that nothing of it was started again.
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    assert_eq!(runs(&daemon), 2 + 1 + 1);
    until("nothing frozen is left", || layers(&daemon).is_empty());
}

/// Its tag led elsewhere by then: only what was prepared held the image, and nothing does after the restart.
#[test]
fn the_image_below_is_the_one_that_it_was_although_its_tag_has_moved() {
    let registry = Registry::start();
    registry.push("moving", "1", &Image::busybox().set("Env", json!(["WHICH=first"])));
    let name = registry.image("moving:1");
    let (mut daemon, first) = busy(Daemon::builder().registry(&registry), &name);
    let path = promised(&daemon, &over(&first, &["test $WHICH = first && cat /tmp/made"]));
    registry.push("moving", "1", &Image::busybox().set("Env", json!(["WHICH=second"])));
    daemon.post("/images", &json!({ "image": name, "pull": "always" })).expect(200);
    daemon.kill9();
    let daemon = daemon.restart();
    let done = end_of(&daemon, &path);
    assert_eq!((verdicts(&done), &done["problem"]), (vec!["accepted"], &Value::Null), "{done:#}");
}
