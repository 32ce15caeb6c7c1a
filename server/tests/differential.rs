//! The same random sequences of calls against real etcd and this server: every answer is compared field by field, IDs
//! of cluster and member, the raft term and what a clock says apart.
//!
//! A sequence is a list of numbers, one per call. Each call is made from its number and from what the answers so far
//! said (the revision, what is compacted, which watches there are), so that a sequence stays meaningful when calls
//! are taken out of it: a found difference is made as small as possible before it is shown.
//!
//! `FERRETCD_SEQUENCES` sets how many sequences run (500 if unset), `FERRETCD_SEED` where they begin: a failure names
//! the seed that shows it again. `FERRETCD_WORKERS` says how many pairs of servers are at work at once.

mod call;
mod generate;
mod side;

use call::Call;
use generate::{Random, World, users};
use side::{Pair, Side};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Calls per sequence.
const CALLS: usize = 40;
/// Pairs of servers at work at once, if nothing else is said. A sequence waits most of its time: a watch in the past gets
/// its events within the 100 ms of etcd's loop. Ten gave no false difference at `nice -n 19` on two cores with other work.
const WORKERS: u64 = 6;
/// Sequences on one pair of servers before it is replaced: the history grows with them.
const SEQUENCES_PER_PAIR: u64 = 100;
/// How often a hash that differs is looked at again.
const HASH_LOOKS: usize = 60;
/// Attempts at making a failing sequence shorter: each starts two servers.
const SHRINKS_MAX: usize = 24;

struct Difference {
    /// What was called before, with etcd's answers, and what came then.
    trace: Vec<String>,
    etcd: String,
    ours: String,
}

/// One sequence in so many is about users, too: it begins with some, and calls are made in their names.
const USERS_IN: u64 = 5;

/// What a sequence is made from.
#[derive(Clone)]
struct Sequence {
    calls: Vec<u64>,
    users: bool,
}

/// Sequences of one run that may meet etcd's race. A fault of ours that needs the pair's history, and so does not show on a fresh
/// pair either, would be met more often.
const EXCUSED_MAX: u64 = 2;

impl Difference {
    /// Whether etcd only left out previous values that ours told. It notes that a watch wants them after it has begun to serve
    /// the watch, and tells none before it gets to that (api/v3rpc/watch.go, recvLoop): seen once in 12,000 sequences, with the
    /// processor busy.
    fn may_be_etcds_race(&self) -> bool {
        let without = |line: &str| {
            line.split_once(", prev_kv: ").map(|(event, previous)| (event.to_owned(), previous == "None }"))
        };
        let (etcd, ours): (Vec<_>, Vec<_>) = (self.etcd.lines().collect(), self.ours.lines().collect());
        let mut pairs = etcd.iter().zip(&ours);
        etcd.len() == ours.len()
            && pairs.all(|(etcd, ours)| {
                let (a, b) = (without(etcd), without(ours));
                etcd == ours || matches!((a, b), (Some((a, true)), Some((b, false))) if a == b)
            })
    }
}

/// One call of a sequence.
enum Step {
    Fixed(Call),
    Random(u64),
    ForgetUsers,
}

impl Sequence {
    fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Sequence { calls: (0..CALLS).map(|_| random.next()).collect(), users: seed.is_multiple_of(USERS_IN) }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.users {
            steps.extend(users().into_iter().map(Step::Fixed));
        }
        steps.extend(self.calls.iter().map(|seed| Step::Random(*seed)));
        steps.extend([Call::Settle, Call::CloseWatches].map(Step::Fixed));
        if self.users {
            steps.push(Step::ForgetUsers);
        }
        steps
    }
}

