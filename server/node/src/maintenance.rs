//! Handing leadership over, streaming a snapshot out, and a restore in.

use crate::boot::chain;
use crate::metrics::Inflight;
use crate::node::{Inner, Node, from_group};
use bytes::Bytes;
use ferretcd_raft::Role;
use ferretcd_state::SnapshotKind;
use ferretcd_types::{
    Command, Error, MemberId, Reply, RestoreAbort, RestoreBegin, RestoreChunk, RestoreCommit, RestoreReply,
    RestoreTotals, limits,
};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Pieces of a snapshot that wait for a slow client; with at most a few pages each.
const SNAPSHOT_CHUNKS_WAITING: usize = 64;
/// etcd's piece of a snapshot.
const SNAPSHOT_CHUNK_BYTES: usize = 32 << 10;

/// A restore whose proposer has not been heard for this long is given up, so that writes come back: longer than any
/// single chunk can take with its time-outs, short enough that nobody waits for a person.
const RESTORE_IDLE_MAX: Duration = Duration::from_secs(60);

/// How often one chunk is proposed before the restore is given up. Chunks may be repeated (they carry their sequence),
/// and with the request time-out each this outlasts several elections.
const CHUNK_TRIES: usize = 8;

/// How long a commit may take: it indexes and swaps everything that was staged, minutes for the largest stores.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);

/// Snapshots that may be streamed at once. Each holds a thread and keeps old records from being deleted for as long as
/// its client takes; a backup needs one.
pub(crate) const SNAPSHOTS_MAX: usize = 4;

/// How long a snapshot waits for its client to take the next piece: longer than a disk that is full or a host that is held for a
/// migration. What a stream holds, no compaction deletes, and its place is another backup's.
const CLIENT_PATIENCE: Duration = Duration::from_secs(300);

/// Chunks that are read ahead of the one that is being proposed.
const CHUNKS_AHEAD: usize = 2;
/// What a chunk's entry may have beside a value that `--max-request-bytes` let in: a record says more of a key than the request
/// that wrote it, and the entry has a header.
pub(crate) const CHUNK_OVERHEAD_BYTES: usize = 1 << 10;

/// A snapshot on its way to a client.
#[derive(Debug)]
pub struct SnapshotStream {
    /// Bytes in all, the SHA-256 at the end included.
    pub total_bytes: u64,
    /// The revision of the moment that it holds.
    pub revision: i64,
    /// Pieces in order; an error ends it. At most a few are in flight, so a slow client slows only its own reader.
    pub chunks: mpsc::Receiver<Result<Bytes, Error>>,
}

impl Inner {
    /// Blocks until the store is rewritten.
    fn defragment_here(&self) -> Result<(), Error> {
        let begun = Instant::now();
        let before = self.disk_bytes();
        self.state.defragment().map_err(|e| Error::Internal(chain(&e)))?;
        let after = self.disk_bytes();
        tracing::info!(before_bytes = before, after_bytes = after, took = ?begun.elapsed(), "the store was rewritten");
        Ok(())
    }
}

