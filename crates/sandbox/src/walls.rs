//! Which walls stand on this host, in the words of `/info` and `doctor`.

use crate::host;
use crate::init::OldRoot;
use crate::keeper::Ground;
use crate::protocol::{Hello, Wall, WallState};
use crate::rootfs::{self, LayerMode};
use crate::{setup, sys};

pub(crate) fn hello(ground: &Ground) -> Hello {
    let (_, id_width, max_runs) = setup::id_ranges();
    Hello {
        kernel: host::kernel_release(),
        walls: walls(ground),
        not_enforced: not_enforced(ground),
        id_width,
        max_runs,
        cgroup: ground.cgroups.version().into(),
        host_image: ground.host.is_some(),
        orphans: ground.cgroups.orphans,
    }
}

fn not_enforced(ground: &Ground) -> Vec<String> {
    let cgroups = &ground.cgroups;
    let limits = [("memory_bytes", &cgroups.memory), ("processes", &cgroups.pids), ("cpus", &cgroups.cpu)];
    let mut missing: Vec<String> =
        limits.iter().filter(|(_, home)| home.is_none()).map(|(name, _)| (*name).to_owned()).collect();
    if cgroups.unified.is_none() && cgroups.cpuacct.is_none() {
        missing.push("cpu_time_ms".into());
    }
    missing
}

fn walls(ground: &Ground) -> Vec<Wall> {
    let wall = |name: &str, state, detail: String| Wall { name: name.into(), state, detail };
    let up = |name, detail: &str| wall(name, WallState::Up, detail.into());
    let mut walls = vec![
        up(
            "namespaces",
            "user, PID, mount, network, IPC, UTS and cgroup namespaces of its own for every run",
        ),
        ids(ground),
        root(ground),
        layers(ground),
        up(
            "capabilities",
            "none (profile compat: seven, over the run's own ids only), no_new_privs, locked secure bits",
        ),
        up(
            "seccomp",
            "an allow-list of system calls; everything else is ENOSYS, other architectures end the program",
        ),
        landlock(),
        up("proc", "only the run's own processes; no files of the kernel (profile compat: a few, read-only)"),
        up("devices", "null, zero, full, random and urandom on a read-only file system"),
    ];
    let cgroups =
        [("memory", &ground.cgroups.memory), ("pids", &ground.cgroups.pids), ("cpu", &ground.cgroups.cpu)];
    for (name, home) in cgroups {
        let (state, detail) = match home {
            Some(home) => (WallState::Up, format!("cgroup version {}", if home.v2 { 2 } else { 1 })),
            None => {
                let why = ground.cgroups.why(name);
                (
                    WallState::Down,
                    format!("the cgroup controller {name} can't be used: {why}{}", delegation()),
                )
            }
        };
        walls.push(wall(&format!("cgroup_{name}"), state, detail));
    }
    walls.push(if ground.cgroups.unified.is_some() {
        up("kill", "all processes at once by cgroup.kill and by PID 1")
    } else {
        wall("kill", WallState::Weaker, format!("by PID 1 only: no cgroup of version 2{}", delegation()))
    });
    walls
}

/// What helps somebody who is not root of the machine.
fn delegation() -> &'static str {
    if rootfs::own_user_namespace() {
        "; have one delegated: systemd-run --user --scope --property=Delegate=yes …, or start as root"
    } else {
        ""
    }
}

fn ids(ground: &Ground) -> Wall {
    let width = ground.id_width;
    let mut weaker = Vec::new();
    if width != 65_536 {
        weaker.push(format!(
            "only {width} ids for each run: this user namespace has no more; give it more sub-ids"
        ));
    }
    if rootfs::own_user_namespace() {
        weaker.push(
            "what the kernel counts for each user (inotify, message queues, pending signals, locked memory) it counts \
             for all runs together and for whoever made this user namespace, so that one run can use it up; start as root"
                .to_owned(),
        );
    }
    let (state, detail) = if weaker.is_empty() {
        (WallState::Up, "65536 user and group ids of its own for every run at once".to_owned())
    } else {
        (WallState::Weaker, weaker.join("; "))
    };
    Wall { name: "ids".into(), state, detail }
}

fn root(ground: &Ground) -> Wall {
    let (state, detail) = match ground.old_root {
        OldRoot::Detached => (WallState::Up, "pivot_root, the old root detached"),
        OldRoot::Covered => (
            WallState::Weaker,
            "moved over the old root, which stays mounted below it, because pivot_root is refused here; in a \
             container, run it under deploy/docker/seccomp.json (--security-opt seccomp=…)",
        ),
    };
    Wall { name: "root".into(), state, detail: detail.to_owned() }
}

fn layers(ground: &Ground) -> Wall {
    let how = match ground.layer_mode {
        LayerMode::Detached => "handed over as detached mounts",
        LayerMode::Attached => "attached in the keeper's mount namespace (the kernel is older than 6.15)",
    };
    let (state, detail) = if ground.map_ids {
        (WallState::Up, format!("read-only below one overlay a run, ids mapped, {how}"))
    } else if rootfs::own_user_namespace() {
        let detail = "nobody but root of the machine may map ids, so files of images belong to nobody inside; start as root";
        (WallState::Weaker, detail.to_owned())
    } else {
        let detail = "the layer store's file system can't map ids, so files of images belong to nobody inside; \
                      put --data-dir on ext4, xfs or btrfs";
        (WallState::Weaker, detail.to_owned())
    };
    Wall { name: "layers".into(), state, detail }
}

fn landlock() -> Wall {
    let abi = sys::landlock_abi();
    let (state, detail) = if abi > 0 {
        (
            WallState::Up,
            format!("version {abi}: files outside the root are out of reach even by a leaked descriptor"),
        )
    } else {
        (WallState::Weaker, "this kernel has no Landlock, the second wall behind the mount namespace; boot with lsm=landlock,…".into())
    };
    Wall { name: "landlock".into(), state, detail }
}
