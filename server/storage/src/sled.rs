//! The engine on disk: sled 0.34, held to the rules under which it survived every simulated power cut: real fsyncs
//! (`sync_range.rs`), the default segment size, no stored value above 4 KiB, and its files' directory entries synced.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::engine::{Batch, Engine, Limit, Page, Write};
use crate::error::{Error, Result};
use crate::home;
use crate::keyspace::{ENGINE_PRIVATE, KEYS};
use crate::sync_range;

mod block;

/// An [`Engine`] in a directory of its own.
///
/// A value of at most 4 KiB is stored under its key as `0 | value`. A larger one is stored as `1 | length (u32)`, with
/// its bytes in pieces of 4 KiB under `0xff | key | index (u32)`: sled moves larger pages into files that it never
/// syncs. Pieces sort behind every caller's key, so scans do not meet them.
///
/// Short revisions (of [`KEYS`]) that are committed together, behind all others of their generation, are stored several to a
/// block (`block.rs`) under the first one's key. That key stays when its record is deleted; between it and the last
/// record of the block there is no other stored key. So a revision is in what is stored at or before its key. A record moves
/// only to a key between its block's and its own.
pub struct SledEngine {
    db: sled::Db,
    /// sled's file, opened once more: the system tells each open file once that a sync has failed, and of what sled's
    /// own thread is told at its regular one sled says nothing.
    file: File,
    path: PathBuf,
    /// Held by the one committer, which looks at what is stored before it replaces it. For each generation a key behind which
    /// none of its revisions is stored; those that are not here have none. Three at most: live, staged, and being deleted.
    last: Mutex<BTreeMap<Bytes, Bytes>>,
    /// As it was opened with, for the next one.
    cache_bytes: u64,
    /// Where it is, if it was made to replace another one in this process.
    place: Option<home::Next>,
    /// Read: somebody assembles a value from its pieces. Write: a commit is replacing pieces.
    pieces: RwLock<()>,
}

/// The size of a piece. Leaves hold up to 16 records, and 16 x (4 KiB + key) stays far below the 128 KiB page that sled
/// would move to a blob file.
const PIECE_BYTES: usize = 4096;

/// First byte of a stored value: the value follows, or its length does.
const WHOLE: u8 = 0;
const IN_PIECES: u8 = 1;

/// How often opening is tried while another handle still holds sled's file lock, and the pause between: 2 s in all.
/// sled's own threads keep the file for a moment after its last handle is dropped.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// How often sled's own thread writes and cleans up, in milliseconds; the interval under which its endurance was measured.
const FLUSHER_MS: u64 = 100;

/// After what time a flush is followed by another one, for the first time: longer than one takes on a healthy disk.
const FLUSH_AGAIN: Duration = Duration::from_secs(2);

