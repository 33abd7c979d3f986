//! The log: JSON where a machine reads it, text in a terminal, always on standard error.

mod writer;

use std::backtrace::Backtrace;
use std::error::Error;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

pub use writer::{AUDIT, Lost, lost, take};

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

/// How much of a path is logged, which is long enough for every call that there is.
const PATH_BYTES_MAX: usize = 1024;

/// A path as it is logged, which has several places in a line: as far as a line can bear what a client has made up.
pub fn path(path: &str) -> &str {
    path.get(..path.floor_char_boundary(PATH_BYTES_MAX)).unwrap_or_default()
}

/// Exchanges the filter of a log that was started.
type Exchange = Box<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>;

static EXCHANGE: OnceLock<Exchange> = OnceLock::new();

/// Whether that is a filter.
pub fn check(filter: &str) -> anyhow::Result<()> {
    EnvFilter::try_new(filter).map(drop).map_err(anyhow::Error::from)
}

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
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer::Lines);
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

/// How long the end of the program waits for whoever reads its log.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// From now on nobody who logs waits for whoever reads, not even who panics.
pub fn write_aside() -> std::io::Result<()> {
    writer::start()?;
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        take(format!("thread '{name}' {panic}\n{}\n", Backtrace::capture()).as_bytes());
    }));
    Ok(())
}

/// Held until the program ends, in whatever way: then what was said is written, as far as somebody reads it.
#[derive(Debug)]
pub struct LastWords;

impl Drop for LastWords {
    fn drop(&mut self) {
        writer::flush(LAST_PATIENCE);
    }
}

/// Logs by another filter from now on.
pub fn filter(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    EXCHANGE.get().map_or(Ok(()), |exchange| exchange(filter))
}
