//! A container engine of a test's own: Debian's, on folders and a socket of its own, without a bridge
//! and without touching the host's firewall.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::place::target;
use crate::{
    Finished, Process, Registry, Request, Response, Value, sandglass, sandglass_launcher, tool, within,
};

/// The image that [`Docker::start`] makes: the two binaries and nothing else, as in the `Dockerfile`.
const IMAGE: &str = "sandglass";

#[derive(Debug)]
pub struct Docker {
    engine: Process,
    folder: tempfile::TempDir,
    cgroup: String,
}

/// A service in a container. Dropping it stops it as an operator would.
#[derive(Debug)]
pub struct Container {
    client: Process,
    pub address: SocketAddr,
}

impl Docker {
    /// Starts the engine and gives it the image.
    #[track_caller]
    pub fn start() -> Self {
        let place = target().join("docker");
        fs::create_dir_all(&place).expect("make a folder for container engines");
        let folder =
            tempfile::Builder::new().prefix("d").tempdir_in(place).expect("make a folder for an engine");
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
        let docker = Self { engine, folder, cgroup };
        docker.import();
        docker
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

    fn command(&self) -> Command {
        let mut command = Command::new(tool("docker"));
        command.env("DOCKER_HOST", socket(self.folder.path())).env("DOCKER_CONFIG", self.folder.path());
        command
    }

    #[track_caller]
    fn docker(&self, words: &[&str]) -> String {
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
    pub fn serve(&self, options: &[&str], registry: &Registry) -> Container {
        let registry = format!("--insecure-registry={}", registry.host());
        let client =
            Process::start("docker run", self.run(options, &["serve", "--listen=127.0.0.1:0", &registry]));
        let address = client.wait_for_line("where it listens", Duration::from_secs(60), |line| {
            line.strip_prefix("listening on http://")?.parse().ok()
        });
        Container { client, address }
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

impl Container {
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        Request::new(self.address, "GET", path).send()
    }

    /// Runs a command, expects that the run took place, and returns it.
    #[track_caller]
    pub fn run(&self, body: &Value) -> Value {
        Request::new(self.address, "POST", "/runs").json(body).send().expect(200)
    }

    /// Everything that it has logged so far.
    pub fn log(&self) -> String {
        self.client.log()
    }

    /// Its main process, as the host sees it.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let port = format!("{:04X}", self.address.port());
        within(Duration::from_secs(5), "a process that listens on the container's port", || owner_of(&port))
    }

    /// Stops it as an operator would, and returns its exit code.
    #[track_caller]
    pub fn stop(mut self) -> Option<i32> {
        self.client.stop().code()
    }
}

/// The process that holds a listening socket on this port.
fn owner_of(port: &str) -> Option<i32> {
    let sockets = fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = sockets.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1)?.ends_with(&format!(":{port}")) && *fields.get(3)? == "0A")
            .then(|| fields.get(9).copied())?
    })?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target == Path::new(&wanted))
    })
}
