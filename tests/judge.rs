//! A judge's day: submissions in C++ and Python of every kind, at full load. Every verdict is right, and each is
//! compiled once. Every check of a change has a small one; `cargo xtask soak judge` has the whole.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Daemon, Value, json};

/// How many submissions are sent at once.
const CLIENTS: usize = 14;

/// What a submission does for the sum of two numbers, in both languages, and its verdicts for the first test and
/// for the others.
struct Kind {
    cpp: &'static str,
    python: &'static str,
    verdicts: [&'static str; 2],
}

const KINDS: [Kind; 7] = [
    Kind {
        cpp: "long a, b; std::cin >> a >> b; std::cout << a + b << std::endl;",
        python: "print(sum(map(int, input().split())))",
        verdicts: ["accepted", "accepted"],
    },
    Kind {
        cpp: "int a, b; std::cin >> a >> b; std::cout << (a == 1 ? 3 : 0) << std::endl;",
        python: "print(3)",
        verdicts: ["accepted", "wrong_answer"],
    },
    Kind {
        cpp: "volatile long x = 0; for (;;) x++;",
        python: "while True: pass",
        verdicts: ["time_limit", "time_limit"],
    },
    Kind {
        cpp: "std::vector<char*> all; for (;;) { char* p = new char[1 << 20]; for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1; \
              all.push_back(p); }",
        python: "all = []\nwhile True: all.append(bytearray(1 << 20))",
        verdicts: ["memory_limit", "memory_limit"],
    },
    Kind {
        cpp: "int* p = nullptr; std::cout << 3 << std::endl; *(volatile int*)p = 1;",
        python: "import os\nprint(3, flush=True)\nos.abort()",
        verdicts: ["runtime_error", "runtime_error"],
    },
    Kind {
        cpp: "for (;;) std::cout << \"flood\";",
        python: "while True: print('flood')",
        verdicts: ["output_limit", "output_limit"],
    },
    Kind {
        cpp: "std::cout << 3 << std::endl; return 1;",
        python: "print(3)\nraise SystemExit(1)",
        verdicts: ["runtime_error", "runtime_error"],
    },
];

/// A size that can be made larger from outside.
fn size(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
}

/// The sum of 1 and 2, one that does not fit into 32 bits, and as many more as are wanted.
fn tests(number: usize) -> Value {
    let test = |number: usize| {
        let (a, b) = match number {
            0 => (1, 2),
            1 => (2_000_000_000, 2_000_000_000),
            _ => (number as u64, number as u64 * 1_000_003),
        };
        json!({ "stdin": format!("{a} {b}\n"), "expect": { "stdout": format!("{}\n", a + b), "compare": "tokens" } })
    };
    (0..number).map(test).collect()
}

fn submission(kind: &Kind, cpp: bool, number: usize) -> Value {
    let limits = json!({ "cpu_time_ms": 400, "wall_time_ms": 60_000, "memory_bytes": 64 << 20, "stdout_bytes": 100_000 });
    let mut body = json!({ "image": "host", "workdir": "/work", "tests": tests(number) });
    if cpp {
        let code = format!("#include <iostream>\n#include <vector>\nint main() {{ {} }}\n", kind.cpp);
        body["files"] = json!([{ "path": "main.cpp", "text": code }]);
        let compile = json!({ "cpu_time_ms": 60_000, "wall_time_ms": 120_000, "memory_bytes": 512 << 20 });
        body["prepare"] =
            json!({ "cmd": "g++", "args": ["-O1", "-o", "main", "main.cpp"], "limits": compile });
        body["run"] = json!({ "cmd": "./main", "limits": limits });
    } else {
        body["files"] = json!([{ "path": "main.py", "text": kind.python }]);
        body["run"] = json!({ "cmd": "python3", "args": ["main.py"], "limits": limits });
    }
    body
}

fn verdicts(batch: &Value) -> Vec<&str> {
    let tests = batch["tests"].as_array().expect("tests").iter();
    tests.map(|test| test["verdict"].as_str().unwrap_or("none")).collect()
}

/// How many runs have ended.
fn ended(daemon: &Daemon) -> f64 {
    let text = daemon.get("/metrics").text();
    let counts = text.lines().filter(|line| line.starts_with("sandglass_runs_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Judges all of them, says how long it took, and checks each verdict and how many runs there were.
fn day(daemon: &Daemon, submissions: usize, number: usize) {
    let (next, counts) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<String, usize>::new()));
    let (before, began) = (ended(daemon), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= submissions {
                        return;
                    }
                    let (kind, cpp) = (&KINDS[place / 2 % KINDS.len()], place % 2 == 0);
                    let request = daemon.request("POST", "/batches").json(&submission(kind, cpp, number));
                    let done = request.patience(Duration::from_secs(280)).send().expect(200);
                    let [first, others] = kind.verdicts;
                    let mut expected = vec![others; number];
                    expected[0] = first;
                    let code = if cpp { kind.cpp } else { kind.python };
                    assert_eq!(verdicts(&done), expected, "{code}: {done:#}");
                    let mut counts = counts.lock().expect("no one panics");
                    expected.iter().for_each(|verdict| *counts.entry((*verdict).into()).or_default() += 1);
                }
            });
        }
    });
    let took = began.elapsed().as_secs_f64();
    let runs = ended(daemon) - before;
    let counts = counts.into_inner().expect("no one panics");
    println!(
        "{submissions} submissions, {runs} runs in {took:.1} s, {:.0} a second: {counts:?}",
        runs / took
    );
    // One run for each compilation, and one for each test of each submission.
    assert_eq!(runs as usize, submissions.div_ceil(2) + submissions * number);
}

