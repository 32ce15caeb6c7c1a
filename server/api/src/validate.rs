//! Shape checks on client requests, as etcd makes them before a request enters the log. Each refuses with the error that
//! etcd gives, in etcd's order, so that a request with two faults gets the same answer.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferretcd_node::cluster::is_peer_url;
use ferretcd_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget},
    range_request::{SortOrder, SortTarget},
    request_op::Request,
};
use ferretcd_types::{Error, KeyRange, limits::LEASE_TTL_SECONDS_MAX};

/// A range names a key and a known order.
pub fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    SortOrder::try_from(request.sort_order).map_err(|_| Error::InvalidSortOption)?;
    SortTarget::try_from(request.sort_target).map_err(|_| Error::InvalidSortOption)?;
    Ok(())
}

/// A put names a key, and gives no value or lease that it asks to ignore.
pub fn put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// A deletion names a key.
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// A transaction stays within `max_ops` per list (nested ones share what is left), its parts are valid, and no
/// execution path writes a key twice.
pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    txn_shape(request, max_ops)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

/// A lease is not longer than etcd's longest.
pub fn lease_grant(request: &LeaseGrantRequest) -> Result<(), Error> {
    if request.ttl > LEASE_TTL_SECONDS_MAX { Err(Error::LeaseTtlTooLarge) } else { Ok(()) }
}

/// Peer URLs of a member: at least one, each of a form that members can dial. Checked here as well as by the leader, so
/// that a mistake is named even when there is no leader to ask.
pub fn peer_urls(urls: &[String]) -> Result<(), Error> {
    if !urls.is_empty() && urls.iter().all(|url| is_peer_url(url)) { Ok(()) } else { Err(Error::BadMemberUrls) }
}

fn txn_shape(request: &TxnRequest, max_ops: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = max_ops.checked_sub(ops).ok_or(Error::TooManyOps)?;
    request.compare.iter().try_for_each(compare)?;
    request.success.iter().chain(&request.failure).try_for_each(|op| txn_op(op, left))
}

fn compare(compare: &Compare) -> Result<(), Error> {
    if compare.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    // etcd lets unknown numbers pass and takes the comparison as true. A write must not happen for a condition that
    // nobody understood, so they get etcd's answer to unknown numbers elsewhere.
    CompareResult::try_from(compare.result).map_err(|_| Error::UnknownMethod)?;
    CompareTarget::try_from(compare.target).map_err(|_| Error::UnknownMethod)?;
    Ok(())
}

/// Recursion ends with the operations: each level uses up at least one of `left` (and the decoder refuses messages
/// that are nested deeper than 100).
fn txn_op(op: &RequestOp, left: usize) -> Result<(), Error> {
    match &op.request {
        Some(Request::RequestRange(r)) => range(r),
        Some(Request::RequestPut(r)) => put(r),
        Some(Request::RequestDeleteRange(r)) => delete_range(r),
        Some(Request::RequestTxn(r)) => txn_shape(r, left),
        None => Err(Error::KeyNotFound),
    }
}

/// What one list of operations may write, nested transactions included.
///
/// The rule is etcd's, to the letter: no key is put twice on one execution path, and no key is put that a delete of the
/// same list, or of a nested transaction further up in it, covers. The two branches of a nested transaction exclude
/// each other and may put the same keys. Two deletes may always overlap.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Deleted,
}

impl<'a> Writes<'a> {
    fn of(ops: &'a [RequestOp]) -> Result<Self, Error> {
        let mut all = Writes::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(r)) = &op.request {
                all.deletes.add(&KeyRange::new(r.key.clone(), r.range_end.clone()));
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(r)) = &op.request {
                let (success, failure) = (Writes::of(&r.success)?, Writes::of(&r.failure)?);
                unless(all.deletes.covers_any(&success.puts) || meet(&all.puts, &success.puts))?;
                unless(all.deletes.covers_any(&failure.puts) || meet(&all.puts, &failure.puts))?;
                all.absorb(success);
                all.absorb(failure);
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(r)) = &op.request {
                unless(all.deletes.contains(&r.key) || !all.puts.insert(&r.key))?;
            }
        }
        Ok(all)
    }

    /// Moving the smaller into the larger keeps deep nesting from copying the same keys at every level.
    fn absorb(&mut self, mut other: Self) {
        if self.puts.len() < other.puts.len() {
            std::mem::swap(&mut self.puts, &mut other.puts);
        }
        if self.deletes.ranges.len() < other.deletes.ranges.len() {
            std::mem::swap(&mut self.deletes, &mut other.deletes);
        }
        self.puts.extend(other.puts);
        for (start, end) in other.deletes.ranges {
            self.deletes.insert(start, end);
        }
    }
}