impl SledEngine {
    /// Opens the database in `path`, creating it if absent. `cache_bytes` bounds sled's page cache; below the size of
    /// the working set sled becomes several times slower.
    ///
    /// [`Error::Corrupt`] means that the directory should be moved aside and rebuilt. sled reports some corruption by
    /// panicking; that is caught here, unless the binary is built with `panic = "abort"`.
    /// [`Error::NotDurable`] means that flushes would not reach the disk; nothing may run on such a build.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<SledEngine> {
        // sled's flusher thread is also what frees half-empty segments. Without it the file grew to nine times its live
        // data in a test of steady overwriting, and went on growing; with it to four times, and stopped.
        let config = sled::Config::new().path(path).cache_capacity(cache_bytes).flush_every_ms(Some(FLUSHER_MS));
        let db = open_when_unlocked(&config, path)?;
        sync_files(path)?;
        let file = File::open(path.join("db")).map_err(|err| translated(sled::Error::Io(err), path))?;
        let engine = SledEngine {
            db,
            file,
            path: path.to_owned(),
            last: Mutex::new(BTreeMap::new()),
            cache_bytes,
            place: None,
            pieces: RwLock::new(()),
        };
        engine.prove_durability()?;
        *engine.last.lock() = engine.find_last()?;
        Ok(engine)
    }

    fn find_last(&self) -> Result<BTreeMap<Bytes, Bytes>> {
        let mut found = BTreeMap::new();
        let mut end = Bytes::from_static(&[KEYS + 1]);
        while let Some((at, stored)) = self.last_before(&end)? {
            let last = match block_in(&at, &stored) {
                Some(stored) => self.records(&at, stored)?.last().map_or(&*at, |(key, _)| key).to_vec(),
                None => at.to_vec(),
            };
            end = Bytes::copy_from_slice(generation_of(&last));
            found.insert(end.clone(), Bytes::from(last));
        }
        Ok(found)
    }

    fn last_before(&self, end: &[u8]) -> Result<Option<(sled::IVec, sled::IVec)>> {
        if end <= &[KEYS][..] {
            return Ok(None);
        }
        self.db.range(&[KEYS][..]..end).next_back().transpose().map_err(|err| self.failed(err))
    }

    /// Writes and flushes one record and checks that an fsync was made for it. This also persists what an earlier
    /// process wrote to the file and never synced, before anybody relies on it.
    fn prove_durability(&self) -> Result<()> {
        let before = sync_range::refused();
        // A new value each time: sled does not write one that is already there.
        let next = |old: Option<&[u8]>| {
            let opened = old.and_then(|old| old.try_into().ok()).map_or(0, u64::from_be_bytes);
            Some(opened.wrapping_add(1).to_be_bytes().to_vec())
        };
        self.db.update_and_fetch([ENGINE_PRIVATE], next).map_err(|err| self.failed(err))?;
        self.flush()?;
        if cfg!(target_os = "linux") && sync_range::refused() == before {
            return Err(Error::NotDurable { path: self.path.clone() });
        }
        Ok(())
    }

    /// What is stored at or before a key of [`KEYS`], of the same keyspace. At one moment: no batch comes between a step of
    /// sled's iterators. (To the leaf before, sled goes by a key that is the leaf's first less one and then `ff ff ff ff`; none of our
    /// keys has those after a byte in which two of them differ first, but for the last of 2^32 revisions.)
    fn at_or_before(&self, key: &[u8]) -> Result<Option<(sled::IVec, sled::IVec)>> {
        self.db.range(&[KEYS][..]..=key).next_back().transpose().map_err(|err| self.failed(err))
    }

    /// The records of the block that is stored at `at`.
    fn records<'a>(&self, at: &[u8], stored: &'a [u8]) -> Result<Vec<block::Pair<'a>>> {
        let records: std::result::Result<Vec<_>, block::Damaged> = block::records(stored).collect();
        records.map_err(|_| self.damaged_block(at))
    }

    /// The value behind a record that is stored by itself; None if the record was deleted meanwhile.
    fn value(&self, key: &[u8], stored: &[u8]) -> Result<Option<Bytes>> {
        match stored.split_first() {
            Some((&WHOLE, value)) => Ok(Some(Bytes::copy_from_slice(value))),
            Some((&IN_PIECES, _)) => self.assemble(key),
            _ => Err(self.corrupt(format!("record {key:?} has no known form"))),
        }
    }

    /// Reads a value in pieces. Looks at the record again under the lock, since a commit may have replaced it.
    fn assemble(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let _unchanged = self.pieces.read();
        let Some(stored) = self.read(key)? else { return Ok(None) };
        if let Some((&WHOLE, value)) = stored.split_first() {
            return Ok(Some(Bytes::copy_from_slice(value)));
        }
        if let Some(stored) = block_in(key, &stored) {
            return self.in_block(key, key, stored);
        }
        let length = self.length_in_pieces(key, &stored)?;
        // Not reserved up front: a damaged length must not take memory that no piece backs.
        let mut value = Vec::new();
        for index in 0..pieces_of(length) {
            let piece = self.read(&piece_key(key, index))?;
            value.extend_from_slice(&piece.ok_or_else(|| self.corrupt(format!("record {key:?} lacks piece {index}")))?);
        }
        if value.len() != length {
            return Err(self.corrupt(format!("record {key:?} has {} of {length} bytes", value.len())));
        }
        Ok(Some(Bytes::from(value)))
    }

    fn in_block(&self, key: &[u8], at: &[u8], stored: &[u8]) -> Result<Option<Bytes>> {
        for record in block::records(stored) {
            let (candidate, value) = record.map_err(|_| self.damaged_block(at))?;
            if candidate >= key {
                return Ok((candidate == key).then(|| Bytes::copy_from_slice(value)));
            }
        }
        Ok(None)
    }

    fn damaged_block(&self, at: &[u8]) -> Error {
        self.corrupt(format!("the block at {at:?} is damaged"))
    }

    /// Where a key that is not behind all others has its place.
    fn place(&self, key: &[u8]) -> Result<Place> {
        let Some((at, stored)) = self.at_or_before(key)? else { return Ok(Place::Single { pieces: 0 }) };
        let Some(block) = block_in(&at, &stored) else {
            let pieces = if at == key { self.pieces_in(key, &stored)? } else { 0 };
            return Ok(Place::Single { pieces });
        };
        let records = self.records(&at, block)?;
        let Some((last, _)) = records.last().filter(|(last, _)| key <= *last) else {
            return Ok(Place::Single { pieces: 0 });
        };
        let last = last.to_vec();
        let records = records.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        Ok(Place::Block(Open { at, last, records }))
    }

    /// How many pieces a stored record has; 0 if it has none.
    fn pieces_in(&self, key: &[u8], stored: &[u8]) -> Result<u32> {
        match stored.first() {
            Some(&IN_PIECES) => Ok(pieces_of(self.length_in_pieces(key, stored)?)),
            _ => Ok(0),
        }
    }

    fn length_in_pieces(&self, key: &[u8], stored: &[u8]) -> Result<usize> {
        match stored {
            [IN_PIECES, a, b, c, d] => Ok(u32::from_be_bytes([*a, *b, *c, *d]) as usize),
            _ => Err(self.corrupt(format!("record {key:?} has no known form"))),
        }
    }

    fn read(&self, key: &[u8]) -> Result<Option<sled::IVec>> {
        self.db.get(key).map_err(|err| self.failed(err))
    }

    fn corrupt(&self, detail: String) -> Error {
        Error::Corrupt { path: self.path.clone(), detail }
    }

    fn failed(&self, err: sled::Error) -> Error {
        translated(err, &self.path)
    }
}

