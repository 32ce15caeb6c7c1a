//! Pass two: writes the measured file from first byte to last, and hands it on in chunks as it goes.

use crate::format::{
    BUCKET_HEADER, ELEMENT, ELEMENT_BUCKET, FLAG_BRANCH, FLAG_LEAF, FLAG_META, Meta, NO_FREELIST, PAGE_HEADER,
    PAGE_SIZE, PageHeader, PageId, TRAILER_BYTES,
};
use crate::layout::{BucketLayout, InputError, Layout, Sizes, check_sizes, escape};
use crate::tree::{Press, Tree};
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use std::io;

/// Bytes of the chunks that a [`Writer`] hands on: what etcd puts into one message of its snapshot stream.
pub const CHUNK_BYTES: usize = 32 * 1024;

/// The transaction number of the first meta page; the second has one less, as in the copies that bbolt makes.
const TXID: u64 = 2;

/// Pass two under way. Call [`bucket`](Self::bucket), [`record`](Self::record) and [`finish`](Self::finish) with what
/// pass one measured, in the same order.
///
/// The sink gets the file in order: chunks of [`CHUNK_BYTES`], a shorter last one, and the [`TRAILER_BYTES`] of the
/// digest alone, so a chunk is a message of etcd's snapshot stream. It may block (a bounded channel's `blocking_send`
/// is the backpressure) and end the work by an error. At any time at most one leaf, one branch page per level and one
/// chunk are in memory.
///
/// After an error the writer refuses everything, and the trailer is never sent: there is no wrong file that looks right.
pub struct Writer<S> {
    layout: Layout,
    press: Printer<S>,
    /// Root pages of the buckets that are complete.
    roots: Vec<PageId>,
    open: Option<Open>,
    failed: bool,
}

struct Open {
    sizes: Sizes,
    last_key: Vec<u8>,
    tree: Tree<Bytes>,
}

/// Why pass two stopped.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A bucket or record that cannot be in a file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Keys come once each, in ascending order.
    #[error("record {record} of bucket {bucket:?} has a key that is not greater than the one before it")]
    KeyOrder {
        /// The bucket, escaped.
        bucket: String,
        /// Position of the refused record, from 0.
        record: u64,
    },
    /// Pass two differs from pass one.
    #[error("the second pass differs from the first in bucket {bucket:?}: {what}; both must see the same records")]
    Changed {
        /// The bucket, escaped.
        bucket: String,
        /// The difference.
        what: String,
    },
    /// The sink refused a chunk.
    #[error("the database could not be handed on at byte {offset}")]
    Sink {
        /// Offset of the refused chunk in the file.
        offset: u64,
        /// The sink's reason.
        #[source]
        source: io::Error,
    },
    /// An earlier call failed.
    #[error("an earlier error has ended this file; start again with the first pass")]
    Failed,
}

impl<S: FnMut(Bytes) -> io::Result<()>> Writer<S> {
    /// Starts pass two with the meta pages; the sink is called later.
    pub fn new(layout: Layout, sink: S) -> Self {
        let mut press = Printer {
            next: 2,
            limit: layout.pages,
            flags: 0,
            leaf: Leaf::default(),
            stream: Stream::new(sink),
            bucket: String::new(),
        };
        let mut meta = Meta {
            page_size: PAGE_SIZE as u32,
            root: layout.root,
            freelist: NO_FREELIST,
            pages: layout.pages,
            txid: TXID,
        };
        for id in 0..2 {
            let header = PageHeader { id, flags: FLAG_META, count: 0, overflow: 0 };
            press.stream.fill(&header.encode());
            press.stream.fill(&meta.encode());
            press.stream.fill(&[0; PAGE_SIZE - PAGE_HEADER - crate::format::META]);
            meta.txid -= 1;
        }
        Self { layout, press, roots: Vec::new(), open: None, failed: false }
    }

