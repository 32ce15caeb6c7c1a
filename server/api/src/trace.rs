//! Traces of calls (`--enable-distributed-tracing`), with etcd's spans: one for each gRPC call, and below it one for what
//! the call asks of the member. They leave by [`export`].

mod export;

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use ferretcd_proto::{
    etcdserverpb::{Compare, RequestOp, request_op::Request as Op},
    otlp::{
        self, KeyValue,
        any_value::Value,
        span::{Event, SpanKind},
        status::StatusCode,
    },
};
use http::HeaderMap;
use tokio::sync::mpsc;
use tonic::Code;

pub use export::{Exporter, Target};

use crate::method::Method;

/// Of so many traces the sampling rate counts.
pub const RATE_MAX: u32 = 1_000_000;

/// Longest `tracestate` that is passed on; the standard asks for at least so much.
const STATE_BYTES_MAX: usize = 512;

/// Flags of a span: it is sampled, and known to have its parent here or elsewhere.
const SAMPLED: u32 = 1;
const KNOWS_PARENT: u32 = 0x100;
const REMOTE_PARENT: u32 = 0x200;

/// Whose span it is, by the name of what makes it in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A gRPC call's.
    Call,
    /// The work's within.
    Work,
}

/// Begins traces. Cheap to clone.
#[derive(Clone)]
pub struct Tracer {
    finished: mpsc::Sender<(Scope, otlp::Span)>,
    /// Of 2^63 traces that begin here, how many are sampled.
    threshold: u64,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

/// The address at which a call came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local(pub SocketAddr);

/// What spans below another one need to know of it.
#[derive(Clone, Debug)]
pub struct Context {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    state: Arc<str>,
    tracer: Tracer,
}

tokio::task_local! {
    static WITHIN: Context;
}

/// The span that this task works in, if its trace is sampled.
pub fn current() -> Option<Context> {
    WITHIN.try_with(Context::clone).ok()
}

/// Does work in a span.
pub async fn scope<F: Future>(context: Option<Context>, work: F) -> F::Output {
    match context {
        Some(context) => WITHIN.scope(context, work).await,
        None => work.await,
    }
}

/// A span below the one that this task works in. Its attributes are only made if it is sampled.
pub fn span(name: &'static str, attributes: impl FnOnce() -> Vec<KeyValue>) -> Option<Span> {
    current().map(|context| context.span(name, attributes()))
}

/// Waits for what the log makes of a proposal, with etcd's events in the span.
pub async fn proposed<F: Future>(span: &mut Option<Span>, work: F) -> F::Output {
    if let Some(span) = span {
        span.event("Send raft proposal");
    }
    let result = work.await;
    if let Some(span) = span {
        span.event("Receive raft result");
    }
    result
}

impl Context {
    /// A span below this one.
    pub fn span(&self, name: &'static str, attributes: Vec<KeyValue>) -> Span {
        let parent = Parent { trace_id: self.trace_id, span_id: Some(self.span_id), state: &self.state, remote: false };
        Span::begin(&self.tracer, Scope::Work, name.to_owned(), &parent, attributes)
    }
}

/// What a span begins below.
struct Parent<'a> {
    trace_id: [u8; 16],
    span_id: Option<[u8; 8]>,
    state: &'a Arc<str>,
    remote: bool,
}

impl Tracer {
    /// A tracer that samples so many of [`RATE_MAX`] traces, and what to start for them to leave.
    pub fn new(rate: u32, target: Target) -> Result<(Self, Exporter), String> {
        let (finished, queue) = mpsc::channel(export::QUEUE_MAX);
        let exporter = Exporter::new(queue, target)?;
        Ok((Tracer { finished, threshold: threshold(rate) }, exporter))
    }

    /// The span of a call, if its trace is sampled: as its caller says, or by chance if the caller says nothing.
    pub(crate) fn call(&self, method: &Method, headers: &HeaderMap, local: Option<Local>) -> Option<Span> {
        let caller = caller(headers);
        let (trace_id, sampled) = match &caller {
            Some(caller) => (caller.trace_id, caller.sampled),
            None => {
                let trace_id: [u8; 16] = rand::random();
                (trace_id, is_chosen(&trace_id, self.threshold))
            }
        };
        if !sampled {
            return None;
        }
        let name = format!("{}/{}", method.service, method.name);
        let mut attributes = vec![text("rpc.method", name.as_bytes()), text("rpc.system.name", b"grpc")];
        if let Some(Local(local)) = local {
            attributes.push(text("server.address", local.ip().to_string().as_bytes()));
            attributes.push(number("server.port", i64::from(local.port())));
        }
        let state = caller.as_ref().map_or_else(|| Arc::from(""), |c| c.state.clone());
        let parent =
            Parent { trace_id, span_id: caller.as_ref().map(|c| c.span_id), state: &state, remote: caller.is_some() };
        Some(Span::begin(self, Scope::Call, name, &parent, attributes))
    }
}

