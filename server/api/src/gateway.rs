//! etcd's HTTP/JSON gateway: a POST to a path of its table is the gRPC call of that path. The call goes through the
//! same door as everybody's, within the process, so every check, limit and metric of gRPC holds here as well.

mod body;
pub mod metadata;
mod parse;
mod raw;
mod routes;
mod scan;
pub mod websocket;
mod write;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::{
    HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, WWW_AUTHENTICATE},
};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::{Code, Status, Streaming, client::Grpc};

#[cfg(test)]
pub use self::metadata::timeout;

use self::{
    body::Messages,
    raw::Raw,
    routes::{Form, Route},
};

/// The gateway of one server.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// All gRPC services behind their gate.
    grpc: Router,
    routes: Arc<BTreeMap<&'static str, Route>>,
    /// Calls under way. etcd's gateway has one gRPC connection, so the bound on a connection's streams holds for all
    /// of its calls together; one above it waits.
    calls: Arc<Semaphore>,
    /// Longest JSON value in bytes.
    json_bytes: usize,
}

impl Gateway {
    /// A gateway to these services. A message may have `message_bytes` bytes; `calls_max` calls are under way at most.
    pub fn new(grpc: Router, message_bytes: usize, calls_max: u32) -> Self {
        let calls = usize::try_from(calls_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Gateway {
            grpc,
            routes: Arc::new(routes::table()),
            calls: Arc::new(Semaphore::new(calls)),
            // Base64 makes a third more of bytes, and names and numbers more of small messages. What is longer than
            // this is too long a message in any spelling that a client uses.
            json_bytes: message_bytes.saturating_mul(2),
        }
    }

    /// Answers a request for this path, which is decoded and below `/v3/`.
    pub async fn answer(&self, path: &str, request: Request) -> Response {
        let Some(route) = self.routes.get(path) else { return refusal(&Status::not_found("Not Found")) };
        if !is_post(&request) {
            return refusal(&Status::unimplemented("Method Not Allowed"));
        }
        let (parts, body) = request.into_parts();
        let timeout = match metadata::timeout(&parts.headers) {
            Ok(timeout) => timeout,
            Err(status) => return refusal(&status),
        };
        let messages = Messages::new(body, route.input.clone(), self.json_bytes);
        let call = Call {
            client: Grpc::new(self.grpc.clone()).max_decoding_message_size(usize::MAX),
            route: route.clone(),
            metadata: metadata::of(&parts.headers),
            end: Deadline::after(timeout),
            calls: self.calls.clone(),
        };
        match route.form {
            Form::Unary => call.unary(messages).await,
            Form::Answers => match messages.only().await {
                Ok(message) => call.stream(stream::once(async { message }), pending().boxed()).await,
                Err(status) => refusal(&status),
            },
            Form::Both => {
                let (messages, gone) = messages.all();
                call.stream(messages, gone).await
            }
        }
    }
}

/// A form that asks to be taken as another method is taken as that, as grpc-gateway does.
fn is_post(request: &Request) -> bool {
    let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes).filter(|v| !v.is_empty());
    let form = header("content-type") == Some(b"application/x-www-form-urlencoded");
    let other = form.then(|| header("x-http-method-override")).flatten();
    request.method() == Method::POST && other.is_none_or(|method| method.eq_ignore_ascii_case(b"POST"))
}

/// One call under way.
struct Call {
    client: Grpc<Router>,
    route: Route,
    metadata: tonic::metadata::MetadataMap,
    end: Deadline,
    calls: Arc<Semaphore>,
}

impl Call {
    /// Its place among the calls, kept until its answer ends. It is taken when the request is there: a client that sends
    /// half of one must not keep others out.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.calls.clone().acquire_owned().await.ok()
    }

    async fn unary(mut self, messages: Messages) -> Response {
        let message = match messages.only().await {
            Ok(message) => message,
            Err(status) => return refusal(&status),
        };
        let _place = self.place().await;
        let request = tonic::Request::from_parts(self.metadata, http::Extensions::new(), message);
        let call = async {
            self.client.ready().await.map_err(unready)?;
            self.client.unary(request, self.route.method, Raw).await
        };
        let answer = self.end.bound(call).await.flatten().map(tonic::Response::into_inner);
        let mut text = String::new();
        match answer.and_then(|answer| json(&mut text, &self.route.output, answer, false)) {
            Ok(()) => (headers(true), text).into_response(),
            Err(status) => refusal(&status),
        }
    }

    /// A stream of answers, a line each. The status and the headers wait for the first one, since an error before it
    /// is the status.
    async fn stream(
        mut self,
        messages: impl stream::Stream<Item = Bytes> + Send + 'static,
        mut gone: BoxFuture<'static, ()>,
    ) -> Response {
        let place = self.place().await;
        let request = tonic::Request::from_parts(self.metadata, http::Extensions::new(), messages);
        let first = async {
            self.client.ready().await.map_err(unready)?;
            let mut answers = self.client.streaming(request, self.route.method, Raw).await?.into_inner();
            let first = answers.message().await?;
            Ok(first.map(|first| (first, answers)))
        };
        let first = tokio::select! {
            first = self.end.bound(first) => first.flatten(),
            // Nobody reads this.
            () = &mut gone => return StatusCode::BAD_REQUEST.into_response(),
        };
        let (first, answers) = match first {
            Ok(Some(begun)) => begun,
            Ok(None) => return StatusCode::OK.into_response(),
            Err(status) => return (http_status(status.code()), headers(false), error_line(&status)).into_response(),
        };
        let lines = Lines { answers, kind: self.route.output, end: self.end, gone, _place: place };
        let first = match lines.line(first) {
            Ok(line) => line,
            Err(status) => return (http_status(status.code()), headers(false), error_line(&status)).into_response(),
        };
        let rest = stream::unfold(Some(lines), |lines| async {
            let mut lines = lines?;
            match lines.next().await {
                Ok(line) => line.map(|line| (line, Some(lines))),
                Err(status) => Some((error_line(&status), None)),
            }
        });
        let body = stream::once(async { first }).chain(rest).map(|line| Ok::<_, Infallible>(Bytes::from(line)));
        (headers(true), Body::from_stream(body)).into_response()
    }
}

