//! The files that a run has left behind, as they come down their pipe: small ones are kept for the reply,
//! larger ones go to the store of files.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use run::{OutputContent, OutputPattern, RunOutput, RunSpec};
use sandbox::protocol::{LaunchOutputs, OUTPUTS_CPU_SECONDS, OUTPUTS_SECONDS, OutputRecord};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;

use crate::files::{Files, FilesError};

/// Up to this size a file is part of the reply, if all of them together are not too large for it.
const INLINE_BYTES: u64 = 64 * 1024;
const INLINE_BYTES_IN_ALL: u64 = 1024 * 1024;

const FILES_MAX: usize = 1000;
const BYTES_MAX: u64 = 1024 * 1024 * 1024;
const RECORD_BYTES_MAX: u32 = 64 * 1024;
const PIECE_BYTES: usize = 64 * 1024;

/// A little more than the keeper has for it.
const PATIENCE: Duration = Duration::from_secs(OUTPUTS_SECONDS + 5);

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) outputs: Vec<RunOutput>,
    pub(crate) missing: Vec<String>,
}

/// What the sandbox is asked for, if it is asked for anything.
pub(crate) fn asked(wanted: &[OutputPattern], files: Option<&Files>) -> Option<LaunchOutputs> {
    (!wanted.is_empty()).then(|| LaunchOutputs {
        patterns: wanted.iter().map(|wanted| wanted.pattern.clone()).collect(),
        files_max: FILES_MAX,
        file_bytes_max: files.map_or(INLINE_BYTES, Files::file_bytes_max),
        bytes_max: BYTES_MAX,
    })
}

/// Our end and the sandbox's.
pub(crate) fn pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}

/// Reads until the sandbox has told everything; what it could not tell is told by us.
pub(crate) async fn receive(
    from: impl AsyncRead + Unpin,
    spec: &RunSpec,
    files: Option<&Files>,
) -> Collected {
    let mut receiver = Receiver { from, spec, files, inline: 0, collected: Collected::default() };
    let complete = tokio::time::timeout(PATIENCE, receiver.read()).await;
    let mut collected = receiver.collected;
    if !matches!(complete, Ok(Ok(()))) {
        let error = format!(
            "not every output could be collected in time: finding and reading them may take {OUTPUTS_CPU_SECONDS} s of \
             a processor, and {OUTPUTS_SECONDS} s in all"
        );
        collected.outputs.push(RunOutput { path: "/".into(), content: OutputContent::Refused(error) });
    }
    collected
}

struct Receiver<'a, R> {
    from: R,
    spec: &'a RunSpec,
    files: Option<&'a Files>,
    inline: u64,
    collected: Collected,
}

