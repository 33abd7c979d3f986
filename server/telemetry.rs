//! What happened, said once: one method per event writes the log line and the metrics together.
//! Every label value comes from a closed set and exists from the start, so that a rate of zero is a
//! line on a dashboard and not a gap.

mod images;
mod make;
mod queued;
mod runs;
mod strangers;
mod tls;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::http::Method;
use make::Make;
use prometheus::{
    CounterVec, Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use run::Outcome;

pub use self::tls::Handshake;

use crate::keys::Ledger;
use crate::leaks::Disk;
use crate::log;

const HTTP_S: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const QUEUE_S: &[f64] = &[0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];
const STARTUP_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const RUN_S: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const OVERSHOOT_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1];
const PULL_S: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

const PHASES: [&str; 4] = ["image", "setup", "exec", "total"];
const CACHE: [&str; 2] = ["hit", "miss"];
const REJECTIONS: [&str; 6] = ["queue_full", "rate_limit", "quota", "too_large", "deadline", "auth"];
/// What stands for everything that no call offers.
const OTHER: &str = "other";
const BATCHES: [&str; 4] = ["finished", "compile_error", "cancelled", "internal_error"];
const STATUSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "aborted"];
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", OTHER];
const PULL_RESULTS: [image::PullResult; 6] = [
    image::PullResult::Ok,
    image::PullResult::Refused,
    image::PullResult::Registry,
    image::PullResult::Timeout,
    image::PullResult::Cancelled,
    image::PullResult::Internal,
];

/// All metrics of the server.
#[derive(Debug)]
pub struct Telemetry {
    registry: Registry,
    /// What has series of its own: route templates with their methods.
    routes: OnceLock<HashSet<(String, String)>>,
    http_requests: IntCounterVec,
    http_seconds: HistogramVec,
    runs: IntCounterVec,
    queue_wait: Histogram,
    startup: HistogramVec,
    duration: HistogramVec,
    cpu: HistogramVec,
    memory_peak: HistogramVec,
    output: HistogramVec,
    overshoot: HistogramVec,
    teardown: Histogram,
    queue_depth: IntGauge,
    queue_oldest_age: Gauge,
    runs_queued: IntGaugeVec,
    /// The names that it shows.
    principals_shown: Mutex<HashSet<String>>,
    strangers: strangers::Strangers,
    queue_capacity: IntGauge,
    slots: IntGaugeVec,
    rejected: IntCounterVec,
    sandboxes: IntGaugeVec,
    cgroups_live: IntGauge,
    mounts_live: IntGauge,
    pool_hits: IntCounter,
    pool_misses: IntCounter,
    orphans_reaped: IntCounter,
    ready: IntGauge,
    disk: DiskGauges,
    sse_watchers: IntGauge,
    pulls: IntCounterVec,
    pull_seconds: HistogramVec,
    pull_bytes: IntCounter,
    unpack_seconds: Histogram,
    pull_waits: CounterVec,
    retries: IntCounterVec,
    cache_bytes: IntGauge,
    cache_limit: IntGauge,
    cache_entries: IntGauge,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    evictions: IntCounterVec,
    coalesced: IntCounter,
    files_bytes: IntGauge,
    batches: IntCounterVec,
    log_lines_dropped: IntCounterVec,
    tls: tls::TlsMetrics,
    /// What each principal has used.
    ledger: Arc<Ledger>,
}

/// Why a request was refused without asking the engine: a closed set, because it becomes a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedFor {
    TooLarge,
    Quota,
}

impl RefusedFor {
    fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Quota => "quota",
        }
    }
}

/// How things stand at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Gauges {
    pub counts: engine::Counts,
    pub draining: bool,
    pub images: usize,
    pub image_bytes: u64,
    pub image_limit_bytes: u64,
    pub cgroups: usize,
    pub mounts: usize,
    pub ready: bool,
    pub log_lost: log::Lost,
    /// Absent where it can't be asked for.
    pub disk: Option<Disk>,
    pub files: engine::files::FileCounts,
}

