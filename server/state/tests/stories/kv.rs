//! Put, delete and range, as etcd has them.

use crate::member::{Member, kv, put};
use ferretcd_state::Effect;
use ferretcd_types::{
    Caller, Command, DeleteRange, Error, Event, EventKind, KeyRange, KeyValue, LeaseId, Proposal, Put, Range,
    RequestId, Revision, codec,
};

#[test]
fn revisions_grow_by_one_per_write_and_not_without_a_change() {
    let mut member = Member::new();
    assert_eq!((member.state.revision(), member.state.compacted_revision()), (1, -1));
    assert_eq!(member.put("a", "1").revision, 2);
    assert_eq!(member.put("b", "1").revision, 3);
    let nothing = member.ask(DeleteRange { range: KeyRange::single("x"), prev_kv: true }).unwrap();
    assert_eq!((nothing.revision, nothing.deleted), (3, 0));
    let both = member.ask(DeleteRange { range: KeyRange::all(), prev_kv: true }).unwrap();
    assert_eq!((both.revision, both.deleted), (4, 2));
    assert_eq!(both.prev_kvs, [kv("a", "1", 2, 2, 1), kv("b", "1", 3, 3, 1)]);
    assert_eq!(member.state.key_count(), 0);
}

#[test]
fn a_key_counts_its_versions_and_starts_anew_after_a_deletion() {
    let mut member = Member::new();
    member.put("a", "1");
    member.put("a", "2");
    assert_eq!(member.get("a"), Some(kv("a", "2", 2, 3, 2)));
    member.ask(DeleteRange { range: KeyRange::single("a"), prev_kv: false }).unwrap();
    assert_eq!(member.get("a"), None);
    member.put("a", "3");
    assert_eq!(member.get("a"), Some(kv("a", "3", 5, 5, 1)));
    let old = Range { range: KeyRange::single("a"), revision: 3, ..Range::default() };
    let reply = member.state.range(&old).unwrap();
    assert_eq!((reply.revision, &reply.kvs[..]), (5, &[kv("a", "2", 2, 3, 2)][..]));
}

#[test]
fn a_put_keeps_what_it_is_told_to_keep() {
    let mut member = Member::new();
    member.ask(ferretcd_types::LeaseGrant { id: LeaseId(7), ttl: 60 }).unwrap();
    let ignore = Put { value: "".into(), ignore_value: true, ..put("a", "") };
    assert_eq!(member.ask(ignore.clone()), Err(Error::KeyNotFound));
    assert_eq!(member.ask(Put { lease: LeaseId(8), ..put("a", "1") }), Err(Error::LeaseNotFound));
    assert_eq!(member.ask(put("", "1")), Err(Error::EmptyKey));
    assert_eq!(member.state.revision(), 1);

    member.ask(Put { lease: LeaseId(7), ..put("a", "1") }).unwrap();
    let reply = member.ask(Put { ignore_lease: true, prev_kv: true, ..put("a", "2") }).unwrap();
    assert_eq!(reply.prev_kv, Some(KeyValue { lease: LeaseId(7), ..kv("a", "1", 2, 2, 1) }));
    assert_eq!(member.get("a"), Some(KeyValue { lease: LeaseId(7), ..kv("a", "2", 2, 3, 2) }));
    // Without ignore_lease the key leaves its lease.
    member.ask(ignore).unwrap();
    assert_eq!(member.get("a"), Some(kv("a", "2", 2, 4, 3)));
    assert!(member.state.lease(LeaseId(7)).unwrap().keys.is_empty());
}

#[test]
fn effects_carry_the_events_in_order() {
    let mut member = Member::new();
    member.put("a", "1");
    let (_, effects) = member.ask_all(put("b", "1"));
    let event = Event { kind: EventKind::Put, kv: kv("b", "1", 3, 3, 1), revision: Revision::new(3, 0) };
    assert_eq!(effects, [Effect::Events { revision: 3, events: vec![event] }]);
    let (_, effects) = member.ask_all(DeleteRange { range: KeyRange::all(), prev_kv: false });
    let [Effect::Events { revision: 4, events }] = &effects[..] else { panic!("{effects:?}") };
    let gone = |key: &'static str, sub| Event {
        kind: EventKind::Delete,
        kv: KeyValue { key: key.into(), mod_revision: 4, ..KeyValue::default() },
        revision: Revision::new(4, sub),
    };
    assert_eq!(events, &[gone("a", 0), gone("b", 1)]);
    let history = member.state.events(2, 1000, 1 << 20).unwrap();
    assert_eq!((history.events.len(), history.next), (4, 5));
    assert_eq!(&history.events[2..], events);
}

#[test]
fn values_are_not_copied_on_their_way_to_watchers_and_readers() {
    let mut member = Member::new();
    let command = Command::Put(put("a", "a value that is worth a copy"));
    let entry = codec::encode_proposal(&Proposal { id: RequestId(1), caller: Caller::Member, command });
    let bytes = entry.as_ptr_range();
    let Command::Put(put) = codec::decode_proposal(entry.clone()).unwrap().command else { panic!("another command") };
    let (_, effects) = member.ask_all(put);
    let [Effect::Events { events, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert!(bytes.contains(&events[0].kv.value.as_ptr()), "what watchers are told is a piece of the entry");
    member.state.flush().unwrap();
    // The engine of these tests holds one copy of its own.
    let [one, other] = [(); 2].map(|()| member.get("a").unwrap().value);
    assert_eq!(one.as_ptr(), other.as_ptr(), "what readers get is a piece of what is stored");
}
