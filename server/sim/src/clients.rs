//! Clients: what they ask of the members through the same door as etcd's API does, and what they write down of it.

use crate::chance::Chance;
use crate::trace::MOMENTS;
use crate::world::World;
use ferretcd_history::{Act, Answer, Call, Compare, Event, Kv, Outcome, Refusal, Request, Seen, Span, Watch};
use ferretcd_node::{Node, WatchCreate, WatchMessage};
use ferretcd_types as types;
use ferretcd_types::{CompareResult, CompareTarget, Error, EventKind, KeyRange, KeyValue, LeaseId, OpReply, TxnOp};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Keys; few, so that clients meet.
const KEYS: u64 = 5;

/// A lease that a client holds.
type Held = Option<(i64, u64)>;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kv(kv: &KeyValue) -> (String, Kv) {
    let KeyValue { key, create_revision, mod_revision, version, value, lease } = kv;
    let (created, modified, lease) = (*create_revision, *mod_revision, lease.0);
    (text(key), Kv { value: text(value), created, modified, version: *version, lease })
}

fn kvs(kvs: &[KeyValue]) -> Answer {
    Answer::Kvs(kvs.iter().map(kv).collect())
}

fn range(span: &Span) -> KeyRange {
    match &span.end {
        None => KeyRange::single(span.start.clone()),
        Some(_) if *span == Span::all() => KeyRange::all(),
        Some(end) => KeyRange::new(span.start.clone(), end.clone()),
    }
}

fn op(act: &Act) -> TxnOp {
    match act {
        Act::Put { key, value, lease } => TxnOp::Put(put(key, value, *lease)),
        Act::Delete(span) => TxnOp::DeleteRange(types::DeleteRange { range: range(span), prev_kv: false }),
        Act::Range(span) => TxnOp::Range(types::Range { range: range(span), ..Default::default() }),
    }
}

fn put(key: &str, value: &str, lease: i64) -> types::Put {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    types::Put { key, value, lease: LeaseId(lease), ..Default::default() }
}

fn reply(reply: &OpReply) -> Answer {
    match reply {
        OpReply::Range(r) => kvs(&r.kvs),
        OpReply::Put(_) => Answer::Done,
        OpReply::DeleteRange(r) => Answer::Deleted(r.deleted),
        OpReply::Txn(t) => {
            Answer::Txn { succeeded: t.succeeded, answers: t.responses.iter().map(self::reply).collect() }
        }
    }
}

/// Of an error that means that nothing has happened: which refusal it is.
fn refused(error: &Error) -> Option<Refusal> {
    match error {
        Error::LeaseNotFound => Some(Refusal::LeaseNotFound),
        Error::FutureRevision => Some(Refusal::FutureRevision),
        Error::Compacted | Error::LeaseExists | Error::TooManyRequests | Error::NotSupportedForLearner => {
            Some(Refusal::Other)
        }
        _ => None,
    }
}

/// One call at one member.
async fn ask(node: &Node, request: &Request) -> Result<(i64, Answer), Error> {
    let read = |span: &Span, revision, serializable| types::Range {
        range: range(span),
        revision,
        serializable,
        ..Default::default()
    };
    match request {
        Request::Do(Act::Put { key, value, lease }) => {
            let done = node.propose(put(key, value, *lease)).await?;
            Ok((done.revision, Answer::Done))
        }
        Request::Do(Act::Delete(span)) => {
            let done = node.propose(types::DeleteRange { range: range(span), prev_kv: false }).await?;
            Ok((done.revision, Answer::Deleted(done.deleted)))
        }
        Request::Do(Act::Range(span)) => {
            let found = node.range(read(span, 0, false)).await?;
            Ok((found.revision, kvs(&found.kvs)))
        }
        Request::Serializable(span) => {
            let found = node.range(read(span, 0, true)).await?;
            Ok((found.revision, kvs(&found.kvs)))
        }
        Request::Past(span, revision) => {
            let found = node.range(read(span, *revision, false)).await?;
            Ok((found.revision, kvs(&found.kvs)))
        }
        Request::Txn { compares, then, otherwise } => {
            let compare = |compare: &Compare| {
                let (key, target) = match compare {
                    Compare::Value(key, value) => (key, CompareTarget::Value(value.clone().into())),
                    Compare::Modified(key, revision) => (key, CompareTarget::Mod(*revision)),
                    Compare::Version(key, version) => (key, CompareTarget::Version(*version)),
                };
                types::Compare { range: KeyRange::single(key.clone()), result: CompareResult::Equal, target }
            };
            let txn = types::Txn {
                compares: compares.iter().map(compare).collect(),
                success: then.iter().map(op).collect(),
                failure: otherwise.iter().map(op).collect(),
            };
            let done = node.txn(txn).await?;
            let answers = done.responses.iter().map(reply).collect();
            Ok((done.revision, Answer::Txn { succeeded: done.succeeded, answers }))
        }
        Request::Grant { lease, ttl } => {
            let granted = node.lease_grant(LeaseId(*lease), seconds(*ttl)).await?;
            Ok((granted.revision, Answer::Done))
        }
        Request::KeepAlive { lease, .. } => match node.lease_keep_alive(LeaseId(*lease)).await? {
            0 => Err(Error::LeaseNotFound),
            _ => Ok((0, Answer::Done)),
        },
        Request::Revoke { lease } => {
            let done = node.propose(types::LeaseRevoke { id: LeaseId(*lease) }).await?;
            Ok((done.revision, Answer::Done))
        }
    }
}

