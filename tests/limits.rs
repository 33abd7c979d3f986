//! Every limit of the contract: a program just within it succeeds, one past it meets it.

use std::time::Instant;

use support::{Daemon, Value, guest, json};

fn with_limits(name: &str, args: &[&str], limits: &Value) -> Value {
    json!({
        "image": "host", "cmd": format!("/tmp/{name}"), "args": args, "files": [guest::file(name)],
        "limits": limits,
    })
}

fn python(script: &str, limits: &Value) -> Value {
    json!({ "image": "host", "cmd": "python3", "args": ["-c", script], "limits": limits })
}

#[track_caller]
fn assert_exited(run: &Value, code: u64) -> String {
    assert_eq!((run["outcome"].as_str(), run["exit_code"].as_u64()), (Some("exited"), Some(code)), "{run:#}");
    run["stdout"].as_str().expect("text").trim().to_owned()
}

#[test]
fn wall_time() {
    let daemon = Daemon::start();
    let run = daemon.run(&python("import time; time.sleep(0.2)", &json!({ "wall_time_ms": 5000 })));
    assert_exited(&run, 0);
    let asked = Instant::now();
    let run = daemon.run(&python("import time; time.sleep(60)", &json!({ "wall_time_ms": 1000 })));
    assert_eq!(run["outcome"], "wall_time_limit");
    let wall = run["usage"]["wall_time_ms"].as_f64().expect("a number");
    assert!((1000.0..1500.0).contains(&wall), "{wall}");
    assert!(asked.elapsed().as_secs() < 5);
}

/// However late we hear of its start: the program's times are its own from the first moment to the last.
#[test]
fn the_times_of_a_program_that_ends_at_once_are_whole() {
    let daemon = Daemon::start();
    for _ in 0..20 {
        let run = daemon.run(&with_limits("burn", &["1", "0.002"], &json!({ "cpus": 2.0 })));
        assert_exited(&run, 0);
        for time in ["wall_time_ms", "cpu_time_ms"] {
            let measured = run["usage"][time].as_f64().expect("a number");
            assert!(measured >= 1.8, "{time}: {measured}");
        }
        assert!(run["started_at"].as_str() <= run["finished_at"].as_str(), "{run:#}");
        assert!(run["started_at"].is_string());
    }
}

#[test]
fn cpu_time() {
    let daemon = Daemon::start();
    let limits = json!({ "cpu_time_ms": 1000, "wall_time_ms": 30_000, "cpus": 2.0 });
    assert_exited(&daemon.run(&with_limits("burn", &["1", "0.3"], &limits)), 0);
    let run = daemon.run(&with_limits("burn", &["2"], &limits));
    assert_eq!(run["outcome"], "cpu_time_limit");
    let cpu = run["usage"]["cpu_time_ms"].as_f64().expect("a number");
    assert!((1000.0..1600.0).contains(&cpu), "{cpu}");
}

/// Each child alone stays below the limit, whether it still runs or has ended.
#[test]
fn cpu_time_is_counted_over_all_processes() {
    let daemon = Daemon::start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let limits = json!({ "cpu_time_ms": 800, "wall_time_ms": 60_000, "cpus": 2.0 });
    let burn = |line: &str| json!({ "image": "host", "cmd": "sh", "args": ["-c", line], "files": [guest::file("burn")], "limits": limits });
    for line in [
        "for i in 1 2 3 4 5 6 7 8; do /tmp/burn 1 0.3 & done; wait",
        "for i in 1 2 3 4 5 6 7 8; do /tmp/burn 1 0.3; done",
        "(setsid /tmp/burn &); sleep 50",
    ] {
        let run = daemon.run(&burn(line));
        assert_eq!(run["outcome"], "cpu_time_limit", "{line}: {run:#}");
        let cpu = run["usage"]["cpu_time_ms"].as_f64().expect("a number");
        assert!((800.0..1600.0).contains(&cpu), "{line}: {cpu}");
    }
    assert_exited(&daemon.run(&burn("/tmp/burn 1 0.2 & /tmp/burn 1 0.2; wait")), 0);
    host.assert_unchanged();
}

