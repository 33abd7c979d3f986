//! The guides do what they say: each command in them is run, in order, and what it prints is what stands
//! below it.

use std::process::Command;

use support::{Daemon, Finished, Folder, Registry, guide, tool};

/// One block of a guide between fences: its language and its text.
fn blocks(guide: &str) -> Vec<(&str, &str)> {
    let fenced = guide.split("\n```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).collect()
}

const MARK: &str = "--- the next block ---";

#[track_caller]
fn follow(guide: &str) {
    let registry = Registry::start();
    let daemon = Daemon::builder().registry(&registry).start();
    let image = registry.image("python:3");
    let said = |text: &str| {
        let here = text.replace("localhost:8080", &daemon.address().to_string());
        here.replace("python:3.13", &image).replace("gcc:14", &image)
    };
    let blocks = blocks(guide);
    let commands: Vec<&str> =
        blocks.iter().filter(|(kind, _)| *kind == "sh").map(|(_, text)| *text).collect();
    let expected: Vec<&str> =
        blocks.iter().filter(|(kind, _)| *kind == "text").map(|(_, text)| *text).collect();
    assert_eq!(commands.len(), expected.len(), "what a command prints stands below it");
    assert!(commands.len() >= 5, "the guide has its examples");
    let script = said(&commands.join(&format!("\necho '{MARK}'\n")));
    let folder = Folder::new();
    let mut bash = Command::new(tool("bash"));
    bash.current_dir(folder.path()).args(["-euo", "pipefail", "-c", &script]);
    let finished = Finished::of(&mut bash);
    let printed = String::from_utf8_lossy(&finished.stdout).into_owned();
    let parts: Vec<&str> = printed.split(MARK).map(str::trim).collect();
    for (place, text) in expected.iter().enumerate() {
        let part = parts.get(place).copied().unwrap_or("nothing");
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(part), words(text), "{}\n{}", commands[place], finished.stderr_text());
    }
    assert!(finished.status.success(), "{}", finished.stderr_text());
}

#[test]
fn a_judge_s_guide_does_what_it_says() {
    follow(include_str!("../docs/guides/judge.md"));
}

#[test]
fn an_agent_s_guide_does_what_it_says() {
    follow(include_str!("../docs/guides/agent.md"));
}

#[test]
fn a_page_that_shows_a_program_run() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    guide::check(&daemon, include_str!("../docs/guides/live.md"));
}
