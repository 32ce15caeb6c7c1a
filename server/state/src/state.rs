//! The state machine as one value: opened from the store, written by one applier, read by many.

use crate::auth::permits::Permits;
use crate::auth::{Auth, UserView};
use crate::error::chain;
use crate::lease::{LeaseTimes, LeaseView};
use crate::mvcc::compact::Pace;
use crate::mvcc::hash::{self, KvHash};
use crate::mvcc::history::EventBatch;
use crate::mvcc::space::Space;
use crate::mvcc::{Mvcc, record};
use crate::restore::staging::{RestoreProgress, Staging};
use crate::rooms::{KEYSPACES, Rooms, decode_log_format, decode_u64};
use crate::worker::{self, CompactionObserver, Work};
use crate::{StateError, txn};
use bytes::Bytes;
use ferretcd_storage::{Store, keyspace};
use ferretcd_types::{
    Alarm, Epoch, Error, Event, KeyRange, KeyValue, LeaseId, LogPos, Member, MemberId, Permission, Range, RangeReply,
    Revision, Txn, TxnReply,
};
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// What the store may have to take in yet for a write not to wait: an eighth of what it queues.
const PENDING_BYTES_FEW: usize = 8 << 20;

/// The replicated state of one member. Share it in an `Arc`: one thread applies, any number read.
///
/// Every call may block on the store, so async callers use a blocking thread for all that touches values.
pub struct State {
    pub(crate) inner: Arc<Inner>,
    worker: Option<JoinHandle<()>>,
}

/// What the applier, the readers and the background thread share. Locks are taken in the order of the fields.
pub(crate) struct Inner {
    /// Held while an entry is applied, a snapshot pinned or installed: between two entries everything is of one moment.
    pub applier: Mutex<Applier>,
    /// Written at the end of each entry.
    pub rooms: RwLock<Rooms>,
    /// Written by the entries of a restore.
    pub staging: RwLock<Option<Staging>>,
    pub permits: RwLock<Arc<Permits>>,
    /// `permits` says that auth is on. Beside it, so that while it is off nobody takes a lock to learn that.
    pub auth_enabled: AtomicBool,
    pub mvcc: Mvcc,
    pub work: Work,
}

/// What only the applier changes.
pub(crate) struct Applier {
    next_generation: u32,
}

impl Applier {
    /// A number that no generation in the store has. Generations are this member's own business; 2^32 of them are more
    /// restores than a store will see.
    pub fn new_generation(&mut self) -> u32 {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        generation
    }
}

impl State {
    /// Opens the state that the store holds, and starts the background thread. Reads every key record once, to rebuild
    /// the index.
    pub fn open(store: impl Into<Arc<Store>>, member: MemberId) -> Result<State, StateError> {
        let inner = State::load(store.into(), member)?;
        let shared = inner.clone();
        let worker = thread::Builder::new()
            .name("state-worker".to_owned())
            .spawn(move || worker::run(&shared))
            .map_err(|err| StateError::Thread(err.to_string()))?;
        Ok(State { inner, worker: Some(worker) })
    }

    /// As [`State::open`], without the background thread, whose work [`State::tend`] does. For simulations, which have one
    /// thread; nobody may wait for compactions there.
    pub fn open_still(store: impl Into<Arc<Store>>, member: MemberId) -> Result<State, StateError> {
        Ok(State { inner: State::load(store.into(), member)?, worker: None })
    }

    /// Deletes all that compaction, restores and installed snapshots have left behind, unless a snapshot under way holds
    /// it up.
    pub fn tend(&self) -> Result<(), StateError> {
        worker::tend(&self.inner)
    }

    fn load(store: Arc<Store>, member: MemberId) -> Result<Arc<Inner>, StateError> {
        check_log_format(&store)?;
        let mut facts = Facts::default();
        let mut rooms = Rooms::default();
        for space in KEYSPACES {
            scan(&store, space, |key, value| {
                facts.load(&key, &value)?;
                rooms.load(&key, value)
            })?;
        }
        let leases = &mut rooms.leases;
        let all = Revision::new(i64::MAX, i64::MAX);
        let live = Space::load(&store, facts.generation, all, |kv| leases.attach(&kv.key, kv.lease))?;
        {
            let mut index = live.index.write();
            index.compacted = facts.compacted;
            index.revision = index.revision.max(facts.compacted);
        }
        let staging = facts.restore.map(|header| load_staging(&store, header)).transpose()?;
        let kept = [Some(live.generation), staging.as_ref().map(|staging| staging.space.generation)];
        let generations = generations(&store)?;
        let used = generations.iter().chain(kept.iter().flatten()).max().copied().unwrap_or(0);
        // What an interrupted restore or installation left.
        let retired: VecDeque<_> =
            generations.into_iter().filter(|generation| !kept.contains(&Some(*generation))).map(Space::new).collect();
        tracing::info!(
            %member,
            applied = rooms.applied.map(tracing::field::display),
            revision = live.revisions().0,
            keys = live.index.read().live,
            leftovers = retired.len(),
            "state opened"
        );
        let permits = Arc::new(Permits::of(&rooms.auth));
        let inner = Arc::new(Inner {
            auth_enabled: AtomicBool::new(permits.enabled()),
            permits: RwLock::new(permits),
            applier: Mutex::new(Applier { next_generation: used.wrapping_add(1) }),
            rooms: RwLock::new(rooms),
            staging: RwLock::new(staging),
            mvcc: Mvcc::new(store, live),
            work: Work::new(facts.finished, retired),
        });
        Ok(inner)
    }

