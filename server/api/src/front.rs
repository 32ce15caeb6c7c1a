//! The first door of a client listener: gRPC by its content type, everything else by path, behind etcd's checks of
//! who asks from where (`--host-whitelist`, `--cors`).

use std::{collections::BTreeSet, fmt, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri, Version,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION,
        CONTENT_TYPE, HOST, LOCATION, ORIGIN,
    },
};
use tower::ServiceExt;

use crate::{
    cert::CertName,
    gateway::{Gateway, websocket},
    http::{not_found, text},
};

/// Who may ask by HTTP. Says nothing about gRPC, to which browsers do not get.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Origins that browsers may ask from (`--cors`); empty or with `*`: all.
    pub origins: BTreeSet<String>,
    /// Names that clients may call this server by (`--host-whitelist`); empty or with `*`: all.
    pub hosts: BTreeSet<String>,
}

impl Access {
    /// What the answer says about the origin: `*` if all may ask.
    fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if is_in(&self.origins, "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = headers.get(ORIGIN)?;
        origin.to_str().is_ok_and(|o| is_in(&self.origins, o)).then(|| origin.clone())
    }

    /// A request by a name that this server does not know it has may be another site's script (CVE-2018-5702).
    fn refuses(&self, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let named = headers.get(HOST).and_then(|h| h.to_str().ok());
        let named = uri.authority().map(|a| a.as_str()).or(named).unwrap_or_default();
        let host = without_port(named);
        if is_in(&self.hosts, host) {
            return None;
        }
        tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
        Some(text(StatusCode::MISDIRECTED_REQUEST, misdirected(host)))
    }
}

fn is_in(list: &BTreeSet<String>, name: &str) -> bool {
    list.is_empty() || list.contains("*") || list.contains(name)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) if name.starts_with('[') && name.ends_with(']') => name.trim_matches(['[', ']']),
        Some((name, _)) if !name.contains(':') => name,
        _ => host,
    }
}

/// etcd's words, line by line.
fn misdirected(host: &str) -> String {
    [
        "",
        "etcd received your request, but the Host header was unrecognized.",
        "",
        "To fix this, choose one of the following options:",
        "- Enable TLS, then any HTTPS request will be allowed.",
        "- Add the hostname you want to use to the whitelist in settings.",
        &format!("  - e.g. etcd --host-whitelist {host:?}"),
        "",
        "This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).",
        "",
        "",
    ]
    .join("\n")
}

/// What is behind the first door.
#[derive(Clone, Debug)]
pub struct Front {
    /// All gRPC services.
    pub grpc: Router,
    /// Probes, version, metrics.
    pub http: Router,
    /// The JSON gateway, unless it is switched off.
    pub gateway: Option<Gateway>,
    /// Who may ask by HTTP.
    pub access: Access,
    /// Whether calls are in a user's name.
    pub auth: AuthSwitch,
}

/// Tells whether authentication is on at this moment.
#[derive(Clone)]
pub struct AuthSwitch(pub Arc<dyn Fn() -> bool + Send + Sync>);

impl fmt::Debug for AuthSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthSwitch").field(&(self.0)()).finish()
    }
}

/// All of it as one router.
pub fn router(front: Front) -> Router {
    Router::new().fallback(pass).with_state(front)
}

/// All of it but gRPC.
pub fn http_router(front: Front) -> Router {
    Router::new().fallback(pass_http).with_state(front)
}

async fn pass(State(front): State<Front>, request: Request) -> Response {
    if is_grpc(&request) {
        return through(front.grpc, request).await;
    }
    pass_http(State(front), request).await
}

async fn pass_http(State(front): State<Front>, request: Request) -> Response {
    if let Some(why) = malformed(&request) {
        return ([(CONNECTION, "close")], text(StatusCode::BAD_REQUEST, why)).into_response();
    }
    if let Some(refusal) = front.access.refuses(request.uri(), request.headers()) {
        return refusal;
    }
    if let Some(refusal) = front.refuses_name(&request) {
        return refusal;
    }
    let origin = front.access.origin(request.headers());
    let mut response = match *request.method() {
        Method::OPTIONS => StatusCode::OK.into_response(),
        _ => front.serve(request).await,
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE"));
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("accept, content-type, authorization"));
    }
    response
}

