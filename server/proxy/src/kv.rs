//! etcdserverpb.KV: passed on under the namespace, serializable reads answered from the cache where it can.

use crate::cache::{Cache, Found};
use crate::caller::Caller;
use crate::client;
use crate::shared::{Shared, no_key};
use bytes::Bytes;
use ferretcd_proto::etcdserverpb::kv_client::KvClient;
use ferretcd_proto::etcdserverpb::kv_server::Kv;
use ferretcd_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, RequestOp, TxnRequest, TxnResponse, request_op,
};
use std::time::Duration;
use tokio_stream::Empty;
use tonic::{Code, Request, Response, Status};

/// Attempts of a read when members cannot answer it (an election is under way, a connection broke): about two seconds.
const READS_MAX: u32 = 20;

/// Pause before a read is tried again.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// The service.
#[derive(Clone, Debug)]
pub struct KvService {
    /// What it works with.
    pub shared: Shared,
    /// `--experimental-serializable-ordering`: no read shows an older state than one before it.
    pub ordering: bool,
}

/// A read as the members understand it, tried again while they cannot answer.
pub async fn range(shared: &Shared, caller: &Caller, request: &RangeRequest) -> Result<RangeResponse, Status> {
    let mut left = READS_MAX;
    loop {
        left -= 1;
        match client!(shared, KvClient).range(caller.request(request.clone())).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                shared.saw(answer.header.as_ref());
                return Ok(answer);
            }
            // Who asks for a leader wants to hear at once that there is none.
            Err(status) if status.code() == Code::Unavailable && left > 0 && !caller.wants_leader => {
                tokio::time::sleep(READ_PAUSE).await;
            }
            Err(status) => return Err(status),
        }
    }
}

impl KvService {
    /// A read that is not older than what this proxy has shown before.
    async fn ordered(&self, caller: &Caller, request: &RangeRequest) -> Result<RangeResponse, Status> {
        let shown = self.shared.revision();
        // etcd gives each member five chances, too.
        let attempts = 5 * self.shared.upstream.endpoints().len().max(1);
        for _ in 0..attempts {
            let answer = range(&self.shared, caller, request).await?;
            if !self.ordering || answer.header.is_none_or(|h| h.revision >= shown) {
                return Ok(answer);
            }
            tokio::time::sleep(READ_PAUSE / 10).await;
        }
        Err(Status::unknown(
            "etcdclient: no cluster members have a revision higher than the previously received revision",
        ))
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    type RangeStreamStream = Empty<Result<RangeStreamResponse, Status>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let mut request = request.into_inner();
        no_key(&request.key)?;
        self.shared.namespace.range(&mut request.key, &mut request.range_end);
        // What somebody may read is for the members to say, each time.
        let cached = !caller.is_somebody();
        if request.serializable && cached {
            match self.shared.cache(|cache| cache.find(&request)) {
                Found::Answer(mut answer) => {
                    self.shared.metrics.cache_hits.inc();
                    self.shared.namespace.strip_range(&mut answer);
                    return Ok(Response::new(answer));
                }
                Found::Compacted => {
                    self.shared.metrics.cache_hits.inc();
                    return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
                }
                Found::Nothing => self.shared.metrics.cache_misses.inc(),
            }
        }
        let mut answer = self.ordered(&caller, &request).await?;
        if cached {
            self.shared.cache(|cache| cache.keep(&request, &answer));
        }
        self.shared.namespace.strip_range(&mut answer);
        Ok(Response::new(answer))
    }

    async fn range_stream(&self, _: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("RangeStream is not supported by the gRPC proxy"))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let mut request = request.into_inner();
        no_key(&request.key)?;
        request.key = self.shared.namespace.key(&request.key);
        let key = request.key.clone();
        // Whatever becomes of it, even if nobody waits for the answer: afterwards the old value is not known.
        self.shared.cache(|cache| cache.changed(&key, &Bytes::new(), None));
        let mut answer = client!(self.shared, KvClient).put(caller.request(request)).await?.into_inner();
        self.shared.saw(answer.header.as_ref());
        let revision = answer.header.map(|h| h.revision);
        self.shared.cache(|cache| cache.changed(&key, &Bytes::new(), revision));
        self.shared.namespace.strip_put(&mut answer);
        Ok(Response::new(answer))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let mut request = request.into_inner();
        no_key(&request.key)?;
        self.shared.namespace.range(&mut request.key, &mut request.range_end);
        let (key, end) = (request.key.clone(), request.range_end.clone());
        self.shared.cache(|cache| cache.changed(&key, &end, None));
        let mut answer = client!(self.shared, KvClient).delete_range(caller.request(request)).await?.into_inner();
        self.shared.saw(answer.header.as_ref());
        let revision = answer.header.map(|h| h.revision);
        self.shared.cache(|cache| cache.changed(&key, &end, revision));
        self.shared.namespace.strip_delete(&mut answer);
        Ok(Response::new(answer))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let mut request = request.into_inner();
        self.shared.namespace.txn(&mut request);
        let spans = spans(&request);
        let forget = |cache: &mut Cache, revision| {
            spans.iter().for_each(|(key, end)| cache.changed(key, end, revision));
        };
        self.shared.cache(|cache| forget(cache, None));
        let mut answer = client!(self.shared, KvClient).txn(caller.request(request)).await?.into_inner();
        self.shared.saw(answer.header.as_ref());
        self.shared.cache(|cache| forget(cache, answer.header.map(|h| h.revision)));
        self.shared.namespace.strip_txn(&mut answer);
        Ok(Response::new(answer))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let request = request.into_inner();
        let revision = request.revision;
        let answer = client!(self.shared, KvClient).compact(caller.request(request)).await?.into_inner();
        self.shared.saw(answer.header.as_ref());
        self.shared.cache(|cache| cache.compact(revision));
        Ok(Response::new(answer))
    }
}

/// What a transaction may change, on either branch, and what it compares: a client that compares in vain is about to
/// read again, and shall not get what misled it.
fn spans(txn: &TxnRequest) -> Vec<(Bytes, Bytes)> {
    let mut spans = Vec::new();
    let mut left = vec![txn];
    while let Some(txn) = left.pop() {
        spans.extend(txn.compare.iter().map(|c| (c.key.clone(), c.range_end.clone())));
        for RequestOp { request } in txn.success.iter().chain(&txn.failure) {
            match request {
                Some(request_op::Request::RequestPut(r)) => spans.push((r.key.clone(), Bytes::new())),
                Some(request_op::Request::RequestDeleteRange(r)) => spans.push((r.key.clone(), r.range_end.clone())),
                Some(request_op::Request::RequestTxn(r)) => left.push(r),
                Some(request_op::Request::RequestRange(_)) | None => {}
            }
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_proto::etcdserverpb::Compare;

    #[test]
    fn a_transaction_touches_what_it_compares_and_writes_on_both_branches() {
        let put = |key: &'static str| RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest { key: key.into(), ..PutRequest::default() })),
        };
        let nested = TxnRequest { failure: vec![put("c")], ..TxnRequest::default() };
        let txn = TxnRequest {
            compare: vec![Compare { key: "a".into(), range_end: "b".into(), ..Compare::default() }],
            success: vec![RequestOp { request: Some(request_op::Request::RequestTxn(nested)) }],
            failure: vec![put("d")],
        };
        let mut keys: Vec<Bytes> = spans(&txn).into_iter().map(|(key, _)| key).collect();
        keys.sort();
        assert_eq!(keys, ["a", "c", "d"]);
    }
}
