//! Revisions and history: the key space as etcd's multi-version store has it. Sees no other room.

pub(crate) mod compact;
pub(crate) mod hash;
pub(crate) mod history;
pub(crate) mod index;
pub(crate) mod key_index;
pub(crate) mod read;
pub(crate) mod record;
pub(crate) mod space;
pub(crate) mod view;

use crate::error::Fault;
use ferretcd_storage::Store;
use parking_lot::RwLock;
use space::{Pin, Space};
use std::sync::Arc;
use view::View;

/// The live generation of the key space, and the store that has its records.
pub(crate) struct Mvcc {
    pub store: Arc<Store>,
    live: RwLock<Arc<Space>>,
}

impl Mvcc {
    pub fn new(store: Arc<Store>, live: Arc<Space>) -> Self {
        Mvcc { store, live: RwLock::new(live) }
    }

    /// The live generation now.
    pub fn live(&self) -> Arc<Space> {
        self.live.read().clone()
    }

    /// Makes another generation the live one, and returns the old one.
    pub fn swap(&self, space: Arc<Space>) -> Arc<Space> {
        std::mem::replace(&mut *self.live.write(), space)
    }

    /// Keeps the live generation's records from being deleted. Taken under the holder's lock, so that the generation is
    /// pinned before anything can retire it.
    pub fn pin(&self) -> Pin {
        self.live.read().pin()
    }

    /// Reads the newest state without being disturbed: tried once as it is, and if a compaction or a swap came in
    /// between, once more with the records held.
    pub fn read<T>(&self, read: impl Fn(&mut View<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        let space = self.live();
        let mut view = View::new(&self.store, &space);
        let result = read(&mut view);
        if Arc::ptr_eq(&space, &self.live()) && space.revisions().1 == view.compacted() {
            return result;
        }
        let pin = self.pin();
        read(&mut View::new(&self.store, &pin.space))
    }
}
