//! The write-behind: writes are readable at once, reach the engine within milliseconds, and the disk within a
//! second. What a crash takes back is in the write-ahead log, from the position that the last flush covered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::engine::{Batch, Engine, Limit, Page, Record};
use crate::error::{Error, Result};

mod copy;
mod view;
use copy::Copy;
use view::{Found, View};

/// An engine with a queue of writes in front and one thread that drains it.
///
/// All calls may block (on the disk, or on a full queue), so async callers use a blocking thread. Dropping the store
/// without [`Store::close`] abandons what is still queued, as a crash would.
pub struct Store {
    shared: Arc<Shared>,
    rewriting: Mutex<()>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// How a [`Store`] trades memory for speed. The defaults are for a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Writers wait while the queue holds more than this many bytes. 64 MiB is seconds of work for the engine.
    pub max_pending_bytes: usize,
    /// How long a write may wait for company before it is committed. Longer makes fuller commits and longer barriers.
    pub commit_interval: Duration,
    /// How often commits are made durable. Bounds how much log a restart replays: a second's, which takes less than that. More
    /// often would take the disk away from the log's syncs, for which clients wait.
    pub flush_interval: Duration,
    /// About how many writes one commit has; readers stand still for about 8 us per write. A single larger batch is
    /// committed as it is.
    pub max_ops_per_commit: usize,
    /// How many bytes of recently committed revisions stay readable without the engine. 0: none.
    pub cache_bytes: usize,
    /// Whether a rewrite leaves room on its volume for what else is written there: not where nothing is.
    pub leaves_room: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_pending_bytes: 64 << 20,
            commit_interval: Duration::from_millis(10),
            flush_interval: Duration::from_secs(1),
            max_ops_per_commit: 200,
            cache_bytes: 128 << 20,
            leaves_room: true,
        }
    }
}

/// A commit is also cut at this size, since large values are many writes inside the engine (1 MiB: 256 of them).
const MAX_BYTES_PER_COMMIT: usize = 1 << 20;

/// How long readers of a replaced engine are waited for before its files are deleted under them, which a scan of
/// millions of records would survive: open files outlive their names.
const READERS_PATIENCE: Duration = Duration::from_secs(5);

/// Who wants to know how the engine does, e.g. a metric.
pub trait Observer: Send + Sync {
    /// A commit of merged batches took this long.
    fn commit_duration(&self, took: Duration);
}

/// Waits until the write-ahead log has made this position durable, or tells why it never will.
pub type WaitForLog = Arc<dyn Fn(u64) -> std::io::Result<()> + Send + Sync>;

impl Store {
    /// Starts the write-behind of an engine that nobody else writes to.
    pub fn open(engine: Arc<dyn Engine>, options: Options) -> Result<Store> {
        Store::start(engine, options, None, None)
    }

    /// Without a thread: each write is committed before [`Store::write`] returns, and made durable only by
    /// [`Store::flush`]. For simulations, which have one thread.
    pub fn open_inline(engine: Arc<dyn Engine>, options: Options) -> Store {
        let shared = Arc::new(Shared::new(engine, options, None, None, true));
        Store { shared, rewriting: Mutex::default(), writer: Mutex::default() }
    }

    /// As [`Store::open`], tells `observer` about every commit, and commits nothing whose position `log` has not waited for: what an
    /// engine writes may survive a power cut that takes it from the log, and such an engine would have to be built anew.
    pub fn open_behind(
        engine: Arc<dyn Engine>,
        options: Options,
        observer: Arc<dyn Observer>,
        log: Option<WaitForLog>,
    ) -> Result<Store> {
        Store::start(engine, options, Some(observer), log)
    }

    /// Queues `batch` and makes it readable. Batches are committed whole, in the order of these calls. Waits while the
    /// queue is full; a batch larger than the whole queue is taken when the queue is empty.
    ///
    /// `position` is the raft index that the store covers once this batch is durable; the caller records it in the
    /// batch too. Positions do not decrease (a lower one counts as the highest so far).
    pub fn write(&self, batch: Batch, position: u64) -> Result<()> {
        batch.check()?;
        let bytes = batch.bytes();
        let mut queue = self.shared.queue.lock();
        queue.usable()?;
        while queue.bytes > 0 && queue.bytes + bytes > self.shared.options.max_pending_bytes {
            queue.writers_waiting += 1;
            self.shared.work.notify_one();
            self.shared.progress.wait(&mut queue);
            queue.writers_waiting -= 1;
            queue.usable()?;
        }
        queue.written += 1;
        queue.written_position = queue.written_position.max(position);
        // Under the queue's lock, so that readers meet batches in the order of the queue.
        self.shared.view.write().add(&batch, queue.written);
        queue.bytes += bytes;
        queue.ops += batch.len();
        let entry = Entry { batch, sequence: queue.written, position: queue.written_position, since: Instant::now() };
        queue.entries.push_back(entry);
        // The first write starts the writer's clock, a full commit need not wait for it; the rest need not wake it.
        if queue.entries.len() == 1 || queue.is_full_commit(&self.shared.options) {
            self.shared.work.notify_one();
        }
        drop(queue);
        if self.shared.inline { self.shared.commit_all() } else { Ok(()) }
    }

