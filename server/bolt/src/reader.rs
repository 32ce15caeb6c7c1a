//! Reads and validates a snapshot file, from whatever wrote it: etcd with any page size, `bbolt`, or [`crate::Writer`].
//!
//! The bytes are not trusted: every number is checked before it is used, no page is visited twice, and every element
//! lies behind the one before it, so the work is bounded by the length of the file.

use crate::format::{
    BUCKET_HEADER, ELEMENT, ELEMENT_BUCKET, FLAG_BRANCH, FLAG_FREELIST, FLAG_LEAF, MAX_BUCKETS, MAX_KEY_BYTES,
    MAX_VALUE_BYTES, META, Meta, MetaDamage, NO_FREELIST, PAGE_HEADER, PageHeader, PageId, TRAILER_BYTES, u32_at,
    u64_at,
};
use crate::layout::escape;
use crate::rev::RevisionKeyError;
use crate::summary::ValueDamage;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::io;
use std::os::unix::fs::FileExt;

/// Deepest tree that is followed. A tree of pages with two children each, the worst that bbolt leaves behind, reaches
/// four thousand million pages in 32 levels; etcd's have three or four. At most this many pages are in memory.
const MAX_DEPTH: usize = 32;

/// Bytes read at once where the file is read from end to end.
const READ_BYTES: usize = 256 * 1024;

/// Something with bytes at offsets: a file, or memory.
pub trait ReadAt {
    /// Fills `buf` with the bytes from `offset` on; an error of kind `UnexpectedEof` when there are not that many.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Number of bytes.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for std::fs::File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let from = start.and_then(|start| self.get(start..)).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

/// What to do about the digest at the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailer {
    /// It must be there and match: a snapshot as `etcdctl snapshot save` leaves it.
    Verify,
    /// It may be missing, and is not looked at: a raw copy of a member's database (`--skip-hash-check`).
    Ignore,
}

/// An opened snapshot file. Its meta pages and its list of buckets are valid; each bucket is validated as it is read.
pub struct File<R> {
    source: R,
    meta: Meta,
    buckets: Vec<Bucket>,
    /// Pages that belong to no bucket: metas, freelist, free pages, the list of buckets.
    taken: PageSet,
}

/// A top-level bucket.
struct Bucket {
    name: Bytes,
    tree: Root,
}

enum Root {
    Page(PageId),
    /// A small bucket stored inside the list of buckets: its only page, which starts at `offset` of the file.
    Inline {
        page: PageId,
        offset: u64,
        bytes: Bytes,
    },
}

/// Why a file is refused. Offsets and page numbers count from the start of the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source failed.
    #[error("cannot read {len} bytes at offset {offset} of the snapshot")]
    Read {
        /// Start of the bytes.
        offset: u64,
        /// Number of bytes.
        len: usize,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A raw database, and a snapshot was expected.
    #[error(
        "the file has {len} bytes, a multiple of 512, so it has no SHA-256 at its end: it is a raw copy of a database, \
         not a snapshot; only accept it without the hash check if you trust where it comes from"
    )]
    NoTrailer {
        /// Length of the file.
        len: u64,
    },
    /// No length that a snapshot can have.
    #[error("the file has {len} bytes; a snapshot has a multiple of 512, and {TRAILER_BYTES} more: it was cut off")]
    Length {
        /// Length of the file.
        len: u64,
    },
    /// The digest does not match.
    #[error("the SHA-256 of the database is {found}, the one at offset {offset} says {expected}: the file is damaged")]
    Digest {
        /// Where the stored digest is.
        offset: u64,
        /// Stored, in hexadecimal digits.
        expected: String,
        /// Computed, in hexadecimal digits.
        found: String,
    },
    /// Neither meta page is usable.
    #[error("the file is no bbolt database: meta page 0: {first}; meta page 1: {second}")]
    NoMeta {
        /// What is wrong with page 0.
        first: MetaDamage,
        /// What is wrong with page 1.
        second: MetaDamage,
    },
    /// A page is damaged.
    #[error("page {page} at offset {offset} of the snapshot is damaged: {damage}")]
    Page {
        /// Number of the page.
        page: u64,
        /// Its offset in the file.
        offset: u64,
        /// The damage.
        #[source]
        damage: Damage,
    },
    /// There is no such bucket.
    #[error("the snapshot has no bucket {name:?}")]
    NoBucket {
        /// The wanted bucket, escaped.
        name: String,
    },
    /// A key of bucket `key` is no revision.
    #[error("record {record} of bucket \"key\" is no revision")]
    RevisionKey {
        /// Position of the record in the bucket, from 0.
        record: u64,
        /// What is wrong with it.
        #[source]
        source: RevisionKeyError,
    },
    /// A value of bucket `key` is not an encoded `mvccpb.KeyValue`.
    #[error("the value of record {record} of bucket \"key\" is no KeyValue message")]
    Value {
        /// Position of the record in the bucket, from 0.
        record: u64,
        /// What is wrong with it.
        #[source]
        source: ValueDamage,
    },
}

