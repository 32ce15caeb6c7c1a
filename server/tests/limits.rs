//! etcd's limits, each by its name: at the limit it works, one above it etcd's error comes. Where it is cheap, real etcd
//! is asked the same beside this server.

use crate::support::both::{Both, ended};
use crate::support::etcd::Etcd;
use crate::support::{Cluster, Member, PATIENCE, eventually, http};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::v3electionpb::{CampaignRequest, LeaderRequest, election_client::ElectionClient};
use ferretcd_proto::v3lockpb::{LockRequest, lock_client::LockClient};
use pb::cluster_client::ClusterClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

fn put(key: &str, value: Vec<u8>) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() }
}

async fn put_bytes(member: &Member, bytes: usize) -> String {
    ended(member.kv().await.put(put("k", vec![b'v'; bytes])).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn request_bytes() {
    let both = Both::start(&["--max-request-bytes=100000"]).await;
    // What surrounds key and value in the log differs by a few bytes, and in etcd from start to start.
    const AROUND: usize = 64;
    let too_large = "InvalidArgument: etcdserver: request is too large";
    for member in both.sides() {
        let (mut fits, mut above) = (100_000 - AROUND, 100_000);
        assert_eq!((put_bytes(&member, fits).await, put_bytes(&member, above).await), ("OK".into(), too_large.into()));
        while above - fits > 1 {
            let middle = (fits + above) / 2;
            match put_bytes(&member, middle).await.as_str() {
                "OK" => fits = middle,
                text => {
                    assert_eq!(text, too_large);
                    above = middle;
                }
            }
        }
        assert_eq!((put_bytes(&member, fits).await, put_bytes(&member, above).await), ("OK".into(), too_large.into()));
    }
    // A transaction counts as a whole.
    let halves = |bytes| pb::TxnRequest {
        success: ["a", "b"]
            .map(|key| pb::RequestOp { request: Some(Request::RequestPut(put(key, vec![b'v'; bytes]))) })
            .into(),
        ..Default::default()
    };
    for (bytes, answer) in [(49_900, "OK"), (50_000, too_large)] {
        let said = both.agree("txn", async |m| ended(m.kv().await.txn(halves(bytes)).await)).await;
        assert_eq!(said, answer);
    }
    // Reads are not proposals.
    let range = |bytes| pb::RangeRequest { key: vec![b'k'; bytes].into(), ..Default::default() };
    both.agree("range", async |m| ended(m.kv().await.range(range(200_000)).await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn received_bytes() {
    let both = Both::start(&["--max-request-bytes=1000"]).await;
    const LIMIT: usize = 1000 + (512 << 10);
    // Tag and length of the key.
    const AROUND: usize = 4;
    let range = |bytes: usize| pb::RangeRequest { key: vec![b'k'; bytes - AROUND].into(), ..Default::default() };
    let at = both.agree("a request at the limit", async |m| ended(m.kv().await.range(range(LIMIT)).await)).await;
    assert_eq!(at, "OK");
    let above =
        both.agree("a request above the limit", async |m| ended(m.kv().await.range(range(LIMIT + 1)).await)).await;
    assert_eq!(above, format!("ResourceExhausted: grpc: received message larger than max ({} vs. {LIMIT})", LIMIT + 1));
    // A stream ends with it. (Tags and lengths of key and request.)
    let watch = async |m: Member, bytes: usize| {
        let create = pb::WatchCreateRequest { key: vec![b'k'; bytes - 2 * AROUND].into(), ..Default::default() };
        let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The requests have no end of their own.
        let requests = futures::StreamExt::chain(tokio_stream::once(create), futures::stream::pending());
        let answer = async {
            let mut answers = WatchClient::new(m.channel().await).watch(requests).await?.into_inner();
            answers.message().await.map(|m| m.unwrap().created)
        };
        answer.await.map_err(|s| ended::<()>(Err(s)))
    };
    assert_eq!(both.agree("a watch at the limit", async |m| watch(m, LIMIT).await).await, Ok(true));
    let above = both.agree("a watch above the limit", async |m| watch(m, LIMIT + 1).await).await;
    assert!(above.is_err_and(|e| e.starts_with("ResourceExhausted: grpc: received message larger")));
    // What is sent has no limit of that size: ten answers' worth of what may come in.
    let value = || vec![b'v'; 900];
    for n in 0..700 {
        both.ours().kv().await.put(put(&format!("{n:03}"), value())).await.unwrap();
    }
    let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    assert_eq!(both.ours().kv().await.range(all).await.unwrap().into_inner().kvs.len(), 700);
}

/// A transaction with so many compares, and operations in each branch, the last of them one with that in it.
fn txn(compares: usize, success: usize, failure: usize, nested: Option<pb::TxnRequest>) -> pb::TxnRequest {
    let compare = pb::Compare { key: "k".into(), ..Default::default() };
    let range = || pb::RangeRequest { key: "k".into(), ..Default::default() };
    let ops = |n| vec![pb::RequestOp { request: Some(Request::RequestRange(range())) }; n];
    let mut success = ops(success);
    success.extend(nested.map(|txn| pb::RequestOp { request: Some(Request::RequestTxn(txn)) }));
    pb::TxnRequest { compare: vec![compare; compares], success, failure: ops(failure) }
}

#[tokio::test(flavor = "multi_thread")]
async fn txn_ops() {
    let both = Both::start(&[]).await;
    let too_many = "InvalidArgument: etcdserver: too many operations in txn request";
    let table = [
        (txn(128, 128, 128, None), "OK"),
        (txn(129, 0, 0, None), too_many),
        (txn(0, 129, 0, None), too_many),
        (txn(0, 0, 129, None), too_many),
        // A nested one has what its parent's longest list leaves.
        (txn(0, 63, 0, Some(txn(64, 64, 64, None))), "OK"),
        (txn(0, 63, 0, Some(txn(0, 0, 65, None))), too_many),
        (txn(100, 0, 0, Some(txn(28, 0, 0, None))), "OK"),
        (txn(100, 0, 0, Some(txn(29, 0, 0, None))), too_many),
        (txn(0, 0, 0, Some(txn(0, 0, 0, Some(txn(0, 126, 0, None))))), "OK"),
        (txn(0, 0, 0, Some(txn(0, 0, 0, Some(txn(0, 127, 0, None))))), too_many),
    ];
    for (at, (request, answer)) in table.into_iter().enumerate() {
        let ask = async |m: Member| ended(m.kv().await.txn(request.clone()).await);
        assert_eq!(both.agree(&format!("row {at}"), ask).await, answer, "row {at}");
    }
    // One below another, as deep as the operations go: what comes in is decoded, checked and refused, or done.
    let nested = |depth| (1..depth).fold(txn(0, 1, 0, None), |inner, _| txn(0, 0, 0, Some(inner)));
    for depth in [20, 200] {
        both.ours().kv().await.txn(nested(depth)).await.map_err(|s| s.code()).err();
        assert!(both.ours().put("alive", "yes").await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_seconds() {
    let both = Both::start(&[]).await;
    let too_large = "OutOfRange: etcdserver: too large lease TTL".to_owned();
    let table = [
        (9_000_000_000, Ok(9_000_000_000)),
        (9_000_000_001, Err(too_large.clone())),
        (i64::MAX, Err(too_large)),
        (2, Ok(2)),
        (1, Ok(2)),
        (0, Ok(2)),
        (-5, Ok(2)),
    ];
    for (ttl, answer) in table {
        let ask = async |m: Member| {
            let granted = LeaseClient::new(m.channel().await).lease_grant(pb::LeaseGrantRequest { ttl, id: 0 }).await;
            granted.map(|g| g.into_inner().ttl).map_err(|s| ended::<()>(Err(s)))
        };
        assert_eq!(both.agree(&format!("ttl {ttl}"), ask).await, answer, "ttl {ttl}");
    }
}

/// A watch of a key that nobody writes. The call ends when both halves are dropped.
type Quiet = (mpsc::Sender<pb::WatchRequest>, tonic::Streaming<pb::WatchResponse>);

async fn quiet_watch(channel: Channel) -> Quiet {
    let create = pb::WatchCreateRequest { key: "quiet".into(), ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (sender, requests) = mpsc::channel(1);
    sender.send(create).await.unwrap();
    let mut answers = WatchClient::new(channel).watch(ReceiverStream::new(requests)).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    (sender, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_streams() {
    let both = Both::start(&["--max-concurrent-streams=3"]).await;
    for member in both.sides() {
        let channel = member.channel().await;
        let get = || pb::RangeRequest { key: "k".into(), ..Default::default() };
        // One call first, so that the client has the server's settings.
        pb::kv_client::KvClient::new(channel.clone()).range(get()).await.unwrap();
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(quiet_watch(channel.clone()).await);
        }
        let mut client = pb::kv_client::KvClient::new(channel);
        let waiting = client.range(get());
        tokio::pin!(waiting);
        let early = tokio::time::timeout(Duration::from_millis(300), waiting.as_mut()).await;
        assert!(early.is_err(), "a fourth stream was opened at {}", member.client);
        // Another connection has places of its own; and a place that is left is taken.
        member.kv().await.range(get()).await.unwrap();
        open.pop();
        waiting.await.unwrap();
    }
    // All calls of the gateway have one connection's places together.
    for member in both.sides() {
        let mut open = Vec::new();
        for _ in 0..3 {
            let watch = http::Ask::post("/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#);
            let mut line = http::Connection::open(&member.client, &watch, None).await.unwrap();
            line.chunk(&String::from_utf8(watch.body).unwrap()).await.unwrap();
            assert_eq!(line.head().await.unwrap().status, 200);
            assert!(line.line().await.unwrap().contains("\"created\":true"));
            open.push(line);
        }
        let address = member.client.clone();
        let get =
            tokio::spawn(
                async move { http::ask(&address, &http::Ask::post("/v3/kv/range", r#"{"key":"Zm9v"}"#)).await },
            );
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!get.is_finished(), "a fourth call was made at {}", member.client);
        open.pop();
        assert_eq!(get.await.unwrap().status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn learners() {
    let both = Both::start(&["--max-learners=2"]).await;
    let add = async |m: Member, port: u16| {
        let request = pb::MemberAddRequest { peer_ur_ls: vec![format!("http://127.0.0.1:{port}")], is_learner: true };
        ClusterClient::new(m.channel().await).member_add(request).await
    };
    for (port, answer) in
        [(1, "OK"), (2, "OK"), (3, "FailedPrecondition: etcdserver: too many learner members in cluster")]
    {
        assert_eq!(both.agree(&format!("learner {port}"), async |m| ended(add(m, port).await)).await, answer);
    }
    // None of them has ever been heard of.
    let promote = async |m: Member| {
        let mut cluster = ClusterClient::new(m.channel().await);
        let list = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner();
        let id = list.members.iter().find(|m| m.is_learner).unwrap().id;
        ended(cluster.member_promote(pb::MemberPromoteRequest { id }).await)
    };
    let not_ready = "FailedPrecondition: etcdserver: can only promote a learner member which is in sync with leader";
    assert_eq!(both.agree("promote", promote).await, not_ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_time() {
    // The leader must be asked before it has missed the other one for an election time-out.
    let flags = ["--election-timeout=1500", "--heartbeat-interval=100"];
    let mut ours = Cluster::new(&["a", "b"]);
    for member in &mut ours.members {
        member.flags.extend(flags.map(str::to_owned));
        member.start();
    }
    for member in &ours.members {
        member.ready().await;
    }
    // Of etcd, one member that was told of another that never comes; of ours, the leader alone. Both are asked at once: later
    // they know that they do not lead, and a put waits for a leader until its deadline is over.
    let etcd = Etcd::start(&flags).await;
    let etcd = Member::at(&etcd.client, ours.tmp.path());
    let request = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()], is_learner: false };
    ClusterClient::new(etcd.channel().await).member_add(request).await.unwrap();
    asked_without_a_quorum(&etcd).await;
    let leader = ours.leader().await;
    ours.members[1 - leader].kill();
    asked_without_a_quorum(&ours.members[leader]).await;
}

async fn asked_without_a_quorum(member: &Member) {
    let begun = std::time::Instant::now();
    // A read may have to wait for the round of an earlier one first, which takes as long: more than a test's usual
    // patience with one call.
    let channel = Endpoint::from_shared(format!("http://{}", member.client)).unwrap().connect().await.unwrap();
    let mut kv = pb::kv_client::KvClient::new(channel);
    let get = kv.range(pb::RangeRequest { key: "k".into(), ..Default::default() });
    let (put, get) = tokio::join!(member.put("k", "v"), get);
    assert_eq!(ended(put), "Unavailable: etcdserver: request timed out", "{}", member.client);
    assert_eq!(ended(get), "Unavailable: etcdserver: request timed out", "{}", member.client);
    // 5 s and two elections, for both.
    assert!(begun.elapsed() >= Duration::from_millis(7900), "{:?}", begun.elapsed());
    assert_eq!(member.get("k", true).await.unwrap(), None, "a serializable read needs no quorum");
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_quota() {
    let both = Both::start(&["--quota-backend-bytes=2000000"]).await;
    let no_space = "ResourceExhausted: etcdserver: mvcc: database space exceeded";
    for member in both.sides() {
        let mut said = String::new();
        for n in 0..100 {
            said = ended(member.kv().await.put(put(&format!("k{n}"), vec![b'v'; 100_000])).await);
            if said != "OK" {
                break;
            }
        }
        assert_eq!(said, no_space, "{}", member.client);
    }
    both.agree("the alarm", async |m| {
        let get = pb::AlarmRequest::default();
        let alarms = m.maintenance().await.alarm(get).await.unwrap().into_inner().alarms;
        alarms.iter().map(|a| a.alarm).collect::<Vec<_>>()
    })
    .await;
    let table: [(&str, &str); 3] = [("put", no_space), ("lease", no_space), ("delete", "OK")];
    for (what, answer) in table {
        let ask = async |m: Member| match what {
            "put" => put_bytes(&m, 1).await,
            "lease" => {
                let grant = pb::LeaseGrantRequest { ttl: 10, id: 0 };
                ended(LeaseClient::new(m.channel().await).lease_grant(grant).await)
            }
            _ => {
                let delete = pb::DeleteRangeRequest { key: "k0".into(), ..Default::default() };
                ended(m.kv().await.delete_range(delete).await)
            }
        };
        assert_eq!(both.agree(what, ask).await, answer, "{what}");
    }
    // A member without space is to live, and its clients are to stay.
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/health", 503)] {
        assert_eq!(both.agree(path, async |m| probed(&m, path).await).await.0, status, "{path}");
    }
}

/// Who forgets leases uses up the disk with them.
#[tokio::test(flavor = "multi_thread")]
async fn leases_use_up_the_quota() {
    let both = Both::start(&["--quota-backend-bytes=150000"]).await;
    for member in both.sides() {
        let client = LeaseClient::new(member.channel().await);
        let mut granted = 0;
        let refused = 'granting: loop {
            let grants = (0..100).map(|_| {
                let mut client = client.clone();
                async move { ended(client.lease_grant(pb::LeaseGrantRequest { ttl: 10_000, id: 0 }).await) }
            });
            for said in futures::future::join_all(grants).await {
                match said.as_str() {
                    "OK" => granted += 1,
                    _ => break 'granting said,
                }
            }
            assert!(granted < 20_000, "{}: leases cost nothing", member.client);
        };
        println!("{}: {granted} leases", member.client);
        assert_eq!(refused, "ResourceExhausted: etcdserver: mvcc: database space exceeded", "{}", member.client);
    }
}

/// The answer of a probe; etcd's checks come in any order.
async fn probed(member: &Member, path: &str) -> (u16, Vec<String>) {
    let (status, report) = member.http(path).await;
    let mut lines: Vec<String> = report.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    (status, lines)
}

/// `/readyz` knows no `serializable` in etcd, as `/health` does; `exclude=linearizable_read` asks one member alone.
#[tokio::test(flavor = "multi_thread")]
async fn probes_without_a_quorum() {
    let both = Both::start(&[]).await;
    // A second voter that never comes.
    both.agree("a second voter", async |m| {
        let request = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()], is_learner: false };
        ended(ClusterClient::new(m.channel().await).member_add(request).await)
    })
    .await;
    for member in both.sides() {
        eventually("it has no leader", async || match member.status().await?.leader {
            0 => Ok(()),
            leader => Err(format!("{leader:x}")),
        })
        .await;
    }
    for (path, status) in [
        ("/livez?verbose", 200),
        ("/readyz", 503),
        ("/readyz?serializable", 503),
        ("/readyz?serializable=true", 503),
        ("/readyz?exclude=linearizable_read", 200),
        ("/readyz?verbose&exclude=linearizable_read", 200),
        ("/readyz/serializable_read", 200),
        ("/health", 503),
        ("/health?serializable=true", 200),
    ] {
        assert_eq!(both.agree(path, async |m| probed(&m, path).await).await.0, status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_pieces_and_the_first_chunk_of_a_range() {
    let both = Both::start(&[]).await;
    let pieces = async |m: Member| {
        for n in 0..11 {
            m.kv().await.put(put(&format!("k{n:02}"), vec![b'v'; 10_000])).await.unwrap();
        }
        let mut stream = m.maintenance().await.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
        let mut sizes = Vec::new();
        while let Some(piece) = stream.message().await.unwrap() {
            sizes.push(piece.blob.len());
        }
        // The SHA-256 comes by itself at the end, and the pieces before it are full, the last of them perhaps not.
        let sum = sizes.pop();
        sizes.pop();
        let range = pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        let mut stream = m.kv().await.range_stream(range).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap().range_response.unwrap().kvs.len();
        (sizes.iter().max().copied(), sizes.iter().min().copied(), sum, first)
    };
    let said = both.agree("pieces", pieces).await;
    assert_eq!(said, (Some(32 << 10), Some(32 << 10), Some(32), 10));

    // Which release's layout it is, both tell with each piece; whose snapshot, and of which revision, ours tells with
    // the first.
    let told = async |m: Member| {
        let mut stream = m.maintenance().await.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        m.put("later", "x").await.unwrap();
        let (mut versions, mut headers) = (vec![first.version], 0);
        while let Some(piece) = stream.message().await.unwrap() {
            versions.push(piece.version);
            headers += usize::from(piece.header.is_some());
        }
        versions.dedup();
        (versions, headers)
    };
    assert_eq!(both.agree("its version", told).await, (vec!["3.7.0".to_owned()], 0));
    let now = both.ours().status().await.unwrap().header;
    let mut stream = both.ours().maintenance().await.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    both.ours().put("later", "x").await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().header, now);
}

/// Frames of HTTP/2 by hand: no client library pings so often.
struct Frames(TcpStream);

const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

impl Frames {
    async fn open(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Frames(stream);
        frames.send(4, 0, &[]).await;
        frames
    }

    async fn send(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
        let frame = [&length[..], &[kind, flags, 0, 0, 0, 0], payload].concat();
        // A server that has hung up says so when it is read.
        let _ = self.0.write_all(&frame).await;
    }

    /// Type, flags and payload.
    async fn receive(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pings() {
    let both = Both::start(&[]).await;
    let ask = async |m: Member| {
        let mut frames = Frames::open(&m.client).await;
        let mut answered = 0;
        loop {
            frames.send(PING, 0, b"12345678").await;
            loop {
                match frames.receive().await {
                    Some((PING, 1, payload)) => {
                        assert_eq!(payload, b"12345678");
                        answered += 1;
                        break;
                    }
                    Some((GOAWAY, _, payload)) => {
                        return (answered, payload[4..8].to_vec(), String::from_utf8_lossy(&payload[8..]).into_owned());
                    }
                    // Settings, and windows.
                    Some(_) => {}
                    None => panic!("{} hung up without a word after {answered} pings", m.client),
                }
            }
            assert!(answered < 100, "{} lets clients ping", m.client);
        }
    };
    // etcd may or may not answer the last one before it says goodbye.
    let [etcd, ours] = both.sides();
    let (etcd, ours) = tokio::join!(ask(etcd), ask(ours));
    assert_eq!((ours.1, ours.2.as_str()), (etcd.1, "too_many_pings"));
    assert_eq!(ours.0, 3);
    assert!((3..=4).contains(&etcd.0), "{}", etcd.0);
}

/// Large from the start, and not by what hyper guesses of the wire: small ones make h2 hang up on a burst of small messages.
#[tokio::test(flavor = "multi_thread")]
async fn windows() {
    let cluster = Cluster::start(&["a"]).await;
    let mut frames = Frames::open(&cluster.members[0].client).await;
    let (mut stream, mut connection) = (0, 65_535);
    while connection == 65_535 {
        match frames.receive().await.unwrap() {
            (SETTINGS, 0, payload) => {
                let initial = payload.chunks(6).find(|setting| setting[..2] == [0, 4]).unwrap();
                stream = u32::from_be_bytes(initial[2..].try_into().unwrap());
            }
            (WINDOW_UPDATE, _, payload) => connection += u32::from_be_bytes(payload.try_into().unwrap()),
            _ => {}
        }
    }
    assert_eq!((connection, stream), (64 << 20, 2 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn head_bytes() {
    let both = Both::start(&[]).await;
    let http = |bytes: usize| http::Ask::get("/version").header("X-Large", &"x".repeat(bytes));
    let ask = async |m: Member| http::try_ask(&m.client, &http(1_000_000)).await.map(|a| a.status);
    assert_eq!(both.agree("a head of 1 MB", ask).await, Ok(200));
    // Both hang up on one that is longer, and a client that still sends may not get to read why.
    for member in both.sides() {
        let said = http::try_ask(&member.client, &http(2_000_000)).await.map(|a| a.status);
        assert!(matches!(said, Ok(431) | Err(_)), "{said:?}");
    }
    // A token of 900 KB is no token, but it is read. (Above 1 MiB grpc-go would go on to 16 MiB.)
    let grpc = async |m: Member, bytes: usize| {
        let mut request = tonic::Request::new(pb::RangeRequest { key: "k".into(), ..Default::default() });
        request.metadata_mut().insert("token", "t".repeat(bytes).parse().unwrap());
        m.kv().await.range(request).await.map(|_| ()).map_err(|s| s.code())
    };
    assert_eq!(both.agree("a token of 900 KB", async |m| grpc(m, 900_000).await).await, Ok(()));
    let refused = grpc(Member::at(&both.ours().client, both.ours.tmp.path()), 2_000_000).await;
    assert!(refused.is_err_and(|code| code != Code::Ok));
    assert!(both.ours().put("alive", "yes").await.is_ok());
}

/// openraft looks at its clock every 2.5 s then. Told by its log, since a busy machine needs as long for the start itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_alone_leads_at_once_whatever_the_election_time_out() {
    let mut cluster = Cluster::start_with(&["solo"], &["--election-timeout=50000"]).await;
    let member = &mut cluster.members[0];
    member.put("k", "v").await.unwrap();
    assert_eq!(member.terminate().await, Some(0));
    member.start();
    member.ready().await;
    let log = member.log();
    let logged = |what: &str| {
        let line = log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {log}"));
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        chrono::DateTime::parse_from_rfc3339(line["ts"].as_str().unwrap()).unwrap()
    };
    let took = logged("elected leader") - logged("state opened");
    assert!(took.num_milliseconds() < 2000, "{took}");
}

/// What a unit or a container begins with that says nothing about it, in small.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_files_is_raised_as_far_as_it_may_be() {
    let mut cluster = Cluster::new(&["solo"]);
    let member = &mut cluster.members[0];
    let shell = ["sh", "-c", "ulimit -Sn 200; exec \"$0\" \"$@\""].map(Into::into);
    member.program.splice(0..0, shell);
    member.start();
    member.ready().await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(TcpStream::connect(&member.client).await.unwrap());
    }
    let asked = tokio::time::timeout(Duration::from_secs(30), member.http("/version"));
    assert_eq!(asked.await.expect("a client after all these is served").0, 200);
}

/// As Go's servers have it: a host may have no other addresses.
#[tokio::test(flavor = "multi_thread")]
async fn all_addresses_are_those_of_ipv6_too() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return crate::support::left_out("this host has no IPv6");
    }
    let mut cluster = Cluster::new(&["solo"]);
    let member = &mut cluster.members[0];
    let port = member.client.rsplit_once(':').unwrap().1.to_owned();
    member.flags.push(format!("--listen-client-urls=http://0.0.0.0:{port}"));
    member.flags.push("--warning-unary-request-duration=1ns".to_owned());
    member.start();
    member.ready().await;
    let by_v6 = Member::at(&format!("[::1]:{port}"), cluster.tmp.path());
    assert_eq!(by_v6.put("k", "v").await.unwrap(), 2);
    let log = cluster.members[0].log();
    assert!(log.contains("\"remote\":\"[::1]:") && log.contains("\"remote\":\"127.0.0.1:"), "{log}");

    // Where one of them is named, too, at the same port.
    for urls in [["0.0.0.0", "[::1]"], ["[::1]", "0.0.0.0"]] {
        let member = &mut cluster.members[0];
        assert_eq!(member.terminate().await, Some(0));
        let urls = urls.map(|host| format!("http://{host}:{port}")).join(",");
        let command = member.command(&[&format!("--listen-client-urls={urls}")]);
        member.start_as(command);
        member.ready().await;
        assert_eq!(by_v6.get("k", false).await.unwrap().as_deref(), Some("v"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_to_stop() {
    // What is waited for would be so for 105 s.
    let mut cluster = Cluster::start_with(&["solo"], &["--election-timeout=50000"]).await;
    let member = &mut cluster.members[0];
    // Streams that nobody ends, calls that wait for others, and a client that never finishes its request.
    let channel = member.channel_for(PATIENCE);
    let (_asks, mut answers) = quiet_watch(channel.clone()).await;
    let lease = LeaseClient::new(channel.clone()).lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 0 }).await;
    let lease = lease.unwrap().into_inner().id;
    let alive = pb::LeaseKeepAliveRequest { id: lease };
    let alive = tokio_stream::once(alive).chain(tokio_stream::pending());
    let mut alive = LeaseClient::new(channel.clone()).lease_keep_alive(alive).await.unwrap().into_inner();
    assert!(alive.message().await.unwrap().is_some_and(|alive| alive.ttl == 600));
    let mut locks = LockClient::new(channel.clone());
    let lock = |lease| LockRequest { name: "lock".into(), lease };
    locks.lock(lock(lease)).await.unwrap();
    let other = LeaseClient::new(channel.clone()).lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 0 }).await;
    let other = other.unwrap().into_inner().id;
    let locks = tokio::spawn(async move { locks.lock(lock(other)).await.map(drop) });
    let mut elections = ElectionClient::new(channel.clone());
    let campaign = |lease| CampaignRequest { name: "office".into(), lease, value: "me".into() };
    elections.campaign(campaign(lease)).await.unwrap();
    let observed = elections.observe(LeaderRequest { name: "office".into() }).await;
    let mut observed = observed.unwrap().into_inner();
    assert!(observed.message().await.unwrap().is_some());
    let campaigns = tokio::spawn(async move { elections.campaign(campaign(other)).await.map(drop) });
    for (name, end) in [("lock/", "lock0"), ("office/", "office0")] {
        eventually("its second waits", async || {
            let under = pb::RangeRequest { key: name.into(), range_end: end.into(), ..Default::default() };
            match member.kv().await.range(under).await.unwrap().into_inner().count {
                2.. => Ok(()),
                count => Err(format!("{name}: {count}")),
            }
        })
        .await;
    }
    let mut half = TcpStream::connect(&member.client).await.unwrap();
    half.write_all(b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(member.terminate().await, Some(0));
    // etcd's 1.5 s, and as much again for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // Who watches or waits is told, and goes on elsewhere.
    let observes = ended(observed.message().await);
    for told in [ended(answers.message().await), ended(locks.await.unwrap()), ended(campaigns.await.unwrap()), observes]
    {
        assert_eq!(told, "Unavailable: etcdserver: server stopped");
    }
    eventually("its port is free", async || match TcpStream::connect(&member.client).await {
        Ok(_) => Err("somebody listens".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
}
