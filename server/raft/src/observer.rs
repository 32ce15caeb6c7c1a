//! What the group tells of itself while it works, for metrics.

use ferretcd_types::MemberId;
use std::time::Duration;

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
}

/// Counts nothing.
impl PeerObserver for () {
    fn sent(&self, _to: MemberId, _bytes: u64) {}
    fn received(&self, _from: MemberId, _bytes: u64) {}
    fn send_failed(&self, _to: MemberId) {}
    fn round_trip(&self, _to: MemberId, _took: Duration) {}
}
