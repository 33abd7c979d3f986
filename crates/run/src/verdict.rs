//! An outcome compared with an expected answer, as judges do.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::Outcome;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It ended with code 0 and wrote what was expected.
    Accepted,
    /// It ended with code 0 and wrote something else.
    WrongAnswer,
    /// It was killed after its wall time or its processor time.
    TimeLimit,
    MemoryLimit,
    OutputLimit,
    /// It ended with another code than 0 or by a signal, or could not be started.
    RuntimeError,
    /// The prepare command did not end with code 0.
    CompileError,
    /// It was not run, or its result does not count: an earlier one had failed, or the prepare command had.
    Skipped,
    Cancelled,
    /// Our fault, or the image's: there is no verdict about the program.
    InternalError,
}

impl Verdict {
    /// Every one with its name, in the order of the documentation.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("accepted", Self::Accepted),
        ("wrong_answer", Self::WrongAnswer),
        ("time_limit", Self::TimeLimit),
        ("memory_limit", Self::MemoryLimit),
        ("output_limit", Self::OutputLimit),
        ("runtime_error", Self::RuntimeError),
        ("compile_error", Self::CompileError),
        ("skipped", Self::Skipped),
        ("cancelled", Self::Cancelled),
        ("internal_error", Self::InternalError),
    ];

    /// Of a test that has ended. `is_right` is asked only where the program ended well; `None` where nothing
    /// in particular was expected.
    pub fn of(outcome: &Outcome, truncated: bool, is_right: impl FnOnce() -> Option<bool>) -> Self {
        match outcome {
            Outcome::Exited { code: 0 } => match is_right() {
                Some(true) | None => Verdict::Accepted,
                // Of an output that was cut nobody can say that it was wrong.
                Some(false) if truncated => Verdict::OutputLimit,
                Some(false) => Verdict::WrongAnswer,
            },
            Outcome::Exited { .. } | Outcome::Signaled { .. } | Outcome::StartFailed { .. } => {
                Verdict::RuntimeError
            }
            Outcome::WallTimeLimit | Outcome::CpuTimeLimit => Verdict::TimeLimit,
            Outcome::MemoryLimit => Verdict::MemoryLimit,
            Outcome::OutputLimit { .. } => Verdict::OutputLimit,
            Outcome::Cancelled => Verdict::Cancelled,
            Outcome::ImageFailed { .. } | Outcome::SandboxError { .. } => Verdict::InternalError,
        }
    }
}

/// How an output is compared with what was expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// Byte by byte.
    Exact,
    /// Line by line, without white space at the ends of lines and without empty lines at the end.
    #[default]
    Lines,
    /// Word by word, whatever white space is between them.
    Tokens,
}

impl Compare {
    /// The same as [`Compare::is_same`] for an answer that is too long to be held.
    pub fn is_same_as(self, written: &[u8], expected: impl Iterator<Item = u8>) -> bool {
        // White space that is longer than all that was written is not in it.
        let most_space = written.len() + 1;
        let written = Counting::new(self, most_space, written.iter().copied());
        written.eq(Counting::new(self, most_space, expected))
    }

    pub fn is_same(self, written: &[u8], expected: &[u8]) -> bool {
        match self {
            Compare::Exact => written == expected,
            Compare::Lines => lines(written).eq(lines(expected)),
            Compare::Tokens => tokens(written).eq(tokens(expected)),
        }
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.trim_ascii_end().split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end)
}

fn tokens(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|token| !token.is_empty())
}

/// The bytes of a text that count when it is compared, one after the other.
struct Counting<I> {
    mode: Compare,
    most_space: usize,
    bytes: I,
    /// White space that counts since something came behind it: so many lines, and then this.
    lines: usize,
    space: VecDeque<u8>,
    behind: Option<u8>,
    begun: bool,
}

impl<I: Iterator<Item = u8>> Counting<I> {
    fn new(mode: Compare, most_space: usize, bytes: I) -> Self {
        Self { mode, most_space, bytes, lines: 0, space: VecDeque::new(), behind: None, begun: false }
    }

    /// Reads white space and what is behind it; `None` at the end, where it does not count.
    fn read_on(&mut self) -> Option<()> {
        let (mut lines, mut space) = (0, VecDeque::new());
        loop {
            match (self.bytes.next()?, self.mode) {
                (b'\n', Compare::Lines) => {
                    lines += 1;
                    space.clear();
                }
                (byte, Compare::Lines) if byte.is_ascii_whitespace() => {
                    if space.len() < self.most_space {
                        space.push_back(byte);
                    }
                }
                (byte, Compare::Tokens) if byte.is_ascii_whitespace() => {
                    if self.begun && space.is_empty() {
                        space.push_back(b' ');
                    }
                }
                (byte, _) => {
                    (self.lines, self.space, self.behind, self.begun) = (lines, space, Some(byte), true);
                    return Some(());
                }
            }
        }
    }
}

