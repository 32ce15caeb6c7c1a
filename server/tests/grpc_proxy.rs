//! The gRPC proxy before real processes: members of ours, real etcdctl as the client, real etcd's proxy as the oracle.

use crate::support;
use crate::support::pki::Pki;
use crate::support::{Cluster, Member, etcd_tool, eventually, finished, free_address, http};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::kv_client::KvClient;
use ferretcd_proto::etcdserverpb::lease_client::LeaseClient;
use ferretcd_proto::etcdserverpb::watch_client::WatchClient;
use ferretcd_proto::etcdserverpb::watch_request::RequestUnion;
use ferretcd_proto::v3lockpb;
use ferretcd_proto::v3lockpb::lock_client::LockClient;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// A proxy's process.
struct Proxy {
    client: String,
    log: PathBuf,
    child: Child,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- proxy:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

impl Proxy {
    /// Started before these endpoints by this program; not waited for.
    fn spawn(program: PathBuf, endpoints: &str, flags: &[&str], root: &std::path::Path) -> Self {
        let client = free_address();
        let log = root.join(format!("proxy-{}", client.replace(':', "-")));
        let child = Command::new(program)
            .env_clear()
            .args(["grpc-proxy", "start"])
            .arg(format!("--endpoints={endpoints}"))
            .arg(format!("--listen-addr={client}"))
            .arg(format!("--advertise-client-url={client}"))
            .arg(format!("--data-dir={}", root.join("proxy").display()))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Proxy { client, log, child }
    }

    /// Ours before these members, healthy.
    async fn start(cluster: &Cluster, flags: &[&str]) -> Self {
        Proxy::start_as(PathBuf::from(env!("CARGO_BIN_EXE_ferretcd")), cluster, flags).await
    }

    /// Real etcd's.
    async fn start_etcds(cluster: &Cluster, flags: &[&str]) -> Self {
        Proxy::start_as(etcd_tool("etcd"), cluster, flags).await
    }

    async fn start_as(program: PathBuf, cluster: &Cluster, flags: &[&str]) -> Self {
        let endpoints: Vec<&str> = cluster.members.iter().map(|m| m.client.as_str()).collect();
        let proxy = Proxy::spawn(program, &endpoints.join(","), flags, cluster.tmp.path());
        eventually("the proxy is healthy", async || {
            match http::try_ask(&proxy.client, &http::Ask::get("/health")).await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}\n{}", std::fs::read_to_string(&proxy.log).unwrap_or_default())),
            }
        })
        .await;
        proxy
    }

    fn etcdctl(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(etcd_tool("etcdctl"));
        command.env_clear().arg(format!("--endpoints=http://{}", self.client)).args(args).stdin(Stdio::null());
        finished(command.output().unwrap())
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.client)).unwrap().connect_lazy()
    }

    /// One of the proxy's own metrics.
    async fn metric(&self, name: &str) -> f64 {
        metric(&self.client, "/proxy/metrics", name).await
    }
}

async fn metric(address: &str, path: &str, name: &str) -> f64 {
    let page = http::ask(address, &http::Ask::get(path)).await.text();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

/// Watchers that all members of the cluster have.
async fn upstream_watchers(cluster: &Cluster) -> f64 {
    let mut sum = 0.0;
    for member in cluster.members.iter().filter(|m| m.runs()) {
        sum += metric(&member.client, "/metrics", "etcd_debugging_mvcc_watcher_total").await;
    }
    sum
}

/// A client's stream of watchers.
struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn open(channel: Channel) -> Self {
        let (requests, receiver) = mpsc::channel(1000);
        let answers = WatchClient::new(channel).watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Watching { requests, answers }
    }

    async fn send(&self, union: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(union) }).await.unwrap();
    }

    async fn create(&self, create: pb::WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create)).await;
    }

    async fn next(&mut self) -> pb::WatchResponse {
        let answer = tokio::time::timeout(support::PATIENCE, self.answers.message()).await;
        answer.expect("an answer in time").expect("no error").expect("no end")
    }

    /// Values of the next events, as they come, until there are so many.
    async fn values(&mut self, count: usize) -> Vec<String> {
        let mut values = Vec::new();
        while values.len() < count {
            let events = self.next().await.events;
            values.extend(events.into_iter().map(|e| String::from_utf8_lossy(&e.kv.unwrap().value).into_owned()));
        }
        values
    }
}