/// The answers of a stream as lines. The next answer is taken when its line is asked for, so a client that reads
/// slowly holds one line here.
struct Lines {
    answers: Streaming<Bytes>,
    kind: MessageDescriptor,
    end: Deadline,
    gone: BoxFuture<'static, ()>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<String>, Status> {
        let answer = tokio::select! {
            answer = self.end.bound(self.answers.message()) => answer.flatten()?,
            () = &mut self.gone => return Ok(None),
        };
        answer.map(|answer| self.line(answer)).transpose()
    }

    fn line(&self, answer: Bytes) -> Result<String, Status> {
        let mut line = "{\"result\":".to_owned();
        json(&mut line, &self.kind, answer, true)?;
        line += "}\n";
        Ok(line)
    }
}

/// When a call is over, whatever it does.
#[derive(Clone, Copy, Debug)]
struct Deadline(Option<Instant>);

impl Deadline {
    fn after(timeout: Option<Duration>) -> Self {
        // One beyond what the clock can count is none.
        Deadline(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    async fn bound<F: Future>(self, work: F) -> Result<F::Output, Status> {
        let Some(end) = self.0 else { return Ok(work.await) };
        let late = || Status::deadline_exceeded("context deadline exceeded");
        // Looked at first: a call without time left does nothing, however quick it would be.
        if end <= Instant::now() {
            return Err(late());
        }
        tokio::time::timeout_at(end, work).map(|ended| ended.map_err(|_| late())).await
    }
}

fn unready(error: Infallible) -> Status {
    match error {}
}

/// Writes an encoded message as JSON behind what is there.
fn json(text: &mut String, kind: &MessageDescriptor, message: Bytes, in_stream: bool) -> Result<(), Status> {
    // What bytes become in base64; a large answer is not copied from one string into a larger one again and again.
    text.reserve(message.len() / 3 * 4);
    let message = DynamicMessage::decode(kind.clone(), message)
        .map_err(|e| Status::internal(format!("ferretcd: an answer cannot be read: {e}")))?;
    write::message(text, &message, in_stream);
    Ok(())
}

type Headers = [(http::HeaderName, HeaderValue); 1];

/// Headers of an answer. One that came out of a call has the call's own content type among them, as grpc-gateway
/// passes it on.
fn headers(from_call: bool) -> (Headers, Option<Headers>) {
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let name = http::HeaderName::from_static("grpc-metadata-content-type");
    (json, from_call.then(|| [(name, HeaderValue::from_static("application/grpc"))]))
}

/// An answer that is an error.
fn refusal(status: &Status) -> Response {
    let mut response = (http_status(status.code()), headers(false), error(status, false)).into_response();
    if let (Code::Unauthenticated, Ok(text)) = (status.code(), HeaderValue::from_str(status.message())) {
        response.headers_mut().insert(WWW_AUTHENTICATE, text);
    }
    response
}

/// `google.rpc.Status` in JSON; none of etcd's errors has details.
fn error(status: &Status, in_stream: bool) -> String {
    let mut json = format!("{{\"code\":{}", i32::from(status.code()));
    if !status.message().is_empty() {
        json += ",\"message\":";
        write::text(&mut json, status.message(), in_stream);
    }
    json + "}"
}

fn error_line(status: &Status) -> String {
    format!("{{\"error\":{}}}\n", error(status, true))
}

/// grpc-gateway's table.
fn http_status(code: Code) -> StatusCode {
    let status = match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_a_request_keeps_nobody_out() {
        let gateway = Gateway::new(Router::new(), 100, 1);
        let put = |body: Body| {
            let request = http::Request::post("/v3/kv/put").body(body).unwrap();
            gateway.answer("/v3/kv/put", request)
        };
        let half = stream::once(async { Ok::<_, Infallible>("{\"key\":") }).chain(stream::pending());
        let mut waiting = Box::pin(put(Body::from_stream(half)));
        assert!(futures::poll!(&mut waiting).is_pending());
        let other = tokio::time::timeout(Duration::from_secs(30), put(Body::from("{}"))).await;
        assert!(other.is_ok(), "it waits for a place");
    }
}
