//! The KV service's requests and answers.

use ferretcd_proto::etcdserverpb::{
    self as pb, RequestOp, ResponseHeader, ResponseOp, compare::TargetUnion, range_request, request_op::Request,
    response_op::Response,
};
use ferretcd_types::{
    Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, Error, KeyRange, KeyValue, LeaseId, OpReply,
    Put, PutReply, Range, RangeReply, SortOrder, SortTarget, Txn, TxnOp, TxnReply,
};

use super::{key_value, key_values};
use crate::header;

/// A read.
pub fn range(request: pb::RangeRequest) -> Range {
    let sort_order = match request.sort_order() {
        range_request::SortOrder::None => SortOrder::None,
        range_request::SortOrder::Ascend => SortOrder::Ascend,
        range_request::SortOrder::Descend => SortOrder::Descend,
    };
    let sort_target = match request.sort_target() {
        range_request::SortTarget::Key => SortTarget::Key,
        range_request::SortTarget::Version => SortTarget::Version,
        range_request::SortTarget::Create => SortTarget::Create,
        range_request::SortTarget::Mod => SortTarget::Mod,
        range_request::SortTarget::Value => SortTarget::Value,
    };
    Range {
        range: KeyRange { start: request.key, end: request.range_end },
        limit: request.limit,
        revision: request.revision,
        sort_order,
        sort_target,
        serializable: request.serializable,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    }
}

/// A write.
pub fn put(request: pb::PutRequest) -> Put {
    let pb::PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease } = request;
    Put { key, value, lease: LeaseId(lease), prev_kv, ignore_value, ignore_lease }
}

/// A deletion.
pub fn delete_range(request: pb::DeleteRangeRequest) -> DeleteRange {
    let pb::DeleteRangeRequest { key, range_end, prev_kv } = request;
    DeleteRange { range: KeyRange { start: key, end: range_end }, prev_kv }
}

/// A transaction. An operation without content is etcd's "key not found".
pub fn txn(request: pb::TxnRequest) -> Result<Txn, Error> {
    let pb::TxnRequest { compare: compares, success, failure } = request;
    Ok(Txn {
        compares: compares.into_iter().map(compare).collect(),
        success: success.into_iter().map(txn_op).collect::<Result<_, _>>()?,
        failure: failure.into_iter().map(txn_op).collect::<Result<_, _>>()?,
    })
}

fn txn_op(op: RequestOp) -> Result<TxnOp, Error> {
    Ok(match op.request.ok_or(Error::KeyNotFound)? {
        Request::RequestRange(r) => TxnOp::Range(range(r)),
        Request::RequestPut(r) => TxnOp::Put(put(r)),
        Request::RequestDeleteRange(r) => TxnOp::DeleteRange(delete_range(r)),
        Request::RequestTxn(r) => TxnOp::Txn(txn(r)?),
    })
}

/// The target says what is compared; a given side of another kind counts as zero or empty, as protobuf getters have it.
fn compare(compare: pb::Compare) -> Compare {
    let result = match compare.result() {
        pb::compare::CompareResult::Equal => CompareResult::Equal,
        pb::compare::CompareResult::Greater => CompareResult::Greater,
        pb::compare::CompareResult::Less => CompareResult::Less,
        pb::compare::CompareResult::NotEqual => CompareResult::NotEqual,
    };
    let target = match (compare.target(), compare.target_union) {
        (pb::compare::CompareTarget::Version, Some(TargetUnion::Version(v))) => CompareTarget::Version(v),
        (pb::compare::CompareTarget::Version, _) => CompareTarget::Version(0),
        (pb::compare::CompareTarget::Create, Some(TargetUnion::CreateRevision(v))) => CompareTarget::Create(v),
        (pb::compare::CompareTarget::Create, _) => CompareTarget::Create(0),
        (pb::compare::CompareTarget::Mod, Some(TargetUnion::ModRevision(v))) => CompareTarget::Mod(v),
        (pb::compare::CompareTarget::Mod, _) => CompareTarget::Mod(0),
        (pb::compare::CompareTarget::Value, Some(TargetUnion::Value(v))) => CompareTarget::Value(v),
        (pb::compare::CompareTarget::Value, _) => CompareTarget::Value(bytes::Bytes::new()),
        (pb::compare::CompareTarget::Lease, Some(TargetUnion::Lease(v))) => CompareTarget::Lease(v),
        (pb::compare::CompareTarget::Lease, _) => CompareTarget::Lease(0),
    };
    Compare { range: KeyRange { start: compare.key, end: compare.range_end }, result, target }
}

