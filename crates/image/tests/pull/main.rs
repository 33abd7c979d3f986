//! Pulling from registries: a real one for how things should be, a scripted one for how they are.
//! Layers are unpacked for real, which needs root: without it each test says that it was skipped.

mod behind;
mod faults;
mod keeping;
mod mirrors;
mod pulls;
mod sharing;
mod support;
mod wild;
