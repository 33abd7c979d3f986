//! Clients that nobody has written: what generators make of the document is used against a real server.

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Daemon, Finished, target, tool};

use crate::venv;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/v1.json");

/// Where `cargo xtask test` has put what Node.js needs; programs below it find that.
fn node_place() -> PathBuf {
    let place = target().join("clients");
    assert!(
        place.join("node_modules").is_dir(),
        "`cargo xtask test` installs {}/node_modules",
        place.display()
    );
    place
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let done = Finished::of(command);
    assert_eq!(done.code(), Some(0), "{command:?}\n{}{}", done.stdout_text(), done.stderr_text());
    done.stdout_text()
}

/// A server with a key, as clients elsewhere meet it.
fn server() -> (Daemon, String) {
    let builder = Daemon::builder().host_image();
    let key = builder.key(&["alice"]);
    (builder.start(), key)
}

#[test]
fn a_generated_python_client_completes_a_run_a_batch_and_a_stream() {
    let folder = support::Folder::new();
    let settings = folder.join("settings.yml");
    // Nothing is to be reformatted, and a tar is bytes like any others.
    let text = "post_hooks: []\ncontent_type_overrides: {application/x-tar: application/octet-stream}\n";
    std::fs::write(&settings, text).expect("write the generator's settings");
    let mut generate = Command::new(venv("openapi-python-client"));
    generate.args(["generate", "--meta", "none", "--fail-on-warning", "--path", DOCUMENT, "--config"]);
    generate.arg(&settings).arg("--output-path").arg(folder.join("sandglass_client"));
    succeed(&mut generate);
    let (daemon, key) = server();
    let mut client = Command::new(venv("python"));
    client.arg(format!("{SOURCES}/client.py")).arg(folder.path()).arg(daemon.url("")).arg(key);
    assert_eq!(succeed(&mut client), "a run, a batch and a stream\n");
}

#[test]
fn a_generated_typescript_client_completes_a_run_a_batch_and_a_stream() {
    let place = node_place();
    let folder = tempfile::tempdir_in(&place).expect("make a folder");
    let (schema, source) = (folder.path().join("schema.ts"), folder.path().join("client.ts"));
    let node = |program: &str| {
        let mut command = Command::new(tool("node"));
        command.arg(place.join("node_modules").join(program)).current_dir(folder.path());
        command
    };
    succeed(node("openapi-typescript/bin/cli.js").arg(DOCUMENT).arg("-o").arg(&schema));
    std::fs::copy(Path::new(SOURCES).join("client.ts"), &source).expect("copy the client");
    let mut compile = node("typescript/bin/tsc");
    compile.args(["--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--skipLibCheck"]);
    compile.args(["--module", "esnext", "--moduleResolution", "bundler"]).arg(&source);
    succeed(&mut compile);
    let (daemon, key) = server();
    let mut client = Command::new(tool("node"));
    client.arg(folder.path().join("client.js")).arg(daemon.url("")).arg(key);
    assert_eq!(succeed(&mut client), "a run, a batch and a stream\n");
}
