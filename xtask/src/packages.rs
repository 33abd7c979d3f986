//! What the tests need from Debian and from PyPI, installed only where it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo;

/// Each package by a file that it brings, so that asking costs nothing.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox-static", "/usr/share/doc/busybox-static"),
    ("curl", "/usr/bin/curl"),
    ("docker-registry", "/usr/bin/docker-registry"),
    ("gcc", "/usr/bin/gcc"),
    ("iproute2", "/usr/share/doc/iproute2"),
    ("jq", "/usr/bin/jq"),
    ("libc6-dev", "/usr/include/stdio.h"),
    ("mmdebstrap", "/usr/bin/mmdebstrap"),
    ("prometheus", "/usr/bin/promtool"),
    ("python3", "/usr/bin/python3"),
    ("python3-venv", "/usr/share/doc/python3-venv"),
    ("skopeo", "/usr/bin/skopeo"),
];

const SCHEMATHESIS: &str = "schemathesis==4.32.5";

pub(crate) fn install() -> Result<()> {
    let missing: Vec<_> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let words = missing.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("the tests need {words}, and this is no Debian on which they could be installed for you");
    }
    // A service that starts itself on installation would hold a port and outlive the tests.
    let policy = ServicesStayDown::until_dropped()?;
    cargo::call("apt-get", &["-qq", "update"])?;
    let mut args = vec!["-qq", "--yes", "--no-install-recommends", "install"];
    args.extend(&missing);
    let status = Command::new("apt-get").args(&args).env("DEBIAN_FRONTEND", "noninteractive").status();
    drop(policy);
    if !status.context("start apt-get")?.success() {
        bail!("could not install {words}");
    }
    Ok(())
}

/// Debian asks this file whether a package may start its service.
struct ServicesStayDown(Option<PathBuf>);

impl ServicesStayDown {
    fn until_dropped() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            return Ok(Self(None));
        }
        std::fs::write(&path, "#!/bin/sh\nexit 101\n").context("write /usr/sbin/policy-rc.d")?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for ServicesStayDown {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The property-based tester of OpenAPI documents, in a virtual environment of its own.
pub(crate) fn schemathesis() -> Result<PathBuf> {
    let venv = cargo::target().join("venv");
    let program = venv.join("bin/schemathesis");
    let stamp = venv.join("installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|text| text == SCHEMATHESIS) {
        return Ok(program);
    }
    let place = venv.display().to_string();
    cargo::call("/usr/bin/python3", &["-m", "venv", "--clear", &place])?;
    let pip = venv.join("bin/pip").display().to_string();
    cargo::call(&pip, &["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS])?;
    std::fs::write(&stamp, SCHEMATHESIS).context("remember what was installed")?;
    Ok(program)
}
