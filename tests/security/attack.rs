//! How an attack is made and judged.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use support::{Builder, Daemon, Folder, Host, Registry, Request, Value, host, json, skip};

/// One attack: a Python script that runs inside, and what a correct sandbox lets it print.
#[derive(Clone, Copy)]
pub(crate) struct Attack {
    /// The row of the suite, such as `F-03`.
    pub(crate) id: &'static str,
    /// What is tried, in words.
    pub(crate) tries: &'static str,
    pub(crate) script: &'static str,
    /// What it may print, without white space at the ends. One of these.
    pub(crate) shows: &'static [&'static str],
    /// How the run may end. One of these.
    pub(crate) ends: &'static [&'static str],
    /// The longest that the program may have taken, where that says whether a wall stood.
    pub(crate) within_ms: f64,
    /// Fields of the request beyond image and command, as JSON.
    pub(crate) request: &'static str,
}

/// An attack that leaves its program alive to tell of it.
pub(crate) const fn attack(
    id: &'static str,
    tries: &'static str,
    script: &'static str,
    shows: &'static [&'static str],
) -> Attack {
    Attack { id, tries, script, shows, ends: &["exited"], within_ms: f64::INFINITY, request: "{}" }
}

impl Attack {
    /// For those that are meant to end otherwise than with code 0.
    pub(crate) const fn ends(self, outcomes: &'static [&'static str]) -> Self {
        Self { ends: outcomes, ..self }
    }

    pub(crate) const fn within_ms(self, within_ms: f64) -> Self {
        Self { within_ms, ..self }
    }

    pub(crate) const fn with(self, request: &'static str) -> Self {
        Self { request, ..self }
    }
}

/// What every script finds already there.
const PRELUDE: &str = include_str!("prelude.py");

/// How the attacks of a category are made: `SANDGLASS_ATTACKS` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Eight different ones at a time, each once; the host is looked at when all are over.
    Together,
    /// One after the other; the host is looked at after each.
    Alone,
    /// Each eight times at once; the host is looked at after each.
    Crowd,
    /// Each beside programs that take nine tenths of the slots and of the processors.
    Loaded,
}

impl Manner {
    pub(crate) fn asked() -> Self {
        match std::env::var("SANDGLASS_ATTACKS").as_deref() {
            Err(_) | Ok("together") => Self::Together,
            Ok("alone") => Self::Alone,
            Ok("crowd") => Self::Crowd,
            Ok("loaded") => Self::Loaded,
            Ok(other) => panic!("SANDGLASS_ATTACKS is {other:?}, not together, alone, crowd or loaded"),
        }
    }

    fn at_once(self) -> usize {
        match self {
            Self::Together | Self::Crowd => 8,
            Self::Alone | Self::Loaded => 1,
        }
    }

    /// How much longer than alone a program may take.
    fn slower(self) -> f64 {
        if self == Self::Alone { 1.0 } else { 8.0 }
    }
}

/// Besides these nine there is one slot for the attack.
const LOAD: usize = 9;

/// Each of the nine may have a fifth of a processor: together 1.8 of the two that test machines have.
const LOAD_SCRIPT: &str = "import os,time\nend=time.monotonic()+0.4\nwhile time.monotonic()<end:\n \
                           open('/tmp/x','wb').write(bytes(65536)); os.path.exists('/tmp/y'); os.getpid()";

/// Whom the attacks are made on.
pub(crate) struct Target {
    address: SocketAddr,
    image: String,
    host: Host,
    canary: Canary,
}

/// How long random attacks go on, in seconds: `SECONDS` in scripts. A check of every change can't take long.
fn seconds() -> String {
    std::env::var("SANDGLASS_ATTACK_SECONDS").unwrap_or_else(|_| "3".to_owned())
}

/// A file of the host that no run may ever see. Scripts find its path and its inode's number in `CANARY`
/// and `CANARY_INODE`.
struct Canary {
    folder: Folder,
    inode: u64,
}

impl Canary {
    const SECRET: &str = "what stands in the canary is for nobody";

    fn new() -> Self {
        let folder = Folder::new();
        let path = folder.join("the-canary");
        fs::write(&path, Self::SECRET).expect("write the canary");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("guard the canary");
        let inode = path.metadata().expect("look at the canary").ino();
        Self { folder, inode }
    }

    fn prelude(&self) -> String {
        let path = self.folder.join("the-canary");
        format!("CANARY = {path:?}\nCANARY_INODE = {}\nSECONDS = {}\n", self.inode, seconds())
    }

    fn is_untouched(&self) -> bool {
        let path = self.folder.join("the-canary");
        fs::read_to_string(&path).is_ok_and(|text| text == Self::SECRET)
            && path.metadata().is_ok_and(|found| found.nlink() == 1 && found.mode() & 0o7777 == 0o600)
    }
}

/// Makes every attack of a category on a server of its own, and fails with the list of those that got
/// through or left something behind.
pub(crate) fn repel(attacks: &[Attack]) {
    repel_on(Daemon::builder(), attacks);
}

pub(crate) fn repel_on(daemon: Builder, attacks: &[Attack]) {
    if !cfg!(target_arch = "x86_64") {
        skip("the attacks name system calls by the numbers of x86-64");
        return;
    }
    let daemon = daemon.flag("--slots", LOAD + 1);
    let (daemon, image) = match std::env::var("SANDGLASS_ATTACKED_IMAGE").as_deref() {
        Ok("host") => (daemon.host_image().start(), "host".to_owned()),
        _ => {
            let registry = Registry::start();
            let (daemon, image) = (daemon.registry(&registry).start(), registry.image("python:3"));
            daemon.post("/images", &json!({ "image": image })).expect(200);
            (daemon, image)
        }
    };
    // What is made once, at the first run, is no trace of an attack.
    daemon.run(&json!({ "image": image, "cmd": "true" }));
    let target = Target::new(daemon.address(), image, daemon.host());
    target.repels(attacks, Manner::asked());
    assert!(!daemon.log().contains("panicked"), "the server panicked:\n{}", daemon.log());
}

