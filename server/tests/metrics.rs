//! `/metrics` beside real etcd's after the same work: every family that etcd shows is there under the same name, with the
//! same type and labels, or stands in a list with the reason why it does not.

use crate::support;
use crate::support::pki::Pki;
use crate::support::{Cluster, Member, etcd_tool, eventually, finished, free_address};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What etcd shows and we leave out: names begin so.
const LEFT_OUT: &[(&str, &str)] = &[
    ("go_", "figures of the Go runtime"),
    ("etcd_server_go_version", "there is no Go"),
    ("etcd_grpc_proxy_", "of the gRPC proxy"),
    ("etcd_debugging_store_", "of the v2 store, which neither serves"),
];

/// The selectors of the etcd mixin's alerts and dashboards, as far as they choose among a member's own series: a metric,
/// and `label=value` pairs of which `!` is unlike and `|` one of several.
const MIXIN: &[(&str, &[(&str, &str)])] = &[
    ("etcd_disk_backend_commit_duration_seconds_bucket", &[]),
    ("etcd_disk_wal_fsync_duration_seconds_bucket", &[]),
    ("etcd_mvcc_db_total_size_in_bytes", &[]),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", &[]),
    ("etcd_network_client_grpc_received_bytes_total", &[]),
    ("etcd_network_client_grpc_sent_bytes_total", &[]),
    ("etcd_network_peer_received_bytes_total", &[]),
    ("etcd_network_peer_round_trip_time_seconds_bucket", &[]),
    ("etcd_network_peer_sent_bytes_total", &[]),
    ("etcd_network_peer_sent_failures_total", &[]),
    ("etcd_server_has_leader", &[]),
    ("etcd_server_leader_changes_seen_total", &[]),
    ("etcd_server_proposals_applied_total", &[]),
    ("etcd_server_proposals_committed_total", &[]),
    ("etcd_server_proposals_failed_total", &[]),
    ("etcd_server_proposals_pending", &[]),
    ("etcd_server_quota_backend_bytes", &[]),
    ("grpc_server_handled_total", &[("grpc_code", FAULTS)]),
    ("grpc_server_handled_total", &[("grpc_type", "unary"), ("grpc_code", FAULTS)]),
    ("grpc_server_handled_total", &[("grpc_service", "etcdserverpb.Watch"), ("grpc_type", "bidi_stream")]),
    ("grpc_server_handled_total", &[("grpc_service", "etcdserverpb.Lease"), ("grpc_type", "bidi_stream")]),
    ("grpc_server_handling_seconds_bucket", &[("grpc_method", "!Defragment"), ("grpc_type", "unary")]),
    ("grpc_server_started_total", &[("grpc_type", "unary")]),
    ("grpc_server_started_total", &[("grpc_service", "etcdserverpb.Watch"), ("grpc_type", "bidi_stream")]),
    ("grpc_server_started_total", &[("grpc_service", "etcdserverpb.Lease"), ("grpc_type", "bidi_stream")]),
    ("process_resident_memory_bytes", &[]),
];

/// Codes that the mixin takes for faults.
const FAULTS: &str = "Unknown|FailedPrecondition|ResourceExhausted|Internal|Unavailable|DataLoss|DeadlineExceeded";

/// Whether a line is a series of such a selector.
fn is_selected(line: &str, name: &str, wanted: &[(&str, &str)]) -> bool {
    let Some(rest) = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' '])) else { return false };
    let value = |label: &str| {
        let at = rest.split_once(&format!("{label}=\""))?.1;
        at.split('"').next()
    };
    wanted.iter().all(|(label, one)| match one.strip_prefix('!') {
        Some(not) => value(label) != Some(not),
        None => value(label).is_some_and(|value| one.split('|').any(|one| one == value)),
    })
}

/// A family's type, and its label names.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

fn families(text: &str) -> Families {
    let mut families = Families::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let sample = line.split(['{', ' ']).next().unwrap();
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end));
            let name = histogram.filter(|name| families.contains_key(*name)).unwrap_or(sample);
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let names = labels.split(r#"",""#).filter_map(|label| label.split_once(r#"=""#)).map(|(name, _)| name);
            families.get_mut(name).unwrap().1.extend(names.filter(|name| *name != "le").map(str::to_owned));
        }
    }
    families
}

/// Real etcd, ended with the test.
struct Etcd {
    child: Child,
    place: Member,
}

