//! The gateway over a WebSocket, for browsers, which cannot send a request's body piece by piece otherwise: every
//! message is a piece of the body, and every line of the answer is a message.

use std::convert::Infallible;

use axum::{
    body::{Body, BodyDataStream},
    extract::{
        FromRequestParts, Request,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};
use tokio::sync::mpsc;

use super::Gateway;

/// True for a request to go on as a WebSocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers the request and goes on as a WebSocket behind the answer. The call is a POST, whatever the request was.
pub async fn upgrade(gateway: Gateway, path: String, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade.max_message_size(gateway.json_bytes).max_frame_size(gateway.json_bytes),
        Err(refusal) => return refusal.into_response(),
    };
    let token = token(&parts.headers);
    // etcd takes up the protocol that carries a token, and no other.
    upgrade.protocols(["Bearer"]).on_upgrade(move |socket| serve(socket, gateway, path, token))
}

/// Browsers cannot set `Authorization`: the token comes as a protocol (`Bearer, <token>`) or as the cookie `token`.
pub fn token(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|v| v.to_str().ok());
    let protocol = protocol.and_then(|p| p.split_once("Bearer,")).map(|(_, token)| token.trim_matches(' '));
    let cookies = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    let cookie = cookies.filter_map(|c| c.trim().split_once('=')).find_map(|(name, v)| (name == "token").then_some(v));
    HeaderValue::from_str(&format!("Bearer {}", cookie.or(protocol)?)).ok()
}

async fn serve(mut socket: WebSocket, gateway: Gateway, path: String, token: Option<HeaderValue>) {
    // One piece is being read by the call, and one waits in `piece`: a client that sends faster is not read.
    let (pieces, received) = mpsc::channel::<Bytes>(1);
    let body = stream::unfold(received, |mut received| async {
        Some((Ok::<_, Infallible>(received.recv().await?), received))
    });
    let mut request = Request::new(Body::from_stream(body));
    *request.method_mut() = Method::POST;
    request.headers_mut().extend(token.map(|token| (AUTHORIZATION, token)));

    let answer = async {
        Lines { body: gateway.answer(&path, request).await.into_body().into_data_stream(), left: BytesMut::new() }
    };
    tokio::pin!(answer);
    let mut lines = None;
    let mut piece: Option<Bytes> = None;
    loop {
        let next = async {
            match &mut lines {
                Some(lines) => Next::Line(Lines::next(lines).await),
                None => Next::Begun(answer.as_mut().await),
            }
        };
        tokio::select! {
            next = next => match next {
                Next::Begun(begun) => lines = Some(begun),
                Next::Line(Some(line)) => if socket.send(Message::Text(line)).await.is_err() { return },
                Next::Line(None) => return,
            },
            message = socket.recv(), if piece.is_none() => match message {
                Some(Ok(Message::Text(text))) => piece = Some(ended(text.as_bytes())),
                Some(Ok(Message::Binary(bytes))) => piece = Some(ended(&bytes)),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
            place = pieces.reserve(), if piece.is_some() => match (place, piece.take()) {
                (Ok(place), Some(piece)) => place.send(piece),
                // The call does not read on; its answer says why.
                _ => piece = None,
            },
        }
    }
}

/// A message is a piece of the body with a line's end behind it.
fn ended(message: &[u8]) -> Bytes {
    [message, b"\n"].concat().into()
}

enum Next {
    Begun(Lines),
    Line(Option<axum::extract::ws::Utf8Bytes>),
}

/// The lines of an answer.
struct Lines {
    body: BodyDataStream,
    left: BytesMut,
}

impl Lines {
    /// The next line that is not empty, without its end.
    async fn next(&mut self) -> Option<axum::extract::ws::Utf8Bytes> {
        loop {
            let line = match self.left.iter().position(|b| *b == b'\n') {
                Some(end) => self.left.split_to(end + 1),
                None => match self.body.next().await {
                    Some(Ok(bytes)) => {
                        self.left.extend_from_slice(&bytes);
                        continue;
                    }
                    Some(Err(_)) | None if self.left.is_empty() => return None,
                    Some(Err(_)) | None => self.left.split(),
                },
            };
            let line = line.freeze();
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if !text.is_empty() {
                return String::from_utf8(text.to_vec()).ok().map(Into::into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a client, with the mask that changes nothing.
    fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
        [&[head, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
    }

    /// What comes behind the handshake: frames, and JSON in them.
    #[test]
    fn fuzz_websocket() {
        use axum::{Router, routing::any};
        use hyper_util::{rt::TokioIo, service::TowerToHyperService};
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        const HELLO: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        // The call reads all that comes, and says how much it was.
        let read = Arc::new(AtomicUsize::new(0));
        let count = read.clone();
        let grpc = Router::new().fallback(move |request: Request| {
            let count = count.clone();
            async move {
                let mut body = request.into_body().into_data_stream();
                while let Some(Ok(piece)) = body.next().await {
                    count.fetch_add(piece.len(), Ordering::Relaxed);
                }
            }
        });
        let gateway = Gateway::new(grpc, 1000, 1);
        let door = any(move |request: Request| upgrade(gateway.clone(), "/v3/watch".to_owned(), request));
        let door = TowerToHyperService::new(Router::new().fallback(door));
        let watch = br#"{"create_request":{"key":"Zm9v"}}"#;
        let seeds = [
            frame(0x81, watch),
            [frame(0x01, &watch[..9]), frame(0x89, b"ping"), frame(0x80, &watch[9..])].concat(),
            [frame(0x82, b"{}{} []"), frame(0x88, b"\x03\xe8bye")].concat(),
            frame(0x81, b"nonsense"),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "websocket").seeds(seeds);
        fuzz.words(&["\u{1}", "{}", "\n"]).quick(400).run(|bytes| {
            runtime.block_on(async {
                let (mut client, server) = tokio::io::duplex(HELLO.len() + bytes.len() + 4096);
                let served =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), door.clone());
                let served = tokio::spawn(served.with_upgrades());
                client.write_all(HELLO).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
                served.await.unwrap().unwrap();
                read.store(0, Ordering::Relaxed);
                // The server may have hung up by then.
                let _ = client.write_all(bytes).await;
                let _ = client.shutdown().await;
                let mut frames = Vec::new();
                client.read_to_end(&mut frames).await.unwrap();
                format!("{} {}", "x".repeat(read.load(Ordering::Relaxed).min(60) / 5), frames.escape_ascii())
            })
        });
    }

    #[test]
    fn a_token_comes_as_a_protocol_or_a_cookie() {
        let told = |name: http::HeaderName, value: &'static str| {
            token(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]))
        };
        assert_eq!(told(SEC_WEBSOCKET_PROTOCOL, "Bearer, t.1").unwrap(), "Bearer t.1");
        assert_eq!(told(SEC_WEBSOCKET_PROTOCOL, "Bearer,t.1").unwrap(), "Bearer t.1");
        assert_eq!(told(COOKIE, "a=b; token=t.2").unwrap(), "Bearer t.2");
        assert_eq!(told(COOKIE, "a=b"), None);
        assert_eq!(told(SEC_WEBSOCKET_PROTOCOL, "other"), None);
    }
}
