//! Which system calls are made for a program, and the filters that see to it. The policy is data; it
//! is compiled once, when the launcher starts, and only installed afterwards.

mod assemble;
#[cfg(test)]
mod container;
mod policy;

use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc::sock_filter;
use run::Profile;

use policy::Answer;

/// Calls that nobody has thought of don't exist: the C library then tries an older one.
const UNKNOWN: Answer = Answer::Refuse(Errno::ENOSYS);

/// The filter of a command.
pub(crate) fn command_filter(profile: Profile) -> &'static [sock_filter] {
    static STRICT: OnceLock<Vec<sock_filter>> = OnceLock::new();
    static COMPAT: OnceLock<Vec<sock_filter>> = OnceLock::new();
    let place = match profile {
        Profile::Strict => &STRICT,
        Profile::Compat => &COMPAT,
    };
    place.get_or_init(|| assemble::program(&policy::command(profile), UNKNOWN))
}

/// The same for a command that has cores of its own: it must not move to another's.
pub(crate) fn pinned_filter(profile: Profile) -> &'static [sock_filter] {
    static STRICT: OnceLock<Vec<sock_filter>> = OnceLock::new();
    static COMPAT: OnceLock<Vec<sock_filter>> = OnceLock::new();
    let place = match profile {
        Profile::Strict => &STRICT,
        Profile::Compat => &COMPAT,
    };
    place.get_or_init(|| assemble::program(&policy::pinned(profile), UNKNOWN))
}

/// The same with a hole in it, to see that a test notices.
#[cfg(feature = "removable-walls")]
pub(crate) fn filter_with_holes(profile: Profile, arch: bool, sockets: bool) -> Vec<sock_filter> {
    let mut policy = policy::command(profile);
    if !sockets {
        for decision in policy.values_mut().filter(|decision| decision.name.starts_with("SYS_socket")) {
            *decision = policy::Decision::plain(decision.name, Answer::Allow);
        }
    }
    let mut program = assemble::program(&policy, UNKNOWN);
    if !arch {
        program.drain(..assemble::ARCH_CHECK_LEN);
    }
    program
}

/// Compiles what keepers will want, so that each inherits it.
pub(crate) fn prepare() {
    for profile in [Profile::Strict, Profile::Compat] {
        command_filter(profile);
        pinned_filter(profile);
    }
}

