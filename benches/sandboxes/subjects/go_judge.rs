//! go-judge as one meets it: its server with the settings that it has by itself, asked over HTTP/1.1 by the same
//! clients as Sandglass. It runs at once as many programs as there are processors, each in a container of a pool, and
//! the container goes back to the pool for the next program, whosever that is.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use support::{Folder, Process, Value, json};

use super::Subject;
use super::command::{bare, installed, version};
use super::http::Http;
use crate::load::{self, Client, Mode, Sample};
use crate::workbench::{PATH, PROGRAMS, Program, Workbench};

/// How long the server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct GoJudge {
    what: String,
    address: SocketAddr,
    // In the order in which they go: the server, what it leaves behind, and the folder that it was started in.
    _server: Process,
    _groups: Groups,
    _folder: Folder,
}

impl GoJudge {
    /// In its containers a `/proc` is mounted from within a user namespace, which not every machine allows.
    pub(crate) fn new(workbench: &Workbench) -> Result<Self> {
        let program = installed("go-judge")?;
        let with_proc = |proc| {
            let started = Self::start(&program, workbench, proc)?;
            started.try_out(&PROGRAMS[0])?;
            Ok(started)
        };
        with_proc(true).or_else(|_: anyhow::Error| with_proc(false))
    }

    fn start(program: &Path, workbench: &Workbench, proc: bool) -> Result<Self> {
        let folder = Folder::new();
        let mounts = folder.join("mount.yaml");
        fs::write(&mounts, mounted(&workbench.root(), proc).to_string()).context("write mount.yaml")?;
        // Whoever listens on a port that the kernel has chosen has to be told of it: so it is let go again.
        let free = TcpListener::bind("127.0.0.1:0").context("find a port")?;
        let address = free.local_addr().context("find a port")?;
        drop(free);
        let groups = Groups(format!("sandglass-bench-{}", std::process::id()));
        let mut command = bare(program);
        command.current_dir(folder.path()).arg("-http-addr").arg(address.to_string());
        command.args(["-release", "-silent", "-cgroup-prefix", &groups.0, "-mount-conf"]).arg(mounts);
        let mut server = Process::start("go-judge", command);
        listens(&mut server, address)?;
        let what = what(&version_of(program), proc);
        Ok(Self { what, address, _server: server, _groups: groups, _folder: folder })
    }

    fn client(&self, program: &Program) -> Result<Http> {
        Http::new(self.address, "/run", &request(program), |answer| answer[0]["status"] == "Accepted")
    }
}

impl Subject for GoJudge {
    fn name(&self) -> &'static str {
        "go-judge"
    }

    fn what(&self) -> String {
        self.what.clone()
    }

    fn try_out(&self, program: &Program) -> Result<()> {
        self.client(program)?.run()
    }

    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>> {
        load::drive(mode, || Ok(Box::new(self.client(program)?) as _)).map(Some)
    }
}

fn what(version: &str, proc: bool) -> String {
    let proc = if proc { "" } else { ", no /proc, which can't be mounted in its containers here" };
    format!(
        "`POST /run` of go-judge over HTTP/1.1 with a kept connection ({version}); containers of its pool, used again \
         and again; its own limits of time, memory and processes; default settings but `-release -silent`{proc}"
    )
}

/// One line, or that there is none.
fn version_of(program: &Path) -> String {
    let said = version(program);
    if said.is_empty() { "it does not tell its version".into() } else { said }
}

/// What it mounts by itself, but from the tree instead of from this machine. What is JSON is YAML as well.
fn mounted(root: &Path, proc: bool) -> Value {
    let bind = |path: &str, source: PathBuf, read_only: bool| json!({ "type": "bind", "source": source, "target": path, "readonly": read_only });
    let of_tree = ["/bin", "/lib", "/lib64", "/usr", "/etc/ld.so.cache", "/etc/alternatives"].into_iter();
    let of_tree = of_tree.map(|path| (path, root.join(path.trim_start_matches('/'))));
    let of_tree =
        of_tree.filter(|(_, source)| source.exists()).map(|(path, source)| bind(path, source, true));
    let devices = ["/dev/null", "/dev/urandom", "/dev/zero"].map(|path| bind(path, path.into(), false));
    let own = ["/w", "/tmp"]
        .map(|path| json!({ "type": "tmpfs", "target": path, "data": "size=128m,nr_inodes=4k" }));
    json!({
        "mount": of_tree.chain(devices).chain(own).collect::<Vec<_>>(),
        "proc": proc, "workDir": "/w", "hostName": "executor_server", "domainName": "executor_server",
        "uid": 1000, "gid": 1000,
    })
}

/// The limits are those that a run of Sandglass has by itself, but for the wall time: a hundred compilers at once
/// take longer.
fn request(program: &Program) -> Value {
    let output = |name: &str| json!({ "name": name, "max": 1 << 20 });
    json!({ "cmd": [{
        "args": program.argv, "env": [PATH], "files": [{ "content": "" }, output("stdout"), output("stderr")],
        "cpuLimit": Duration::from_secs(5).as_nanos() as u64,
        "clockLimit": Duration::from_secs(60).as_nanos() as u64,
        "memoryLimit": 256 << 20, "procLimit": 64,
    }] })
}

fn listens(server: &mut Process, address: SocketAddr) -> Result<()> {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        let ended = server.try_wait();
        ensure!(ended.is_none(), "its server has ended: {}", last_words(server));
        ensure!(started.elapsed() < PATIENCE, "its server does not listen: {}", last_words(server));
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn last_words(server: &Process) -> String {
    server.log().lines().last().unwrap_or("it has said nothing").to_owned()
}

/// The control groups below this name, of whatever version: those that nobody removes are left by the server.
struct Groups(String);

impl Drop for Groups {
    fn drop(&mut self) {
        let top = Path::new("/sys/fs/cgroup");
        for hierarchy in folders(top).into_iter().chain([top.to_owned()]) {
            remove(&hierarchy.join(&self.0));
        }
    }
}

/// Files of a control group are not there to be removed.
fn remove(group: &Path) {
    folders(group).iter().for_each(|inner| remove(inner));
    let _ = fs::remove_dir(group);
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
