//! Which registries may be asked and how much an image may be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Budget, Logins, Mirror, NoLogins};

#[derive(Clone, Debug)]
pub struct Config {
    /// Records of images and layers; the trees are elsewhere. One process at a time.
    pub dir: PathBuf,
    /// `HOST:PORT` or `HOST`: plain http and any address, for exactly that host.
    pub insecure_registries: Vec<String>,
    /// `HOST:PORT` or `HOST`: https to an address that is not public.
    pub private_registries: Vec<String>,
    /// Where set, no other registry is asked.
    pub allowed_registries: Option<Vec<String>>,
    /// Asked before the registries that they stand for, in this order.
    pub mirrors: Vec<Mirror>,
    /// The folder with `config.json` of `docker login`; without it every pull is anonymous.
    pub docker_config: Option<PathBuf>,
    /// The logins that principals have of their own.
    pub logins: Arc<dyn Logins>,
    /// How long a registry's word holds that a principal may have an image.
    pub access_life: Duration,
    /// Whether `host` is an image.
    pub host_image: bool,
    pub platform: Platform,
    pub pull_timeout: Duration,
    /// How long a registry may send nothing.
    pub idle_timeout: Duration,
    /// How long a pull goes on when nobody waits for it.
    pub grace: Duration,
    /// Of one image, at once.
    pub parallel_layers: usize,
    /// Of all images, at once; those whose registries send next to nothing come beside them.
    pub parallel_downloads: usize,
    /// How long a tag of a registry is taken to mean what it meant when it was last asked about.
    /// Without it, until somebody says `always`.
    pub tag_life: Option<Duration>,
    /// Images that are never collected, besides those that are marked so.
    pub pinned: Vec<String>,
    pub budget: Budget,
    pub limits: Limits,
}

impl Config {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            insecure_registries: Vec::new(),
            private_registries: Vec::new(),
            allowed_registries: None,
            mirrors: Vec::new(),
            docker_config: None,
            logins: Arc::new(NoLogins),
            access_life: Duration::from_secs(3600),
            host_image: false,
            platform: Platform::default(),
            pull_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            parallel_layers: 4,
            parallel_downloads: 8,
            tag_life: None,
            pinned: Vec::new(),
            budget: Budget::UNBOUNDED,
            limits: Limits::default(),
        }
    }
}

/// How large an image may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub manifest_bytes: u64,
    pub config_bytes: u64,
    pub layers: u64,
    /// One layer as it is downloaded.
    pub layer_bytes: u64,
    /// All layers of an image together, unpacked.
    pub image_bytes: u64,
    /// Files and folders of one image.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            layers: 256,
            layer_bytes: 10 << 30,
            image_bytes: 20 << 30,
            entries: 2_000_000,
        }
    }
}

/// What images must be made for, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub variant: Option<String>,
}

impl Default for Platform {
    /// This machine's.
    fn default() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { architecture: architecture.into(), variant: variant.map(Into::into) }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}
