//! grpc.health.v1.Health: the process answers. Whether the member is fit for traffic is what `/readyz` says.

use std::{collections::HashMap, sync::Arc};

use ferretcd_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus, health_server::Health,
};
use futures::{StreamExt, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::Answers;

/// The service.
#[derive(Clone, Debug)]
pub struct HealthService {
    /// What it says.
    pub serving: Serving,
}

/// Whether this server serves. It always does, but while a defragmentation is under way and the feature gate
/// StopGRPCServiceOnDefrag is on.
#[derive(Clone, Debug)]
pub struct Serving {
    /// How many pauses there are.
    pauses: Arc<watch::Sender<u32>>,
    stops: bool,
}

impl Serving {
    /// With the feature gate so.
    pub fn new(stops: bool) -> Self {
        Serving { pauses: Arc::new(watch::Sender::new(0)), stops }
    }

    /// Says that it does not serve, until the value is dropped.
    pub fn pause(&self) -> Option<Pause> {
        self.stops.then(|| {
            self.pauses.send_modify(|n| *n += 1);
            Pause(self.pauses.clone())
        })
    }

    fn status(&self) -> ServingStatus {
        status(*self.pauses.borrow())
    }
}

fn status(pauses: u32) -> ServingStatus {
    if pauses == 0 { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// A time in which this server does not serve.
#[derive(Debug)]
pub struct Pause(Arc<watch::Sender<u32>>);

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

/// The server as a whole, the one service that etcd registers.
const WHOLE_SERVER: &str = "";

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service == WHOLE_SERVER {
            Ok(Response::new(answer(self.serving.status())))
        } else {
            Err(Status::not_found("unknown service"))
        }
    }

    async fn list(&self, _request: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = HashMap::from([(WHOLE_SERVER.to_owned(), answer(self.serving.status()))]);
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    /// Says what is so, and each change of it.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if request.get_ref().service != WHOLE_SERVER {
            let unknown = stream::iter([Ok(answer(ServingStatus::ServiceUnknown))]);
            return Ok(Response::new(Box::pin(unknown.chain(stream::pending()))));
        }
        let mut last = None;
        let statuses = WatchStream::new(self.serving.pauses.subscribe()).map(status);
        let changes = statuses.filter(move |status| {
            let changed = last.replace(*status) != Some(*status);
            std::future::ready(changed)
        });
        // The sender lives as long as this service, and with it the stream.
        let serving = self.serving.clone();
        Ok(Response::new(Box::pin(changes.map(move |status| {
            let _ = &serving;
            Ok(answer(status))
        }))))
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_does_not_serve_while_it_is_paused_and_says_each_change() {
        let service = HealthService { serving: Serving::new(true) };
        let request = || Request::new(HealthCheckRequest::default());
        let check = async || service.check(request()).await.unwrap().into_inner().status();
        let mut watch = service.watch(request()).await.unwrap().into_inner();
        let mut told = async || watch.next().await.unwrap().unwrap().status();
        assert_eq!((check().await, told().await), (ServingStatus::Serving, ServingStatus::Serving));
        let (one, two) = (service.serving.pause(), service.serving.pause());
        assert_eq!((check().await, told().await), (ServingStatus::NotServing, ServingStatus::NotServing));
        drop(one);
        assert_eq!(check().await, ServingStatus::NotServing);
        drop(two);
        assert_eq!((check().await, told().await), (ServingStatus::Serving, ServingStatus::Serving));
        assert!(Serving::new(false).pause().is_none());
    }
}
