//! What happened, said once: one method per event writes the log line and the metrics together.
//! Every label value comes from a closed set and exists from the start, so that a rate of zero is a
//! line on a dashboard and not a gap.

use std::time::Duration;

use axum::http::Method;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use run::{KilledFor, Outcome, Run};

const HTTP_S: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const QUEUE_S: &[f64] = &[0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];
const STARTUP_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const RUN_S: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const OVERSHOOT_S: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1];
const PULL_S: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

const PHASES: [&str; 3] = ["image", "setup", "total"];
const CACHE: [&str; 2] = ["hit", "miss"];
const REJECTIONS: [&str; 5] = ["queue_full", "rate_limit", "quota", "too_large", "auth"];
const STATUSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "aborted"];
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "other"];
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
    queue_capacity: IntGauge,
    slots: IntGaugeVec,
    rejected: IntCounterVec,
    sandboxes: IntGaugeVec,
    cgroups_live: IntGauge,
    pulls: IntCounterVec,
    pull_seconds: HistogramVec,
    pull_bytes: IntCounter,
    unpack_seconds: Histogram,
    cache_bytes: IntGauge,
    cache_entries: IntGauge,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    evictions: IntCounterVec,
    coalesced: IntCounter,
}

/// How things stand at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Gauges {
    pub counts: engine::Counts,
    pub draining: bool,
    pub images: usize,
    pub image_bytes: u64,
    pub cgroups: usize,
}

/// Makes metrics and puts them into the registry. Names and labels are constants: a mistake in one
/// shows at the first start, in every test.
struct Make(Registry);

impl Make {
    fn keep<M: prometheus::core::Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("metric names and labels are constants");
        self.0.register(Box::new(metric.clone())).expect("each metric is made once");
        metric
    }

    fn name(name: &str) -> String {
        format!("sandglass_{name}")
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(Self::name(name), help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(Self::name(name), help))
    }

    fn counters<'a>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl AsRef<[&'a str]>,
    ) -> IntCounterVec {
        let metric = self.keep(IntCounterVec::new(Opts::new(Self::name(name), help), &[label]));
        values.as_ref().iter().for_each(|value| drop(metric.with_label_values(&[*value])));
        metric
    }

    fn gauges(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntGaugeVec {
        let metric = self.keep(IntGaugeVec::new(Opts::new(Self::name(name), help), &[label]));
        values.iter().for_each(|value| drop(metric.with_label_values(&[*value])));
        metric
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.keep(Histogram::with_opts(HistogramOpts::new(Self::name(name), help).buckets(buckets.to_vec())))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let options = HistogramOpts::new(Self::name(name), help).buckets(buckets.to_vec());
        let metric = self.keep(HistogramVec::new(options, &[label]));
        values.iter().for_each(|value| drop(metric.with_label_values(&[*value])));
        metric
    }
}

impl Telemetry {
    pub fn new(slots: usize, queue_capacity: usize) -> Self {
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
            http_seconds: make.keep(HistogramVec::new(
                http("http_request_duration_seconds", "From a request's headers to its reply"),
                http_labels,
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
            queue_capacity: make.gauge("queue_capacity", "How many runs may wait for a slot"),
            slots: make.gauges(
                "slots",
                "The right to have one sandbox running",
                "state",
                &["busy", "idle", "draining"],
            ),
            rejected: make.counters("rejected_total", "Requests that were turned away", "reason", REJECTIONS),
            sandboxes: make.gauges("sandboxes", "Sandboxes", "state", &["prepared", "running", "ending"]),
            cgroups_live: make.gauge("cgroups_live", "Control groups of runs that exist"),
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
            cache_bytes: make.gauge("image_cache_bytes", "Unpacked layers, each counted once"),
            cache_entries: make.gauge("image_cache_entries", "Images in the store"),
            cache_hits: make.counter("image_cache_hits_total", "Images that were asked for and here"),
            cache_misses: make.counter("image_cache_misses_total", "Images that had to be fetched"),
            evictions: make.counters(
                "image_cache_evictions_total",
                "Images that were dropped",
                "reason",
                ["request"],
            ),
            coalesced: make.counter("image_pulls_coalesced_total", "Requests that joined a pull under way"),
            registry: make.0.clone(),
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
            .const_label("rustc", option_env!("SANDGLASS_RUSTC").unwrap_or("unknown"));
        make.keep(IntGauge::with_opts(build)).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        make.0.register(Box::new(process)).expect("each metric is made once");
    }

    /// Makes every series that requests of these routes can have.
    pub fn expect_routes<'a>(&self, routes: impl Iterator<Item = (&'a str, &'a str)>) {
        let unmatched = METHODS.iter().map(|method| ("other", *method));
        for (route, method) in routes.chain(unmatched) {
            for status in STATUSES {
                self.http_requests.with_label_values(&[route, method, status]);
            }
        }
    }

    /// `status` is absent where the client went away before there was one.
    pub fn request_answered(&self, route: &str, method: &Method, status: Option<u16>, took: Duration) {
        let class = status.map_or("aborted", |status| STATUSES[usize::from(status / 100).clamp(1, 5) - 1]);
        let method = METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
        self.http_requests.with_label_values(&[route, method, class]).inc();
        self.http_seconds.with_label_values(&[route, method, class]).observe(took.as_secs_f64());
        tracing::debug!(route, status, took_ms = took.as_secs_f64() * 1e3, "answered");
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
        for (state, number) in [("running", counts.running), ("ending", counts.ending)] {
            self.sandboxes.with_label_values(&[state]).set(number as i64);
        }
        self.queue_depth.set(counts.queued as i64);
        self.queue_oldest_age.set(counts.oldest_wait.as_secs_f64());
        self.cache_entries.set(now.images as i64);
        self.cache_bytes.set(now.image_bytes as i64);
        self.cgroups_live.set(now.cgroups as i64);
    }

    /// The whole page, in Prometheus' text format.
    pub fn page(&self) -> prometheus::Result<Vec<u8>> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }
}

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

    fn retried(&self, reason: &'static str) {
        tracing::warn!(reason, "a registry is asked again");
    }

    fn image_removed(&self) {
        self.evictions.with_label_values(&["request"]).inc();
    }
}

