//! A program that looks at its sandbox from inside and says which walls it could not find. The server
//! runs it at every start, through the same path as any run, before it takes work: what a wall says of
//! itself from outside is a promise, this is whether it was kept.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::rootfs::NODES;
use crate::sys::{self, Fork};

type Check = fn() -> Result<(), String>;

/// Each wall by the name that `/info` has for it, and what must not be possible behind it.
const CHECKS: &[(&str, Check)] = &[
    ("namespaces", namespaces),
    ("ids", ids),
    ("capabilities", capabilities),
    ("seccomp", seccomp),
    ("proc", proc),
    ("devices", devices),
    ("network", network),
    ("descriptors", descriptors),
    ("root", root),
];

/// `canary` says on standard output, a line each, which walls it missed. `canary memory` takes memory
/// until it is stopped, `canary processes` forks until it is refused, and says how many it got.
pub(crate) fn main(word: Option<&str>) -> ExitCode {
    match word {
        None => {
            for (wall, check) in CHECKS {
                if let Err(found) = check() {
                    println!("{wall}: {found}");
                }
            }
            ExitCode::SUCCESS
        }
        Some("memory") => take_memory(),
        Some("processes") => count_processes(),
        Some(_) => ExitCode::from(2),
    }
}

fn status(field: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn ensure(holds: bool, found: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(found()) }
}

/// What an attempt must be answered with.
fn refused<T>(what: &str, result: &nix::Result<T>, expected: &[Errno]) -> Result<(), String> {
    match result {
        Ok(_) => Err(format!("{what} was allowed")),
        Err(errno) => ensure(expected.contains(errno), || format!("{what} was refused with {errno}")),
    }
}

fn namespaces() -> Result<(), String> {
    let pid = nix::unistd::getpid().as_raw();
    ensure(pid < 16, || format!("the program is process {pid}, too high for a namespace of its own"))?;
    let name = nix::unistd::gethostname().unwrap_or_default();
    ensure(name == "sandbox", || format!("the host name is {name:?}"))?;
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let shown = cgroups.lines().find(|line| !line.ends_with(":/"));
    ensure(shown.is_none(), || format!("the control group can be seen: {}", shown.unwrap_or_default()))
}

fn ids() -> Result<(), String> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outside = map.split_whitespace().nth(1).and_then(|id| id.parse::<u32>().ok());
    ensure(outside.is_some_and(|id| id >= 1000), || format!("root inside is {outside:?} outside"))
}

fn capabilities() -> Result<(), String> {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let held = status(set);
        ensure(held.bytes().all(|digit| digit == b'0') && !held.is_empty(), || format!("{set} is {held}"))?;
    }
    let no_new_privs = status("NoNewPrivs");
    ensure(no_new_privs == "1", || "privileges could be gained by executing a program".into())
}

fn seccomp() -> Result<(), String> {
    let mode = status("Seccomp");
    ensure(mode == "2", || format!("the filter mode is {mode:?}"))?;
    refused("a new user namespace", &unshare(CloneFlags::CLONE_NEWUSER), &[Errno::EPERM])?;
    let mounted = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT, None::<&str>);
    refused("a mount", &mounted, &[Errno::EPERM])?;
    for family in [AddressFamily::Netlink, AddressFamily::Packet, AddressFamily::Alg, AddressFamily::Vsock] {
        let made = socket(family, SockType::Raw, SockFlag::empty(), None);
        refused(&format!("a socket of {family:?}"), &made, &[Errno::EAFNOSUPPORT])?;
    }
    Ok(())
}

fn proc() -> Result<(), String> {
    let entries = fs::read_dir("/proc").map_err(|error| error.to_string())?.flatten();
    let own = nix::unistd::getpid().to_string();
    let strange = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| *name != own && name != "self" && name != "thread-self");
    ensure(strange.is_none(), || format!("/proc has {}", strange.unwrap_or_default()))
}

fn devices() -> Result<(), String> {
    let made = fs::File::create("/dev/canary").map_err(|error| error.raw_os_error());
    ensure(made.is_err(), || "/dev can be written".into())?;
    let mut names: Vec<String> = fs::read_dir("/dev")
        .map_err(|error| error.to_string())?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let expected =
        ["fd", "full", "mqueue", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"];
    ensure(names == expected, || format!("/dev has {names:?}"))
}

/// A datagram is sent nowhere by connecting; only a route is looked for. The address is one that is
/// nobody's, for documentation.
fn network() -> Result<(), String> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    let reached = socket.connect("192.0.2.1:9").map_err(|error| error.kind());
    ensure(reached == Err(io::ErrorKind::NetworkUnreachable), || format!("a route outside: {reached:?}"))?;
    let looped = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.connect(socket.local_addr()?));
    looped.map_err(|error| format!("no loopback: {error}"))
}

fn descriptors() -> Result<(), String> {
    let entries = fs::read_dir("/proc/self/fd").map_err(|error| error.to_string())?.flatten();
    let open: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // The fourth is the one with which they are listed.
    ensure(open.len() <= 4, || format!("open descriptors: {open:?}"))
}

fn root() -> Result<(), String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let strange = mounts.lines().find(|line| {
        let kind = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        // Where devices can't be made, the machine's own are there, one by one.
        let device = NODES.iter().any(|(name, _)| line.contains(&format!(" /{name} /dev/{name} ro,")));
        let known = ["overlay", "tmpfs", "proc", "mqueue"].contains(&kind) || device;
        !known || !line.contains("nosuid")
    });
    ensure(strange.is_none(), || format!("a mount of another kind: {}", strange.unwrap_or_default()))
}

/// More than any canary is allowed.
const MEMORY_BYTES: usize = 1 << 30;

fn take_memory() -> ExitCode {
    let mut held = Vec::new();
    while held.len() * (1 << 20) < MEMORY_BYTES {
        held.push(vec![1_u8; 1 << 20]);
    }
    println!("{} MiB", std::hint::black_box(&held).len());
    ExitCode::SUCCESS
}

fn count_processes() -> ExitCode {
    const ENOUGH: u32 = 1000;
    let mut count = 0;
    while count < ENOUGH {
        match sys::fork() {
            Ok(Fork::Child) => loop {
                std::thread::sleep(std::time::Duration::from_secs(60));
            },
            Ok(Fork::Parent(_)) => count += 1,
            Err(_) => break,
        }
    }
    println!("{count}");
    ExitCode::SUCCESS
}
