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
    docker_build(&docker, place);
    // What earlier builds have left, but for what the next one can use.
    docker.docker(&["image", "prune", "--force"]);
    docker.docker(&["builder", "prune", "--force", "--keep-storage=2GB"]);
    let image = place.join("image.tar");
    docker.docker(&["save", "--output", image.to_str().expect("a path is text"), IMAGE]);
    image
}

/// Makes the image that the Dockerfile begins with, where it is not there or would be another by now.
fn base(docker: &Docker, place: &Path) {
    let (name, stamp) = (base_name(), place.join("base"));
    let made_of = said(Command::new("rustc").arg("-vV")) + &said(Command::new("cat").arg("Cargo.lock"));
    let is_there = !docker.docker(&["images", "--quiet", &name]).is_empty();
    if is_there && fs::read_to_string(&stamp).is_ok_and(|text| text == made_of) {
        return;
    }
    if is_there {
        docker.docker(&["rmi", "--force", &name]);
    }
    let vendor = place.join("vendor");
    said(Command::new("cargo").args(["vendor", "--quiet", "--offline", "--locked"]).arg(&vendor));
    let sysroot = said(Command::new("rustc").args(["--print", "sysroot"]));
    let mut debian = stock::debian(PACKAGES);
    debian.arg(format!("--customize-hook={}", toolchain_and_crates(sysroot.trim(), &vendor)));
    // Never all of it on the disk twice.
    let debian = debian.args(["bookworm", "-"]).stdout(Stdio::piped()).spawn();
    let mut debian = debian.expect("start mmdebstrap");
    let mut import = docker.command();
    let path = "PATH=/usr/local/rustup/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    import.arg("import").arg(format!("--change=ENV CARGO_HOME=/usr/local/cargo {path}")).args(["-", &name]);
    import.stdin(debian.stdout.take().expect("mmdebstrap has an output"));
    let imported = import.output().expect("start docker import");
    assert!(debian.wait().expect("wait for mmdebstrap").success(), "mmdebstrap could not make an image");
    assert!(imported.status.success(), "docker import: {}", String::from_utf8_lossy(&imported.stderr));
    fs::remove_dir_all(vendor).expect("remove the crates");
    fs::write(stamp, made_of).expect("remember what it is made of");
}

/// Put into the Debian while it is made.
fn toolchain_and_crates(sysroot: &str, vendor: &Path) -> String {
    let vendor = vendor.display();
    format!(
        "mkdir -p \"$1\"/usr/local/rustup/bin \"$1\"/usr/local/cargo && cp -a {sysroot}/lib \"$1\"/usr/local/rustup/ \
         && cp -a {sysroot}/bin/cargo {sysroot}/bin/rustc \"$1\"/usr/local/rustup/bin/ \
         && cp -a {vendor} \"$1\"/usr/local/cargo/vendor && printf '{CRATES}' > \"$1\"/usr/local/cargo/config.toml"
    )
}

/// What a program says in the repository, whose toolchain it uses.
fn said(command: &mut Command) -> String {
    let done = Finished::of(command.current_dir(repository()));
    assert!(done.status.success(), "{command:?}: {}", done.stderr_text());
    done.stdout_text()
}

/// What the Dockerfile's first stage begins with.
fn base_name() -> String {
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).expect("read the Dockerfile");
    let first = dockerfile.lines().find_map(|line| line.strip_prefix("FROM "));
    first.and_then(|rest| rest.split(' ').next()).expect("a Dockerfile begins with an image").to_owned()
}

/// `docker build`, with all that it says in a file, which is shown where it fails.
fn docker_build(docker: &Docker, place: &Path) {
    let log = place.join("log");
    let output = File::create(&log).expect("make a log");
    let again = output.try_clone().expect("double a file");
    let client = docker.command();
    let mut command = Command::new(tool("timeout"));
    command.arg(LONGEST).arg(client.get_program());
    command.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("DOCKER_BUILDKIT", "1").args(["build", "--network=none", "--progress=plain"]);
    command.args(["--tag", IMAGE]).arg(repository()).stdin(Stdio::null()).stdout(output).stderr(again);
    let status = command.status().expect("start docker build");
    let said = || fs::read_to_string(&log).unwrap_or_default();
    assert!(status.success(), "docker build: {status}\n{}", said());
}