impl Engine for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if key.first().is_none_or(|&byte| byte == ENGINE_PRIVATE) {
            return Ok(None);
        }
        if key.first() != Some(&KEYS) {
            return self.read(key)?.map_or(Ok(None), |stored| self.value(key, &stored));
        }
        let Some((at, stored)) = self.at_or_before(key)? else { return Ok(None) };
        match block_in(&at, &stored) {
            Some(stored) => self.in_block(key, &at, stored),
            None if at == key => self.value(key, &stored),
            None => Ok(None),
        }
    }

    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        const LAST: &[u8] = &[ENGINE_PRIVATE];
        let end = end.unwrap_or(LAST).min(LAST);
        let mut found = Page::default();
        if found.is_full(limit) || start >= end {
            return Ok(found);
        }
        // The first records may be in a block that begins before them.
        let before = if start.first() == Some(&KEYS) { self.at_or_before(start)? } else { None };
        let from = before.as_ref().filter(|(at, stored)| block_in(at, stored).is_some()).map_or(start, |(at, _)| at);
        for entry in self.db.range(from..end) {
            let (at, stored) = entry.map_err(|err| self.failed(err))?;
            // A block may be divided between two steps of sled's iterator: what was seen is not seen again.
            let is_next = |found: &Page, key: &[u8]| {
                (start..end).contains(&key) && found.records.last().is_none_or(|(last, _)| last < key)
            };
            if let Some(stored) = block_in(&at, &stored) {
                for (key, value) in self.records(&at, stored)? {
                    if is_next(&found, key) && !found.is_full(limit) {
                        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                    }
                }
            } else if is_next(&found, &at)
                && let Some(value) = self.value(&at, &stored)?
            {
                found.push((Bytes::copy_from_slice(&at), value));
            }
            if found.is_full(limit) {
                break;
            }
        }
        Ok(found)
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        batch.check()?;
        let mut last = self.last.lock();
        // Of several writes to a key the last one counts; a sled batch has one slot per key anyway.
        let writes: BTreeMap<&[u8], Option<&[u8]>> =
            batch.writes().iter().map(|Write { key, value }| (key.as_ref(), value.as_deref())).collect();

        let mut changes = Changes { writes: sled::Batch::default(), replaces_pieces: false };
        let mut open: Option<Open> = None;
        let mut new: Vec<block::Pair<'_>> = Vec::new();
        for (key, value) in writes {
            if key.first() != Some(&KEYS) {
                let pieces = self.read(key)?.map_or(Ok(0), |stored| self.pieces_in(key, &stored))?;
                changes.replace(key, value, pieces)?;
                continue;
            }
            if last.get(generation_of(key)).is_none_or(|last| key > last.as_ref()) {
                new.extend(value.map(|value| (key, value)));
                continue;
            }
            if open.as_ref().is_none_or(|open| open.last.as_slice() < key) {
                changes.close(open.take())?;
                match self.place(key)? {
                    Place::Block(block) => open = Some(block),
                    Place::Single { pieces } => changes.replace(key, value, pieces)?,
                }
            }
            if let Some(open) = &mut open {
                match value {
                    Some(value) => open.records.insert(key.to_vec(), value.to_vec()),
                    None => open.records.remove(key),
                };
            }
        }
        changes.close(open)?;
        for run in new.chunk_by(|(one, _), (next, _)| generation_of(one) == generation_of(next)) {
            changes.pack(run)?;
            // Before the batch, because after a failed one nobody knows: nothing is stored behind it in any case.
            if let Some((key, _)) = run.last() {
                last.insert(Bytes::copy_from_slice(generation_of(key)), Bytes::copy_from_slice(key));
            }
        }

        let _no_readers = changes.replaces_pieces.then(|| self.pieces.write());
        self.db.apply_batch(changes.writes).map_err(|err| self.failed(err))
    }

    fn flush(&self) -> Result<()> {
        let synced = || self.file.sync_all().map_err(sled::Error::from);
        flushed(&self.db).and_then(|()| synced()).map_err(|err| self.failed(err))
    }

    fn size_on_disk(&self) -> Result<u64> {
        self.db.size_on_disk().map_err(|err| self.failed(err))
    }

    fn fresh(&self) -> Result<Option<Arc<dyn Engine>>> {
        let place = home::Next::begin(&self.path)?;
        match SledEngine::open(&place.path, self.cache_bytes) {
            Ok(engine) => Ok(Some(Arc::new(SledEngine { place: Some(place), ..engine }))),
            Err(err) => {
                // What cannot be deleted now is looked at again at the next start.
                let _ = place.discard();
                Err(err)
            }
        }
    }

    fn has_room(&self, unflushed: u64) -> Result<()> {
        home::has_room(&self.path, unflushed)
    }

    fn finish(&self) -> Result<()> {
        self.place.as_ref().map_or(Ok(()), home::Next::finish)
    }

    fn discard(&self) -> Result<()> {
        self.place.as_ref().map_or(Ok(()), home::Next::discard)
    }

    fn settle(&self) -> Result<()> {
        self.place.as_ref().map_or(Ok(()), home::Next::settle)
    }
}

