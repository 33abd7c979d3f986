//! Finding the files that patterns mean, and writing them down a pipe. Works in a root of its own, where
//! nothing moves any more; what it finds may still be anything that a program can make of a file system.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::glob::{self, Part};
use crate::dir;
use crate::protocol::{LaunchOutputs, OutputRecord};

/// How many names are looked at for all patterns together.
const NAMES_MAX: usize = 200_000;
const DEPTH_MAX: usize = 64;

pub(super) struct Walk<'a> {
    root: OwnedFd,
    pipe: File,
    outputs: &'a LaunchOutputs,
    files: usize,
    bytes: u64,
    names_left: usize,
    /// What the paths that are told begin below; empty for whole ones.
    base: PathBuf,
}

/// The walk is over: the pipe is closed, or a limit was reached and told.
struct Over;

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Over
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: OwnedFd, pipe: File, outputs: &'a LaunchOutputs) -> Self {
        Self { root, pipe, outputs, files: 0, bytes: 0, names_left: NAMES_MAX, base: PathBuf::new() }
    }

    /// Hands out what each pattern means. What is asked for twice comes twice: nobody has to remember.
    pub(super) fn run(mut self, workdir: &str) {
        for (number, pattern) in self.outputs.patterns.iter().enumerate() {
            let parts = glob::parse(workdir, pattern);
            // What was asked for by a relative path is told by one.
            let relative = !pattern.starts_with('/');
            self.base = if relative { path_of(&glob::folders(workdir)) } else { PathBuf::new() };
            if self.pattern(number, &parts).is_err() {
                // A limit has been told; a closed pipe hears nothing any more.
                break;
            }
        }
        let _ = self.say(&OutputRecord::End);
    }

    fn pattern(&mut self, number: usize, parts: &[Part]) -> Result<(), Over> {
        let named = parts.iter().take_while(|part| matches!(part, Part::Name(_))).count();
        // The last part is a file's, whatever it is.
        let named = named.min(parts.len().saturating_sub(1));
        let at = path_of(&parts[..named]);
        let found = match open_in_root(&self.root, &at) {
            Ok(dir) => self.descend(&dir, &at, &parts[named..], 0)?,
            Err(_) => false,
        };
        if !found {
            self.say(&OutputRecord::Missing { pattern: number })?;
        }
        Ok(())
    }

    /// Whether anything was found, be it refused.
    fn descend(&mut self, dir: &OwnedFd, at: &Path, parts: &[Part], depth: usize) -> Result<bool, Over> {
        match parts {
            [] => Ok(false),
            [Part::Name(name)] => self.leaf(dir, at, name.as_bytes()),
            [Part::Name(name), rest @ ..] => self.enter(dir, at, name.as_bytes(), rest, depth),
            [Part::Like(pattern), rest @ ..] => {
                let mut found = false;
                for name in self.list(dir, at)? {
                    if !glob::is_like(&name, pattern) {
                        continue;
                    }
                    found |= if rest.is_empty() {
                        self.leaf(dir, at, &name)?
                    } else {
                        self.enter(dir, at, &name, rest, depth)?
                    };
                }
                Ok(found)
            }
            [Part::Deep] => self.descend(dir, at, &[Part::Deep, Part::Like("*".into())], depth),
            [Part::Deep, rest @ ..] => {
                let mut found = self.descend(dir, at, rest, depth)?;
                for name in self.list(dir, at)? {
                    if name.first() != Some(&b'.') {
                        found |= self.enter(dir, at, &name, parts, depth)?;
                    }
                }
                Ok(found)
            }
        }
    }

    /// Goes into a folder, if it is one; where a wildcard leads, links are not followed.
    fn enter(
        &mut self,
        dir: &OwnedFd,
        at: &Path,
        name: &[u8],
        rest: &[Part],
        depth: usize,
    ) -> Result<bool, Over> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let flags = flags | standing("output_folders", OFlag::O_NOFOLLOW);
        let name = std::ffi::OsStr::from_bytes(name);
        match openat(dir, name, flags, Mode::empty()) {
            Ok(inner) if depth < DEPTH_MAX || !walls::stands("output_depth") => {
                self.descend(&inner, &at.join(name), rest, depth + 1)
            }
            Ok(_) => self.refuse(&at.join(name), "lies too deep"),
            Err(_) => Ok(false),
        }
    }

    fn list(&mut self, dir: &OwnedFd, at: &Path) -> Result<Vec<Vec<u8>>, Over> {
        let mut names = Vec::new();
        let Ok(mut entries) = dir.try_clone().map_err(|_| Errno::EMFILE).and_then(Dir::from_fd) else {
            self.refuse(at, "can't be listed")?;
            return Ok(names);
        };
        for entry in entries.iter().flatten() {
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if self.names_left == 0 && walls::stands("output_names") {
                self.refuse(at, &format!("the patterns look at more than {NAMES_MAX} names"))?;
                return Err(Over);
            }
            self.names_left = self.names_left.saturating_sub(1);
            names.push(name.to_vec());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn leaf(&mut self, dir: &OwnedFd, at: &Path, name: &[u8]) -> Result<bool, Over> {
        let path = at.join(std::ffi::OsString::from_vec(name.to_vec()));
        // Without O_NONBLOCK a FIFO would hold us; on this mount no device can be opened.
        let flags = OFlag::O_RDONLY
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC
            | standing("output_waits", OFlag::O_NONBLOCK)
            | standing("output_links", OFlag::O_NOFOLLOW);
        let opened = openat(dir, std::ffi::OsStr::from_bytes(name), flags, Mode::empty());
        let file = match opened {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            Err(Errno::ELOOP) => return self.refuse(&path, "is a symbolic link"),
            Err(Errno::EACCES | Errno::EPERM) => {
                return self.refuse(&path, "can't be read: the run's user may not, or it is a device");
            }
            Err(Errno::ENXIO) => return self.refuse(&path, "is a socket"),
            Err(errno) => return self.refuse(&path, &format!("can't be opened: {}", errno.desc())),
        };
        let Ok(stat) = fstat(&file) else { return self.refuse(&path, "can't be looked at") };
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => self.hand_out(&path, &file, stat.st_size as u64).map(|()| true),
            SFlag::S_IFDIR => self.refuse(&path, "is a folder"),
            SFlag::S_IFIFO => self.refuse(&path, "is a FIFO"),
            _ => self.refuse(&path, "is not a regular file"),
        }
    }

    fn hand_out(&mut self, path: &Path, file: &OwnedFd, size: u64) -> Result<(), Over> {
        let LaunchOutputs { files_max, file_bytes_max, bytes_max, .. } = *self.outputs;
        let Some(name) = path.strip_prefix(&self.base).unwrap_or(path).to_str() else {
            return self.refuse(path, "has a name that is not UTF-8").map(drop);
        };
        if self.files >= files_max && walls::stands("output_files") {
            self.refuse(path, &format!("more than {files_max} files are asked for"))?;
            return Err(Over);
        }
        if size > file_bytes_max && walls::stands("output_bytes") {
            let error = format!("has {size} bytes; an output may have {file_bytes_max}");
            return self.refuse(path, &error).map(drop);
        }
        if self.bytes.saturating_add(size) > bytes_max {
            let error = format!("the outputs together have more than {bytes_max} bytes");
            return self.refuse(path, &error).map(drop);
        }
        self.files += 1;
        self.bytes += size;
        self.say(&OutputRecord::File { path: name.into(), size })?;
        Ok(dir::copy_plainly(file, 0, size, &mut self.pipe)?)
    }

    fn refuse(&mut self, path: &Path, error: &str) -> Result<bool, Over> {
        if self.files > self.outputs.files_max && walls::stands("output_files") {
            return Err(Over);
        }
        // Refusals are an answer too, and as limited in number.
        self.files += 1;
        let path = path.strip_prefix(&self.base).unwrap_or(path).to_string_lossy().into_owned();
        self.say(&OutputRecord::Refused { path, error: error.into() })?;
        Ok(true)
    }

    fn say(&mut self, record: &OutputRecord) -> Result<(), Over> {
        let text = serde_json::to_vec(record).map_err(io::Error::from)?;
        self.pipe.write_all(&(text.len() as u32).to_le_bytes())?;
        Ok(self.pipe.write_all(&text)?)
    }
}

/// What a wall adds to the flags of an opening.
fn standing(wall: &str, flag: OFlag) -> OFlag {
    if walls::stands(wall) { flag } else { OFlag::empty() }
}

fn path_of(parts: &[Part]) -> PathBuf {
    let names = parts.iter().filter_map(|part| match part {
        Part::Name(name) => Some(name.as_str()),
        Part::Like(_) | Part::Deep => None,
    });
    Path::new("/").join(names.collect::<PathBuf>())
}

/// The folder that the request names may be reached through links of the image; none leads out.
fn open_in_root(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    dir::openat2_again(root.as_fd(), path, how)
}