    /// Starts the next bucket, after completing the one before.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.guarded(|writer| {
            writer.close()?;
            let plan = writer.layout.buckets.get(writer.roots.len());
            let Some(plan) = plan.filter(|plan| plan.name == name) else {
                let what = match plan {
                    Some(plan) => format!("the first pass had bucket {:?} here", escape(&plan.name)),
                    None => "the first pass had no more buckets".to_string(),
                };
                return Err(WriteError::Changed { bucket: escape(name), what });
            };
            writer.press.limit = plan.end;
            writer.press.bucket = escape(name);
            writer.open = Some(Open { sizes: Sizes::new(), last_key: Vec::new(), tree: Tree::new() });
            Ok(())
        })
    }

    /// Writes the next record of the open bucket.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        self.guarded(|writer| {
            let Open { sizes, last_key, tree } = writer.open.as_mut().ok_or(InputError::NoBucket)?;
            let plan = &writer.layout.buckets[writer.roots.len()];
            check_sizes(&plan.name, key.len(), value.len())?;
            if key <= last_key.as_slice() {
                return Err(WriteError::KeyOrder { bucket: escape(&plan.name), record: sizes.records });
            }
            if sizes.records == plan.sizes.records {
                return Err(changed(plan, format!("it has more than {} records", plan.sizes.records)));
            }
            sizes.add(key.len(), value.len());
            last_key.clear();
            last_key.extend_from_slice(key);
            tree.push(key.len(), value.len(), || Bytes::copy_from_slice(key), &mut writer.press)?;
            writer.press.leaf.add(key, value);
            Ok(())
        })
    }

    /// Completes the file and returns the digest that ends it.
    pub fn finish(mut self) -> Result<[u8; TRAILER_BYTES], WriteError> {
        self.guarded(|writer| {
            writer.close()?;
            if let Some(plan) = writer.layout.buckets.get(writer.roots.len()) {
                return Err(changed(plan, "it is missing".to_string()));
            }
            let press = &mut writer.press;
            press.limit = writer.layout.pages;
            press.flags = ELEMENT_BUCKET;
            press.bucket = "(the list of buckets)".to_string();
            let mut tree = Tree::new();
            for (plan, root) in writer.layout.buckets.iter().zip(&writer.roots) {
                let mut value = [0; BUCKET_HEADER];
                value[..8].copy_from_slice(&root.to_le_bytes());
                tree.push(plan.name.len(), value.len(), || plan.name.clone(), press)?;
                press.leaf.add(&plan.name, &value);
            }
            let root = tree.finish(press)?;
            if (root, press.next) != (writer.layout.root, writer.layout.pages) {
                // Equal sizes give equal pages; this would be an error of this crate, and must still not become a file.
                let what = format!("{} pages instead of {}", press.next, writer.layout.pages);
                return Err(WriteError::Changed { bucket: press.bucket.clone(), what });
            }
            press.stream.finish()
        })
    }

    /// Completes the open bucket, if any.
    fn close(&mut self) -> Result<(), WriteError> {
        let Some(Open { sizes, tree, .. }) = self.open.take() else { return Ok(()) };
        let plan = &self.layout.buckets[self.roots.len()];
        if sizes != plan.sizes {
            let what = match sizes.records == plan.sizes.records {
                true => "its records have other sizes".to_string(),
                false => format!("it has {} records instead of {}", sizes.records, plan.sizes.records),
            };
            return Err(changed(plan, what));
        }
        self.roots.push(tree.finish(&mut self.press)?);
        Ok(())
    }

    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, WriteError>) -> Result<T, WriteError> {
        if self.failed {
            return Err(WriteError::Failed);
        }
        let result = work(self);
        self.failed = result.is_err();
        result
    }
}

fn changed(plan: &BucketLayout, what: String) -> WriteError {
    WriteError::Changed { bucket: escape(&plan.name), what }
}

/// The press of pass two: prints the pages in the order in which they are complete.
struct Printer<S> {
    next: PageId,
    /// The page that pass one says must not be reached yet.
    limit: PageId,
    /// Flags of the leaf elements: buckets or records.
    flags: u32,
    leaf: Leaf,
    stream: Stream<S>,
    /// For errors.
    bucket: String,
}

/// The records of the open leaf.
#[derive(Default)]
struct Leaf {
    /// Key and value length of each.
    sizes: Vec<(u32, u32)>,
    /// Keys and values, one after the other.
    data: Vec<u8>,
}

impl Leaf {
    /// The lengths have been checked against limits far below 4 GiB.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.sizes.push((key.len() as u32, value.len() as u32));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }
}

