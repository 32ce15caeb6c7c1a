//! The handle to an open log: everything the server does with it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Failure, WalError, attempted, invalid};
use crate::fs::{File, Fs};
use crate::memory::{Memory, Slot};
use crate::pool::{Pool, Spare};
use crate::record::{self, Record};
use crate::recover::{self, Log, Segment};
use crate::segment::{self, Header};
use crate::state::{LogPos, LogState, Vote};
use crate::writer::{self, Batch, Op, Work, Writer};

/// Payload bytes and overhead that may wait for the writer. Beyond it callers wait for the disk: a log that is this
/// far behind must slow raft down. As much again may be in the batch that is being written.
const QUEUE_BYTES: usize = 64 << 20;

/// What a queued request costs beyond its payloads, so that the bound above bounds their number too.
const OP_BYTES: usize = 128;

/// A disk read takes in records that lie this close together, with what is between them (votes, committed positions).
const READ_GAP: u64 = 4 << 10;

/// And at most this much, unless one record is larger.
const READ_BYTES: u64 = 1 << 20;
/// How long a committed position waits for a request to be written with. Under load one follows within a millisecond, and a write
/// of its own for each would cost more than it tells: what a restart does not know to be committed it learns from the group.
const COMMITTED_PATIENCE: Duration = Duration::from_millis(100);

/// Told when a request is durable, or why it never will be. Called exactly once ([`Wal::append_covered`] apart): on
/// the writer's thread, in the order of the requests, or at once on the caller's if the request is refused. It must not block.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Rung when something waits for [`Wal::drive`]. It must not block, nor call the log.
pub type Bell = Box<dyn Fn() + Send + Sync>;

/// One raft log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Term of the leader that created it.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// What it carries, opaque to the log. At most the segment size less 168 bytes. It is kept in memory as it is, so
    /// it should not be a small slice of a large buffer.
    pub payload: Bytes,
}

/// Whose log it is. Written into every segment, and checked on opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Id of the cluster.
    pub cluster_id: u64,
    /// Id of the member, never used twice in a cluster.
    pub member_id: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {:x} of cluster {:x}", self.member_id, self.cluster_id)
    }
}

/// How a log is kept.
#[derive(Clone)]
pub struct Options {
    /// Length of a new segment in bytes: a multiple of 4096 up to 1 GiB. A segment holds at least one entry, so this
    /// also bounds an entry. The space of purged entries is given back in segments.
    pub segment_bytes: u64,
    /// Payloads of recent entries kept in memory, in bytes, so that replication need not read the disk.
    pub cache_bytes: usize,
    /// Make what is written durable before its callback. Without it a power cut may take back what was acknowledged
    /// (`--unsafe-no-fsync`); the end of a segment is still made durable, so that the log stays one.
    pub sync: bool,
    /// Told what the writer does.
    pub observer: Arc<dyn Observer>,
}

impl Default for Options {
    /// 64 MiB segments, 32 MiB of payloads (who is further behind than that is served from the disk), real syncs, nobody told.
    fn default() -> Self {
        Options { segment_bytes: 64 << 20, cache_bytes: 32 << 20, sync: true, observer: Arc::new(Unobserved) }
    }
}

/// What the metrics want to know. Called on the writer's thread; must not block.
pub trait Observer: Send + Sync {
    /// An fdatasync took this long.
    fn fsync_duration(&self, duration: Duration);
    /// A write took this long (into the page cache, as a rule).
    fn write_duration(&self, duration: Duration);
    /// This many bytes were written.
    fn written(&self, bytes: u64);
}

struct Unobserved;

impl Observer for Unobserved {
    fn fsync_duration(&self, _: Duration) {}
    fn write_duration(&self, _: Duration) {}
    fn written(&self, _: u64) {}
}

