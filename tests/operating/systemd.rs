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

/// The unit hides what it makes from all others (`UMask=`), and so does many an operator's shell. The server is another
/// user than root, who makes the keys.
#[test]
fn the_first_key_closes_the_server_whatever_is_hidden_from_others() {
    let unit = text("deploy/systemd/sandglass.service");
    let of_unit = unit.lines().find_map(|line| line.strip_prefix("UMask=")).expect("a mask");
    for (server, maker) in [(of_unit, "0022"), ("0022", "0077"), ("0077", "0077")] {
        let folder = Folder::new();
        // As `StateDirectory=` makes it.
        let data_dir = folder.join("data");
        std::fs::create_dir(&data_dir).expect("make a folder");
        let hiding = |mask: &str, words: &[&str]| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("umask {mask} && exec \"$@\""), "sh"]).arg(sandglass()).args(words);
            command.arg("--data-dir").arg(&data_dir);
            command
        };
        let start = || {
            let command = hiding(server, &["serve", "--listen=127.0.0.1:0", "--docker-config="]);
            support::Service::wait_for(support::Process::start("sandglass serve", command))
        };
        let service = start();
        service.get("/runs").expect(200);
        let made = Finished::of(&mut hiding(maker, &["key", "create", "me"]));
        assert_eq!(made.code(), Some(0), "{}", made.stderr_text());
        support::until("the first key closes the server", || service.get("/runs").status == 401);
        let lets_in = |service: &support::Service| {
            let request = support::Request::new(service.address(), "GET", "/runs");
            request.key(made.stdout_text().trim()).send().status == 200
        };
        assert!(lets_in(&service), "{server} {maker}");
        assert_eq!(service.stop(), Some(0));
        let service = start();
        assert!(lets_in(&service) && service.get("/runs").status == 401, "{server} {maker}, after a restart");
        assert_eq!(service.stop(), Some(0));
    }
}

/// Whoever has ids set aside keeps them for itself.
#[test]
fn the_ids_that_are_set_aside_are_nobody_else_s() {
    let etc = Folder::new();
    for (name, lines) in [
        (
            "passwd",
            "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\nsandglass:x:990:990::/:/usr/sbin/nologin\n",
        ),
        ("group", "root:x:0:\nada:x:1000:\nsandglass:x:990:\n"),
        ("shadow", "root:*:1::::::\nada:*:1::::::\nsandglass:!*:1::::::\n"),
        ("gshadow", "root:*::\nada:!::\nsandglass:!*::\n"),
        ("subuid", "ada:100000:65536\n"),
        ("subgid", "ada:100000:65536\nbob:165536:65536\n"),
    ] {
        std::fs::write(etc.join(name), lines).expect("write a file");
    }
    let script = file("deploy/systemd/subids.sh");
    let read =
        || ["subuid", "subgid"].map(|name| std::fs::read_to_string(etc.join(name)).expect("read ranges"));
    let run = || {
        let mut command = Command::new(tool("unshare"));
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc && exec \"$1\""]);
        let done = Finished::of(command.arg(etc.path()).arg(&script));
        assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
        read()
    };
    let once = run();
    for ranges in &once {
        let mut ranges: Vec<(u64, u64)> = ranges
            .lines()
            .map(|line| {
                let mut numbers =
                    line.split(':').skip(1).map(|number| number.parse::<u64>().expect("a number"));
                let first = numbers.next().expect("where it begins");
                (first, first + numbers.next().expect("how many"))
            })
            .collect();
        ranges.sort_unstable();
        assert!(ranges.len() >= 3 && ranges.windows(2).all(|two| two[0].1 <= two[1].0), "{ranges:?}");
    }
    assert_eq!(run(), once, "a second time nothing changes");
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
