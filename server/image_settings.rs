//! The settings of the image store: `images.high_bytes` and so on.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use image::{Budget, Mirror};
use serde::{Deserialize, Serialize};

use crate::leaks::Disk;

/// What part of its disk the store may fill where nobody has said how much.
const HIGH_PART: u64 = 4;
const HIGH_PARTS: u64 = 5;
/// What part of the high mark the low one is then.
const LOW_PARTS: u64 = 10;
/// And what part of the disk stays free.
const FREE_PARTS: u64 = 20;
const FREE_MOST_BYTES: u64 = 1 << 30;
/// And how many more files it always takes.
const FREE_MOST_INODES: u64 = 100_000;

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr;)*) => {
        /// The table `images`.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct ImageSettings {
            $($(#[doc = $doc])+ pub $name: $type,)*
        }

        impl Default for ImageSettings {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        /// Every setting of the table, with its words.
        pub const SETTINGS: &[(&str, &str)] =
            &[$((concat!("images.", stringify!($name)), concat!($($doc),+)),)*];
    };
}

settings! {
    /// Images are collected, those used longest ago first, when they take more of the disk than this, in bytes; 0: four fifths of the file system
    high_bytes: u64 = 0;
    /// Collecting ends when they take no more than this, in bytes; 0: nine tenths of `high_bytes`
    low_bytes: u64 = 0;
    /// They are also collected when the file system has less room than this, in bytes; 0: a twentieth of it, or 1 GiB if that is less
    free_bytes: u64 = 0;
    /// They are also collected when the file system takes fewer more files than this; 0: a twentieth of those that it can have, or 100,000 if that is less
    free_inodes: u64 = 0;
    /// How long a tag is taken to mean what it meant when its registry was last asked, in seconds; then the next run that says `missing` has it asked again, without waiting for it; 0: until somebody says `always`
    tag_life_s: u64 = 0;
    /// How long a registry's word holds that a principal may have an image that it has pulled with its own login, in seconds; then the next run has it asked again
    access_life_s: u64 = 3600;
    /// Places that are asked before the registry that they stand for, in this order: `docker.io=HOST:PORT/PREFIX`
    mirrors: Vec<String> = Vec::new();
    /// How long a registry may send nothing before the connection is given up and made anew, in milliseconds
    idle_timeout_ms: u64 = 30_000;
    /// Images that are pulled when the server starts, and never collected
    ahead: Vec<String> = Vec::new();
}

impl ImageSettings {
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.high_bytes == 0 || self.low_bytes <= self.high_bytes,
            "images.low_bytes is {}; it must be at most images.high_bytes, which is {}",
            self.low_bytes,
            self.high_bytes
        );
        for reference in &self.ahead {
            image::Images::check_reference(reference)
                .map_err(|error| anyhow::anyhow!("images.ahead: {error}"))?;
        }
        ensure!(self.access_life_s > 0, "images.access_life_s must be more than 0");
        ensure!(self.idle_timeout_ms > 0, "images.idle_timeout_ms must be more than 0");
        self.mirrors().map(drop)
    }

    pub fn mirrors(&self) -> anyhow::Result<Vec<Mirror>> {
        let read =
            |text: &String| Mirror::parse(text).map_err(|error| anyhow::anyhow!("images.mirrors: {error}"));
        self.mirrors.iter().map(read).collect()
    }

    pub fn tag_life(&self) -> Option<Duration> {
        (self.tag_life_s > 0).then(|| Duration::from_secs(self.tag_life_s))
    }

    /// The marks, on the disk that the store is on.
    pub fn budget(&self, data_dir: &Path) -> Budget {
        let stat = Disk::below(data_dir);
        let disk = stat.map_or(u64::MAX, |disk| disk.bytes);
        let part = disk / HIGH_PARTS * HIGH_PART;
        let high_bytes = if self.high_bytes == 0 { part } else { self.high_bytes };
        let low_bytes =
            if self.low_bytes == 0 { high_bytes - high_bytes / LOW_PARTS } else { self.low_bytes };
        let free_bytes =
            if self.free_bytes == 0 { FREE_MOST_BYTES.min(disk / FREE_PARTS) } else { self.free_bytes };
        let inodes = stat.map_or(0, |disk| disk.inodes);
        let free_inodes = match self.free_inodes {
            0 => FREE_MOST_INODES.min(inodes / FREE_PARTS),
            set => set,
        };
        Budget { high_bytes, low_bytes: low_bytes.min(high_bytes), free_bytes, free_inodes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_nobody_has_set_follow_from_the_disk() {
        let here = std::env::temp_dir();
        let Budget { high_bytes, low_bytes, .. } = ImageSettings::default().budget(&here);
        assert!(low_bytes > high_bytes / 5 * 4 && low_bytes < high_bytes, "{low_bytes} {high_bytes}");
        let settings = ImageSettings { high_bytes: 1000, ..ImageSettings::default() };
        assert_eq!(settings.budget(&here).low_bytes, 900);
        let wrong = ImageSettings { low_bytes: 1001, ..settings.clone() };
        assert!(wrong.check().unwrap_err().to_string().contains("images.low_bytes is 1001"));
        let wrong = ImageSettings { mirrors: vec!["docker.io".into()], ..settings.clone() };
        assert!(wrong.check().unwrap_err().to_string().contains("images.mirrors"));
        let wrong = ImageSettings { ahead: vec!["a b".into()], ..settings };
        assert!(wrong.check().unwrap_err().to_string().contains("images.ahead"));
    }
}
