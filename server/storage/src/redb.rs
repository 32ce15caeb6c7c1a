//! The second engine on disk: redb, a B-tree whose pages carry checksums and are never overwritten while a durable root
//! names them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, StorageError, TableDefinition};

use crate::engine::{Batch, Engine, Limit, Page, Write};
use crate::error::{Error, Result};
use crate::home;
use crate::keyspace::ENGINE_PRIVATE;

/// An [`Engine`] in a directory of its own, which holds one file.
///
/// Commits stay in memory and in the page cache until a flush, which is an empty commit with an fsync: redb makes all
/// earlier ones durable with it. After a crash the file shows the last flush, whatever else reached the disk.
pub struct RedbEngine {
    db: Database,
    path: PathBuf,
    /// As it was opened with, for the next one.
    cache_bytes: u64,
    /// Where it is, if it was made to replace another one in this process.
    place: Option<home::Next>,
}

/// All records: redb would allow more tables, but a batch in one is one tree to write.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

/// The file's name in its directory.
const FILE: &str = "redb";

impl RedbEngine {
    /// Opens the database in `path`, creating it if absent. `cache_bytes` bounds redb's page cache.
    ///
    /// [`Error::Corrupt`] means that the directory should be moved aside and rebuilt. Every page is checked: redb
    /// itself looks at checksums after a crash only, and would read a page with a flipped bit as it is.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<RedbEngine> {
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let mut builder = Database::builder();
        builder.set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX)).set_check_integrity_on_open(true);
        let db = builder.create(path.join(FILE)).map_err(|err| unopened(err, path))?;
        let engine = RedbEngine { db, path: path.to_owned(), cache_bytes, place: None };
        // The first flush also persists what an earlier process wrote and never synced, before anybody relies on it.
        engine.write(&Batch::new(), Durability::Immediate)?;
        home::sync_names(path)?;
        Ok(engine)
    }

    fn write(&self, batch: &Batch, durability: Durability) -> Result<()> {
        let mut transaction = self.db.begin_write().map_err(|err| self.failed(err))?;
        transaction.set_durability(durability).map_err(|err| Error::Engine(err.to_string()))?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(|err| self.failed(err))?;
            for Write { key, value } in batch.writes() {
                match value {
                    Some(value) => records.insert(key.as_ref(), value.as_ref()).map(drop),
                    None => records.remove(key.as_ref()).map(drop),
                }
                .map_err(|err| self.failed(err))?;
            }
        }
        transaction.commit().map_err(|err| self.failed(err))
    }

    fn records(&self) -> Result<redb::ReadOnlyTable<&'static [u8], &'static [u8]>> {
        let transaction = self.db.begin_read().map_err(|err| self.failed(err))?;
        transaction.open_table(RECORDS).map_err(|err| self.failed(err))
    }

    fn failed(&self, err: impl Into<redb::Error>) -> Error {
        translated(err.into(), &self.path)
    }
}

