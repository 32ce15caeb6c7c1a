//! The members behind the proxy: a connection to each that lives, calls spread over them in turn, and a call that has
//! not left yet sent by another one when its own is lost.

use crate::endpoint::{CONNECT_TIMEOUT, ClientTls, Endpoint};
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;

/// Flow-control windows. A small connection window makes h2 close connections that carry bursts of small frames
/// (h2 0.4.16 and later give an allowance of half the window).
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// One stream's window: an event with the largest value, and room.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// How long a call waits for a member when none is connected: as long as a connection attempt may take.
const WAIT: Duration = CONNECT_TIMEOUT;

/// Pauses between attempts to connect to one member: doubling from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How connections to members are kept.
#[derive(Clone, Default)]
pub struct Connecting {
    /// TLS settings, if there are any.
    pub tls: Option<Arc<ClientTls>>,
    /// When a silent connection is asked whether it lives (`--dial-keepalive-time`); nothing: never.
    pub keep_alive_time: Option<Duration>,
    /// How long it may take to say so (`--dial-keepalive-timeout`).
    pub keep_alive_timeout: Duration,
    /// Ask even if no call is open (`--permit-without-stream`).
    pub keep_alive_idle: bool,
    /// How long an attempt to connect may take; nothing: [`crate::endpoint::CONNECT_TIMEOUT`].
    pub connect_timeout: Option<Duration>,
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connecting").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// All members. Cheap to clone; a client of gRPC's calls like a channel.
#[derive(Clone, Debug)]
pub struct Upstream {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connecting: Connecting,
    /// By what they are, whatever their texts.
    lines: RwLock<BTreeMap<Endpoint, Line>>,
    next: AtomicUsize,
    /// Counts connections that came; who has none to use waits for the next.
    came: watch::Sender<u64>,
    /// Why the last attempt failed, for the error of a call that nobody could take.
    trouble: Arc<Mutex<String>>,
}

/// One member, and the task that keeps its connection.
#[derive(Debug)]
struct Line {
    endpoint: Arc<Endpoint>,
    sender: Arc<Mutex<Option<SendRequest<Body>>>>,
    retired: Arc<AtomicBool>,
}

impl Drop for Line {
    /// Its keeper ends when the calls that are under way have ended.
    fn drop(&mut self) {
        self.retired.store(true, Ordering::SeqCst);
        *self.sender.lock() = None;
    }
}

type Picked = (Arc<Endpoint>, SendRequest<Body>);

impl Upstream {
    /// Begins to connect to all of them. Needs a runtime.
    pub fn new(endpoints: Vec<Endpoint>, connecting: Connecting) -> Self {
        let inner = Inner {
            connecting,
            lines: RwLock::default(),
            next: AtomicUsize::new(0),
            came: watch::Sender::new(0),
            trouble: Arc::new(Mutex::new("no endpoint answered".to_owned())),
        };
        let upstream = Upstream { inner: Arc::new(inner) };
        upstream.replace(endpoints);
        upstream
    }

    /// From now on it is these; connections to those among them that were known before stay.
    pub fn replace(&self, endpoints: Vec<Endpoint>) {
        let mut lines = self.inner.lines.write();
        lines.retain(|known, _| endpoints.contains(known));
        for endpoint in endpoints {
            lines.entry(endpoint.clone()).or_insert_with(|| {
                let (endpoint, sender, retired) = (Arc::new(endpoint), Arc::default(), Arc::default());
                let keeper = Keeper {
                    endpoint: Arc::clone(&endpoint),
                    connecting: self.inner.connecting.clone(),
                    sender: Arc::clone(&sender),
                    retired: Arc::clone(&retired),
                    came: self.inner.came.clone(),
                    trouble: self.inner.trouble.clone(),
                };
                tokio::spawn(keeper.run());
                Line { endpoint, sender, retired }
            });
        }
    }

    /// The members' endpoints.
    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.inner.lines.read().values().map(|line| line.endpoint.clone()).collect()
    }

    /// Their TLS settings.
    pub fn tls(&self) -> Option<Arc<ClientTls>> {
        self.inner.connecting.tls.clone()
    }

