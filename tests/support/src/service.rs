//! A service that was started in some way of its own: in a container, or by somebody who is not root.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::{self, Host};
use crate::{Process, Request, Response, Value, within};

/// Dropping it stops it as an operator would.
#[derive(Debug)]
pub struct Service {
    process: Process,
    address: SocketAddr,
}

impl Service {
    /// Waits until it listens.
    #[track_caller]
    pub fn wait_for(process: Process) -> Self {
        let address = process.wait_for_line("where it listens", Duration::from_secs(60), |line| {
            line.strip_prefix("listening on http://")?.parse().ok()
        });
        Self { process, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What of it can be seen on the host now, to be compared later; its data is in `data_dir`.
    #[track_caller]
    pub fn host(&self, data_dir: PathBuf) -> Host {
        let server = self.pid();
        let launcher = within(Duration::from_secs(5), "a launcher below the server", || {
            host::children(server).first().copied()
        });
        Host::of(server, launcher, data_dir)
    }

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
        self.process.log()
    }

    /// Its main process, as the host sees it.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let port = format!("{:04X}", self.address.port());
        within(Duration::from_secs(5), "a process that listens on its port", || owner_of(&port))
    }

    /// Stops it as an operator would, and returns its exit code.
    #[track_caller]
    pub fn stop(mut self) -> Option<i32> {
        self.process.stop().code()
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
