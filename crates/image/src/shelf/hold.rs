//! What is in use, for as long as somebody holds this.

use std::fmt;
use std::sync::Arc;

use super::state::take_one;
use super::{Durable, Shelf};
use crate::disk::ImageRecord;
use crate::lease::Guard;

/// An image in somebody's hands.
pub(crate) struct Taken {
    pub(crate) record: ImageRecord,
    pub(crate) hold: Hold,
    /// Ends when it is durable; nothing where it was when it was taken.
    pub(crate) durable: Option<Durable>,
}

/// Keeps layers from being removed, and an image from being collected.
pub(crate) struct Hold {
    pub(super) shelf: Arc<Shelf>,
    pub(super) layers: Arc<[String]>,
    pub(super) image: Option<String>,
}

impl Guard for Hold {}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.layers).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.shelf.lock();
        state.held.take(&self.layers);
        self.image.iter().for_each(|image| take_one(&mut state.leased, image));
        let image = self.image.as_ref().and_then(|image| state.images.get(image));
        // What the image still names stays: a run's end costs no look at each of its layers.
        if image.is_none_or(|image| !Arc::ptr_eq(&image.layers, &self.layers)) {
            self.shelf.sweep(&mut state, &self.layers);
        }
    }
}
