//! From a policy to the kernel's classic BPF: one program, in which a call is found by halving, so
//! that the price of a long list is a few comparisons.
//!
//! The kernel walks the program for every call number when a filter is installed, and for every call
//! whose answer depends on arguments. Both are as short as the tree is deep. It also translates it twice
//! for every run, which takes as long as the program is: so an answer that many calls get stands there
//! once, as far as jumps reach.

use nix::errno::Errno;
use nix::libc::{self, sock_filter};

use super::policy::{Answer, Case, Decision, Policy};

/// Where the kernel's description of a call has what is looked at (`struct seccomp_data`).
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// How many instructions at the beginning look at the architecture.
#[cfg(feature = "removable-walls")]
pub(super) const ARCH_CHECK_LEN: usize = 3;

/// Calls from this number to the next range's, all decided alike.
struct Range<'a> {
    from: u32,
    to: Leaf<'a>,
}

#[derive(Clone, Copy, PartialEq)]
enum Leaf<'a> {
    Plain(Answer),
    ByArgument(&'a Decision),
}

/// The whole program. What the policy does not name is answered with `unknown`; another
/// architecture's calls (i386, whose `socketcall` hides its arguments behind a pointer) end the
/// process. The numbers of x32 lie beyond all others and are unknown.
pub(super) fn program(policy: &Policy, unknown: Answer) -> Vec<sock_filter> {
    let mut code = vec![
        statement(LOAD, ARCH_AT),
        jump(JUMP_IF_EQUAL, ARCH, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER_AT),
    ];
    code.extend(tree(&ranges(policy, unknown)));
    code
}

fn ranges(policy: &Policy, unknown: Answer) -> Vec<Range<'_>> {
    let mut ranges = vec![Range { from: 0, to: Leaf::Plain(unknown) }];
    let mut put = |from, to| match ranges.last_mut() {
        Some(last) if last.from == from => last.to = to,
        Some(last) if last.to == to => {}
        _ => ranges.push(Range { from, to }),
    };
    for (number, decision) in policy {
        let leaf = match decision.cases[..] {
            [] => Leaf::Plain(decision.otherwise),
            _ => Leaf::ByArgument(decision),
        };
        put(*number, leaf);
        put(number + 1, Leaf::Plain(unknown));
    }
    ranges
}

/// How far a conditional jump is let go: 255 instructions, less the one that may still come between.
const REACH: usize = 254;

