//! openraft's log storage over our write-ahead log.

use crate::entry;
use crate::types::{Entry, LogId, TypeConfig, Vote, log_id, log_pos, vote_from, vote_to_wal};
use ferretcd_types::LogPos;
use ferretcd_wal::{self as wal, Wal};
use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use tokio::sync::oneshot;

/// Most bytes of entries in one request to a follower: small enough that a heartbeat behind it is not late on a slow
/// link, large enough that its overhead does not show (etcd's maxSizePerMsg is the same megabyte).
const REPLICATION_BYTES_MAX: usize = 1 << 20;

/// Most bytes of entries that applying holds at once: after a restart it has a whole log before it.
const APPLY_BYTES_MAX: usize = 4 << 20;

#[derive(Clone)]
pub(crate) struct Log {
    wal: Wal,
}

impl Log {
    pub(crate) fn new(wal: Wal) -> Self {
        Log { wal }
    }

    fn entries(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if from >= to {
            return Ok(Vec::new());
        }
        // Recent entries come from memory; only a follower that is far behind makes this wait for the disk.
        let entries = match self.wal.in_memory(from) {
            true => self.wal.read(from, to, max_bytes)?,
            false => crate::machine::blocking(|| self.wal.read(from, to, max_bytes))?,
        };
        entries
            .into_iter()
            .map(|e| entry::decode(LogPos { term: e.term, index: e.index }, e.payload).map_err(io::Error::other))
            .collect()
    }
}

fn to_pos(id: &LogId) -> wal::LogPos {
    let pos = log_pos(id);
    wal::LogPos { term: pos.term, index: pos.index }
}

fn from_pos(pos: wal::LogPos) -> LogId {
    log_id(LogPos { term: pos.term, index: pos.index })
}

/// Waits for the writer thread's answer.
async fn done(submit: impl FnOnce(Box<dyn FnOnce(io::Result<()>) + Send>)) -> io::Result<()> {
    let (tx, rx) = oneshot::channel();
    submit(Box::new(move |result| {
        let _ = tx.send(result);
    }));
    rx.await.map_err(|_| io::Error::other("the log's writer has stopped"))?
}

