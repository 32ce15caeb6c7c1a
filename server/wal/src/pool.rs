//! Files that wait to become segments: zero-filled ahead of use, because an fdatasync into blocks that exist already need
//! not commit metadata (1.6 times the throughput of a growing or fallocated file on ext4). A purged segment is zeroed
//! before it is used again: only so can a start tell a record that was cut short from one that has changed since.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use tracing::warn;

use crate::error::{Failure, attempted};
use crate::fs::{File, Fs};
use crate::segment;

/// Files kept ready at most. One is enough while the log grows slower than the disk can zero-fill; a second comes from
/// purges, which free several segments at a time.
pub(crate) const MAX_READY: usize = 2;

/// Zeros are written in pieces of this size.
const ZEROS: usize = 1 << 20;

/// A file of the pool, or a segment that was retired.
pub(crate) struct Spare {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    /// Its length.
    pub bytes: u64,
}

/// The spares and the background thread that looks after them.
pub(crate) struct Pool {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// Length of a new segment.
    bytes: u64,
    state: Mutex<State>,
    /// The thread waits here for work.
    work: Condvar,
    /// The writer waits here for a spare.
    done: Condvar,
    /// None: there is no thread, and every call does its own work.
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    /// Zeros. With `used` at most [`MAX_READY`].
    ready: Vec<Spare>,
    /// Named as spares, but perhaps not zeros: recycled, or found at the start, where a crash may have come in between.
    used: Vec<Spare>,
    /// Segments to recycle or remove, oldest first. Bounded by the number of segments.
    retired: VecDeque<Spare>,
    /// Why the last preparation failed. While set, only [`Pool::take`] makes the thread try again.
    failed: Option<Failure>,
    /// The thread runs.
    running: bool,
    stopping: bool,
    next_number: u32,
}

enum Work {
    Recycle(Spare),
    Prepare,
}

impl Pool {
    /// A pool over the spares found in the directory; those of another length are removed.
    pub fn new(fs: Arc<dyn Fs>, dir: PathBuf, bytes: u64, found: &[u32]) -> io::Result<Self> {
        let mut state = State { next_number: found.iter().max().map_or(1, |number| number + 1), ..State::default() };
        for &number in found {
            let path = dir.join(segment::spare_name(number));
            let file = fs.open(&path)?;
            if file.len()? == bytes && state.used.len() < MAX_READY {
                state.used.push(Spare { path, file, bytes });
            } else {
                fs.remove(&path)?;
            }
        }
        let (work, done) = (Condvar::new(), Condvar::new());
        Ok(Pool { fs, dir, bytes, state: Mutex::new(state), work, done, thread: Mutex::new(None) })
    }

