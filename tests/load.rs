//! Many clients at once that do what clients do: wait, hang up, cancel, ask again under a key, while the server is
//! killed once and stopped once. Every run that was acknowledged has one result, nothing runs twice, and nothing is
//! left. Every check of a change has a short one; `cargo xtask soak clients` takes ten minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use support::marked::{Marked, Random, Watch};
use support::{Daemon, Request, Response, Value, host, json, within};

/// A machine that does other things takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What clients were told, and what they have asked for.
#[derive(Default)]
struct Told {
    /// Runs by id; whether somebody has cancelled it.
    runs: Mutex<BTreeMap<String, bool>>,
    batches: Mutex<BTreeSet<String>>,
    /// Answers by what they were.
    answers: Mutex<BTreeMap<String, usize>>,
    number: AtomicUsize,
}

impl Told {
    fn next(&self) -> usize {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    fn count(&self, what: &str) {
        *self.answers.lock().expect("no one panics").entry(what.to_owned()).or_default() += 1;
    }

    fn run(&self, id: &Value, cancelled: bool) {
        let id = id.as_str().expect("an id").to_owned();
        *self.runs.lock().expect("no one panics").entry(id).or_default() |= cancelled;
    }
}

/// One client: what it asks for, and of whom.
struct Client<'a> {
    daemon: &'a RwLock<Daemon>,
    told: &'a Told,
    random: Random,
}

impl Client<'_> {
    fn request(&self, method: &str, path: &str) -> Request {
        self.daemon.read().expect("no one panics").request(method, path)
    }

    fn post(&self, path: &str, body: &Value) -> Request {
        self.request("POST", path).json(body).patience(Duration::from_secs(60))
    }

    fn marked(&self) -> Marked {
        Marked::new(0.02, self.told.next())
    }

    /// An answer of the server's, or nothing where it went away. It has no other faults.
    fn answer(&self, what: &str, request: Request) -> Option<Response> {
        let Ok(answer) = request.try_send() else {
            self.told.count(&format!("{what}: no answer"));
            return None;
        };
        self.told.count(&format!("{what}: {}", answer.status));
        match answer.status {
            200 | 202 => Some(answer),
            429 | 503 => {
                std::thread::sleep(Duration::from_millis(100));
                None
            }
            // A launcher that dies with its server, as a waiting client sees it.
            500 if answer.text().contains("/problems/interrupted") => None,
            status => panic!("{what}: {status} {}", answer.text()),
        }
    }

    fn act(&mut self) {
        match self.random.below(6) {
            0 => self.wait(),
            1 => self.hang_up(),
            2 => drop(self.promise()),
            3 => self.cancel(),
            4 => self.insist(),
            _ => self.judge(),
        }
    }

    fn wait(&self) {
        if let Some(answer) = self.answer("wait", self.post("/runs", &self.marked().body())) {
            let run = answer.json();
            let outcome = run["outcome"].as_str().expect("an outcome");
            assert!(outcome == "exited" || outcome == "cancelled", "{run:#}");
        }
    }

    fn hang_up(&mut self) {
        let pending = self.post("/runs", &self.marked().body()).begin();
        std::thread::sleep(Duration::from_millis(self.random.below(30)));
        drop(pending);
        self.told.count("hang up");
    }

    fn promise(&self) -> Option<String> {
        let request = self.post("/runs", &self.marked().body()).header("Prefer", "respond-async");
        let run = self.answer("promise", request)?.json();
        self.told.run(&run["id"], false);
        Some(run["id"].as_str().expect("an id").to_owned())
    }

    fn cancel(&self) {
        let Some(id) = self.promise() else { return };
        self.told.run(&json!(id), true);
        self.answer(
            "cancel",
            self.request("DELETE", &format!("/runs/{id}")).patience(Duration::from_secs(60)),
        );
    }

    /// The same under the same key until there is an answer, with clients that go away in between.
    fn insist(&mut self) {
        let (body, key) = (self.marked().body(), format!("run-{}", self.told.next()));
        let mut ids = BTreeSet::new();
        for attempt in 0..60 {
            let request = self.post("/runs", &body).header("Idempotency-Key", &key);
            if attempt == 0 && self.random.below(2) == 0 {
                let pending = request.begin();
                std::thread::sleep(Duration::from_millis(self.random.below(20)));
                drop(pending);
                continue;
            }
            if let Some(answer) = self.answer("insist", request) {
                let run = answer.json();
                self.told.run(&run["id"], false);
                ids.insert(run["id"].to_string());
                if attempt > 1 {
                    break;
                }
            }
        }
        assert!(ids.len() <= 1, "one key made {ids:?}");
    }

    fn judge(&self) {
        let (prepare, key) = (self.marked(), format!("batch-{}", self.told.next()));
        let test = || json!({ "args": self.marked().args(), "expect": { "stdout": "" } });
        let body = json!({
            "image": "host", "prepare": { "cmd": "sleep", "args": prepare.args() },
            "run": { "cmd": "sleep" }, "tests": [test(), test()],
        });
        for _ in 0..60 {
            let request = self.post("/batches", &body).header("Idempotency-Key", &key);
            if let Some(answer) = self.answer("judge", request) {
                let id = answer.json()["id"].as_str().expect("an id").to_owned();
                self.told.batches.lock().expect("no one panics").insert(id);
                return;
            }
        }
    }
}

