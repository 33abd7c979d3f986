//! What `doctor` says of the kernel beyond the walls: holes that its version is known to have, and settings
//! of the machine that make the next one harder to use.
//!
//! Versions are advice and no verdict: distributions mend old versions. Where a hole is stopped by a wall of
//! ours as well, that is said; a shared kernel has others that nobody knows yet.

/// A hole that was found, and mended in these versions of the kernel's stable series.
struct Hole {
    name: &'static str,
    what: &'static str,
    /// The first good version of each series, oldest first. Later series never had it.
    mended: &'static [(u32, u32, u32)],
    stands_before: &'static str,
}

/// Those of which the versions are known, from the kernel's own announcements.
const HOLES: &[Hole] = &[
    Hole {
        name: "CVE-2026-31431",
        what: "a crypto socket writes into the page cache of files that can only be read",
        mended: &[(6, 18, 22), (6, 19, 12)],
        stands_before: "seccomp refuses AF_ALG sockets and splice",
    },
    Hole {
        name: "CVE-2026-43284",
        what: "IPsec in a user namespace writes into the page cache",
        mended: &[(6, 6, 138), (6, 12, 87), (6, 18, 28)],
        stands_before: "runs have no capability and can make no namespace",
    },
    Hole {
        name: "CVE-2026-43500",
        what: "an RxRPC socket writes into the page cache",
        mended: &[(6, 18, 29), (7, 0, 6)],
        stands_before: "seccomp refuses AF_RXRPC sockets",
    },
    Hole {
        name: "CVE-2026-46333",
        what: "descriptors of a privileged program that is ending can be taken",
        mended: &[(5, 10, 256), (5, 15, 207), (6, 1, 173), (6, 6, 139), (6, 12, 89), (6, 18, 31), (7, 0, 8)],
        stands_before: "runs have no setuid programs, and seccomp refuses pidfd_getfd",
    },
];

/// A line for each hole that a kernel of that release has, unless its distribution has mended it.
pub(super) fn holes(release: &str) -> Vec<String> {
    let Some(version) = version(release) else { return Vec::new() };
    let open = HOLES.iter().filter(|hole| hole.is_in(version));
    open.map(|hole| format!("{}: {}; here {}", hole.name, hole.what, hole.stands_before)).collect()
}

impl Hole {
    fn is_in(&self, (major, minor, patch): (u32, u32, u32)) -> bool {
        let series = self.mended.iter().find(|good| (good.0, good.1) == (major, minor));
        series.is_some_and(|good| patch < good.2)
    }
}

/// `6.1.0-28-cloud-amd64` is Debian's 6.1 with a number of its own: the third number says nothing there.
fn version(release: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
    (version.2 > 0).then_some(version)
}

/// One setting of the kernel: where it is, whether it is as it should be, and why.
struct Setting {
    path: &'static str,
    is_good: fn(&str) -> bool,
    better: &'static str,
    because: &'static str,
}

fn at_least(value: &str, least: i64) -> bool {
    value.parse::<i64>().is_ok_and(|value| value >= least)
}

const SETTINGS: &[Setting] = &[
    Setting {
        path: "kernel/kptr_restrict",
        is_good: |value| at_least(value, 1),
        better: "2",
        because: "addresses of the kernel help whoever attacks it",
    },
    Setting {
        path: "kernel/dmesg_restrict",
        is_good: |value| value == "1",
        better: "1",
        because: "its log has addresses, too",
    },
    Setting {
        path: "kernel/unprivileged_bpf_disabled",
        is_good: |value| at_least(value, 1),
        better: "2",
        because: "programs in the kernel are nothing for everybody; runs have no bpf in any case",
    },
    Setting {
        path: "kernel/io_uring_disabled",
        is_good: |value| at_least(value, 1),
        better: "2",
        because: "a source of many holes; runs have none of it in any case",
    },
    Setting {
        path: "vm/unprivileged_userfaultfd",
        is_good: |value| value == "0",
        better: "0",
        because: "it makes races in the kernel easy to win; runs have none of it in any case",
    },
    Setting {
        path: "kernel/yama/ptrace_scope",
        is_good: |value| at_least(value, 1),
        better: "2",
        because: "processes of the machine need not look into each other",
    },
];

/// A line for each setting that could be better. What this kernel does not have needs no advice.
pub(super) fn settings() -> Vec<String> {
    settings_below(std::path::Path::new("/proc/sys"))
}

fn settings_below(root: &std::path::Path) -> Vec<String> {
    let weak = SETTINGS.iter().filter_map(|setting| {
        let value = std::fs::read_to_string(root.join(setting.path)).ok()?;
        let value = value.trim();
        let name = setting.path.replace('/', ".");
        (!(setting.is_good)(value))
            .then(|| format!("{name} is {value}, better {}: {}", setting.better, setting.because))
    });
    weak.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(release: &str) -> Vec<String> {
        holes(release).iter().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn a_kernel_s_holes_are_those_of_its_series_and_version() {
        assert_eq!(
            names("6.18.21"),
            ["CVE-2026-31431", "CVE-2026-43284", "CVE-2026-43500", "CVE-2026-46333"]
        );
        assert_eq!(names("6.18.30-custom"), ["CVE-2026-46333"]);
        assert_eq!(names("6.18.44-fc"), [""; 0]);
        assert_eq!(names("6.12.86"), ["CVE-2026-43284", "CVE-2026-46333"]);
        assert_eq!(names("7.1.0"), [""; 0]);
        assert_eq!(names("8.0.1"), [""; 0]);
        // Distributions count their own way.
        assert_eq!(names("6.1.0-28-cloud-amd64"), [""; 0]);
        assert_eq!(names("linux"), [""; 0]);
    }

    #[test]
    fn settings_that_could_be_better_are_named_with_a_reason() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("kernel/yama")).unwrap();
        let set = |path: &str, value: &str| std::fs::write(root.path().join(path), value).unwrap();
        set("kernel/kptr_restrict", "0\n");
        set("kernel/dmesg_restrict", "1\n");
        set("kernel/yama/ptrace_scope", "2\n");
        let advice = settings_below(root.path());
        assert_eq!(advice.len(), 1, "{advice:?}");
        assert!(advice[0].starts_with("kernel.kptr_restrict is 0, better 2: "), "{advice:?}");
    }
}
