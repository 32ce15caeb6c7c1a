//! The plain HTTP doors: health, version, metrics. Paths and bodies are etcd's, which probes and scripts compare.

pub mod gzip;
mod metrics;
mod pprof;
mod vars;

use axum::{
    Json, Router,
    extract::{Query, Request, State},
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
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};
use prometheus::{Registry, TextEncoder};
use serde::Serialize;

use crate::{front, member::Member, version};

pub use metrics::ProbeMetrics;

/// What the handlers work on.
#[derive(Clone, Debug)]
pub struct Door<M> {
    /// Whose health it is.
    pub member: M,
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Where probes are counted.
    pub probes: ProbeMetrics,
    /// Serve profiles of this process.
    pub profiles: bool,
}

/// A query string's parts in order; a name may come several times.
type Parameters = Query<Vec<(String, String)>>;

/// What the client listeners serve beside gRPC.
pub fn router<M: Member>(door: Door<M>) -> Router {
    let own = Router::new()
        .route("/version", any(version))
        .route("/debug/vars", any(debug_vars))
        .layer(middleware::from_fn(only_get));
    let own = own.with_state(door.clone());
    let own = if door.profiles { own.merge(pprof::router()) } else { own };
    own.merge(probes(door)).fallback(not_found)
}

/// What the metrics listeners serve: probes and metrics only, as etcd has it.
pub fn metrics_router<M: Member>(door: Door<M>) -> Router {
    probes(door).fallback(front::elsewhere)
}

/// etcd's answer to any other path.
pub async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// `/debug/pprof/` alone.
pub fn profiles() -> Router {
    pprof::router()
}