/// What Go's server refuses before any handler sees it. Which host is meant must be beyond doubt, since
/// [`Access::refuses`] goes by it.
fn malformed(request: &Request) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte);
    match host {
        None if request.version() == Version::HTTP_11 => Some("400 Bad Request: missing required Host header"),
        Some(_) if another.is_some() => Some("400 Bad Request"),
        Some(host) if !host.as_bytes().iter().all(is_host) => Some("400 Bad Request: malformed Host header"),
        _ if !is_escaped(request.uri().path()) => Some("400 Bad Request"),
        _ => None,
    }
}

/// Whether each percent sign is followed by two hexadecimal digits.
fn is_escaped(path: &str) -> bool {
    let mut parts = path.split('%');
    parts.next();
    parts.all(|part| part.len() >= 2 && part.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

/// A path that a listener without a first door does not serve.
pub async fn elsewhere(request: Request) -> Response {
    match cleaned(request.uri().path(), false) {
        Some(clean) => redirect(request.method(), request.uri(), &clean),
        None => not_found().await,
    }
}

/// As etcd's TLS listener tells them apart. (Its listener without TLS takes all of HTTP/2 for gRPC.)
pub(crate) fn is_grpc(request: &Request) -> bool {
    let content = request.headers().get(CONTENT_TYPE);
    request.version() == Version::HTTP_2 && content.is_some_and(|c| c.as_bytes().starts_with(b"application/grpc"))
}

async fn through(router: Router, request: Request) -> Response {
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(impossible) => match impossible {},
    }
}

impl Front {
    /// The gateway makes its calls without the client's certificate. Who comes with a name in one would be nobody
    /// behind it, whatever the client thinks, so it is told at once, as etcd does, even if it shows a token as well.
    fn refuses_name(&self, request: &Request) -> Option<Response> {
        let path = request.uri().path();
        let called = self.gateway.is_some() && (path.starts_with("/v3/") || path.starts_with("/v3beta/"));
        let named = request.extensions().get::<CertName>().is_some_and(|name| !name.0.is_empty());
        (called && named && (self.auth.0)()).then(|| {
            let why = "CommonName of client sending a request against gateway will be ignored and not used as expected";
            text(StatusCode::BAD_REQUEST, format!("{why}\n"))
        })
    }

    async fn serve(self, request: Request) -> Response {
        let path = request.uri().path();
        // The gateway's path of etcd 3.3 and before still works.
        let path = match path.strip_prefix("/v3beta/") {
            Some(rest) => format!("/v3/{rest}"),
            None => path.to_owned(),
        };
        if let Some(clean) = cleaned(&path, self.gateway.is_some()) {
            return redirect(request.method(), request.uri(), &clean);
        }
        match self.gateway {
            Some(gateway) if path.starts_with("/v3/") && websocket::is_wanted(request.headers()) => {
                websocket::upgrade(gateway, decoded(&path), request).await
            }
            Some(gateway) if path.starts_with("/v3/") => gateway.answer(&decoded(&path), request).await,
            _ => through(self.http, request).await,
        }
    }
}

/// The path that Go's ServeMux sends a client to if it asks for one that is not in its plainest form.
fn cleaned(path: &str, gateway: bool) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if (path.ends_with('/') && clean != "/") || (gateway && clean == "/v3") {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

fn redirect(method: &Method, uri: &Uri, path: &str) -> Response {
    let to = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let Ok(location) = HeaderValue::from_str(&to) else { return StatusCode::BAD_REQUEST.into_response() };
    let (status, location) = (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location)]);
    if !matches!(*method, Method::GET | Method::HEAD) {
        return (status, location).into_response();
    }
    let to =
        to.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;");
    let html = [(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))];
    (status, location, html, format!("<a href=\"{to}\">Temporary Redirect</a>.\n\n")).into_response()
}

