//! openraft's own conformance suite for storage, on our log and our state machine.

use crate::log::Log;
use crate::machine::Machine;
use crate::offline::Silent;
use crate::snapshot::SnapshotDir;
use crate::types::TypeConfig;
use ferretcd_state::State;
use ferretcd_storage::{MemoryEngine, Store};
use ferretcd_types::MemberId;
use ferretcd_wal::{Identity, Options, OsFs, Wal};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::Arc;

struct Builder;

impl StoreBuilder<TypeConfig, Log, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity { cluster_id: 1, member_id: 1 };
        let options = Options { segment_bytes: 64 << 10, ..Options::default() };
        let (wal, _) = Wal::open(Arc::new(OsFs), &dir.path().join("wal"), options, identity).unwrap();
        let store = Store::open(Arc::new(MemoryEngine::new()), ferretcd_storage::Options::default()).unwrap();
        let state = Arc::new(State::open(store, MemberId(1)).unwrap());
        let snapshots = SnapshotDir::open(&dir.path().join("snap")).unwrap();
        Ok((dir, Log::new(wal), Machine::new(state, Arc::new(Silent), snapshots)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_own_storage_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