/// The filter of the jail in which layers are unpacked.
pub(crate) fn jail_filter() -> Vec<sock_filter> {
    assemble::program(&policy::jail(), Answer::Refuse(Errno::EPERM))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use nix::libc;

    use super::assemble::tests::{Call, interpret, returned};
    use super::policy::{Case, Decision, Policy, Test};
    use super::*;

    /// The kernel takes 4096 (`BPF_MAXINSNS`), but every run pays for each of them.
    const INSTRUCTIONS_MAX: usize = 720;
    const NUMBERS: u32 = 1024;

    fn expected(policy: &Policy, unknown: Answer, call: &Call) -> Answer {
        let Some(decision) = policy.get(&call.number) else { return unknown };
        let holds = |test: &Test| call.arguments[usize::from(test.argument)] as u32 & test.mask == test.value;
        let case = decision.cases.iter().find(|case| case.tests.iter().all(holds));
        case.map_or(decision.otherwise, |case| case.answer)
    }

    /// Arguments that make each case true, and ones that just miss it, with noise in the upper halves.
    fn interesting(decision: &Decision) -> Vec<[u64; 6]> {
        let mut found = vec![[0; 6], [u64::MAX; 6]];
        for Case { tests, .. } in &decision.cases {
            for flipped in 0..=tests.len() {
                let mut arguments = [0xdead_beef_0000_0000; 6];
                for (at, test) in tests.iter().enumerate() {
                    let value = if at == flipped { !test.value } else { test.value };
                    arguments[usize::from(test.argument)] |= u64::from(value);
                }
                found.push(arguments);
            }
        }
        found
    }

    fn says_what_the_policy_says(filter: &[sock_filter], policy: &Policy, unknown: Answer) {
        assert!(filter.len() <= INSTRUCTIONS_MAX, "{}", filter.len());
        let numbers = (0..NUMBERS).chain([0x4000_0000, 0x4000_0029, 0x4000_0200, u32::MAX]);
        for number in numbers {
            let arguments = policy.get(&number).map_or_else(|| vec![[0; 6], [u64::MAX; 6]], interesting);
            for arguments in arguments {
                let call = Call::native(number, arguments);
                let (answer, steps) = interpret(filter, &call);
                assert_eq!(answer, returned(expected(policy, unknown, &call)), "{call:?}");
                assert!(steps < 100, "{call:?} takes {steps} instructions");
            }
        }
    }

    #[test]
    fn the_filters_say_of_every_call_what_the_policy_says() {
        for profile in [Profile::Strict, Profile::Compat] {
            says_what_the_policy_says(command_filter(profile), &policy::command(profile), UNKNOWN);
            says_what_the_policy_says(pinned_filter(profile), &policy::pinned(profile), UNKNOWN);
        }
        says_what_the_policy_says(&jail_filter(), &policy::jail(), Answer::Refuse(Errno::EPERM));
    }

    #[test]
    fn a_command_with_cores_of_its_own_keeps_them_and_is_like_any_other_else() {
        for profile in [Profile::Strict, Profile::Compat] {
            let (mut usual, mut pinned) = (policy::command(profile), policy::pinned(profile));
            let moves = libc::SYS_sched_setaffinity as u32;
            let refused = Decision::plain("SYS_sched_setaffinity", Answer::Refuse(Errno::EPERM));
            assert_eq!(pinned.remove(&moves), Some(refused));
            assert!(usual.remove(&moves).is_some());
            assert_eq!(usual, pinned);
        }
    }

    fn line(table: &mut String, number: u32, decision: &Decision) {
        let name = decision.name.trim_start_matches("SYS_");
        writeln!(table, "{number:3} {name}: {:?}", decision.otherwise).unwrap();
        for case in &decision.cases {
            let tests: Vec<_> = case.tests.iter().map(test).collect();
            writeln!(table, "        {:?} if {}", case.answer, tests.join(" and ")).unwrap();
        }
    }

    fn test(test: &Test) -> String {
        match test.mask {
            u32::MAX => format!("a{} == {:#x}", test.argument, test.value),
            mask => format!("a{} & {mask:#x} == {:#x}", test.argument, test.value),
        }
    }

    /// `golden.txt` is the policy as a reader of diffs wants it: every number, and what it gets.
    #[test]
    fn every_number_is_answered_as_the_golden_table_says() {
        let strict = policy::command(Profile::Strict);
        let mut table = format!("# strict; every other number is {UNKNOWN:?}\n");
        strict.iter().for_each(|(number, decision)| line(&mut table, *number, decision));
        table.push_str("# compat, where it differs\n");
        let compat = policy::command(Profile::Compat);
        let differs = compat.iter().filter(|(number, decision)| strict.get(number) != Some(decision));
        differs.for_each(|(number, decision)| line(&mut table, *number, decision));
        assert!(strict.keys().all(|number| compat.contains_key(number)));
        table.push_str("# the jail of layers; every other number is Refuse(EPERM)\n");
        policy::jail().iter().for_each(|(number, decision)| line(&mut table, *number, decision));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/golden.txt"), &table).unwrap();
        }
        // Numbers and old names differ between architectures; one of them is written down.
        if cfg!(target_arch = "x86_64") {
            let golden = include_str!("golden.txt");
            let first = table.lines().zip(golden.lines()).find(|(now, then)| now != then);
            assert!(
                first.is_none(),
                "policy and golden.txt differ: {first:?}; if it is meant, UPDATE_GOLDEN=1"
            );
            assert_eq!(table.lines().count(), golden.lines().count());
        }
    }

    #[test]
    fn nothing_lets_a_program_make_namespaces_or_mounts() {
        for profile in [Profile::Strict, Profile::Compat] {
            let policy = policy::command(profile);
            for number in [
                libc::SYS_unshare,
                libc::SYS_setns,
                libc::SYS_mount,
                libc::SYS_clone3,
                libc::SYS_ptrace,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
                libc::SYS_keyctl,
            ] {
                let call = Call::native(number as u32, [0; 6]);
                assert_ne!(expected(&policy, UNKNOWN, &call), Answer::Allow, "{number}");
            }
        }
    }

    /// Whatever its profile, and whether it has cores of its own or not.
    #[track_caller]
    fn every_command_is_told(answer: Answer, number: libc::c_long, arguments: [u64; 6]) {
        let call = Call::native(number as u32, arguments);
        for profile in [Profile::Strict, Profile::Compat] {
            for filter in [command_filter(profile), pinned_filter(profile)] {
                assert_eq!(interpret(filter, &call).0, returned(answer), "{call:?}");
            }
        }
    }

    /// Each of these reaches, under another number, what was refused under one: UDP answers to UDP-Lite's
    /// level, the policies of IPsec have two options each, and a key of TCP-AO names any hash of the
    /// kernel's, as AF_ALG would.
    #[test]
    fn no_other_number_leads_to_a_refused_socket_option() {
        for (level, option) in [(17, 100), (136, 100), (0, 16), (0, 17), (41, 34), (41, 35), (6, 38)] {
            let arguments = [3, level, option, 0, 4, 0];
            every_command_is_told(Answer::Refuse(Errno::EPERM), libc::SYS_setsockopt, arguments);
        }
    }

    /// `br_ioctl_call` and `sock_ioctl` ask for `bridge` and `8021q` before they ask for a capability.
    #[test]
    fn no_request_to_a_socket_loads_a_module() {
        for request in [0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1] {
            let arguments = [3, 7 << 32 | request, 0, 0, 0, 0];
            every_command_is_told(Answer::Refuse(Errno::EPERM), libc::SYS_ioctl, arguments);
        }
    }

    /// With a limit of 8 MiB a program took 32 MiB of them and was charged for none.
    #[test]
    fn nobody_gets_pages_that_no_cgroup_is_charged_for() {
        let (enomem, allow) = (Answer::Refuse(Errno::ENOMEM), Answer::Allow);
        // Of 2 MiB and of 1 GiB, anonymous and private.
        for (flags, answer) in [(0x4_0022, enomem), (0x7804_0022, enomem), (0x22, allow), (0x4022, allow)] {
            every_command_is_told(answer, libc::SYS_mmap, [0, 1 << 21, 3, flags, u64::MAX, 0]);
        }
        every_command_is_told(enomem, libc::SYS_memfd_create, [1, 5, 0, 0, 0, 0]);
        every_command_is_told(allow, libc::SYS_memfd_create, [1, 3, 0, 0, 0, 0]);
        every_command_is_told(enomem, libc::SYS_shmget, [0, 1 << 21, 0o5600, 0, 0, 0]);
        every_command_is_told(allow, libc::SYS_shmget, [0, 1 << 21, 0o1600, 0, 0, 0]);
    }

    /// One run with the usual limits could take 25 MiB of what the kernel has for the filters of the whole machine.
    #[test]
    fn a_program_installs_no_filter_of_its_own() {
        let einval = Answer::Refuse(Errno::EINVAL);
        every_command_is_told(einval, libc::SYS_seccomp, [7 << 32 | 1, 0, 1, 0, 0, 0]);
        every_command_is_told(einval, libc::SYS_prctl, [7 << 32 | 22, 2, 1, 0, 0, 0]);
        // The strict mode, and whether there are filters, cost nothing.
        every_command_is_told(Answer::Allow, libc::SYS_prctl, [22, 1, 0, 0, 0, 0]);
        every_command_is_told(Answer::Allow, libc::SYS_prctl, [21, 0, 0, 0, 0, 0]);
        every_command_is_told(Answer::Allow, libc::SYS_seccomp, [2, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn the_jail_has_files_and_nothing_else() {
        let filter = jail_filter();
        let ask = |number| interpret(&filter, &Call::native(number as u32, [0; 6])).0;
        assert_eq!(ask(libc::SYS_openat), returned(Answer::Allow));
        for number in [libc::SYS_socket, libc::SYS_execve, libc::SYS_clone] {
            assert_eq!(ask(number), returned(Answer::Refuse(Errno::EPERM)), "{number}");
        }
        assert_eq!(ask(libc::SYS_clone3), returned(Answer::Refuse(Errno::ENOSYS)));
    }

    #[test]
    fn the_jail_may_have_threads_but_no_processes() {
        let thread = 0x3d_0f00;
        let clone = |flags| {
            interpret(&jail_filter(), &Call::native(libc::SYS_clone as u32, [flags, 0, 0, 0, 0, 0])).0
        };
        assert_eq!(clone(thread), returned(Answer::Allow));
        let not_quite = (0..32).map(|bit| thread ^ 1 << bit);
        for flags in not_quite.chain([0, libc::SIGCHLD as u64]) {
            assert_eq!(clone(flags), returned(Answer::Refuse(Errno::EPERM)), "{flags:#x}");
        }
    }
}
