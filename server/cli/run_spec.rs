//! What `sandglass run` was asked for, as a spec. A person is watching, so the limits are generous.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use run::{Command, FileContent, FileSpec, Limits, OnOutputLimit, Profile, Pull, RunSpec};

use super::run::Arguments;
use crate::config::Config;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Larger files are read by the launcher, not by us.
const SMALL_FILE_BYTES: u64 = 1024 * 1024;

/// How deep and how much one `--copy` may bring along.
const DEPTH_MAX: usize = 32;
const FILES_MAX: usize = 10_000;

pub(super) fn from_arguments(arguments: &Arguments, config: &Config) -> anyhow::Result<RunSpec> {
    let mut words = arguments.command.iter().cloned();
    let command = Command::parse(words.next(), words.collect())?;
    let mut files = Vec::new();
    for copy in &arguments.copy {
        let (host, inside) =
            copy.split_once(':').with_context(|| format!("--copy {copy}: must be HOST:INSIDE"))?;
        ensure!(!inside.is_empty(), "--copy {copy}: says not where to");
        add(Path::new(host), inside, 0, &mut files).with_context(|| format!("--copy {copy}"))?;
    }
    let env = read_env(&arguments.env, &|name| std::env::var(name).ok())?;
    RunSpec::check_env(&env).context("--env")?;
    Ok(RunSpec {
        env,
        workdir: arguments.workdir.clone(),
        user: arguments.user.clone(),
        files,
        limits: limits(arguments, config),
        profile: arguments.profile,
        pull: arguments.pull,
        // The outputs go through and are not kept.
        on_output_limit: OnOutputLimit::Discard,
        ..RunSpec::new(&arguments.image, command)
    })
}

fn limits(arguments: &Arguments, config: &Config) -> Limits {
    let memory_bytes = arguments.memory.unwrap_or(config.maxima.memory_bytes);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Limits {
        wall_time_ms: arguments.timeout.unwrap_or(DAY_MS),
        cpu_time_ms: DAY_MS * processors as u64,
        memory_bytes,
        processes: 4096,
        stdout_bytes: 1,
        stderr_bytes: 1,
        disk_bytes: memory_bytes,
        inodes: 1_000_000,
        file_size_bytes: memory_bytes,
        open_files: 4096,
        cpus: processors as f64,
        ..Limits::default()
    }
}

fn read_env(
    entries: &[String],
    here: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    for entry in entries {
        match entry.split_once('=') {
            Some((key, value)) => {
                ensure!(!key.is_empty(), "--env {entry}: has no name");
                env.insert(key.to_owned(), value.to_owned());
            }
            None => env.extend(here(entry).map(|value| (entry.clone(), value))),
        }
    }
    Ok(env)
}

/// A file, or everything in a folder. Links are followed once, at the top, where the user named them.
fn add(host: &Path, inside: &str, depth: usize, files: &mut Vec<FileSpec>) -> anyhow::Result<()> {
    ensure!(depth < DEPTH_MAX, "{} is nested too deep", host.display());
    ensure!(files.len() < FILES_MAX, "more than {FILES_MAX} files");
    let metadata = fs::metadata(host).with_context(|| host.display().to_string())?;
    if metadata.is_dir() {
        for entry in fs::read_dir(host).with_context(|| host.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_symlink() {
                continue;
            }
            let name = entry.file_name();
            let name =
                name.to_str().with_context(|| format!("{} has no UTF-8 name", entry.path().display()))?;
            add(&entry.path(), &format!("{}/{name}", inside.trim_end_matches('/')), depth + 1, files)?;
        }
        return Ok(());
    }
    ensure!(metadata.is_file(), "{} is neither a file nor a folder", host.display());
    let path = if inside.ends_with('/') {
        let name = host.file_name().and_then(|name| name.to_str()).context("the file has no name")?;
        format!("{inside}{name}")
    } else {
        inside.to_owned()
    };
    let content = if metadata.len() <= SMALL_FILE_BYTES {
        FileContent::Bytes(fs::read(host).with_context(|| host.display().to_string())?)
    } else {
        FileContent::Local(host.to_owned())
    };
    files.push(FileSpec { path, mode: metadata.permissions().mode() & 0o777, content });
    Ok(())
}

/// `512m`, `2G`, `1GiB`, `1048576`.
pub(super) fn parse_size(text: &str) -> anyhow::Result<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => bail!("must be like 512m or 2g"),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes >= 2 << 20).context("must be at least 2m")
}

/// Seconds, as milliseconds.
pub(super) fn parse_seconds(text: &str) -> anyhow::Result<u64> {
    let seconds: f64 = text.parse().context("must be a number of seconds")?;
    let ms = (seconds * 1000.0).round();
    ensure!(ms >= 1.0 && ms <= (365 * DAY_MS) as f64, "must be from 0.001 to a year");
    Ok(ms as u64)
}

pub(super) fn parse_pull(text: &str) -> anyhow::Result<Pull> {
    match text {
        "missing" => Ok(Pull::Missing),
        "always" => Ok(Pull::Always),
        "never" => Ok(Pull::Never),
        _ => bail!("must be missing, always or never"),
    }
}

pub(super) fn parse_profile(text: &str) -> anyhow::Result<Profile> {
    match text {
        "strict" => Ok(Profile::Strict),
        "compat" => Ok(Profile::Compat),
        _ => bail!("must be strict or compat"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("2097152", Some(2 << 20)),
            ("512m", Some(512 << 20)),
            ("512M", Some(512 << 20)),
            ("1GiB", Some(1 << 30)),
            ("2gb", Some(2 << 30)),
            ("1", None),
            ("", None),
            ("m", None),
            ("5x", None),
            ("-5m", None),
            ("99999999999t", None),
        ] {
            assert_eq!(parse_size(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn times_are_seconds() {
        for (text, ms) in
            [("5", Some(5000)), ("0.25", Some(250)), ("0", None), ("-1", None), ("nan", None), ("x", None)]
        {
            assert_eq!(parse_seconds(text).ok(), ms, "{text}");
        }
    }

    #[test]
    fn variables_without_a_value_come_from_here() {
        let here = |name: &str| (name == "HERE").then(|| "yes".to_owned());
        let entries = ["A=1", "B=", "HERE", "NOWHERE", "A=x=y"].map(str::to_owned);
        let env = read_env(&entries, &here).unwrap();
        let expected = [("A", "x=y"), ("B", ""), ("HERE", "yes")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(env, expected.into());
        assert!(read_env(&["=x".to_owned()], &here).is_err());
    }

    #[test]
    fn folders_are_copied_with_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("a"), "one").unwrap();
        fs::write(dir.path().join("sub/b"), "two").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let mut files = Vec::new();
        add(dir.path(), "/in/", 0, &mut files).unwrap();
        let mut paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["/in/a", "/in/sub/b"]);
        files.clear();
        add(&dir.path().join("a"), "/in/", 0, &mut files).unwrap();
        assert_eq!(
            (files[0].path.as_str(), &files[0].content),
            ("/in/a", &FileContent::Bytes(b"one".to_vec()))
        );
    }
}