/// What is wrong with a page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A reference to a page that cannot hold data.
    #[error("it is referred to, but data pages are 2 to {last}")]
    OutOfBounds {
        /// Last page below the high-water mark.
        last: u64,
    },
    /// Its header has another number.
    #[error("its header says page {0}")]
    Number(u64),
    /// Its type is not one of the expected.
    #[error("its flags are {0:#06x}, which is not the type of page expected here")]
    Flags(u16),
    /// Its overflow pages reach beyond the database.
    #[error("it has {overflow} overflow pages, but page {last} is the last")]
    Overflow {
        /// Overflow pages found.
        overflow: u32,
        /// Last page below the high-water mark.
        last: u64,
    },
    /// It was reached before, or is listed as free.
    #[error("page {0} is used twice, or used and listed as free")]
    Twice(u64),
    /// Its elements do not fit.
    #[error("its {count} elements do not fit into its {bytes} bytes")]
    Elements {
        /// Number of elements found.
        count: u64,
        /// Bytes of the page.
        bytes: u64,
    },
    /// A branch without children.
    #[error("it is a branch page without children")]
    EmptyBranch,
    /// The tree is too deep.
    #[error("it is more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// A key or value outside the page, or overlapping an earlier one.
    #[error(
        "the data of element {element} is bytes {start} to {end}, outside of bytes {from} to {to} that are left for it"
    )]
    Position {
        /// Index of the element.
        element: u16,
        /// First byte in the page.
        start: u64,
        /// Byte after the last.
        end: u64,
        /// First byte allowed.
        from: u64,
        /// Byte after the last allowed.
        to: u64,
    },
    /// An impossible key length.
    #[error("the key of element {element} has {len} bytes, not 1 to {MAX_KEY_BYTES}")]
    KeySize {
        /// Index of the element.
        element: u16,
        /// Its length.
        len: u32,
    },
    /// An impossible value length.
    #[error("the value of element {element} has {len} bytes, the limit is {MAX_VALUE_BYTES}")]
    ValueSize {
        /// Index of the element.
        element: u16,
        /// Its length.
        len: u32,
    },
    /// Keys out of order.
    #[error("the key of element {element} is not in ascending order")]
    Order {
        /// Index of the element.
        element: u16,
    },
    /// A bucket where a record should be, or the reverse.
    #[error("element {element} has flags {flags:#x}, which is not {expected}")]
    ElementFlags {
        /// Index of the element.
        element: u16,
        /// Its flags.
        flags: u32,
        /// What should be here.
        expected: &'static str,
    },
    /// A bucket's value is too short or too long.
    #[error("the bucket in element {element} has a value of {len} bytes")]
    BucketValue {
        /// Index of the element.
        element: u16,
        /// Length of the value.
        len: usize,
    },
    /// There are too many buckets.
    #[error("the database has more than {MAX_BUCKETS} buckets")]
    TooManyBuckets,
}

impl<R: ReadAt> File<R> {
    /// Opens a file: checks its digest (which reads all of it), its meta pages and its list of buckets.
    ///
    /// Afterwards memory holds one bit per page and the bucket names; while reading, one page per level and one record.
    pub fn open(source: R, trailer: Trailer) -> Result<Self, Error> {
        let len = source.size().map_err(|source| Error::Read { offset: 0, len: 0, source })?;
        let db_bytes = match (trailer, len % 512) {
            (_, 32) => len - TRAILER_BYTES as u64,
            (Trailer::Ignore, 0) => len,
            (Trailer::Verify, 0) => return Err(Error::NoTrailer { len }),
            _ => return Err(Error::Length { len }),
        };
        if trailer == Trailer::Verify {
            check_digest(&source, db_bytes)?;
        }
        let meta = choose_meta(&source, db_bytes)?;
        let mut file = Self { source, meta, buckets: Vec::new(), taken: PageSet::new(meta.pages) };
        file.taken.insert(0);
        file.taken.insert(1);
        file.read_freelist()?;
        file.read_buckets()?;
        Ok(file)
    }

