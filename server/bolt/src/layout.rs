//! Pass one: measures the file from the sizes of its records, because the meta pages at its very start must say how
//! long it will be and where its root is.

use crate::format::{
    BUCKET_HEADER, Fnv, MAX_BUCKETS, MAX_KEY_BYTES, MAX_VALUE_BYTES, PAGE_SIZE, PageId, TRAILER_BYTES,
};
use crate::tree::{Press, Tree};
use bytes::Bytes;
use std::convert::Infallible;

/// The measured file: what [`crate::Writer`] needs to know before its first byte, and what it holds pass two to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(crate) buckets: Vec<BucketLayout>,
    /// Root page of the bucket of buckets.
    pub(crate) root: PageId,
    /// Number of pages, which is the high-water mark.
    pub(crate) pages: u64,
}

/// What pass one saw of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketLayout {
    pub name: Bytes,
    pub sizes: Sizes,
    /// The page after the bucket's last.
    pub end: PageId,
}

/// Number and sizes of a bucket's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub records: u64,
    digest: Fnv,
}

/// A bucket or record that cannot be in a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// A record came before the first bucket.
    #[error("a record needs a bucket: name the bucket first")]
    NoBucket,
    /// Bucket names and keys have at least one byte.
    #[error("an empty key or bucket name in bucket {bucket:?}")]
    EmptyKey {
        /// The bucket, escaped.
        bucket: String,
    },
    /// Bucket names and keys have at most [`MAX_KEY_BYTES`].
    #[error("a key or bucket name of {len} bytes in bucket {bucket:?}, the limit is {MAX_KEY_BYTES}")]
    KeyTooLong {
        /// The bucket, escaped.
        bucket: String,
        /// Its length in bytes.
        len: usize,
    },
    /// Values have at most [`MAX_VALUE_BYTES`].
    #[error("a value of {len} bytes in bucket {bucket:?}, the limit is {MAX_VALUE_BYTES}")]
    ValueTooLong {
        /// The bucket, escaped.
        bucket: String,
        /// Its length in bytes.
        len: usize,
    },
    /// Buckets come once each, in ascending order of their names' bytes.
    #[error("bucket {name:?} after bucket {previous:?}: buckets come in ascending order of their names")]
    BucketOrder {
        /// The bucket before, escaped.
        previous: String,
        /// The refused bucket, escaped.
        name: String,
    },
    /// There are at most [`MAX_BUCKETS`] buckets.
    #[error("more than {MAX_BUCKETS} buckets")]
    TooManyBuckets,
}

impl Layout {
    /// Starts pass one.
    pub fn builder() -> LayoutBuilder {
        LayoutBuilder { buckets: Vec::new(), open: None, press: Measure { next: 2 } }
    }

    /// Bytes of the database, a multiple of [`PAGE_SIZE`]; the trailer comes on top.
    pub fn db_bytes(&self) -> u64 {
        self.pages * PAGE_SIZE as u64
    }

    /// Bytes of the whole file, with the trailer.
    pub fn file_bytes(&self) -> u64 {
        self.db_bytes() + TRAILER_BYTES as u64
    }
}

/// Pass one under way. Call [`bucket`](Self::bucket), then [`record`](Self::record) for each of its records in key
/// order, for each bucket in name order; then [`finish`](Self::finish).
pub struct LayoutBuilder {
    buckets: Vec<BucketLayout>,
    open: Option<Open>,
    press: Measure,
}

struct Open {
    name: Bytes,
    sizes: Sizes,
    tree: Tree<usize>,
}

