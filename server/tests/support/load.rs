//! Clients that call members at random and write down what they see, and the judge of it (`ferretcd-history`): one order
//! of all calls must explain every answer.

#![allow(dead_code)] // Each test binary uses its part.

use super::support::{Cluster, PATIENCE, eventually};
use ferretcd_history::{Act, Answer, Call, Compare, Event, History, Kv, Outcome, Request, Seen, Span, Watch, check};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::{kv_client::KvClient, request_op, response_op, watch_client::WatchClient};
use ferretcd_proto::mvccpb;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

const CLIENTS: u64 = 6;
const KEYS: u64 = 6;

/// Clients at work.
pub struct Load {
    seed: u64,
    members: Vec<String>,
    over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    history: Arc<Mutex<History>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts clients that call these members (`host:port`) until [`Load::judge`], and wait so long for each answer.
    pub fn start(members: Vec<String>, seed: u64, wait: Duration) -> Load {
        let (began, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let (history, acknowledged) = (Arc::new(Mutex::new(History::default())), Arc::default());
        let mut load = Load { seed, members, over, acknowledged, history, clients: Vec::new() };
        for n in 0..CLIENTS {
            let client = Client {
                name: format!("c{n}"),
                chance: Chance((seed * 1000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
                members: load.members.clone(),
                began,
                wait,
                history: load.history.clone(),
                over: load.over.clone(),
                acknowledged: load.acknowledged.clone(),
            };
            load.clients.push(tokio::spawn(client.work()));
        }
        load
    }

    /// Waits until so many more calls are answered.
    pub async fn answered(&self, more: u64) {
        let target = self.acknowledged.load(Ordering::Relaxed) + more;
        eventually("calls are answered", async || match self.acknowledged.load(Ordering::Relaxed) {
            n if n >= target => Ok(()),
            n => Err(format!("{n} of {target}")),
        })
        .await;
    }

    /// Ends the clients, waits until all members of the cluster hold the same, and holds everything that was seen
    /// against etcd's model. At least so many calls must have been answered. What it was comes back as a line.
    pub async fn judge(self, cluster: &Cluster, least: usize) -> String {
        for member in cluster.members.iter().filter(|m| m.runs()) {
            member.ready().await;
        }
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        cluster.agreed().await;
        let hashes = eventually("the members' hashes are of one revision", async || {
            let mut hashes = Vec::new();
            for member in cluster.members.iter().filter(|m| m.runs()) {
                let asked = member.maintenance().await.hash_kv(pb::HashKvRequest { revision: 0 }).await;
                let answer = asked.map_err(|e| e.to_string())?.into_inner();
                hashes.push((answer.hash_revision, answer.compact_revision, answer.hash));
            }
            match hashes.iter().all(|(revision, ..)| *revision == hashes[0].0) {
                true => Ok(hashes),
                false => Err(format!("{hashes:?}")),
            }
        })
        .await;
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "seed {}: the hashes differ: {hashes:x?}", self.seed);
        let mut history = std::mem::take(&mut *self.history.lock().await);
        let last = hashes[0].0;
        for member in cluster.members.iter().filter(|m| m.runs()) {
            history.watches.push(witness(&member.client, last).await);
        }
        let answered = history.calls.iter().filter(|call| call.outcome != Outcome::Unknown).count();
        assert!(answered > least, "only {answered} of {} calls were answered", history.calls.len());
        let verdict = check(&history).unwrap_or_else(|violation| panic!("seed {}: {violation}", self.seed));
        format!("{answered} of {} calls, revision {last}, {} late", history.calls.len(), verdict.late)
    }
}

pub fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |value| value.parse().unwrap())
}

/// A sequence that looks like chance (xorshift).
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kv(kv: &mvccpb::KeyValue) -> (String, Kv) {
    let (created, modified) = (kv.create_revision, kv.mod_revision);
    (text(&kv.key), Kv { value: text(&kv.value), created, modified, version: kv.version, lease: kv.lease })
}

fn kvs(kvs: &[mvccpb::KeyValue]) -> Answer {
    Answer::Kvs(kvs.iter().map(kv).collect())
}

