//! Files that are uploaded once and read by many runs, and files that runs leave behind.

mod outputs;
mod uploads;
