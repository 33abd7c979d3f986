//! A launcher whose runs write to our own standard output and error as they go, however much it is:
//! what passes through here is not kept anywhere.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use engine::{Launch, LaunchError, Launched, Launcher, SandboxLauncher};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The real launcher, with its outputs led past us.
#[derive(Debug)]
pub(super) struct Passthrough {
    launcher: SandboxLauncher,
}

impl Passthrough {
    pub(super) fn new(launcher: SandboxLauncher) -> Self {
        Self { launcher }
    }
}

impl Launcher for Passthrough {
    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<Launched, LaunchError>> {
        Box::pin(async move {
            let Launched { control, stdout, stderr } = self.launcher.launch(launch).await?;
            let stdout = Box::new(Tee::new(stdout, tokio::io::stdout()));
            let stderr = Box::new(Tee::new(stderr, tokio::io::stderr()));
            Ok(Launched { control, stdout, stderr })
        })
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        self.launcher.lost()
    }
}

/// Reads, and lets go of what it has read only when it is written elsewhere.
struct Tee<W> {
    /// Absent once nobody listens any more. Our end of the pipe is then closed, and the program
    /// learns of that as any other does whose reader has gone.
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    to: W,
    buffer: Vec<u8>,
    written: usize,
}

impl<W: AsyncWrite + Unpin> Tee<W> {
    fn new(from: Box<dyn AsyncRead + Send + Unpin>, to: W) -> Self {
        Self { from: Some(from), to, buffer: Vec::new(), written: 0 }
    }

    fn poll_pass_on(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            match ready!(Pin::new(&mut self.to).poll_write(context, &self.buffer[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.written += bytes,
            }
        }
        Pin::new(&mut self.to).poll_flush(context)
    }
}

impl<W: AsyncWrite + Unpin> AsyncRead for Tee<W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What was read before is passed on first; only then is there room for more, or an end.
        if ready!(self.poll_pass_on(context)).is_err() {
            self.from = None;
        }
        let Some(from) = &mut self.from else { return Poll::Ready(Ok(())) };
        let mut chunk = [0; 16 * 1024];
        let room = out.remaining().min(chunk.len());
        let mut piece = ReadBuf::new(&mut chunk[..room]);
        ready!(Pin::new(from).poll_read(context, &mut piece))?;
        out.put_slice(piece.filled());
        self.buffer.clear();
        self.buffer.extend_from_slice(piece.filled());
        self.written = 0;
        // As far as it goes at once; the next read does the rest.
        let _ = self.poll_pass_on(context);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn everything_that_is_read_is_written_too() {
        let text: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let (to, mut other) = tokio::io::duplex(1000);
        let reading = tokio::spawn(async move {
            let mut seen = Vec::new();
            other.read_to_end(&mut seen).await.map(|_| seen)
        });
        let mut tee = Tee::new(Box::new(io::Cursor::new(text.clone())), to);
        let mut kept = Vec::new();
        tee.read_to_end(&mut kept).await.unwrap();
        drop(tee);
        assert_eq!(kept, text);
        assert_eq!(reading.await.unwrap().unwrap(), text);
    }

    #[tokio::test]
    async fn a_program_learns_that_its_reader_has_gone() {
        let (to, other) = tokio::io::duplex(10);
        drop(other);
        let (program, pipe) = tokio::io::duplex(10);
        let mut tee = Tee::new(Box::new(pipe), to);
        let writing = tokio::spawn(async move {
            let mut program = program;
            tokio::io::AsyncWriteExt::write_all(&mut program, &[1; 100_000]).await
        });
        tee.read_to_end(&mut Vec::new()).await.unwrap();
        assert!(writing.await.unwrap().is_err());
    }
}
