//! What can go wrong in storage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What storage functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed attempt of the store. Cheap to clone, because the write-behind hands its first error to every later caller.
/// A cause is in `source()`, not in the text.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {attempt}")]
    Io {
        /// What was tried, with the path.
        attempt: String,
        /// The system's answer.
        source: Arc<std::io::Error>,
    },

    /// The database cannot be read as written. It is a view of the log: move the directory aside and rebuild it.
    #[error("the database in {} is corrupt ({detail}); move it aside and rebuild it from a snapshot and the log", path.display())]
    Corrupt {
        /// The database directory.
        path: PathBuf,
        /// What was found, in the engine's words.
        detail: String,
    },

    /// The engine failed in another way; nothing is known about the data.
    #[error("the storage engine failed: {0}")]
    Engine(String),

    /// The engine reports data as durable without an fsync, so a power cut would corrupt it.
    #[error(
        "the storage engine in {} flushed without fsync: sync_file_range is not intercepted in this binary", path.display()
    )]
    NotDurable {
        /// The database directory.
        path: PathBuf,
    },

    /// A key that no keyspace can hold. Nothing of its batch was written.
    #[error("a storage key of {len} bytes starting with {first:?} was refused: 1 to {max} bytes, first byte below 0xff",
        max = crate::engine::MAX_KEY_BYTES)]
    Key {
        /// The key's length in bytes.
        len: usize,
        /// Its first byte, if it has one.
        first: Option<u8>,
    },

    /// A value longer than [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES). Nothing of its batch was written.
    #[error("a storage value of {len} bytes was refused: at most {max} bytes", max = crate::engine::MAX_VALUE_BYTES)]
    Value {
        /// The value's length in bytes.
        len: usize,
    },

    /// The write-behind stopped at an earlier error. Restart the member: it replays the log from what is durable.
    #[error("the store stopped at an earlier error")]
    Stopped {
        /// The error that stopped it.
        source: Arc<Error>,
    },

    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// For `map_err`: `attempt` completes "cannot ...", e.g. "open" or "fsync".
    pub(crate) fn io(attempt: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let attempt = format!("{attempt} {}", path.display());
        move |source| Error::Io { attempt, source: Arc::new(source) }
    }
}
