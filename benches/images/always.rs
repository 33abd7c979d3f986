//! `pull: always` where nothing has changed: the registry is asked once, and the rest is nearly nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use support::{image::MANIFEST, json};

use crate::Row;
use crate::world::{World, image_ms, median, ms, nothing, pull};

const RUNS: usize = 150;

pub(crate) fn measure(world: &World) -> Result<Vec<Row>> {
    let daemon = world.server().start();
    let image = world.image("gcc");
    pull(&daemon, &image)?;
    let mut always = nothing(&image);
    always["pull"] = json!("always");
    image_ms(&daemon, &always, 10)?;

    let before = world.registry.seen().len();
    image_ms(&daemon, &always, RUNS)?;
    let asked = world.registry.seen().split_off(before);
    let is_head = asked.iter().all(|seen| seen.method == "HEAD");
    ensure!(is_head, "the registry was asked for more than heads: {asked:?}");

    let mut registry = Heads::connect(world)?;
    let (mut trips, mut waits) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        trips.push(ms(registry.ask()?));
        waits.extend(image_ms(&daemon, &always, 1)?);
    }
    let (trip, wait) = (median(&trips), median(&waits));
    Ok(vec![
        Row {
            what: "`pull: always`, tag unchanged: HEAD requests a run".into(),
            unit: "",
            most: 1.0,
            measured: asked.len() as f64 / RUNS as f64,
            of: format!("{RUNS} runs; no other request"),
        },
        Row {
            what: "`pull: always`, tag unchanged: more than a round trip, p50".into(),
            unit: "ms",
            most: 1.0,
            measured: wait - trip,
            of: format!("{RUNS} of each in turns: {wait:.2} ms, and a HEAD of our own {trip:.2} ms"),
        },
    ])
}

/// A kept connection to the registry on which a tag is asked about, and nothing done with the answer.
struct Heads {
    stream: TcpStream,
    request: String,
}

impl Heads {
    fn connect(world: &World) -> Result<Self> {
        let stream = TcpStream::connect(world.registry.address()).context("connect to the registry")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let request = format!(
            "HEAD /v2/gcc/manifests/1 HTTP/1.1\r\nHost: {}\r\nAccept: {MANIFEST}\r\n\r\n",
            world.registry.host()
        );
        Ok(Self { stream, request })
    }

    /// From the question to the end of the answer, which has no body.
    fn ask(&mut self) -> Result<Duration> {
        std::thread::sleep(Duration::from_millis(10));
        let began = Instant::now();
        self.stream.write_all(self.request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer)?;
            ensure!(count > 0, "the registry has hung up");
            answer.extend_from_slice(&buffer[..count]);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        Ok(began.elapsed())
    }
}
