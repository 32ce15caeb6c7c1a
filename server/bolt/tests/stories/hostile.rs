//! Damaged and hostile files: refused with a reason, never a panic, never a loop.

use crate::pages::{BRANCH, FREELIST, NO_FREELIST, Pages, Record, inline, root};
use crate::support::{Rng, bucket, read, write};
use ferretcd_bolt::{Damage, Error, File, MAX_BUCKETS, ReadAt, Trailer};
use std::cell::Cell;
use std::io;

/// Memory that counts what is read of it.
struct Counted<'b> {
    bytes: &'b [u8],
    read: Cell<usize>,
}

impl ReadAt for Counted<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.set(self.read.get() + buf.len());
        self.bytes.read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.bytes.size()
    }
}

/// Reads everything twice, and makes sure that the work is in proportion to the file.
fn survive(bytes: &[u8]) -> Result<(), Error> {
    let source = Counted { bytes, read: Cell::new(0) };
    let result = read(&source, Trailer::Ignore).map(drop);
    let summary = File::open(&source, Trailer::Ignore).and_then(|file| file.summary());
    assert!(source.read.get() <= 8 * bytes.len() + 4096, "{} bytes of {} read", source.read.get(), bytes.len());
    result.and(summary.map(drop))
}

#[test]
fn every_flipped_byte_of_a_snapshot_is_noticed() {
    let mut file = write(&bucket("key", [("a", "1"), ("b", "2")]));
    for at in 0..file.len() {
        file[at] ^= 1 << (at % 8);
        assert!(matches!(File::open(&file[..], Trailer::Verify), Err(Error::Digest { .. })), "byte {at}");
        file[at] ^= 1 << (at % 8);
    }
    assert!(File::open(&file[..], Trailer::Verify).is_ok());
}

#[test]
fn every_cut_snapshot_is_noticed() {
    let file = write(&bucket("key", [("a", "1"), ("b", "2")]));
    for len in (0..file.len()).filter(|len| len % 97 == 0 || len % 512 == 32) {
        assert!(File::open(&file[..len], Trailer::Verify).is_err(), "{len} bytes");
    }
}

/// Several levels, several buckets, overflow pages.
fn large() -> Vec<u8> {
    let mut contents = bucket("data", (0..300).map(|n| (format!("{n:0600}"), vec![n as u8; 700])));
    contents.extend(bucket("lease", (0..3).map(|n| (format!("{n}"), vec![n as u8; 9000]))));
    contents.extend(bucket("meta", [("term", "1")]));
    let mut file = write(&contents);
    file.truncate(file.len() - 32);
    file
}

#[test]
fn no_flipped_byte_of_an_unsealed_database_hurts() {
    let mut contents = bucket("data", (0..40).map(|n| (format!("{n:04}"), vec![n as u8; 120])));
    contents.extend(bucket("lease", [("a", vec![0; 5000])]));
    let mut file = write(&contents);
    file.truncate(file.len() - 32);
    for at in 0..file.len() {
        // All three where the structures are, one of them in the data and the padding.
        let flips = [0x01, 0x80, 0xff];
        for flip in if at % 4096 < 256 { &flips[..] } else { &flips[at % 3..][..1] } {
            file[at] ^= flip;
            let _either = survive(&file);
            file[at] ^= flip;
        }
    }
    survive(&file).unwrap();
}

