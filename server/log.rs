//! The log: JSON where a machine reads it, text in a terminal, always on standard error.

use std::error::Error;
use std::fmt;

use crate::config::LogFormat;

/// An error and what caused it, on one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Starts the log on standard error.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal;

    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(filter)?;
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started =
        if json { log.json().flatten_event(true).try_init() } else { log.with_ansi(terminal).try_init() };
    started.map_err(|error| anyhow::anyhow!("start the log: {error}"))
}
