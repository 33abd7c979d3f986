//! The seccomp profile of a container that Sandglass runs in, `deploy/docker/seccomp.json`: what
//! commands may do, because whatever a container refuses no run in it can have, and what building
//! sandboxes takes. Everything else does not exist. It is generated here, so that it can't fall behind
//! the policy for commands, and read by container engines only.

use nix::libc::{self, c_int, c_long};
use run::Profile;
use serde_json::{Value, json};

use super::policy::{self, Answer};

const BUILDING: &[(&str, &[(&str, c_long)])] = &[
    (
        "namespaces of a run's own",
        &[("clone3", libc::SYS_clone3), ("unshare", libc::SYS_unshare), ("setns", libc::SYS_setns)],
    ),
    (
        "a root of a run's own, and none of the host's below it",
        &[
            ("chroot", libc::SYS_chroot),
            ("fsconfig", libc::SYS_fsconfig),
            ("fsmount", libc::SYS_fsmount),
            ("fsopen", libc::SYS_fsopen),
            ("fspick", libc::SYS_fspick),
            ("mount", libc::SYS_mount),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("move_mount", libc::SYS_move_mount),
            ("open_tree", libc::SYS_open_tree),
            ("pivot_root", libc::SYS_pivot_root),
            ("umount2", libc::SYS_umount2),
        ],
    ),
    ("a host name of a run's own", &[("sethostname", libc::SYS_sethostname)]),
    (
        "committing what was stored before it counts",
        &[("sync", libc::SYS_sync), ("syncfs", libc::SYS_syncfs)],
    ),
];

/// Sockets of these families only: AF_VSOCK would reach the machine that this one runs on.
const FAMILIES: &[c_int] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

fn profile() -> Value {
    let commands = policy::command(Profile::Compat);
    let may = |decision: &&policy::Decision| {
        let some = decision.cases.iter().any(|case| case.answer == Answer::Allow);
        (decision.otherwise == Answer::Allow || some) && decision.name != "SYS_socket"
    };
    let mut allowed: Vec<&str> =
        commands.values().filter(may).map(|decision| decision.name.trim_start_matches("SYS_")).collect();
    allowed.sort_unstable();
    let mut rules = vec![json!({
        "comment": "what commands may do; their own filter is narrower",
        "names": allowed,
        "action": "SCMP_ACT_ALLOW",
    })];
    for (reason, calls) in BUILDING {
        let names: Vec<_> = calls.iter().map(|(name, _)| name).collect();
        rules.push(json!({ "comment": reason, "names": names, "action": "SCMP_ACT_ALLOW" }));
    }
    for family in FAMILIES {
        rules.push(json!({
            "comment": "sockets of this family",
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{ "index": 0, "value": family, "op": "SCMP_CMP_EQ" }],
        }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "archMap": [
            { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": [] },
            { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": [] },
        ],
        "syscalls": rules,
    })
}

#[test]
fn the_profile_for_containers_is_the_one_that_is_shipped() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/docker/seccomp.json");
    let text = serde_json::to_string_pretty(&profile()).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    // Elsewhere the older names of calls are missing; container engines skip names that they don't know.
    if cfg!(target_arch = "x86_64") {
        let shipped = std::fs::read_to_string(path).unwrap();
        assert!(
            shipped == text,
            "deploy/docker/seccomp.json is not what the policy says; if it is meant, UPDATE_GOLDEN=1"
        );
    }
}

/// Escapes that need a call which no sandbox and no command needs stay shut for the whole container.
#[test]
fn the_profile_for_containers_has_no_door_to_the_machine() {
    let text = profile().to_string();
    for name in [
        "bpf",
        "perf_event_open",
        "init_module",
        "kexec_load",
        "open_by_handle_at",
        "io_uring_setup",
        "ptrace",
        "keyctl",
    ] {
        assert!(!text.contains(&format!("\"{name}\"")), "{name}");
    }
}
