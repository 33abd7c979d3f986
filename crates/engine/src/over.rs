//! What runs of a batch share beneath them: an image that is held, and over it what a prepare command has
//! made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use image::Lease;
use run::Problem;
use sandbox::protocol::{Event, Freeze};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::Launcher;
use crate::engine::Inner;
use crate::execute::Gate;
use crate::files::Reservation;
use crate::launcher::Control;

/// A little more than the keeper has for it.
const FREEZE_PATIENCE: Duration = Duration::from_secs(70);

/// What a run starts from instead of asking for its image.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) lease: Lease,
    pub(crate) layer: Option<FrozenLayer>,
}

/// A layer that a run has left. It goes with this, but not when the server does: the next one removes what it has no
/// use for.
pub(crate) struct FrozenLayer {
    pub(crate) name: String,
    pub(crate) room: Reservation,
    launcher: Arc<dyn Launcher>,
    stopping: CancellationToken,
}

impl fmt::Debug for FrozenLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrozenLayer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl FrozenLayer {
    pub(crate) fn new(name: String, room: Reservation, engine: &Inner) -> Self {
        let (launcher, stopping) = (Arc::clone(&engine.launcher), engine.draining.clone());
        Self { name, room, launcher, stopping }
    }
}

impl Drop for FrozenLayer {
    fn drop(&mut self) {
        // Without a runtime the server is at its end.
        if !self.stopping.is_cancelled()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (launcher, name) = (Arc::clone(&self.launcher), std::mem::take(&mut self.name));
            runtime.spawn(async move { launcher.discard(&name).await });
        }
    }
}

/// What a run stands on, and whether what it leaves is to be kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Over<'a> {
    pub(crate) base: Option<&'a Base>,
    pub(crate) freeze: Option<&'a Freeze>,
}

/// The same for a run that was submitted.
#[derive(Default)]
pub(crate) struct Standing {
    pub(crate) base: Option<Arc<Base>>,
    pub(crate) freeze: Option<Freezing>,
    /// What is asked before its program starts.
    pub(crate) gate: Option<Arc<dyn Gate>>,
}

/// What is to be kept of a run, where there is room for it, and who is told.
pub(crate) struct Freezing {
    pub(crate) freeze: Freeze,
    pub(crate) room: Arc<dyn Room>,
    pub(crate) says: oneshot::Sender<Made>,
}

/// Room for what a run leaves behind.
pub(crate) trait Room: Send + Sync {
    /// Whether it has it, now or from before. Never waits: the caller has a slot.
    fn take(&self) -> bool;
    /// Waits until it has it, or says why it gave up. The caller must not have a slot.
    fn wait(&self) -> BoxFuture<'_, Result<(), Problem>>;
}

/// What a prepare run has made: its image, still held, and how much the layer takes, or why there is none.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) lease: Lease,
    pub(crate) frozen: Result<u64, String>,
}

/// What the keeper says about freezing, after the run's end.
pub(crate) async fn hear_frozen(control: &mut dyn Control) -> Result<u64, String> {
    let hearing = tokio::time::timeout(FREEZE_PATIENCE, async {
        match control.next().await {
            Ok(Some(Event::Frozen { bytes })) => Ok(bytes),
            Ok(Some(Event::NotFrozen { reason })) => Err(reason),
            Ok(Some(_) | None) | Err(_) => Err("the run's keeper did not say what became of it".to_owned()),
        }
    });
    hearing.await.unwrap_or_else(|_| Err("it took too long".to_owned()))
}
