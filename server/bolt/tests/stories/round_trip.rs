//! What is written is read back, for every kind of contents.

use crate::support::{Contents, Rng, bucket, hash, layout, print, read, write};
use ferretcd_bolt::{Error, File, MAX_KEY_BYTES, RevisionKey, Trailer, WriteError, Writer};
use sha2::{Digest, Sha256};
use std::io;

/// Writes, reads back, compares, and returns the file.
fn check(contents: &Contents) -> Vec<u8> {
    let file = write(contents);
    assert_eq!(&read(&file[..], Trailer::Verify).unwrap(), contents);
    file
}

fn random(rng: &mut Rng) -> Contents {
    let mut contents = Contents::new();
    for _ in 0..rng.below(6) {
        // Each bucket has its own habits: how many records, how long the keys, how long the values.
        let records = [0, 1, 2, 30, 300, 2000][rng.below(6)];
        let keys = [1, 17, 200, 3000][rng.below(4)];
        let values = [1, 40, 1500, 5000, 20_000][rng.below(5)];
        let len = 1 + rng.below(20);
        let bucket = contents.entry(rng.bytes(len)).or_default();
        for _ in 0..records.min(500_000 / (keys + values)) {
            let (key, value) = (1 + rng.below(keys), rng.below(values));
            bucket.insert(rng.bytes(key), rng.bytes(value));
        }
    }
    contents
}

#[test]
fn random_contents_come_back() {
    for seed in 0..60 {
        let contents = random(&mut Rng(seed));
        let file = write(&contents);
        assert_eq!(read(&file[..], Trailer::Verify).unwrap(), contents, "seed {seed}");
        let summary = File::open(&file[..], Trailer::Verify).unwrap().summary().unwrap();
        assert_eq!(summary.hash, hash(&contents), "seed {seed}");
        assert_eq!(summary.total_size, file.len() as u64 - 32, "seed {seed}");
    }
}

#[test]
fn an_empty_database_and_empty_buckets_come_back() {
    assert_eq!(check(&Contents::new()).len(), 3 * 4096 + 32);
    let mut contents = Contents::new();
    for name in ["auth", "key", "meta"] {
        contents.extend(bucket(name, [("", ""); 0]));
    }
    assert_eq!(check(&contents).len(), 6 * 4096 + 32);
}

#[test]
fn a_hundred_thousand_small_records_come_back_from_full_pages() {
    let mut buf = [0; RevisionKey::MAX_BYTES];
    let contents = bucket(
        "key",
        (0..100_000).map(|main| {
            let key = RevisionKey { main, sub: 0, tombstone: false };
            (key.encode(&mut buf).to_vec(), b"\x0a\x03abc\x2a\x0a0123456789")
        }),
    );
    let file = check(&contents);
    let data = 100_000 * (16 + 17 + 17);
    assert!(file.len() < data + data / 40, "{} bytes for {data} of data", file.len());
    let summary = File::open(&file[..], Trailer::Verify).unwrap().summary().unwrap();
    assert_eq!((summary.revision, summary.total_keys), (99_999, 1), "all are versions of one key");
}

#[test]
fn the_summary_counts_the_keys_that_exist() {
    // Puts and deletions of one-letter keys, each in a revision of its own.
    let count = |story: &[(&str, bool)]| {
        let mut buf = [0; RevisionKey::MAX_BYTES];
        let records = story.iter().zip(2..).map(|((name, tombstone), main)| {
            let key = RevisionKey { main, sub: 0, tombstone: *tombstone };
            (key.encode(&mut buf).to_vec(), format!("\x0a\x01{name}"))
        });
        let mut contents = bucket("key", records);
        contents.extend(bucket("meta", [("storageVersion", "3.7.0")]));
        let summary = File::open(&write(&contents)[..], Trailer::Verify).unwrap().summary().unwrap();
        assert_eq!(summary.version.as_deref(), Some("3.7.0"));
        assert_eq!(summary.revision, story.len() as i64 + 1);
        summary.total_keys
    };
    assert_eq!(count(&[("a", false), ("b", false), ("a", false)]), 2);
    assert_eq!(count(&[("a", false), ("b", false), ("a", true)]), 1);
    assert_eq!(count(&[("a", false), ("a", true), ("a", false), ("b", true)]), 1);
}

#[test]
fn values_up_to_two_mebibytes_come_back() {
    let sizes = [0, 1, 4000, 4047, 4048, 4064, 4065, 8191, 8192, 65_536, 1 << 20, 2 << 20];
    let mut rng = Rng(7);
    let contents = bucket("key", sizes.iter().enumerate().map(|(n, size)| (format!("{n:02}"), rng.bytes(*size))));
    check(&contents);
}

#[test]
fn the_longest_keys_make_branch_pages_with_overflow_pages() {
    let contents = bucket("key", (0..20).map(|n| (format!("{n:0width$}", width = MAX_KEY_BYTES), "value")));
    check(&contents);
}

#[test]
fn many_buckets_make_a_list_of_several_pages() {
    let mut contents = Contents::new();
    for n in 0..1024 {
        contents.extend(bucket(&format!("bucket-{n:04}"), [("key", format!("{n}"))]));
    }
    check(&contents);
}

