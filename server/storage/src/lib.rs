//! Where the materialised state lives: an ordered map of bytes behind the [`Engine`] trait, and [`Store`], the
//! write-behind in front of it that the state machine uses. The write-ahead log is the truth; everything here can be
//! rebuilt from it (and from a snapshot). Only `sled.rs` names sled, and only `redb.rs` redb.

mod behind;
mod engine;
mod error;
mod format;
mod home;
pub mod keyspace;
mod kind;
mod memory;
mod redb;
mod sled;
#[cfg(test)]
mod suite;
mod sync_range;

pub use crate::behind::{Observer, Options, Store, WaitForLog};
pub use crate::engine::{Batch, Engine, Limit, MAX_KEY_BYTES, MAX_VALUE_BYTES, Page, Record, Write};
pub use crate::error::{Error, Result};
pub use crate::format::{FORMAT_FILE, FORMAT_VERSION, Format, FormatError};
pub use crate::kind::EngineKind;
pub use crate::memory::MemoryEngine;
pub use crate::redb::RedbEngine;
pub use crate::sled::SledEngine;
