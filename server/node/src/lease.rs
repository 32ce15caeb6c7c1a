//! Leases on the leader's clock. Only the leader counts; what it finds expired it revokes through the log, so a lease
//! ends on all members at once and never before its time.

use crate::node::{Inner, Node};
use bytes::Bytes;
use ferretcd_raft::{GroupView, Role};
use ferretcd_state::{Access, LeaseTimes, Permits};
use ferretcd_types::{Client, Command, Error, KeyRange, LeaseCheckpoint, LeaseId, LeaseRevoke, MemberId};
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the leader looks for expired leases (etcd's 500 ms).
const SCAN_EVERY: Duration = Duration::from_millis(500);
/// Most leases revoked in one scan: etcd's 1000 a second.
const REVOKED_PER_SCAN: usize = 500;
/// Revocations under way at once: enough to fill a log write, few enough to leave room for clients.
const REVOCATIONS_IN_FLIGHT: usize = 16;

/// How long after a failed revocation the next one is tried (etcd's expiredLeaseRetryInterval): what refuses one, an alarm or a
/// restore, refuses all of them for a while, and each is an entry of the log.
const REVOKE_AGAIN: Duration = Duration::from_secs(3);

/// How long a lease lives before it is noted what is left of it (etcd's defaultLeaseCheckpointInterval).
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);
/// Leases in one checkpoint (etcd's maxLeaseCheckpointBatchSize): some 20 KB.
const CHECKPOINTS_PER_ENTRY: usize = 1000;
/// Checkpoints in one scan: with etcd's 1000 entries a second.
const ENTRIES_PER_SCAN: usize = 500;

/// A lease's remaining and granted time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTtl {
    /// Whole seconds that remain; -1 when there is no such lease.
    pub ttl: i64,
    /// Seconds as granted; 0 when there is no such lease.
    pub granted: i64,
    /// Its keys in order, if asked for.
    pub keys: Vec<Bytes>,
}

/// When which lease expires, as this member would count if it led.
#[derive(Debug, Default)]
pub(crate) struct LeaseClock {
    /// How long a lease lives before it is noted what is left of it; `None` if that is never noted.
    checkpoint_every: Option<Duration>,
    inner: Mutex<Deadlines>,
}

#[derive(Debug, Default)]
struct Deadlines {
    /// The term that this member counts for as its leader. Before the clock was set for it, deadlines are those of a
    /// follower that never heard of renewals, and nobody may be told by them that a lease is gone.
    led_term: Option<u64>,
    by_lease: HashMap<LeaseId, Counted>,
    by_time: BTreeSet<(Instant, LeaseId)>,
    /// When it is to be noted what is left of a lease.
    checkpoints: BTreeSet<(Instant, LeaseId)>,
    /// Leases whose time is over and somebody waits to hear that they are revoked: told by the sender's end. No more
    /// than there are leases.
    awaited: HashMap<LeaseId, watch::Sender<()>>,
}

/// What came of a renewal.
#[derive(Debug)]
enum Renewal {
    /// It has its full time again: that many seconds.
    Renewed(i64),
    /// There is no such lease.
    Unknown,
    /// Its time is over, but it is not revoked yet. This ends when it is, or when the clock starts anew.
    Ends(watch::Receiver<()>),
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Instant,
    /// When it is to be revoked: at its end, or later where that was tried and failed.
    due: Instant,
    ttl: i64,
    /// The log says that so many seconds are left, and a new leader will start with them; 0 for all of them.
    noted: i64,
    checkpoint: Option<Instant>,
}

impl Deadlines {
    fn set(&mut self, id: LeaseId, lease: Counted) {
        self.remove(id);
        self.by_time.insert((lease.due, id));
        self.checkpoints.extend(lease.checkpoint.map(|at| (at, id)));
        self.by_lease.insert(id, lease);
    }

    fn remove(&mut self, id: LeaseId) {
        if let Some(lease) = self.by_lease.remove(&id) {
            self.by_time.remove(&(lease.due, id));
            lease.checkpoint.map(|at| self.checkpoints.remove(&(at, id)));
        }
    }
}

/// Whether a lease was renewed while that was on its way into the log which was left of it before: a new leader would start it with
/// less than its holder was told.
fn has_more(lease: &Counted, noted: i64) -> bool {
    noted > 0 && lease.at.saturating_duration_since(Instant::now()) > seconds(noted)
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0) as u64)
}

impl LeaseClock {
    pub(crate) fn new(checkpoint_every: Option<Duration>) -> Self {
        LeaseClock { checkpoint_every, inner: Mutex::default() }
    }