/// Where a commit finds a key.
enum Place {
    /// In a block, or between two of its records.
    Block(Open),
    /// By itself, or nowhere yet; how many pieces it has.
    Single { pieces: u32 },
}

/// A block that a commit changes.
struct Open {
    at: sled::IVec,
    /// The key of its last record, before the changes.
    last: Vec<u8>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a commit writes to sled.
struct Changes {
    writes: sled::Batch,
    replaces_pieces: bool,
}

impl Changes {
    /// Stores a record by itself, in the place of one that has `old_pieces`.
    fn replace(&mut self, key: &[u8], value: Option<&[u8]>, old_pieces: u32) -> Result<()> {
        let new_pieces = match value {
            None => {
                self.writes.remove(key);
                0
            }
            Some(value) if value.len() <= PIECE_BYTES => {
                let mut stored = Vec::with_capacity(1 + value.len());
                stored.push(WHOLE);
                stored.extend_from_slice(value);
                self.writes.insert(key, stored);
                0
            }
            Some(value) => {
                let length = u32::try_from(value.len()).map_err(|_| Error::Value { len: value.len() })?;
                let [a, b, c, d] = length.to_be_bytes();
                self.writes.insert(key, &[IN_PIECES, a, b, c, d]);
                for (index, piece) in (0..).zip(value.chunks(PIECE_BYTES)) {
                    self.writes.insert(piece_key(key, index), piece);
                }
                pieces_of(value.len())
            }
        };
        for stale in new_pieces..old_pieces {
            self.writes.remove(piece_key(key, stale));
        }
        self.replaces_pieces |= old_pieces > 0;
        Ok(())
    }

    /// Stores records that are in key order, with nothing stored between the first and the last.
    fn pack(&mut self, mut records: &[block::Pair<'_>]) -> Result<()> {
        while let Some((key, value)) = records.first() {
            let (now, later) = records.split_at(block::first(records));
            match block::encode(now) {
                Some(block) if now.len() > 1 => self.writes.insert(*key, block),
                _ => self.replace(key, Some(value), 0)?,
            }
            records = later;
        }
        Ok(())
    }

    /// Stores a block as it is after the changes: under its old key if it still fits, so that no reader misses it.
    fn close(&mut self, open: Option<Open>) -> Result<()> {
        let Some(Open { at, records, .. }) = open else { return Ok(()) };
        let records: Vec<block::Pair<'_>> = records.iter().map(|(key, value)| (key.as_ref(), value.as_ref())).collect();
        match block::encode(&records) {
            Some(block) if !records.is_empty() => self.writes.insert(at, block),
            _ => {
                self.writes.remove(at);
                self.pack(&records)?;
            }
        }
        Ok(())
    }
}

/// The keyspace and the generation in a key of [`KEYS`], as `keyspace::revision` makes it; a shorter key is one by itself.
fn generation_of(key: &[u8]) -> &[u8] {
    key.get(..5).unwrap_or(key)
}

/// `stored` if it is a block of revisions.
fn block_in<'a>(at: &[u8], stored: &'a [u8]) -> Option<&'a [u8]> {
    (at.first() == Some(&KEYS) && stored.first() == Some(&block::BLOCK)).then_some(stored)
}

/// sled does not always wake who waits in a flush when the write that it waits for fails; the next flush sees the failure
/// and wakes all. So one that takes long is followed by others, ever more rarely: some ten in an hour.
fn flushed(db: &sled::Db) -> std::result::Result<(), sled::Error> {
    thread::scope(|scope| {
        let (done, waiting) = mpsc::channel::<()>();
        let again = move || {
            let mut pause = FLUSH_AGAIN;
            while waiting.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = thread::Builder::new().spawn_scoped(scope, move || db.flush());
                pause *= 2;
            }
        };
        // Without a thread it is a flush like sled's.
        let _ = thread::Builder::new().spawn_scoped(scope, again);
        let flushed = db.flush().map(drop);
        drop(done);
        flushed
    })
}

