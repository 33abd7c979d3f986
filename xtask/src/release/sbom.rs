//! What is linked into the two programs, as CycloneDX: from what cargo itself resolved, so that it can't be another
//! list than the one that was built.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cargo;

/// What is linked as well and cargo knows nothing of: Rust's own library, and the C library from Debian's package.
pub(super) fn beside_cargo(libc: &str) -> Result<Vec<Value>> {
    let rust = words("rustc", &["--version"])?;
    let rust = rust.split_whitespace().nth(1).context("rustc does not say its version")?;
    let version = words("dpkg-query", &["--show", "--showformat=${Version}", libc])?;
    let purl = format!("pkg:deb/debian/{libc}@{}", version.replace('+', "%2B"));
    Ok(vec![
        json!({ "type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": rust,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }] }),
        json!({ "type": "library", "bom-ref": purl, "name": "glibc", "version": version, "purl": purl,
                "licenses": [{ "expression": "LGPL-2.1-or-later" }] }),
    ])
}

fn words(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).current_dir(cargo::root()).output();
    let output = output.with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program} {} failed", words.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub(super) fn of(triple: &str, version: &str, epoch: u64, beside: &[Value]) -> Result<Vec<u8>> {
    let asked = ["metadata", "--format-version=1", "--locked", "--filter-platform", triple];
    let output = cargo::command().args(asked).output().context("start cargo")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice(&output.stdout).context("read cargo's metadata")?;
    let lock = std::fs::read_to_string(cargo::root().join("Cargo.lock")).context("read Cargo.lock")?;
    let document = document(&metadata, &checksums(&lock), version, &time(epoch)?, beside)?;
    Ok(serde_json::to_vec_pretty(&document)?)
}

/// RFC 3339, as `date` writes it.
fn time(epoch: u64) -> Result<String> {
    words("date", &["--utc", "+%Y-%m-%dT%H:%M:%SZ", &format!("--date=@{epoch}")])
}

/// By name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
        Some(line.trim_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]").skip(1);
    let read = |block| Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?));
    blocks.filter_map(read).collect()
}

fn document(
    metadata: &Value,
    checksums: &BTreeMap<(String, String), String>,
    version: &str,
    time: &str,
    beside: &[Value],
) -> Result<Value> {
    let packages = metadata["packages"].as_array().context("there are no packages")?;
    let by_id: BTreeMap<&str, &Value> =
        packages.iter().filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let edges = linked(metadata)?;
    let name = |id: &str| by_id.get(id).map(|package| purl(package)).unwrap_or_default();
    let ours =
        by_id.iter().find(|(_, package)| package["name"] == "sandglass").context("sandglass is gone")?.0;
    let reached = reach(ours, &edges);
    let components = reached.iter().filter(|id| *id != ours).filter_map(|id| by_id.get(id));
    let components = components.map(|package| component(package, checksums)).chain(beside.iter().cloned());
    let dependencies = reached.iter().map(|id| {
        let needs: BTreeSet<_> = edges.get(id).into_iter().flatten().map(|id| name(id)).collect();
        json!({ "ref": name(id), "dependsOn": needs })
    });
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": { "type": "application", "bom-ref": name(ours), "name": "sandglass", "version": version },
        },
        "components": components.collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    }))
}

/// Who needs whom in the program itself: what only tests or builds need is not linked.
fn linked(metadata: &Value) -> Result<BTreeMap<&str, Vec<&str>>> {
    let nodes = metadata["resolve"]["nodes"].as_array().context("nothing is resolved")?;
    let normal = |dependency: &&Value| {
        let kinds = dependency["dep_kinds"].as_array();
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
    };
    let edges = nodes.iter().filter_map(|node| {
        let needs = node["deps"].as_array()?.iter().filter(normal);
        Some((node["id"].as_str()?, needs.filter_map(|dependency| dependency["pkg"].as_str()).collect()))
    });
    Ok(edges.collect())
}

fn reach<'a>(from: &'a str, edges: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            open.extend(edges.get(id).into_iter().flatten());
        }
    }
    reached
}

fn purl(package: &Value) -> String {
    let text = |name: &str| package[name].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Value {
    let text = |name: &str| package[name].as_str().unwrap_or_default().to_owned();
    let mut component = json!({
        "type": "library",
        "bom-ref": purl(package),
        "name": text("name"),
        "version": text("version"),
        "purl": purl(package),
    });
    if !text("license").is_empty() {
        // Cargo's old way to say "or".
        component["licenses"] = json!([{ "expression": text("license").replace('/', " OR ") }]);
    }
    if let Some(sum) = checksums.get(&(text("name"), text("version"))) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_what_only_tests_need_is_not() {
        let metadata = json!({
            "packages": [
                { "id": "a", "name": "sandglass", "version": "1.0.0", "license": "Apache-2.0" },
                { "id": "b", "name": "bytes", "version": "1.2.3", "license": "MIT/Apache-2.0" },
                { "id": "c", "name": "insta", "version": "2.0.0", "license": "MIT" },
            ],
            "resolve": { "nodes": [
                { "id": "a", "deps": [
                    { "pkg": "b", "dep_kinds": [{ "kind": null }, { "kind": "dev" }] },
                    { "pkg": "c", "dep_kinds": [{ "kind": "dev" }] },
                ] },
                { "id": "b", "deps": [] },
                { "id": "c", "deps": [] },
            ] },
        });
        let sums = checksums("[[package]]\nname = \"bytes\"\nversion = \"1.2.3\"\nchecksum = \"00ff\"\n");
        let beside = [json!({ "name": "glibc" })];
        let document = document(&metadata, &sums, "1.0.0", "2026-01-01T00:00:00Z", &beside).unwrap();
        let components = document["components"].as_array().unwrap();
        assert_eq!(components.len(), 2, "{document:#}");
        assert_eq!(components[1]["name"], "glibc");
        assert_eq!(components[0]["purl"], "pkg:cargo/bytes@1.2.3");
        assert_eq!(components[0]["hashes"][0]["content"], "00ff");
        assert_eq!(components[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(document["dependencies"][0]["dependsOn"][0], "pkg:cargo/bytes@1.2.3");
    }
}
