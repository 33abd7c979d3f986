//! A server that may open no more: it waits for descriptors to come back, and answers whom it can.

use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Daemon, Finished, host, json, scaled, tool, until, within};

use crate::echo;

/// Sets what a process may have open; as its own user, which needs no privilege.
fn allow(pid: i32, descriptors: usize) {
    let uid = host::uids(pid)[0];
    let mut command = std::process::Command::new(tool("setpriv"));
    command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".to_owned()]);
    command.arg(tool("prlimit")).arg(format!("--pid={pid}")).arg(format!("--nofile={descriptors}:"));
    let done = Finished::of(&mut command);
    assert!(done.status.success(), "{}", done.stderr_text());
}

#[test]
fn a_server_out_of_descriptors_recovers_when_some_come_back() {
    let mut daemon = Daemon::builder().host_image().flag("--maxima-open-files", 512).start();
    echo(&daemon);
    let open = host::descriptors(daemon.pid()).len();
    allow(daemon.pid(), open + 10);
    let held: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(daemon.address()).expect("connect")).collect();
    until("it has no descriptor left", || daemon.log().contains("could not accept a connection"));
    assert!(daemon.process().try_wait().is_none(), "it goes on");
    drop(held);
    within(Duration::from_secs(10), "an answer", || {
        let asked = daemon.request("GET", "/healthz").patience(Duration::from_secs(2)).try_send();
        asked.is_ok_and(|answer| answer.status == 200).then_some(())
    });
    echo(&daemon);
    daemon.host().assert_unchanged();
    assert_eq!(daemon.process().stop().code(), Some(0));
}

/// A shell and many a container engine give 1024 where a process may have a thousand times as many.
#[test]
fn the_limit_that_need_not_be_is_not_what_idle_clients_can_use_up() {
    let folder = support::Folder::new();
    let mut command = std::process::Command::new(tool("prlimit"));
    command.arg("--nofile=200:8192").arg(support::sandglass()).args([
        "serve",
        "--listen=127.0.0.1:0",
        "--data-dir",
    ]);
    command.arg(folder.join("data")).args([
        "--allow-host-image",
        "--docker-config=",
        "--maxima-open-files=4096",
    ]);
    command.arg("--header-timeout-ms=60000");
    let service = support::Service::wait_for(support::Process::start("sandglass serve", command));
    let held: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(service.address()).expect("connect")).collect();
    let body = json!({ "image": "host", "cmd": "echo", "args": ["hi"] });
    let asked = support::Request::new(service.address(), "POST", "/runs").json(&body);
    let run = asked.patience(scaled(Duration::from_secs(20))).try_send().expect("an answer").expect(200);
    assert_eq!(run["stdout"], "hi\n", "{run}");
    drop(held);
    assert_eq!(service.stop(), Some(0));
}

/// With room for connections and none for pipes, a run is our failure, and says so.
#[test]
fn a_run_that_gets_no_descriptors_is_told_from_one_that_fails() {
    let daemon =
        Daemon::builder().host_image().flag("--prepared-max", 0).flag("--maxima-open-files", 512).start();
    echo(&daemon);
    let host = daemon.host();
    let open = host::descriptors(daemon.pid()).len();
    let body = json!({ "image": "host", "cmd": "true", "stdin": "x" });
    // One for the connection, and then one more each time, until it is enough.
    let mut statuses = Vec::new();
    for more in 1..20 {
        allow(daemon.pid(), open + more);
        let answer = daemon.request("POST", "/runs").json(&body).patience(Duration::from_secs(5)).try_send();
        if let Ok(answer) = answer {
            assert!(matches!(answer.status, 200 | 500 | 503), "{}: {}", answer.status, answer.text());
            statuses.push(answer.status);
        }
    }
    assert!(statuses.contains(&500) && statuses.last() == Some(&200), "{statuses:?}");
    host.assert_unchanged();
}

#[test]
fn connections_that_are_waiting_when_the_server_wakes_are_served() {
    let mut daemon = Daemon::start();
    echo(&daemon);
    daemon.process().signal(Signal::SIGSTOP);
    let asked: Vec<_> = (0..50)
        .map(|_| daemon.request("GET", "/healthz").begin().expect("a connection in the backlog"))
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    daemon.process().signal(Signal::SIGCONT);
    for pending in asked {
        assert_eq!(pending.finish().expect("an answer").status, 200);
    }
}
