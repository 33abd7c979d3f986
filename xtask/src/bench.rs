//! `cargo xtask bench images`: how long images take from a registry to files, beside whatever else this machine has
//! that can do it. Every pull starts on a file system made for it, because one on which much was deleted makes
//! whoever comes next slow; tools take turns, and medians are compared, because the machine is never quite idle.
//! What is promised about images besides that is measured too.

mod floor;
mod goals;
mod report;
mod rest;
mod tools;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{cargo, packages};
use tools::Tool;

const USAGE: &str = "usage: cargo xtask bench images [--rounds N] [WHAT…]  (gcc, small, many, huge; memory, there, \
                     always, disk, crowd, cut, removal)";
const IMAGES: [&str; 4] = ["gcc", "small", "many", "huge"];
const ROUNDS: usize = 5;
/// What the measurement needs, and the peers that Debian has.
const PACKAGES: &[&str] = &["containerd", "curl", "e2fsprogs", "isal", "podman", "skopeo", "umoci"];

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let Plan { rounds, images, rest } = Plan::read(words)?;
    packages::install(packages::FOR_TESTS)?;
    packages::install(PACKAGES)?;
    let place = cargo::target().join("bench");
    std::fs::create_dir_all(&place)?;
    let images = if images.is_empty() { Vec::new() } else { pulls(&images, rounds, &place)? };
    let rest = if rest.is_empty() { Vec::new() } else { rest::measure(&rest, rounds, &place)? };
    let (raw, table) = (place.join("images.json"), place.join("images.md"));
    let mut text = report::markdown(&images);
    if !rest.is_empty() {
        text += &rest::markdown(&rest);
    }
    std::fs::write(&raw, serde_json::to_vec_pretty(&serde_json::json!({ "images": images, "rest": rest }))?)?;
    std::fs::write(&table, &text)?;
    println!("{text}\nwrote {} and {}", raw.display(), table.display());
    Ok(ExitCode::SUCCESS)
}

