//! Sandglass as one meets it: the released programs with the settings that they have by themselves, asked
//! over HTTP/1.1 by clients that keep their connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use support::{Daemon, Value, json};

use super::Subject;
use crate::load::{self, Client, Mode, Sample};
use crate::workbench::{Program, Workbench};

const PATIENCE: Duration = Duration::from_secs(60);

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
        Http::new(self.address(), &self.request(program).context("no program")?)
    }
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

/// One kept connection and the one request that it makes.
pub(crate) struct Http {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Http {
    pub(crate) fn new(address: SocketAddr, body: &Value) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connect")?;
        stream.set_nodelay(true).context("send at once")?;
        stream.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
        let body = body.to_string();
        let request = format!(
            "POST /runs HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { stream, request: request.into_bytes(), answer: Vec::new() })
    }

    /// Reads one answer, whose body has a length, and returns where that begins.
    fn read(&mut self) -> Result<usize> {
        self.answer.clear();
        let mut buffer = [0; 16 << 10];
        let mut whole = None;
        loop {
            let count = self.stream.read(&mut buffer).context("read an answer")?;
            ensure!(count > 0, "the connection was closed");
            self.answer.extend_from_slice(&buffer[..count]);
            if whole.is_none() {
                whole = extent(&self.answer)?;
            }
            if let Some((head, body)) = whole
                && self.answer.len() >= head + body
            {
                return Ok(head);
            }
        }
    }
}

/// How long an answer's head is, and its body, once the head is there.
fn extent(answer: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end]).context("read an answer's head")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
    });
    Ok(Some((end + 4, length.context("an answer has no Content-Length")?)))
}

impl Client for Http {
    fn run(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).context("send a request")?;
        let head = self.read()?;
        let (answer, body) = self.answer.split_at(head);
        let run: Value = serde_json::from_slice(body).context("read a run")?;
        if !answer.starts_with(b"HTTP/1.1 200 ") || run["exit_code"] != 0 {
            bail!("{run}");
        }
        Ok(())
    }
}