#[test]
fn no_rewritten_structure_of_an_unsealed_database_hurts() {
    let clean = large();
    let pages = clean.len() / 4096;
    let (mut rng, mut refused) = (Rng(42), 0);
    for _ in 0..3000 {
        let mut file = clean.clone();
        for _ in 0..1 + rng.below(3) {
            // Any word of a page's header or of its elements, with a number that means something somewhere.
            let at = (2 + rng.below(pages - 2)) * 4096 + rng.below(16) * 4;
            let word = match rng.below(5) {
                0 => rng.below(pages + 2) as u32,
                1 => rng.next() as u32,
                2 => [0, 1, 2, 0x10, 0xffff, 0x7fff_ffff, u32::MAX][rng.below(7)],
                3 => 16 * rng.below(300) as u32,
                _ => 1 << rng.below(32),
            };
            file[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        refused += usize::from(survive(&file).is_err());
    }
    assert!(refused > 1000, "only {refused} were damaged");
}

/// The list of buckets is page 2, bucket `data` starts at page 3.
fn sound() -> Pages {
    let mut pages = Pages::new(1024, 8, 2, NO_FREELIST);
    pages.leaf(2, 0, &[(1, b"data", &root(3))]);
    pages.branch(3, &[(b"a", 4), (b"d", 5)]);
    pages.leaf(4, 0, &[(0, b"a", b"1"), (0, b"c", b"2")]);
    pages.leaf(5, 0, &[(0, b"d", b"3"), (0, b"e", b"4")]);
    pages
}

/// The page that is blamed, and for what.
fn blame(pages: &Pages) -> (u64, Damage) {
    match pages.read().and_then(|_| File::open(&pages.bytes[..], Trailer::Ignore)?.summary()) {
        Err(Error::Page { page, offset, damage }) => {
            assert_eq!(offset / 1024, page);
            (page, damage)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reference_to_no_page_is_refused() {
    assert!(sound().read().is_ok());
    for page in [0, 1, 8, 1 << 20] {
        let pages = sound().poke(3, 16 + 16 + 8, page);
        assert_eq!(blame_loose(&pages), Damage::OutOfBounds { last: 7 }, "page {page}");
    }
    assert_eq!(blame_loose(&sound().poke(3, 16 + 12, 1)), Damage::OutOfBounds { last: 7 }, "beyond 32 bits");
    assert_eq!(blame(&sound().poke(5, 0, 6)), (5, Damage::Number(6)));
    assert_eq!(blame(&sound().poke(5, 12, 3)), (5, Damage::Overflow { overflow: 3, last: 7 }));
    assert_eq!(blame(&sound().poke(5, 12, u32::MAX)), (5, Damage::Overflow { overflow: u32::MAX, last: 7 }));
}

/// For pages that have no place in the file.
fn blame_loose(pages: &Pages) -> Damage {
    match pages.read() {
        Err(Error::Page { damage, .. }) => damage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_page_of_another_type_is_refused() {
    for flags in [0, 3, 4, FREELIST, 0x20] {
        let pages = sound().poke(5, 8, u32::from(flags) | 2 << 16);
        assert_eq!(blame(&pages), (5, Damage::Flags(flags)));
    }
    assert_eq!(blame(&sound().poke(4, 8, u32::from(BRANCH))), (4, Damage::EmptyBranch));
}

#[test]
fn a_page_is_never_visited_twice() {
    let own = sound().poke(3, 16 + 16 + 8, 3);
    assert_eq!(blame(&own), (3, Damage::Twice(3)), "a branch that is its own child");
    let up = sound().poke(3, 16 + 16 + 8, 2);
    assert_eq!(blame(&up), (2, Damage::Twice(2)), "the list of buckets inside a bucket");
    let twin = sound().poke(3, 16 + 16 + 8, 4);
    assert_eq!(blame(&twin), (4, Damage::Twice(4)), "two references to a leaf");
    let grown = sound().poke(4, 12, 1);
    assert_eq!(blame(&grown), (5, Damage::Twice(5)), "a leaf that overflows into its neighbour");

    let mut shared = sound();
    shared.leaf(2, 0, &[(1, b"data", &root(3)), (1, b"lease", &root(4))]);
    assert!(shared.read().is_ok(), "each bucket alone is sound");
    assert_eq!(blame(&shared), (4, Damage::Twice(4)), "two buckets with one page");
}

#[test]
fn a_free_page_is_not_used_and_the_freelist_is_sound() {
    let with = |count: u16, ids: &[u64]| {
        let mut pages = sound();
        (0..2).for_each(|meta| pages.meta(meta, 2, 2, 6));
        pages.freelist(6, count, ids);
        pages
    };
    assert!(with(1, &[7]).read().is_ok());
    assert_eq!(blame(&with(1, &[5])), (5, Damage::Twice(5)));
    assert_eq!(blame(&with(2, &[7, 7])), (6, Damage::Twice(7)));
    assert_eq!(blame(&with(1, &[6])), (6, Damage::Twice(6)));
    assert_eq!(blame_loose(&with(1, &[8])), Damage::OutOfBounds { last: 7 });
    assert_eq!(blame(&with(127, &[])), (6, Damage::Elements { count: 127, bytes: 1024 }));
    assert_eq!(blame(&with(u16::MAX, &[u64::MAX])), (6, Damage::Elements { count: u64::MAX, bytes: 1024 }));
    let mut pages = sound();
    (0..2).for_each(|meta| pages.meta(meta, 2, 2, 5));
    assert_eq!(blame(&pages), (5, Damage::Flags(2)));
}

#[test]
fn elements_stay_inside_their_page_and_behind_one_another() {
    // Element 1 of page 4 starts at byte 32: flags, position, key length, value length.
    let (flags, position, key, value) = (32, 36, 40, 44);
    assert_eq!(blame(&sound().poke(4, 8, 2 | 64 << 16)).1, Damage::Elements { count: 64, bytes: 1024 });
    let at = |start, end| Damage::Position { element: 1, start, end, from: 50, to: 1024 };
    assert_eq!(blame(&sound().poke(4, position, 0)).1, at(32, 34), "into the elements");
    assert_eq!(blame(&sound().poke(4, position, 16)).1, at(48, 50), "the record before it");
    assert_eq!(blame(&sound().poke(4, position, 991)).1, at(1023, 1025));
    assert_eq!(blame(&sound().poke(4, position, u32::MAX)).1, at(32 + u64::from(u32::MAX), 34 + u64::from(u32::MAX)));
    assert_eq!(blame(&sound().poke(4, value, 1000)).1, at(50, 1051));
    assert_eq!(blame(&sound().poke(4, value, u32::MAX)).1, Damage::ValueSize { element: 1, len: u32::MAX });
    assert_eq!(blame(&sound().poke(4, key, 0)).1, Damage::KeySize { element: 1, len: 0 });
    assert_eq!(blame(&sound().poke(4, key, 32_769)).1, Damage::KeySize { element: 1, len: 32_769 });
    assert!(matches!(blame(&sound().poke(4, flags, 1)).1, Damage::ElementFlags { element: 1, flags: 1, .. }));
}

#[test]
fn keys_ascend_within_and_across_pages() {
    let with = |four: &[Record], five: &[Record]| {
        let mut pages = sound();
        pages.leaf(4, 0, four);
        pages.leaf(5, 0, five);
        blame(&pages)
    };
    let (four, five): (&[Record], &[Record]) = (&[(0, b"a", b""), (0, b"c", b"")], &[(0, b"d", b"")]);
    assert_eq!(with(&[(0, b"b", b""), (0, b"a", b"")], five), (4, Damage::Order { element: 1 }));
    assert_eq!(with(&[(0, b"a", b""), (0, b"a", b"")], five), (4, Damage::Order { element: 1 }));
    assert_eq!(with(&[(0, b"A", b"")], five), (4, Damage::Order { element: 0 }), "less than the key that led here");
    assert_eq!(with(four, &[(0, b"c", b"")]), (5, Damage::Order { element: 0 }));
    assert_eq!(with(&[(0, b"d", b"")], five), (3, Damage::Order { element: 1 }), "not less than the next branch key");
    let mut pages = sound();
    pages.branch(3, &[(b"a", 4), (b"a", 5)]);
    assert_eq!(blame(&pages), (3, Damage::Order { element: 1 }));
    // Even when nothing is between the two.
    pages.leaf(4, 0, &[]);
    assert_eq!(blame(&pages), (3, Damage::Order { element: 1 }));
}

#[test]
fn a_chain_of_pages_has_an_end() {
    let chain = |depth: u64| {
        let mut pages = Pages::new(1024, depth as usize + 3, 2, NO_FREELIST);
        pages.leaf(2, 0, &[(1, b"data", &root(3))]);
        (3..2 + depth).for_each(|page| pages.branch(page, &[(b"a", page + 1)]));
        pages.leaf(2 + depth, 0, &[(0, b"a", b"")]);
        pages
    };
    assert!(chain(32).read().is_ok());
    assert_eq!(blame(&chain(33)), (35, Damage::TooDeep));
}

#[test]
fn the_list_of_buckets_holds_buckets_only() {
    let with = |flags: u32, value: &[u8]| {
        let mut pages = sound();
        pages.leaf(2, 0, &[(flags, b"key", value)]);
        blame(&pages)
    };
    assert!(matches!(with(0, b"value"), (2, Damage::ElementFlags { element: 0, flags: 0, .. })));
    assert!(matches!(with(3, &root(3)), (2, Damage::ElementFlags { element: 0, flags: 3, .. })));
    for len in [0, 7, 15] {
        assert_eq!(with(1, &root(3)[..len]), (2, Damage::BucketValue { element: 0, len }));
    }
    assert_eq!(with(1, &root(0)), (2, Damage::BucketValue { element: 0, len: 16 }));
    assert_eq!(with(1, &[0; 16 + 257]), (2, Damage::BucketValue { element: 0, len: 16 + 257 }));
    assert_eq!(with(1, &[0; 16 + 16]), (2, Damage::Flags(0)));
    let nested = inline(&[(1, b"inner", &root(3))]);
    assert!(matches!(with(1, &nested), (2, Damage::ElementFlags { element: 0, flags: 1, .. })));
    let mut cut = inline(&[(0, b"a", b"value")]);
    cut.pop();
    assert!(matches!(with(1, &cut), (2, Damage::Position { element: 0, .. })));
    let name = |n: usize| format!("{n:05}").into_bytes();
    let names: Vec<_> = (0..=MAX_BUCKETS).map(name).collect();
    let empty = inline(&[]);
    let buckets: Vec<_> = names.iter().map(|name| (1, &name[..], &empty[..])).collect();
    let mut pages = Pages::new(1024, 80, 2, NO_FREELIST);
    pages.leaf(2, 70, &buckets[..MAX_BUCKETS]);
    assert_eq!(pages.read().unwrap().len(), MAX_BUCKETS);
    pages.leaf(2, 70, &buckets);
    assert_eq!(blame(&pages), (2, Damage::TooManyBuckets));
}

#[test]
fn records_of_bucket_key_that_are_no_revisions_are_refused_by_the_summary() {
    let with = |key: &[u8], value: &[u8]| {
        let file = write(&bucket("key", [(key, value)]));
        File::open(&file[..], Trailer::Verify).unwrap().summary()
    };
    let revision = b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0";
    assert_eq!(with(revision, b"\x0a\x01k").unwrap().revision, 2);
    assert!(matches!(with(b"k", b"\x0a\x01k"), Err(Error::RevisionKey { record: 0, .. })));
    assert!(matches!(with(revision, b"\x0a\x02k"), Err(Error::Value { record: 0, .. })));
}

#[test]
fn fuzz_database() {
    let mut small = bucket("key", [("a", "1"), ("b", "2")]);
    small.extend(bucket("meta", [("term", "1")]));
    let mut file = write(&small);
    file.truncate(file.len() - 32);
    ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "database").seeds([file]).run(|bytes| match survive(bytes) {
        Ok(()) => "it is read".to_owned(),
        Err(e) => e.to_string(),
    });
}
