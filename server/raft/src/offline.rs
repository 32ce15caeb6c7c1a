//! What is done to a member's log and state while no raft runs on them: replaying, looking, and making a state the
//! beginning of a log.

use crate::entry;
use crate::machine::{Effects, Machine, write_snapshot};
use crate::snapshot::SnapshotDir;
use crate::types::{Membership, StoredMembership, log_id};
use bytes::Bytes;
use ferretcd_state::{Effect, State};
use ferretcd_types::{Command, Error, LogPos, MemberId, PeerNode, Reply, RequestId, codec};
use ferretcd_wal::{self as wal, Wal};
use openraft::EntryPayload;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, mpsc};

/// Bytes of entries that a replay holds at once.
const REPLAY_BYTES_MAX: usize = 4 << 20;

/// Nobody listens: there are no clients, yet or ever.
pub(crate) struct Silent;

impl Effects for Silent {
    fn publish(&self, _: Vec<Effect>) {}
    fn reply(&self, _: RequestId, _: Result<Reply, Error>) {}
    fn installed(&self, _: Vec<Effect>) {}
    fn applied(&self, _: LogPos) {}
}

/// A membership of voters only, in the bytes that the state machine and snapshots keep, as set by the entry at `pos`.
pub fn membership(pos: LogPos, voters: BTreeMap<MemberId, PeerNode>) -> Result<Bytes, String> {
    let ids: BTreeSet<u64> = voters.keys().map(|id| id.0).collect();
    let nodes: BTreeMap<u64, PeerNode> = voters.into_iter().map(|(id, node)| (id.0, node)).collect();
    let membership = Membership::new(vec![ids], nodes).map_err(|e| e.to_string())?;
    Ok(entry::encode_stored(&StoredMembership::new(Some(log_id(pos)), membership)))
}

/// Applies every entry of the log that the state has not, committed or not: who calls this has decided that this log is
/// the history.
pub fn replay(wal: &Wal, state: &Arc<State>, snapshots: &SnapshotDir) -> io::Result<()> {
    let machine = Machine::new(state.clone(), Arc::new(Silent), snapshots.clone());
    let mut next = state.applied().map_or(0, |pos| pos.index + 1).max(wal.first_index());
    loop {
        let page = wal.read(next, wal.end_index(), REPLAY_BYTES_MAX)?;
        let Some(last) = page.last() else { return Ok(()) };
        next = last.index + 1;
        for found in page {
            let pos = LogPos { term: found.term, index: found.index };
            machine.apply_one(entry::decode(pos, found.payload).map_err(io::Error::other)?)?;
        }
    }
}

/// Makes the state, as it is applied, the beginning of the log: writes its snapshot file, and drops all entries up to
/// there. A crash on the way leaves what was there before, or all of this but the end of the log's purge, which a start
/// does itself.
pub fn begin_log(wal: &Wal, state: &State, snapshots: &SnapshotDir, member: MemberId) -> io::Result<()> {
    let pinned = state.pin();
    let pos = pinned.applied().ok_or_else(|| io::Error::other("the state stands for no log position"))?;
    let (part, _) = write_snapshot(state, pinned, snapshots)?;
    snapshots.finish(&part, pos)?;
    let at = wal::LogPos { term: pos.term, index: pos.index };
    // An entry's term is one that this member has voted in; the next election is in a later one.
    let vote = wal::Vote { term: pos.term, node: member.0, committed: false };
    done(|reply| wal.save_vote(vote, reply))?;
    wal.save_committed(at)?;
    done(|reply| wal.purge(at, reply))
}

/// Makes the log one that goes on from a snapshot of what was committed up to `at`, which may come from another member. Entries
/// that a leader never committed go, as when it sends a snapshot; all others stay, and so does the vote, but for one that is
/// older than the snapshot: then this member gives none in that term any more.
pub fn join_up(wal: &Wal, at: LogPos, member: MemberId) -> io::Result<()> {
    if wal.term_of(at.index).is_some_and(|term| term != at.term) {
        done(|reply| wal.truncate_after(at.index.checked_sub(1), reply))?;
    }
    if wal.vote().is_none_or(|vote| vote.term < at.term) {
        let vote = wal::Vote { term: at.term, node: member.0, committed: false };
        done(|reply| wal.save_vote(vote, reply))?;
    }
    // openraft closes the hole only if the last entry's term is not above the snapshot's, which an entry that was never
    // committed may be.
    if at.index >= wal.end_index() {
        done(|reply| wal.purge(wal::LogPos { term: at.term, index: at.index }, reply))?;
    }
    Ok(())
}

fn done(submit: impl FnOnce(wal::Done)) -> io::Result<()> {
    let (tx, rx) = mpsc::channel();
    submit(Box::new(move |result| {
        let _ = tx.send(result);
    }));
    rx.recv().map_err(|_| io::Error::other("the log's writer has stopped"))?
}

