//! The image store from outside: what it keeps, what it survives, and what it takes without a network.

mod faults;
mod hub;
mod kept;
mod offline;
mod saved;
mod trees;
