//! Category X: what one run can learn of another, or do to it. What two runs offer each other by name is
//! looked at in `tests/isolation/neighbours.rs`, what a run leaves to the next in `traces.rs`.
//!
//! Two things are not promised: how long the first read of a file of a shared layer takes says whether
//! somebody else has read it lately, and the time that a busy machine takes says that it is busy
//! . `docs/THREAT-MODEL.md` has both.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use support::{Daemon, Registry, Value, json};

const PRELUDE: &str = include_str!("prelude.py");

/// A server, and an image whose layers all its runs share.
struct Pair {
    daemon: Daemon,
    image: String,
}

impl Pair {
    fn new() -> Self {
        let daemon = Daemon::builder().flag("--slots", 4);
        if std::env::var("SANDGLASS_ATTACKED_IMAGE").as_deref() == Ok("host") {
            return Self { daemon: daemon.host_image().start(), image: "host".into() };
        }
        let registry = Registry::start();
        let pair = Self { daemon: daemon.registry(&registry).start(), image: registry.image("python:3") };
        pair.daemon.post("/images", &json!({ "image": pair.image })).expect(200);
        pair
    }

    fn request(&self, script: &str) -> Value {
        json!({
            "image": self.image, "cmd": "python3", "args": ["-u", "-c", format!("{PRELUDE}\n{script}")],
            "limits": { "wall_time_ms": 60_000, "cpu_time_ms": 60_000, "open_files": 1024 },
        })
    }

    /// What a program says that does no more than that.
    #[track_caller]
    fn said(&self, script: &str) -> String {
        let run = self.daemon.run(&self.request(script));
        assert_eq!((&run["outcome"], &run["exit_code"]), (&json!("exited"), &json!(0)), "{run:#}");
        run["stdout"].as_str().expect("text").trim().to_owned()
    }

    /// What `second` says while `first` runs, and what `first` has said when it is over. `first` takes its
    /// time; it has said `ready` by then.
    #[track_caller]
    fn meet(&self, first: &str, second: &str) -> (String, String) {
        let started = self.daemon.run_async(&self.request(first));
        self.daemon.wait_for_state(&started, "running");
        // Output can't be read before the end yet: a program that sleeps is one that is ready.
        std::thread::sleep(Duration::from_millis(1200));
        let seen = self.said(second);
        let run = self.daemon.wait_for_state(&started, "finished");
        assert_eq!((&run["outcome"], &run["exit_code"]), (&json!("exited"), &json!(0)), "{run:#}");
        let said = run["stdout"].as_str().expect("text").trim().to_owned();
        assert!(said.starts_with("ready"), "{said}");
        (said, seen)
    }
}

#[test]
fn f_24_a_lock_on_a_file_of_the_image_is_nobody_else_s() {
    let pair = Pair::new();
    let lock = "import fcntl\nfile = os.open('/usr/bin/env', os.O_RDONLY)\n\
                print('ready', tried(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB), \
                tried(fcntl.fcntl, file, 1024, fcntl.F_RDLCK))\n";
    let (first, second) = pair.meet(&format!("{lock}time.sleep(3)"), lock);
    assert!(first.starts_with("ready ok"), "{first}");
    assert_eq!(second, first, "the second finds what the first found");
}

#[test]
fn f_25_nobody_hears_what_others_do_with_a_file_of_the_image() {
    let pair = Pair::new();
    let watch = "import select\nfd = call(294, 0o4000)\n\
                 for path in (b'/usr/bin/env', b'/usr/bin', b'/etc/passwd'): assert isinstance(call(254, fd, path, 0xfff), int)\n\
                 print('ready')\ntime.sleep(4)\nprint('heard', tried(os.read, fd, 4096))";
    let noise = "print(subprocess.run(['/usr/bin/env', 'true']).returncode, len(content('/etc/passwd')) > 0)";
    let (first, second) = pair.meet(watch, noise);
    assert_eq!((first.as_str(), second.as_str()), ("ready\nheard EAGAIN", "0 True"));
    // The watch works: it hears its own run.
    let own = watch.replace("time.sleep(4)", "subprocess.run(['/usr/bin/env', 'true'])");
    let heard = pair.said(&own);
    assert!(heard.starts_with("ready\nheard b'"), "{heard}");
}