fn powers_of_two(from: i32, to: i32) -> Vec<f64> {
    (from..=to).map(|power| 2f64.powi(power)).collect()
}

impl engine::Observer for Telemetry {
    fn rejected(&self, reason: engine::Rejection) {
        self.rejected.with_label_values(&[reason.as_str()]).inc();
        tracing::warn!(reason = reason.as_str(), "a run was turned away");
    }

    fn dequeued(&self, waited: Duration) {
        self.queue_wait.observe(waited.as_secs_f64());
    }

    fn started(&self, startup: engine::Startup) {
        let engine::Startup { image, setup, fetched } = startup;
        let cache = if fetched { "miss" } else { "hit" };
        for (phase, took) in [("image", image), ("setup", setup), ("total", image + setup)] {
            self.startup.with_label_values(&[phase, cache]).observe(took.as_secs_f64());
        }
    }

    fn finished(&self, run: &Run, overshoot: Option<(KilledFor, Duration)>) {
        let outcome = run.outcome.as_ref().map_or("sandbox_error", Outcome::name);
        self.runs.with_label_values(&[outcome]).inc();
        if let Some(usage) = &run.usage {
            self.duration.with_label_values(&[outcome]).observe(usage.wall_time_ms / 1e3);
            self.cpu.with_label_values(&[outcome]).observe(usage.cpu_time_ms / 1e3);
            let peak = self.memory_peak.with_label_values(&[outcome]);
            usage.memory_peak_bytes.into_iter().for_each(|bytes| peak.observe(bytes as f64));
            let written = run.stdout.total + run.stderr.total;
            self.output.with_label_values(&[outcome]).observe(written as f64);
        }
        match overshoot {
            Some((KilledFor::WallTime, by)) => self.overshot("wall", by),
            Some((KilledFor::CpuTime, by)) => self.overshot("cpu", by),
            _ => {}
        }
        say_finished(run, outcome);
    }

    fn torn_down(&self, took: Duration, clean: bool) {
        self.teardown.observe(took.as_secs_f64());
        if !clean {
            tracing::error!("a run left traces that could not be removed; its slot's ids are not used again");
        }
    }
}

/// The one line for a finished run. What the program or the client wrote is escaped.
fn say_finished(run: &Run, outcome: &str) {
    let (wall_ms, cpu_ms) =
        run.usage.as_ref().map_or((0.0, 0.0), |usage| (usage.wall_time_ms, usage.cpu_time_ms));
    let (id, timings) = (run.id, &run.timings);
    let ending = run.outcome.as_ref().map(|outcome| outcome.message(&run.limits)).unwrap_or_default();
    tracing::info!(
        run.id = %id,
        outcome,
        ending = %ending.escape_debug(),
        wall_ms,
        cpu_ms,
        queue_ms = timings.queue_ms,
        image_ms = timings.image_ms,
        setup_ms = timings.setup_ms,
        "run {id} finished: {outcome}"
    );
}
