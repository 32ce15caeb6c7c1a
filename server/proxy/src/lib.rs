//! etcd's gRPC proxy: it stands before a cluster, ours or etcd's, and spares it work. Many watchers of a range share
//! one watch, many keep-alives of a lease are one, serializable reads are answered from a cache; and all keys can be
//! put below a prefix.
//!
//! It knows the members' API only ([`ferretcd_proto`]). Listeners and certificates are the caller's.

mod cache;
mod caller;
mod cluster;
pub mod endpoint;
mod http;
mod kv;
mod lease;
mod metrics;
mod namespace;
mod pass;
mod register;
mod shared;
mod sync;
pub mod upstream;
mod watch;

use crate::cluster::ClusterService;
use crate::endpoint::Endpoint;
use crate::http::Pages;
use crate::kv::KvService;
use crate::lease::LeaseService;
use crate::metrics::Metrics;
use crate::namespace::Namespace;
use crate::register::Registration;
use crate::shared::Shared;
use crate::upstream::{Connecting, Upstream};
use crate::watch::WatchService;
use crate::watch::hub::Hub;
use ::http::header::CONTENT_TYPE;
use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::any;
use ferretcd_proto::etcdserverpb::cluster_server::ClusterServer;
use ferretcd_proto::etcdserverpb::kv_server::KvServer;
use ferretcd_proto::etcdserverpb::lease_server::LeaseServer;
use ferretcd_proto::etcdserverpb::watch_server::WatchServer;
use prometheus::Registry;
use std::convert::Infallible;
use std::time::Duration;
use tokio::task::AbortHandle;
use tonic::Status;
use tonic::server::NamedService;
use tower::Service;

pub use crate::shared::MessageSizes;

/// What a proxy is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The members.
    pub endpoints: Vec<Endpoint>,
    /// How they are reached.
    pub connecting: Connecting,
    /// The prefix of all keys; may be empty.
    pub namespace: String,
    /// Bounds of messages to and from members.
    pub sizes: MessageSizes,
    /// No read shows an older state than one before it.
    pub ordering: bool,
    /// The address that clients are told; empty: they are told the members'.
    pub advertised: String,
    /// The prefix below which proxies register, and the seconds that an entry lives.
    pub registered: Option<(String, i64)>,
    /// Replace the endpoints by the members' client URLs so often; and whether one without a scheme means TLS.
    pub sync: Option<(Duration, bool)>,
    /// Write a line about each call.
    pub logs_calls: bool,
}

/// A running proxy. What it does in the background ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Shared,
    registry: Registry,
    options: Options,
    registration: Option<(Registration, AbortHandle)>,
    sync: Option<AbortHandle>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.registration.iter().map(|(_, keeper)| keeper).chain(&self.sync).for_each(AbortHandle::abort);
    }
}

impl Proxy {
    /// Begins to connect, and to register if that is asked. Needs a runtime. Fails only if a metric's name is no name.
    pub fn start(options: Options) -> Result<Self, String> {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).map_err(|e| format!("cannot register the metrics: {e}"))?;
        let upstream = Upstream::new(options.endpoints.clone(), options.connecting.clone());
        let shared = Shared::new(upstream, Namespace::new(&options.namespace), options.sizes, metrics);
        let registration = options.registered.clone().map(|(prefix, ttl)| {
            let own = Registration::new(shared.clone(), options.advertised.clone(), prefix, ttl);
            let keeper = tokio::spawn(own.clone().keep());
            (own, keeper.abort_handle())
        });
        let sync = options.sync.map(|(every, has_tls)| tokio::spawn(sync::keep(shared.clone(), every, has_tls)));
        Ok(Proxy { shared, registry, options, registration, sync: sync.map(|task| task.abort_handle()) })
    }

    /// Everything for the client listener: gRPC, and the pages beside it.
    pub fn router(&self) -> Router {
        let shared = &self.shared;
        let kv = KvService { shared: shared.clone(), ordering: self.options.ordering };
        let cluster = ClusterService {
            shared: shared.clone(),
            advertised: self.options.advertised.clone(),
            prefix: self.options.registered.clone().map(|(prefix, _)| prefix).unwrap_or_default(),
        };
        let own = [
            // Messages from clients are bounded by gRPC's usual 4 MiB, as in etcd's proxy.
            service(KvServer::new(kv)),
            service(WatchServer::new(WatchService { hub: Hub::new(shared.clone()) })),
            service(LeaseServer::new(LeaseService::new(shared.clone()))),
            service(ClusterServer::new(cluster)),
        ];
        let passed = [
            "/etcdserverpb.Auth/{method}",
            "/etcdserverpb.Maintenance/{method}",
            "/v3lockpb.Lock/{method}",
            "/v3electionpb.Election/{method}",
        ];
        let passed = passed.into_iter().fold(Router::new(), |router, path| router.route(path, any(pass::pass)));
        let calls = own.into_iter().fold(passed.with_state(shared.clone()), Router::merge);
        let calls = if self.options.logs_calls { calls.layer(middleware::from_fn(log)) } else { calls };
        calls.merge(self.pages()).fallback(unknown)
    }

    /// The pages alone, for `--metrics-addr`.
    pub fn metrics_router(&self) -> Router {
        self.pages().fallback(unknown)
    }

    fn pages(&self) -> Router {
        http::router(Pages {
            shared: self.shared.clone(),
            registry: self.registry.clone(),
            advertised: !self.options.advertised.is_empty(),
        })
    }

    /// Tells the others that this proxy goes.
    pub async fn stop(self) {
        if let Some((registration, keeper)) = &self.registration {
            keeper.abort();
            registration.end().await;
        }
    }
}

/// One gRPC service under its name.
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

async fn log(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let answer = next.run(request).await;
    let code = Status::from_header_map(answer.headers()).map(|status| status.code());
    tracing::info!(method = path, ?code, "a call was answered");
    answer
}

/// A service or a page that is not there.
async fn unknown(request: Request) -> Response {
    let is_grpc = |v: &::http::HeaderValue| v.as_bytes().starts_with(b"application/grpc");
    if !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
        return http::not_found();
    }
    let path = request.uri().path();
    let service = path.trim_start_matches('/').rsplit_once('/').map_or(path, |(service, _)| service);
    Status::unimplemented(format!("unknown service {service}")).into_http()
}
