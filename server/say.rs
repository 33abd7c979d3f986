//! What the program says to whoever started it. A reader who has gone is no mistake of ours: a command whose standard
//! output nobody reads ends at once and quietly, as one does that SIGPIPE ends, and what standard error does not take
//! is lost. `println!` and `eprintln!` would panic, a server in the middle of its work.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::log;

/// What shells say of a program that SIGPIPE has ended.
const ENDED_BY_SIGPIPE: u8 = 128 + 13;

/// Standard output did not take what it was given.
#[derive(Debug, thiserror::Error)]
#[error("write standard output")]
pub struct Unsaid(#[from] io::Error);

/// Says a line on standard output, as `println!` does; what does not work is for the caller to pass on.
macro_rules! say {
    ($($words:tt)*) => { $crate::say::line(format_args!($($words)*)) };
}

/// Says a line on standard error, as `eprintln!` does, if anybody reads it.
macro_rules! tell {
    ($($words:tt)*) => { $crate::say::aside(format_args!($($words)*)) };
}

pub(crate) use {say, tell};

pub fn line(words: Arguments<'_>) -> Result<(), Unsaid> {
    all(format!("{words}\n").as_bytes())
}

/// Says something that has its ends of lines already.
pub fn all(text: &[u8]) -> Result<(), Unsaid> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    Ok(out.flush()?)
}

pub fn aside(words: Arguments<'_>) {
    log::take(format!("{words}\n").as_bytes());
}

/// The last word about an error of a command.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    if nobody_reads(error) {
        return ENDED_BY_SIGPIPE.into();
    }
    tell!("sandglass: {error:#}");
    ExitCode::FAILURE
}

fn nobody_reads(error: &anyhow::Error) -> bool {
    let unsaid = error.downcast_ref::<Unsaid>();
    unsaid.is_some_and(|Unsaid(cause)| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn only_a_reader_of_standard_output_who_has_gone_is_no_error() {
        let unsaid = |kind: io::ErrorKind| anyhow::Error::from(Unsaid(kind.into()));
        assert!(nobody_reads(&unsaid(io::ErrorKind::BrokenPipe)));
        assert!(nobody_reads(&Err::<(), _>(unsaid(io::ErrorKind::BrokenPipe)).context("write").unwrap_err()));
        assert!(!nobody_reads(&unsaid(io::ErrorKind::StorageFull)));
        // A registry that hangs up is another matter.
        assert!(!nobody_reads(&io::Error::from(io::ErrorKind::BrokenPipe).into()));
    }
}
