//! What a build of the tests' tests does where the wall is down that gives each run a sandbox of its own: used
//! sandboxes come back into the pool. In every other build nothing of this is left.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use run::KilledFor;
use sandbox::protocol::{Event, LaunchSpec, Outline, Rootfs};

use crate::launcher::{Control, Keeper};
use crate::pool::Pool;

pub(crate) fn for_one_run(
    control: Keeper,
    spec: &LaunchSpec,
    pool: &Arc<Mutex<Pool<OwnedFd>>>,
) -> Box<dyn Control> {
    if walls::stands("sandbox_once") {
        return Box::new(control);
    }
    // The canary of a starting server, whose image is empty, always has its own: it would see only itself.
    let pool = (spec.rootfs != Rootfs::Layers(Vec::new())).then(|| Arc::clone(pool));
    Box::new(Again { control, outline: Outline::of(spec), pool, is_free: false })
}

struct Again {
    control: Keeper,
    outline: Outline,
    /// Where it comes back to, if it does.
    pool: Option<Arc<Mutex<Pool<OwnedFd>>>>,
    /// Its run is over, and so is all that is said of it.
    is_free: bool,
}

impl Control for Again {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Event>>> {
        Box::pin(async {
            if self.is_free {
                return Ok(None);
            }
            let event = self.control.next().await;
            self.is_free = matches!(event, Ok(Some(Event::TornDown { .. })));
            event
        })
    }

    fn kill(&mut self, reason: KilledFor) {
        self.control.kill(reason);
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        let Some(pool) = self.pool.as_ref().filter(|_| self.is_free) else { return };
        if let (Ok(socket), Ok(mut pool)) = (self.control.socket.get_ref().try_clone(), pool.lock()) {
            pool.take_back(self.outline.clone(), socket);
        }
    }
}
