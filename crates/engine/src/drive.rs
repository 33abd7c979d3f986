//! The life of one run: queued → preparing → running → finished, and then the slot's. Of a promised run each
//! step that must not be taken twice is written down first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use run::{KilledFor, Outcome, Output, Problem, Run, RunSpec, RunState, Timings};
use sandbox::protocol::Event;

use crate::admission::{Slot, Ticket};
use crate::engine::{Admitted, Inner};
use crate::execute::{Executed, Gate, Stdin, Step, execute, ms};
use crate::launcher::Control;
use crate::live::Live;
use crate::over::Room;
use crate::{Context, Over};

/// How long a slot waits for the traces of its run to go.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(6);

pub(crate) async fn drive(inner: Arc<Inner>, live: Arc<Live>, spec: RunSpec, admitted: Admitted) {
    let Admitted { mut ticket, leases, standing } = admitted;
    let entered = Instant::now();
    let slot = match &standing.freeze {
        None => slot(&inner, &live, &mut ticket).await,
        Some(freezing) => match slot_with_room(&inner, &live, &spec, &mut ticket, &*freezing.room).await {
            Ok(slot) => slot,
            Err(why) => return finish(&inner, &live, &spec, Executed::not_run(why)).await,
        },
    };
    drop(ticket);
    let waited = entered.elapsed();
    let of_batch = standing.gate.clone();
    let is_left = || of_batch.as_ref().is_some_and(|gate| gate.is_closed());
    let Some(slot) = slot else {
        return if is_left() { live.park() } else { leave_queue(&inner, &live, &spec, waited).await };
    };
    inner.observer.dequeued(waited);
    live.update(|run| {
        run.timings.queue_ms = Some(ms(waited));
        (run.state, run.queue_position) = (RunState::Preparing, None);
    });
    let gate = WrittenFirst { inner: &inner, live: &live, started: AtomicBool::new(false) };
    let context = Context {
        images: &*inner.images,
        launcher: &*inner.launcher,
        observer: &*inner.observer,
        cores: slot.cores(),
        leases: &leases,
        files: inner.config.files.as_ref(),
        over: Over {
            base: standing.base.as_deref(),
            freeze: standing.freeze.as_ref().map(|freezing| &freezing.freeze),
        },
        gate: if live.promised { Some(&gate) } else { of_batch.as_deref() },
    };
    let mut on_step = |step: Step<'_>| follow(&inner, &live, step);
    let mut executed = execute(context, &spec, Stdin::OfSpec, &live.cancel, &mut on_step).await;
    if is_left() {
        return live.park();
    }
    let control = executed.control.take();
    if let (Some(made), Some(freezing)) = (executed.made.take(), standing.freeze) {
        let _ = freezing.says.send(made);
    }
    // What the run stood on is free before anybody hears of its end.
    drop(standing.base);
    if executed.started_at.is_some() {
        inner.runs().running -= 1;
    }
    if executed.outcome == Outcome::Cancelled {
        if stays(&inner, &live) && !gate.started.load(Ordering::Relaxed) {
            return live.park();
        }
        if inner.lost.is_cancelled() {
            executed = executed.interrupted("launcher");
        }
    }
    if live.promised {
        // The disk is waited for while the traces go.
        tokio::join!(finish(&inner, &live, &spec, executed), tear_down(&inner, &live, control, slot));
    } else {
        finish(&inner, &live, &spec, executed).await;
        tear_down(&inner, &live, control, slot).await;
    }
}

/// Its turn; nothing where it ends before that.
async fn slot(inner: &Inner, live: &Live, ticket: &mut Ticket) -> Option<Slot> {
    tokio::select! {
        biased;
        () = live.cancel.cancelled() => None,
        () = inner.draining.cancelled(), if live.promised => None,
        slot = ticket.slot() => Some(slot),
    }
}

/// The same for a run whose file system is kept. Where there is no room for that, the slot is given back while the
/// room is waited for: those who will give it back may need the slot.
async fn slot_with_room(
    inner: &Inner,
    live: &Live,
    spec: &RunSpec,
    ticket: &mut Ticket,
    room: &dyn Room,
) -> Result<Option<Slot>, Problem> {
    loop {
        let Some(slot) = slot(inner, live, ticket).await else { return Ok(None) };
        if room.take() {
            return Ok(Some(slot));
        }
        let _seat = ticket.step_aside(&spec.principal, slot);
        tokio::select! {
            biased;
            () = live.cancel.cancelled() => return Ok(None),
            has_room = room.wait() => has_room?,
        }
        ticket.stand_again(spec);
    }
}

/// A run that ends before it has a slot: cancelled, or left to the next server.
async fn leave_queue(inner: &Inner, live: &Live, spec: &RunSpec, waited: Duration) {
    if stays(inner, live) {
        return live.park();
    }
    live.update(|run| run.timings.queue_ms = Some(ms(waited)));
    let executed = Executed::cancelled();
    let executed = if inner.lost.is_cancelled() { executed.interrupted("launcher") } else { executed };
    finish(inner, live, spec, executed).await;
}

