//! Clients that do not read: each costs a bounded piece of memory, and nobody else notices. 10,000 watches of which 100
//! are never read, under a steady load; and other streams that nobody reads.
//!
//! `FERRETCD_WATCH_ROUNDS` sets how often every key is written while memory is measured (2 if unset).

use crate::support;
use crate::support::{Cluster, Member, eventually, http};
use ferretcd_proto::etcdserverpb as pb;
use futures::StreamExt;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

const MIB: usize = 1 << 20;
/// Watched keys, `0/00` to `9/99`.
const KEYS: usize = 1000;
const VALUE_BYTES: usize = 4096;
/// Watches that are read, of one key each: 330 streams of 30, ten to a connection.
const READERS: usize = 9900;
const READERS_PER_STREAM: usize = 30;
const STREAMS_PER_CONNECTION: usize = 10;
/// Streams that are not read, of ten watches each that see a tenth of the keys: what comes to each stream is all there is.
const SILENT_STREAMS: usize = 10;
const PUTS_AT_ONCE: usize = 32;

fn key(n: usize) -> String {
    format!("{}/{:02}", n / 100, n % 100)
}

/// A connection of its own that takes little ahead of its reader.
async fn connect(member: &Member) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", member.client)).unwrap();
    endpoint.initial_stream_window_size(65_535).initial_connection_window_size(1 << 20).connect().await.unwrap()
}

fn watch(id: i64, key: &str, prefix: bool, start_revision: i64) -> pb::WatchRequest {
    let range_end = if prefix { [key.strip_suffix('/').unwrap(), "0"].concat().into() } else { Default::default() };
    let create = pb::WatchCreateRequest {
        key: key.to_owned().into(),
        range_end,
        watch_id: id,
        start_revision,
        ..Default::default()
    };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// An open stream; it ends when it is dropped.
struct Open {
    _requests: mpsc::Sender<pb::WatchRequest>,
    answers: Streaming<pb::WatchResponse>,
}

async fn open(channel: &Channel, watches: Vec<pb::WatchRequest>) -> Open {
    let (requests, receiver) = mpsc::channel(watches.len().max(1));
    for watch in watches {
        requests.send(watch).await.unwrap();
    }
    let mut client = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    Open { answers: client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner(), _requests: requests }
}

/// What a stream's watches have been told: of each key the revisions, in the order in which they came.
#[derive(Default)]
struct Told {
    created: usize,
    revisions: BTreeMap<i64, Vec<i64>>,
    /// Watches that were cancelled, and the compacted revision that they were given.
    cancelled: HashMap<i64, i64>,
}

impl Told {
    fn take(&mut self, answer: &pb::WatchResponse) -> usize {
        self.created += usize::from(answer.created);
        if answer.canceled {
            self.cancelled.insert(answer.watch_id, answer.compact_revision);
        }
        let told = self.revisions.entry(answer.watch_id).or_default();
        for event in &answer.events {
            let revision = event.kv.as_ref().unwrap().mod_revision;
            assert!(told.last().is_none_or(|last| *last < revision), "{revision} came after {:?}", told.last());
            assert!(revision <= answer.header.unwrap().revision);
            told.push(revision);
        }
        answer.events.len()
    }
}

/// Who reads all the time, and how much they have been told in all.
#[derive(Default)]
struct Readers {
    created: Arc<AtomicUsize>,
    events: Arc<AtomicUsize>,
}

impl Readers {
    fn read(&self, mut open: Open) {
        let (created, events) = (self.created.clone(), self.events.clone());
        tokio::spawn(async move {
            let mut told = Told::default();
            while let Ok(Some(answer)) = open.answers.message().await {
                created.fetch_add(usize::from(answer.created), Ordering::Relaxed);
                events.fetch_add(told.take(&answer), Ordering::Relaxed);
            }
        });
    }

    async fn have(&self, what: &AtomicUsize, number: usize) {
        eventually(&format!("the readers are told of {number}"), async || match what.load(Ordering::Relaxed) {
            n if n == number => Ok(()),
            n => Err(format!("{n}")),
        })
        .await;
    }
}

/// When each revision came to one who watches everything.
type Arrivals = Arc<parking_lot::Mutex<HashMap<i64, Instant>>>;

async fn note_arrivals(channel: &Channel) -> Arrivals {
    let arrivals = Arrivals::default();
    let all = pb::WatchCreateRequest { key: "0".into(), range_end: ":".into(), ..Default::default() };
    let all = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(all)) };
    let mut open = open(channel, vec![all]).await;
    assert!(open.answers.message().await.unwrap().unwrap().created);
    let noted = arrivals.clone();
    tokio::spawn(async move {
        let mut told = Told::default();
        while let Ok(Some(answer)) = open.answers.message().await {
            told.take(&answer);
            let now = Instant::now();
            noted.lock().extend(answer.events.iter().map(|e| (e.kv.as_ref().unwrap().mod_revision, now)));
        }
    });
    arrivals
}

