//! Runs the tests in `src/files.rs`, as a small program: that of the simulation takes minutes to optimise, and would be made twice.

#![allow(dead_code)] // The simulation uses the rest.

#[path = "../src/chance.rs"]
mod chance;
#[path = "../src/files.rs"]
mod files;
