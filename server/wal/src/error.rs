//! Why a log cannot be opened, and the sticky failure of one that was open.

use std::io;
use std::path::PathBuf;

use crate::wal::Identity;

/// Why [`crate::Wal::open`] refused. Nothing on disk was changed, save that the directory and its `LOCK` file may
/// have been created, or that an I/O error struck in the middle of the repair of a torn tail (which is safe to repeat).
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The file system failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was being attempted, as a verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The file system's own error.
        source: io::Error,
    },
    /// Another process (or another handle of this one) has the log open.
    #[error("{} is locked: another process has this log open; stop it, or choose another data directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Bytes that were once durable are no longer what was written. This is not the torn tail of a power loss.
    #[error(
        "{} is damaged at offset {offset}: {reason}; remove this member from the cluster and add it anew with an empty \
         data directory, or restore a cluster of one from a snapshot",
        file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it the first bad byte may be.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// The log belongs to another cluster or member.
    #[error("{} was written by {found}, but this server is {expected}; check the data directory", file.display())]
    Foreign {
        /// The segment.
        file: PathBuf,
        /// Who wrote it.
        found: Identity,
        /// Who asked for it.
        expected: Identity,
    },
    /// A newer release wrote this log.
    #[error("{} has format version {found}, this release reads up to {supported}; run the newer release", file.display())]
    NewerFormat {
        /// The segment.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that is understood here.
        supported: u32,
    },
    /// Segments are absent that hold entries which were never purged.
    #[error(
        "{} misses segments before {first:08x}.wal: entries up to index {until} are neither there nor purged",
        dir.display()
    )]
    Missing {
        /// The log directory.
        dir: PathBuf,
        /// Sequence of the oldest segment that is there.
        first: u32,
        /// The last index that is missing.
        until: u64,
    },
    /// An option is out of bounds.
    #[error("bad log option: {0}")]
    BadOption(String),
}

impl WalError {
    /// For `map_err`: an I/O error with what was attempted, and where.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| WalError::Io { what, path, source }
    }
}

/// The first write or sync error, kept so that every later call gets it too: `io::Error` cannot be cloned.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    kind: io::ErrorKind,
    message: String,
}

impl Failure {
    pub(crate) fn of(error: &io::Error) -> Self {
        Failure { kind: error.kind(), message: error.to_string() }
    }

    pub(crate) fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.message.clone())
    }
}

/// An I/O error that says what was attempted on which file.
pub(crate) fn attempted(what: &str, path: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

/// A call that the log refuses because its argument does not fit the log; nothing was changed.
pub(crate) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
