//! A host that cannot keep every promise: the server refuses to start, and where it was told to go on
//! it says in each answer what is missing. `cargo xtask vm` boots such a host: a kernel without memory
//! control groups.

use support::{Daemon, Finished, Folder, Value, json, sandglass};

fn run(daemon: &Daemon, body: &Value) -> Value {
    daemon.post("/runs", body).expect(200)
}

#[test]
fn without_a_controller_it_starts_only_when_told_which_walls_to_do_without() {
    let data = Folder::new();
    let mut serve = std::process::Command::new(sandglass());
    serve.args(["serve", "--listen=127.0.0.1:0", "--allow-host-image", "--data-dir"]).arg(data.join("data"));
    let refused = Finished::of(&mut serve);
    let said = refused.stderr_text();
    assert_ne!(refused.code(), Some(0), "{said}");
    for word in ["cgroup_memory", "memory_bytes", "sandglass doctor"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    assert!(!said.contains("cgroup_pids"), "{said}");
    let flag =
        said.split_whitespace().find(|word| word.starts_with("--allow-degraded=")).expect("the flag to say");

    let daemon = Daemon::builder().host_image().arg(flag).start();
    let info = daemon.get("/info").expect(200);
    assert_eq!(info["not_enforced"], json!(["memory_bytes"]));
    let walls = info["walls"].as_array().expect("walls");
    let memory = walls.iter().find(|wall| wall["name"] == "cgroup_memory").expect("the wall");
    assert_eq!(memory["state"], "down");
    let done =
        run(&daemon, &json!({ "image": "host", "cmd": "sh", "args": ["-c", "sleep 60 & echo on; exit 3"] }));
    assert_eq!(
        (done["outcome"].as_str(), done["exit_code"].as_u64(), done["stdout"].as_str()),
        (Some("exited"), Some(3), Some("on\n"))
    );
    assert_eq!(done["not_enforced"], json!(["memory_bytes"]));
    // What needs no memory controller holds all the same.
    let late = run(
        &daemon,
        &json!({ "image": "host", "cmd": "sleep", "args": ["60"], "limits": { "wall_time_ms": 300 } }),
    );
    assert_eq!(late["outcome"], "wall_time_limit");
}
