//! What every engine must do, as one story that each engine's tests run.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::{Batch, Engine, Limit, MAX_KEY_BYTES, Record};
use crate::error::Error;
use crate::keyspace::{self, after};

/// Runs the whole suite on a fresh engine.
pub(crate) fn run(engine: &dyn Engine) {
    an_empty_engine_holds_nothing(engine);
    the_last_write_to_a_key_counts(engine);
    a_refused_batch_changes_nothing(engine);
    scans_are_ordered_bounded_and_paged(engine);
    a_page_ends_with_the_record_that_fills_it(engine);
    values_of_every_size_come_back(engine);
    large_values_leave_nothing_behind(engine);
    random_batches_match_a_map(engine);
    random_revisions_match_a_map(engine, &mut contents(engine).into_iter().collect(), 3);
}

/// What takes the engine's place after a rewrite, with nothing written meanwhile.
pub(crate) fn rewritten(engine: &dyn Engine) -> Arc<dyn Engine> {
    let fresh = engine.fresh().unwrap().unwrap();
    for record in contents(engine) {
        fresh.commit(Batch::new().put(record.0, record.1)).unwrap();
    }
    fresh.flush().unwrap();
    fresh.finish().unwrap();
    fresh
}

/// `length` bytes that differ from position to position and from seed to seed.
pub(crate) fn value(seed: u64, length: usize) -> Bytes {
    let mut random = Random(seed);
    (0..length).map(|_| random.next() as u8).collect()
}

/// A reproducible source of test choices (splitmix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Everything in the engine, read in pages of three.
pub(crate) fn contents(engine: &dyn Engine) -> Vec<Record> {
    let mut all = Vec::new();
    let mut start = Bytes::new();
    loop {
        let page = engine.scan(&start, None, 3).unwrap();
        let Some((last, _)) = page.last() else { return all };
        start = after(last);
        all.extend(page);
    }
}

fn an_empty_engine_holds_nothing(engine: &dyn Engine) {
    assert_eq!(engine.get(b"k").unwrap(), None);
    assert_eq!(engine.get(b"").unwrap(), None);
    assert_eq!(engine.get(&[0xff]).unwrap(), None);
    assert_eq!(engine.scan(b"", None, 10).unwrap(), vec![]);
    engine.flush().unwrap();
    engine.commit(&Batch::new()).unwrap();
    engine.size_on_disk().unwrap();
}

fn the_last_write_to_a_key_counts(engine: &dyn Engine) {
    engine.commit(Batch::new().put("ka", "1").put("kb", "1").put("ka", "2").delete("kb").delete("kc")).unwrap();
    assert_eq!(engine.get(b"ka").unwrap().unwrap(), "2");
    assert_eq!(engine.get(b"kb").unwrap(), None);
    engine.commit(Batch::new().delete("ka").put("kb", "3").put("ke", "")).unwrap();
    assert_eq!(engine.get(b"ka").unwrap(), None);
    assert_eq!(engine.get(b"kb").unwrap().unwrap(), "3");
    assert_eq!(engine.get(b"ke").unwrap().unwrap(), "");
    engine.commit(Batch::new().delete("kb").delete("ke")).unwrap();
    assert_eq!(contents(engine), vec![]);
}

fn a_refused_batch_changes_nothing(engine: &dyn Engine) {
    let too_long = vec![b'k'; MAX_KEY_BYTES + 1];
    for bad in [Vec::new(), vec![0xff], vec![0xff, 1], too_long] {
        let refused = engine.commit(Batch::new().put("ka", "1").put(bad, "1"));
        assert!(matches!(refused, Err(Error::Key { .. })));
    }
    assert_eq!(engine.get(b"ka").unwrap(), None);
    let longest = vec![b'k'; MAX_KEY_BYTES];
    engine.commit(Batch::new().put(longest.clone(), "1")).unwrap();
    assert_eq!(engine.get(&longest).unwrap().unwrap(), "1");
    engine.commit(Batch::new().delete(longest)).unwrap();
}