/// What a read answers, under the given header.
pub fn range_response(reply: RangeReply, header: ResponseHeader) -> pb::RangeResponse {
    let RangeReply { revision: _, kvs, more, count } = reply;
    pb::RangeResponse { header: Some(header), kvs: key_values(kvs), more, count }
}

/// A chunk of a read that is answered in several; the last one gets header, `more` and `count`.
pub fn range_chunk(kvs: Vec<KeyValue>) -> pb::RangeResponse {
    pb::RangeResponse { kvs: key_values(kvs), ..pb::RangeResponse::default() }
}

/// What a put answers, under the given header.
pub fn put_response(reply: PutReply, header: ResponseHeader) -> pb::PutResponse {
    let PutReply { revision: _, prev_kv } = reply;
    pb::PutResponse { header: Some(header), prev_kv: prev_kv.map(key_value) }
}

/// What a deletion answers, under the given header.
pub fn delete_range_response(reply: DeleteRangeReply, header: ResponseHeader) -> pb::DeleteRangeResponse {
    let DeleteRangeReply { revision: _, deleted, prev_kvs } = reply;
    pb::DeleteRangeResponse { header: Some(header), deleted, prev_kvs: key_values(prev_kvs) }
}

/// What a transaction answers, under the given header; the answers inside carry their revision only, or nothing.
pub fn txn_response(reply: TxnReply, header: ResponseHeader) -> pb::TxnResponse {
    let TxnReply { revision: _, succeeded, responses } = reply;
    pb::TxnResponse { header: Some(header), succeeded, responses: responses.into_iter().map(op_response).collect() }
}