fn unless(collision: bool) -> Result<(), Error> {
    if collision { Err(Error::DuplicateKey) } else { Ok(()) }
}

/// Whether two sets have a key in common, at the cost of the smaller one.
fn meet(a: &BTreeSet<&Bytes>, b: &BTreeSet<&Bytes>) -> bool {
    let (small, large) = if a.len() < b.len() { (a, b) } else { (b, a) };
    small.iter().any(|key| large.contains(key))
}

/// A set of keys as disjoint ranges: start to exclusive end.
#[derive(Default)]
struct Deleted {
    ranges: BTreeMap<Bytes, Bytes>,
}

impl Deleted {
    fn add(&mut self, range: &KeyRange) {
        if range.is_single() {
            // The first key after a key is the key with a zero byte behind it.
            self.insert(range.start.clone(), [range.start.as_ref(), b"\0"].concat().into());
        } else if !range.is_from_key() && !range.is_empty() {
            // etcd takes the end "\0" of a range without an end at its word here: such a delete meets no put. The
            // operations then run one after the other.
            self.insert(range.start.clone(), range.end.clone());
        }
    }

    /// Adds a range, merging it with those that it touches.
    fn insert(&mut self, mut start: Bytes, mut end: Bytes) {
        if let Some((before, before_end)) = self.ranges.range(..=start.clone()).next_back()
            && *before_end >= start
        {
            start = before.clone();
            end = end.max(before_end.clone());
        }
        while let Some((next, next_end)) = self.ranges.range(start.clone()..).next()
            && *next <= end
        {
            let next = next.clone();
            end = end.max(next_end.clone());
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.ranges.range(..=key.clone()).next_back().is_some_and(|(_, end)| key < end)
    }

    /// At the cost of the smaller of both.
    fn covers_any(&self, keys: &BTreeSet<&Bytes>) -> bool {
        if keys.len() < self.ranges.len() {
            return keys.iter().any(|key| self.contains(key));
        }
        let first = |start| keys.range::<&Bytes, _>(start..).next();
        self.ranges.iter().any(|(start, end)| first(start).is_some_and(|first| *first < end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(k: &'static str) -> Bytes {
        Bytes::from_static(k.as_bytes())
    }
    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }
    fn put_op(k: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: key(k), ..PutRequest::default() }))
    }
    fn delete_op(k: &'static str, end: &'static str) -> RequestOp {
        op(Request::RequestDeleteRange(DeleteRangeRequest { key: key(k), range_end: key(end), prev_kv: false }))
    }
    fn range_op(k: &'static str) -> RequestOp {
        op(Request::RequestRange(RangeRequest { key: key(k), ..RangeRequest::default() }))
    }
    fn either(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest { compare: vec![], success, failure }))
    }
    fn check(success: Vec<RequestOp>) -> Result<(), Error> {
        txn(&TxnRequest { compare: vec![], success, failure: vec![] }, 128)
    }

    #[test]
    fn a_range_needs_a_key_and_a_known_order() {
        let good = RangeRequest { key: key("a"), ..RangeRequest::default() };
        assert_eq!(range(&good), Ok(()));
        assert_eq!(range(&RangeRequest::default()), Err(Error::EmptyKey));
        assert_eq!(range(&RangeRequest { sort_order: 3, ..good.clone() }), Err(Error::InvalidSortOption));
        assert_eq!(range(&RangeRequest { sort_target: -1, ..good }), Err(Error::InvalidSortOption));
    }

    #[test]
    fn a_put_gives_nothing_that_it_asks_to_ignore() {
        let good = PutRequest { key: key("a"), value: key("v"), lease: 1, ..PutRequest::default() };
        assert_eq!(put(&good), Ok(()));
        assert_eq!(put(&PutRequest { key: key(""), ..good.clone() }), Err(Error::EmptyKey));
        assert_eq!(put(&PutRequest { ignore_value: true, ..good.clone() }), Err(Error::ValueProvided));
        assert_eq!(put(&PutRequest { ignore_lease: true, ..good.clone() }), Err(Error::LeaseProvided));
        let bare = PutRequest { value: key(""), lease: 0, ignore_value: true, ignore_lease: true, ..good };
        assert_eq!(put(&bare), Ok(()));
    }

    #[test]
    fn every_list_of_a_txn_is_counted() {
        let compare = Compare { key: key("a"), ..Compare::default() };
        for (compares, success, failure) in [(3, 0, 0), (0, 3, 0), (0, 0, 3)] {
            let request = TxnRequest {
                compare: vec![compare.clone(); compares],
                success: vec![range_op("a"); success],
                failure: vec![range_op("a"); failure],
            };
            assert_eq!(txn(&request, 3), Ok(()));
            assert_eq!(txn(&request, 2), Err(Error::TooManyOps));
        }
    }

    #[test]
    fn a_nested_txn_gets_what_is_left() {
        let outer = |inner: usize| vec![either(vec![range_op("a"); inner], vec![]), range_op("b")];
        let request = |inner| TxnRequest { compare: vec![], success: outer(inner), failure: vec![] };
        assert_eq!(txn(&request(3), 5), Ok(()));
        assert_eq!(txn(&request(4), 5), Err(Error::TooManyOps));
    }

    #[test]
    fn parts_of_a_txn_are_checked_like_requests_of_their_own() {
        assert_eq!(check(vec![RequestOp { request: None }]), Err(Error::KeyNotFound));
        assert_eq!(check(vec![range_op("")]), Err(Error::EmptyKey));
        assert_eq!(check(vec![put_op("")]), Err(Error::EmptyKey));
        assert_eq!(check(vec![delete_op("", "")]), Err(Error::EmptyKey));
        assert_eq!(check(vec![either(vec![], vec![put_op("")])]), Err(Error::EmptyKey));
        let compared = |c| txn(&TxnRequest { compare: vec![c], ..TxnRequest::default() }, 1);
        assert_eq!(compared(Compare::default()), Err(Error::EmptyKey));
        assert_eq!(compared(Compare { key: key("a"), target: 5, ..Compare::default() }), Err(Error::UnknownMethod));
    }

    #[test]
    fn no_path_writes_a_key_twice() {
        assert_eq!(check(vec![put_op("a"), put_op("b"), range_op("a")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), Err(Error::DuplicateKey));
        for delete in [delete_op("a", ""), delete_op("a", "b"), delete_op("A", "b")] {
            assert_eq!(check(vec![put_op("a"), delete.clone()]), Err(Error::DuplicateKey));
            assert_eq!(check(vec![delete, put_op("a")]), Err(Error::DuplicateKey));
        }
        let endless = [delete_op("A", "\0"), delete_op("\0", "\0")];
        for delete in [delete_op("b", ""), delete_op("b", "c"), delete_op("A", "a")].into_iter().chain(endless) {
            assert_eq!(check(vec![put_op("a"), delete.clone()]), Ok(()));
            assert_eq!(check(vec![delete, put_op("a")]), Ok(()));
        }
        assert_eq!(check(vec![delete_op("a", "c"), delete_op("b", "d"), delete_op("b", "")]), Ok(()));
        // The branches of the request itself exclude each other.
        let both = TxnRequest { compare: vec![], success: vec![put_op("a")], failure: vec![put_op("a")] };
        assert_eq!(txn(&both, 1), Ok(()));
    }

    #[test]
    fn branches_of_a_nested_txn_exclude_each_other_but_not_what_surrounds_them() {
        assert_eq!(check(vec![either(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
        assert_eq!(check(vec![either(vec![put_op("a")], vec![delete_op("a", "")])]), Ok(()));
        assert_eq!(check(vec![either(vec![delete_op("a", "")], vec![put_op("a")])]), Ok(()));
        // What etcd minds depends on the order, and so does what we mind.
        let later = [either(vec![put_op("a")], vec![]), either(vec![delete_op("a", "")], vec![])];
        assert_eq!(check(later.to_vec()), Ok(()));
        assert_eq!(check(later.into_iter().rev().collect()), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put_op("a"), either(vec![], vec![put_op("a")])]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![either(vec![put_op("a")], vec![]), delete_op("a", "b")]), Err(Error::DuplicateKey));
        let twins = vec![either(vec![put_op("a")], vec![]), either(vec![], vec![put_op("a")])];
        assert_eq!(check(twins), Err(Error::DuplicateKey));
        assert_eq!(check(vec![either(vec![put_op("a")], vec![put_op("b")]), put_op("c")]), Ok(()));
    }

    #[test]
    fn merged_deletes_keep_their_gaps() {
        let mut deleted = Deleted::default();
        for (start, end) in [("m", "p"), ("a", "c"), ("e", "g"), ("b", "e"), ("x", "z"), ("f", "h")] {
            deleted.insert(key(start), key(end));
        }
        let ranges: Vec<_> = deleted.ranges.iter().map(|(s, e)| (s.clone(), e.clone())).collect();
        assert_eq!(ranges, [(key("a"), key("h")), (key("m"), key("p")), (key("x"), key("z"))]);
        deleted.insert(key("n"), key("zz"));
        assert!(deleted.contains(&key("zy")) && !deleted.contains(&key("i")) && deleted.ranges.len() == 2);
    }

    #[test]
    fn a_member_needs_urls_that_can_be_dialled() {
        let check = |urls: &[&str]| peer_urls(&urls.iter().map(|u| u.to_string()).collect::<Vec<_>>());
        assert_eq!(check(&["http://10.0.0.1:2380", "https://etcd-0.etcd:2380"]), Ok(()));
        assert_eq!(check(&["http://10.0.0.1:2380", "10.0.0.1:2380"]), Err(Error::BadMemberUrls));
        assert_eq!(check(&[]), Err(Error::BadMemberUrls));
    }

    #[test]
    fn a_lease_has_a_longest_term() {
        let grant = |ttl| lease_grant(&LeaseGrantRequest { ttl, id: 0 });
        assert_eq!(grant(LEASE_TTL_SECONDS_MAX), Ok(()));
        assert_eq!(grant(LEASE_TTL_SECONDS_MAX + 1), Err(Error::LeaseTtlTooLarge));
    }

    #[test]
    fn fuzz_client_message() {
        use crate::convert;
        use ferretcd_fuzz::Fuzz;
        use ferretcd_proto::etcdserverpb as pb;
        use prost::Message;

        fn tagged(tag: u8, message: &impl Message) -> Vec<u8> {
            [&[tag][..], &message.encode_to_vec()].concat()
        }
        fn read<M: Message + Default>(body: &[u8], then: impl FnOnce(M) -> String) -> String {
            M::decode(body).map_or_else(|e| e.to_string(), then)
        }
        let range = pb::RangeRequest { key: "k".into(), range_end: "l".into(), limit: 1, ..Default::default() };
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), lease: 1, ..Default::default() };
        let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "\0".into(), prev_kv: true };
        let op = |request| pb::RequestOp { request: Some(request) };
        let inner = pb::TxnRequest { success: vec![op(Request::RequestPut(put.clone()))], ..Default::default() };
        let txn = pb::TxnRequest {
            compare: vec![pb::Compare { key: "k".into(), result: 1, target: 2, ..Default::default() }],
            success: vec![op(Request::RequestRange(range.clone())), op(Request::RequestTxn(inner))],
            failure: vec![op(Request::RequestDeleteRange(delete.clone()))],
        };
        let watch =
            pb::WatchCreateRequest { key: "k".into(), filters: vec![0, 1], start_revision: 4, ..Default::default() };
        let member = pb::MemberAddRequest { peer_ur_ls: vec!["http://a:2380".into()], is_learner: true };
        let seeds = [
            tagged(0, &txn),
            tagged(1, &range),
            tagged(2, &put),
            tagged(3, &delete),
            tagged(4, &watch),
            tagged(5, &member),
            tagged(6, &pb::AlarmRequest { action: 1, member_id: 1, alarm: 1 }),
            tagged(7, &pb::LeaseGrantRequest { ttl: 10, id: 1 }),
        ];
        Fuzz::new(env!("CARGO_MANIFEST_DIR"), "client_message").seeds(seeds).run(|bytes| {
            let (tag, body) = bytes.split_first().unwrap_or((&0, &[]));
            match tag % 8 {
                0 => read(body, |r: pb::TxnRequest| format!("{:?} {:?}", super::txn(&r, 128), convert::kv::txn(r))),
                1 => read(body, |r: pb::RangeRequest| format!("{:?} {:?}", super::range(&r), convert::kv::range(r))),
                2 => read(body, |r: pb::PutRequest| format!("{:?} {:?}", super::put(&r), convert::kv::put(r))),
                3 => read(body, |r: pb::DeleteRangeRequest| {
                    format!("{:?} {:?}", super::delete_range(&r), convert::kv::delete_range(r))
                }),
                4 => read(body, |r: pb::WatchCreateRequest| format!("{:?}", convert::watch::create(r))),
                5 => read(body, |r: pb::MemberAddRequest| format!("{:?}", super::peer_urls(&r.peer_ur_ls))),
                6 => read(body, |r: pb::AlarmRequest| format!("{:?}", convert::cluster::alarm_kind(r.alarm))),
                _ => read(body, |r: pb::LeaseGrantRequest| format!("{:?}", super::lease_grant(&r))),
            }
        });
    }
}
