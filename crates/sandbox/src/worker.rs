//! A child that does some work and says what came of it: for the loops that measure.

use std::fs::File;
use std::io::{Read, Write};

use nix::fcntl::OFlag;
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::step::{At, Failure};
use crate::sys::{self, Fork};

pub(crate) struct Worker {
    pid: Pid,
    says: File,
}

impl Worker {
    /// Begins the work in a child that has everything that this process has.
    pub(crate) fn start<T: Serialize>(work: impl FnOnce() -> Result<T, Failure>) -> Result<Self, Failure> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).at("make a pipe")?;
        match sys::fork().at("fork a worker")? {
            Fork::Child => {
                drop(read);
                let result = work().map_err(|error| error.to_string());
                let line = serde_json::to_vec(&result).unwrap_or_default();
                std::process::exit(i32::from(File::from(write).write_all(&line).is_err()));
            }
            Fork::Parent(pid) => Ok(Self { pid, says: read.into() }),
        }
    }

    /// Waits until the work is done.
    pub(crate) fn finish<T: DeserializeOwned>(mut self) -> Result<T, Failure> {
        let mut line = Vec::new();
        let heard = self.says.read_to_end(&mut line).at("hear a worker");
        let _ = sys::wait(Some(self.pid), true);
        heard?;
        match serde_json::from_slice::<Result<T, String>>(&line) {
            Ok(result) => result.map_err(|message| Failure::new("work in a loop", message)),
            Err(error) => Err(Failure::new("hear a worker", format!("it ended without a word: {error}"))),
        }
    }
}