#[test]
fn who_meets_a_limit_is_dead_when_the_answer_is_there() {
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    for (script, limits, outcome) in [
        ("setsid sleep 600 & sleep 600", json!({ "wall_time_ms": 200 }), "wall_time_limit"),
        ("setsid sleep 600 & while :; do :; done", json!({ "cpu_time_ms": 200 }), "cpu_time_limit"),
        ("setsid sleep 600 & tail /dev/zero", json!({ "memory_bytes": 16 << 20 }), "memory_limit"),
        ("setsid sleep 600 & yes", json!({ "stdout_bytes": 1000 }), "output_limit"),
    ] {
        let body = json!({ "image": "host", "cmd": "sh", "args": ["-c", script], "limits": limits });
        let run = daemon.run(&body);
        assert_eq!(support::host::in_cgroups_of(daemon.launcher_pid()).len(), 0, "{script}");
        assert_eq!(run["outcome"], outcome, "{script}: {run:#}");
        host.assert_unchanged();
    }
}

#[test]
fn memory() {
    let daemon = Daemon::start();
    let limits = json!({ "memory_bytes": 100 << 20, "disk_bytes": 200 << 20, "file_size_bytes": 200 << 20 });
    assert_eq!(assert_exited(&daemon.run(&with_limits("eat_memory", &["80"], &limits)), 0), "done");
    assert_eq!(daemon.run(&with_limits("eat_memory", &["120"], &limits))["outcome"], "memory_limit");
    // Files live in memory and count.
    let run = daemon.run(&with_limits("fill_disk", &["/tmp/f", "0"], &limits));
    assert_eq!(run["outcome"], "memory_limit", "{run:#}");
    let shm = python("open('/dev/shm/x','wb').write(b'x'*(150<<20))", &limits);
    assert_eq!(daemon.run(&shm)["outcome"], "memory_limit");
    // So does what only the kernel holds.
    let segment = "import ctypes\nl=ctypes.CDLL(None)\nl.shmat.restype=ctypes.c_void_p\ni=l.shmget(0,200<<20,0o1600)\np=l.shmat(i,None,0)\nctypes.memset(p,1,200<<20)\nprint('got it')";
    assert_eq!(daemon.run(&python(segment, &limits))["outcome"], "memory_limit");
    // A large reservation that nobody touches is nothing.
    let reserve =
        "import mmap\nm=mmap.mmap(-1,1<<40,flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS|0x4000)\nprint('ok')";
    assert_eq!(assert_exited(&daemon.run(&python(reserve, &limits)), 0), "ok");
}

/// None of them is large; the first to go would leave the others, and its parent exits 0.
#[test]
fn memory_is_counted_over_all_processes() {
    let daemon = Daemon::start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let script = "import os,time\nfor _ in range(CHILDREN):\n  if os.fork() == 0:\n    x = bytearray(os.urandom(1)) * (8<<20); time.sleep(1); os._exit(0)\nfor _ in range(CHILDREN): os.wait()\nprint('all ended')";
    let limits = json!({ "memory_bytes": 128 << 20 });
    let run = daemon.run(&python(&script.replace("CHILDREN", "4"), &limits));
    assert_eq!(assert_exited(&run, 0), "all ended");
    let peak = run["usage"]["memory_peak_bytes"].as_u64().expect("a number");
    assert!((32 << 20..=128 << 20).contains(&peak), "{peak}");
    let run = daemon.run(&python(&script.replace("CHILDREN", "30"), &limits));
    assert_eq!(run["outcome"], "memory_limit", "{run:#}");
    host.assert_unchanged();
}

