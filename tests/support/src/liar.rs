//! A registry that lies and stalls: it stands in front of a real one, passes on what it is told to
//! pass on, and spoils the rest.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;

use crate::registry::{PASSWORD, USER};
use crate::{Registry, Request, Response};

/// What is done with one request.
#[derive(Clone, Debug)]
pub enum Lie {
    /// Pass on what the real registry says.
    Truth,
    /// Pass it on with these headers besides.
    TruthWith(Vec<(String, String)>),
    /// Say this instead: status, headers, body.
    Say(u16, Vec<(String, String)>, Vec<u8>),
    /// Promise the whole body, send only this many bytes of it, and hang up.
    Truncate(usize),
    /// Change one byte in the middle of the body.
    Corrupt,
    /// A body in chunks that never ends, of an image's compressed bytes as far as anybody can tell.
    Endless,
    /// Send the body a byte at a time, with a pause in between.
    Drip(Duration),
    /// Send this many bytes of the body and then nothing more, without hanging up, until the liar is dropped.
    Stall(usize),
}

/// The front. It is at an address of its own and stops when it is dropped.
#[derive(Debug)]
pub struct Liar {
    address: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

/// One request, as far as a liar looks at it.
pub(crate) struct Asked<'a> {
    pub(crate) host: &'a str,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) authorization: &'a str,
}

pub(crate) type Decide = dyn Fn(&Asked<'_>) -> Lie + Send + Sync;

struct State {
    real: SocketAddr,
    decide: Box<Decide>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    stopping: bool,
    open: Vec<TcpStream>,
    asked: Vec<String>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("real", &self.real).finish_non_exhaustive()
    }
}

