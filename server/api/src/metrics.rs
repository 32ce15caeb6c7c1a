//! Counters of calls, under the names that etcd's dashboards and alerts look for.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, exponential_buckets,
};
use tonic::Code;

use crate::{
    method::{Kind, METHODS, Method},
    trace::{Context, Span},
};

/// Counters of all methods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CallMetrics {
    /// In the order of [`METHODS`].
    methods: Arc<[MethodMetrics]>,
    client_requests: IntCounterVec,
    /// Versions that clients have named so far: each is a time series of its own, so their number is bounded.
    client_versions: Arc<Mutex<HashSet<String>>>,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    /// Streams that this server ended because it had no leader.
    leaderless_streams: IntCounterVec,
    /// How long answers of watch streams take to be made and sent.
    pub watch: WatchMetrics,
}

/// Counters of one method, looked up once and not at every call.
#[derive(Debug)]
struct MethodMetrics {
    started: IntCounter,
    /// By the code's number.
    handled: Vec<IntCounter>,
    received: IntCounter,
    sent: IntCounter,
    /// How long calls take, with `--metrics=extensive`.
    seconds: Option<Histogram>,
}

/// Most client versions that are told apart: a handful is what a cluster sees; whoever makes versions up ends here.
const CLIENT_VERSIONS_MAX: usize = 64;

/// What a client without a version, or with one too many, is counted as.
const UNKNOWN_VERSION: &str = "unknown";

impl CallMetrics {
    /// Registers the counters, all methods and codes at zero, so that rates exist before the first failure; and if
    /// `extensive`, a histogram of how long the calls of each method take.
    pub fn register(registry: &Registry, extensive: bool) -> Result<Self, prometheus::Error> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let with_code = [labels.as_slice(), &["grpc_code"]].concat();
        let started = Opts::new("grpc_server_started_total", "Total number of RPCs started on the server.");
        let started = IntCounterVec::new(started, &labels)?;
        let handled = Opts::new(
            "grpc_server_handled_total",
            "Total number of RPCs completed on the server, regardless of success or failure.",
        );
        let handled = IntCounterVec::new(handled, &with_code)?;
        let client_requests = Opts::new("etcd_server_client_requests_total", "Client requests by client version.");
        let client_requests = IntCounterVec::new(client_requests, &["type", "client_api_version"])?;
        let received_bytes = IntCounter::new(
            "etcd_network_client_grpc_received_bytes_total",
            "The total number of bytes received from grpc clients.",
        )?;
        let sent_bytes = IntCounter::new(
            "etcd_network_client_grpc_sent_bytes_total",
            "The total number of bytes sent to grpc clients.",
        )?;
        let received =
            Opts::new("grpc_server_msg_received_total", "Total number of RPC messages received on the server.");
        let received = IntCounterVec::new(received, &labels)?;
        let sent = Opts::new("grpc_server_msg_sent_total", "Total number of RPC messages sent by the server.");
        let sent = IntCounterVec::new(sent, &labels)?;
        // An alert of the mixin is about this one. The buckets are Go's.
        let seconds = HistogramOpts::new(
            "grpc_server_handling_seconds",
            "Histogram of response latency (seconds) of RPCs that had been application-level handled by the server.",
        );
        let seconds = HistogramVec::new(seconds, &labels)?;
        let leaderless_streams =
            Opts::new("etcd_network_server_stream_failures_total", "Stream failures from the local server.");
        let leaderless_streams = IntCounterVec::new(leaderless_streams, &["Type", "API"])?;
        let version = Opts::new("etcd_server_version", "Which version is running: 1 for the label's.");
        let version = IntGaugeVec::new(version, &["server_version"])?;
        version.with_label_values(&[crate::version::SERVER]).set(1);
        registry.register(Box::new(received.clone()))?;
        registry.register(Box::new(sent.clone()))?;
        if extensive {
            registry.register(Box::new(seconds.clone()))?;
        }
        registry.register(Box::new(leaderless_streams.clone()))?;
        registry.register(Box::new(version))?;
        registry.register(Box::new(started.clone()))?;
        registry.register(Box::new(handled.clone()))?;
        registry.register(Box::new(client_requests.clone()))?;
        registry.register(Box::new(received_bytes.clone()))?;
        registry.register(Box::new(sent_bytes.clone()))?;

