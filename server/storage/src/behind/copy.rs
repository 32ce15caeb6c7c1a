//! A rewrite under way: the engine's records are copied to a fresh one piece by piece, between two commits, so that writes go on.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::{Batch, Engine};
use crate::error::Result;
use crate::keyspace;

/// What one piece copies at least: five times the writes and four times the bytes of a usual commit, so that copying outruns
/// writing. Some milliseconds of work, and what a writer waits for at most beside its commit.
const PIECE_OPS: usize = 1000;
const PIECE_BYTES: usize = 4 << 20;

/// Records that are read at once; of the largest usual values (1.5 MiB) it is 24 MiB.
const PAGE: usize = 16;

/// After so many bytes the copy is made durable, so that the end of it, for which writers wait, has less than this and one piece
/// to sync.
const FLUSH_BYTES: usize = 16 << 20;

/// A copy that holds everything below `copied_to`. Whoever commits to the engine commits to the copy as well, by
/// [`Copy::mirror`]; so it is complete when there is nothing more to read, however long it took.
pub(super) struct Copy {
    fresh: Arc<dyn Engine>,
    copied_to: Bytes,
    /// Committed to the engine since the last piece.
    written: Amount,
    /// Bytes that the copy got since its last flush.
    unflushed: usize,
    leaves_room: bool,
}

#[derive(Clone, Copy, Default)]
struct Amount {
    ops: usize,
    bytes: usize,
}

impl Copy {
    /// A copy that holds nothing yet, or None if this engine has nothing to gain from one.
    pub fn begin(engine: &dyn Engine, leaves_room: bool) -> Result<Option<Copy>> {
        if leaves_room {
            engine.has_room(0)?;
        }
        let fresh = engine.fresh()?;
        Ok(fresh.map(|fresh| Copy {
            fresh,
            copied_to: Bytes::new(),
            written: Amount::default(),
            unflushed: 0,
            leaves_room,
        }))
    }

    /// Copies the next records: at least twice what was committed since the last call, so that the end is reached whatever is
    /// written behind what has been copied. True when there is nothing more to copy.
    pub fn piece(&mut self, engine: &dyn Engine) -> Result<bool> {
        let written = std::mem::take(&mut self.written);
        let (ops, bytes) = (PIECE_OPS.max(2 * written.ops), PIECE_BYTES.max(2 * written.bytes));
        let mut batch = Batch::new();
        let mut is_complete = false;
        while !is_complete && batch.len() < ops && batch.bytes() < bytes {
            let page = engine.scan(&self.copied_to, None, PAGE)?;
            is_complete = page.len() < PAGE;
            if let Some((last, _)) = page.last() {
                self.copied_to = keyspace::after(last);
            }
            for (key, value) in page {
                batch.put(key, value);
            }
        }
        self.put(&batch)?;
        Ok(is_complete)
    }

    /// Takes what was just committed to the engine, as far as it has been copied already.
    pub fn mirror(&mut self, committed: &Batch) -> Result<()> {
        self.written.ops += committed.len();
        self.written.bytes += committed.bytes();
        let mut batch = Batch::new();
        for write in committed.writes().iter().filter(|write| write.key < self.copied_to) {
            match &write.value {
                Some(value) => batch.put(write.key.clone(), value.clone()),
                None => batch.delete(write.key.clone()),
            };
        }
        if batch.is_empty() { Ok(()) } else { self.put(&batch) }
    }

    /// Makes the copy durable and puts it in the engine's place: from here on a start opens it.
    pub fn finish(&self) -> Result<Arc<dyn Engine>> {
        self.fresh.flush()?;
        self.fresh.finish()?;
        Ok(self.fresh.clone())
    }

    /// Deletes it.
    pub fn discard(self) {
        if let Err(err) = self.fresh.discard() {
            // The next start deletes it.
            tracing::warn!(error = &err as &dyn std::error::Error, "what was rewritten of the store is still there");
        }
    }

    fn put(&mut self, batch: &Batch) -> Result<()> {
        self.fresh.commit(batch)?;
        self.unflushed += batch.bytes();
        if self.unflushed >= FLUSH_BYTES {
            self.fresh.flush()?;
            self.unflushed = 0;
        }
        // How large a copy becomes, nobody knows before: engines pack the same records more or less tightly.
        if self.leaves_room { self.fresh.has_room(self.unflushed as u64) } else { Ok(()) }
    }
}
