//! The conversation between server, launcher and keeper, written down as types.
//!
//! Server → launcher: one packet per [`Request`] on the launcher's SOCK_SEQPACKET socket. The first
//! descriptor that travels with it is the *control* end of a socket pair; what follows is only ever
//! said on that pair. Its closing ends whatever was asked for: that is how the server cancels, and
//! also what happens when it dies.
//!
//! | request | descriptors, in order | then, on the control socket |
//! |---|---|---|
//! | `Prepare` | control | ← `Prepared` or `Failed`; → [`Order::Run`] once, early or late, with the spec (a memfd with a [`LaunchSpec`]), stdin, stdout, stderr, files…, a pipe for outputs if there are any; ← `Started` of a program that runs for a while, ← `Finished` or `Failed`, ← `Frozen` or `NotFrozen` if asked for, ← `TornDown`; → [`Order::Kill`] at any time |
//! | `Unpack` | control, input (a pipe with the compressed bytes) | ← `Unpacked` or `Failed`; → [`Order::Name`]; ← `Named` or `Failed`; → [`Order::Sync`] if this is the layer that is asked to sync for all; ← `Synced` or `Failed` |
//! | `Pack` | control, output (a pipe for the archive) | ← `Packed` or `Failed` |
//! | `Remove`, `RemoveFormer` | control | ← `Removed` or `Failed`, once the name is free; ← `Deleted`, once its tree is gone |
//! | `Adopt` | control | ← `Adopted` or `Failed` |
//!
//! Every packet is JSON and at most [`MAX_PACKET_BYTES`] long.

use serde::{Deserialize, Serialize};

use run::{Exit, KilledFor, LimitHit, Limits, Profile, SetupFailure, Usage};

pub const MAX_PACKET_BYTES: usize = 64 * 1024;

/// The most descriptors that one packet carries (the kernel's own limit is 253).
pub const MAX_FILES: usize = 200;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Prepares a sandbox for one run. What it is to run is told on its control socket, at once or when
    /// there is something; a sandbox that is never told is thrown away unused.
    Prepare(Box<Outline>),
    /// Unpacks one layer and keeps it as `layer` once it is committed.
    Unpack {
        layer: String,
        job: String,
    },
    /// Makes an archive of a layer again.
    Pack {
        layer: String,
        job: String,
    },
    Remove {
        layer: String,
    },
    /// Takes over what was frozen under an earlier launcher.
    Adopt {
        layer: String,
    },
    /// Removes all of that which was not taken over.
    RemoveFormer,
}

/// What a sandbox is prepared for before anybody knows what will run in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outline {
    pub profile: Profile,
    /// The limits that the run will most likely have. Others are set when it comes.
    pub limits: Limits,
    /// The layers, where they can be foreseen; a run that wants others can't have this sandbox.
    pub rootfs: Option<Rootfs>,
    /// The frozen layer over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
    /// The run will have processors of its own.
    #[serde(default)]
    pub pinned: bool,
    #[cfg(feature = "removable-walls")]
    #[serde(default)]
    pub without: Vec<String>,
}

impl Outline {
    /// The sandbox for whatever may come.
    pub fn blank(limits: Limits) -> Self {
        Self {
            profile: Profile::Strict,
            limits,
            rootfs: None,
            over: None,
            pinned: false,
            #[cfg(feature = "removable-walls")]
            without: Vec::new(),
        }
    }

    /// The sandbox that exactly this spec wants.
    pub fn of(spec: &LaunchSpec) -> Self {
        Self {
            profile: spec.profile,
            limits: spec.limits.clone(),
            rootfs: Some(spec.rootfs.clone()),
            over: spec.over.clone(),
            pinned: !spec.cores.is_empty(),
            #[cfg(feature = "removable-walls")]
            without: spec.without.clone(),
        }
    }

    /// Whether the same sandbox comes of both, apart from limits, which can be set anew.
    pub fn is_like(&self, other: &Self) -> bool {
        #[cfg(feature = "removable-walls")]
        if self.without != other.without {
            return false;
        }
        let differs = self.profile != other.profile || self.pinned != other.pinned;
        !differs && (&self.rootfs, &self.over) == (&other.rootfs, &other.over)
    }