        let of_method = |m: &Method| {
            let labels = [m.kind.label(), m.service, m.name];
            let with_code = |code| handled.with_label_values(&[labels[0], labels[1], labels[2], code]);
            MethodMetrics {
                started: started.with_label_values(&labels),
                handled: CODE_NAMES.iter().map(|name| with_code(name)).collect(),
                received: received.with_label_values(&labels),
                sent: sent.with_label_values(&labels),
                seconds: extensive.then(|| seconds.with_label_values(&labels)),
            }
        };
        Ok(CallMetrics {
            methods: METHODS.iter().map(of_method).collect(),
            client_requests,
            client_versions: Arc::default(),
            received_bytes,
            sent_bytes,
            leaderless_streams,
            watch: WatchMetrics::register(registry)?,
        })
    }

    /// A call begins; the value counts how it ends. `method` is a position in [`METHODS`].
    pub fn start(&self, method: usize) -> Call {
        if let Some(metrics) = self.methods.get(method) {
            metrics.started.inc();
        }
        Call { methods: self.methods.clone(), method, ended: false, begun: Instant::now(), span: None }
    }

    /// Messages of requests of a method.
    pub fn received_messages(&self, method: usize) -> Option<IntCounter> {
        self.methods.get(method).map(|m| m.received.clone())
    }

    /// Messages of answers of a method.
    pub fn sent_messages(&self, method: usize) -> Option<IntCounter> {
        self.methods.get(method).map(|m| m.sent.clone())
    }

    /// A stream was ended because there is no leader.
    pub fn count_leaderless(&self, method: &Method) {
        self.leaderless_streams.with_label_values(&["send", method.name]).inc();
    }

    /// Counts a request of a client of some version.
    pub fn count_client(&self, kind: Kind, version: Option<&str>) {
        let mut seen = self.client_versions.lock();
        let version = match version {
            Some(v) if seen.contains(v) => v,
            Some(v) if seen.len() < CLIENT_VERSIONS_MAX => {
                seen.insert(v.to_owned());
                v
            }
            _ => UNKNOWN_VERSION,
        };
        let kind = if kind == Kind::Unary { "unary" } else { "stream" };
        self.client_requests.with_label_values(&[kind, version]).inc();
    }

    /// Bytes of request bodies.
    pub fn received_bytes(&self) -> IntCounter {
        self.received_bytes.clone()
    }

    /// Bytes of answer bodies.
    pub fn sent_bytes(&self) -> IntCounter {
        self.sent_bytes.clone()
    }
}

/// How long the answers of watch streams take, by what they tell.
#[derive(Clone, Debug)]
pub struct WatchMetrics {
    /// That a watcher was created or has ended.
    pub control: Histogram,
    /// How far a watcher without events is.
    pub progress: Histogram,
    /// Events.
    pub events: Histogram,
    /// The same, for each event.
    pub per_event: Histogram,
}

impl WatchMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |what: &str, help: &str| {
            let name = format!("etcd_debugging_server_watch_send_loop_{what}_seconds");
            let histogram = HistogramOpts::new(name, help).buckets(exponential_buckets(0.001, 2.0, 14)?);
            let histogram = Histogram::with_opts(histogram)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        Ok(WatchMetrics {
            control: histogram("control_stream_duration", "How long sending a control answer takes.")?,
            progress: histogram("progress_duration", "How long sending a progress notice takes.")?,
            events: histogram("watch_stream_duration", "How long sending an answer with events takes.")?,
            per_event: histogram("watch_stream_duration_per_event", "The same for each of its events.")?,
        })
    }

    /// An answer with so many events took so long.
    pub fn sent(&self, is_control: bool, events: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        match events {
            _ if is_control => self.control.observe(seconds),
            0 => self.progress.observe(seconds),
            n => {
                self.events.observe(seconds);
                self.per_event.observe(seconds / n as f64);
            }
        }
    }
}

/// Counts gRPC messages in the bytes of a body: each is a flag, its length in four bytes, and its content.
#[derive(Debug, Default)]
pub struct Messages {
    head: [u8; 5],
    /// Bytes of `head` that are there.
    have: usize,
    /// Bytes of the content that are still to come.
    left: usize,
}

impl Messages {
    /// How many messages end in these bytes.
    pub fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut ended = 0;
        while !bytes.is_empty() {
            if self.have < self.head.len() {
                self.head[self.have] = bytes[0];
                self.have += 1;
                bytes = &bytes[1..];
                if self.have < self.head.len() {
                    continue;
                }
                let [_, a, b, c, d] = self.head;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            }
            let here = self.left.min(bytes.len());
            self.left -= here;
            bytes = &bytes[here..];
            if self.left == 0 {
                self.have = 0;
                ended += 1;
            }
        }
        ended
    }
}

/// A call under way. One that is dropped before it ended counts as cancelled: that is how a client's departure shows.
#[derive(Debug)]
pub struct Call {
    methods: Arc<[MethodMetrics]>,
    method: usize,
    ended: bool,
    begun: Instant,
    /// Its span, if it is traced.
    span: Option<Span>,
}