fn op_response(reply: OpReply) -> ResponseOp {
    let response = match reply {
        OpReply::Range(r) => {
            let header = header::revision_only(r.revision);
            Response::ResponseRange(range_response(r, header))
        }
        OpReply::Put(r) => {
            let header = header::revision_only(r.revision);
            Response::ResponsePut(put_response(r, header))
        }
        OpReply::DeleteRange(r) => {
            let header = header::revision_only(r.revision);
            Response::ResponseDeleteRange(delete_range_response(r, header))
        }
        // etcd leaves the header of a nested transaction empty.
        OpReply::Txn(r) => Response::ResponseTxn(txn_response(r, ResponseHeader::default())),
    };
    ResponseOp { response: Some(response) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Every field differs from every other, so that a swapped pair is seen.
    #[test]
    fn a_range_keeps_every_field() {
        let request = pb::RangeRequest {
            key: "a".into(),
            range_end: "b".into(),
            limit: 1,
            revision: 2,
            sort_order: range_request::SortOrder::Descend.into(),
            sort_target: range_request::SortTarget::Mod.into(),
            serializable: true,
            keys_only: false,
            count_only: true,
            min_mod_revision: 3,
            max_mod_revision: 4,
            min_create_revision: 5,
            max_create_revision: 6,
        };
        let expected = Range {
            range: KeyRange::new("a", "b"),
            limit: 1,
            revision: 2,
            sort_order: SortOrder::Descend,
            sort_target: SortTarget::Mod,
            serializable: true,
            keys_only: false,
            count_only: true,
            min_mod_revision: 3,
            max_mod_revision: 4,
            min_create_revision: 5,
            max_create_revision: 6,
        };
        assert_eq!(range(request), expected);
    }

    #[test]
    fn a_txn_keeps_its_tree() {
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), lease: 9, ..Default::default() };
        let delete = pb::DeleteRangeRequest { key: "d".into(), range_end: "e".into(), prev_kv: true };
        let nested = pb::TxnRequest {
            failure: vec![RequestOp { request: Some(Request::RequestDeleteRange(delete)) }],
            ..Default::default()
        };
        let request = pb::TxnRequest {
            compare: vec![pb::Compare {
                result: pb::compare::CompareResult::Less.into(),
                target: pb::compare::CompareTarget::Value.into(),
                key: "c".into(),
                range_end: "\0".into(),
                target_union: Some(TargetUnion::Value("x".into())),
            }],
            success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
            failure: vec![RequestOp { request: Some(Request::RequestTxn(nested)) }],
        };
        let expected = Txn {
            compares: vec![Compare {
                range: KeyRange::new("c", "\0"),
                result: CompareResult::Less,
                target: CompareTarget::Value("x".into()),
            }],
            success: vec![TxnOp::Put(Put {
                key: "k".into(),
                value: "v".into(),
                lease: LeaseId(9),
                ..Default::default()
            })],
            failure: vec![TxnOp::Txn(Txn {
                failure: vec![TxnOp::DeleteRange(DeleteRange { range: KeyRange::new("d", "e"), prev_kv: true })],
                ..Default::default()
            })],
        };
        assert_eq!(txn(request), Ok(expected));
        let hollow = pb::TxnRequest { success: vec![RequestOp { request: None }], ..Default::default() };
        assert_eq!(txn(hollow), Err(Error::KeyNotFound));
    }

    #[test]
    fn a_given_side_of_another_kind_counts_as_zero() {
        let given = |target: pb::compare::CompareTarget, union| {
            compare(pb::Compare { target: target.into(), target_union: union, ..Default::default() }).target
        };
        use pb::compare::CompareTarget as Wire;
        assert_eq!(given(Wire::Create, Some(TargetUnion::ModRevision(7))), CompareTarget::Create(0));
        assert_eq!(given(Wire::Create, Some(TargetUnion::CreateRevision(7))), CompareTarget::Create(7));
        assert_eq!(given(Wire::Mod, Some(TargetUnion::ModRevision(7))), CompareTarget::Mod(7));
        assert_eq!(given(Wire::Version, Some(TargetUnion::Version(7))), CompareTarget::Version(7));
        assert_eq!(given(Wire::Lease, Some(TargetUnion::Lease(7))), CompareTarget::Lease(7));
        assert_eq!(given(Wire::Value, None), CompareTarget::Value(Bytes::new()));
    }

    #[test]
    fn a_txn_answers_with_revisions_inside() {
        let kv = KeyValue {
            key: "k".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 4,
            value: "v".into(),
            lease: LeaseId(5),
        };
        let reply = TxnReply {
            revision: 12,
            succeeded: true,
            responses: vec![
                OpReply::Put(PutReply { revision: 12, prev_kv: Some(kv) }),
                OpReply::Range(RangeReply { revision: 11, kvs: vec![], more: true, count: 8 }),
                OpReply::Txn(TxnReply { revision: 12, succeeded: true, responses: vec![] }),
            ],
        };
        let full = ResponseHeader { cluster_id: 1, member_id: 2, revision: 12, raft_term: 3 };
        let response = txn_response(reply, full);
        assert_eq!((response.header, response.succeeded), (Some(full), true));

        let inner = |revision| Some(ResponseHeader { revision, ..Default::default() });
        let Some(Response::ResponsePut(put)) = &response.responses[0].response else { panic!("not a put") };
        assert_eq!(put.header, inner(12));
        let prev = put.prev_kv.clone().unwrap();
        assert_eq!((prev.create_revision, prev.mod_revision, prev.version, prev.lease), (2, 3, 4, 5));
        assert_eq!((prev.key.as_ref(), prev.value.as_ref()), (&b"k"[..], &b"v"[..]));
        let Some(Response::ResponseRange(range)) = &response.responses[1].response else { panic!("not a range") };
        assert_eq!((range.header, range.more, range.count), (inner(11), true, 8));
        let Some(Response::ResponseTxn(txn)) = &response.responses[2].response else { panic!("not a txn") };
        assert_eq!((txn.header, txn.succeeded), (inner(0), true));
    }
}
