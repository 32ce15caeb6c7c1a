//! The proxy's HTTP pages: its own metrics and health, and a member's metrics.

use crate::caller::Caller;
use crate::client;
use crate::endpoint::Endpoint;
use crate::shared::Shared;
use crate::upstream::text;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use ferretcd_proto::etcdserverpb::kv_client::KvClient;
use ferretcd_proto::etcdserverpb::watch_client::WatchClient;
use ferretcd_proto::etcdserverpb::watch_request::RequestUnion;
use ferretcd_proto::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use futures::StreamExt;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode};
use hyper::client::conn::http1;
use prometheus::{Registry, TextEncoder};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// How long a member may take for the read of a health check (etcd's number).
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long it may take to open a watch (etcd's number).
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a member may take to begin with its metrics.
const METRICS_TIMEOUT: Duration = Duration::from_secs(5);

/// What the pages need.
#[derive(Clone, Debug)]
pub struct Pages {
    /// The members.
    pub shared: Shared,
    /// The proxy's own metrics.
    pub registry: Registry,
    /// Whether it is told to clients; etcd's health check of the proxy goes by that address.
    pub advertised: bool,
}

/// All pages, and "not found" for the rest.
pub fn router(pages: Pages) -> Router {
    let get = MethodFilter::GET;
    Router::new()
        .route("/metrics", axum::routing::any(member_metrics))
        .route("/proxy/metrics", axum::routing::any(own_metrics))
        .route("/health", on(get, health).fallback(only_get))
        .route("/proxy/health", on(get, proxy_health).fallback(only_get))
        .with_state(Arc::new(pages))
}

/// Go's words for a page that is not there.
pub fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

async fn only_get() -> Response {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    answer
}

fn plain(status: StatusCode, text: impl Into<Body>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, text.into()).into_response()
}

async fn own_metrics(State(pages): State<Arc<Pages>>) -> Response {
    match TextEncoder::new().encode_to_string(&pages.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(e) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

/// A member's page, from the first that answers.
async fn member_metrics(State(pages): State<Arc<Pages>>) -> Response {
    for endpoint in pages.shared.upstream.endpoints() {
        match tokio::time::timeout(METRICS_TIMEOUT, fetch(&pages.shared, &endpoint)).await {
            Ok(Ok(body)) => return ([(CONTENT_TYPE, "text/plain; version=0.0.4")], body).into_response(),
            Ok(Err(why)) => tracing::warn!(endpoint = endpoint.text, why, "cannot fetch a member's metrics"),
            Err(_) => tracing::warn!(endpoint = endpoint.text, "no metrics within {METRICS_TIMEOUT:?}"),
        }
    }
    plain(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error\n")
}

async fn fetch(shared: &Shared, endpoint: &Endpoint) -> Result<Body, String> {
    let stream = endpoint.connect(shared.upstream.tls(), b"http/1.1").await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = http1::handshake(stream).await.map_err(|e| text(&e))?;
    tokio::spawn(connection);
    let request = Request::get("/metrics").header(HOST, &endpoint.authority).body(Body::empty());
    let answer = sender.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| text(&e))?;
    match answer.status() {
        StatusCode::OK => Ok(Body::new(answer.into_body())),
        status => Err(status.to_string()),
    }
}

async fn health(State(pages): State<Arc<Pages>>) -> Response {
    verdict(&pages.read().await)
}

async fn proxy_health(State(pages): State<Arc<Pages>>) -> Response {
    if !pages.advertised {
        return verdict(&Err("no connection to proxy".to_owned()));
    }
    let mut found = pages.read().await;
    if found.is_ok() {
        found = pages.watch().await;
    }
    verdict(&found)
}

/// etcd's page.
fn verdict(found: &Result<(), String>) -> Response {
    let (status, health, reason) = match found {
        Ok(()) => (StatusCode::OK, "true", ""),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "false", why.as_str()),
    };
    let body = format!("{{\"health\":\"{health}\",\"reason\":{}}}", serde_json::Value::from(reason));
    let mut answer = plain(status, body);
    if status == StatusCode::OK {
        answer.headers_mut().remove(http::header::X_CONTENT_TYPE_OPTIONS);
    }
    answer
}

/// The key that etcd asks for.
const KEY: Bytes = Bytes::from_static(b"a");

impl Pages {
    /// A linearizable read. Who may not read is told so by a healthy member.
    async fn read(&self) -> Result<(), String> {
        let read = RangeRequest { key: self.shared.namespace.key(&KEY), ..RangeRequest::default() };
        let mut client = client!(self.shared, KvClient);
        match tokio::time::timeout(READ_TIMEOUT, client.range(Caller::default().request(read))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == Code::PermissionDenied => Ok(()),
            Ok(Err(status)) => Err(format!("GET ERROR:{}", status.message())),
            Err(_) => Err("GET ERROR:context deadline exceeded".to_owned()),
        }
    }

    async fn watch(&self) -> Result<(), String> {
        let create = WatchCreateRequest { key: self.shared.namespace.key(&KEY), ..WatchCreateRequest::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // Open until the answer is there: a member ends a watch with its requests.
        let requests = futures::stream::iter([create]).chain(futures::stream::pending());
        let opened = async {
            let mut answers = client!(self.shared, WatchClient).watch(Caller::default().request(requests)).await?;
            answers.get_mut().message().await
        };
        match tokio::time::timeout(WATCH_TIMEOUT, opened).await {
            Ok(Ok(Some(_))) => Ok(()),
            _ => Err("WATCH TIMEOUT".to_owned()),
        }
    }
}