    /// The value last written for `key`: from the queue, else from the cache, else from the engine.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        // In a line of its own, which gives the lock back: a read of the disk must not keep writers waiting.
        let found = self.shared.view.read().get(key);
        match found {
            Found::Value(value) => Ok(Some(value)),
            Found::Deleted => Ok(None),
            // A write leaves the queue only after its commit, so the engine has whatever was not found here.
            Found::AskEngine => self.shared.engine().get(key),
        }
    }

    /// Records with `start <= key < end` in key order, with every write made before the call; paged as [`Engine::page`].
    /// A write made during the call may be seen or not, each record on its own.
    pub fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        if Page::default().is_full(limit) || end.is_some_and(|end| start >= end) {
            return Ok(Page::default());
        }
        // The queue first: what is committed and leaves it after this line is in the engine by then.
        let queued = self.shared.view.read().scan(start, end, limit);
        let engine = self.shared.engine();
        view::merge(queued, start, end, limit, |from, to, limit| engine.page(from, to, limit))
    }

    /// At most `limit` records, as [`Engine::scan`].
    pub fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<Record>> {
        self.page(start, end, Limit { records: limit, bytes: usize::MAX }).map(|page| page.records)
    }

    /// Returns when every write made before the call is committed to the engine (not yet durable).
    pub fn barrier(&self) -> Result<()> {
        let mut queue = self.shared.queue.lock();
        let target = queue.written;
        queue.commit_wanted = queue.commit_wanted.max(target);
        self.shared.work.notify_one();
        while queue.committed < target {
            queue.not_failed()?;
            self.shared.progress.wait(&mut queue);
        }
        queue.not_failed()
    }

    /// Returns when every write made before the call is durable: the highest position that is.
    pub fn flush(&self) -> Result<u64> {
        let queue = self.shared.queue.lock();
        let target = queue.written;
        self.flush_to(queue, target)
    }

    /// Why nothing more is taken, once that is so: for who has nothing to write, and would not hear of it.
    pub fn failure(&self) -> Option<Error> {
        self.shared.queue.lock().not_failed().err()
    }

    /// The highest position that is durable; 0 until the first flush of this process.
    pub fn flushed_position(&self) -> u64 {
        self.shared.queue.lock().flushed_position
    }

    /// Bytes in the queue, the running commit included.
    pub fn pending_bytes(&self) -> usize {
        self.shared.queue.lock().bytes
    }

    /// Bytes that the engine's files occupy.
    pub fn size_on_disk(&self) -> Result<u64> {
        self.shared.engine().size_on_disk()
    }

    /// Copies the engine's records into fresh files, and goes on with those: gives space back that deleted records still take.
    /// Reads and writes go on meanwhile: the copy is made in pieces of some megabytes between two commits, and however much is
    /// written, it advances by twice as much, so it ends. A writer that finds the queue full waits for a piece and a commit, or
    /// for the end, which syncs less than 24 MiB (with values of 1.5 MiB at most). False when there was nothing to do. An error
    /// leaves everything as it was.
    pub fn rewrite(&self) -> Result<bool> {
        if self.shared.inline {
            return Ok(false);
        }
        // One at a time; a second caller gets a rewrite of its own.
        let _one = self.rewriting.lock();
        // Deletions that wait in the queue are what the space is to be had from.
        self.barrier()?;
        let mut queue = self.shared.queue.lock();
        queue.usable()?;
        queue.rewrite = Rewrite::Wanted;
        self.shared.work.notify_one();
        loop {
            if let Rewrite::Done(ended) = std::mem::take(&mut queue.rewrite) {
                drop(queue);
                // Here and not on the writer thread: to delete large files takes its time.
                return match ended {
                    Ok(replaced) => Ok(replaced.map(Replaced::settle).is_some()),
                    Err(Failed { error, copy }) => {
                        if let Some(copy) = copy {
                            copy.discard();
                        }
                        Err(error)
                    }
                };
            }
            queue.usable_for_flush()?;
            queue.rewrite = Rewrite::Wanted;
            self.shared.progress.wait(&mut queue);
        }
    }

    /// Refuses further writes, makes all earlier ones durable, and ends the writer thread. Reads keep working. A second
    /// call does nothing.
    pub fn close(&self) -> Result<()> {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        // Writers that wait for room learn of it now.
        self.shared.progress.notify_all();
        if queue.stopping {
            return queue.not_failed();
        }
        let target = queue.written;
        let flushed = self.flush_to(queue, target).map(drop);
        self.stop();
        flushed
    }

    fn start(
        engine: Arc<dyn Engine>,
        options: Options,
        observer: Option<Arc<dyn Observer>>,
        log: Option<WaitForLog>,
    ) -> Result<Store> {
        let shared = Arc::new(Shared::new(engine, options, observer, log, false));
        let writers = shared.clone();
        let writer = thread::Builder::new().name("store-writer".to_owned()).spawn(move || writers.run());
        let writer = writer.map_err(|source| Error::Io {
            attempt: "start the thread that writes the store".to_owned(),
            source: Arc::new(source),
        })?;
        Ok(Store { shared, rewriting: Mutex::default(), writer: Mutex::new(Some(writer)) })
    }

    fn flush_to(&self, mut queue: MutexGuard<'_, Queue>, target: u64) -> Result<u64> {
        if self.shared.inline {
            // As with a thread: a second sync may succeed without what the first one lost.
            queue.not_failed()?;
            let (committed, position) = (queue.committed, queue.committed_position);
            drop(queue);
            self.shared.flush(committed, position).inspect_err(|err| self.shared.fail(err.clone()))?;
            return Ok(position);
        }
        // Nothing is known to be durable before the first flush, not even what an earlier process committed.
        while queue.flushed.is_none_or(|flushed| flushed < target) {
            queue.usable_for_flush()?;
            queue.flush_wanted = queue.flush_wanted.max(Some(target));
            self.shared.work.notify_one();
            self.shared.progress.wait(&mut queue);
        }
        queue.not_failed()?;
        Ok(queue.flushed_position)
    }

    /// Ends the writer thread after the step it is at.
    fn stop(&self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        queue.stopping = true;
        drop(queue);
        self.shared.work.notify_one();
        self.shared.progress.notify_all();
        // Taken first: a lock held during the join would stand in the way of a second caller.
        let writer = self.writer.lock().take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that writes the store ended in a panic");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the callers and the writer thread share. Locks are taken in the order queue, view.
struct Shared {
    /// Replaced by the writer thread at the end of a rewrite.
    engine: RwLock<Arc<dyn Engine>>,
    options: Options,
    observer: Option<Arc<dyn Observer>>,
    log: Option<WaitForLog>,
    queue: Mutex<Queue>,
    /// What readers see before the engine. Filled by `write`, settled by the writer thread after each commit.
    view: RwLock<View>,
    /// The writer thread waits on it, for a first write, a full commit, a wish or the end.
    work: Condvar,
    /// Callers wait on it, for room, a commit, a flush or a failure.
    progress: Condvar,
    /// There is no writer thread: whoever writes commits.
    inline: bool,
}

/// The queue and how far it has been worked off. Batches are numbered from 1 in the order of `write`.
#[derive(Default)]
struct Queue {
    /// Waiting batches. Bounded by `bytes`.
    entries: VecDeque<Entry>,
    /// Writes in `entries`.
    ops: usize,
    /// Bytes in `entries` and in the running commit. Bounded by `Options::max_pending_bytes`.
    bytes: usize,
    /// Callers of `write` that wait for room.
    writers_waiting: usize,
    /// The last batch that was queued, and the highest position so far.
    written: u64,
    written_position: u64,
    /// The last batch that was committed, and its position. Set by the writer thread.
    committed: u64,
    committed_position: u64,
    /// The last batch that is durable (None: no flush yet) and its position. Set by the writer thread.
    flushed: Option<u64>,
    flushed_position: u64,
    /// The batch that a barrier waits for.
    commit_wanted: u64,
    /// The batch that a flush waits for.
    flush_wanted: Option<u64>,
    /// Whether the engine is to be rewritten, and how that ended.
    rewrite: Rewrite,
    /// No further writes.
    closed: bool,
    /// The writer thread ends, or has ended.
    stopping: bool,
    /// The error that ended the writer thread.
    failure: Option<Arc<Error>>,
}

/// A rewrite between its caller and the writer thread.
#[derive(Default)]
enum Rewrite {
    #[default]
    None,
    Wanted,
    Done(Ended),
}

/// None: there was nothing to do.
type Ended = std::result::Result<Option<Replaced>, Failed>;

/// A rewrite that failed, and what there is of the copy.
struct Failed {
    error: Error,
    copy: Option<Copy>,
}

/// An engine that has given its place to another.
struct Replaced {
    old: Arc<dyn Engine>,
    by: Arc<dyn Engine>,
}

impl Replaced {
    /// Deletes the old one's files.
    fn settle(self) {
        // Reads that began on the old engine end within milliseconds.
        let patience = Instant::now() + READERS_PATIENCE;
        while Arc::strong_count(&self.old) > 1 && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        drop(self.old);
        if let Err(err) = self.by.settle() {
            // The next start deletes it.
            tracing::warn!(
                error = &err as &dyn std::error::Error,
                "the store was rewritten; its old files are still there"
            );
        }
    }
}

struct Entry {
    batch: Batch,
    sequence: u64,
    position: u64,
    /// When it was queued.
    since: Instant,
}

/// What the writer thread does next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Commit the first batches of the queue.
    Commit,
    /// Make everything committed durable.
    Flush,
    /// Copy the next piece to the engine that is to take this one's place.
    Rewrite,
    /// Wait for work, at most until then.
    Wait(Option<Instant>),
    /// End.
    Stop,
}

