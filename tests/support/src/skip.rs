//! A test that can't show anything on this machine says so and is counted.

use std::fs::OpenOptions;
use std::io::Write;

/// Says that the calling test is skipped, and why. The caller returns right after.
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    println!("SKIPPED: {test}: {reason}");
    // `cargo xtask test` names a file in which skips are counted.
    if let Some(path) = std::env::var_os("SANDGLASS_SKIPS") {
        let mut file =
            OpenOptions::new().append(true).create(true).open(&path).expect("open the list of skips");
        // One write, so that two tests at once don't mix their lines.
        file.write_all(format!("{test}: {reason}\n").as_bytes()).expect("write the list of skips");
    }
}
