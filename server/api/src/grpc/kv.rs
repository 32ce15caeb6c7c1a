//! etcdserverpb.KV: reads, writes, transactions, compaction.

use ferretcd_node::Node;
use ferretcd_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse, kv_server::Kv,
};
use ferretcd_proto::otlp::KeyValue;
use ferretcd_types::Error;
use futures::stream;
use tonic::{Request, Response, Status};

use super::{
    Answers, asked_by,
    range_stream::{self, Chunks},
};
use crate::{
    convert::kv as convert,
    header,
    status::from_error,
    trace::{self, flag, number, text},
    validate,
};

/// The service.
#[derive(Clone, Debug)]
pub struct KvService {
    /// Who does the work.
    pub node: Node,
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let request = request.into_inner();
        // Whatever else a learner refuses is refused before the body is read (`call.rs`); this one depends on it.
        if self.node.is_learner() && !request.serializable {
            return Err(from_error(Error::NotSupportedForLearner));
        }
        validate::range(&request).map_err(from_error)?;
        let _span = trace::span("range", || range_attributes(&request, true));
        let reply = node.range(convert::range(request)).await.map_err(from_error)?;
        let header = header::at(&self.node, reply.revision);
        Ok(Response::new(convert::range_response(reply, header)))
    }

    type RangeStreamStream = Answers<RangeStreamResponse>;

    /// One chunk is made at a time, when the client has taken the one before.
    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let node = asked_by(&self.node, &request);
        let request = request.into_inner();
        range_stream::check(&request)?;
        let span = trace::span("range_streaming", || range_attributes(&request, false));
        if request.count_only {
            let reply = node.range(convert::range(request)).await.map_err(from_error)?;
            let header = header::at(&node, reply.revision);
            let only = RangeStreamResponse { range_response: Some(convert::range_response(reply, header)) };
            return Ok(Response::new(Box::pin(stream::iter([Ok(only)]))));
        }
        let limit = request.limit;
        let pages = node.range_pages(convert::range(request)).await.map_err(from_error)?;
        let revision = pages.revision();
        let chunks = Chunks::new(pages, limit, node.limits().max_request_bytes);
        // The span ends with the stream.
        let answers = stream::try_unfold((chunks, node, span), move |(mut chunks, node, span)| async move {
            let Some(mut chunk) = chunks.next().map_err(from_error)? else { return Ok(None) };
            if chunks.is_done() {
                chunk.header = Some(header::at(&node, revision));
            }
            Ok(Some((RangeStreamResponse { range_response: Some(chunk) }, (chunks, node, span))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let request = request.into_inner();
        validate::put(&request).map_err(from_error)?;
        let mut span = trace::span("put", || vec![text("key", &request.key)]);
        let reply = trace::proposed(&mut span, node.propose(convert::put(request))).await.map_err(from_error)?;
        let header = header::at(&self.node, reply.revision);
        Ok(Response::new(convert::put_response(reply, header)))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let request = request.into_inner();
        validate::delete_range(&request).map_err(from_error)?;
        let mut span = trace::span("delete_range", || {
            vec![text("range_begin", &request.key), text("range_end", &request.range_end)]
        });
        let reply =
            trace::proposed(&mut span, node.propose(convert::delete_range(request))).await.map_err(from_error)?;
        let header = header::at(&self.node, reply.revision);
        Ok(Response::new(convert::delete_range_response(reply, header)))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let request = request.into_inner();
        validate::txn(&request, self.node.limits().max_txn_ops).map_err(from_error)?;
        let (failures, traced) = (request.failure.len(), trace::current());
        let ops = traced.as_ref().map(|_| (request.compare.clone(), request.success.clone()));
        let txn = convert::txn(request).map_err(from_error)?;
        let read_only = txn.is_read_only();
        let mut span = traced.zip(ops).map(|(context, (compare, success))| {
            context.span("txn", trace::txn(&compare, &success, failures, read_only))
        });
        let work = node.txn(txn);
        let reply = match read_only {
            true => work.await,
            false => trace::proposed(&mut span, work).await,
        };
        let reply = reply.map_err(from_error)?;
        let header = header::at(&self.node, reply.revision);
        Ok(Response::new(convert::txn_response(reply, header)))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let CompactionRequest { revision, physical } = request.into_inner();
        let mut span = trace::span("compact", || vec![flag("is_physical", physical), number("rev", revision)]);
        let reply = trace::proposed(&mut span, node.compact(revision, physical)).await.map_err(from_error)?;
        Ok(Response::new(CompactionResponse { header: Some(header::at(&self.node, reply.revision)) }))
    }
}

/// What etcd tells of a range.
fn range_attributes(request: &RangeRequest, keys_only: bool) -> Vec<KeyValue> {
    let mut attributes = vec![
        text("range_begin", &request.key),
        text("range_end", &request.range_end),
        number("rev", request.revision),
        number("limit", request.limit),
        flag("count_only", request.count_only),
    ];
    if keys_only {
        attributes.push(flag("keys_only", request.keys_only));
    }
    attributes
}
