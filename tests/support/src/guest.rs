//! The small programs of `tests/guest`, which run inside sandboxes: static, so that any image will do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::{Finished, target, tool};

/// The compiled program `name`, made anew when its source is younger.
pub fn path(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("guest").join(format!("{name}.c"));
    let folder = target().join("guest");
    fs::create_dir_all(&folder).expect("make a folder for guests");
    let lock = fs::File::create(folder.join(format!("{name}.lock"))).expect("open a guest's lock");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("lock a guest");
    let program = folder.join(name);
    let age = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    if age(&program) <= age(&source) {
        let unfinished = folder.join(format!("{name}.unfinished"));
        let mut command = Command::new(tool("gcc"));
        command
            .args(["-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
            .arg(&unfinished)
            .arg(&source);
        let finished = Finished::of(&mut command);
        assert!(finished.status.success(), "{}", finished.stderr_text());
        fs::rename(&unfinished, &program).expect("keep a guest");
    }
    program
}

/// The compiled program's bytes, to be put into a layer or into a request's `files`.
pub fn bytes(name: &str) -> Vec<u8> {
    fs::read(path(name)).expect("read a guest")
}

/// The program as an entry of a request's `files`, at `/tmp/NAME` and executable; run it as `cmd`.
pub fn file(name: &str) -> serde_json::Value {
    use base64::Engine;
    let text = base64::prelude::BASE64_STANDARD.encode(bytes(name));
    serde_json::json!({ "path": format!("/tmp/{name}"), "base64": text, "mode": "0755" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_compiles_and_is_static() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("guest");
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
            let program = bytes(&name);
            assert_eq!(&program[..4], b"\x7fELF", "{name}");
            assert!(!asks_for_an_interpreter(&program), "{name} is not static");
            count += 1;
        }
        assert!(count >= 10, "only {count} guests");
    }

    /// Looks for PT_INTERP among the program headers of a 64-bit ELF file.
    fn asks_for_an_interpreter(elf: &[u8]) -> bool {
        let number = |at: usize, width: usize| {
            elf[at..at + width].iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte))
        };
        let (table, width, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
        assert!(count > 0, "no program headers");
        (0..count).any(|index| number(table + index * width, 4) == 3)
    }

    #[test]
    fn a_guest_does_what_its_source_says() {
        let crashed = Finished::of(Command::new(path("crash")).arg("segv"));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&crashed.status), Some(11));
        let ate = Finished::of(Command::new(path("eat_memory")).args(["8", "child", "137"]));
        assert_eq!(ate.code(), Some(137));
    }
}
