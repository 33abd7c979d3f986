//! The units, read by systemd's own tools.

use std::process::Command;

use support::{Finished, Folder, sandglass, tool};

use crate::{file, text};

const UNITS: [&str; 3] = ["sandglass.service", "sandglass.socket", "sandglass.slice"];

/// What `systemd-analyze security` may find at most, in tenths; less is better. A sandbox is made of what
/// most of its points forbid.
const EXPOSURE_MAX: u32 = 58;

/// The units with a program that is there.
fn units() -> Folder {
    let folder = Folder::new();
    for name in UNITS {
        let unit = text(&format!("deploy/systemd/{name}"));
        let program = sandglass().display().to_string();
        let unit = unit.replace("ExecStart=/usr/bin/sandglass ", &format!("ExecStart={program} "));
        std::fs::write(folder.join(name), unit).expect("write a unit");
    }
    folder
}

fn analyze(folder: &Folder, words: &[&str]) -> Finished {
    let mut command = Command::new(tool("systemd-analyze"));
    Finished::of(command.args(words).current_dir(folder.path()))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = units();
    let done = analyze(&folder, &["verify", "--man=no", "./sandglass.service", "./sandglass.socket"]);
    assert_eq!((done.code(), done.stderr_text()), (Some(0), String::new()));
    let broken = text("deploy/systemd/sandglass.service").replace("KillMode=mixed", "KillMode=sometimes");
    std::fs::write(folder.join("sandglass.service"), broken).expect("write a unit");
    let done = analyze(&folder, &["verify", "--man=no", "./sandglass.service"]);
    assert!(done.stderr_text().contains("kill mode"), "the check should find a mistake");
}

#[test]
fn the_service_is_exposed_no_more_than_it_must_be() {
    let folder = units();
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let done =
        analyze(&folder, &["security", "--offline=true", "--no-pager", &threshold, "./sandglass.service"]);
    assert_eq!(done.code(), Some(0), "{}{}", done.stdout_text(), done.stderr_text());
}

#[test]
fn the_user_and_the_folders_are_what_systemd_can_make() {
    let folder = Folder::new();
    std::fs::create_dir(folder.join("etc")).expect("make a folder");
    let root = format!("--root={}", folder.path().display());
    for (program, name) in [("systemd-sysusers", "sysusers"), ("systemd-tmpfiles", "tmpfiles")] {
        let file = file(&format!("deploy/systemd/sandglass.{name}.conf"));
        let mut command = Command::new(tool(program));
        if name == "tmpfiles" {
            command.arg("--create");
        }
        let done = Finished::of(command.arg(&root).arg(&file));
        assert_eq!(done.code(), Some(0), "{program}: {}", done.stderr_text());
    }
    let passwd = std::fs::read_to_string(folder.join("etc/passwd")).expect("read the users");
    assert!(passwd.contains("\nsandglass:x:") || passwd.starts_with("sandglass:x:"), "{passwd}");
    assert!(folder.join("etc/sandglass/config.toml").is_file());
    assert!(folder.join("var/lib/sandglass").is_dir());
}

/// The unit drops all but some capabilities and forbids new privileges; systemd is not needed to try that.
#[test]
fn what_the_unit_leaves_is_enough_for_every_wall() {
    let unit = text("deploy/systemd/sandglass.service");
    let sets = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = sets.flat_map(|line| line.split(' ').map(|name| name.trim_start_matches("CAP_")));
    let set = names.fold("-all".to_owned(), |set, name| format!("{set},+{}", name.to_lowercase()));
    let folder = Folder::new();
    let mut command = Command::new(tool("setpriv"));
    command.arg(format!("--bounding-set={set}")).arg("--no-new-privs");
    command.arg(sandglass()).arg("serve").arg("--listen=127.0.0.1:0").arg("--data-dir").arg(folder.path());
    command.args(["--allow-host-image", "--docker-config="]);
    let service = support::Service::wait_for(support::Process::start("setpriv sandglass serve", command));
    let info = service.get("/info").expect(200);
    for wall in info["walls"].as_array().expect("walls") {
        assert_eq!(wall["state"], "up", "{wall}");
    }
    let run = service.run(&support::json!({ "image": "host", "cmd": "echo", "args": ["hi"] }));
    assert_eq!(run["stdout"], "hi\n");
    assert_eq!(service.stop(), Some(0));
}