/// Counts one client that follows a run.
#[derive(Debug)]
pub struct Watching(IntGauge);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The file system on which the data directory is.
#[derive(Debug)]
struct DiskGauges {
    bytes: Gauge,
    free_bytes: Gauge,
    inodes: Gauge,
    free_inodes: Gauge,
}

impl Telemetry {
    pub fn new(slots: usize, queue_capacity: usize, ledger: Arc<Ledger>) -> Self {
        let make = Make(Registry::new());
        let outcomes = &Outcome::NAMES;
        let results = PULL_RESULTS.map(image::PullResult::as_str);
        let http =
            |name: &str, help: &str| HistogramOpts::new(Make::name(name), help).buckets(HTTP_S.to_vec());
        let http_labels = &["route", "method", "status"];
        let telemetry = Self {
            http_requests: make.keep(IntCounterVec::new(
                Opts::new(Make::name("http_requests_total"), "HTTP requests, by route template"),
                http_labels,
            )),
            // Not by status: with it, what clients can bring about would outgrow the page.
            http_seconds: make.keep(HistogramVec::new(
                http("http_request_duration_seconds", "From a request's headers to its reply"),
                &["route", "method"],
            )),
            runs: make.counters("runs_total", "Finished runs", "outcome", outcomes),
            queue_wait: make.histogram("run_queue_wait_seconds", "From submission to a slot", QUEUE_S),
            startup: make.keep(HistogramVec::new(
                HistogramOpts::new(
                    Make::name("run_startup_seconds"),
                    "From a slot to the program's start, by phase",
                )
                .buckets(STARTUP_S.to_vec()),
                &["phase", "cache"],
            )),
            duration: make.histograms(
                "run_duration_seconds",
                "Wall time of programs",
                "outcome",
                outcomes,
                RUN_S,
            ),
            cpu: make.histograms("run_cpu_seconds", "Processor time of runs", "outcome", outcomes, RUN_S),
            memory_peak: make.histograms(
                "run_memory_peak_bytes",
                "The most memory of runs",
                "outcome",
                outcomes,
                &powers_of_two(20, 33),
            ),
            output: make.histograms(
                "run_output_bytes",
                "What runs wrote to both outputs",
                "outcome",
                outcomes,
                &powers_of_two(6, 27),
            ),
            overshoot: make.histograms(
                "run_limit_overshoot_seconds",
                "From a time limit to the death of the last process",
                "limit",
                &["wall", "cpu"],
                OVERSHOOT_S,
            ),
            teardown: make.histogram("run_teardown_seconds", "From a run's end to its last trace", STARTUP_S),
            queue_depth: make.gauge("queue_depth", "Runs that wait for a slot"),
            queue_oldest_age: make.keep(Gauge::new(
                Make::name("queue_oldest_age_seconds"),
                "How long the oldest of them has waited",
            )),
            queue_capacity: make
                .gauge("queue_capacity", "How many runs of one principal may wait for a slot"),
            runs_queued: make.gauges(
                "runs_queued",
                "Runs that wait for a slot, by principal",
                "principal",
                &["other"],
            ),
            principals_shown: Mutex::default(),
            strangers: strangers::Strangers::default(),
            slots: make.gauges(
                "slots",
                "The right to have one sandbox running",
                "state",
                &["busy", "idle", "draining"],
            ),
            rejected: make.counters("rejected_total", "Requests that were turned away", "reason", REJECTIONS),
            sandboxes: make.gauges("sandboxes", "Sandboxes", "state", &["prepared", "running", "ending"]),
            cgroups_live: make.gauge("cgroups_live", "Control groups of runs that exist"),
            mounts_live: make.gauge(
                "mounts_live",
                "Mounts of the launcher beyond those that it started with; runs leave none there",
            ),
            pool_hits: make.counter("sandbox_pool_hits_total", "Runs that found a sandbox prepared"),
            pool_misses: make
                .counter("sandbox_pool_misses_total", "Runs whose sandbox had to be made while they waited"),
            orphans_reaped: make.counter(
                "orphans_reaped_total",
                "Runs of servers that died, found and removed at this start",
            ),
            ready: make.gauge("ready", "1 while the server takes work, as /readyz says"),
            disk: DiskGauges {
                bytes: make.measure("data_disk_bytes", "Size of the file system with the data directory"),
                free_bytes: make.measure("data_disk_free_bytes", "Room that is left on it"),
                inodes: make.measure("data_disk_inodes", "How many files it can have; 0 means no bound"),
                free_inodes: make.measure("data_disk_free_inodes", "How many more files it can have"),
            },
            sse_watchers: make.gauge("sse_watchers", "Clients that follow a run"),
            pulls: make.counters("image_pulls_total", "Pulls that ended", "result", results),
            pull_seconds: make.histograms(
                "image_pull_seconds",
                "How long pulls took",
                "result",
                &results,
                PULL_S,
            ),
            pull_bytes: make.counter("image_pull_bytes_total", "Compressed bytes that arrived"),
            unpack_seconds: make.histogram(
                "image_unpack_seconds",
                "From a layer's first byte to its commit",
                PULL_S,
            ),
            pull_waits: make.seconds(
                "image_layer_wait_seconds_total",
                "How long layers waited for their registry's bytes, and for their unpackers",
                "for",
                &["registry", "unpacker"],
            ),
            retries: make.counters(
                "image_registry_retries_total",
                "Requests to registries that were repeated",
                "reason",
                image::RETRY_REASONS,
            ),
            cache_bytes: make
                .gauge("image_cache_bytes", "What unpacked layers take of the disk, each counted once"),
            cache_limit: make.gauge("image_cache_limit_bytes", "Above this, images are collected"),
            cache_entries: make.gauge("image_cache_entries", "Images in the store"),
            cache_hits: make.counter("image_cache_hits_total", "Images that were asked for and here"),
            cache_misses: make.counter("image_cache_misses_total", "Images that had to be fetched"),
            evictions: make.counters(
                "image_cache_evictions_total",
                "Images that were dropped",
                "reason",
                image::Eviction::ALL.map(image::Eviction::as_str),
            ),
            coalesced: make.counter("image_pulls_coalesced_total", "Requests that joined a pull under way"),
            batches: make.counters("batches_total", "Finished batches", "result", BATCHES),
            files_bytes: make.gauge("files_bytes", "Uploaded files, and what batches have prepared"),
            log_lines_dropped: make.counters(
                "log_lines_dropped_total",
                "Lines of the log that its reader did not take in time",
                "kind",
                ["audit", "other"],
            ),
            tls: tls::TlsMetrics::new(&make),
            registry: make.0.clone(),
            routes: OnceLock::new(),
            ledger,
        };
        telemetry.begin(&make, slots, queue_capacity);
        telemetry
    }

