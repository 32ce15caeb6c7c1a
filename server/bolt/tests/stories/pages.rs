//! Files that [`ferretcd_bolt::Writer`] would not write but bbolt may: laid out page by page.

use crate::support::{Contents, bucket, read};
use ferretcd_bolt::{Error, File, MetaDamage, Trailer};

/// Flags, key and value of a leaf element.
pub type Record<'r> = (u32, &'r [u8], &'r [u8]);

pub const LEAF: u16 = 2;
pub const BRANCH: u16 = 1;
pub const FREELIST: u16 = 0x10;
pub const NO_FREELIST: u64 = u64::MAX;

/// A database under construction: pages of `size` bytes. Whatever is wrong with it was put there on purpose.
#[derive(Clone)]
pub struct Pages {
    pub size: usize,
    pub bytes: Vec<u8>,
}

impl Pages {
    /// `pages` pages, two of them metas that name the root and the freelist; the first meta is the current one.
    pub fn new(size: usize, pages: usize, root: u64, freelist: u64) -> Self {
        let mut new = Self { size, bytes: vec![0; size * pages] };
        new.meta(0, 2, root, freelist);
        new.meta(1, 1, root, freelist);
        new
    }

    pub fn meta(&mut self, id: u64, txid: u64, root: u64, freelist: u64) {
        let pages = (self.bytes.len() / self.size) as u64;
        self.page(id, &meta(id, txid, self.size as u32, pages, root, freelist));
    }

