//! A run's life with everything outside the engine played by scripts.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{
    Config, Control, EmbeddedStore, Engine, Images, Keep, Key, Known, Launch, LaunchError, Launched,
    Launcher, NoObserver, Page, Promise, RunStore, StoreError, SubmitError, Taken, Unfinished, Wanted,
};
use futures_util::future::BoxFuture;
use image::{ImageConfig, ImageError, Lease, Rootfs};
use jiff::Timestamp;
use run::{
    Command, Exit, KilledFor, OnOutputLimit, Outcome, PrincipalName, Pull, RunId, RunSpec, RunState,
    SetupFailure, Stream, Usage,
};
use sandbox::protocol::{Began, Event, Finished};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, mpsc};

/// Any image is there, except those named `missing`.
struct AnyImage;

impl Images for AnyImage {
    fn acquire<'a>(
        &'a self,
        _: &'a PrincipalName,
        reference: &'a str,
        _: Pull,
    ) -> BoxFuture<'a, Result<Lease, ImageError>> {
        Box::pin(async move {
            if reference == "missing" {
                return Err(ImageError::NotFound { reference: reference.into() });
            }
            if reference == "slow" {
                std::future::pending::<()>().await;
            }
            let config = ImageConfig::default();
            Ok(Lease::unguarded(
                reference,
                Some("sha256:ab".into()),
                Rootfs::Layers(["ab".into()].into()),
                config,
            ))
        })
    }
}

/// What one launched run does.
#[derive(Clone)]
enum Act {
    Say(Event),
    Stdout(&'static str),
    Stderr(&'static str),
    /// Waits until the engine asks for the run's end, then says why it ended.
    DieWhenKilled,
    /// Leaves the outputs open for ever.
    HoldOutputs,
    Close,
}

#[derive(Default)]
struct Script {
    runs: Mutex<VecDeque<Vec<Act>>>,
    lost: Notify,
}

impl Script {
    fn will(self, acts: Vec<Act>) -> Self {
        self.runs.lock().unwrap().push_back(acts);
        self
    }
}

struct ScriptedKeeper {
    events: mpsc::UnboundedReceiver<Event>,
    kills: mpsc::UnboundedSender<KilledFor>,
}

impl Control for ScriptedKeeper {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Event>>> {
        Box::pin(async { Ok(self.events.recv().await) })
    }

    fn kill(&mut self, reason: KilledFor) {
        let _ = self.kills.send(reason);
    }
}

impl Launcher for Script {
    fn launch(&self, _: Launch) -> BoxFuture<'_, Result<Launched, LaunchError>> {
        let acts =
            self.runs.lock().unwrap().pop_front().expect("the test launched more runs than it scripted");
        let (stdout, mut out) = tokio::io::duplex(1 << 16);
        let (stderr, mut err) = tokio::io::duplex(1 << 16);
        let (says, events) = mpsc::unbounded_channel();
        let (kills, mut killed) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut hold = false;
            for act in acts {
                match act {
                    Act::Say(event) => drop(says.send(event)),
                    Act::Stdout(text) => out.write_all(text.as_bytes()).await.unwrap_or(()),
                    Act::Stderr(text) => err.write_all(text.as_bytes()).await.unwrap_or(()),
                    Act::DieWhenKilled => {
                        let reason = killed.recv().await;
                        let _ = says.send(finished(Exit::Signal(9), reason));
                    }
                    Act::HoldOutputs => hold = true,
                    Act::Close => return,
                }
            }
            if hold {
                std::future::pending::<()>().await;
            }
            drop((out, err));
            let _ = says.send(Event::TornDown { teardown_us: 5, clean: true });
        });
        let control = Box::new(ScriptedKeeper { events, kills });
        Box::pin(async move { Ok(Launched { control, stdout: Box::new(stdout), stderr: Box::new(stderr) }) })
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.lost.notified())
    }
}

fn finished(exit: Exit, killed_for: Option<KilledFor>) -> Event {
    let usage = Usage { wall_time_ms: 1.5, ..Usage::default() };
    Event::Finished(Box::new(Finished {
        exit,
        killed_for,
        oom_kills: 0,
        usage,
        limit_hits: Vec::new(),
        overshoot_us: None,
        began: None,
    }))
}

fn started() -> Act {
    Act::Say(Event::Started(Began { setup_us: 100, ago_us: 0 }))
}

fn exits(code: u8) -> Act {
    Act::Say(finished(Exit::Code(code), None))
}