#[test]
fn processes() {
    let daemon = Daemon::start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let limits = json!({ "processes": 20, "wall_time_ms": 1500, "cpu_time_ms": 60_000 });
    let run = daemon.run(&with_limits("fork_bomb", &["once"], &limits));
    let said = assert_exited(&run, 0);
    assert!(said.contains("19"), "one of twenty is the program itself: {said}");
    assert_eq!(run["limit_hits"], json!(["processes"]));
    assert_eq!(run["usage"]["processes_peak"], 20);
    let run = daemon.run(&with_limits("fork_bomb", &[], &limits));
    assert!(["wall_time_limit", "cpu_time_limit"].contains(&run["outcome"].as_str().expect("an outcome")));
    let threads = "import threading,time\nn=0\ntry:\n  while True:\n    threading.Thread(target=time.sleep,args=(5,),daemon=True).start(); n+=1\nexcept RuntimeError: print(n,flush=True)\nimport os; os._exit(0)";
    assert_eq!(assert_exited(&daemon.run(&python(threads, &limits)), 0), "19");
    host.assert_unchanged();
}

#[test]
fn outputs() {
    let daemon = Daemon::start();
    for (stream, other) in [("stdout", "stderr"), ("stderr", "stdout")] {
        let limits = json!({ format!("{stream}_bytes"): 5000, format!("{other}_bytes"): 1 });
        assert_exited(&daemon.run(&with_limits("spam", &["5000", stream], &limits)), 0);
        let run = daemon.run(&with_limits("spam", &["5001", stream], &limits));
        assert_eq!(
            (run["outcome"].as_str(), run[format!("{stream}_bytes")].as_u64()),
            (Some("output_limit"), Some(5000))
        );
    }
}

#[test]
fn disk_and_the_size_of_one_file() {
    let daemon = Daemon::start();
    let limits = json!({ "disk_bytes": 8 << 20, "file_size_bytes": 64 << 20 });
    let run = daemon.run(&with_limits("fill_disk", &["/tmp/f", "6000000"], &limits));
    assert_exited(&run, 0);
    assert_eq!(run["limit_hits"], json!([]));
    let script = "import os\nn=0\nfor d in ('/tmp','/dev/shm','/root','/var'):\n  try:\n    f=open(d+'/f','wb',buffering=0)\n    while True: n+=f.write(b'x'*65536)\n  except OSError as e: print(d,e.errno)\nprint(n<=8<<20, n>7<<20)";
    let run = daemon.run(&python(script, &limits));
    assert_eq!(assert_exited(&run, 0), "/tmp 28\n/dev/shm 28\n/root 28\n/var 28\nTrue True");
    assert_eq!(run["limit_hits"], json!(["disk"]));

    let limits = json!({ "file_size_bytes": 1 << 20 });
    assert_exited(&daemon.run(&with_limits("fill_disk", &["/tmp/f", "1048576"], &limits)), 0);
    let past = "f=open('/tmp/f','wb',buffering=0)\nwhile True: f.write(b'x'*65536)";
    // Python ignores SIGXFSZ and so lives to tell.
    let run = daemon.run(&python(past, &limits));
    assert_exited(&run, 1);
    assert!(run["stderr"].as_str().expect("text").contains("File too large"), "{run:#}");
    let shell = json!({ "image": "host", "cmd": "sh", "args": ["-c", "exec dd if=/dev/zero of=/tmp/f bs=64k"], "limits": limits });
    let run = daemon.run(&shell);
    assert_eq!(
        (run["outcome"].as_str(), run["signal"].as_str()),
        (Some("signaled"), Some("SIGXFSZ")),
        "{run:#}"
    );
    assert_eq!(run["limit_hits"], json!(["file_size"]));
}

