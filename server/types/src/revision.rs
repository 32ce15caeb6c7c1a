//! Positions: in the key space's history and in the raft log.

use std::fmt;

/// One change in the key space's history: the write that made it (`main`, one per write request) and its place in
/// that write (`sub`, from 0). Ordered as history happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Which write request. A fresh store stands at 1; the first write is 2.
    pub main: i64,
    /// Which change of that write.
    pub sub: i64,
}

impl Revision {
    /// A revision from its two parts.
    pub const fn new(main: i64, sub: i64) -> Self {
        Revision { main, sub }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.main, self.sub)
    }
}

/// A place in the raft log: the term of the leader that wrote the entry, and its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos {
    /// The leader's term.
    pub term: u64,
    /// The entry's index.
    pub index: u64,
}

impl fmt::Display for LogPos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.index)
    }
}
