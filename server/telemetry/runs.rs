//! What becomes of runs and batches.

use std::time::Duration;

use run::{KilledFor, Outcome, Run, Verdict};

use super::Telemetry;

impl engine::Observer for Telemetry {
    fn batch_finished(&self, verdict: Option<Verdict>) {
        let result = match verdict {
            Some(Verdict::CompileError) => "compile_error",
            Some(Verdict::Cancelled) => "cancelled",
            Some(Verdict::InternalError) => "internal_error",
            // What the programs did is no matter of the service's.
            Some(_) | None => "finished",
        };
        self.batches.with_label_values(&[result]).inc();
        tracing::info!(result, "batch finished: {result}");
    }

    fn rejected(&self, reason: engine::Rejection) {
        self.rejected.with_label_values(&[reason.as_str()]).inc();
        tracing::warn!(reason = reason.as_str(), "a run was turned away");
    }

    fn dequeued(&self, waited: Duration) {
        self.queue_wait.observe(waited.as_secs_f64());
    }

    fn started(&self, startup: engine::Startup) {
        let engine::Startup { image, setup, exec, fetched } = startup;
        let cache = if fetched { "miss" } else { "hit" };
        let total = image + setup + exec;
        for (phase, took) in [("image", image), ("setup", setup), ("exec", exec), ("total", total)] {
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
        self.ledger.finished(run);
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
        principal = (!run.principal.is_anonymous()).then(|| run.principal.as_str()),
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