fn watch_key(key: &'static str, start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.into(), start_revision, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_watchers_of_a_key_are_one_for_the_cluster_and_survive_its_leader() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let proxy = Proxy::start(&cluster, &[]).await;
    let before = upstream_watchers(&cluster).await;
    // Four clients, fifty watchers each.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Watching::open(proxy.channel()).await;
        for _ in 0..50 {
            client.create(watch_key("k", 0)).await;
        }
        for id in 0..50 {
            let created = client.next().await;
            assert_eq!((created.created, created.watch_id), (true, id));
        }
        clients.push(client);
    }
    eventually("all share one watch", async || {
        let (watchers, riders) = (
            upstream_watchers(&cluster).await - before,
            proxy.metric("etcd_grpc_proxy_watchers_coalescing_total").await,
        );
        if (watchers, riders) == (1.0, 199.0) { Ok(()) } else { Err(format!("{watchers} watchers, {riders} riders")) }
    })
    .await;

    proxy.etcdctl(&["put", "k", "before"]).unwrap();
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    eventually("the cluster writes again", async || proxy.etcdctl(&["put", "k", "after"]).map(drop)).await;
    proxy.etcdctl(&["put", "k", "last"]).unwrap();
    for client in &mut clients {
        // Each watcher sees each revision once, in order. (A put that failed may have been done.)
        let mut seen = vec![Vec::new(); 50];
        while seen.iter().any(|of| of.last().is_none_or(|(_, value)| value != "last")) {
            let answer = client.next().await;
            let events = answer.events.into_iter().map(|e| e.kv.unwrap());
            seen[answer.watch_id as usize].extend(events.map(|kv| (kv.mod_revision, kv.value)));
        }
        assert!(seen.iter().all(|of| *of == seen[0]), "{seen:?}");
        assert!(seen[0].is_sorted_by(|a, b| a.0 < b.0) && seen[0][0].1 == "before", "{:?}", seen[0]);
    }
    assert!(proxy.metric("etcd_grpc_proxy_events_coalescing_total").await >= 3.0 * 199.0);
    drop(clients);
    eventually("the watch is given up", async || {
        let watchers = upstream_watchers(&cluster).await;
        if watchers <= before { Ok(()) } else { Err(format!("{watchers} watchers")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_of_history_compactions_progress_and_cancels_are_answered() {
    let cluster = Cluster::start(&["a"]).await;
    let proxy = Proxy::start(&cluster, &[]).await;
    for n in 1..=20 {
        proxy.etcdctl(&["put", "k", &n.to_string()]).unwrap();
    }
    let before = upstream_watchers(&cluster).await;
    let mut client = Watching::open(proxy.channel()).await;
    client.create(watch_key("k", 0)).await;
    let created = client.next().await;
    let now = created.header.unwrap().revision;
    assert!(created.created && now == 21, "{created:?}");
    client.create(watch_key("k", 2)).await;
    assert_eq!(client.next().await.watch_id, 1);
    assert_eq!(client.values(20).await, (1..=20).map(|n| n.to_string()).collect::<Vec<_>>());
    eventually("who has read history shares the watch of the present", async || {
        let watchers = upstream_watchers(&cluster).await - before;
        if watchers == 1.0 { Ok(()) } else { Err(format!("{watchers} watchers")) }
    })
    .await;
    proxy.etcdctl(&["put", "k", "new"]).unwrap();
    let both = [client.next().await, client.next().await];
    assert_eq!(both.iter().map(|a| a.events.len()).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(both.iter().map(|a| a.watch_id).sum::<i64>(), 1);

    client.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = client.next().await;
    assert_eq!((progress.watch_id, progress.header.unwrap().revision), (-1, now + 1));

    client.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 1 })).await;
    let cancelled = client.next().await;
    assert!(cancelled.canceled && cancelled.watch_id == 1 && cancelled.compact_revision == 0, "{cancelled:?}");

    proxy.etcdctl(&["compact", "15"]).unwrap();
    client.create(watch_key("k", 3)).await;
    assert!(client.next().await.created);
    let compacted = client.next().await;
    assert_eq!((compacted.watch_id, compacted.canceled, compacted.compact_revision), (2, true, 15));

    client.create(pb::WatchCreateRequest { watch_id: 7, ..watch_key("k", 0) }).await;
    assert_eq!(client.next().await.watch_id, 7);
    client.create(pb::WatchCreateRequest { watch_id: 7, ..watch_key("k", 0) }).await;
    let refused = client.next().await;
    assert_eq!((refused.watch_id, refused.canceled), (-1, true));
    client.create(pb::WatchCreateRequest { range_end: "a".into(), ..watch_key("k", 0) }).await;
    assert_eq!(client.next().await.cancel_reason, "mvcc: watcher range is empty");
}

/// kube-apiserver takes it for how fresh all its watches of a stream are, and clients resume there.
#[tokio::test(flavor = "multi_thread")]
async fn progress_covers_watchers_that_come_meanwhile_and_never_goes_back() {
    const TURNS: usize = 100;
    let cluster = Cluster::start(&["a"]).await;
    let proxy = Proxy::start(&cluster, &[]).await;
    let mut kv = KvClient::new(proxy.channel());
    let put = |key: &'static str| pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
    for _ in 0..20 {
        kv.put(put("old")).await.unwrap();
    }
    let mut client = Watching::open(proxy.channel()).await;
    client.create(watch_key("busy", 0)).await;
    client.create(watch_key("quiet", 0)).await;
    let writes = tokio::spawn(async move {
        loop {
            for key in ["busy", "busy", "quiet"] {
                kv.put(put(key)).await.unwrap();
            }
        }
    });
    // By watchers: the revision that its client has of each. Of those in the past it has none until their history is there.
    let (mut known, mut told) = (BTreeMap::new(), 0);
    for turn in 0..TURNS {
        client.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
        client.create(watch_key("old", 2)).await;
        let mut is_new = None;
        while is_new.is_none_or(|id| known[&id] < 21) {
            let answer = client.next().await;
            let revision = answer.header.unwrap().revision;
            if answer.watch_id == -1 {
                told += 1;
                for (id, at) in &mut known {
                    assert!(*at <= revision, "turn {turn}: watcher {id} was told {at}, then {revision} of all");
                    assert!(
                        is_new != Some(*id) || *at >= 21,
                        "turn {turn}: {revision} is told before the history of {id}"
                    );
                    *at = revision;
                }
                continue;
            }
            if answer.created {
                let in_the_past = answer.watch_id > 1;
                known.insert(answer.watch_id, if in_the_past { 1 } else { revision });
                is_new = in_the_past.then_some(answer.watch_id).or(is_new);
            }
            for event in answer.events {
                known.insert(answer.watch_id, event.kv.unwrap().mod_revision);
            }
        }
        let id = is_new.unwrap();
        client.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id })).await;
        known.remove(&id);
    }
    writes.abort();
    assert!(told > TURNS / 4, "progress was told {told} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_right_behind_its_create_is_not_lost() {
    let cluster = Cluster::start(&["a"]).await;
    let proxy = Proxy::start(&cluster, &[]).await;
    let mut client = Watching::open(proxy.channel()).await;
    client.create(pb::WatchCreateRequest { watch_id: 7, ..watch_key("k", 0) }).await;
    client.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 7 })).await;
    let created = client.next().await;
    assert!(created.created && created.watch_id == 7, "{created:?}");
    let cancelled = client.next().await;
    assert!(cancelled.canceled && cancelled.watch_id == 7, "{cancelled:?}");
}

