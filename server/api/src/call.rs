//! What every gRPC call passes on its way in and out: may it come in, how does it end, and does its stream outlive
//! the loss of the leader.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use ferretcd_node::{Credential, Standing};
use ferretcd_types::Error;
use http::{Extensions, HeaderMap};
use http_body::{Body as HttpBody, Frame};
use prometheus::IntCounter;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::{Code, Status};

use crate::{
    cert::CertName,
    member::Member,
    method::{self, Asks, Kind, METHODS, Method},
    metrics::{Call, CallMetrics, Messages},
    slow::{Remote, Stopwatch},
    status::{from_error, from_receive},
    trace::{self, Local, Tracer},
};

/// The gate that all calls pass.
#[derive(Clone, Debug)]
pub struct Gate<M> {
    /// Whose door it is.
    pub member: M,
    /// Where calls are counted.
    pub metrics: CallMetrics,
    /// How often a stream that wants a leader looks for one.
    pub election_timeout: Duration,
    /// A unary call that takes longer is mentioned in the log.
    pub warning_unary: Duration,
    /// Traces calls, if that is asked for.
    pub tracer: Option<Tracer>,
    /// Calls under way that a stop waits for.
    pub under_way: TaskTracker,
}

/// Times that a stream looks for a leader in vain before it ends (etcd's number: a new election may fail once or twice).
const LEADERLESS_TIMEOUTS_MAX: u32 = 3;

/// Lets one call through the gate. Meant for [`axum::middleware::from_fn_with_state`].
pub async fn pass<M: Member>(State(gate): State<Gate<M>>, mut request: Request, next: Next) -> Response {
    let position = match method::find(request.uri().path()) {
        Ok(position) => position,
        Err(text) => return Status::unimplemented(text).into_http(),
    };
    let method = METHODS[position];
    let under_way = method::ends_by_itself(&method).then(|| gate.under_way.token());
    let local = request.extensions().get::<Local>().copied();
    let span = gate.tracer.as_ref().and_then(|tracer| tracer.call(&method, request.headers(), local));
    let mut call = gate.metrics.start(position).traced(span);
    let watch = (method.kind == Kind::Unary).then(|| {
        let remote = request.extensions().get::<Remote>().cloned();
        Stopwatch::start(gate.warning_unary, method, remote)
    });
    let credential = credential(request.headers(), request.extensions());
    let admitted = match gate.admit(&method, request.headers()) {
        Ok(()) => gate.let_in(&method, &credential).await,
        refused => refused,
    };
    if let Err(error) = admitted {
        let status = from_error(error);
        call.end(status.code(), status.message());
        return status.into_http();
    }

    if credential != Credential::None {
        request.extensions_mut().insert(credential);
    }
    let lost = (method.kind != Kind::Unary && wants_leader(request.headers())).then(|| gate.leader_lost());
    let (bytes, messages) = (gate.metrics.received_bytes(), gate.metrics.received_messages(position));
    let timed = watch.as_ref().map(Stopwatch::request_bytes);
    let request = request.map(|body| Body::new(Counted { timed, ..Counted::new(body, bytes, messages) }));
    let response = trace::scope(call.context(), next.run(request)).await;

    // An answer that is nothing but a status has it among its headers.
    if let Some(status) = Status::from_header_map(response.headers()) {
        let status = from_receive(status);
        call.end(status.code(), status.message());
        return status.into_http();
    }
    response.map(|body| {
        let body = Counted::new(body, gate.metrics.sent_bytes(), gate.metrics.sent_messages(position));
        Body::new(Answer { body, call, watch, lost, method, metrics: gate.metrics.clone(), _under_way: under_way })
    })
}

impl<M: Member> Gate<M> {
    /// Counts the client, then says whether the call may come in.
    fn admit(&self, method: &Method, headers: &HeaderMap) -> Result<(), Error> {
        let version = headers.get("client-api-version").map(|v| std::str::from_utf8(v.as_bytes()));
        let version = version.transpose().map_err(|_| Error::InvalidClientApiVersion)?;
        self.metrics.count_client(method.kind, version);
        if self.member.is_learner() && !method::serves_on_learner(method) {
            return Err(Error::NotSupportedForLearner);
        }
        if wants_leader(headers) && !self.member.has_leader() {
            return Err(Error::NoLeader);
        }
        Ok(())
    }

    /// Whether the caller is what the method asks for. (What depends on the request's content is looked at later.)
    async fn let_in(&self, method: &Method, credential: &Credential) -> Result<(), Error> {
        let standing = match method.asks {
            Asks::Nothing | Asks::Below => return Ok(()),
            Asks::User => Standing::User,
            Asks::Root => Standing::Root,
        };
        self.member.require(credential.clone(), standing).await
    }

