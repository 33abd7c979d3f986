//! The first command of the README: build, serve, and show what a first run looks like.
//! The server takes the place of this process, so that Ctrl-C reaches it and nothing stands between;
//! the first request comes from a second process, which is no child of the server's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::{cargo, pretty};

const ADDRESS: &str = "127.0.0.1:8080";
const BODY: &str = r#"{"image":"host","cmd":"echo","args":["hello from a fresh sandbox"]}"#;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    match words {
        [word, address, server] if word == "client" => {
            // Whoever started us goes on at once; the client that we leave behind is nobody's to wait for.
            this_program(&["demo", "first-run", address, server])?
                .spawn()
                .context("start the first client")?;
            Ok(ExitCode::SUCCESS)
        }
        [word, address, server] if word == "first-run" => show_first_run(address, server),
        [] => serve(ADDRESS),
        [option, address] if option == "--listen" => serve(address),
        _ => bail!("usage: cargo xtask demo [--listen ADDRESS:PORT]"),
    }
}

fn serve(address: &str) -> Result<ExitCode> {
    let wanted: SocketAddr =
        address.parse().with_context(|| format!("{address} is not an address with a port"))?;
    // Asked before the long build, and again by the server, which has the last word.
    drop(std::net::TcpListener::bind(wanted).with_context(|| format!("listen on {address}"))?);
    let programs = cargo::build(&["--release", "--package", "sandglass", "--bins"])?;
    programs.get("sandglass-launcher")?;
    let mut command = as_root(programs.get("sandglass")?)?;
    command.args(["serve", "--allow-host-image", "--log", "warn", "--listen", address]);
    command.arg("--data-dir").arg(data_dir()?);
    let server = std::process::id().to_string();
    let client =
        this_program(&["demo", "client", address, &server])?.status().context("start the first client")?;
    ensure!(client.success(), "the first client could not be started");
    Err(anyhow!(command.exec()).context("start the server"))
}

fn this_program(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(words);
    Ok(command)
}

/// Namespaces with many ids, cgroups and mounts are root's to make.
fn as_root(program: &Path) -> Result<Command> {
    if std::fs::metadata("/proc/self").context("ask who we are")?.uid() == 0 {
        return Ok(Command::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sudo = std::env::split_paths(&path).map(|folder| folder.join("sudo")).find(|sudo| sudo.exists());
    let Some(sudo) = sudo else {
        bail!("the service must be started as root, and there is no sudo here: run this again as root");
    };
    eprintln!("the service must be started as root (it gives that up once its launcher runs): asking sudo");
    let mut command = Command::new(sudo);
    command.arg("--").arg(program);
    Ok(command)
}

/// The server becomes a user of its own, who must be able to reach its folder.
fn data_dir() -> Result<PathBuf> {
    let beside = cargo::target().join("demo");
    std::fs::create_dir_all(&beside).with_context(|| format!("create {}", beside.display()))?;
    let reachable =
        |folder: &Path| std::fs::metadata(folder).is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
    let beside = beside.canonicalize().context("find target/demo")?;
    if beside.ancestors().all(reachable) {
        Ok(beside.join("data"))
    } else {
        Ok("/var/lib/sandglass-demo".into())
    }
}

/// Waits until the server is ready, runs `echo` once and shows the answer.
fn show_first_run(address: &str, server: &str) -> Result<ExitCode> {
    let server = Path::new("/proc").join(server);
    let started = Instant::now();
    while !request(address, "GET", "/readyz", "").is_ok_and(|(status, _)| status == 200) {
        // Whatever kept the server from starting has been said by the server.
        if !server.exists() {
            return Ok(ExitCode::FAILURE);
        }
        ensure!(started.elapsed() < PATIENCE, "the server was not ready within {} s", PATIENCE.as_secs());
        sleep(Duration::from_millis(20));
    }
    let (status, body) = request(address, "POST", "/runs", BODY)?;
    println!("\n$ curl -s http://{address}/runs -d '{BODY}'");
    println!("{}", pretty::json(&body));
    ensure!(status == 200, "the first run was answered with {status}");
    println!("\nServing on http://{address} until Ctrl-C; its own pages are at http://{address}/docs");
    Ok(ExitCode::SUCCESS)
}

/// In HTTP/1.0 an answer ends where the connection does.
fn request(address: &str, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status =
        head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("the answer has no status")?;
    Ok((status, body.to_owned()))
}