/// Writes every key once; how long it took from a put to its event for the one who watches everything, in the middle.
async fn round(channels: &[Channel], arrivals: &Arrivals) -> Duration {
    let put = |n: usize| async move {
        let mut kv = pb::kv_client::KvClient::new(channels[n % channels.len()].clone());
        // Each value is its own: nothing may be shared that would not be shared in life.
        let value = format!("{n:08}").repeat(VALUE_BYTES / 8);
        let begun = Instant::now();
        let put = pb::PutRequest { key: key(n).into(), value: value.into(), ..Default::default() };
        (kv.put(put).await.unwrap().into_inner().header.unwrap().revision, begun)
    };
    let puts: Vec<(i64, Instant)> =
        futures::stream::iter((0..KEYS).map(put)).buffer_unordered(PUTS_AT_ONCE).collect().await;
    eventually("all events come", async || {
        let arrivals = arrivals.lock();
        puts.iter().all(|(revision, _)| arrivals.contains_key(revision)).then_some(()).ok_or(arrivals.len().to_string())
    })
    .await;
    let arrivals = arrivals.lock();
    let mut times: Vec<Duration> =
        puts.iter().map(|(revision, begun)| arrivals[revision].saturating_duration_since(*begun)).collect();
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches_of_which_a_hundred_are_not_read() {
    let rounds: usize = std::env::var("FERRETCD_WATCH_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let writers = [connect(m).await, connect(m).await];
    let arrivals = note_arrivals(&connect(m).await).await;
    round(&writers, &arrivals).await;

    // Streams without a watch first, then the same number with watches: what each costs.
    let before = m.resident_bytes();
    let readers = Readers::default();
    let mut empty = Vec::new();
    let streams = READERS / READERS_PER_STREAM;
    let mut connections = Vec::new();
    for _ in 0..streams / STREAMS_PER_CONNECTION {
        let connection = connect(m).await;
        for _ in 0..STREAMS_PER_CONNECTION {
            empty.push(open(&connection, Vec::new()).await);
        }
        connections.push(connection);
    }
    let with_streams = m.resident_bytes();
    drop(empty);
    for stream in 0..streams {
        let watches = (0..READERS_PER_STREAM).map(|n| {
            let at = stream * READERS_PER_STREAM + n;
            watch(n as i64 + 1, &key(at % KEYS), false, 0)
        });
        readers.read(open(&connections[stream / STREAMS_PER_CONNECTION], watches.collect()).await);
    }
    readers.have(&readers.created, READERS).await;
    let with_watches = m.resident_bytes();

    // Every key is watched by as many, one more or less.
    let per_round = READERS;
    let alone = round(&writers, &arrivals).await;
    readers.have(&readers.events, per_round).await;

    let mut silent = Vec::new();
    let first = m.status().await.unwrap().header.unwrap().revision + 1;
    for _ in 0..SILENT_STREAMS {
        let watches = (0..10).map(|n| watch(n + 1, &format!("{n}/"), true, first)).collect();
        silent.push(open(&connect(m).await, watches).await);
    }
    // The queues of those who do not read fill up.
    round(&writers, &arrivals).await;
    readers.have(&readers.events, 2 * per_round).await;
    let warm = m.resident_bytes();
    let mut with_silent = Duration::ZERO;
    for n in 0..rounds {
        with_silent = with_silent.max(round(&writers, &arrivals).await);
        readers.have(&readers.events, (3 + n) * per_round).await;
    }
    let after = m.resident_bytes();
    let per = |bytes: usize, n: usize| bytes / n;
    println!(
        "figures per watcher and stream: {} bytes per stream, {} bytes per watcher; {} MiB before the load, {} MiB after \
         {} MiB of events that {} watches were not read for; median from put to event {alone:?}, with them {with_silent:?}",
        per(with_streams.saturating_sub(before), streams),
        per(with_watches.saturating_sub(with_streams), READERS),
        warm / MIB,
        after / MIB,
        rounds * KEYS * VALUE_BYTES / MIB,
        SILENT_STREAMS * 10,
    );
    // What is written stays in the store's and the log's memory until that is full; what waits for clients does not grow.
    let written = rounds * KEYS * VALUE_BYTES;
    let grown = (GROWTH_MAX + 2 * written).min(FULL_MAX);
    assert!(after < warm + grown, "{} MiB, then {} MiB", warm / MIB, after / MIB);
    assert!(with_silent < 20 * alone + Duration::from_secs(2), "{alone:?}, then {with_silent:?}");

    // Now they read: everything, in order.
    let all = (1 + rounds) * KEYS;
    for open in &mut silent {
        let (mut told, mut events) = (Told::default(), 0);
        while events < all {
            let answer = tokio::time::timeout(support::PATIENCE, open.answers.message()).await;
            events += told.take(&answer.expect("more events come").unwrap().unwrap());
        }
        assert_eq!((told.created, told.cancelled.len(), events), (10, 0, all));
        assert!(told.revisions.values().all(|revisions| revisions.len() == all / 10));
    }

    // And who does not read until his history is gone is told so, after what was kept for him.
    let late = &mut silent[0];
    for _ in 0..2 {
        round(&writers, &arrivals).await;
    }
    let now = m.status().await.unwrap().header.unwrap().revision;
    m.etcdctl(&["compaction", &now.to_string()]).unwrap();
    let mut told = Told::default();
    while told.cancelled.len() < 10 {
        let answer = tokio::time::timeout(support::PATIENCE, late.answers.message()).await;
        told.take(&answer.expect("all of them are cancelled").unwrap().unwrap());
    }
    assert!(told.cancelled.values().all(|compacted| *compacted == now), "{:?}", told.cancelled);
}

/// What the server may grow by for reasons of its own: its caches, the log's memory, an allocator's fragments.
const GROWTH_MAX: usize = 96 * MIB;

/// And at most, however much is written: both caches and the log's entries when they are full (224 MiB), and fragments. Measured in a
/// debug build: 268 MiB after 156 MiB of events, 304 MiB after 468.
const FULL_MAX: usize = 360 * MIB;

/// How many large values there are, 48 MiB in all.
const LARGE: usize = 768;
const LARGE_BYTES: usize = 64 << 10;
/// How many snapshots are read at once.
const SNAPSHOTS_MAX: usize = 4;

/// All of them are asked for before the first answer is read, and the answers fill the windows many times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_watches_on_one_connection_with_small_windows_is_served_whole() {
    const WATCHES: usize = 2500;
    const STUCK: Duration = Duration::from_secs(60);
    let cluster = Cluster::start(&["solo"]).await;
    let member = &cluster.members[0];
    member.put("k", &"x".repeat(2048)).await.unwrap();
    for streams in [1, 50, WATCHES] {
        // With a smaller window for the connection the library of this client takes so many small frames for an attack.
        let channel = connect(member).await;
        let each = WATCHES / streams;
        let watches = || (1..=each as i64).map(|id| watch(id, "k", false, 1)).collect::<Vec<_>>();
        let opening = futures::future::join_all((0..streams).map(|_| open(&channel, watches())));
        let opened = tokio::time::timeout(STUCK, opening).await.expect("all streams are opened");
        let told = futures::future::join_all(opened.into_iter().map(|mut open| async move {
            let mut told = Told::default();
            while told.created < each || told.revisions.values().map(Vec::len).sum::<usize>() < each {
                let answer = tokio::time::timeout(STUCK, open.answers.message()).await;
                let answer = answer.unwrap_or_else(|_| panic!("stuck at {} of {each} watches", told.created));
                told.take(&answer.unwrap().unwrap());
            }
            told
        }));
        assert_eq!(told.await.iter().map(|told| told.created).sum::<usize>(), WATCHES);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_streams_that_nobody_reads() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let large = |n: usize| pb::PutRequest {
        key: format!("0/{n:03}").into(),
        value: vec![b'v'; LARGE_BYTES].into(),
        ..Default::default()
    };
    for n in 0..LARGE {
        m.kv().await.put(large(n)).await.unwrap();
    }
    let all = || pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    // Everything has been in memory once.
    assert_eq!(m.kv().await.range(all()).await.unwrap().into_inner().kvs.len(), LARGE);
    let mut snapshot = m.maintenance().await.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    while snapshot.message().await.unwrap().is_some() {}
    let before = m.resident_bytes();

    const EACH: usize = 8;
    let watch = r#"{"create_request":{"key":"MC8=","range_end":"MDA=","start_revision":"1"}}"#;
    let (mut ranges, mut snapshots, mut lines, mut sockets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..EACH {
        ranges.push(pb::kv_client::KvClient::new(connect(m).await).range_stream(all()).await.unwrap());
        let ask = http::Ask::post("/v3/watch", "");
        let mut line = http::Connection::open(&m.client, &ask, None).await.unwrap();
        line.chunk(watch).await.unwrap();
        lines.push(line);
        let ask = http::Ask::get("/v3/watch")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==");
        let mut socket = http::Connection::open(&m.client, &ask, None).await.unwrap();
        assert_eq!(socket.head().await.unwrap().status, 101);
        // One frame of text; a mask of zeros changes nothing.
        let frame = [&[0x81, 0x80 | watch.len() as u8, 0, 0, 0, 0], watch.as_bytes()].concat();
        socket.send(&frame).await.unwrap();
        sockets.push(socket);
    }
    // Each snapshot keeps its moment in the store, so there is a bound of ours on them.
    for n in 0..=SNAPSHOTS_MAX {
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(connect(m).await);
        match maintenance.snapshot(pb::SnapshotRequest {}).await {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(status) => assert_eq!((n, status.message()), (SNAPSHOTS_MAX, "etcdserver: too many requests")),
        }
    }
    assert_eq!(snapshots.len(), SNAPSHOTS_MAX);
    // And a thousand calls on which nothing is ever said.
    let idle = connect(m).await;
    let mut calls = Vec::new();
    for _ in 0..1000 {
        calls.push(open(&idle, Vec::new()).await);
    }
    // All of it is under way when events of other watches have come through behind it.
    let arrivals = note_arrivals(&connect(m).await).await;
    for n in 0..8 {
        let revision = m.kv().await.put(large(n)).await.unwrap().into_inner().header.unwrap().revision;
        eventually("the event comes", async || {
            arrivals.lock().contains_key(&revision).then_some(()).ok_or(String::new())
        })
        .await;
    }
    let grown = m.resident_bytes().saturating_sub(before);
    let streams = 3 * EACH + SNAPSHOTS_MAX;
    println!("{} MiB for {streams} streams that nobody reads, of {} MiB each", grown / MIB, LARGE * LARGE_BYTES / MIB);
    // A few chunks each, where all of it would be 1.3 GiB, and more in base64. A gateway stream has most, about 16 MiB:
    // five answers of up to 3 MiB on their way from history to the socket.
    assert!(grown < streams * 24 * MIB, "{} MiB", grown / MIB);

    // They get what they asked for as soon as they read.
    for range in ranges {
        let (mut range, mut keys) = (range.into_inner(), 0);
        while let Some(chunk) = range.message().await.unwrap() {
            keys += chunk.range_response.unwrap().kvs.len();
        }
        assert_eq!(keys, LARGE);
    }
    for snapshot in snapshots {
        let (mut snapshot, mut left) = (snapshot.into_inner(), None);
        while let Some(piece) = snapshot.message().await.unwrap() {
            left = Some(piece.remaining_bytes);
        }
        assert_eq!(left, Some(0));
    }
    // (A WebSocket has no such end; that its client is gone is enough for its stream to end.)
    drop(sockets);
    for line in &mut lines {
        assert_eq!(line.head().await.unwrap().status, 200);
        for _ in 0..2 {
            assert!(line.line().await.unwrap().starts_with("{\"result\":"));
        }
    }
}