impl Node {
    /// Hands leadership to a voter and waits until it has it.
    pub async fn move_leader(&self, to: MemberId) -> Result<(), Error> {
        let view = self.inner.view();
        if view.role != Role::Leader {
            return Err(Error::NotLeader);
        }
        if to == self.inner.identity.member {
            return Ok(());
        }
        if !view.voters().any(|(id, _, _)| *id == to) {
            return Err(Error::BadLeaderTransferee);
        }
        tracing::info!(from = %self.inner.identity.member, %to, "handing leadership over");
        self.inner.group.transfer_leader(to).await.map_err(from_group)?;
        let mut view = self.inner.group.view();
        // etcd waits as long as its caller, though its raft gives the transfer up after an election time-out. So does
        // openraft's target, which then votes; whoever leads after a second one is not it.
        let moved = view.wait_for(|v| v.leader == Some(to));
        match tokio::time::timeout(self.inner.timing.election * 2, moved).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::TimeoutLeaderTransfer),
        }
    }

    /// Gives the space back that deleted records left in this member's store. It goes on serving meanwhile.
    pub async fn defragment(&self) -> Result<(), Error> {
        let inner = self.inner.clone();
        // In a task of its own: a caller who goes (etcdctl's patience is 5 s) must not let another one in beside it.
        let rewritten = tokio::spawn(async move {
            let _one = inner.defragmenting.lock().await;
            let _took = inner.metrics.defrag.start_timer();
            let _inflight = Inflight::new(&inner.metrics.defrag_inflight);
            let inner = inner.clone();
            tokio::task::spawn_blocking(move || inner.defragment_here()).await.map_err(Error::internal)?
        });
        rewritten.await.map_err(Error::internal)?
    }

    /// Before this member takes part in anything: defragments if at least so many bytes would come back. What is in the
    /// way of it is not in the way of the member.
    pub(crate) async fn defragment_above(&self, threshold: Option<u64>) {
        let Some(threshold) = threshold else { return };
        let (size, in_use) = (self.inner.disk_bytes(), self.inner.state.logical_bytes());
        if size.saturating_sub(in_use) < threshold {
            tracing::info!(
                "current-db-size-bytes" = size,
                "current-db-size-in-use-bytes" = in_use,
                "bootstrap-defrag-threshold-bytes" = threshold,
                "Skipping defragmentation"
            );
        } else if let Err(e) = self.defragment().await {
            tracing::warn!("cannot defragment the store at the start: {e}");
        }
    }

    /// A consistent snapshot in etcd's file format, while writes go on.
    pub async fn snapshot(&self) -> Result<SnapshotStream, Error> {
        let place = self.inner.snapshots.clone().try_acquire_owned().map_err(|_| Error::TooManyRequests)?;
        let state = self.inner.state.clone();
        let (laid_out_tx, laid_out) = tokio::sync::oneshot::channel();
        let (tx, chunks) = mpsc::channel(SNAPSHOT_CHUNKS_WAITING);
        let runtime = tokio::runtime::Handle::current();
        let took = self.inner.metrics.backend_snapshot.start_timer();
        tokio::task::spawn_blocking(move || {
            let (_place, _took) = (place, took);
            let run = || -> Result<(), Error> {
                let pinned = state.pin();
                let total = pinned.layout(SnapshotKind::Client).map_err(Error::internal)?.file_bytes();
                if laid_out_tx.send((total, pinned.revision())).is_err() {
                    return Ok(());
                }
                let mut out = Pieces { tx: &tx, runtime: &runtime, buf: Vec::with_capacity(SNAPSHOT_CHUNK_BYTES) };
                pinned.write(SnapshotKind::Client, &mut |chunk| out.take(&chunk)).map_err(Error::internal)?;
                out.flush().map_err(Error::internal)
            };
            if let Err(e) = run() {
                tracing::warn!("a snapshot for a client ends early: {e}");
                // One that takes nothing is not waited for again: its stream ends before the bytes that were announced.
                let _ = tx.try_send(Err(e));
            }
        });
        match laid_out.await {
            Ok((total_bytes, revision)) => Ok(SnapshotStream { total_bytes, revision, chunks }),
            Err(_) => {
                let mut chunks = chunks;
                match chunks.recv().await {
                    Some(Err(e)) => Err(e),
                    _ => Err(Error::internal("the snapshot could not be laid out")),
                }
            }
        }
    }

    /// Where a restore spools its file to before anything is proposed; inside the data directory, so that room is
    /// checked on the right disk. One at a time.
    pub fn restore_spool(&self) -> Result<RestoreSpool, Error> {
        let permit = self.inner.restores.clone().try_acquire_owned().map_err(|_| Error::RestoreInProgress)?;
        let dir = &self.inner.config.spool_dir;
        let path = dir.join("restore.spool");
        let file = std::fs::create_dir_all(dir)
            .and_then(|()| File::create(&path))
            .map_err(|e| Error::Internal(format!("cannot spool the snapshot to {}: {e}", path.display())))?;
        Ok(RestoreSpool { inner: self.inner.clone(), file: Some(file), path, written: 0, _permit: permit })
    }
}

/// Cuts a byte stream into pieces of etcd's size.
struct Pieces<'a> {
    tx: &'a mpsc::Sender<Result<Bytes, Error>>,
    runtime: &'a tokio::runtime::Handle,
    buf: Vec<u8>,
}

impl Pieces<'_> {
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = SNAPSHOT_CHUNK_BYTES - self.buf.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buf.extend_from_slice(now);
            bytes = later;
            if self.buf.len() == SNAPSHOT_CHUNK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buf.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buf, Vec::with_capacity(SNAPSHOT_CHUNK_BYTES));
        let send = async { tokio::time::timeout(CLIENT_PATIENCE, self.tx.send(Ok(piece.into()))).await };
        match self.runtime.block_on(send) {
            Ok(sent) => sent.map_err(|_| io::Error::other("the client went away")),
            Err(_) => Err(io::Error::other(format!("its client took nothing for {CLIENT_PATIENCE:?}"))),
        }
    }
}

/// A file on its way in. Dropping it removes the spooled file.
pub struct RestoreSpool {
    inner: Arc<Inner>,
    file: Option<File>,
    path: PathBuf,
    written: u64,
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for RestoreSpool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreSpool").field("path", &self.path).field("written", &self.written).finish_non_exhaustive()
    }
}

