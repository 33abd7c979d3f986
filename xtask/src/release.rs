//! `cargo xtask release`: everything that is handed out for one version, in `target/release-VERSION`. Packed twice from
//! the same commit and programs it is the same, byte for byte.

mod debian;
mod sbom;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, packages};
use tree::Tree;

/// A processor, in cargo's words, Debian's and everybody's.
#[derive(Clone, Copy, Debug)]
struct Target {
    triple: &'static str,
    debian: &'static str,
    name: &'static str,
    /// What compiles and links for it on another processor, and Debian's packages with it.
    compiler: (&'static str, [&'static str; 2]),
}

const TARGETS: [Target; 2] = [
    Target {
        triple: "x86_64-unknown-linux-gnu",
        debian: "amd64",
        name: "x86_64",
        compiler: ("x86_64-linux-gnu-gcc", ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"]),
    },
    Target {
        triple: "aarch64-unknown-linux-gnu",
        debian: "arm64",
        name: "aarch64",
        compiler: ("aarch64-linux-gnu-gcc", ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]),
    },
];

impl Target {
    /// Debian's package with the C library that is linked.
    fn libc(self) -> Result<&'static str> {
        Ok(if self.triple == host()?.triple { "libc6-dev" } else { self.compiler.1[1] })
    }
}

/// What every archive has beside the programs.
const DOCUMENTS: [&str; 3] = ["CHANGELOG.md", "LICENSE", "README.md"];

/// The Debian package of programs that are built already.
pub(crate) fn of_built(folder: &Path) -> Result<PathBuf> {
    main(&["--from".to_owned(), folder.display().to_string()])?;
    let name = format!("sandglass_{}_{}.deb", version()?, host()?.debian);
    Ok(cargo::target().join(format!("release-{}", version()?)).join(name))
}

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let (built, wanted) = match words {
        [flag, folder] if flag == "--from" => (Some(Path::new(folder)), vec![host()?]),
        words => (None, wanted(words)?),
    };
    let version = version()?;
    let epoch = epoch()?;
    // Once: whoever goes on working while it is made does not have it made of two commits.
    let commit = commit();
    let folder = cargo::target().join(format!("release-{version}"));
    remake(&folder)?;
    // The pages are the same for every processor, and only a program of this one can write them.
    let here = programs(host()?, &version, &commit, built)?;
    let pages = pages(&here, &folder, epoch)?;
    let mut missing = Vec::new();
    for target in wanted {
        let packed = programs(target, &version, &commit, built)
            .and_then(|programs| package(target, &programs, &version, epoch, &folder, &pages));
        match packed {
            Ok(()) => {}
            Err(error) if target.triple != host()?.triple => {
                missing.push(format!("{}: {error:#}", target.name));
            }
            Err(error) => return Err(error),
        }
    }
    std::fs::remove_dir_all(&pages).context("remove what was packed")?;
    sums(&folder)?;
    println!("made {}", folder.display());
    for missing in &missing {
        println!("NOT MADE for {missing}");
    }
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All of them, or those that are named.
fn wanted(words: &[String]) -> Result<Vec<Target>> {
    if words.is_empty() {
        return Ok(TARGETS.to_vec());
    }
    let find = |word: &String| {
        let known = TARGETS.into_iter().find(|target| target.name == word);
        known.with_context(|| format!("{word:?} is no target; there are x86_64 and aarch64"))
    };
    words.iter().map(find).collect()
}

fn host() -> Result<Target> {
    let known = TARGETS.into_iter().find(|target| target.name == std::env::consts::ARCH);
    known.with_context(|| format!("nothing is released from {}", std::env::consts::ARCH))
}

fn version() -> Result<String> {
    Ok(project()?["version"].as_str().context("sandglass has no version")?.to_owned())
}

/// What cargo knows of the root package.
fn project() -> Result<serde_json::Value> {
    let metadata = cargo::command().args(["metadata", "--format-version=1", "--no-deps"]).output();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.context("start cargo")?.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo knows no packages")?;
    let ours = packages.iter().find(|package| package["name"] == "sandglass");
    ours.cloned().context("cargo knows no package sandglass")
}