impl Liar {
    /// `decide` is asked with the method and the path of each request.
    pub fn before(registry: &Registry, decide: impl Fn(&str, &str) -> Lie + Send + Sync + 'static) -> Self {
        Self::start(registry, |_| Box::new(move |asked: &Asked<'_>| decide(asked.method, asked.path)))
    }

    /// Lets nobody in without a bearer token, as Docker Hub does. Anybody gets one at `/token`, or only
    /// who knows [`USER`] and [`PASSWORD`], if `logged_in`.
    pub fn that_wants_tokens(registry: &Registry, logged_in: bool) -> Self {
        Self::start(registry, |address| {
            let realm = format!(
                "Bearer realm=\"http://{address}/token\",service=\"tests\",scope=\"repository:x:pull\""
            );
            let login = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
            let json = |body: &str| {
                (vec![("Content-Type".to_owned(), "application/json".to_owned())], body.as_bytes().to_vec())
            };
            Box::new(move |asked: &Asked<'_>| {
                let known = !logged_in || asked.authorization == format!("Basic {login}");
                match asked.path.split('?').next() {
                    Some("/token") if known => {
                        let (headers, body) = json(r#"{"token": "let-me-in", "expires_in": 300}"#);
                        Lie::Say(200, headers, body)
                    }
                    _ if asked.authorization == "Bearer let-me-in" => Lie::Truth,
                    _ => {
                        let (mut headers, body) = json(r#"{"errors": [{"code": "UNAUTHORIZED"}]}"#);
                        headers.push(("WWW-Authenticate".into(), realm.clone()));
                        Lie::Say(401, headers, body)
                    }
                }
            })
        })
    }

    /// Wants tokens and tells people apart: NAME logs in with the password NAME, and has what `may` says of the
    /// name and the path. Who does not log in gets a token too, of the name that is empty.
    pub fn that_tells_apart(
        registry: &Registry,
        may: impl Fn(&str, &str) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::start(registry, |address| {
            let realm = format!("Bearer realm=\"http://{address}/token\",service=\"tests\"");
            let refuse = move || Lie::Say(401, vec![("WWW-Authenticate".into(), realm.clone())], Vec::new());
            let user = |authorization: &str| {
                let login = authorization.strip_prefix("Basic ").unwrap_or_default();
                let login = base64::prelude::BASE64_STANDARD.decode(login).unwrap_or_default();
                let login = String::from_utf8_lossy(&login).into_owned();
                let (name, password) = login.split_once(':').unwrap_or_default();
                (name == password).then(|| name.to_owned())
            };
            Box::new(move |asked: &Asked<'_>| {
                if asked.path.starts_with("/token") {
                    let Some(name) = user(asked.authorization) else { return refuse() };
                    let body = format!(r#"{{"token": "of-{name}", "expires_in": 300}}"#);
                    return Lie::Say(
                        200,
                        vec![("Content-Type".into(), "application/json".into())],
                        body.into(),
                    );
                }
                match asked.authorization.strip_prefix("Bearer of-") {
                    Some(name) if may(name, asked.path) => Lie::Truth,
                    _ => refuse(),
                }
            })
        })
    }

    /// As [`Liar::that_wants_tokens`], of anybody; but each token is good for `requests` requests only.
    pub fn with_tokens_for(registry: &Registry, requests: usize) -> Self {
        Self::start(registry, |address| {
            let realm = format!("Bearer realm=\"http://{address}/token\",service=\"tests\"");
            // The token that is good now, and how often it still is.
            let good = Mutex::new((0, 0));
            Box::new(move |asked: &Asked<'_>| {
                let mut good = good.lock().unwrap_or_else(PoisonError::into_inner);
                if asked.path.starts_with("/token") {
                    *good = (good.0 + 1, requests);
                    let body = format!(r#"{{"token": "token-{}", "expires_in": 300}}"#, good.0);
                    return Lie::Say(
                        200,
                        vec![("Content-Type".into(), "application/json".into())],
                        body.into(),
                    );
                }
                if asked.authorization == format!("Bearer token-{}", good.0) && good.1 > 0 {
                    good.1 -= 1;
                    return Lie::Truth;
                }
                Lie::Say(401, vec![("WWW-Authenticate".into(), realm.clone())], Vec::new())
            })
        })
    }

    fn start(registry: &Registry, decide: impl FnOnce(SocketAddr) -> Box<Decide>) -> Self {
        Self::start_at("127.0.0.1:0", registry, decide)
    }

    pub(crate) fn start_at(
        place: &str,
        registry: &Registry,
        decide: impl FnOnce(SocketAddr) -> Box<Decide>,
    ) -> Self {
        let listener = TcpListener::bind(place).expect("listen on a port");
        let address = listener.local_addr().expect("a listener has an address");
        let inner = Mutex::default();
        let state = Arc::new(State { real: registry.address(), decide: decide(address), inner });
        let shared = Arc::clone(&state);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                {
                    let mut inner = state.lock();
                    if inner.stopping {
                        return;
                    }
                    inner.open.extend(stream.try_clone());
                }
                std::thread::spawn(move || {
                    // A client that goes away in the middle is what many of the tests want.
                    let _ = state.answer(&stream);
                    // The other end of it is kept open for `drop`, so closing ours would not hang up.
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { address, state, accepting: Some(accepting) }
    }

    /// `127.0.0.1:PORT`, as references and flags write it.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Every request so far, as `GET /v2/…`.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().asked.clone()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        let open = {
            let mut inner = self.state.lock();
            inner.stopping = true;
            std::mem::take(&mut inner.open)
        };
        for stream in open {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request, one answer, and the connection ends.
    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream);
        let mut first = String::new();
        lines.read_line(&mut first)?;
        let mut words = first.split_whitespace();
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
        let mut request = Request::new(self.real, method, path);
        let (mut authorization, mut host) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            lines.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("authorization") {
                value.trim().clone_into(&mut authorization);
            }
            if name.eq_ignore_ascii_case("host") {
                value.trim().clone_into(&mut host);
            }
            if ["accept", "authorization", "user-agent", "range"].contains(&name.to_lowercase().as_str()) {
                request = request.header(name, value.trim());
            }
        }
        self.lock().asked.push(format!("{method} {path}"));
        let lie = (self.decide)(&Asked { host: &host, method, path, authorization: &authorization });
        if let Lie::Say(status, headers, body) = lie {
            return send(stream, &Response { status, headers, body }, usize::MAX);
        }
        if let Lie::Endless = lie {
            return send_without_end(stream);
        }
        let mut truth = request.try_send()?;
        match lie {
            Lie::Truth | Lie::Say(..) | Lie::Endless => send(stream, &truth, usize::MAX),
            Lie::TruthWith(headers) => {
                truth.headers.extend(headers);
                send(stream, &truth, usize::MAX)
            }
            Lie::Drip(pause) => {
                send(stream, &truth, 0)?;
                for byte in &truth.body {
                    (&*stream).write_all(&[*byte])?;
                    std::thread::sleep(pause);
                }
                Ok(())
            }
            Lie::Truncate(bytes) => send(stream, &truth, bytes),
            Lie::Corrupt => {
                let middle = truth.body.len() / 2;
                if let Some(byte) = truth.body.get_mut(middle) {
                    *byte ^= 0xff;
                }
                send(stream, &truth, usize::MAX)
            }
            Lie::Stall(bytes) => {
                send(stream, &truth, bytes)?;
                // Ends when the client gives up or the liar is dropped.
                lines.read_to_end(&mut Vec::new()).map(drop)
            }
        }
    }
}

/// Promises all of the body and sends the first `most` bytes of it.
fn send(mut stream: &TcpStream, response: &Response, most: usize) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\n", response.status);
    let own = ["connection", "transfer-encoding", "content-length"];
    for (name, value) in &response.headers {
        if !own.contains(&name.to_lowercase().as_str()) {
            head += &format!("{name}: {value}\r\n");
        }
    }
    let promised = response.header("content-length").filter(|_| response.body.is_empty());
    let length = promised.map_or(response.body.len().to_string(), str::to_owned);
    head += &format!("Content-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&response.body[..most.min(response.body.len())])?;
    stream.flush()
}

/// Until the client has had enough.
fn send_without_end(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let mut chunk = b"10000\r\n".to_vec();
    chunk.resize(chunk.len() + 0x10000, b'x');
    chunk.extend_from_slice(b"\r\n");
    loop {
        stream.write_all(&chunk)?;
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn tokens_are_given_to_whom_they_belong() {
        let registry = Registry::empty();
        let ask = |liar: &Liar, path: &str, authorization: &str| {
            Request::new(liar.address, "GET", path).header("Authorization", authorization).send().status
        };
        for (logged_in, anonymous) in [(false, 200), (true, 401)] {
            let liar = Liar::that_wants_tokens(&registry, logged_in);
            assert_eq!(ask(&liar, "/token?scope=x", ""), anonymous);
            assert_eq!(ask(&liar, "/token", "Basic c2FuZGdsYXNzOnNlY3JldA=="), 200);
            assert_eq!(ask(&liar, "/v2/", "Bearer wrong"), 401);
            assert_eq!(ask(&liar, "/v2/", "Bearer let-me-in"), 200);
        }
    }

    #[test]
    fn it_passes_on_spoils_and_stalls() {
        let registry = Registry::empty();
        let liar = Liar::before(&registry, |_, path| match path {
            "/say" => Lie::Say(429, vec![("Retry-After".into(), "7".into())], b"later".to_vec()),
            "/cut" => Lie::Truncate(0),
            "/stall" => Lie::Stall(1),
            _ => Lie::Truth,
        });
        let ask = |path: &str| Request::new(liar.address, "GET", path).patience(Duration::from_millis(500));
        assert_eq!(ask("/v2/").send().text(), "{}");
        let said = ask("/say").send();
        assert_eq!(
            (said.status, said.header("retry-after"), said.text().as_str()),
            (429, Some("7"), "later")
        );
        assert_eq!(ask("/cut").try_send().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert_eq!(ask("/stall").try_send().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(liar.asked(), ["GET /v2/", "GET /say", "GET /cut", "GET /stall"]);
    }
}
