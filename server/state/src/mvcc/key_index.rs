//! The history of one key: which revisions changed it.

use std::collections::VecDeque;

/// One change of a key. Thirty-two bytes, because a store holds millions of them in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Main revision of the change.
    pub main: i64,
    /// Main revision of the put that began this life of the key; 0 in a tombstone.
    pub created: i64,
    /// Puts in this life so far, from 1; 0 marks a tombstone.
    pub version: i64,
    /// Number of the change inside its main revision.
    pub sub: u32,
    /// Bytes of the record: key and value.
    pub bytes: u32,
}

impl Change {
    /// True when the change deleted the key.
    pub fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    fn order(&self) -> (i64, u32) {
        (self.main, self.sub)
    }
}

/// The changes of one key, oldest first. A tombstone ends a life, the next put begins another: etcd keeps a list per
/// life ("generation"), one list with marks says the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyIndex {
    /// Dropped from the front, a few at a time: the rest, which may be millions, is not moved for it.
    changes: VecDeque<Change>,
}

impl KeyIndex {
    /// A key with its first change.
    pub fn new(change: Change) -> Self {
        KeyIndex { changes: VecDeque::from([change]) }
    }

    /// Adds the newest change.
    pub fn push(&mut self, change: Change) {
        debug_assert!(self.latest().is_none_or(|last| last.order() < change.order()));
        self.changes.push_back(change);
    }

    /// The newest change.
    pub fn latest(&self) -> Option<&Change> {
        self.changes.back()
    }

    /// The newest change at or below a main revision, tombstones included.
    pub fn at(&self, main: i64) -> Option<&Change> {
        self.count_through(main).checked_sub(1).and_then(|last| self.changes.get(last))
    }

    /// The same, if the key exists then.
    pub fn live_at(&self, main: i64) -> Option<&Change> {
        self.at(main).filter(|change| !change.is_tombstone())
    }

    /// How many of the oldest changes a compaction at `main` drops: all but the newest at or below it; that too if it
    /// is a tombstone, unless it was made at `main` itself (a watch may still start there and must see it).
    pub fn droppable(&self, main: i64) -> usize {
        match self.count_through(main) {
            0 => 0,
            through => {
                let newest = &self.changes[through - 1];
                through - usize::from(!newest.is_tombstone() || newest.main == main)
            }
        }
    }

    /// The oldest changes.
    pub fn oldest(&self, count: usize) -> impl Iterator<Item = &Change> {
        self.changes.iter().take(count)
    }

    /// Forgets the oldest changes.
    pub fn drop_oldest(&mut self, count: usize) {
        self.changes.drain(..count.min(self.changes.len()));
        // A key that was written often and is quiet now must not keep the room.
        if self.changes.capacity() > 4 * self.changes.len().max(4) {
            self.changes.shrink_to_fit();
        }
    }

    /// True when nothing is left.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes are at or below a main revision.
    fn count_through(&self, main: i64) -> usize {
        match self.latest() {
            // Nearly every read is of the latest state.
            Some(last) if last.main <= main => self.changes.len(),
            _ => self.changes.partition_point(|change| change.main <= main),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two lives: 2 and 4, deleted at 6; 8 and 9.
    fn two_lives() -> KeyIndex {
        let mut index = KeyIndex::default();
        for (main, created, version) in [(2, 2, 1), (4, 2, 2), (6, 0, 0), (8, 8, 1), (9, 8, 2)] {
            index.push(Change { main, sub: 0, created, version, bytes: 1 });
        }
        index
    }

    #[test]
    fn a_key_lives_from_its_put_to_its_tombstone() {
        let index = two_lives();
        let seen: Vec<_> = (1..=10).map(|at| index.live_at(at).map(|c| (c.main, c.created, c.version))).collect();
        let (first, second) = (Some((2, 2, 1)), Some((4, 2, 2)));
        let (third, fourth) = (Some((8, 8, 1)), Some((9, 8, 2)));
        assert_eq!(seen, [None, first, first, second, second, None, None, third, fourth, fourth]);
    }

    #[test]
    fn of_many_changes_a_few_are_dropped_without_moving_the_rest() {
        let mut index = KeyIndex::default();
        for main in 1..=10_000 {
            index.push(Change { main, sub: 0, created: 1, version: main, bytes: 1 });
        }
        // A compaction drops a hundred at a time: of ten million all the others would be moved each time.
        let newest = std::ptr::from_ref(index.latest().unwrap());
        for _ in 0..10 {
            index.drop_oldest(100);
            assert!(std::ptr::eq(newest, index.latest().unwrap()));
        }
        assert_eq!(index.oldest(2).map(|change| change.main).collect::<Vec<_>>(), [1_001, 1_002]);
    }

    #[test]
    fn compaction_keeps_the_newest_at_its_revision() {
        let dropped: Vec<usize> = (1..=10).map(|at| two_lives().droppable(at)).collect();
        // At 6 the tombstone stays, at 7 it goes with its life.
        assert_eq!(dropped, [0, 0, 0, 1, 1, 2, 3, 3, 4, 4]);
        let mut index = two_lives();
        index.drop_oldest(index.droppable(7));
        assert_eq!(index.live_at(8).map(|c| c.main), Some(8));
        assert_eq!(index.live_at(7), None);
    }
}