/// Whether a run that has not started stays written down for the next server.
fn stays(inner: &Inner, live: &Live) -> bool {
    let ending = inner.draining.is_cancelled() || inner.lost.is_cancelled();
    live.promised && ending && !live.is_unwanted()
}

/// A promised run is marked as started before it starts: should we die in between, it is better not run than
/// run twice.
struct WrittenFirst<'a> {
    inner: &'a Inner,
    live: &'a Live,
    started: AtomicBool,
}

impl Gate for WrittenFirst<'_> {
    fn pass(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            self.started.store(true, Ordering::Relaxed);
            let written = self.inner.store.started(self.live.id, Timestamp::now()).await;
            written.map_err(|error| format!("the run was not started: {error}"))
        })
    }
}

fn follow(inner: &Inner, live: &Live, step: Step<'_>) {
    match step {
        Step::Image(image) => live.update(|run| run.image = image.clone()),
        Step::Started(at) => {
            inner.runs().running += 1;
            live.update(|run| (run.state, run.started_at) = (RunState::Running, Some(at)));
        }
        Step::Outputs { stdout, stderr } => live.writes_to(stdout, stderr),
        Step::Wrote => live.wrote(),
    }
}

async fn finish(inner: &Inner, live: &Live, spec: &RunSpec, executed: Executed) {
    let overshoot: Option<(KilledFor, Duration)> = executed.overshoot;
    let mut run = Arc::unwrap_or_clone(live.run());
    end(&mut run, executed);
    let run = Arc::new(run);
    let kept = if spec.keep_output { Arc::clone(&run) } else { Arc::new(without_outputs(&run)) };
    if live.promised {
        // Nobody is told how it ended who could be told otherwise after a restart. A store that is broken
        // has said so itself.
        let _ = inner.store.kept(kept).await;
    } else {
        inner.store.remember(kept);
    }
    inner.observer.finished(&run, overshoot);
    live.publish(run);
    inner.runs().live.remove(&live.id);
}

fn end(run: &mut Run, executed: Executed) {
    let Executed {
        outcome,
        problem,
        image,
        stdout,
        stderr,
        outputs,
        outputs_missing,
        usage,
        limit_hits,
        timings,
        started_at,
        overshoot: _,
        control: _,
        made: _,
    } = executed;
    (run.state, run.queue_position) = (RunState::Finished, None);
    run.outcome = Some(outcome);
    run.problem = problem;
    run.image = image.unwrap_or_else(|| run.image.clone());
    (run.stdout, run.stderr) = (stdout, stderr);
    (run.outputs, run.outputs_missing) = (Arc::new(outputs), outputs_missing);
    (run.usage, run.limit_hits) = (usage, limit_hits);
    run.timings = Timings { queue_ms: run.timings.queue_ms, ..timings };
    run.started_at = started_at.or(run.started_at);
    run.finished_at = Some(Timestamp::now());
}

/// For those who must not leave behind what they wrote; how much it was may stay.
fn without_outputs(run: &Run) -> Run {
    let emptied = |output: &Output| Output { total: output.total, ..Output::default() };
    let (stdout, stderr) = (emptied(&run.stdout), emptied(&run.stderr));
    Run { stdout, stderr, outputs: Arc::default(), ..run.clone() }
}

/// A run that had started when the server died: it died with it, and nobody knows how far it had come.
pub(crate) fn interrupted(mut run: Run) -> Arc<Run> {
    end(&mut run, Executed::cancelled().interrupted("server"));
    Arc::new(run)
}

/// A run that waited for this server, which can't start it.
pub(crate) fn unable(mut run: Run, reason: String) -> Arc<Run> {
    end(&mut run, Executed::without_a_run(Outcome::StartFailed { reason }));
    Arc::new(run)
}

/// The answer is out; the slot is free only when nothing of the run is left.
async fn tear_down(inner: &Inner, live: &Live, control: Option<Box<dyn Control>>, slot: Slot) {
    if let Some(mut control) = control {
        inner.runs().ending += 1;
        let began = Instant::now();
        let clean = tokio::time::timeout(TEARDOWN_PATIENCE, gone(&mut *control)).await.unwrap_or(false);
        let took = began.elapsed();
        inner.runs().ending -= 1;
        inner.launcher.refill();
        inner.observer.torn_down(took, clean);
        inner.store.torn_down(live.id, ms(took));
    }
    if inner.store.is_full() {
        inner.store.room().await;
    }
    drop(slot);
}

/// Whether mounts and control groups went as they should.
async fn gone(control: &mut dyn Control) -> bool {
    loop {
        match control.next().await {
            Ok(Some(Event::TornDown { clean, .. })) => return clean,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return false,
        }
    }
}
