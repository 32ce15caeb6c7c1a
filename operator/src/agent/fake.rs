//! A member for tests of the agent: it sends what snapshot it is told to, damaged ones included, which no real member does.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use ferretcd_proto::{
    etcdserverpb::{
        AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DefragmentRequest, DefragmentResponse,
        DeleteRangeRequest, DeleteRangeResponse, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse,
        HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RangeStreamResponse, ResponseHeader, SnapshotRequest, SnapshotResponse, StatusRequest,
        StatusResponse, TxnRequest, TxnResponse,
        kv_server::{Kv, KvServer},
        maintenance_server::{Maintenance, MaintenanceServer},
    },
    ferretcd_v1::{self, RestoreRequest, RestoreResponse, restore_request},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// A member that serves until it is dropped.
pub struct Fake {
    /// Its client URL.
    pub url: String,
    state: Member,
    server: JoinHandle<()>,
}

/// What it was sent by Restore.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// All chunks.
    pub file: Vec<u8>,
    /// The size of the largest.
    pub largest: usize,
    /// As many bytes came as were announced.
    pub complete: bool,
}

#[derive(Clone)]
struct Member {
    cluster_id: u64,
    snapshot: Bytes,
    received: Arc<Mutex<Received>>,
}

impl Fake {
    /// Starts a member of this cluster on a free port of loopback.
    pub async fn start(cluster_id: u64, snapshot: Vec<u8>) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Member { cluster_id, snapshot: snapshot.into(), received: Arc::default() };
        let router = tonic::transport::Server::builder()
            .add_service(KvServer::new(state.clone()))
            .add_service(MaintenanceServer::new(state.clone()))
            .add_service(ferretcd_v1::maintenance_server::MaintenanceServer::new(state.clone()));
        let server = tokio::spawn(async move {
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Fake { url, state, server }
    }

    /// What it was sent so far.
    pub fn received(&self) -> Received {
        self.state.received.lock().unwrap().clone()
    }

    /// Ends it.
    pub fn stop(&self) {
        self.server.abort();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

type Answer<T> = Result<Response<T>, Status>;

impl Member {
    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: self.cluster_id, member_id: 1, revision, raft_term: 2 })
    }
}

fn no<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this fake"))
}

#[tonic::async_trait]
impl Kv for Member {
    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(&self, _: Request<RangeRequest>) -> Answer<Self::RangeStreamStream> {
        no()
    }
    async fn range(&self, _: Request<RangeRequest>) -> Answer<RangeResponse> {
        let restored = self.received.lock().unwrap().complete;
        let revision = if restored { 1_000_000_042 } else { 42 };
        Ok(Response::new(RangeResponse { header: self.header(revision), count: 3, ..RangeResponse::default() }))
    }
    async fn put(&self, _: Request<PutRequest>) -> Answer<PutResponse> {
        no()
    }
    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Answer<DeleteRangeResponse> {
        no()
    }
    async fn txn(&self, _: Request<TxnRequest>) -> Answer<TxnResponse> {
        no()
    }
    async fn compact(&self, _: Request<CompactionRequest>) -> Answer<CompactionResponse> {
        no()
    }
}

#[tonic::async_trait]
impl Maintenance for Member {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let version = "3.6.0".to_owned();
        let header = self.header(42);
        Ok(Response::new(StatusResponse { header, version, raft_applied_index: 99, ..StatusResponse::default() }))
    }
    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Answer<Self::SnapshotStream> {
        let file = self.snapshot.clone();
        // A size that neither sectors nor parts are a multiple of.
        let piece = 30_011;
        let messages = (0..file.len()).step_by(piece).map(move |start| {
            let end = file.len().min(start + piece);
            let remaining_bytes = (file.len() - end) as u64;
            Ok(SnapshotResponse { blob: file.slice(start..end), remaining_bytes, ..SnapshotResponse::default() })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }
    async fn alarm(&self, _: Request<AlarmRequest>) -> Answer<AlarmResponse> {
        no()
    }
    async fn defragment(&self, _: Request<DefragmentRequest>) -> Answer<DefragmentResponse> {
        no()
    }
    async fn hash(&self, _: Request<HashRequest>) -> Answer<HashResponse> {
        no()
    }
    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Answer<HashKvResponse> {
        no()
    }
    async fn move_leader(&self, _: Request<MoveLeaderRequest>) -> Answer<MoveLeaderResponse> {
        no()
    }
    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Answer<DowngradeResponse> {
        no()
    }
}

#[tonic::async_trait]
impl ferretcd_v1::maintenance_server::Maintenance for Member {
    async fn restore(&self, request: Request<Streaming<RestoreRequest>>) -> Answer<RestoreResponse> {
        let mut stream = request.into_inner();
        let mut announced = 0;
        while let Some(message) = stream.message().await? {
            let mut received = self.received.lock().unwrap();
            match message.request {
                Some(restore_request::Request::Options(options)) => announced = options.file_bytes,
                Some(restore_request::Request::Chunk(chunk)) => {
                    received.largest = received.largest.max(chunk.len());
                    received.file.extend_from_slice(&chunk);
                }
                None => {}
            }
        }
        let mut received = self.received.lock().unwrap();
        if received.file.len() as u64 != announced {
            return Err(Status::invalid_argument("the stream ended early"));
        }
        received.complete = true;
        let header = self.header(1_000_000_042);
        Ok(Response::new(RestoreResponse { header, revision: 1_000_000_042, keys: 3, ..RestoreResponse::default() }))
    }
}
