//! The documentation of every setting, from what the program says about itself.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo;

const INTRO: &str = "\
# Configuration

Every setting has a default, shown here. It can be set in a file (`--config FILE`, TOML), in the environment, or by a
flag, each stronger than the one before. One name makes all three: `kept_runs` is `kept_runs = 100` in the file,
`SANDGLASS_KEPT_RUNS=100` in the environment, and `--kept-runs 100` as a flag; `limits.wall_time_ms` is in the file's
table `[limits]`, `SANDGLASS_LIMITS_WALL_TIME_MS`, and `--limits-wall-time-ms`. In the environment and in flags, the
words of a list are separated by commas.

`sandglass serve --print-config` shows every setting with the value that would be used. A name that does not exist is
refused, with the line of the file; so is a value that makes no sense.

This page is written by `cargo xtask docs`, and a test compares it with `--print-config`.

| setting | default | what it is |
|---|---|---|
";

pub(crate) fn main() -> Result<ExitCode> {
    let programs = cargo::build(&["--package", "sandglass", "--bin", "sandglass"])?;
    let program = programs.get("sandglass")?;
    let help = String::from_utf8(cargo::output(program, &["serve", "--help"])?)?;
    let config = String::from_utf8(cargo::output(program, &["serve", "--print-config"])?)?;
    let path = cargo::root().join("docs/operating/configuration.md");
    std::fs::write(&path, page(&config, &help)).with_context(|| format!("write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn page(config: &str, help: &str) -> String {
    let mut page = INTRO.to_owned();
    let mut table = String::new();
    for line in config.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((name, value)) = line.split_once(" = ") {
            let setting = format!("{table}{name}");
            let (words, told) = told(help, &setting);
            // Where the help has other words than this machine's value, it is another on every machine.
            let default = match told {
                Some(told) if told != value.trim_matches('"') => told.to_owned(),
                _ => format!("`{value}`"),
            };
            page += &format!("| `{setting}` | {default} | {} |\n", words.replace('|', "\\|"));
        }
    }
    page
}

/// What `--help` says below the setting's flag, and what it says about the default.
fn told<'a>(help: &'a str, setting: &str) -> (&'a str, Option<&'a str>) {
    let flag = format!("--{}", setting.replace(['.', '_'], "-"));
    let mut lines = help.lines().skip_while(|line| {
        let line = line.trim_start();
        !line.strip_prefix(&flag).is_some_and(|rest| rest.starts_with([' ', '[', '=']))
    });
    let text = lines.nth(1).unwrap_or_default().trim();
    let text = text.split_once(" [env: ").map_or(text, |(text, _)| text);
    match text.split_once(" [default: ") {
        Some((words, default)) => (words, default.strip_suffix(']')),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_has_its_default_and_its_words() {
        let help = "      --slots <NUMBER>\n          How many [default: the number of processors] [env: S]\n      \
                    --log <TEXT>\n          What is logged [default: info] [env: O]\n      \
                    --limits-cpus <NUMBER>\n          A limit [default: 1.0] [env: L]\n";
        let page = page("slots = 2\nlog = \"info\"\n\n[limits]\ncpus = 1.0\n", help);
        assert!(page.contains("| `slots` | the number of processors | How many |\n"), "{page}");
        assert!(page.contains("| `log` | `\"info\"` | What is logged |\n"), "{page}");
        assert!(page.ends_with("| `limits.cpus` | `1.0` | A limit |\n"), "{page}");
    }
}