    /// Starts the background thread, which prepares the first spare at once.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        self.state.lock().running = true;
        let pool = self.clone();
        let thread = std::thread::Builder::new().name("wal-pool".into()).spawn(move || {
            let _end = Ended(&pool);
            pool.run();
        })?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Stops the background thread after it has dealt with what was retired, and waits for it.
    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.work.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            warn!("the thread that prepares log segments panicked");
        }
    }

    /// A file to make a segment of: zeros. Waits for the background thread if it has none ready.
    pub fn take(&self) -> io::Result<Spare> {
        let mut state = self.state.lock();
        // A failure of the past says nothing about now: the disk may have room again.
        state.failed = None;
        loop {
            if let Some(spare) = state.ready.pop() {
                self.work.notify_one();
                return Ok(spare);
            }
            if !state.running {
                drop(state);
                return self.prepare();
            }
            if let Some(failure) = state.failed.take() {
                return Err(failure.error());
            }
            self.work.notify_one();
            self.done.wait(&mut state);
        }
    }

    /// Takes a segment that is no longer needed.
    pub fn retire(&self, segment: Spare) {
        let mut state = self.state.lock();
        if state.running {
            state.retired.push_back(segment);
            drop(state);
            self.work.notify_one();
        } else {
            drop(state);
            self.recycle(segment);
        }
    }

    /// Bytes of the files that wait, and of those that wait to be recycled.
    pub fn disk_bytes(&self) -> u64 {
        let state = self.state.lock();
        state.ready.iter().chain(&state.used).chain(&state.retired).map(|spare| spare.bytes).sum()
    }

    fn run(&self) {
        while let Some(work) = self.next_work() {
            match work {
                Work::Recycle(segment) => self.recycle(segment),
                Work::Prepare => {
                    let prepared = self.prepare();
                    let mut state = self.state.lock();
                    match prepared {
                        Ok(spare) => state.ready.push(spare),
                        Err(error) => {
                            warn!(%error, "cannot prepare the next log segment");
                            state.failed = Some(Failure::of(&error));
                        }
                    }
                    self.done.notify_all();
                }
            }
        }
    }

    fn next_work(&self) -> Option<Work> {
        let mut state = self.state.lock();
        loop {
            if let Some(segment) = state.retired.pop_front() {
                return Some(Work::Recycle(segment));
            }
            if state.stopping {
                return None;
            }
            if state.ready.is_empty() && state.failed.is_none() {
                return Some(Work::Prepare);
            }
            self.work.wait(&mut state);
        }
    }

    fn new_path(&self) -> PathBuf {
        let mut state = self.state.lock();
        let number = state.next_number;
        state.next_number = number.wrapping_add(1);
        self.dir.join(segment::spare_name(number))
    }

    /// A used file made zeros, or a new one.
    fn prepare(&self) -> io::Result<Spare> {
        let used = self.state.lock().used.pop();
        let (path, prepared) = match used {
            Some(Spare { path, file, .. }) => (path, self.clear(file.as_ref()).map(|()| file)),
            None => {
                let path = self.new_path();
                let created = self.fs.create(&path).and_then(|file| self.fill(file.as_ref()).map(|()| file));
                (path, created)
            }
        };
        match prepared {
            Ok(file) => Ok(Spare { path, file, bytes: self.bytes }),
            Err(error) => {
                // Half a file is worth nothing, and the disk may be full.
                let _ = self.fs.remove(&path);
                Err(attempted("prepare", &path, &error))
            }
        }
    }

    /// Fills a new file with zeros.
    fn fill(&self, file: &dyn File) -> io::Result<()> {
        let zeros = vec![0; ZEROS.min(self.bytes as usize)];
        for (at, length) in self.pieces() {
            file.write_at(at, &zeros[..length])?;
        }
        file.sync_all()
    }

    /// Makes zeros of what is something else. Piece by piece, so that a sync of the log never waits behind all of it.
    fn clear(&self, file: &dyn File) -> io::Result<()> {
        let mut piece = vec![0; ZEROS.min(self.bytes as usize)];
        for (at, length) in self.pieces() {
            let piece = &mut piece[..length];
            file.read_at(at, piece)?;
            if piece.iter().any(|&byte| byte != 0) {
                piece.fill(0);
                file.write_at(at, piece)?;
                file.sync_data()?;
            }
        }
        // Zeros that are only in the page cache are zeros no more after a power loss.
        file.sync_all()
    }

    fn pieces(&self) -> impl Iterator<Item = (u64, usize)> {
        let bytes = self.bytes;
        (0..bytes).step_by(ZEROS).map(move |at| (at, (bytes - at).min(ZEROS as u64) as usize))
    }

    /// Makes a spare of a retired segment, or removes it. A failure costs disk space only, until the next start: the
    /// records of a segment that stays are skipped by recovery as purged.
    fn recycle(&self, segment: Spare) {
        let spares = {
            let state = self.state.lock();
            state.ready.len() + state.used.len()
        };
        let wanted = segment.bytes == self.bytes && spares < MAX_READY;
        let done = if wanted {
            let path = self.new_path();
            let renamed = self.fs.rename(&segment.path, &path);
            // Durable before the first byte is overwritten: else a power loss could bring back the old name with the
            // new content.
            renamed.and_then(|()| self.fs.sync_dir(&self.dir)).map(|()| {
                self.state.lock().used.push(Spare { path, ..segment });
            })
        } else {
            self.fs.remove(&segment.path)
        };
        if let Err(error) = done {
            warn!(%error, "cannot recycle a purged log segment");
        }
    }
}

/// Whatever ends the thread, the writer must not wait for it any longer.
struct Ended<'a>(&'a Pool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running = false;
        self.0.done.notify_all();
    }
}
