//! What a program sees when it looks around is the sandbox, and only the sandbox.

use support::{Daemon, Registry, Value, json};

fn sh(image: &str, script: &str) -> Value {
    json!({ "image": image, "cmd": "sh", "args": ["-c", script] })
}

#[track_caller]
fn output(run: &Value) -> &str {
    assert_eq!((run["outcome"].as_str(), run["exit_code"].as_u64()), (Some("exited"), Some(0)), "{run:#}");
    run["stdout"].as_str().expect("text").trim_end()
}

#[test]
fn the_usual_commands_show_the_sandbox() {
    let daemon = Daemon::start();
    let show = |script: &str| output(&daemon.run(&sh("host", script))).to_owned();
    assert_eq!(show("id -u; id -g; id -G"), "0\n0\n0");
    assert_eq!(show("hostname; cat /etc/hostname"), "sandbox\nsandbox");
    assert_eq!(show("ls -A /dev"), "fd\nfull\nnull\nrandom\nshm\nstderr\nstdin\nstdout\nurandom\nzero");
    assert_eq!(show("ls -A /tmp /dev/shm /root /home"), "/dev/shm:\n\n/home:\n\n/root:\n\n/tmp:");
    assert_eq!(show("ls -A /sys 2>&1 | grep -v 'No such'; true"), "");
    let mounts = show("cat /proc/self/mounts");
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (point, kind, options) = (words[1], words[2], words[3]);
        assert!(["overlay", "proc", "tmpfs"].contains(&kind), "{line}");
        assert!(options.contains("nosuid"), "{line}");
        assert!(options.contains("nodev") || point == "/dev", "{line}");
    }
    let addresses =
        show("cat /proc/self/net/dev | cut -d: -f1 | tail -n +3; ip -brief address 2>/dev/null || true");
    assert!(!addresses.contains("eth") && !addresses.contains("ens"), "{addresses}");
    let interfaces = show(
        "python3 -c 'import socket; s=socket.socket(); s.bind((\"127.0.0.1\",0)); s.listen(); socket.create_connection(s.getsockname()); print(\"up\")'",
    );
    assert_eq!(interfaces, "up");
    assert_eq!(show("umask; ulimit -c; ulimit -n"), "0022\n0\n256");
}

#[test]
fn an_image_s_run_sees_its_image_and_its_own_processes() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("busybox");
    let show = |script: &str| output(&daemon.run(&sh(&image, script))).to_owned();
    let processes = show("ps -o pid,comm | grep -v ps");
    assert!(processes.lines().count() <= 3, "{processes}");
    assert_eq!(show("hostname; id -u; cat /proc/self/cgroup | cut -d: -f3 | sort -u"), "sandbox\n0\n/");
    assert_eq!(show("ls -d /host /newroot /layers /attach 2>/dev/null | wc -l"), "0");
    let status = show("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'");
    assert_eq!(status, "CapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nSeccomp:2");
    assert_eq!(show("env | cut -d= -f1 | sort | tr '\\n' ' '"), "FROM_IMAGE HOME PATH PWD SHLVL");
}

#[test]
fn two_runs_at_once_share_no_id_no_file_and_no_process() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let look = "import os,time\nopen('/tmp/mine','w').write('x')\ntime.sleep(1.5)\nprint(open('/proc/self/uid_map').read().split()[1], sorted(os.listdir('/tmp')), len([p for p in os.listdir('/proc') if p.isdigit()]))";
    let body = json!({ "image": "host", "cmd": "python3", "args": ["-c", look] });
    let (first, second) = (daemon.run_async(&body), daemon.run_async(&body));
    daemon.wait_for_state(&first, "running");
    daemon.wait_for_state(&second, "running");
    let shown: Vec<String> =
        [first, second].iter().map(|id| output(&daemon.wait_for_state(id, "finished")).to_owned()).collect();
    let ids: Vec<u64> = shown
        .iter()
        .map(|line| line.split(' ').next().and_then(|id| id.parse().ok()).expect("an id"))
        .collect();
    assert!(ids[0].abs_diff(ids[1]) >= 65_536, "{ids:?}");
    for line in &shown {
        assert!(line.ends_with("['mine'] 1"), "{line}");
    }
    // And a later one finds nothing of theirs.
    assert_eq!(output(&daemon.run(&sh("host", "ls -A /tmp /dev/shm"))), "/dev/shm:\n\n/tmp:");
}