impl<I: Iterator<Item = u8>> Iterator for Counting<I> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if self.lines == 0 && self.space.is_empty() && self.behind.is_none() {
            self.read_on()?;
        }
        if self.lines > 0 {
            self.lines -= 1;
            return Some(b'\n');
        }
        self.space.pop_front().or_else(|| self.behind.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;

    #[test]
    fn a_long_answer_is_compared_as_one_that_is_held() {
        const LETTERS: &[u8] = b"a \n\tb";
        let text = |mut number: usize| {
            let mut text = Vec::new();
            while number > 0 {
                text.push(LETTERS[number % LETTERS.len()]);
                number /= LETTERS.len();
            }
            text
        };
        let (mut same, mut different) = (0, 0);
        for (one, other) in (0..300).flat_map(|one| (0..300).map(move |other| (text(one), text(other)))) {
            for mode in [Compare::Exact, Compare::Lines, Compare::Tokens] {
                let expected = mode.is_same(&one, &other);
                assert_eq!(
                    mode.is_same_as(&one, other.iter().copied()),
                    expected,
                    "{mode:?} {one:?} {other:?}"
                );
                if expected { same += 1 } else { different += 1 }
            }
        }
        assert!(same > 1000 && different > 100_000, "{same} {different}");
    }

    #[test]
    fn white_space_of_a_long_answer_is_not_held() {
        let spaces = || std::iter::repeat_n(b' ', 10_000_000);
        for (written, expected, same) in [
            (&b""[..], spaces().chain([]).collect::<Vec<u8>>(), true),
            (b"a", [b'a'].into_iter().chain(spaces()).collect(), true),
            (b"a b", [b'a'].into_iter().chain(spaces()).chain([b'b']).collect(), false),
        ] {
            assert_eq!(Compare::Lines.is_same_as(written, expected.iter().copied()), same);
            let mut counting = Counting::new(Compare::Lines, written.len() + 1, expected.iter().copied());
            while counting.next().is_some() {
                assert!(counting.space.capacity() < 100, "{}", counting.space.capacity());
            }
        }
    }

    #[test]
    fn outputs_are_compared_as_the_mode_says() {
        for (written, expected, [exact, lines, tokens]) in [
            ("1 2\n", "1 2\n", [true, true, true]),
            ("1 2", "1 2\n", [false, true, true]),
            ("1 2 \r\n\n\n", "1 2", [false, true, true]),
            ("1  2", "1 2", [false, false, true]),
            ("1\n2", "1 2", [false, false, true]),
            (" 1", "1", [false, false, true]),
            ("1\n\n2", "1\n2", [false, false, true]),
            ("12", "1 2", [false, false, false]),
            ("1", "1 2", [false, false, false]),
            ("", "\n \n", [false, true, true]),
            ("", "", [true, true, true]),
            ("A", "a", [false, false, false]),
            ("1.0", "1", [false, false, false]),
            ("\u{a0}x", "x", [false, false, false]),
        ] {
            for (mode, same) in [(Compare::Exact, exact), (Compare::Lines, lines), (Compare::Tokens, tokens)]
            {
                assert_eq!(
                    mode.is_same(written.as_bytes(), expected.as_bytes()),
                    same,
                    "{mode:?} {written:?} {expected:?}"
                );
                assert_eq!(mode.is_same(expected.as_bytes(), written.as_bytes()), same, "{mode:?}");
            }
        }
        assert!(!Compare::Tokens.is_same(b"\xff", b"\xfe"), "bytes that are no text differ, too");
    }

    #[test]
    fn a_crash_is_no_wrong_answer_and_a_limit_is_no_crash() {
        for (outcome, truncated, right, verdict) in [
            (Outcome::Exited { code: 0 }, false, Some(true), Verdict::Accepted),
            (Outcome::Exited { code: 0 }, false, Some(false), Verdict::WrongAnswer),
            (Outcome::Exited { code: 0 }, false, None, Verdict::Accepted),
            (Outcome::Exited { code: 0 }, true, Some(false), Verdict::OutputLimit),
            (Outcome::Exited { code: 0 }, true, Some(true), Verdict::Accepted),
            (Outcome::Exited { code: 1 }, false, Some(true), Verdict::RuntimeError),
            (Outcome::Signaled { signal: 11 }, false, Some(true), Verdict::RuntimeError),
            (Outcome::StartFailed { reason: String::new() }, false, Some(true), Verdict::RuntimeError),
            (Outcome::WallTimeLimit, false, Some(true), Verdict::TimeLimit),
            (Outcome::CpuTimeLimit, false, Some(true), Verdict::TimeLimit),
            (Outcome::MemoryLimit, false, Some(true), Verdict::MemoryLimit),
            (Outcome::OutputLimit { stream: Stream::Stdout }, true, Some(true), Verdict::OutputLimit),
            (Outcome::Cancelled, false, Some(true), Verdict::Cancelled),
            (Outcome::SandboxError { detail: String::new() }, false, Some(true), Verdict::InternalError),
            (Outcome::ImageFailed { detail: String::new() }, false, Some(true), Verdict::InternalError),
        ] {
            assert_eq!(Verdict::of(&outcome, truncated, || right), verdict, "{outcome:?} {right:?}");
        }
    }
}