    /// Names of the buckets, ascending.
    pub fn buckets(&self) -> impl Iterator<Item = &[u8]> {
        self.buckets.iter().map(|bucket| &bucket.name[..])
    }

    /// Bytes of the database up to its high-water mark.
    pub fn db_bytes(&self) -> u64 {
        self.meta.pages * u64::from(self.meta.page_size)
    }

    /// Calls `visit` with the key and value of each record of a bucket in ascending order of the keys, and validates
    /// every page of the bucket before its records are seen. What came before an error was valid.
    ///
    /// That two buckets do not share pages, only [`summary`](Self::summary) can see.
    pub fn for_each<E: From<Error>>(
        &self,
        bucket: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.walk_bucket(bucket, &mut self.taken.clone(), visit)
    }

    /// Pages that belong to no bucket, to which the walks of several buckets can add theirs.
    pub(crate) fn taken(&self) -> PageSet {
        self.taken.clone()
    }

    /// [`for_each`](Self::for_each) that also refuses the pages `seen` so far.
    pub(crate) fn walk_bucket<E: From<Error>>(
        &self,
        bucket: &[u8],
        seen: &mut PageSet,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let found = self.buckets.binary_search_by(|entry| entry.name[..].cmp(bucket)).ok();
        let Some(Bucket { tree, .. }) = found.and_then(|at| self.buckets.get(at)) else {
            return Err(Error::NoBucket { name: escape(bucket) }.into());
        };
        let root = match tree {
            Root::Page(id) => self.page(*id, seen)?,
            Root::Inline { page, offset, bytes } => Page::inline(*page, *offset, bytes)?,
        };
        self.walk(root, seen, |page, element, key, value| {
            if element.flags != 0 {
                let expected = "a record: buckets inside buckets are not etcd's";
                let (element, flags) = (element.index, element.flags);
                return Err(page.damage(Damage::ElementFlags { element, flags, expected }).into());
            }
            visit(key, value)
        })
    }

    /// Marks the freelist and the pages it lists, where the file has one. What it does not list is not checked: pages
    /// that are neither used nor free are lost to bbolt, not to a reader.
    fn read_freelist(&mut self) -> Result<(), Error> {
        if self.meta.freelist == NO_FREELIST {
            return Ok(());
        }
        let mut seen = std::mem::take(&mut self.taken);
        let page = self.load(self.meta.freelist, FLAG_FREELIST, &mut seen)?;
        // From 65535 ids on, the count is in the place of the first id.
        let (mut at, count) = match page.count {
            u16::MAX => (PAGE_HEADER as u64 + 8, self.u64_at(page.offset + PAGE_HEADER as u64)?),
            count => (PAGE_HEADER as u64, u64::from(count)),
        };
        if count > (page.bytes - at) / 8 {
            return Err(page.damage(Damage::Elements { count, bytes: page.bytes }));
        }
        let end = at + count * 8;
        let mut buf = vec![0; READ_BYTES.min((end - at) as usize)];
        while at < end {
            let some = READ_BYTES.min((end - at) as usize);
            let ids = &mut buf[..some];
            read(&self.source, ids, page.offset + at)?;
            for id in ids.chunks_exact(8).filter_map(|id| u64_at(id, 0)) {
                if !(2..self.meta.pages).contains(&id) {
                    return Err(self.damage(id, Damage::OutOfBounds { last: self.meta.pages - 1 }));
                }
                if !seen.insert(id) {
                    return Err(page.damage(Damage::Twice(id)));
                }
            }
            at += some as u64;
        }
        self.taken = seen;
        Ok(())
    }