impl Queue {
    /// Decides the writer thread's next step. `copied` says that the last one was a piece of a copy.
    fn next_step(&self, options: &Options, last_flush: Instant, now: Instant, copied: bool) -> Step {
        if self.stopping {
            return Step::Stop;
        }
        // Flushes before commits: a busy queue always has a commit to make.
        let flush_at = self.is_dirty().then_some(last_flush + options.flush_interval);
        if flush_at.is_some_and(|at| at <= now) || self.flush_wanted.is_some_and(|wanted| wanted <= self.committed) {
            return Step::Flush;
        }
        // Pieces and commits take turns; one that is being closed has no time for pieces.
        if matches!(self.rewrite, Rewrite::Wanted) && !self.closed {
            return if copied && !self.entries.is_empty() { Step::Commit } else { Step::Rewrite };
        }
        let commit_at = self.entries.front().map(|first| first.since + options.commit_interval);
        if let Some(at) = commit_at {
            let wanted = self.commit_wanted.max(self.flush_wanted.unwrap_or(0)) > self.committed;
            if at <= now || wanted || self.writers_waiting > 0 || self.is_full_commit(options) {
                return Step::Commit;
            }
        }
        Step::Wait(flush_at.into_iter().chain(commit_at).min())
    }

    /// Takes the first batches, whole ones only, up to about the size of one commit.
    fn take_commit(&mut self, options: &Options) -> Option<Entry> {
        let mut merged = self.entries.pop_front()?;
        self.ops -= merged.batch.len();
        while let Some(next) = self.entries.front()
            && merged.batch.len() + next.batch.len() <= options.max_ops_per_commit
            && merged.batch.bytes() + next.batch.bytes() <= MAX_BYTES_PER_COMMIT
            && let Some(next) = self.entries.pop_front()
        {
            self.ops -= next.batch.len();
            merged.batch.append(next.batch);
            merged.sequence = next.sequence;
            merged.position = next.position;
        }
        Some(merged)
    }

