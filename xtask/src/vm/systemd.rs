//! `cargo xtask vm systemd`: the Debian package in a machine that Debian's systemd has booted, under emulation. It is
//! installed, started, restarted and upgraded under load, killed, removed and purged, as an operator does it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::{KERNELS, Kernel, PACKAGES, boot, debian, ext4};
use crate::{cargo, packages, release};

/// What the machine has beside what every Debian has.
const MACHINE: &str = "systemd,systemd-sysv,procps,passwd,curl";

const SCRIPT: &str = include_str!("systemd.sh");

/// The functions of the script, in this order.
const STEPS: [&str; 10] = [
    "is_installed_and_not_started",
    "is_started_as_the_guide_says",
    "has_no_privilege_and_every_wall",
    "has_runs_in_control_groups_below_its_own",
    "refuses_nobody_while_it_is_restarted",
    "refuses_nobody_while_the_package_is_upgraded",
    "is_started_again_when_it_is_killed",
    "reads_its_configuration_again",
    "is_removed_but_for_its_data",
    "is_purged_with_its_data",
];

/// A console that a login took over would say nothing more.
const OPTIONS: &str = "systemd.mask=serial-getty@ttyS0.service systemd.show_status=false";

/// A dead machine is found after this.
const SECONDS: u32 = 2400;

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let kernel = words.first().map_or("6.12", String::as_str);
    ensure!(
        words.len() <= 1 && KERNELS.contains(&kernel),
        "usage: cargo xtask vm systemd [KERNEL], one of {}",
        KERNELS.join(" and ")
    );
    packages::install(PACKAGES)?;
    let place = cargo::target().join("vm");
    std::fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    let package = package(&place)?;
    let root = debian(&place, "systemd", MACHINE)?;
    furnish(&root, &package)?;
    let disk = ext4(&root, &place.join("systemd.img"))?;
    let kernel = Kernel::fetch(&place, kernel)?;
    let said = boot(&kernel, &kernel.initramfs(&place)?, &disk, SECONDS, (&[], OPTIONS))?;
    let good = |step: &&&str| said.iter().any(|line| *line == format!("{step} 0"));
    for step in &STEPS {
        println!("{}  {step}", if good(&step) { "ok    " } else { "FAILED" });
    }
    Ok(if STEPS.iter().all(|step| good(&step)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The package, of the programs as they are built every day, without what only a debugger reads.
fn package(place: &Path) -> Result<PathBuf> {
    // With a test they are those that every test uses, and nothing is built twice.
    let programs: BTreeMap<_, _> =
        cargo::build_tests(&["--bins", "--test", "leftovers"])?.into_iter().collect();
    let stripped = place.join("programs");
    std::fs::create_dir_all(&stripped).context("create a folder for programs")?;
    for name in ["sandglass", "sandglass-launcher"] {
        let to = stripped.join(name).display().to_string();
        let program = programs.get(name).with_context(|| format!("the build has made no {name}"))?;
        cargo::call("strip", &["-o", &to, &program.display().to_string()])?;
    }
    release::of_built(&stripped)
}

/// Puts the package into the machine, and what tries it.
fn furnish(root: &Path, package: &Path) -> Result<()> {
    std::fs::copy(package, root.join("sandglass.deb")).context("copy the package")?;
    let script = SCRIPT.replacen("$STEPS", &STEPS.join(" "), 1);
    std::fs::write(root.join("tried.sh"), script).context("write the machine's script")?;
    std::fs::set_permissions(root.join("tried.sh"), std::fs::Permissions::from_mode(0o755))?;
    let units = root.join("etc/systemd/system");
    let unit = "[Service]\nType=oneshot\nExecStart=/tried.sh\nTimeoutStartSec=infinity\n";
    std::fs::write(units.join("tried.service"), unit).context("write a unit")?;
    let wants = units.join("multi-user.target.wants");
    std::fs::create_dir_all(&wants).context("create a folder for units")?;
    let link = wants.join("tried.service");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink("../tried.service", link).context("have a unit started")?;
    std::fs::write(root.join("go"), "exec /usr/lib/systemd/systemd\n").context("write how it begins")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_in_the_script_and_every_step_of_the_script_is_made() {
        for step in STEPS {
            assert!(SCRIPT.contains(&format!("\n{step}() {{")), "{step}");
        }
        let verbs = ["is_", "has_", "refuses_", "reads_"];
        let functions = SCRIPT.lines().filter_map(|line| line.strip_suffix("() {"));
        let steps = functions.filter(|name| verbs.iter().any(|verb| name.starts_with(verb)));
        assert_eq!(steps.count(), STEPS.len());
    }
}
