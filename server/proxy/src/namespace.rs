//! `--namespace`: a prefix before every key that goes to the members, and taken off every key that comes back.

use bytes::{Bytes, BytesMut};
use ferretcd_proto::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse, request_op,
    response_op,
};
use ferretcd_proto::mvccpb::{Event, KeyValue};

/// The prefix; empty for none.
#[derive(Clone, Debug, Default)]
pub struct Namespace(Bytes);

/// Deeper nested transactions are left as they are: the members refuse them at far less.
const DEPTH_MAX: usize = 64;

impl Namespace {
    /// This prefix before all keys.
    pub fn new(prefix: &str) -> Self {
        Namespace(Bytes::copy_from_slice(prefix.as_bytes()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A key within the namespace.
    pub fn key(&self, key: &Bytes) -> Bytes {
        if self.is_empty() {
            return key.clone();
        }
        let mut joined = BytesMut::with_capacity(self.0.len() + key.len());
        joined.extend_from_slice(&self.0);
        joined.extend_from_slice(key);
        joined.freeze()
    }

    /// The end of a range within the namespace. "All keys from here" ends where the namespace does.
    pub fn end(&self, end: &Bytes) -> Bytes {
        match end.as_ref() {
            _ if self.is_empty() => end.clone(),
            [] => Bytes::new(),
            [0] => prefix_end(&self.0),
            _ => self.key(end),
        }
    }

    /// Puts key and end of a range into the namespace.
    pub fn range(&self, key: &mut Bytes, end: &mut Bytes) {
        *key = self.key(key);
        *end = self.end(end);
    }

    /// A key as the client knows it; nothing for one from elsewhere.
    pub fn strip(&self, key: &Bytes) -> Option<Bytes> {
        key.starts_with(&self.0).then(|| key.slice(self.0.len()..))
    }

    fn strip_kv(&self, kv: &mut KeyValue) {
        if let Some(key) = self.strip(&kv.key) {
            kv.key = key;
        }
    }

    /// Takes the prefix off an answer.
    pub fn strip_range(&self, answer: &mut RangeResponse) {
        answer.kvs.iter_mut().for_each(|kv| self.strip_kv(kv));
    }

    /// Takes the prefix off an answer.
    pub fn strip_put(&self, answer: &mut PutResponse) {
        answer.prev_kv.iter_mut().for_each(|kv| self.strip_kv(kv));
    }

    /// Takes the prefix off an answer.
    pub fn strip_delete(&self, answer: &mut DeleteRangeResponse) {
        answer.prev_kvs.iter_mut().for_each(|kv| self.strip_kv(kv));
    }

    /// Takes the prefix off an event.
    pub fn strip_event(&self, event: &mut Event) {
        event.kv.iter_mut().chain(&mut event.prev_kv).for_each(|kv| self.strip_kv(kv));
    }

    /// Puts a transaction with all that is nested in it into the namespace.
    pub fn txn(&self, txn: &mut TxnRequest) {
        if !self.is_empty() {
            self.txn_at(txn, 0);
        }
    }

    fn txn_at(&self, txn: &mut TxnRequest, depth: usize) {
        for compare in &mut txn.compare {
            self.range(&mut compare.key, &mut compare.range_end);
        }
        for RequestOp { request } in txn.success.iter_mut().chain(&mut txn.failure) {
            match request {
                Some(request_op::Request::RequestRange(r)) => self.range(&mut r.key, &mut r.range_end),
                Some(request_op::Request::RequestPut(r)) => r.key = self.key(&r.key),
                Some(request_op::Request::RequestDeleteRange(r)) => self.range(&mut r.key, &mut r.range_end),
                Some(request_op::Request::RequestTxn(r)) if depth < DEPTH_MAX => self.txn_at(r, depth + 1),
                _ => {}
            }
        }
    }

    /// Takes the prefix off an answer with all that is nested in it.
    pub fn strip_txn(&self, answer: &mut TxnResponse) {
        if !self.is_empty() {
            self.strip_txn_at(answer, 0);
        }
    }

    fn strip_txn_at(&self, answer: &mut TxnResponse, depth: usize) {
        for ResponseOp { response } in &mut answer.responses {
            match response {
                Some(response_op::Response::ResponseRange(r)) => self.strip_range(r),
                Some(response_op::Response::ResponsePut(r)) => self.strip_put(r),
                Some(response_op::Response::ResponseDeleteRange(r)) => self.strip_delete(r),
                Some(response_op::Response::ResponseTxn(r)) if depth < DEPTH_MAX => self.strip_txn_at(r, depth + 1),
                _ => {}
            }
        }
    }
}

/// The first key behind all that begin with this prefix; "\0", which is no end, if there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte < 0xff) {
        Some(at) => {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            end.into()
        }
        None => Bytes::from_static(b"\0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest};
    use prost::Message;

    fn tagged(tag: u8, message: &impl Message) -> Vec<u8> {
        [&[tag][..], &message.encode_to_vec()].concat()
    }

    /// What a client asks, and what a member answers.
    #[test]
    fn fuzz_namespace() {
        let kv = KeyValue { key: "ns/a".into(), value: "1".into(), ..KeyValue::default() };
        let range = RangeResponse { kvs: vec![kv.clone()], ..RangeResponse::default() };
        let deleted = DeleteRangeResponse { prev_kvs: vec![kv.clone()], ..DeleteRangeResponse::default() };
        let answer = |response| ResponseOp { response: Some(response) };
        let inner = TxnResponse {
            responses: vec![
                answer(response_op::Response::ResponseRange(range)),
                answer(response_op::Response::ResponseDeleteRange(deleted)),
            ],
            ..TxnResponse::default()
        };
        let outer = TxnResponse {
            responses: vec![answer(response_op::Response::ResponseTxn(inner.clone()))],
            ..TxnResponse::default()
        };
        let ask = |request| RequestOp { request: Some(request) };
        let put = PutRequest { key: "a".into(), ..PutRequest::default() };
        let txn = TxnRequest {
            compare: vec![Compare { key: "a".into(), range_end: "\0".into(), ..Compare::default() }],
            success: vec![ask(request_op::Request::RequestPut(put))],
            failure: vec![ask(request_op::Request::RequestTxn(TxnRequest::default()))],
        };
        let seeds = [tagged(0, &outer), tagged(0, &inner), tagged(1, &txn)];
        let ns = Namespace::new("ns/");
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "namespace").seeds(seeds);
        fuzz.words(&["ns/", "ns0", "\0"]).run(|bytes| {
            let (tag, body) = bytes.split_first().unwrap_or((&0, &[]));
            match tag % 2 {
                0 => TxnResponse::decode(body).map_or_else(
                    |e| e.to_string(),
                    |mut answer| {
                        ns.strip_txn(&mut answer);
                        format!("{answer:?}")
                    },
                ),
                _ => TxnRequest::decode(body).map_or_else(
                    |e| e.to_string(),
                    |mut request| {
                        ns.txn(&mut request);
                        let keys = request.compare.iter().map(|compare| &compare.key);
                        assert!(keys.clone().all(|key| key.starts_with(b"ns/")), "{request:?}");
                        format!("{request:?}")
                    },
                ),
            }
        });
    }

    #[test]
    fn ranges_stay_within_the_namespace() {
        let ns = Namespace::new("ns/");
        let range = |key: &'static str, end: &'static str| {
            let (mut key, mut end) = (Bytes::from(key), Bytes::from(end));
            ns.range(&mut key, &mut end);
            (key, end)
        };
        assert_eq!(range("a", ""), ("ns/a".into(), "".into()));
        assert_eq!(range("a", "b"), ("ns/a".into(), "ns/b".into()));
        assert_eq!(range("a", "\0"), ("ns/a".into(), "ns0".into()));
        assert_eq!(range("\0", "\0"), ("ns/\0".into(), "ns0".into()));
        assert_eq!(prefix_end(b"a\xff\xff"), Bytes::from("b"));
        assert_eq!(prefix_end(b"\xff"), Bytes::from("\0"));
    }

    #[test]
    fn without_a_namespace_nothing_changes() {
        let none = Namespace::default();
        assert_eq!((none.key(&"a".into()), none.end(&"\0".into())), ("a".into(), "\0".into()));
        assert_eq!(none.strip(&"a".into()), Some("a".into()));
    }

    #[test]
    fn a_key_from_elsewhere_is_not_stripped() {
        let ns = Namespace::new("ns/");
        assert_eq!(ns.strip(&"ns/a".into()), Some("a".into()));
        assert_eq!(ns.strip(&"other".into()), None);
    }

    #[test]
    fn a_transaction_is_translated_down_to_its_leaves_and_back() {
        let op = |request| RequestOp { request: Some(request) };
        let ns = Namespace::new("n/");
        let inner = TxnRequest {
            compare: vec![],
            success: vec![op(request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                key: "d".into(),
                range_end: "\0".into(),
                prev_kv: true,
            }))],
            failure: vec![],
        };
        let mut txn = TxnRequest {
            compare: vec![Compare { key: "c".into(), ..Compare::default() }],
            success: vec![
                op(request_op::Request::RequestPut(PutRequest { key: "p".into(), ..PutRequest::default() })),
                op(request_op::Request::RequestTxn(inner)),
            ],
            failure: vec![op(request_op::Request::RequestRange(RangeRequest {
                key: "r".into(),
                ..Default::default()
            }))],
        };
        ns.txn(&mut txn);
        let text = format!("{txn:?}");
        for key in ["n/c", "n/p", "n/d", "n/r", "n0"] {
            assert!(text.contains(&format!("b\"{key}\"")), "{key} in {text}");
        }

        let kv = |key: &'static str| KeyValue { key: key.into(), ..KeyValue::default() };
        let deleted = DeleteRangeResponse { prev_kvs: vec![kv("n/d")], ..Default::default() };
        let nested = TxnResponse {
            responses: vec![ResponseOp { response: Some(response_op::Response::ResponseDeleteRange(deleted)) }],
            ..Default::default()
        };
        let mut answer = TxnResponse {
            responses: vec![ResponseOp { response: Some(response_op::Response::ResponseTxn(nested)) }],
            ..Default::default()
        };
        ns.strip_txn(&mut answer);
        assert!(format!("{answer:?}").contains("b\"d\""), "{answer:?}");
    }
}