fn probes<M: Member>(door: Door<M>) -> Router {
    let mut router = Router::new().route("/health", any(health));
    for page in [LIVEZ_PAGE, READYZ_PAGE] {
        let all = any(move |State(door): State<Door<M>>, Query(query): Parameters| async move {
            page.run(&door, &without(page.checks, &excluded(&query)), &query).await
        });
        router = router.route(&format!("/{}", page.name), all);
        for check in page.checks {
            let one = any(move |State(door): State<Door<M>>, Query(query): Parameters| async move {
                page.run(&door, &[*check], &query).await
            });
            router = router.route(&format!("/{}/{}", page.name, check.name()), one);
        }
    }
    router.layer(middleware::from_fn(only_get)).route("/metrics", any(metrics)).with_state(door)
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
    let healthy = reason.is_none();
    door.probes.health(healthy);
    let body = Health { health: if healthy { "true" } else { "false" }, reason: reason.unwrap_or_default() };
    // Two strings always encode.
    let body = serde_json::to_string(&body).unwrap_or_default();
    match healthy {
        // Not JSON by its header: etcd sets none, and Go takes the bytes for text.
        true => ([(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response(),
        false => text(StatusCode::SERVICE_UNAVAILABLE, body + "\n"),
    }
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

/// A page of checks, which each have a path below it as well.
#[derive(Clone, Copy, Debug)]
struct Page {
    name: &'static str,
    checks: &'static [Check],
}

const LIVEZ_PAGE: Page = Page { name: "livez", checks: LIVEZ };
const READYZ_PAGE: Page = Page { name: "readyz", checks: READYZ };

fn excluded(query: &[(String, String)]) -> Vec<&str> {
    query.iter().filter(|(name, _)| name == "exclude").map(|(_, value)| value.as_str()).collect()
}

/// The checks that are left; names that no check has are ignored.
fn without(checks: &[Check], excluded: &[&str]) -> Vec<Check> {
    checks.iter().copied().filter(|check| !excluded.contains(&check.name())).collect()
}

impl Page {
    /// Runs the checks one after the other and reports. Details are shown on failure, and when asked for.
    async fn run<M: Member>(self, door: &Door<M>, checks: &[Check], query: &[(String, String)]) -> Response {
        let mut lines = String::new();
        let mut failed = false;
        for check in checks {
            let result = door.member.check(*check).await;
            door.probes.check(self.name, *check, result.is_ok());
            match result {
                Ok(()) => lines += &format!("[+]{} ok\n", check.name()),
                Err(error) => {
                    failed = true;
                    lines += &format!("[-]{} failed: {}\n", check.name(), failure(*check, &error));
                }
            }
        }
        if failed {
            tracing::warn!(page = self.name, report = lines.trim_end(), "health check failed");
            return text(StatusCode::SERVICE_UNAVAILABLE, lines + "\n");
        }
        let verbose = query.iter().any(|(name, _)| name == "verbose");
        text(StatusCode::OK, if verbose { lines + "ok\n" } else { "ok\n".to_owned() })
    }
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
    storage: String,
}

async fn version<M: Member>(State(door): State<Door<M>>) -> Response {
    let decided = door.member.cluster_version();
    let etcdcluster = decided.clone().unwrap_or_else(|| "not_decided".into());
    let storage = decided.unwrap_or_else(|| "unknown".into());
    Json(Versions { etcdserver: version::SERVER, etcdcluster, storage }).into_response()
}

async fn debug_vars<M: Member>(State(door): State<Door<M>>) -> Response {
    vars::page(door.member.id(), &door.member.status())
}

/// The text format as Go's Prometheus client names it.
const METRICS_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

async fn metrics<M: Member>(State(door): State<Door<M>>, headers: HeaderMap) -> Response {
    let _scrape = door.probes.scrape();
    door.member.refresh_metrics();
    // Some figures are read from files.
    let gathered = tokio::task::spawn_blocking(move || TextEncoder::new().encode_to_string(&door.registry.gather()));
    let shown = match gathered.await {
        Ok(shown) => shown.map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let packed = shown.and_then(|shown| match gzip::is_wanted(&headers) {
        true => gzip::pack(shown.as_bytes()).map(|packed| (Some("gzip"), packed)).map_err(|e| e.to_string()),
        false => Ok((None, shown.into_bytes())),
    });
    door.probes.scraped(packed.is_ok());
    match packed {
        Ok((encoding, body)) => {
            let encoding = encoding.map(|encoding| [(CONTENT_ENCODING, encoding)]);
            ([(CONTENT_TYPE, METRICS_FORMAT)], encoding, body).into_response()
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {error}\n")),
    }
}

/// A plain text answer with the headers that Go's http.Error gives it.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt;

    use super::*;
    use crate::member::Fake;

    fn door(member: &Fake, registry: Registry) -> Door<Fake> {
        let probes = ProbeMetrics::register(&registry).unwrap();
        Door { member: member.clone(), registry, probes, profiles: false }
    }
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
        read(send(router(door(member, Registry::new())), Method::GET, path).await).await
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
        let undecided = r#"{"etcdserver":"3.7.1","etcdcluster":"not_decided","storage":"unknown"}"#;
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
    async fn probes_are_counted() {
        let member = Fake::failing(Check::LinearizableRead, Error::Timeout);
        let router = router(door(&member, Registry::new()));
        for path in ["/health", "/health?serializable=true", "/livez", "/readyz/linearizable_read"] {
            send(router.clone(), Method::GET, path).await;
        }
        let (_, text) = read(send(router, Method::GET, "/metrics").await).await;
        for line in [
            "etcd_server_health_success 1",
            "etcd_server_health_failures 1",
            r#"etcd_server_healthcheck{name="serializable_read",type="livez"} 1"#,
            r#"etcd_server_healthcheck{name="linearizable_read",type="readyz"} 0"#,
            r#"etcd_server_healthchecks_total{name="linearizable_read",status="error",type="readyz"} 1"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }

    #[tokio::test]
    async fn other_paths_and_verbs() {
        let member = Fake::healthy();
        assert_eq!(get(&member, "/nothing").await, is(404, "404 page not found\n"));
        assert_eq!(get(&member, "/livez/linearizable_read").await, is(404, "404 page not found\n"));
        assert_eq!(get(&member, "/debug/vars").await.0, 200);
        for path in ["/health", "/livez", "/readyz", "/version"] {
            let router = router(door(&member, Registry::new()));
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
        let router = metrics_router(door(&Fake::healthy(), registry));
        let response = send(router.clone(), Method::GET, "/metrics").await;
        assert_eq!(response.headers()[CONTENT_TYPE], METRICS_FORMAT);
        assert!(read(response).await.1.contains("\netcd_test_total 2\n"));
        let mut statuses = Vec::new();
        for path in ["/health", "/livez", "/readyz", "/version"] {
            statuses.push(send(router.clone(), Method::GET, path).await.status().as_u16());
        }
        assert_eq!(statuses, [200, 200, 200, 404]);
    }
}
