//! The commands, as somebody at a terminal uses them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Daemon, Finished, Folder, Process, Registry, Value, guest, json, sandglass, tool};

/// `sandglass WORDS…` with folders of its own and nothing of the developer's.
fn command(data: &Folder, words: &[&str]) -> Command {
    let mut command = Command::new(sandglass());
    command.args(words).env("SANDGLASS_DATA_DIR", data.path()).env("SANDGLASS_DOCKER_CONFIG", "");
    command
}

fn finished(data: &Folder, words: &[&str]) -> Finished {
    Finished::of(&mut command(data, words))
}

/// `sandglass run host …`.
fn run_host(data: &Folder, flags: &[&str], words: &[&str]) -> Finished {
    finished(data, &[&["run", "--allow-host-image"], flags, &["host"], words].concat())
}

#[test]
fn run_passes_everything_through() {
    let data = Folder::new();
    let done = run_host(&data, &[], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (done.code(), done.stdout_text().as_str(), done.stderr_text().as_str()),
        (Some(7), "out\n", "err\n")
    );
    // Bytes are bytes, also many of them and without an end of line.
    let done = run_host(
        &data,
        &[],
        &["python3", "-c", "import sys; sys.stdout.buffer.write(bytes(range(256))*40000)"],
    );
    assert_eq!(done.code(), Some(0));
    assert_eq!(done.stdout.len(), 256 * 40_000);
    assert!(done.stdout.chunks(256).all(|chunk| chunk.iter().copied().eq(0..=255)));
    // Options after the command are the command's.
    let done = run_host(&data, &[], &["echo", "--timeout", "-n", "--", "x"]);
    assert_eq!(done.stdout_text(), "--timeout -n -- x\n");
    let mut with_input = command(&data, &["run", "--allow-host-image", "-i", "host", "tr", "a-z", "A-Z"]);
    let done = Finished::with_input(&mut with_input, b"hello\n");
    assert_eq!((done.code(), done.stdout_text().as_str()), (Some(0), "HELLO\n"));
    // Without -i there is nothing to read.
    let mut without = command(&data, &["run", "--allow-host-image", "host", "wc", "-c"]);
    assert_eq!(Finished::with_input(&mut without, b"hello\n").stdout_text().trim(), "0");
    let done = run_host(
        &data,
        &["-e", "A=1", "-w", "/made", "-u", "5:6"],
        &["sh", "-c", "echo $A; pwd; id -u; id -g"],
    );
    assert_eq!(done.stdout_text(), "1\n/made\n5\n6\n");
}

#[test]
fn run_ends_with_the_code_that_docker_and_timeout_users_expect() {
    let data = Folder::new();
    let cases: &[(&[&str], &[&str], i32, &str)] = &[
        (&[], &["sh", "-c", "kill -SEGV $$"], 139, "SIGSEGV"),
        (&[], &["sh", "-c", "kill -9 $$"], 137, "SIGKILL"),
        (&["--timeout", "0.5"], &["sleep", "60"], 124, "500 ms"),
        (&["--memory", "64m"], &["python3", "-c", "x=b'1'*(200<<20)"], 137, "memory"),
        (&[], &["/etc/passwd"], 126, "not an executable"),
        (&[], &["no-such-program"], 127, "no-such-program"),
        (&["--user", "nobody-we-know"], &["true"], 126, "nobody-we-know"),
    ];
    for (flags, words, code, said) in cases {
        let done = run_host(&data, flags, words);
        let stderr = done.stderr_text();
        assert_eq!(done.code(), Some(*code), "{words:?}: {stderr}");
        assert!(stderr.contains(said), "{words:?}: {stderr}");
    }
    // Our own faults are told from the program's.
    for words in
        [&["run", "host", "true"][..], &["run", "--what", "host"], &["run"], &["run", "A:b:c", "true"]]
    {
        let done = finished(&data, words);
        assert_eq!(done.code(), Some(125), "{words:?}: {}", done.stderr_text());
        assert!(!done.stderr_text().is_empty());
    }
}

