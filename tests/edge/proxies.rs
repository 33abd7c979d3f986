//! Whose request it was, in the log, behind a proxy and without one.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Builder, Daemon, Folder, Process, sandglass, until};

/// The address of the client in the line about a request without a key, which is named after `id`.
fn client(daemon: &Daemon, id: &str, headers: &[(&str, &str)]) -> String {
    let mut request = daemon.request("GET", "/runs").header("X-Request-Id", id);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.send().problem(401, "unauthorized");
    named(daemon, id)
}

fn named(daemon: &Daemon, id: &str) -> String {
    let mut found = None;
    until("the line", || {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("was not let in") && line.contains(id));
        found = line.and_then(|line| line.split("client=").nth(1)).map(str::to_owned);
        found.is_some()
    });
    let rest = found.expect("a line");
    rest.split([' ', '}']).next().expect("an address").to_owned()
}

fn closed() -> Builder {
    let builder = Daemon::builder();
    builder.key(&["alice"]);
    builder
}

#[test]
fn who_a_trusted_proxy_speaks_for_is_in_the_log_and_who_anybody_says_is_not() {
    let forwarded = [("X-Forwarded-For", "203.0.113.5, 198.51.100.7, 127.0.0.9")];
    let daemon = closed().start();
    assert_eq!(client(&daemon, "alone", &[]), "127.0.0.1");
    assert_eq!(client(&daemon, "liar", &forwarded), "127.0.0.1");

    let daemon = closed().flag("--trusted-proxies", "127.0.0.0/8,10.0.0.0/8").start();
    assert_eq!(client(&daemon, "silent", &[]), "127.0.0.1");
    assert_eq!(client(&daemon, "proxied", &forwarded), "198.51.100.7");
    assert_eq!(client(&daemon, "other", &[("Forwarded", "for=203.0.113.5")]), "127.0.0.1");

    let builder = closed().flag("--trusted-proxies", "127.0.0.1").flag("--proxy-header", "Forwarded");
    let daemon = builder.start();
    assert_eq!(
        client(&daemon, "standard", &[("Forwarded", "for=\"198.51.100.7:1\";proto=https")]),
        "198.51.100.7"
    );
    assert_eq!(client(&daemon, "older", &forwarded), "127.0.0.1");
}

#[test]
fn proxies_that_are_no_networks_are_refused_and_others_are_learned_at_sighup() {
    let mut wrong = Daemon::builder().flag("--trusted-proxies", "proxy.example").spawn();
    assert!(!wrong.wait().success());
    assert!(wrong.log().contains("trusted_proxies has \"proxy.example\""), "{}", wrong.log());

    let folder = Folder::new();
    let file = folder.join("config.toml");
    std::fs::write(&file, "").expect("write a configuration");
    let mut daemon = closed().flag("--config", file.display()).start();
    let forwarded = [("X-Forwarded-For", "198.51.100.7")];
    assert_eq!(client(&daemon, "before", &forwarded), "127.0.0.1");
    std::fs::write(&file, "trusted_proxies = ['127.0.0.1']\n").expect("write a configuration");
    daemon.process().signal(Signal::SIGHUP);
    until("it has read it", || daemon.log().contains("changed=\"trusted_proxies\""));
    assert_eq!(client(&daemon, "after", &forwarded), "198.51.100.7");
}

#[test]
fn a_proxy_behind_a_socket_file_is_trusted_by_that_name() {
    let folder = Folder::new();
    let socket = folder.join("socket");
    let builder = closed();
    let mut command = Command::new(sandglass());
    command.args(["serve", "--trusted-proxies=unix", "--docker-config=", "--log-format=text", "--data-dir"]);
    command.arg(builder.data_dir()).arg(format!("--listen=unix:{}", socket.display()));
    let process = Process::start("sandglass serve", command);
    process.wait_for_line("where it listens", Duration::from_secs(60), |line| {
        line.strip_prefix("listening on unix:").map(drop)
    });
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connect");
    let ask =
        "GET /runs HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 198.51.100.7\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    until("the line", || process.log().contains("client=198.51.100.7"));
}

/// Of a socket that is a file root and the server's group are told apart from all others.
#[test]
fn the_file_of_a_socket_is_for_root_and_the_server_s_group() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new();
    let path = folder.join("http.sock");
    for mask in ["0022", "0077"] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {mask} && exec \"$@\""), "sh"]).arg(sandglass());
        command.arg("serve").arg(format!("--listen=unix:{}", path.display())).arg("--docker-config=");
        command.arg("--data-dir").arg(folder.join("data"));
        let mut process = Process::start("sandglass serve", command);
        process.wait_for_line("where it listens", Duration::from_secs(60), |line| {
            line.strip_prefix("listening on unix:").map(drop)
        });
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("read its status");
        let group = status
            .lines()
            .find_map(|line| line.strip_prefix("Gid:")?.split_whitespace().next()?.parse().ok());
        let group: u32 = group.expect("the server's group");
        let file = std::fs::metadata(&path).expect("look at the socket");
        assert_eq!((file.mode() & 0o777, file.uid(), file.gid()), (0o660, 0, group), "{mask}");
        assert!(group != 0 && process.stop().success());
    }
}
