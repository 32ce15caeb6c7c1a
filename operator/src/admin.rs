//! `/healthz`, `/readyz` and `/metrics`, for the kubelet and for Prometheus.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;

/// What the endpoints show.
#[derive(Clone, Debug, Default)]
pub struct Admin {
    /// The counters.
    pub registry: Registry,
    /// The controllers run.
    pub ready: Arc<AtomicBool>,
}

/// Serves until `shutdown` resolves.
///
/// # Errors
/// The listener breaks.
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        // That this answers is all that a restart could mend: the API server being away is no reason for one.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    match admin.ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the controllers have not started\n"),
    }
}

async fn metrics(State(admin): State<Admin>) -> Result<String, (StatusCode, String)> {
    let text = TextEncoder::new().encode_to_string(&admin.registry.gather());
    text.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
}
