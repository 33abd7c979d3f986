//! The store of runs by itself: what it keeps, what it forgets, and what it still knows when it is opened again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{EmbeddedStore, Keep, Key, Known, Page, Promise, RunStore, Wanted};
use jiff::Timestamp;
use run::{
    Command, Encoding, ImageRef, Limits, Outcome, Output, OutputEncoding, Run, RunId, RunSpec, RunState,
    Stream, Timings,
};

const EVER: Duration = Duration::from_secs(3600);

fn keep() -> Keep {
    Keep { runs: 1000, bytes: 1 << 30, batches: 1000, time: EVER, keys: EVER }
}

fn store(keep: Keep) -> EmbeddedStore {
    EmbeddedStore::in_memory(keep).unwrap()
}

fn run(text: &[u8]) -> Arc<Run> {
    Arc::new(Run {
        id: RunId(uuid::Uuid::now_v7()),
        principal: Default::default(),
        state: RunState::Finished,
        queue_position: None,
        outcome: Some(Outcome::Exited { code: 0 }),
        problem: None,
        stdout: Output { bytes: text.to_vec().into(), total: text.len() as u64 + 1 },
        stderr: Output::default(),
        outputs: Arc::default(),
        outputs_missing: Vec::new(),
        usage: None,
        limits: Limits::default(),
        limit_hits: Vec::new(),
        not_enforced: Vec::new(),
        image: ImageRef { reference: "x".into(), digest: None },
        timings: Timings::default(),
        created_at: Timestamp::now(),
        started_at: None,
        finished_at: None,
        output_encoding: OutputEncoding::Auto,
        labels: [("a".to_owned(), "b".to_owned())].into(),
    })
}

fn spec() -> RunSpec {
    RunSpec::new("x", Command::parse(Some("p".into()), Vec::new()).unwrap())
}

fn promise(key: Option<Key>) -> Promise {
    Promise { run: run(b""), spec: spec().into(), key }
}

fn key(name: &str, body: u8) -> Key {
    Key { owner: "o".into(), name: name.into(), body: [body; 32] }
}

fn page(store: &EmbeddedStore, before: Option<RunId>, runs: usize) -> Page {
    store.page(Wanted { before, runs, bytes: u64::MAX, matches: &|_| true }).unwrap()
}

fn ids(page: &Page) -> Vec<RunId> {
    page.runs.iter().map(|run| run.run.id).collect()
}

#[tokio::test]
async fn a_finished_run_is_known_at_once_and_the_same_after_it_was_written() {
    let store = store(keep());
    let text = vec![b'x'; 200_000];
    let kept = run(&text);
    store.remember(Arc::clone(&kept));
    assert!(store.get(kept.id).unwrap().is_some_and(|run| run.loaded));
    // Whoever waits is told when everything before is written, too.
    store.kept(run(b"")).await.unwrap();
    let found = store.get(kept.id).unwrap().unwrap();
    assert!(!found.loaded);
    assert_eq!(
        (found.stdout.bytes, found.stdout.total, found.stdout.encoding),
        (200_000, 200_001, Encoding::Utf8)
    );
    assert_eq!(found.run.labels, kept.labels);
    assert_eq!(found.run.outcome, kept.outcome);
    for (offset, most, length) in [
        (0, 10, 10),
        (65_530, 100, 100),
        (0, 200_000, 200_000),
        (199_990, 100, 10),
        (200_000, 10, 0),
        (1 << 60, 10, 0),
    ] {
        let part = store.read(kept.id, Stream::Stdout, offset, most).unwrap();
        assert_eq!(part.len(), length, "{offset} {most}");
        assert!(part.iter().all(|byte| *byte == b'x'));
    }
}

#[tokio::test]
async fn what_is_found_after_reopening_is_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs");
    let (first, second) = (run(b"hello"), run(b"\xff"));
    let (waiting, started, ended) = (promise(Some(key("k", 1))), promise(None), promise(None));
    let at = Timestamp::from_microsecond(1_000_000).unwrap();
    {
        let store = EmbeddedStore::open(&path, keep()).unwrap();
        store.remember(Arc::clone(&first));
        for promise in [&waiting, &started, &ended] {
            assert_eq!(store.promise(promise.clone()).await.unwrap(), None);
        }
        store.started(started.run.id, at).await.unwrap();
        store.started(ended.run.id, at).await.unwrap();
        store.kept(Arc::clone(&ended.run)).await.unwrap();
        store.remember(Arc::clone(&second));
        store.torn_down(second.id, 1.5);
    }
    let store = EmbeddedStore::open(&path, keep()).unwrap();
    assert_eq!(store.read(first.id, Stream::Stdout, 0, 99).unwrap(), b"hello");
    let found = store.get(second.id).unwrap().unwrap();
    assert_eq!((found.run.timings.teardown_ms, found.stdout.encoding), (Some(1.5), Encoding::Base64));
    let unfinished = store.unfinished().unwrap();
    let told: Vec<_> = unfinished.iter().map(|run| (run.run.id, run.started_at)).collect();
    assert_eq!(told, [(waiting.run.id, None), (started.run.id, Some(at))]);
    assert_eq!(unfinished[0].spec, spec());
    let known = store.known(&key("k", 1)).unwrap();
    assert_eq!(known, Some(Known { id: waiting.run.id, same: true }));
    assert_eq!(ids(&page(&store, None, 10)), [ended.run.id, second.id, first.id]);
}

