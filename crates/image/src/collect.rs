//! Which images go when there are too many. What is in use or pinned never goes; of the rest, what
//! was used longest ago goes first, until the store is well below its bound again.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::shelf::{Shelf, State};
use crate::{Eviction, ImageError};

/// How much of the disk images may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Above this, images are collected…
    pub high_bytes: u64,
    /// …until no more than this is left.
    pub low_bytes: u64,
    /// And they are collected where the file system has less than this to give.
    pub free_bytes: u64,
    /// The same for files: a file system may have room and yet take no more of them.
    pub free_inodes: u64,
}

/// What a file system has left to give, where that can be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) bytes: Option<u64>,
    pub(crate) inodes: Option<u64>,
}

/// What has to go, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Surplus {
    bytes: u64,
    inodes: u64,
    why: Eviction,
}

impl Surplus {
    /// All that can go.
    const EVERYTHING: Self = Self { bytes: u64::MAX, inodes: u64::MAX, why: Eviction::Disk };

    fn is_met(self, (bytes, inodes): (u64, u64)) -> bool {
        bytes >= self.bytes && inodes >= self.inodes
    }
}

impl Budget {
    pub const UNBOUNDED: Self =
        Self { high_bytes: u64::MAX, low_bytes: u64::MAX, free_bytes: 0, free_inodes: 0 };

    /// What has to go before `incoming` more bytes may come. How many files they are nobody knows before
    /// they are here.
    fn surplus(&self, kept: u64, incoming: u64, free: Free) -> Surplus {
        let full = kept.saturating_add(incoming);
        let over = if full > self.high_bytes { full.saturating_sub(self.low_bytes) } else { 0 };
        let wanted = self.free_bytes.saturating_add(incoming);
        let short = free.bytes.map_or(0, |free| wanted.saturating_sub(free));
        let inodes = free.inodes.map_or(0, |free| self.free_inodes.saturating_sub(free));
        let why = if short > over || (inodes > 0 && over == 0) { Eviction::Disk } else { Eviction::Limit };
        Surplus { bytes: short.max(over), inodes, why }
    }
}

/// One image, as far as collecting looks at it.
struct Candidate<'a> {
    key: &'a str,
    last_used_at: Timestamp,
    layers: &'a [String],
}

/// The images to be forgotten, so that at least the surplus goes, or all that can. `named` says how
/// many images need each layer, and `weight` what its going would bring, in bytes and in files.
fn victims<'a>(
    mut images: Vec<Candidate<'a>>,
    mut named: HashMap<&'a str, usize>,
    weight: impl Fn(&str) -> (u64, u64),
    surplus: Surplus,
) -> Vec<&'a str> {
    images.sort_by_key(|image| image.last_used_at);
    let (mut freed, mut victims) = ((0, 0), Vec::new());
    for image in images {
        if surplus.is_met(freed) {
            break;
        }
        for layer in image.layers {
            let Some(count) = named.get_mut(layer.as_str()) else { continue };
            *count -= 1;
            if *count == 0 {
                let (bytes, inodes) = weight(layer);
                freed = (freed.0 + bytes, freed.1 + inodes);
            }
        }
        victims.push(image.key);
    }
    victims
}

impl State {
    fn victims(&self, surplus: Surplus, is_pinned: impl Fn(&str) -> bool) -> Vec<String> {
        if surplus.is_met((0, 0)) {
            return Vec::new();
        }
        let may_go = self
            .images
            .iter()
            .filter(|(key, image)| !image.pinned && !is_pinned(key) && !self.leased.contains_key(*key));
        let candidates = may_go.map(|(key, image)| Candidate {
            key,
            last_used_at: image.last_used_at,
            layers: &image.layers,
        });
        let named = self.named.iter().map(|(layer, count)| (layer.as_str(), *count)).collect();
        // A layer that somebody holds stays for now, so its going brings nothing.
        let held = self.held.layers();
        let weight = |layer: &str| {
            let held = held.contains(layer);
            self.layers.get(layer).filter(|_| !held).map_or((0, 0), |layer| (layer.weight(), layer.inodes()))
        };
        let victims = victims(candidates.collect(), named, weight, surplus);
        victims.into_iter().map(str::to_owned).collect()
    }
}

