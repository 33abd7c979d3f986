//! Where a pull says how far it is. Who comes late is first told what has already happened.

use std::sync::Mutex;

use tokio::sync::broadcast;

use crate::{LayerState, Progress};

const MOST_UNREAD: usize = 1024;

#[derive(Debug)]
pub(crate) struct Board {
    said: Mutex<Vec<Progress>>,
    events: broadcast::Sender<Progress>,
}

impl Default for Board {
    fn default() -> Self {
        Self { said: Mutex::default(), events: broadcast::Sender::new(MOST_UNREAD) }
    }
}

impl Board {
    pub(crate) fn say(&self, event: Progress) {
        let mut said = self.said.lock().expect("no holder panics");
        if let Progress::Layer { layer, .. } = &event {
            said.retain(|old| !matches!(old, Progress::Layer { layer: old, .. } if old == layer));
        }
        said.push(event.clone());
        // Nobody may be reading.
        let _ = self.events.send(event);
    }

    pub(crate) fn layer(&self, layer: usize, state: LayerState) {
        self.say(Progress::Layer { layer, state });
    }

    /// What was said, and what will be.
    pub(crate) fn read(&self) -> (Vec<Progress>, broadcast::Receiver<Progress>) {
        let said = self.said.lock().expect("no holder panics");
        (said.clone(), self.events.subscribe())
    }
}
