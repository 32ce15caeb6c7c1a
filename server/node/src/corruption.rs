//! Whether all members hold the same: comparisons of their hashes at a start, from time to time, and at compactions.
//!
//! The rules are etcd's. Hashes are compared only at one revision and with one compacted revision, which members that lag,
//! that compact or that were restored meanwhile do not share: those are passed over, never accused. Where hashes differ,
//! whoever is not of the majority is accused, the leader too (etcd's periodic check always accuses the other one).

use crate::node::{Inner, Node};
use ferretcd_raft::Role;
use ferretcd_state::KvHash;
use ferretcd_types::{Alarm, AlarmKind, Command, Error, MemberId, PeerNode, SetAlarm};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// When members compare what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CorruptionChecks {
    /// Before this member serves, with those that answer (the feature gate `InitialCorruptCheck`).
    pub at_start: bool,
    /// How often the leader compares all members (`--corrupt-check-time`).
    pub every: Option<Duration>,
    /// How often the leader looks whether there was a compaction to compare all members at
    /// (`--compact-hash-check-time`, with the feature gate `CompactHashCheck`).
    pub compactions_every: Option<Duration>,
}

/// The shortest pause between two comparisons: each reads every record of every member.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Who is accused when there is no majority to tell the good from the bad: the cluster (etcd's 0).
const EVERYBODY: MemberId = MemberId(0);

/// What another member answered; `None` if it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    member: MemberId,
    hashed: Option<PeerHash>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PeerHash {
    hash: u32,
    compact_revision: i64,
    /// The member's own revision when it had hashed.
    revision: i64,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.hashed {
            Some(h) => write!(f, "{}: {} (compact revision {})", self.member, h.hash, h.compact_revision),
            None => write!(f, "{}: no answer", self.member),
        }
    }
}

/// Members that answered and hold something else at the same revision: none of them may be served beside.
fn differing(own: &KvHash, others: &[Told]) -> Vec<MemberId> {
    let differs =
        |told: &&Told| told.hashed.is_some_and(|h| h.compact_revision == own.compact_revision && h.hash != own.hash);
    others.iter().filter(differs).map(|told| told.member).collect()
}

/// Who must be accused because of hashes made at `own`'s revision: nobody if all that can be compared are equal, else all
/// that are not of the majority of all members.
fn outvoted(me: MemberId, own: &KvHash, others: &[Told]) -> Vec<MemberId> {
    let mut by_hash = BTreeMap::from([(own.hash, vec![me])]);
    for told in others {
        if let Some(h) = told.hashed.filter(|h| h.compact_revision == own.compact_revision) {
            by_hash.entry(h.hash).or_default().push(told.member);
        }
    }
    if by_hash.len() == 1 {
        return Vec::new();
    }
    let all = others.len() + 1;
    let quorum = all / 2 + 1;
    match by_hash.values().any(|members| members.len() >= quorum) {
        true => by_hash.into_values().filter(|members| members.len() < quorum).flatten().collect(),
        false => vec![EVERYBODY],
    }
}

/// Whom a periodic comparison accuses. `leader` is the leader's current and compacted revision, asked for after the others
/// had answered and after a linearizable read: nobody can have been ahead of it.
fn suspects(me: MemberId, own: &KvHash, leader: (i64, i64), others: &[Told]) -> Vec<MemberId> {
    let (revision, compacted) = leader;
    let is_ahead = |h: PeerHash| h.revision > revision || h.compact_revision > compacted;
    let ahead = others.iter().filter(|told| told.hashed.is_some_and(is_ahead)).map(|told| told.member);
    let mut suspects: Vec<MemberId> = ahead.chain(outvoted(me, own, others)).collect();
    suspects.sort_unstable();
    suspects.dedup();
    suspects
}

/// Whether every other member has answered for the same compacted revision.
fn is_complete(own: &KvHash, others: &[Told]) -> bool {
    others.iter().all(|told| told.hashed.is_some_and(|h| h.compact_revision == own.compact_revision))
}

/// Compares all members from time to time, on the leader.
pub(crate) async fn check_periodically(inner: Arc<Inner>) {
    let Some(every) = inner.config.corruption.every else { return };
    tracing::info!("local-member-id" = %inner.identity.member, interval = ?every, "enabled corruption checking");
    while crate::workers::pause(&inner, every.max(PAUSE_MIN)).await {
        if inner.view().role != Role::Leader {
            continue;
        }
        if let Err(e) = inner.compare_now().await {
            tracing::warn!("failed to check hash KV: {e}");
        }
    }
}

