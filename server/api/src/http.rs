//! The plain HTTP doors: health, version, metrics. Paths and bodies are etcd's, which probes and scripts compare.

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
};
use ferretcd_node::{
    Check,
    health::{LIVEZ, READYZ},
};
use ferretcd_types::{AlarmKind, Error};
use http::{
    HeaderValue, Method, StatusCode,
    header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};
use prometheus::{Registry, TextEncoder};
use serde::Serialize;

use crate::{member::Member, version};

/// What the handlers work on.
#[derive(Clone, Debug)]
struct Door<M> {
    member: M,
    registry: Registry,
}

/// A query string's parts in order; a name may come several times.
type Parameters = Query<Vec<(String, String)>>;

/// What the client listeners serve beside gRPC.
pub fn router<M: Member>(member: M, registry: Registry) -> Router {
    let door = Door { member, registry };
    let version = Router::new().route("/version", any(self::version)).layer(middleware::from_fn(only_get));
    version.with_state(door.clone()).merge(probes(door))
}

/// What the metrics listeners serve: no `/version`, as etcd has it.
pub fn metrics_router<M: Member>(member: M, registry: Registry) -> Router {
    probes(Door { member, registry }).fallback(not_found)
}

/// etcd's answer to any other path.
pub async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn probes<M: Member>(door: Door<M>) -> Router {
    Router::new()
        .route("/health", any(health))
        .route("/livez", any(livez))
        .route("/readyz", any(readyz))
        .route("/livez/{check}", any(livez_one))
        .route("/readyz/{check}", any(readyz_one))
        .layer(middleware::from_fn(only_get))
        .route("/metrics", any(metrics))
        .with_state(door)
}

async fn only_get(request: Request, next: Next) -> Response {
    if request.method() == Method::GET {
        return next.run(request).await;
    }
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    response
}

/// The answer of the oldest probe. Its fields are in etcd's order.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Health {
    health: &'static str,
    reason: String,
}

async fn health<M: Member>(State(door): State<Door<M>>, Query(query): Parameters) -> Response {
    let serializable = query.iter().any(|(name, value)| name == "serializable" && value == "true");
    let reason = unhealthy(&door.member, &excluded(&query), serializable).await;
    let (status, health, end) = match reason {
        None => (StatusCode::OK, "true", ""),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "false", "\n"),
    };
    let body = Health { health, reason: reason.unwrap_or_default() };
    // Two strings always encode.
    text(status, serde_json::to_string(&body).unwrap_or_default() + end)
}

/// The first thing wrong, in etcd's order: alarms, the leader, a read.
async fn unhealthy<M: Member>(member: &M, excluded: &[&str], serializable: bool) -> Option<String> {
    let names = member.alarms().into_iter().map(|alarm| match alarm.kind {
        AlarmKind::NoSpace => "NOSPACE",
        AlarmKind::Corrupt => "CORRUPT",
    });
    if let Some(name) = names.into_iter().find(|name| !excluded.contains(name)) {
        return Some(format!("ALARM {name}"));
    }
    if !serializable && !member.has_leader() {
        return Some("RAFT NO LEADER".into());
    }
    let read = if serializable { Check::SerializableRead } else { Check::LinearizableRead };
    member.check(read).await.err().map(|error| format!("RANGE ERROR:{error}"))
}

async fn livez<M: Member>(State(door): State<Door<M>>, Query(query): Parameters) -> Response {
    checked(&door.member, &without(LIVEZ, &excluded(&query)), &query).await
}

async fn readyz<M: Member>(State(door): State<Door<M>>, Query(query): Parameters) -> Response {
    checked(&door.member, &without(READYZ, &excluded(&query)), &query).await
}

async fn livez_one<M: Member>(State(door): State<Door<M>>, Path(name): Path<String>, Query(q): Parameters) -> Response {
    one(&door.member, LIVEZ, &name, &q).await
}

async fn readyz_one<M: Member>(
    State(door): State<Door<M>>,
    Path(name): Path<String>,
    Query(q): Parameters,
) -> Response {
    one(&door.member, READYZ, &name, &q).await
}

async fn one<M: Member>(member: &M, all: &[Check], name: &str, query: &[(String, String)]) -> Response {
    match all.iter().find(|check| check.name() == name) {
        Some(check) => checked(member, &[*check], query).await,
        None => not_found().await,
    }
}

