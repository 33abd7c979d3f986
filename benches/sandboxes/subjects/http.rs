//! A client of a service that answers a `POST` with how a run has ended. It is the same for all of them, so that what
//! it costs meets all alike.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use support::Value;

use crate::load::Client;

const PATIENCE: Duration = Duration::from_secs(60);

/// One kept connection and the one request that it makes.
pub(crate) struct Http {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    is_right: fn(&Value) -> bool,
}

impl Http {
    /// `is_right` tells by an answer whether the program was run, and ended well.
    pub(crate) fn new(
        address: SocketAddr,
        path: &str,
        body: &Value,
        is_right: fn(&Value) -> bool,
    ) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connect")?;
        stream.set_nodelay(true).context("send at once")?;
        stream.set_read_timeout(Some(PATIENCE)).context("set a timeout")?;
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { stream, request: request.into_bytes(), answer: Vec::new(), is_right })
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
        let run: Value = serde_json::from_slice(body).context("read an answer's JSON")?;
        if !answer.starts_with(b"HTTP/1.1 200 ") || !(self.is_right)(&run) {
            bail!("{run}");
        }
        Ok(())
    }
}