fn threshold(rate: u32) -> u64 {
    (u128::from(rate.min(RATE_MAX)) * (1 << 63) / u128::from(RATE_MAX)) as u64
}

/// By the trace's own ID, so that all who sample at one rate sample the same traces (OpenTelemetry's rule).
fn is_chosen(trace_id: &[u8; 16], threshold: u64) -> bool {
    let [.., a, b, c, d, e, f, g, h] = *trace_id;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1) < threshold
}

/// The span that a caller works in (W3C's Trace Context).
#[derive(Debug, PartialEq, Eq)]
struct Caller {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    sampled: bool,
    state: Arc<str>,
}

/// What the caller's headers say of it. What cannot be read counts as not said.
fn caller(headers: &HeaderMap) -> Option<Caller> {
    let parent = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = parent.split('-');
    let version = hex::<1>(parts.next()?)?[0];
    let (trace_id, span_id) = (hex::<16>(parts.next()?)?, hex::<8>(parts.next()?)?);
    let flags = hex::<1>(parts.next()?)?[0];
    let more = parts.next().is_some();
    let odd = version == 0 && (more || flags > 2);
    if version == 0xff || odd || trace_id == [0; 16] || span_id == [0; 8] {
        return None;
    }
    let state = headers.get("tracestate").and_then(|s| s.to_str().ok()).filter(|s| s.len() <= STATE_BYTES_MAX);
    Some(Caller { trace_id, span_id, sampled: flags & 1 == 1, state: Arc::from(state.unwrap_or_default()) })
}

/// So many bytes in small hexadecimal digits, and no more.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

/// A piece of work that is under way. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    scope: Scope,
    span: otlp::Span,
    context: Context,
}

