//! The guides do what they say: each command in them is run, in order, and what it prints is what stands
//! below it.

use support::{Daemon, Registry, Value, guide};

const CALLS: &str = include_str!("../docs/guides/calls.md");
const DOCUMENT: &str = include_str!("../openapi/v1.json");

/// With a registry of the tests in the place of Docker Hub.
#[track_caller]
fn follow(text: &str) {
    let registry = Registry::of_examples();
    guide::check(&Daemon::builder().docker_hub(&registry).start(), text);
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

#[test]
fn every_call_can_be_made_with_curl() {
    follow(CALLS);
}

/// What a call of curl in a guide asks for: its method and its path.
fn asked(curl: &str) -> Option<(&'static str, &str)> {
    let rest = curl.split_once("localhost:8080")?.1;
    let path = rest.split(|c: char| c.is_whitespace() || "?\"';)".contains(c)).next()?;
    let has = |option: &str| curl.contains(option);
    let method = match () {
        () if has("-X DELETE") => "DELETE",
        () if has("-X PUT") => "PUT",
        () if has("-sI ") => "HEAD",
        () if has(" -d ") || has(" --data") || has(" -F ") => "POST",
        () => "GET",
    };
    Some((method, path))
}

fn is_like(path: &str, template: &str) -> bool {
    let (mut words, mut wanted) = (path.split('/'), template.split('/'));
    loop {
        match (words.next(), wanted.next()) {
            (None, None) | (Some(_), Some("{reference}")) => return true,
            (Some(word), Some(template)) if word == template => {}
            (Some(word), Some(template)) if template.starts_with('{') && !word.is_empty() => {}
            _ => return false,
        }
    }
}

#[test]
fn no_call_of_the_document_is_missing_in_the_guide_to_calls() {
    let shell =
        CALLS.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect::<String>();
    let calls: Vec<_> = shell.split("curl ").skip(1).filter_map(asked).collect();
    let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("calls").keys().map(|method| method.to_uppercase()) {
            let shown = calls.iter().any(|(asked, at)| *asked == method && is_like(at, path));
            assert!(shown, "{method} {path} is not shown in docs/guides/calls.md");
        }
    }
}