impl RestoreSpool {
    /// Announces the file's size, if the client knows it: refused at once when the disk has no room for it.
    pub fn expect_bytes(&mut self, bytes: u64) -> Result<(), Error> {
        // The spooled file, what is staged and the engine's own growth: two copies beside the file itself.
        let free = free_bytes(&self.path)?;
        let needed = bytes.saturating_mul(2).saturating_sub(self.written);
        if free < needed {
            return Err(Error::BadSnapshot(format!(
                "it has {bytes} bytes, a restore needs room for two copies, and {} has {free} bytes left; make room there",
                self.path.parent().unwrap_or(Path::new("")).display()
            )));
        }
        Ok(())
    }

    /// Appends bytes to the spooled file (off the async workers' time, bounded by the disk).
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        self.written += chunk.len() as u64;
        self.expect_bytes(self.written)?;
        let file = self.file.as_mut().ok_or_else(|| Error::internal("the spool is closed"))?;
        ferretcd_raft::blocking(|| file.write_all(&chunk))
            .map_err(|e| Error::Internal(format!("cannot write {}: {e}", self.path.display())))
    }

    /// Validates the whole file, then restores it through the log. Nothing is proposed before the file is known good.
    ///
    /// It goes on when the caller goes away: half a restore would keep writes out until it timed out.
    pub async fn restore(self, revision_bump: u64) -> Result<RestoreReply, Error> {
        tokio::spawn(self.run(revision_bump)).await.map_err(Error::internal)?
    }

    async fn run(mut self, revision_bump: u64) -> Result<RestoreReply, Error> {
        drop(self.file.take());
        let (checked_tx, checked) = tokio::sync::oneshot::channel();
        let (chunks_tx, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let path = self.path.clone();
        // One thread reads the file twice: first all of it to check it, then for its chunks.
        tokio::task::spawn_blocking(move || read_spooled(&path, checked_tx, &chunks_tx));
        let checked = checked.await.map_err(Error::internal)??;
        // The other half is for what its entry has beside its records.
        let most = self.inner.limits.max_request_bytes.saturating_add(CHUNK_OVERHEAD_BYTES / 2);
        if checked.largest_chunk_bytes > most {
            return Err(Error::BadSnapshot(format!(
                "its largest record has {} bytes and --max-request-bytes is {}; raise it on every member",
                checked.largest_chunk_bytes, self.inner.limits.max_request_bytes
            )));
        }
        if let Some(quota) = self.inner.limits.quota_bytes
            && checked.bytes > quota
        {
            return Err(Error::BadSnapshot(format!(
                "it holds {} bytes and the quota is {quota}; raise --quota-backend-bytes on every member",
                checked.bytes
            )));
        }
        let room = i64::MAX as u64 / 2;
        let base = self.inner.state.revision().max(checked.revision).unsigned_abs();
        if base.checked_add(revision_bump).is_none_or(|revision| revision > room) {
            return Err(Error::BadSnapshot(format!(
                "a revision bump of {revision_bump} leaves no room for later writes"
            )));
        }
        let totals = checked.totals;
        let id = rand::random::<u64>();
        tracing::info!(id, keys = totals.keys, leases = totals.leases, "restoring a snapshot");
        if let Err(e) = self.inner.propose(Command::RestoreBegin(RestoreBegin { id })).await {
            // It may still be applied later, and would keep writes out.
            let _ = self.inner.propose(Command::RestoreAbort(RestoreAbort { id })).await;
            return Err(e);
        }
        match self.stage_and_commit(id, totals, chunks, revision_bump).await {
            Ok(reply) => {
                tracing::info!(id, revision = reply.revision, keys = reply.live_keys, "the snapshot is restored");
                Ok(reply)
            }
            Err(e) => {
                tracing::error!(
                    id,
                    "the restore did not end well, what is still staged is dropped: {e}; the revision says whether it was done"
                );
                // If this fails too, the leader's time-out drops it.
                let _ = self.inner.propose(Command::RestoreAbort(RestoreAbort { id })).await;
                Err(e)
            }
        }
    }

    async fn stage_and_commit(
        &self,
        id: u64,
        totals: RestoreTotals,
        mut chunks: mpsc::Receiver<Result<Bytes, Error>>,
        revision_bump: u64,
    ) -> Result<RestoreReply, Error> {
        let mut sequence = 0;
        while let Some(records) = chunks.recv().await {
            let chunk = RestoreChunk { id, sequence, records: records? };
            self.propose_again(Command::RestoreChunk(chunk)).await?;
            sequence += 1;
            if sequence % 64 == 0 {
                tracing::info!(id, chunk = sequence, of = totals.chunks, "restoring");
            }
        }
        // Not repeated: a second commit would find nothing staged and could not tell that the first one did it all.
        let commit = Command::RestoreCommit(RestoreCommit { id, totals, revision_bump });
        match self.inner.propose_within(commit, COMMIT_TIMEOUT).await? {
            Reply::Restored(reply) => Ok(reply),
            other => Err(Error::Internal(format!("a restore was answered with {other:?}"))),
        }
    }

    /// Proposes an entry of a restore until it is answered: its repetition changes nothing.
    async fn propose_again(&self, command: Command) -> Result<Reply, Error> {
        let mut last = Error::Timeout;
        for _ in 0..CHUNK_TRIES {
            match self.inner.propose(command.clone()).await {
                Err(
                    e @ (Error::Timeout
                    | Error::TimeoutNoLeader
                    | Error::TimeoutLeaderFail
                    | Error::TimeoutConnectionLost
                    | Error::TimeoutWaitApplied
                    | Error::TooManyRequests),
                ) => last = e,
                other => return other,
            }
        }
        Err(last)
    }
}