impl Call {
    /// The same with a span, which ends with it.
    pub fn traced(mut self, span: Option<Span>) -> Self {
        self.span = span;
        self
    }

    /// What work within the call is traced below.
    pub fn context(&self) -> Option<Context> {
        self.span.as_ref().map(Span::context)
    }

    /// The call ends with this code and its text; later ends are ignored.
    pub fn end(&mut self, code: Code, message: &str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(span) = self.span.take() {
            span.end(code, message);
        }
        let position = usize::try_from(i32::from(code)).unwrap_or_default();
        let Some(metrics) = self.methods.get(self.method) else { return };
        if let Some(seconds) = &metrics.seconds {
            seconds.observe(self.begun.elapsed().as_secs_f64());
        }
        if let Some(counter) = metrics.handled.get(position) {
            counter.inc();
        }
    }

    /// True once the end is counted.
    pub fn has_ended(&self) -> bool {
        self.ended
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled, "");
    }
}

/// grpc-go's names of the codes, by number.
const CODE_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;
    use crate::method::find;

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn every_method_and_code_is_there_from_the_start() {
        let registry = Registry::new();
        let _metrics = CallMetrics::register(&registry, false).unwrap();
        let text = text(&registry);
        let put = r#"grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;
        assert!(text.contains(&format!("grpc_server_started_total{{{put} 0")));
        assert!(text.contains(&format!("grpc_server_handled_total{{grpc_code=\"DataLoss\",{put} 0")));
        assert_eq!(text.matches("grpc_server_handled_total{").count(), METHODS.len() * CODE_NAMES.len());
    }

    #[test]
    fn a_call_ends_once_and_a_dropped_one_is_cancelled() {
        let registry = Registry::new();
        let metrics = CallMetrics::register(&registry, false).unwrap();
        let watch = find("/etcdserverpb.Watch/Watch").unwrap();
        let mut call = metrics.start(watch);
        call.end(Code::Ok, "");
        call.end(Code::Internal, "");
        drop(call);
        drop(metrics.start(watch));
        let text = text(&registry);
        let labels = r#"grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}"#;
        let handled = |code, n| text.contains(&format!("grpc_server_handled_total{{grpc_code=\"{code}\",{labels} {n}"));
        assert!(handled("OK", 1) && handled("Canceled", 1) && handled("Internal", 0));
        assert!(text.contains(&format!("grpc_server_started_total{{{labels} 2")));
    }

    #[test]
    fn how_long_calls_take_is_kept_on_demand_only() {
        for extensive in [false, true] {
            let registry = Registry::new();
            let metrics = CallMetrics::register(&registry, extensive).unwrap();
            metrics.start(find("/etcdserverpb.KV/Put").unwrap()).end(Code::Ok, "");
            let put = "grpc_server_handling_seconds_count{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",\
                       grpc_type=\"unary\"} 1";
            assert_eq!(text(&registry).contains(put), extensive);
            assert_eq!(text(&registry).contains("grpc_server_handling_seconds"), extensive);
        }
    }

    #[test]
    fn messages_are_counted_however_the_bytes_come() {
        let body: Vec<u8> = [0, 3, 1, 0, 300]
            .iter()
            .flat_map(|len: &u32| {
                let mut message = vec![0];
                message.extend(len.to_be_bytes());
                message.resize(message.len() + *len as usize, 7);
                message
            })
            .collect();
        for piece in [1, 2, 4, 5, 7, 1000] {
            let mut messages = Messages::default();
            assert_eq!(body.chunks(piece).map(|bytes| messages.count(bytes)).sum::<u64>(), 5, "pieces of {piece}");
        }
        let mut messages = Messages::default();
        assert_eq!(messages.count(&body[..7]), 1, "the second is not there in full");
    }

    #[test]
    fn made_up_versions_do_not_make_series_without_end() {
        let registry = Registry::new();
        let metrics = CallMetrics::register(&registry, false).unwrap();
        for i in 0..CLIENT_VERSIONS_MAX + 10 {
            metrics.count_client(Kind::Unary, Some(&format!("3.{i}")));
        }
        metrics.count_client(Kind::BidiStream, None);
        let text = text(&registry);
        assert_eq!(text.matches("etcd_server_client_requests_total{").count(), CLIENT_VERSIONS_MAX + 2);
        assert!(text.contains(r#"client_api_version="unknown",type="unary"} 10"#));
        assert!(text.contains(r#"client_api_version="unknown",type="stream"} 1"#));
    }
}
