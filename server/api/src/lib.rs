//! All doors for clients: etcd's gRPC services, our own Restore, and the HTTP probes, on one port as etcd has them.
//!
//! A door checks a request's shape, turns it into a value, hands it to the [`Node`] and dresses the answer. It decides
//! nothing about data, and the client API's protobuf types go no further down than here.

mod call;
mod cert;
mod convert;
mod front;
mod gateway;
mod grpc;
mod header;
mod http;
mod member;
mod method;
mod metrics;
mod slow;
mod status;
pub mod trace;
mod validate;
pub mod version;

pub use cert::CertName;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, extract::Request, middleware, response::Response};
use ferretcd_node::Node;
use ferretcd_proto::{
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
        maintenance_server::MaintenanceServer, watch_server::WatchServer,
    },
    ferretcd_v1::maintenance_server::MaintenanceServer as FerretcdMaintenanceServer,
    health::health_server::HealthServer,
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use ferretcd_types::limits::RESTORE_CHUNK_BYTES_MAX;
use prometheus::Registry;
use tokio_util::task::TaskTracker;
use tonic::{Status, server::NamedService};
use tower::Service;

use crate::{
    call::Gate,
    front::{AuthSwitch, Front},
    gateway::Gateway,
    grpc::{
        auth::AuthService,
        cluster::ClusterService,
        election::ElectionService,
        ferretcd_maintenance::FerretcdMaintenanceService,
        health::{HealthService, Serving},
        kv::KvService,
        lease::LeaseService,
        lock::LockService,
        maintenance::MaintenanceService,
        watch::WatchService,
    },
    http::{Door, ProbeMetrics},
    metrics::CallMetrics,
    trace::Tracer,
};

pub use front::Access;
pub use slow::Remote;

/// What the doors need beside the node.
#[derive(Clone, Debug)]
pub struct Options {
    /// What `/metrics` shows. The doors' own counters are registered in it.
    registry: Registry,
    metrics: CallMetrics,
    probes: ProbeMetrics,
    /// How often streams that require a leader look for one; the third time without one ends them.
    election_timeout: Duration,
    /// A unary call that takes longer is mentioned in the log.
    warning_unary: Duration,
    web: Web,
    tracer: Option<Tracer>,
    serving: Serving,
    profiles: bool,
    under_way: TaskTracker,
}

/// etcd's default of `--warning-unary-request-duration`.
const WARNING_UNARY: Duration = Duration::from_millis(300);

/// How the client listeners serve HTTP beside gRPC.
#[derive(Clone, Debug)]
pub struct Web {
    /// Serve etcd's JSON gateway below `/v3/` (`--enable-grpc-gateway`).
    pub gateway: bool,
    /// Calls that the gateway has under way at once (`--max-concurrent-streams`); one above it waits.
    pub gateway_calls_max: u32,
    /// Who may ask.
    pub access: Access,
}

impl Default for Web {
    fn default() -> Self {
        Web { gateway: true, gateway_calls_max: u32::MAX, access: Access::default() }
    }
}

impl Options {
    /// Registers the doors' counters, with how long calls take if `extensive` (`--metrics`). Fails when the registry has
    /// some of those names already, so make one per registry.
    pub fn new(registry: Registry, election_timeout: Duration, extensive: bool) -> Result<Self, prometheus::Error> {
        let metrics = CallMetrics::register(&registry, extensive)?;
        let probes = ProbeMetrics::register(&registry)?;
        let warning_unary = WARNING_UNARY;
        let (web, tracer, serving, profiles) = (Web::default(), None, Serving::new(false), false);
        let under_way = TaskTracker::new();
        // To be waited for at any time.
        under_way.close();
        Ok(Options {
            registry,
            metrics,
            probes,
            election_timeout,
            warning_unary,
            web,
            tracer,
            serving,
            profiles,
            under_way,
        })
    }

    /// The calls under way, of all routers with these options, that end by themselves: neither watches nor locks.
    pub fn under_way(&self) -> &TaskTracker {
        &self.under_way
    }

    /// The same with HTTP served so.
    pub fn with_web(self, web: Web) -> Self {
        Options { web, ..self }
    }

    /// The same with unary calls mentioned in the log that take longer than this (`--warning-unary-request-duration`).
    pub fn with_warning(self, warning_unary: Duration) -> Self {
        Options { warning_unary, ..self }
    }

    /// The same with calls traced.
    pub fn with_tracer(self, tracer: Option<Tracer>) -> Self {
        Options { tracer, ..self }
    }

    /// The same with `grpc.health.v1` not serving while this member is defragmented, if that is asked for (the feature gate
    /// StopGRPCServiceOnDefrag).
    pub fn with_stop_on_defragment(self, stop: bool) -> Self {
        Options { serving: Serving::new(stop), ..self }
    }