/// Compares all members at the newest compacted revision that all of them have reached, on the leader: below it only what
/// lives is left, so this finds damage in what was not written for long.
pub(crate) async fn check_compactions(inner: Arc<Inner>) {
    let Some(every) = inner.config.corruption.compactions_every else { return };
    let mut checked = 0;
    while crate::workers::pause(&inner, every.max(PAUSE_MIN)).await {
        let compacted = inner.state.compacted_revision();
        if inner.view().role != Role::Leader || compacted <= checked {
            continue;
        }
        match inner.compare_at(compacted).await {
            Ok(true) => checked = compacted,
            Ok(false) => {}
            Err(e) => tracing::warn!(revision = compacted, "failed to check the hashes of a compaction: {e}"),
        }
    }
}

impl Inner {
    /// Compares this member with those that answer, before it takes part in anything; an error is the reason why it must
    /// not. Who is down or does not answer within a request's time is passed over: members that start together must not
    /// wait for each other.
    pub(crate) async fn check_before_serving(self: &Arc<Self>) -> Result<(), String> {
        let me = self.identity.member;
        let timeout = self.timing.request_timeout();
        tracing::info!("local-member-id" = %me, ?timeout, "starting initial corruption check");
        let own = self.own_hash(0).await.map_err(|e| format!("{me} failed to fetch hash ({e})"))?;
        let others = self.hashes_of_others(own.revision).await;
        let found = differing(&own, &others);
        for peer in &found {
            tracing::warn!(
                "local-member-id" = %me, "local-member-revision" = own.revision,
                "local-member-compact-revision" = own.compact_revision, "local-member-hash" = own.hash,
                "remote-peer-id" = %peer, "found different hash values from remote peer"
            );
        }
        if !found.is_empty() {
            let error = format!("{me} found data inconsistency with peers");
            tracing::error!(error, "checkInitialHashKV failed");
            return Err(format!(
                "{error}: it holds other data than {} of the members that answered; if it is the odd one, remove it, add \
                 it anew, and start it with an empty data directory",
                found.len()
            ));
        }
        tracing::info!("local-member-id" = %me, "initial corruption checking passed; no corruption");
        Ok(())
    }

    async fn compare_now(self: &Arc<Self>) -> Result<(), Error> {
        let own = self.own_hash(0).await?;
        let others = self.hashes_of_others(own.revision).await;
        self.linearize().await?;
        let leader = (self.state.revision(), self.state.compacted_revision());
        self.accuse(&own, &suspects(self.identity.member, &own, leader, &others), &others).await?;
        let answered = others.iter().filter(|told| told.hashed.is_some()).count();
        tracing::info!("number-of-peers-checked" = answered, "finished peer corruption check");
        Ok(())
    }

    /// Whether this revision needs no further look: everyone was compared, or somebody was accused.
    async fn compare_at(self: &Arc<Self>, compacted: i64) -> Result<bool, Error> {
        let own = self.own_hash(compacted).await?;
        let others = self.hashes_of_others(compacted).await;
        let found = outvoted(self.identity.member, &own, &others);
        self.accuse(&own, &found, &others).await?;
        let done = !found.is_empty() || is_complete(&own, &others);
        match done {
            true => {
                tracing::info!("number-of-peers" = others.len(), revision = compacted, "finished compaction hash check")
            }
            false => tracing::warn!(
                "number-of-peers" = others.len(),
                revision = compacted,
                "skipped revision in compaction hash check; was not able to check all peers"
            ),
        }
        Ok(done)
    }

    /// Raises the alarm CORRUPT for each that is still a member, unless it is raised already.
    async fn accuse(&self, own: &KvHash, members: &[MemberId], others: &[Told]) -> Result<(), Error> {
        // One that was removed while the others still hashed is nobody's concern.
        let here: Vec<MemberId> = self.members().into_iter().map(|m| m.id).chain([EVERYBODY]).collect();
        for member in members.iter().filter(|member| here.contains(member)) {
            let alarm = Alarm { member: *member, kind: AlarmKind::Corrupt };
            if self.state.alarms().contains(&alarm) {
                tracing::warn!(suspect = %member, revision = own.revision, "members still hold different data");
                continue;
            }
            let others: Vec<String> = others.iter().map(Told::to_string).collect();
            tracing::error!(
                suspect = %member, revision = own.revision, "compact-revision" = own.compact_revision,
                hash = own.hash, others = others.join(", "), "members hold different data: raising the alarm CORRUPT"
            );
            self.propose(Command::SetAlarm(SetAlarm { alarm, raised: true })).await?;
        }
        Ok(())
    }