    /// Ends when there has been no leader for a while.
    fn leader_lost(&self) -> LeaderLost {
        let (member, period) = (self.member.clone(), self.election_timeout);
        Box::pin(async move {
            let mut missing = 0;
            while missing < LEADERLESS_TIMEOUTS_MAX {
                tokio::time::sleep(period).await;
                missing = if member.has_leader() { 0 } else { missing + 1 };
            }
        })
    }
}

/// Who asks, as far as the call says so: clientv3 sends `token`, others `authorization`.
fn credential(headers: &HeaderMap, extensions: &Extensions) -> Credential {
    if let Some(token) = headers.get("token").or_else(|| headers.get("authorization")) {
        // What is no text is no token, and no reason to take the caller for nobody.
        let token = token.to_str().unwrap_or_default();
        return Credential::Token(token.strip_prefix("Bearer ").unwrap_or(token).into());
    }
    match extensions.get::<CertName>() {
        // The gateway's own certificate says nothing about its clients.
        Some(CertName(name)) if !headers.contains_key("grpcgateway-accept") => {
            Credential::CertName(name.as_str().into())
        }
        _ => Credential::None,
    }
}

/// Clients say so with `hasleader: true`; kube-apiserver does for every watch.
fn wants_leader(headers: &HeaderMap) -> bool {
    headers.get("hasleader").is_some_and(|v| v == "true")
}

type LeaderLost = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer on its way out: sees the status at its end, and ends it itself when the leader is lost.
struct Answer {
    body: Counted,
    call: Call,
    /// Of a unary call.
    watch: Option<Stopwatch>,
    lost: Option<LeaderLost>,
    method: Method,
    metrics: CallMetrics,
    /// Until the last of it is taken.
    _under_way: Option<TaskTrackerToken>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.call.has_ended() {
            return Poll::Ready(None);
        }
        if this.lost.as_mut().is_some_and(|lost| lost.as_mut().poll(cx).is_ready()) {
            let status = from_error(Error::NoLeader);
            this.call.end(status.code(), status.message());
            this.metrics.count_leaderless(&this.method);
            let trailers = status.into_http::<()>().into_parts().0.headers;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(watch), Some(data)) = (&mut this.watch, frame.data_ref()) {
                    watch.answers(data.len());
                }
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    this.call.end(status.code(), status.message());
                }
            }
            // tonic always ends with trailers; anything else is a call that broke off.
            Some(Err(_)) | None => this.call.end(Code::Internal, "the answer broke off"),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.call.has_ended()
    }
}

/// A body whose bytes and messages are counted as they pass.
struct Counted {
    body: Body,
    bytes: IntCounter,
    messages: Option<IntCounter>,
    seen: Messages,
    /// Of a call whose own bytes are asked for.
    timed: Option<Arc<AtomicU64>>,
}

impl Counted {
    fn new(body: Body, bytes: IntCounter, messages: Option<IntCounter>) -> Self {
        Counted { body, bytes, messages, seen: Messages::default(), timed: None }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.bytes.inc_by(data.len() as u64);
            if let Some(timed) = &this.timed {
                timed.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            if let Some(messages) = &this.messages {
                messages.inc_by(this.seen.count(data));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware};
    use ferretcd_proto::health::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
        health_server::HealthServer,
    };
    use prometheus::{Registry, TextEncoder};
    use tonic::metadata::MetadataValue;

    use super::*;
    use crate::{
        grpc::health::{HealthService, Serving},
        member::Fake,
    };

    /// Headers of calls and of requests to the gateway, whatever they say.
    #[test]
    fn fuzz_headers() {
        use crate::{gateway, http::gzip};
        let seeds = [
            "token: a.1\nclient-api-version: 3.7.1\nhasleader: true",
            "authorization: Bearer a.1\ngrpc-timeout: 10S\ngrpc-metadata-x: y\naccept-encoding: gzip;q=0.5, *;q=0",
            "cookie: a=b; token=t\nsec-websocket-protocol: Bearer, t\nupgrade: websocket\ngrpc-timeout: 99999999H",
        ];
        let words = [
            "grpc-timeout: ",
            "token",
            "Bearer",
            "cookie: ",
            "\n",
            ": ",
            "-9223372036854775808H",
            ";q=",
            "NaN",
            "-bin",
        ];
        ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "headers").seeds(seeds).words(&words).run(|bytes| {
            let mut headers = HeaderMap::new();
            for line in bytes.split(|b| *b == b'\n') {
                let at = line.windows(2).position(|pair| pair == b": ").unwrap_or(line.len());
                let (name, value) = (line.get(..at).unwrap_or_default(), line.get(at + 2..).unwrap_or_default());
                if let (Ok(name), Ok(value)) =
                    (http::HeaderName::from_bytes(name), http::HeaderValue::from_bytes(value))
                {
                    headers.append(name, value);
                }
            }
            let credential = credential(&headers, &Extensions::new());
            let taken = gateway::metadata::of(&headers);
            assert!(taken.len() <= headers.len());
            format!(
                "{credential:?} {} {:?} {taken:?} {:?} {} {}",
                wants_leader(&headers),
                gateway::timeout(&headers).map_err(|status| status.message().to_owned()),
                gateway::websocket::token(&headers),
                gateway::websocket::is_wanted(&headers),
                gzip::is_wanted(&headers),
            )
        });
    }