#[test]
fn run_copies_a_local_program_in_as_the_readme_shows() {
    let registry = Registry::start();
    let data = Folder::new();
    let explorer = data.join("docker-explorer");
    std::fs::write(&explorer, "#!/bin/sh\ncase $1 in echo) shift; echo \"$@\";; exit) exit \"$2\";; esac\n")
        .expect("write a program");
    std::fs::set_permissions(&explorer, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("make it executable");
    let inside = "/usr/local/bin/docker-explorer";
    let copy = format!("{}:{inside}", explorer.display());
    let image = registry.image("busybox");
    let host = registry.host();
    let start = ["run", "--insecure-registry", &host, "--copy", &copy, &image, inside];
    let done = finished(&data, &[&start[..], &["echo", "hey"]].concat());
    assert_eq!((done.code(), done.stdout_text().as_str()), (Some(0), "hey\n"), "{}", done.stderr_text());
    let done = finished(&data, &[&start[..], &["exit", "1"]].concat());
    assert_eq!(done.code(), Some(1));
    // A folder comes with everything in it; what is not there is our fault.
    let folder = data.join("folder");
    std::fs::create_dir_all(folder.join("sub")).expect("make a folder");
    std::fs::write(folder.join("sub/file"), "deep").expect("write a file");
    let copy = format!("{}:/in", folder.display());
    assert_eq!(run_host(&data, &["--copy", &copy], &["cat", "/in/sub/file"]).stdout_text(), "deep");
    let done = run_host(&data, &["--copy", "/no/such:/x"], &["true"]);
    assert_eq!(done.code(), Some(125));
    assert!(done.stderr_text().contains("/no/such"));
}

#[test]
fn run_leaves_nothing_behind_and_hears_who_interrupts_it() {
    let data = Folder::new();
    let mut running =
        command(&data, &["run", "--allow-host-image", "host", "sh", "-c", "echo begun; sleep 600"]);
    let started = Instant::now();
    let mut child = running.stdout(std::process::Stdio::piped()).spawn().expect("start sandglass run");
    let mut line = [0; 6];
    child.stdout.as_mut().expect("an output").read_exact(&mut line).expect("read");
    let pid = i32::try_from(child.id()).expect("a pid");
    let below = support::host::descendants(pid);
    assert!(below.len() >= 3, "launcher, keeper, init, program: {below:?}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)
        .expect("interrupt");
    let status = child.wait().expect("wait");
    assert!(!status.success() && started.elapsed() < Duration::from_secs(30), "{status:?}");
    support::until("everything below it is gone", || {
        below.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
    // A reader that leaves ends the program as it does in any pipe.
    let program = format!("{} run --allow-host-image host yes | head -1", sandglass().display());
    let mut piped = Command::new("sh");
    piped.args(["-c", &program]).env("SANDGLASS_DATA_DIR", data.path()).env("SANDGLASS_DOCKER_CONFIG", "");
    let done = Finished::of(&mut piped);
    assert_eq!(done.stdout_text(), "y\n");
    assert!(done.took < Duration::from_secs(20));
}

#[test]
fn pull_and_images_show_what_is_there() {
    let registry = Registry::start();
    let data = Folder::new();
    let (image, host) = (registry.image("busybox:latest"), registry.host());
    assert!(!finished(&data, &["images"]).stdout_text().contains("busybox"));
    let done = finished(&data, &["pull", "--insecure-registry", &host, &image]);
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    assert!(done.stdout_text().contains("sha256:"), "{}", done.stdout_text());
    let listed = finished(&data, &["images"]).stdout_text();
    assert!(listed.contains(&image), "{listed}");
    let done = finished(&data, &["pull", "--insecure-registry", &host, &registry.image("nope")]);
    assert_eq!(done.code(), Some(1));
    assert!(done.stderr_text().contains("there is no image"), "{}", done.stderr_text());
    let done = finished(&data, &["pull", &image.replace("busybox", "other")]);
    assert!(done.stderr_text().contains("--insecure-registry"), "{}", done.stderr_text());
}

/// In a terminal of its own, which `script` makes.
#[test]
fn pull_shows_a_bar_for_each_layer_in_a_terminal() {
    let registry = Registry::start();
    let (image, host) = (registry.image("python:3"), registry.host());
    let in_terminal = |flags: &str| {
        let data = Folder::new();
        let line = format!("{} pull {flags} --insecure-registry {host} {image}", sandglass().display());
        let mut command = Command::new(tool("script"));
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env("SANDGLASS_DATA_DIR", data.path()).env("SANDGLASS_DOCKER_CONFIG", "");
        command.env("TERM", "xterm").env("COLUMNS", "120");
        let done = Finished::of(&mut command);
        assert_eq!(done.code(), Some(0), "{}", done.stdout_text());
        done.stdout_text()
    };
    let shown = in_terminal("");
    assert!(shown.contains(&format!("resolving {image}")), "{shown}");
    for layer in 1..=registry.layers_of("python", "3").len() {
        let bar = shown.lines().rev().find(|line| line.contains(&format!("layer {layer} ")));
        let bar = bar.unwrap_or_else(|| panic!("no bar of layer {layer} in {shown}"));
        assert!(bar.contains("MiB /") || bar.contains("KiB /"), "{bar}");
    }
    assert!(!in_terminal("--quiet").contains("layer 1"));
}

#[test]
fn doctor_names_every_wall_and_the_oldest_kernel() {
    let data = Folder::new();
    let done = finished(&data, &["doctor"]);
    let text = done.stdout_text();
    for word in [
        "kernel",
        "6.1",
        "namespaces",
        "seccomp",
        "landlock",
        "root",
        "cgroup_memory",
        "layers",
        "capabilities",
        "kill",
    ] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    if done.code() == Some(0) {
        assert!(text.contains("a run that tried the walls from inside found them standing"), "{text}");
    }
    // A service that runs is no reason to be ill.
    let daemon = Daemon::builder().host_image().start();
    let mut beside = Command::new(sandglass());
    beside.arg("doctor").env("SANDGLASS_DATA_DIR", daemon.data_dir()).env("SANDGLASS_DOCKER_CONFIG", "");
    assert_eq!(Finished::of(&mut beside).code(), done.code());
}

#[test]
fn the_configuration_is_visible_and_has_one_order() {
    let data = Folder::new();
    let printed = |words: &[&str], env: &[(&str, &str)]| {
        let mut command = command(&data, &[&["serve", "--print-config"], words].concat());
        command.envs(env.iter().copied());
        Finished::of(&mut command)
    };
    let defaults = printed(&[], &[]).stdout_text();
    for line in [
        "listen = \"127.0.0.1:8080\"",
        "queue_capacity = 1024",
        "[limits]",
        "[maxima]",
        "wall_time_ms = 10000",
    ] {
        assert!(defaults.contains(line), "{line} is not in:\n{defaults}");
    }
    let file = data.join("sandglass.toml");
    let path = file.display().to_string();
    std::fs::write(&file, &defaults).expect("write");
    assert_eq!(printed(&["--config", &path], &[]).stdout_text(), defaults, "what is printed can be read");
    std::fs::write(&file, "slots = 3\nqueue_capacity = 3\nkept_runs = 3\n[limits]\nwall_time_ms = 3\n")
        .expect("write");
    let all = printed(
        &["--config", &path, "--slots=5"],
        &[("SANDGLASS_SLOTS", "4"), ("SANDGLASS_QUEUE_CAPACITY", "4")],
    )
    .stdout_text();
    for line in ["slots = 5", "queue_capacity = 4", "kept_runs = 3", "wall_time_ms = 3"] {
        assert!(all.lines().any(|found| found == line), "{line} is not in:\n{all}");
    }
    for (text, word) in [
        ("slotz = 3\n", "slotz"),
        ("slots = \"many\"\n", "slots"),
        ("[limits]\nwall = 3\n", "wall"),
        ("slots = 0\n", "slots"),
    ] {
        std::fs::write(&file, text).expect("write");
        let done = printed(&["--config", &path], &[]);
        assert_ne!(done.code(), Some(0), "{text}");
        assert!(done.stderr_text().contains(word), "{text}: {}", done.stderr_text());
    }
    for (words, env, said) in [
        (&["--slotz=3"][..], &[][..], "slotz"),
        (&["--listen=nowhere"], &[], "nowhere"),
        (&["--listen=0.0.0.0:1"], &[], "--allow-open-network"),
        (&[], &[("SANDGLASS_SLOTS", "x")], "SANDGLASS_SLOTS"),
        (&["--config=/no/such/file"], &[], "/no/such/file"),
    ] {
        let done = printed(words, env);
        assert_ne!(done.code(), Some(0), "{words:?} {env:?}");
        assert!(done.stderr_text().contains(said), "{words:?} {env:?}: {}", done.stderr_text());
    }
}

#[test]
fn serve_refuses_what_cannot_work_in_words() {
    let daemon = Daemon::start();
    let data = Folder::new();
    let taken = format!("--listen={}", daemon.address());
    let done = finished(&data, &["serve", &taken]);
    assert_ne!(done.code(), Some(0));
    assert!(done.stderr_text().contains(&daemon.address().to_string()), "{}", done.stderr_text());
    // One store has one server.
    let store = daemon.data_dir().display().to_string();
    let done = finished(&data, &["serve", "--listen=127.0.0.1:0", &format!("--data-dir={store}")]);
    assert_ne!(done.code(), Some(0));
    assert!(done.stderr_text().contains("used by another"), "{}", done.stderr_text());
    let done = finished(&data, &["serve", "--listen=127.0.0.1:0", "--launcher=/no/such/launcher"]);
    assert_ne!(done.code(), Some(0));
    assert!(done.stderr_text().contains("/no/such/launcher"), "{}", done.stderr_text());
    // One that ends at once is seen to have ended, and not waited for.
    let started = Instant::now();
    let done = finished(&data, &["serve", "--listen=127.0.0.1:0", "--launcher=/bin/true"]);
    assert!(done.stderr_text().contains("did not say hello: it ended"), "{}", done.stderr_text());
    assert!(started.elapsed() < Duration::from_secs(10));
    let done = finished(&data, &["serve", "--allow-degraded=nonsense", "--listen=127.0.0.1:0"]);
    assert_ne!(done.code(), Some(0));
    assert!(done.stderr_text().contains("nonsense"), "{}", done.stderr_text());
}

#[test]
fn the_server_gives_up_its_privilege_and_the_launcher_can_be_used_by_hand() {
    let daemon = Daemon::start();
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read the server's status");
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim().to_owned()
    };
    assert!(support::host::uids(daemon.pid()).iter().all(|uid| *uid != 0));
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");

    let folder = Folder::new();
    let spec = folder.join("spec.json");
    let text = json!({
        "rootfs": "host", "argv": ["echo", "by hand"], "env": [], "workdir": "", "user": "", "limits": {}, "files": [], "profile": "strict",
    });
    std::fs::write(&spec, text.to_string()).expect("write a spec");
    let done = Finished::of(Command::new(support::sandglass_launcher()).arg("run").arg(&spec));
    assert_eq!((done.code(), done.stdout_text().as_str()), (Some(0), "by hand\n"), "{}", done.stderr_text());
    let said: Vec<Value> =
        done.stderr_text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(said.iter().any(|event| event.get("finished").is_some()), "{said:?}");
    // So can a guest's own program.
    assert!(guest::path("burn").exists());
}

#[test]
fn the_launcher_times_the_same_sandbox_over_and_over() {
    let folder = Folder::new();
    let spec = |program: &str| {
        let path = folder.join(format!("{program}.json"));
        let text = json!({
            "rootfs": "host", "argv": [program], "env": [], "workdir": "", "user": "", "limits": {}, "files": [], "profile": "strict",
        });
        std::fs::write(&path, text.to_string()).expect("write a spec");
        path
    };
    let time = |program: &str, words: &[&str]| {
        let mut command = Command::new(support::sandglass_launcher());
        command.arg("time").arg(spec(program)).arg(folder.join("layers"));
        Finished::of(command.args(words))
    };
    let done = time("true", &["3", "2"]);
    let measured: Value = serde_json::from_slice(&done.stdout).expect("it prints JSON");
    let latencies: Vec<_> =
        measured["latencies_us"].as_array().into_iter().flatten().flat_map(Value::as_u64).collect();
    assert_eq!((done.code(), latencies.len()), (Some(0), 6), "{}", done.stderr_text());
    let (longest, wall) = (latencies.iter().max(), measured["wall_us"].as_u64());
    assert!(longest > Some(&0) && longest <= wall.as_ref(), "{measured}");

    // What goes wrong is no measurement.
    let done = time("false", &["1", "1"]);
    assert_eq!((done.code(), done.stdout_text().as_str()), (Some(125), ""));
    assert!(done.stderr_text().contains("Code(1)"), "{}", done.stderr_text());
    assert_eq!(time("true", &["1"]).code(), Some(2));
}

#[test]
fn a_server_can_listen_on_a_socket_file() {
    let data = Folder::new();
    let socket = data.join("api.sock");
    let mut command = Command::new(sandglass());
    command
        .args(["serve", "--allow-host-image"])
        .arg(format!("--listen=unix:{}", socket.display()))
        .arg(format!("--data-dir={}", data.join("data").display()))
        .env("SANDGLASS_DOCKER_CONFIG", "");
    let mut server = Process::start("sandglass serve", command);
    server.wait_for_line("where it listens", Duration::from_secs(30), |line| {
        line.contains("listening on").then_some(())
    });
    let body = r#"{"image":"host","cmd":"echo","args":["by file"]}"#;
    let mut stream = UnixStream::connect(&socket).expect("connect");
    write!(stream, "POST /runs HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("200 OK") && answer.contains("by file"), "{answer}");
    assert!(server.stop().success());
}