    /// The last log entry whose effects are visible.
    pub fn applied(&self) -> Option<LogPos> {
        self.inner.rooms.read().applied
    }

    /// What the raft floor handed to [`State::apply_membership`] last.
    pub fn membership(&self) -> Option<Bytes> {
        self.inner.rooms.read().membership.clone()
    }

    /// The store's revision: 1 before the first write.
    pub fn revision(&self) -> i64 {
        self.inner.mvcc.live().revisions().0
    }

    /// The revision below which history is gone; -1 before the first compaction.
    pub fn compacted_revision(&self) -> i64 {
        self.inner.mvcc.live().revisions().1
    }

    /// The history's epoch; [`Epoch::UNKNOWN`] before the first entry.
    pub fn epoch(&self) -> Epoch {
        self.inner.rooms.read().epoch
    }

    /// Epochs of the histories that this one replaced by force, see [`State::reform`].
    pub fn replaced_epochs(&self) -> Vec<Epoch> {
        self.inner.rooms.read().replaced.clone()
    }

    /// The cluster version, `3.7.0` form; None before the first entry.
    pub fn cluster_version(&self) -> Option<String> {
        self.inner.rooms.read().cluster_version.clone()
    }

    /// What the log may hold, as [`Command::log_format`](ferretcd_types::Command::log_format) counts.
    pub fn log_format(&self) -> u32 {
        self.inner.rooms.read().log_format.max(1)
    }

    /// The version that a downgrade goes to, while one is under way.
    pub fn downgrade(&self) -> Option<String> {
        self.inner.rooms.read().downgrade.clone()
    }

    /// Voters and learners, by ID.
    pub fn members(&self) -> Vec<Member> {
        self.inner.rooms.read().members.all()
    }