/// What an opened log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The vote in force.
    pub vote: Option<Vote>,
    /// The last committed position that was saved. The saved one may be older than the true one.
    pub committed: Option<LogPos>,
    /// Everything up to and including this is gone.
    pub purged: Option<LogPos>,
    /// The last entry; if none is retained, what was purged last.
    pub last: Option<LogPos>,
    /// Index of the first retained entry; if there is none, the same as `end_index`.
    pub first_index: u64,
    /// Index after the last retained entry.
    pub end_index: u64,
}

/// An open raft log. Clones are handles to the same log, which is closed with [`Wal::close`] or with the last of them.
///
/// What is handed over is visible to readers at once and durable when its callback says so. Calls return without
/// waiting for the disk, save where noted. After the first failed write or sync the log refuses everything: nobody
/// knows then what is on disk, and only a restart, which reads it again, can tell.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    identity: Identity,
    segment_bytes: u64,
    engine: Engine,
}

/// Who writes.
enum Engine {
    /// A thread. The handle is taken by whoever closes the log.
    Thread { id: ThreadId, handle: Mutex<Option<JoinHandle<()>>> },
    /// Whoever calls; or, with a bell, whoever calls [`Wal::drive`] when it has rung. None after the end.
    Inline { writer: Box<Mutex<Option<Writer>>>, bell: Option<Bell> },
}

/// What the writer and the handles share.
pub(crate) struct Shared {
    inside: Mutex<Inside>,
    /// The writer waits here for work.
    wake: Condvar,
    /// Callers wait here for room in the queue.
    room: Condvar,
    /// Callers of [`Wal::wait_durable`] wait here.
    settled: Condvar,
}

/// What is behind the lock. It is held for memory operations only, never over I/O.
pub(crate) struct Inside {
    pub memory: Memory,
    /// Oldest first. Changed by the writer, read by readers of the disk.
    pub segments: VecDeque<Segment>,
    queue: Vec<Op>,
    queued_bytes: usize,
    /// Saved and not yet queued; a newer one replaces it.
    committed: Option<LogPos>,
    tickets: u32,
    failure: Option<Failure>,
    closing: bool,
    /// The writer's thread waits without an end in sight, even for a committed position.
    asleep: bool,
    /// Index after the last entry that is durable, as far as the writer has come.
    durable_end: u64,
}