impl Engine for RedbEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let found = self.records()?.get(key).map_err(|err| self.failed(err))?;
        Ok(found.map(|value| Bytes::copy_from_slice(value.value())))
    }

    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        const LAST: &[u8] = &[ENGINE_PRIVATE];
        let end = end.unwrap_or(LAST).min(LAST);
        let mut page = Page::default();
        if page.is_full(limit) || start >= end {
            return Ok(page);
        }
        let records = self.records()?;
        for entry in records.range(start..end).map_err(|err| self.failed(err))? {
            let (key, value) = entry.map_err(|err| self.failed(err))?;
            page.push((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value.value())));
            if page.is_full(limit) {
                break;
            }
        }
        Ok(page)
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        batch.check()?;
        self.write(batch, Durability::None)
    }

    fn flush(&self) -> Result<()> {
        self.write(&Batch::new(), Durability::Immediate)
    }

    fn size_on_disk(&self) -> Result<u64> {
        let file = self.path.join(FILE);
        fs::metadata(&file).map(|metadata| metadata.len()).map_err(Error::io("look at", &file))
    }

    fn fresh(&self) -> Result<Option<Arc<dyn Engine>>> {
        let place = home::Next::begin(&self.path)?;
        match RedbEngine::open(&place.path, self.cache_bytes) {
            Ok(engine) => Ok(Some(Arc::new(RedbEngine { place: Some(place), ..engine }))),
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

fn unopened(err: DatabaseError, path: &Path) -> Error {
    match err {
        // Of a file that was never redb's, or lost its beginning, redb says so as an I/O error.
        DatabaseError::Storage(StorageError::Io(source))
            if matches!(source.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            Error::Corrupt { path: path.to_owned(), detail: source.to_string() }
        }
        DatabaseError::UpgradeRequired(version) => {
            Error::Corrupt { path: path.to_owned(), detail: format!("it has file format version {version}") }
        }
        other => translated(other.into(), path),
    }
}

fn translated(err: redb::Error, path: &Path) -> Error {
    match err {
        redb::Error::Io(source) => Error::io("read or write the database in", path)(source),
        redb::Error::Corrupted(detail) => Error::Corrupt { path: path.to_owned(), detail },
        other => Error::Engine(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keyspace, suite};

    const CACHE: u64 = 16 << 20;

    fn fresh() -> (tempfile::TempDir, RedbEngine) {
        let dir = tempfile::tempdir().unwrap();
        let engine = RedbEngine::open(&dir.path().join("db"), CACHE).unwrap();
        (dir, engine)
    }

    #[test]
    fn passes_the_engine_suite() {
        let (_dir, engine) = fresh();
        suite::run(&engine);
    }

    #[test]
    fn a_reopened_database_holds_what_was_committed() {
        let (dir, engine) = fresh();
        engine.commit(Batch::new().put("ka", "1").put("kb", suite::value(2, 100_000))).unwrap();
        engine.commit(Batch::new().put("kc", "3").delete("ka")).unwrap();
        drop(engine);
        for _ in 0..3 {
            let engine = RedbEngine::open(&dir.path().join("db"), CACHE).unwrap();
            assert_eq!(engine.get(b"ka").unwrap(), None);
            assert!(engine.get(b"kb").unwrap().unwrap() == suite::value(2, 100_000));
            assert_eq!(engine.scan(b"kc", None, 9).unwrap(), [(Bytes::from("kc"), Bytes::from("3"))]);
            assert!(engine.size_on_disk().unwrap() > 100_000);
        }
    }

    #[test]
    fn a_rewrite_keeps_every_record_and_gives_space_back() {
        let (dir, engine) = fresh();
        for n in 0..300 {
            engine.commit(Batch::new().put(keyspace::lease(n), suite::value(n as u64, 20_000))).unwrap();
        }
        for n in 20..300 {
            engine.commit(Batch::new().delete(keyspace::lease(n))).unwrap();
        }
        engine.flush().unwrap();
        let (records, before) = (engine.scan(b"", None, 999).unwrap(), engine.size_on_disk().unwrap());
        let second = suite::rewritten(&engine);
        drop(engine);
        second.settle().unwrap();
        assert!(second.scan(b"", None, 999).unwrap() == records);
        let after = second.size_on_disk().unwrap();
        assert!(after < before / 2, "{before} bytes before, {after} after");
        second.commit(Batch::new().put("kb", "later")).unwrap();
        drop(second);
        let home = home::newest(&dir.path().join("db")).unwrap();
        assert_eq!(home, dir.path().join("db.1"));
        let again = RedbEngine::open(&home, CACHE).unwrap();
        assert_eq!(again.scan(b"", None, 999).unwrap().len(), records.len() + 1);
    }

    #[test]
    fn a_rewrite_that_fails_leaves_the_engine_as_it_was() {
        let (dir, engine) = fresh();
        engine.commit(Batch::new().put("ka", "1")).unwrap();
        fs::create_dir_all(dir.path().join("db.1/taken")).unwrap();
        assert!(engine.fresh().is_err());
        engine.commit(Batch::new().put("kb", "2")).unwrap();
        assert_eq!(engine.scan(b"k", None, 9).unwrap().len(), 2);
        assert!(!dir.path().join("db.1.part").exists());
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
    fn a_second_opener_is_refused() {
        let (dir, _engine) = fresh();
        let refused = RedbEngine::open(&dir.path().join("db"), CACHE).err().unwrap();
        assert!(refused.to_string().contains("already open"), "{refused}");
    }

    /// Whatever byte is flipped: the database is refused, or holds exactly what it held.
    #[test]
    fn a_flipped_byte_never_changes_what_is_read() {
        let (dir, engine) = fresh();
        for n in 0..200 {
            engine.commit(Batch::new().put(keyspace::lease(n), suite::value(n as u64, 300))).unwrap();
        }
        engine.flush().unwrap();
        let records = engine.scan(b"", None, 999).unwrap();
        drop(engine);
        let (path, mut refused) = (dir.path().join("db"), 0);
        let whole = fs::read(path.join(FILE)).unwrap();
        let mut random = suite::Random(5);
        for _ in 0..100 {
            // The file is mostly room: half of the flips go where something is.
            let mut at = random.below(whole.len() as u64) as usize;
            if random.below(2) == 0 {
                at = (at..whole.len()).chain(0..at).find(|&at| whole[at] != 0).unwrap();
            }
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << random.below(8);
            fs::write(path.join(FILE), damaged).unwrap();
            match RedbEngine::open(&path, CACHE) {
                Ok(engine) => assert!(engine.scan(b"", None, 999).unwrap() == records, "byte {at} changed the records"),
                Err(Error::Corrupt { .. }) => refused += 1,
                Err(other) => panic!("byte {at}: {other:?}"),
            }
        }
        assert!(refused > 20, "{refused} of 100 were noticed");
    }

    #[test]
    fn a_file_that_is_not_redbs_is_damage() {
        let (dir, engine) = fresh();
        drop(engine);
        let path = dir.path().join("db");
        fs::write(path.join(FILE), vec![b'x'; 100_000]).unwrap();
        let refused = RedbEngine::open(&path, CACHE);
        assert!(matches!(refused, Err(Error::Corrupt { .. })), "{:?}", refused.err());
    }
}
