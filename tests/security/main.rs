//! Attacks on the walls, as a stranger would make them: over HTTP, by programs that run inside. Each
//! says what a correct sandbox shows, and after each the host must be as it was before.
//!
//! One file a category. The ids are stable: decisions, documents and the wall-removal check name them.

mod api;
mod attack;

mod cross_run;
mod filesystem;
mod frozen;
mod helpers;
mod images;
mod ipc;
mod kernel;
mod modes;
mod network;
mod outputs;
mod privileges;
mod proc;
mod processes;
mod registries;
mod resources;
mod start;
mod strangers;