impl Wal {
    /// Opens the log in `dir`, or begins one if there is none, and starts its threads. Blocks on the disk: it reads the
    /// whole log, and a new one zero-fills its first segment.
    ///
    /// What it returns is durable. Damage, another identity, a newer format or another process are errors.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: Options,
        identity: Identity,
    ) -> Result<(Wal, Recovered), WalError> {
        let (writer, segment_bytes) = start(fs, dir, options, identity)?;
        let (shared, pool) = (writer.shared.clone(), writer.pool.clone());
        let recovered = shared.lock().recovered();
        pool.start().map_err(WalError::io("start the thread that prepares segments for", dir))?;
        let thread = std::thread::Builder::new().name("wal-writer".into()).spawn(move || writer.run());
        let handle = match thread {
            Ok(handle) => handle,
            Err(error) => {
                pool.stop();
                return Err(WalError::io("start the writer thread for", dir)(error));
            }
        };
        let engine = Engine::Thread { id: handle.thread().id(), handle: Mutex::new(Some(handle)) };
        Ok((Wal { inner: Arc::new(Inner { shared, pool, identity, segment_bytes, engine }) }, recovered))
    }

    /// As [`Wal::open`], without threads: each call does its disk work, and calls its callback, before it returns. For
    /// deterministic tests and simulations. A callback may hand over more work; it is done after the callback returns.
    pub fn open_inline(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: Options,
        identity: Identity,
    ) -> Result<(Wal, Recovered), WalError> {
        Wal::open_without_threads(fs, dir, options, identity, None)
    }

    /// As [`Wal::open_inline`], and what is handed over waits until somebody calls [`Wal::drive`], as if the disk took
    /// its time: for simulations.
    pub fn open_driven(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: Options,
        identity: Identity,
        bell: Bell,
    ) -> Result<(Wal, Recovered), WalError> {
        Wal::open_without_threads(fs, dir, options, identity, Some(bell))
    }

    fn open_without_threads(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: Options,
        identity: Identity,
        bell: Option<Bell>,
    ) -> Result<(Wal, Recovered), WalError> {
        let (writer, segment_bytes) = start(fs, dir, options, identity)?;
        let (shared, pool) = (writer.shared.clone(), writer.pool.clone());
        let recovered = shared.lock().recovered();
        let engine = Engine::Inline { writer: Box::new(Mutex::new(Some(writer))), bell };
        Ok((Wal { inner: Arc::new(Inner { shared, pool, identity, segment_bytes, engine }) }, recovered))
    }

    /// Writes and syncs all that waits, and calls its callbacks. For a log without threads; another does so by itself.
    pub fn drive(&self) {
        let Engine::Inline { writer, .. } = &self.inner.engine else { return };
        loop {
            // Held by a caller further up the stack: it will see what was queued.
            let Some(mut guard) = writer.try_lock() else { return };
            let Some(writer) = guard.as_mut() else { return };
            while let Some(batch) = self.inner.shared.take_batch() {
                writer.process(batch);
            }
            drop(guard);
            if self.inner.shared.is_idle() {
                return;
            }
        }
    }

    /// Appends entries; `done` is called when all are durable. They must follow the last entry without a gap, or the
    /// whole call is refused and nothing changes. Waits for the disk while 64 MiB are queued already.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        self.submit_entries(entries, done, false);
    }

    /// As [`Wal::append`], for who learns from a later append that the earlier ones are durable, too: of those that became durable
    /// at once, without anything else between them, only the last one's `done` is called, and the others are dropped. A hundred
    /// callbacks in a row are no news to openraft, but they make it sleep a millisecond before it looks at the last.
    pub fn append_covered(&self, entries: Vec<Entry>, done: Done) {
        self.submit_entries(entries, done, true);
    }

    fn submit_entries(&self, entries: Vec<Entry>, done: Done, covered: bool) {
        let largest = (self.inner.segment_bytes as usize) - segment::HEADER_BYTES;
        let cost = entries.iter().map(|entry| entry.payload.len() + OP_BYTES).sum();
        self.submit_op(cost, done, covered, |inside| {
            if let Some(entry) = entries.iter().find(|entry| record::size_with(entry.payload.len()) > largest) {
                return Err(format!(
                    "the payload of entry {} has {} bytes and does not fit a log segment of {} bytes",
                    entry.index,
                    entry.payload.len(),
                    self.inner.segment_bytes
                ));
            }
            inside.tickets = inside.tickets.wrapping_add(1);
            let ticket = inside.tickets;
            inside.memory.append(&entries, ticket)?;
            Ok(Work::Append { entries, ticket })
        });
    }

    /// Saves a vote; `done` is called when it, and everything handed over before it, is durable.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        self.submit(0, done, |inside| {
            inside.memory.apply(&Record::Vote(vote))?;
            Ok(Work::Vote(vote))
        });
    }

    /// Saves the committed position. It is written with the next request, or within [`COMMITTED_PATIENCE`] if none comes, and
    /// durable with the next request that is, so that a restart may find an older one.
    ///
    /// # Errors
    /// The log has failed or is closed.
    pub fn save_committed(&self, committed: LogPos) -> io::Result<()> {
        {
            let mut inside = self.inner.shared.lock();
            inside.usable()?;
            inside.memory.apply(&Record::Committed(committed)).map_err(invalid)?;
            inside.committed = Some(committed);
            if !inside.asleep && matches!(self.inner.engine, Engine::Thread { .. }) {
                return Ok(());
            }
        }
        self.kick();
        Ok(())
    }

    /// Drops all entries with an index above `after`, or all with None. Refused if that reaches into what is purged.
    pub fn truncate_after(&self, after: Option<u64>, done: Done) {
        self.submit(0, done, |inside| {
            inside.memory.apply(&Record::Truncate { after })?;
            Ok(Work::Truncate { after })
        });
    }

    /// Forgets all entries up to and including `upto`, which may lie beyond the last one: the log then continues behind
    /// it. `done` is called when the purge is durable; whole segments below are recycled or removed then. Nothing
    /// happens if as much is purged already.
    pub fn purge(&self, upto: LogPos, done: Done) {
        self.submit(0, done, |inside| {
            inside.memory.apply(&Record::Purge(upto))?;
            Ok(Work::Purge(upto))
        });
    }

    /// Returns when entry `index`, and all before it, are durable; of an index beyond the last entry (an installed snapshot stands for
    /// it) when all entries are. For a log with a thread: it waits
    /// for that, as long as the disk takes.
    ///
    /// # Errors
    /// The log has failed.
    pub fn wait_durable(&self, index: u64) -> io::Result<()> {
        let mut inside = self.inner.shared.lock();
        while !inside.is_durable(index) {
            inside.not_failed()?;
            self.inner.shared.settled.wait(&mut inside);
        }
        Ok(())
    }

    /// Entries from `from` up to but not including `to`, as many as there are and as `max_bytes` allows (payloads and
    /// 40 bytes each), but always the first. Reads the disk for entries that are no longer in memory, see
    /// [`Wal::in_memory`].
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if `from` is below [`Wal::first_index`] (purged, perhaps just now),
    /// [`io::ErrorKind::InvalidData`] if the disk returned something else than was written, or the log has failed.
    pub fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut cached = Vec::new();
        let mut stored: Vec<Stored> = Vec::new();
        {
            let inside = self.inner.shared.lock();
            inside.usable()?;
            if from < inside.memory.first_index() && from < to {
                return Err(gone(from));
            }
            let mut bytes = 0usize;
            for index in from..to.min(inside.memory.end_index()) {
                let Some(slot) = inside.memory.slot(index) else { break };
                bytes = bytes.saturating_add(slot.length as usize + record::HEADER_BYTES);
                if bytes > max_bytes && index > from {
                    break;
                }
                match inside.memory.cached(index) {
                    Some(payload) => cached.push(Entry { term: slot.term, index, payload: payload.clone() }),
                    None => stored.push(Stored { index, slot, segment: inside.open_segment(slot.segment)? }),
                }
            }
        }
        // The cache holds the last entries, so what is stored comes first.
        let mut entries = Vec::with_capacity(stored.len() + cached.len());
        let mut rest = &stored[..];
        while !rest.is_empty() {
            let (run, after) = rest.split_at(run_length(rest));
            self.read_run(run, &mut entries)?;
            rest = after;
        }
        entries.append(&mut cached);
        Ok(entries)
    }

    /// Whether [`Wal::read`] from this index on needs no disk. Entries are evicted as others arrive, so it may still.
    pub fn in_memory(&self, from: u64) -> bool {
        let inside = self.inner.shared.lock();
        from >= inside.memory.end_index() || inside.memory.cached(from).is_some()
    }

    /// Term of the entry at this index, if it is retained or the last one purged.
    pub fn term_of(&self, index: u64) -> Option<u64> {
        self.inner.shared.lock().memory.term_of(index)
    }

    /// The last vote that was handed over.
    pub fn vote(&self) -> Option<Vote> {
        self.state().vote
    }

    /// The last committed position that was handed over.
    pub fn committed(&self) -> Option<LogPos> {
        self.state().committed
    }

    /// Everything up to and including this is gone.
    pub fn purged(&self) -> Option<LogPos> {
        self.state().purged
    }

    /// The last entry, durable or not; if none is retained, what was purged last.
    pub fn last(&self) -> Option<LogPos> {
        self.inner.shared.lock().memory.last()
    }

    /// Index of the first retained entry; if there is none, the same as [`Wal::end_index`].
    pub fn first_index(&self) -> u64 {
        self.inner.shared.lock().memory.first_index()
    }

    /// Index after the last retained entry, durable or not. In a log that never held any, 0.
    pub fn end_index(&self) -> u64 {
        self.inner.shared.lock().memory.end_index()
    }

    /// Bytes of all files of the log: segments, and files kept ready for the next.
    pub fn disk_bytes(&self) -> u64 {
        let segments: u64 = self.inner.shared.lock().segments.iter().map(|segment| segment.bytes).sum();
        segments + self.inner.pool.disk_bytes()
    }

    /// About how many bytes of records lie behind entry `index`: whole segments between count as full, and what is not written
    /// yet does not count. Segments that are only kept ready do not either, which [`Wal::disk_bytes`] has.
    pub fn bytes_behind(&self, index: u64) -> u64 {
        self.inner.shared.lock().memory.distance(index.saturating_add(1), self.inner.segment_bytes)
    }

    /// Whose log this is.
    pub fn identity(&self) -> Identity {
        self.inner.identity
    }

    /// Why the log could not be written, once that is so. Who asks for it stops: what was written without a request that
    /// is answered (a committed position) tells nobody else.
    pub fn failure(&self) -> Option<io::Error> {
        self.inner.shared.failure().map(|failure| failure.error())
    }

    /// Writes and syncs all that is queued, ends the threads and gives up the lock. Blocks on the disk. Later calls on
    /// any handle are refused; closing twice is fine. Must not be called from a callback: it would wait for itself, so
    /// there it returns at once and the log closes after the batch.
    ///
    /// # Errors
    /// The error with which the log failed, if it did.
    pub fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn state(&self) -> LogState {
        *self.inner.shared.lock().memory.state()
    }

    /// As [`Wal::submit_op`], with an answer of its own.
    fn submit(&self, cost: usize, done: Done, plan: impl FnOnce(&mut Inside) -> Result<Work, String>) {
        self.submit_op(cost, done, false, plan);
    }

    /// Puts a request into the queue, unless `plan` or the log's own state refuses it.
    fn submit_op(
        &self,
        cost: usize,
        done: Done,
        covered: bool,
        plan: impl FnOnce(&mut Inside) -> Result<Work, String>,
    ) {
        let mut inside = self.inner.lock_with_room();
        let planned = inside.usable().and_then(|()| plan(&mut inside).map_err(invalid));
        match planned {
            Ok(work) => {
                inside.queue.push(Op { work, done, covered });
                inside.queued_bytes += cost + OP_BYTES;
                drop(inside);
                self.kick();
            }
            Err(error) => {
                drop(inside);
                done(Err(error));
            }
        }
    }

    fn kick(&self) {
        match &self.inner.engine {
            Engine::Thread { .. } => {
                self.inner.shared.wake.notify_one();
            }
            Engine::Inline { bell: Some(bell), .. } => bell(),
            Engine::Inline { bell: None, .. } => self.drive(),
        }
    }

    /// Reads records that lie together in one segment.
    fn read_run(&self, run: &[Stored], entries: &mut Vec<Entry>) -> io::Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let start = u64::from(first.slot.offset);
        let mut bytes = vec![0; (last.end() - start) as usize];
        let read = first.segment.file.read_at(start, &mut bytes);
        let seed = segment::seed(self.inner.identity, first.slot.segment);
        for Stored { index, slot, segment } in run {
            let at = (u64::from(slot.offset) - start) as usize;
            let found = read.as_ref().ok().and_then(|()| record::decode(&bytes[at..], seed).ok());
            match found.map(|found| found.record) {
                Some(Record::Entry { term, index: found, payload }) if (term, found) == (slot.term, *index) => {
                    entries.push(Entry { term, index: *index, payload: Bytes::copy_from_slice(payload) });
                }
                // Purged, truncated or overwritten since the lock was given up: that is no damage.
                _ if self.inner.shared.lock().memory.slot(*index) != Some(*slot) => return Err(gone(*index)),
                _ => {
                    let problem = match read {
                        Err(error) => error,
                        Ok(()) => io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("at offset {} is not entry {index} as it was written", slot.offset),
                        ),
                    };
                    return Err(attempted("read", &segment.path, &problem));
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal").field("identity", &self.inner.identity).field("state", &self.state()).finish()
    }
}

