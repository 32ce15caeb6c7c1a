//! The numbers and fixed structures of the bbolt file format that the writer and the reader share.
//!
//! Source of the facts: the file format of go.etcd.io/bbolt v1.5.0 (version 2 files), which etcd 3.7 uses.
//! All integers are little-endian.

/// Bytes of one page in the files that [`crate::Writer`] writes; the usual operating system page, and etcd's own choice there.
pub const PAGE_SIZE: usize = 4096;

/// Bytes of the SHA-256 digest that ends a snapshot file.
pub const TRAILER_BYTES: usize = 32;

/// Longest key in bytes, both written and accepted: bbolt's own limit.
pub const MAX_KEY_BYTES: usize = 32_768;

/// Longest value in bytes, both written and accepted, 128 MiB. bbolt would take 2 GiB, but a value is held in memory
/// as a whole, and etcd refuses requests above `--max-request-bytes` (1.5 MiB unless told, a warning above 10 MiB).
pub const MAX_VALUE_BYTES: usize = 128 << 20;

/// Most top-level buckets in a file, both written and accepted. etcd has ten; their names are held in memory.
pub const MAX_BUCKETS: usize = 1024;

/// Number of a page; its offset in the file is this times the page size.
pub(crate) type PageId = u64;

pub(crate) const PAGE_HEADER: usize = 16;
/// Leaf and branch pages use elements of the same size.
pub(crate) const ELEMENT: usize = 16;
/// The fixed head of a bucket's value: root page id and sequence.
pub(crate) const BUCKET_HEADER: usize = 16;

pub(crate) const FLAG_BRANCH: u16 = 0x01;
pub(crate) const FLAG_LEAF: u16 = 0x02;
pub(crate) const FLAG_META: u16 = 0x04;
pub(crate) const FLAG_FREELIST: u16 = 0x10;

/// Flag of a leaf element whose value is a bucket.
pub(crate) const ELEMENT_BUCKET: u32 = 0x01;

/// Freelist page id of a file that does not store its free pages; etcd's own files do not.
pub(crate) const NO_FREELIST: PageId = u64::MAX;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Bytes of a meta structure up to its checksum, and with it.
const META_SUMMED: usize = 56;
pub(crate) const META: usize = 64;

/// The first bytes of every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub id: PageId,
    pub flags: u16,
    pub count: u16,
    /// Pages after the first that belong to this one.
    pub overflow: u32,
}

impl PageHeader {
    pub fn encode(self) -> [u8; PAGE_HEADER] {
        let mut out = [0; PAGE_HEADER];
        out[0..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..10].copy_from_slice(&self.flags.to_le_bytes());
        out[10..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..16].copy_from_slice(&self.overflow.to_le_bytes());
        out
    }

    /// `None` when `bytes` is shorter than a header.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let id = u64_at(bytes, 0)?;
        let types = u32_at(bytes, 8)?;
        let overflow = u32_at(bytes, 12)?;
        Some(Self { id, flags: types as u16, count: (types >> 16) as u16, overflow })
    }
}

/// What a meta page says: where the tree of buckets starts and how far the file reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub page_size: u32,
    /// Root page of the bucket of buckets.
    pub root: PageId,
    pub freelist: PageId,
    /// The high-water mark: every page in use has a smaller id.
    pub pages: PageId,
    pub txid: u64,
}

/// Why a meta page cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaDamage {
    /// The file ends before the meta page does.
    #[error("the file ends inside it")]
    Short,
    /// The page is not marked as a meta page with its own number.
    #[error("its page header says page {id} with flags {flags:#06x}")]
    Header {
        /// The page number found.
        id: u64,
        /// The page flags found.
        flags: u16,
    },
    /// The magic number is not bbolt's.
    #[error("its magic number is {0:#010x}, not bbolt's")]
    Magic(u32),
    /// The format version is not 2.
    #[error("its format version is {0}, only version 2 is known")]
    Version(u32),
    /// The checksum is not the one of the contents.
    #[error("its checksum is {found:#018x}, its contents give {expected:#018x}")]
    Checksum {
        /// Computed over the contents.
        expected: u64,
        /// Stored.
        found: u64,
    },
    /// The page size is not a power of two from 1024 to 65536, or not the one that leads to this page.
    #[error("its page size {0} is not possible here")]
    PageSize(u32),
    /// The file is shorter than the pages it should have.
    #[error("it counts {pages} pages of {page_size} bytes, but the database has {db_bytes} bytes")]
    Pages {
        /// The high-water mark found.
        pages: u64,
        /// Bytes per page.
        page_size: u32,
        /// Bytes that are there, without the trailer.
        db_bytes: u64,
    },
    /// The root page is not a data page below the high-water mark.
    #[error("its root page {root} is not between 2 and the {pages} pages of the database")]
    Root {
        /// The root page found.
        root: u64,
        /// The high-water mark.
        pages: u64,
    },
}

