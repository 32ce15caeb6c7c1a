//! Compaction, logical and physical, and the hash that members compare.

use crate::member::{Member, kv};
use ferretcd_state::{CompactionObserver, Effect, Pace};
use ferretcd_types::{Compact, DeleteRange, Error, EventKind, KeyRange, Range};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

fn delete(member: &mut Member, key: &'static str) {
    member.ask(DeleteRange { range: KeyRange::single(key), prev_kv: false }).unwrap();
}

/// a: 2, 3, 7; b: 4, gone at 5; c: 6.
fn history() -> Member {
    let mut member = Member::new();
    member.put("a", "1");
    member.put("a", "2");
    member.put("b", "1");
    delete(&mut member, "b");
    member.put("c", "1");
    member.put("a", "3");
    member
}

#[test]
fn compaction_is_refused_outside_of_history() {
    let mut member = history();
    assert_eq!(member.ask(Compact { revision: 8 }), Err(Error::FutureRevision));
    assert_eq!(member.ask_all(Compact { revision: 5 }).1, [Effect::Compacted { revision: 5 }]);
    assert_eq!(member.ask(Compact { revision: 5 }), Err(Error::Compacted));
    assert_eq!(member.ask(Compact { revision: 4 }), Err(Error::Compacted));
}

/// etcd's hash changes there while the compaction deletes, and ends as this (found by the differential test).
#[test]
fn where_no_key_is_left_the_hash_does_not_wait_for_what_is_deleted() {
    let mut member = history();
    for key in ["a", "c"] {
        delete(&mut member, key);
    }
    member.ask(Compact { revision: 9 }).unwrap();
    let at_once = member.state.hash_kv(0).unwrap();
    member.state.wait_compacted(9).unwrap();
    assert_eq!((at_once, at_once.hash), (member.state.hash_kv(0).unwrap(), 1_084_519_789));
}

#[test]
fn what_nobody_may_read_is_deleted_and_the_rest_stays() {
    let mut member = history();
    let before = member.state.logical_bytes();
    member.ask(Compact { revision: 5 }).unwrap();
    member.state.wait_compacted(5).unwrap();
    // Gone: a at 2 and b at 4. The tombstone at 5 stays, since a watch may start there.
    assert_eq!(member.key_records(), 4);
    assert!(member.state.logical_bytes() < before);
    let at = |revision| member.state.range(&Range { range: KeyRange::all(), revision, ..Range::default() });
    assert_eq!(at(5).unwrap().kvs, [kv("a", "2", 2, 3, 2)]);
    assert_eq!(at(4), Err(Error::Compacted));
    let events = member.state.events(5, 1000, 1 << 20).unwrap().events;
    assert_eq!(
        events.iter().map(|e| (e.revision.main, e.kind)).collect::<Vec<_>>(),
        [(5, EventKind::Delete), (6, EventKind::Put), (7, EventKind::Put)]
    );
    assert_eq!(member.state.events(4, 1000, 1 << 20), Err(Error::Compacted));
    member.ask(Compact { revision: 7 }).unwrap();
    member.state.wait_compacted(7).unwrap();
    assert_eq!(member.key_records(), 2);
}

#[test]
fn an_interrupted_compaction_goes_on_after_a_restart() {
    let mut member = history();
    let pinned = member.state.pin();
    member.ask(Compact { revision: 7 }).unwrap();
    let again = member.after_flush_and_power_cut();
    again.state.wait_compacted(7).unwrap();
    assert_eq!(again.key_records(), 2);
    assert_eq!(member.key_records(), 6, "held by the pin");
    drop(pinned);
    member.state.wait_compacted(7).unwrap();
    assert_eq!(member.key_records(), 2);
}

#[test]
fn a_key_with_a_long_history_is_compacted_in_pieces() {
    let mut member = Member::new();
    for _ in 0..350 {
        member.put("a", "1");
        member.put("b", "1");
    }
    delete(&mut member, "a");
    member.put("b", "2");
    let revision = member.state.revision();
    member.ask(Compact { revision }).unwrap();
    member.state.wait_compacted(revision).unwrap();
    assert_eq!(member.key_records(), 1);
    assert_eq!(member.get("a"), None);
    assert_eq!(member.get("b").unwrap().version, 351);
    assert_eq!(member.after_flush_and_power_cut().get("a"), None);
}

#[test]
fn history_comes_in_whole_revisions() {
    let mut member = history();
    delete(&mut member, "a");
    member.ask(DeleteRange { range: KeyRange::all(), prev_kv: false }).unwrap();
    let batch = member.state.events(2, 3, 1 << 20).unwrap();
    assert_eq!((batch.events.len(), batch.next), (3, 5));
    // A single revision is never cut, however few bytes are wanted.
    let batch = member.state.events(4, 1000, 1).unwrap();
    assert_eq!((batch.events.len(), batch.next), (1, 5));
    // Nor one of several changes: 8 is a's end, 9 that of the rest.
    member.put("d", "1");
    member.put("e", "1");
    member.ask(DeleteRange { range: KeyRange::all(), prev_kv: false }).unwrap();
    let batch = member.state.events(12, 1000, 1).unwrap();
    assert_eq!((batch.events.len(), batch.next), (2, 13));
    let batch = member.state.events(13, 1000, 1 << 20).unwrap();
    assert_eq!((batch.events.len(), batch.next), (0, 13));
    let batch = member.state.events(99, 1000, 1 << 20).unwrap();
    assert_eq!((batch.events.len(), batch.next), (0, 99));
    assert_eq!(member.state.events(0, 1000, 1 << 20).unwrap().events.len(), 12);
}