/// An entry that must be read from the disk.
struct Stored {
    index: u64,
    slot: Slot,
    segment: OpenSegment,
}

#[derive(Clone)]
struct OpenSegment {
    path: PathBuf,
    file: Arc<dyn File>,
}

impl Stored {
    fn end(&self) -> u64 {
        u64::from(self.slot.offset) + record::size_with(self.slot.length as usize) as u64
    }
}

/// How many of these, at least one, are read with one call.
fn run_length(stored: &[Stored]) -> usize {
    let Some(first) = stored.first() else { return 0 };
    let joined = stored.windows(2).take_while(|pair| {
        let [before, next] = pair else { return false };
        next.slot.segment == before.slot.segment
            && u64::from(next.slot.offset) <= before.end() + READ_GAP
            && next.end() - u64::from(first.slot.offset) <= READ_BYTES
    });
    1 + joined.count()
}

fn gone(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("entry {index} is no longer in the log"))
}

impl Inner {
    /// The lock, once the queue has room. The writer's own thread (a callback) and an inline writer do not wait: nobody
    /// else would make room.
    fn lock_with_room(&self) -> MutexGuard<'_, Inside> {
        let mut inside = self.shared.lock();
        while inside.queued_bytes >= QUEUE_BYTES
            && inside.usable().is_ok()
            && matches!(&self.engine, Engine::Thread { id, .. } if *id != std::thread::current().id())
        {
            self.shared.room.wait(&mut inside);
        }
        inside
    }

    fn close(&self) -> io::Result<()> {
        self.shared.lock().closing = true;
        self.shared.wake.notify_all();
        self.shared.room.notify_all();
        match &self.engine {
            Engine::Thread { id, handle } => {
                if *id == std::thread::current().id() {
                    return Ok(());
                }
                // The lock is held over the wait, so that a second closer waits as well.
                if let Some(handle) = handle.lock().take()
                    && handle.join().is_err()
                {
                    return Err(io::Error::other("the log's writer panicked"));
                }
            }
            Engine::Inline { writer, .. } => {
                let taken = writer.try_lock().and_then(|mut writer| writer.take());
                if let Some(mut writer) = taken {
                    while let Some(batch) = self.shared.take_batch() {
                        writer.process(batch);
                    }
                    writer.finish();
                }
            }
        }
        self.shared.failure().map_or(Ok(()), |failure| Err(failure.error()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer has logged the error if there is one.
        let _ = self.close();
    }
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    pub fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// The first failure stays.
    pub fn fail(&self, failure: Failure) {
        self.lock().failure.get_or_insert(failure);
        self.room.notify_all();
        self.settled.notify_all();
    }

    /// The entries before `end` are durable.
    pub fn settle(&self, end: u64) {
        self.lock().durable_end = end;
        self.settled.notify_all();
    }

    /// The next batch, when there is one; None when the log is closed and all is written.
    pub fn wait_for_batch(&self) -> Option<Batch> {
        let mut inside = self.lock();
        let mut until = Instant::now() + COMMITTED_PATIENCE;
        loop {
            let late = inside.closing || Instant::now() >= until;
            if (late || !inside.queue.is_empty())
                && let Some(batch) = inside.take_batch()
            {
                self.room.notify_all();
                return Some(batch);
            }
            if inside.closing {
                return None;
            }
            if late {
                inside.asleep = true;
                self.wake.wait(&mut inside);
                inside.asleep = false;
                until = Instant::now() + COMMITTED_PATIENCE;
            } else {
                self.wake.wait_until(&mut inside, until);
            }
        }
    }

    fn take_batch(&self) -> Option<Batch> {
        self.lock().take_batch()
    }

    fn is_idle(&self) -> bool {
        let inside = self.lock();
        inside.queue.is_empty() && inside.committed.is_none()
    }
}

impl Inside {
    fn usable(&self) -> io::Result<()> {
        self.not_failed()?;
        match self.closing {
            true => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed")),
            false => Ok(()),
        }
    }

    fn not_failed(&self) -> io::Result<()> {
        self.failure.as_ref().map_or(Ok(()), |failure| Err(failure.error()))
    }

    /// Whether entry `index` is; whatever is beyond the last entry stands for that one.
    fn is_durable(&self, index: u64) -> bool {
        self.durable_end >= index.saturating_add(1).min(self.memory.end_index())
    }

    fn take_batch(&mut self) -> Option<Batch> {
        if self.queue.is_empty() && self.committed.is_none() {
            return None;
        }
        self.queued_bytes = 0;
        Some(Batch { ops: std::mem::take(&mut self.queue), committed: self.committed.take() })
    }

    fn open_segment(&self, sequence: u32) -> io::Result<OpenSegment> {
        let first = self.segments.front().map_or(0, |segment| segment.sequence);
        let found = sequence.checked_sub(first).and_then(|at| self.segments.get(at as usize));
        let found = found.ok_or_else(|| io::Error::other(format!("segment {sequence:08x} is not open")))?;
        Ok(OpenSegment { path: found.path.clone(), file: found.file.clone() })
    }

    fn recovered(&self) -> Recovered {
        let LogState { vote, committed, purged, next: _ } = *self.memory.state();
        Recovered {
            vote,
            committed,
            purged,
            last: self.memory.last(),
            first_index: self.memory.first_index(),
            end_index: self.memory.end_index(),
        }
    }
}

/// Everything of opening but the threads: the writer at the end of the recovered or new log, and the segment size.
fn start(fs: Arc<dyn Fs>, dir: &Path, options: Options, identity: Identity) -> Result<(Writer, u64), WalError> {
    let Options { segment_bytes, cache_bytes, sync, observer } = options;
    if !(segment::MIN_BYTES..=segment::MAX_BYTES).contains(&segment_bytes) || segment_bytes % segment::MIN_BYTES != 0 {
        return Err(WalError::BadOption(format!(
            "a segment of {segment_bytes} bytes; it must be a multiple of {} and at most {}",
            segment::MIN_BYTES,
            segment::MAX_BYTES
        )));
    }
    fs.create_dir_all(dir).map_err(WalError::io("create", dir))?;
    if let Some(parent) = dir.parent() {
        fs.sync_dir(parent).map_err(WalError::io("sync", parent))?;
    }
    let lock_path = dir.join("LOCK");
    let lock = fs.lock(&lock_path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => WalError::Locked { path: lock_path.clone() },
        _ => WalError::Io { what: "lock", path: lock_path.clone(), source: error },
    })?;

    let names = fs.list(dir).map_err(WalError::io("list", dir))?;
    let sequences = names.iter().filter_map(|name| segment::sequence_of(name)).collect();
    let found = recover::recover(fs.as_ref(), dir, sequences, identity, cache_bytes)?;
    if let Some(log) = &found {
        recover::repair(fs.as_ref(), dir, log)?;
    }
    let mut spares: Vec<u32> = names.iter().filter_map(|name| segment::spare_number_of(name)).collect();
    spares.sort_unstable();
    let pool = Pool::new(fs.clone(), dir.to_owned(), segment_bytes, &spares)
        .map_err(WalError::io("look at the spare segments in", dir))?;
    let Log { memory, segments, end, .. } = match found {
        Some(log) => log,
        None => {
            begin_log(fs.as_ref(), dir, &pool, identity, cache_bytes).map_err(WalError::io("begin a log in", dir))?
        }
    };
    let state = *memory.state();
    let Some(Segment { sequence, path, file, bytes, .. }) = segments.back() else {
        return Err(WalError::Io {
            what: "find a segment in",
            path: dir.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        });
    };
    let (sequence, file) = (*sequence, Spare { path: path.clone(), file: file.clone(), bytes: *bytes });
    let inside = Inside {
        // What was found was made durable as it was repaired.
        durable_end: memory.end_index(),
        memory,
        segments,
        queue: Vec::new(),
        queued_bytes: 0,
        committed: None,
        tickets: 0,
        failure: None,
        closing: false,
        asleep: false,
    };
    let shared = Arc::new(Shared {
        inside: Mutex::new(inside),
        wake: Condvar::new(),
        room: Condvar::new(),
        settled: Condvar::new(),
    });
    let mut writer = Writer {
        fs,
        dir: dir.to_owned(),
        identity,
        pool: Arc::new(pool),
        syncs: sync,
        observer,
        shared,
        file,
        sequence,
        end: recover::End { synced: end.offset, ..end },
        state,
        buffer: Vec::new(),
        located: Vec::new(),
        _lock: lock,
    };
    // A purge may have become durable when the removal of its segments did not.
    writer.retire_purged();
    Ok((writer, segment_bytes))
}

