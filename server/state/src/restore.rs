//! Replacing the key space of a running cluster with a file's: staged through the log, swapped in by one command.

pub(crate) mod plan;
pub(crate) mod staging;
