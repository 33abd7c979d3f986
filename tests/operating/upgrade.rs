//! An upgrade as systemd does it: somebody else holds the listening socket, the old server drains, the next
//! one starts, and no client is refused or answered with an error.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use support::{Folder, Process, Request, json, sandglass};

use crate::keeps_http2;

const RUN: &str = r#"{"image":"host","cmd":"echo","args":["hi"]}"#;

/// A server that is handed this socket as systemd would hand it.
fn serve_on(listener: &TcpListener, folder: &Folder) -> Process {
    fcntl(listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("let the socket be inherited");
    let script = r#"exec 3<&"$1"; shift; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@""#;
    let mut command = Command::new("bash");
    command.args(["-c", script, "activate"]).arg(listener.as_raw_fd().to_string());
    command.arg(sandglass()).arg("serve").arg("--data-dir").arg(folder.path());
    command.args(["--allow-host-image", "--docker-config=", "--slots=4", "--log=warn"]);
    let process = Process::start("sandglass serve", command);
    process.wait_for_line("where it listens", Duration::from_secs(60), |line| {
        line.strip_prefix("listening on http://").map(drop)
    });
    process
}

/// One client that keeps its connection for as long as the server does.
fn ask_again_and_again(
    address: SocketAddr,
    enough: &AtomicBool,
    answers: &AtomicUsize,
) -> Result<(), String> {
    while !enough.load(Ordering::Relaxed) {
        let stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a timeout");
        let mut reader = BufReader::new(stream.try_clone().expect("double a socket"));
        let mut writer = stream;
        loop {
            let head =
                format!("POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", RUN.len());
            writer.write_all((head + RUN).as_bytes()).map_err(|error| format!("ask: {error}"))?;
            let closes = read_answer(&mut reader)?;
            answers.fetch_add(1, Ordering::Relaxed);
            if closes || enough.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    Ok(())
}

/// Whether the server wants to close the connection after this.
fn read_answer(reader: &mut impl BufRead) -> Result<bool, String> {
    let mut line = String::new();
    reader.read_line(&mut line).map_err(|error| format!("read: {error}"))?;
    if !line.starts_with("HTTP/1.1 200") {
        return Err(format!("answered with {line:?}"));
    }
    let (mut length, mut closes) = (0, false);
    loop {
        line.clear();
        reader.read_line(&mut line).map_err(|error| format!("read: {error}"))?;
        let lower = line.trim_end().to_lowercase();
        if lower.is_empty() {
            break;
        }
        if let Some(value) = lower.strip_prefix("content-length: ") {
            length = value.parse().map_err(|_| format!("a length of {value}"))?;
        }
        closes |= lower == "connection: close";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).map_err(|error| format!("read: {error}"))?;
    let text = String::from_utf8_lossy(&body);
    if text.contains(r#""stdout":"hi\n""#) { Ok(closes) } else { Err(text.into_owned()) }
}

#[test]
fn servers_that_take_over_one_socket_lose_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("an address");
    let folder = Folder::new();
    let (enough, answers, http2) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut server = serve_on(&listener, &folder);
    std::thread::scope(|scope| {
        let keep = || scope.spawn(|| ask_again_and_again(address, &enough, &answers));
        let fresh = || {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let request = Request::new(address, "POST", "/runs").body(RUN);
                    let answer = request.try_send().map_err(|error| error.to_string())?;
                    if answer.status != 200 {
                        return Err(format!("{}: {}", answer.status, answer.text()));
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let clients = [keep(), keep(), fresh(), fresh(), fresh()];
        let by_http2 =
            [(); 2].map(|()| scope.spawn(|| keeps_http2::ask_again_and_again(address, RUN, &enough, &http2)));
        for _ in 0..3 {
            let before = answers.load(Ordering::Relaxed);
            support::until("some answers", || answers.load(Ordering::Relaxed) > before + 20);
            let before = http2.load(Ordering::Relaxed);
            support::until("some by HTTP/2", || http2.load(Ordering::Relaxed) > before + 5);
            // One that has begun is finished by the server that began it.
            let slow = json!({ "image": "host", "cmd": "sh", "args": ["-c", "sleep 1; echo hi"] });
            let slow = Request::new(address, "POST", "/runs").json(&slow).begin().expect("send a request");
            support::until("it runs", || {
                let list = Request::new(address, "GET", "/runs?state=running").send().text();
                list.contains("sleep") || list.contains("\"running\"")
            });
            server.signal(Signal::SIGTERM);
            assert_eq!(slow.finish().expect("an answer").expect(200)["stdout"], "hi\n");
            assert!(server.wait().success());
            server = serve_on(&listener, &folder);
        }
        let before = answers.load(Ordering::Relaxed);
        support::until("some answers", || answers.load(Ordering::Relaxed) > before + 20);
        let before = http2.load(Ordering::Relaxed);
        support::until("some by HTTP/2", || http2.load(Ordering::Relaxed) > before + 5);
        enough.store(true, Ordering::Relaxed);
        for client in clients {
            assert_eq!(client.join().expect("a client"), Ok(()));
        }
        for client in by_http2 {
            let connections = client.join().expect("a client").expect("no request fails");
            assert!(connections >= 4, "it had {connections} connections to four servers");
        }
    });
    let (one, two) = (answers.load(Ordering::Relaxed), http2.load(Ordering::Relaxed));
    println!("{one} requests over four servers, and {two} by HTTP/2");
    assert!(server.stop().success());
}

/// Nobody is served meanwhile: whoever comes waits for the next server.
#[test]
fn who_is_slow_to_take_an_answer_does_not_keep_the_next_server_from_starting() {
    let large = json!({
        "image": "host", "cmd": "sh", "args": ["-c", "head -c 30000000 /dev/zero | tr '\\0' x"],
        "limits": { "stdout_bytes": 40_000_000 },
    });
    for launcher_dies in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let folder = Folder::new();
        let mut server = serve_on(&listener, &folder);
        let mut slow =
            Request::new(address, "POST", "/runs").json(&large).begin().expect("ask").into_stream();
        slow.read_exact(&mut [0; 12]).expect("the beginning of an answer");
        if launcher_dies {
            let launcher = support::host::children(server.pid())[0];
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(launcher), Signal::SIGKILL).expect("kill it");
        } else {
            server.signal(Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(500));
            server.signal(Signal::SIGTERM);
        }
        let status = support::within(Duration::from_secs(15), "its end", || server.try_wait());
        assert_eq!(status.code(), Some(if launcher_dies { 70 } else { 0 }), "{status:?}");
        drop(slow);
    }
}

#[test]
fn an_address_that_others_reach_is_refused_also_when_it_is_handed_over() {
    let listener = TcpListener::bind("0.0.0.0:0").expect("listen");
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("let the socket be inherited");
    let script = r#"exec 3<&"$1"; shift; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@""#;
    let folder = Folder::new();
    let mut command = Command::new("bash");
    command.args(["-c", script, "activate"]).arg(listener.as_raw_fd().to_string());
    let done =
        support::Finished::of(command.arg(sandglass()).arg("serve").arg("--data-dir").arg(folder.path()));
    assert!(!done.status.success());
    assert!(done.stderr_text().contains("can be reached by others"), "{}", done.stderr_text());
}

#[test]
fn a_service_manager_is_told_when_the_server_is_ready_and_when_it_stops() {
    let folder = Folder::new();
    let path = folder.join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).expect("listen for words");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("open it");
    manager.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    let builder = support::Daemon::builder().flag("--drain-deadline-ms", 90_000);
    let mut daemon = builder.env("NOTIFY_SOCKET", path.as_os_str()).start();
    let said = || {
        let mut words = [0; 256];
        let length = manager.recv(&mut words).expect("to be told");
        String::from_utf8_lossy(&words[..length]).into_owned()
    };
    assert!(said().starts_with("READY=1\n"));
    assert!(daemon.stop().success());
    let last = said();
    // Else systemd would kill, after `TimeoutStopSec=`, what may take longer than that.
    assert!(last.starts_with("STOPPING=1\n") && last.contains("\nEXTEND_TIMEOUT_USEC=105000000"), "{last}");
}
