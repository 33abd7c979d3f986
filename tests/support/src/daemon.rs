//! The service under test: the real program on a port of its own, with folders of its own.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::host::{self, Host};
use crate::{Finished, Folder, Process, Registry, Request, Response, sandglass, tool, within};

const START_BOUND: Duration = Duration::from_secs(60);

/// A daemon to be started.
#[derive(Clone, Debug)]
pub struct Builder {
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Arc<Folder>,
    disk_bytes: Option<u64>,
    group: Option<PathBuf>,
    inodes: Option<u64>,
    hosts: Option<String>,
}

impl Builder {
    fn new() -> Self {
        Self {
            args: Vec::new(),
            env: Vec::new(),
            folder: Arc::new(Folder::new()),
            disk_bytes: None,
            group: None,
            inodes: None,
            hosts: None,
        }
    }

    /// A flag with its value: `.flag("--slots", 1)`.
    #[must_use]
    pub fn flag(self, name: &str, value: impl std::fmt::Display) -> Self {
        self.arg(format!("{name}={value}"))
    }

    /// One word of the command line.
    #[must_use]
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.args.push(word.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Offers `image: host`.
    #[must_use]
    pub fn host_image(self) -> Self {
        self.arg("--allow-host-image")
    }

    /// Lets the daemon pull from a registry of the tests, which speaks no TLS and is on loopback.
    #[must_use]
    pub fn registry(self, registry: &Registry) -> Self {
        self.flag("--insecure-registry", registry.host())
    }

    /// Lets a registry of the tests stand for Docker Hub.
    #[must_use]
    pub fn docker_hub(self, registry: &Registry) -> Self {
        self.registry(registry).flag("--images-mirrors", format!("docker.io={}", registry.host()))
    }

    /// Gives the daemon a disk of its own of that size, which only it can see.
    #[must_use]
    pub fn on_disk_of(mut self, bytes: u64) -> Self {
        self.disk_bytes = Some(bytes);
        self
    }

    /// Starts the daemon in that control group.
    #[must_use]
    pub fn in_group(mut self, group: PathBuf) -> Self {
        self.group = Some(group);
        self
    }

    /// Lets that disk take so many files only.
    #[must_use]
    pub fn with_inodes(mut self, inodes: u64) -> Self {
        self.inodes = Some(inodes);
        self
    }

    /// Lets the daemon, and nobody else, find these names at this address.
    #[must_use]
    pub fn with_hosts(mut self, address: &str, names: &[&str]) -> Self {
        self.hosts = Some(format!("127.0.0.1 localhost\n{address} {}\n", names.join(" ")));
        self
    }

    /// The daemon's program, on its own disk or in a group if it has one.
    fn program(&self) -> Command {
        if let Some(group) = &self.group {
            let mut command = Command::new("sh");
            command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(group).arg(sandglass());
            return command;
        }
        const MOUNT: &str = "mount -o loop \"$0\" \"$1\" && shift && exec \"$@\"";
        let Some(bytes) = self.disk_bytes else { return self.program_with_hosts() };
        let disk = self.folder.join("disk");
        if !disk.exists() {
            std::fs::File::create(&disk).and_then(|file| file.set_len(bytes)).expect("make a disk");
            let mut make = Command::new(tool("mkfs.ext4"));
            // What mkfs leaves for later would be written while something is measured.
            make.args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
                // In several groups: of one alone the kernel may tell one of two who make a file that no inode is
                // left, where all free ones have just been given back.
                .args(
                    self.inodes
                        .iter()
                        .flat_map(|inodes| ["-g", "4096", "-N", &inodes.to_string()].map(str::to_owned)),
                );
            let made = make.arg(&disk).status();
            assert!(made.expect("start mkfs.ext4").success(), "mkfs.ext4 fails");
            std::fs::create_dir_all(self.data_dir()).expect("make a data directory");
        }
        let mut command = Command::new(tool("unshare"));
        command.args(["--mount", "sh", "-c", MOUNT]).arg(disk).arg(self.data_dir()).arg(sandglass());
        command
    }

    fn program_with_hosts(&self) -> Command {
        const MOUNT: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let Some(hosts) = &self.hosts else { return Command::new(sandglass()) };
        let file = self.folder.join("hosts");
        std::fs::write(&file, hosts).expect("write a hosts file");
        let mut command = Command::new(tool("unshare"));
        command.args(["--mount", "sh", "-c", MOUNT]).arg(file).arg(sandglass());
        command
    }

    /// The daemon's data directory, before and after its life.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Makes a key with `sandglass key create WORDS…`, before the daemon starts or while it runs.
    #[track_caller]
    pub fn key(&self, words: &[&str]) -> String {
        let done = self.key_command(&[&["create"], words].concat());
        assert!(done.status.success(), "{}", done.stderr_text());
        done.stdout_text().trim().to_owned()
    }

    /// `sandglass key WORDS…` on the daemon's data directory.
    #[track_caller]
    pub fn key_command(&self, words: &[&str]) -> Finished {
        let mut command = Command::new(sandglass());
        Finished::of(command.arg("key").args(words).arg("--data-dir").arg(self.data_dir()))
    }

    /// Gives a principal a login of its own at a registry, with `sandglass key login`.
    #[track_caller]
    pub fn login(&self, principal: &str, registry: &str, user: &str, password: &str) {
        let script = "printf %s \"$PASSWORD\" | \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(sandglass());
        command.args(["key", "login", principal, registry, "--username", user, "--password-stdin"]);
        let done = Finished::of(command.arg("--data-dir").arg(self.data_dir()).env("PASSWORD", password));
        assert!(done.status.success(), "{}", done.stderr_text());
    }

    /// Starts the daemon and waits until it listens.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let process = self.spawn();
        let address = process.wait_for_line("where it listens", START_BOUND, |line| {
            line.strip_prefix("listening on ")?.split_once("://")?.1.parse().ok()
        });
        let launcher = within(Duration::from_secs(5), "a launcher below the daemon", || {
            host::children(process.pid()).first().copied()
        });
        Daemon { process, address, launcher, builder: self }
    }

