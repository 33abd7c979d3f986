//! Category N: there is no network but the run's own loopback.

use std::io::{Read, Write};
use std::net::TcpListener;

use support::{Daemon, json};

use crate::attack::{Attack, attack, repel};

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        "N-01",
        "connecting to anybody",
        r#"
def reach(address, kind=socket.SOCK_STREAM):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        return tried(s.connect, address)
print(same((reach(("1.1.1.1", 443)), reach(("8.8.8.8", 53), socket.SOCK_DGRAM), reach(("169.254.169.254", 80)),
            reach(("10.0.0.1", 22)), reach(("fd00:ec2::254", 80)), reach(("2606:4700::1111", 443)))))"#,
        &["ENETUNREACH", "ENETUNREACH EADDRNOTAVAIL"],
    ),
    attack(
        "N-02",
        "resolving names",
        r#"
try:
    print(socket.gethostbyname("registry-1.docker.io"))
except OSError as error:
    print(type(error).__name__)"#,
        &["gaierror"],
    ),
    attack(
        "N-04",
        "the host's abstract sockets",
        r#"
found = [line.split()[-1] for line in open("/proc/net/unix").read().splitlines()[1:] if "@" in line] \
    if os.path.exists("/proc/net/unix") else []
print(found)"#,
        &["[]"],
    ),
    attack(
        "N-05",
        "the sockets of container engines",
        r#"
def reach(path):
    with socket.socket(socket.AF_UNIX) as s:
        return tried(s.connect, path)
print(same(reach(path) for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock",
    "/run/dbus/system_bus_socket", "/run/systemd/private")))"#,
        &["ENOENT"],
    ),
    attack(
        "N-06",
        "every family and kind of socket",
        r#"
opened = set()
for family in range(46):
    for kind in (1, 2, 3, 4, 5, 6, 10):
        try:
            socket.socket(family, kind, 0).close()
            opened.add((family, kind))
        except OSError:
            pass
print(sorted(opened))"#,
        &["[(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (10, 1), (10, 2)]"],
    ),
    attack(
        "N-07",
        "every protocol of the internet families",
        r#"
opened = set()
for family in (2, 10):
    for kind in (1, 2, 3, 4, 5, 6):
        for protocol in range(263):
            try:
                socket.socket(family, kind, protocol).close()
                opened.add(protocol)
            except OSError:
                pass
print(sorted(opened))"#,
        &["[0, 6, 17]"],
    ),
    attack(
        "N-08",
        "socket options that reach rarely used code",
        r#"
tcp, udp, udp6 = (socket.socket(*kind) for kind in ((2, 1), (2, 2), (10, 2)))
zero = bytes(256)
print(same((tried(tcp.setsockopt, 6, 31, b"espintcp"), tried(tcp.setsockopt, 6, 31, b"tls"), tried(udp.setsockopt, 17, 100, 1),
    tried(tcp.setsockopt, 1, 60, 1), tried(udp.setsockopt, 1, 50, 1), tried(tcp.setsockopt, 0, 17, zero),
    tried(udp.setsockopt, 1, 26, zero), tried(tcp.setsockopt, 6, 19, 1), tried(udp6.setsockopt, 41, 35, zero),
    tried(udp6.setsockopt, 41, 32, zero), tried(udp.setsockopt, 136, 100, 2), tried(udp6.setsockopt, 136, 100, 2),
    tried(udp.setsockopt, 0, 16, zero), tried(udp6.setsockopt, 41, 34, zero), tried(tcp.setsockopt, 6, 38, zero), call(54, tcp.fileno() | (7 << 32), 6 | (1 << 32), 31 | (9 << 32), b"tls", 3))))"#,
        &["EPERM"],
    ),
    attack(
        "N-09",
        "changing its own network",
        r#"
import fcntl
s = socket.socket(2, 2)
request = struct.pack("16sH14s", b"lo", 0, b"")
print(tried(fcntl.ioctl, s, 0x8914, request), tried(socket.socket, 16, 3, 0))"#,
        &["EPERM EAFNOSUPPORT"],
    ),
    attack(
        "N-09b",
        "having the kernel load its modules for bridges and VLANs",
        r#"
import fcntl
requests = (0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1)
print(same(tried(fcntl.ioctl, socket.socket(*kind), request, bytes(256)) for kind in ((1, 1), (2, 2)) for request in requests))"#,
        &["EPERM"],
    ),
    attack(
        "N-10",
        "nothing: a server and a client on loopback work",
        r#"
for family, address in ((2, "127.0.0.1"), (10, "::1")):
    server = socket.socket(family)
    server.bind((address, 0)); server.listen()
    client = socket.create_connection(server.getsockname()[:2])
    connection, _ = server.accept()
    client.sendall(b"hello")
    print(connection.recv(9))"#,
        &["b'hello'\nb'hello'"],
    ),
    attack("N-12", "low ports", r#"print(tried(socket.socket().bind, ("127.0.0.1", 80)))"#, &["EACCES"]),
    attack(
        "N-13",
        "the system calls of i386 in the filter's blind spot",
        r#"
# mov eax, 20 (getpid); int 0x80; ret
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print(in_child(lambda: os._exit(0 if function() > 0 else 1)))"#,
        &["-31", "-11"],
    ),
];

#[test]
fn there_is_no_network() {
    repel(ATTACKS);
}

/// N-03: the server that runs the program, and whoever else listens on the host's loopback.
#[test]
fn servers_on_the_host_s_loopback_are_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let secret = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("don't wait for connections");
    let daemon = Daemon::start();
    let own = daemon.address().port();
    let script = format!(
        "import socket\nfor host in ('127.0.0.1', '0.0.0.0', 'localhost'):\n for port in ({secret}, {own}):\n  \
         try:\n   socket.create_connection((host, port), 1); print('open')\n  except OSError as e: print(e.errno)"
    );
    let run = daemon.run(&json!({ "image": "host", "cmd": "python3", "args": ["-c", script] }));
    let shown = run["stdout"].as_str().expect("text");
    assert!(shown.lines().count() == 6 && shown.lines().all(|line| line == "111"), "{shown}");
    assert!(listener.accept().is_err(), "somebody came through");
    // The listener is real: from outside it can be reached.
    let mut here = std::net::TcpStream::connect(("127.0.0.1", secret)).expect("connect");
    here.write_all(b"x").expect("write");
    listener.set_nonblocking(false).expect("wait for connections");
    let mut byte = [0];
    listener.accept().expect("accept").0.read_exact(&mut byte).expect("read");
}