/// Runs one sequence; the pair may have a history, as long as both have the same.
async fn run(pair: &mut Pair, sequence: &Sequence) -> Result<(), Difference> {
    let mut world = World::new(pair.revision, pair.compacted, sequence.users);
    let mut trace = Vec::new();
    for step in sequence.steps() {
        let call = match step {
            Step::Fixed(call) => call,
            Step::Random(seed) => world.next(&mut Random::new(seed)),
            Step::ForgetUsers => Call::ForgetUsers(world.root_password.clone()),
        };
        let (mut etcd, mut ours) = tokio::join!(pair.etcd.call(&call), pair.ours.call(&call));
        // Where no key is left, etcd's hash changes while a compaction deletes, and in the end is what ours is at once.
        if matches!(call, Call::HashKv(_)) {
            for _ in 0..HASH_LOOKS {
                if etcd.text == ours.text {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                (etcd, ours) = tokio::join!(pair.etcd.call(&call), pair.ours.call(&call));
            }
        }
        trace.push(format!("{call:?}\n      -> {}", etcd.text));
        if etcd.text != ours.text {
            return Err(Difference { trace, etcd: etcd.text, ours: ours.text });
        }
        if matches!(call, Call::Settle | Call::CloseWatches)
            && let Err((etcd, ours)) = Side::same_watches(&pair.etcd, &pair.ours).await
        {
            return Err(Difference { trace, etcd, ours });
        }
        if matches!(call, Call::CloseWatches) {
            pair.etcd.close_watches();
            pair.ours.close_watches();
        }
        world.learn(&call, &etcd);
    }
    pair.revision = world.revision;
    pair.compacted = world.compacted;
    Ok(())
}

/// Leaves calls out as long as the difference stays.
async fn shrink(mut sequence: Sequence, mut found: Difference) -> (Sequence, Difference) {
    let calls = &mut sequence.calls;
    let mut attempts = 0;
    let mut size = calls.len() / 2;
    while size > 0 && attempts < SHRINKS_MAX {
        let mut at = 0;
        while at < calls.len() && attempts < SHRINKS_MAX {
            let mut fewer = Sequence { calls: calls.clone(), users: sequence.users };
            fewer.calls.drain(at..(at + size).min(calls.len()));
            attempts += 1;
            match run(&mut Pair::start().await, &fewer).await {
                Err(difference) => (*calls, found) = (fewer.calls, difference),
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    (sequence, found)
}

async fn report(seed: u64, difference: Difference) -> String {
    let sequence = Sequence::of(seed);
    let mut text = String::new();
    let fresh = match run(&mut Pair::start().await, &sequence).await {
        Err(again) => {
            let (sequence, difference) = shrink(sequence, again).await;
            let left = sequence.calls.len();
            writeln!(text, "FERRETCD_SEED={seed} FERRETCD_SEQUENCES=1 shows it; {left} calls are left:").unwrap();
            difference
        }
        Ok(()) => {
            writeln!(text, "sequence {seed}, only with the history before it:").unwrap();
            let mut difference = difference;
            let last = difference.trace.pop();
            difference.trace.retain(|call| call.starts_with("Watch") || call.starts_with("Compact"));
            difference.trace.extend(last);
            difference
        }
    };
    for line in fresh.trace {
        writeln!(text, "  {line}").unwrap();
    }
    write!(text, "  etcd: {}\n  ours: {}", fresh.etcd, fresh.ours).unwrap();
    text
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_are_answered_as_by_etcd() {
    let first = setting("FERRETCD_SEED", 1);
    let end = first + setting("FERRETCD_SEQUENCES", 500);
    let (next, excused) = (Arc::new(AtomicU64::new(first)), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let workers = (0..setting("FERRETCD_WORKERS", WORKERS)).map(|_| {
        let (next, excused) = (next.clone(), excused.clone());
        tokio::spawn(async move {
            let mut pair = Pair::start().await;
            for done in 0.. {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return Ok(());
                }
                if done > 0 && done % SEQUENCES_PER_PAIR == 0 {
                    pair = Pair::start().await;
                }
                if seed.is_multiple_of(100) {
                    eprintln!("sequence {seed} after {:?}", started.elapsed());
                }
                if let Err(difference) = run(&mut pair, &Sequence::of(seed)).await {
                    let mut again = Pair::start().await;
                    if difference.may_be_etcds_race()
                        && excused.fetch_add(1, Ordering::Relaxed) < EXCUSED_MAX
                        && run(&mut again, &Sequence::of(seed)).await.is_ok()
                    {
                        eprintln!("sequence {seed}: etcd left out previous values once");
                        pair = again;
                        continue;
                    }
                    return Err(report(seed, difference).await);
                }
            }
            unreachable!()
        })
    });
    let mut found = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        found.extend(worker.await.unwrap().err());
    }
    assert!(found.is_empty(), "{}", found.join("\n\n"));
    eprintln!("{} sequences of {CALLS} calls in {:?}", end - first, started.elapsed());
}

#[test]
fn only_previous_values_that_etcd_leaves_out_may_be_its_race() {
    let event = |previous: &str| {
        format!("\n    stream 1 watch 1:\n      Event {{ r#type: Put, kv: None, prev_kv: {previous} }}")
    };
    let (with, without) = (event("Some(KeyValue { key: b\"a\" })"), event("None"));
    let excused = |etcd: &str, ours: &str| {
        Difference { trace: vec![], etcd: etcd.to_owned(), ours: ours.to_owned() }.may_be_etcds_race()
    };
    assert!(excused(&without, &with));
    assert!(excused(&format!("{with}{without}"), &format!("{with}{with}")));
    assert!(!excused(&with, &without), "what ours leaves out");
    assert!(!excused(&without, &format!("{with}{with}")), "an event more");
    assert!(!excused(&without, &with.replace("Put", "Delete")), "another event");
}