    async fn own_hash(&self, revision: i64) -> Result<KvHash, Error> {
        let state = self.state.clone();
        let _took = self.metrics.hash_rev.start_timer();
        tokio::task::spawn_blocking(move || state.hash_kv(revision)).await.map_err(Error::internal)?
    }

    /// Asks all other members at once; each has a request's time.
    async fn hashes_of_others(&self, revision: i64) -> Vec<Told> {
        let me = self.identity.member;
        // Those that the state knows: before raft runs, nothing else does.
        let others: Vec<_> = self.members().into_iter().filter(|m| m.id != me).collect();
        let asked = others.into_iter().map(|other| async move {
            let (member, node) = (other.id, PeerNode { peer_urls: other.peer_urls });
            let asked = self.group.peers().hash_kv(member, &node, revision);
            let answer = tokio::time::timeout(self.timing.request_timeout(), asked).await;
            let hashed = match answer.unwrap_or(Err(Error::Timeout)) {
                Ok(a) => Some(PeerHash { hash: a.hash, compact_revision: a.compact_revision, revision: a.revision }),
                Err(e) => {
                    tracing::warn!(peer = %member, revision, "failed hash kv request: {e}");
                    None
                }
            };
            Told { member, hashed }
        });
        futures::future::join_all(asked).await
    }
}

impl Node {
    /// CRC of the key space at a revision (0 is now): hash, compacted revision, the revision that was hashed.
    pub async fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), Error> {
        self.inner.own_hash(revision).await.map(|h| (h.hash, h.compact_revision, h.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: MemberId = MemberId(1);
    const OWN: KvHash = KvHash { hash: 7, compact_revision: 3, revision: 10 };
    const LEADER: (i64, i64) = (12, 5);

    fn told(member: u64, hash: u32, compact_revision: i64, revision: i64) -> Told {
        Told { member: MemberId(member), hashed: Some(PeerHash { hash, compact_revision, revision }) }
    }

    fn silent(member: u64) -> Told {
        Told { member: MemberId(member), hashed: None }
    }

    #[test]
    fn members_that_lag_compact_or_are_silent_are_not_accused() {
        let others = [told(2, 8, 4, 12), silent(3), told(4, 7, 3, 10)];
        assert!(suspects(ME, &OWN, LEADER, &others).is_empty());
        assert!(differing(&OWN, &others).is_empty());
        assert!(!is_complete(&OWN, &others));
        assert!(is_complete(&OWN, &[told(2, 7, 3, 12)]) && is_complete(&OWN, &[]));
    }

    #[test]
    fn whoever_is_outvoted_is_accused_the_leader_too() {
        assert_eq!(suspects(ME, &OWN, LEADER, &[told(2, 7, 3, 10), told(3, 9, 3, 10)]), [MemberId(3)]);
        assert_eq!(suspects(ME, &OWN, LEADER, &[told(2, 9, 3, 10), told(3, 9, 3, 10)]), [ME]);
        let five = [told(2, 7, 3, 10), told(3, 9, 3, 10), told(4, 8, 3, 10), told(5, 7, 3, 10)];
        let mut both = outvoted(ME, &OWN, &five);
        both.sort_unstable();
        assert_eq!(both, [MemberId(3), MemberId(4)]);
    }

    #[test]
    fn without_a_majority_the_cluster_is_accused() {
        assert_eq!(outvoted(ME, &OWN, &[told(2, 9, 3, 10)]), [EVERYBODY]);
        // A majority of those that answered is none of all members.
        assert_eq!(outvoted(ME, &OWN, &[told(2, 9, 3, 10), silent(3)]), [EVERYBODY]);
    }

    #[test]
    fn nobody_may_be_ahead_of_the_leader() {
        assert_eq!(suspects(ME, &OWN, LEADER, &[told(2, 7, 3, 13), told(3, 7, 3, 12)]), [MemberId(2)]);
        assert_eq!(suspects(ME, &OWN, LEADER, &[told(2, 7, 6, 12), told(3, 7, 5, 12)]), [MemberId(2)]);
    }

    #[test]
    fn a_member_that_starts_finds_every_difference() {
        let others = [told(2, 7, 3, 10), told(3, 9, 3, 10), told(4, 9, 2, 10)];
        assert_eq!(differing(&OWN, &others), [MemberId(3)]);
    }
}
