//! What a storage engine must do: an ordered map of bytes with atomic batches and a real fsync.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::keyspace;

/// An ordered map from keys to values. Keys are unsigned bytes in lexical order; the first byte is the keyspace
/// (see [`keyspace`](crate::keyspace)).
///
/// Readers may run at any time beside one committer. Every call may block on the disk: keep it off async threads.
pub trait Engine: Send + Sync {
    /// The value last committed for `key`, or None.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// Records with `start <= key < end` in key order (`end` None: to the last key), up to the one that makes the page full.
    ///
    /// A caller pages by starting the next call at the last key + `0x00` ([`keyspace::after`](crate::keyspace::after))
    /// and has seen everything when a page is not [full](Page::is_full). A batch committed during the call may be seen in part.
    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page>;

    /// At most `limit` records, as [`Engine::page`]. For who chooses `limit` so that so many of the largest values fit in memory.
    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<Record>> {
        self.page(start, end, Limit { records: limit, bytes: usize::MAX }).map(|page| page.records)
    }

    /// Writes the whole batch or nothing, visible when the call returns; durable only after [`Engine::flush`]. A crash
    /// before that may lose the batch, never a part of it, and never an earlier batch while keeping a later one.
    ///
    /// The sled engine stops all its readers for the length of a batch (about 8 us per operation or 4 KiB), so callers
    /// keep batches to some 200 operations; see [`Batch::len`] and [`Batch::bytes`].
    fn commit(&self, batch: &Batch) -> Result<()>;

    /// Returns when everything committed before the call survives a power cut (a real fsync, not a hint).
    fn flush(&self) -> Result<()>;

    /// Bytes that the engine's files occupy. Not the size of the live data: files need not shrink after deletes.
    fn size_on_disk(&self) -> Result<u64>;

    /// An empty engine on files beside this one's own, to be filled with what this one holds and to take its place: the way to
    /// give space back. Until [`Engine::finish`] a start takes its files for those of an interrupted rewrite, and deletes them.
    /// `None` where there is no space to give back. After an error there is nothing left of it.
    fn fresh(&self) -> Result<Option<Arc<dyn Engine>>> {
        Ok(None)
    }

    /// An error if the volume of the files should take no more of a copy, so that there is room for what the member must write.
    /// An engine may have kept so many bytes from it until its next flush.
    fn has_room(&self, _unflushed: u64) -> Result<()> {
        Ok(())
    }

    /// Called on an engine that came from [`Engine::fresh`] when it holds everything, durably: from here on a start takes it.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    /// Called on an engine that came from [`Engine::fresh`] and is not needed after all: deletes its files. It is not used
    /// afterwards.
    fn discard(&self) -> Result<()> {
        Ok(())
    }

    /// Called on an engine that has taken another's place, when nobody uses that one any more: deletes its files.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// A key and its value.
pub type Record = (Bytes, Bytes);

/// How much one page of a range may hold: no record more once it has so many, or so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Records.
    pub records: usize,
    /// Bytes of keys and values; the last record may go over it.
    pub bytes: usize,
}

/// Some records of a range in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The records.
    pub records: Vec<Record>,
    /// Bytes of their keys and values.
    pub bytes: usize,
}

impl Page {
    /// Adds the next record.
    pub fn push(&mut self, (key, value): Record) {
        self.bytes += key.len() + value.len();
        self.records.push((key, value));
    }

    /// No more may be added: there may be further records behind it.
    pub fn is_full(&self, limit: Limit) -> bool {
        self.records.len() >= limit.records || self.bytes >= limit.bytes
    }
}

/// The longest key. An index page of sled has 256 keys and must stay below 128 KiB, where sled moves it to a blob file
/// that it never syncs: 256 x (256 + overhead) is about 70 KiB.
pub const MAX_KEY_BYTES: usize = 256;

/// The longest value: 1 GiB. Far above any request (1.5 MiB by default); its length must fit the u32 on disk.
pub const MAX_VALUE_BYTES: usize = 1 << 30;

/// Memory that a write costs besides its key and value: the two handles, the queue slot and the index entry.
const WRITE_OVERHEAD_BYTES: usize = 128;

/// Writes that become visible and durable together. Of several writes to one key the last one counts.
///
/// A batch is never split, so the caller decides what belongs together, and keeps it small (see [`Engine::commit`]).
/// Values should own their memory: a value that is a slice of a larger buffer keeps the whole buffer until committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    writes: Vec<Write>,
    bytes: usize,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The full key, keyspace byte first.
    pub key: Bytes,
    /// The new value, or None to delete the key (deleting an absent key is fine).
    pub value: Option<Bytes>,
}

impl Batch {
    /// A batch without writes.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Self {
        self.push(Write { key: key.into(), value: Some(value.into()) })
    }

    /// Removes `key`.
    pub fn delete(&mut self, key: impl Into<Bytes>) -> &mut Self {
        self.push(Write { key: key.into(), value: None })
    }

    /// Adds the writes of `later` after this batch's own.
    pub fn append(&mut self, later: Batch) -> &mut Self {
        self.bytes += later.bytes;
        self.writes.extend(later.writes);
        self
    }

    /// The writes, first to last.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// How many writes it has.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it has no writes.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The memory it holds, in bytes: keys, values and a fixed cost per write.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Refuses keys and values that no engine may store. Engines and the write-behind call it before anything else.
    pub(crate) fn check(&self) -> Result<()> {
        for Write { key, value } in &self.writes {
            let first = key.first().copied();
            if key.len() > MAX_KEY_BYTES || first.is_none_or(|byte| byte == keyspace::ENGINE_PRIVATE) {
                return Err(Error::Key { len: key.len(), first });
            }
            if let Some(value) = value
                && value.len() > MAX_VALUE_BYTES
            {
                return Err(Error::Value { len: value.len() });
            }
        }
        Ok(())
    }

    fn push(&mut self, write: Write) -> &mut Self {
        self.bytes += write.key.len() + write.value.as_ref().map_or(0, Bytes::len) + WRITE_OVERHEAD_BYTES;
        self.writes.push(write);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_counts_its_writes_and_bytes_through_append() {
        let mut first = Batch::new();
        first.put("ka", "1234").delete("kb");
        let mut second = Batch::new();
        second.put("kc", "5");
        let bytes = first.bytes() + second.bytes();
        first.append(second);
        assert_eq!(first.len(), 3);
        assert_eq!(first.bytes(), bytes);
        assert_eq!(bytes, 2 + 4 + 2 + 2 + 1 + 3 * WRITE_OVERHEAD_BYTES);
    }

    #[test]
    fn keys_outside_the_rules_are_refused_by_name() {
        let refused = |key: Vec<u8>| matches!(Batch::new().put(key, "v").check(), Err(Error::Key { .. }));
        assert!(refused(vec![]));
        assert!(refused(vec![0xff, 1]));
        assert!(refused(vec![b'k'; MAX_KEY_BYTES + 1]));
        assert!(!refused(vec![b'k'; MAX_KEY_BYTES]));
        assert!(matches!(Batch::new().delete("").check(), Err(Error::Key { len: 0, first: None })));
    }
}
