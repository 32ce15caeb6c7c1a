//! The raft log on disk: a segmented write-ahead log with one writer thread and one fdatasync for all that is queued.
//! The pure parts ([`record`], [`segment`], the replay in `recover`) know bytes only; the thin parts (`writer`, `pool`)
//! act through the small [`fs`] traits, which a simulator implements with power loss.
//!
//! # What is on disk
//! A directory holds `LOCK`, segments `xxxxxxxx.wal` with consecutive sequence numbers, and up to two `xxxxxxxx.spare`
//! files waiting to become segments. A segment is a [`segment::Header`] and then [`record`]s, each of which covers
//! everything before it by checksum. Nothing else is needed to recover: every header repeats the state at its start.

pub mod fs;
pub mod record;
pub mod segment;

mod error;
mod listing;
mod memory;
mod pool;
mod recover;
mod state;
mod wal;
mod writer;

pub use error::WalError;
pub use fs::{Fs, OsFs};
pub use listing::{ListedSegment, Listing, list, lock};
pub use state::{LogPos, LogState, Vote};
pub use wal::{Bell, Done, Entry, Identity, Observer, Options, Recovered, Wal};