#[tokio::test]
async fn a_key_stands_for_one_run_until_its_time_is_over() {
    let store = store(Keep { keys: Duration::from_millis(300), ..keep() });
    let first = promise(Some(key("k", 1)));
    assert_eq!(store.promise(first.clone()).await.unwrap(), None);
    for (asked, expected) in [
        (key("k", 1), Some(Known { id: first.run.id, same: true })),
        (key("k", 2), Some(Known { id: first.run.id, same: false })),
        (Key { owner: "other".into(), ..key("k", 1) }, None),
        (key("l", 1), None),
    ] {
        assert_eq!(store.known(&asked).unwrap(), expected, "{asked:?}");
        let again = promise(Some(asked.clone()));
        assert_eq!(store.promise(again).await.unwrap(), expected, "{asked:?}");
    }
    tokio::time::sleep(Duration::from_millis(310)).await;
    assert_eq!(store.known(&key("k", 1)).unwrap(), None);
    assert_eq!(store.promise(promise(Some(key("k", 2)))).await.unwrap(), None);
}

/// Many at once, of whom one may win: the file decides, not who asked it first.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_with_one_key_one_run_is_made() {
    let store = Arc::new(store(keep()));
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.promise(promise(Some(key("k", 1)))).await.unwrap() })
        })
        .collect();
    let mut made = 0;
    for answer in asking {
        made += usize::from(answer.await.unwrap().is_none());
    }
    assert_eq!((made, store.unfinished().unwrap().len()), (1, 1));
}

#[tokio::test]
async fn the_oldest_go_first_when_there_are_too_many_or_too_large_ones() {
    let store = store(Keep { runs: 3, bytes: 100, ..keep() });
    let runs: Vec<_> = (0..5).map(|_| run(&[0; 30])).collect();
    for run in &runs {
        store.kept(Arc::clone(run)).await.unwrap();
    }
    assert_eq!(ids(&page(&store, None, 10)), [runs[4].id, runs[3].id, runs[2].id]);
    let large = run(&[0; 80]);
    store.kept(Arc::clone(&large)).await.unwrap();
    assert_eq!(ids(&page(&store, None, 10)), [large.id]);
    assert_eq!(store.read(runs[4].id, Stream::Stdout, 0, 10).unwrap(), b"");
}

#[tokio::test]
async fn what_is_too_old_is_gone_and_what_has_a_key_is_kept_as_long_as_that() {
    let store = store(Keep { time: Duration::from_millis(50), ..keep() });
    let (plain, keyed) = (promise(None), promise(Some(key("k", 1))));
    for promise in [&plain, &keyed] {
        store.promise(promise.clone()).await.unwrap();
        store.kept(Arc::clone(&promise.run)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(store.get(plain.run.id).unwrap().is_none());
    assert_eq!(ids(&page(&store, None, 10)), [keyed.run.id]);
}

#[tokio::test]
async fn a_forgotten_run_leaves_nothing() {
    let store = store(keep());
    let (first, second) = (run(&[1; 100_000]), run(b""));
    store.remember(Arc::clone(&first));
    store.kept(Arc::clone(&second)).await.unwrap();
    store.forget(first.id).await.unwrap();
    store.forget(first.id).await.unwrap();
    assert!(store.get(first.id).unwrap().is_none());
    assert_eq!(store.read(first.id, Stream::Stdout, 0, 10).unwrap(), b"");
    assert_eq!(ids(&page(&store, None, 10)), [second.id]);
    // One that is not written yet is forgotten as well.
    let third = run(b"x");
    store.remember(Arc::clone(&third));
    store.forget(third.id).await.unwrap();
    assert!(store.get(third.id).unwrap().is_none());
}

#[tokio::test]
async fn pages_follow_one_another_without_a_gap_written_or_not() {
    let store = store(keep());
    let runs: Vec<_> = (0..25).map(|number| run(&vec![0; 10 * (1 + number % 2)])).collect();
    for run in &runs[..15] {
        store.remember(Arc::clone(run));
    }
    store.kept(run(b"")).await.unwrap();
    for run in &runs[15..] {
        store.remember(Arc::clone(run));
    }
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = page(&store, before, 4);
        assert!(page.runs.len() <= 4);
        seen.extend(ids(&page));
        before = page.until;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 26);
    assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");
    let large = |run: &Run| run.stdout.total == 21;
    let wanted = Wanted { before: None, runs: 100, bytes: 65, matches: &large };
    let page = store.page(wanted).unwrap();
    assert_eq!(page.runs.len(), 3);
    assert!(page.until.is_some());
}

#[tokio::test]
async fn a_filter_that_few_pass_takes_several_pages() {
    let store = store(Keep { runs: 10_000, ..keep() });
    for _ in 0..2_500 {
        store.remember(run(b""));
    }
    store.kept(run(b"")).await.unwrap();
    let none = |_: &Run| false;
    let first = store.page(Wanted { before: None, runs: 10, bytes: 1, matches: &none }).unwrap();
    assert!(first.runs.is_empty() && first.until.is_some());
    let second = store.page(Wanted { before: first.until, runs: 10, bytes: 1, matches: &none }).unwrap();
    assert!(second.runs.is_empty() && second.until.is_none());
}

#[tokio::test]
async fn many_promises_share_a_sync_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(EmbeddedStore::open(&folder.path().join("runs"), keep()).unwrap());
    let alone = Instant::now();
    store.promise(promise(None)).await.unwrap();
    let alone = alone.elapsed();
    let together = Instant::now();
    let all: Vec<_> = (0..200)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.promise(promise(None)).await.unwrap() })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
    let together = together.elapsed();
    assert!(together < alone * 50 + Duration::from_millis(200), "{together:?} for 200, {alone:?} for one");
}