fn ends(span: &Span) -> (Vec<u8>, Vec<u8>) {
    match &span.end {
        None => (span.start.clone().into(), vec![]),
        Some(_) => (vec![0], vec![0]),
    }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn range(span: &Span, serializable: bool) -> pb::RangeRequest {
    let (key, range_end) = ends(span);
    pb::RangeRequest { key: key.into(), range_end: range_end.into(), serializable, ..Default::default() }
}

fn delete(span: &Span) -> pb::DeleteRangeRequest {
    let (key, range_end) = ends(span);
    pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

fn op(act: &Act) -> pb::RequestOp {
    let request = match act {
        Act::Put { key, value, .. } => request_op::Request::RequestPut(put(key, value)),
        Act::Delete(span) => request_op::Request::RequestDeleteRange(delete(span)),
        Act::Range(span) => request_op::Request::RequestRange(range(span, false)),
    };
    pb::RequestOp { request: Some(request) }
}

fn reply(reply: &pb::ResponseOp) -> Answer {
    match reply.response.as_ref().unwrap() {
        response_op::Response::ResponseRange(r) => kvs(&r.kvs),
        response_op::Response::ResponsePut(_) => Answer::Done,
        response_op::Response::ResponseDeleteRange(r) => Answer::Deleted(r.deleted),
        response_op::Response::ResponseTxn(_) => panic!("none was asked for"),
    }
}

async fn ask(client: &mut KvClient<Channel>, request: &Request) -> Result<(i64, Answer), tonic::Status> {
    match request {
        Request::Do(Act::Put { key, value, .. }) => {
            let done = client.put(put(key, value)).await?.into_inner();
            Ok((done.header.unwrap().revision, Answer::Done))
        }
        Request::Do(Act::Delete(span)) => {
            let done = client.delete_range(delete(span)).await?.into_inner();
            Ok((done.header.unwrap().revision, Answer::Deleted(done.deleted)))
        }
        Request::Do(Act::Range(span)) => {
            let found = client.range(range(span, false)).await?.into_inner();
            Ok((found.header.unwrap().revision, kvs(&found.kvs)))
        }
        Request::Serializable(span) => {
            let found = client.range(range(span, true)).await?.into_inner();
            Ok((found.header.unwrap().revision, kvs(&found.kvs)))
        }
        Request::Txn { compares, then, otherwise } => {
            let compare = |compare: &Compare| {
                let Compare::Version(key, version) = compare else { panic!("none was asked for") };
                pb::Compare {
                    key: key.clone().into(),
                    target: pb::compare::CompareTarget::Version.into(),
                    target_union: Some(pb::compare::TargetUnion::Version(*version)),
                    ..Default::default()
                }
            };
            let txn = pb::TxnRequest {
                compare: compares.iter().map(compare).collect(),
                success: then.iter().map(op).collect(),
                failure: otherwise.iter().map(op).collect(),
            };
            let done = client.txn(txn).await?.into_inner();
            let answers = done.responses.iter().map(reply).collect();
            Ok((done.header.unwrap().revision, Answer::Txn { succeeded: done.succeeded, answers }))
        }
        _ => panic!("none is asked for"),
    }
}

/// One client: calls at one member after the other, each written down.
struct Client {
    name: String,
    chance: Chance,
    members: Vec<String>,
    began: Instant,
    wait: Duration,
    history: Arc<Mutex<History>>,
    over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Client {
    async fn work(mut self) {
        let connect = |member: &String| {
            let endpoint = Endpoint::from_shared(format!("http://{member}")).unwrap();
            KvClient::new(endpoint.connect_timeout(Duration::from_millis(500)).connect_lazy())
        };
        let mut clients: Vec<_> = self.members.iter().map(connect).collect();
        let mut calls = Vec::new();
        for n in 0.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let request = self.request(format!("{}.{n}", self.name));
            let at = self.chance.below(clients.len() as u64) as usize;
            let begun = self.began.elapsed().as_nanos() as u64;
            // Shorter than the server's own time-outs: some answers are not waited for.
            let answered = tokio::time::timeout(self.wait, ask(&mut clients[at], &request)).await;
            let ended = self.began.elapsed().as_nanos() as u64;
            let outcome = match answered {
                Ok(Ok((revision, answer))) => Outcome::Done { revision, answer },
                Ok(Err(_)) | Err(_) => Outcome::Unknown,
            };
            if outcome == Outcome::Unknown {
                tokio::time::sleep(Duration::from_millis(50)).await;
            } else {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            calls.push(Call { client: format!("{}@{at}", self.name), begun, ended, request, outcome });
            // Some rest, so that the judge has thousands of calls and not tens of them.
            tokio::time::sleep(Duration::from_millis(self.chance.below(15))).await;
        }
        self.history.lock().await.calls.extend(calls);
    }

    /// A call, which writes this value if it writes.
    fn request(&mut self, value: String) -> Request {
        let chance = &mut self.chance;
        let key = |chance: &mut Chance| format!("k{}", chance.below(KEYS));
        match chance.below(10) {
            0..3 => Request::Do(Act::Put { key: key(chance), value, lease: 0 }),
            3 => Request::Do(Act::Delete(Span::key(&key(chance)))),
            4 | 5 => Request::Do(Act::Range(Span::all())),
            6 => Request::Serializable(Span::all()),
            7 => Request::Do(Act::Range(Span::key(&key(chance)))),
            _ => Request::Txn {
                compares: vec![Compare::Version(key(chance), chance.below(3) as i64)],
                then: vec![Act::Put { key: key(chance), value, lease: 0 }, Act::Range(Span::all())],
                otherwise: vec![Act::Range(Span::all())],
            },
        }
    }
}

/// Everything that happened, as a watcher is told it in the end by one member.
async fn witness(member: &str, until: i64) -> Watch {
    let endpoint = Endpoint::from_shared(format!("http://{member}")).unwrap();
    let mut client = WatchClient::new(endpoint.connect().await.unwrap());
    let (ask, asked) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: 1,
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    ask.send(create).await.unwrap();
    let mut told = client.watch(tokio_stream::wrappers::ReceiverStream::new(asked)).await.unwrap().into_inner();
    let (mut seen, mut last) = (Vec::new(), 1);
    while last < until {
        let message = tokio::time::timeout(PATIENCE, told.next()).await.unwrap().unwrap().unwrap();
        let event = |event: &mvccpb::Event| {
            let (key, now) = kv(event.kv.as_ref().unwrap());
            let revision = now.modified;
            let kv = (event.r#type() == mvccpb::event::EventType::Put).then_some(now);
            Event { revision, key, kv }
        };
        let events: Vec<Event> = message.events.iter().map(event).collect();
        if let Some(event) = events.last() {
            last = event.revision;
            seen.push(Seen::Events(events));
        }
    }
    Watch { client: format!("a watcher at {member}"), span: Span::all(), start: 1, seen, until }
}
