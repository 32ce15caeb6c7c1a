//! Golden wire bytes, worked out by hand from the protobuf encoding rules and etcd's field numbers: a renumbered field
//! would still round-trip with itself, and would no longer be understood by any etcd client.

use bytes::Bytes;
use ferretcd_proto::{
    etcdserverpb::{
        Compare, DowngradeInfo, Member, PutRequest, RangeRequest, RequestOp, ResponseHeader, StatusResponse,
        TxnRequest, WatchResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
    ferretcd_v1::{RestoreOptions, RestoreRequest, restore_request},
    leasepb::Lease,
    mvccpb::{Event, KeyValue, event::EventType},
};
use prost::Message;

/// The message encodes to exactly `wire`, and `wire` decodes to the message.
fn golden<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, wire: &[u8]) {
    assert_eq!(message.encode_to_vec(), wire);
    assert_eq!(M::decode(wire).as_ref(), Ok(message));
}

fn key_value() -> KeyValue {
    KeyValue {
        key: Bytes::from_static(b"a"),
        create_revision: 2,
        mod_revision: 300,
        version: 4,
        value: Bytes::from_static(b"v"),
        lease: -1,
    }
}

/// The encoding of [`key_value`].
const KEY_VALUE: &[u8] = &[
    0x0a, 1, b'a', 0x10, 2, 0x18, 0xac, 0x02, 0x20, 4, 0x2a, 1, b'v', //
    0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
];

#[test]
fn a_key_value() {
    golden(&key_value(), KEY_VALUE);
}

#[test]
fn a_range_request_with_every_field() {
    let request = RangeRequest {
        key: Bytes::from_static(b"a"),
        range_end: Bytes::from_static(b"b"),
        limit: 3,
        revision: 4,
        sort_order: SortOrder::Descend.into(),
        sort_target: SortTarget::Value.into(),
        serializable: true,
        keys_only: true,
        count_only: true,
        min_mod_revision: 10,
        max_mod_revision: 11,
        min_create_revision: 12,
        max_create_revision: 13,
    };
    golden(
        &request,
        &[
            0x0a, 1, b'a', 0x12, 1, b'b', 0x18, 3, 0x20, 4, 0x28, 2, 0x30, 4, 0x38, 1, 0x40, 1, 0x48, 1, //
            0x50, 10, 0x58, 11, 0x60, 12, 0x68, 13,
        ],
    );
}

#[test]
fn a_txn_request_with_a_compare_over_a_range() {
    let compare = Compare {
        result: CompareResult::NotEqual.into(),
        target: CompareTarget::Mod.into(),
        key: Bytes::from_static(b"k"),
        range_end: Bytes::from_static(b"l"),
        target_union: Some(TargetUnion::ModRevision(7)),
    };
    let put = PutRequest {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        lease: 5,
        ..PutRequest::default()
    };
    let request = TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Request::RequestTxn(TxnRequest::default())) }],
    };
    golden(
        &request,
        &[
            // compare: range_end is field 64, so its tag takes two bytes
            0x0a, 13, 0x08, 3, 0x10, 2, 0x1a, 1, b'k', 0x30, 7, 0x82, 0x04, 1, b'l', //
            // success: a put
            0x12, 10, 0x12, 8, 0x0a, 1, b'k', 0x12, 1, b'v', 0x18, 5, //
            // failure: an empty txn
            0x1a, 2, 0x22, 0,
        ],
    );
}

#[test]
fn a_status_response_with_every_field() {
    let status = StatusResponse {
        header: Some(ResponseHeader { cluster_id: 1, member_id: 2, revision: 3, raft_term: 4 }),
        version: "3".into(),
        db_size: 3,
        leader: 4,
        raft_index: 5,
        raft_term: 6,
        raft_applied_index: 7,
        errors: vec!["e".into()],
        db_size_in_use: 9,
        is_learner: true,
        storage_version: "s".into(),
        db_size_quota: 12,
        downgrade_info: Some(DowngradeInfo { enabled: true, target_version: "t".into() }),
    };
    golden(
        &status,
        &[
            0x0a, 8, 0x08, 1, 0x10, 2, 0x18, 3, 0x20, 4, //
            0x12, 1, b'3', 0x18, 3, 0x20, 4, 0x28, 5, 0x30, 6, 0x38, 7, 0x42, 1, b'e', 0x48, 9, 0x50, 1, //
            0x5a, 1, b's', 0x60, 12, 0x6a, 5, 0x08, 1, 0x12, 1, b't',
        ],
    );
}

#[test]
fn a_watch_response_puts_its_events_into_field_11() {
    let response = WatchResponse {
        watch_id: -1,
        compact_revision: 5,
        cancel_reason: "r".into(),
        fragment: true,
        events: vec![Event { r#type: EventType::Delete.into(), kv: Some(key_value()), prev_kv: None }],
        ..WatchResponse::default()
    };
    let mut wire = vec![0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    wire.extend([0x28, 5, 0x32, 1, b'r', 0x38, 1]);
    wire.extend([0x5a, KEY_VALUE.len() as u8 + 4, 0x08, 1, 0x12, KEY_VALUE.len() as u8]);
    wire.extend(KEY_VALUE);
    golden(&response, &wire);
}

#[test]
fn a_member_and_a_stored_lease() {
    let member = Member {
        id: 1,
        name: "n".into(),
        peer_ur_ls: vec!["p".into()],
        client_ur_ls: vec!["c".into()],
        is_learner: true,
    };
    golden(&member, &[0x08, 1, 0x12, 1, b'n', 0x1a, 1, b'p', 0x22, 1, b'c', 0x28, 1]);
    golden(&Lease { id: 1, ttl: 60, remaining_ttl: 30 }, &[0x08, 1, 0x10, 60, 0x18, 30]);
}

#[test]
fn a_restore_tells_no_bump_from_a_bump_of_zero() {
    let request = |revision_bump| RestoreRequest {
        request: Some(restore_request::Request::Options(RestoreOptions { revision_bump, file_bytes: 9 })),
    };
    golden(&request(None), &[0x0a, 2, 0x10, 9]);
    golden(&request(Some(0)), &[0x0a, 4, 0x08, 0, 0x10, 9]);
}
