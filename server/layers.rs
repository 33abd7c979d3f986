//! The one place where images meet the launcher: layers are unpacked, kept and removed by the
//! launcher's verbs, of which this makes an [`image::LayerStore`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use image::{BoxFuture, Commit, Deleting, LayerStore, Packing, Unpacked, Unpacking};
use sandbox::client::{self, Launcher};
use sandbox::protocol::{Event, Order};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::leaks::Disk;

/// How much of an archive is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// The layer store behind the launcher.
#[derive(Clone, Debug)]
pub struct LauncherLayers {
    launcher: Arc<Launcher>,
    /// On the file system that has the layers, and ours to look at.
    data_dir: PathBuf,
}

impl LauncherLayers {
    pub fn new(launcher: Arc<Launcher>, data_dir: PathBuf) -> Self {
        Self { launcher, data_dir }
    }

    /// Sends a request, again and again while the launcher's socket is full. Layers are few; a short
    /// pause is simpler than sharing the socket's readiness with the runs, and as good.
    async fn request<T>(&self, send: impl Fn(&Launcher) -> io::Result<T>) -> io::Result<T> {
        loop {
            match send(&self.launcher) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                result => return result,
            }
        }
    }
}

impl LayerStore for LauncherLayers {
    fn unpack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::Job,
    ) -> BoxFuture<'a, io::Result<Box<dyn Unpacking>>> {
        Box::pin(async move {
            let job = serde_json::to_string(job)?;
            let client::Unpacking { control, input } =
                self.request(|launcher| launcher.unpack(layer, &job)).await?;
            let unpacking = PipedLayer {
                launcher: Arc::clone(&self.launcher),
                control: Control::new(control)?,
                input: pipe::Sender::from_owned_fd(input)?,
            };
            Ok(Box::new(unpacking) as Box<dyn Unpacking>)
        })
    }

    fn pack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::PackJob,
    ) -> BoxFuture<'a, io::Result<Box<dyn Packing>>> {
        Box::pin(async move {
            let job = serde_json::to_string(job)?;
            let client::Packing { control, output } =
                self.request(|launcher| launcher.pack(layer, &job)).await?;
            let output = pipe::Receiver::from_owned_fd(output)?;
            Ok(Box::new(PackedLayer { control: Control::new(control)?, output }) as Box<dyn Packing>)
        })
    }

    fn remove<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, io::Result<Deleting>> {
        Box::pin(async move {
            self.launcher.note_removal();
            let control = Control::new(self.request(|launcher| launcher.remove(layer)).await?)?;
            let event = control.next().await;
            self.launcher.note_removal();
            match event? {
                Event::Removed => Ok(Box::pin(deleted(control)) as Deleting),
                other => Err(unexpected(&other)),
            }
        })
    }

    fn free_bytes(&self) -> Option<u64> {
        Disk::below(&self.data_dir).map(|disk| disk.free_bytes)
    }

    fn free_inodes(&self) -> Option<u64> {
        Disk::below(&self.data_dir).filter(|disk| disk.inodes > 0).map(|disk| disk.free_inodes)
    }
}

async fn deleted(control: Control) -> io::Result<()> {
    match control.next().await? {
        Event::Deleted => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// A layer whose compressed bytes go down a pipe.
struct PipedLayer {
    launcher: Arc<Launcher>,
    control: Control,
    input: pipe::Sender,
}

impl Unpacking for PipedLayer {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.input.write_all(&bytes).await })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<Unpacked>> {
        Box::pin(async move {
            let Self { launcher, control, input } = *self;
            drop(input);
            match control.next().await? {
                Event::Unpacked { report } => {
                    Ok(Unpacked { report, commit: Box::new(UnpackedLayer { launcher, control }) })
                }
                other => Err(unexpected(&other)),
            }
        })
    }
}

/// A layer that is unpacked. Dropping it gives it up unless it has its name.
struct UnpackedLayer {
    launcher: Arc<Launcher>,
    control: Control,
}

impl UnpackedLayer {
    async fn obey(&self, order: Order) -> io::Result<()> {
        client::send(self.control.0.as_fd(), order)?;
        match self.control.next().await? {
            Event::Synced => Ok(()),
            Event::Named => {
                // A sandbox that was begun with layers of these names before found none.
                self.launcher.note_removal();
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Commit for UnpackedLayer {
    fn name(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.obey(Order::Name))
    }

    fn sync(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.obey(Order::Sync))
    }
}

/// A layer whose archive comes out of a pipe.
struct PackedLayer {
    control: Control,
    output: pipe::Receiver,
}

impl Packing for PackedLayer {
    fn read(&mut self) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let mut bytes = BytesMut::with_capacity(PIECE_BYTES);
            self.output.read_buf(&mut bytes).await?;
            Ok(bytes.freeze())
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<String>> {
        Box::pin(async move {
            match self.control.next().await? {
                Event::Packed { report } => Ok(report),
                other => Err(unexpected(&other)),
            }
        })
    }
}

/// The control socket of one request; closing it gives the request up. It carries packets, not a
/// stream: the runtime only says when there is one to receive.
struct Control(UnixStream);

impl Control {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(UnixStream::from_std(socket.into())?))
    }

    async fn next(&self) -> io::Result<Event> {
        let event = self.0.async_io(Interest::READABLE, || client::receive(self.0.as_fd())).await?;
        event.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the launcher closed the request"))
    }
}

fn unexpected(event: &Event) -> io::Error {
    match event {
        Event::Failed(failure) => io::Error::other(failure.to_string()),
        other => io::Error::other(format!("the launcher answered {other:?}")),
    }
}