fn seconds(ttl: u64) -> i64 {
    (ttl >> MOMENTS) as i64 / 1_000_000
}

/// What a client asks next.
fn choose(chance: &Chance, name: &str, number: u64, held: &mut Held, seen: i64) -> Request {
    let key = |chance: &Chance| format!("k{}", chance.below(KEYS));
    let value = format!("{name}.{number}");
    let span = |chance: &Chance| match chance.below(3) {
        0 => Span::all(),
        1 => Span { start: "k1".to_owned(), end: Some("k4".to_owned()) },
        _ => Span::key(&key(chance)),
    };
    match chance.below(20) {
        0..6 => Request::Do(Act::Put { key: key(chance), value, lease: 0 }),
        6 => Request::Do(Act::Delete(span(chance))),
        7..10 => Request::Do(Act::Range(span(chance))),
        10 => Request::Serializable(span(chance)),
        11 if seen > 1 => Request::Past(span(chance), seen - chance.below(5.min(seen as u64 - 1)) as i64),
        12..15 => {
            let compares = match chance.below(3) {
                0 => vec![Compare::Version(key(chance), 0)],
                1 => vec![Compare::Modified(key(chance), seen)],
                _ => vec![Compare::Value(key(chance), format!("{name}.{}", number.saturating_sub(2)))],
            };
            // No key twice: etcd refuses that.
            let (first, second) = (chance.below(KEYS), chance.below(KEYS - 1) + 1);
            let second = format!("k{}", (first + second) % KEYS);
            let put = Act::Put { key: format!("k{first}"), value: value.clone(), lease: 0 };
            let otherwise = match chance.below(3) {
                0 => vec![],
                1 => vec![Act::Range(span(chance))],
                _ => vec![Act::Put { key: key(chance), value, lease: 0 }],
            };
            Request::Txn {
                compares,
                then: vec![put, Act::Range(Span::all()), Act::Delete(Span::key(&second))],
                otherwise,
            }
        }
        15 => {
            let compares = vec![Compare::Version(key(chance), 1)];
            Request::Txn { compares, then: vec![Act::Range(Span::all())], otherwise: vec![Act::Range(span(chance))] }
        }
        n => match *held {
            None => {
                let ttl = ((2 + chance.below(3)) * 1_000_000) << MOMENTS;
                let lease = (chance.next() >> 2).max(1) as i64;
                *held = Some((lease, ttl));
                Request::Grant { lease, ttl }
            }
            Some((lease, ttl)) => match n {
                16 | 17 => Request::Do(Act::Put { key: key(chance), value, lease }),
                18 => Request::KeepAlive { lease, ttl },
                _ => {
                    *held = None;
                    Request::Revoke { lease }
                }
            },
        },
    }
}

/// A client at work until `until` (microseconds), a call after the other, each at any member.
pub async fn work(world: Arc<World>, name: String, until: u64) {
    let chance = world.chance.fork();
    let (mut held, mut seen, mut number) = (None, 1, 0);
    while world.trace.now() < until {
        tokio::time::sleep(chance.millis(1, 120)).await;
        let Some(at) = chance.pick(&world.running()) else { continue };
        number += 1;
        let request = choose(&chance, &name, number, &mut held, seen);
        let patience = chance.millis(500, 8000);
        if let Some((revision, _)) = call(&world, &name, at, request, patience).await {
            seen = revision.max(seen);
        } else if !chance.one_in(4) {
            // Whether it exists nobody knows; a new one is simpler.
            held = None;
        }
    }
}

/// One call, written down. None without an answer.
pub async fn call(
    world: &Arc<World>,
    name: &str,
    at: usize,
    request: Request,
    patience: Duration,
) -> Option<(i64, Answer)> {
    let (node, _, gone) = world.node(at)?;
    let begun = world.trace.moment();
    let answered = tokio::select! {
        biased;
        () = gone.cancelled() => None,
        answered = tokio::time::timeout(patience, ask(&node, &request)) => answered.ok(),
    };
    let ended = world.trace.moment();
    world.trace.note(format_args!("{name}@h{at} {request:?} {answered:?}"));
    if let Some(Ok(_)) = answered {
        world.trace.count("calls that were answered");
    }
    let outcome = match &answered {
        Some(Ok((revision, answer))) => Outcome::Done { revision: *revision, answer: answer.clone() },
        Some(Err(error)) => refused(error).map_or(Outcome::Unknown, Outcome::Refused),
        None => Outcome::Unknown,
    };
    if let Outcome::Refused(Refusal::LeaseNotFound) = outcome {
        world.trace.count("leases that were not found");
    }
    world.history.lock().calls.push(Call { client: format!("{name}@h{at}"), begun, ended, request, outcome });
    answered.and_then(Result::ok)
}

