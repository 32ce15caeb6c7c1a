//! Stories of whole snapshot files: written and read back, judged by etcd's rules, and damaged in every way.

mod hostile;
mod pages;
mod round_trip;
mod support;