fn scans_are_ordered_bounded_and_paged(engine: &dyn Engine) {
    let mut batch = Batch::new();
    for key in ["kb", "ka", "kb\0", "kc", "l", "m", "ka\u{7f}"] {
        batch.put(key, key);
    }
    engine.commit(&batch).unwrap();
    let keys = |start: &str, end: Option<&str>, limit| -> Vec<String> {
        let found = engine.scan(start.as_bytes(), end.map(str::as_bytes), limit).unwrap();
        assert!(found.iter().all(|(key, value)| key == value));
        found.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect()
    };
    assert_eq!(keys("", None, 99), ["ka", "ka\u{7f}", "kb", "kb\0", "kc", "l", "m"]);
    assert_eq!(keys("kb", Some("kc"), 99), ["kb", "kb\0"]);
    assert_eq!(keys("kb\0", Some("l"), 1), ["kb\0"]);
    assert_eq!(keys("kb", None, 0), Vec::<String>::new());
    assert_eq!(keys("kb", Some("kb"), 9), Vec::<String>::new());
    assert_eq!(keys("kc", Some("ka"), 9), Vec::<String>::new());
    assert_eq!(contents(engine).len(), 7);

    let mut emptied = Batch::new();
    batch.writes().iter().for_each(|write| {
        emptied.delete(write.key.clone());
    });
    engine.commit(&emptied).unwrap();
}

