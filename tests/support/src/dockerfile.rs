//! The image that the `Dockerfile` makes, built by Debian's engine from the file as it stands. Its base image
//! is put together from Debian's packages and this machine's toolchain and crates, under the name that the file
//! asks for, so that no registry is asked for anything and the build has no network.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

use crate::docker::NO_NETWORKS;
use crate::{Docker, Finished, repository, stock, target, tool};

/// What the service's image is called in every engine of the tests.
pub(crate) const IMAGE: &str = "sandglass";

/// What the base image has from Debian; the real one has more of it.
const PACKAGES: &str = "gcc,libc6-dev,ca-certificates";

const DEBIAN: &str = "sandglass-test/debian";
const TOOLCHAIN: &str = "sandglass-test/toolchain";

/// Cargo looks for crates beside its configuration, where cache mounts of the build don't hide them.
const CRATES: &str =
    r#"[source.crates-io]\nreplace-with = "here"\n[source.here]\ndirectory = "/usr/local/cargo/vendor"\n"#;

/// From nothing, on a busy machine.
const LONGEST: &str = "1800";

/// The image as `docker save` writes it; built when something has changed since it was.
#[track_caller]
pub fn image() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build(&target().join("container"))).clone()
}

fn build(place: &Path) -> PathBuf {
    fs::create_dir_all(place).expect("make a folder for an image");
    let lock = File::create(place.join("lock")).expect("open the image's lock");
    let _lock =
        Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("lock the image");
    // Kept, so that what has not changed is not built again.
    let docker = Docker::on(Some(place.join("engine")), &[], NO_NETWORKS);
    base(&docker, place);
    let repository = repository();
    step(&docker, place, &["--tag", IMAGE], &repository);
    let image = place.join("image.tar");
    docker.docker(&["save", "--output", image.to_str().expect("a path is text"), IMAGE]);
    image
}

/// Makes the image that the Dockerfile begins with.
fn base(docker: &Docker, place: &Path) {
    if docker.docker(&["images", "--quiet", DEBIAN]).is_empty() {
        let tar = place.join("debian.tar");
        stock::bootstrap(&tar, PACKAGES);
        docker.docker(&["import", tar.to_str().expect("a path is text"), DEBIAN]);
        fs::remove_file(tar).expect("remove an archive");
    }
    let sysroot =
        Finished::of(Command::new(tool("rustc")).args(["--print", "sysroot"]).current_dir(repository()));
    let path = "/usr/local/rustup/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let text = format!(
        "FROM {DEBIAN}\nCOPY bin /usr/local/rustup/bin\nCOPY lib /usr/local/rustup/lib\n\
         ENV CARGO_HOME=/usr/local/cargo PATH={path}\n"
    );
    layer(docker, place, TOOLCHAIN, &text, Path::new(sysroot.stdout_text().trim()));
    let vendor = vendor(place);
    let text = format!(
        "FROM {TOOLCHAIN}\nCOPY . /usr/local/cargo/vendor\nRUN printf '{CRATES}' > /usr/local/cargo/config.toml\n"
    );
    layer(docker, place, &base_name(), &text, &vendor);
}

/// What the Dockerfile's first stage begins with.
fn base_name() -> String {
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).expect("read the Dockerfile");
    let first = dockerfile.lines().find_map(|line| line.strip_prefix("FROM "));
    first.and_then(|rest| rest.split(' ').next()).expect("a Dockerfile begins with an image").to_owned()
}

/// An image on top of another one, with files from `context`.
fn layer(docker: &Docker, place: &Path, name: &str, text: &str, context: &Path) {
    let file = place.join("Dockerfile");
    fs::write(&file, text).expect("write a Dockerfile");
    // Documentation is more than half of a toolchain.
    fs::write(place.join("Dockerfile.dockerignore"), "share\n").expect("write what is left out");
    step(docker, place, &["--tag", name, "--file", file.to_str().expect("a path is text")], context);
}

/// `docker build`, with all that it says in a file, which is shown where it fails.
fn step(docker: &Docker, place: &Path, options: &[&str], context: &Path) {
    let log = place.join("log");
    let output = File::create(&log).expect("make a log");
    let again = output.try_clone().expect("double a file");
    let client = docker.command();
    let mut command = Command::new(tool("timeout"));
    command.arg(LONGEST).arg(client.get_program());
    command.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("DOCKER_BUILDKIT", "1").args(["build", "--network=none", "--progress=plain"]);
    command.args(options).arg(context).stdin(Stdio::null()).stdout(output).stderr(again);
    let status = command.status().expect("start docker build");
    let said = || fs::read_to_string(&log).unwrap_or_default();
    assert!(status.success(), "docker build {options:?}: {status}\n{}", said());
}

/// Every crate of the lock file in one folder, made again when that has changed.
fn vendor(place: &Path) -> PathBuf {
    let (vendor, stamp) = (place.join("vendor"), place.join("vendored"));
    let lock = fs::read(repository().join("Cargo.lock")).expect("read Cargo.lock");
    if fs::read(&stamp).is_ok_and(|vendored| vendored == lock) {
        return vendor;
    }
    let mut command = Command::new(tool("cargo"));
    command.args(["vendor", "--quiet", "--offline", "--locked"]).arg(&vendor).current_dir(repository());
    let done = Finished::of(&mut command);
    assert!(done.status.success(), "cargo vendor: {}", done.stderr_text());
    fs::write(stamp, lock).expect("remember what was vendored");
    vendor
}