    /// The health service behind a gate: the one service that needs no member of its own.
    struct Door {
        router: Router,
        registry: Registry,
    }

    /// Requests above this many bytes are refused.
    const MESSAGE_BYTES: usize = 16;

    impl Door {
        fn of(member: &Fake) -> Self {
            let registry = Registry::new();
            let metrics = CallMetrics::register(&registry, false).unwrap();
            let gate = Gate {
                member: member.clone(),
                metrics,
                election_timeout: Duration::from_secs(1),
                warning_unary: Duration::from_secs(1),
                tracer: None,
                under_way: TaskTracker::new(),
            };
            let server = HealthServer::new(HealthService { serving: Serving::new(false) })
                .max_decoding_message_size(MESSAGE_BYTES);
            let router = crate::service(server).layer(middleware::from_fn_with_state(gate, pass::<Fake>));
            Door { router: router.fallback(crate::unknown), registry }
        }

        async fn check(&self, request: tonic::Request<HealthCheckRequest>) -> Result<ServingStatus, Status> {
            let answer = HealthClient::new(self.router.clone()).check(request).await?;
            Ok(answer.into_inner().status())
        }

        fn counted(&self, method: &str, code: &str) -> bool {
            let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
            let labels =
                format!("grpc_code=\"{code}\",grpc_method=\"{method}\",grpc_service=\"grpc.health.v1.Health\"");
            let line = |l: &str| l.starts_with(&format!("grpc_server_handled_total{{{labels}")) && l.ends_with(" 1");
            text.lines().any(line)
        }
    }

    fn request() -> tonic::Request<HealthCheckRequest> {
        tonic::Request::new(HealthCheckRequest::default())
    }
    fn with(name: &'static str, value: &'static str) -> tonic::Request<HealthCheckRequest> {
        let mut request = request();
        request.metadata_mut().insert(name, MetadataValue::from_static(value));
        request
    }
    fn refusal(error: Error) -> (Code, String) {
        (from_error(error.clone()).code(), error.to_string())
    }
    fn told(status: Status) -> (Code, String) {
        (status.code(), status.message().to_owned())
    }

