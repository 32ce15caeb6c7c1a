//! The background thread: deletes what compaction, restores and installed snapshots have left behind, a little at a
//! time. It changes nothing that a reader could see, so the state stays deterministic.

use crate::StateError;
use crate::mvcc::compact::{Pace, Pass, Step, delete_generation};
use crate::mvcc::space::Space;
use crate::rooms::encode_u64;
use crate::state::Inner;
use ferretcd_storage::{Batch, keyspace};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Who follows the deletion of compacted records, e.g. for metrics: the state has no clock. Called by the background
/// thread; must not block.
pub trait CompactionObserver: Send + Sync {
    /// A step begins; the first of a compaction, too.
    fn step_begins(&self);
    /// It has deleted so many records.
    fn step_ends(&self, deleted: usize);
    /// All records of a compaction are gone.
    fn finished(&self);
}

/// What there is to do, and how far it is done.
pub(crate) struct Work {
    state: Mutex<WorkState>,
    /// The worker waits on it for work, waiters for compactions to finish.
    changed: Condvar,
}

struct WorkState {
    /// The revision up to which the live generation's compacted records are deleted; -1 for none.
    finished: i64,
    /// Generations to delete. Bounded by the restores and snapshots that came in faster than they are deleted.
    retired: VecDeque<Arc<Space>>,
    /// Whether the records of one of those could not be read: it is tried again at the next start, and must not keep compaction
    /// waiting. Its index is of no further use.
    unreadable: bool,
    pace: Pace,
    observer: Option<Arc<dyn CompactionObserver>>,
    stopping: bool,
    /// The worker has ended, for good or bad.
    ended: bool,
}

/// How soon to look again whether a pin is gone. A pin is a snapshot under way, which takes seconds at least.
const HELD_PAUSE: Duration = Duration::from_millis(50);

impl Work {
    pub fn new(finished: i64, retired: VecDeque<Arc<Space>>) -> Self {
        let state = WorkState {
            finished,
            retired,
            unreadable: false,
            pace: Pace::default(),
            observer: None,
            stopping: false,
            ended: false,
        };
        Work { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// There may be a new compaction.
    pub fn wake(&self) {
        // The lock orders this after the worker's last look.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// From the next step on, deletes so fast.
    pub fn set_pace(&self, pace: Pace) {
        self.state.lock().pace = pace;
    }

    /// Hands over a generation that nobody will read again.
    pub fn retire(&self, space: Arc<Space>) {
        self.state.lock().retired.push_back(space);
        self.changed.notify_all();
    }

    /// Another generation is the live one now, compacted physically up to `finished`.
    pub fn start_over(&self, finished: i64) {
        self.state.lock().finished = finished;
        self.changed.notify_all();
    }

    /// From the next step on, tells how deletion goes.
    pub fn set_observer(&self, observer: Arc<dyn CompactionObserver>) {
        self.state.lock().observer = Some(observer);
    }

    fn tell(&self, what: impl FnOnce(&dyn CompactionObserver)) {
        // Not under the lock.
        let observer = self.state.lock().observer.clone();
        if let Some(observer) = observer {
            what(&*observer);
        }
    }

    fn pace(&self) -> Pace {
        self.state.lock().pace
    }

    /// The revision up to which compacted records are gone.
    pub fn finished(&self) -> i64 {
        self.state.lock().finished
    }

    /// Waits until the compacted records up to `revision` are gone; false when the worker ends before that.
    pub fn wait_finished(&self, revision: i64) -> bool {
        let mut state = self.state.lock();
        while state.finished < revision && !state.ended {
            self.changed.wait(&mut state);
        }
        state.finished >= revision
    }

    /// Waits until no retired generation is left; false when the worker ends before that, or cannot read one.
    pub fn wait_cleared(&self) -> bool {
        let mut state = self.state.lock();
        while !state.retired.is_empty() && !state.ended {
            self.changed.wait(&mut state);
        }
        state.retired.is_empty() && !state.unreadable
    }

    /// Tells the worker to end after its step.
    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
    }
}

/// The thread.
pub(crate) fn run(inner: &Inner) {
    let _report = ReportEnd(&inner.work);
    let mut pass = None;
    while let Some(job) = next_job(inner, &mut pass) {
        match step(inner, job, &mut pass) {
            Ok(Step::Looked | Step::Done) => {}
            Ok(Step::Deleted) => pause(inner, inner.work.pace().pause),
            Ok(Step::Held) => pause(inner, HELD_PAUSE),
            Err(err) => {
                // The store fails everyone from its first error on: the applier stops the member.
                tracing::error!(error = &err as &dyn std::error::Error, "background deletion stops");
                break;
            }
        }
    }
}

/// All that there is to do now, without the thread.
pub(crate) fn tend(inner: &Inner) -> Result<(), StateError> {
    let mut pass = None;
    loop {
        let job = find_job(inner, &inner.work.state.lock(), &mut pass);
        let Some(job) = job else { return Ok(()) };
        if step(inner, job, &mut pass)? == Step::Held {
            return Ok(());
        }
    }
}

/// Tells the waiters that the worker has ended, even by a panic: they would wait for ever otherwise.
struct ReportEnd<'a>(&'a Work);

impl Drop for ReportEnd<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_all();
    }
}