#[test]
fn an_event_knows_what_was_before_it() {
    let mut member = history();
    let before = |member: &Member, at: usize| {
        let events = member.state.events(6.min(at as i64), 1000, 1 << 20).unwrap().events;
        let event = events.into_iter().find(|event| event.revision.main == at as i64).unwrap();
        member.state.value_before(&event).unwrap()
    };
    assert_eq!(before(&member, 2), None);
    assert_eq!(before(&member, 3), Some(kv("a", "1", 2, 2, 1)));
    assert_eq!(before(&member, 5), Some(kv("b", "1", 4, 4, 1)));
    assert_eq!(before(&member, 7), Some(kv("a", "2", 2, 3, 2)));
    let seven = member.state.events(7, 1, 1).unwrap().events.remove(0);
    member.ask(Compact { revision: 7 }).unwrap();
    assert_eq!(member.state.value_before(&seven).unwrap(), None, "revision 6 is compacted");
}

#[test]
fn the_hash_is_etcds() {
    // Computed by hand over what etcd's bucket would hold: name, then each record's key and value.
    let mut member = Member::new();
    member.put("foo", "bar");
    let mut crc = crc32c::crc32c(b"key");
    crc = crc32c::crc32c_append(crc, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0");
    crc = crc32c::crc32c_append(crc, b"\x0a\x03foo\x10\x02\x18\x02\x20\x01\x2a\x03bar");
    let hash = member.state.hash_kv(0).unwrap();
    assert_eq!((hash.hash, hash.compact_revision, hash.revision), (crc, -1, 2));
    delete(&mut member, "foo");
    crc = crc32c::crc32c_append(crc, b"\0\0\0\0\0\0\0\x03_\0\0\0\0\0\0\0\0t");
    crc = crc32c::crc32c_append(crc, b"\x0a\x03foo");
    assert_eq!(member.state.hash_kv(0).unwrap().hash, crc);
    assert_eq!(member.state.hash_kv(2).unwrap().hash, hash.hash);
    assert_eq!(member.state.hash_kv(4), Err(Error::FutureRevision));
}

#[test]
fn the_hash_does_not_depend_on_how_far_deletions_have_got() {
    let mut member = history();
    // A snapshot's pin holds the records of the one member; the other one deletes at once.
    let pinned = member.state.pin();
    let mut other = history();
    for compacted in [5, 6, 7] {
        member.ask(Compact { revision: compacted }).unwrap();
        other.ask(Compact { revision: compacted }).unwrap();
        other.state.wait_compacted(compacted).unwrap();
        for revision in compacted..=7 {
            assert_eq!(member.state.hash_kv(revision), other.state.hash_kv(revision));
        }
        assert_eq!(member.state.hash_kv(compacted - 1), Err(Error::Compacted));
    }
    drop(pinned);
}

/// Tells of each step how many records it deleted.
struct Steps(Mutex<mpsc::Sender<usize>>);

impl CompactionObserver for Steps {
    fn step_begins(&self) {}
    fn step_ends(&self, deleted: usize) {
        let _ = self.0.lock().unwrap().send(deleted);
    }
    fn finished(&self) {}
}

#[test]
fn compaction_keeps_to_its_pace() {
    let mut member = Member::new();
    let (tx, steps) = mpsc::channel();
    member.state.observe_compactions(Arc::new(Steps(Mutex::new(tx))));
    member.state.set_pace(Pace::new(1, Duration::from_secs(3600)));
    for _ in 0..10 {
        member.put("a", "v");
    }
    let full = member.state.logical_bytes();
    member.ask(Compact { revision: 11 }).unwrap();
    // One of nine; the next comes in an hour, and without a pause it would come in less than a millisecond.
    assert_eq!(steps.recv_timeout(Duration::from_secs(60)), Ok(1));
    assert_eq!(steps.recv_timeout(Duration::from_millis(300)), Err(mpsc::RecvTimeoutError::Timeout));
    assert_eq!(full - member.state.logical_bytes(), full / 10);
}

/// An engine may have those together that were written together.
#[test]
fn records_are_deleted_in_the_order_in_which_they_were_written_whatever_their_keys_are() {
    let mut member = Member::new();
    let (tx, steps) = mpsc::channel();
    member.state.observe_compactions(Arc::new(Steps(Mutex::new(tx))));
    member.state.set_pace(Pace::new(100, Duration::from_secs(3600)));
    for n in 0..200 {
        member.put(["c", "a", "b"][n % 3], "v");
    }
    member.ask(Compact { revision: 201 }).unwrap();
    assert_eq!(steps.recv_timeout(Duration::from_secs(60)), Ok(100));
    let left = member.key_revisions();
    assert_eq!(left, (102..=201).collect::<Vec<i64>>(), "those at 2 to 101 went first");
}
