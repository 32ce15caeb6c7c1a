//! The options of a range request.

use crate::member::{Member, kv, put};
use ferretcd_types::{Error, KeyRange, KeyValue, LeaseGrant, LeaseId, Put, Range, RangeReply, SortOrder, SortTarget};

/// a=3 (create 2, mod 5, version 2), b=2 (3, 3, 1), c=1 (4, 4, 1 and a lease).
fn three() -> Member {
    let mut member = Member::new();
    member.ask(LeaseGrant { id: LeaseId(5), ttl: 60 }).unwrap();
    member.put("a", "0");
    member.put("b", "2");
    member.ask(Put { lease: LeaseId(5), ..put("c", "1") }).unwrap();
    member.put("a", "3");
    member
}

fn keys(reply: &RangeReply) -> String {
    reply.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

fn all() -> Range {
    Range { range: KeyRange::all(), ..Range::default() }
}

#[test]
fn ranges_follow_etcds_range_end() {
    let member = three();
    assert_eq!(keys(&member.range(KeyRange::single("b"))), "b");
    assert_eq!(keys(&member.range(KeyRange::new("a", "c"))), "ab");
    assert_eq!(keys(&member.range(KeyRange::new("b", "\0"))), "bc");
    assert_eq!(keys(&member.range(KeyRange::all())), "abc");
    assert_eq!(keys(&member.range(KeyRange::new("c", "a"))), "");
    assert_eq!(keys(&member.range(KeyRange::new("b", "b"))), "");
}

#[test]
fn count_ignores_limit_and_filters() {
    let member = three();
    let reply = member.state.range(&Range { limit: 2, ..all() }).unwrap();
    assert_eq!((keys(&reply).as_str(), reply.more, reply.count), ("ab", true, 3));
    let reply = member.state.range(&Range { limit: 3, ..all() }).unwrap();
    assert_eq!((keys(&reply).as_str(), reply.more, reply.count), ("abc", false, 3));
    let reply = member.state.range(&Range { limit: 1, min_mod_revision: 4, ..all() }).unwrap();
    assert_eq!((keys(&reply).as_str(), reply.more, reply.count), ("a", true, 3));
    let reply = member.state.range(&Range { count_only: true, limit: 1, ..all() }).unwrap();
    assert_eq!((keys(&reply).as_str(), reply.more, reply.count), ("", false, 3));
}

#[test]
fn pages_join_up_to_the_whole_range_at_their_revision() {
    let mut member = three();
    member.ask(ferretcd_types::DeleteRange { range: KeyRange::single("b"), prev_kv: false }).unwrap();
    for n in 0..1500 {
        member.ask(put("p", "")).unwrap();
        member.ask(Put { key: format!("k{n:04}").into(), ..Put::default() }).unwrap();
    }
    let at = member.state.revision();
    let whole = member.state.range(&Range { revision: at, ..all() }).unwrap().kvs;
    for limit in [1, 7, 512, 2000] {
        let (mut range, mut joined) = (KeyRange::all(), Vec::new());
        loop {
            let (kvs, more) = member.state.range_page(&range, at, limit, false).unwrap();
            assert!(kvs.len() == limit || !more);
            joined.extend(kvs);
            if !more {
                break;
            }
            range.start = [joined.last().unwrap().key.as_ref(), b"\0"].concat().into();
        }
        assert!(joined == whole, "pages of {limit}");
    }
    // A page is of its revision: before the deletion, and refused once that is gone.
    let page = |revision| member.state.range_page(&KeyRange::new("a", "d"), revision, 2, true);
    let before = page(5).unwrap();
    assert_eq!((before.0[1].key.as_ref(), before.0[1].value.as_ref(), before.1), (&b"b"[..], &b""[..], true));
    assert_eq!(page(at + 1), Err(Error::FutureRevision));
    member.ask(ferretcd_types::Compact { revision: 7 }).unwrap();
    assert_eq!(member.state.range_page(&KeyRange::all(), 5, 2, true), Err(Error::Compacted));
    assert_eq!(member.state.range_page(&KeyRange::single("a"), 0, 1, false).unwrap().0.len(), 1);
}

#[test]
fn filters_are_inclusive() {
    let member = three();
    let of = |request: Range| keys(&member.state.range(&request).unwrap());
    assert_eq!(of(Range { min_mod_revision: 4, ..all() }), "ac");
    assert_eq!(of(Range { max_mod_revision: 4, ..all() }), "bc");
    assert_eq!(of(Range { min_create_revision: 3, max_create_revision: 3, ..all() }), "b");
}

#[test]
fn answers_are_sorted_as_asked() {
    let member = three();
    let of = |sort_target, sort_order| keys(&member.state.range(&Range { sort_target, sort_order, ..all() }).unwrap());
    assert_eq!(of(SortTarget::Key, SortOrder::Descend), "cba");
    assert_eq!(of(SortTarget::Mod, SortOrder::None), "bca");
    assert_eq!(of(SortTarget::Value, SortOrder::Ascend), "cba");
    assert_eq!(of(SortTarget::Value, SortOrder::Descend), "abc");
    assert_eq!(of(SortTarget::Create, SortOrder::Descend), "cba");
    assert_eq!(of(SortTarget::Version, SortOrder::Descend), "abc");
    // The limit comes after the order.
    let last = Range { limit: 1, sort_order: SortOrder::Descend, ..all() };
    assert_eq!(keys(&member.state.range(&last).unwrap()), "c");
}

#[test]
fn keys_only_is_answered_from_the_index() {
    let member = three();
    let only = |sort_target| member.state.range(&Range { keys_only: true, sort_target, ..all() }).unwrap().kvs;
    assert_eq!(only(SortTarget::Key)[2], kv("c", "", 4, 4, 1));
    // Sorted by value the records are read anyway, and the lease stays.
    assert_eq!(only(SortTarget::Value)[0], KeyValue { lease: LeaseId(5), ..kv("c", "", 4, 4, 1) });
}

#[test]
fn revisions_out_of_reach_are_refused() {
    let mut member = three();
    let at = |member: &Member, revision| member.state.range(&Range { revision, ..all() });
    assert_eq!(at(&member, 6), Err(Error::FutureRevision));
    member.ask(ferretcd_types::Compact { revision: 4 }).unwrap();
    assert_eq!(at(&member, 3), Err(Error::Compacted));
    assert_eq!(at(&member, 4).unwrap().kvs[0], kv("a", "0", 2, 2, 1));
    assert_eq!(at(&member, -1).unwrap().kvs[0], kv("a", "3", 2, 5, 2));
}

#[test]
fn a_range_of_many_keys_comes_in_one_answer() {
    // More than two chunks of the index, so that the seams are seen.
    let mut member = Member::new();
    for n in 0..1300 {
        let put = Put { key: format!("k{n:04}").into(), value: "v".into(), ..Put::default() };
        member.ask(put).unwrap();
    }
    let reply = member.range(KeyRange::prefix(b"k"));
    assert_eq!((reply.count, reply.kvs.len()), (1300, 1300));
    assert!(reply.kvs.windows(2).all(|pair| pair[0].key < pair[1].key));
    let reply = member.range(KeyRange::new("k0100", "k0612"));
    assert_eq!((reply.count, reply.kvs.len()), (512, 512));
    let reply = member.state.range(&Range { limit: 700, ..all() }).unwrap();
    assert_eq!((reply.count, reply.kvs.len(), reply.more), (1300, 700, true));
}
