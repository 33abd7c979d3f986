//! What the README says is so: its tables are read and compared with a running server.

use std::collections::BTreeSet;
use std::process::Command;

use support::{Daemon, Finished, Folder, Registry, Value, json, sandglass};

const README: &str = include_str!("../README.md");

/// The rows of the table whose first heading is `heading`, cell by cell.
fn table(heading: &str) -> Vec<Vec<String>> {
    let start = format!("| {heading} |");
    let rows: Vec<Vec<String>> = README
        .lines()
        .skip_while(|line| !line.starts_with(&start))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "the README has no table {heading:?}");
    rows
}

/// The words between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// `1 MiB each` and `10,000` as numbers; the first of each cell counts.
fn number(text: &str) -> f64 {
    let mut words = text.split_whitespace();
    let number: f64 =
        words.next().unwrap_or_default().replace(',', "").parse().expect("a cell begins with a number");
    match words.next() {
        Some("KiB") => number * 1024.0,
        Some("MiB") => number * 1024.0 * 1024.0,
        Some("GiB") => number * 1024.0 * 1024.0 * 1024.0,
        _ => number,
    }
}

/// The shell that calls a server, in order, with its abbreviated hash written out.
#[test]
fn every_curl_of_the_readme_is_answered() {
    let registry = Registry::of_examples();
    let daemon = Daemon::builder().docker_hub(&registry).start();
    let folder = Folder::new();
    // Whose hash the README shows the beginning of.
    std::fs::write(folder.join("big.csv"), "foo").expect("write a file");
    let hash = support::image::digest(b"foo");
    assert!(hash.starts_with("sha256:2c26"));
    let path = sandglass().parent().expect("a folder").display().to_string();
    let blocks = README.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut answered = 0;
    for block in blocks.filter(|block| block.contains("curl -s")) {
        // A server sees a new key within a second.
        let script =
            block.replace("localhost:8080", &daemon.address().to_string()).replace("sha256:2c26…", &hash);
        let script = script.replace("\ncurl", "\nsleep 1\ncurl");
        let mut shell = Command::new("bash");
        shell.current_dir(folder.path()).args(["-euo", "pipefail", "-c"]);
        shell.arg(format!("PATH={path}:$PATH\n{script}")).env("SANDGLASS_DATA_DIR", daemon.data_dir());
        let done = Finished::of(&mut shell);
        let said = done.stdout_text();
        assert!(done.status.success() && !said.is_empty(), "{block}\n{said}{}", done.stderr_text());
        assert!(!said.contains("\"/problems/"), "{block}\n{said}");
        answered += block.matches("curl -s").count();
    }
    assert!(answered >= 7, "{answered} calls");
}

#[test]
fn every_limit_has_the_default_and_the_maximum_that_the_table_says() {
    let daemon = Daemon::start();
    let info = daemon.get("/info").expect(200);
    let mut told = BTreeSet::new();
    for row in table("limit") {
        for name in quoted(&row[0]) {
            assert_eq!(info["defaults"][&name].as_f64(), Some(number(&row[1])), "default of {name}");
            // What depends on the machine is told in words.
            if name == "open_files" {
                assert!(info["maxima"][&name].as_f64().is_some_and(|most| most <= number(&row[2])));
            } else if !["memory_bytes", "cpus"].contains(&name.as_str()) {
                assert_eq!(info["maxima"][&name].as_f64(), Some(number(&row[2])), "maximum of {name}");
            }
            told.insert(name);
        }
    }
    let real: BTreeSet<String> = info["defaults"].as_object().expect("defaults").keys().cloned().collect();
    assert_eq!(told, real);
}

