//! grpc.health.v1.Health: the process answers. Whether the member is fit for traffic is what `/readyz` says.

use std::collections::HashMap;

use ferretcd_proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus, health_server::Health,
};
use futures::{StreamExt, stream};
use tonic::{Request, Response, Status};

use super::Answers;

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct HealthService;

/// The server as a whole, the one service that etcd registers.
const WHOLE_SERVER: &str = "";

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if request.get_ref().service == WHOLE_SERVER {
            Ok(Response::new(answer(ServingStatus::Serving)))
        } else {
            Err(Status::not_found("unknown service"))
        }
    }

    async fn list(&self, _request: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = HashMap::from([(WHOLE_SERVER.to_owned(), answer(ServingStatus::Serving))]);
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Answers<HealthCheckResponse>;

    /// Says it once and stays open: it never changes before the process ends.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.get_ref().service == WHOLE_SERVER;
        let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
        let answers = stream::iter([Ok(answer(status))]).chain(stream::pending());
        Ok(Response::new(Box::pin(answers)))
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