    /// When to note what is left of a lease: only one that outlives the interval is worth it.
    fn next_checkpoint(&self, ttl: i64, noted: i64) -> Option<Instant> {
        let left = if noted > 0 { noted } else { ttl };
        let every = self.checkpoint_every.filter(|every| seconds(left) > *every)?;
        Some(Instant::now() + every)
    }

    pub(crate) fn granted(&self, id: LeaseId, ttl: i64) {
        let (at, checkpoint) = (Instant::now() + seconds(ttl), self.next_checkpoint(ttl, 0));
        self.inner.lock().set(id, Counted { at, due: at, ttl, noted: 0, checkpoint });
    }

    pub(crate) fn revoked(&self, id: LeaseId) {
        let mut inner = self.inner.lock();
        inner.remove(id);
        inner.awaited.remove(&id);
    }

    /// The log has noted what is left of a lease. Its end stays where it is: only a new leader starts by it.
    pub(crate) fn noted(&self, id: LeaseId, noted: i64) {
        let mut inner = self.inner.lock();
        let Some(lease) = inner.by_lease.get(&id).copied() else { return };
        let checkpoint = match self.checkpoint_every {
            Some(_) if has_more(&lease, noted) => Some(Instant::now()),
            _ => self.next_checkpoint(lease.ttl, noted),
        };
        inner.set(id, Counted { noted, checkpoint, ..lease });
    }

    /// All leases start anew with what was noted of them, else with their full time, and `extra` on top: a new leader
    /// does not know when they were last renewed, and their holders need to find it first.
    ///
    /// The leases are read under the clock's lock: one that is granted meanwhile comes after, and is not overwritten.
    pub(crate) fn reset(&self, leases: impl FnOnce() -> Vec<LeaseTimes>, extra: Duration) {
        let mut inner = self.inner.lock();
        *inner = Deadlines { led_term: inner.led_term, ..Deadlines::default() };
        let now = Instant::now();
        for LeaseTimes { id, ttl, remaining } in leases() {
            let at = now + seconds(if remaining > 0 { remaining } else { ttl }) + extra;
            let checkpoint = self.next_checkpoint(ttl, remaining);
            inner.set(id, Counted { at, due: at, ttl, noted: remaining, checkpoint });
        }
    }

    /// Starts counting for a term, or stops.
    fn lead(&self, term: Option<u64>) {
        self.inner.lock().led_term = term;
    }

    fn led_term(&self) -> Option<u64> {
        self.inner.lock().led_term
    }

    /// Gives a lease its full time again, unless that is over.
    fn renew(&self, id: LeaseId) -> Renewal {
        let mut inner = self.inner.lock();
        let Some(lease) = inner.by_lease.get(&id).copied() else { return Renewal::Unknown };
        let now = Instant::now();
        if lease.at <= now {
            return Renewal::Ends(inner.awaited.entry(id).or_default().subscribe());
        }
        let at = now + seconds(lease.ttl);
        inner.set(id, Counted { at, due: at, ..lease });
        Renewal::Renewed(lease.ttl)
    }

    /// Whether a new leader would start this lease with less than its full time.
    fn is_noted(&self, id: LeaseId) -> bool {
        self.inner.lock().by_lease.get(&id).is_some_and(|lease| lease.noted > 0)
    }

    fn remaining(&self, id: LeaseId) -> Option<i64> {
        let inner = self.inner.lock();
        let lease = inner.by_lease.get(&id)?;
        Some(lease.at.saturating_duration_since(Instant::now()).as_secs() as i64)
    }

    /// Whether its time is over. It may have been granted anew since it was listed.
    fn is_over(&self, id: LeaseId) -> bool {
        self.inner.lock().by_lease.get(&id).is_some_and(|lease| lease.at <= Instant::now())
    }

    /// It could not be revoked: the next try comes later.
    fn put_off(&self, id: LeaseId) {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        if let Some(lease) = inner.by_lease.get(&id).copied().filter(|lease| lease.at <= now) {
            inner.set(id, Counted { due: now + REVOKE_AGAIN, ..lease });
        }
    }

    /// Those that are to be revoked now.
    fn expired(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        let inner = self.inner.lock();
        inner.by_time.iter().take_while(|(at, _)| *at <= now).take(REVOKED_PER_SCAN).map(|(_, id)| *id).collect()
    }