    fn is_full_commit(&self, options: &Options) -> bool {
        self.ops >= options.max_ops_per_commit || self.bytes >= MAX_BYTES_PER_COMMIT
    }

    /// Whether something is committed and not durable.
    fn is_dirty(&self) -> bool {
        self.committed > self.flushed.unwrap_or(0)
    }

    fn not_failed(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(Error::Stopped { source: failure.clone() }),
            None => Ok(()),
        }
    }

    fn usable(&self) -> Result<()> {
        self.not_failed()?;
        if self.closed { Err(Error::Closed) } else { Ok(()) }
    }

    fn usable_for_flush(&self) -> Result<()> {
        self.not_failed()?;
        if self.stopping { Err(Error::Closed) } else { Ok(()) }
    }
}

impl Shared {
    fn new(
        engine: Arc<dyn Engine>,
        options: Options,
        observer: Option<Arc<dyn Observer>>,
        log: Option<WaitForLog>,
        inline: bool,
    ) -> Self {
        Shared {
            engine: RwLock::new(engine),
            view: RwLock::new(View::new(options.cache_bytes)),
            options,
            observer,
            log,
            queue: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            inline,
        }
    }

    /// Commits what is queued, without the thread.
    fn commit_all(&self) -> Result<()> {
        loop {
            let Some(merged) = self.queue.lock().take_commit(&self.options) else { return Ok(()) };
            self.commit(merged, None).inspect_err(|err| self.fail(err.clone()))?.ok();
        }
    }

