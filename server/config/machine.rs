//! Defaults that depend on the machine, and on who starts the server.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use run::{Limits, Maxima};

use crate::memory;

/// Memory for one run is bounded by three quarters of what the machine has.
pub(super) fn default_limits() -> (Limits, Maxima) {
    let host_bytes = memory_bytes().unwrap_or(1 << 30);
    let standard = Maxima::default();
    let open_files = standard.open_files.min(open_files_max());
    let maxima = Maxima { memory_bytes: host_bytes / 4 * 3, open_files, cpus: host_cpus(), ..standard };
    let standard = Limits::default();
    let limits = Limits { memory_bytes: standard.memory_bytes.min(maxima.memory_bytes), ..standard };
    (limits, maxima)
}

/// More than its own hard limit nobody can grant, unless it has CAP_SYS_RESOURCE.
pub(super) fn open_files_max() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let more = Maxima::default().open_files;
    if hard >= more || setrlimit(Resource::RLIMIT_NOFILE, soft, more).is_ok() { more } else { hard }
}

/// Connections and runs each need some, and a limit that is lower than it has to be, such as the 1024 of a shell or of
/// a container engine, would be met by a thousand idle clients. Programs get a limit of their own.
pub fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%errno, "this process may open fewer files than its hard limit allows");
    }
}

pub(super) fn host_cpus() -> f64 {
    processors() as f64
}

/// Finding out reads files of control groups, and each flag's default asks.
pub(super) fn processors() -> usize {
    static AT_START: OnceLock<usize> = OnceLock::new();
    *AT_START.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The same is true of memory.
pub(super) fn memory_bytes() -> Option<u64> {
    static AT_START: OnceLock<Option<u64>> = OnceLock::new();
    *AT_START.get_or_init(memory::bytes)
}

/// An eighth of what there is, though no less than one body and no more than is of use.
pub(super) fn default_bodies_bytes() -> usize {
    let eighth = memory_bytes().map_or(usize::MAX, |bytes| usize::try_from(bytes / 8).unwrap_or(usize::MAX));
    eighth.clamp(32 * 1024 * 1024, 256 * 1024 * 1024)
}

/// One place for the machine's images when we may write there, else one of the user's own. Who starts the program
/// decides, and not whom the server has become when it reads its configuration again.
pub(super) fn default_data_dir() -> PathBuf {
    static AT_START: OnceLock<PathBuf> = OnceLock::new();
    AT_START.get_or_init(data_dir_of_this_user).clone()
}

fn data_dir_of_this_user() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/sandglass".into();
    }
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let base = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(|| "/var/lib".into()).join("sandglass")
}

pub(super) fn default_docker_config() -> String {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
    folder.map(|folder| folder.join("config.json").display().to_string()).unwrap_or_default()
}

pub(super) fn beside_this_program(name: &str) -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.join(name)))
        .unwrap_or_else(|| name.into())
}