    /// Leases of which it is time to note what is left, with that in seconds, rounded up. They come again after the
    /// interval.
    fn to_note(&self) -> Vec<(LeaseId, i64)> {
        let Some(every) = self.checkpoint_every else { return Vec::new() };
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let due = inner.checkpoints.iter().take_while(|(at, _)| *at <= now).take(CHECKPOINTS_PER_ENTRY);
        let due: Vec<LeaseId> = due.map(|(_, id)| *id).collect();
        let mut left = Vec::new();
        for id in due {
            let Some(lease) = inner.by_lease.get(&id).copied() else { continue };
            inner.set(id, Counted { checkpoint: Some(now + every), ..lease });
            let remaining = lease.at.saturating_duration_since(now).as_millis().div_ceil(1000) as i64;
            // One that was just renewed has nothing to be noted, nor has one that ends.
            if has_more(&lease, lease.noted) {
                left.push((id, 0));
            } else if (1..lease.ttl).contains(&remaining) {
                left.push((id, remaining));
            }
        }
        left
    }

    fn in_order(&self) -> Vec<LeaseId> {
        self.inner.lock().by_time.iter().map(|(_, id)| *id).collect()
    }
}

impl Node {
    /// Renews a lease: its granted seconds, or 0 when there is none.
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        if self.inner.state.auth_enabled() {
            let (client, permits) = (self.client().await?, self.inner.state.permits());
            permits.check_user(&client)?;
            permits.check_lease(&client, &self.inner.lease_keys(id))?;
        }
        let deadline = Instant::now() + self.inner.timing.request_timeout();
        loop {
            let leader = self.inner.leader_by(deadline).await?;
            let renewed = if leader == self.inner.identity.member {
                self.inner.local_keep_alive(id).await
            } else {
                let Some(node) = self.inner.view().node(leader).cloned() else {
                    self.inner.pause(deadline).await?;
                    continue;
                };
                self.inner.group.peers().lease_keep_alive(leader, &node, id).await
            };
            match renewed {
                Err(Error::NotLeader | Error::TimeoutConnectionLost) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }

    /// How long a lease still lives.
    pub async fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Result<LeaseTtl, Error> {
        self.inner.linearize().await?;
        let state = &self.inner.state;
        let may = |permits: &Permits, client: &Client| match keys {
            true => may_see(permits, client, &self.inner.lease_keys(id)),
            false => permits.check_user(client),
        };
        let Some(view) = self.guarded(may, || Ok(state.lease(id))).await? else {
            return Ok(LeaseTtl { ttl: -1, granted: 0, keys: Vec::new() });
        };
        let deadline = Instant::now() + self.inner.timing.request_timeout();
        let ttl = loop {
            let leader = self.inner.leader_by(deadline).await?;
            let asked = if leader == self.inner.identity.member {
                self.inner.local_time_to_live(id)
            } else {
                let Some(node) = self.inner.view().node(leader).cloned() else {
                    self.inner.pause(deadline).await?;
                    continue;
                };
                self.inner.group.peers().lease_time_to_live(leader, &node, id).await
            };
            match asked {
                Err(Error::NotLeader | Error::TimeoutConnectionLost) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(e) => return Err(e),
                Ok(ttl) => break ttl,
            }
        };
        let keys = if keys { view.keys } else { Vec::new() };
        Ok(LeaseTtl { ttl, granted: view.ttl, keys })
    }

    /// All leases, the next to expire first.
    pub async fn leases(&self) -> Result<Vec<LeaseId>, Error> {
        self.inner.linearize().await?;
        let may = |permits: &Permits, client: &Client| {
            permits.check_user(client)?;
            let leases = self.inner.state.leases();
            leases.into_iter().try_for_each(|(id, _)| may_see(permits, client, &self.inner.lease_keys(id)))
        };
        self.guarded(may, || Ok(self.inner.lease_clock.in_order())).await
    }
}

/// Whether a client may see which keys hang on a lease: those that it may read. Root may see all, by an old token, too
/// (etcd's rule).
fn may_see(permits: &Permits, client: &Client, keys: &[Bytes]) -> Result<(), Error> {
    permits.check_user(client)?;
    if permits.check_root(client).is_ok() {
        return Ok(());
    }
    keys.iter().try_for_each(|key| permits.check(client, Access::Read, &KeyRange::single(key.clone())))
}

fn leads(view: &GroupView, member: MemberId) -> bool {
    view.role == Role::Leader && view.leader == Some(member)
}

impl Inner {
    fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.state.lease(id).map(|lease| lease.keys).unwrap_or_default()
    }

