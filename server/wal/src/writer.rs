//! The only writer of the log: takes all that is queued, writes it, syncs once, and then answers everyone in order.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tracing::error;

use crate::error::{Failure, attempted, invalid};
use crate::fs::{Fs, Lock};
use crate::pool::{Pool, Spare};
use crate::record::{self, Link, Record};
use crate::recover::{End, Segment};
use crate::segment::{self, Header};
use crate::state::{LogPos, LogState, Vote};
use crate::wal::{Done, Entry, Identity, Observer, Shared};

/// Bytes collected before they are written; a batch that is larger takes several writes, and still one sync.
const WRITE_BYTES: usize = 4 << 20;

/// One queued request.
pub(crate) struct Op {
    pub work: Work,
    pub done: Done,
    /// See [`crate::Wal::append_covered`].
    pub covered: bool,
}

/// What a request wants written.
pub(crate) enum Work {
    Append { entries: Vec<Entry>, ticket: u32 },
    Vote(Vote),
    Truncate { after: Option<u64> },
    Purge(LogPos),
}

/// Everything that was queued at one time.
pub(crate) struct Batch {
    pub ops: Vec<Op>,
    /// The last committed position that was saved since the batch before.
    pub committed: Option<LogPos>,
}

/// What the writer owns.
pub(crate) struct Writer {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub identity: Identity,
    pub pool: Arc<Pool>,
    /// Whether each batch is made durable.
    pub syncs: bool,
    pub observer: Arc<dyn Observer>,
    pub shared: Arc<Shared>,
    /// The file that is written on.
    pub file: Spare,
    pub sequence: u32,
    /// Behind the last record written; `crc` also covers those in `buffer`.
    pub end: End,
    /// What the records up to the end of `buffer` add up to.
    pub state: LogState,
    /// Encoded, not written yet.
    pub buffer: Vec<u8>,
    /// The entries in `buffer`: index, ticket, offset.
    pub located: Vec<(u64, u32, u32)>,
    /// Released when the writer ends.
    pub _lock: Box<dyn Lock>,
}

impl Writer {
    /// Writes until the log is closed.
    pub fn run(mut self) {
        let _fuse = Fuse(self.shared.clone());
        while let Some(batch) = self.shared.wait_for_batch() {
            self.process(batch);
        }
        self.finish();
    }

    /// Writes and syncs a batch, then calls its callbacks in order, but for those that the next one covers.
    pub fn process(&mut self, batch: Batch) {
        let written = match self.shared.failure() {
            Some(failure) => Err(failure),
            None => self.write(&batch).map_err(|error| {
                error!(%error, "the raft log cannot be written and refuses everything from now on");
                let failure = Failure::of(&error);
                self.shared.fail(failure.clone());
                failure
            }),
        };
        if written.is_ok() {
            self.shared.settle(self.state.next.unwrap_or(0));
        }
        let mut ops = batch.ops.into_iter().peekable();
        while let Some(op) = ops.next() {
            let the_next_says_it = written.is_ok() && op.covered && ops.peek().is_some_and(|next| next.covered);
            if !the_next_says_it {
                (op.done)(written.as_ref().copied().map_err(Failure::error));
            }
        }
    }

    /// Ends the log so that the next start can tell damage from a torn tail everywhere, and releases what is held.
    pub fn finish(&mut self) {
        if self.shared.failure().is_none()
            && let Err(error) = self.seal()
        {
            error!(%error, "the raft log cannot be closed properly");
            self.shared.fail(Failure::of(&error));
        }
        self.pool.stop();
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        let mut purges = false;
        for op in &batch.ops {
            match &op.work {
                Work::Append { entries, ticket } => {
                    for Entry { term, index, payload } in entries {
                        self.put(&Record::Entry { term: *term, index: *index, payload }, Some(*ticket))?;
                    }
                }
                Work::Vote(vote) => self.put(&Record::Vote(*vote), None)?,
                Work::Truncate { after } => self.put(&Record::Truncate { after: *after }, None)?,
                Work::Purge(upto) => {
                    purges = true;
                    self.put(&Record::Purge(*upto), None)?;
                }
            }
        }
        if let Some(committed) = batch.committed {
            self.put(&Record::Committed(committed), None)?;
        }
        self.flush()?;
        // Segments go when a purge is durable, whatever else need not be.
        if (self.syncs && !batch.ops.is_empty()) || purges {
            self.sync()?;
        }
        if purges {
            self.retire_purged();
        }
        Ok(())
    }

