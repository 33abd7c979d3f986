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