#[test]
fn what_is_below_a_minimum_is_refused_with_the_number_in_the_table() {
    let daemon = Daemon::start();
    let mut tried = 0;
    for row in table("limit") {
        let Some((_, minimum)) = row[1].split_once("(at least ") else { continue };
        let (name, minimum) = (&quoted(&row[0])[0], number(minimum.trim_end_matches(')')));
        let asked = minimum * 0.999;
        let asked = if name == "cpus" { json!(asked) } else { json!(asked as u64) };
        let body = json!({"image": "host", "cmd": "true", "limits": {name: asked}});
        let problem = daemon.post("/runs", &body).problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], format!("/limits/{name}"), "{problem:#}");
        let detail = problem["errors"][0]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&minimum.to_string()), "{detail} should name {minimum}");
        tried += 1;
    }
    assert_eq!(tried, 3);
}

#[test]
fn the_table_of_outcomes_is_the_contract() {
    let document = openapi();
    let told: BTreeSet<String> = table("outcome").iter().flat_map(|row| quoted(&row[0])).collect();
    let names = find_enum(&document, "wall_time_limit").expect("the document has an enum of outcomes");
    assert_eq!(told, names);
}

#[test]
fn every_call_and_every_command_that_is_named_exists() {
    let document = openapi();
    let calls =
        README.split("## The calls and the commands").nth(1).and_then(|rest| rest.split("\n## ").next());
    let calls = calls.expect("the README names the calls");
    let mut count = 0;
    // `GET`/`DELETE /runs/{id}` is two calls of one path.
    let mut methods = Vec::new();
    for word in quoted(calls) {
        let (method, path) = word.split_once(' ').unwrap_or((&word, ""));
        if method.chars().all(|letter| letter.is_ascii_uppercase()) {
            methods.push(method.to_lowercase());
        }
        if let Some(path) = path.strip_prefix('/').map(|rest| format!("/{rest}")) {
            for method in methods.drain(..) {
                assert!(!document["paths"][&path][&method].is_null(), "no {method} {path}");
                count += 1;
            }
        }
    }
    assert!(count >= 16, "only {count} calls are named with a method");
    let help = Finished::output(&sandglass(), &["--help"]);
    for command in ["serve", "run", "pull", "images", "key", "doctor", "openapi"] {
        assert!(calls.contains(command) && help.contains(&format!("  {command} ")), "{command}: {help}");
    }
}

#[test]
fn the_pages_and_the_documents_that_are_named_are_there() {
    let daemon = Daemon::start();
    for path in ["/info", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"] {
        let response = daemon.get(path);
        assert!(matches!(response.status, 200 | 301 | 303 | 307 | 308), "{path}: {}", response.status);
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for link in README.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(link.starts_with("https://") || root.join(link).exists(), "the README links to {link}");
    }
}

#[test]
fn the_first_example_runs_as_the_demonstration_shows_it() {
    let daemon = Daemon::start();
    let host = daemon.host();
    let run = daemon.run(&json!({"image": "host", "cmd": "echo", "args": ["hello from a fresh sandbox"]}));
    assert_eq!(run["outcome"], "exited", "{run:#}");
    assert_eq!(
        (&run["exit_code"], &run["stdout"]),
        (&json!(0), &json!("hello from a fresh sandbox\n")),
        "{run:#}"
    );
    host.assert_unchanged();
}

fn openapi() -> Value {
    let mut command = Command::new(sandglass());
    let finished = Finished::of(command.arg("openapi"));
    assert!(finished.status.success(), "{}", finished.stderr_text());
    serde_json::from_slice(&finished.stdout).expect("the document is JSON")
}

/// The first list of names in a document that holds `member`.
fn find_enum(value: &Value, member: &str) -> Option<BTreeSet<String>> {
    let names =
        value["enum"].as_array().map(|names| names.iter().filter_map(|name| Some(name.as_str()?.to_owned())));
    let names: Option<BTreeSet<String>> = names.map(Iterator::collect);
    if let Some(names) = names.filter(|names| names.contains(member)) {
        return Some(names);
    }
    match value {
        Value::Object(map) => map.values().find_map(|value| find_enum(value, member)),
        Value::Array(list) => list.iter().find_map(|value| find_enum(value, member)),
        _ => None,
    }
}
