//! The configuration as flags: every setting has one, made from the same table, so that none can be
//! forgotten. `limits.wall_time_ms` is `--limits-wall-time-ms`.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use toml::{Table, Value};

use crate::config::{self, Config};

const HEADING: &str = "Configuration";

/// What every subcommand takes that looks at images or starts sandboxes; a server takes all.
const SHARED: &[&str] = &[
    "allow_degraded",
    "allow_host_image",
    "allow_registry",
    "cgroup_parent",
    "data_dir",
    "docker_config",
    "images.free_bytes",
    "images.free_inodes",
    "images.high_bytes",
    "images.idle_timeout_ms",
    "images.low_bytes",
    "images.mirrors",
    "insecure_registry",
    "launcher",
    "log",
    "log_format",
    "private_registry",
    "pull_timeout_ms",
];

/// Defaults that are another on every machine: the help, which may be read on another, says where they come from.
const DEPENDS: &[(&str, &str)] = &[
    ("budget_cpus", "as many as the machine has"),
    ("budget_memory_bytes", "3/4 of the machine's"),
    ("bodies_bytes_max", "an eighth of the memory, 256 MiB at most"),
    ("data_dir", "/var/lib/sandglass, or ~/.local/share/sandglass without root"),
    ("docker_config", "~/.docker/config.json"),
    ("launcher", "sandglass-launcher beside sandglass"),
    ("maxima.cpus", "as many as the machine has"),
    ("maxima.memory_bytes", "3/4 of the machine's"),
    ("maxima.open_files", "65536, or the server's own hard limit if that is less"),
    ("prepared_max", "2, and two for each processor"),
    ("slots", "the number of processors"),
];

/// Settings given as flags. `ALL` is for the server; the other subcommands take those that matter to them.
#[derive(Clone, Debug, Default)]
pub struct ConfigFlags<const ALL: bool> {
    file: Option<PathBuf>,
    table: Table,
}

impl<const ALL: bool> ConfigFlags<ALL> {
    pub fn load(&self) -> anyhow::Result<Config> {
        let env = |name: &str| std::env::var(name).ok();
        Config::load(self.file.as_deref(), &env, &self.table)
    }
}

fn offered<const ALL: bool>() -> impl Iterator<Item = (String, Value)> {
    config::leaves().into_iter().filter(|(leaf, _)| ALL || SHARED.contains(&leaf.as_str()))
}

/// The default in words, where there is one to speak of.
pub(super) fn shown_default(leaf: &str, default: &Value) -> Option<String> {
    if let Some((_, words)) = DEPENDS.iter().find(|(name, _)| *name == leaf) {
        return Some((*words).to_owned());
    }
    match default {
        Value::Array(_) | Value::Boolean(_) => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn argument(leaf: &str, default: &Value) -> Arg {
    let flag = leaf.replace(['.', '_'], "-");
    let words = config::words(leaf);
    let shown = shown_default(leaf, default).map(|words| format!(" [default: {words}]")).unwrap_or_default();
    let help = format!("{words}{shown} [env: {}]", config::environment_name(leaf));
    let argument = Arg::new(leaf.to_owned()).long(flag).help(help).help_heading(HEADING);
    match default {
        Value::Boolean(_) => {
            argument.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        Value::Array(_) => argument.action(ArgAction::Append).value_name("WORD,…"),
        Value::Integer(_) | Value::Float(_) => argument.value_name("NUMBER"),
        _ => argument.value_name("WORD"),
    }
}

impl<const ALL: bool> Args for ConfigFlags<ALL> {
    fn augment_args(mut command: Command) -> Command {
        let file = Arg::new("config").long("config").value_name("FILE").env("SANDGLASS_CONFIG");
        command = command.arg(file.help("A TOML file with settings").help_heading(HEADING));
        for (leaf, default) in offered::<ALL>() {
            command = command.arg(argument(&leaf, &default));
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ALL: bool> FromArgMatches for ConfigFlags<ALL> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut table = Table::new();
        for (leaf, default) in offered::<ALL>() {
            let Some(words) = matches.get_many::<String>(&leaf) else { continue };
            let text = words.map(String::as_str).collect::<Vec<_>>().join(",");
            let flag = format!("--{}", leaf.replace(['.', '_'], "-"));
            let value = config::read_value(&flag, &default, &text).map_err(|error| {
                clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{error}\n"))
            })?;
            config::set(&mut table, &leaf, value);
        }
        let file = matches.get_one::<String>("config").map(PathBuf::from);
        Ok(Self { file, table })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Table, clap::Error> {
        let command = ConfigFlags::<true>::augment_args(Command::new("sandglass"));
        let matches = command.try_get_matches_from([&["sandglass"], words].concat())?;
        ConfigFlags::<true>::from_arg_matches(&matches).map(|flags| flags.table)
    }

    #[test]
    fn flags_become_settings() {
        for (words, table) in [
            (&["--slots", "3"][..], "slots = 3"),
            (&["--limits-wall-time-ms=5"], "limits = { wall_time_ms = 5 }"),
            (&["--allow-host-image"], "allow_host_image = true"),
            (&["--allow-host-image=false"], "allow_host_image = false"),
            (
                &["--insecure-registry", "a:1", "--insecure-registry", "b:2"],
                "insecure_registry = ['a:1', 'b:2']",
            ),
            (&["--allow-degraded=seccomp,landlock"], "allow_degraded = ['seccomp', 'landlock']"),
        ] {
            assert_eq!(parse(words).unwrap(), toml::from_str(table).unwrap(), "{words:?}");
        }
        assert!(parse(&["--slots", "three"]).unwrap_err().to_string().contains("--slots is \"three\""));
        assert!(parse(&["--slot", "3"]).is_err());
    }

    #[test]
    fn what_other_subcommands_share_exists() {
        assert_eq!(offered::<false>().count(), SHARED.len());
    }
}