#[test]
fn the_bytes_of_a_small_file_never_change() {
    let mut contents = bucket("key", [("a", "1"), ("b", "2")]);
    contents.extend(bucket("meta", [("storageVersion", "3.7.0")]));
    let digest: [u8; 32] = Sha256::digest(write(&contents)).into();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, "e84e7fd3cc32ba6308dc585b1c2ee0c85ed2135cb2a857223566f245eefbc5e9");
}

#[test]
fn a_file_on_disk_reads_like_one_in_memory() {
    let contents = random(&mut Rng(3));
    let disk = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(disk.path(), write(&contents)).unwrap();
    assert_eq!(read(std::fs::File::open(disk.path()).unwrap(), Trailer::Verify).unwrap(), contents);
}

#[test]
fn a_second_pass_that_differs_never_becomes_a_file() {
    let plan = {
        let mut contents = bucket("key", (0..500).map(|n| (format!("{n:04}"), vec![b'v'; 100])));
        contents.extend(bucket("meta", [("term", "1")]));
        contents
    };
    let key = b"key".to_vec();
    type Change = fn(&mut Contents);
    let changes: [(&str, Change); 9] = [
        ("a record more", |c| drop(c.get_mut(&b"key"[..]).unwrap().insert(b"9".to_vec(), vec![0; 100]))),
        ("a record less", |c| drop(c.get_mut(&b"key"[..]).unwrap().pop_last())),
        ("a longer value", |c| drop(c.get_mut(&b"key"[..]).unwrap().insert(b"0100".to_vec(), vec![0; 101]))),
        ("a huge value", |c| drop(c.get_mut(&b"key"[..]).unwrap().insert(b"0100".to_vec(), vec![0; 1 << 20]))),
        ("a shorter value", |c| drop(c.get_mut(&b"key"[..]).unwrap().insert(b"0499".to_vec(), vec![]))),
        ("two sizes swapped", |c| {
            let records = c.get_mut(&b"key"[..]).unwrap();
            records.insert(b"0007".to_vec(), vec![0; 99]);
            records.insert(b"0008".to_vec(), vec![0; 101]);
        }),
        ("a bucket less", |c| drop(c.remove(&b"meta"[..]))),
        ("a bucket more", |c| drop(c.insert(b"members".to_vec(), Default::default()))),
        ("a bucket at the end", |c| drop(c.insert(b"z".to_vec(), Default::default()))),
    ];
    let layout = layout(&plan);
    for (name, change) in changes {
        let mut contents = plan.clone();
        change(&mut contents);
        let (chunks, result) = print(&layout, &contents);
        assert!(matches!(result, Err(WriteError::Changed { .. })), "{name}: {result:?}");
        assert!(chunks.iter().all(|chunk| chunk.len() != 32), "{name}: no trailer");
        assert!(chunks.concat().len() as u64 <= layout.db_bytes(), "{name}: never more than was announced");
    }
    // The same sizes with other bytes are the same layout.
    let mut contents = plan.clone();
    contents.get_mut(&key).unwrap().insert(b"0100".to_vec(), vec![b'w'; 100]);
    assert!(print(&layout, &contents).1.is_ok());
}

#[test]
fn after_any_error_the_writer_is_finished_without_a_trailer() {
    let contents = bucket("key", [("a", "1"), ("b", "2")]);
    for wrong in [b"a", b"b"] {
        let mut chunks = 0;
        let mut writer = Writer::new(layout(&contents), |_| {
            chunks += 1;
            Ok(())
        });
        writer.bucket(b"key").unwrap();
        writer.record(b"b", b"1").unwrap();
        assert!(matches!(writer.record(wrong, b"2"), Err(WriteError::KeyOrder { record: 1, .. })));
        assert!(matches!(writer.record(b"c", b"2"), Err(WriteError::Failed)));
        assert!(matches!(writer.finish(), Err(WriteError::Failed)));
        assert_eq!(chunks, 0);
    }

    let mut writer = Writer::new(layout(&contents), |_| Err(io::ErrorKind::BrokenPipe.into()));
    writer.bucket(b"key").unwrap();
    writer.record(b"a", b"1").unwrap();
    writer.record(b"b", b"2").unwrap();
    assert!(matches!(writer.finish(), Err(WriteError::Sink { offset: 0, .. })));

    let mut writer = Writer::new(layout(&contents), |_| Ok(()));
    assert!(matches!(writer.record(b"a", b"1"), Err(WriteError::Input(_))));
}

#[test]
fn an_error_of_the_visitor_ends_the_walk() {
    let file = write(&bucket("key", [("a", "1"), ("b", "2")]));
    let file = File::open(&file[..], Trailer::Verify).unwrap();
    let mut seen = 0;
    let result = file.for_each::<Box<dyn std::error::Error>>(b"key", |_, _| {
        seen += 1;
        Err("enough".into())
    });
    assert_eq!((result.unwrap_err().to_string(), seen), ("enough".to_string(), 1));
    assert!(matches!(file.for_each::<Error>(b"nope", |_, _| Ok(())), Err(Error::NoBucket { .. })));
}