    /// The writer thread.
    fn run(&self) {
        let _report = ReportPanic(self);
        let mut copy = None;
        if let Err(err) = self.work_off(&mut copy) {
            self.fail(err);
        }
        if let Some(copy) = copy {
            copy.discard();
        }
    }

    /// Until the end, or an error.
    fn work_off(&self, copy: &mut Option<Copy>) -> Result<()> {
        let mut last_flush = Instant::now();
        let mut copied = false;
        loop {
            let mut queue = self.queue.lock();
            let step = queue.next_step(&self.options, last_flush, Instant::now(), copied);
            copied = step == Step::Rewrite;
            match step {
                Step::Wait(Some(until)) => drop(self.work.wait_until(&mut queue, until)),
                Step::Wait(None) => self.work.wait(&mut queue),
                Step::Stop => return Ok(()),
                Step::Commit => {
                    let merged = queue.take_commit(&self.options);
                    drop(queue);
                    let Some(merged) = merged else { continue };
                    if let Err(error) = self.commit(merged, copy.as_mut())? {
                        self.rewritten(Err(Failed { error, copy: copy.take() }));
                    }
                }
                Step::Rewrite => {
                    drop(queue);
                    if let Some(ended) = self.advance(copy).transpose() {
                        let copy = copy.take();
                        self.rewritten(ended.map_err(|error| Failed { error, copy }));
                    }
                }
                Step::Flush => {
                    let (committed, position) = (queue.committed, queue.committed_position);
                    drop(queue);
                    self.flush(committed, position)?;
                    last_flush = Instant::now();
                }
            }
        }
    }

    /// Begins a copy, or takes it one piece further; how it ended, if it did.
    fn advance(&self, copy: &mut Option<Copy>) -> Result<Option<Option<Replaced>>> {
        let engine = self.engine();
        let Some(copy) = copy else {
            *copy = Copy::begin(&*engine, self.options.leaves_room)?;
            return Ok(copy.is_none().then_some(None));
        };
        if !copy.piece(&*engine)? {
            return Ok(None);
        }
        let by = copy.finish()?;
        let old = std::mem::replace(&mut *self.engine.write(), by.clone());
        drop(engine);
        Ok(Some(Some(Replaced { old, by })))
    }

    fn rewritten(&self, ended: Ended) {
        self.queue.lock().rewrite = Rewrite::Done(ended);
        self.progress.notify_all();
    }

    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.read().clone()
    }

    /// Commits to the engine, and then to a copy of it; how the latter went, which harms nobody else.
    fn commit(&self, merged: Entry, copy: Option<&mut Copy>) -> Result<Result<()>> {
        if let Some(log) = &self.log {
            log(merged.position).map_err(|source| Error::Io {
                attempt: "go on without the log".to_owned(),
                source: Arc::new(source),
            })?;
        }
        let begun = Instant::now();
        self.engine().commit(&merged.batch)?;
        let mirrored = copy.map_or(Ok(()), |copy| copy.mirror(&merged.batch));
        if let Some(observer) = &self.observer {
            observer.commit_duration(begun.elapsed());
        }
        self.view.write().settle(&merged.batch, merged.sequence);
        let mut queue = self.queue.lock();
        queue.bytes -= merged.batch.bytes();
        queue.committed = merged.sequence;
        queue.committed_position = merged.position;
        drop(queue);
        self.progress.notify_all();
        Ok(mirrored)
    }

    fn flush(&self, committed: u64, position: u64) -> Result<()> {
        self.engine().flush()?;
        let mut queue = self.queue.lock();
        queue.flushed = Some(committed);
        queue.flushed_position = position;
        if queue.flush_wanted.is_some_and(|wanted| wanted <= committed) {
            queue.flush_wanted = None;
        }
        drop(queue);
        self.progress.notify_all();
        Ok(())
    }

    /// Ends the store at its first error: a failed fsync must not be retried (the kernel may have dropped the pages),
    /// and a later batch must not be committed after a lost one.
    fn fail(&self, err: Error) {
        tracing::error!(error = &err as &dyn std::error::Error, "the store stops: it cannot write");
        self.queue.lock().failure.get_or_insert(Arc::new(err));
        self.progress.notify_all();
    }
}

/// Tells the callers when the writer thread panics (sled asserts a lot), who would wait for ever otherwise.
struct ReportPanic<'a>(&'a Shared);

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(Error::Engine("the thread that writes the store panicked".to_owned()));
        }
    }
}