    /// True when this ID was a member and is none any more.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.inner.rooms.read().members.is_removed(id)
    }

    /// The IDs that were members once, in order.
    pub fn removed_members(&self) -> Vec<MemberId> {
        self.inner.rooms.read().members.removed().collect()
    }

    /// The raised alarms, by member.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.inner.rooms.read().alarms.all()
    }

    /// All leases with their granted seconds, by ID.
    pub fn leases(&self) -> Vec<(LeaseId, i64)> {
        self.inner.rooms.read().leases.all()
    }

    /// How many leases there are.
    pub fn lease_count(&self) -> usize {
        self.inner.rooms.read().leases.len()
    }

    /// All leases with what a checkpoint noted of them, by ID.
    pub fn lease_times(&self) -> Vec<LeaseTimes> {
        self.inner.rooms.read().leases.times()
    }

    /// One lease: its granted seconds and its keys.
    pub fn lease(&self, id: LeaseId) -> Option<LeaseView> {
        self.inner.rooms.read().leases.view(id)
    }

    /// Whether auth is on.
    pub fn auth_enabled(&self) -> bool {
        self.inner.auth_enabled.load(Ordering::Acquire)
    }

    /// Who may do what now.
    pub fn permits(&self) -> Arc<Permits> {
        self.inner.permits.read().clone()
    }

    /// The names of all users, in order.
    pub fn auth_users(&self) -> Vec<String> {
        names(self.inner.rooms.read().auth.users.keys())
    }

    /// The names of all roles, in order.
    pub fn auth_roles(&self) -> Vec<String> {
        names(self.inner.rooms.read().auth.roles.keys())
    }

    /// One user.
    pub fn auth_user(&self, name: &str) -> Result<Option<UserView>, Error> {
        self.inner.rooms.read().auth.user_view(name)
    }

    /// The permissions of one role.
    pub fn auth_role(&self, name: &str) -> Result<Option<Vec<Permission>>, Error> {
        self.inner.rooms.read().auth.permissions(name)
    }

    /// The restore that refuses other writes now, if there is one.
    pub fn restore_in_progress(&self) -> Option<RestoreProgress> {
        self.inner.staging.read().as_ref().map(Staging::progress)
    }

    /// Bytes of all key records that are in the store, history included: what the quota is held against, with something for each
    /// lease.
    pub fn logical_bytes(&self) -> u64 {
        self.inner.mvcc.live().index.read().bytes
    }

    /// About how large a snapshot file is: with what a restore that is under way has brought so far.
    pub fn snapshot_bytes(&self) -> u64 {
        let staged = self.inner.staging.read().as_ref().map_or(0, |staging| staging.space.index.read().bytes);
        self.logical_bytes().saturating_add(staged)
    }

    /// Why the store takes nothing more, once that is so: with its causes, in one line. It may fail behind the last entry.
    pub fn failure(&self) -> Option<String> {
        self.inner.mvcc.store.failure().map(|failure| chain(&failure))
    }

    /// Bytes that the store's files occupy.
    pub fn disk_bytes(&self) -> Result<u64, StateError> {
        self.inner.mvcc.store.size_on_disk().map_err(StateError::store("measure the store"))
    }

    /// Whether so many bytes are applied without a wait: neither for the store, which has taken in almost all that came before,
    /// nor for who looks at the whole state now.
    pub fn applies_at_once(&self, bytes: usize) -> bool {
        self.inner.mvcc.store.pending_bytes() + bytes < PENDING_BYTES_FEW && self.inner.applier.try_lock().is_some()
    }

    /// Rewrites the store's files without the space that deleted records left. Reads go on, writes wait when they become
    /// too many.
    pub fn defragment(&self) -> Result<(), StateError> {
        self.inner.mvcc.store.rewrite().map(drop).map_err(StateError::store("rewrite the store"))
    }

    /// Keys that exist now.
    pub fn key_count(&self) -> u64 {
        self.inner.mvcc.live().index.read().live
    }

    /// Answers a range from the newest applied state.
    pub fn range(&self, request: &Range) -> Result<RangeReply, Error> {
        Ok(self.inner.mvcc.read(|view| view.range(request))?)
    }

    /// The first keys of a range at a revision (0 is the newest), in key order, and whether there are more. Does not
    /// count: for readers that go through a range page by page.
    pub fn range_page(
        &self,
        range: &KeyRange,
        revision: i64,
        limit: usize,
        keys_only: bool,
    ) -> Result<(Vec<KeyValue>, bool), Error> {
        Ok(self.inner.mvcc.read(|view| view.page(range, revision, limit, keys_only))?)
    }

    /// Answers a transaction that cannot write (see [`Txn::is_read_only`]) without the log.
    pub fn read_txn(&self, request: &Txn) -> Result<TxnReply, Error> {
        if !request.is_read_only() {
            return Err(Error::internal("a transaction that writes must go through the log"));
        }
        // No put, so no lease is looked at.
        let leases = Default::default();
        Ok(self.inner.mvcc.read(|view| txn::run(view, &leases, request))?)
    }

    /// History from a revision on, for a watcher that catches up: whole revisions, at most `max_revisions` (and
    /// [`crate::EVENT_REVISIONS_MAX`]), and no further one once the records hold `max_bytes`. `Error::Compacted` below
    /// the compacted revision.
    pub fn events(&self, from: i64, max_revisions: usize, max_bytes: usize) -> Result<EventBatch, Error> {
        Ok(self.inner.mvcc.read(|view| view.events(from, max_revisions, max_bytes))?)
    }

    /// What an event's key was before it: None for a creation, and where compaction has taken it away.
    pub fn value_before(&self, event: &Event) -> Result<Option<KeyValue>, Error> {
        Ok(self.inner.mvcc.read(|view| view.value_before(event))?)
    }

    /// Hashes the key space up to a revision (0 is all), as etcd's HashKV. Holds back deletions meanwhile.
    pub fn hash_kv(&self, revision: i64) -> Result<KvHash, Error> {
        let pin = self.inner.mvcc.pin();
        Ok(hash::hash(&self.inner.mvcc.store, &pin, revision)?)
    }

    /// Has the deletion of compacted records told to somebody from now on.
    pub fn observe_compactions(&self, observer: Arc<dyn CompactionObserver>) {
        self.inner.work.set_observer(observer);
    }

    /// Who reads records now that must not be deleted meanwhile: snapshots and hashes under way.
    pub fn pins(&self) -> usize {
        *self.inner.mvcc.live().pins.lock()
    }

    /// Deletes compacted records so fast from now on.
    pub fn set_pace(&self, pace: Pace) {
        self.inner.work.set_pace(pace);
    }

    /// Waits until the records that a compaction up to `revision` takes away are gone. Snapshots under way hold it up.
    pub fn wait_compacted(&self, revision: i64) -> Result<(), Error> {
        match self.inner.work.wait_finished(revision) {
            true => Ok(()),
            false => Err(Error::Stopped),
        }
    }

    /// Waits until the background thread has nothing left to delete: neither compacted records nor what restores and
    /// installed snapshots replaced. Snapshots under way hold it up.
    pub fn wait_deleted(&self) -> Result<(), Error> {
        match self.inner.work.wait_cleared() {
            true => self.wait_compacted(self.compacted_revision()),
            false => Err(Error::Stopped),
        }
    }

    /// Returns when everything applied so far is durable: the log index that a restart continues after.
    pub fn flush(&self) -> Result<u64, StateError> {
        self.inner.mvcc.store.flush().map_err(StateError::store("make the store durable"))
    }

    /// The highest log index whose effects are known to be durable; 0 before the first flush of this process.
    pub fn flushed_position(&self) -> u64 {
        self.inner.mvcc.store.flushed_position()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.inner.work.stop();
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the state's background thread ended in a panic");
        }
    }
}