enum Job {
    Delete(Arc<Space>),
    Compact(Arc<Space>),
}

/// Waits for something to do; None at the end.
fn next_job(inner: &Inner, pass: &mut Option<(Arc<Space>, Pass)>) -> Option<Job> {
    let mut state = inner.work.state.lock();
    loop {
        if state.stopping {
            return None;
        }
        if let Some(job) = find_job(inner, &state, pass) {
            return Some(job);
        }
        match state.retired.len() {
            0 => inner.work.changed.wait(&mut state),
            _ => {
                state.retired.rotate_left(1);
                inner.work.changed.wait_for(&mut state, HELD_PAUSE);
            }
        }
    }
}

/// What there is to do now, if anything.
fn find_job(inner: &Inner, state: &WorkState, pass: &mut Option<(Arc<Space>, Pass)>) -> Option<Job> {
    // A retired generation first, unless a pin holds it. (No new pin can: only the live and the staged one get any.)
    if let Some(retired) = state.retired.front().cloned()
        && *retired.pins.lock() == 0
    {
        return Some(Job::Delete(retired));
    }
    let live = inner.mvcc.live();
    let compacted = live.revisions().1;
    if state.finished < compacted {
        if !pass.as_ref().is_some_and(|(space, _)| Arc::ptr_eq(space, &live)) {
            *pass = Some((live.clone(), Pass::new(compacted)));
        }
        return Some(Job::Compact(live));
    }
    *pass = None;
    None
}

fn step(inner: &Inner, job: Job, pass: &mut Option<(Arc<Space>, Pass)>) -> Result<Step, StateError> {
    let store = &inner.mvcc.store;
    match job {
        Job::Delete(space) => {
            let step = delete_generation(store, space.generation);
            let is_unreadable = step.is_err() && store.failure().is_none();
            if is_unreadable || matches!(step, Ok(Step::Done)) {
                let mut state = inner.work.state.lock();
                state.retired.retain(|retired| !Arc::ptr_eq(retired, &space));
                state.unreadable |= is_unreadable;
                inner.work.changed.notify_all();
            }
            match step {
                Err(err) if is_unreadable => {
                    tracing::error!(
                        error = &err as &dyn std::error::Error,
                        "what was replaced cannot be deleted; the next start tries again, a rebuilt member is without it"
                    );
                    Ok(Step::Looked)
                }
                step => step,
            }
        }
        Job::Compact(space) => {
            let Some((_, running)) = pass else { return Ok(Step::Done) };
            inner.work.tell(|observer| observer.step_begins());
            let step = running.step(store, &space, inner.work.pace())?;
            inner.work.tell(|observer| observer.step_ends(running.take_deleted()));
            if step == Step::Done {
                finish(inner, &space, running.revision)?;
                inner.work.tell(|observer| observer.finished());
                *pass = None;
            }
            Ok(step)
        }
    }
}

/// Records that a pass is done, unless another generation has become the live one meanwhile.
fn finish(inner: &Inner, space: &Arc<Space>, revision: i64) -> Result<(), StateError> {
    let _applier = inner.applier.lock();
    if Arc::ptr_eq(space, &inner.mvcc.live()) {
        let mut batch = Batch::new();
        batch.put(keyspace::META_COMPACT_FINISHED, encode_u64(revision as u64));
        inner.mvcc.store.write(batch, 0).map_err(StateError::store("record a finished compaction"))?;
        inner.work.state.lock().finished = revision;
        inner.work.changed.notify_all();
    }
    Ok(())
}

fn pause(inner: &Inner, pause: Duration) {
    let mut state = inner.work.state.lock();
    if !state.stopping {
        inner.work.changed.wait_for(&mut state, pause);
    }
}
