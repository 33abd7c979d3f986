//! Attacks on the walls, as a stranger would make them: over HTTP, by programs that run inside. Each
//! says what a correct sandbox shows, and after each the host must be as it was before.
//!
//! One file a category. The ids are stable: decisions, documents and the wall-removal check name them.

mod attack;

mod api;
mod filesystem;
mod ipc;
mod kernel;
mod network;
mod privileges;
mod proc;
mod processes;
mod resources;
