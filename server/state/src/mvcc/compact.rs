//! The physical half of compaction: one step deletes the records of a few changes that nobody may read any more.

use crate::StateError;
use crate::mvcc::index::{CHUNK_KEYS, Index};
use crate::mvcc::record;
use crate::mvcc::space::Space;
use ferretcd_storage::{Batch, Limit, Store, keyspace};
use ferretcd_types::Revision;
use parking_lot::RwLock;
use std::collections::BTreeMap;
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

/// Changes that a pass collects before it deletes them: some megabytes for as long as it takes. They are deleted in the order in
/// which they were written, because the engine has those together that were written together (decision 0015).
const WINDOW: usize = 100_000;

/// Looks at the index, of [`CHUNK_KEYS`] each, to fill a window: some ten milliseconds, after which it is asked whether to stop.
const LOOKS: usize = 200;

/// How far one pass over a generation's keys has got.
#[derive(Debug)]
pub(crate) struct Pass {
    /// The revision that is compacted.
    pub revision: i64,
    after: Option<Box<[u8]>>,
    /// All keys were looked at.
    is_last: bool,
    /// The keys of the window.
    keys: Vec<Box<[u8]>>,
    /// What to delete, the oldest last; with its key's place in `keys`.
    window: Vec<Doomed>,
    /// Records that were deleted since somebody asked.
    deleted: usize,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Doomed {
    main: i64,
    sub: u32,
    is_tombstone: bool,
    key: usize,
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
        Pass { revision, after: None, is_last: false, keys: Vec::new(), window: Vec::new(), deleted: 0 }
    }

    /// How many records were deleted since this was asked last.
    pub fn take_deleted(&mut self) -> usize {
        std::mem::take(&mut self.deleted)
    }

    /// Deletes the next records, or looks for them.
    pub fn step(&mut self, store: &Store, space: &Space, pace: Pace) -> Result<Step, StateError> {
        if self.window.is_empty() && !self.is_last {
            self.collect(&space.index);
        }
        if self.window.is_empty() {
            return Ok(if self.is_last { Step::Done } else { Step::Looked });
        }
        let pins = space.pins.lock();
        if *pins > 0 {
            return Ok(Step::Held);
        }
        let mut batch = Batch::new();
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        let now = self.window.len().saturating_sub(pace.deletes);
        for doomed in self.window.drain(now..) {
            let revision = Revision::new(doomed.main, i64::from(doomed.sub));
            batch.delete(record::key(space.generation, revision, doomed.is_tombstone));
            *counts.entry(doomed.key).or_default() += 1;
        }
        self.deleted += batch.len();
        // Position 0: deletions move no log position.
        store.write(batch, 0).map_err(StateError::store("delete compacted revisions"))?;
        let mut index = space.index.write();
        for (key, count) in counts {
            if let Some(key) = self.keys.get(key) {
                index.forget(key, count);
            }
        }
        drop(index);
        drop(pins);
        Ok(if self.window.is_empty() && self.is_last { Step::Done } else { Step::Deleted })
    }

    /// Fills the window. What is found stays as it is until this pass deletes it: nobody else takes old changes from the index.
    fn collect(&mut self, index: &RwLock<Index>) {
        self.keys.clear();
        for _ in 0..LOOKS {
            let left = WINDOW - self.window.len();
            let found = index.read().droppable(self.after.as_deref(), self.revision, CHUNK_KEYS, left);
            for (key, changes) in found.keys {
                let place = self.keys.len();
                self.keys.push(key);
                self.window.extend(changes.iter().map(|change| Doomed {
                    main: change.main,
                    sub: change.sub,
                    is_tombstone: change.is_tombstone(),
                    key: place,
                }));
            }
            match found.next {
                None => self.is_last = true,
                Some(after) => self.after = after,
            }
            if self.is_last || self.window.len() >= WINDOW {
                break;
            }
        }
        self.window.sort_unstable_by(|one, other| other.cmp(one));
    }
}

/// Records read at once to delete a generation. Their values come along and may be large.
const RETIRED_PER_STEP: Limit = Limit { records: 32, bytes: 1 << 20 };

/// Deletes the next records of a generation that is no longer the live one, nor staged, nor pinned.
pub(crate) fn delete_generation(store: &Store, generation: u32) -> Result<Step, StateError> {
    let (start, end) = keyspace::generation_range(generation);
    let page = store.page(&start, Some(&end), RETIRED_PER_STEP).map_err(StateError::store("scan the store"))?;
    if page.records.is_empty() {
        return Ok(Step::Done);
    }
    let mut batch = Batch::new();
    for (key, _) in page.records {
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
