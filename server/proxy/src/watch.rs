//! etcdserverpb.Watch: clients' watchers of the same range share one watch at the members.

pub mod group;
pub mod hub;
pub mod stream;
pub mod watcher;

use crate::caller::Caller;
use ferretcd_proto::etcdserverpb::watch_server::Watch;
use ferretcd_proto::etcdserverpb::{WatchRequest, WatchResponse};
use hub::Hub;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// One answer on its way to the wire, and one ready behind it.
const ANSWERS_IN_FLIGHT: usize = 2;

/// The service.
#[derive(Clone, Debug)]
pub struct WatchService {
    /// All watches.
    pub hub: Hub,
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(request.metadata());
        let (answers, receiver) = mpsc::channel(ANSWERS_IN_FLIGHT);
        tokio::spawn(stream::serve(self.hub.clone(), caller, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