/// What a client gets back for a table of commands, keys and answers alike.
const TABLE: &[&[&str]] = &[
    &["put", "t/a", "1"],
    &["put", "t/a", "2", "--prev-kv"],
    &["put", "t/b", "3"],
    &["get", "t/a"],
    &["get", "t/", "--prefix", "-w", "fields"],
    &["get", "t/a", "--consistency=s"],
    &["get", "t/a", "--consistency=s"],
    &["get", "t/a", "--from-key", "--keys-only"],
    &["get", "t/", "--prefix", "--count-only", "-w", "fields"],
    &["get", "t/a", "--rev=1"],
    &["get", "t/a", "--rev=100000"],
    &["get", "t/a", "--consistency=s", "--rev=100000"],
    &["put", "", "x"],
    &["put", "t/c", "x", "--lease=12345"],
    &["del", "t/b", "--prev-kv"],
    &["get", "t/", "--prefix", "--consistency=s"],
    &["lease", "grant", "1000000000000"],
    &["lease", "timetolive", "12345"],
    &["lease", "revoke", "12345"],
    &["lease", "keep-alive", "--once", "12345"],
    &["role", "add", "r"],
    &["role", "grant-permission", "r", "readwrite", "t/", "--prefix"],
    &["role", "get", "r"],
    &["role", "delete", "r"],
    &["user", "get", "nobody"],
    &["auth", "enable"],
    &["alarm", "list"],
    &["compact", "1000000"],
    &["compact", "3"],
    &["get", "t/a", "--consistency=s", "--rev=2"],
    &["member", "remove", "1"],
    &["del", "t/", "--prefix"],
    &["get", "t/", "--prefix", "--consistency=s"],
];

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_gets_the_same_answers_as_through_etcds_own_proxy() {
    // Clusters of their own, so that revisions are the same on both sides.
    let (ours, theirs) = (Cluster::start(&["a"]).await, Cluster::start(&["a"]).await);
    for flags in [[].as_slice(), &["--namespace=some/where/"]] {
        let (our, their) = (Proxy::start(&ours, flags).await, Proxy::start_etcds(&theirs, flags).await);
        for args in TABLE {
            let (got, expected) = (our.etcdctl(args), their.etcdctl(args));
            assert_eq!(words(&got), words(&expected), "{flags:?} {args:?}: {got:?} and {expected:?}");
        }
    }
}

