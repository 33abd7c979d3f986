//! A container engine of a test's own: Debian's, on folders and a socket of its own, without a bridge
//! and without touching the host's firewall.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Finished, Process, Registry, Service, sandglass, sandglass_launcher, tool};

/// The image that [`Docker::start`] makes: the two binaries and nothing else, as in the `Dockerfile`.
const IMAGE: &str = "sandglass";

#[derive(Debug)]
pub struct Docker {
    engine: Process,
    folder: tempfile::TempDir,
    cgroup: String,
}

impl Docker {
    /// Starts the engine and gives it the image.
    #[track_caller]
    pub fn start() -> Self {
        let docker = Self::empty();
        docker.import();
        docker
    }

    /// Starts the engine, without any image.
    #[track_caller]
    pub fn empty() -> Self {
        // A short path: its sockets' names are bounded.
        let folder = tempfile::Builder::new().prefix("d").tempdir().expect("make a folder for an engine");
        let at = |name: &str| folder.path().join(name);
        let cgroup =
            format!("sandglass-docker-{}", folder.path().display().to_string().replace(['/', '.'], "-"));
        // In a mount namespace of its own, so that what it mounts goes with it, whatever becomes of it.
        let mut command = Command::new(tool("unshare"));
        command.args(["--mount", "--propagation=private"]).arg(tool("dockerd"));
        command
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--data-root"])
            .arg(at("data"));
        command.arg("--exec-root").arg(at("exec")).arg("--pidfile").arg(at("pid"));
        command.arg("--host").arg(socket(folder.path())).arg("--cgroup-parent").arg(format!("/{cgroup}"));
        let engine = Process::start("dockerd", command);
        engine.wait_for_line("that it listens", Duration::from_secs(90), |line| {
            line.contains("API listen on").then_some(())
        });
        Self { engine, folder, cgroup }
    }

    fn import(&self) {
        let file = self.folder.path().join("image.tar");
        let mut tar = tar::Builder::new(fs::File::create(&file).expect("make a tar file"));
        // The engine reads no holes.
        tar.sparse(false);
        for program in [sandglass(), sandglass_launcher()] {
            let name = program.file_name().expect("a program has a name");
            tar.append_path_with_name(&program, Path::new("usr/local/bin").join(name))
                .expect("add a program");
        }
        tar.into_inner().expect("finish the tar file");
        self.docker(&["import", file.to_str().expect("a path is text"), IMAGE]);
        fs::remove_file(file).expect("remove the tar file");
    }

    /// The engine's client, to be told what to do.
    pub fn command(&self) -> Command {
        let mut command = Command::new(tool("docker"));
        command.env("DOCKER_HOST", socket(self.folder.path())).env("DOCKER_CONFIG", self.folder.path());
        command
    }

    /// `docker WORDS…` to its end, which must be a good one.
    #[track_caller]
    pub fn docker(&self, words: &[&str]) -> String {
        let done = Finished::of(self.command().args(words));
        assert_eq!(done.code(), Some(0), "docker {words:?}: {}", done.stderr_text());
        done.stdout_text()
    }

    fn run(&self, options: &[&str], words: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["run", "--rm", "--network=host", "--volume=/var/lib/sandglass"]).args(options);
        command.arg(IMAGE).arg("/usr/local/bin/sandglass").args(words);
        command
    }

    /// `sandglass WORDS…` to its end, in a container that is started with these options.
    #[track_caller]
    pub fn sandglass(&self, options: &[&str], words: &[&str]) -> Finished {
        Finished::of(&mut self.run(options, words))
    }

    /// A service in a container that is started with these options, which may pull from `registry`.
    #[track_caller]
    pub fn serve(&self, options: &[&str], registry: &Registry) -> Service {
        let registry = format!("--insecure-registry={}", registry.host());
        let command = self.run(options, &["serve", "--listen=127.0.0.1:0", &registry]);
        Service::wait_for(Process::start("docker run", command))
    }

    /// `sandglass WORDS…` in a container that is started with these options, once it listens.
    #[track_caller]
    pub fn serve_as(&self, options: &[&str], words: &[&str]) -> Service {
        Service::wait_for(Process::start("docker run", self.run(options, words)))
    }

    /// What of its containers is left on the host: their cgroups, by path.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let below =
            |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let hierarchies = below(Path::new("/sys/fs/cgroup")).chain([PathBuf::from("/sys/fs/cgroup")]);
        let homes = hierarchies.map(|hierarchy| hierarchy.join(&self.cgroup)).filter(|home| home.is_dir());
        homes.flat_map(|home| below(&home).filter(|path| path.is_dir()).collect::<Vec<_>>()).collect()
    }
}

fn socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("s").display())
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.engine.stop();
        let hierarchies =
            fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            // Where the engine never made it there is nothing to remove.
            let _ = fs::remove_dir(hierarchy.join(&self.cgroup));
        }
    }
}
