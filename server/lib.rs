//! The daemon: HTTP in, HTTP out, and the wiring between the rooms that do the work.

// Neither panics where nobody reads: `say` has what is used in their place.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod config;
pub mod image_settings;
pub mod say;

pub mod start;

pub mod drain;
pub mod notify;
pub mod reload;

pub mod posture;
pub mod privilege;
pub mod rootless;

pub mod http;

pub mod keys;

pub mod ahead;
pub mod backup;
pub mod layers;
pub mod leaks;
pub mod log;
pub mod memory;
pub mod selftest;
pub mod telemetry;
pub mod tls;
pub mod traces;
