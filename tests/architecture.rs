//! The directions of the house, as sentences that a build can break. `docs/ARCHITECTURE.md` says why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::Value;

/// Packages that mean "this speaks HTTP, TLS or runs on an executor".
const NETWORK: [&str; 8] = ["tokio", "hyper", "axum", "reqwest", "rustls", "ring", "aws-lc-rs", "openssl"];

#[test]
fn run_is_nouns_without_input_or_output() {
    let graph = Graph::get();
    graph.never_reaches("sandglass-run", &NETWORK);
    graph.never_reaches("sandglass-run", &["nix"]);
    graph.never_names("sandglass-run", &["libc"]);
    for (path, text) in sources("crates/run") {
        for module in ["std::fs", "std::io", "std::net", "std::os", "std::process", "std::thread"] {
            assert!(!text.contains(module), "{} uses {module}", path.display());
        }
    }
}

#[test]
fn the_privileged_side_never_reaches_a_network_or_an_executor() {
    Graph::get().never_reaches("sandglass-sandbox", &NETWORK);
    Graph::get().never_reaches("sandglass-unpack", &NETWORK);
}

#[test]
fn image_and_sandbox_do_not_know_each_other() {
    Graph::get().never_reaches("sandglass-image", &["sandglass-sandbox", "sandglass-engine"]);
    Graph::get()
        .never_reaches("sandglass-sandbox", &["sandglass-image", "sandglass-engine", "sandglass-unpack"]);
}

#[test]
fn the_engine_does_not_know_http() {
    // It reaches hyper through the registry's client in `image`; what it names itself is what it knows.
    Graph::get().never_reaches("sandglass-engine", &["axum", "sandglass"]);
    Graph::get().never_names("sandglass-engine", &["hyper", "http", "reqwest", "tower", "utoipa"]);
}

#[test]
fn nothing_below_knows_the_server() {
    for package in
        ["sandglass-run", "sandglass-sandbox", "sandglass-unpack", "sandglass-image", "sandglass-engine"]
    {
        Graph::get().never_reaches(package, &["sandglass"]);
    }
}

#[test]
fn tests_know_http_and_the_two_programs_and_nothing_else() {
    Graph::get().never_reaches(
        "sandglass-test-support",
        &[
            "sandglass",
            "sandglass-run",
            "sandglass-sandbox",
            "sandglass-unpack",
            "sandglass-image",
            "sandglass-engine",
        ],
    );
    let ours = ["sandglass", "run", "sandbox", "unpack", "image", "engine"];
    for (path, text) in sources("tests") {
        for line in code(&text) {
            let line = line.trim();
            let used = line.strip_prefix("use ").and_then(|rest| rest.split([':', ';']).next());
            let knows = used.is_some_and(|name| ours.contains(&name));
            assert!(!knows, "{} knows the inside: {line}", path.display());
        }
    }
}

#[test]
fn unsafe_stands_in_two_places_only() {
    let allowed = ["crates/sandbox/src/sys", "crates/unpack/src/sys"];
    for folder in ["benches", "crates", "server", "tests", "xtask"] {
        for (path, text) in sources(folder) {
            let place = path.strip_prefix(root()).unwrap_or(&path).with_extension("");
            if allowed.iter().any(|allowed| place.starts_with(allowed))
                || place.ends_with("tests/architecture")
            {
                continue;
            }
            for line in code(&text) {
                for word in ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "(unsafe_code)"] {
                    assert!(!line.contains(word), "{} has {word:?}: {}", path.display(), line.trim());
                }
            }
        }
    }
    for path in allowed {
        assert!(root().join(path).with_extension("rs").exists(), "{path} is gone: this test must follow it");
    }
}

#[test]
fn files_stay_readable_and_finished() {
    let mut count = 0;
    for folder in ["benches", "crates", "server", "tests", "xtask"] {
        for (path, text) in sources(folder) {
            let lines = text.lines().count();
            assert!(lines <= 600, "{} has {lines} lines: what is its second subject?", path.display());
            if !path.ends_with("tests/architecture.rs") {
                for word in ["todo!(", "unimplemented!(", "FIXME"] {
                    assert!(!text.contains(word), "{} has {word:?}", path.display());
                }
            }
            count += 1;
        }
    }
    assert!(count > 50, "only {count} files were found: this test looks in the wrong place");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.expect("list a folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("read a source file");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

/// The lines of a file without what their comments say.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or_default())
}

/// Who depends on whom, tests' own dependencies left out.
struct Graph {
    direct: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn get() -> &'static Self {
        static GRAPH: OnceLock<Graph> = OnceLock::new();
        GRAPH.get_or_init(Self::read)
    }

    fn read() -> Self {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["metadata", "--format-version=1", "--locked", "--offline"]).current_dir(root());
        let output = support::Finished::of(&mut command);
        assert!(output.status.success(), "cargo metadata: {}", output.stderr_text());
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata speaks JSON");
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let packages = list(&metadata["packages"]);
        let names: BTreeMap<_, _> =
            packages.iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
        let mut direct: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let known = direct.entry(names[&text(&node["id"])].clone()).or_default();
            for dependency in list(&node["deps"]) {
                if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                    known.insert(names[&text(&dependency["pkg"])].clone());
                }
            }
        }
        assert!(direct["sandglass"].contains("sandglass-engine"), "the server stands on the engine");
        Self { direct }
    }

    #[track_caller]
    fn never_names(&self, package: &str, forbidden: &[&str]) {
        for name in forbidden {
            assert!(!self.direct[package].contains(*name), "{package} depends on {name}");
        }
    }

    #[track_caller]
    fn never_reaches(&self, package: &str, forbidden: &[&str]) {
        let mut from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut ask = vec![package];
        while let Some(current) = ask.pop() {
            for next in &self.direct[current] {
                if !from.contains_key(next.as_str()) {
                    from.insert(next, current);
                    ask.push(next);
                }
            }
        }
        for name in forbidden {
            let through = from.get(name);
            assert!(through.is_none(), "{package} reaches {name} through {}", through.unwrap_or(&""));
        }
    }
}