    fn leads(&self) -> bool {
        leads(&self.view.borrow(), self.identity.member)
    }

    /// Leads, and has set the lease clock since it does.
    fn counts(&self) -> bool {
        self.leads() && self.lease_clock.led_term() == Some(self.view().term)
    }

    /// Renews a lease on this member's clock. A leader that was replaced and does not know it yet must not: it asks
    /// its quorum first.
    ///
    /// A lease whose time is over is gone only when it is revoked, and this waits for that, as etcd does
    /// (`lessor.Renew`): until then it can be used by others, and a new leader would give it its full time again.
    ///
    /// # Errors
    /// `NotLeader` if this member does not lead, or no longer; `Timeout` if a lease that ends is not revoked in the time
    /// that requests have.
    pub(crate) async fn local_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        let (deadline, me) = (Instant::now() + self.timing.request_timeout(), self.identity.member);
        loop {
            if !self.counts() {
                return Err(Error::NotLeader);
            }
            self.linearize().await?;
            if !self.counts() {
                return Err(Error::NotLeader);
            }
            // A new leader must not start it with less than its holder is told. Once per checkpoint: two entries for each.
            if self.lease_clock.is_noted(id) {
                let full = LeaseCheckpoint { remaining: vec![(id, 0)] };
                self.propose(Command::LeaseCheckpoint(full)).await?;
            }
            let mut ends = match self.lease_clock.renew(id) {
                Renewal::Renewed(ttl) => {
                    self.metrics.leases_renewed.inc();
                    return Ok(ttl);
                }
                Renewal::Unknown => return Ok(0),
                Renewal::Ends(ends) => ends,
            };
            let mut view = self.view.clone();
            tokio::select! {
                _ = ends.changed() => {}
                lost = view.wait_for(|view| !leads(view, me)) => { lost.map_err(|_| Error::Stopped)?; }
                () = self.stop.cancelled() => return Err(Error::Stopped),
                () = tokio::time::sleep_until(deadline) => return Err(Error::Timeout),
            }
        }
    }

    pub(crate) fn local_time_to_live(&self, id: LeaseId) -> Result<i64, Error> {
        if !self.counts() {
            return Err(Error::NotLeader);
        }
        Ok(self.lease_clock.remaining(id).unwrap_or(-1))
    }
}

/// Puts into the log how long leases still live whose time it is, in this term.
async fn note_what_is_left(inner: &Inner, term: u64) {
    for _ in 0..ENTRIES_PER_SCAN {
        let remaining = inner.lease_clock.to_note();
        if remaining.is_empty() {
            return;
        }
        let count = remaining.len();
        tracing::debug!(count, "noting how long leases still live");
        if let Err(e) = inner.propose_here(term, Command::LeaseCheckpoint(LeaseCheckpoint { remaining })).await {
            tracing::warn!(count, "cannot note how long leases still live: {e}; trying again after the interval");
            return;
        }
    }
}

/// Revokes what has expired, while this member leads; starts the clock anew when it begins to.
pub(crate) async fn expire(inner: Arc<Inner>) {
    let mut tick = tokio::time::interval(SCAN_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut view, me) = (inner.view.clone(), inner.identity.member);
    // Whether it leads is new: its clock starts then, and not at the next scan, which would give more time to leases that it
    // has granted itself meanwhile. Tried once, so that one without a quorum does not spin.
    let mut begins = true;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(_) = view.wait_for(|view| leads(view, me)), if begins => {}
            () = inner.stop.cancelled() => return,
        }
        if !inner.leads() {
            inner.lease_clock.lead(None);
            begins = true;
            continue;
        }
        begins = false;
        if !inner.counts() {
            // All that earlier leaders granted must be applied before it can be counted.
            if inner.linearize().await.is_ok() {
                inner.lease_clock.reset(|| inner.state.lease_times(), inner.timing.election);
                inner.lease_clock.lead(Some(inner.view().term));
            }
            continue;
        }
        let Some(term) = inner.lease_clock.led_term() else { continue };
        note_what_is_left(&inner, term).await;
        if inner.lease_clock.expired().is_empty() {
            continue;
        }
        // A leader that stood still may have a successor, where holders kept their leases alive: it hears of that first.
        if inner.linearize().await.is_err() || !inner.counts() {
            continue;
        }
        // What was listed for one term is not revoked in another: somebody may have led between, and renewed it.
        let expired = inner.lease_clock.expired();
        tracing::debug!(count = expired.len(), "revoking expired leases");
        let failed: Vec<Error> = futures::stream::iter(expired)
            .map(|id| revoke(&inner, term, id))
            .buffer_unordered(REVOCATIONS_IN_FLIGHT)
            .filter_map(std::future::ready)
            .collect()
            .await;
        if let Some(e) = failed.last() {
            tracing::warn!(
                count = failed.len(),
                "cannot revoke expired leases: {e}; trying again after {REVOKE_AGAIN:?}"
            );
        }
    }
}

