//! Which members answer: what the log says of one that does not, and why, without saying it a hundred times a minute.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long a member must not have answered before it is told: one late answer is no news, and elections take as long.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// How often a member that still does not answer is told of again.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// Failures so far apart are two silences: a follower calls the others in elections only, and one call of many may have
/// been given up because it was not needed any more.
const APART: Duration = Duration::from_secs(60);

/// The members that do not answer now.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    silent: Mutex<HashMap<u64, Silence>>,
    /// How many there are: answers come thousands of times a second, and mostly there is none.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Silence {
    since: Instant,
    last: Instant,
    told: Option<Instant>,
}

/// What is to be told of a member that does not answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was lost.
    Lost,
    /// It has been away for so long.
    Away(Duration),
}

impl Reach {
    /// A call was not answered.
    pub(crate) fn failed(&self, id: u64, now: Instant) -> Option<Told> {
        let mut silent = self.silent.lock();
        let silence = silent.entry(id).or_insert(Silence { since: now, last: now, told: None });
        if silence.told.is_none() && now.saturating_duration_since(silence.last) > APART {
            silence.since = now;
        }
        silence.last = now;
        let away = now.saturating_duration_since(silence.since);
        let told = match silence.told {
            None if away >= TELL_AFTER => Some(Told::Lost),
            Some(at) if now.saturating_duration_since(at) >= TELL_EVERY => Some(Told::Away(away)),
            _ => None,
        };
        if told.is_some() {
            silence.told = Some(now);
        }
        self.count.store(silent.len(), Ordering::Release);
        told
    }

    /// A call was answered; says for how long the member was away, if that was told.
    pub(crate) fn answered(&self, id: u64, now: Instant) -> Option<Duration> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut silent = self.silent.lock();
        let silence = silent.remove(&id)?;
        self.count.store(silent.len(), Ordering::Release);
        silence.told.map(|_| now.saturating_duration_since(silence.since))
    }

    /// Forgets members that there are no longer.
    pub(crate) fn retain(&self, is_member: impl Fn(u64) -> bool) {
        let mut silent = self.silent.lock();
        silent.retain(|id, _| is_member(*id));
        self.count.store(silent.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_told_lost_after_a_second_and_again_every_half_minute() {
        let (reach, start) = (Reach::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(reach.failed(1, at(0)), None);
        assert_eq!(reach.failed(1, at(900)), None);
        assert_eq!(reach.answered(1, at(950)), None, "one late answer is no news");
        assert_eq!(reach.failed(1, at(1000)), None);
        assert_eq!(reach.failed(1, at(2000)), Some(Told::Lost));
        assert_eq!(reach.failed(1, at(2100)), None);
        assert_eq!(reach.failed(2, at(2100)), None);
        assert_eq!(reach.failed(1, at(32_000)), Some(Told::Away(Duration::from_secs(31))));
        assert_eq!(reach.failed(1, at(32_100)), None);
        assert_eq!(reach.answered(1, at(41_000)), Some(Duration::from_secs(40)));
        assert_eq!(reach.answered(1, at(41_000)), None);
        assert_eq!(reach.failed(2, at(600_000)), None, "another silence");
        reach.retain(|id| id != 2);
        assert_eq!(reach.failed(2, at(602_000)), None);
    }
}
