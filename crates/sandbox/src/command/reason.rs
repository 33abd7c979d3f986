//! Why a program could not be started, in words for whoever wanted it.

use std::ffi::CStr;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

/// What a reason may quote is the request's and the image's, and may be longer than a packet.
const MAX_BYTES: usize = 8 * 1024;

/// How much of the end of a longer reason is kept: what was wrong comes last.
const TAIL_BYTES: usize = 1024;

/// The reason in a length that can be told, whatever it quotes.
pub(super) fn tellable(reason: String) -> String {
    if reason.len() <= MAX_BYTES {
        return reason;
    }
    let head = reason.floor_char_boundary(MAX_BYTES - TAIL_BYTES);
    let tail = reason.ceil_char_boundary(reason.len() - TAIL_BYTES);
    format!("{}…{}", &reason[..head], &reason[tail..])
}

/// `name` is what was asked for, `at` where something of that name was found or looked for.
pub(super) fn explain(name: &str, at: Option<&CStr>, errno: Errno) -> String {
    let path = at.map_or_else(|| name.to_owned(), |path| path.to_string_lossy().into_owned());
    match errno {
        Errno::ENOENT | Errno::ENOTDIR if at.is_some_and(|path| access(path, AccessFlags::F_OK).is_ok()) => {
            format!("can't start {path:?}: its interpreter or dynamic linker is not in the image")
        }
        Errno::ENOENT | Errno::ENOTDIR if name.contains('/') => format!("can't start {name:?}: no such file"),
        Errno::ENOENT | Errno::ENOTDIR => format!("can't start {name:?}: no such program in PATH"),
        Errno::EACCES => {
            format!("can't start {path:?}: it is not an executable file, or its user may not execute it")
        }
        Errno::ENOEXEC => {
            format!(
                "can't start {path:?}: not a program for this machine (a script needs a first line like #!/bin/sh)"
            )
        }
        errno => format!("can't start {path:?}: {}", errno.desc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_whole_or_from_both_its_ends() {
        let short = explain("/x\n", None, Errno::ENAMETOOLONG);
        assert_eq!(tellable(short.clone()), short);
        for letter in ["x", "\n", "ü", "\u{10ffff}", "\u{1}"] {
            let long = tellable(explain(&format!("/{}", letter.repeat(100_000)), None, Errno::ENAMETOOLONG));
            assert!(long.len() <= MAX_BYTES + "…".len(), "{letter:?}: {}", long.len());
            assert!(
                long.starts_with("can't start \"/") && long.ends_with(": File name too long"),
                "{letter:?}"
            );
        }
    }
}
