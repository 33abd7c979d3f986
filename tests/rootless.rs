//! Started by somebody who is not root, on a machine whose administrator has given them sub-ids and no
//! control group: it says what is missing, and works without it where it is told to.

use support::image::{Image, Layer};
use support::user::{DEGRADED, SUB_IDS};
use support::{Delegated, Registry, Service, User, Value, json};

fn states(service: &Service) -> Value {
    let info = service.get("/info").expect(200);
    let walls = info["walls"].as_array().expect("walls").iter();
    walls.map(|wall| (wall["name"].as_str().expect("a name").to_owned(), wall["state"].clone())).collect()
}

#[test]
fn without_a_control_group_it_refuses_and_says_how_to_get_one() {
    let user = User::new();
    let refused = user.finished(SUB_IDS, &["serve", "--listen=127.0.0.1:0", "--allow-host-image"]);
    let said = refused.stderr_text();
    assert_eq!(refused.code(), Some(1), "{said}");
    for word in [DEGRADED, "Delegate=yes", "memory_bytes", "cgroup_memory"] {
        assert!(said.contains(word), "{word} is not in: {said}");
    }
    let doctor = user.finished(SUB_IDS, &["doctor"]);
    assert_eq!(doctor.code(), Some(1));
    assert!(doctor.stdout_text().contains("Delegate=yes"), "{}", doctor.stdout_text());
}

#[test]
fn without_ids_of_ones_own_it_says_who_gives_them() {
    let user = User::new();
    for sub_ids in ["", "tester:300000:10\n", "other:300000:65536\n"] {
        let refused = user.finished(sub_ids, &["run", DEGRADED, "--allow-host-image", "host", "true"]);
        let said = refused.stderr_text();
        assert_eq!(refused.code(), Some(125), "{said}");
        assert!(said.contains("usermod --add-subuids") && said.contains("/etc/subuid"), "{said}");
    }
}

#[test]
fn with_agreement_every_other_wall_stands() {
    let (user, registry) = (User::new(), Registry::start());
    let sh = |image: &str, script: &str| json!({ "image": registry.image(image), "cmd": "sh", "args": ["-c", script] });
    let service = user.serve(&registry);
    let expected = json!({
        "namespaces": "up", "root": "up", "capabilities": "up", "seccomp": "up", "landlock": "up", "proc": "up",
        "devices": "up",
        "ids": "weaker", "layers": "weaker", "kill": "weaker",
        "cgroup_memory": "down", "cgroup_pids": "down", "cgroup_cpu": "down",
    });
    assert_eq!(states(&service), expected);

    let script = "id -u; hostname; ls /proc | grep -c '^[0-9]'; grep CapEff /proc/self/status; echo x > /tmp/x && cat /tmp/x; \
                  head -c 2 /dev/zero | wc -c; ls /var/lib 2>&1 | wc -l";
    let done = service.run(&sh("busybox", script));
    assert_eq!((&done["outcome"], &done["exit_code"]), (&json!("exited"), &json!(0)), "{done}");
    let text = done["stdout"].as_str().expect("text").to_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[1], lines[4], lines[5]), ("0", "sandbox", "x", "2"), "{text}");
    assert!(lines[3].ends_with("0000000000000000"), "{text}");
    let missing = json!(["memory_bytes", "processes", "cpus", "cpu_time_ms"]);
    assert_eq!(done["not_enforced"], missing);

    // What hangs on neither ids nor control groups is as it is everywhere.
    let mut late = sh("busybox", "sleep 60 & exec sleep 60");
    late["limits"] = json!({ "wall_time_ms": 100 });
    assert_eq!(service.run(&late)["outcome"], "wall_time_limit");
    let mut full = sh("busybox", "dd if=/dev/zero of=/big bs=1M count=9 2>&1");
    full["limits"] = json!({ "disk_bytes": 4 << 20 });
    let done = service.run(&full);
    assert!(done["stdout"].as_str().expect("text").contains("No space left"), "{done}");

    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).expect("read its status");
    let line =
        |name: &str| status.lines().find(|line| line.starts_with(name)).expect("a field of the status");
    assert!(line("CapEff:").ends_with("0000000000000000") && line("NoNewPrivs:").ends_with('1'), "{status}");
    assert_eq!(line("Uid:").split_whitespace().nth(1), Some(user.id().to_string().as_str()));
    assert_eq!(service.stop(), Some(0));
}

/// All that is missing then is what only root of the machine can give.
#[test]
fn with_a_control_group_that_was_delegated_every_limit_holds() {
    let user = User::new();
    let group = Delegated::to(user.id());
    let service = user.serve_in(&group, &["--allow-host-image"]);
    let expected = json!({
        "namespaces": "up", "root": "up", "capabilities": "up", "seccomp": "up", "landlock": "up", "proc": "up",
        "devices": "up", "kill": "up", "cgroup_memory": "up", "cgroup_pids": "up", "cgroup_cpu": "up",
        "ids": "weaker", "layers": "weaker",
    });
    assert_eq!(states(&service), expected);
    let run = |script: &str, limits: Value| {
        let limits = [("wall_time_ms", json!(120_000)), ("cpu_time_ms", json!(120_000))]
            .into_iter()
            .chain(
                limits.as_object().cloned().unwrap_or_default().iter().map(|(k, v)| (k.as_str(), v.clone())),
            )
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<Value>();
        let request = json!({ "image": "host", "cmd": "sh", "args": ["-c", script], "limits": limits });
        let done = service.run(&request);
        assert_eq!(done["not_enforced"], json!([]), "{done:#}");
        done
    };
    assert_eq!(run("echo fine", json!({}))["stdout"], "fine\n");
    let full = run("head -c 200000000 /dev/zero | tail", json!({ "memory_bytes": 32 << 20 }));
    assert_eq!(full["outcome"], "memory_limit", "{full:#}");
    let many = run("for i in $(seq 50); do sleep 30 & done; echo more", json!({ "processes": 10 }));
    assert!(many["limit_hits"].to_string().contains("processes"), "{many:#}");
    let busy = run("while :; do :; done", json!({ "cpu_time_ms": 200 }));
    assert_eq!(busy["outcome"], "cpu_time_limit", "{busy:#}");
    // Who leaves children behind takes them along.
    let left = run("setsid sleep 600 & echo gone", json!({}));
    assert_eq!(left["stdout"], "gone\n");
    assert_eq!(service.stop(), Some(0));
    let left: Vec<_> = group.inside().into_iter().filter(|path| !path.ends_with("supervisor")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Marks of the overlay that only root of the machine may set have others in their place.
#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let (user, registry) = (User::new(), Registry::start());
    let lower = Layer::build(|tar| {
        tar.file("a/hidden", "1").file("a/b/hidden", "2").file("c/hidden", "3").file("c/stays", "4");
    });
    let upper = Layer::build(|tar| {
        tar.file("a/.wh..wh..opq", "").file("a/new", "5").whiteout("c/hidden");
    });
    registry.push("marks", "1", &Image::busybox().layer(lower).layer(upper));
    let (image, host) = (registry.image("marks:1"), registry.host());
    let words = ["run", DEGRADED, "--insecure-registry", &host, &image, "find", "/a", "/c", "-type", "f"];
    let done = user.finished(SUB_IDS, &words);
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    let mut found: Vec<String> = done.stdout_text().lines().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, ["/a/new", "/c/stays"]);
}
