//! A command: the program and its arguments, checked once, so that nobody checks them again.

use serde::{Deserialize, Serialize};

/// The longest single argument or environment entry that Linux passes to a program
/// (`MAX_ARG_STRLEN`, its terminating NUL included).
pub const MAX_WORD_BYTES: usize = 128 * 1024 - 1;

/// The most that the arguments and the environment may hold together. The kernel's own cap is a
/// quarter of the stack limit; this is below it for the default stack of 8 MiB.
pub const MAX_WORDS_BYTES: usize = 1024 * 1024;

/// Program and arguments. Without a program the image's entrypoint is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    program: Option<String>,
    args: Vec<String>,
}

/// Why a command can't be passed to a program.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    #[error("the program must not be empty; leave `cmd` out to run the image's own command")]
    Empty,
    #[error("a word must not contain a NUL byte; no program can receive one")]
    Nul,
    #[error("a word has {bytes} bytes; the kernel passes at most {MAX_WORD_BYTES}")]
    WordTooLong { bytes: usize },
    #[error(
        "the words have {bytes} bytes together; at most {MAX_WORDS_BYTES} can be passed; use stdin or a file"
    )]
    TooLong { bytes: usize },
}

impl Command {
    /// Checks what the kernel would refuse later, less clearly.
    pub fn parse(program: Option<String>, args: Vec<String>) -> Result<Self, BadCommand> {
        if program.as_deref() == Some("") {
            return Err(BadCommand::Empty);
        }
        check_words(program.iter().chain(&args).map(String::as_str))?;
        Ok(Self { program, args })
    }

    pub fn program(&self) -> Option<&str> {
        self.program.as_deref()
    }

    pub fn args(&self) -> &[String] {
        &self.args
    }
}

/// The checks that hold for arguments and for `KEY=value` entries alike.
pub(crate) fn check_words<'a>(words: impl Iterator<Item = &'a str>) -> Result<(), BadCommand> {
    let mut total = 0;
    for word in words {
        if word.contains('\0') {
            return Err(BadCommand::Nul);
        }
        if word.len() > MAX_WORD_BYTES {
            return Err(BadCommand::WordTooLong { bytes: word.len() });
        }
        total += word.len() + 1;
    }
    if total > MAX_WORDS_BYTES {
        return Err(BadCommand::TooLong { bytes: total });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(program: &str, args: &[&str]) -> Result<Command, BadCommand> {
        Command::parse(Some(program.into()), args.iter().map(|&arg| arg.into()).collect())
    }

    #[test]
    fn what_no_program_can_receive_is_refused() {
        assert_eq!(parse("", &[]), Err(BadCommand::Empty));
        assert_eq!(parse("a\0b", &[]), Err(BadCommand::Nul));
        assert_eq!(parse("a", &["\0"]), Err(BadCommand::Nul));
        let long = "x".repeat(MAX_WORD_BYTES + 1);
        assert_eq!(parse("a", &[&long]), Err(BadCommand::WordTooLong { bytes: MAX_WORD_BYTES + 1 }));
        let many = vec!["x".repeat(1000); 1100];
        assert!(matches!(Command::parse(None, many), Err(BadCommand::TooLong { .. })));
    }

    #[test]
    fn everything_else_is_kept_as_it_is() {
        let command = parse("echo", &["", " a ", "$HOME", "\n"]).unwrap();
        assert_eq!(command.program(), Some("echo"));
        assert_eq!(command.args(), ["", " a ", "$HOME", "\n"]);
    }
}
