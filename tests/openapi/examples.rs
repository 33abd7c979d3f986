//! The examples of the document are what they say: requests that a server takes, and answers as it gives them.

use std::process::Command;

use support::{Daemon, Finished, Registry};

use crate::venv;

#[test]
fn every_example_of_a_request_is_taken_and_every_answer_is_as_its_schema_says() {
    let registry = Registry::of_examples();
    let daemon = Daemon::builder().docker_hub(&registry).start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi/examples.py");
    let done = Finished::of(Command::new(venv("python")).arg(script).arg(daemon.url("")));
    let said = done.stdout_text();
    assert_eq!(done.code(), Some(0), "{said}{}", done.stderr_text());
    // It has really looked: `examples.py` says how often.
    let numbers: Vec<usize> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] > 40 && numbers[1] > 25, "{said}");
}