/// What is deleted makes room again, and what only looks large takes none.
#[test]
fn disk_is_what_a_run_has_at_once() {
    let daemon = Daemon::start();
    let limits = json!({ "disk_bytes": 8 << 20 });
    let again = "import os\nfor _ in range(20):\n  open('/tmp/f','wb').write(b'x'*(6<<20)); os.unlink('/tmp/f')\nprint('twenty times')";
    let run = daemon.run(&python(again, &limits));
    assert_eq!(assert_exited(&run, 0), "twenty times");
    assert_eq!(run["limit_hits"], json!([]));
    // A file that is open but has no name any more is still there.
    let unnamed = "import os,errno\nn=0\ntry:\n  while True:\n    f=open('/tmp/f','wb',buffering=0); os.unlink('/tmp/f'); os.dup(f.fileno()); n+=f.write(b'x'*(1<<20))\nexcept OSError as e: print(errno.errorcode[e.errno], n<=8<<20)";
    assert_eq!(assert_exited(&daemon.run(&python(unnamed, &limits)), 0), "ENOSPC True");
    let sparse = "import os\nf=os.open('/tmp/s',os.O_CREAT|os.O_RDWR)\nos.ftruncate(f,60<<20)\nprint(os.fstat(f).st_size, os.fstat(f).st_blocks)";
    assert_eq!(assert_exited(&daemon.run(&python(sparse, &limits)), 0), format!("{} 0", 60 << 20));
    let past = "import os,signal,errno\nsignal.signal(signal.SIGXFSZ,signal.SIG_IGN)\nf=os.open('/tmp/s',os.O_CREAT|os.O_RDWR)\nfor call in (lambda: os.ftruncate(f,(64<<20)+1), lambda: os.posix_fallocate(f,0,(64<<20)+1), lambda: os.pwrite(f,b'x',64<<20)):\n  try: call(); print('done')\n  except OSError as e: print(errno.errorcode[e.errno])";
    let limits = json!({ "disk_bytes": 128 << 20, "memory_bytes": 512 << 20 });
    assert_eq!(assert_exited(&daemon.run(&python(past, &limits)), 0), "EFBIG\nEFBIG\nEFBIG");
}

#[test]
fn inodes() {
    let daemon = Daemon::start();
    let limits = json!({ "inodes": 200 });
    let make = |count: u32| {
        format!(
            "import os\nos.mkdir('/tmp/d')\nfor n in range({count}): open(f'/tmp/d/{{n}}','w').close()\nprint('made')"
        )
    };
    assert_eq!(assert_exited(&daemon.run(&python(&make(190), &limits)), 0), "made");
    let run = daemon.run(&python(&make(230), &limits));
    assert_exited(&run, 1);
    assert!(run["stderr"].as_str().expect("text").contains("No space left"), "{run:#}");
    assert_eq!(run["limit_hits"], json!(["inodes"]));
}

#[test]
fn everything_with_a_name_is_an_inode() {
    let daemon = Daemon::start();
    for make in [
        "os.mkdir(f'/tmp/{n}')",
        "os.symlink('x',f'/tmp/{n}')",
        "os.mkfifo(f'/dev/shm/{n}')",
        "open(f'/root/{n}','w').close()",
        "os.link('/tmp/one',f'/tmp/{n}')",
    ] {
        let script = format!(
            "import os,errno\nopen('/tmp/one','w').close()\nn=0\ntry:\n  while n<5000: {make}; n+=1\nexcept OSError as e: print(errno.errorcode[e.errno], n)"
        );
        let run = daemon.run(&python(&script, &json!({ "inodes": 300 })));
        let said = assert_exited(&run, 0);
        let (error, made) = said.split_once(' ').expect("an error and a number");
        let made: u32 = made.parse().expect("a number");
        // The sandbox's own few are not at the run's expense, and what it doesn't need of them is.
        assert!(error == "ENOSPC" && (299..=316).contains(&made), "{make}: {said}");
        assert_eq!(run["limit_hits"], json!(["inodes"]), "{make}");
    }
}

#[test]
fn open_files() {
    let daemon = Daemon::start();
    let script = "import os\nn=3\ntry:\n  while True: os.dup(0); n+=1\nexcept OSError as e: print(n,e.errno)";
    for most in [16, 256, 1024] {
        let said = assert_exited(&daemon.run(&python(script, &json!({ "open_files": most }))), 0);
        assert_eq!(said, format!("{most} 24"));
    }
}

#[test]
fn stack() {
    let daemon = Daemon::start();
    let limits = json!({ "stack_bytes": 1 << 20 });
    assert_exited(&daemon.run(&with_limits("deep_stack", &["900000"], &limits)), 0);
    let run = daemon.run(&with_limits("deep_stack", &["2000000"], &limits));
    assert_eq!((run["outcome"].as_str(), run["signal"].as_str()), (Some("signaled"), Some("SIGSEGV")));
    let deep = json!({ "stack_bytes": 100 << 20 });
    assert_exited(&daemon.run(&with_limits("deep_stack", &["90000000"], &deep)), 0);
}