impl Shelf {
    /// Makes room for `incoming` bytes, as far as that is possible and needed. Returns how many images
    /// had to go for it, of which each has been told to `forgotten`. It writes records, so it blocks.
    pub(crate) fn collect(self: &Arc<Self>, incoming: u64, forgotten: impl Fn(Eviction)) -> usize {
        let (bytes, inodes) = (self.store.free_bytes(), self.store.free_inodes());
        let (victims, reason) = {
            let state = self.lock();
            let free = Free {
                bytes: bytes.map(|free| free.saturating_add(state.deleting_bytes)),
                inodes: inodes.map(|free| free.saturating_add(state.deleting_inodes)),
            };
            let surplus = self.budget.surplus(state.weight(), incoming, free);
            (state.victims(surplus, |reference| self.pinned.contains(reference)), surplus.why)
        };
        self.forget(&victims, reason, forgotten)
    }

    /// Lets go of everything that nobody needs: for when the disk is full all the same.
    pub(crate) fn collect_all(self: &Arc<Self>, forgotten: impl Fn(Eviction)) -> usize {
        let victims = self.lock().victims(Surplus::EVERYTHING, |reference| self.pinned.contains(reference));
        self.forget(&victims, Eviction::Disk, forgotten)
    }

    fn forget(self: &Arc<Self>, victims: &[String], reason: Eviction, forgotten: impl Fn(Eviction)) -> usize {
        let mut gone = 0;
        for key in victims {
            match self.remove_unused(key) {
                Ok(true) => {
                    tracing::info!(image = key, reason = reason.as_str(), "collected an image");
                    forgotten(reason);
                    gone += 1;
                }
                Ok(false) => {}
                Err(error) => log_failed(key, &error),
            }
        }
        gone
    }
}

fn log_failed(key: &str, error: &ImageError) {
    tracing::warn!(image = key, error = ?error, "an image could not be collected");
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { high_bytes: 100, low_bytes: 80, free_bytes: 10, free_inodes: 5 };

    #[test]
    fn nothing_goes_below_the_high_mark_and_enough_goes_above_it() {
        for (kept, incoming, free, surplus) in [
            (100, 0, None, (0, Eviction::Limit)),
            (101, 0, None, (21, Eviction::Limit)),
            (50, 60, None, (30, Eviction::Limit)),
            (50, 0, Some(10), (0, Eviction::Limit)),
            (50, 0, Some(4), (6, Eviction::Disk)),
            (50, 20, Some(25), (5, Eviction::Disk)),
            (101, 0, Some(0), (21, Eviction::Limit)),
        ] {
            let free = Free { bytes: free, inodes: None };
            let Surplus { bytes, inodes, why } = BUDGET.surplus(kept, incoming, free);
            assert_eq!(((bytes, why), inodes), (surplus, 0), "{kept} {incoming} {free:?}");
        }
        let none_left = Free { bytes: Some(0), inodes: Some(0) };
        assert_eq!(Budget::UNBOUNDED.surplus(u64::MAX, u64::MAX, none_left).bytes, u64::MAX);
    }

    #[test]
    fn where_files_are_short_images_go_however_much_room_there_is() {
        let free = |inodes| Free { bytes: Some(1000), inodes: Some(inodes) };
        let expected = Surplus { bytes: 0, inodes: 2, why: Eviction::Disk };
        assert_eq!(BUDGET.surplus(0, 0, free(3)), expected);
        assert!(BUDGET.surplus(0, 0, free(5)).is_met((0, 0)));
        assert!(!expected.is_met((u64::MAX, 1)) && expected.is_met((0, 2)));
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_shared_layers_go_last() {
        let layers = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (old, middle, new) = (layers(&["base", "old"]), layers(&["base", "middle"]), layers(&["new"]));
        let at = |second| Timestamp::from_second(second).unwrap();
        let pick = |surplus| {
            let images = [("new", &new, 3), ("old", &old, 1), ("middle", &middle, 2)];
            let images = images.map(|(key, layers, used)| Candidate { key, last_used_at: at(used), layers });
            let named = HashMap::from([("base", 2), ("old", 1), ("middle", 1), ("new", 1)]);
            let weight = |layer: &str| (if layer == "base" { 100 } else { 10 }, 1);
            victims(images.into(), named, weight, Surplus { bytes: surplus, inodes: 0, why: Eviction::Limit })
        };
        assert_eq!(pick(0), Vec::<&str>::new());
        assert_eq!(pick(10), ["old"]);
        // The base goes with the last image that needs it.
        assert_eq!(pick(11), ["old", "middle"]);
        assert_eq!(pick(120), ["old", "middle"]);
        assert_eq!(pick(1000), ["old", "middle", "new"]);
    }
}
