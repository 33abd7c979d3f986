//! The log: JSON where a machine reads it, text in a terminal, always on standard error.

use std::error::Error;
use std::fmt;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

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

/// Exchanges the filter of a log that was started.
type Exchange = Box<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>;

static EXCHANGE: OnceLock<Exchange> = OnceLock::new();

/// Starts the log on standard error.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal;

    let filter = EnvFilter::try_new(filter)?;
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // What nobody reads is lost. That complaint would go the same way, and panic.
    let log = log.log_internal_errors(false);
    let started = if json {
        let log = log.json().flatten_event(true).with_filter_reloading();
        let handle = log.reload_handle();
        let _ = EXCHANGE.set(Box::new(move |filter| Ok(handle.reload(filter)?)));
        log.try_init()
    } else {
        let log = log.with_ansi(terminal).with_filter_reloading();
        let handle = log.reload_handle();
        let _ = EXCHANGE.set(Box::new(move |filter| Ok(handle.reload(filter)?)));
        log.try_init()
    };
    started.map_err(|error| anyhow::anyhow!("start the log: {error}"))
}

/// Logs by another filter from now on.
pub fn filter(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    EXCHANGE.get().map_or(Ok(()), |exchange| exchange(filter))
}
