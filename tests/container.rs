//! In a container, as most people will run it: root with the capabilities that Docker gives everybody
//! and CAP_SYS_ADMIN, never `--privileged`, under Docker's own seccomp profile and under ours. The image is the
//! one that the Dockerfile makes, release build and all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use support::{Docker, Finished, Registry, Request, Service, Value, json, tool, until, within};

const SYS_ADMIN: &[&str] = &["--cap-add=SYS_ADMIN"];

fn profile() -> String {
    format!("--security-opt=seccomp={}/deploy/docker/seccomp.json", env!("CARGO_MANIFEST_DIR"))
}

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
    let (docker, registry) = (Docker::with_built_image(), Registry::start());
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
    let (docker, registry) = (Docker::with_built_image(), Registry::start());
    let container = docker.serve(&["--cap-add=SYS_ADMIN", &profile()], &registry);
    assert_eq!(weaker(&container), BTreeMap::new());
    assert!(!container.log().contains("weaker than it could be"), "{}", container.log());
    runs_as_everywhere(&container, &registry.image("busybox"));
    the_server_has_given_up_its_capabilities(&container);
    assert_eq!(container.stop(), Some(0));
}

#[test]
fn without_the_capability_it_says_how_to_get_it() {
    let docker = Docker::with_built_image();
    for words in [&["serve", "--listen=127.0.0.1:0"][..], &["doctor"]] {
        let refused = docker.sandglass(&[], words);
        let said = refused.stdout_text() + &refused.stderr_text();
        assert_eq!(refused.code(), Some(1), "{said}");
        assert!(said.contains("--cap-add SYS_ADMIN"), "{said}");
    }
}

/// The lines at the top of the Dockerfile: a container listens on all addresses, so the key comes first.
#[test]
fn the_dockerfile_s_own_lines_lead_to_a_service_that_wants_a_key() {
    let docker = Docker::with_built_image();
    let profile = profile();
    let options = ["--network=none", "--cap-add=SYS_ADMIN", &profile, "--volume=quick:/var/lib/sandglass"];
    let refused = Finished::of(docker.command().args(["run", "--rm"]).args(options).arg("sandglass"));
    assert!(refused.stderr_text().contains("sandglass key create"), "{}", refused.stderr_text());
    let key = docker.docker(&["run", "--rm", options[0], options[3], "sandglass", "key", "create", "me"]);
    let id = docker.docker(&[&["run", "--detach"], &options[..], &["sandglass"]].concat());
    let pid = docker.docker(&["inspect", "--format={{.State.Pid}}", id.trim()]);
    docker.in_network_of(pid.trim().parse().expect("a pid"), || {
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        until("it is ready", || {
            Request::new(address, "GET", "/readyz").try_send().is_ok_and(|answer| answer.status == 200)
        });
        let ask =
            || Request::new(address, "POST", "/runs").json(&json!({ "image": "nope:1", "pull": "never" }));
        assert_eq!(ask().send().status, 401);
        ask().key(key.trim()).send().problem(422, "image-not-present");
    });
    docker.docker(&["stop", id.trim()]);
    let code = docker.docker(&["inspect", "--format={{.State.ExitCode}}", id.trim()]);
    assert_eq!(code.trim(), "0", "{}", docker.docker(&["logs", id.trim()]));
}

/// Two programs, the authorities that sign certificates, and the folders that they need.
#[test]
fn the_image_holds_what_it_needs_and_nothing_else() {
    let docker = Docker::with_built_image();
    let id = docker.docker(&["create", "sandglass"]);
    let done = Finished::of(docker.command().args(["export", id.trim()]));
    let listed = Finished::with_input(Command::new(tool("tar")).args(["--list", "--verbose"]), &done.stdout);
    let text = listed.stdout_text();
    // What an engine puts into every container is empty.
    let files =
        text.lines().filter(|line| line.starts_with('-') && line.split_whitespace().nth(2) != Some("0"));
    let mut names: Vec<_> = files.filter_map(|line| line.split_whitespace().last()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["etc/ssl/certs/ca-certificates.crt", "usr/local/bin/sandglass", "usr/local/bin/sandglass-launcher"]
    );
    let bytes: u64 = docker
        .docker(&["image", "inspect", "--format={{.Size}}", "sandglass"])
        .trim()
        .parse()
        .expect("a number");
    println!("the image has {bytes} bytes");
    assert!(bytes < 64 << 20, "{bytes}");
}