#[tokio::test]
async fn nobody_waits_for_the_disk_to_remember_a_run() {
    let store = store(keep());
    let began = Instant::now();
    for _ in 0..1000 {
        store.remember(run(b"x"));
    }
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
}

#[tokio::test]
async fn so_much_that_is_not_written_yet_that_no_more_should_come_is_told() {
    let store = store(keep());
    let large = vec![b'x'; 33 << 20];
    store.remember(run(&large));
    assert!(store.is_full());
    tokio::time::timeout(Duration::from_secs(20), store.room()).await.expect("room");
    assert!(!store.is_full());
}

#[test]
fn a_file_of_another_format_is_refused_in_words() {
    use redb::{Database, TableDefinition};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs");
    let database = Database::create(&path).unwrap();
    let change = database.begin_write().unwrap();
    const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    change.open_table(META).unwrap().insert("format", 99).unwrap();
    change.commit().unwrap();
    drop(database);
    let error = EmbeddedStore::open(&path, keep()).unwrap_err();
    assert!(error.source.to_string().contains("format 99"), "{error}: {}", error.source);
    std::fs::write(&path, "no database at all, but a file of somebody").unwrap();
    assert!(EmbeddedStore::open(&path, keep()).is_err());
}

#[tokio::test]
async fn a_copy_is_of_one_moment_and_promises_are_written_while_it_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs");
    let store = EmbeddedStore::open(&path, keep()).unwrap();
    let text = vec![b'x'; 1 << 20];
    for _ in 0..48 {
        store.kept(run(&text)).await.unwrap();
    }
    // How fast a disk is nobody knows: it is tried until a few promises were quicker than a copy.
    for attempt in 0.. {
        let waiting = promise(Some(key(&format!("before {attempt}"), 1)));
        store.promise(waiting.clone()).await.unwrap();
        let copying = store.copy();
        tokio::pin!(copying);
        let mut later = Vec::new();
        let copy = loop {
            let promise = promise(None);
            let id = promise.run.id;
            tokio::select! {
                biased;
                copy = &mut copying => break copy.unwrap(),
                known = store.promise(promise) => assert_eq!(known.unwrap(), None),
            }
            later.push(id);
        };
        let second = folder.path().join("copy");
        std::io::copy(&mut &copy, &mut std::fs::File::create(&second).unwrap()).unwrap();
        let copied = EmbeddedStore::open(&second, keep()).unwrap();
        assert_eq!(page(&copied, None, 100).runs.len(), 48);
        let known = copied.known(&key(&format!("before {attempt}"), 1)).unwrap();
        assert_eq!(known, Some(Known { id: waiting.run.id, same: true }));
        let there: Vec<_> = copied.unfinished().unwrap().iter().map(|unfinished| unfinished.run.id).collect();
        assert!(there.contains(&waiting.run.id));
        assert!(folder.path().read_dir().unwrap().count() == 2, "a copy has no name");
        // Had the one who writes made the copy, only what came before it would be there, and that is in it.
        if later.iter().filter(|id| !there.contains(id)).count() > 2 {
            return;
        }
        assert!(attempt < 50, "no promise is written while a copy is made");
    }
}