#[test]
fn a_judge_s_day() {
    let submissions = size("SANDGLASS_JUDGE_SUBMISSIONS", 2 * KINDS.len());
    let number = size("SANDGLASS_JUDGE_TESTS", 2);
    let daemon = Daemon::builder().host_image().flag("--log", "warn").start();
    let broken = json!({
        "image": "host", "files": [{ "path": "main.cpp", "text": "int main() { return nothing; }" }],
        "prepare": { "cmd": "g++", "args": ["main.cpp"] }, "tests": tests(2),
    });
    let done = daemon.post("/batches", &broken).expect(200);
    assert_eq!(done["verdict"], "compile_error", "{done:#}");
    assert!(done["prepare"]["stderr"].as_str().is_some_and(|said| said.contains("nothing")), "{done:#}");
    let host = daemon.host();
    for _ in 0..size("SANDGLASS_JUDGE_DAYS", 1) {
        day(&daemon, submissions, number);
        host.assert_unchanged();
    }
}

/// A batch's own bookkeeping must not be what bounds it. The bound is far below what is promised, because a
/// test machine has other things to do; what is measured is said. `cargo xtask bench batches` takes its time.
#[test]
fn many_short_tests_go_about_as_fast_as_single_runs() {
    let (runs, rounds) = (size("SANDGLASS_RATE_RUNS", 200), size("SANDGLASS_RATE_ROUNDS", 1));
    let daemon = Daemon::builder().host_image().flag("--log", "warn").start();
    let slots = daemon.get("/info").expect(200)["slots"]["total"].as_u64().expect("a number") as usize;
    let single = json!({ "image": "host", "cmd": "true" });
    let test = json!({ "expect": { "stdout": "" } });
    let body = json!({ "image": "host", "run": { "cmd": "true" }, "tests": vec![test; runs] });
    let alone = || {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..slots {
                scope.spawn(|| (0..runs / slots).for_each(|_| drop(daemon.run(&single))));
            }
        });
        (runs / slots * slots) as f64 / begun.elapsed().as_secs_f64()
    };
    let batch = || {
        let begun = Instant::now();
        let request = daemon.request("POST", "/batches").json(&body).patience(Duration::from_secs(200));
        assert_eq!(request.send().expect(200)["verdict"], "accepted");
        runs as f64 / begun.elapsed().as_secs_f64()
    };
    alone();
    let mut ratios = Vec::new();
    for round in 0..rounds {
        // Neither is always the first.
        let (alone, batch) = if round % 2 == 0 {
            let alone = alone();
            (alone, batch())
        } else {
            let batch = batch();
            (alone(), batch)
        };
        println!("round {round}: {alone:.0} runs a second alone, {batch:.0} as one batch of {runs}");
        ratios.push(batch / alone);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    println!(
        "batch / alone, {rounds} rounds, {slots} slots: median {median:.3}, from {least:.3} to {most:.3}"
    );
    assert!(median > 0.5, "a batch goes at {median:.2} of the rate of single runs");
}