/// Opens sled, waiting a bounded time for its file lock, and turns its panics into errors.
fn open_when_unlocked(config: &sled::Config, path: &Path) -> Result<sled::Db> {
    for _ in 1..LOCK_TRIES {
        match open_once(config, path) {
            Err(Error::Io { source, .. }) if is_locked(&source) => thread::sleep(LOCK_PAUSE),
            other => return other,
        }
    }
    open_once(config, path)
}

fn open_once(config: &sled::Config, path: &Path) -> Result<sled::Db> {
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        // Our settings never change, so sled calls damaged ones "unsupported", or a bug.
        Ok(Err(sled::Error::Unsupported(detail) | sled::Error::ReportableBug(detail))) => {
            Err(Error::Corrupt { path: path.to_owned(), detail })
        }
        Ok(opened) => opened.map_err(|err| translated(err, path)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Error::Corrupt { path: path.to_owned(), detail: format!("the engine panicked: {text}") })
        }
    }
}

/// sled reports a held lock as an "other" I/O error with this text.
fn is_locked(err: &io::Error) -> bool {
    err.to_string().contains("could not acquire lock")
}

/// sled syncs neither `conf` nor any directory: a power cut may take the file or the name with it.
fn sync_files(path: &Path) -> Result<()> {
    home::sync(&path.join("conf"))?;
    home::sync_names(path)
}

fn translated(err: sled::Error, path: &Path) -> Error {
    match err {
        sled::Error::Io(source) => Error::io("read or write the database in", path)(source),
        sled::Error::Corruption { at, .. } => {
            Error::Corrupt { path: path.to_owned(), detail: format!("damaged data at {at:?}") }
        }
        other => Error::Engine(other.to_string()),
    }
}

fn piece_key(key: &[u8], index: u32) -> Vec<u8> {
    let mut piece = Vec::with_capacity(1 + key.len() + 4);
    piece.push(ENGINE_PRIVATE);
    piece.extend_from_slice(key);
    piece.extend_from_slice(&index.to_be_bytes());
    piece
}

