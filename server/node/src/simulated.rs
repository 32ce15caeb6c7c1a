//! A member on parts that somebody else made: for simulations, which keep its files in memory and have one thread.

use crate::boot::{Boot, BootError, Member, Opened, Remembered, Start, fill, fits, lack, take_up};
use crate::metrics::Metrics;
use ferretcd_raft::snapshot::SnapshotDir;
use ferretcd_raft::{Group, Identity};
use ferretcd_state::State;
use ferretcd_storage::Store;
use ferretcd_types::{ClusterId, Epoch, MemberId};
use ferretcd_wal::Wal;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What a member runs on, and who it is.
pub struct Parts {
    /// Its log.
    pub wal: Wal,
    /// What its state is kept in.
    pub store: Arc<Store>,
    /// Its state.
    pub state: Arc<State>,
    /// Its snapshot files.
    pub snapshots: SnapshotDir,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its ID.
    pub member: MemberId,
    /// It is one of those that the flags name, and founds the cluster with them if its log is empty.
    pub founder: bool,
}

impl Parts {
    /// Whether the state fits the log. One that does not is to be made anew from the newest snapshot file, as at every
    /// start.
    pub fn fit(&self) -> bool {
        fits(&self.state, &self.wal, &self.snapshots)
    }

    /// Whether raft will take up a snapshot file that the state is behind of; if so, the log goes on from it now. The log must do
    /// its work in each call.
    pub fn take_up(&self) -> io::Result<()> {
        take_up(&self.state, &self.snapshots, &self.wal, self.member)
    }
}

impl Boot {
    /// Fills an empty state in the place of one that could not be used, as at every start: from the last snapshot file, or one of
    /// another member. The log must do its work in each call.
    pub async fn rebuild_on(&self, parts: &Parts, epoch: Epoch) -> Result<(), BootError> {
        let Parts { wal, state, snapshots, cluster, member, founder, .. } = parts;
        let me = Remembered { cluster: *cluster, member: *member, founder: *founder, logged: true, epoch };
        let wanting = || lack(Path::new("store"), "the simulation took it", snapshots, wal);
        if let Some(lack) = wanting() {
            self.fetch(me, lack, snapshots).await?;
        }
        match wanting() {
            Some(lack) => Err(BootError::Storage(lack.to_string())),
            None => fill(state, snapshots, wal, *member).map_err(|e| BootError::Storage(e.to_string())),
        }
    }

    /// As [`Boot::run`], on parts.
    pub async fn run_on(self, parts: Parts) -> Result<Member, BootError> {
        let Parts { wal, store, state, snapshots, cluster, member, founder } = parts;
        let me = Remembered { cluster, member, founder, logged: true, epoch: Epoch::UNKNOWN };
        let identity = Arc::new(Identity::new(cluster, member, state.epoch()));
        let start = if founder { Start::Found } else { Start::Join(state.epoch()) };
        let metrics = Arc::new(Metrics::default());
        let opened = Opened { wal, store, state, snapshots, identity, metrics, claim: None };
        self.bring_up(opened, me, start).await
    }
}

impl Member {
    /// The group below.
    pub fn group(&self) -> &Group {
        &self.node.inner.group
    }

    /// Its tasks end, and nothing is closed: what its disk holds was taken away before.
    pub async fn vanish(self) {
        self.node.inner.hub.stop();
        self.node.inner.stop.cancel();
        self.node.inner.group.shutdown().await;
    }
}
