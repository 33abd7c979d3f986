//! Category R: using up what belongs to everybody. The limits have tests of their own; these are the
//! ways around them.

use crate::attack::{Attack, attack, repel};

const ATTACKS: &[Attack] = &[
    attack(
        "R-01",
        "forking for ever",
        r#"
while True:
    tried(os.fork)"#,
        &[""],
    )
    .ends(&["wall_time_limit"])
    .with(r#"{"limits": {"wall_time_ms": 1000, "cpu_time_ms": 60000, "processes": 64}}"#),
    attack(
        "R-05",
        "memory in many small children, of which the kernel ends only one",
        r#"
for _ in range(30):
    if os.fork() == 0:
        held = bytearray(8 << 20)
        for at in range(0, len(held), 4096):
            held[at] = 1
        time.sleep(190)
time.sleep(190)"#,
        &[""],
    )
    .ends(&["memory_limit"])
    .within_ms(10_000.0)
    .with(r#"{"limits": {"memory_bytes": 134217728, "wall_time_ms": 200000, "cpu_time_ms": 60000}}"#),
    attack(
        "R-12",
        "files that have no name",
        r#"
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
held = []
while True:
    fd = os.memfd_create("x")
    held.append(fd)
    os.write(fd, bytes(8 << 20))"#,
        &[""],
    )
    .ends(&["memory_limit"])
    .with(r#"{"limits": {"memory_bytes": 134217728}}"#),
    attack(
        "R-14",
        "memory inside pipes",
        r#"
import fcntl
pipes, held = [], 0
try:
    while True:
        read, write = os.pipe()
        pipes.append((read, write))
        tried(fcntl.fcntl, write, 1031, 1 << 20)
        os.set_blocking(write, False)
        while True:
            try:
                held += os.write(write, bytes(1 << 16))
            except BlockingIOError:
                break
except OSError as error:
    print(name(error.errno), held < 200 << 20)"#,
        &["EMFILE True"],
    )
    .with(r#"{"limits": {"open_files": 256}}"#),
    attack(
        "R-15",
        "timers, watches and message queues",
        r#"
timers = 0
while call(222, 0, 0, ctypes.create_string_buffer(8)) == 0 and timers < 5000:
    timers += 1
print(timers <= 256)"#,
        &["True"],
    ),
    attack(
        "R-17",
        "names of files that are not there",
        r#"
import signal
for number in range(50_000):
    try:
        os.stat(f"/tmp/nothing-{number:032}")
    except OSError:
        pass
print("done")"#,
        &["done"],
    ),
    attack(
        "R-27",
        "mappings without end",
        r#"
import mmap
maps = []
try:
    while len(maps) < 200_000:
        maps.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ if len(maps) % 2 else mmap.PROT_READ | mmap.PROT_WRITE))
except OSError as error:
    print(name(error.errno), len(maps) < 70_000)"#,
        &["ENOMEM True"],
    ),
    attack(
        "R-02",
        "threads without end",
        r#"
import threading
started = 0
try:
    while started < 1000:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        started += 1
except RuntimeError as error:
    print(started < 64, str(error))
sys.stdout.flush()
os._exit(0)"#,
        &["True can't start new thread"],
    )
    .with(r#"{"limits": {"processes": 64}}"#),
    attack(
        "R-03",
        "processes that have ended and that nobody asks after",
        r#"
started = 0
while isinstance(pid := tried(os.fork), int):
    if pid == 0:
        os._exit(0)
    started += 1
print(pid, started < 64)"#,
        &["EAGAIN True"],
    )
    .with(r#"{"limits": {"processes": 64}}"#),
    attack(
        "R-04",
        "touching memory until something happens",
        r#"
held = []
while True:
    held.append(b"x" * (1 << 20))"#,
        &[""],
    )
    .ends(&["memory_limit"])
    .within_ms(5_000.0)
    .with(r#"{"limits": {"memory_bytes": 134217728, "wall_time_ms": 60000, "cpu_time_ms": 60000}}"#),
    attack(
        "R-06",
        "letting a child die of memory and ending well",
        r#"
if os.fork() == 0:
    held = []
    while True:
        held.append(b"x" * (1 << 20))
os.wait()
time.sleep(0.2)
os._exit(0)"#,
        &[""],
    )
    .ends(&["memory_limit"])
    .with(r#"{"limits": {"memory_bytes": 134217728, "wall_time_ms": 60000, "cpu_time_ms": 60000}}"#),
    attack(
        "R-07",
        "nothing: reserving a terabyte and touching none of it",
        r#"
LIBC.mmap.restype = ctypes.c_long
LIBC.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5
print(LIBC.mmap(None, 1 << 40, 3, 0x4022, -1, 0) > 0)"#,
        &["True"],
    )
    .with(r#"{"limits": {"memory_bytes": 134217728}}"#),
    attack(
        "R-08",
        "pages that are huge, and pages that can't be taken away",
        r#"
import mmap
LIBC.mmap.restype = ctypes.c_long
LIBC.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5
huge = [LIBC.mmap(None, 1 << 21, 3, 0x40022, -1, 0), tried(os.memfd_create, "x", 4), call(29, 0, 1 << 21, 0o4600)]
print(huge)"#,
        &["[-1, 'ENOMEM', 'ENOMEM']"],
    ),
    attack(
        "R-09",
        "filling every place that can be written",
        r#"
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill(folder):
    written = 0
    for number in range(100):
        try:
            with open(f"{folder}/fill-{number}", "wb", buffering=0) as file:
                for _ in range(8):
                    written += file.write(bytes(1 << 20))
        except OSError as error:
            return name(error.errno), written
    return "full of nothing", written
ends = [fill(folder) for folder in ("/tmp", "/dev/shm", "/", "/var/tmp")]
print(same(end for end, _ in ends), sum(written for _, written in ends) <= 32 << 20)"#,
        &["ENOSPC True", "ENOSPC EROFS True", "ENOSPC ENOENT True", "ENOSPC EROFS ENOENT True"],
    )
    .with(r#"{"limits": {"disk_bytes": 33554432, "memory_bytes": 268435456, "wall_time_ms": 60000}}"#),
    attack(
        "R-10",
        "files without a byte in them",
        r#"
made = 0
try:
    while True:
        os.close(os.open(f"/tmp/{made}", os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    print(name(error.errno), 1900 < made <= 2024)"#,
        &["ENOSPC True"],
    )
    .with(r#"{"limits": {"inodes": 2000, "wall_time_ms": 60000, "cpu_time_ms": 60000}}"#),
    attack(
        "R-11",
        "every other thing that has a name",
        r#"
def many(make):
    made = 0
    try:
        while made < 10_000:
            make(f"/tmp/{make.__name__}-" + f"{made:x}".rjust(200, "n"))
            made += 1
    except OSError as error:
        return name(error.errno)
    return "no end"
open("/tmp/one", "w").close()
def link(path): os.link("/tmp/one", path)
def symlink(path): os.symlink("x" * 200, path)
def fifo(path): os.mkfifo(path)
def folder(path): os.mkdir(path)
def bound(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path[:90] + path[-10:])
print(same(map(many, (link, symlink, fifo, folder, bound))))"#,
        &["ENOSPC", "ENOSPC EMLINK"],
    )
    .with(r#"{"limits": {"inodes": 2000, "wall_time_ms": 60000, "cpu_time_ms": 60000}}"#),
    attack(
        "R-13",
        "shared memory of System V",
        r#"
LIBC.shmat.restype = ctypes.c_void_p
while True:
    segment = call(29, 0, 16 << 20, 0o600)
    place = LIBC.shmat(segment, None, 0)
    ctypes.memset(place, 1, 16 << 20)"#,
        &[""],
    )
    .ends(&["memory_limit"])
    .with(r#"{"limits": {"memory_bytes": 134217728, "wall_time_ms": 60000}}"#),
    attack(
        "R-15b",
        "watches, events and signals by descriptor",
        r#"
import select
inotify = call(294, 0)
watches = 0
os.makedirs("/tmp/w")
while watches < 5000:
    path = f"/tmp/w/{watches}"
    open(path, "w").close()
    if not isinstance(call(254, inotify, path.encode(), 2), int):
        break
    watches += 1
held = []
def until_refused(make):
    try:
        for _ in range(10_000):
            held.append(make())
    except OSError as error:
        return name(error.errno)
    finally:
        for fd in held:
            os.close(fd) if isinstance(fd, int) else fd.close()
        held.clear()
    return "no end"
makers = (lambda: os.eventfd(0), select.epoll, lambda: os.open("/tmp", 0))
print(watches <= 5000, same(map(until_refused, makers)))"#,
        &["True EMFILE"],
    )
    .with(r#"{"limits": {"open_files": 256, "wall_time_ms": 60000}}"#),
    attack(
        "R-15c",
        "bytes that wait in sockets",
        r#"
pairs, held = [], 0
try:
    while held < 1 << 30:
        pair = socket.socketpair()
        pairs.append(pair)
        pair[0].setblocking(False)
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 28)
        while True:
            try:
                held += pair[0].send(bytes(1 << 16))
            except BlockingIOError:
                break
except OSError as error:
    print(name(error.errno), held < 128 << 20)"#,
        &["EMFILE True", ""],
    )
    .ends(&["exited", "memory_limit"])
    .with(r#"{"limits": {"open_files": 256, "memory_bytes": 134217728, "wall_time_ms": 60000}}"#),
    attack(
        "R-16",
        "descriptors without end",
        r#"
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    print(name(error.errno), 240 < len(held) <= 256)"#,
        &["EMFILE True"],
    )
    .with(r#"{"limits": {"open_files": 256}}"#),
    attack(
        "R-18",
        "sixty processes that spin",
        r#"
for _ in range(50):
    if tried(os.fork) == 0:
        break
while True:
    pass"#,
        &[""],
    )
    .ends(&["wall_time_limit", "cpu_time_limit"])
    .within_ms(4_000.0)
    .with(r#"{"limits": {"cpu_time_ms": 1000, "wall_time_ms": 3000}}"#),
    attack(
        "R-20",
        "flooding both outputs, byte by byte and in heaps",
        r#"
if os.fork() == 0:
    while True:
        os.write(1, b"y")
while True:
    os.write(2, b"n" * (1 << 16))"#,
        &["", "y"],
    )
    .ends(&["output_limit"])
    .with(r#"{"limits": {"stdout_bytes": 1, "stderr_bytes": 65536, "wall_time_ms": 60000}}"#),
    attack(
        "R-24",
        "holes dug and filled again",
        r#"
file = os.open("/tmp/holes", os.O_RDWR | os.O_CREAT)
for round in range(2000):
    os.pwrite(file, b"x" * 8192, round * 8192 % (16 << 20))
    call(285, file, 3, round * 4096 % (16 << 20), 4096)
print(os.fstat(file).st_size <= 16 << 20)"#,
        &["True"],
    )
    .with(r#"{"limits": {"disk_bytes": 33554432, "wall_time_ms": 60000}}"#),
    attack(
        "R-25",
        "making its own files reach a disk, again and again",
        r#"
start = time.monotonic()
file = os.open("/tmp/sync", os.O_RDWR | os.O_CREAT)
for _ in range(3000):
    os.pwrite(file, b"x" * 4096, 0)
    os.fsync(file); os.fdatasync(file)
print(time.monotonic() - start < 20)"#,
        &["True"],
    ),
    attack(
        "R-26",
        "changing from thread to thread without rest",
        r#"
import threading
end = time.monotonic() + 1
def spin():
    while time.monotonic() < end:
        os.sched_yield()
        call(324, 8, 0, 0)
        call(202, ctypes.create_string_buffer(4), 1, 1, 0, 0, 0)
threads = [threading.Thread(target=spin) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("rest")"#,
        &["rest"],
    ),
    attack(
        "R-27b",
        "calling itself until the stack ends",
        r#"
sys.setrecursionlimit(1 << 30)
def deeper(n):
    return [0].__init__(deeper(n + 1) for _ in "x") or deeper(n + 1)
print(in_child(lambda: deeper(0)) in (-11, 1, -9, 0))"#,
        &["True", ""],
    )
    .ends(&["exited", "memory_limit"]),
    attack(
        "R-28",
        "executing programs without rest, and interpreters of interpreters",
        r#"
for number in range(100):
    subprocess.run(["/bin/true"])
with open("/tmp/loop", "w") as file:
    file.write('#!/tmp/loop\n')
os.chmod("/tmp/loop", 0o755)
print(tried(os.execv, "/tmp/loop", ["loop"]))"#,
        &["ELOOP", "ENOEXEC"],
    ),
    attack(
        "R-35",
        "a fault that the kernel notes, a thousand times",
        r#"
for _ in range(300):
    in_child(lambda: ctypes.string_at(0))
print("done")"#,
        &["done"],
    ),
    attack(
        "R-33",
        "terminals without end",
        r#"print(tried(os.open, "/dev/ptmx", os.O_RDWR), tried(os.open, "/dev/pts/ptmx", os.O_RDWR))"#,
        &["ENOENT ENOENT"],
    ),
];

#[test]
fn what_belongs_to_everybody_is_not_used_up() {
    repel(ATTACKS);
}