    /// Whether the run can have a sandbox that was prepared for this.
    pub fn suits(&self, spec: &LaunchSpec) -> bool {
        #[cfg(feature = "removable-walls")]
        if self.without != spec.without {
            return false;
        }
        if !walls::stands("sandbox_suits") {
            return true;
        }
        let has_its_layers = |rootfs: &Rootfs| *rootfs == spec.rootfs && self.over == spec.over;
        let same = self.profile == spec.profile && self.pinned != spec.cores.is_empty();
        same && self.rootfs.as_ref().is_none_or(has_its_layers)
    }

    /// Whether a wall is to be built, as in [`LaunchSpec::stands`].
    #[cfg(not(feature = "removable-walls"))]
    #[expect(clippy::unused_self, reason = "a test build asks the outline")]
    pub(crate) const fn stands(&self, _wall: &str) -> bool {
        true
    }

    #[cfg(feature = "removable-walls")]
    pub(crate) fn stands(&self, wall: &str) -> bool {
        !self.without.iter().any(|name| name == wall)
    }
}

/// Everything that the launcher must know to start one command. Also the file that
/// `sandglass-launcher run spec.json` takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchSpec {
    pub rootfs: Rootfs,
    /// The program first. Without a slash it is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// `KEY=value`, in the order in which the program gets them. `HOME` is added from the image's
    /// passwd and `PATH` by default where they are missing.
    pub env: Vec<String>,
    /// Created if missing, owned by the user. Empty means `/`.
    pub workdir: String,
    /// `uid`, `name`, `uid:gid`, `name:group`…, looked up inside the jail. Empty means `0:0`.
    pub user: String,
    pub limits: Limits,
    pub files: Vec<LaunchFile>,
    pub profile: Profile,
    /// The only processors that it may run on; empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cores: Vec<usize>,
    /// Files to hand out when the run is over. The last of the run's descriptors is then the pipe for
    /// them, and not a file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<LaunchOutputs>,
    /// A frozen layer over the rootfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
    /// Freeze what the run leaves behind, if it exits with code 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// Walls and limits that are taken down, by name, to see that a test notices. Releases have no
    /// such field and refuse a spec that has it.
    #[cfg(feature = "removable-walls")]
    #[serde(default)]
    pub without: Vec<String>,
}

impl LaunchSpec {
    /// Whether a wall is to be built: always, but in a build whose walls can be removed.
    #[cfg(not(feature = "removable-walls"))]
    pub(crate) const fn stands(&self, _wall: &str) -> bool {
        true
    }

    #[cfg(feature = "removable-walls")]
    pub(crate) fn stands(&self, wall: &str) -> bool {
        !self.without.iter().any(|name| name == wall)
    }

    /// Raises the limits that were taken down beyond anybody's reach.
    #[cfg(feature = "removable-walls")]
    pub(crate) fn take_limits_down(&mut self) {
        const ENDLESS: u64 = 1 << 40;
        let limits = &mut self.limits;
        for name in &self.without {
            match name.as_str() {
                "wall_time_ms" => limits.wall_time_ms = ENDLESS,
                "cpu_time_ms" => limits.cpu_time_ms = ENDLESS,
                "memory_bytes" => limits.memory_bytes = ENDLESS,
                "processes" => limits.processes = 4_000_000,
                "disk_bytes" => limits.disk_bytes = ENDLESS,
                "inodes" => limits.inodes = ENDLESS,
                "file_size_bytes" => limits.file_size_bytes = ENDLESS,
                "open_files" => limits.open_files = limits.open_files.saturating_mul(4),
                "stack_bytes" => limits.stack_bytes = limits.stack_bytes.saturating_mul(16),
                "cpus" => limits.cpus = 1e6,
                _ => {}
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// Names in the layer store, the topmost first.
    Layers(Vec<String>),
    /// The machine's own `/usr` with a minimal `/etc`, read-only.
    Host,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchFile {
    /// Absolute, or relative to the working directory.
    pub path: String,
    pub mode: u32,
    /// Which of the files' descriptors holds the content, and where in it.
    pub descriptor: usize,
    pub offset: u64,
    pub len: u64,
}

/// How much of a processor finding and reading files may take. It is not the run's: nothing else bounds it.
pub const OUTPUTS_CPU_SECONDS: u64 = 5;

/// How long all of it may take; the server reads as fast as it can write to disk.
pub const OUTPUTS_SECONDS: u64 = 30;

/// Which files are handed out, and how much at most.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchOutputs {
    /// Absolute, or relative to the working directory.
    pub patterns: Vec<String>,
    pub files_max: usize,
    /// Of one file.
    pub file_bytes_max: u64,
    /// Of all together.
    pub bytes_max: u64,
}

/// What comes down the pipe for outputs: each record as JSON behind its length in four bytes, the lowest
/// first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputRecord {
    /// Its bytes follow.
    File {
        path: String,
        size: u64,
    },
    Refused {
        path: String,
        error: String,
    },
    /// Nothing is like the pattern of that number.
    Missing {
        pattern: usize,
    },
    /// That was all.
    End,
}

/// Makes a layer of what a run has written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    /// `frozen/` and a name.
    pub layer: String,
    pub bytes_max: u64,
}

/// Server → keeper, on the control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// What the sandbox was prepared for: start this.
    Run,
    /// End the run; the reason is kept if it is the first.
    Kill(KilledFor),
    /// The layer is what it should be: give it its name.
    Name,
    /// Make durable whatever has been unpacked and named by now, of this layer and of all others.
    Sync,
}