fn names<'a>(names: impl Iterator<Item = &'a Bytes>) -> Vec<String> {
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

impl Inner {
    /// Works out anew who may do what: the auth store was replaced.
    pub fn refresh_permits(&self, auth: &Auth) {
        let permits = Arc::new(Permits::of(auth));
        let enabled = permits.enabled();
        *self.permits.write() = permits;
        self.auth_enabled.store(enabled, Ordering::Release);
    }

    /// True for an entry that is in already.
    pub fn has_applied(&self, position: LogPos) -> bool {
        self.rooms.read().applied.is_some_and(|applied| position.index <= applied.index)
    }
}

/// Single records that belong to no room.
struct Facts {
    /// The live generation; 0 until a restore or an installed snapshot makes another.
    generation: u32,
    compacted: i64,
    finished: i64,
    /// The header of an unfinished restore.
    restore: Option<Bytes>,
}

impl Default for Facts {
    fn default() -> Self {
        Facts { generation: 0, compacted: -1, finished: -1, restore: None }
    }
}

impl Facts {
    fn load(&mut self, key: &[u8], value: &Bytes) -> Result<(), StateError> {
        match key {
            keyspace::META_GENERATION => {
                let damaged = |_| StateError::Record {
                    what: "the live generation".to_owned(),
                    why: format!("it has {} bytes", value.len()),
                };
                self.generation = u32::from_be_bytes(value[..].try_into().map_err(damaged)?);
            }
            keyspace::META_COMPACT_SCHEDULED => self.compacted = decode_u64("the compacted revision", value)? as i64,
            keyspace::META_COMPACT_FINISHED => self.finished = decode_u64("the last compaction", value)? as i64,
            keyspace::META_RESTORE => self.restore = Some(value.clone()),
            _ => {}
        }
        Ok(())
    }
}

/// Visits all records of a small keyspace.
pub(crate) fn scan(
    store: &Store,
    space: u8,
    mut visit: impl FnMut(Bytes, Bytes) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let (start, end) = keyspace::keyspace_range(space);
    record::scan(store, start, &end, |key, value| {
        visit(key.clone(), value)?;
        Ok(ControlFlow::Continue(()))
    })
}

fn load_staging(store: &Store, header: Bytes) -> Result<Staging, StateError> {
    let mut staging = Staging::from_header(header, None)?;
    scan(store, keyspace::STAGING, |key, value| match keyspace::unstaged(&key) {
        Some(key) => staging.load_small(key, value),
        None => Ok(()),
    })?;
    staging.load_space(store)?;
    Ok(staging)
}

/// The generations that have records.
fn generations(store: &Store) -> Result<Vec<u32>, StateError> {
    let (mut start, end) = keyspace::keyspace_range(keyspace::KEYS);
    let mut found = Vec::new();
    loop {
        let first = store.scan(&start, Some(&end), 1).map_err(StateError::store("scan the store"))?;
        let Some((generation, _)) = first.first().and_then(|(key, _)| keyspace::split_revision(key)) else {
            return Ok(found);
        };
        found.push(generation);
        start = keyspace::generation_range(generation).1;
    }
}
/// Before any record is looked at whose form a later release may have changed.
fn check_log_format(store: &Store) -> Result<(), StateError> {
    let read = |key| store.get(key).map_err(StateError::store("read the cluster's log format"));
    let Some(format) = read(keyspace::META_LOG_FORMAT)? else { return Ok(()) };
    let version = read(keyspace::META_CLUSTER_VERSION)?.map(|version| String::from_utf8_lossy(&version).into_owned());
    decode_log_format(version.as_deref(), &format).map(drop)
}