/// Whether any run or batch is under way.
fn is_idle(daemon: &Daemon) -> bool {
    let none = |path: &str, what: &str| daemon.get(path).json()[what].as_array().is_some_and(Vec::is_empty);
    let states = ["queued", "preparing", "running"];
    states.iter().all(|state| none(&format!("/runs?state={state}&limit=1"), "runs"))
        && none("/batches?state=running&limit=1", "batches")
        && none("/batches?state=preparing&limit=1", "batches")
}

fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
}

#[test]
fn every_acknowledged_run_has_one_result_whatever_clients_do_and_whenever_the_server_ends() {
    let clients = size("SANDGLASS_LOAD_CLIENTS", 16);
    let third = Duration::from_millis(size("SANDGLASS_LOAD_SECONDS", 6) * 1000 / 3);
    let mut random = Random::new();
    let builder = Daemon::builder().host_image().flag("--slots", 3).flag("--prepared-max", 0);
    let builder =
        builder.flag("--kept-runs", 1_000_000).flag("--kept-batches", 100_000).flag("--log", "warn");
    let daemon = RwLock::new(builder.start());
    let (told, over, watch) = (Told::default(), AtomicBool::new(false), Watch::begin());
    let mut launchers = Vec::new();
    let mut before = None;
    std::thread::scope(|scope| {
        for _ in 0..clients {
            let random = random.fork();
            let mut client = Client { daemon: &daemon, told: &told, random };
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    client.act();
                }
            });
        }
        for kill in [true, false] {
            std::thread::sleep(third);
            // Clients find it gone, and wait here for the next one.
            let mut here = daemon.write().expect("no one panics");
            launchers.push(here.launcher_pid());
            if kill {
                here.kill9();
            } else {
                assert!(here.stop().success());
            }
            let next = here.builder_of().clone().start();
            drop(std::mem::replace(&mut *here, next));
            if !kill {
                within(PATIENCE, "what was left to it is done", || is_idle(&here).then_some(()));
                let trash = here.data_dir().join("layers/trash");
                within(PATIENCE, "the batches of before are removed", || {
                    std::fs::read_dir(&trash).is_ok_and(|mut left| left.next().is_none()).then_some(())
                });
                before = Some((here.host(), host::descriptors(here.pid()).len()));
            }
        }
        std::thread::sleep(third);
        over.store(true, Ordering::Relaxed);
    });
    let began = Instant::now();
    let daemon = daemon.into_inner().expect("no one panics");
    within(PATIENCE, "everything is done", || is_idle(&daemon).then_some(()));
    println!("the last was done after {:.1} s", began.elapsed().as_secs_f64());

    let mut ends = BTreeMap::<String, usize>::new();
    for (id, cancelled) in told.runs.lock().expect("no one panics").iter() {
        let run = daemon.show(id);
        let outcome = run["outcome"].as_str().expect("every acknowledged run has ended");
        *ends.entry(outcome.to_owned()).or_default() += 1;
        match outcome {
            "exited" => assert_eq!(run["exit_code"], 0, "{run:#}"),
            "sandbox_error" => assert_eq!(run["problem"]["type"], "/problems/interrupted", "{run:#}"),
            "cancelled" => assert!(*cancelled, "nobody has cancelled {run:#}"),
            _ => panic!("{run:#}"),
        }
    }
    for id in told.batches.lock().expect("no one panics").iter() {
        let batch = daemon.get(&format!("/batches/{id}")).expect(200);
        let verdict = batch["verdict"].as_str().expect("every acknowledged batch has ended");
        *ends.entry(format!("batch: {verdict}")).or_default() += 1;
        assert!(verdict == "accepted" || !batch["problem"].is_null(), "{batch:#}");
    }
    println!("answers: {:#?}", told.answers.lock().expect("no one panics"));
    println!("{clients} clients, ends: {ends:#?}");
    println!("{} of {} programs were seen, none of them twice", watch.end(), told.next());
    let (host, descriptors) = before.expect("it was stopped once");
    host.assert_unchanged();
    within(PATIENCE, "descriptors to be closed", || {
        (host::descriptors(daemon.pid()).len() <= descriptors + 2).then_some(())
    });
    for launcher in launchers {
        within(PATIENCE, "control groups to be gone", || host::cgroups_of(launcher).is_empty().then_some(()));
    }
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
