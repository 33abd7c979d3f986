//! The document is the contract: generated from the code, kept in the repository, and tried against a
//! running server by a property-based tester, by its own examples, and by clients that are made of it.

mod clients;
mod examples;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use support::{Daemon, Finished, Folder, Registry, Value, sandglass, target};

const KEPT: &str = include_str!("../../openapi/v1.json");
const PROBLEMS: &str = include_str!("../../openapi/problems.md");

/// A program of the virtual environment in which the schemathesis is that `cargo xtask test` has installed.
pub(crate) fn venv(program: &str) -> PathBuf {
    let schemathesis = std::env::var_os("SANDGLASS_SCHEMATHESIS")
        .map_or_else(|| target().join("venv/bin/schemathesis"), PathBuf::from);
    let program = schemathesis.with_file_name(program);
    assert!(program.exists(), "`cargo xtask test` installs {}", program.display());
    program
}

#[test]
fn the_document_in_the_repository_is_the_one_that_is_served() {
    let printed = Finished::of(Command::new(sandglass()).arg("openapi"));
    assert_eq!(printed.stdout_text(), KEPT, "`cargo xtask openapi` writes it anew");
    let daemon = Daemon::start();
    let served: Value = daemon.get("/openapi.json").expect(200);
    let kept: Value = serde_json::from_str(KEPT).expect("JSON");
    assert_eq!(served, kept);
}

#[test]
fn every_problem_is_explained_by_the_server_and_by_the_page() {
    let daemon = Daemon::start();
    let names: Vec<&str> =
        PROBLEMS.lines().filter_map(|line| line.split("`/problems/").nth(1)?.split('`').next()).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let told = daemon.get(&format!("/problems/{name}")).expect(200);
        assert_eq!(told["type"], format!("/problems/{name}"));
        assert!(PROBLEMS.contains(told["title"].as_str().expect("a title")), "{name}");
    }
}

/// Every call, with requests that fit the document and requests that just don't.
#[test]
fn a_property_based_tester_finds_no_undocumented_answer() {
    let registry = Registry::start();
    let daemon = Daemon::builder()
        .host_image()
        .registry(&registry)
        .flag("--allow-registry", registry.host())
        .flag("--slots", 4)
        .flag("--limits-wall-time-ms", 1000)
        .flag("--maxima-wall-time-ms", 2000)
        .start();
    // It keeps notes where it is started.
    let place = Folder::new();
    let mut command = Command::new(venv("schemathesis"));
    command
        .current_dir(place.path())
        .args(["run", &daemon.url("/openapi.json"), "--seed", "20", "--max-examples", "60", "--workers", "2"])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ])
        .args(["--request-timeout", "30", "--phases", "examples,coverage,fuzzing", "--no-color"]);
    let done = Finished::of(&mut command);
    let text = done.stdout_text();
    println!("{text}");
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    assert!(done.took < Duration::from_secs(300));
    // It has really asked: each call is in the server's own count.
    let document: Value = serde_json::from_str(KEPT).expect("JSON");
    let page = daemon.get("/metrics").text();
    for (path, calls) in document["paths"].as_object().expect("paths") {
        for method in calls.as_object().expect("calls").keys() {
            let method = method.to_uppercase();
            let asked = page.lines().any(|line| {
                line.starts_with("sandglass_http_requests_total{")
                    && line.contains(&format!("method=\"{method}\""))
                    && line.contains(&format!("route=\"{path}\""))
                    && !line.ends_with(" 0")
            });
            assert!(asked, "{method} {path} was never asked");
        }
    }
    assert_eq!(daemon.metric("sandglass_runs_total{outcome=\"sandbox_error\"}"), 0.0);
}