fn pieces_of(length: usize) -> u32 {
    // MAX_VALUE_BYTES / 4 KiB is far below u32::MAX, and a stored length is a u32 itself.
    u32::try_from(length.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Record, Store, keyspace, suite};
    use std::fs;

    const CACHE: u64 = 16 << 20;

    fn fresh() -> (tempfile::TempDir, SledEngine) {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(&dir.path().join("db"), CACHE).unwrap();
        (dir, engine)
    }

    /// How many records sled holds besides the callers' own, the durability probe aside.
    fn pieces(engine: &SledEngine) -> usize {
        engine.db.range([ENGINE_PRIVATE, 0]..).count()
    }

    #[test]
    fn passes_the_engine_suite() {
        let (dir, engine) = fresh();
        suite::run(&engine);
        // One that is not replaced: sled may have deleted the files of those that were.
        engine.commit(Batch::new().put("large", suite::value(1, 1 << 20))).unwrap();
        engine.flush().unwrap();
        // No page became a blob file, which sled would never sync.
        let blobs = fs::read_dir(dir.path().join("db/blobs")).unwrap().count();
        assert_eq!(blobs, 0);
    }

    #[test]
    fn the_longest_keys_and_values_fill_no_blob_files() {
        let (dir, engine) = fresh();
        // Enough of the worst records that sled splits leaves and fills an index page.
        for n in 0..600_u32 {
            let mut key = [b'u'; crate::engine::MAX_KEY_BYTES];
            key[252..].copy_from_slice(&n.to_be_bytes());
            engine.commit(Batch::new().put(key.to_vec(), suite::value(u64::from(n), 3 * PIECE_BYTES))).unwrap();
        }
        engine.flush().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("db/blobs")).unwrap().count(), 0);
    }

    #[test]
    fn replaced_and_deleted_values_leave_no_pieces() {
        let (_dir, engine) = fresh();
        for (size, left) in [(100_000, 25), (4097, 2), (40_000, 10), (4096, 0), (9000, 3), (0, 0), (1 << 20, 256)] {
            engine.commit(Batch::new().put("ka", suite::value(1, size))).unwrap();
            assert_eq!(pieces(&engine), left, "after {size} bytes");
        }
        engine.commit(Batch::new().delete("ka")).unwrap();
        assert_eq!(pieces(&engine), 0);
    }

    #[test]
    fn a_reopened_database_holds_what_was_committed() {
        let (dir, engine) = fresh();
        engine.commit(Batch::new().put("ka", "1").put("kb", suite::value(2, 100_000))).unwrap();
        engine.commit(Batch::new().put("kc", "3").delete("ka")).unwrap();
        drop(engine);
        for _ in 0..3 {
            let engine = SledEngine::open(&dir.path().join("db"), CACHE).unwrap();
            assert_eq!(engine.get(b"ka").unwrap(), None);
            assert!(engine.get(b"kb").unwrap().unwrap() == suite::value(2, 100_000));
            assert_eq!(engine.scan(b"kc", None, 9).unwrap(), [(Bytes::from("kc"), Bytes::from("3"))]);
            assert!(engine.size_on_disk().unwrap() > 100_000);
        }
    }

    fn bytes_below(dir: &Path) -> u64 {
        let size = |e: fs::DirEntry| match e.path().is_dir() {
            true => bytes_below(&e.path()),
            false => e.metadata().unwrap().len(),
        };
        fs::read_dir(dir).unwrap().map(|e| size(e.unwrap())).sum()
    }

    #[test]
    fn a_rewrite_keeps_every_record_and_gives_space_back() {
        let (dir, engine) = fresh();
        for round in 0..4_u64 {
            for n in 0..200_u64 {
                engine
                    .commit(Batch::new().put(keyspace::lease(n as i64), suite::value(round * 999 + n, 20_000)))
                    .unwrap();
            }
        }
        for n in 20..200 {
            engine.commit(Batch::new().delete(keyspace::lease(n))).unwrap();
        }
        engine.commit(Batch::new().put("ka", "small")).unwrap();
        engine.flush().unwrap();
        let (records, before) = (engine.scan(b"", None, 999).unwrap(), bytes_below(dir.path()));
        let second = suite::rewritten(&engine);
        assert_eq!(engine.get(b"ka").unwrap().unwrap(), "small", "the old one is still there");
        drop(engine);
        second.settle().unwrap();
        assert!(second.scan(b"", None, 999).unwrap() == records);
        let after = bytes_below(dir.path());
        assert!(after < before / 2, "{before} bytes before, {after} after");
        // And once more, from the copy; then a restart finds the last one.
        second.commit(Batch::new().put("kb", "later")).unwrap();
        let third = suite::rewritten(&*second);
        drop(second);
        third.settle().unwrap();
        drop(third);
        let home = home::newest(&dir.path().join("db")).unwrap();
        assert_eq!(home, dir.path().join("db.2"));
        let again = SledEngine::open(&home, CACHE).unwrap();
        assert_eq!(again.get(b"kb").unwrap().unwrap(), "later");
        assert_eq!(again.scan(b"", None, 999).unwrap().len(), records.len() + 1);
    }

    #[test]
    fn a_rewrite_that_fails_leaves_the_engine_as_it_was() {
        let (dir, engine) = fresh();
        engine.commit(Batch::new().put("ka", "1")).unwrap();
        // Something in the way of the final name.
        fs::create_dir_all(dir.path().join("db.1/taken")).unwrap();
        assert!(engine.fresh().is_err());
        engine.commit(Batch::new().put("kb", "2")).unwrap();
        assert_eq!(engine.scan(b"k", None, 9).unwrap().len(), 2);
        assert!(!dir.path().join("db.1.part").exists());
    }

    #[test]
    fn a_flush_is_an_fsync() {
        let (_dir, engine) = fresh();
        // Other tests of this process also add to the count, but without the interposition it would stay at 0 for all.
        for n in 0..20_u8 {
            let before = sync_range::refused();
            engine.commit(Batch::new().put("ka", vec![n])).unwrap();
            engine.flush().unwrap();
            assert!(sync_range::refused() > before, "flush {n} made no fsync");
        }
    }

    /// sled's own thread may have heard of a sync that failed, and says nothing: what tells us is the second handle.
    #[test]
    fn a_sync_of_sleds_file_that_fails_for_our_handle_alone_fails_the_flush_and_ends_the_store() {
        let (dir, mut engine) = fresh();
        let inode = |metadata: fs::Metadata| std::os::unix::fs::MetadataExt::ino(&metadata);
        let sleds = inode(fs::metadata(dir.path().join("db/db")).unwrap());
        assert_eq!(inode(engine.file.metadata().unwrap()), sleds, "it is sled's file");
        engine.commit(Batch::new().put("ka", "1")).unwrap();
        engine.flush().unwrap();
        // What no sync works on; sled's own handle is sound.
        engine.file = File::open("/dev/null").unwrap();
        engine.commit(Batch::new().put("kb", "1")).unwrap();
        for _ in 0..2 {
            assert!(matches!(engine.flush(), Err(Error::Io { .. })));
            flushed(&engine.db).unwrap();
        }
        let store = Store::open(Arc::new(engine), Options::default()).unwrap();
        let mut batch = Batch::new();
        batch.put("kc", "1");
        store.write(batch.clone(), 1).unwrap();
        for _ in 0..2 {
            assert!(matches!(store.flush(), Err(Error::Stopped { .. })));
            assert!(matches!(store.write(batch.clone(), 2), Err(Error::Stopped { .. })));
        }
        assert!(matches!(store.close(), Err(Error::Stopped { .. })));
        assert_eq!(store.flushed_position(), 0);
    }

    #[test]
    fn a_rewrite_that_is_given_up_or_cut_off_leaves_nothing() {
        let (dir, engine) = fresh();
        let base = dir.path().join("db");
        engine.commit(Batch::new().put("ka", "1")).unwrap();
        for discard in [true, false] {
            let copy = engine.fresh().unwrap().unwrap();
            copy.commit(Batch::new().put("ka", "1")).unwrap();
            copy.flush().unwrap();
            // Before its end a start takes the old one.
            assert_eq!(home::look(&base).unwrap().0, base);
            if discard {
                copy.discard().unwrap();
            }
            drop(copy);
            assert_eq!(home::newest(&base).unwrap(), base);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the old one alone");
        }
    }

    #[test]
    fn a_second_opener_is_refused_in_bounded_time() {
        let (dir, _engine) = fresh();
        let refused = SledEngine::open(&dir.path().join("db"), CACHE);
        assert!(matches!(refused, Err(Error::Io { source, .. }) if is_locked(&source)));
    }

    #[test]
    fn damage_is_an_error_that_says_so() {
        let (dir, engine) = fresh();
        engine.commit(Batch::new().put("ka", suite::value(1, 100_000))).unwrap();
        engine.flush().unwrap();
        drop(engine);
        let path = dir.path().join("db");
        // The settings say how to read the rest. Half of them, or others, is what a power cut could leave.
        let conf = fs::read(path.join("conf")).unwrap();
        let half = conf[..conf.len() / 2].to_vec();
        let other = String::from_utf8_lossy(&conf).replace("segment_size: 524288", "segment_size: 262144").into_bytes();
        assert!(other != conf, "{}", String::from_utf8_lossy(&conf));
        for damaged in [half, other] {
            fs::write(path.join("conf"), damaged).unwrap();
            let refused = SledEngine::open(&path, CACHE);
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "{:?}", refused.err());
        }
    }

    fn revision(main: u64) -> Bytes {
        keyspace::revision(0, &main.to_be_bytes())
    }

    fn revisions(main: std::ops::Range<u64>) -> Batch {
        let mut batch = Batch::new();
        for main in main {
            batch.put(revision(main), suite::value(main, 100));
        }
        batch
    }

    #[test]
    fn revisions_that_are_written_together_share_what_sled_stores() {
        let (dir, engine) = fresh();
        let stored = |engine: &SledEngine| engine.db.range([KEYS]..[KEYS + 1]).count();
        engine.commit(&revisions(0..150)).unwrap();
        let blocks = stored(&engine);
        assert!((2..=15).contains(&blocks), "{blocks} blocks");
        // What is deleted in a block leaves the rest of it, under the same key.
        let mut deleted = Batch::new();
        (0..149).filter(|main| main % 10 != 3).for_each(|main| {
            deleted.delete(revision(main));
        });
        engine.commit(&deleted).unwrap();
        assert_eq!(stored(&engine), blocks);
        let left: Vec<_> = suite::contents(&engine).into_iter().map(|(key, _)| key).collect();
        let expected: Vec<_> = (0..149).filter(|main| main % 10 == 3).chain([149]).map(revision).collect();
        assert_eq!(left, expected);
        drop(engine);
        // After a start the next ones are behind it, and blocks again; an empty block goes away.
        let engine = SledEngine::open(&dir.path().join("db"), CACHE).unwrap();
        engine.commit(&revisions(150..300)).unwrap();
        assert!(stored(&engine) <= 2 * blocks);
        assert!(engine.get(&revision(149)).unwrap().unwrap() == suite::value(149, 100));
        let mut all = Batch::new();
        (0..300).for_each(|main| {
            all.delete(revision(main));
        });
        engine.commit(&all).unwrap();
        assert_eq!(stored(&engine), 0);
    }

    #[test]
    fn each_generation_has_its_own_blocks_beside_others_and_after_them() {
        let (dir, mut engine) = fresh();
        let of = |generation: u32, main: std::ops::Range<u64>| {
            let mut batch = Batch::new();
            for main in main {
                batch.put(keyspace::revision(generation, &main.to_be_bytes()), suite::value(main, 100));
            }
            batch
        };
        // A restore is under way, and ends badly.
        engine.commit(of(1, 0..30).append(of(2, 0..30))).unwrap();
        for step in 1..4 {
            engine.commit(of(1, 30 * step..30 * step + 30).append(of(2, 30 * step..30 * step + 30))).unwrap();
            drop(engine);
            engine = SledEngine::open(&dir.path().join("db"), CACHE).unwrap();
        }
        let mut gone = Batch::new();
        for write in of(2, 0..120).writes() {
            gone.delete(write.key.clone());
        }
        engine.commit(&gone).unwrap();
        engine.commit(&of(1, 120..150)).unwrap();
        let stored: Vec<sled::IVec> = engine.db.range([KEYS]..[KEYS + 1]).map(|entry| entry.unwrap().0).collect();
        assert!(stored.len() <= 5 * 3, "{} blocks", stored.len());
        assert!(
            suite::contents(&engine)
                .iter()
                .map(|(key, _)| key)
                .eq(of(1, 0..150).writes().iter().map(|write| &write.key))
        );
    }

    #[test]
    fn revisions_match_a_map_after_every_start() {
        let (dir, mut engine) = fresh();
        let mut model = BTreeMap::new();
        for seed in 0..8 {
            suite::random_revisions_match_a_map(&engine, &mut model, seed);
            drop(engine);
            engine = SledEngine::open(&dir.path().join("db"), CACHE).unwrap();
        }
        let kept = model.into_iter().collect::<Vec<_>>();
        assert!(suite::contents(&engine) == kept);
        // Copied in another order than they were written in, by a rewrite.
        let second = suite::rewritten(&engine);
        assert!(suite::contents(&*second) == kept);
    }

    #[test]
    fn a_damaged_block_is_reported_and_the_rest_stays_readable() {
        let (dir, engine) = fresh();
        engine.commit(&revisions(0..5)).unwrap();
        engine.commit(&revisions(5..10)).unwrap();
        engine.db.insert(revision(5), &[block::BLOCK, 200, 1]).unwrap();
        for broken in [engine.get(&revision(7)).err(), engine.scan(b"k", None, 99).err()] {
            assert!(matches!(broken, Some(Error::Corrupt { detail, .. }) if detail.contains("damaged")));
        }
        assert!(engine.get(&revision(3)).unwrap().unwrap() == suite::value(3, 100));
        assert_eq!(engine.scan(b"k", Some(&revision(5)), 99).unwrap().len(), 5);
        drop(engine);
        let refused = SledEngine::open(&dir.path().join("db"), CACHE);
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "the last revision is not known");
    }

    /// A reader never misses a record because another one of its block is deleted, replaced by a long one, or comes between; nor
    /// does it see one twice. sled cuts the borders of its leaves short: between 255 and 256 a block may reach beyond one.
    #[test]
    fn a_record_is_read_whatever_happens_to_its_block() {
        for from in [0, 200] {
            a_record_is_read(from);
        }
    }

    fn a_record_is_read(from: u64) {
        let (_dir, engine) = fresh();
        let to = from + 100;
        engine.commit(&revisions(from..to)).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..300_u64 {
                    let mut batch = Batch::new();
                    for main in (from..to).filter(|main| main % 5 != 2) {
                        match (main + round) % 7 {
                            0 => batch.put(revision(main), suite::value(main, 1500)),
                            1..4 => batch.delete(revision(main)),
                            _ => batch.put(revision(main), suite::value(main, 100)),
                        };
                    }
                    engine.commit(&batch).unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                for main in (from + 2..to).step_by(5) {
                    assert!(engine.get(&revision(main)).unwrap().unwrap() == suite::value(main, 100), "{main}");
                }
                let all = engine.scan(b"k", None, 999).unwrap();
                let kept = |(key, _): &&Record| (from + 2..to).step_by(5).any(|main| *key == revision(main));
                assert_eq!(all.iter().filter(kept).count(), 20);
                assert!(all.is_sorted_by(|one, next| one.0 < next.0));
            }
        });
    }

    #[test]
    fn a_lost_piece_is_reported_and_the_rest_stays_readable() {
        let (_dir, engine) = fresh();
        engine.commit(Batch::new().put("ka", suite::value(1, 20_000)).put("kb", "1")).unwrap();
        engine.db.remove(piece_key(b"ka", 3)).unwrap();
        assert!(matches!(engine.get(b"ka"), Err(Error::Corrupt { detail, .. }) if detail.contains("lacks piece 3")));
        assert!(engine.scan(b"k", None, 9).is_err());
        assert_eq!(engine.get(b"kb").unwrap().unwrap(), "1");

        engine.db.insert("kc", &[IN_PIECES, 0xff, 0xff, 0xff, 0xff]).unwrap();
        assert!(matches!(engine.get(b"kc"), Err(Error::Corrupt { .. })));
        engine.db.insert("kc", &[9, 9]).unwrap();
        assert!(matches!(engine.get(b"kc"), Err(Error::Corrupt { .. })));
        engine.db.insert("kc", &[]).unwrap();
        assert!(matches!(engine.get(b"kc"), Err(Error::Corrupt { .. })));
    }

    /// A reader beside a committer that replaces a large value always sees one of the values whole.
    #[test]
    fn a_large_value_is_never_read_in_part() {
        let (_dir, engine) = fresh();
        let key = keyspace::lease(1);
        engine.commit(Batch::new().put(key.clone(), vec![0; 20_000])).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..200_u8 {
                    let size = if n % 5 == 0 { 100 } else { 20_000 + usize::from(n) * 100 };
                    engine.commit(Batch::new().put(key.clone(), vec![n; size])).unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                for value in [engine.get(&key).unwrap().unwrap(), engine.scan(b"l", None, 1).unwrap().remove(0).1] {
                    let n = value[0];
                    let size = if n % 5 == 0 && n > 0 { 100 } else { 20_000 + usize::from(n) * 100 };
                    assert!(value.len() == size && value.iter().all(|&byte| byte == n), "torn value {n}");
                }
            }
        });
    }
}
