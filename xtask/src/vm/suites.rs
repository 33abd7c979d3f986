//! `cargo xtask test --vm 6.1`: the black-box suites in a machine with another kernel. What needs a heavy runtime
//! (a compiler, Java, a database), a container engine or Prometheus is left out, and so is what promises a speed: an
//! emulated processor keeps no such promise. What remains may take as many times longer as is printed.

use super::Matrix;

pub(super) const SUITES: Matrix = Matrix {
    name: "suites",
    tests: &[
        ("outcomes", ""),
        ("http", ""),
        ("live", "--skip milliseconds --skip a_slow_watcher"),
        ("files", ""),
        ("inputs", ""),
        ("admission", ""),
        ("promises", "--skip many_finished_runs --skip nothing_runs_twice"),
        ("principals", ""),
        ("batches", ""),
        ("pool", ""),
        ("image", ""),
        ("faults", "--skip ten_thousand --skip a_byte_a_second"),
        ("crash", ""),
        ("limits", "--skip processors"),
        ("clock", ""),
    ],
    packages: "python3,iproute2,procps,curl,jq,e2fsprogs,util-linux,busybox-static,docker-registry,skopeo",
    // The disk, which is ext4: a tmpfs maps no ids before Linux 6.3.
    temporary: "/var/tmp",
    seconds: 4 * 3600,
};