/// Keeper → server, on the control socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Everything is there that doesn't depend on what will run.
    Prepared,
    /// The program was started. Not said of one that has ended before there was time to.
    Started(Began),
    /// Every process of the run is dead.
    Finished(Box<Finished>),
    /// After `Finished`, where a run was to be frozen: it is a layer now, or why it is none.
    Frozen {
        bytes: u64,
    },
    NotFrozen {
        reason: String,
    },
    /// Mounts and cgroups are gone too. `clean` is false where something stayed behind.
    TornDown {
        teardown_us: u64,
        clean: bool,
    },
    /// The jail has read the whole layer; `report` is what the unpack function returned.
    Unpacked {
        report: String,
    },
    Synced,
    /// The archive is complete, or will never be; `report` is what the pack function returned.
    Packed {
        report: String,
    },
    /// From now on sandboxes can have the layer, and what it is called stays until it is removed.
    Named,
    /// `there` is false where nothing of that name was left.
    Adopted {
        there: bool,
    },
    Removed,
    Deleted,
    /// Our fault, or the kernel's; nothing of what was asked for stays behind.
    Failed(SetupFailure),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    pub exit: Exit,
    pub killed_for: Option<KilledFor>,
    pub oom_kills: u64,
    pub usage: Usage,
    pub limit_hits: Vec<LimitHit>,
    /// How far past its time limit the last process died, where one was hit.
    pub overshoot_us: Option<u64>,
    /// Nothing where no program was started.
    pub began: Option<Began>,
}

/// When a program was started.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Began {
    /// How long after the run came, or after its sandbox was asked for where the run didn't find it ready.
    pub setup_us: u64,
    /// How long before this was said.
    pub ago_us: u64,
}

impl Finished {
    pub(crate) fn never_started() -> Self {
        Finished {
            exit: Exit::Unknown,
            killed_for: None,
            oom_kills: 0,
            usage: Usage::default(),
            limit_hits: Vec::new(),
            overshoot_us: None,
            began: None,
        }
    }
}

/// Launcher → server, once, before the first request is taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub kernel: String,
    pub walls: Vec<Wall>,
    /// Names of limits in `api.md`'s spelling that this host can't enforce.
    pub not_enforced: Vec<String>,
    /// How many ids each run has to itself.
    pub id_width: u32,
    /// How many runs can have ids of their own at once.
    pub max_runs: u32,
    /// `v2`, `v1`, `hybrid` or `none`.
    pub cgroup: String,
    /// Whether `image: "host"` can be offered.
    pub host_image: bool,
    /// How many runs of dead servers were found and removed at this start.
    pub orphans: u32,
}

/// One wall of the sandbox and whether it stands on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wall {
    pub name: String,
    pub state: WallState,
    /// What it is, or why it is weaker or missing and how to get it.
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WallState {
    Up,
    Weaker,
    Down,
}
