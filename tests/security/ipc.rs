//! Category I: nothing of System V, POSIX queues, keyrings or shared memory crosses a run's edge.

use support::{Daemon, json};

use crate::attack::{Attack, attack, repel};

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        "I-01",
        "finding segments of others by their keys",
        r#"print(same((call(29, 0x1234, 4096, 0), call(64, 0x1234, 1, 0), call(68, 0x1234, 0))))"#,
        &["ENOENT"],
    ),
    attack(
        "I-03",
        "message queues without end",
        r#"
opened = 0
while isinstance(last := call(240, f"q{opened}".encode(), 0o102, 0o600, 0), int):
    opened += 1
# The limit is on bytes of queues, of which a default one takes some 80 KiB.
print(last, 0 < opened < 16, len(os.listdir("/dev/mqueue")) == opened)"#,
        &["EMFILE True True"],
    ),
    attack(
        "I-04",
        "the kernel's keyrings",
        r#"
print(same((call(248, b"user", b"x", b"y", 1, -3), call(249, b"user", b"x", 0, -3), call(250, 0, -3, 1), call(250, 22, 0, -3))))"#,
        &["ENOSYS"],
    ),
    attack(
        "I-06",
        "descriptors in flight, sockets within sockets",
        r#"
import array
sent = 0
try:
    while sent < 2000:
        a, b = socket.socketpair()
        fds = array.array("i", [a.fileno(), b.fileno()])
        a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        a.detach() if sent % 2 else a.close()
        b.close()
        sent += 1
except OSError as error:
    print(name(error.errno) in ("ETOOMANYREFS", "EMFILE"))
else:
    print(True)"#,
        &["True"],
    ),
];

#[test]
fn nothing_crosses_by_ipc() {
    repel(ATTACKS);
}

/// Two runs at once: what one holds, the other does not see.
#[test]
fn a_segment_of_one_run_is_not_there_in_another() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let holder = "import ctypes,time\nl=ctypes.CDLL(None)\nassert l.shmget(0x4242,4096,0o1666)>=0\nopen('/dev/shm/x','w').write('1')\nprint('held',flush=True)\ntime.sleep(3)";
    let id = daemon.run_async(&json!({ "image": "host", "cmd": "python3", "args": ["-c", holder] }));
    daemon.wait_for_state(&id, "running");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let finder = "import ctypes,os\nl=ctypes.CDLL(None)\nprint(l.shmget(0x4242,4096,0),os.listdir('/dev/shm'),len([p for p in os.listdir('/proc') if p.isdigit()]))";
    let run = daemon.run(&json!({ "image": "host", "cmd": "python3", "args": ["-c", finder] }));
    assert_eq!(run["stdout"], "-1 [] 1\n");
    let held = daemon.wait_for_state(&id, "finished");
    assert_eq!((held["outcome"].as_str(), held["stdout"].as_str()), (Some("exited"), Some("held\n")));
}
