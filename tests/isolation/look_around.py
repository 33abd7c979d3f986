# Run inside: says as JSON all that a program can find out about where it is.
import array, fcntl, json, os, socket, struct


def words(path):
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16).decode("utf-8", "replace")
    except OSError as error:
        return f"({error.errno})"


def interfaces():
    """Every interface with an address, by name, with its flags."""
    asks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    room = array.array("B", bytes(4096))
    length, _ = struct.unpack("iL", fcntl.ioctl(asks, 0x8912, struct.pack("iL", 4096, room.buffer_info()[0])))
    names = [room.tobytes()[at:at + 16].rstrip(b"\0") for at in range(0, length, 40)]
    flags = lambda name: struct.unpack("16sh", fcntl.ioctl(asks, 0x8913, struct.pack("16sh", name, 0)))[1]
    return {name.decode(): flags(name) for name in names}


def loopback():
    """Whether a server and a client meet, over both versions of the protocol."""
    said = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        server = socket.socket(family)
        server.bind((address, 0))
        server.listen()
        client = socket.create_connection(server.getsockname()[:2], timeout=10)
        client.sendall(b"hello")
        said.append(server.accept()[0].recv(5).decode())
    return said


# First of all, before anything here opens something.
descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]
status = dict(line.split(":", 1) for line in words("/proc/self/status").splitlines() if ":" in line)
print(json.dumps({
    "descriptors": descriptors,
    "pid": [os.getpid(), os.getppid(), os.getsid(0)],
    "processes": sorted(name for name in os.listdir("/proc") if name.isdigit()),
    "proc": sorted(name for name in os.listdir("/proc") if not name.isdigit()),
    "status": {key: value.strip() for key, value in status.items()},
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "host": list(os.uname()[:2]),
    "environment": {key: value for key, value in os.environ.items() if key != "LC_CTYPE"},
    "devices": sorted(os.listdir("/dev")),
    "root": sorted(os.listdir("/")),
    "empty": [os.listdir(path) for path in ("/tmp", "/dev/shm")],
    "mounts": words("/proc/self/mountinfo").splitlines(),
    "groups": sorted({line.split(":", 2)[2] for line in words("/proc/self/cgroup").splitlines()}),
    "id_maps": [words(f"/proc/self/{kind}_map").split() for kind in ("uid", "gid")],
    "interfaces": interfaces(),
    "devices_of_the_network": [line.split(":")[0].strip() for line in words("/proc/self/net/dev").splitlines()[2:]],
    "loopback": loopback(),
    "proc_of_self": {name: words(f"/proc/self/{name}") for name in os.listdir("/proc/self")
                     if name not in ("mem", "pagemap", "clear_refs", "exe")},
}))