fn spec(image: &str) -> RunSpec {
    RunSpec::new(image, Command::parse(Some("p".into()), Vec::new()).unwrap())
}

fn engine_with(script: Script, slots: usize, queue_capacity: usize) -> (Engine, Arc<Script>) {
    let script = Arc::new(script);
    let config = Config {
        slots,
        queue_capacity,
        budget: Default::default(),
        not_enforced: vec!["cpus".into()],
        files: None,
    };
    let launcher: Arc<dyn Launcher> = Arc::clone(&script) as _;
    (Engine::new(config, Arc::new(AnyImage), launcher, Arc::new(NoObserver), store()), script)
}

fn store() -> Arc<EmbeddedStore> {
    let keep = Keep {
        runs: 100,
        bytes: 1 << 20,
        batches: 10,
        time: Duration::from_secs(60),
        keys: Duration::from_secs(60),
    };
    Arc::new(EmbeddedStore::in_memory(keep).unwrap())
}

fn engine(script: Script) -> Engine {
    engine_with(script, 1, 10).0
}

async fn run(engine: &Engine, spec: RunSpec) -> Arc<run::Run> {
    engine.submit(spec).unwrap().wait(None).await
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("waited in vain until {what}");
}

#[tokio::test]
async fn a_run_is_carried_from_submitted_to_finished_and_remembered() {
    let acts = vec![started(), Act::Stdout("hello"), Act::Stderr("oh"), exits(3)];
    let engine = engine(Script::default().will(acts));
    let run = run(&engine, spec("alpine")).await;
    assert_eq!(run.outcome, Some(Outcome::Exited { code: 3 }));
    assert_eq!((run.stdout.bytes.as_slice(), run.stderr.bytes.as_slice()), (&b"hello"[..], &b"oh"[..]));
    assert_eq!(run.image.digest.as_deref(), Some("sha256:ab"));
    assert_eq!((run.timings.setup_ms, run.timings.run_ms), (Some(0.1), Some(1.5)));
    assert_eq!(run.not_enforced, ["cpus"]);
    assert!(run.started_at.is_some() && run.finished_at.is_some());
    until("the slot is free", || engine.counts().busy == 0).await;
    let later = engine.get(run.id).await.unwrap().unwrap();
    assert!(later.timings.teardown_ms.is_some());
    assert_eq!(engine.list(None, 10, 100, |_| true).await.unwrap().runs.len(), 1);
    engine.forget(run.id).await.unwrap();
    assert!(engine.get(run.id).await.unwrap().is_none());
}

