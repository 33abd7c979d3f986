//! The Debian package: what `deploy/systemd` says where to put, the manual, and a user of its own. It is not started
//! by being installed: without a key, whoever is on the machine could run code.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tree::Tree;
use crate::cargo;

/// Where files of the repository go.
const PLACES: [(&str, &str, u32); 10] = [
    ("deploy/systemd/sandglass.service", "usr/lib/systemd/system/sandglass.service", 0o644),
    ("deploy/systemd/sandglass.socket", "usr/lib/systemd/system/sandglass.socket", 0o644),
    ("deploy/systemd/sandglass.slice", "usr/lib/systemd/system/sandglass.slice", 0o644),
    ("deploy/systemd/sandglass.sysusers.conf", "usr/lib/sysusers.d/sandglass.conf", 0o644),
    ("deploy/systemd/subids.sh", "usr/lib/sandglass/subids.sh", 0o755),
    ("deploy/debian/config.toml", "etc/sandglass/config.toml", 0o644),
    ("deploy/debian/copyright", "usr/share/doc/sandglass/copyright", 0o644),
    ("deploy/debian/postinst", "DEBIAN/postinst", 0o755),
    ("deploy/debian/prerm", "DEBIAN/prerm", 0o755),
    ("deploy/debian/postrm", "DEBIAN/postrm", 0o755),
];

const COMPLETIONS: [(&str, &str); 3] = [
    ("sandglass.bash", "usr/share/bash-completion/completions/sandglass"),
    ("_sandglass", "usr/share/zsh/vendor-completions/_sandglass"),
    ("sandglass.fish", "usr/share/fish/vendor_completions.d/sandglass.fish"),
];

pub(super) fn make(
    package: &Path,
    programs: &[PathBuf; 2],
    pages: &Path,
    (architecture, version): (&str, &str),
    epoch: u64,
) -> Result<()> {
    let root = package.with_extension("tree");
    let tree = Tree::new(&root, epoch)?;
    for program in programs {
        tree.add(program, &format!("usr/bin/{}", super::file_name(program)), 0o755)?;
    }
    for (from, to, mode) in PLACES {
        tree.add(&cargo::root().join(from), to, mode)?;
    }
    for (from, to) in COMPLETIONS {
        tree.add(&pages.join("completions").join(from), to, 0o644)?;
    }
    for page in std::fs::read_dir(pages.join("man")).context("list the pages")? {
        let page = page?.path();
        let section = page.extension().unwrap_or_default().to_string_lossy().into_owned();
        let to = format!("usr/share/man/man{section}/{}.gz", super::file_name(&page));
        tree.write(&to, &gzip(&page)?, 0o644)?;
    }
    let changes = gzip(&cargo::root().join("CHANGELOG.md"))?;
    tree.write("usr/share/doc/sandglass/changelog.gz", &changes, 0o644)?;
    tree.write("DEBIAN/conffiles", b"/etc/sandglass/config.toml\n", 0o644)?;
    tree.write("DEBIAN/md5sums", &md5sums(tree.root())?, 0o644)?;
    let size = kib(&tree.root().join("usr"))?;
    let project = super::project()?;
    let said = |name: &str| std::env::var(name).ok();
    let maintainer = maintainer(&project, said("DEBFULLNAME"), said("DEBEMAIL"));
    let repository = project["repository"].as_str().context("sandglass has no repository")?;
    let control = control(architecture, version, size, &maintainer, repository);
    tree.write("DEBIAN/control", control.as_bytes(), 0o644)?;
    build(tree.root(), package, epoch)?;
    std::fs::remove_dir_all(&root).context("remove what was packed")
}

/// Who answers for the package: the project's authors, or whom Debian's own variables name. An address is only there
/// if somebody gives one, since one that nobody reads is worse than none.
fn maintainer(project: &Value, name: Option<String>, address: Option<String>) -> String {
    let authors = project["authors"][0].as_str().unwrap_or("The Sandglass authors");
    let name = name.unwrap_or_else(|| authors.to_owned());
    address.map_or(name.clone(), |address| format!("{name} <{address}>"))
}

fn control(architecture: &str, version: &str, size: u64, maintainer: &str, repository: &str) -> String {
    format!(
        "Package: sandglass\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {maintainer}\n\
         Installed-Size: {size}\nDepends: passwd, procps, systemd\nRecommends: ca-certificates, uidmap\nSection: admin\n\
         Priority: optional\nHomepage: {repository}\n\
         Description: one command of one OCI image in one fresh sandbox, over HTTP\n \
         An HTTP service that runs one command of one OCI image in one fresh sandbox,\n \
         with a limit on everything, and says exactly how it ended. No container\n \
         runtime is needed or used.\n"
    )
}

/// Without the name and the time that gzip would write down.
fn gzip(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("gzip").args(["-9nc"]).arg(path).output().context("start gzip")?;
    ensure!(output.status.success(), "gzip failed on {}", path.display());
    Ok(output.stdout)
}

fn md5sums(root: &Path) -> Result<Vec<u8>> {
    let script = "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum";
    let output = Command::new("sh").args(["-c", script]).current_dir(root).output().context("start sh")?;
    ensure!(output.status.success(), "md5sum failed");
    Ok(output.stdout)
}

fn kib(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { kib(&path)? } else { path.metadata()?.len().div_ceil(1024) };
    }
    Ok(bytes)
}

fn build(root: &Path, package: &Path, epoch: u64) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(root).arg(package).stdout(Stdio::null());
    // It gives no file a later time than this, and all of ours are later.
    let status = command.env("SOURCE_DATE_EPOCH", epoch.to_string()).status().context("start dpkg-deb")?;
    ensure!(status.success(), "dpkg-deb failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_package_is_kept_by_the_authors_or_by_whom_debian_s_variables_name() {
        let project = json!({ "authors": ["The Sandglass authors"] });
        let given = |text: &str| Some(text.to_owned());
        for (name, address, expected) in [
            (None, None, "The Sandglass authors"),
            (None, given("us@example.org"), "The Sandglass authors <us@example.org>"),
            (given("Ada"), given("ada@example.org"), "Ada <ada@example.org>"),
        ] {
            assert_eq!(maintainer(&project, name, address), expected);
        }
        let control = control("amd64", "1.2.3", 7, "Ada <ada@example.org>", "https://example.org/x");
        assert!(control.contains("\nMaintainer: Ada <ada@example.org>\nInstalled-Size: 7\n"), "{control}");
        assert!(control.contains("\nHomepage: https://example.org/x\n"), "{control}");
    }
}