/// A range's first index, and the one after its last.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(i) => *i,
        Bound::Excluded(i) => i + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(i) => i + 1,
        Bound::Excluded(i) => *i,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = bounds(&range);
        // What was purged in between is not an error here: openraft asks for what it may still need. Its ranges are
        // short (64 entries when it starts, single ones otherwise), and it must get all of what it asks for.
        self.entries(from.max(self.wal.first_index()), to, usize::MAX)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let pages = futures::stream::try_unfold((self.clone(), from), move |(log, from)| async move {
            let page = log.entries(from, to, APPLY_BYTES_MAX)?;
            let next = page.last().map(|e| e.log_id().index() + 1);
            Ok::<_, io::Error>(next.map(|next| (futures::stream::iter(page.into_iter().map(Ok)), (log, next))))
        });
        Box::pin(pages.try_flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.wal.vote().map(|v| vote_from(v.term, v.node, v.committed)))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        // openraft 0.10.0-alpha.37 may send once more what a follower has acknowledged (`select_next_payload` of
        // replication/mod.rs takes it for new work when a heartbeat in between was not answered), and by then the log may be
        // purged of it. An error would stop this member (seed 14453). Nothing makes a heartbeat of the request, by which
        // `stream_append` knows that it is to end the stream.
        if start < self.wal.first_index() {
            return Ok(Vec::new());
        }
        match self.entries(start, end, REPLICATION_BYTES_MAX) {
            // Purged just now.
            Err(e) if e.kind() == io::ErrorKind::NotFound && start < self.wal.first_index() => Ok(Vec::new()),
            read => read,
        }
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_purged_log_id = self.wal.purged().map(from_pos);
        let last_log_id = self.wal.last().map(from_pos).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = vote_to_wal(vote);
        done(|reply| self.wal.save_vote(vote, reply)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.wal.save_committed(to_pos(&id))?;
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.wal.committed().map(from_pos))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = <TypeConfig as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(|e| {
                let pos = log_pos(&e.log_id());
                wal::Entry { term: pos.term, index: pos.index, payload: entry::encode(&e) }
            })
            .collect();
        self.wal.append_covered(entries, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let after = last.map(|id| id.index());
        done(|reply| self.wal.truncate_after(after, reply)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let upto = to_pos(&upto);
        done(|reply| self.wal.purge(upto, reply)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_wal::fs::mem::MemFs;
    use futures::FutureExt;
    use std::path::Path;
    use std::pin::pin;
    use std::sync::Arc;

    /// A log whose disk does nothing before it is driven.
    fn slow() -> (MemFs, Wal, Log) {
        let fs = MemFs::new();
        let identity = wal::Identity { cluster_id: 1, member_id: 1 };
        let options = wal::Options { segment_bytes: 4096, ..wal::Options::default() };
        let (wal, _) =
            Wal::open_driven(Arc::new(fs.clone()), Path::new("/wal"), options, identity, Box::new(|| ())).unwrap();
        (fs, wal.clone(), Log::new(wal))
    }

    #[test]
    fn a_vote_a_truncation_and_a_purge_are_answered_when_they_are_durable() {
        let (_, wal, mut log) = slow();
        let entry = |index| wal::Entry { term: 1, index, payload: b"x"[..].into() };
        wal.append((0..5).map(entry).collect(), Box::new(|done| done.unwrap()));
        wal.drive();
        let id = |index| log_id(LogPos { term: 1, index });
        let vote = vote_from(3, 1, false);
        let (mut one, mut other) = (log.clone(), log.clone());
        let mut saved = pin!(log.save_vote(&vote));
        let mut cut = pin!(one.truncate_after(Some(id(3))));
        let mut purged = pin!(other.purge(id(1)));
        assert!(saved.as_mut().now_or_never().is_none(), "a vote that a power loss takes back may be given twice");
        assert!(cut.as_mut().now_or_never().is_none());
        assert!(purged.as_mut().now_or_never().is_none());
        wal.drive();
        saved.now_or_never().unwrap().unwrap();
        cut.now_or_never().unwrap().unwrap();
        purged.now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_request_to_a_follower_holds_a_megabyte_or_one_entry() {
        let identity = wal::Identity { cluster_id: 1, member_id: 1 };
        let options = wal::Options { segment_bytes: 16 << 20, ..wal::Options::default() };
        let (wal, _) = Wal::open_inline(Arc::new(MemFs::new()), Path::new("/wal"), options, identity).unwrap();
        let sizes = [400_000, 400_000, 400_000, 3 << 20, 1, 1];
        let entry = |(index, bytes)| wal::Entry { term: 1, index, payload: entry::normal(&vec![b'x'; bytes]) };
        wal.append((0..).zip(sizes).map(entry).collect(), Box::new(|done| done.unwrap()));
        let mut log = Log::new(wal);
        for (first, expected) in [(0, 2), (1, 2), (2, 1), (3, 1), (4, 2)] {
            // As openraft reads what it sends; with as many entries as it may ask for.
            assert_eq!(log.limited_get_log_entries(first, 6).await.unwrap().len(), expected, "from {first}");
        }
    }

    #[tokio::test]
    async fn what_the_log_is_purged_of_is_sent_as_nothing() {
        let identity = wal::Identity { cluster_id: 1, member_id: 1 };
        let (wal, _) =
            Wal::open_inline(Arc::new(MemFs::new()), Path::new("/wal"), wal::Options::default(), identity).unwrap();
        let entry = |index| wal::Entry { term: 1, index, payload: entry::normal(b"x") };
        wal.append((0..5).map(entry).collect(), Box::new(|done| done.unwrap()));
        let mut log = Log::new(wal);
        log.purge(log_id(LogPos { term: 1, index: 2 })).await.unwrap();
        assert_eq!(log.limited_get_log_entries(1, 5).await.unwrap(), []);
        assert_eq!(log.limited_get_log_entries(3, 5).await.unwrap().len(), 2);
    }
}