/// An answer without what differs between clusters, clocks and versions of gRPC.
fn words(answer: &Result<String, String>) -> Result<Vec<String>, String> {
    let text = match answer {
        Ok(text) => text,
        // etcd's proxy loses the code of a refusal, ours keeps it: the words count.
        Err(text) => {
            let at = text.find("etcdserver:").or_else(|| text.find("etcdclient:"));
            return Err(at
                .map_or(text.as_str(), |at| &text[at..])
                .lines()
                .next()
                .unwrap_or_default()
                .trim_matches(['"', '}'])
                .to_owned());
        }
    };
    let differs = |line: &&str| ["ClusterID", "MemberID", "RaftTerm"].iter().any(|name| line.contains(name));
    Ok(text.lines().filter(|line| !differs(line)).map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn serializable_reads_come_from_the_cache_until_something_changes() {
    let cluster = Cluster::start(&["a"]).await;
    let proxy = Proxy::start(&cluster, &[]).await;
    let through = Member::at(&proxy.client, cluster.tmp.path());
    let hits = || proxy.metric("etcd_grpc_proxy_cache_hits_total");
    through.put("k", "1").await.unwrap();
    assert_eq!(through.get("k", true).await.unwrap().as_deref(), Some("1"));
    assert_eq!(through.get("k", true).await.unwrap().as_deref(), Some("1"));
    assert_eq!(hits().await, 1.0);
    // A write through the proxy is seen at once; one around it when a watch brings it.
    through.put("k", "2").await.unwrap();
    assert_eq!(through.get("k", true).await.unwrap().as_deref(), Some("2"));
    let mut client = Watching::open(proxy.channel()).await;
    client.create(watch_key("k", 0)).await;
    assert!(client.next().await.created);
    cluster.members[0].put("k", "3").await.unwrap();
    assert_eq!(client.values(1).await, ["3"]);
    assert_eq!(through.get("k", true).await.unwrap().as_deref(), Some("3"));
    assert_eq!(hits().await, 1.0);
    assert_eq!(proxy.metric("etcd_grpc_proxy_cache_keys_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_hides_the_rest_and_says_nothing_about_the_lock_service() {
    let cluster = Cluster::start(&["a"]).await;
    let proxy = Proxy::start(&cluster, &["--namespace=ns/"]).await;
    let member = &cluster.members[0];
    let through = Member::at(&proxy.client, cluster.tmp.path());
    member.put("elsewhere", "x").await.unwrap();
    through.put("k", "v").await.unwrap();
    assert_eq!(member.get("ns/k", false).await.unwrap().as_deref(), Some("v"));
    let everything: Vec<String> = through.everything().await.into_iter().map(|(key, ..)| key).collect();
    assert_eq!(everything, ["k"]);

    let lease = LeaseClient::new(proxy.channel()).lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap();
    let id = lease.into_inner().id;
    let put = |key: &'static str| pb::PutRequest { key: key.into(), lease: id, ..Default::default() };
    through.kv().await.put(put("leased")).await.unwrap();
    member.kv().await.put(put("outside")).await.unwrap();
    let asked = pb::LeaseTimeToLiveRequest { id, keys: true };
    let keys = LeaseClient::new(proxy.channel()).lease_time_to_live(asked).await.unwrap().into_inner().keys;
    assert_eq!(keys, ["leased"]);

    let mut client = Watching::open(proxy.channel()).await;
    let all = pb::WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), prev_kv: true, ..Default::default() };
    client.create(all).await;
    assert!(client.next().await.created);
    member.put("elsewhere", "y").await.unwrap();
    proxy.etcdctl(&["del", "k"]).unwrap();
    let event = client.next().await.events.remove(0);
    assert_eq!((event.kv.unwrap().key, event.prev_kv.unwrap().key), ("k".into(), "k".into()));

    let mut locks = LockClient::new(proxy.channel());
    let lock = v3lockpb::LockRequest { name: "l".into(), lease: id };
    let key = locks.lock(lock).await.unwrap().into_inner().key;
    let key = String::from_utf8_lossy(&key).into_owned();
    assert!(key.starts_with("l/") && member.get(&key, false).await.unwrap().is_some(), "{key}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_auth_each_client_sees_what_it_may() {
    let cluster = Cluster::start(&["a"]).await;
    let proxy = Proxy::start(&cluster, &[]).await;
    proxy.etcdctl(&["put", "secret", "s"]).unwrap();
    // It is cached for everybody, until authentication is turned on.
    proxy.etcdctl(&["get", "secret", "--consistency=s"]).unwrap();
    for args in [
        &["user", "add", "root:r"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "alice:a"],
        &["role", "add", "open"],
        &["role", "grant-permission", "open", "readwrite", "open/", "--prefix"],
        &["user", "grant-role", "alice", "open"],
        &["auth", "enable"],
    ] {
        proxy.etcdctl(args).unwrap();
    }
    let as_user = |user: &str, args: &[&str]| proxy.etcdctl(&[&[user], args].concat());
    let refused = |answer: Result<String, String>, why: &str| {
        let error = answer.unwrap_err();
        assert!(error.contains(why), "{error}");
    };
    refused(proxy.etcdctl(&["get", "secret", "--consistency=s"]), "user name is empty");
    assert!(as_user("--user=root:r", &["get", "secret", "--consistency=s"]).unwrap().contains('s'));
    refused(as_user("--user=alice:a", &["get", "secret", "--consistency=s"]), "permission denied");
    refused(as_user("--user=alice:wrong", &["get", "open/a"]), "authentication failed");
    as_user("--user=alice:a", &["put", "open/a", "1"]).unwrap();
    assert!(as_user("--user=alice:a", &["get", "open/a"]).unwrap().contains('1'));
    refused(as_user("--user=alice:a", &["watch", "secret"]), "permission denied");
    refused(as_user("--user=alice:a", &["user", "list"]), "permission denied");
    assert!(as_user("--user=root:r", &["user", "list"]).unwrap().contains("alice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_on_both_sides() {
    let mut cluster = Cluster::new(&["a"]);
    let pki = Pki::new(cluster.tmp.path());
    // The proxy's own certificate names nobody: a common name would be the user of all its clients.
    let (server, nobody) = (pki.issue("server", "server"), pki.issue("nobody", ""));
    let member = &mut cluster.members[0];
    let url = format!("https://{}", member.client);
    let file = |flag: &str, path: &std::path::Path| format!("{flag}={}", path.display());
    let certificates =
        [file("--cert-file", &server.cert), file("--key-file", &server.key), file("--trusted-ca-file", &pki.ca)];
    let mut command = member.command(&[]);
    command.args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")]).args(&certificates);
    member.start_as(command);
    let calls = [file("--cert", &nobody.cert), file("--key", &nobody.key), file("--cacert", &pki.ca)];
    let flags: Vec<&str> = certificates.iter().chain(&calls).map(String::as_str).collect();
    let program = || PathBuf::from(env!("CARGO_BIN_EXE_ferretcd"));
    let proxy = Proxy::spawn(program(), &url, &flags, cluster.tmp.path());
    let etcdctl = |args: &[&str], certificates: &[String]| {
        let mut command = Command::new(etcd_tool("etcdctl"));
        command.env_clear().arg(format!("--endpoints=https://{}", proxy.client)).args(certificates).args(args);
        finished(command.stdin(Stdio::null()).output().unwrap())
    };
    eventually("a put through TLS", async || etcdctl(&["put", "k", "v"], &calls).map(drop)).await;
    assert!(etcdctl(&["get", "k"], &calls).unwrap().contains('v'));
    // Without a certificate nobody comes in.
    assert!(etcdctl(&["--command-timeout=2s", "get", "k"], &calls[2..]).is_err());

    let named = [file("--cert", &server.cert), file("--key", &server.key)];
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    let mut refused = Proxy::spawn(program(), &url, &named, cluster.tmp.path());
    let code = eventually("it ends", async || refused.child.try_wait().unwrap().ok_or("it runs".to_owned())).await;
    let log = std::fs::read_to_string(&refused.log).unwrap();
    assert!(code.code() == Some(1) && log.contains("cert has non empty Common Name (server)"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_of_both_kinds_find_each_other_and_the_pages_are_there() {
    let cluster = Cluster::start(&["a"]).await;
    let flags = ["--resolver-prefix=/proxies", "--resolver-ttl=5"];
    let metrics = free_address();
    let metrics_addr = format!("--metrics-addr=http://{metrics}");
    let own = [&flags[..], &[&metrics_addr]].concat();
    let (mut ours, theirs) = (Proxy::start(&cluster, &own).await, Proxy::start_etcds(&cluster, &flags).await);
    let listed = async |proxy: &Proxy, addresses: &[&str]| {
        eventually("the list names the proxies", async || {
            let list = proxy.etcdctl(&["member", "list"])?;
            let mut found: Vec<&str> = list.lines().filter_map(|line| line.split(", ").nth(4)).collect();
            found.sort_unstable();
            let mut addresses = addresses.to_vec();
            addresses.sort_unstable();
            if found == addresses { Ok(()) } else { Err(format!("{list:?} for {addresses:?}")) }
        })
        .await;
    };
    let both = [ours.client.as_str(), theirs.client.as_str()];
    listed(&ours, &both).await;
    listed(&theirs, &both).await;

    for (page, status, word) in [
        ("/health", 200, "{\"health\":\"true\",\"reason\":\"\"}"),
        ("/proxy/health", 200, "{\"health\":\"true\",\"reason\":\"\"}"),
        ("/metrics", 200, "etcd_server_has_leader 1"),
        ("/proxy/metrics", 200, "etcd_grpc_proxy_cache_hits_total 0"),
        ("/version", 404, "404 page not found"),
        ("/v3/kv/range", 404, "404 page not found"),
    ] {
        for address in [&ours.client, &metrics, &theirs.client] {
            let answer = http::ask(address, &http::Ask::get(page)).await;
            assert!(answer.status == status && answer.text().contains(word), "{address}{page}: {answer:?}");
        }
    }

    let pid = rustix::process::Pid::from_child(&ours.child);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    // What ends a process that says nothing of it, and is sent by habit.
    for one in [Signal::USR1, Signal::USR2, Signal::ALARM] {
        signal(one);
    }
    listed(&ours, &both).await;

    // Who stops takes its entry away.
    signal(Signal::TERM);
    let code = eventually("it ends", async || ours.child.try_wait().unwrap().ok_or("it runs".to_owned())).await;
    assert_eq!(code.code(), Some(0));
    listed(&theirs, &[&theirs.client]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_keep_one_lease_alive_by_few_calls() {
    let cluster = Cluster::start(&["a"]).await;
    let proxy = Proxy::start(&cluster, &[]).await;
    let mut leases = LeaseClient::new(proxy.channel());
    let id = leases.lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 0 }).await.unwrap().into_inner().id;
    // All on one stream, so that they come at once.
    let requests = tokio_stream::iter(vec![pb::LeaseKeepAliveRequest { id }; 64]);
    let mut answers = leases.lease_keep_alive(requests).await.unwrap().into_inner();
    for _ in 0..64 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.id, answer.ttl), (id, 60));
    }
    let renewed = metric(&cluster.members[0].client, "/metrics", "etcd_debugging_lease_renewed_total").await;
    assert!((1.0..32.0).contains(&renewed), "{renewed}");

    leases.lease_revoke(pb::LeaseRevokeRequest { id }).await.unwrap();
    let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
    let mut answers = leases.lease_keep_alive(requests).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 0);
}

#[test]
fn the_verb_without_a_verb_and_flags_that_are_none() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ferretcd")).env_clear().args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, _) = run(&["grpc-proxy"]);
    assert!(code == Some(0) && out.contains("grpc-proxy start [flags]"), "{out}");
    let (code, _, err) = run(&["etcd", "grpc-proxy", "start", "--foo"]);
    assert!(code == Some(1) && err.starts_with("Error: unknown flag: --foo\n"), "{err}");

    // Every flag of etcd's help is in ours.
    let etcds = Command::new(etcd_tool("etcd")).args(["grpc-proxy", "start", "--help"]).output().unwrap();
    let (code, ours, _) = run(&["grpc-proxy", "start", "--help"]);
    assert_eq!(code, Some(0));
    let etcds = String::from_utf8_lossy(&etcds.stdout).into_owned();
    let names: Vec<&str> =
        etcds.split_whitespace().filter(|word| word.starts_with("--") && *word != "--help").collect();
    assert!(names.len() >= 39, "{etcds}");
    for name in names {
        assert!(ours.contains(&format!("  {name} '")), "{name}");
    }
}
