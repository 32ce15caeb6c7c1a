//! The physical half of compaction: one step deletes the records of a few changes that nobody may read any more.

use crate::StateError;
use crate::mvcc::index::CHUNK_KEYS;
use crate::mvcc::record;
use crate::mvcc::space::Space;
use ferretcd_storage::{Batch, Store, keyspace};
use ferretcd_types::Revision;
use std::time::Duration;

/// Deletions in one batch: sled's readers stand still for about 8 us for each, so 100 are less than a millisecond.
pub(crate) const DELETES_PER_STEP: usize = 100;

/// How fast compacted records are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Deletions in one step, at most [`DELETES_PER_STEP`].
    deletes: usize,
    /// The pause after a step that deleted something.
    pub(crate) pause: Duration,
}

impl Pace {
    /// As fast as `batch` deletions (at least one) with a pause of `sleep` after them, in smaller steps: a long one would
    /// hold up readers.
    pub fn new(batch: usize, sleep: Duration) -> Pace {
        let batch = batch.max(1);
        let deletes = batch.min(DELETES_PER_STEP);
        Pace { deletes, pause: sleep.mul_f64(deletes as f64 / batch as f64) }
    }
}

impl Default for Pace {
    /// About 40,000 deletions a second, and half of the time for everyone else.
    fn default() -> Pace {
        Pace { deletes: DELETES_PER_STEP, pause: Duration::from_millis(2) }
    }
}

/// How far one pass over a generation's keys has got.
#[derive(Debug)]
pub(crate) struct Pass {
    /// The revision that is compacted.
    pub revision: i64,
    after: Option<Box<[u8]>>,
    /// Records that were deleted since somebody asked.
    deleted: usize,
}

/// What one step of the worker came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something was deleted; there is more to do.
    Deleted,
    /// Nothing had to be deleted here; there is more to look at.
    Looked,
    /// A pin holds the records.
    Held,
    /// All done.
    Done,
}

impl Pass {
    pub fn new(revision: i64) -> Self {
        Pass { revision, after: None, deleted: 0 }
    }

    /// How many records were deleted since this was asked last.
    pub fn take_deleted(&mut self) -> usize {
        std::mem::take(&mut self.deleted)
    }

    /// Looks at the next keys.
    pub fn step(&mut self, store: &Store, space: &Space, pace: Pace) -> Result<Step, StateError> {
        let pins = space.pins.lock();
        if *pins > 0 {
            return Ok(Step::Held);
        }
        let found = space.index.read().droppable(self.after.as_deref(), self.revision, CHUNK_KEYS, pace.deletes);
        let mut batch = Batch::new();
        for change in found.keys.iter().flat_map(|(_, changes)| changes) {
            let revision = Revision::new(change.main, i64::from(change.sub));
            batch.delete(record::key(space.generation, revision, change.is_tombstone()));
        }
        let deleted = !batch.is_empty();
        self.deleted += batch.len();
        if deleted {
            // Position 0: deletions move no log position.
            store.write(batch, 0).map_err(StateError::store("delete compacted revisions"))?;
            space.index.write().forget(&found);
        }
        drop(pins);
        match found.next {
            None => Ok(Step::Done),
            Some(after) => {
                self.after = after;
                Ok(if deleted { Step::Deleted } else { Step::Looked })
            }
        }
    }
}

/// Records read at once to delete a generation: few, since their values come along and may be large.
const RETIRED_PER_STEP: usize = 32;

/// Deletes the next records of a generation that is no longer the live one, nor staged, nor pinned.
pub(crate) fn delete_generation(store: &Store, generation: u32) -> Result<Step, StateError> {
    let (start, end) = keyspace::generation_range(generation);
    let records = store.scan(&start, Some(&end), RETIRED_PER_STEP).map_err(StateError::store("scan the store"))?;
    if records.is_empty() {
        return Ok(Step::Done);
    }
    let mut batch = Batch::new();
    for (key, _) in records {
        batch.delete(key);
    }
    store.write(batch, 0).map_err(StateError::store("delete an old generation"))?;
    Ok(Step::Deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_batch_becomes_small_steps_of_the_same_pace() {
        let pace = |batch, millis| {
            let pace = Pace::new(batch, Duration::from_millis(millis));
            (pace.deletes, pace.pause)
        };
        assert_eq!(pace(1000, 10), (100, Duration::from_millis(1)));
        assert_eq!(pace(10, 500), (10, Duration::from_millis(500)));
        assert_eq!(pace(0, 3), (1, Duration::from_millis(3)));
        assert_eq!(pace(usize::MAX, 0), (100, Duration::ZERO));
    }
}
