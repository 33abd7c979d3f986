//! The orderly end of a server: nothing new is taken, what runs gets its deadline, and whoever waits for
//! a reply still gets it.

use std::time::Duration;

use engine::Engine;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long replies may take that are due once every run has ended.
pub const GOODBYE: Duration = Duration::from_secs(5);

/// SIGTERM from a service manager, SIGINT from a terminal.
#[derive(Debug)]
pub struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The listening side of a server, while it is being closed.
#[derive(Debug)]
pub struct Serving {
    /// Stops taking connections; those that there are get their answers.
    pub closing: CancellationToken,
    pub task: JoinHandle<std::io::Result<()>>,
}

/// The socket is ours and goes with us: new connections are told that we are stopping, until every run
/// has ended.
/// Whether the signal came again.
pub async fn telling(engine: &Engine, serving: &Serving, stop: &mut StopSignal, deadline: Duration) -> bool {
    let told_twice = drain(engine, stop, deadline).await;
    serving.closing.cancel();
    told_twice
}

/// The socket stays when we go: new connections wait in its backlog for the next server, and who is
/// connected to this one is served as ever, so that nobody notices. Whether the signal came again.
pub async fn silently(
    engine: &Engine,
    serving: &mut Serving,
    stop: &mut StopSignal,
    deadline: Duration,
) -> bool {
    let until = Instant::now() + deadline;
    serving.closing.cancel();
    let heard = async {
        while !serving.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = heard => {}
        () = tokio::time::sleep_until(until) => {}
        name = stop.received() => {
            tracing::warn!("{name} again: cancelling what still runs");
            engine.drain(Duration::ZERO).await;
            return true;
        }
    }
    drain(engine, stop, until.saturating_duration_since(Instant::now())).await
}

async fn drain(engine: &Engine, stop: &mut StopSignal, deadline: Duration) -> bool {
    tokio::select! {
        () = engine.drain(deadline) => false,
        name = stop.received() => {
            tracing::warn!("{name} again: cancelling what still runs");
            engine.drain(Duration::ZERO).await;
            true
        }
    }
}

/// The last answers, without waiting for those who are slow to take them.
pub async fn hurried(mut serving: Serving) -> std::io::Result<()> {
    match tokio::time::timeout(GOODBYE, &mut serving.task).await {
        Ok(ended) => ended?,
        Err(_) => {
            tracing::warn!("some connections did not finish in time");
            serving.task.abort();
            Ok(())
        }
    }
}
