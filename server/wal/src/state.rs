//! The small state that the records of a log add up to. The writer, the recovery and the memory all advance the same
//! value by the same rules, so they cannot disagree.

use crate::record::Record;

/// The place of an entry in the raft log. Ordered by term, then index, as raft compares logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPos {
    /// Term of the leader that created the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: u64,
}

/// A raft vote, as it must survive a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vote {
    /// The term voted in.
    pub term: u64,
    /// The node voted for.
    pub node: u64,
    /// Whether a quorum granted it, which makes `node` the leader of `term`.
    pub committed: bool,
}

/// What the records up to some point add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last saved vote.
    pub vote: Option<Vote>,
    /// The last saved committed position: what may be applied again after a restart.
    pub committed: Option<LogPos>,
    /// Everything up to and including this is gone.
    pub purged: Option<LogPos>,
    /// The index that the next entry must have. None: the log never held an entry, or all were truncated; then the
    /// first entry may have any index, because openraft's storage suite starts logs at 0, 1 and 2.
    pub next: Option<u64>,
}

impl LogState {
    /// Advances by one record. The error is the rule that the record breaks, and then nothing changed.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), String> {
        match *record {
            Record::Entry { index, .. } => self.append(index),
            Record::Vote(vote) => {
                self.vote = Some(vote);
                Ok(())
            }
            Record::Truncate { after } => self.truncate(after),
            Record::Purge(upto) => {
                self.purge(upto);
                Ok(())
            }
            Record::Committed(pos) => {
                self.committed = Some(pos);
                Ok(())
            }
        }
    }

    fn append(&mut self, index: u64) -> Result<(), String> {
        match self.next {
            Some(next) if next != index => Err(format!("entry {index} follows where entry {next} is due")),
            _ if index == u64::MAX => Err(format!("entry {index} is the last number there is")),
            _ => {
                self.next = Some(index + 1);
                Ok(())
            }
        }
    }

    fn truncate(&mut self, after: Option<u64>) -> Result<(), String> {
        if let Some(purged) = self.purged
            && after.is_none_or(|after| after < purged.index)
        {
            let after = after.map_or_else(|| "the start".to_owned(), |after| after.to_string());
            return Err(format!("truncation after {after} reaches below {}, which is purged", purged.index));
        }
        self.next = match (self.next, after) {
            (Some(next), Some(after)) => Some(next.min(after.saturating_add(1))),
            _ => None,
        };
        Ok(())
    }

    fn purge(&mut self, upto: LogPos) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        self.purged = Some(upto);
        let after = upto.index.saturating_add(1);
        self.next = Some(self.next.map_or(after, |next| next.max(after)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> Record<'static> {
        Record::Entry { term: 1, index, payload: b"" }
    }

    #[test]
    fn a_gap_is_refused_and_changes_nothing() {
        let mut log = LogState::default();
        log.apply(&entry(5)).unwrap();
        let before = log;
        assert_eq!(log.apply(&entry(7)).unwrap_err(), "entry 7 follows where entry 6 is due");
        assert_eq!(log.apply(&entry(5)).unwrap_err(), "entry 5 follows where entry 6 is due");
        assert_eq!(log, before);
    }

    #[test]
    fn truncation_lowers_what_is_due_and_never_raises_it() {
        let mut log = LogState { next: Some(10), ..LogState::default() };
        log.apply(&Record::Truncate { after: Some(20) }).unwrap();
        assert_eq!(log.next, Some(10));
        log.apply(&Record::Truncate { after: Some(3) }).unwrap();
        assert_eq!(log.next, Some(4));
        log.apply(&Record::Truncate { after: None }).unwrap();
        assert_eq!(log.next, None);
    }

    #[test]
    fn what_is_purged_stays_purged() {
        let mut log = LogState::default();
        log.apply(&Record::Purge(LogPos { term: 2, index: 9 })).unwrap();
        assert_eq!(log.next, Some(10));
        log.apply(&Record::Purge(LogPos { term: 1, index: 4 })).unwrap();
        assert_eq!(log.purged, Some(LogPos { term: 2, index: 9 }));
        assert!(log.apply(&Record::Truncate { after: Some(8) }).unwrap_err().contains("purged"));
        assert!(log.apply(&Record::Truncate { after: None }).unwrap_err().contains("the start"));
        log.apply(&Record::Truncate { after: Some(9) }).unwrap();
        assert_eq!(log.next, Some(10));
    }
}