    fn put(&mut self, record: &Record<'_>, ticket: Option<u32>) -> io::Result<()> {
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        if (self.position() as usize).saturating_add(record.size()) as u64 > self.file.bytes {
            self.roll()?;
        }
        // The memory has checked the same record by the same rule before it was queued.
        self.state.apply(record).map_err(invalid)?;
        if let (Some(ticket), Record::Entry { index, .. }) = (ticket, record) {
            self.located.push((*index, ticket, self.position()));
        }
        let seed = segment::seed(self.identity, self.sequence);
        let link = Link { seed, previous: self.end.crc, synced: self.end.synced, at: self.position() };
        self.end.crc = record::encode(record, link, &mut self.buffer);
        Ok(())
    }

    /// Where the next record begins: below the segment's length, which fits 32 bits.
    fn position(&self) -> u32 {
        self.end.offset + self.buffer.len() as u32
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let written = self.file.file.write_at(self.end.offset.into(), &self.buffer);
        written.map_err(|error| attempted("write", &self.file.path, &error))?;
        self.observer.write_duration(start.elapsed());
        self.observer.written(self.buffer.len() as u64);
        self.end.offset = self.position();
        self.buffer.clear();
        // One batch of large entries must not hold its memory for ever.
        self.buffer.shrink_to(WRITE_BYTES);
        let mut memory = self.shared.lock();
        for (index, ticket, offset) in self.located.drain(..) {
            memory.memory.written(index, ticket, self.sequence, offset);
        }
        memory.memory.evict();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.end.synced == self.end.offset {
            return Ok(());
        }
        let start = Instant::now();
        self.file.file.sync_data().map_err(|error| attempted("sync", &self.file.path, &error))?;
        self.observer.fsync_duration(start.elapsed());
        self.end.synced = self.end.offset;
        Ok(())
    }

    /// Ends the segment and begins the next. The old one is durable before the new one exists, so that only the last
    /// can have a torn tail.
    fn roll(&mut self) -> io::Result<()> {
        self.flush()?;
        self.sync()?;
        let sequence =
            self.sequence.checked_add(1).ok_or_else(|| invalid("the log has no segment numbers left".into()))?;
        let header = Header {
            identity: self.identity,
            sequence,
            previous_end: self.end.offset,
            previous_crc: self.end.crc,
            blank: true,
            state: self.state,
        };
        let segment = begin_segment(self.fs.as_ref(), &self.dir, self.pool.take()?, &header)?;
        self.file = Spare { path: segment.path.clone(), file: segment.file.clone(), bytes: segment.bytes };
        self.sequence = sequence;
        self.end = start_of(self.identity, sequence);
        self.shared.lock().segments.push_back(segment);
        Ok(())
    }

    /// Hands over the segments in which nothing is left. The purge is durable. A segment goes when all entries up to
    /// the start of the next are purged; what the others were (votes, truncations) is in the next one's header.
    pub fn retire_purged(&mut self) {
        let Some(purged) = self.state.purged else { return };
        let mut shared = self.shared.lock();
        let mut retired = Vec::new();
        while let Some(next) = shared.segments.get(1)
            && next.next_at_start.is_none_or(|next| next <= purged.index.saturating_add(1))
            && let Some(Segment { path, file, bytes, .. }) = shared.segments.pop_front()
        {
            retired.push(Spare { path, file, bytes });
        }
        drop(shared);
        for segment in retired {
            self.pool.retire(segment);
        }
    }

    /// Repeats the committed position or the vote behind the last sync: a record that says so is the proof that what
    /// is before it had been durable.
    fn seal(&mut self) -> io::Result<()> {
        self.sync()?;
        let repeated = self.state.committed.map(Record::Committed).or(self.state.vote.map(Record::Vote));
        if let Some(record) = repeated {
            self.put(&record, None)?;
            self.flush()?;
            self.sync()?;
        }
        Ok(())
    }
}

/// Where a new segment ends.
pub(crate) fn start_of(identity: Identity, sequence: u32) -> End {
    let offset = segment::HEADER_BYTES as u32;
    End { offset, crc: segment::seed(identity, sequence), synced: offset }
}

/// Makes a segment of a spare: the header is durable before the name says that it is a segment, and the name before a
/// record is written.
pub(crate) fn begin_segment(fs: &dyn Fs, dir: &std::path::Path, spare: Spare, header: &Header) -> io::Result<Segment> {
    let path = dir.join(segment::name(header.sequence));
    let begun = || -> io::Result<()> {
        spare.file.write_at(0, &header.encode())?;
        spare.file.sync_data()?;
        fs.rename(&spare.path, &path)?;
        fs.sync_dir(dir)
    }();
    begun.map_err(|error| attempted("begin", &path, &error))?;
    let Spare { file, bytes, .. } = spare;
    Ok(Segment { sequence: header.sequence, path, file, bytes, next_at_start: header.state.next })
}

/// If the writer's thread dies, nobody must wait for it.
struct Fuse(Arc<Shared>);

impl Drop for Fuse {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Failure::of(&io::Error::other("the log's writer panicked")));
        }
    }
}