fn excluded(query: &[(String, String)]) -> Vec<&str> {
    query.iter().filter(|(name, _)| name == "exclude").map(|(_, value)| value.as_str()).collect()
}

/// The checks that are left; names that no check has are ignored.
fn without(checks: &[Check], excluded: &[&str]) -> Vec<Check> {
    checks.iter().copied().filter(|check| !excluded.contains(&check.name())).collect()
}

/// Runs the checks one after the other and reports. Details are shown on failure, and when asked for.
async fn checked<M: Member>(member: &M, checks: &[Check], query: &[(String, String)]) -> Response {
    let mut lines = String::new();
    let mut failed = false;
    for check in checks {
        match member.check(*check).await {
            Ok(()) => lines += &format!("[+]{} ok\n", check.name()),
            Err(error) => {
                failed = true;
                lines += &format!("[-]{} failed: {}\n", check.name(), failure(*check, &error));
            }
        }
    }
    if failed {
        tracing::warn!(report = lines.trim_end(), "health check failed");
        return text(StatusCode::SERVICE_UNAVAILABLE, lines + "\n");
    }
    let verbose = query.iter().any(|(name, _)| name == "verbose");
    text(StatusCode::OK, if verbose { lines + "ok\n" } else { "ok\n".to_owned() })
}

/// etcd's words for a failed check: fixed ones for a state, the read's own error for a read.
fn failure(check: Check, error: &Error) -> String {
    match check {
        Check::DataCorruption => "alarm activated: CORRUPT".into(),
        Check::NonLearner => "not supported for learner".into(),
        Check::SerializableRead | Check::LinearizableRead => error.to_string(),
    }
}

/// The answer of `/version`. Its fields are in etcd's order.
#[derive(Debug, Serialize)]
struct Versions {
    etcdserver: &'static str,
    etcdcluster: String,
    storage: &'static str,
}

async fn version<M: Member>(State(door): State<Door<M>>) -> Response {
    let etcdcluster = door.member.cluster_version().unwrap_or_else(|| "not_decided".into());
    Json(Versions { etcdserver: version::SERVER, etcdcluster, storage: version::STORAGE }).into_response()
}

async fn metrics<M: Member>(State(door): State<Door<M>>) -> Response {
    door.member.refresh_metrics();
    let encoder = TextEncoder::new();
    match encoder.encode_to_string(&door.registry.gather()) {
        Ok(body) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], body).into_response(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {error}\n")),
    }
}

