//! The server's side of the launcher: starting it from a sealed copy of its program and sending it
//! requests. Blocking only while it starts; afterwards every descriptor is non-blocking and the
//! caller waits in its own way.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use run::SetupFailure;

use crate::protocol::{Event, Hello, LaunchSpec, MAX_FILES, Order, Outline, Request};
pub use crate::setup::Options;
use crate::{packet, sys};

/// How long the launcher may take to get ready: sweeping what a predecessor left included.
const START_PATIENCE_SECONDS: i64 = 60;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("can't read the launcher {}", path.display())]
    Program { path: std::path::PathBuf, source: io::Error },
    #[error("can't start the launcher")]
    Spawn { source: io::Error },
    #[error("the launcher did not say hello")]
    Silent { source: io::Error },
    #[error("the launcher can't work here")]
    Refused { source: SetupFailure },
}

/// A started launcher. Dropping it closes its socket, and that ends it and every run.
#[derive(Debug)]
pub struct Launcher {
    socket: OwnedFd,
    child: Child,
    removals: AtomicU64,
}

/// One layer on its way into the store.
#[derive(Debug)]
pub struct Unpacking {
    pub control: OwnedFd,
    /// The compressed bytes go in here; closing it says that they were all.
    pub input: OwnedFd,
}

/// One layer on its way out of the store.
#[derive(Debug)]
pub struct Packing {
    pub control: OwnedFd,
    /// The archive comes out here.
    pub output: OwnedFd,
}

impl Launcher {
    /// Must be called before this process has a second thread.
    pub fn start(options: &Options) -> Result<(Self, Hello), StartError> {
        let path = &options.program;
        let program = seal(path).map_err(|source| StartError::Program { path: path.clone(), source })?;
        let (ours, theirs) = packet::pair().map_err(|source| StartError::Spawn { source })?;
        let arguments =
            serde_json::to_string(options).map_err(|error| StartError::Spawn { source: error.into() })?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.args(["serve", &arguments]).env_clear();
        #[cfg(feature = "removable-walls")]
        command.envs(
            std::env::var_os("SANDGLASS_WITHOUT_WALLS").map(|names| ("SANDGLASS_WITHOUT_WALLS", names)),
        );
        let child = command
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|source| StartError::Spawn { source })?;
        // It holds the launcher's end of the socket: with two holders nobody would see the launcher die.
        drop(command);
        let hello = listen(ours.as_fd()).map_err(|source| StartError::Silent { source })?;
        let hello = hello.map_err(|source| StartError::Refused { source })?;
        set_nonblocking(ours.as_fd()).map_err(|source| StartError::Spawn { source })?;
        Ok((Self { socket: ours, child, removals: AtomicU64::new(0) }, hello))
    }

    /// Readable only when the launcher is dead: after its hello it never says anything here.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has a sandbox prepared; returns its control socket. `WouldBlock` means: wait until the launcher's
    /// socket is writable.
    pub fn prepare(&self, outline: &Outline) -> io::Result<OwnedFd> {
        self.request(&Request::Prepare(Box::new(outline.clone())), &[])
    }

    pub fn unpack(&self, layer: &str, job: &str) -> io::Result<Unpacking> {
        let (read, write) = pipe()?;
        let request = Request::Unpack { layer: layer.into(), job: job.into() };
        let control = self.request(&request, &[read.as_fd()])?;
        Ok(Unpacking { control, input: write })
    }

    pub fn pack(&self, layer: &str, job: &str) -> io::Result<Packing> {
        let (read, write) = pipe()?;
        let request = Request::Pack { layer: layer.into(), job: job.into() };
        let control = self.request(&request, &[write.as_fd()])?;
        Ok(Packing { control, output: read })
    }

    /// How often layers were removed, or were about to be, or have come: a sandbox that was prepared before
    /// has layers that may be gone, or has looked for them in vain.
    pub fn removals(&self) -> u64 {
        self.removals.load(Ordering::SeqCst)
    }

    /// To be said before a layer is removed, again when it is gone, and when one has come.
    pub fn note_removal(&self) {
        self.removals.fetch_add(1, Ordering::SeqCst);
    }

    pub fn remove(&self, layer: &str) -> io::Result<OwnedFd> {
        self.request(&Request::Remove { layer: layer.into() }, &[])
    }

    pub fn adopt(&self, layer: &str) -> io::Result<OwnedFd> {
        self.request(&Request::Adopt { layer: layer.into() }, &[])
    }

    pub fn remove_former(&self) -> io::Result<OwnedFd> {
        self.request(&Request::RemoveFormer, &[])
    }

    fn request(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
        let (ours, theirs) = packet::pair()?;
        let mut all = vec![theirs.as_fd()];
        all.extend(fds);
        packet::send(self.socket.as_fd(), request, &all)?;
        set_nonblocking(ours.as_fd())?;
        Ok(ours)
    }
}

