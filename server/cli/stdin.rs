//! This command's standard input, for a program in a sandbox. It gets a pipe, never our own
//! descriptor: by that it could reach the file or the terminal behind it.

use std::io::{self, Read, Write};

use nix::fcntl::OFlag;

/// A pipe that a thread fills. The thread ends with the input, with the program, or with us.
pub(super) fn piped() -> io::Result<engine::Stdin> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let (mut input, mut pipe) = (io::stdin().lock(), std::fs::File::from(write));
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(bytes @ 1..) = input.read(&mut buffer) {
            if pipe.write_all(&buffer[..bytes]).is_err() {
                return;
            }
        }
    })?;
    Ok(engine::Stdin::Descriptor(read))
}
