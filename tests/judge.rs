//! A judge's day in small: submissions in C++ and Python of every kind, all at once. Every verdict is right,
//! and each is compiled once.

use std::time::Duration;

use support::{Daemon, Value, json};

/// What a submission does for the sum of two numbers, in both languages, and its verdicts for the two tests.
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

fn tests() -> Value {
    let test = |input: &str, output: &str| json!({ "stdin": input, "expect": { "stdout": output, "compare": "tokens" } });
    json!([test("1 2\n", "3\n"), test("2000000000 2000000000\n", "4000000000\n")])
}

fn submission(kind: &Kind, cpp: bool) -> Value {
    let limits = json!({ "cpu_time_ms": 700, "wall_time_ms": 30_000, "memory_bytes": 64 << 20, "stdout_bytes": 100_000 });
    let mut body = json!({ "image": "host", "workdir": "/work", "tests": tests() });
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

#[test]
fn a_judge_s_day_in_small() {
    let daemon = Daemon::start();
    let judge = |kind: &Kind, cpp: bool| {
        let request = daemon.request("POST", "/batches").json(&submission(kind, cpp));
        let done = request.patience(Duration::from_secs(280)).send().expect(200);
        let verdicts: Vec<&str> = done["tests"]
            .as_array()
            .expect("tests")
            .iter()
            .map(|test| test["verdict"].as_str().unwrap_or("none"))
            .collect();
        assert_eq!(verdicts, kind.verdicts, "{}: {done:#}", if cpp { kind.cpp } else { kind.python });
    };
    std::thread::scope(|scope| {
        let judge = &judge;
        for kind in &KINDS {
            for cpp in [true, false] {
                scope.spawn(move || judge(kind, cpp));
            }
        }
    });
    let broken = json!({
        "image": "host", "files": [{ "path": "main.cpp", "text": "int main() { return nothing; }" }],
        "prepare": { "cmd": "g++", "args": ["main.cpp"] }, "tests": tests(),
    });
    let done = daemon.post("/batches", &broken).expect(200);
    assert_eq!(done["verdict"], "compile_error", "{done:#}");
    assert!(done["prepare"]["stderr"].as_str().is_some_and(|said| said.contains("nothing")), "{done:#}");
    // One run for each compilation, and one for each test of each submission.
    let runs = daemon.get("/runs?limit=500").expect(200)["runs"].as_array().expect("runs").len();
    assert_eq!(runs, 2 * KINDS.len() * 2 + KINDS.len() + 1);
}

/// A batch's own bookkeeping must not be what bounds it. The bound is far below what is promised, because a
/// test machine has other things to do; what is measured is said.
#[test]
fn many_short_tests_go_about_as_fast_as_single_runs() {
    const RUNS: usize = 200;
    let daemon = Daemon::start();
    let slots = daemon.get("/info").expect(200)["slots"]["total"].as_u64().expect("a number") as usize;
    let single = json!({ "image": "host", "cmd": "true" });
    daemon.run(&single);
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..slots {
            scope.spawn(|| (0..RUNS / slots).for_each(|_| drop(daemon.run(&single))));
        }
    });
    let alone = begun.elapsed();
    let body = json!({ "image": "host", "run": { "cmd": "true" }, "tests": vec![json!({ "expect": { "stdout": "" } }); RUNS] });
    let begun = std::time::Instant::now();
    let request = daemon.request("POST", "/batches").json(&body).patience(Duration::from_secs(200));
    assert_eq!(request.send().expect(200)["verdict"], "accepted");
    let batch = begun.elapsed();
    println!("{RUNS} runs alone took {alone:?}, as one batch {batch:?}");
    assert!(batch < alone * 2, "{RUNS} runs alone took {alone:?}, as one batch {batch:?}");
}
