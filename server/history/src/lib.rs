//! What clients saw, and the judge of it: is there one order of all their calls that etcd's rules allow?
//!
//! Every answer of etcd names the store's revision, and each write that changes something makes exactly one. So the order
//! of the writes is no secret that a checker must search for: [`check`] replays them by revision, compares each answer
//! with what the model gives there, and holds the order against the clock. Only writes whose outcome nobody knows are
//! searched for, and only where a revision has no other author. That is exact, and near linear in the length of the
//! history, where a general checker (Wing and Gong's search with Lowe's memory, as in porcupine) is exponential in the
//! calls that overlap.

mod judge;
mod model;
mod refusal;
mod watch;

pub use judge::{Rule, Verdict, Violation, check};
pub use model::{Act, Answer, Compare, Event, Kv, Request, Span, State};
pub use watch::{Seen, Watch};

/// What happened, in any order. Times are of one clock, in any unit.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// All calls.
    pub calls: Vec<Call>,
    /// All watches.
    pub watches: Vec<Watch>,
}

/// One call of a client.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who made it, for the story.
    pub client: String,
    /// When it was made.
    pub begun: u64,
    /// When its answer came. Of no account where the outcome is unknown.
    pub ended: u64,
    /// What was asked.
    pub request: Request,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Done {
        /// The answer's revision.
        revision: i64,
        /// The answer.
        answer: Answer,
    },
    /// It was refused, and surely has not happened.
    Refused(Refusal),
    /// Nobody knows: it may happen at any time after it was asked, or never.
    Unknown,
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such lease.
    LeaseNotFound,
    /// The revision that was to be read is still to come.
    FutureRevision,
    /// Anything else. Whether that was right is not judged.
    Other,
}