#[test]
fn processors() {
    let daemon = Daemon::start();
    let limits = json!({ "cpus": 0.25, "cpu_time_ms": 60_000 });
    let run = daemon.run(&with_limits("burn", &["2", "0.5"], &limits));
    assert_exited(&run, 0);
    let used = |name: &str| run["usage"][name].as_f64().expect("a number");
    let share = used("cpu_time_ms") / used("wall_time_ms");
    assert!(share < 0.45, "a quarter of a processor, and some slack at the ends: {share}");
}

/// What is in force is shown: what was asked for, and the defaults for the rest.
#[test]
fn a_run_shows_the_limits_that_were_in_force() {
    let daemon =
        Daemon::builder().host_image().flag("--limits-processes", 9).flag("--maxima-processes", 50).start();
    let defaults = daemon.get("/info").expect(200)["defaults"].clone();
    assert_eq!(defaults["processes"], 9);
    let body = |limits: Value| json!({ "image": "host", "cmd": "sh", "args": ["-c", "ulimit -n"], "limits": limits });
    assert_eq!(daemon.run(&body(Value::Null))["limits"], defaults);
    let run = daemon.run(&body(json!({ "open_files": 77, "cpus": 0.5 })));
    let mut expected = defaults;
    (expected["open_files"], expected["cpus"]) = (json!(77), json!(0.5));
    assert_eq!(run["limits"], expected);
    assert_eq!(assert_exited(&run, 0), "77");
    let problem = daemon.post("/runs", &body(json!({ "processes": 51 }))).problem(422, "invalid-request");
    let detail = problem["errors"][0]["detail"].as_str().expect("words");
    assert!(detail.contains("50"), "{detail} should name the operator's maximum");
}

#[test]
fn every_bad_limit_of_a_request_is_named_at_once() {
    let daemon = Daemon::start();
    let limits = json!({ "cpus": 0, "processes": "many", "inodes": -3, "wall_time": 5, "stack_bytes": 1.5 });
    let problem = daemon.post("/runs", &json!({ "image": "host", "cmd": "true", "limits": limits }));
    let problem = problem.problem(422, "invalid-request");
    let errors = problem["errors"].as_array().expect("a list");
    let mut pointers: Vec<&str> = errors.iter().filter_map(|error| error["pointer"].as_str()).collect();
    pointers.sort_unstable();
    // Of what has the wrong type all is told; values are looked at once the types are right.
    let wrong_type = ["/limits/inodes", "/limits/processes", "/limits/stack_bytes", "/limits/wall_time"];
    assert_eq!(pointers, wrong_type);
    let limits = json!({ "cpus": 0, "processes": 0, "inodes": 2_000_000, "stack_bytes": 5 });
    let problem = daemon.post("/runs", &json!({ "image": "host", "cmd": "true", "limits": limits }));
    let errors = problem.problem(422, "invalid-request")["errors"].as_array().expect("a list").clone();
    let mut pointers: Vec<&str> = errors.iter().filter_map(|error| error["pointer"].as_str()).collect();
    pointers.sort_unstable();
    assert_eq!(pointers, ["/limits/cpus", "/limits/inodes", "/limits/processes", "/limits/stack_bytes"]);
}