/// Records of one block, and some that are stored by themselves.
fn a_page_ends_with_the_record_that_fills_it(engine: &dyn Engine) {
    let record = |main: u64| keyspace::revision(0, &main.to_be_bytes());
    let mut batch = Batch::new();
    for main in 0..10 {
        batch.put(record(main), value(main, if main < 8 { 1000 } else { 100 << 10 }));
    }
    engine.commit(&batch).unwrap();
    let (mut start, end) = keyspace::generation_range(0);
    let mut pages = Vec::new();
    loop {
        let limit = Limit { records: 4, bytes: 2500 };
        let page = engine.page(&start, Some(&end), limit).unwrap();
        assert_eq!(page.bytes, page.records.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
        pages.push(page.records.len());
        let Some((last, _)) = page.records.last().filter(|_| page.is_full(limit)) else { break };
        start = after(last);
    }
    assert_eq!(pages, [3, 3, 3, 1, 0], "the ninth is of 100 KiB");
    let limit = |records, bytes| Limit { records, bytes };
    for (limit, records) in [(limit(4, 1 << 20), 4), (limit(99, 1 << 20), 10), (limit(0, 9), 0), (limit(9, 0), 0)] {
        let found = engine.page(&record(0), Some(&end), limit).unwrap();
        assert_eq!((found.records.len(), found.is_full(limit)), (records, records != 10), "{limit:?}");
    }
    let mut emptied = Batch::new();
    for write in batch.writes() {
        emptied.delete(write.key.clone());
    }
    engine.commit(&emptied).unwrap();
}

fn values_of_every_size_come_back(engine: &dyn Engine) {
    let sizes = [0, 1, 4095, 4096, 4097, 8192, 8193, 100 << 10, 3 << 19];
    for (seed, size) in (0..).zip(sizes) {
        let key = keyspace::lease(seed);
        engine.commit(Batch::new().put(key.clone(), value(seed as u64, size))).unwrap();
        assert!(engine.get(&key).unwrap().unwrap() == value(seed as u64, size), "{size} bytes differ");
    }
    engine.flush().unwrap();
    let all = contents(engine);
    assert_eq!(all.len(), sizes.len());
    for ((seed, size), (key, found)) in (0..).zip(sizes).zip(all) {
        assert_eq!(key, keyspace::lease(seed));
        assert!(found == value(seed as u64, size), "{size} bytes differ in a scan");
        engine.commit(Batch::new().delete(key)).unwrap();
    }
    assert_eq!(contents(engine), vec![]);
}

fn large_values_leave_nothing_behind(engine: &dyn Engine) {
    // Keys whose pieces could be taken for one another's: one is the other plus four bytes that look like an index.
    let (short, long) = (&b"ka"[..], &b"ka\0\0\0\x01"[..]);
    engine.commit(Batch::new().put(short, value(1, 20_000)).put(long, value(2, 20_000))).unwrap();
    assert!(engine.get(short).unwrap().unwrap() == value(1, 20_000));
    engine.commit(Batch::new().delete(short)).unwrap();
    assert!(engine.get(long).unwrap().unwrap() == value(2, 20_000));

    // Large by small, small by large, large by shorter large: what is read is what was last written.
    for size in [100_000, 5, 50_000, 4097, 4096, 12_288] {
        engine.commit(Batch::new().put(short, value(size, size as usize))).unwrap();
        assert!(engine.get(short).unwrap().unwrap() == value(size, size as usize));
    }
    engine.commit(Batch::new().put(short, value(3, 9000)).delete(short)).unwrap();
    engine.commit(Batch::new().delete(long)).unwrap();
    assert_eq!(contents(engine), vec![]);
}

fn random_batches_match_a_map(engine: &dyn Engine) {
    let mut random = Random(7);
    let mut model = BTreeMap::new();
    for _ in 0..150 {
        let mut batch = Batch::new();
        for _ in 0..random.below(8) {
            let key = keyspace::revision(random.below(2) as u32, &[random.below(20) as u8]);
            if random.below(3) == 0 {
                model.remove(&key);
                batch.delete(key);
            } else {
                let size = if random.below(4) == 0 { random.below(20_000) } else { random.below(40) };
                let new = value(random.next(), size as usize);
                model.insert(key.clone(), new.clone());
                batch.put(key, new);
            }
        }
        engine.commit(&batch).unwrap();
        let key = keyspace::revision(0, &[random.below(20) as u8]);
        assert!(engine.get(&key).unwrap().as_ref() == model.get(&key));
    }
    assert!(contents(engine) == model.into_iter().collect::<Vec<_>>());
}

/// What the state machine does to revisions, and what it does not do, too: runs of new ones, deletions of old ones in any
/// order, some that are written again or come late, of two generations, most short and some long. `model` is what the engine holds.
pub(crate) fn random_revisions_match_a_map(engine: &dyn Engine, model: &mut BTreeMap<Bytes, Bytes>, seed: u64) {
    let mut random = Random(seed);
    let revision = |generation: u64, main: u64| keyspace::revision(generation as u32, &main.to_be_bytes());
    let mut newest = seed * 10_000;
    for _ in 0..200 {
        let mut batch = Batch::new();
        for _ in 0..random.below(30) {
            newest += 1;
            let old = seed * 10_000 + random.below(newest - seed * 10_000) + 1;
            let size = match random.below(20) {
                0 => random.below(10_000),
                1 => 900 + random.below(300),
                _ => random.below(300),
            };
            let (key, is_deleted) = match random.below(10) {
                0..6 => (revision(random.below(8) / 7, newest), false),
                6 => (revision(random.below(2), old), false),
                _ => (revision(random.below(8) / 7, old), true),
            };
            if is_deleted {
                model.remove(&key);
                batch.delete(key);
            } else {
                let new = value(random.next(), size as usize);
                model.insert(key.clone(), new.clone());
                batch.put(key, new);
            }
        }
        engine.commit(&batch).unwrap();
        for _ in 0..5 {
            let key = revision(random.below(2), seed * 10_000 + random.below(newest - seed * 10_000 + 2));
            assert!(engine.get(&key).unwrap().as_ref() == model.get(&key), "{key:?}");
            let end = revision(random.below(2), seed * 10_000 + random.below(newest - seed * 10_000 + 2));
            let limit = random.below(40) as usize;
            let found = engine.scan(&key, Some(&end), limit).unwrap();
            let expected = if key < end { model.range(key.clone()..end).take(limit).collect() } else { Vec::new() };
            assert!(found.iter().map(|(key, value)| (key, value)).eq(expected.into_iter()), "from {key:?}, {limit}");
        }
    }
    let held: Vec<Record> = model.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert!(contents(engine) == held);
}
