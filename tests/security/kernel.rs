//! Category K: the kernel's surface is what a program needs and no more.

use crate::attack::{Attack, attack, repel};

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        "K-01",
        "every system call by its number",
        r#"
# Those that would end or hold the script are left out, and the two that the kernel itself answers
# with SIGILL: the return points of its own probes.
left_out = {0, 1, 3, 7, 15, 22, 23, 34, 35, 56, 57, 58, 59, 60, 61, 62, 32, 33, 37, 38, 61, 74, 75, 112, 130, 132, 200, 202, 213,
            219, 230, 231, 232, 234, 235, 247, 270, 271, 281, 292, 293, 322, 335, 336, 424, 435, 436, 441, 449}
allowed = {number for number in range(600) if number not in left_out
           and call(number, -1, -1, -1, -1, -1, -1) not in ("ENOSYS", "EPERM")}
forbidden = {101, 153, 154, 155, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 206,
             207, 209, 216, 237, 238, 239, 246, 248, 249, 250, 256, 272, 298, 300, 301, 303, 304, 308, 310, 311, 312,
             313, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 447, 451, 457, 458, 467}
print(sorted(allowed & forbidden), len(allowed) > 150, sorted(n for n in allowed if n > 470))"#,
        &["[] True []"],
    ),
    attack(
        "K-02",
        "what has no business in a sandbox",
        r#"
zero = ctypes.create_string_buffer(256)
print(same((call(425, 8, zero), call(426, 0, 0, 0, 0, 0), call(27, 0, 0, 0), call(447, 0), call(206, 1, zero), call(451, 0, 0, 0, 0),
            call(216, 0, 0, 0, 0, 0))),
      same((call(323, 0), call(321, 0, zero, 48), call(298, zero, 0, -1, -1, 0), call(175, zero, 0, b""), call(313, 0, b"", 0),
            call(246, 0, 0, 0, 0), call(103, 2, zero, 10), call(169, 0xfee1dead, 672274793, 0, 0), call(167, b"/tmp/x", 0),
            call(163, b"/tmp/x"), call(172, 3), call(173, 0, 1, 1), call(300, 0, 0), call(312, 1, 1, 0, 0, 0),
            call(179, 0, 0, 0, 0), call(164, zero, 0), call(227, 0, zero), call(237, 0, 0, 0, 0, 0, 0))))"#,
        &["ENOSYS EPERM"],
    ),
    attack(
        "K-03",
        "numbers of x32",
        r#"print(same(call(0x40000000 | number, 0, 0, 0, 0, 0, 0) for number in list(range(0, 600, 7)) + [41, 520, 545]))"#,
        // Under a container engine's own filter they end the program.
        &["ENOSYS", ""],
    )
    .ends(&["exited", "signaled"]),
    attack(
        "K-04",
        "numbers that nobody has",
        r#"print(same(call(number) for number in list(range(600, 4096, 5)) + [-1, 2**31 - 1, -(2**31)]))"#,
        &["ENOSYS", ""],
    )
    .ends(&["exited", "signaled"]),
    attack(
        "K-05",
        "answering for others with a filter of its own, and using up what the machine has for filters",
        r#"
# One instruction: allow.
program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7fff0000))
sock_fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
print(call(317, 1, 8, sock_fprog), call(317, 1, 0, sock_fprog), call(157, 22, 2, sock_fprog))"#,
        &["EPERM EINVAL EINVAL"],
    ),
    attack(
        "K-06",
        "pushing input into a terminal, with noise in the upper half",
        r#"
import pty
print(same(call(16, 0, request | high, b"x") for request in (0x5412, 0x541C, 0x5423) for high in (0, 1 << 32, 0x7fffffff << 32)),
      tried(os.open, "/dev/tty", os.O_RDWR), tried(os.open, "/dev/ptmx", os.O_RDWR))"#,
        &["EPERM ENOENT ENOENT", "EPERM ENXIO ENOENT"],
    ),
    attack(
        "K-07",
        "feeding pages of files into pipes and sockets",
        r#"
file = os.open("/usr/bin/true", os.O_RDONLY)
read, write = os.pipe()
print(same((call(275, file, 0, write, 0, 100, 0), call(276, read, write, 10, 0), call(278, write, 0, 0, 0), call(40, write, file, 0, 10))))"#,
        &["EINVAL"],
    ),
    attack(
        "K-08",
        "the first steps of the page cache bugs of 2026 and their elders",
        r#"
print(same((tried(socket.socket, 38, 5, 0), tried(socket.socket, 33, 2, 0), tried(socket.socket, 21, 5, 0), tried(socket.socket, 16, 3, 12),
            tried(socket.socket, 17, 3, 0), tried(socket.socket, 40, 1, 0))),
      call(165, b"c", b"/tmp", b"cgroup", 0, b"memory"))"#,
        &["EAFNOSUPPORT EPERM"],
    ),
    attack(
        "K-10",
        "random system calls with random arguments",
        r#"
import random, signal
seed = int.from_bytes(os.urandom(4))
random.seed(seed)
# Those that end, stop or hold: by signals a child would reach its parent, which is to go on.
left_out = {15, 34, 35, 62, 129, 130, 200, 219, 230, 234, 281, 297, 424}
pages = ctypes.create_string_buffer(1 << 16)
words = (0, 1, -1, 2, 3, 0x7fffffff, 1 << 31, 1 << 32, 1 << 63, -4096, 4096, 255, 0x20000000)
def word():
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(words)
    if kind == 1:
        return ctypes.addressof(pages) + random.randrange(1 << 15)
    return random.randrange(1 << random.randrange(1, 64))
end = time.monotonic() + SECONDS
children = 0
while time.monotonic() < end:
    pid = tried(os.fork)
    if pid == 0:
        signal.alarm(2)
        os.closerange(0, 256)
        for _ in range(300):
            number = random.randrange(480)
            if number not in left_out:
                call(number, *(word() for _ in range(6)))
            random.seed(random.random())
        os._exit(0)
    if isinstance(pid, int):
        patience = time.monotonic() + 3
        while tried(os.waitpid, pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > patience:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        children += 1
    random.seed(seed + children)
print(children > 0)"#,
        // A child that is cloned so that its end is told to its grandparent, by any signal, ends the script.
        &["True", ""],
    )
    .ends(&["exited", "memory_limit", "signaled"])
    .with(r#"{"on_output_limit": "discard", "limits": {"wall_time_ms": 300000, "cpu_time_ms": 600000}}"#),
    attack(
        "K-11",
        "addresses and personalities of old exploits",
        r#"
import mmap
LIBC.mmap.restype = ctypes.c_long
LIBC.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5
low = LIBC.mmap(None, 4096, 3, 0x22, -1, 0)
zero = LIBC.syscall(9, 0, 4096, 7, 0x32, -1, 0)
print(low > 0, name(ctypes.get_errno()), call(135, 0x400000), call(154, 0, 0, 0), call(172, 3))"#,
        &["True EPERM EPERM EPERM EPERM", "True EACCES EPERM EPERM EPERM"],
    ),
    attack(
        "K-13",
        "looking at others through the page cache",
        r#"
print(same((call(27, 0, 4096, ctypes.create_string_buffer(8)), call(451, 0, ctypes.create_string_buffer(16), ctypes.create_string_buffer(64), 0))),
      same((call(256, os.getpid(), 8, 0, 0), call(279, 0, 0, 0, 0, 0, 0), call(238, 0, 0, 0), call(237, 0, 0, 0, 0, 0, 0), call(239, 0, 0, 0, 0, 0))))"#,
        &["ENOSYS EPERM"],
    ),
];

#[test]
fn the_kernel_s_surface_is_what_a_program_needs() {
    repel(ATTACKS);
}
