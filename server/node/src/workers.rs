//! The loops of a running member that nobody asks for: what a new leader owes the cluster, what a member says of
//! itself, when a snapshot is due, when history is dropped, and when the member must end.

use crate::node::{AutoCompaction, Inner};
use crate::{corruption, downgrade, ids, lease, maintenance, read};
use ferretcd_proto::peer::ProbeRequest;
use ferretcd_raft::Role;
use ferretcd_raft::transport::client::probe;
use ferretcd_types::{AuthChange, Command, Compact, Epoch, Error, Genesis, MemberAttributes};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// The version that a new cluster starts at: etcd's API level that this server speaks. With it goes up
/// [`LOG_FORMAT`](ferretcd_types::codec::LOG_FORMAT), by which an older server is kept out.
pub const CLUSTER_VERSION: &str = "3.7.0";

/// A snapshot is written when the log since the last one is at least this part of it, however many entries: it costs five times
/// what it cost to write the log then, at most. (A log that is as long as the store may never come: history that is not compacted
/// takes as much room in the store as in the log.)
const SNAPSHOT_LOG_PART: u64 = 4;

/// With so many entries since the last one it is written in any case: the log keeps 24 bytes in memory for each.
const SNAPSHOT_ENTRIES_MAX: u64 = 4_000_000;

/// A log of so many bytes since the last one is not waited with, however few entries these are: the ten thousand of etcd's
/// default may be 15 GB, all of which is read at a start behind a lost store.
const SNAPSHOT_LOG_BYTES: u64 = 1 << 30;

/// How often a member without a leader asks the others whether it was removed, and how long they may take.
const LEADERLESS_LOOK: Duration = Duration::from_secs(1);

/// Starts them all.
pub(crate) fn start(inner: &Arc<Inner>, rounds: mpsc::Receiver<read::RoundWaiter>, tasks: &TaskTracker) {
    tasks.spawn(read::rounds(inner.clone(), rounds));
    tasks.spawn(lease::expire(inner.clone()));
    tasks.spawn(maintenance::give_up_idle_restores(inner.clone()));
    tasks.spawn(found_history(inner.clone()));
    tasks.spawn(publish_attributes(inner.clone()));
    tasks.spawn(take_snapshots(inner.clone()));
    tasks.spawn(auto_compact(inner.clone()));
    tasks.spawn(downgrade::decide_cluster_version(inner.clone()));
    tasks.spawn(watch_for_the_end(inner.clone()));
    tasks.spawn(turn_auth_off(inner.clone()));
    tasks.spawn(corruption::check_periodically(inner.clone()));
    tasks.spawn(corruption::check_compactions(inner.clone()));
}

pub(crate) async fn pause(inner: &Inner, time: Duration) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        () = inner.stop.cancelled() => false,
    }
}

/// The first leader fixes the epoch; until then no member serves clients.
async fn found_history(inner: Arc<Inner>) {
    while inner.state.epoch() == Epoch::UNKNOWN {
        if inner.view().role == Role::Leader {
            let genesis = Genesis { epoch: ids::epoch(), cluster_version: CLUSTER_VERSION.to_owned() };
            if let Err(e) = inner.propose(Command::Genesis(genesis)).await {
                tracing::warn!("cannot write the first entry: {e}; trying again");
            }
        }
        if !pause(&inner, Duration::from_millis(20)).await {
            return;
        }
    }
}

/// Publishes name and client URLs, as etcd does once a member is ready: at each start, whatever they are now. An entry of an earlier
/// start, with others, may be on its way still.
async fn publish_attributes(inner: Arc<Inner>) {
    let attributes = MemberAttributes {
        id: inner.identity.member,
        name: inner.config.name.clone(),
        client_urls: inner.config.client_urls.clone(),
    };
    loop {
        let known = inner.state.epoch() != Epoch::UNKNOWN && inner.members().iter().any(|m| m.id == attributes.id);
        if known {
            match inner.propose(Command::MemberAttributes(attributes.clone())).await {
                Ok(_) => return,
                Err(e) => tracing::warn!("cannot publish this member's name and client URLs: {e}; trying again"),
            }
        }
        if !pause(&inner, Duration::from_millis(50)).await {
            return;
        }
    }
}