impl Meta {
    /// The 64 bytes that follow the page header.
    pub fn encode(&self) -> [u8; META] {
        let mut out = [0; META];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&VERSION.to_le_bytes());
        out[8..12].copy_from_slice(&self.page_size.to_le_bytes());
        // 12..16 are flags and 24..32 the root bucket's sequence, both zero.
        out[16..24].copy_from_slice(&self.root.to_le_bytes());
        out[32..40].copy_from_slice(&self.freelist.to_le_bytes());
        out[40..48].copy_from_slice(&self.pages.to_le_bytes());
        out[48..56].copy_from_slice(&self.txid.to_le_bytes());
        let sum = Fnv::of(&out[..META_SUMMED]);
        out[META_SUMMED..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the meta page `id` from its page header on. Says nothing yet about the file it belongs to.
    pub fn decode(id: PageId, page: &[u8]) -> Result<Self, MetaDamage> {
        let header = PageHeader::decode(page).ok_or(MetaDamage::Short)?;
        let body = page.get(PAGE_HEADER..PAGE_HEADER + META).ok_or(MetaDamage::Short)?;
        let u32_at = |at| u32_at(body, at).ok_or(MetaDamage::Short);
        let u64_at = |at| u64_at(body, at).ok_or(MetaDamage::Short);
        // The magic number first: it tells "not a database at all" from "damaged".
        let magic = u32_at(0)?;
        if magic != MAGIC {
            return Err(MetaDamage::Magic(magic));
        }
        let version = u32_at(4)?;
        if version != VERSION {
            return Err(MetaDamage::Version(version));
        }
        let (found, expected) = (u64_at(META_SUMMED)?, Fnv::of(&body[..META_SUMMED]));
        if found != expected {
            return Err(MetaDamage::Checksum { expected, found });
        }
        if header.id != id || header.flags != FLAG_META {
            return Err(MetaDamage::Header { id: header.id, flags: header.flags });
        }
        let page_size = u32_at(8)?;
        if !page_size.is_power_of_two() || !(1024..=65536).contains(&page_size) {
            return Err(MetaDamage::PageSize(page_size));
        }
        Ok(Self { page_size, root: u64_at(16)?, freelist: u64_at(32)?, pages: u64_at(40)?, txid: u64_at(48)? })
    }
}

/// FNV-1a, 64 bits: the checksum of meta pages, and good enough to notice that two passes saw different sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fnv(u64);

impl Fnv {
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn of(bytes: &[u8]) -> u64 {
        let mut fnv = Self::new();
        fnv.update(bytes);
        fnv.0
    }
}

/// The little-endian integer at `at`; `None` outside `bytes`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// The little-endian integer at `at`; `None` outside `bytes`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_matches_the_published_vectors() {
        assert_eq!(Fnv::of(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(Fnv::of(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(Fnv::of(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_page_survives_the_round_trip_and_no_flipped_bit() {
        let meta = Meta { page_size: 4096, root: 7, freelist: NO_FREELIST, pages: 8, txid: 2 };
        let mut page = PageHeader { id: 0, flags: FLAG_META, count: 0, overflow: 0 }.encode().to_vec();
        page.extend(meta.encode());
        assert_eq!(Meta::decode(0, &page), Ok(meta));
        // The meta body and the type of the page are protected; count and overflow of a meta page mean nothing.
        for byte in (0..10).chain(PAGE_HEADER..PAGE_HEADER + META) {
            for bit in 0..8 {
                page[byte] ^= 1 << bit;
                assert!(Meta::decode(0, &page).is_err(), "byte {byte} bit {bit}");
                page[byte] ^= 1 << bit;
            }
        }
        assert_eq!(Meta::decode(0, &page[..79]), Err(MetaDamage::Short));
    }
}
