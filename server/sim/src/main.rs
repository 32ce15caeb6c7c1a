//! The whole group in one process from a seed: the real members above a network, disks and a clock that are not.
//!
//! `ferretcd-sim <seed>` runs one, and says what was wrong. The same seed does the same again, to the byte: there is one
//! thread, the clock is paused, and all chance comes from the seed.

// This is a test of the product and no part of it: a broken assumption ends it.
#![allow(clippy::expect_used, reason = "a simulator that cannot go on must end")]
#![allow(missing_docs, reason = "nobody else uses these")]

mod chance;
mod clients;
mod entropy;
mod files;
mod nemesis;
mod net;
mod trace;
mod wall;
mod world;

use chance::Chance;
use ferretcd_history::Span;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use world::World;

/// Clients at work.
const CLIENTS: usize = 4;

fn main() -> ExitCode {
    let Some(seed) = std::env::args().nth(1).and_then(|seed| seed.parse::<u64>().ok()) else {
        eprintln!("usage: ferretcd-sim <seed>; with FERRETCD_TRACE=1 it tells everything");
        return ExitCode::from(2);
    };
    let told = std::env::var_os("FERRETCD_TRACE").is_some();
    if let Ok(filter) = std::env::var("FERRETCD_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    // As in the product, a panic ends it all, whoever would catch it.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(3);
    }));
    // After the log, which draws by chance too: a run with it does the same as one without.
    entropy::seed(seed);
    if std::env::var_os("FERRETCD_STEADY_CLOCK").is_none() {
        wall::jump();
    }
    // A thread of its own, whose hash maps are not older than the seed.
    let run = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(run(seed, told))
    });
    match run.join() {
        Ok((fingerprint, counts, found)) if found.is_empty() => {
            println!("seed {seed}: {fingerprint:016x}");
            counts.iter().for_each(|(what, count)| println!("{count} {what}"));
            ExitCode::SUCCESS
        }
        Ok((fingerprint, _, found)) => {
            println!("seed {seed}: {fingerprint:016x} FAILED\n{}", found.join("\n"));
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::from(3),
    }
}

/// One run: its fingerprint, what came about how often, and what was wrong.
async fn run(seed: u64, told: bool) -> (u64, BTreeMap<&'static str, u64>, Vec<String>) {
    let chance = Chance::new(seed);
    let founders = if chance.one_in(4) { 5 } else { 3 };
    let length = chance.millis(2_500, 6_000).as_micros() as u64;
    let world = World::new(chance, founders, told);
    if world.chance.one_in(10) {
        // A call is on its way twice there and once or twice back here: longer than a heartbeat's interval.
        world.net.spread(world.chance.millis(26, 50));
        world.trace.count("groups of three regions");
    }
    for at in 0..founders {
        nemesis::start(&world, at).await;
    }
    let (finish, finished) = tokio::sync::watch::channel(0);
    let mut watchers = Vec::new();
    for (name, span) in [("all", Span::all()), ("some", Span { start: "k1".into(), end: Some("k3".into()) })] {
        watchers.push(tokio::spawn(clients::watch(world.clone(), name.to_owned(), span, finished.clone())));
    }
    let mut work: Vec<_> =
        (0..CLIENTS).map(|n| tokio::spawn(clients::work(world.clone(), format!("c{n}"), length))).collect();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    work.push(tokio::spawn(nemesis::trouble(world.clone(), length)));
    for task in work {
        if let Err(e) = task.await {
            world.fault(format!("a task of the simulation ended: {e}"));
        }
    }
    // What is still on its way (restarts, changes of members) comes to its end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    match at_last(&world).await {
        Err(why) => world.fault(why),
        Ok(last) => {
            finish.send_replace(last);
            for watcher in watchers {
                if tokio::time::timeout(Duration::from_secs(60), watcher).await.is_err() {
                    world.fault(format!("a watcher does not come to revision {last}"));
                }
            }
        }
    }
    let history = std::mem::take(&mut *world.history.lock());
    if let Err(violation) = ferretcd_history::check(&history) {
        world.fault(violation.to_string());
    }
    (world.trace.fingerprint(), world.trace.counts(), world.faults())
}

/// Waits until all is well and asks each voter for everything: the revision up to which all must have been seen by everybody.
async fn at_last(world: &Arc<World>) -> Result<i64, String> {
    /// How often all may have to be well: a disk that was told to fail does so at its member's next write, by which members
    /// end that had been well. With two of three gone nobody answers.
    const ATTEMPTS: usize = 5;
    const PATIENCE: Duration = Duration::from_secs(10);
    for _ in 0..ATTEMPTS {
        let agreed = nemesis::converge(world).await?;
        clients::last_leases(world, PATIENCE).await;
        // Leases may still end; a last read on each voter fixes what everybody must have seen.
        let mut last = None;
        for at in agreed.voters {
            let read = ferretcd_history::Request::Do(ferretcd_history::Act::Range(Span::all()));
            // One may be on its way out still.
            if let Some((revision, _)) = clients::call(world, "last", at, read, PATIENCE).await {
                last = last.max(Some(revision));
            }
        }
        if let Some(last) = last {
            return Ok(last.max(agreed.revision));
        }
    }
    Err("nobody answers the last read".to_owned())
}