impl<S: FnMut(Bytes) -> io::Result<()>> Printer<S> {
    /// Numbers the next page, and prints its header.
    fn page(&mut self, flags: u16, count: usize, pages: u64) -> Result<PageId, WriteError> {
        let id = self.next;
        if self.limit.saturating_sub(id) < pages {
            let what = "its records need more pages".to_string();
            return Err(WriteError::Changed { bucket: self.bucket.clone(), what });
        }
        self.next += pages;
        // `Tree` keeps the count below 500, and MAX_VALUE_BYTES the pages below 2^16.
        let header = PageHeader { id, flags, count: count as u16, overflow: (pages - 1) as u32 };
        self.stream.write(&header.encode())?;
        Ok(id)
    }

    /// Fills up the page that ends before page `next`.
    fn pad(&mut self) -> Result<(), WriteError> {
        let zeros = self.next * PAGE_SIZE as u64 - self.stream.written();
        self.stream.write(&[0; PAGE_SIZE][..zeros as usize])
    }
}

impl<S: FnMut(Bytes) -> io::Result<()>> Press<Bytes> for Printer<S> {
    type Error = WriteError;

    fn leaf(&mut self, pages: u64) -> Result<PageId, WriteError> {
        let count = self.leaf.sizes.len();
        let id = self.page(FLAG_LEAF, count, pages)?;
        let mut data = 0;
        for (i, (key, value)) in self.leaf.sizes.iter().enumerate() {
            // Positions count from the element itself: the elements still to come, then the data before this one's.
            let position = ((count - i) * ELEMENT) as u32 + data;
            self.stream.write(&element([self.flags, position, *key, *value]))?;
            data += key + value;
        }
        self.stream.write(&self.leaf.data)?;
        self.leaf.sizes.clear();
        self.leaf.data.clear();
        // A single huge value must not stay in memory for the rest of the file.
        self.leaf.data.shrink_to(1 << 20);
        self.pad()?;
        Ok(id)
    }

    fn branch(&mut self, pages: u64, children: &[(Bytes, PageId)]) -> Result<PageId, WriteError> {
        let id = self.page(FLAG_BRANCH, children.len(), pages)?;
        let mut data = 0;
        for (i, (key, child)) in children.iter().enumerate() {
            let position = ((children.len() - i) * ELEMENT) as u32 + data;
            let [low, high] = [*child as u32, (*child >> 32) as u32];
            self.stream.write(&element([position, key.len() as u32, low, high]))?;
            data += key.len() as u32;
        }
        for (key, _) in children {
            self.stream.write(key)?;
        }
        self.pad()?;
        Ok(id)
    }
}

fn element(words: [u32; 4]) -> [u8; ELEMENT] {
    let mut out = [0; ELEMENT];
    for (place, word) in out.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    out
}

/// Cuts the bytes into chunks and sums them up.
struct Stream<S> {
    sink: S,
    chunk: BytesMut,
    /// Bytes handed on.
    sent: u64,
    sha: Sha256,
}

impl<S: FnMut(Bytes) -> io::Result<()>> Stream<S> {
    fn new(sink: S) -> Self {
        Self { sink, chunk: BytesMut::with_capacity(CHUNK_BYTES), sent: 0, sha: Sha256::new() }
    }

    /// Bytes written, handed on or not.
    fn written(&self) -> u64 {
        self.sent + self.chunk.len() as u64
    }

    /// Adds to the chunk what certainly fits: the meta pages at the start.
    fn fill(&mut self, bytes: &[u8]) {
        self.chunk.extend_from_slice(bytes);
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
            if self.chunk.len() == CHUNK_BYTES {
                self.flush()?;
                self.chunk = BytesMut::with_capacity(CHUNK_BYTES);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        let chunk = std::mem::take(&mut self.chunk).freeze();
        self.sha.update(&chunk);
        self.send(chunk)
    }

    fn send(&mut self, chunk: Bytes) -> Result<(), WriteError> {
        let (offset, len) = (self.sent, chunk.len() as u64);
        (self.sink)(chunk).map_err(|source| WriteError::Sink { offset, source })?;
        self.sent += len;
        Ok(())
    }

    fn finish(&mut self) -> Result<[u8; TRAILER_BYTES], WriteError> {
        if !self.chunk.is_empty() {
            self.flush()?;
        }
        let digest: [u8; TRAILER_BYTES] = std::mem::take(&mut self.sha).finalize().into();
        self.send(Bytes::copy_from_slice(&digest))?;
        Ok(digest)
    }
}
