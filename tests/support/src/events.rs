//! Server-sent events, read as they come.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::time::SystemTime;

use serde_json::Value;

use crate::http::{Request, read_head, read_line};

/// One event, and when its last byte was here.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub id: String,
    pub data: Value,
    pub at: SystemTime,
}

/// An open stream of events. Dropping it hangs up.
#[derive(Debug)]
pub struct Events {
    stream: BufReader<TcpStream>,
    /// What of the body has come and is no whole event yet.
    text: Vec<u8>,
    /// How much of it has been looked through.
    looked: usize,
    /// Lines that say nothing but that the connection lives.
    pub comments: usize,
    ended: bool,
}

impl Events {
    /// Sends the request and expects a stream of events.
    #[track_caller]
    pub fn open(request: Request) -> Self {
        let pending = request.header("Accept", "text/event-stream").begin().expect("send a request");
        let mut stream = BufReader::new(pending.into_stream());
        let (status, headers) = read_head(&mut stream).expect("an answer");
        let kind = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        assert_eq!((status, kind.map(|(_, kind)| kind.as_str())), (200, Some("text/event-stream")));
        Self { stream, text: Vec::new(), looked: 0, comments: 0, ended: false }
    }

    /// One more chunk of the body; nothing at its end.
    fn receive(&mut self) -> std::io::Result<()> {
        let size = read_line(&mut self.stream)?;
        let size = u64::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
        self.stream.by_ref().take(size).read_to_end(&mut self.text)?;
        read_line(&mut self.stream)?;
        self.ended = size == 0;
        Ok(())
    }

    /// The connection's other bytes, for those who stop reading.
    pub fn stop_reading(self) -> TcpStream {
        self.stream.into_inner()
    }

    /// The next event of that name; the stream may not end before.
    #[track_caller]
    pub fn until(&mut self, name: &str) -> Event {
        self.find(|event| event.name == name).unwrap_or_else(|| panic!("the stream ended without {name}"))
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            let new = &self.text[self.looked..];
            if let Some(end) = new.windows(2).position(|two| two == b"\n\n") {
                let rest = self.text.split_off(self.looked + end + 2);
                self.looked = 0;
                let block = std::mem::replace(&mut self.text, rest);
                if let Some(event) = parse(&block) {
                    return Some(event);
                }
                self.comments += 1;
                continue;
            }
            if self.ended {
                assert!(self.text.is_empty(), "half an event at the end");
                return None;
            }
            self.looked = self.text.len().saturating_sub(1);
            self.receive().expect("more of the stream");
        }
    }
}

fn parse(block: &[u8]) -> Option<Event> {
    let mut event =
        Event { name: String::new(), id: String::new(), data: Value::Null, at: SystemTime::now() };
    for line in block.lines().map_while(Result::ok).filter(|line| !line.is_empty()) {
        match line.split_once(':').expect("a field") {
            ("", _) => return None,
            ("event", name) => event.name = name.trim().to_owned(),
            ("id", id) => event.id = id.trim().to_owned(),
            ("data", data) => event.data = serde_json::from_str(data).expect("the data is JSON"),
            (other, _) => panic!("a field named {other:?}"),
        }
    }
    Some(event)
}
