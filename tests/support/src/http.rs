//! HTTP/1.1 by hand: one request, one connection. Tests send what no careful library would send,
//! and see exactly what came back.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::scaled;

/// Longer than any run of the tests; a server that hangs is found all the same.
const PATIENCE: Duration = Duration::from_secs(120);

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Request {
    address: SocketAddr,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    patience: Duration,
}

impl Request {
    pub fn new(address: SocketAddr, method: &str, path: &str) -> Self {
        Self {
            address,
            method: method.into(),
            path: path.into(),
            headers: Vec::new(),
            body: Vec::new(),
            patience: scaled(PATIENCE),
        }
    }

    /// Adds a header. `Host`, `Content-Length` and `Connection` replace what would be sent otherwise.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Display) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    /// Asks as the holder of this key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("Authorization", format!("Bearer {key}"))
    }

    /// A body of any bytes, without a content type.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        let body = without_walls(body.clone(), &self.path);
        self.header("Content-Type", "application/json").body(body.to_string())
    }

    /// How long to wait for any byte of the answer.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = scaled(patience);
        self
    }

    /// Sends the request and reads the whole answer.
    #[track_caller]
    pub fn send(self) -> Response {
        let what = format!("{} {}", self.method, self.path);
        self.try_send().unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    pub fn try_send(self) -> std::io::Result<Response> {
        self.begin()?.finish()
    }

    /// Sends the request and leaves the answer to be read. Dropping the pending answer hangs up.
    pub fn begin(self) -> std::io::Result<Pending> {
        let mut stream = TcpStream::connect_timeout(&self.address, self.patience)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let head_only = self.method == "HEAD";
        stream.write_all(&self.head())?;
        // A server may refuse by the headers alone and close; its answer is what matters then.
        let sent = stream.write_all(&self.body);
        Ok(Pending { stream, head_only, sent })
    }

    fn head(&self) -> Vec<u8> {
        let given = |name: &str| self.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        if !given("host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        if !given("connection") {
            head += "Connection: close\r\n";
        }
        let has_length = given("content-length") || given("transfer-encoding");
        if !has_length && (!self.body.is_empty() || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH"))
        {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        (head + "\r\n").into_bytes()
    }
}

/// A request that has been sent.
#[derive(Debug)]
pub struct Pending {
    stream: TcpStream,
    head_only: bool,
    sent: std::io::Result<()>,
}

impl Pending {
    pub fn finish(self) -> std::io::Result<Response> {
        match read(BufReader::new(&self.stream), self.head_only) {
            Ok(response) => Ok(response),
            Err(error) => self.sent.and(Err(error)),
        }
    }

    /// The connection itself, for tests that look at what comes piece by piece.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// What came back, whatever its status.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the answer {} {:?}", self.status, self.text()))
    }

    /// The answer's JSON, if the status is the one expected.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// The problem document, after checking that it is one, of that status and type (`bad-request`…).
    #[track_caller]
    pub fn problem(&self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text());
        let problem = self.json();
        assert_eq!(problem["type"], format!("/problems/{name}"), "{problem:#}");
        assert_eq!(problem["status"], status, "{problem:#}");
        problem
    }
}

fn read(mut stream: impl BufRead, head_only: bool) -> std::io::Result<Response> {
    let (status, headers) = loop {
        let (status, headers) = read_head(&mut stream)?;
        if status >= 200 {
            break (status, headers);
        }
    };
    let header =
        |name: &str| headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    let mut body = Vec::new();
    if head_only || matches!(status, 204 | 304) {
        // These have none, whatever their headers say.
    } else if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        read_chunks(&mut stream, &mut body)?;
    } else if let Some(length) = header("content-length") {
        body.resize(length.parse().map_err(|_| bad(format!("content-length is {length:?}")))?, 0);
        stream.read_exact(&mut body)?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok(Response { status, headers, body })
}

pub(crate) type Head = (u16, Vec<(String, String)>);

pub(crate) fn read_head(stream: &mut impl BufRead) -> std::io::Result<Head> {
    let first = read_line(stream)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| bad(format!("the answer begins with {first:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad(format!("a header is {line:?}")))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn read_chunks(stream: &mut impl BufRead, body: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        let line = read_line(stream)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| bad(format!("a chunk's size is {line:?}")))?;
        let before = body.len() as u64;
        stream.by_ref().take(size).read_to_end(body)?;
        if (body.len() as u64) < before + size {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        read_line(stream)?;
        if size == 0 {
            return Ok(());
        }
    }
}

pub(crate) fn read_line(stream: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn bad(words: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, words)
}

/// `cargo xtask walls` takes a wall of every run down and looks which test notices; a build without
/// removable walls takes the label for any other.
fn without_walls(mut body: Value, path: &str) -> Value {
    if let (Ok(walls), "/runs", Some(fields)) =
        (std::env::var("SANDGLASS_WITHOUT_WALLS"), path, body.as_object_mut())
    {
        let labels = fields.entry("labels").or_insert_with(|| serde_json::json!({}));
        labels["without-walls"] = walls.into();
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_every_shape_are_read() {
        for (answer, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhixx", 200, "hi"),
            (
                "HTTP/1.1 429 Busy\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x\r\nd\r\n0\r\n\r\n",
                429,
                "abcd",
            ),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\n", 204, ""),
            ("HTTP/1.0 500 Oh\r\n\r\nall that comes", 500, "all that comes"),
        ] {
            let response = read(answer.as_bytes(), false).unwrap();
            assert_eq!((response.status, response.text().as_str()), (status, body));
        }
        for answer in ["", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"] {
            assert!(read(answer.as_bytes(), false).is_err(), "{answer:?}");
        }
    }
}
