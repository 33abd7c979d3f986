//! A container engine of a test's own: Debian's, on folders and a socket of its own, without a bridge
//! and without touching the host's firewall.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::dockerfile::{self, IMAGE};
use crate::{Finished, Process, Registry, Service, sandglass, sandglass_launcher, tool};

/// Nothing of the machine's network is touched.
pub(crate) const NO_NETWORKS: &[&str] = &["--iptables=false", "--ip6tables=false", "--bridge=none"];

#[derive(Debug)]
pub struct Docker {
    engine: Process,
    folder: tempfile::TempDir,
    cgroup: String,
}

impl Docker {
    /// Starts the engine and gives it an image of the two programs under test and nothing else.
    #[track_caller]
    pub fn start() -> Self {
        let docker = Self::empty();
        docker.import();
        docker
    }

    /// Starts the engine and gives it the image that the `Dockerfile` makes.
    #[track_caller]
    pub fn with_built_image() -> Self {
        let image = dockerfile::image();
        let docker = Self::empty();
        docker.load(&image);
        docker
    }

    /// The same with networks for containers: in a network of the engine's own, so that the machine's, and its
    /// firewall, stay as they are. [`Docker::in_its_network`] is inside.
    #[track_caller]
    pub fn with_networks() -> Self {
        let image = dockerfile::image();
        let docker = Self::on(None, &["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""], &[]);
        docker.load(&image);
        docker
    }

    fn load(&self, image: &Path) {
        self.docker(&["load", "--quiet", "--input", image.to_str().expect("a path is text")]);
    }

    /// Starts the engine, without any image.
    #[track_caller]
    pub fn empty() -> Self {
        Self::on(None, &[], NO_NETWORKS)
    }

    /// Starts the engine with what an earlier one has left in that folder, or in a new one that goes with it.
    #[track_caller]
    pub(crate) fn on(data: Option<PathBuf>, inside: &[&str], options: &[&str]) -> Self {
        // A short path: its sockets' names are bounded.
        let folder = tempfile::Builder::new().prefix("d").tempdir().expect("make a folder for an engine");
        let at = |name: &str| folder.path().join(name);
        let cgroup =
            format!("sandglass-docker-{}", folder.path().display().to_string().replace(['/', '.'], "-"));
        // In a mount namespace of its own, so that what it mounts goes with it, whatever becomes of it.
        let mut command = Command::new(tool("unshare"));
        command.args(["--mount", "--propagation=private"]).args(inside).arg(tool("dockerd"));
        command.args(options).arg("--data-root").arg(data.unwrap_or_else(|| at("data")));
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
        let change = |what: &str| format!("--change={what}");
        let entry = change("ENTRYPOINT [\"/usr/local/bin/sandglass\"]");
        let volume = change("VOLUME /var/lib/sandglass");
        self.docker(&["import", &entry, &volume, file.to_str().expect("a path is text"), IMAGE]);
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
        command.args(["run", "--rm", "--network=host"]).args(options);
        command.arg(IMAGE).args(words);
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

    /// Imports an image of one Debian program and the libraries that it needs, under the name of an image that
    /// has the same program.
    #[track_caller]
    pub fn import_program(&self, name: &str, program: &str, at: &str, changes: &[&str]) {
        let program = tool(program);
        let file = self.folder.path().join("program.tar");
        let mut tar = tar::Builder::new(fs::File::create(&file).expect("make a tar file"));
        tar.sparse(false);
        let libraries = Finished::output(&tool("ldd"), &[program.to_str().expect("a path is text")]);
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
        for (from, to) in libraries.map(|path| (path.clone(), path)).chain([(program, PathBuf::from(at))]) {
            let to = to.strip_prefix("/").expect("from the top");
            // What a link of the machine's leads to.
            let from = from.canonicalize().expect("find a file");
            tar.append_path_with_name(from, to).expect("add a file");
        }
        tar.into_inner().expect("finish the tar file");
        let changes: Vec<String> = changes.iter().map(|change| format!("--change={change}")).collect();
        let words = ["import"].into_iter().chain(changes.iter().map(String::as_str));
        self.docker(&words.chain([file.to_str().expect("a path is text"), name]).collect::<Vec<_>>());
        fs::remove_file(file).expect("remove the tar file");
    }

    /// Does something where the engine has its network.
    pub fn in_its_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.in_network_of(self.engine.pid(), work)
    }

    /// Does something where this process has its network.
    pub fn in_network_of<T: Send>(&self, pid: i32, work: impl FnOnce() -> T + Send) -> T {
        let network = fs::File::open(format!("/proc/{pid}/ns/net")).expect("find a process's network");
        // A thread is in a network of its own choice, and this one's choice ends with it.
        std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                setns(network, CloneFlags::CLONE_NEWNET).expect("enter a network");
                work()
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
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
            // Where the engine never made them, or has built nothing, there is nothing to remove.
            let home = hierarchy.join(&self.cgroup);
            let _ = fs::remove_dir(home.join("buildkit"));
            let _ = fs::remove_dir(home);
        }
    }
}