    /// The next connected member, round about.
    fn connected(&self) -> Option<Picked> {
        let lines = self.inner.lines.read();
        let first = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let first = first.checked_rem(lines.len()).unwrap_or(0);
        lines.values().skip(first).chain(lines.values().take(first)).find_map(|line| {
            let sender = line.sender.lock().clone()?;
            (!sender.is_closed()).then(|| (line.endpoint.clone(), sender))
        })
    }

    /// A connected member, waited for if there is none.
    async fn pick(&self) -> Result<Picked, Status> {
        let mut came = self.inner.came.subscribe();
        let found = async {
            loop {
                came.mark_unchanged();
                if let Some(picked) = self.connected() {
                    return Some(picked);
                }
                came.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(WAIT, found).await {
            Ok(Some(picked)) => Ok(picked),
            _ => Err(Status::unavailable(format!("no etcd endpoint can be reached: {}", self.inner.trouble.lock()))),
        }
    }

    /// Sends a request to a member. It goes to another one if it is certain that it has not left.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, Status> {
        // Each member once, and one more: a connection may be found lost just when it is used.
        let mut left = self.inner.lines.read().len() + 1;
        loop {
            let (endpoint, mut sender) = self.pick().await?;
            *request.uri_mut() = address(&endpoint, request.uri())?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(Body::new)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if left > 0 => {
                        left -= 1;
                        request = unsent;
                        // Its keeper is about to notice, too; meanwhile others run.
                        tokio::task::yield_now().await;
                    }
                    _ => {
                        let why = failed.into_error();
                        return Err(Status::unavailable(format!("error reading from server: {}", text(&why))));
                    }
                },
            }
        }
    }
}

/// The request's address at this member.
fn address(endpoint: &Endpoint, uri: &Uri) -> Result<Uri, Status> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if endpoint.secure { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = endpoint.authority.parse().ok();
    parts.path_and_query = Some(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).map_err(|e| Status::internal(format!("{}: {e}", endpoint.text)))
}

/// Connects to one member, again whenever the connection is lost.
struct Keeper {
    endpoint: Arc<Endpoint>,
    connecting: Connecting,
    sender: Arc<Mutex<Option<SendRequest<Body>>>>,
    retired: Arc<AtomicBool>,
    came: watch::Sender<u64>,
    trouble: Arc<Mutex<String>>,
}

impl Keeper {
    async fn run(self) {
        let endpoint = self.endpoint.text.as_str();
        let mut pause = PAUSES.0;
        let mut told = String::new();
        while !self.retired.load(Ordering::SeqCst) {
            match open(&self.endpoint, &self.connecting).await {
                Ok((opened, connection)) => {
                    tracing::info!(endpoint, "connected to an etcd endpoint");
                    *self.sender.lock() = Some(opened);
                    self.came.send_modify(|count| *count = count.wrapping_add(1));
                    if self.retired.load(Ordering::SeqCst) {
                        *self.sender.lock() = None;
                    }
                    let ended = connection.await;
                    *self.sender.lock() = None;
                    tracing::warn!(endpoint, ?ended, "lost the connection to an etcd endpoint");
                    (pause, told) = (PAUSES.0, String::new());
                }
                Err(why) => {
                    let why = format!("{endpoint}: {why}");
                    if told != why {
                        tracing::warn!(endpoint, why, "cannot connect to an etcd endpoint");
                    }
                    self.trouble.lock().clone_from(&why);
                    told = why;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

type Connection = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

async fn open(endpoint: &Endpoint, connecting: &Connecting) -> Result<(SendRequest<Body>, Connection), String> {
    let stream = endpoint
        .connect_within(connecting.connect_timeout.unwrap_or(CONNECT_TIMEOUT), connecting.tls.clone(), b"h2")
        .await
        .map_err(|e| e.to_string())?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        // h2 would end the connection after 1,024 answers that came for calls which clients had given up.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(connecting.keep_alive_time)
        .keep_alive_timeout(connecting.keep_alive_timeout)
        .keep_alive_while_idle(connecting.keep_alive_idle);
    let (sender, connection) = builder.handshake(stream).await.map_err(|e| text(&e))?;
    Ok((sender, Box::pin(connection)))
}

/// An error with its causes.
pub fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl tower::Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async move { upstream.send(request).await })
    }
}
