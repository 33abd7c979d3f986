//! In a container, as most people will run it: root with the capabilities that Docker gives everybody
//! and CAP_SYS_ADMIN, never `--privileged`, under Docker's own seccomp profile and under ours.

use std::collections::BTreeMap;
use std::time::Duration;

use support::{Docker, Registry, Request, Service, Value, json, within};

const SYS_ADMIN: &[&str] = &["--cap-add=SYS_ADMIN"];

/// Which walls are not all that they could be, with the reason.
fn weaker(container: &Service) -> BTreeMap<String, String> {
    let info = container.get("/info").expect(200);
    assert_eq!(info["not_enforced"], json!([]));
    let walls = info["walls"].as_array().expect("walls").iter();
    let text = |wall: &Value, key: &str| wall[key].as_str().expect("text").to_owned();
    walls
        .filter(|wall| wall["state"] != "up")
        .map(|wall| (text(wall, "name"), text(wall, "detail")))
        .collect()
}

/// What every run must be like, wherever the service runs.
fn runs_as_everywhere(container: &Service, image: &str) {
    let sh = |script: &str| json!({ "image": image, "cmd": "sh", "args": ["-c", script] });
    let output = |run: &Value| run["stdout"].as_str().expect("text").to_owned();
    let done =
        container.run(&sh("id -u; hostname; ls /proc | grep -c '^[0-9]'; grep CapEff /proc/self/status"));
    assert_eq!((&done["outcome"], &done["exit_code"]), (&json!("exited"), &json!(0)), "{done}");
    let text = output(&done);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[1]), ("0", "sandbox"), "{text}");
    let processes: u32 = lines[2].parse().expect("a number");
    assert!((1..=5).contains(&processes), "only the run's own processes: {text}");
    assert!(lines[3].ends_with("0000000000000000"), "{text}");

    let mut greedy = sh("tail /dev/zero");
    greedy["limits"] = json!({ "memory_bytes": 16 << 20 });
    assert_eq!(container.run(&greedy)["outcome"], "memory_limit");
    let mut late = sh("sleep 60 & exec sleep 60");
    late["limits"] = json!({ "wall_time_ms": 100 });
    assert_eq!(container.run(&late)["outcome"], "wall_time_limit");
    let mut many = sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo no");
    many["limits"] = json!({ "processes": 5 });
    let done = container.run(&many);
    assert!(!output(&done).contains("no"), "{done}");
    // The container's own root is a place that no run reaches.
    let done = container.run(&sh("ls /usr/local/bin /var/lib/sandglass 2>&1; grep -c overlay /proc/mounts"));
    assert!(!output(&done).contains("sandglass-launcher"), "{done}");
}

/// Besides the launcher nothing of the service keeps what the container was given.
fn the_server_has_given_up_its_capabilities(container: &Service) {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", container.pid())).expect("read its status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("a field of the status");
        line.split_whitespace().skip(1).collect::<Vec<_>>()
    };
    assert!(field("Uid:").iter().all(|uid| *uid != "0"), "{status}");
    for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(set), ["0000000000000000"], "{status}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
}

#[test]
fn under_docker_s_own_profile_one_wall_is_weaker_and_says_so() {
    let (docker, registry) = (Docker::start(), Registry::start());
    let container = docker.serve(SYS_ADMIN, &registry);
    let weaker = weaker(&container);
    assert_eq!(weaker.keys().collect::<Vec<_>>(), ["root"], "{weaker:?}");
    assert!(weaker["root"].contains("deploy/docker/seccomp.json"), "{weaker:?}");
    assert!(container.log().contains("weaker than it could be"), "{}", container.log());
    runs_as_everywhere(&container, &registry.image("busybox"));
    the_server_has_given_up_its_capabilities(&container);
    assert!(!docker.cgroups().is_empty(), "a container has cgroups");
    assert_eq!(container.stop(), Some(0));
    within(Duration::from_secs(10), "no cgroup of the container", || {
        docker.cgroups().is_empty().then_some(())
    });
}

#[test]
fn under_our_profile_every_wall_stands() {
    let (docker, registry) = (Docker::start(), Registry::start());
    let profile =
        concat!("--security-opt=seccomp=", env!("CARGO_MANIFEST_DIR"), "/deploy/docker/seccomp.json");
    let container = docker.serve(&["--cap-add=SYS_ADMIN", profile], &registry);
    assert_eq!(weaker(&container), BTreeMap::new());
    assert!(!container.log().contains("weaker than it could be"), "{}", container.log());
    runs_as_everywhere(&container, &registry.image("busybox"));
    the_server_has_given_up_its_capabilities(&container);
    assert_eq!(container.stop(), Some(0));
}

#[test]
fn without_the_capability_it_says_how_to_get_it() {
    let docker = Docker::start();
    for words in [&["serve", "--listen=127.0.0.1:0"][..], &["doctor"]] {
        let refused = docker.sandglass(&[], words);
        let said = refused.stdout_text() + &refused.stderr_text();
        assert_eq!(refused.code(), Some(1), "{said}");
        assert!(said.contains("--cap-add SYS_ADMIN"), "{said}");
    }
}

/// The quick start: a container listens on all addresses, so the key comes first.
#[test]
fn a_container_that_others_reach_wants_a_key_before_it_starts() {
    let docker = Docker::start();
    let (volume, data) = ("--volume=quick:/data", "--data-dir=/data");
    let serve = ["serve", "--listen=0.0.0.0:0", "--allow-host-image", data];
    let options = ["--cap-add=SYS_ADMIN", volume];
    let refused = docker.sandglass(&options, &serve);
    assert!(refused.stderr_text().contains("sandglass key create"), "{}", refused.stderr_text());
    let created = docker.sandglass(&[volume], &["key", "create", "me", data]);
    assert_eq!(created.code(), Some(0), "{}", created.stderr_text());
    let container = docker.serve_as(&options, &serve);
    let ask = || {
        Request::new(container.address(), "POST", "/runs")
            .json(&json!({ "image": "nope:1", "pull": "never" }))
    };
    assert_eq!(ask().send().status, 401);
    ask().key(created.stdout_text().trim()).send().problem(422, "image-not-present");
    assert_eq!(container.stop(), Some(0));
}
