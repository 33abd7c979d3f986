//! The guides are true: every example in them is run, and prints what stands below it.

use support::{Daemon, guide};

#[test]
fn a_page_that_shows_a_program_run() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    guide::check(&daemon, include_str!("../docs/guides/live.md"));
}
