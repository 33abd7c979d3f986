//! The second wall behind a root of its own: every file that is not below these folders is out of reach,
//! even through a descriptor that leaked in. Older kernels enforce what they know.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};

use crate::step::Failure;
use crate::sys;

/// The newest rules that are asked for; what the kernel doesn't know of them it leaves out.
const NEWEST: ABI = ABI::V6;

/// What a program may do with files: all but make devices and talk to them.
pub(crate) fn for_programs() -> BitFlags<AccessFs> {
    AccessFs::from_all(NEWEST) & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev)
}

/// What the jail may do: whiteouts look like devices, and nothing of what it writes is executed there.
pub(crate) fn for_the_jail() -> BitFlags<AccessFs> {
    AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::IoctlDev)
}

/// Needs `no_new_privs`.
pub(crate) fn put_up(beneath: &[BorrowedFd<'_>], allowed: BitFlags<AccessFs>) -> Result<(), Failure> {
    if sys::landlock_abi() == 0 {
        return Ok(());
    }
    restrict(beneath, allowed).map_err(|error| Failure::new("fence files with Landlock", error.to_string()))
}

fn restrict(beneath: &[BorrowedFd<'_>], allowed: BitFlags<AccessFs>) -> Result<(), RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let rules =
        beneath.iter().try_fold(rules, |rules, dir| rules.add_rule(PathBeneath::new(dir, allowed)))?;
    rules.restrict_self().map(drop)
}