/// What checking a file found.
struct Checked {
    totals: RestoreTotals,
    revision: i64,
    /// Of all records: a file has free pages beside them, most of it where its store was full.
    bytes: u64,
    largest_chunk_bytes: usize,
}

fn read_spooled(
    path: &Path,
    checked: tokio::sync::oneshot::Sender<Result<Checked, Error>>,
    chunks: &mpsc::Sender<Result<Bytes, Error>>,
) {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) => {
            let _ = checked.send(Err(Error::Internal(format!("cannot read {}: {e}", path.display()))));
            return;
        }
    };
    let source = match ferretcd_state::restore_plan(&file, limits::RESTORE_CHUNK_BYTES_MAX) {
        Ok(source) => source,
        Err(e) => {
            let _ = checked.send(Err(e));
            return;
        }
    };
    let found = Checked {
        totals: source.totals().clone(),
        revision: source.revision(),
        bytes: source.bytes(),
        largest_chunk_bytes: source.largest_chunk_bytes(),
    };
    if checked.send(Ok(found)).is_err() {
        return;
    }
    let sent = source.for_each_chunk(|_, chunk| chunks.blocking_send(Ok(chunk)).map_err(|_| Error::Stopped));
    if let Err(e) = sent {
        let _ = chunks.blocking_send(Err(e));
    }
}

impl Drop for RestoreSpool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Bytes that files beside `path` may still take.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(dir)
        .map_err(|e| Error::Internal(format!("cannot ask for the free space of {}: {e}", dir.display())))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Drops a restore whose proposer went away, while this member leads: nothing but its chunks may be written meanwhile.
pub(crate) async fn give_up_idle_restores(inner: Arc<Inner>) {
    let mut seen = None;
    let mut since = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = inner.stop.cancelled() => return,
        }
        let now = inner.state.restore_in_progress().map(|p| (p.id, p.chunks));
        if now != seen || inner.view().role != Role::Leader {
            seen = now;
            since = tokio::time::Instant::now();
            continue;
        }
        if let Some((id, chunks)) = now
            && since.elapsed() > RESTORE_IDLE_MAX
        {
            tracing::warn!(id, chunks, "a restore has not moved for {RESTORE_IDLE_MAX:?}: dropping it");
            if let Err(e) = inner.propose(Command::RestoreAbort(RestoreAbort { id })).await {
                tracing::warn!(id, "cannot drop the restore: {e}; trying again");
            }
            since = tokio::time::Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of its client that hangs, or a host that is held.
    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_its_client_does_not_take_ends() {
        let (tx, mut chunks) = mpsc::channel(1);
        let runtime = tokio::runtime::Handle::current();
        let begun = tokio::time::Instant::now();
        // No thread of the runtime's: while one of those works, a paused clock stands still.
        let (told, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut out = Pieces { tx: &tx, runtime: &runtime, buf: Vec::with_capacity(SNAPSHOT_CHUNK_BYTES) };
            told.send(out.take(&vec![0; SNAPSHOT_CHUNK_BYTES * 3]).unwrap_err().to_string()).unwrap();
        });
        chunks.recv().await.unwrap().unwrap();
        assert_eq!(ended.await.unwrap(), "its client took nothing for 300s");
        assert!(begun.elapsed() >= CLIENT_PATIENCE);
        assert_eq!(chunks.recv().await.map(|piece| piece.unwrap().len()), Some(SNAPSHOT_CHUNK_BYTES));
        assert!(chunks.recv().await.is_none());
    }
}
