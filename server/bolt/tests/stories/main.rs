//! Stories of whole snapshot files: written and read back, judged by etcd's rules, and damaged in every way.

// clippy.toml allows these in tests; it does not see that the helper functions here are nothing else.
#![allow(clippy::unwrap_used, clippy::panic)]

mod hostile;
mod pages;
mod round_trip;
mod support;
