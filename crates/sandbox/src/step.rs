//! The names of everything that can fail while a sandbox is set up, so that a failure says where.

use std::fmt;
use std::io;

use run::SetupFailure;

/// A failure with the name of its step, which is all that an operator needs to look for it.
#[derive(Debug)]
pub(crate) struct Failure {
    step: &'static str,
    error: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.error)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<Failure> for SetupFailure {
    fn from(failure: Failure) -> Self {
        SetupFailure { step: failure.step.into(), error: failure.error.to_string() }
    }
}

impl Failure {
    pub(crate) fn new(step: &'static str, message: impl Into<String>) -> Self {
        Failure { step, error: io::Error::other(message.into()) }
    }
}

/// Gives a result the name of the step that it came from.
pub(crate) trait At<T> {
    fn at(self, step: &'static str) -> Result<T, Failure>;
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step, error: errno.into() })
    }
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure { step, error })
    }
}
