//! Clients that call members at random and write down what they see, and the judge of it (`ferretcd-history`): one order
//! of all calls must explain every answer.

use super::{Cluster, PATIENCE, eventually};
use ferretcd_history::{Act, Answer, Call, Compare, Event, History, Kv, Outcome};
use ferretcd_history::{Refusal, Request, Seen, Span, Watch, check};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use ferretcd_proto::etcdserverpb::{kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient};
use ferretcd_proto::etcdserverpb::{request_op, response_op, watch_request::RequestUnion};
use ferretcd_proto::mvccpb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

const CLIENTS: u64 = 6;
const KEYS: u64 = 6;
const WATCHERS: u64 = 2;

/// Clients at work.
pub struct Load {
    seed: u64,
    members: Vec<String>,
    over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    history: Arc<Mutex<History>>,
    clients: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<(Watch, usize)>>,
    /// One for each member: who leads in which term, as it says.
    leaders: Vec<JoinHandle<BTreeSet<(u64, u64)>>>,
    /// Tells the watchers up to which revision they must see everything.
    finish: watch::Sender<i64>,
}

impl Load {
    /// Starts clients that call these members (`host:port`) until [`Load::judge`], and wait so long for each answer.
    pub fn start(members: Vec<String>, seed: u64, wait: Duration) -> Load {
        let (began, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let (history, acknowledged) = (Arc::new(Mutex::new(History::default())), Arc::default());
        let (finish, finished) = watch::channel(0);
        let watchers = (0..WATCHERS).map(|n| tokio::spawn(watcher(members.clone(), n as usize, finished.clone())));
        let watchers = watchers.collect();
        let leaders = members.iter().map(|member| tokio::spawn(leaders(member.clone(), over.clone()))).collect();
        let clients = Vec::new();
        let mut load = Load { seed, members, over, acknowledged, history, clients, watchers, leaders, finish };
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
        let mut terms: BTreeMap<u64, u64> = BTreeMap::new();
        for (member, named) in self.members.iter().zip(self.leaders) {
            for (term, leader) in named.await.unwrap() {
                let known = *terms.entry(term).or_insert(leader);
                let seed = self.seed;
                assert_eq!(
                    known, leader,
                    "seed {seed}: {member} names another leader of term {term} than one before it"
                );
            }
        }
        assert!(!terms.is_empty(), "no member names a leader");
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
        let whole = eventually("the members have applied the same", async || {
            let first = whole(cluster).await?;
            // What a member says it has applied may be a moment older than what it hashes; twice the same is not.
            match whole(cluster).await? {
                again if again == first && again.iter().all(|(applied, _)| *applied == again[0].0) => Ok(again),
                again => Err(format!("{first:x?}, then {again:x?}")),
            }
        })
        .await;
        assert!(whole.iter().all(|hash| *hash == whole[0]), "seed {}: the members differ: {whole:x?}", self.seed);
        let mut history = std::mem::take(&mut *self.history.lock().await);
        let last = hashes[0].0;
        self.finish.send_replace(last);
        for watcher in self.watchers {
            let seen = tokio::time::timeout(PATIENCE, watcher).await;
            let (watch, live) = seen.expect("a watcher is told of everything").unwrap();
            assert!(live > 0, "seed {}: {} was told of the past only", self.seed, watch.client);
            history.watches.push(watch);
        }
        let (_sender, finished) = watch::channel(last);
        for member in cluster.members.iter().filter(|m| m.runs()) {
            let seen = tokio::time::timeout(PATIENCE, watcher(vec![member.client.clone()], 0, finished.clone())).await;
            history.watches.push(seen.expect("a member tells of everything").0);
        }
        let answered = history.calls.iter().filter(|call| call.outcome != Outcome::Unknown).count();
        assert!(answered > least, "only {answered} of {} calls were answered", history.calls.len());
        let verdict = check(&history).unwrap_or_else(|violation| panic!("seed {}: {violation}", self.seed));
        let ended =
            history.calls.iter().filter(|call| call.outcome == Outcome::Refused(Refusal::LeaseNotFound)).count();
        let (calls, late, terms) = (history.calls.len(), verdict.late, terms.len());
        format!("{answered} of {calls} calls, revision {last}, {late} late, {ended} ended leases, {terms} terms")
    }
}

/// What each running member has applied, and the hash of all that it holds: leases, members, users and alarms, too. It
/// is the same with every engine: what is hashed is what a snapshot file for clients holds.
async fn whole(cluster: &Cluster) -> Result<Vec<(u64, u32)>, String> {
    let mut all = Vec::new();
    for member in cluster.members.iter().filter(|m| m.runs()) {
        let applied = member.status().await?.raft_applied_index;
        let asked = member.maintenance().await.hash(pb::HashRequest {}).await;
        all.push((applied, asked.map_err(|e| e.to_string())?.into_inner().hash));
    }
    Ok(all)
}

/// The leaders that a member names, by term, until the load is over.
async fn leaders(member: String, over: Arc<AtomicBool>) -> BTreeSet<(u64, u64)> {
    let endpoint = Endpoint::from_shared(format!("http://{member}")).unwrap();
    let endpoint = endpoint.connect_timeout(Duration::from_millis(500)).timeout(Duration::from_secs(1));
    let mut client = MaintenanceClient::new(endpoint.connect_lazy());
    let mut named = BTreeSet::new();
    while !over.load(Ordering::Relaxed) {
        let asked = client.status(pb::StatusRequest {}).await.ok().map(tonic::Response::into_inner);
        // A leader of 0 is none.
        named.extend(asked.map(|status| (status.raft_term, status.leader)).filter(|(_, leader)| *leader != 0));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    named
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
        Some(_) if *span == Span::all() => (vec![0], vec![0]),
        Some(end) => (span.start.clone().into(), end.clone().into()),
    }
}

fn put(key: &str, value: &str, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), lease, ..Default::default() }
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
        Act::Put { key, value, lease } => request_op::Request::RequestPut(put(key, value, *lease)),
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