impl Span {
    fn begin(tracer: &Tracer, scope: Scope, name: String, parent: &Parent<'_>, attributes: Vec<KeyValue>) -> Self {
        let span_id: [u8; 8] = rand::random();
        let (trace_id, state) = (parent.trace_id, parent.state.clone());
        let kind = if scope == Scope::Call { SpanKind::Server } else { SpanKind::Internal };
        let span = otlp::Span {
            trace_id: Bytes::copy_from_slice(&trace_id),
            span_id: Bytes::copy_from_slice(&span_id),
            trace_state: state.to_string(),
            parent_span_id: parent.span_id.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id)),
            name,
            kind: kind.into(),
            start_time_unix_nano: now(),
            end_time_unix_nano: 0,
            attributes,
            events: Vec::new(),
            status: Some(otlp::Status::default()),
            flags: SAMPLED | KNOWS_PARENT | if parent.remote { REMOTE_PARENT } else { 0 },
        };
        Span { scope, span, context: Context { trace_id, span_id, state, tracer: tracer.clone() } }
    }

    /// For work within it.
    pub fn context(&self) -> Context {
        self.context.clone()
    }

    fn event(&mut self, name: &str) {
        self.span.events.push(Event { time_unix_nano: now(), name: name.to_owned() });
    }

    /// How the call ended. Only what the server is to blame for is an error, as OpenTelemetry has it.
    pub fn end(mut self, code: Code, message: &str) {
        self.span.attributes.push(text("rpc.response.status_code", code_name(code).as_bytes()));
        let blames_server = matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        if blames_server {
            self.span.status = Some(otlp::Status { message: message.to_owned(), code: StatusCode::Error.into() });
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.span.end_time_unix_nano = now();
        // A full queue costs the span: calls never wait for a collector.
        let _ = self.context.tracer.finished.try_send((self.scope, std::mem::take(&mut self.span)));
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// An attribute that is a text.
pub fn text(key: &str, value: &[u8]) -> KeyValue {
    attribute(key, Value::StringValue(String::from_utf8_lossy(value).into_owned()))
}

/// An attribute that is a number.
pub fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

/// An attribute that is true or false.
pub fn flag(key: &str, value: bool) -> KeyValue {
    attribute(key, Value::BoolValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(otlp::AnyValue { value: Some(value) }) }
}

/// What etcd tells of a transaction.
pub fn txn(compare: &[Compare], success: &[RequestOp], failures: usize, read_only: bool) -> Vec<KeyValue> {
    let ops = || success.iter().filter_map(|op| op.request.as_ref());
    let key = |op: &Op| match op {
        Op::RequestPut(put) => put.key.clone(),
        Op::RequestRange(range) => range.key.clone(),
        Op::RequestDeleteRange(delete) => delete.key.clone(),
        Op::RequestTxn(_) => Bytes::new(),
    };
    let kind = ops().next().map_or("", |op| match op {
        Op::RequestPut(_) => "put",
        Op::RequestRange(_) => "range",
        Op::RequestDeleteRange(_) => "delete_range",
        Op::RequestTxn(_) => "txn",
    });
    let lease = ops().find_map(|op| match op {
        Op::RequestPut(put) => Some(put.lease),
        _ => None,
    });
    let first_compared = compare.iter().map(|c| &c.key[..]).find(|key| !key.is_empty()).unwrap_or_default();
    let first_key = ops().map(key).find(|key| !key.is_empty()).unwrap_or_default();
    vec![
        text("compare_first_key", first_compared),
        text("success_first_key", &first_key),
        text("success_first_type", kind.as_bytes()),
        number("success_first_lease", lease.unwrap_or(-1)),
        number("compare_len", compare.len() as i64),
        number("success_len", success.len() as i64),
        number("failure_len", failures as i64),
        flag("read_only", read_only),
    ]
}

/// gRPC's own names of its codes.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(parent: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", "a=b".parse().unwrap());
        headers
    }

    #[test]
    fn a_caller_is_read_by_the_standard() {
        let good = "00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01";
        let read = caller(&headers(good)).unwrap();
        assert_eq!((read.trace_id[15], read.span_id[0], read.sampled, &*read.state), (16, 0x11, true, "a=b"));
        assert!(!caller(&headers(&good.replace("-01", "-00"))).unwrap().sampled);
        assert!(caller(&headers(&format!("01{}-more", &good[2..]))).is_some(), "a later version may say more");
        for bad in [
            "",
            &good[1..],
            &good.to_uppercase(),
            &format!("{good}-more"),
            &good.replace("-01", "-ff"),
            &good.replacen("00", "ff", 1),
            &good.replace("0102030405060708090a0b0c0d0e0f10", &"0".repeat(32)),
            &good.replace("1112131415161718", &"0".repeat(16)),
        ] {
            assert_eq!(caller(&headers(bad)), None, "{bad}");
        }
    }

    #[test]
    fn the_rate_is_of_a_million_traces() {
        assert_eq!((threshold(0), threshold(RATE_MAX)), (0, 1 << 63));
        assert!(!is_chosen(&[0; 16], threshold(0)) && is_chosen(&[255; 16], threshold(RATE_MAX)));
        let chosen = (0..10_000).filter(|_| is_chosen(&rand::random(), threshold(RATE_MAX / 2))).count();
        assert!((4_000..6_000).contains(&chosen), "{chosen}");
    }

    #[tokio::test]
    async fn work_in_a_call_is_below_it_and_what_is_not_sampled_costs_nothing() {
        let (finished, mut queue) = mpsc::channel(10);
        let tracer = Tracer { finished, threshold: 0 };
        let put = crate::method::METHODS[crate::method::find("/etcdserverpb.KV/Put").unwrap()];
        assert!(tracer.call(&put, &HeaderMap::new(), None).is_none());
        let parent = headers("00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01");
        let call = tracer.call(&put, &parent, None).unwrap();
        scope(Some(call.context()), async {
            let mut work = span("put", || vec![text("key", b"k")]);
            proposed(&mut work, async {}).await;
        })
        .await;
        call.end(Code::Unavailable, "no leader");
        let (work, call) = (queue.recv().await.unwrap().1, queue.recv().await.unwrap().1);
        assert_eq!(
            (work.name.as_str(), work.trace_id.clone(), &work.parent_span_id),
            ("put", call.trace_id, &call.span_id)
        );
        assert_eq!(
            work.events.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
            ["Send raft proposal", "Receive raft result"]
        );
        assert_eq!(call.parent_span_id[..2], [0x11, 0x12]);
        assert_eq!(call.status.unwrap().message, "no leader");
        assert!(span("put", || panic!("nobody asks")).is_none());
    }

    #[test]
    fn fuzz_traceparent() {
        let seeds = ["00-0102030405060708090a0b0c0d0e0f10-1112131415161718-01", "01-00-00-00-00"];
        ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "traceparent").seeds(seeds).words(&["-", "ff", "00"]).run(
            |bytes| {
                let mut headers = HeaderMap::new();
                headers.extend(
                    http::HeaderValue::from_bytes(bytes)
                        .ok()
                        .map(|v| (http::HeaderName::from_static("traceparent"), v)),
                );
                format!("{:?}", caller(&headers).map(|c| c.sampled))
            },
        );
    }
}