    fn read_buckets(&mut self) -> Result<(), Error> {
        let mut seen = std::mem::take(&mut self.taken);
        let mut buckets = Vec::new();
        let root = self.page(self.meta.root, &mut seen)?;
        let inline_limit = self.meta.page_size as usize / 4;
        self.walk(root, &mut seen, |page, element, key, value| {
            let index = element.index;
            if element.flags != ELEMENT_BUCKET {
                let (flags, expected) = (element.flags, "a bucket: everything is inside a bucket");
                return Err(page.damage(Damage::ElementFlags { element: index, flags, expected }));
            }
            if buckets.len() == MAX_BUCKETS {
                return Err(page.damage(Damage::TooManyBuckets));
            }
            let damage = || page.damage(Damage::BucketValue { element: index, len: value.len() });
            let root = u64_at(value, 0).ok_or_else(damage)?;
            let inline = value.get(BUCKET_HEADER..).ok_or_else(damage)?;
            let tree = match root {
                // bbolt stores a bucket inline up to a quarter of a page.
                0 if (PAGE_HEADER..=inline_limit).contains(&inline.len()) => {
                    let offset = page.offset + element.value + BUCKET_HEADER as u64;
                    Root::Inline { page: page.id, offset, bytes: Bytes::copy_from_slice(inline) }
                }
                0 => return Err(damage()),
                root => Root::Page(root),
            };
            buckets.push(Bucket { name: Bytes::copy_from_slice(key), tree });
            Ok(())
        })?;
        self.buckets = buckets;
        self.taken = seen;
        Ok(())
    }