/// One member, as a client calls it.
struct Callee {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
}

impl Callee {
    fn new(member: &str) -> Callee {
        let endpoint = Endpoint::from_shared(format!("http://{member}")).unwrap();
        let channel = endpoint.connect_timeout(Duration::from_millis(500)).connect_lazy();
        Callee { kv: KvClient::new(channel.clone()), lease: LeaseClient::new(channel) }
    }
}

const LEASE_NOT_FOUND: &str = "etcdserver: requested lease not found";
const FUTURE_REVISION: &str = "etcdserver: mvcc: required revision is a future revision";

/// Of a failure that means that nothing has happened, and that the judge knows: which refusal it is.
fn refused(status: &Status) -> Option<Refusal> {
    match (status.code(), status.message()) {
        (Code::NotFound, LEASE_NOT_FOUND) => Some(Refusal::LeaseNotFound),
        (Code::OutOfRange, FUTURE_REVISION) => Some(Refusal::FutureRevision),
        _ => None,
    }
}

async fn ask(callee: &mut Callee, request: &Request) -> Result<(i64, Answer), Status> {
    let (client, leases) = (&mut callee.kv, &mut callee.lease);
    match request {
        Request::Do(Act::Put { key, value, lease }) => {
            let done = client.put(put(key, value, *lease)).await?.into_inner();
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
                use pb::compare::{CompareTarget, TargetUnion};
                let (key, target, union) = match compare {
                    Compare::Version(key, version) => (key, CompareTarget::Version, TargetUnion::Version(*version)),
                    Compare::Modified(key, revision) => (key, CompareTarget::Mod, TargetUnion::ModRevision(*revision)),
                    Compare::Value(key, value) => (key, CompareTarget::Value, TargetUnion::Value(value.clone().into())),
                };
                let (key, target, target_union) = (key.clone().into(), target.into(), Some(union));
                pb::Compare { key, target, target_union, ..Default::default() }
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
        Request::Past(span, revision) => {
            let past = pb::RangeRequest { revision: *revision, ..range(span, false) };
            let found = client.range(past).await?.into_inner();
            Ok((found.header.unwrap().revision, kvs(&found.kvs)))
        }
        Request::Grant { lease, ttl } => {
            let grant = pb::LeaseGrantRequest { id: *lease, ttl: (ttl / SECOND) as i64 };
            let granted = leases.lease_grant(grant).await?.into_inner();
            Ok((granted.header.unwrap().revision, Answer::Done))
        }
        Request::KeepAlive { lease, .. } => {
            let asked = tokio_stream::once(pb::LeaseKeepAliveRequest { id: *lease });
            let mut answers = leases.lease_keep_alive(asked).await?.into_inner();
            match answers.message().await? {
                Some(renewed) if renewed.ttl > 0 => Ok((0, Answer::Done)),
                // That it has none is how the API says it of a renewal.
                Some(_) => Err(Status::not_found(LEASE_NOT_FOUND)),
                None => Err(Status::unavailable("the stream ended")),
            }
        }
        Request::Revoke { lease } => {
            let done = leases.lease_revoke(pb::LeaseRevokeRequest { id: *lease }).await?.into_inner();
            Ok((done.header.unwrap().revision, Answer::Done))
        }
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
        let mut callees: Vec<_> = self.members.iter().map(|member| Callee::new(member)).collect();
        let (mut calls, mut held, mut newest) = (Vec::new(), None, 1);
        for n in 0.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let request = self.request(n, &mut held, newest);
            let call = self.call(&mut callees, request).await;
            if let Outcome::Done { revision, .. } = call.outcome {
                newest = revision.max(newest);
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            } else {
                // Whether its lease exists nobody knows; a new one is simpler.
                held = None;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            calls.push(call);
            // Some rest, so that the judge has thousands of calls and not tens of them.
            tokio::time::sleep(Duration::from_millis(self.chance.below(15))).await;
        }
        // Each lease once more, when the members are well: one that lives is found, and one that was revoked is not.
        for n in 0..calls.len() {
            if let Call { request: Request::Grant { lease, ttl }, outcome: Outcome::Done { .. }, .. } = calls[n] {
                calls.push(self.call(&mut callees, Request::KeepAlive { lease, ttl }).await);
            }
        }
        self.history.lock().await.calls.extend(calls);
    }

    /// Makes the call at one of the members.
    async fn call(&mut self, callees: &mut [Callee], request: Request) -> Call {
        let at = self.chance.below(callees.len() as u64) as usize;
        let begun = self.began.elapsed().as_nanos() as u64;
        // Shorter than the server's own time-outs: some answers are not waited for.
        let answered = tokio::time::timeout(self.wait, ask(&mut callees[at], &request)).await;
        let ended = self.began.elapsed().as_nanos() as u64;
        let outcome = match answered {
            Ok(Ok((revision, answer))) => Outcome::Done { revision, answer },
            Ok(Err(status)) => refused(&status).map_or(Outcome::Unknown, Outcome::Refused),
            Err(_) => Outcome::Unknown,
        };
        Call { client: format!("{}@{at}", self.name), begun, ended, request, outcome }
    }

    /// The client's next call, its `n`th; one that writes writes a value of its own.
    fn request(&mut self, n: u64, held: &mut Option<(i64, u64)>, newest: i64) -> Request {
        let value = format!("{}.{n}", self.name);
        let before = format!("{}.{}", self.name, n.saturating_sub(3));
        let chance = &mut self.chance;
        let key = |chance: &mut Chance| format!("k{}", chance.below(KEYS));
        let span = |chance: &mut Chance| match chance.below(3) {
            0 => Span::all(),
            1 => Span { start: "k1".to_owned(), end: Some("k4".to_owned()) },
            _ => Span::key(&key(chance)),
        };
        match chance.below(20) {
            0..6 => Request::Do(Act::Put { key: key(chance), value, lease: 0 }),
            6 => Request::Do(Act::Delete(span(chance))),
            7..11 => Request::Do(Act::Range(span(chance))),
            11 => Request::Serializable(Span::all()),
            12 => Request::Past(span(chance), newest - chance.below(5.min(newest as u64)) as i64),
            13..16 => {
                let compare = match chance.below(4) {
                    0 => Compare::Modified(key(chance), newest),
                    1 => Compare::Value(key(chance), before),
                    _ => Compare::Version(key(chance), chance.below(3) as i64),
                };
                let then = vec![Act::Put { key: key(chance), value, lease: 0 }, Act::Range(Span::all())];
                Request::Txn { compares: vec![compare], then, otherwise: vec![Act::Range(span(chance))] }
            }
            n => match *held {
                None => {
                    // From what etcd grants at least, an election time-out and a half, to what ends while this runs.
                    let (lease, ttl) = ((chance.below(u64::MAX >> 2) + 1) as i64, (2 + chance.below(3)) * SECOND);
                    *held = Some((lease, ttl));
                    Request::Grant { lease, ttl }
                }
                Some((lease, ttl)) => match n {
                    16 | 17 => Request::Do(Act::Put { key: key(chance), value, lease }),
                    18 => Request::KeepAlive { lease, ttl },
                    _ => {
                        // It may be asked for once more, wherever that is: nobody may find it.
                        *held = held.filter(|_| chance.below(3) == 0);
                        Request::Revoke { lease }
                    }
                },
            },
        }
    }
}

/// In the history's unit of time.
const SECOND: u64 = 1_000_000_000;

/// Everything that happens, as a watcher is told it who begins at one of these members and goes on at the next when that fails,
/// until it has seen all up to the revision that it is told in the end. With it, how many messages came after a watch's first.
async fn watcher(members: Vec<String>, mut at: usize, mut finish: watch::Receiver<i64>) -> (Watch, usize) {
    let (mut seen, mut last, mut live) = (Vec::new(), 0, 0);
    let first = at;
    loop {
        let until = *finish.borrow();
        if until > 0 && last >= until {
            let client = format!("a watcher from {} on", members[first % members.len()]);
            return (Watch { client, span: Span::all(), start: 1, seen, until }, live);
        }
        let member = &members[at % members.len()];
        at += 1;
        let Ok(Ok((_ask, mut told))) = tokio::time::timeout(PATIENCE / 10, everything(member, last + 1)).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let before = seen.len();
        loop {
            let until = *finish.borrow_and_update();
            if until > 0 && last >= until {
                break;
            }
            let message = tokio::select! {
                message = tokio::time::timeout(PATIENCE / 10, told.next()) => message,
                _ = finish.changed() => continue,
            };
            // Silent for so long, it may be held still: another one tells more.
            let Ok(Some(Ok(message))) = message else { break };
            let event = |event: &mvccpb::Event| {
                let (key, now) = kv(event.kv.as_ref().unwrap());
                let revision = now.modified;
                let kv = (event.r#type() == mvccpb::event::EventType::Put).then_some(now);
                Event { revision, key, kv }
            };
            let events: Vec<Event> = message.events.iter().map(event).collect();
            if let Some(event) = events.last() {
                last = event.revision;
                live += usize::from(seen.len() > before);
                seen.push(Seen::Events(events));
            }
        }
    }
}

/// A watch of all keys at a member. It lives as long as the sender.
async fn everything(
    member: &str,
    from: i64,
) -> Result<(tokio::sync::mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>), Status> {
    let endpoint = Endpoint::from_shared(format!("http://{member}")).unwrap();
    let unreachable = |e: tonic::transport::Error| Status::unavailable(e.to_string());
    let mut client = WatchClient::new(endpoint.connect().await.map_err(unreachable)?);
    let (ask, asked) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: from,
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    ask.send(create).await.unwrap();
    Ok((ask, client.watch(tokio_stream::wrappers::ReceiverStream::new(asked)).await?.into_inner()))
}
