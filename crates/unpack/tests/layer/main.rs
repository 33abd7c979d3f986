//! Layers of every kind, made by hand, unpacked into a folder of their own. They need root, as
//! unpacking does: without it each test says that it was skipped.

mod ahead;
mod breakouts;
mod files;
mod limits;
mod many;
mod packing;
mod random;
mod support;
mod whiteouts;