/// Looks the loaded number up.
fn tree(ranges: &[Range<'_>]) -> Vec<sock_filter> {
    let mut code = Backwards::default();
    let beginning = code.lookup(ranges);
    if let Entry::Answer(_) = beginning {
        code.within_reach(beginning);
    }
    code.last_to_first.reverse();
    code.last_to_first
}

/// Written from its end to its beginning: jumps go forward only, so where they go is known by then.
#[derive(Default)]
struct Backwards {
    last_to_first: Vec<sock_filter>,
    /// Where answers stand.
    answers: Vec<(Answer, usize)>,
}

/// Where a part of the tree begins, counted from the end; or that it is nothing but an answer.
#[derive(Clone, Copy)]
enum Entry {
    At(usize),
    Answer(Answer),
}

impl Backwards {
    fn lookup(&mut self, ranges: &[Range<'_>]) -> Entry {
        match ranges {
            // There always is a range, from 0 on.
            [] => Entry::Answer(Answer::Refuse(Errno::ENOSYS)),
            [Range { to: Leaf::Plain(answer), .. }] => Entry::Answer(*answer),
            [Range { to: Leaf::ByArgument(decision), .. }] => {
                by_argument(decision).into_iter().rev().for_each(|instruction| {
                    self.put(instruction);
                });
                Entry::At(self.last_to_first.len() - 1)
            }
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let (above, below) = (self.lookup(high), self.lookup(low));
                let (above, below) = (self.within_reach(above), self.within_reach(below));
                let past = |at: usize| (self.last_to_first.len() - at - 1) as u8;
                Entry::At(self.put(jump(JUMP_IF_AT_LEAST, high[0].from, past(above), past(below))))
            }
        }
    }

    fn put(&mut self, instruction: sock_filter) -> usize {
        self.last_to_first.push(instruction);
        self.last_to_first.len() - 1
    }

    /// What is too far away gets a step between, or, if it is an answer, stands there once more.
    fn within_reach(&mut self, entry: Entry) -> usize {
        let here = self.last_to_first.len();
        match entry {
            Entry::At(at) if here - at <= REACH => at,
            Entry::At(at) => self.put(statement(JUMP, (here - at - 1) as u32)),
            Entry::Answer(answer) => {
                let last = self.answers.iter().rfind(|(other, _)| *other == answer);
                if let Some((_, at)) = last.filter(|(_, at)| here - at <= REACH) {
                    return *at;
                }
                let at = self.put(give(answer));
                self.answers.push((answer, at));
                at
            }
        }
    }
}

fn by_argument(decision: &Decision) -> Vec<sock_filter> {
    let mut code: Vec<_> = decision.cases.iter().flat_map(case).collect();
    code.push(give(decision.otherwise));
    code
}

/// Tests one after the other; the first that fails jumps past the answer. A case has a handful of
/// instructions, so its jumps are short.
fn case(case: &Case) -> Vec<sock_filter> {
    let mut code = Vec::new();
    let mut left = case.tests.iter().map(|test| if test.mask == u32::MAX { 2 } else { 3 }).sum::<u8>();
    for test in &case.tests {
        code.push(statement(LOAD, ARGUMENTS_AT + 8 * u32::from(test.argument) + LOW_HALF));
        if test.mask != u32::MAX {
            code.push(statement(AND, test.mask));
            left -= 1;
        }
        left -= 2;
        code.push(jump(JUMP_IF_EQUAL, test.value, 0, left + 1));
    }
    code.push(give(case.answer));
    code
}

const LOW_HALF: u32 = if cfg!(target_endian = "little") { 0 } else { 4 };

fn give(answer: Answer) -> sock_filter {
    let value = match answer {
        Answer::Allow => libc::SECCOMP_RET_ALLOW,
        Answer::Refuse(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
        Answer::Pretend => libc::SECCOMP_RET_ERRNO,
    };
    statement(RETURN, value)
}

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::policy::Test;
    use super::*;

    /// A call as the kernel describes it to a filter.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::seccomp) struct Call {
        pub(in crate::seccomp) arch: u32,
        pub(in crate::seccomp) number: u32,
        pub(in crate::seccomp) arguments: [u64; 6],
    }

    impl Call {
        pub(in crate::seccomp) fn native(number: u32, arguments: [u64; 6]) -> Self {
            Self { arch: ARCH, number, arguments }
        }

        fn word(&self, at: u32) -> u32 {
            match at {
                NUMBER_AT => self.number,
                ARCH_AT => self.arch,
                _ => {
                    let (argument, half) = ((at - ARGUMENTS_AT) / 8, (at - ARGUMENTS_AT) % 8);
                    (self.arguments[argument as usize] >> (8 * half)) as u32
                }
            }
        }
    }

    /// What the kernel would answer, and after how many instructions.
    pub(in crate::seccomp) fn interpret(program: &[sock_filter], call: &Call) -> (u32, usize) {
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            steps += 1;
            at += 1;
            let mut branch = |holds: bool| at += usize::from(if holds { jt } else { jf });
            match code {
                LOAD => accumulator = call.word(k),
                AND => accumulator &= k,
                JUMP_IF_EQUAL => branch(accumulator == k),
                JUMP_IF_AT_LEAST => branch(accumulator >= k),
                JUMP => at += k as usize,
                RETURN => return (k, steps),
                other => panic!("instruction {other:#x} is never made"),
            }
        }
    }

    pub(in crate::seccomp) fn returned(answer: Answer) -> u32 {
        give(answer).k
    }

    fn policy() -> Policy {
        let test = |argument, mask, value| Test { argument, mask, value };
        let by_argument = Decision {
            name: "x",
            cases: vec![
                Case { tests: vec![test(0, u32::MAX, 1), test(5, 0xf, 2)], answer: Answer::Allow },
                Case { tests: vec![test(0, u32::MAX, 1)], answer: Answer::Pretend },
            ],
            otherwise: Answer::Refuse(Errno::EPERM),
        };
        let plain = |answer| Decision::plain("x", answer);
        Policy::from([
            (0, plain(Answer::Allow)),
            (1, plain(Answer::Allow)),
            (7, by_argument),
            (8, plain(Answer::Refuse(Errno::EINVAL))),
            (300, plain(Answer::Allow)),
        ])
    }

    #[test]
    fn the_first_case_that_holds_decides() {
        let program = program(&policy(), Answer::Refuse(Errno::ENOSYS));
        let ask = |number, arguments| interpret(&program, &Call::native(number, arguments)).0;
        let none = [0; 6];
        assert_eq!(ask(0, none), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask(1, none), libc::SECCOMP_RET_ALLOW);
        assert_eq!(ask(8, none), returned(Answer::Refuse(Errno::EINVAL)));
        assert_eq!(ask(300, none), libc::SECCOMP_RET_ALLOW);
        for unknown in [2, 6, 9, 299, 301, 0x4000_0000, 0x4000_0001, u32::MAX] {
            assert_eq!(ask(unknown, none), returned(Answer::Refuse(Errno::ENOSYS)), "{unknown}");
        }
        // The upper half of an argument changes nothing.
        for high in [0, 1 << 32, 0xffff_ffff << 32] {
            assert_eq!(ask(7, [high | 1, 0, 0, 0, 0, high | 0xf2]), libc::SECCOMP_RET_ALLOW);
            assert_eq!(ask(7, [high | 1, 0, 0, 0, 0, high | 3]), returned(Answer::Pretend));
            assert_eq!(ask(7, [high | 2, 0, 0, 0, 0, high | 2]), returned(Answer::Refuse(Errno::EPERM)));
        }
    }

    #[test]
    fn another_architecture_ends_the_process() {
        let program = program(&policy(), Answer::Allow);
        let call = Call { arch: 0x4000_0003, number: 0, arguments: [0; 6] };
        assert_eq!(interpret(&program, &call).0, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
