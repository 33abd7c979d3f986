//! The same attacks where the service is not root of the machine: in containers, and started by somebody
//! who is not root. Category R is not among them: what memory and processes cost is counted by control
//! groups, and those are either the same there or not to be had.

use std::path::PathBuf;

use support::{Docker, Registry, Request, Service, User, json, skip};

use crate::attack::{Attack, Manner, Target};
use crate::{filesystem, ipc, kernel, network, privileges, proc, processes};

fn everything_is_repelled(service: &Service, registry: &Registry, data_dir: PathBuf) {
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
        ipc::ATTACKS,
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
    everything_is_repelled(&container, &registry, PathBuf::new());
}

#[test]
fn in_a_container_under_our_profile() {
    let (docker, registry) = (Docker::start(), Registry::start());
    let profile =
        concat!("--security-opt=seccomp=", env!("CARGO_MANIFEST_DIR"), "/deploy/docker/seccomp.json");
    let container = docker.serve(&["--cap-add=SYS_ADMIN", profile], &registry);
    everything_is_repelled(&container, &registry, PathBuf::new());
}

#[test]
fn started_by_somebody_who_is_not_root() {
    let (user, registry) = (User::new(), Registry::start());
    let service = user.serve(&registry);
    everything_is_repelled(&service, &registry, user.data_dir());
}
