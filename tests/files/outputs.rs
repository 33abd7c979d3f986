//! Files that a run leaves behind: found by pattern, handed out in the reply or as uploaded files.

use support::{Daemon, Value, json};

fn sh(script: &str, outputs: &[&str]) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script], "workdir": "/w", "outputs": outputs })
}

fn paths(run: &Value) -> Vec<&str> {
    run["outputs"].as_array().expect("outputs").iter().filter_map(|output| output["path"].as_str()).collect()
}

#[test]
fn what_is_asked_for_is_handed_out_and_what_is_not_there_is_named() {
    let daemon = Daemon::start();
    let script = "mkdir -p plots/deep .git; echo '{}' > report.json; for i in a b; do printf $i > plots/$i.png; done; \
                  printf d > plots/deep/d.png; printf x > plots/x.svg; printf '\\377' > raw; printf h > .git/h.png; \
                  echo abs > /tmp/abs; exit 3";
    let asked = [
        "report.json",
        "plots/*.png",
        "/tmp/abs",
        "raw",
        "gone.txt",
        "maybe.txt?",
        "**/d.png",
        "[p-r]*/x.s?g",
        "nothing/*",
    ];
    let run = daemon.run(&sh(script, &asked));
    assert_eq!((run["outcome"].as_str(), run["exit_code"].as_u64()), (Some("exited"), Some(3)));
    assert_eq!(
        run["outputs"],
        json!([
            { "path": "report.json", "size_bytes": 3, "text": "{}\n" },
            { "path": "plots/a.png", "size_bytes": 1, "text": "a" },
            { "path": "plots/b.png", "size_bytes": 1, "text": "b" },
            { "path": "/tmp/abs", "size_bytes": 4, "text": "abs\n" },
            { "path": "raw", "size_bytes": 1, "base64": "/w==" },
            { "path": "plots/deep/d.png", "size_bytes": 1, "text": "d" },
            { "path": "plots/x.svg", "size_bytes": 1, "text": "x" },
        ])
    );
    assert_eq!(run["outputs_missing"], json!(["gone.txt", "nothing/*"]));
    // They are remembered with the run.
    assert_eq!(daemon.show(run["id"].as_str().expect("an id"))["outputs"], run["outputs"]);
    // A run that nobody asks for files says so, too.
    let plain = daemon.run(&json!({ "image": "host", "cmd": "true" }));
    assert_eq!((&plain["outputs"], &plain["outputs_missing"]), (&json!([]), &json!([])));
}

#[test]
fn what_was_written_before_a_limit_is_not_lost() {
    let daemon = Daemon::start();
    let mut body = sh("echo half > part; sleep 60 & sleep 60", &["part"]);
    body["limits"] = json!({ "wall_time_ms": 300 });
    let run = daemon.run(&body);
    assert_eq!(run["outcome"], "wall_time_limit");
    assert_eq!(run["outputs"], json!([{ "path": "part", "size_bytes": 5, "text": "half\n" }]));
    body["args"] = json!(["-c", "echo half > part; head -c 1000 /dev/zero"]);
    body["limits"] = json!({ "stdout_bytes": 10 });
    assert_eq!(daemon.run(&body)["outputs"][0]["text"], "half\n");
    body["cmd"] = json!("no-such-program");
    let run = daemon.run(&body);
    assert_eq!((&run["outcome"], &run["outputs_missing"]), (&json!("start_failed"), &json!(["part"])));
}

#[test]
fn what_is_large_is_fetched_by_its_id() {
    let daemon = Daemon::start();
    let run = daemon.run(&sh("head -c 65536 /dev/zero > small; head -c 65537 /dev/zero > large", &["*"]));
    assert_eq!(paths(&run), ["large", "small"]);
    let (large, small) = (&run["outputs"][0], &run["outputs"][1]);
    assert_eq!((small["file"].as_str(), small["text"].as_str().map(str::len)), (None, Some(65536)));
    assert_eq!((large["size_bytes"].as_u64(), large.get("text")), (Some(65537), None));
    let id = large["file"].as_str().expect("an id");
    assert_eq!(daemon.get(&format!("/files/{id}")).body, vec![0; 65537]);
    // It is a file like any other: the next run can read it.
    let mut next = sh("wc -c < in", &[]);
    next["files"] = json!([{ "path": "in", "file": id }]);
    assert_eq!(daemon.run(&next)["stdout"], "65537\n");

    // Beyond 1 MiB in all even small ones are files.
    let run = daemon.run(&sh("for i in $(seq 10 40); do head -c 60000 /dev/zero > $i; done", &["*"]));
    let inline =
        run["outputs"].as_array().expect("outputs").iter().filter(|output| output.get("text").is_some());
    assert_eq!(inline.count(), 17);
    assert_eq!(paths(&run).len(), 31);
}

#[test]
fn what_is_too_much_is_refused_in_words() {
    let daemon = Daemon::builder().host_image().flag("--file-bytes-max", 100_000).start();
    let run = daemon.run(&sh("head -c 100001 /dev/zero > big; echo ok > ok", &["*"]));
    assert_eq!(run["outputs"][0]["error"], "has 100001 bytes; an output may have 100000");
    assert_eq!(run["outputs"][1]["text"], "ok\n");
    let run = daemon.run(&sh("i=0; while [ $i -lt 1100 ]; do : > $i; i=$((i+1)); done", &["*"]));
    let outputs = run["outputs"].as_array().expect("outputs");
    assert_eq!(outputs.len(), 1001);
    assert_eq!(outputs[1000]["error"], "more than 1000 files are asked for");
}

/// The collector is the run's own user: what the program could not have read it can't either.
#[test]
fn files_are_handed_out_as_their_user_could_read_them() {
    let daemon = Daemon::start();
    let mut body =
        sh("umask 077; echo mine > mine; echo shut > shut; chmod 000 shut; id -u", &["mine", "shut"]);
    body["user"] = json!("1000:1000");
    let run = daemon.run(&body);
    assert_eq!(
        (run["stdout"].as_str(), &run["outputs"][0]["text"]),
        (Some("1000\n"), &json!("mine\n")),
        "{run:#}"
    );
    assert!(
        run["outputs"][1]["error"].as_str().is_some_and(|error| error.contains("can't be read")),
        "{run:#}"
    );
}