    /// The same with profiles of this process at `/debug/pprof/` of the client listeners (`--enable-pprof`).
    pub fn with_profiles(self, profiles: bool) -> Self {
        Options { profiles, ..self }
    }

    fn door(&self, member: Node) -> Door<Node> {
        Door { member, registry: self.registry.clone(), probes: self.probes.clone(), profiles: self.profiles }
    }
}

/// What gRPC's framing and our fields around a request may add to `max_request_bytes` (etcd's grpcOverheadBytes).
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// Everything that the client listeners serve: gRPC by path, the HTTP doors beside it.
///
/// The caller serves it with HTTP/1 and cleartext HTTP/2 on the same port.
pub fn router(node: Node, options: &Options) -> Router {
    front::router(front(node, options))
}

/// What the client listeners serve if HTTP has listeners of its own (`--listen-client-http-urls`): gRPC and nothing else.
pub fn grpc_router(node: Node, options: &Options) -> Router {
    front(node, options).grpc
}

/// What those listeners of their own serve: HTTP and nothing else.
pub fn http_router(node: Node, options: &Options) -> Router {
    front::http_router(front(node, options))
}

fn front(node: Node, options: &Options) -> Front {
    let message_bytes = node.limits().max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES);
    // A restore's pieces have a size of their own, whatever limit requests have.
    let restore_bytes = message_bytes.max(RESTORE_CHUNK_BYTES_MAX + GRPC_OVERHEAD_BYTES);

    let kv = KvService { node: node.clone() };
    let watch =
        WatchService { node: node.clone(), fragment_bytes: message_bytes, metrics: options.metrics.watch.clone() };
    let lease = LeaseService { node: node.clone() };
    let cluster = ClusterService { node: node.clone() };
    let auth = AuthService { node: node.clone() };
    let maintenance = MaintenanceService { node: node.clone(), serving: options.serving.clone() };
    let lock = LockService { node: node.clone() };
    let election = ElectionService { node: node.clone() };
    let health = HealthService { serving: options.serving.clone() };
    let restore = FerretcdMaintenanceService { node: node.clone() };
    let gate = Gate {
        member: node.clone(),
        metrics: options.metrics.clone(),
        election_timeout: options.election_timeout,
        warning_unary: options.warning_unary,
        tracer: options.tracer.clone(),
        under_way: options.under_way.clone(),
    };

    let grpc = [
        service(KvServer::new(kv).max_decoding_message_size(message_bytes)),
        service(WatchServer::new(watch).max_decoding_message_size(message_bytes)),
        service(LeaseServer::new(lease).max_decoding_message_size(message_bytes)),
        service(ClusterServer::new(cluster).max_decoding_message_size(message_bytes)),
        service(MaintenanceServer::new(maintenance).max_decoding_message_size(message_bytes)),
        service(AuthServer::new(auth).max_decoding_message_size(message_bytes)),
        service(LockServer::new(lock).max_decoding_message_size(message_bytes)),
        service(ElectionServer::new(election).max_decoding_message_size(message_bytes)),
        service(HealthServer::new(health).max_decoding_message_size(message_bytes)),
        service(FerretcdMaintenanceServer::new(restore).max_decoding_message_size(restore_bytes)),
    ]
    .into_iter()
    .fold(Router::new(), Router::merge)
    .layer(middleware::from_fn_with_state(gate, call::pass));

    let grpc = grpc.fallback(unknown);
    let Web { gateway, gateway_calls_max, access } = options.web.clone();
    let gateway = gateway.then(|| Gateway::new(grpc.clone(), message_bytes, gateway_calls_max));
    let users = node.clone();
    let auth = AuthSwitch(Arc::new(move || users.auth_enabled()));
    Front { grpc, http: http::router(options.door(node)), gateway, access, auth }
}

/// What the metrics listeners serve: `/metrics`, `/health`, `/livez`, `/readyz`.
pub fn metrics_router(node: Node, options: &Options) -> Router {
    http::metrics_router(options.door(node))
}

/// The profiles of this process at `/debug/pprof/`, for those who serve them beside something else.
pub fn profiles_router() -> Router {
    http::profiles()
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

/// The same with an answer to all else, at the door for members: a probe that looks for `/health` there must not think well of it.
pub fn peer_router(service: Router) -> Router {
    service.fallback(|request: Request| async move {
        match front::is_grpc(&request) {
            true => unknown(request).await,
            false => http::not_found().await,
        }
    })
}

/// A service that is not there.
async fn unknown(request: Request) -> Response {
    match method::find(request.uri().path()) {
        Err(text) => Status::unimplemented(text).into_http(),
        // Every service of the table has its route; a request that nobody serves has a path that is not in it.
        Ok(_) => Status::unimplemented("unknown service").into_http(),
    }
}