/// Revokes one lease whose time is over, or says why it could not be.
async fn revoke(inner: &Inner, term: u64, id: LeaseId) -> Option<Error> {
    if !inner.lease_clock.is_over(id) {
        return None;
    }
    // The clock hears of it when it is applied. Here is too late: by now the ID may be granted anew.
    match inner.propose_here(term, Command::LeaseRevoke(LeaseRevoke { id })).await {
        Ok(_) | Err(Error::LeaseNotFound) => {
            inner.metrics.leases_expired.inc();
            None
        }
        Err(e) => {
            inner.lease_clock.put_off(id);
            Some(e)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds that a lease is renewed for, if it is.
    fn renewed(clock: &LeaseClock, id: i64) -> Option<i64> {
        match clock.renew(LeaseId(id)) {
            Renewal::Renewed(ttl) => Some(ttl),
            Renewal::Unknown | Renewal::Ends(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_expires_after_its_time_and_not_before_and_renewal_starts_it_anew() {
        let clock = LeaseClock::default();
        clock.granted(LeaseId(1), 10);
        clock.granted(LeaseId(2), 20);
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert!(clock.expired().is_empty());
        assert_eq!(renewed(&clock, 1), Some(10));
        tokio::time::advance(Duration::from_millis(9_999)).await;
        assert!(clock.expired().is_empty());
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(clock.expired(), [LeaseId(1), LeaseId(2)]);
        assert_eq!(renewed(&clock, 1), None, "an expired lease is not renewed, whoever asks");
    }

    /// An alarm or a restore refuses all of them, for as long as it lasts.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_could_not_be_revoked_is_tried_again_later_and_not_renewed() {
        let clock = LeaseClock::default();
        clock.granted(LeaseId(1), 10);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(clock.is_over(LeaseId(1)));
        clock.put_off(LeaseId(1));
        assert!(clock.expired().is_empty());
        assert_eq!((renewed(&clock, 1), clock.remaining(LeaseId(1))), (None, Some(0)));
        tokio::time::advance(REVOKE_AGAIN).await;
        assert_eq!(clock.expired(), [LeaseId(1)]);
        // Granted anew meanwhile, it has all of its time.
        clock.revoked(LeaseId(1));
        clock.granted(LeaseId(1), 10);
        assert!(!clock.is_over(LeaseId(1)));
        clock.put_off(LeaseId(1));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.expired(), [LeaseId(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_renews_a_lease_that_ends_hears_when_it_is_revoked_or_the_clock_starts_anew() {
        let clock = LeaseClock::default();
        let times = |id| LeaseTimes { id: LeaseId(id), ttl: 10, remaining: 0 };
        let ends = |id| match clock.renew(LeaseId(id)) {
            Renewal::Ends(ends) => ends,
            other => panic!("{other:?}"),
        };
        clock.granted(LeaseId(1), 10);
        clock.granted(LeaseId(2), 10);
        tokio::time::advance(Duration::from_secs(10)).await;
        let (mut first, mut again, mut other) = (ends(1), ends(1), ends(2));
        clock.revoked(LeaseId(1));
        assert!(first.changed().await.is_err() && again.changed().await.is_err());
        assert!(matches!(clock.renew(LeaseId(1)), Renewal::Unknown));
        assert!(
            tokio::time::timeout(Duration::from_secs(1), other.changed()).await.is_err(),
            "that one is not revoked"
        );
        clock.reset(|| vec![times(2)], Duration::ZERO);
        assert!(other.changed().await.is_err());
        assert_eq!(renewed(&clock, 2), Some(10), "a new leader's clock gave it its time again");
    }

    #[tokio::test(start_paused = true)]
    async fn leases_are_listed_by_their_ends_and_what_remains_is_rounded_down() {
        let clock = LeaseClock::default();
        for (id, ttl) in [(1, 30), (2, 10), (3, 25)] {
            clock.granted(LeaseId(id), ttl);
        }
        assert_eq!(clock.in_order(), [LeaseId(2), LeaseId(3), LeaseId(1)]);
        tokio::time::advance(Duration::from_millis(9_001)).await;
        assert_eq!((clock.remaining(LeaseId(2)), clock.remaining(LeaseId(1))), (Some(0), Some(20)));
        assert_eq!(renewed(&clock, 2), Some(10));
        assert_eq!(clock.remaining(LeaseId(2)), Some(10));
        assert_eq!(renewed(&clock, 3), Some(25));
        assert_eq!(clock.in_order(), [LeaseId(2), LeaseId(1), LeaseId(3)]);
        assert_eq!(clock.remaining(LeaseId(9)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_gives_every_lease_its_full_time_and_an_election_more() {
        let clock = LeaseClock::default();
        clock.granted(LeaseId(1), 10);
        tokio::time::advance(Duration::from_secs(9)).await;
        clock.reset(|| vec![LeaseTimes { id: LeaseId(1), ttl: 10, remaining: 0 }], Duration::from_secs(1));
        tokio::time::advance(Duration::from_millis(10_999)).await;
        assert!(clock.expired().is_empty());
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(clock.expired(), [LeaseId(1)]);
    }

    const EVERY: Duration = Duration::from_secs(300);

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_long_leases_is_noted_after_the_interval_and_again() {
        let clock = LeaseClock::new(Some(EVERY));
        clock.granted(LeaseId(1), 1000);
        clock.granted(LeaseId(2), 300);
        tokio::time::advance(Duration::from_millis(299_999)).await;
        assert_eq!(clock.to_note(), []);
        tokio::time::advance(Duration::from_millis(2)).await;
        // The second is not worth it; what is left is rounded up.
        assert_eq!(clock.to_note(), [(LeaseId(1), 700)]);
        clock.noted(LeaseId(1), 700);
        assert!(clock.is_noted(LeaseId(1)));
        assert_eq!(clock.remaining(LeaseId(1)), Some(699), "its end has not moved");
        tokio::time::advance(EVERY).await;
        assert_eq!(clock.to_note(), [(LeaseId(1), 400)]);
        clock.noted(LeaseId(1), 400);
        tokio::time::advance(EVERY).await;
        assert_eq!(clock.to_note(), [(LeaseId(1), 100)]);
        clock.noted(LeaseId(1), 100);
        tokio::time::advance(EVERY).await;
        assert_eq!(clock.to_note(), [], "less than the interval was left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_lease_has_nothing_to_note_and_nothing_is_noted_where_it_is_off() {
        let (clock, off) = (LeaseClock::new(Some(EVERY)), LeaseClock::default());
        for clock in [&clock, &off] {
            clock.granted(LeaseId(1), 1000);
        }
        tokio::time::advance(EVERY).await;
        assert_eq!((renewed(&clock, 1), off.to_note()), (Some(1000), vec![]));
        assert_eq!(clock.to_note(), []);
        tokio::time::advance(EVERY).await;
        assert_eq!(clock.to_note(), [(LeaseId(1), 700)], "it comes again");
        clock.noted(LeaseId(1), 0);
        assert!(!clock.is_noted(LeaseId(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_of_a_lease_that_is_renewed_while_it_is_noted_is_taken_back_at_once() {
        let clock = LeaseClock::new(Some(EVERY));
        clock.granted(LeaseId(1), 1000);
        tokio::time::advance(Duration::from_secs(900)).await;
        assert_eq!(clock.to_note(), [(LeaseId(1), 100)]);
        assert_eq!(renewed(&clock, 1), Some(1000));
        clock.noted(LeaseId(1), 100);
        assert_eq!(clock.to_note(), [(LeaseId(1), 0)]);
        clock.noted(LeaseId(1), 0);
        assert_eq!((clock.is_noted(LeaseId(1)), clock.to_note()), (false, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_starts_a_lease_with_what_was_noted_of_it() {
        let clock = LeaseClock::new(Some(EVERY));
        let noted = LeaseTimes { id: LeaseId(1), ttl: 1000, remaining: 40 };
        clock.reset(|| vec![noted], Duration::from_secs(1));
        assert!(clock.is_noted(LeaseId(1)));
        tokio::time::advance(Duration::from_millis(40_999)).await;
        assert!(clock.expired().is_empty());
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(clock.expired(), [LeaseId(1)]);
        clock.reset(|| vec![noted], Duration::ZERO);
        assert_eq!(renewed(&clock, 1), Some(1000), "renewed, it has its full time");
        assert_eq!(clock.remaining(LeaseId(1)), Some(1000));
    }
}