    fn begin(&self, make: &Make, slots: usize, queue_capacity: usize) {
        self.queue_capacity.set(queue_capacity as i64);
        self.slots.with_label_values(&["idle"]).set(slots as i64);
        for phase in PHASES {
            CACHE.iter().for_each(|cache| drop(self.startup.with_label_values(&[phase, *cache])));
        }
        let build = Opts::new(Make::name("build_info"), "What this program was built from")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("commit", option_env!("SANDGLASS_COMMIT").unwrap_or("unknown"))
            .const_label("rustc", env!("SANDGLASS_RUSTC"));
        make.keep(IntGauge::with_opts(build)).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        make.0.register(Box::new(process)).expect("each metric is made once");
    }

    /// Makes every series that requests of these routes can have. Called once, before the first request.
    pub fn expect_routes<'a>(&self, routes: impl Iterator<Item = (&'a str, &'a str)>) {
        let known: HashSet<_> = routes.map(|(route, method)| (route.to_owned(), method.to_owned())).collect();
        let unmatched = METHODS.iter().map(|method| (OTHER, *method));
        for (route, method) in known.iter().map(|(route, method)| (&**route, &**method)).chain(unmatched) {
            for status in STATUSES {
                self.http_requests.with_label_values(&[route, method, status]);
            }
        }
        let _ = self.routes.set(known);
    }

    /// `status` is absent where the client went away before there was one. What no call offers, a known
    /// path with another method included, is counted as `other`, so that clients can't make series.
    pub fn request_answered(&self, route: &str, method: &Method, status: Option<u16>, took: Duration) {
        let class = status.map_or("aborted", |status| STATUSES[usize::from(status / 100).clamp(1, 5) - 1]);
        let known = METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER);
        let offered = self
            .routes
            .get()
            .is_some_and(|routes| routes.contains(&(route.to_owned(), method.as_str().to_owned())));
        let template = if offered { route } else { OTHER };
        self.http_requests.with_label_values(&[template, known, class]).inc();
        self.http_seconds.with_label_values(&[template, known]).observe(took.as_secs_f64());
        tracing::debug!(route, status, took_ms = took.as_secs_f64() * 1e3, "answered");
    }

    /// Somebody follows a run, until the guard is dropped.
    pub fn watching(&self) -> Watching {
        self.sse_watchers.inc();
        Watching(self.sse_watchers.clone())
    }

    /// A request was refused before it became a run.
    pub fn request_refused(&self, reason: RefusedFor) {
        self.rejected.with_label_values(&[reason.as_str()]).inc();
    }

    /// What the launcher found of servers that died.
    pub fn orphans_reaped(&self, runs: u32) {
        self.orphans_reaped.inc_by(runs.into());
        if runs > 0 {
            tracing::warn!(runs, "removed what a server that died had left of its runs");
        }
    }

    /// A request without a key that is good for it; `problem` is one of a few names.
    pub fn not_let_in(&self, problem: &'static str) {
        self.rejected.with_label_values(&["auth"]).inc();
        // Anybody can bring that about, as often as they like, and lines are read by somebody with a disk.
        if let Some(unsaid) = self.strangers.may_say(Instant::now()) {
            let unsaid = (unsaid > 0).then_some(unsaid);
            tracing::warn!(problem, unsaid, "a request was not let in");
        }
    }

    fn overshot(&self, limit: &str, by: Duration) {
        self.overshoot.with_label_values(&[limit]).observe(by.as_secs_f64());
    }

    /// What is true at this moment rather than counted: set when somebody looks.
    pub fn set_gauges(&self, now: &Gauges) {
        let counts = &now.counts;
        let idle = counts.slots.saturating_sub(counts.busy);
        let slots = [
            ("busy", counts.busy),
            ("idle", if now.draining { 0 } else { idle }),
            ("draining", if now.draining { idle } else { 0 }),
        ];
        for (state, number) in slots {
            self.slots.with_label_values(&[state]).set(number as i64);
        }
        for (state, number) in
            [("prepared", counts.pool.prepared), ("running", counts.running), ("ending", counts.ending)]
        {
            self.sandboxes.with_label_values(&[state]).set(number as i64);
        }
        let lost = |kind| self.log_lines_dropped.with_label_values(&[kind]);
        // The pool and the log keep their own counts, in one place with what they decide.
        for (counter, count) in [
            (&self.pool_hits, counts.pool.hits),
            (&self.pool_misses, counts.pool.misses),
            (&lost("audit"), now.log_lost.audit),
            (&lost("other"), now.log_lost.other),
        ] {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        self.queue_depth.set(counts.queued as i64);
        self.queue_oldest_age.set(counts.oldest_wait.as_secs_f64());
        self.cache_entries.set(now.images as i64);
        self.cache_bytes.set(now.image_bytes as i64);
        self.cache_limit.set(i64::try_from(now.image_limit_bytes).unwrap_or(i64::MAX));
        self.cgroups_live.set(now.cgroups as i64);
        self.mounts_live.set(now.mounts as i64);
        self.ready.set(now.ready.into());
        if let Some(disk) = &now.disk {
            self.disk.set(disk);
        }
        self.files_bytes.set(now.files.bytes as i64);
    }

    /// The whole page, in Prometheus' text format.
    pub fn page(&self) -> prometheus::Result<Vec<u8>> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }
}

impl DiskGauges {
    fn set(&self, disk: &Disk) {
        self.bytes.set(disk.bytes as f64);
        self.free_bytes.set(disk.free_bytes as f64);
        self.inodes.set(disk.inodes as f64);
        self.free_inodes.set(disk.free_inodes as f64);
    }
}

fn powers_of_two(from: i32, to: i32) -> Vec<f64> {
    (from..=to).map(|power| 2f64.powi(power)).collect()
}