    /// Starts the daemon without waiting, for tests in which it refuses to start.
    #[track_caller]
    pub fn spawn(&self) -> Process {
        let mut command = self.program();
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data_dir())
            .args(&self.args);
        // What a developer has logged in to is nothing for a test.
        command.env("SANDGLASS_DOCKER_CONFIG", "").env("SANDGLASS_LOG_FORMAT", "text");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        Process::start("sandglass serve", command)
    }
}

/// A running daemon. Dropping it stops it as an operator would, and waits.
#[derive(Debug)]
pub struct Daemon {
    // Before the builder, whose folder must outlive the process.
    process: Process,
    address: SocketAddr,
    launcher: i32,
    builder: Builder,
}

impl Daemon {
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A daemon with the host image and nothing else set.
    #[track_caller]
    pub fn start() -> Self {
        Self::builder().host_image().start()
    }

    /// A daemon that pulls from `registry`.
    #[track_caller]
    pub fn with_registry(registry: &Registry) -> Self {
        Self::builder().registry(registry).start()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.builder.data_dir()
    }

    /// How it was started: makes keys for it, too.
    pub fn builder_of(&self) -> &Builder {
        &self.builder
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub fn launcher_pid(&self) -> i32 {
        self.launcher
    }

    /// Everything that it has logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits for a line with this text, which comes through a pipe and so may come after an answer does.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        crate::until(&format!("{text:?} in the log"), || self.log().contains(text));
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What of this daemon can be seen on the host now, to be compared later.
    pub fn host(&self) -> Host {
        Host::observe(self)
    }

    pub fn request(&self, method: &str, path: &str) -> Request {
        Request::new(self.address, method, path)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path).send()
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Response {
        self.request("DELETE", path).send()
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path).json(body).send()
    }

    /// Runs a command, expects that the run took place, and returns it.
    #[track_caller]
    pub fn run(&self, body: &Value) -> Value {
        self.post("/runs", body).expect(200)
    }

    /// Starts a run and comes back at once with its id.
    #[track_caller]
    pub fn run_async(&self, body: &Value) -> String {
        let request = self.request("POST", "/runs").header("Prefer", "respond-async");
        let run = request.json(body).send().expect(202);
        run["id"].as_str().expect("a run has an id").to_owned()
    }

    /// A run as it stands.
    #[track_caller]
    pub fn show(&self, id: &str) -> Value {
        self.get(&format!("/runs/{id}")).expect(200)
    }

    /// Waits until a run is in that state.
    #[track_caller]
    pub fn wait_for_state(&self, id: &str, state: &str) -> Value {
        within(Duration::from_secs(60), &format!("run {id} in state {state}"), || {
            let run = self.show(id);
            (run["state"] == state).then_some(run)
        })
    }

    /// The value of one metric, with its labels written exactly as in `/metrics`; 0 if it is not there.
    #[track_caller]
    pub fn metric(&self, name_and_labels: &str) -> f64 {
        let text = self.get("/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix(name_and_labels)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a metric's value is a number"))
    }

    /// SIGTERM, and its end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process.stop()
    }

    /// SIGKILL: it gets no chance to clean up.
    #[track_caller]
    pub fn kill9(&mut self) -> ExitStatus {
        self.process.kill9()
    }

    /// Starts it again on the same folders, after stopping it if it still runs. The port is another.
    #[track_caller]
    pub fn restart(mut self) -> Self {
        if self.process.try_wait().is_none() {
            self.stop();
        }
        self.builder.clone().start()
    }
}