impl LayoutBuilder {
    /// Starts the next bucket, which may stay empty. Refuses impossible names and a wrong order, and changes nothing then.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), InputError> {
        check_sizes(name, name.len(), 0)?;
        let previous = self.open.as_ref().map(|open| &open.name);
        if let Some(previous) = previous.filter(|previous| previous[..] >= *name) {
            return Err(InputError::BucketOrder { previous: escape(previous), name: escape(name) });
        }
        if self.buckets.len() + usize::from(self.open.is_some()) == MAX_BUCKETS {
            return Err(InputError::TooManyBuckets);
        }
        self.close();
        self.open = Some(Open { name: Bytes::copy_from_slice(name), sizes: Sizes::new(), tree: Tree::new() });
        Ok(())
    }

    /// Counts the next record of the open bucket. Refuses impossible sizes, and changes nothing then.
    pub fn record(&mut self, key_len: usize, value_len: usize) -> Result<(), InputError> {
        let Open { name, sizes, tree } = self.open.as_mut().ok_or(InputError::NoBucket)?;
        check_sizes(name, key_len, value_len)?;
        sizes.add(key_len, value_len);
        let Ok(()) = tree.push(key_len, value_len, || key_len, &mut self.press);
        Ok(())
    }

    /// Ends pass one.
    pub fn finish(mut self) -> Layout {
        self.close();
        let mut tree = Tree::new();
        for bucket in &self.buckets {
            let Ok(()) = tree.push(bucket.name.len(), BUCKET_HEADER, || bucket.name.len(), &mut self.press);
        }
        let Ok(root) = tree.finish(&mut self.press);
        Layout { buckets: self.buckets, root, pages: self.press.next }
    }

    fn close(&mut self) {
        if let Some(Open { name, sizes, tree }) = self.open.take() {
            let Ok(_root) = tree.finish(&mut self.press);
            self.buckets.push(BucketLayout { name, sizes, end: self.press.next });
        }
    }
}

/// The press of pass one: only numbers the pages. Pages 0 and 1 are the meta pages.
struct Measure {
    next: PageId,
}

impl Press<usize> for Measure {
    type Error = Infallible;

    fn leaf(&mut self, pages: u64) -> Result<PageId, Infallible> {
        let page = self.next;
        self.next += pages;
        Ok(page)
    }

    fn branch(&mut self, pages: u64, _children: &[(usize, PageId)]) -> Result<PageId, Infallible> {
        self.leaf(pages)
    }
}

impl Sizes {
    pub fn new() -> Self {
        Self { records: 0, digest: Fnv::new() }
    }

    pub fn add(&mut self, key_len: usize, value_len: usize) {
        self.records += 1;
        self.digest.update(&(key_len as u64).to_le_bytes());
        self.digest.update(&(value_len as u64).to_le_bytes());
    }
}

/// The limits of one record.
pub(crate) fn check_sizes(bucket: &[u8], key_len: usize, value_len: usize) -> Result<(), InputError> {
    if key_len == 0 {
        return Err(InputError::EmptyKey { bucket: escape(bucket) });
    }
    if key_len > MAX_KEY_BYTES {
        return Err(InputError::KeyTooLong { bucket: escape(bucket), len: key_len });
    }
    if value_len > MAX_VALUE_BYTES {
        return Err(InputError::ValueTooLong { bucket: escape(bucket), len: value_len });
    }
    Ok(())
}

/// A name for people, at most its first 64 bytes.
pub(crate) fn escape(name: &[u8]) -> String {
    name[..name.len().min(64)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_database_is_two_metas_and_an_empty_root() {
        let layout = Layout::builder().finish();
        assert_eq!((layout.root, layout.pages, layout.db_bytes(), layout.file_bytes()), (2, 3, 12_288, 12_320));
    }

    #[test]
    fn a_refused_bucket_or_record_changes_nothing() {
        let mut builder = Layout::builder();
        assert_eq!(builder.record(1, 1), Err(InputError::NoBucket));
        builder.bucket(b"b").unwrap();
        builder.record(3, 4).unwrap();
        assert!(matches!(builder.bucket(b"a"), Err(InputError::BucketOrder { .. })));
        assert!(matches!(builder.bucket(b"b"), Err(InputError::BucketOrder { .. })));
        assert!(matches!(builder.bucket(b""), Err(InputError::EmptyKey { .. })));
        assert!(matches!(builder.record(0, 4), Err(InputError::EmptyKey { .. })));
        assert!(matches!(builder.record(MAX_KEY_BYTES + 1, 4), Err(InputError::KeyTooLong { .. })));
        assert!(matches!(builder.record(1, MAX_VALUE_BYTES + 1), Err(InputError::ValueTooLong { .. })));
        let mut clean = Layout::builder();
        clean.bucket(b"b").unwrap();
        clean.record(3, 4).unwrap();
        assert_eq!(builder.finish(), clean.finish());
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let mut builder = Layout::builder();
        for bucket in 0..MAX_BUCKETS {
            builder.bucket(format!("{bucket:05}").as_bytes()).unwrap();
        }
        assert_eq!(builder.bucket(b"z"), Err(InputError::TooManyBuckets));
        // 1024 bucket entries of 37 bytes need a root of several pages.
        assert_eq!(builder.finish().pages, 2 + 1024 + 10 + 1);
    }
}
