//! Sandglass as one meets it: the released programs with the settings that they have by themselves, asked
//! over HTTP/1.1 by clients that keep their connections.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::{Daemon, Value, json};

use super::Subject;
use super::http::Http;
use crate::load::{self, Client, Mode, Sample};
use crate::workbench::{Program, Workbench};

pub(crate) struct Sandglass {
    daemon: Daemon,
    image: String,
}

impl Sandglass {
    pub(crate) fn new(workbench: &Workbench) -> Result<Self> {
        let (registry, image) = workbench.registry()?;
        // A line of log for each run would be read by this program, on the processors that are measured.
        let daemon = Daemon::builder().registry(&registry).flag("--log", "warn").start();
        let pulled = daemon.request("POST", "/images").json(&json!({ "image": image }));
        let pulled = pulled.patience(Duration::from_secs(300)).send();
        ensure!(pulled.status < 300, "pull the image: {}", pulled.text());
        Ok(Self { daemon, image })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.daemon.address()
    }

    /// What a client asks for.
    pub(crate) fn request(&self, program: &Program) -> Option<Value> {
        let (cmd, args) = program.argv.split_first()?;
        Some(json!({ "image": self.image, "cmd": cmd, "args": args }))
    }

    fn client(&self, program: &Program) -> Result<Http> {
        client(self.address(), &self.request(program).context("no program")?)
    }
}

/// Asks for that run, again and again.
pub(crate) fn client(address: SocketAddr, request: &Value) -> Result<Http> {
    Http::new(address, "/runs", request, |run| run["exit_code"] == 0)
}

impl Subject for Sandglass {
    fn name(&self) -> &'static str {
        "Sandglass"
    }

    fn what(&self) -> String {
        "`POST /runs` over HTTP/1.1 with a kept connection; a fresh sandbox for each run, all walls and limits; \
         default settings but `--log warn`"
            .into()
    }

    fn try_out(&self, program: &Program) -> Result<()> {
        self.client(program)?.run()
    }

    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>> {
        load::drive(mode, || Ok(Box::new(self.client(program)?) as _)).map(Some)
    }
}
