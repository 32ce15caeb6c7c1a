//! From a snapshot file to the commands of a restore: the whole file is checked before anything is proposed.

use crate::error::chain;
use crate::snapshot::buckets::{self, KeyRecord, ReadFault};
use bytes::Bytes;
use ferretcd_bolt::{File, ReadAt, Trailer};
use ferretcd_types::codec::encode_restore_record;
use ferretcd_types::{Error, RestoreRecord, RestoreTotals, Revision};
use sha2::{Digest, Sha256};

/// Checks a whole snapshot file: its SHA-256, its structure, every record; then counts what a restore of it stages.
/// Anything wrong is an [`Error::BadSnapshot`] that says what and where.
///
/// Chunks hold at most `max_chunk_bytes`, except that a larger record is a chunk of its own
/// ([`RestoreSource::largest_chunk_bytes`] tells). Reads the file three times, in memory of a few pages, a chunk, and a
/// little per key.
pub fn restore_plan(file: &dyn ReadAt, max_chunk_bytes: usize) -> Result<RestoreSource<'_>, Error> {
    let file = File::open(file, Trailer::Verify).map_err(|err| Error::BadSnapshot(chain(&err)))?;
    buckets::require(&file, &[buckets::KEY, buckets::META]).map_err(Error::BadSnapshot)?;
    // Sees every page of every bucket, those that no record is taken from too.
    file.summary().map_err(|err| Error::BadSnapshot(chain(&err)))?;
    let mut source = RestoreSource {
        file,
        max_chunk_bytes,
        compacted: -1,
        totals: RestoreTotals { checksum: Bytes::from_static(&[0; 32]), ..RestoreTotals::default() },
        revision: 0,
        bytes: 0,
        largest_chunk_bytes: 0,
    };
    let mut totals = source.totals.clone();
    let (mut revision, mut bytes, mut largest) = (0, 0, 0);
    source.compacted = buckets::read_compacted(&source.file).map_err(refused::<Error>)?;
    source.records(|record| {
        match record {
            RestoreRecord::Key { revision: at, .. } => {
                totals.keys += 1;
                revision = at.main;
            }
            RestoreRecord::Lease { .. } => totals.leases += 1,
            RestoreRecord::User { .. } => totals.users += 1,
            RestoreRecord::Role { .. } => totals.roles += 1,
            RestoreRecord::Auth { .. } => {}
        }
        Ok::<_, Error>(())
    })?;
    let (mut chunks, mut checksum) = (0, totals.checksum.clone());
    source.for_each_chunk(|_, chunk| {
        chunks += 1;
        checksum = Bytes::copy_from_slice(&Sha256::new().chain_update(&checksum).chain_update(&chunk).finalize());
        bytes += chunk.len() as u64;
        largest = largest.max(chunk.len());
        Ok::<_, Error>(())
    })?;
    (totals.chunks, totals.checksum) = (chunks, checksum);
    (source.totals, source.revision, source.bytes, source.largest_chunk_bytes) = (totals, revision, bytes, largest);
    Ok(source)
}

/// A checked file, ready to be proposed piece by piece.
pub struct RestoreSource<'a> {
    file: File<&'a dyn ReadAt>,
    max_chunk_bytes: usize,
    /// Revision up to which its history is compacted; -1 for none.
    compacted: i64,
    totals: RestoreTotals,
    revision: i64,
    bytes: u64,
    largest_chunk_bytes: usize,
}

impl RestoreSource<'_> {
    /// What the Commit must name.
    pub fn totals(&self) -> &RestoreTotals {
        &self.totals
    }

    /// Revision that its member had: of its last change, or that of a compaction which left none so late; 0 when there is neither.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Bytes of all chunks: about what the restored key space takes, and what goes through the log.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the largest chunk. Above the asked maximum only for a single record that is itself above it: refuse the
    /// file if the log does not take such an entry.
    pub fn largest_chunk_bytes(&self) -> usize {
        self.largest_chunk_bytes
    }

    /// Reads the file again and hands over its chunks in order, each with its sequence number. The visitor may block,
    /// and ends the work by an error.
    pub fn for_each_chunk<E: From<Error>>(&self, mut visit: impl FnMut(u64, Bytes) -> Result<(), E>) -> Result<(), E> {
        let mut chunk = Vec::new();
        let mut sequence = 0;
        let mut hand_over = |chunk: &mut Vec<u8>| {
            let full = Bytes::from(std::mem::take(chunk));
            sequence += 1;
            visit(sequence - 1, full)
        };
        self.records::<E>(|record| {
            let record = encode_restore_record(&record);
            if !chunk.is_empty() && chunk.len() + record.len() > self.max_chunk_bytes {
                hand_over(&mut chunk)?;
            }
            chunk.extend_from_slice(&record);
            Ok(())
        })?;
        match chunk.is_empty() {
            true => Ok(()),
            false => hand_over(&mut chunk),
        }
    }

    /// Visits all records: auth, leases, users, roles, then the keys in the order of history.
    fn records<E: From<Error>>(&self, mut visit: impl FnMut(RestoreRecord) -> Result<(), E>) -> Result<(), E> {
        buckets::read_small(&self.file, &mut visit).map_err(refused)?;
        let mut last = 0;
        buckets::read_keys(&self.file, buckets::KEY, |KeyRecord { revision, tombstone, value, .. }| {
            last = revision.main;
            visit(RestoreRecord::Key { revision, tombstone, value })
        })
        .map_err(refused)?;
        // A restored member, or one whose last deletions were compacted away, has had revisions of which no record is left. A
        // record of no key, as `etcdutl snapshot restore --mark-compacted` leaves one, lifts the revision over them.
        match self.compacted > last {
            true => {
                let revision = Revision::new(self.compacted, 0);
                visit(RestoreRecord::Key { revision, tombstone: false, value: Bytes::new() })
            }
            false => Ok(()),
        }
    }
}

fn refused<E: From<Error>>(fault: ReadFault<E>) -> E {
    match fault {
        ReadFault::File(why) => E::from(Error::BadSnapshot(why)),
        ReadFault::Visit(err) => err,
    }
}
