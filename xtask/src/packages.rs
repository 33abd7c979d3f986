//! What the tests need from Debian and from PyPI, installed only where it is missing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo;

/// What `cargo xtask test` needs.
pub(crate) const FOR_TESTS: &[&str] = &[
    "busybox-static",
    "curl",
    "docker-compose",
    "docker.io",
    "docker-registry",
    "g++",
    "gcc",
    "iproute2",
    "jq",
    "libc6-dev",
    "mandoc",
    "mmdebstrap",
    "openssl",
    "podman",
    "prometheus",
    "prometheus-node-exporter",
    "python3",
    "python3-venv",
    "skopeo",
    "umoci",
    "uidmap",
];

const SCHEMATHESIS: &str = "schemathesis==4.32.5";
const KUBERNETES_VALIDATE: &str = "kubernetes-validate==1.37.0";
const GRAFANA_SDK: &str = "grafana-foundation-sdk==1769699379!11.6.0";
const JSONSCHEMA: &str = "jsonschema==4.26.0";
const PYTHON_CLIENT: &str = "openapi-python-client==0.29.1";
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.19.0";
const HELM_NEEDS: (u32, u32) = (1, 24);

/// Installs what its arguments name. Debian asks `policy-rc.d` whether a package may start its
/// service: one that did would hold a port and outlive the tests. The file goes away however this
/// ends.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 0755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq --yes --no-install-recommends install "$@"
"#;

/// Installs those of the packages that are not there.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let installed = installed()?;
    let missing: Vec<_> = packages.iter().copied().filter(|name| !installed.contains(*name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let words = missing.join(" ");
    eprintln!("$ apt-get install {words}");
    let status = Command::new("sh").args(["-c", INSTALL, "install"]).args(&missing).status();
    if !status.context("start a shell")?.success() {
        bail!("could not install {words}");
    }
    Ok(())
}

/// What Debian's package manager says is there, whole.
fn installed() -> Result<HashSet<String>> {
    let format = "--showformat=${db:Status-Status} ${Package}\\n";
    let output = Command::new("dpkg-query").args(["--show", format]).output();
    let output = output.context(
        "ask dpkg-query what is installed (the tests know how to get what they need on Debian only)",
    )?;
    let list = String::from_utf8_lossy(&output.stdout);
    Ok(list.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect())
}

/// The property-based tester of OpenAPI documents, a generator of clients, the checkers of JSON and of Kubernetes'
/// manifests and the schemas of Grafana's dashboards, in a virtual environment of their own.
pub(crate) fn schemathesis() -> Result<PathBuf> {
    let venv = cargo::target().join("venv");
    let program = venv.join("bin/schemathesis");
    let stamp = venv.join("installed");
    let place = venv.display().to_string();
    // Its programs know where they are: moved elsewhere they don't start.
    let wanted = [SCHEMATHESIS, KUBERNETES_VALIDATE, GRAFANA_SDK, JSONSCHEMA, PYTHON_CLIENT];
    let installed = format!("{} in {place}", wanted.join(" "));
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == installed) {
        return Ok(program);
    }
    cargo::call("/usr/bin/python3", &["-m", "venv", "--clear", &place])?;
    let pip = venv.join("bin/pip").display().to_string();
    cargo::call(&pip, &[&["install", "--quiet", "--disable-pip-version-check"][..], &wanted].concat())?;
    std::fs::write(&stamp, installed).context("remember what was installed")?;
    Ok(program)
}

/// What makes a TypeScript client of the document and what such a client needs, as `tests/openapi/package-lock.json`
/// pins it. Node.js is Debian's, unless there is another one with its npm already.
pub(crate) fn typescript() -> Result<()> {
    let (place, sources) = (cargo::target().join("clients"), cargo::root().join("tests/openapi"));
    let lock =
        std::fs::read_to_string(sources.join("package-lock.json")).context("read package-lock.json")?;
    let stamp = place.join("installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == lock) {
        return Ok(());
    }
    let has_npm = Command::new("npm").arg("--version").output().is_ok_and(|done| done.status.success());
    if !has_npm {
        install(&["nodejs", "npm"])?;
    }
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    for name in ["package.json", "package-lock.json"] {
        std::fs::copy(sources.join(name), place.join(name)).with_context(|| format!("copy {name}"))?;
    }
    let prefix = place.display().to_string();
    cargo::call(
        "npm",
        &["ci", "--prefix", &prefix, "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
    )?;
    std::fs::write(&stamp, lock).context("remember what was installed")
}

/// Helm, of which neither Debian nor PyPI has a package: built where there is a Go that can, which
/// Debian 12's can't. Without it the chart's test says that it was skipped.
pub(crate) fn helm() -> Result<()> {
    let program = cargo::target().join("tools/helm");
    let can_build = go_version("go".as_ref()).is_some_and(|version| is_go(&version, HELM_NEEDS));
    if program.is_file() || !can_build {
        return Ok(());
    }
    let folder = cargo::target().join("tools");
    eprintln!("$ go install {HELM}");
    let status = Command::new("go").args(["install", HELM]).env("GOBIN", &folder).status();
    anyhow::ensure!(status.context("start go")?.success(), "could not build helm");
    Ok(())
}

/// `go1.26.8`, of the Go that is installed: one that would fetch a newer one for itself does not.
pub(crate) fn go_version(program: &Path) -> Option<String> {
    let output =
        Command::new(program).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether it is that one or a newer one.
pub(crate) fn is_go(version: &str, least: (u32, u32)) -> bool {
    let mut numbers = version.trim_start_matches("go").split('.').map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    version >= (Some(least.0), Some(least.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_go_is_told_from_a_new_one() {
        for (version, can) in [("go1.26.8", true), ("go1.24", true), ("go1.19.8", false), ("", false)] {
            assert_eq!(is_go(version, (1, 24)), can, "{version}");
        }
    }
}
