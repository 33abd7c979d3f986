//! What becomes of images: pulls, layers, and what is collected.

use std::time::Duration;

use super::Telemetry;

impl image::Observer for Telemetry {
    fn cache_hit(&self) {
        self.cache_hits.inc();
    }

    fn cache_miss(&self) {
        self.cache_misses.inc();
    }

    fn pull_coalesced(&self) {
        self.coalesced.inc();
    }

    fn pull_started(&self) {
        tracing::debug!("pull started");
    }

    fn pull_finished(&self, result: image::PullResult, took: Duration) {
        let label = result.as_str();
        self.pulls.with_label_values(&[label]).inc();
        self.pull_seconds.with_label_values(&[label]).observe(took.as_secs_f64());
        tracing::info!(result = label, took_ms = took.as_millis() as u64, "pull finished: {label}");
    }

    fn bytes_downloaded(&self, bytes: u64) {
        self.pull_bytes.inc_by(bytes);
    }

    fn layer_unpacked(&self, took: Duration) {
        self.unpack_seconds.observe(took.as_secs_f64());
    }

    fn layer_waited(&self, registry: Duration, unpacker: Duration) {
        self.pull_waits.with_label_values(&["registry"]).inc_by(registry.as_secs_f64());
        self.pull_waits.with_label_values(&["unpacker"]).inc_by(unpacker.as_secs_f64());
    }

    fn retried(&self, reason: &'static str) {
        self.retries.with_label_values(&[reason]).inc();
        tracing::warn!(reason, "a registry is asked again");
    }

    fn image_removed(&self, why: image::Eviction) {
        self.evictions.with_label_values(&[why.as_str()]).inc();
    }
}
