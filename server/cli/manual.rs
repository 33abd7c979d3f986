//! `sandglass manual`: the manual's pages, written from what the program says about itself, so that no flag
//! and no setting can be missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use jiff::Timestamp;
use toml::Value;

use super::flags;
use crate::config;

/// What stands at the foot of a page.
const SOURCE: &str = concat!("sandglass ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder to write into
    to: PathBuf,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&arguments.to).with_context(|| format!("make {}", arguments.to.display()))?;
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    let date = date(std::env::var("SOURCE_DATE_EPOCH").ok().as_deref())?;
    write_pages(&command, &date, &arguments.to)?;
    write(&arguments.to.join("sandglass.toml.5"), settings(&date).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Today, unless whoever makes the pages wants the same ones again later.
fn date(epoch: Option<&str>) -> anyhow::Result<String> {
    let at = match epoch {
        None => Timestamp::now(),
        Some(seconds) => {
            let seconds = seconds.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {seconds:?}"))?;
            Timestamp::from_second(seconds).context("read SOURCE_DATE_EPOCH")?
        }
    };
    Ok(at.strftime("%Y-%m-%d").to_string())
}

/// `sandglass.1`, `sandglass-serve.1`, `sandglass-key-create.1`…
fn write_pages(command: &Command, date: &str, to: &Path) -> anyhow::Result<()> {
    let name = command.get_bin_name().unwrap_or(command.get_name()).replace(' ', "-");
    let mut page = Vec::new();
    let shown = command.clone().display_name(name.clone());
    let shown = Man::new(shown).title(name.clone()).date(date).source(SOURCE).manual("Sandglass");
    shown.render(&mut page).context("write a page")?;
    write(&to.join(format!("{name}.1")), &page)?;
    command.get_subcommands().try_for_each(|subcommand| write_pages(subcommand, date, to))
}

fn write(path: &Path, page: &[u8]) -> anyhow::Result<()> {
    fs::write(path, page).with_context(|| format!("write {}", path.display()))
}

/// The page of the configuration's file.
fn settings(date: &str) -> String {
    let mut page = format!(
        ".TH sandglass.toml 5 {date} \"{SOURCE}\" Sandglass\n.SH NAME\nsandglass.toml \\- the configuration of sandglass\n\
         .SH DESCRIPTION\n\
         A TOML file that is given to\n.BR sandglass\\-serve (1)\nby \\fB\\-\\-config\\fR; the package's is\n\
         \\fI/etc/sandglass/config.toml\\fR. Every setting has a default. It can also be set in the environment and by a\n\
         flag, each stronger than the one before. A name that does not exist is refused, and so is a value that makes\n\
         no sense. \\fBsandglass serve \\-\\-print\\-config\\fR shows every setting with its value.\n.SH SETTINGS\n"
    );
    for (name, default) in config::leaves() {
        let default = flags::shown_default(&name, &default).unwrap_or_else(|| written(&default));
        page += &format!(
            ".TP\n\\fB{}\\fR\n{}.\nDefault: {}. Environment: {}.\n",
            escaped(&name),
            escaped(config::words(&name)),
            escaped(&default),
            environment(&name)
        );
    }
    page += ".SH SEE ALSO\n.BR sandglass (1),\n.BR sandglass\\-serve (1)\n";
    page
}

fn environment(name: &str) -> String {
    escaped(&config::environment_name(name))
}

/// As it would stand in the file.
fn written(value: &Value) -> String {
    value.to_string()
}

/// What roff would take for its own: backslashes, hyphens that are none, and dots and quotes that begin a line.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_date_of_what_it_was_made_of() {
        assert_eq!(date(Some("86399")).unwrap(), "1970-01-01");
        assert_eq!(date(Some("86400")).unwrap(), "1970-01-02");
        assert!(date(None).unwrap().starts_with("20"));
        assert!(date(Some("yesterday")).is_err());
    }

    #[test]
    fn what_roff_would_take_for_its_own_is_escaped() {
        for (text, escaped_text) in
            [("a-b", "a\\-b"), ("\\", "\\e"), (".5", "\\&.5"), ("'x'", "\\&'x'"), ("a.b", "a.b")]
        {
            assert_eq!(escaped(text), escaped_text);
        }
    }
}