impl Etcd {
    async fn start(cluster: &Cluster) -> Etcd {
        let place = Member::new("real", cluster.tmp.path());
        let mut command = Command::new(etcd_tool("etcd"));
        let own = [
            "--name=real".to_owned(),
            format!("--data-dir={}", place.dir.display()),
            format!("--listen-client-urls=http://{}", place.client),
            format!("--advertise-client-urls=http://{}", place.client),
            format!("--listen-peer-urls={}", place.peer_url()),
            format!("--initial-advertise-peer-urls={}", place.peer_url()),
            format!("--initial-cluster=real={}", place.peer_url()),
            "--log-level=error".to_owned(),
            "--metrics=extensive".to_owned(),
        ];
        let child = command.args(own).env_clear().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        place.ready().await;
        Etcd { child, place }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same small work on either.
fn work(m: &Member) {
    let ctl = |args: &[&str]| m.etcdctl(args).unwrap();
    for args in [&["put", "a", "1"], &["put", "b", "2"], &["put", "a", "3"]] {
        ctl(args);
    }
    ctl(&["get", "a"]);
    ctl(&["get", "", "--prefix"]);
    ctl(&["del", "", "--prefix"]);
    let id = ctl(&["lease", "grant", "100"]).split_whitespace().nth(1).unwrap().to_owned();
    ctl(&["put", "--lease", &id, "leased", "x"]);
    ctl(&["lease", "keep-alive", "--once", &id]);
    ctl(&["lease", "revoke", &id]);
    ctl(&["compaction", "3"]);
    ctl(&["defrag"]);
    ctl(&["endpoint", "hashkv"]);
    finished(m.etcdctl_command(&["alarm", "list"]).output().unwrap()).unwrap();
}

/// HTTP/1.0, so that nobody cuts the answer into chunks.
async fn metrics(m: &Member) -> String {
    let mut stream = tokio::net::TcpStream::connect(&m.client).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_of_etcds_is_there_or_left_out_for_a_reason() {
    let mut cluster = Cluster::new(&["solo"]);
    cluster.members[0].flags.push("--metrics=extensive".to_owned());
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let etcd = Etcd::start(&cluster).await;
    let ours = &cluster.members[0];
    for m in [ours, &etcd.place] {
        work(m);
        assert_eq!(m.http("/health").await.0, 200);
    }
    let text = eventually("the compaction is done", async || {
        let text = metrics(ours).await;
        let done = text.lines().any(|l| l == "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count 1");
        if done { Ok(text) } else { Err("not yet".to_owned()) }
    })
    .await;
    let (mine, theirs) = (families(&text), families(&metrics(&etcd.place).await));
    assert!(theirs.len() > 100, "{} families", theirs.len());
    let left_out = |name: &str| LEFT_OUT.iter().any(|(start, _)| name.starts_with(start));
    let mut wrong = Vec::new();
    for (name, form) in theirs.iter().filter(|(name, _)| !left_out(name)) {
        match mine.get(name) {
            Some(found) if found == form => {}
            found => wrong.push(format!("{name}: {form:?} in etcd, {found:?} here")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    has("etcd_server_version{server_version=\"3.7.1\"} 1");
    has("etcd_cluster_version{cluster_version=\"3.7\"} 1");
    has("etcd_mvcc_put_total 4");
    has("etcd_mvcc_delete_total 3");
    has("etcd_debugging_mvcc_keys_total 0");
    has("etcd_debugging_lease_granted_total 1");
    has("etcd_debugging_lease_revoked_total 1");
    has("etcd_debugging_lease_renewed_total 1");
    has("etcd_server_health_success 1");
    has("etcd_debugging_auth_revision 1");
    has("promhttp_metric_handler_requests_in_flight 1");
    has("promhttp_metric_handler_requests_total{code=\"200\"} 0");
    let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
    has(&format!("grpc_server_handling_seconds_count{{{put}}} 4"));
    has("etcd_disk_backend_defrag_duration_seconds_count 1");
    let keep_alive = "grpc_method=\"LeaseKeepAlive\",grpc_service=\"etcdserverpb.Lease\",grpc_type=\"bidi_stream\"";
    has(&format!("grpc_server_msg_received_total{{{keep_alive}}} 1"));
    has(&format!("grpc_server_msg_sent_total{{{keep_alive}}} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mixins_metrics_are_there_with_series_on_every_member() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    for member in &mut cluster.members {
        member.flags.push("--metrics=extensive".to_owned());
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
    }
    for n in 0..20 {
        cluster.members[n % 3].put("k", "v").await.unwrap();
    }
    // A follower never fails to send to anybody it does not send to, and nobody is away here.
    let on_any = ["etcd_network_peer_sent_failures_total", "etcd_network_peer_round_trip_time_seconds"];
    let leader = cluster.leader().await;
    for (at, m) in cluster.members.iter().enumerate() {
        let text = eventually("all series are there", async || {
            let text = metrics(m).await;
            let has = |(name, wanted): &&(&str, &[(&str, &str)])| text.lines().any(|l| is_selected(l, name, wanted));
            let missing: Vec<_> =
                MIXIN.iter().filter(|one| !has(one) && !on_any.iter().any(|any| one.0.starts_with(any))).collect();
            if missing.is_empty() { Ok(text) } else { Err(format!("{} lacks {missing:?}", m.name)) }
        })
        .await;
        let round_trips = text.lines().filter(|l| l.starts_with("etcd_network_peer_round_trip_time_seconds_count{To="));
        assert!(at != leader || round_trips.count() == 2, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_away_shows_as_failed_sends_and_as_one_that_is_not_heard() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    let id = cluster.members[away].status().await.unwrap().header.unwrap().member_id;
    cluster.members[away].kill();
    let series = format!("etcd_network_peer_sent_failures_total{{To=\"{id:x}\"}} ");
    let (heard, silent) = ("etcd_network_active_peers{", format!("Remote=\"{id:x}\"}} 0"));
    eventually("the leader counts failures, and the member as one that is not heard", async || {
        // Whoever leads now.
        let text = metrics(&cluster.members[leader]).await + &metrics(&cluster.members[(leader + 2) % 3]).await;
        let counted = text.lines().filter_map(|line| line.strip_prefix(&series)?.parse::<u64>().ok()).max();
        counted.filter(|n| *n > 0).ok_or_else(|| series.clone())?;
        let is_told = text.lines().any(|line| line.starts_with(heard) && line.ends_with(&silent));
        if is_told { Ok(()) } else { Err(format!("no {silent}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_come_packed_if_that_is_asked_for_and_long_ones_only_then() {
    use support::http::{Ask, ask};
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let packed = ask(&m.client, &Ask::get("/metrics").header("Accept-Encoding", "gzip")).await;
    assert_eq!((packed.status, packed.header("content-encoding")), (200, Some("gzip")));
    assert_eq!(packed.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8; escaping=underscores"));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed.body.as_slice()), &mut text).unwrap();
    assert!(text.contains("\netcd_server_has_leader 1\n"), "{text}");
    assert!(!text.contains("grpc_server_handling_seconds"), "of --metrics=extensive");
    let plain = ask(&m.client, &Ask::get("/metrics").header("Accept-Encoding", "identity")).await;
    assert_eq!(plain.header("content-encoding"), None);
    assert!(plain.text().contains("\netcd_server_has_leader 1\n") && packed.body.len() * 4 < plain.body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificates_in_use_are_told_and_so_are_those_that_replace_them() {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let mut cluster = Cluster::new(&["solo"]);
    let pki = Pki::new(cluster.tmp.path());
    let cert = pki.issue_for("member", "member", 0x80ff, &["127.0.0.1"]);
    let (client, figures) = (format!("https://{}", cluster.members[0].client), free_address());
    cluster.members[0].flags.extend([
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-metrics-urls=http://{figures}"),
        format!("--cert-file={}", cert.cert.display()),
        format!("--key-file={}", cert.key.display()),
        format!("--trusted-ca-file={}", pki.ca.display()),
    ]);
    cluster.members[0].start();
    let figures = Member::at(&figures, cluster.tmp.path());
    eventually("figures are served", async || {
        tokio::net::TcpStream::connect(&figures.client).await.map(drop).map_err(|e| e.to_string())
    })
    .await;
    let told = async || -> Vec<String> {
        let text = metrics(&figures).await;
        text.lines().filter(|line| line.starts_with("ferretcd_tls_")).map(str::to_owned).collect()
    };
    // As `openssl x509 -fingerprint -sha256` has it; certificates of these tests last that long.
    let fingerprint = |file: &Path| {
        let pem = std::fs::read_to_string(file).unwrap();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = base64::prelude::BASE64_STANDARD.decode(base64).unwrap();
        Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let expires = chrono::NaiveDate::from_ymd_opt(4096, 1, 1).unwrap().and_time(chrono::NaiveTime::MIN).and_utc();
    let is_told = async |serial: &str| {
        let lines = told().await;
        let [shown, authority] = lines.as_slice() else { panic!("{lines:?}") };
        let name = "ferretcd_tls_certificate_expiry_timestamp_seconds";
        let (sha256, end) = (fingerprint(&cert.cert), expires.timestamp());
        let wanted = format!("{name}{{flag=\"--cert-file\",serial=\"{serial}\",sha256=\"{sha256}\"}} {end}");
        assert_eq!(*shown, wanted);
        let start = format!("{name}{{flag=\"--trusted-ca-file\",serial=\"");
        let rest = format!("\",sha256=\"{}\"}} {end}", fingerprint(&pki.ca));
        assert!(authority.starts_with(&start) && authority.ends_with(&rest), "{authority}");
    };
    is_told("80ff").await;
    pki.issue_for("member", "member", 7, &["127.0.0.1"]);
    is_told("07").await;
}
