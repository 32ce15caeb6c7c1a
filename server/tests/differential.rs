//! The same random sequences of calls against real etcd and this server: every answer is compared field by field, IDs
//! of cluster and member, the raft term and what a clock says apart.
//!
//! A sequence is a list of numbers, one per call. Each call is made from its number and from what the answers so far
//! said (the revision, what is compacted, which watches there are), so that a sequence stays meaningful when calls
//! are taken out of it: a found difference is made as small as possible before it is shown.
//!
//! `FERRETCD_SEQUENCES` sets how many sequences run (500 if unset), `FERRETCD_SEED` where they begin: a failure names
//! the seed that shows it again.

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod differential {
    pub mod call;
    pub mod generate;
    pub mod side;
}
mod support;

use differential::call::Call;
use differential::generate::{Random, World};
use differential::side::{Pair, Side};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Calls per sequence.
const CALLS: usize = 40;
/// Pairs of servers at work at once.
const WORKERS: usize = 3;
/// Sequences on one pair of servers before it is replaced: the history grows with them.
const SEQUENCES_PER_PAIR: u64 = 100;
/// Attempts at making a failing sequence shorter: each starts two servers.
const SHRINKS_MAX: usize = 24;

struct Difference {
    /// What was called before, with etcd's answers, and what came then.
    trace: Vec<String>,
    etcd: String,
    ours: String,
}

/// Runs one sequence; the pair may have a history, as long as both have the same.
async fn run(pair: &mut Pair, calls: &[u64]) -> Result<(), Difference> {
    let mut world = World::new(pair.revision, pair.compacted);
    let mut trace = Vec::new();
    let last = [Call::Settle, Call::CloseWatches];
    let made = calls.iter().map(|seed| Some(*seed)).chain(last.iter().map(|_| None));
    let mut closing = last.iter();
    for seed in made {
        let call = match seed {
            Some(seed) => world.next(&mut Random::new(seed)),
            None => closing.next().unwrap().clone(),
        };
        let (etcd, ours) = tokio::join!(pair.etcd.call(&call), pair.ours.call(&call));
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
async fn shrink(calls: &[u64], mut found: Difference) -> (Vec<u64>, Difference) {
    let mut calls = calls.to_vec();
    let mut attempts = 0;
    let mut size = calls.len() / 2;
    while size > 0 && attempts < SHRINKS_MAX {
        let mut at = 0;
        while at < calls.len() && attempts < SHRINKS_MAX {
            let mut fewer = calls.clone();
            fewer.drain(at..(at + size).min(calls.len()));
            attempts += 1;
            match run(&mut Pair::start().await, &fewer).await {
                Err(difference) => (calls, found) = (fewer, difference),
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    (calls, found)
}

async fn report(seed: u64, difference: Difference) -> String {
    let calls = sequence(seed);
    let mut text = String::new();
    let fresh = match run(&mut Pair::start().await, &calls).await {
        Err(again) => {
            let (calls, difference) = shrink(&calls, again).await;
            writeln!(text, "FERRETCD_SEED={seed} FERRETCD_SEQUENCES=1 shows it; {} calls are left:", calls.len())
                .unwrap();
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

fn sequence(seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    (0..CALLS).map(|_| random.next()).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_are_answered_as_by_etcd() {
    let first = setting("FERRETCD_SEED", 1);
    let end = first + setting("FERRETCD_SEQUENCES", 500);
    let next = Arc::new(AtomicU64::new(first));
    let started = Instant::now();
    let workers = (0..WORKERS).map(|_| {
        let next = next.clone();
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
                if let Err(difference) = run(&mut pair, &sequence(seed)).await {
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
