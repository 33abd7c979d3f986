//! Clients that hold on to what they have: thousands of connections, and answers taken a byte at a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{Daemon, host, json, skip, until, within};

use crate::echo;

const HELD: usize = 10_000;

fn resident_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn ten_thousand_connections_that_say_nothing_keep_nobody_waiting() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("ask for a limit");
    if most < HELD as u64 + 500 {
        return skip(&format!("this machine lets a process open {most} descriptors"));
    }
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raise a limit");
    let daemon = Daemon::builder()
        .host_image()
        .flag("--connections-max", HELD + 200)
        .flag("--header-timeout-ms", 60_000)
        .flag("--maxima-open-files", 4096)
        // Prepared sandboxes come and go with descriptors of their own, which would be counted.
        .flag("--prepared-max", 0)
        .start();
    echo(&daemon);
    // What that run still holds is none of what is there for good.
    until("a server at rest", || {
        let none = |name: &str| daemon.metric(name) == 0.0;
        none("sandglass_slots{state=\"busy\"}") && none("sandglass_sandboxes{state=\"ending\"}")
    });
    let open_before = within(Duration::from_secs(10), "descriptors that stay as they are", || {
        let open = || host::descriptors(daemon.pid()).len();
        let first = open();
        std::thread::sleep(Duration::from_millis(200));
        (open() == first).then_some(first)
    });
    let before = resident_bytes(daemon.pid());
    let held: Vec<TcpStream> = (0..HELD)
        .map(|number| {
            let mut stream = TcpStream::connect(daemon.address()).expect("connect");
            // Half of them begin to say something.
            if number % 2 == 0 {
                stream.write_all(b"POST /runs HTTP/1.1\r\nHost: loc").expect("begin a request");
            }
            stream
        })
        .collect();
    within(Duration::from_secs(40), "all of them to be open", || {
        (host::descriptors(daemon.pid()).len() >= open_before + HELD).then_some(())
    });
    let slowest = (0..20)
        .map(|_| {
            let asked = Instant::now();
            echo(&daemon);
            asked.elapsed()
        })
        .max();
    let slowest = slowest.expect("twenty runs");
    let each = resident_bytes(daemon.pid()).saturating_sub(before) / HELD as u64;
    println!("slowest run beside {HELD} held connections: {slowest:?}; {each} bytes for each of them");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(each < 20 * 1024, "{each} bytes for each connection");
    // Who does not say what they want in time is hung up on.
    within(Duration::from_secs(120), "the end of the held connections", || {
        (host::descriptors(daemon.pid()).len() <= open_before + 5).then_some(())
    });
    drop(held);
    echo(&daemon);
}

#[test]
fn a_client_that_reads_a_byte_a_second_costs_nobody_else_anything() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--answer-timeout-ms", 2000)
        .flag("--slots", 2)
        .flag("--prepared-max", 0)
        .start();
    let open_before = host::descriptors(daemon.pid()).len();
    let large = json!({
        "image": "host", "cmd": "sh", "args": ["-c", "head -c 30000000 /dev/zero | tr '\\0' x"],
        "limits": { "stdout_bytes": 40_000_000 },
    })
    .to_string();
    let mut slow: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(daemon.address()).expect("connect");
            let length = large.len();
            let head = format!("POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all((head + &large).as_bytes()).expect("ask");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
            stream
        })
        .collect();
    let began = Instant::now();
    let mut byte = [0];
    while host::descriptors(daemon.pid()).len() > open_before + 1 || began.elapsed() < Duration::from_secs(3)
    {
        for stream in &mut slow {
            // An error is the server's giving up, which is what is waited for.
            let _ = stream.read(&mut byte);
        }
        let asked = Instant::now();
        echo(&daemon);
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        assert!(began.elapsed() < Duration::from_secs(30), "the slow clients still hold their connections");
        std::thread::sleep(Duration::from_secs(1));
    }
}
