//! Who a member is, and the proof of it that goes with every call between members.
//!
//! Two clusters can have the same ID (static bootstrap computes it from the peer URLs), so the epoch goes along: a
//! member of another history is refused at the door and never reaches raft.

use ferretcd_types::{ClusterId, Epoch, MemberId};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::{MetadataMap, MetadataValue};

const CLUSTER: &str = "ferretcd-cluster-id";
const EPOCH: &str = "ferretcd-epoch";
const FROM: &str = "ferretcd-from";
const TO: &str = "ferretcd-to";

/// This member's identity. The epoch is learnt when the first entry is applied.
#[derive(Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// This member.
    pub member: MemberId,
    epoch: AtomicU64,
    heard: Mutex<Option<Instant>>,
}

/// What a caller said of itself, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The calling member.
    pub from: MemberId,
}

impl Identity {
    /// An identity; the epoch may still be unknown.
    pub fn new(cluster: ClusterId, member: MemberId, epoch: Epoch) -> Self {
        Identity { cluster, member, epoch: AtomicU64::new(epoch.0), heard: Mutex::new(None) }
    }

    /// The epoch as known now.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// Written when the state machine applied the first entry or installed a snapshot.
    pub fn learn_epoch(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Release);
    }

    /// A leader spoke to this member just now.
    pub(crate) fn heard_leader(&self) {
        *self.heard.lock() = Some(Instant::now());
    }

    /// How long ago a leader spoke to this member.
    pub(crate) fn leader_silence(&self) -> Option<Duration> {
        self.heard.lock().map(|at| at.elapsed())
    }

    /// Puts the proof on a call to `to`.
    pub fn sign(&self, to: MemberId, metadata: &mut MetadataMap) {
        for (key, value) in [(CLUSTER, self.cluster.0), (EPOCH, self.epoch().0), (FROM, self.member.0), (TO, to.0)] {
            metadata.insert(key, MetadataValue::from(value));
        }
    }

    /// Checks the proof on an incoming call. The text names what differs: it is what the operator of a wrongly
    /// addressed member reads in its log.
    pub fn check(&self, metadata: &MetadataMap) -> Result<PeerIdentity, Status> {
        let number = |key: &str| {
            metadata
                .get(key)
                .and_then(|v| v.to_str().ok())
                .and_then(|v| v.parse::<u64>().ok())
                .ok_or_else(|| Status::unauthenticated(format!("a peer call without a valid {key} was refused")))
        };
        let (cluster, epoch) = (ClusterId(number(CLUSTER)?), Epoch(number(EPOCH)?));
        let (from, to) = (MemberId(number(FROM)?), MemberId(number(TO)?));
        if cluster != self.cluster {
            return Err(Status::failed_precondition(format!(
                "etcdserver: cluster ID mismatch: member {from} belongs to cluster {cluster}, this is member {} of cluster {}; \
                 check --initial-cluster and --initial-cluster-token on both, or the data directory of the one that moved",
                self.member, self.cluster
            )));
        }
        if !epoch.agrees_with(self.epoch()) {
            return Err(Status::failed_precondition(format!(
                "etcdserver: cluster ID mismatch: member {from} has the history of epoch {epoch}, this is member {} of epoch {}; \
                 the cluster ID {cluster} is the same, the data is not: one of them was bootstrapped anew and must not join",
                self.member,
                self.epoch()
            )));
        }
        if to != self.member {
            return Err(Status::failed_precondition(format!(
                "member {from} looked for member {to} and found member {}; check the advertised peer URLs",
                self.member
            )));
        }
        Ok(PeerIdentity { from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every call of a release carries, for a member of another one.
    #[test]
    fn the_proof_of_the_first_release_is_still_made_so() {
        let mut metadata = MetadataMap::new();
        Identity::new(ClusterId(u64::MAX), MemberId(2), Epoch(3)).sign(MemberId(4), &mut metadata);
        let mut sent: Vec<String> =
            metadata.into_headers().iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        sent.sort_unstable();
        let golden =
            ["ferretcd-cluster-id: 18446744073709551615", "ferretcd-epoch: 3", "ferretcd-from: 2", "ferretcd-to: 4"];
        assert_eq!(sent, golden);
    }

    fn identity(cluster: u64, member: u64, epoch: u64) -> Identity {
        Identity::new(ClusterId(cluster), MemberId(member), Epoch(epoch))
    }

    fn call(from: &Identity, to: u64, at: &Identity) -> Result<PeerIdentity, Status> {
        let mut metadata = MetadataMap::new();
        from.sign(MemberId(to), &mut metadata);
        at.check(&metadata)
    }

    #[test]
    fn a_member_of_the_same_history_is_let_in() {
        assert_eq!(call(&identity(7, 1, 9), 2, &identity(7, 2, 9)).unwrap().from, MemberId(1));
        assert!(call(&identity(7, 1, 0), 2, &identity(7, 2, 9)).is_ok(), "a joining member knows no epoch yet");
    }

    #[test]
    fn another_cluster_another_history_and_a_wrong_address_are_refused_with_both_sides_named() {
        let other = call(&identity(8, 1, 9), 2, &identity(7, 2, 9)).unwrap_err();
        assert!(other.message().contains("cluster ID mismatch") && other.message().contains("cluster 8"));
        let history = call(&identity(7, 1, 10), 2, &identity(7, 2, 9)).unwrap_err();
        assert!(history.message().contains("epoch a"), "{}", history.message());
        assert!(call(&identity(7, 1, 9), 3, &identity(7, 2, 9)).unwrap_err().message().contains("looked for member 3"));
        assert!(identity(7, 2, 9).check(&MetadataMap::new()).is_err());
    }
}
