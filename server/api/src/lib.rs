//! All doors for clients: etcd's gRPC services, our own Restore, and the HTTP probes, on one port as etcd has them.
//!
//! A door checks a request's shape, turns it into a value, hands it to the [`Node`] and dresses the answer. It decides
//! nothing about data, and the client API's protobuf types go no further down than here.

mod call;
mod convert;
mod grpc;
mod header;
mod http;
mod member;
mod method;
mod metrics;
mod status;
mod validate;
pub mod version;

use std::{convert::Infallible, time::Duration};

use ::http::header::CONTENT_TYPE;
use axum::{Router, extract::Request, middleware, response::Response};
use ferretcd_node::Node;
use ferretcd_proto::{
    etcdserverpb::{
        cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
        maintenance_server::MaintenanceServer, watch_server::WatchServer,
    },
    ferretcd_v1::maintenance_server::MaintenanceServer as FerretcdMaintenanceServer,
    health::health_server::HealthServer,
};
use ferretcd_types::limits::RESTORE_CHUNK_BYTES_MAX;
use prometheus::Registry;
use tonic::{Status, server::NamedService};
use tower::Service;

use crate::{
    call::Gate,
    grpc::{
        cluster::ClusterService, ferretcd_maintenance::FerretcdMaintenanceService, health::HealthService,
        kv::KvService, lease::LeaseService, maintenance::MaintenanceService, watch::WatchService,
    },
    metrics::CallMetrics,
};

/// What the doors need beside the node.
#[derive(Clone, Debug)]
pub struct Options {
    /// What `/metrics` shows. The doors' own counters are registered in it.
    registry: Registry,
    metrics: CallMetrics,
    /// How often streams that require a leader look for one; the third time without one ends them.
    election_timeout: Duration,
}

impl Options {
    /// Registers the doors' counters. Fails when the registry has some of those names already, so make one per registry.
    pub fn new(registry: Registry, election_timeout: Duration) -> Result<Self, prometheus::Error> {
        let metrics = CallMetrics::register(&registry)?;
        Ok(Options { registry, metrics, election_timeout })
    }
}

/// What gRPC's framing and our fields around a request may add to `max_request_bytes` (etcd's grpcOverheadBytes).
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Everything that the client listeners serve: gRPC by path, the HTTP doors beside it.
///
/// The caller serves it with HTTP/1 and cleartext HTTP/2 on the same port.
pub fn router(node: Node, options: &Options) -> Router {
    let message_bytes = node.limits().max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES);
    // A restore's pieces have a size of their own, whatever limit requests have.
    let restore_bytes = message_bytes.max(RESTORE_CHUNK_BYTES_MAX + GRPC_OVERHEAD_BYTES);

    let kv = KvService { node: node.clone() };
    let watch = WatchService { node: node.clone(), fragment_bytes: message_bytes };
    let lease = LeaseService { node: node.clone() };
    let cluster = ClusterService { node: node.clone() };
    let maintenance = MaintenanceService { node: node.clone() };
    let restore = FerretcdMaintenanceService { node: node.clone() };
    let gate =
        Gate { member: node.clone(), metrics: options.metrics.clone(), election_timeout: options.election_timeout };

    let grpc = [
        service(KvServer::new(kv).max_decoding_message_size(message_bytes)),
        service(WatchServer::new(watch).max_decoding_message_size(message_bytes)),
        service(LeaseServer::new(lease).max_decoding_message_size(message_bytes)),
        service(ClusterServer::new(cluster).max_decoding_message_size(message_bytes)),
        service(MaintenanceServer::new(maintenance).max_decoding_message_size(message_bytes)),
        service(HealthServer::new(HealthService).max_decoding_message_size(message_bytes)),
        service(FerretcdMaintenanceServer::new(restore).max_decoding_message_size(restore_bytes)),
    ]
    .into_iter()
    .fold(Router::new(), Router::merge)
    .layer(middleware::from_fn_with_state(gate, call::pass));

    grpc.merge(http::router(node, options.registry.clone())).fallback(unknown)
}

/// What the metrics listeners serve: `/metrics`, `/health`, `/livez`, `/readyz`.
pub fn metrics_router(node: Node, options: &Options) -> Router {
    http::metrics_router(node, options.registry.clone())
}

/// One gRPC service under its name. tonic's own `Routes` does the same, but has a fallback that does not merge.
fn service<S>(service: S) -> Router
where
    S: Service<Request, Response = ::http::Response<tonic::body::Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    Router::new().route_service(&format!("/{}/{{*method}}", S::NAME), service)
}

/// A path that nobody serves: a gRPC client is told in its own way.
async fn unknown(request: Request) -> Response {
    let grpc = request.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    match method::find(request.uri().path()) {
        Err(text) if grpc => Status::unimplemented(text).into_http(),
        _ => http::not_found().await,
    }
}
