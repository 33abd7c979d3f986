//! What will be run, from what the image says and what the request says: the rules that Docker's
//! users know.

use image::{ImageConfig, Lease, Rootfs};
use run::{Command, FileContent, FileSpec, RunSpec};
use sandbox::protocol::{self, LaunchFile, LaunchOutputs, LaunchSpec, MAX_FILES};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::{Leases, Over};

/// The program and its arguments. A `cmd` of the request replaces what the image wants to run; with
/// only `args` they go to the image's entrypoint in place of its own.
pub(crate) fn argv(command: &Command, config: &ImageConfig) -> Result<Vec<String>, String> {
    let argv: Vec<String> = match (command.program(), command.args()) {
        (Some(program), args) => {
            std::iter::once(program).chain(args.iter().map(String::as_str)).map(String::from).collect()
        }
        (None, []) => config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
        (None, args) => config.entrypoint.iter().chain(args).cloned().collect(),
    };
    match argv.first().map(String::as_str) {
        None => Err("the request has no `cmd`, and the image has no command of its own".into()),
        Some("") => Err("the image's own command has an empty name".into()),
        Some(_) => Ok(argv),
    }
}

/// The image's variables with the request's over them, key by key.
pub(crate) fn env(spec: &RunSpec, config: &ImageConfig) -> Vec<String> {
    let is_overridden = |entry: &&String| {
        let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key);
        !spec.env.contains_key(key)
    };
    let given = spec.env.iter().map(|(key, value)| format!("{key}={value}"));
    config.env.iter().filter(is_overridden).cloned().chain(given).collect()
}

pub(crate) fn launch_spec(
    spec: &RunSpec,
    lease: &Lease,
    files: Vec<LaunchFile>,
    outputs: Option<LaunchOutputs>,
    over: Over<'_>,
) -> Result<LaunchSpec, String> {
    let config = &lease.config;
    Ok(LaunchSpec {
        rootfs: match &lease.rootfs {
            Rootfs::Layers(layers) => protocol::Rootfs::Layers(layers.to_vec()),
            Rootfs::Host => protocol::Rootfs::Host,
        },
        argv: argv(&spec.command, config)?,
        env: env(spec, config),
        workdir: spec.workdir.clone().unwrap_or_else(|| config.workdir.clone()),
        user: spec.user.clone().unwrap_or_else(|| config.user.clone()),
        limits: spec.limits.clone(),
        files,
        profile: spec.profile,
        cores: Vec::new(),
        outputs,
        over: over.base.and_then(|base| base.layer.as_ref()).map(|layer| layer.name.clone()),
        freeze: over.freeze.cloned(),
        #[cfg(feature = "removable-walls")]
        without: without_walls(spec),
    })
}

/// Which walls a test wants down, as its run's label says.
#[cfg(feature = "removable-walls")]
pub(crate) fn without_walls(spec: &RunSpec) -> Vec<String> {
    let names = spec.labels.get("without-walls").map_or("", String::as_str);
    names.split('+').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The files' descriptors and where in them each file is. All bytes of the request share one.
/// An uploaded one is read by the launcher, straight from the store, however often it is laid in.
pub(crate) fn files(specs: &[FileSpec], leases: &Leases) -> io::Result<(Vec<LaunchFile>, Vec<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut descriptors = Vec::new();
    let mut stored_at = HashMap::new();
    let mut files = Vec::with_capacity(specs.len());
    for spec in specs {
        let (descriptor, offset, len) = match &spec.content {
            FileContent::Bytes(content) => {
                let offset = bytes.len() as u64;
                bytes.extend_from_slice(content);
                (0, offset, content.len() as u64)
            }
            FileContent::Stored(stored) => {
                let lease = leases.get(stored)?;
                let place = match stored_at.get(stored) {
                    Some(place) => *place,
                    None => {
                        descriptors.push(lease.open()?.into());
                        stored_at.insert(stored, descriptors.len());
                        descriptors.len()
                    }
                };
                (place, 0, lease.len())
            }
            FileContent::Local(path) => {
                let file = File::open(path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                let len = file.metadata()?.len();
                descriptors.push(file.into());
                // The first descriptor is that of the bytes.
                (descriptors.len(), 0, len)
            }
        };
        files.push(LaunchFile { path: spec.path.clone(), mode: spec.mode, descriptor, offset, len });
    }
    if !files.is_empty() {
        descriptors.insert(0, sandbox::client::memfd("files", &bytes)?);
    }
    if descriptors.len() > MAX_FILES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("more than {} files that are not part of the request", MAX_FILES - 1),
        ));
    }
    Ok((files, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.into()).collect()
    }

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        for (entrypoint, cmd, program, args, argv) in [
            (&["e", "1"][..], &["c"][..], None, &[][..], Some(&["e", "1", "c"][..])),
            (&["e"], &["c"], None, &["a", "b"], Some(&["e", "a", "b"])),
            (&["e"], &["c"], Some("p"), &["a"], Some(&["p", "a"])),
            (&[], &["c", "d"], None, &[], Some(&["c", "d"])),
            (&[], &["c"], None, &["a"], Some(&["a"])),
            (&[], &[], None, &[], None),
            (&[""], &[], None, &[], None),
        ] {
            let config =
                ImageConfig { entrypoint: words(entrypoint), cmd: words(cmd), ..ImageConfig::default() };
            let command = Command::parse(program.map(String::from), words(args)).unwrap();
            assert_eq!(
                super::argv(&command, &config).ok(),
                argv.map(words),
                "{entrypoint:?} {cmd:?} {program:?} {args:?}"
            );
        }
    }

    #[test]
    fn the_request_s_variables_replace_the_image_s_key_by_key() {
        let config = ImageConfig { env: words(&["A=1", "PATH=/x", "B=2"]), ..ImageConfig::default() };
        let mut spec = RunSpec::new("x", Command::parse(Some("p".into()), Vec::new()).unwrap());
        spec.env = [("B".to_owned(), "3".to_owned()), ("C".to_owned(), String::new())].into();
        assert_eq!(env(&spec, &config), words(&["A=1", "PATH=/x", "B=3", "C="]));
    }

    #[test]
    fn files_of_the_request_share_one_descriptor() {
        let file = |path: &str, content: &[u8]| FileSpec {
            path: path.into(),
            mode: 0o644,
            content: FileContent::Bytes(content.to_vec()),
        };
        let (placed, descriptors) =
            files(&[file("a", b"one"), file("b", b""), file("c", b"three")], &Leases::default()).unwrap();
        assert_eq!(descriptors.len(), 1);
        let places: Vec<_> = placed.iter().map(|file| (file.descriptor, file.offset, file.len)).collect();
        assert_eq!(places, [(0, 0, 3), (0, 3, 0), (0, 3, 5)]);
        assert!(files(&[], &Leases::default()).unwrap().1.is_empty());
    }
}