impl Drop for Launcher {
    /// The launcher ends when its socket closes, and after it has removed its cgroups; waiting for
    /// that leaves nothing behind.
    fn drop(&mut self) {
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// A larger pipe saves a switch between the two sides for every 64 KiB; the kernel may refuse.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(1 << 20));
    Ok((read, write))
}

/// Tells a sandbox what to run, whether it is ready for it by now or not.
pub fn run(
    control: BorrowedFd<'_>,
    spec: &LaunchSpec,
    stdio: [BorrowedFd<'_>; 3],
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if files.len() > MAX_FILES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one run"));
    }
    let spec = memfd("spec", &serde_json::to_vec(spec)?)?;
    let mut fds = vec![spec.as_fd()];
    fds.extend(stdio);
    fds.extend(files);
    packet::send(control, &Order::Run, &fds)
}

/// The next event of a run; `None` when its keeper has closed the socket.
pub fn receive(control: BorrowedFd<'_>) -> io::Result<Option<Event>> {
    Ok(packet::receive(control)?.map(|(event, _)| event))
}

pub fn send(control: BorrowedFd<'_>, order: Order) -> io::Result<()> {
    packet::send(control, &order, &[])
}

/// A file in memory that nobody can change any more, with its offset at the beginning.
pub fn memfd(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    sealed(name, libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING, |file| file.write_all(bytes))
}

fn sealed(name: &str, flags: u32, fill: impl Fn(&mut File) -> io::Result<()>) -> io::Result<OwnedFd> {
    let mut file = File::from(sys::memfd(name, flags)?);
    fill(&mut file)?;
    io::Seek::rewind(&mut file)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    add_seals(&file, seals)?;
    Ok(file.into())
}

/// The kernel refuses while anything of its own, such as the tracking of memory use, looks at one of the
/// pages. That is over soon.
fn add_seals(file: &File, seals: SealFlag) -> io::Result<()> {
    const TRIES: u32 = 20;
    for _ in 1..TRIES {
        match fcntl(file, FcntlArg::F_ADD_SEALS(seals)) {
            Err(nix::errno::Errno::EBUSY) => std::thread::sleep(std::time::Duration::from_millis(1)),
            result => return Ok(result.map(drop)?),
        }
    }
    Ok(fcntl(file, FcntlArg::F_ADD_SEALS(seals)).map(drop)?)
}

/// A copy of the program that nothing can overwrite, not even through `/proc/self/exe`.
fn seal(path: &Path) -> io::Result<OwnedFd> {
    const MFD_EXEC: u32 = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // From file to file the kernel copies by itself.
    let copied = |flags| {
        let program = File::open(path)?;
        sealed("sandglass-launcher", flags, |file| io::copy(&mut &program, file).map(drop))
    };
    match copied(flags | MFD_EXEC) {
        // Before Linux 6.3 every such file is executable and the flag unknown.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => copied(flags),
        result => result,
    }
}

fn listen(socket: BorrowedFd<'_>) -> io::Result<Result<Hello, SetupFailure>> {
    let patience = TimeVal::new(START_PATIENCE_SECONDS, 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    match packet::receive(socket)? {
        Some((hello, _)) => Ok(hello),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended; its own message is above")),
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(Into::into)
}
