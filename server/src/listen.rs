//! Listeners: HTTP/1.1 and HTTP/2 without TLS on one port, so that gRPC, the health endpoints and curl share it.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// See `ferretcd_raft::transport::client`: small windows make h2 close connections with many small frames.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Connections at once on one listener; beyond, new ones wait in the kernel's queue. etcd's bound is the number of
/// file descriptors less 150; this stays below the usual 65536 of a unit file with room for the store.
const CONNECTIONS_MAX: usize = 32_768;

/// etcd's time for a connection to show that it lives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 3600);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long open connections may finish what they do when the server stops.
const DRAIN: Duration = Duration::from_millis(500);

/// Binds, with an error that names the flag and the address.
pub async fn bind(flag: &str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, String> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| format!("{flag}: cannot listen on {address}: {e}; is another server running there?"))?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Serves until `stop`, then lets open connections drain for a moment.
pub async fn serve(listener: TcpListener, router: Router, streams_max: u32, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), streams_max, stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(e) => {
                // Out of file descriptors, mostly: it passes when connections close.
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

async fn connection(stream: TcpStream, router: Router, streams_max: u32, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_concurrent_streams(streams_max)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder.http1().timer(TokioTimer::new());
    let service = TowerToHyperService::new(router);
    // Upgrades are the gateway's WebSockets.
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("a connection ended with {e}");
    }
}