/// Of a program that ends at once the start is told with the end.
#[tokio::test]
async fn a_start_that_is_told_with_the_end_is_a_start() {
    let Event::Finished(mut end) = finished(Exit::Code(0), None) else { unreachable!() };
    end.began = Some(Began { setup_us: 100, ago_us: 2_000_000 });
    let engine = engine(Script::default().will(vec![Act::Say(Event::Finished(end))]));
    let run = run(&engine, spec("alpine")).await;
    assert_eq!(run.timings.setup_ms, Some(0.1));
    let took = run.finished_at.unwrap().duration_since(run.started_at.unwrap());
    assert!((1.9..60.0).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test]
async fn an_image_that_fails_is_no_verdict_about_the_program() {
    let run = run(&engine(Script::default()), spec("missing")).await;
    assert_eq!(run.outcome.as_ref().unwrap().name(), "image_failed");
    assert_eq!(run.problem.as_ref().unwrap().problem_type, "/problems/image-not-found");
}

#[tokio::test]
async fn an_output_past_its_cap_ends_the_run_and_is_kept_to_the_byte() {
    let acts = vec![started(), Act::Stdout("abcdefgh"), Act::DieWhenKilled];
    let engine = engine(Script::default().will(acts));
    let mut spec = spec("x");
    spec.limits.stdout_bytes = 5;
    let run = run(&engine, spec).await;
    assert_eq!(run.outcome, Some(Outcome::OutputLimit { stream: Stream::Stdout }));
    assert_eq!((run.stdout.bytes.as_slice(), run.stdout.total), (&b"abcde"[..], 8));
}

#[tokio::test]
async fn an_output_past_its_cap_counts_even_when_the_program_had_ended() {
    let acts = vec![started(), Act::Stderr("abcdefgh"), exits(0)];
    let engine = engine(Script::default().will(acts));
    let mut spec = spec("x");
    spec.limits.stderr_bytes = 7;
    let run = run(&engine, spec).await;
    assert_eq!(run.outcome, Some(Outcome::OutputLimit { stream: Stream::Stderr }));
}

#[tokio::test]
async fn what_is_discarded_is_counted_and_kills_nobody() {
    let acts = vec![started(), Act::Stdout("abcdefgh"), exits(0)];
    let engine = engine(Script::default().will(acts));
    let mut spec = spec("x");
    (spec.limits.stdout_bytes, spec.on_output_limit) = (5, OnOutputLimit::Discard);
    let run = run(&engine, spec).await;
    assert_eq!(run.outcome, Some(Outcome::Exited { code: 0 }));
    assert!(run.stdout.truncated());
    assert_eq!(run.stdout.total, 8);
}

#[tokio::test(start_paused = true)]
async fn outputs_that_never_end_do_not_hold_the_answer() {
    let acts = vec![started(), Act::Stdout("x"), Act::HoldOutputs, exits(0)];
    let run = run(&engine(Script::default().will(acts)), spec("x")).await;
    assert_eq!(run.outcome, Some(Outcome::Exited { code: 0 }));
    assert_eq!(run.stdout.bytes.as_slice(), b"x");
}

#[tokio::test]
async fn a_keeper_that_dies_or_fails_is_our_fault() {
    let failure = SetupFailure { step: "mount overlay".into(), error: "no".into() };
    for acts in [vec![started(), Act::Close], vec![Act::Say(Event::Failed(failure))]] {
        let run = run(&engine(Script::default().will(acts)), spec("x")).await;
        assert_eq!(run.outcome.as_ref().unwrap().name(), "sandbox_error");
        assert_eq!(run.problem.as_ref().unwrap().problem_type, "/problems/sandbox-failed");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_cancelled_place_is_free_again() {
    let script = Script::default().will(vec![started(), Act::DieWhenKilled]).will(vec![started(), exits(0)]);
    let (engine, _) = engine_with(script, 1, 1);
    let first = engine.submit(spec("x")).unwrap();
    let second = engine.submit(spec("x")).unwrap();
    assert!(matches!(engine.submit(spec("x")), Err(SubmitError::Busy { .. })));
    let cancelled = engine.cancel(second.id()).await.unwrap().unwrap();
    assert_eq!(cancelled.outcome, Some(Outcome::Cancelled));
    assert!(cancelled.started_at.is_none());
    let third = engine.submit(spec("x")).unwrap();
    let first = engine.cancel(first.id()).await.unwrap().unwrap();
    assert_eq!(first.outcome, Some(Outcome::Cancelled));
    assert_eq!(third.wait(None).await.outcome, Some(Outcome::Exited { code: 0 }));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_run_unless_it_has_its_answer() {
    let script = Script::default().will(vec![started(), Act::DieWhenKilled]).will(vec![started(), exits(0)]);
    let engine = engine(script);
    let run = engine.submit(spec("x")).unwrap();
    until("it runs", || run.run().state == RunState::Running).await;
    drop(run.cancel_on_drop());
    assert_eq!(run.wait(None).await.outcome, Some(Outcome::Cancelled));
    let run = engine.submit(spec("x")).unwrap();
    run.cancel_on_drop().disarm();
    assert_eq!(run.wait(None).await.outcome, Some(Outcome::Exited { code: 0 }));
}

#[tokio::test]
async fn a_run_can_be_cancelled_while_its_image_is_pulled() {
    let engine = engine(Script::default());
    let run = engine.submit(spec("slow")).unwrap();
    until("it prepares", || run.run().state == RunState::Preparing).await;
    assert_eq!(engine.cancel(run.id()).await.unwrap().unwrap().outcome, Some(Outcome::Cancelled));
    until("the slot is free", || engine.counts().busy == 0).await;
}

#[tokio::test(start_paused = true)]
async fn waiting_has_an_end() {
    let engine = engine(Script::default().will(vec![started(), Act::DieWhenKilled]));
    let run = engine.submit(spec("x")).unwrap();
    let waited = run.wait(Some(Duration::from_secs(1))).await;
    assert_ne!(waited.state, RunState::Finished);
    engine.cancel(run.id()).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn draining_refuses_new_runs_and_cancels_what_outlasts_the_deadline() {
    let script = Script::default().will(vec![started(), exits(0)]).will(vec![started(), Act::DieWhenKilled]);
    let engine = engine(script);
    let (short, long) = (engine.submit(spec("x")).unwrap(), engine.submit(spec("x")).unwrap());
    engine.drain(Duration::from_secs(5)).await;
    assert_eq!(short.run().outcome, Some(Outcome::Exited { code: 0 }));
    assert_eq!(long.run().outcome, Some(Outcome::Cancelled));
    assert_eq!(engine.submit(spec("x")).unwrap_err(), SubmitError::Stopping);
}

#[tokio::test]
async fn a_lost_launcher_ends_everything() {
    let script = Script::default().will(vec![started(), Act::DieWhenKilled]);
    let (engine, script) = engine_with(script, 1, 10);
    let (running, queued) = (engine.submit(spec("x")).unwrap(), engine.submit(spec("x")).unwrap());
    until("it runs", || running.run().state == RunState::Running).await;
    script.lost.notify_one();
    engine.launcher_lost().await;
    assert_eq!(queued.wait(None).await.state, RunState::Finished);
    assert_eq!(running.wait(None).await.state, RunState::Finished);
    assert_eq!(engine.submit(spec("x")).unwrap_err(), SubmitError::LauncherLost);
}

/// Reads both outputs to their ends, piece by piece.
async fn read_all(watcher: engine::Watcher, most: usize) -> (Vec<u8>, Vec<u8>) {
    let mut texts = [Vec::new(), Vec::new()];
    for (text, stream) in texts.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
        let mut last = false;
        while !last {
            let from = text.len() as u64;
            let piece = watcher.until(|run| {
                let piece = run.read(stream, from, most);
                (piece.last || !piece.bytes.is_empty()).then_some(piece)
            });
            let piece = piece.await;
            text.extend(piece.bytes);
            last = piece.last;
        }
    }
    let [stdout, stderr] = texts;
    (stdout, stderr)
}

#[tokio::test]
async fn watchers_see_every_state_and_every_byte_once() {
    let acts = vec![started(), Act::Stdout("hello"), Act::Stderr("oh"), Act::DieWhenKilled];
    let engine = engine(Script::default().will(acts));
    let run = engine.submit(spec("x")).unwrap();
    let watcher = engine.watch(run.id()).await.unwrap().unwrap();
    let reading: Vec<_> = [1, 2, 100].map(|most| tokio::spawn(read_all(watcher.clone(), most))).into();
    watcher.until(|run| (run.run().state == RunState::Running).then_some(())).await;
    watcher.until(|run| (run.extent(Stream::Stderr).bytes == 2).then_some(())).await;
    assert!(!watcher.extent(Stream::Stderr).whole);
    engine.cancel(run.id()).await.unwrap().unwrap();
    for reading in reading {
        assert_eq!(reading.await.unwrap(), (b"hello".to_vec(), b"oh".to_vec()));
    }
    // Who comes when it is over sees the same.
    let late = engine.watch(run.id()).await.unwrap().unwrap();
    assert!(late.extent(Stream::Stdout).whole);
    assert_eq!(read_all(late, 3).await, (b"hello".to_vec(), b"oh".to_vec()));
    assert_eq!(watcher.read(Stream::Stdout, 99, 5), engine::Piece { bytes: Vec::new(), last: true });
}

#[tokio::test]
async fn a_run_that_never_started_has_whole_outputs_with_nothing_in_them() {
    let engine = engine(Script::default());
    let run = engine.submit(spec("missing")).unwrap();
    let watcher = run.watch();
    assert_eq!(read_all(watcher, 10).await, (Vec::new(), Vec::new()));
}

/// A store in memory that fails at what it is told to fail at.
#[derive(Debug)]
struct Failing {
    store: Arc<EmbeddedStore>,
    at: &'static str,
}

impl Failing {
    fn fails<T: Send + 'static>(&self, at: &str) -> Option<BoxFuture<'static, Result<T, StoreError>>> {
        let error = StoreError::new("write a run down", io::Error::other("the disk is gone"));
        (self.at == at).then(|| Box::pin(std::future::ready(Err(error))) as BoxFuture<'static, _>)
    }
}

impl RunStore for Failing {
    fn promise(&self, promise: Promise) -> BoxFuture<'_, Result<Option<Known>, StoreError>> {
        self.fails("promise").unwrap_or_else(|| self.store.promise(promise))
    }
    fn known(&self, key: &Key) -> Result<Option<Known>, StoreError> {
        self.store.known(key)
    }
    fn started(&self, id: RunId, at: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        self.fails("started").unwrap_or_else(|| self.store.started(id, at))
    }
    fn kept(&self, run: Arc<run::Run>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.fails("kept").unwrap_or_else(|| self.store.kept(run))
    }
    fn remember(&self, run: Arc<run::Run>) {
        self.store.remember(run);
    }
    fn torn_down(&self, id: RunId, took_ms: f64) {
        self.store.torn_down(id, took_ms);
    }
    fn is_full(&self) -> bool {
        self.store.is_full()
    }
    fn room(&self) -> BoxFuture<'_, ()> {
        self.store.room()
    }
    fn forget(&self, id: RunId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.forget(id)
    }
    fn get(&self, id: RunId) -> Result<Option<engine::Finished>, StoreError> {
        self.store.get(id)
    }
    fn read(&self, id: RunId, stream: Stream, offset: u64, most: usize) -> Result<Vec<u8>, StoreError> {
        self.store.read(id, stream, offset, most)
    }
    fn page(&self, wanted: Wanted<'_>) -> Result<Page, StoreError> {
        self.store.page(wanted)
    }
    fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError> {
        self.store.unfinished()
    }
    fn copy(&self) -> BoxFuture<'_, Result<std::fs::File, StoreError>> {
        self.store.copy()
    }
    fn broken(&self) -> Option<StoreError> {
        self.store.broken()
    }
    fn close(&self) {
        self.store.close();
    }
}

fn engine_over(store: Arc<dyn RunStore>, script: Script) -> Engine {
    let config = Config {
        slots: 1,
        queue_capacity: 10,
        budget: Default::default(),
        not_enforced: Vec::new(),
        files: None,
    };
    Engine::new(config, Arc::new(AnyImage), Arc::new(script), Arc::new(NoObserver), store)
}

async fn promised(engine: &Engine) -> Result<engine::RunHandle, SubmitError> {
    match engine.promise(spec("x"), None).await? {
        Taken::New(handle) => Ok(handle),
        Taken::Known(id) => panic!("{id} is known without a key"),
    }
}

#[tokio::test]
async fn what_cannot_be_written_down_is_neither_promised_nor_started() {
    let failing = |at| Arc::new(Failing { store: store(), at });
    // A launch would be one more than the script has.
    let engine = engine_over(failing("promise"), Script::default());
    assert_eq!(promised(&engine).await.unwrap_err(), SubmitError::Store);
    until("the slot is free", || engine.counts().busy == 0).await;
    assert!(engine.list(None, 10, 100, |_| true).await.unwrap().runs.is_empty());

    let engine = engine_over(failing("started"), Script::default());
    let unstarted = promised(&engine).await.unwrap().wait(None).await;
    assert_eq!(unstarted.outcome.as_ref().unwrap().name(), "sandbox_error");
    until("the slot is free", || engine.counts().busy == 0).await;

    // Who only waits is served by a server whose disk is gone.
    let script = Script::default().will(vec![started(), exits(0)]).will(vec![started(), exits(3)]);
    let engine = engine_over(failing("kept"), script);
    assert_eq!(run(&engine, spec("x")).await.outcome, Some(Outcome::Exited { code: 0 }));
    let ended = promised(&engine).await.unwrap().wait(None).await;
    assert_eq!(ended.outcome, Some(Outcome::Exited { code: 3 }));
}

/// The same store under one engine after the other, as under one server after the other.
#[tokio::test]
async fn the_next_engine_starts_what_had_not_started_and_interrupts_what_had() {
    let store = store();
    let first =
        engine_over(Arc::clone(&store) as _, Script::default().will(vec![started(), Act::DieWhenKilled]));
    let going = promised(&first).await.unwrap();
    until("it runs", || going.run().state == RunState::Running).await;
    let waiting = promised(&first).await.unwrap();
    let unwanted = promised(&first).await.unwrap();
    first.cancel(unwanted.id()).await.unwrap();
    assert_eq!(store.unfinished().unwrap().len(), 2);

    // The first engine is not told: it is as good as dead.
    let second = engine_over(Arc::clone(&store) as _, Script::default().will(vec![started(), exits(7)]));
    second.resume().await.unwrap();
    let interrupted = second.get(going.id()).await.unwrap().unwrap();
    assert_eq!(interrupted.problem.as_ref().unwrap().problem_type, "/problems/interrupted");
    assert!(interrupted.started_at.is_some() && interrupted.finished_at.is_some());
    let resumed = second.wait(waiting.id(), None).await.unwrap().unwrap();
    assert_eq!(resumed.outcome, Some(Outcome::Exited { code: 7 }));
    let cancelled = second.get(unwanted.id()).await.unwrap().unwrap();
    assert_eq!(cancelled.outcome, Some(Outcome::Cancelled));
    assert!(store.unfinished().unwrap().is_empty());
}
