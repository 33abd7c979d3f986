//! What is counted of TLS.

use std::io;

use jiff::Timestamp;
use prometheus::{Gauge, IntCounterVec};

use super::{Telemetry, make::Make};

const HANDSHAKES: [&str; 3] = ["ok", "failed", "timeout"];

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Ok,
    /// The client wanted something else, or went away.
    Failed,
    /// The client took too long.
    Timeout,
}

impl Handshake {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
    }
}

#[derive(Debug)]
pub(super) struct TlsMetrics {
    handshakes: IntCounterVec,
    good_until: Gauge,
}

impl TlsMetrics {
    pub(super) fn new(make: &Make) -> Self {
        Self {
            handshakes: make.counters("tls_handshakes_total", "Handshakes that ended", "result", HANDSHAKES),
            good_until: make.measure(
                "tls_certificate_expires_timestamp_seconds",
                "When the certificate expires, in seconds since 1970; 0 without TLS",
            ),
        }
    }
}

impl Telemetry {
    pub fn shook_hands(&self, result: Handshake, error: Option<&io::Error>) {
        self.tls.handshakes.with_label_values(&[result.as_str()]).inc();
        if result != Handshake::Ok {
            let error = error.map(|error| error.to_string().escape_debug().to_string());
            tracing::debug!(result = result.as_str(), error, "a handshake did not succeed");
        }
    }

    pub fn certificate_is_good_until(&self, until: Timestamp) {
        self.tls.good_until.set(until.as_second() as f64);
    }
}
