//! What the group tells of itself while it works, for metrics.

use ferretcd_types::MemberId;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who counts what goes between members.
pub trait PeerObserver: Send + Sync + 'static {
    /// Bytes of messages went to a member.
    fn sent(&self, to: MemberId, bytes: u64);
    /// Bytes of messages came from a member.
    fn received(&self, from: MemberId, bytes: u64);
    /// A message did not reach a member.
    fn send_failed(&self, to: MemberId);
    /// A heartbeat was answered after this time.
    fn round_trip(&self, to: MemberId, took: Duration);
    /// This member (`from`) has lost another.
    fn disconnected(&self, from: MemberId, to: MemberId);
    /// A heartbeat left later than it should have.
    fn heartbeat_late(&self);
    /// A snapshot begins to go to or from a member.
    fn snapshot_begins(&self, way: Way, member: MemberId);
    /// It has ended, well or not, after this time.
    fn snapshot_ends(&self, way: Way, member: MemberId, well: bool, took: Duration);
    /// The file of a received one was written in this time, of which the last sync took so long.
    fn snapshot_received(&self, _took: Duration, _synced: Duration) {}
}

/// Which way a snapshot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From this member to another.
    To,
    /// From another member to this one.
    From,
}

/// A snapshot on its way. However the work on it ends, the end is told.
pub(crate) struct Transfer {
    observer: Arc<dyn PeerObserver>,
    way: Way,
    member: MemberId,
    begun: Instant,
    well: bool,
}

impl Transfer {
    pub(crate) fn begin(observer: Arc<dyn PeerObserver>, way: Way, member: MemberId) -> Self {
        observer.snapshot_begins(way, member);
        Transfer { observer, way, member, begun: Instant::now(), well: false }
    }

    /// All of it is there.
    pub(crate) fn succeeded(mut self) {
        self.well = true;
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.observer.snapshot_ends(self.way, self.member, self.well, self.begun.elapsed());
    }
}

/// Counts nothing.
impl PeerObserver for () {
    fn sent(&self, _to: MemberId, _bytes: u64) {}
    fn received(&self, _from: MemberId, _bytes: u64) {}
    fn send_failed(&self, _to: MemberId) {}
    fn round_trip(&self, _to: MemberId, _took: Duration) {}
    fn disconnected(&self, _from: MemberId, _to: MemberId) {}
    fn heartbeat_late(&self) {}
    fn snapshot_begins(&self, _way: Way, _member: MemberId) {}
    fn snapshot_ends(&self, _way: Way, _member: MemberId, _well: bool, _took: Duration) {}
}
