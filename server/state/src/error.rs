//! What can break under the state machine, as opposed to what it refuses.

use ferretcd_types::Error;
use ferretcd_types::wire::DecodeError;
use std::fmt::Write as _;

/// The state can no longer be trusted to be what the log says: the member must stop. A refusal of a command is not
/// this, it is a [`ferretcd_types::Error`] and the same on every member.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// The store failed.
    #[error("cannot {attempt}")]
    Store {
        /// What was tried.
        attempt: &'static str,
        /// The store's answer.
        #[source]
        source: ferretcd_storage::Error,
    },
    /// The store holds a record that this server did not write, or not so.
    #[error("the store's record of {what} is damaged ({why}); rebuild the store from a snapshot and the log")]
    Record {
        /// Which record.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A record that the index names is missing.
    #[error("the store lacks the record of revision {revision}; rebuild the store from a snapshot and the log")]
    Missing {
        /// The revision.
        revision: String,
    },
    /// A snapshot from a peer cannot be installed; the state is as it was before.
    #[error("the raft snapshot was refused, nothing was changed: {0}")]
    Snapshot(String),
    /// The cluster has come to what a later release brought, so this one must not take part: it would sooner or later meet what
    /// it cannot decode.
    #[error(
        "this server (ferretcd {}, log format {}) is older than its cluster (version {cluster_version}, log format \
         {log_format}): start it with the release that the other members run",
        env!("CARGO_PKG_VERSION"), ferretcd_types::codec::LOG_FORMAT
    )]
    Older {
        /// The cluster's version.
        cluster_version: String,
        /// The cluster's log format.
        log_format: u32,
    },
    /// The system refused a thread.
    #[error("cannot start the state's background thread: {0}")]
    Thread(String),
}

impl StateError {
    /// For `map_err`: `attempt` completes "cannot ...".
    pub(crate) fn store(attempt: &'static str) -> impl FnOnce(ferretcd_storage::Error) -> StateError {
        move |source| StateError::Store { attempt, source }
    }

    /// For `map_err` on decoders.
    pub(crate) fn record(what: &str) -> impl FnOnce(DecodeError) -> StateError + '_ {
        move |err| StateError::Record { what: what.to_owned(), why: err.to_string() }
    }
}

impl From<StateError> for Error {
    fn from(err: StateError) -> Error {
        Error::internal(chain(&err))
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let _ = write!(text, ": {err}");
        cause = err.source();
    }
    text
}

/// How a step ended that did not succeed: refused, or broken.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The same on every member; nothing was changed.
    Refused(Error),
    /// This member's own trouble.
    Broken(StateError),
}

impl From<Error> for Fault {
    fn from(err: Error) -> Fault {
        Fault::Refused(err)
    }
}

impl From<StateError> for Fault {
    fn from(err: StateError) -> Fault {
        Fault::Broken(err)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        match fault {
            Fault::Refused(err) => err,
            Fault::Broken(err) => err.into(),
        }
    }
}
