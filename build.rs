//! Tells the program which compiler made it, for `build_info`.

use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    // "rustc 1.95.0 (hash date)"
    let version = String::from_utf8_lossy(&said);
    let version = version.split(' ').nth(1).unwrap_or("unknown").trim();
    println!("cargo::rustc-env=SANDGLASS_RUSTC={version}");
    println!("cargo::rerun-if-changed=build.rs");
}
