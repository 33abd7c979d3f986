//! The manual's pages and the completions of shells: made by the program, and nothing is missing in them.

use std::collections::BTreeSet;
use std::process::Command;

use support::{Finished, Folder, sandglass, tool};

/// Every flag of a subcommand, as its help names them.
fn flags(words: &[&str]) -> BTreeSet<String> {
    let help = Finished::output(&sandglass(), &[words, &["--help"]].concat());
    let flags = help.split_whitespace().filter(|word| word.starts_with("--"));
    let bare = flags
        .map(|flag| flag.split(['=', '[', ',', '`', '.', '\'', ')']).next().unwrap_or_default().to_owned());
    bare.filter(|flag| flag.len() > 2).collect()
}

fn subcommands() -> Vec<String> {
    let help = Finished::output(&sandglass(), &["--help"]);
    let list = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names = list.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn every_subcommand_has_a_page_with_every_flag_that_man_can_show() {
    let folder = Folder::new();
    Finished::output(&sandglass(), &["manual", &folder.path().display().to_string()]);
    let names = subcommands();
    assert!(names.len() > 8, "{names:?}");
    for name in &names {
        let page = std::fs::read_to_string(folder.join(format!("sandglass-{name}.1"))).expect("a page");
        assert!(page.contains(&format!(".TH sandglass-{name} 1 ")), "{name}");
        let page = page.replace("\\-", "-");
        for flag in flags(&[name]) {
            assert!(page.contains(&flag), "sandglass-{name}.1 lacks {flag}");
        }
    }
    let pages = std::fs::read_dir(folder.path()).expect("list the pages");
    let pages: Vec<_> = pages.map(|page| page.expect("a page").path()).collect();
    assert!(pages.len() > names.len());
    let checked = Finished::of(Command::new(tool("mandoc")).args(["-Tlint", "-Werror"]).args(&pages));
    assert_eq!(checked.code(), Some(0), "{}{}", checked.stdout_text(), checked.stderr_text());
    let settings = std::fs::read_to_string(folder.join("sandglass.toml.5")).expect("a page");
    let settings = settings.replace("\\-", "-");
    let mut table = String::new();
    for line in Finished::output(&sandglass(), &["serve", "--print-config"]).lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((name, _)) = line.split_once(" = ") {
            assert!(
                settings.contains(&format!("\\fB{table}{name}\\fR\n")),
                "sandglass.toml.5 lacks {table}{name}"
            );
        }
    }
    // What this machine happens to have is not in a page for all.
    let cores = std::thread::available_parallelism().expect("a number").to_string();
    assert!(!settings.contains(&format!("goes at once.\nDefault: {cores}.")));
    assert!(settings.contains("Default: the number of processors."));
}

#[test]
fn the_completions_of_each_shell_know_every_flag_and_bash_can_read_them() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let text = Finished::output(&sandglass(), &["completions", shell]);
        for flag in flags(&["serve"]) {
            let word = if shell == "fish" { format!("-l {}", &flag[2..]) } else { flag.clone() };
            assert!(text.contains(&word), "{shell} does not know {flag}");
        }
        std::fs::write(folder.join(shell), text).expect("write completions");
    }
    let mut bash = Command::new(tool("bash"));
    let script = ". \"$1\"; COMP_WORDS=(sandglass ser); COMP_CWORD=1; _sandglass sandglass ser sandglass; echo \"${COMPREPLY[@]}\"";
    let done = Finished::of(bash.args(["-c", script, "complete"]).arg(folder.join("bash")));
    assert_eq!(done.stdout_text().trim(), "serve", "{}", done.stderr_text());
}