/// When it was made: when it was committed, unless `SOURCE_DATE_EPOCH` says otherwise.
fn epoch() -> Result<u64> {
    if let Ok(given) = std::env::var("SOURCE_DATE_EPOCH") {
        return given.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {given:?}"));
    }
    let words = ["log", "-1", "--format=%ct"];
    let output = Command::new("git").args(words).current_dir(cargo::root()).output().context("start git")?;
    ensure!(output.status.success(), "ask git when this was committed, or set SOURCE_DATE_EPOCH");
    String::from_utf8_lossy(&output.stdout).trim().parse().context("read git's time")
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(cargo::root()).output();
    output
        .map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn remake(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

/// Both programs: those in `built`, or built for that processor, static and without names of this machine's folders.
fn programs(target: Target, version: &str, commit: &str, built: Option<&Path>) -> Result<[PathBuf; 2]> {
    if let Some(folder) = built {
        return Ok(["sandglass", "sandglass-launcher"].map(|name| folder.join(name)));
    }
    let triple = target.triple;
    // A folder of its own: other flags than everyday's would have everything built anew, there and back.
    let folder = cargo::target().join("dist").display().to_string();
    let mut env =
        vec![("SANDGLASS_COMMIT".to_owned(), commit.to_owned()), ("CARGO_TARGET_DIR".into(), folder)];
    if triple != host()?.triple {
        prepare_cross(target)?;
        let upper = triple.to_uppercase().replace('-', "_");
        env.push((format!("CARGO_TARGET_{upper}_LINKER"), target.compiler.0.into()));
        env.push((format!("CC_{}", triple.replace('-', "_")), target.compiler.0.into()));
    }
    let flags = format!("--remap-path-prefix={}=/sandglass", cargo::root().display());
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"));
    let home = home.context("where is cargo at home?")?;
    env.push((
        "CARGO_ENCODED_RUSTFLAGS".into(),
        format!("-Ctarget-feature=+crt-static\u{1f}{flags}\u{1f}--remap-path-prefix={home}=/cargo\u{1f}-Cstrip=symbols"),
    ));
    let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let words = ["--release", "--locked", "--package", "sandglass", "--bins", "--target", triple];
    let programs =
        cargo::build_with(&words, &env).with_context(|| format!("build {version} for {triple}"))?;
    Ok([programs.get("sandglass")?.to_owned(), programs.get("sandglass-launcher")?.to_owned()])
}

/// The standard library and the linker of another processor.
fn prepare_cross(target: Target) -> Result<()> {
    let added =
        Command::new("rustup").args(["target", "add", target.triple]).current_dir(cargo::root()).status();
    if !added.is_ok_and(|status| status.success()) {
        bail!("the standard library for {} can't be installed with rustup", target.triple);
    }
    packages::install(&target.compiler.1)
}

/// Man pages and completions, in a folder of their own.
fn pages(here: &[PathBuf; 2], folder: &Path, epoch: u64) -> Result<PathBuf> {
    let pages = folder.join("pages");
    let man = pages.join("man");
    let mut manual = Command::new(&here[0]);
    let written = manual.arg("manual").arg(&man).env("SOURCE_DATE_EPOCH", epoch.to_string()).status();
    ensure!(written.context("start sandglass")?.success(), "sandglass manual failed");
    let completions = pages.join("completions");
    std::fs::create_dir_all(&completions).context("make a folder")?;
    for (shell, name) in [("bash", "sandglass.bash"), ("zsh", "_sandglass"), ("fish", "sandglass.fish")] {
        std::fs::write(completions.join(name), cargo::output(&here[0], &["completions", shell])?)?;
    }
    Ok(pages)
}

/// The archive, the package and the list of what is in it, for one processor.
fn package(
    target: Target,
    programs: &[PathBuf; 2],
    version: &str,
    epoch: u64,
    folder: &Path,
    pages: &Path,
) -> Result<()> {
    let name = format!("sandglass-{version}-{}-linux", target.name);
    let tree = Tree::new(&folder.join(&name), epoch)?;
    for program in programs {
        tree.add(program, &file_name(program), 0o755)?;
    }
    for document in DOCUMENTS {
        tree.add(&cargo::root().join(document), document, 0o644)?;
    }
    tree.add_all(pages, "")?;
    tree.add_all(&cargo::root().join("deploy/systemd"), "systemd")?;
    tree.pack(&folder.join(format!("{name}.tar.gz")))?;
    let package = folder.join(format!("sandglass_{version}_{}.deb", target.debian));
    debian::make(&package, programs, pages, (target.debian, version), epoch)?;
    let beside = sbom::beside_cargo(target.libc()?)?;
    let sbom = sbom::of(target.triple, version, epoch, &beside)?;
    let path = folder.join(format!("{name}.cdx.json"));
    std::fs::write(&path, sbom).with_context(|| format!("write {}", path.display()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn sums(folder: &Path) -> Result<()> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(file_name(&entry?.path()))).collect::<Result<_>>()?;
    names.sort();
    let output =
        Command::new("sha256sum").args(&names).current_dir(folder).output().context("start sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed");
    std::fs::write(folder.join("SHA256SUMS"), output.stdout).context("write SHA256SUMS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_by_their_processors() {
        let names = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            wanted(&words).map(|all| all.into_iter().map(|target| target.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["x86_64", "aarch64"]);
        assert_eq!(names(&["aarch64"]).unwrap(), ["aarch64"]);
        assert!(names(&["riscv64"]).unwrap_err().to_string().contains("riscv64"));
    }
}
