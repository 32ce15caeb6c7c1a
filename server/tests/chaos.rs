//! Members that are killed, held still and moved under load, and a judge of everything that their clients saw
//! (`ferretcd-history`): one order of all calls must explain every answer. `FERRETCD_ROUNDS` and `FERRETCD_SEED` choose how
//! often and where.

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use ferretcd_history::{Act, Answer, Call, Compare, Event, History, Kv, Outcome, Request, Seen, Span, Watch, check};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::{kv_client::KvClient, request_op, response_op, watch_client::WatchClient};
use ferretcd_proto::mvccpb;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Cluster, eventually};
use tokio::sync::Mutex;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

const CLIENTS: u64 = 6;
const KEYS: u64 = 6;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |value| value.parse().unwrap())
}

/// A sequence that looks like chance (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
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
async fn work(
    name: String,
    seed: u64,
    members: Vec<String>,
    began: Instant,
    history: Arc<Mutex<History>>,
    over: Arc<AtomicBool>,
) {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let connect = |member: &String| {
        let endpoint = Endpoint::from_shared(format!("http://{member}")).unwrap();
        KvClient::new(endpoint.connect_timeout(Duration::from_millis(500)).connect_lazy())
    };
    let mut clients: Vec<_> = members.iter().map(connect).collect();
    let mut calls = Vec::new();
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let key = |chance: &mut Chance| format!("k{}", chance.below(KEYS));
        let value = format!("{name}.{n}");
        let request = match chance.below(10) {
            0..3 => Request::Do(Act::Put { key: key(&mut chance), value, lease: 0 }),
            3 => Request::Do(Act::Delete(Span::key(&key(&mut chance)))),
            4 | 5 => Request::Do(Act::Range(Span::all())),
            6 => Request::Serializable(Span::all()),
            7 => Request::Do(Act::Range(Span::key(&key(&mut chance)))),
            _ => Request::Txn {
                compares: vec![Compare::Version(key(&mut chance), chance.below(3) as i64)],
                then: vec![Act::Put { key: key(&mut chance), value, lease: 0 }, Act::Range(Span::all())],
                otherwise: vec![Act::Range(Span::all())],
            },
        };
        let at = chance.below(clients.len() as u64) as usize;
        let begun = began.elapsed().as_nanos() as u64;
        // Shorter than the server's own time-outs: some answers are not waited for.
        let answered = tokio::time::timeout(Duration::from_secs(3), ask(&mut clients[at], &request)).await;
        let ended = began.elapsed().as_nanos() as u64;
        let outcome = match answered {
            Ok(Ok((revision, answer))) => Outcome::Done { revision, answer },
            Ok(Err(_)) | Err(_) => Outcome::Unknown,
        };
        if outcome == Outcome::Unknown {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        calls.push(Call { client: format!("{name}@{at}"), begun, ended, request, outcome });
        // Some rest, so that the judge has thousands of calls and not tens of them.
        tokio::time::sleep(Duration::from_millis(chance.below(15))).await;
    }
    history.lock().await.calls.extend(calls);
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
        let message = tokio::time::timeout(support::PATIENCE, told.next()).await.unwrap().unwrap().unwrap();
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

async fn disturbed(names: &[&str], rounds: u64, seed: u64) {
    let mut cluster = Cluster::start(names).await;
    let (began, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let history = Arc::new(Mutex::new(History::default()));
    let members: Vec<String> = cluster.members.iter().map(|m| m.client.clone()).collect();
    let start = |n| work(format!("c{n}"), seed * 1000 + n, members.clone(), began, history.clone(), over.clone());
    let clients: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(start(n))).collect();
    let mut chance = Chance(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    for round in 0..rounds {
        // Mostly whoever leads.
        let any = chance.below(names.len() as u64) as usize;
        let at = if chance.below(3) > 0 { cluster.leader().await } else { any };
        let member = &mut cluster.members[at];
        let pause = Duration::from_millis(100 + chance.below(900));
        match round % 2 {
            0 => {
                member.kill();
                tokio::time::sleep(pause).await;
                member.start();
            }
            // Longer than an election: when it goes on, another leads, and it must not answer from what it was.
            _ => {
                member.pause();
                tokio::time::sleep(pause + Duration::from_millis(1200)).await;
                member.resume();
            }
        }
        tokio::time::sleep(Duration::from_millis(chance.below(300))).await;
    }
    for member in &cluster.members {
        member.ready().await;
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    cluster.agreed().await;
    let mut history = std::mem::take(&mut *history.lock().await);
    let last =
        eventually("a last revision", async || Ok(cluster.members[0].status().await?.header.unwrap().revision)).await;
    for member in &members {
        history.watches.push(witness(member, last).await);
    }
    let answered = history.calls.iter().filter(|call| call.outcome != Outcome::Unknown).count();
    assert!(answered as u64 > rounds * 5, "only {answered} of {} calls were answered", history.calls.len());
    let verdict = check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    println!("{answered} of {} calls, revision {last}, {} late", history.calls.len(), verdict.late);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_killed_and_held_still_lose_nothing_and_serve_nothing_stale() {
    let (rounds, seed) = (number("FERRETCD_ROUNDS", 10), number("FERRETCD_SEED", 1));
    disturbed(&["a", "b", "c"], rounds - rounds / 4, seed).await;
    disturbed(&["a", "b", "c", "d", "e"], rounds / 4, seed).await;
}
