//! The image store from outside: what it keeps, what it survives, and what it takes without a network.

mod faults;
mod kept;
mod offline;
mod trees;
