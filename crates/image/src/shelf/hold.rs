//! What is in use, for as long as somebody holds this.

use std::fmt;
use std::sync::Arc;

use super::Shelf;
use super::state::take_one;
use crate::disk::ImageRecord;
use crate::lease::Guard;

/// An image in somebody's hands.
pub(crate) struct Taken {
    pub(crate) record: ImageRecord,
    pub(crate) hold: Hold,
}

/// Keeps layers from being removed, and an image from being collected.
pub(crate) struct Hold {
    pub(super) shelf: Arc<Shelf>,
    pub(super) layers: Vec<String>,
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
        self.layers.iter().for_each(|layer| take_one(&mut state.held, layer));
        self.image.iter().for_each(|image| take_one(&mut state.leased, image));
        self.shelf.sweep(&mut state, &self.layers);
    }
}
