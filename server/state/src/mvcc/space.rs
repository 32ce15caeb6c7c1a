//! One generation of the key space: its number, its index, and who keeps its records from being deleted.

use crate::StateError;
use crate::mvcc::index::Index;
use crate::mvcc::record;
use ferretcd_storage::Store;
use ferretcd_types::{KeyValue, Revision};
use parking_lot::{Mutex, RwLock};
use std::ops::ControlFlow;
use std::sync::Arc;

/// One generation of the key space. A restore or an installed snapshot makes a new one and swaps it in.
pub(crate) struct Space {
    /// Its number in the store's keys.
    pub generation: u32,
    /// Written by the applier (changes) and the background worker (compaction).
    pub index: RwLock<Index>,
    /// How many pins there are. The worker deletes under this lock and only while it is 0; each of its steps is one
    /// batch of the store and the index entries that go with it, so a pin never meets half a step.
    pub pins: Mutex<usize>,
}

impl Space {
    /// An empty generation.
    pub fn new(generation: u32) -> Arc<Space> {
        Space::with_index(generation, Index::default())
    }

    pub fn with_index(generation: u32, index: Index) -> Arc<Space> {
        Arc::new(Space { generation, index: RwLock::new(index), pins: Mutex::new(0) })
    }

    /// Rebuilds a generation's index from its records up to a revision, and tells of each change on the way. Its
    /// revision is that of the last record; the caller lifts it where a compaction says more.
    pub fn load(
        store: &Store,
        generation: u32,
        to: Revision,
        mut visit: impl FnMut(&KeyValue),
    ) -> Result<Arc<Space>, StateError> {
        let mut index = Index::default();
        record::scan_changes(store, generation, 0, to.main, |record| {
            if record.revision > to {
                return Ok(ControlFlow::Break(()));
            }
            let kv = record.key_value()?;
            index.record(&kv.key, record.change(&kv)?);
            index.revision = index.revision.max(record.revision.main);
            visit(&kv);
            Ok::<_, StateError>(ControlFlow::Continue(()))
        })?;
        Ok(Space::with_index(generation, index))
    }

    /// Current and compacted revision, of one moment.
    pub fn revisions(&self) -> (i64, i64) {
        let index = self.index.read();
        (index.revision, index.compacted)
    }

    /// Keeps every record of this generation in the store, and the index true to it, until dropped.
    pub fn pin(self: &Arc<Self>) -> Pin {
        *self.pins.lock() += 1;
        Pin { space: self.clone() }
    }
}

/// See [`Space::pin`].
pub(crate) struct Pin {
    pub space: Arc<Space>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        *self.space.pins.lock() -= 1;
    }
}