#[test]
fn f_08_what_a_run_writes_over_its_image_is_gone_with_it() {
    let pair = Pair::new();
    if pair.image == "host" {
        support::skip("the machine's own programs can't be written over");
        return;
    }
    let look = "import hashlib\nprint([hashlib.sha256(open(path, 'rb').read()).hexdigest() \
                for path in ('/usr/bin/env', '/etc/passwd', '/usr/bin/python3.11')], os.path.exists('/usr/bin/left'))";
    let before = pair.said(look);
    let write = "open('/usr/bin/left', 'w').write('x')\n\
                 for path in ('/usr/bin/env', '/etc/passwd'): open(path, 'wb').write(b'#!/tmp/evil')\n\
                 os.unlink('/usr/bin/python3.11')\n\
                 print(os.path.exists('/usr/bin/python3.11'), tried(os.rename, '/etc', '/etc-moved'))";
    assert_eq!(pair.said(write), "False EXDEV");
    assert_eq!(pair.said(look), before);
}

#[test]
fn n_11_and_i_05_a_port_and_a_name_are_the_run_s_own() {
    let pair = Pair::new();
    let offer = "import threading\nserver = socket.create_server(('127.0.0.1', 8080))\n\
                 named = socket.socket(socket.AF_UNIX); named.bind('\\0meet'); named.listen()\n\
                 sem = LIBC.sem_open(b'/meet', 0o100, 0o666, 1)\nprint('ready')\ntime.sleep(3)\nserver.setblocking(False)\n\
                 print(tried(server.accept))";
    let seek = "def reach(family, address):\n with socket.socket(family) as s:\n  return tried(s.connect, address)\n\
                print(reach(socket.AF_INET, ('127.0.0.1', 8080)), reach(socket.AF_UNIX, '\\0meet'), \
                tried(socket.socket().bind, ('127.0.0.1', 8080)), os.listdir('/dev/shm'))";
    let (first, second) = pair.meet(offer, seek);
    assert_eq!(second, "ECONNREFUSED ECONNREFUSED ok []");
    assert_eq!(first, "ready\nEAGAIN");
}

#[test]
fn i_02_and_x_02_what_a_run_leaves_behind_the_next_does_not_find() {
    let pair = Pair::new();
    let leave = "made = [call(29, 0x5678 + n, 4096, 0o1666) for n in range(4)]\n\
                 made += [call(64, 0x5678, 1, 0o1666), call(68, 0x5678, 0o1666), call(240, b'left', 0o102, 0o666, 0)]\n\
                 for place in ('/dev/shm/left', '/tmp/left', '/left'): tried(lambda: open(place, 'w').write('x'))\n\
                 print(all(isinstance(id, int) for id in made))";
    let find = "print(same([call(29, 0x5678 + n, 4096, 0) for n in range(4)] + [call(240, b'left', 0, 0, 0)]), \
                os.listdir('/dev/shm'), os.listdir('/dev/mqueue'), os.listdir('/tmp'), os.path.exists('/left'))";
    for _ in 0..3 {
        assert_eq!(pair.said(leave), "True");
        assert_eq!(pair.said(find), "ENOENT [] [] [] False");
    }
}

/// One run uses up all that the kernel counts for each user; the other has all of it still.
#[test]
fn x_06_the_kernel_s_quotas_are_counted_for_each_run_apart() {
    let pair = Pair::new();
    let take = "import fcntl\n\
                def many(make):\n made = 0\n while made < 20_000 and isinstance(make(), int): made += 1\n return made\n\
                watchers = many(lambda: call(294, 0))\n\
                timers = many(lambda: call(222, 0, 0, ctypes.create_string_buffer(8)))\n\
                queues = many(lambda: call(240, os.urandom(8).hex().encode(), 0o102, 0o600, 0))\n\
                pipes = [os.pipe() for _ in range(60)]\n\
                sizes = [tried(fcntl.fcntl, w, 1031, 1 << 20) for _, w in pipes]\n\
                print('ready', watchers > 0, timers, queues, sizes.count(1 << 20))\n";
    let alone = pair.said(take);
    let (first, second) = pair.meet(&format!("{take}time.sleep(4)"), take);
    assert_eq!((first.as_str(), second.as_str()), (alone.as_str(), alone.as_str()));
    // A new pipe is as roomy as ever, too.
    assert_eq!(pair.said("import fcntl\nprint(fcntl.fcntl(os.pipe()[1], 1032))"), "65536");
}