    /// Walks a tree in key order, calling `visit` with each leaf element, its key and its value.
    fn walk<E: From<Error>>(
        &self,
        root: Page,
        seen: &mut PageSet,
        mut visit: impl FnMut(&Page, Element, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stack = vec![root];
        // Keys of the elements passed so far: the last of a leaf, and the last of a branch, which bounds what is below.
        let mut last: Vec<u8> = Vec::new();
        let mut floor: Vec<u8> = Vec::new();
        let mut scratch = Vec::new();
        while let Some(page) = stack.last_mut() {
            let Some(element) = page.advance()? else {
                stack.pop();
                continue;
            };
            page.read(&element, &self.source, &mut scratch)?;
            let data = page.data(&element, &scratch);
            let (key, value) = data.split_at_checked(element.key_len).unwrap_or((data, &[]));
            // Keys are not empty, so the first of all is greater than the empty `last`. The first key of a page may
            // repeat the key that led to it, and must not be less.
            let repeats = element.index == 0 && key == floor.as_slice();
            let ordered = key > last.as_slice() && (key > floor.as_slice() || repeats);
            if !ordered {
                return Err(page.damage(Damage::Order { element: element.index }).into());
            }
            match element.child {
                None => {
                    visit(page, element, key, value)?;
                    last.clear();
                    last.extend_from_slice(key);
                }
                Some(child) => {
                    floor.clear();
                    floor.extend_from_slice(key);
                    let page = self.page(child, seen)?;
                    if stack.len() == MAX_DEPTH {
                        return Err(page.damage(Damage::TooDeep).into());
                    }
                    stack.push(page);
                }
            }
        }
        Ok(())
    }

    /// Reads a leaf or branch page and marks it as seen.
    fn page(&self, id: PageId, seen: &mut PageSet) -> Result<Page, Error> {
        let mut page = self.load(id, FLAG_LEAF | FLAG_BRANCH, seen)?;
        let elements = page.check_elements()?;
        // Most pages are read at once; of a larger one the elements, and then its records one by one.
        let len = (self.meta.page_size as usize).max(elements);
        page.head = vec![0; len];
        read(&self.source, &mut page.head, page.offset)?;
        Ok(page)
    }

    /// Reads the header of a page, checks it, and marks the page and its overflow pages as seen.
    fn load(&self, id: PageId, types: u16, seen: &mut PageSet) -> Result<Page, Error> {
        let last = self.meta.pages - 1;
        if !(2..=last).contains(&id) {
            return Err(self.damage(id, Damage::OutOfBounds { last }));
        }
        let offset = id * u64::from(self.meta.page_size);
        let mut bytes = [0; PAGE_HEADER];
        read(&self.source, &mut bytes, offset)?;
        let Some(header) = PageHeader::decode(&bytes) else { return Err(self.damage(id, Damage::Flags(0))) };
        let PageHeader { id: number, flags, count, overflow } = header;
        if number != id {
            return Err(self.damage(id, Damage::Number(number)));
        }
        if flags.count_ones() != 1 || flags & types == 0 {
            return Err(self.damage(id, Damage::Flags(flags)));
        }
        if u64::from(overflow) > last - id {
            return Err(self.damage(id, Damage::Overflow { overflow, last }));
        }
        for part in id..=id + u64::from(overflow) {
            if !seen.insert(part) {
                return Err(self.damage(id, Damage::Twice(part)));
            }
        }
        let bytes = (u64::from(overflow) + 1) * u64::from(self.meta.page_size);
        Ok(Page { id, offset, bytes, flags, count, head: Vec::new(), index: 0, free: 0 })
    }

    fn u64_at(&self, offset: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        read(&self.source, &mut bytes, offset)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn damage(&self, page: PageId, damage: Damage) -> Error {
        Error::Page { page, offset: page.saturating_mul(u64::from(self.meta.page_size)), damage }
    }
}

/// A leaf or branch page, and how far it has been read.
struct Page {
    id: PageId,
    /// Where it starts in the file.
    offset: u64,
    /// Bytes it may use, with its overflow pages.
    bytes: u64,
    flags: u16,
    count: u16,
    /// Its first bytes, at least to the end of its elements.
    head: Vec<u8>,
    /// The next element.
    index: u16,
    /// First byte of the page that no element has used yet.
    free: u64,
}

/// One element of a page, its numbers checked.
#[derive(Clone, Copy)]
struct Element {
    index: u16,
    flags: u32,
    /// Where its key starts in the page.
    key: u64,
    key_len: usize,
    /// Where its value starts in the page.
    value: u64,
    value_len: usize,
    /// In a branch page, the page below.
    child: Option<PageId>,
}

impl Page {
    /// The only page of an inline bucket. bbolt leaves its number 0.
    fn inline(id: PageId, offset: u64, bytes: &Bytes) -> Result<Self, Error> {
        let damage = |damage| Error::Page { page: id, offset, damage };
        let header = PageHeader::decode(bytes).ok_or_else(|| damage(Damage::Flags(0)))?;
        let PageHeader { flags, count, .. } = header;
        if flags != FLAG_LEAF {
            return Err(damage(Damage::Flags(flags)));
        }
        let len = bytes.len() as u64;
        let mut page = Self { id, offset, bytes: len, flags, count, head: bytes.to_vec(), index: 0, free: 0 };
        page.check_elements()?;
        Ok(page)
    }

    /// Checks that the element array fits, and returns the bytes up to its end.
    fn check_elements(&mut self) -> Result<usize, Error> {
        let end = PAGE_HEADER + usize::from(self.count) * ELEMENT;
        if end as u64 > self.bytes {
            return Err(self.damage(Damage::Elements { count: u64::from(self.count), bytes: self.bytes }));
        }
        if self.flags == FLAG_BRANCH && self.count == 0 {
            return Err(self.damage(Damage::EmptyBranch));
        }
        self.free = end as u64;
        Ok(end)
    }

    /// The next element, or `None` after the last.
    fn advance(&mut self) -> Result<Option<Element>, Error> {
        if self.index == self.count {
            return Ok(None);
        }
        let index = self.index;
        let at = PAGE_HEADER + usize::from(index) * ELEMENT;
        // The head reaches to the end of the elements, so the words are there.
        let word = |n: usize| u32_at(&self.head, at + n * 4).unwrap_or_default();
        let (flags, position, key_len, value_len, child) = match self.flags {
            FLAG_BRANCH => (0, word(0), word(1), 0, Some(u64::from(word(2)) | u64::from(word(3)) << 32)),
            _ => (word(0), word(1), word(2), word(3), None),
        };
        if key_len == 0 || key_len as usize > MAX_KEY_BYTES {
            return Err(self.damage(Damage::KeySize { element: index, len: key_len }));
        }
        if value_len as usize > MAX_VALUE_BYTES {
            return Err(self.damage(Damage::ValueSize { element: index, len: value_len }));
        }
        let key = at as u64 + u64::from(position);
        let value = key + u64::from(key_len);
        let end = value + u64::from(value_len);
        if key < self.free || end > self.bytes {
            let (from, to) = (self.free, self.bytes);
            return Err(self.damage(Damage::Position { element: index, start: key, end, from, to }));
        }
        self.free = end;
        self.index += 1;
        let (key_len, value_len) = (key_len as usize, value_len as usize);
        Ok(Some(Element { index, flags, key, key_len, value, value_len, child }))
    }

    /// Reads the key and value of an element into `scratch`, unless they are in memory already.
    fn read(&self, element: &Element, source: &impl ReadAt, scratch: &mut Vec<u8>) -> Result<(), Error> {
        let len = element.key_len + element.value_len;
        if element.key + len as u64 > self.head.len() as u64 {
            scratch.clear();
            // A single huge value must not stay in memory for the rest of the walk.
            scratch.shrink_to(1 << 20);
            scratch.resize(len, 0);
            read(source, scratch, self.offset + element.key)?;
        }
        Ok(())
    }

    /// The key and the value that [`read`](Self::read) has put in memory.
    fn data<'d>(&'d self, element: &Element, scratch: &'d [u8]) -> &'d [u8] {
        let start = element.key as usize;
        self.head.get(start..start + element.key_len + element.value_len).unwrap_or(scratch)
    }

    fn damage(&self, damage: Damage) -> Error {
        Error::Page { page: self.id, offset: self.offset, damage }
    }
}

/// A set of pages: one bit each, so 32 KiB per GiB of database with pages of 4096 bytes.
#[derive(Clone, Default)]
pub(crate) struct PageSet(Vec<u64>);

impl PageSet {
    fn new(pages: u64) -> Self {
        Self(vec![0; (pages / 64 + 1) as usize])
    }

    /// Whether the page is new in the set; a page outside of it is not.
    fn insert(&mut self, page: PageId) -> bool {
        let bit = 1 << (page % 64);
        match usize::try_from(page / 64).ok().and_then(|word| self.0.get_mut(word)) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }
}

fn read(source: &impl ReadAt, buf: &mut [u8], offset: u64) -> Result<(), Error> {
    let len = buf.len();
    source.read_at(buf, offset).map_err(|source| Error::Read { offset, len, source })
}

fn check_digest(source: &impl ReadAt, db_bytes: u64) -> Result<(), Error> {
    let mut sha = Sha256::new();
    let mut buf = vec![0; READ_BYTES];
    let mut offset = 0;
    while offset < db_bytes {
        let some = READ_BYTES.min(usize::try_from(db_bytes - offset).unwrap_or(READ_BYTES));
        read(source, &mut buf[..some], offset)?;
        sha.update(&buf[..some]);
        offset += some as u64;
    }
    let found: [u8; TRAILER_BYTES] = sha.finalize().into();
    let mut expected = [0; TRAILER_BYTES];
    read(source, &mut expected, db_bytes)?;
    if found != expected {
        return Err(Error::Digest { offset: db_bytes, expected: hex(&expected), found: hex(&found) });
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The meta page with the higher transaction number, of those that are valid.
fn choose_meta(source: &impl ReadAt, db_bytes: u64) -> Result<Meta, Error> {
    let first = read_meta(source, db_bytes, 0, 0)?;
    // The second page's offset is the page size: known from the first, or one of those possible.
    let sizes = match first {
        Ok(Meta { page_size, .. }) => page_size.trailing_zeros()..=page_size.trailing_zeros(),
        Err(_) => 10..=16,
    };
    let mut second = Err(MetaDamage::Short);
    for size in sizes.map(|bits| 1u32 << bits) {
        let meta = read_meta(source, db_bytes, 1, u64::from(size))?.and_then(|meta| match meta.page_size == size {
            true => Ok(meta),
            false => Err(MetaDamage::PageSize(meta.page_size)),
        });
        // Of several failures the most telling: one that got past the magic number.
        match (&second, &meta) {
            (_, Ok(_)) => {
                second = meta;
                break;
            }
            (Err(MetaDamage::Short | MetaDamage::Magic(_)), _) => second = meta,
            _ => {}
        }
    }
    match (first, second) {
        (Ok(first), Ok(second)) if second.txid > first.txid => Ok(second),
        (Ok(first), _) => Ok(first),
        (Err(_), Ok(second)) => Ok(second),
        (Err(first), Err(second)) => Err(Error::NoMeta { first, second }),
    }
}

/// A meta page, and whether it fits the file. The outer error is the source's.
fn read_meta(source: &impl ReadAt, db_bytes: u64, id: PageId, offset: u64) -> Result<Result<Meta, MetaDamage>, Error> {
    let mut bytes = [0; PAGE_HEADER + META];
    if offset + bytes.len() as u64 > db_bytes {
        return Ok(Err(MetaDamage::Short));
    }
    read(source, &mut bytes, offset)?;
    Ok(Meta::decode(id, &bytes).and_then(|meta| {
        let Meta { page_size, root, pages, .. } = meta;
        if pages.checked_mul(u64::from(page_size)).is_none_or(|bytes| bytes > db_bytes) {
            return Err(MetaDamage::Pages { pages, page_size, db_bytes });
        }
        if !(2..pages).contains(&root) {
            return Err(MetaDamage::Root { root, pages });
        }
        Ok(meta)
    }))
}