/// Everybody's pulls, in turns.
fn pulls(images: &[&'static str], rounds: usize, place: &Path) -> Result<Vec<report::Image>> {
    let programs = cargo::build(&["--release", "--package", "sandglass", "--bins"])?;
    let registry = Registry::start(&storage()?, place)?;
    let tools = tools::all(programs.get("sandglass")?);
    let mut all = Vec::new();
    for image in images {
        let (mut measured, mut floors) = (BTreeMap::<&str, report::Tool>::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{image}: round {} of {rounds}", round + 1);
            for tool in &tools {
                let pulled = measure(tool, &registry, image, place, |_| ())?.0;
                measured.entry(tool.name).or_default().pulls.push(pulled);
            }
            floors.push(floor::measure(&registry.host, image, place)?);
        }
        eprintln!("{image}: memory");
        for tool in &tools {
            let (_, memory) = measure(tool, &registry, image, place, watch::Memory::of)?;
            measured.entry(tool.name).or_default().memory_bytes = memory.most();
        }
        all.push(report::Image { image, floors_s: floors, tools: measured });
    }
    Ok(all)
}

/// What is measured, and how often; all of it where nothing was named.
#[derive(Debug, PartialEq)]
struct Plan {
    rounds: usize,
    images: Vec<&'static str>,
    rest: Vec<&'static str>,
}

impl Plan {
    fn read(words: &[String]) -> Result<Self> {
        let (mut rounds, mut images, mut rest) = (ROUNDS, Vec::new(), Vec::new());
        let mut words = words.iter().map(String::as_str);
        ensure!(words.next() == Some("images"), USAGE);
        while let Some(word) = words.next() {
            if word == "--rounds" {
                let number = words.next().and_then(|number| number.parse().ok());
                rounds = number.filter(|rounds| *rounds > 0).context(USAGE)?;
            } else if let Some(image) = IMAGES.iter().find(|image| **image == word) {
                images.push(*image);
            } else {
                rest.push(*rest::ALL.iter().find(|what| **what == word).context(USAGE)?);
            }
        }
        if images.is_empty() && rest.is_empty() {
            (images, rest) = (IMAGES.into(), rest::ALL.into());
        }
        Ok(Self { rounds, images, rest })
    }
}

/// The images are made once, by the tests' own means.
fn storage() -> Result<PathBuf> {
    let args = ["run", "--quiet", "--package", "sandglass-test-support", "--bin", "bench-images"];
    let made = cargo::command().args(args).stderr(Stdio::inherit()).output().context("start cargo")?;
    ensure!(made.status.success(), "the images could not be made");
    Ok(PathBuf::from(String::from_utf8(made.stdout)?.trim()))
}

/// Debian's registry, on a port of its own.
struct Registry {
    host: String,
    process: Child,
}

impl Registry {
    fn start(storage: &Path, place: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = format!("127.0.0.1:{port}");
        let config = place.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n",
            storage.display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("start docker-registry")?;
        let begun = Instant::now();
        while std::net::TcpStream::connect(&host).is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(10), "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { host, process })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One pull.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Measured {
    seconds: f64,
    /// Until runs could begin, where the tool says when that is.
    usable_seconds: Option<f64>,
}

/// What scripts call to mount a file that has a file system. What is written goes to the disk at once and not to a
/// cache of the file, whose copying would be counted as the pull's work and whose writing as nobody's.
const ATTACH: &str = r#"
    attach() {
        mkdir -p "$1.at"
        loop=$(losetup --find --show --direct-io=on "$1")
        mount -o noatime "$loop" "$1.at"
        losetup --detach "$loop"
    }
"#;

/// Makes a file system, mounts it where nobody else sees it, and has the tool pull into it. Whatever watches it
/// meanwhile takes time of the processors that the pull needs.
fn measure<W>(
    tool: &Tool,
    registry: &Registry,
    image: &str,
    place: &Path,
    watch: impl FnOnce(u32) -> W,
) -> Result<(Measured, W)> {
    const MOUNT: &str = r#"
        disk=$1; shift
        attach "$disk"; cd "$disk.at"
        elapsed() { began=$EPOCHREALTIME; "$@" >&2; echo "$began $EPOCHREALTIME"; }
    "#;
    let disk = place.join("disk");
    let _ = std::fs::remove_file(&disk);
    std::fs::File::create(&disk)?.set_len(12 << 30)?;
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(&disk)
        .status();
    ensure!(made.context("start mkfs.ext4")?.success(), "mkfs.ext4 failed");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-euc"]);
    command.arg(format!("{ATTACH}{MOUNT}{}", tool.script)).arg("bench").arg(&disk);
    command.arg(&registry.host).arg(image).arg(&tool.program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().context("start unshare")?;
    let watching = watch(child.id());
    let done = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(done.status.success(), "{} failed: {}", tool.name, String::from_utf8_lossy(&done.stderr));
    let times: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let (began, usable, ended) = match times[..] {
        [began, ended] => (began, None, ended),
        [usable, began, ended] => (began, Some(usable), ended),
        _ => anyhow::bail!("{} said {said:?}", tool.name),
    };
    let usable_seconds = usable.map(|usable| usable - began);
    Ok((Measured { seconds: ended - began, usable_seconds }, watching))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_measured_and_otherwise_everything() {
        let read = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            Plan::read(&words)
        };
        let plan = |rounds, images: &[&'static str], rest: &[&'static str]| Plan {
            rounds,
            images: images.into(),
            rest: rest.into(),
        };
        assert_eq!(read("images").unwrap(), plan(5, &IMAGES, &rest::ALL));
        assert_eq!(read("images many gcc").unwrap(), plan(5, &["many", "gcc"], &[]));
        assert_eq!(read("images --rounds 2 cut").unwrap(), plan(2, &[], &["cut"]));
        for words in ["", "images tiny", "images --rounds 0", "images --rounds", "bench"] {
            assert!(read(words).is_err(), "{words}");
        }
    }
}