#[test]
fn x_07_a_run_is_not_found_by_guessing_and_an_unknown_one_tells_nothing() {
    let pair = Pair::new();
    let ids: Vec<String> = (0..20)
        .map(|_| {
            pair.daemon.run(&json!({ "image": pair.image, "cmd": "true" }))["id"]
                .as_str()
                .expect("an id")
                .to_owned()
        })
        .collect();
    // After the time in front there are 74 bits of chance, in whose first 12 no counter shows.
    let tails: BTreeSet<&str> = ids.iter().map(|id| &id[19..]).collect();
    assert_eq!(tails.len(), ids.len());
    let mut close = ids[0].clone().into_bytes();
    let last = close.last_mut().expect("an id has digits");
    *last = if *last == b'0' { b'1' } else { b'0' };
    let close = String::from_utf8(close).expect("text");
    let answers: BTreeSet<String> = [close.as_str(), "01a20d44-5ed3-76fd-bd11-455378024b9c"]
        .iter()
        .flat_map(|id| {
            ["GET", "DELETE"].map(|method| pair.daemon.request(method, &format!("/runs/{id}")).send())
        })
        .map(|response| {
            let mut problem = response.problem(404, "run-not-found");
            problem["instance"] = Value::Null;
            problem["detail"] = Value::Null;
            problem.to_string()
        })
        .collect();
    assert!(answers.len() <= 2, "{answers:?}");
    // Nor does anything that everybody may read name one.
    for path in ["/metrics", "/info", "/healthz", "/readyz"] {
        let text = pair.daemon.get(path).text();
        assert!(ids.iter().all(|id| !text.contains(id)), "{path} names a run");
    }
}

#[test]
fn x_11_chance_is_each_run_s_own() {
    let pair = Pair::new();
    let look = "maps = open('/proc/self/maps').read().splitlines()\n\
                stack = [line.split('-')[0] for line in maps if '[stack]' in line]\n\
                auxv = open('/proc/self/auxv', 'rb').read()\n\
                at = [v for k, v in struct.iter_unpack('QQ', auxv) if k == 25][0]\n\
                libc = [line.split('-')[0] for line in maps if 'libc.so' in line][0]\n\
                print(os.urandom(8).hex(), stack, ctypes.string_at(at, 16).hex(), libc)";
    let seen: Vec<Vec<String>> =
        (0..8).map(|_| pair.said(look).split(' ').map(str::to_owned).collect()).collect();
    for column in 0..4 {
        let values: BTreeSet<&String> = seen.iter().map(|words| &words[column]).collect();
        assert!(values.len() >= 7, "of eight runs' values in column {column} many are alike: {values:?}");
    }
}

/// One that takes all it may of everything does not keep another from its own.
#[test]
fn x_05_a_greedy_neighbour_costs_time_and_nothing_else() {
    let pair = Pair::new();
    let greedy = "print('ready')\nend = time.monotonic() + 5\nif tried(os.fork) == 0:\n while time.monotonic() < end: os.write(2, b'x' * 65536)\n\
                  for _ in range(30): tried(os.fork)\n\
                  while time.monotonic() < end:\n with open('/tmp/x' + str(os.getpid()), 'wb') as f: f.write(bytes(1 << 16))\n\
                  os._exit(0)";
    let mut request = pair.request(greedy);
    request["on_output_limit"] = json!("discard");
    let ids: Vec<String> = (0..3).map(|_| pair.daemon.run_async(&request)).collect();
    ids.iter().for_each(|id| drop(pair.daemon.wait_for_state(id, "running")));
    let started = Instant::now();
    for _ in 0..10 {
        let run = pair.daemon.run(&json!({ "image": pair.image, "cmd": "echo", "args": ["ok"] }));
        assert_eq!((&run["outcome"], &run["stdout"]), (&json!("exited"), &json!("ok\n")), "{run:#}");
    }
    // As a promise of speed it would be far too lenient; it says that nobody starves.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    for id in ids {
        let run = pair.daemon.wait_for_state(&id, "finished");
        assert!(["exited", "cpu_time_limit"].contains(&run["outcome"].as_str().expect("text")), "{run:#}");
    }
}
