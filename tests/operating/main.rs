//! What is shipped for operators, checked by the tools that read it: Prometheus, systemd, Docker's compose,
//! Kubernetes' schemas. Nothing of it is right because it looks right.

mod backup;
mod containers;
mod dashboard;
mod docs;
mod keeps_http2;
mod manual;
mod readers;
mod reload;
mod restore;
mod rules;
mod systemd;
mod traces;
mod upgrade;

use std::path::PathBuf;

/// A file of the repository.
fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}