    pub fn page(&mut self, id: u64, bytes: &[u8]) {
        let start = id as usize * self.size;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub fn leaf(&mut self, id: u64, overflow: u32, records: &[Record]) {
        self.page(id, &leaf(id, overflow, records));
    }

    pub fn branch(&mut self, id: u64, children: &[(&[u8], u64)]) {
        let mut out = header(id, BRANCH, children.len() as u16, 0);
        let mut position = children.len() * 16;
        for (key, child) in children {
            out.extend((position as u32).to_le_bytes());
            out.extend((key.len() as u32).to_le_bytes());
            out.extend(child.to_le_bytes());
            position = position + key.len() - 16;
        }
        children.iter().for_each(|(key, _)| out.extend(*key));
        self.page(id, &out);
    }

    pub fn freelist(&mut self, id: u64, count: u16, ids: &[u64]) {
        let ids = ids.iter().flat_map(|id| id.to_le_bytes());
        self.page(id, &header(id, FREELIST, count, 0).into_iter().chain(ids).collect::<Vec<_>>());
    }

    /// Overwrites 32 bits at an offset inside a page.
    pub fn poke(mut self, page: u64, at: usize, word: u32) -> Self {
        let start = page as usize * self.size + at;
        self.bytes[start..start + 4].copy_from_slice(&word.to_le_bytes());
        self
    }

    pub fn read(&self) -> Result<Contents, Error> {
        read(&self.bytes[..], Trailer::Ignore)
    }
}

/// A meta page with a valid checksum, whatever it says.
pub fn meta(id: u64, txid: u64, size: u32, pages: u64, root: u64, freelist: u64) -> Vec<u8> {
    let mut meta = [0; 64];
    meta[0..4].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
    meta[4] = 2;
    meta[8..12].copy_from_slice(&size.to_le_bytes());
    meta[16..24].copy_from_slice(&root.to_le_bytes());
    meta[32..40].copy_from_slice(&freelist.to_le_bytes());
    meta[40..48].copy_from_slice(&pages.to_le_bytes());
    meta[48..56].copy_from_slice(&txid.to_le_bytes());
    let sum = meta[..56]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    meta[56..].copy_from_slice(&sum.to_le_bytes());
    [&header(id, 4, 0, 0)[..], &meta].concat()
}

pub fn header(id: u64, flags: u16, count: u16, overflow: u32) -> Vec<u8> {
    [&id.to_le_bytes()[..], &flags.to_le_bytes(), &count.to_le_bytes(), &overflow.to_le_bytes()].concat()
}

pub fn leaf(id: u64, overflow: u32, records: &[Record]) -> Vec<u8> {
    let mut out = header(id, LEAF, records.len() as u16, overflow);
    let mut position = records.len() * 16;
    for (flags, key, value) in records {
        for word in [*flags, position as u32, key.len() as u32, value.len() as u32] {
            out.extend(word.to_le_bytes());
        }
        position = position + key.len() + value.len() - 16;
    }
    records.iter().for_each(|(_, key, value)| out.extend([*key, *value].concat()));
    out
}

/// A bucket's value: its root page and a sequence that nobody reads.
pub fn root(page: u64) -> Vec<u8> {
    [page.to_le_bytes(), 7u64.to_le_bytes()].concat()
}

/// The value of a bucket stored inline.
pub fn inline(records: &[Record]) -> Vec<u8> {
    [root(0), leaf(0, 0, records)].concat()
}

#[test]
fn every_page_size_a_stored_freelist_and_inline_buckets_are_read() {
    let small = inline(&[(0, b"authEnabled", b"\0"), (0, b"authRevision", b"12345678")]);
    let empty = inline(&[]);
    for size in [1024, 4096, 16_384, 65_536] {
        let mut pages = Pages::new(size, 9, 7, 3);
        pages.freelist(3, 1, &[4]);
        pages.leaf(5, 0, &[(0, b"b", b"2"), (0, b"c", b"3")]);
        // A root with a single child, and a key there that is less than the child's first: both are legal.
        pages.branch(6, &[(b"a", 5)]);
        pages.leaf(7, 1, &[(1, b"alarm", &empty), (1, b"auth", &small), (1, b"key", &root(6))]);
        let mut expected = bucket("key", [("b", "2"), ("c", "3")]);
        expected.extend(bucket("auth", [("authEnabled", "\0"), ("authRevision", "12345678")]));
        expected.extend(bucket("alarm", [("", ""); 0]));
        assert_eq!(pages.read().unwrap(), expected, "pages of {size} bytes");
        let file = File::open(&pages.bytes[..], Trailer::Ignore).unwrap();
        assert_eq!(file.db_bytes(), 9 * size as u64);
        // From 65535 free pages on the count is an id.
        pages.freelist(3, u16::MAX, &[1, 4]);
        assert_eq!(pages.read().unwrap(), expected);
    }
}

#[test]
fn a_record_larger_than_memory_pages_is_read_from_its_overflow_pages() {
    let value: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
    let mut pages = Pages::new(1024, 20, 2, NO_FREELIST);
    pages.leaf(2, 0, &[(1, b"key", &root(3))]);
    pages.leaf(3, 14, &[(0, b"a", b"before"), (0, b"b", &value), (0, b"c", b"after"), (0, b"d", &value)]);
    let value = &value[..];
    let expected = bucket("key", [("a", &b"before"[..]), ("b", value), ("c", b"after"), ("d", value)]);
    assert_eq!(pages.read().unwrap(), expected);
}

#[test]
fn the_newer_valid_meta_page_wins() {
    for size in [1024, 4096, 65_536] {
        let mut pages = Pages::new(size, 6, 2, NO_FREELIST);
        pages.leaf(2, 0, &[(1, b"old", &root(3))]);
        pages.leaf(3, 0, &[]);
        pages.leaf(4, 0, &[(1, b"new", &root(5))]);
        pages.leaf(5, 0, &[]);
        let name = |pages: &Pages| pages.read().unwrap().into_keys().next().unwrap();
        assert_eq!(name(&pages), b"old");
        pages.meta(1, 3, 4, NO_FREELIST);
        assert_eq!(name(&pages), b"new");
        // Without the first meta page the second has to be found at an unknown page size.
        assert_eq!(name(&pages.clone().poke(0, 16, 0)), b"new");
        // A newer meta page counts for nothing when it reaches beyond the file, has no root, or another page size.
        let bits = size as u32;
        let (other, least) = (if size == 1024 { 2048 } else { bits / 2 }, 4);
        for (bits, count, root) in [(bits, 7, 4), (bits, 1 << 60, 4), (bits, 6, 6), (bits, 6, 1), (other, least, 2)] {
            let mut wrong = pages.clone();
            wrong.page(1, &meta(1, 3, bits, count, root, NO_FREELIST));
            assert_eq!(name(&wrong), b"old", "{bits} {count} {root}");
        }
        let none = pages.poke(0, 16, 0).poke(1, 16 + 4, 1);
        assert!(matches!(
            none.read(),
            Err(Error::NoMeta { first: MetaDamage::Magic(0), second: MetaDamage::Version(1) })
        ));
    }
}

#[test]
fn a_raw_copy_is_only_read_when_asked_for() {
    let mut pages = Pages::new(4096, 4, 2, NO_FREELIST);
    pages.leaf(2, 0, &[(1, b"key", &root(3))]);
    pages.leaf(3, 0, &[]);
    let mut file = pages.bytes;
    assert!(matches!(read(&file[..], Trailer::Verify), Err(Error::NoTrailer { len: 16_384 })));
    assert!(read(&file[..], Trailer::Ignore).is_ok());
    // bbolt allocates ahead: a raw file may be longer than its pages.
    file.resize(8 * 4096, 0);
    assert!(read(&file[..], Trailer::Ignore).is_ok());
    file.extend([0; 32]);
    assert!(matches!(read(&file[..], Trailer::Verify), Err(Error::Digest { offset: 32_768, .. })));
    assert!(read(&file[..], Trailer::Ignore).is_ok());
    for len in [0, 1, 31, 100, 12_288 + 31, 12_288 + 33] {
        for trailer in [Trailer::Verify, Trailer::Ignore] {
            assert!(read(&file[..len], trailer).is_err(), "{len} bytes");
        }
    }
}