/// Asks once more for each lease that was granted: one that was revoked is to be gone for ever, and one that lives to
/// be found. In the end, when the group is well again, so that each is answered. All at once: their time is short.
pub async fn last_leases(world: &Arc<World>, patience: Duration) {
    let granted = |call: &Call| match (&call.request, &call.outcome) {
        (Request::Grant { lease, ttl }, Outcome::Done { .. }) => Some(Request::KeepAlive { lease: *lease, ttl: *ttl }),
        _ => None,
    };
    let asked: Vec<Request> = world.history.lock().calls.iter().filter_map(granted).collect();
    let running = world.running();
    let calls = asked.into_iter().zip(running.iter().copied().cycle()).map(|(request, at)| {
        let world = world.clone();
        tokio::spawn(async move { call(&world, "last", at, request, patience).await })
    });
    for asking in calls.collect::<Vec<_>>() {
        if let Err(e) = asking.await {
            world.fault(format!("a task of the simulation ended: {e}"));
        }
    }
}

/// A watcher of all keys or some, who goes on at another member when its own is gone, from where it was; until it has
/// seen everything up to the revision that `finish` gives at last.
pub async fn watch(world: Arc<World>, name: String, span: Span, mut finish: tokio::sync::watch::Receiver<i64>) {
    let chance = world.chance.fork();
    // From the beginning, or from now on.
    let mut next = if span == Span::all() { 1 } else { 0 };
    loop {
        let Some(at) = chance.pick(&world.running()) else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        let Some((node, _, gone)) = world.node(at) else { continue };
        // It may want to see once more what it has seen, which may be compacted by now.
        if next > 1 && *finish.borrow() == 0 && chance.one_in(3) {
            next = (next - chance.below(60) as i64).max(1);
        }
        let mut stream = node.watch_stream();
        stream.create(WatchCreate {
            range: range(&span),
            start_revision: next,
            progress_notify: chance.one_in(2),
            prev_kv: false,
            ..Default::default()
        });
        let mut watch =
            Watch { client: format!("{name}@h{at}"), span: span.clone(), start: next, seen: Vec::new(), until: 0 };
        let mut compacted = None;
        let leave = tokio::time::Instant::now() + chance.millis(500, 10_000);
        loop {
            let last = *finish.borrow();
            if last > 0 && next > last {
                watch.until = last;
                break;
            }
            let message = tokio::select! {
                biased;
                () = gone.cancelled() => break,
                _ = finish.changed() => {
                    stream.request_progress();
                    continue;
                }
                () = tokio::time::sleep_until(leave), if last == 0 => break,
                () = tokio::time::sleep(Duration::from_millis(700)) => {
                    stream.request_progress();
                    continue;
                }
                message = stream.next() => message,
            };
            let Some(message) = message else { break };
            world.trace.note(format_args!("{name}@h{at} is told {message:?}"));
            match message {
                WatchMessage::Created { revision, .. } if next == 0 => {
                    next = revision + 1;
                    watch.start = next;
                }
                WatchMessage::Created { .. } => {}
                WatchMessage::Events { events, .. } => {
                    let event = |(event, _): &(types::Event, _)| {
                        let (key, now) = kv(&event.kv);
                        let kv = (event.kind == EventKind::Put).then_some(now);
                        Event { revision: event.revision.main, key, kv }
                    };
                    let events: Vec<Event> = events.iter().map(event).collect();
                    world.trace.count("messages to watchers");
                    next = events.iter().map(|event| event.revision + 1).max().unwrap_or(next).max(next);
                    watch.seen.push(Seen::Events(events));
                }
                WatchMessage::Progress { revision, .. } => {
                    next = next.max(revision + 1);
                    watch.seen.push(Seen::Progress(revision));
                }
                WatchMessage::Cancelled { compact_revision, .. } => {
                    world.trace.count("compacted watches");
                    let asked = world.compaction.load(Ordering::Relaxed);
                    // What it is told is gone it never asks for again: that must be gone, and wanted.
                    if !compact_revision.is_some_and(|compacted| next < compacted && compacted <= asked) {
                        world.fault(format!(
                            "{name}@h{at} wants {next}, is told that {compact_revision:?} is compacted, and somebody asked for {asked}"
                        ));
                    }
                    compacted = compact_revision;
                    break;
                }
                WatchMessage::CreateFailed { .. } | WatchMessage::Refused { .. } => {
                    world.fault(format!("{name}@h{at} was refused a watch from {next}"));
                    break;
                }
            }
        }
        let done = watch.until > 0;
        world.history.lock().watches.push(watch);
        if done {
            return;
        }
        if let Some(compacted) = compacted {
            // Its history is gone; it goes on behind that.
            next = compacted.max(1);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