impl Target {
    /// A service that runs there and has that image already; `host` was observed when all was quiet.
    pub(crate) fn new(address: SocketAddr, image: String, host: Host) -> Self {
        Self { address, image, host, canary: Canary::new() }
    }

    #[track_caller]
    pub(crate) fn repels(&self, attacks: &[Attack], manner: Manner) {
        let complaints = host::kernel_complaints();
        let mut red = match manner {
            Manner::Together => self.each(attacks, manner),
            Manner::Alone | Manner::Crowd | Manner::Loaded => {
                let one_by_one = attacks.iter().map(|attack| {
                    let copies: Vec<&Attack> = std::iter::repeat_n(attack, manner.at_once()).collect();
                    let mut red =
                        self.beside_load(manner == Manner::Loaded, || self.each(copies.clone(), manner));
                    red.extend(self.left_behind(&format!("{} ({})", attack.id, attack.tries)));
                    red
                });
                one_by_one.collect::<Vec<_>>().concat()
            }
        };
        red.extend(self.left_behind("the whole category"));
        if !self.canary.is_untouched() {
            red.push("the canary was touched".to_owned());
        }
        let new: BTreeSet<_> = host::kernel_complaints().difference(&complaints).cloned().collect();
        red.extend(new.into_iter().map(|line| format!("the host's kernel complained: {line}")));
        for attack in attacks {
            let got_through = red.iter().any(|line| line.starts_with(&format!("{} ", attack.id)));
            println!("{} {}: {}", if got_through { "red" } else { "green" }, attack.id, attack.tries);
        }
        assert!(red.is_empty(), "walls let something through:\n{}", red.join("\n"));
    }

    fn left_behind(&self, after: &str) -> Option<String> {
        self.host.settled().err().map(|left| format!("{after} left on the host:\n{left}"))
    }

    /// Makes them, as many at once as the manner says, and returns a line for each that got through.
    fn each<'a>(&self, attacks: impl IntoIterator<Item = &'a Attack>, manner: Manner) -> Vec<String> {
        let attacks: Vec<&Attack> = attacks.into_iter().collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut red = Vec::new();
            while let Some(attack) = attacks.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(reason) = attack.made_on(self, manner) {
                    red.push(format!("{} ({}): {reason}", attack.id, attack.tries));
                }
            }
            red
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..manner.at_once()).map(|_| scope.spawn(work)).collect();
            let lines = workers.into_iter().map(|worker| worker.join().expect("a worker's list"));
            lines.collect::<Vec<_>>().concat()
        })
    }

    fn beside_load<T>(&self, loaded: bool, work: impl FnOnce() -> T) -> T {
        if !loaded {
            return work();
        }
        let over = AtomicBool::new(false);
        let spin = || {
            let request = json!({
                "image": self.image, "cmd": "python3", "args": ["-c", LOAD_SCRIPT], "limits": { "cpus": 0.2 },
            });
            while !over.load(Ordering::Relaxed) {
                let run = Request::new(self.address, "POST", "/runs").json(&request).send().expect(200);
                assert_eq!((&run["outcome"], &run["exit_code"]), (&json!("exited"), &json!(0)), "{run:#}");
            }
        };
        std::thread::scope(|scope| {
            let load: Vec<_> = (0..LOAD).map(|_| scope.spawn(spin)).collect();
            // Each has begun by then; an attack that comes first is one beside less load, no more.
            std::thread::sleep(Duration::from_millis(300));
            let result = work();
            over.store(true, Ordering::Relaxed);
            load.into_iter().for_each(|load| load.join().expect("runs that do no harm end well"));
            result
        })
    }
}

impl Attack {
    fn made_on(&self, target: &Target, manner: Manner) -> Result<(), String> {
        let mut request: Value = serde_json::from_str(self.request).expect("an attack's request is JSON");
        let script = format!("{PRELUDE}\n{}\n{}", target.canary.prelude(), self.script);
        request["image"] = json!(target.image);
        // Time enough on a slow machine, where it is not the clock that is tested.
        for name in ["wall_time_ms", "cpu_time_ms"] {
            if request["limits"].get(name).is_none() {
                request["limits"][name] = json!(120_000);
            }
        }
        if request.get("cmd").is_none() {
            request["cmd"] = json!("python3");
            request["args"] = json!(["-u", "-c", script]);
        }
        let asked = Request::new(target.address, "POST", "/runs").json(&request);
        let response = asked.patience(Duration::from_secs(320)).try_send();
        let response = response.map_err(|error| format!("the server does not answer: {error}"))?;
        if response.status != 200 {
            return Err(format!("status {}: {}", response.status, response.text()));
        }
        let run = response.json();
        let ended = run["outcome"].as_str().unwrap_or_default();
        let shown = run["stdout"].as_str().unwrap_or_default().trim();
        let zero = ended != "exited" || run["exit_code"] == 0;
        if !self.ends.contains(&ended) || !zero {
            let stderr = run["stderr"].as_str().unwrap_or_default();
            return Err(format!("ended as {}: {shown:?} {stderr:?}", run["message"]));
        }
        if !self.shows.contains(&shown) {
            return Err(format!("showed {shown:?} instead of one of {:?}", self.shows));
        }
        let took = run["usage"]["wall_time_ms"].as_f64().unwrap_or_default();
        if took > self.within_ms * manner.slower() {
            return Err(format!("took {took} ms"));
        }
        Ok(())
    }
}