/// A plain text answer with the headers that Go's http.Error gives it.
fn text(status: StatusCode, body: impl Into<String>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt;

    use super::*;
    use crate::member::Fake;

    async fn send(router: Router, method: Method, path: &str) -> Response {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        router.oneshot(request).await.unwrap()
    }
    async fn read(response: Response) -> (u16, String) {
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
    async fn get(member: &Fake, path: &str) -> (u16, String) {
        let router = router(member.clone(), Registry::new()).fallback(not_found);
        read(send(router, Method::GET, path).await).await
    }
    fn is(status: u16, body: &str) -> (u16, String) {
        (status, body.to_owned())
    }

    #[tokio::test]
    async fn a_healthy_member_says_so_in_etcds_bytes() {
        let member = Fake::healthy();
        assert_eq!(get(&member, "/health").await, is(200, r#"{"health":"true","reason":""}"#));
        assert_eq!(get(&member, "/livez").await, is(200, "ok\n"));
        assert_eq!(get(&member, "/readyz").await, is(200, "ok\n"));
        assert_eq!(get(&member, "/livez?verbose").await, is(200, "[+]serializable_read ok\nok\n"));
        let all = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
        assert_eq!(get(&member, "/readyz?verbose").await, is(200, all));
        assert_eq!(get(&member, "/readyz/non_learner").await, is(200, "ok\n"));
        assert_eq!(get(&member, "/readyz/non_learner?verbose=1").await, is(200, "[+]non_learner ok\nok\n"));
        let version = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
        assert_eq!(get(&member, "/version").await, is(200, version));
    }

    #[tokio::test]
    async fn health_names_the_first_fault() {
        let unhealthy = |reason: &str| is(503, &format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n"));
        let full = Fake::alarmed(AlarmKind::NoSpace);
        assert_eq!(get(&full, "/health").await, unhealthy("ALARM NOSPACE"));
        assert_eq!(get(&full, "/health?exclude=CORRUPT").await, unhealthy("ALARM NOSPACE"));
        assert_eq!(get(&full, "/health?exclude=CORRUPT&exclude=NOSPACE").await.0, 200);
        assert_eq!(get(&Fake::alarmed(AlarmKind::Corrupt), "/health").await, unhealthy("ALARM CORRUPT"));

        let leaderless = Fake::failing(Check::LinearizableRead, Error::Timeout).leaderless();
        assert_eq!(get(&leaderless, "/health").await, unhealthy("RAFT NO LEADER"));
        assert_eq!(get(&leaderless, "/health?serializable=true").await.0, 200);
        let undecided = r#"{"etcdserver":"3.7.1","etcdcluster":"not_decided","storage":"3.7.0"}"#;
        assert_eq!(get(&leaderless, "/version").await, is(200, undecided));

        let slow = Fake::failing(Check::LinearizableRead, Error::Timeout);
        assert_eq!(get(&slow, "/health").await, unhealthy("RANGE ERROR:etcdserver: request timed out"));
    }

    #[tokio::test]
    async fn readiness_depends_on_the_quorum_and_liveness_does_not() {
        let member = Fake::failing(Check::LinearizableRead, Error::Timeout);
        assert_eq!(get(&member, "/livez").await, is(200, "ok\n"));
        let report = "[+]data_corruption ok\n[+]serializable_read ok\n\
                      [-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n";
        assert_eq!(get(&member, "/readyz").await, is(503, report));
        let line = "[-]linearizable_read failed: etcdserver: request timed out\n\n";
        assert_eq!(get(&member, "/readyz/linearizable_read").await, is(503, line));
        // A check that is asked for by name is run, whatever is excluded.
        assert_eq!(get(&member, "/readyz/linearizable_read?exclude=linearizable_read").await.0, 503);
        assert_eq!(get(&member, "/readyz?exclude=linearizable_read").await, is(200, "ok\n"));
        let left = "[+]serializable_read ok\n[+]non_learner ok\nok\n";
        let query = "/readyz?verbose&exclude=linearizable_read&exclude=data_corruption&exclude=nothing";
        assert_eq!(get(&member, query).await, is(200, left));
    }

    #[tokio::test]
    async fn a_state_that_fails_a_check_has_etcds_words() {
        let learner = Fake::failing(Check::NonLearner, Error::NotSupportedForLearner);
        let line = "[-]non_learner failed: not supported for learner\n\n";
        assert_eq!(get(&learner, "/readyz/non_learner").await, is(503, line));
        let corrupt = Fake::failing(Check::DataCorruption, Error::Corrupt);
        let line = "[-]data_corruption failed: alarm activated: CORRUPT\n\n";
        assert_eq!(get(&corrupt, "/readyz/data_corruption").await, is(503, line));
    }

    #[tokio::test]
    async fn other_paths_and_verbs() {
        let member = Fake::healthy();
        assert_eq!(get(&member, "/nothing").await, is(404, "404 page not found\n"));
        assert_eq!(get(&member, "/livez/linearizable_read").await, is(404, "404 page not found\n"));
        for path in ["/health", "/livez", "/readyz", "/version"] {
            let router = router(member.clone(), Registry::new());
            let response = send(router, Method::POST, path).await;
            assert_eq!(response.headers()[ALLOW], "GET");
            assert_eq!(read(response).await, is(405, "Method Not Allowed\n"));
        }
    }

    #[tokio::test]
    async fn the_metrics_listener_serves_probes_and_metrics_only() {
        let registry = Registry::new();
        let counter = prometheus::IntCounter::new("etcd_test_total", "A counter.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc_by(2);
        let router = metrics_router(Fake::healthy(), registry);
        let response = send(router.clone(), Method::GET, "/metrics").await;
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; version=0.0.4");
        assert!(read(response).await.1.contains("\netcd_test_total 2\n"));
        let mut statuses = Vec::new();
        for path in ["/health", "/livez", "/readyz", "/version"] {
            statuses.push(send(router.clone(), Method::GET, path).await.status().as_u16());
        }
        assert_eq!(statuses, [200, 200, 200, 404]);
    }
}
