//! Guides are programs: every block of shell in one is run, and what it prints is what the next block says.

use std::process::Command;

use crate::{Daemon, Finished};

/// One block of shell of a guide, and what it must print.
#[derive(Debug)]
struct Example {
    line: usize,
    script: String,
    expected: Option<String>,
}

/// Runs every example of a guide, in order and in one shell each that has what those before it have set.
/// `localhost:8080` is the daemon. In what is expected, `…` stands for anything; empty lines at the end don't count.
#[track_caller]
pub fn check(daemon: &Daemon, guide: &str) {
    let examples = examples(guide);
    assert!(!examples.is_empty(), "the guide has no examples");
    let folder = tempfile::tempdir().expect("a folder");
    let kept = folder.path().join("variables");
    std::fs::write(&kept, "").expect("make a file");
    for Example { line, script, expected } in examples {
        let script = script.replace("localhost:8080", &daemon.address().to_string());
        let around = format!(
            "set -eu -o pipefail\nset -a\n. '{kept}'\n{script}\ndeclare -p $(compgen -A variable | grep -x '[a-z_]*') > '{kept}' 2>/dev/null || true",
            kept = kept.display()
        );
        let done = Finished::of(Command::new("bash").args(["-c", &around]).current_dir(folder.path()));
        let printed = done.stdout_text();
        assert!(done.status.success(), "line {line}:\n{script}\n{printed}{}", done.stderr_text());
        if let Some(expected) = expected {
            assert!(
                is_like(printed.trim_end(), expected.trim_end()),
                "line {line}:\n{script}\nprinted\n{printed}\nrather than\n{expected}"
            );
        }
    }
}

fn examples(guide: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut open: Option<(String, usize, String)> = None;
    for (number, text) in guide.lines().enumerate() {
        match (&mut open, text.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.to_owned(), number + 1, String::new())),
            (Some((kind, line, block)), Some(_)) => {
                match (kind.as_str(), examples.last_mut()) {
                    ("sh", _) => {
                        examples.push(Example { line: *line, script: std::mem::take(block), expected: None });
                    }
                    ("text", Some(last)) => last.expected = Some(std::mem::take(block)),
                    _ => {}
                }
                open = None;
            }
            (Some((_, _, block)), None) => {
                block.push_str(text);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    examples
}

/// Whether the text is what is expected, where `…` stands for any text.
fn is_like(text: &str, expected: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_dots_stand_for_anything_and_nothing_else_does() {
        for (text, expected, like) in [
            ("abc", "abc", true),
            ("abc", "ab", false),
            ("abc", "a…c", true),
            ("ac", "a…c", true),
            ("ab", "a…c", false),
            ("a1b2c", "a…b…c", true),
            ("a1c", "a…b…c", false),
            ("anything", "…", true),
            ("xabc", "a…", false),
        ] {
            assert_eq!(is_like(text, expected), like, "{text} {expected}");
        }
    }

    #[test]
    fn blocks_of_shell_have_the_text_that_follows() {
        let guide = "x\n```sh\necho a\n```\n\n```text\na\n```\n```html\n<p>\n```\n```sh\ntrue\n```\n";
        let found = examples(guide);
        let told: Vec<_> =
            found.iter().map(|one| (one.line, one.script.as_str(), one.expected.as_deref())).collect();
        assert_eq!(told, [(2, "echo a\n", Some("a\n")), (12, "true\n", None)]);
    }
}