/// How often a member without room for a snapshot looks again, and says so.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(30);

/// Writes a snapshot file when enough entries came since the last one and the log has grown enough to be worth it.
async fn take_snapshots(inner: Arc<Inner>) {
    loop {
        if !pause(&inner, Duration::from_secs(1)).await {
            return;
        }
        let view = inner.view();
        let entries = view.applied.saturating_sub(view.snapshot);
        // What is not applied yet is in no snapshot: a start may have gibibytes of it before it.
        let behind = |index| inner.wal.bytes_behind(index);
        let log = behind(view.snapshot).saturating_sub(behind(view.applied));
        let snapshot = inner.state.snapshot_bytes();
        if wants_a_snapshot(entries, inner.config.snapshot_count, log) && is_worth_a_snapshot(entries, log, snapshot) {
            // Without it the log grows on. Tried in vain it would end the member, and all of them at about the same time.
            if let Err(e) = inner.group.has_room() {
                tracing::warn!("no snapshot is written, so the log grows: {e}");
                if !pause(&inner, NO_ROOM_PAUSE).await {
                    return;
                }
                continue;
            }
            tracing::debug!(entries, log_bytes = log, snapshot_bytes = snapshot, "writing a snapshot");
            if let Err(e) = inner.group.take_snapshot().await {
                tracing::warn!("cannot start a snapshot: {e}");
            }
            // It runs in the background; the next look is after its likely end.
            if !pause(&inner, Duration::from_secs(10)).await {
                return;
            }
        }
    }
}

/// Whether so much came since the last one, in entries, of which `count` are asked for, or in bytes of the log.
fn wants_a_snapshot(entries: u64, count: u64, log: u64) -> bool {
    entries >= count || log >= SNAPSHOT_LOG_BYTES
}

/// Whether a snapshot of so many bytes is worth writing behind so many entries, which take so many bytes of the log.
fn is_worth_a_snapshot(entries: u64, log: u64, snapshot: u64) -> bool {
    log >= snapshot / SNAPSHOT_LOG_PART || entries >= SNAPSHOT_ENTRIES_MAX
}

/// etcd's periodic and revision modes, on the leader.
async fn auto_compact(inner: Arc<Inner>) {
    let Some(mode) = inner.config.auto_compaction else { return };
    let every = match mode {
        // etcd looks at least every hour; its first compaction comes after a full period.
        AutoCompaction::Periodic(period) => period.min(Duration::from_secs(3600)) / 10,
        AutoCompaction::Revision(_) => Duration::from_secs(300),
    };
    let mut seen: VecDeque<(tokio::time::Instant, i64)> = VecDeque::new();
    let mut compacted = 0;
    loop {
        if !pause(&inner, every.max(Duration::from_millis(100))).await {
            return;
        }
        let now = tokio::time::Instant::now();
        let revision = inner.state.revision();
        let target = match mode {
            AutoCompaction::Periodic(period) => {
                seen.push_back((now, revision));
                let mut target = None;
                while seen.front().is_some_and(|(at, _)| now.duration_since(*at) >= period) {
                    target = seen.pop_front().map(|(_, revision)| revision);
                }
                target
            }
            AutoCompaction::Revision(keep) => Some(revision - keep),
        };
        let Some(target) = target.filter(|t| *t > compacted.max(inner.state.compacted_revision()) && *t > 0) else {
            continue;
        };
        if inner.view().role != Role::Leader {
            continue;
        }
        match inner.propose(Command::Compact(Compact { revision: target })).await {
            Ok(_) => {
                tracing::info!(revision = target, "compacted automatically");
                compacted = target;
            }
            Err(Error::Compacted) => compacted = target,
            Err(e) => tracing::warn!(revision = target, "cannot compact: {e}; trying again at the next turn"),
        }
    }
}