    #[tokio::test]
    async fn a_call_is_answered_and_counted() {
        let door = Door::of(&Fake::healthy());
        assert_eq!(door.check(with("client-api-version", "3.7.0")).await.unwrap(), ServingStatus::Serving);
        assert!(door.counted("Check", "OK"));
        let text = TextEncoder::new().encode_to_string(&door.registry.gather()).unwrap();
        assert!(text.contains(r#"etcd_server_client_requests_total{client_api_version="3.7.0",type="unary"} 1"#));
        // An empty message in, two bytes of answer out, each behind five bytes of frame.
        assert!(text.contains("\netcd_network_client_grpc_received_bytes_total 5\n"));
        assert!(text.contains("\netcd_network_client_grpc_sent_bytes_total 7\n"));
    }

    #[tokio::test]
    async fn who_wants_a_leader_is_told_that_there_is_none() {
        let door = Door::of(&Fake::healthy().leaderless());
        let status = door.check(with("hasleader", "true")).await.unwrap_err();
        assert_eq!(told(status), refusal(Error::NoLeader));
        assert!(door.counted("Check", "Unavailable"));
        assert_eq!(door.check(request()).await.unwrap(), ServingStatus::Serving);
    }

    #[test]
    fn a_token_says_who_asks_before_a_certificate_does() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(n, v)| (http::HeaderName::from_static(n), http::HeaderValue::from_static(v))).collect()
        };
        let mut certified = Extensions::new();
        certified.insert(CertName("alice".into()));
        let token = |text: &str| Credential::Token(text.into());
        for (pairs, expected) in [
            (&[("token", "a.1")][..], token("a.1")),
            (&[("authorization", "Bearer a.1")], token("a.1")),
            (&[("authorization", "a.1")], token("a.1")),
            (&[("authorization", "bearer a.1")], token("bearer a.1")),
            (&[("token", "a.1"), ("authorization", "b.2")], token("a.1")),
            (&[("token", "")], token("")),
            (&[("grpcgateway-accept", "*/*")], Credential::None),
            (&[], Credential::CertName("alice".into())),
        ] {
            assert_eq!(credential(&headers(pairs), &certified), expected, "{pairs:?}");
        }
        assert_eq!(credential(&headers(&[]), &Extensions::new()), Credential::None);
    }

    #[tokio::test]
    async fn the_gate_asks_for_root_before_the_request_is_read() {
        let method = |path: &str| METHODS[method::find(path).unwrap()];
        let metrics = CallMetrics::register(&Registry::new(), false).unwrap();
        let door = Gate {
            member: Fake::healthy(),
            metrics,
            election_timeout: Duration::from_secs(1),
            warning_unary: Duration::from_secs(1),
            tracer: None,
            under_way: TaskTracker::new(),
        };
        let token = |name: &str| Credential::Token(name.into());
        let snapshot = method("/etcdserverpb.Maintenance/Snapshot");
        assert_eq!(door.let_in(&snapshot, &Credential::None).await, Err(Error::UserEmpty));
        assert_eq!(door.let_in(&snapshot, &token("alice")).await, Err(Error::PermissionDenied));
        assert_eq!(door.let_in(&snapshot, &token("root")).await, Ok(()));
        let status = method("/etcdserverpb.Maintenance/Status");
        assert_eq!(door.let_in(&status, &token("alice")).await, Ok(()));
        assert_eq!(door.let_in(&status, &Credential::None).await, Err(Error::UserEmpty));
        assert_eq!(door.let_in(&method("/etcdserverpb.Auth/Authenticate"), &Credential::None).await, Ok(()));
    }

    #[tokio::test]
    async fn a_learner_refuses_other_calls() {
        let door = Door::of(&Fake::learner());
        let status = door.check(request()).await.unwrap_err();
        assert_eq!(told(status), refusal(Error::NotSupportedForLearner));
    }

    #[tokio::test]
    async fn a_version_that_is_no_text_is_refused() {
        let door = Door::of(&Fake::healthy());
        let mut headers = HeaderMap::new();
        headers.insert("client-api-version", http::HeaderValue::from_bytes(b"\xff").unwrap());
        let request = tonic::Request::from_parts(
            tonic::metadata::MetadataMap::from_headers(headers),
            http::Extensions::new(),
            HealthCheckRequest::default(),
        );
        assert_eq!(told(door.check(request).await.unwrap_err()), refusal(Error::InvalidClientApiVersion));
    }

    #[tokio::test]
    async fn a_message_above_the_limit_is_resource_exhausted() {
        let door = Door::of(&Fake::healthy());
        let request = HealthCheckRequest { service: "x".repeat(MESSAGE_BYTES) };
        let status = door.check(tonic::Request::new(request)).await.unwrap_err();
        let text = "grpc: received message larger than max (18 vs. 16)".to_owned();
        assert_eq!(told(status), (Code::ResourceExhausted, text));
        assert!(door.counted("Check", "ResourceExhausted"));
    }

    #[tokio::test]
    async fn services_that_are_not_there() {
        use ferretcd_proto::peer::{ProbeRequest, peer_client::PeerClient};
        let door = Door::of(&Fake::healthy());
        let status = PeerClient::new(door.router.clone()).probe(ProbeRequest::default()).await.unwrap_err();
        assert_eq!(told(status), (Code::Unimplemented, "unknown service ferretcd.peer.v1.Peer".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_wants_a_leader_ends_some_time_after_it_is_lost() {
        let member = Fake::healthy();
        let door = Door::of(&member);
        let mut client = HealthClient::new(door.router.clone());
        let mut patient = client.watch(request()).await.unwrap().into_inner();
        let mut wanting = client.watch(with("hasleader", "true")).await.unwrap().into_inner();
        assert!(wanting.message().await.unwrap().is_some());
        let start = tokio::time::Instant::now();
        member.lose_leader();
        assert_eq!(told(wanting.message().await.unwrap_err()), refusal(Error::NoLeader));
        assert_eq!(start.elapsed().as_secs(), u64::from(LEADERLESS_TIMEOUTS_MAX));
        assert!(door.counted("Watch", "Unavailable"));

        // The other one never asked; it ends when its client goes, which counts as cancelled.
        assert!(patient.message().await.unwrap().is_some());
        assert!(!door.counted("Watch", "Canceled"));
        drop(patient);
        assert!(door.counted("Watch", "Canceled"));
    }
}
