//! What the log says of a call without streams that took long, in etcd's words.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, SecondsFormat, Utc};

use crate::method::Method;

/// Where a request's connection comes from. The listener puts it into the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote(pub Arc<str>);

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const FRAME_BYTES: u64 = 5;

/// One call under way. Dropping it says what there is to say.
#[derive(Debug)]
pub struct Stopwatch {
    /// Above this the log is told; below it only a log at level debug is.
    limit: Duration,
    begun: Instant,
    remote: Option<Remote>,
    method: Method,
    /// Bytes of the request so far; its body counts them.
    request: Arc<AtomicU64>,
    /// Bytes of the answer so far.
    answer: u64,
}

impl Stopwatch {
    /// Starts it.
    pub fn start(limit: Duration, method: Method, remote: Option<Remote>) -> Self {
        Stopwatch { limit, begun: Instant::now(), remote, method, request: Arc::default(), answer: 0 }
    }

    /// What the request's body counts its bytes in.
    pub fn request_bytes(&self) -> Arc<AtomicU64> {
        self.request.clone()
    }

    /// A piece of the answer leaves.
    pub fn answers(&mut self, bytes: usize) {
        self.answer += bytes as u64;
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let is_slow = took > self.limit;
        if !is_slow && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let begun: DateTime<Utc> = Utc::now() - took;
        let begun = begun.to_rfc3339_opts(SecondsFormat::Micros, true);
        let remote = self.remote.as_ref().map_or("No remote client info.", |remote| &*remote.0);
        let size = |bytes: u64| bytes.saturating_sub(FRAME_BYTES);
        let (request, answer) = (size(self.request.load(Ordering::Relaxed)), size(self.answer));
        let path = format!("/{}/{}", self.method.service, self.method.name);
        macro_rules! say {
            ($level:ident) => {
                tracing::$level!(
                    "start time" = begun, "time spent" = ?took, remote, "response type" = path,
                    "request size" = request, "response size" = answer, "request stats"
                )
            };
        }
        match is_slow {
            true => say!(warn),
            false => say!(debug),
        }
    }
}