/// Turns auth off through the log, if this member was started for that: all members do so together, at one entry.
async fn turn_auth_off(inner: Arc<Inner>) {
    if !inner.config.auth.turn_off {
        return;
    }
    loop {
        let done = match inner.linearize().await {
            Ok(()) if inner.state.auth_enabled() => inner.propose(Command::Auth(AuthChange::Disable)).await.map(drop),
            other => other,
        };
        match done {
            Ok(()) => break,
            Err(e) => tracing::warn!("cannot turn authentication off: {e}; trying again"),
        }
        if !pause(&inner, Duration::from_secs(1)).await {
            return;
        }
    }
    tracing::warn!(
        "authentication is off, and anyone may read and write: set root's password, enable authentication, and start \
         this member without --turn-auth-off"
    );
}

/// A member that was removed, or whose raft has stopped, ends.
async fn watch_for_the_end(inner: Arc<Inner>) {
    let mut view = inner.group.view();
    let mut known = None;
    loop {
        let (leader, term) = {
            let view = view.borrow_and_update();
            (view.leader, view.term)
        };
        inner.metrics.saw_leader(leader.map(|id| id.0));
        let me = inner.identity.member;
        // etcd's lines: elections again and again show in them.
        match (known, leader) {
            (Some(lost), None) => tracing::warn!("raft.node: {me} lost leader {lost} at term {term}"),
            (None, Some(leader)) => tracing::info!("raft.node: {me} elected leader {leader} at term {term}"),
            (Some(old), Some(new)) if old != new => {
                tracing::info!("raft.node: {me} changed leader from {old} to {new} at term {term}");
            }
            _ => {}
        }
        known = leader;
        if let Some(fatal) = view.borrow().fatal.clone() {
            // A normal stop ends raft as well; then nobody asks.
            inner.ended.send_replace(Some(format!("raft has stopped: {fatal}")));
            return;
        }
        if inner.state.is_removed(inner.identity.member) {
            inner.ended.send_replace(Some(removal(&inner)));
            return;
        }
        // A leader stops speaking to a member that it removed before that member hears of its removal.
        if leader.is_none() && removed_say_others(&inner).await {
            inner.ended.send_replace(Some(removal(&inner)));
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(LEADERLESS_LOOK) => {}
            changed = view.changed() => if changed.is_err() { return },
            () = inner.shared.members_changed.notified() => {}
            () = inner.stop.cancelled() => return,
        }
    }
}

fn removal(inner: &Inner) -> String {
    format!(
        "this member ({}) was removed from the cluster; its data directory is of no further use",
        inner.identity.member
    )
}

/// Whether another member of this cluster knows that this one was removed, in the same history or in one that took its
/// place by force.
async fn removed_say_others(inner: &Inner) -> bool {
    let me = inner.identity.member;
    let mut urls: Vec<String> =
        inner.members().into_iter().filter(|m| m.id != me).filter_map(|m| m.peer_urls.into_iter().next()).collect();
    if urls.is_empty() {
        // It was removed before it heard of anybody.
        urls.clone_from(&inner.named);
    }
    let dialer = inner.group.peers().dialer();
    let asked = urls.iter().map(|url| probe(dialer, url, ProbeRequest::default(), LEADERLESS_LOOK));
    futures::future::join_all(asked).await.into_iter().flatten().any(|answer| {
        answer.cluster_id == inner.identity.cluster.0
            && (inner.identity.epoch().agrees_with(Epoch(answer.epoch))
                || answer.replaced_epochs.contains(&inner.identity.epoch().0))
            && answer.removed.contains(&me.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_wanted_for_many_entries_or_for_a_gibibyte_of_them() {
        assert!(!wants_a_snapshot(9_999, 10_000, (1 << 30) - 1));
        assert!(wants_a_snapshot(10_000, 10_000, 0));
        assert!(wants_a_snapshot(700, 10_000, 1 << 30));
    }

    #[test]
    fn a_snapshot_costs_five_times_its_log_at_most_but_for_very_many_entries() {
        assert!(!is_worth_a_snapshot(10_000, 3 << 20, 100 << 20), "the whole store for three megabytes");
        assert!(is_worth_a_snapshot(10_000, 25 << 20, 100 << 20));
        assert!(is_worth_a_snapshot(20, 2_000, 4_000));
        assert!(is_worth_a_snapshot(4_000_000, 400 << 20, 8 << 30));
    }
}