/// An entry of the log in words: what it does, and to whom.
pub fn describe(pos: LogPos, payload: &[u8], name: impl FnOnce(&Command) -> &'static str) -> String {
    match entry::decode(pos, Bytes::copy_from_slice(payload)).map(|entry| entry.payload) {
        Ok(EntryPayload::Blank) => "blank".to_owned(),
        Ok(EntryPayload::Normal(data)) => match codec::decode_proposal(entry::proposal(&data)) {
            Ok(proposal) => name(&proposal.command).to_owned(),
            Err(e) => format!("cannot be read: {e}"),
        },
        Ok(EntryPayload::Membership(membership)) => {
            let members = entry::members(&membership);
            let each = members.iter().map(|(id, node, is_learner)| {
                format!("{id}{}={}", if *is_learner { " (learner)" } else { "" }, node.peer_urls.join(","))
            });
            format!("members {}", each.collect::<Vec<_>>().join(" "))
        }
        Err(e) => format!("cannot be read: {e}"),
    }
}

/// The members of a membership as [`membership`] encodes it: ID, node, and whether it is a learner.
pub fn members(blob: Bytes) -> Result<Vec<(MemberId, PeerNode, bool)>, String> {
    let stored = entry::decode_stored(blob).map_err(|e| e.to_string())?;
    Ok(entry::members(stored.membership()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_storage::{MemoryEngine, Store};
    use ferretcd_wal::{Entry, Identity, Options, OsFs};

    #[test]
    fn what_may_have_been_acknowledged_counts_though_its_commitment_was_never_heard_of() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity { cluster_id: 1, member_id: 1 };
        let options = || Options { segment_bytes: 64 << 10, ..Options::default() };
        let open = || Wal::open(Arc::new(OsFs), &dir.path().join("wal"), options(), identity).unwrap().0;
        let wal = open();
        let entries = (0..5).map(|index| Entry { term: 1, index, payload: Bytes::from_static(&[0]) }).collect();
        done(|reply| wal.append(entries, reply)).unwrap();
        wal.save_committed(wal::LogPos { term: 1, index: 2 }).unwrap();
        let store = Store::open(Arc::new(MemoryEngine::new()), ferretcd_storage::Options::default()).unwrap();
        let state = Arc::new(State::open(store, MemberId(1)).unwrap());
        let snapshots = SnapshotDir::open(&dir.path().join("snap")).unwrap();
        replay(&wal, &state, &snapshots).unwrap();
        assert_eq!(state.applied(), Some(LogPos { term: 1, index: 4 }));
        begin_log(&wal, &state, &snapshots, MemberId(1)).unwrap();
        assert_eq!(snapshots.newest().unwrap().unwrap().0, LogPos { term: 1, index: 4 });
        wal.close().unwrap();
        assert_eq!(open().first_index(), 5, "the snapshot file is what the log continues from");
    }

    #[test]
    fn a_log_joins_up_with_another_members_snapshot_and_loses_only_what_was_never_committed() {
        let identity = Identity { cluster_id: 1, member_id: 1 };
        let vote = |term, node, committed| wal::Vote { term, node, committed };
        // The term of entries 3 and 4, the snapshot's last entry: which entries are left, and the vote.
        for (tail, at, left, voted) in [
            (2, LogPos { term: 2, index: 3 }, 0..5, vote(3, 3, true)),
            (2, LogPos { term: 1, index: 9 }, 10..10, vote(3, 3, true)),
            (1, LogPos { term: 2, index: 3 }, 4..4, vote(3, 3, true)),
            (1, LogPos { term: 4, index: 9 }, 10..10, vote(4, 1, false)),
            (3, LogPos { term: 2, index: 3 }, 4..4, vote(3, 3, true)),
            (3, LogPos { term: 2, index: 4 }, 5..5, vote(3, 3, true)),
            (3, LogPos { term: 1, index: 2 }, 0..5, vote(3, 3, true)),
        ] {
            let fs = Arc::new(ferretcd_wal::fs::mem::MemFs::new());
            let dir = std::path::Path::new("/wal");
            let (wal, _) =
                Wal::open_inline(fs, dir, Options { segment_bytes: 4096, ..Options::default() }, identity).unwrap();
            let term = |index| if index < 3 { 1 } else { tail };
            let entries =
                (0..5).map(|index| Entry { term: term(index), index, payload: Bytes::from_static(&[0]) }).collect();
            done(|reply| wal.append(entries, reply)).unwrap();
            done(|reply| wal.save_vote(vote(3, 3, true), reply)).unwrap();
            join_up(&wal, at, MemberId(1)).unwrap();
            assert_eq!((wal.first_index()..wal.end_index(), wal.vote().unwrap()), (left, voted), "{at:?}");
        }
    }
}