#[test]
fn a_limit_that_makes_no_sense_is_refused_by_name_and_never_clamped() {
    let daemon = Daemon::start();
    let maxima = daemon.get("/info").expect(200)["maxima"].clone();
    let defaults = daemon.get("/info").expect(200)["defaults"].clone();
    let names: Vec<&String> = defaults.as_object().expect("limits").keys().collect();
    assert_eq!(names.len(), 12);
    for name in names {
        let over = if name == "cpus" {
            json!(maxima[name].as_f64().expect("a number") + 1.0)
        } else {
            json!(maxima[name].as_u64().expect("a number") + 1)
        };
        for bad in [json!(0), json!(-1), json!("5"), json!(true), json!([]), json!(1e300), over] {
            let request = json!({ "image": "host", "cmd": "true", "limits": { name: bad } });
            let problem = daemon.post("/runs", &request).problem(422, "invalid-request");
            assert_eq!(problem["errors"][0]["pointer"], format!("/limits/{name}"), "{bad}");
            assert_eq!(problem["errors"].as_array().map(Vec::len), Some(1));
            assert!(!problem["errors"][0]["detail"].as_str().expect("words").is_empty());
        }
        // `null` is absent, and the largest is allowed.
        for good in [json!(null), maxima[name].clone()] {
            let run = daemon.run(&json!({ "image": "host", "cmd": "true", "limits": { name: good } }));
            assert_exited(&run, 0);
            let expected = if good.is_null() { &defaults[name] } else { &maxima[name] };
            assert_eq!(run["limits"][name].as_f64(), expected.as_f64(), "{name}");
        }
    }
    for (text, pointer) in [
        (r#"{"image":"host","cmd":"true","limits":{"memory":5}}"#, "/limits/memory"),
        (r#"{"image":"host","cmd":"true","limits":{"cpus":1e400}}"#, ""),
        (r#"{"image":"host","cmd":"true","limits":{"inodes":1.5}}"#, "/limits/inodes"),
        (r#"{"image":"host","cmd":"true","limits":{"inodes":9223372036854775808}}"#, "/limits/inodes"),
        (r#"{"image":"host","cmd":"true","limits":[]}"#, "/limits"),
    ] {
        let response =
            daemon.request("POST", "/runs").header("Content-Type", "application/json").body(text).send();
        assert_eq!(response.problem(422, "invalid-request")["errors"][0]["pointer"], pointer);
    }
}

/// A limit so small that nothing can run is still the run's own limit: it may never look like our fault.
#[test]
fn the_smallest_value_of_every_limit_is_met_by_the_program_and_not_by_us() {
    let daemon = Daemon::start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    for (name, least, ends) in [
        ("wall_time_ms", json!(1), &["wall_time_limit", "exited"][..]),
        ("cpu_time_ms", json!(1), &["cpu_time_limit", "exited"]),
        ("memory_bytes", json!(2 << 20), &["memory_limit", "exited"]),
        ("processes", json!(1), &["exited"]),
        ("stdout_bytes", json!(1), &["output_limit"]),
        ("stderr_bytes", json!(1), &["output_limit"]),
        ("disk_bytes", json!(1), &["exited"]),
        ("inodes", json!(1), &["exited"]),
        ("file_size_bytes", json!(1), &["exited"]),
        ("open_files", json!(1), &["exited", "start_failed"]),
        ("stack_bytes", json!(64 << 10), &["exited", "start_failed"]),
        ("cpus", json!(0.01), &["exited"]),
    ] {
        // A hundredth of a processor takes its time, and more of it where that is emulated.
        let mut limits = json!({ "wall_time_ms": 120_000 });
        limits[name] = least.clone();
        for _ in 0..3 {
            let response = daemon.post(
                "/runs",
                &json!({ "image": "host", "cmd": "sh", "args": ["-c", "echo out; echo err >&2"], "limits": limits }),
            );
            let run = response.expect(200);
            assert!(ends.contains(&run["outcome"].as_str().expect("an outcome")), "{name}: {run:#}");
            assert_eq!(run["limits"][name].as_f64(), least.as_f64());
        }
    }
    // Memory that suffices less and less for what the request itself brings along: whichever of our own
    // steps it ends, it is the run's limit that ended it.
    for kib in [0, 1000, 1400, 1700, 1900, 2000, 2044] {
        let limits = json!({ "memory_bytes": 2 << 20 });
        let files = json!([{ "path": "/tmp/big", "text": "x".repeat(kib << 10) }]);
        let body = json!({ "image": "host", "cmd": "python3", "files": files, "limits": limits });
        assert_eq!(daemon.run(&body)["outcome"], "memory_limit", "{kib} KiB of files");
    }
    host.assert_unchanged();
}
