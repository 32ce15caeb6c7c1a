//! Seeds of the simulation, each in a process of its own: `FERRETCD_SEED` begins with another one than 1, and
//! `FERRETCD_SEEDS` runs so many. A failing one names the command that runs it again.

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest that one may take: it takes a fraction of a second, and this is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What comes about in 1,000 seeds at least: a quarter of what did when this was written. What never happens shows nothing.
const LEAST: [(&str, u64); 28] = [
    ("calls that come twice", 700),
    ("calls that were answered", 30_000),
    ("compacted watches", 20),
    ("compactions", 40),
    ("compared hashes", 30_000),
    ("crashes at a write", 75),
    ("crashes of all", 55),
    ("cuts", 200),
    ("fetched snapshots", 12),
    ("flipped bits of snapshot files", 60),
    ("groups of three regions", 50),
    ("installed snapshots", 30),
    ("leases that were not found", 1_300),
    ("logs that were not written", 30),
    ("lost calls", 780),
    ("lost stores", 50),
    ("members that end because a disk failed", 75),
    ("messages over slow lines", 4_700),
    ("messages to watchers", 20_000),
    ("moved leaders", 40),
    ("moved members", 24),
    ("promotions", 15),
    ("refused logs", 45),
    ("removed members that end", 25),
    ("slow syncs", 820),
    ("stores that were not written", 45),
    ("truncated logs", 40),
    ("voters that lose their power", 19),
];

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |value| value.parse().unwrap())
}

fn run(seed: u64) -> Output {
    run_with(seed, &[])
}

fn run_with(seed: u64, variables: &[(&str, &str)]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferretcd-sim"))
        .arg(seed.to_string())
        .envs(variables.iter().copied())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    // What it says fits the pipes.
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn no_seed_breaks_a_promise() {
    let (first, count) = (number("FERRETCD_SEED", 1), number("FERRETCD_SEEDS", 1000));
    let next = AtomicU64::new(first);
    let failed = std::sync::Mutex::new(Vec::new());
    let counts = std::sync::Mutex::new(BTreeMap::<String, u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failed.lock().unwrap().len() > 5 {
                        return;
                    }
                    let output = run(seed);
                    if !output.status.success() {
                        let said = [output.stdout, output.stderr].concat();
                        let said: String = String::from_utf8_lossy(&said).chars().take(3000).collect();
                        failed.lock().unwrap().push(format!(
                            "FERRETCD_TRACE=1 cargo run -p ferretcd-sim -- {seed}   # runs it again\n{}: {said}",
                            output.status
                        ));
                        continue;
                    }
                    for line in String::from_utf8(output.stdout).unwrap().lines().skip(1) {
                        let (count, what) = line.split_once(' ').unwrap();
                        *counts.lock().unwrap().entry(what.to_owned()).or_default() += count.parse::<u64>().unwrap();
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n"));
    let counts = counts.into_inner().unwrap();
    counts.iter().for_each(|(what, count)| println!("{count:>8} {what}"));
    let seldom = |(what, least): &&(&str, u64)| counts.get(*what).copied().unwrap_or(0) * 1000 < least * count;
    let seldom: Vec<_> = LEAST.iter().filter(seldom).collect();
    // Fewer seeds are too few for what is rare.
    assert!(count < 1000 || seldom.is_empty(), "of these there is less than {seldom:?} in 1,000 seeds: {counts:#?}");
}

/// Many, since whatever reads another clock or another chance does so only where a rare event leads to it: ten of these and
/// the last move a member, which then had two addresses that were tried by the machine's clock.
#[test]
fn a_seed_does_the_same_again() {
    for seed in (1..=50).chain([2674]) {
        let (first, again) = (run(seed), run(seed));
        assert!(first.status.success(), "{first:?}");
        assert_eq!(first.stdout, again.stdout);
    }
}

/// Seeds beyond the first thousand that found something: the first made openraft send once more what its log was purged of,
/// in the second a lease was called gone that was not revoked yet; in the third one of two members lost its store and its
/// snapshot file, which no group promises to bear, and which the simulation did. In the fourth a leader sent one snapshot more
/// than was wanted, in the fifth a host that died with a call in its hands never broke the connection. In the sixth the
/// simulation took a member that ended of an earlier fault in the end for a group that does not answer; in the seventh a
/// follower's log failed at a committed position, which nobody was told of; in the eighth a leader that had just been removed
/// changed the members once more.
const FOUND: [u64; 8] = [14453, 3843, 29342, 32321, 45444, 57140, 93317, 97721];

#[test]
fn seeds_that_found_something_pass() {
    for seed in FOUND {
        let output = run(seed);
        assert!(output.status.success(), "seed {seed}: {output:?}");
    }
}

#[test]
fn a_wall_clock_that_jumps_changes_nothing() {
    for seed in [4, 5, 6] {
        let (jumping, steady) = (run(seed), run_with(seed, &[("FERRETCD_STEADY_CLOCK", "1")]));
        assert!(jumping.status.success(), "{jumping:?}");
        assert_eq!(jumping.stdout, steady.stdout);
    }
}
