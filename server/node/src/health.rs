//! The checks behind `/livez`, `/readyz` and `/health`.

/// One health check by etcd's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// No CORRUPT alarm is raised.
    DataCorruption,
    /// This member answers a read from its own store.
    SerializableRead,
    /// The quorum confirms a read.
    LinearizableRead,
    /// This member has a vote.
    NonLearner,
}

impl Check {
    /// etcd's name of it, as in `/readyz/<name>`.
    pub fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }
}

/// What `/livez` runs: it never depends on a quorum.
pub const LIVEZ: &[Check] = &[Check::SerializableRead];

/// What `/readyz` runs.
pub const READYZ: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];
