//! What happened, in order: a fingerprint always, and the lines themselves on demand.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::time::Instant;

/// The trace of one run.
pub struct Trace {
    began: Instant,
    inside: Mutex<(DefaultHasher, u64)>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// Lines go to standard error as they come.
    told: bool,
}

impl Trace {
    pub fn new(told: bool) -> Self {
        Trace { began: Instant::now(), inside: Mutex::new((DefaultHasher::new(), 0)), counts: Mutex::default(), told }
    }

    /// Microseconds of the simulation's clock.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// A moment that no other event has: for histories, in 2^-20 microseconds.
    pub fn moment(&self) -> u64 {
        let mut inside = self.inside.lock();
        inside.1 += 1;
        (self.now() << MOMENTS) + inside.1
    }

    pub fn note(&self, what: fmt::Arguments<'_>) {
        let now = self.now();
        let line = what.to_string();
        let mut inside = self.inside.lock();
        (now, &line).hash(&mut inside.0);
        if self.told {
            eprintln!("{:>4}.{:06} {line}", now / 1_000_000, now % 1_000_000);
        }
    }

    /// This has come about once more.
    pub fn count(&self, what: &'static str) {
        *self.counts.lock().entry(what).or_default() += 1;
    }

    /// What has come about how often.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().clone()
    }

    /// Two runs with the same one did the same.
    pub fn fingerprint(&self) -> u64 {
        self.inside.lock().0.finish()
    }
}

/// Bits of a moment below the microsecond.
pub const MOMENTS: u32 = 20;
