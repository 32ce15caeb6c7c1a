//! A stream of puts, each tried until it is acknowledged, with the longest time that clients had to wait.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use crate::etcd::{Contents, EtcdCluster, Member};
use crate::run;

/// How long one put is tried before the stream gives up: far beyond any election, so it means that writes do not come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// A thread that puts `<prefix>000000`, `<prefix>000001` and so on, each with its number as value, one after the other.
pub struct Writer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<Result<Log>>,
}

/// What a stream of puts saw.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// What was acknowledged.
    pub acknowledged: Contents,
    /// Attempts that failed.
    pub failures: u64,
    /// The longest time from one acknowledgement to the next.
    pub longest_gap: Duration,
}

impl Writer {
    /// Starts writing to `members`, of which a client takes any that answers.
    pub fn start(cluster: &EtcdCluster<'_>, members: &[Member], prefix: &str) -> Self {
        let endpoints: Vec<&str> = members.iter().map(|member| member.reach.url()).collect();
        let endpoints = endpoints.join(",");
        let (program, prefix) = (cluster.etcdctl_command(&endpoints), prefix.to_owned());
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || write(&program, &prefix, &stopped, &counted));
        Self { stop, count, thread }
    }

    /// How many puts have been acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until `more` further puts have been acknowledged.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let (until, began) = (self.acknowledged() + more, Instant::now());
        while self.acknowledged() < until {
            if self.thread.is_finished() || began.elapsed() > 2 * PATIENCE {
                bail!("the stream of puts stands at {} acknowledged, {until} were waited for", self.acknowledged());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends the stream after its current put.
    pub fn finish(self) -> Result<Log> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the stream of puts panicked"))?
    }
}

fn write(program: &Command, prefix: &str, stop: &AtomicBool, count: &AtomicU64) -> Result<Log> {
    let mut log = Log::default();
    let mut last = Instant::now();
    for number in 0u64.. {
        let (key, value) = (format!("{prefix}{number:06}"), number.to_string());
        loop {
            let mut put = Command::new(program.get_program());
            match run::output(put.args(program.get_args()).args(["put", &key, &value])) {
                Ok(_) => break,
                Err(error) if last.elapsed() > PATIENCE => {
                    bail!("no put was acknowledged for {} s; the last error: {error:#}", PATIENCE.as_secs())
                }
                Err(_) => log.failures += 1,
            }
        }
        log.longest_gap = log.longest_gap.max(last.elapsed());
        last = Instant::now();
        log.acknowledged.insert(key, value);
        count.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(log)
}

/// Fails unless every acknowledged put is found through every member.
pub fn check_nothing_lost(cluster: &EtcdCluster<'_>, members: &[Member], prefix: &str, log: &Log) -> Result<()> {
    for member in members {
        let found = cluster.contents(member, prefix)?;
        let lost: Vec<_> = log.acknowledged.iter().filter(|(key, value)| found.get(*key) != Some(value)).collect();
        if let Some((key, value)) = lost.first() {
            bail!(
                "{} of {} acknowledged puts are not there when read through {}, the first of them {key}={value} (found {:?})",
                lost.len(),
                log.acknowledged.len(),
                member.name,
                found.get(*key)
            );
        }
    }
    Ok(())
}
