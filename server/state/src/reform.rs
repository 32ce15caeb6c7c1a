//! A member that goes on alone: its group is replaced by force, because the others are lost for good.

use crate::StateError;
use crate::rooms::save_applied;
use crate::state::State;
use bytes::Bytes;
use ferretcd_storage::Batch;
use ferretcd_types::{Epoch, LogPos, MemberId, PeerNode};

impl State {
    /// Makes `member` the only one, as of a position behind all that was applied, and begins a new history from the data
    /// of this one: whoever knows the old epoch only is not spoken to any more. All other members count as removed.
    ///
    /// Not a command: the log that could carry it has lost its quorum. The caller writes a snapshot file next.
    pub fn reform(
        &self,
        position: LogPos,
        membership: Bytes,
        member: (MemberId, PeerNode),
        epoch: Epoch,
    ) -> Result<(), StateError> {
        let inner = &*self.inner;
        let _applier = inner.applier.lock();
        let mut rooms = inner.rooms.read().clone();
        let mut batch = Batch::new();
        rooms.members.set_group(&[(member.0, member.1, false)], &mut batch);
        if rooms.epoch != Epoch::UNKNOWN {
            rooms.replaced.push(rooms.epoch);
        }
        rooms.epoch = epoch;
        rooms.membership = Some(membership);
        rooms.applied = Some(position);
        rooms.save_private(&mut batch);
        save_applied(&mut batch, position);
        inner.mvcc.store.write(batch, position.index).map_err(StateError::store("make this member the only one"))?;
        *inner.rooms.write() = rooms;
        Ok(())
    }
}
