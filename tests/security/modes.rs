//! The same attacks where the service is not root of the machine: in containers, and started by somebody
//! who is not root. Category R is not among them: what memory and processes cost is counted by control
//! groups, and those are either the same there or not to be had.

use std::path::PathBuf;
use std::process::Command;

use support::{Docker, Finished, Registry, Request, Service, User, json, skip, tool, until};

use crate::attack::{Attack, Manner, Target};
use crate::{filesystem, ipc, kernel, network, privileges, proc, processes};

fn everything_is_repelled(service: &Service, registry: &Registry, data_dir: PathBuf, ipc: &[Attack]) {
    if !cfg!(target_arch = "x86_64") {
        skip("the attacks name system calls by the numbers of x86-64");
        return;
    }
    let image = registry.image("python:3");
    let ask = |path: &str| Request::new(service.address(), "POST", path);
    ask("/images").json(&json!({ "image": image })).send().expect(200);
    // What is made once, at the first run, is no trace of an attack.
    service.run(&json!({ "image": image, "cmd": "true" }));
    let target = Target::new(service.address(), image, service.host(data_dir));
    let categories: &[&[Attack]] = &[
        filesystem::ATTACKS,
        proc::ATTACKS,
        processes::ATTACKS,
        network::ATTACKS,
        ipc,
        privileges::ATTACKS,
        kernel::ATTACKS,
    ];
    for attacks in categories {
        target.repels(attacks, Manner::asked());
    }
    assert!(!service.log().contains("panicked"), "the server panicked:\n{}", service.log());
}

#[test]
fn in_a_container_under_docker_s_own_profile() {
    let (docker, registry) = (Docker::start(), Registry::start());
    let container = docker.serve(&["--cap-add=SYS_ADMIN"], &registry);
    everything_is_repelled(&container, &registry, PathBuf::new(), ipc::ATTACKS);
}

#[test]
fn in_a_container_under_our_profile() {
    let (docker, registry) = (Docker::start(), Registry::start());
    let profile =
        concat!("--security-opt=seccomp=", env!("CARGO_MANIFEST_DIR"), "/deploy/docker/seccomp.json");
    let container = docker.serve(&["--cap-add=SYS_ADMIN", profile], &registry);
    everything_is_repelled(&container, &registry, PathBuf::new(), ipc::ATTACKS);
}

#[test]
fn started_by_somebody_who_is_not_root() {
    let (user, registry) = (User::new(), Registry::start());
    let service = user.serve(&registry);
    let ipc: Vec<Attack> = ipc::ATTACKS.iter().map(|attack| where_counts_are_shared(*attack)).collect();
    everything_is_repelled(&service, &registry, user.data_dir(), &ipc);
    if cfg!(target_arch = "x86_64") {
        counts_are_shared_with_nobody_else(&service, &registry.image("python:3"), user.id());
    }
}

/// All runs are that user's in the end, and so are their queues. Of several copies at once some may find that the others
/// have all of them, and no more than that.
fn where_counts_are_shared(attack: Attack) -> Attack {
    match attack.id {
        "I-03" if Manner::asked() == Manner::Crowd => {
            Attack { shows: &["EMFILE True True", "EMFILE False True"], ..attack }
        }
        _ => attack,
    }
}

/// Opens queues until there are no more, and says how many there were.
const TAKE: &str = "
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
taken = 0
def take():
    global taken
    while libc.syscall(240, f'q{taken}'.encode(), 0o102, 0o600, 0) >= 0: taken += 1
    assert ctypes.get_errno() == 24, ctypes.get_errno()
    return taken
def wait_for(number):
    # What another run had may be given back one by one, when the kernel comes to it.
    end = time.monotonic() + 60
    while take() < number and time.monotonic() < end: time.sleep(0.05)
    print(taken, flush=True)
";

/// What the wall `ids` says of itself there, held to its word: one run can use up what is counted for the user who
/// started the server, other users notice nothing, and when it is over all of it is there again.
fn counts_are_shared_with_nobody_else(service: &Service, image: &str, user: u32) {
    let ask = |method, path: &str| Request::new(service.address(), method, path);
    let walls = service.get("/info").expect(200)["walls"].clone();
    let mut walls = walls.as_array().expect("walls").iter();
    let ids = walls.find(|wall| wall["name"] == "ids").expect("the wall `ids`");
    let detail = ids["detail"].as_str().expect("words");
    assert!(ids["state"] == "weaker" && detail.contains("message queues"), "{ids}");

    let python = |script: &str| {
        let args = json!(["-c", format!("{TAKE}{script}")]);
        json!({ "image": image, "cmd": "python3", "args": args, "limits": { "wall_time_ms": 120_000 } })
    };
    let said = |script: &str| -> String {
        let run = service.run(&python(script));
        assert_eq!((&run["outcome"], &run["exit_code"]), (&json!("exited"), &json!(0)), "{run:#}");
        run["stdout"].as_str().expect("text").trim().to_owned()
    };
    let all = others_queues(user + 1);
    assert!((1..16).contains(&all.parse::<u32>().expect("a number")), "{all}");
    // Nothing of the attacks before is there any more.
    let takes_all = format!("wait_for({all})");
    assert_eq!(said(&takes_all), all);
    let greedy = python(&format!("{takes_all}\ntime.sleep(110)"));
    let asked = ask("POST", "/runs").header("Prefer", "respond-async").json(&greedy);
    let id = asked.send().expect(202)["id"].as_str().expect("an id").to_owned();
    let show = || ask("GET", &format!("/runs/{id}")).send().expect(200);
    until("the greedy run has all of them", || {
        ask("GET", &format!("/runs/{id}/stdout")).send().text().trim() == all
    });
    assert_eq!(said("print(take())"), "0");
    assert_eq!(others_queues(user + 1), all);
    assert_eq!(show()["state"], "running");
    ask("DELETE", &format!("/runs/{id}")).send();
    until("the greedy run is over", || show()["state"] == "finished");
    assert_eq!(said(&takes_all), all);
}

/// How many another user of the machine gets.
fn others_queues(uid: u32) -> String {
    let (uid, python) = (uid.to_string(), tool("python3").display().to_string());
    let mut command = Command::new(tool("unshare"));
    command.args(["--ipc", "setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", &python, "-c"]);
    let finished = Finished::of(command.arg(format!("{TAKE}print(take())")));
    assert_eq!(finished.code(), Some(0), "{}", finished.stderr_text());
    finished.stdout_text().trim().to_owned()
}
