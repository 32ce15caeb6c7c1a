//! Keys and ranges of keys, with etcd's `range_end` rules in one place.

use bytes::Bytes;
use std::ops::Bound;

/// A key, or a half-open range of keys, as etcd's requests name it.
///
/// An empty `end` is the single key `start`; an `end` of one zero byte is every key from `start` on; anything else is
/// the range `[start, end)`, which may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The key, or the first key of the range.
    pub start: Bytes,
    /// etcd's `range_end`.
    pub end: Bytes,
}

impl KeyRange {
    /// A single key.
    pub fn single(key: impl Into<Bytes>) -> Self {
        KeyRange { start: key.into(), end: Bytes::new() }
    }

    /// A range from its wire form.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        KeyRange { start: start.into(), end: end.into() }
    }

    /// Every key that begins with `prefix`; an empty prefix is every key.
    pub fn prefix(prefix: &[u8]) -> Self {
        if prefix.is_empty() {
            return KeyRange::all();
        }
        KeyRange { start: Bytes::copy_from_slice(prefix), end: prefix_end(prefix) }
    }

    /// Every key.
    pub fn all() -> Self {
        KeyRange { start: Bytes::from_static(b"\0"), end: Bytes::from_static(b"\0") }
    }

    /// True when this names one key and not a range.
    pub fn is_single(&self) -> bool {
        self.end.is_empty()
    }

    /// True when the range has no upper bound.
    pub fn is_from_key(&self) -> bool {
        self.end.as_ref() == b"\0"
    }

    /// True when no key can lie in it.
    pub fn is_empty(&self) -> bool {
        !self.is_single() && !self.is_from_key() && self.start >= self.end
    }

    /// True when `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_single() {
            return self.start == key;
        }
        key >= self.start.as_ref() && (self.is_from_key() || key < self.end.as_ref())
    }

    /// The bounds for an ordered map. Only for a range that is not [`KeyRange::is_empty`]: std's maps panic on
    /// reversed bounds.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let upper = if self.is_single() {
            Bound::Included(self.start.as_ref())
        } else if self.is_from_key() {
            Bound::Unbounded
        } else {
            Bound::Excluded(self.end.as_ref())
        };
        (Bound::Included(self.start.as_ref()), upper)
    }

    /// True when some key could lie in both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        if self.is_single() {
            return other.contains(&self.start);
        }
        if other.is_single() {
            return self.contains(&other.start);
        }
        if self.is_empty() || other.is_empty() {
            return false;
        }
        (other.is_from_key() || self.start < other.end) && (self.is_from_key() || other.start < self.end)
    }
}

/// The first key after every key with this prefix: the prefix with its last byte that can grow grown by one. A prefix
/// of nothing but 0xff has no such key, and etcd's form for "to the end" stands for it.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return Bytes::from(end);
        }
        end.pop();
    }
    Bytes::from_static(b"\0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_end_rules() {
        assert!(KeyRange::single("a").contains(b"a") && !KeyRange::single("a").contains(b"aa"));
        assert!(KeyRange::new("a", "c").contains(b"bz") && !KeyRange::new("a", "c").contains(b"c"));
        assert!(KeyRange::new("b", "\0").contains(b"zzz") && !KeyRange::new("b", "\0").contains(b"a"));
        assert!(KeyRange::all().contains(b"\0") && KeyRange::all().contains(b"\xff"));
        assert!(KeyRange::new("c", "a").is_empty());
    }

    #[test]
    fn prefixes_end_after_their_last_key() {
        assert_eq!(prefix_end(b"foo"), "fop");
        assert_eq!(prefix_end(b"a\xff"), "b");
        assert_eq!(prefix_end(b"\xff\xff").as_ref(), b"\0");
    }

    #[test]
    fn overlaps() {
        assert!(KeyRange::new("a", "c").overlaps(&KeyRange::new("b", "d")));
        assert!(!KeyRange::new("a", "b").overlaps(&KeyRange::new("b", "d")));
        assert!(KeyRange::new("a", "\0").overlaps(&KeyRange::single("z")));
        assert!(!KeyRange::new("a", "c").overlaps(&KeyRange::single("c")));
    }
}
