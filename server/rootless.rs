//! Starting without root: this process becomes root of a user namespace of its own, which has the ids
//! that an administrator has set aside for the user in `/etc/subuid` and `/etc/subgid`.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, User, getegid, geteuid, setgroups, setresgid, setresuid};

/// Below this many ids, runs at once could not all have some of their own.
const FEWEST_IDS: u32 = 2048;

/// `newuidmap` and `newgidmap` must be called from outside, by the user, and may write more than one
/// line, which nobody else may. They wait for the namespace to be there.
const MAP: &str =
    r#"read -r go && newuidmap "$1" 0 "$2" 1 1 "$3" "$4" && exec newgidmap "$1" 0 "$5" 1 1 "$6" "$7""#;

/// Where this process is root already there is nothing to do. Else the user namespace is entered for
/// good: its root is this user to everybody outside. Returns whether that was needed. Must be called
/// before this process has a second thread.
pub fn enter() -> anyhow::Result<bool> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return Ok(false);
    }
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let users = set_aside("/etc/subuid", &name, uid)?;
    let groups = set_aside("/etc/subgid", &name, uid)?;
    let words = [std::process::id(), uid.as_raw(), users.0, users.1, gid.as_raw(), groups.0, groups.1];
    let mut helper = Command::new("/bin/sh")
        .args(["-c", MAP, "sandglass"])
        .args(words.map(|word| word.to_string()))
        .stdin(Stdio::piped())
        .spawn()
        .context("start /bin/sh to map ids")?;
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWUSER) {
        // Its input ends and so does it.
        drop(helper.stdin.take());
        let _ = helper.wait();
        bail!(
            "without root a user namespace is needed, and the kernel gives none: {}{}",
            errno.desc(),
            advice(errno)
        );
    }
    let mut go = helper.stdin.take().context("the helper has no input")?;
    go.write_all(b"go\n").context("wake the helper that maps ids")?;
    drop(go);
    let status = helper.wait().context("wait for the helper that maps ids")?;
    ensure!(
        status.success(),
        "ids can't be mapped ({status}): newuidmap and newgidmap are needed, which come with Debian's package uidmap"
    );
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).context("give up groups")?;
    setresgid(gid, gid, gid).context("become root of the user namespace")?;
    setresuid(uid, uid, uid).context("become root of the user namespace")?;
    Ok(true)
}

fn advice(errno: Errno) -> &'static str {
    let setting = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        return "; set kernel.apparmor_restrict_unprivileged_userns=0, or start as root";
    }
    if setting("/proc/sys/user/max_user_namespaces") == "0" {
        return "; set user.max_user_namespaces, or start as root";
    }
    match errno {
        Errno::EPERM => "; in a container, start as root with --cap-add SYS_ADMIN",
        _ => "; start as root",
    }
}

/// The first range that is set aside for this user: where it begins, and how long it is.
fn set_aside(file: &str, name: &str, uid: Uid) -> anyhow::Result<(u32, u32)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    find(&text, name, uid.as_raw()).with_context(|| {
        format!(
            "without root, user {name} needs at least {FEWEST_IDS} ids of their own in {file}; an administrator gives \
             them with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}`"
        )
    })
}

fn find(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let (who, start, count) = (fields.next()?, fields.next()?, fields.next()?);
        let (start, count) = (start.parse().ok()?, count.parse().ok()?);
        ((who == name || who.parse() == Ok(uid)) && count >= FEWEST_IDS).then_some((start, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_the_user_s_by_name_or_number_and_large_enough() {
        let text = "# comment\nother:1:65536\nme:5:10\nme:100000:65536\n1000:7:4096\n";
        assert_eq!(find(text, "me", 9), Some((100_000, 65_536)));
        assert_eq!(find(text, "nobody", 1000), Some((7, 4096)));
        assert_eq!(find(text, "nobody", 9), None);
    }
}