impl<R: AsyncRead + Unpin> Receiver<'_, R> {
    /// No more than whoever keeps to its bounds can have to tell: each file that it may hand out, that there
    /// were more, every pattern that means nothing, and the end.
    async fn read(&mut self) -> io::Result<()> {
        for _ in 0..FILES_MAX + self.spec.outputs.len() + 2 {
            match self.record().await? {
                OutputRecord::File { path, size } => {
                    let content = self.content(size).await?;
                    self.collected.outputs.push(RunOutput { path, content });
                }
                OutputRecord::Refused { path, error } => {
                    let content = OutputContent::Refused(error);
                    self.collected.outputs.push(RunOutput { path, content });
                }
                OutputRecord::Missing { pattern } => {
                    let pattern = self.spec.outputs.get(pattern).filter(|wanted| !wanted.optional);
                    self.collected.missing.extend(pattern.map(|wanted| wanted.pattern.clone()));
                }
                OutputRecord::End => return Ok(()),
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    async fn record(&mut self) -> io::Result<OutputRecord> {
        let len = self.from.read_u32_le().await?;
        if len > RECORD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = vec![0; len as usize];
        self.from.read_exact(&mut text).await?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    }

    async fn content(&mut self, size: u64) -> io::Result<OutputContent> {
        if size <= INLINE_BYTES && self.inline + size <= INLINE_BYTES_IN_ALL {
            let mut bytes = vec![0; size as usize];
            self.from.read_exact(&mut bytes).await?;
            self.inline += size;
            return Ok(OutputContent::Bytes(bytes));
        }
        let mut body = (&mut self.from).take(size);
        let stored = store(&mut body, size, self.spec.principal.name.as_str(), self.files).await;
        // What the store did not take must not be read as the next record.
        tokio::io::copy(&mut body, &mut tokio::io::sink()).await?;
        Ok(stored.unwrap_or_else(|error| OutputContent::Refused(error.to_string())))
    }
}

async fn store(
    body: &mut (impl AsyncRead + Unpin),
    size_bytes: u64,
    owner: &str,
    files: Option<&Files>,
) -> Result<OutputContent, FilesError> {
    let files = files.ok_or(FilesError::TooLarge { most_bytes: INLINE_BYTES })?;
    let mut upload = files.begin(owner, Some(size_bytes))?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = body.read(&mut piece).await.map_err(FilesError::io("read an output"))?;
        if read == 0 {
            break;
        }
        upload.write(&piece[..read]).await?;
    }
    if upload.len() < size_bytes {
        return Err(FilesError::io("read an output")(io::ErrorKind::UnexpectedEof.into()));
    }
    let info = upload.finish().await?;
    Ok(OutputContent::Stored { id: info.id, size_bytes })
}

#[cfg(test)]
mod tests {
    use run::Command;

    use super::*;

    fn record(record: &OutputRecord) -> Vec<u8> {
        let text = serde_json::to_vec(record).unwrap();
        [&(text.len() as u32).to_le_bytes(), &text[..]].concat()
    }

    fn file(path: &str, content: &[u8]) -> Vec<u8> {
        let said = OutputRecord::File { path: path.into(), size: content.len() as u64 };
        [record(&said), content.to_vec()].concat()
    }

    async fn receive_all(parts: &[Vec<u8>]) -> Collected {
        let command = Command::parse(Some("p".into()), Vec::new()).unwrap();
        let outputs = ["a", "b?"].map(OutputPattern::parse).to_vec();
        receive(&*parts.concat(), &RunSpec { outputs, ..RunSpec::new("x", command) }, None).await
    }

    #[tokio::test]
    async fn what_comes_is_told_apart_and_what_is_optional_is_not_missed() {
        let refused = OutputRecord::Refused { path: "r".into(), error: "is a FIFO".into() };
        let missing = [0, 1, 7].map(|pattern| record(&OutputRecord::Missing { pattern })).concat();
        let parts =
            [file("a", b"one"), file("e", b""), record(&refused), missing, record(&OutputRecord::End)];
        let collected = receive_all(&parts).await;
        let told: Vec<_> =
            collected.outputs.iter().map(|output| (output.path.as_str(), &output.content)).collect();
        assert_eq!(
            told,
            [
                ("a", &OutputContent::Bytes(b"one".to_vec())),
                ("e", &OutputContent::Bytes(Vec::new())),
                ("r", &OutputContent::Refused("is a FIFO".into())),
            ]
        );
        assert_eq!(collected.missing, ["a"]);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_and_the_next_one_is_still_read() {
        let large = vec![7; INLINE_BYTES as usize + 1];
        let collected =
            receive_all(&[file("large", &large), file("a", b"one"), record(&OutputRecord::End)]).await;
        assert!(matches!(collected.outputs[0].content, OutputContent::Refused(_)));
        assert_eq!(collected.outputs[1].content, OutputContent::Bytes(b"one".to_vec()));
    }

    #[tokio::test]
    async fn a_story_without_an_end_is_told_as_one() {
        let long = u32::MAX.to_le_bytes().to_vec();
        let refused = record(&OutputRecord::Refused { path: "r".into(), error: "is a FIFO".into() });
        let endless = refused.repeat(10 * FILES_MAX);
        for parts in [&[][..], &[file("a", b"one")[..20].to_vec()], &[long], &[file("a", b"one")], &[endless]]
        {
            let collected = receive_all(parts).await;
            let last = collected.outputs.last().unwrap();
            assert!(
                matches!(&last.content, OutputContent::Refused(why) if why.contains("in time")),
                "{last:?}"
            );
        }
    }
}
