//! Transactions.

use crate::member::{Member, kv, put};
use ferretcd_types::{
    Compact, Compare, CompareResult, CompareTarget, DeleteRange, Error, KeyRange, LeaseId, OpReply, Put, Range, Txn,
    TxnOp,
};

fn compare(key: &'static str, result: CompareResult, target: CompareTarget) -> Compare {
    Compare { range: KeyRange::single(key), result, target }
}

fn get(key: &'static str) -> TxnOp {
    TxnOp::Range(Range { range: KeyRange::single(key), ..Range::default() })
}

fn set(key: &'static str, value: &'static str) -> TxnOp {
    TxnOp::Put(put(key, value))
}

fn delete(range: KeyRange) -> TxnOp {
    TxnOp::DeleteRange(DeleteRange { range, prev_kv: false })
}

#[test]
fn a_missing_key_compares_as_zeroes_but_has_no_value() {
    use CompareResult::{Equal, Less, NotEqual};
    let mut member = Member::new();
    let holds = |member: &mut Member, compare| {
        let txn = Txn { compares: vec![compare], ..Txn::default() };
        member.ask(txn).unwrap().succeeded
    };
    assert!(holds(&mut member, compare("a", Equal, CompareTarget::Create(0))));
    assert!(holds(&mut member, compare("a", Equal, CompareTarget::Mod(0))));
    assert!(holds(&mut member, compare("a", Less, CompareTarget::Version(1))));
    assert!(holds(&mut member, compare("a", Equal, CompareTarget::Lease(0))));
    assert!(!holds(&mut member, compare("a", Equal, CompareTarget::Value("".into()))));
    assert!(!holds(&mut member, compare("a", NotEqual, CompareTarget::Value("x".into()))));
    member.put("a", "1");
    member.put("b", "2");
    // All keys of a range must hold.
    let both = |result, value: &'static str| Compare {
        range: KeyRange::all(),
        result,
        target: CompareTarget::Value(value.into()),
    };
    assert!(holds(&mut member, both(Less, "3")));
    assert!(!holds(&mut member, both(Less, "2")));
    assert_eq!(member.state.revision(), 3, "compares change nothing");
}

#[test]
fn later_operations_see_earlier_ones_and_all_share_a_revision() {
    let mut member = Member::new();
    member.put("a", "1");
    let all = TxnOp::Range(Range { range: KeyRange::all(), ..Range::default() });
    let txn = Txn {
        success: vec![all.clone(), set("b", "2"), all.clone(), delete(KeyRange::single("a")), set("c", "3"), all],
        ..Txn::default()
    };
    let reply = member.ask(txn).unwrap();
    assert_eq!(reply.revision, 3);
    let seen: Vec<_> = reply
        .responses
        .iter()
        .filter_map(|op| match op {
            OpReply::Range(r) => Some((r.revision, r.count, r.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>())),
            _ => None,
        })
        .collect();
    assert_eq!(seen[0], (2, 1, vec!["a".into()]));
    assert_eq!(seen[1], (3, 2, vec!["a".into(), "b".into()]));
    assert_eq!(seen[2], (3, 2, vec!["b".into(), "c".into()]));
    assert_eq!(member.get("c"), Some(kv("c", "3", 3, 3, 1)));
    let subs: Vec<_> = member.state.events(3, 10, 1 << 20).unwrap().events.iter().map(|e| e.revision.sub).collect();
    assert_eq!(subs, [0, 1, 2]);
}

#[test]
fn compares_of_the_whole_tree_see_the_state_before() {
    let mut member = Member::new();
    let inner = Txn {
        compares: vec![compare("a", CompareResult::Equal, CompareTarget::Create(0))],
        success: vec![set("b", "then")],
        failure: vec![set("b", "else")],
    };
    let reply = member.ask(Txn { success: vec![set("a", "1"), TxnOp::Txn(inner)], ..Txn::default() }).unwrap();
    let OpReply::Txn(inner) = &reply.responses[1] else { panic!("{reply:?}") };
    assert!(inner.succeeded);
    assert_eq!(member.get("b").unwrap().value, "then");
}

#[test]
fn a_check_that_fails_undoes_everything() {
    let mut member = Member::new();
    member.put("a", "1");
    member.ask(Compact { revision: 2 }).unwrap();
    let first = set("b", "2");
    let at = |revision| TxnOp::Range(Range { range: KeyRange::all(), revision, ..Range::default() });
    let refused = [
        (TxnOp::Put(Put { lease: LeaseId(9), ..put("c", "3") }), Error::LeaseNotFound),
        (TxnOp::Put(Put { ignore_value: true, ..put("c", "") }), Error::KeyNotFound),
        (at(3), Error::FutureRevision),
        (at(1), Error::Compacted),
        // etcd holds a negative revision against the compacted one, in here only.
        (at(-1), Error::Compacted),
    ];
    for (op, expected) in refused {
        let txn = Txn { success: vec![first.clone(), op], ..Txn::default() };
        assert_eq!(member.ask(txn), Err(expected));
    }
    assert_eq!((member.state.revision(), member.get("b")), (2, None));
    // What the other branch would do is not checked.
    let txn = Txn { success: vec![first], failure: vec![at(99)], ..Txn::default() };
    assert!(member.ask(txn).unwrap().succeeded);
}

#[test]
fn a_transaction_that_changes_nothing_takes_no_revision() {
    let mut member = Member::new();
    member.put("a", "1");
    let txn = Txn { success: vec![get("a"), delete(KeyRange::single("x"))], ..Txn::default() };
    let (reply, effects) = member.ask_all(txn);
    assert_eq!((reply.unwrap().revision, effects), (2, vec![]));
    let read = Txn { success: vec![get("a")], ..Txn::default() };
    assert_eq!(member.state.read_txn(&read).unwrap(), member.ask(read.clone()).unwrap());
    assert!(member.state.read_txn(&Txn { success: vec![set("a", "2")], ..Txn::default() }).is_err());
}

#[test]
fn a_put_over_a_key_deleted_in_the_same_transaction_begins_a_life() {
    // The border refuses such requests; the state must be sound all the same.
    let mut member = Member::new();
    member.put("a", "1");
    let txn = Txn { success: vec![delete(KeyRange::all()), set("a", "2"), set("a", "3")], ..Txn::default() };
    member.ask(txn).unwrap();
    assert_eq!(member.get("a"), Some(kv("a", "3", 3, 3, 2)));
    assert_eq!(member.after_flush_and_power_cut().get("a"), Some(kv("a", "3", 3, 3, 2)));
}
