//! X-07 for what came after runs: one principal's batches, what they have prepared, and uploaded files are
//! nothing to another, whichever way they are named. Runs, and files by themselves, are in
//! `tests/principals`, A-13 in `tests/promises.rs`.

use std::time::Duration;

use support::{Daemon, Request, Response, Value, json};

/// As long as a batch may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn ask(daemon: &Daemon, key: &str, method: &str, path: &str) -> Request {
    daemon.request(method, path).key(key).patience(PATIENCE)
}

fn post(daemon: &Daemon, key: &str, path: &str, body: &Value) -> Response {
    ask(daemon, key, "POST", path).json(body).send()
}

fn upload(daemon: &Daemon, key: &str, content: &str) -> Value {
    ask(daemon, key, "POST", "/files").body(content).send().expect(201)["file"].clone()
}

fn batch() -> Value {
    json!({
        "image": "host", "workdir": "/w", "run": { "cmd": "cat", "args": ["made"] }, "tests": [{}],
        "prepare": { "cmd": "sh", "args": ["-c", "echo hers > made"] },
    })
}

#[test]
fn a_batch_of_somebody_else_is_not_there() {
    let builder = Daemon::builder().host_image();
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let done = post(&daemon, &alice, "/batches", &batch()).expect(200);
    assert_eq!(done["tests"][0]["run"]["stdout"], "hers\n", "{done:#}");
    let path = format!("/batches/{}", done["id"].as_str().expect("an id"));
    for (method, path) in [("GET", path.clone()), ("GET", format!("{path}/events")), ("DELETE", path)] {
        ask(&daemon, &bob, method, &path).send().problem(404, "batch-not-found");
        assert_eq!(ask(&daemon, &alice, method, &path).send().status, 200, "{method} {path}");
    }
    let run = done["tests"][0]["run"]["id"].as_str().expect("an id");
    for path in ["", "/events", "/stdout"] {
        ask(&daemon, &bob, "GET", &format!("/runs/{run}{path}")).send().problem(404, "run-not-found");
    }
}

/// Whoever knows the id of what another has prepared gets the answer of whoever makes one up.
#[test]
fn what_somebody_else_has_prepared_can_t_be_run() {
    let builder = Daemon::builder().host_image();
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let done = post(&daemon, &alice, "/batches", &batch()).expect(200);
    let mut again = batch();
    again["prepared"] = done["prepared"]["id"].clone();
    again.as_object_mut().expect("an object").retain(|name, _| name != "image" && name != "prepare");
    assert_eq!(post(&daemon, &alice, "/batches", &again).expect(200)["tests"][0]["run"]["stdout"], "hers\n");
    let refused = |body: &Value| {
        let mut problem = post(&daemon, &bob, "/batches", body).problem(422, "invalid-request");
        let told = problem["errors"].take().to_string();
        told.replace(body["prepared"].as_str().expect("an id"), "ID")
    };
    let hers = refused(&again);
    again["prepared"] = json!("0193a5b0-0000-7000-8000-000000000000");
    assert_eq!(hers, refused(&again), "the two can be told apart");
}

/// An id is made of the content: whoever knows it still gets nothing, and can't tell whether it is there.
#[test]
fn a_file_of_somebody_else_can_t_be_read_by_a_run_or_a_batch() {
    let builder = Daemon::builder().host_image();
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let file = upload(&daemon, &alice, "hers\n");
    let nobodys = json!(format!("sha256:{}", "0".repeat(64)));
    let bodies = |file: &Value| {
        let cat = json!({ "image": "host", "cmd": "cat", "args": ["f"], "workdir": "/w" });
        let (mut files, mut stdin, mut test) = (cat.clone(), cat, batch());
        files["files"] = json!([{ "path": "f", "file": file }]);
        stdin["stdin"] = json!({ "file": file });
        stdin["args"] = json!([]);
        let (mut given, mut answer) = (batch(), batch());
        given["files"] = json!([{ "path": "f", "file": file }]);
        test["tests"] = json!([{ "stdin": { "file": file } }]);
        answer["tests"] = json!([{ "expect": { "stdout": { "file": file } } }]);
        [("/runs", files), ("/runs", stdin), ("/batches", given), ("/batches", test), ("/batches", answer)]
    };
    for ((path, hers), (_, made_up)) in bodies(&file).into_iter().zip(bodies(&nobodys)) {
        assert_eq!(post(&daemon, &alice, path, &hers).status, 200, "{hers}");
        let refused = |body: &Value, file: &Value| {
            let problem = post(&daemon, &bob, path, body).problem(422, "invalid-request");
            problem["errors"].to_string().replace(file.as_str().expect("an id"), "ID")
        };
        assert_eq!(refused(&hers, &file), refused(&made_up, &nobodys), "the two can be told apart");
    }
}