fn begin_log(fs: &dyn Fs, dir: &Path, pool: &Pool, identity: Identity, cache_bytes: usize) -> io::Result<Log> {
    let state = LogState::default();
    let header = Header { identity, sequence: 1, previous_end: 0, previous_crc: 0, blank: true, state };
    let segment = writer::begin_segment(fs, dir, pool.take()?, &header)?;
    Ok(Log {
        memory: Memory::new(state, cache_bytes),
        segments: VecDeque::from([segment]),
        leftovers: Vec::new(),
        end: writer::start_of(identity, 1),
        tail: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::mem::{Call, MemFs};

    /// A log whose disk does nothing before it is driven.
    fn slow() -> (MemFs, Wal) {
        let fs = MemFs::new();
        let identity = Identity { cluster_id: 1, member_id: 1 };
        let options = Options { segment_bytes: segment::MIN_BYTES, ..Options::default() };
        let opened = Wal::open_driven(Arc::new(fs.clone()), Path::new("/wal"), options, identity, Box::new(|| ()));
        (fs, opened.unwrap().0)
    }

    fn append(wal: &Wal, indexes: std::ops::Range<u64>) {
        let entry = |index| Entry { term: 1, index, payload: b"x"[..].into() };
        wal.append(indexes.map(entry).collect(), Box::new(|_| ()));
    }

    #[test]
    fn an_entry_is_durable_once_the_disk_has_it_and_what_lies_beyond_the_last_once_it_has_all() {
        let (_, wal) = slow();
        let durable = |index| wal.inner.shared.lock().is_durable(index);
        assert!(durable(0) && durable(7), "there is nothing to wait for");
        append(&wal, 0..3);
        assert!(!durable(0) && !durable(2) && !durable(7));
        wal.drive();
        append(&wal, 3..5);
        assert!(durable(2) && !durable(3) && !durable(7));
        wal.drive();
        wal.wait_durable(4).unwrap();
        wal.wait_durable(7).unwrap();
        // Another leader's entries in the place of these: the old ones do not count for them.
        wal.truncate_after(Some(2), Box::new(|_| ()));
        wal.drive();
        append(&wal, 3..4);
        assert!(durable(2) && !durable(3));
        wal.drive();
        assert!(durable(3));
        wal.purge(LogPos { term: 1, index: 9 }, Box::new(|_| ()));
        wal.drive();
        append(&wal, 10..11);
        assert!(durable(9) && !durable(10));
        wal.close().unwrap();
        wal.wait_durable(10).unwrap();
    }

    #[test]
    fn who_waits_for_a_log_that_fails_is_told() {
        let (fs, wal) = slow();
        append(&wal, 0..1);
        wal.drive();
        append(&wal, 1..2);
        fs.fail(Call::Sync, 0, io::ErrorKind::StorageFull);
        let waiting = std::thread::spawn({
            let wal = wal.clone();
            move || wal.wait_durable(1)
        });
        wal.drive();
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), io::ErrorKind::StorageFull);
        wal.wait_durable(0).unwrap();
    }
}