/// The path with its percent escapes undone.
fn decoded(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.filter(|_| *byte == b'%').and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::any};

    use super::*;

    fn door(origins: &[&str], hosts: &[&str]) -> Router {
        let set = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let http = Router::new().route("/health", any(|| async { "well" })).fallback(crate::http::not_found);
        let grpc = Router::new().fallback(|| async { "grpc" });
        let gateway = Some(Gateway::new(grpc.clone(), 100, 1));
        let auth = AuthSwitch(Arc::new(|| true));
        router(Front { grpc, http, gateway, access: Access { origins: set(origins), hosts: set(hosts) }, auth })
    }

    async fn ask(door: &Router, method: Method, uri: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "a.test");
        }
        let response = door.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn browsers_are_told_which_origins_may_ask() {
        let all = door(&[], &[]);
        let (status, headers, body) = ask(&all, Method::OPTIONS, "/whatever", &[]).await;
        assert_eq!((status, body.as_str()), (200, ""));
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], "accept, content-type, authorization");

        let one = door(&["http://a.test"], &[]);
        let (_, headers, _) = ask(&one, Method::GET, "/health", &[("origin", "http://a.test")]).await;
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "http://a.test");
        for origin in [&[("origin", "http://b.test")][..], &[]] {
            let (status, headers, _) = ask(&one, Method::GET, "/health", origin).await;
            assert_eq!((status, headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)), (200, false));
        }
    }

    #[tokio::test]
    async fn a_host_that_is_not_listed_is_misdirected() {
        let door = door(&[], &["a.test", "::1"]);
        for host in ["a.test", "a.test:2379", "[::1]:2379"] {
            assert_eq!(ask(&door, Method::GET, "/health", &[("host", host)]).await.0, 200, "{host}");
        }
        let (status, headers, body) = ask(&door, Method::GET, "/health", &[("host", "b.test:2379")]).await;
        assert_eq!(status, 421);
        assert!(body.contains("--host-whitelist \"b.test\""), "{body}");
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }

    #[tokio::test]
    async fn a_request_whose_host_or_path_is_in_doubt_is_refused_as_by_go() {
        let door = door(&[], &["a.test"]);
        let ask = async |version, path: &str, hosts: &[&str]| {
            let request = Request::builder().version(version).uri(path);
            let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
            let response = door.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        let refused = |why: &str| (400, format!("400 Bad Request{why}"));
        let (v11, v10) = (Version::HTTP_11, Version::HTTP_10);
        assert_eq!(ask(v11, "/health", &[]).await, refused(": missing required Host header"));
        assert_eq!(ask(v10, "/health", &[]).await.0, 421);
        assert_eq!(ask(v11, "/health", &["a.test", "b.test"]).await, refused(""));
        assert_eq!(ask(v11, "/health", &["a test"]).await, refused(": malformed Host header"));
        for path in ["/v3/kv/%zz", "/v3/kv/%", "/v3/kv/%a", "/%+1"] {
            assert_eq!(ask(v11, path, &["a.test"]).await, refused(""), "{path}");
        }
        assert_eq!(ask(v11, "/heal%74h", &["a.test:2379"]).await.0, 404);
    }

    #[tokio::test]
    async fn paths_are_cleaned_by_a_redirect() {
        let door = door(&[], &[]);
        for (path, to) in [("/v3", "/v3/"), ("//health?a=1", "/health?a=1"), ("/v3/kv/../kv/put", "/v3/kv/put")] {
            let (status, headers, body) = ask(&door, Method::GET, path, &[]).await;
            assert_eq!((status, headers[LOCATION].to_str().unwrap()), (307, to));
            assert_eq!(body, format!("<a href=\"{to}\">Temporary Redirect</a>.\n\n"));
            assert_eq!(ask(&door, Method::POST, path, &[]).await.2, "");
        }
        assert_eq!(ask(&door, Method::GET, "/", &[]).await.0, 404);
        assert_eq!(ask(&door, Method::GET, "/v3beta/kv/put", &[]).await.0, 501);
        assert_eq!(ask(&door, Method::GET, "/v3/kv/%70ut", &[]).await.0, 501);
        assert_eq!(decoded("/%7a%zz%"), "/z%zz%");
    }

    #[tokio::test]
    async fn a_name_in_a_certificate_does_not_get_through_the_gateway() {
        let (door, off) = (door(&[], &[]), AuthSwitch(Arc::new(|| false)));
        let grpc = Router::new();
        let gateway = Some(Gateway::new(grpc.clone(), 100, 1));
        let off = router(Front { http: grpc.clone(), grpc, gateway, access: Access::default(), auth: off });
        let ask = async |door: &Router, path: &str, name: Option<&str>| {
            let mut request = Request::builder().method(Method::OPTIONS).uri(path).header(HOST, "a.test");
            if let Some(name) = name {
                request = request.extension(CertName(name.to_owned()));
            }
            let response = door.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            response.status().as_u16()
        };
        for path in ["/v3/kv/put", "/v3/nothing", "/v3beta/kv/put"] {
            assert_eq!(ask(&door, path, Some("alice")).await, 400);
            assert_eq!(ask(&door, path, Some("")).await, 200);
            assert_eq!(ask(&door, path, None).await, 200);
            assert_eq!(ask(&off, path, Some("alice")).await, 200);
        }
        assert_eq!(ask(&door, "/health", Some("alice")).await, 200);
    }

    #[tokio::test]
    async fn grpc_is_told_by_version_and_content_type() {
        let door = door(&["http://a.test"], &["a.test"]);
        let ask = async |version, content: &str| {
            let request =
                Request::builder().version(version).uri("/x").header("host", "a.test").header("content-type", content);
            let response = door.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            response.status().as_u16()
        };
        assert_eq!(ask(Version::HTTP_2, "application/grpc+proto").await, 200);
        assert_eq!(ask(Version::HTTP_2, "application/json").await, 404);
        assert_eq!(ask(Version::HTTP_11, "application/grpc").await, 404);
    }

    #[test]
    fn fuzz_request_head() {
        let access = Access { origins: ["http://a.test".to_owned()].into(), hosts: ["a.test".to_owned()].into() };
        let seeds = [
            "/v3/kv/put\na.test:2379\nhttp://a.test\n10S\n",
            "/../a//b/./%7a%zz%?q=1&b=%00\n[::1]:1\n*\n99999999H",
            "http://x:80/v3\n::1\nnull\n-1m",
        ];
        let words = ["..", "//", "%2f", "%", "?", "[", "]", ":", "/v3/", "/v3beta/", "10n", "u"];
        ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "request_head").seeds(seeds).words(&words).run(|bytes| {
            let mut lines = bytes.split(|b| *b == b'\n');
            let mut line = || lines.next().unwrap_or_default();
            let Ok(uri) = Uri::try_from(line()) else { return "no URI".to_owned() };
            let mut headers = HeaderMap::new();
            for name in [HOST, ORIGIN, http::HeaderName::from_static("grpc-timeout")] {
                headers.extend(HeaderValue::from_bytes(line()).ok().map(|value| (name, value)));
            }
            let mut said = format!("{:?}", crate::gateway::timeout(&headers).map_err(|s| s.code()));
            for gateway in [false, true] {
                if let Some(clean) = cleaned(uri.path(), gateway) {
                    assert!(clean.starts_with('/') && cleaned(&clean, gateway).is_none(), "{clean}");
                    said += &format!(" {:?}", redirect(&Method::GET, &uri, &clean).status());
                }
            }
            let refused = access.refuses(&uri, &headers).map(|r| r.status());
            format!("{said} {refused:?} {:?} {}", access.origin(&headers), decoded(uri.path()))
        });
    }
}
