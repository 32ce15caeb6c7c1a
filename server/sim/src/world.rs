//! The hosts: members on disks in memory that come, crash and come back; and what is held against them all the time.

use crate::chance::Chance;
use crate::files;
use crate::net::{FIRST_PORT, Net, host_of, port_of, url_of};
use crate::trace::Trace;
use ferretcd_history::History;
use ferretcd_node::simulated::Parts;
use ferretcd_node::{AuthConfig, Boot, BootConfig, ClusterState, CorruptionChecks, Member, Node, NodeConfig};
use ferretcd_raft::snapshot::SnapshotDir;
use ferretcd_raft::transport::dial::Dialer;
use ferretcd_raft::{Group, GroupView, Role, Timing};
use ferretcd_state::{Pace, State};
use ferretcd_storage::{EngineKind, MemoryEngine, Store};
use ferretcd_types::{ClusterId, Limits, MemberId};
use ferretcd_wal::fs::mem::{Call, MemFs, PowerLoss};
use ferretcd_wal::{Identity, Options, Wal};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Small, so that the log has many segments, and purges free some.
const SEGMENT_BYTES: u64 = 16 << 10;
/// Small, so that followers are read for from the disk.
const CACHE_BYTES: usize = 4 << 10;

/// Within this time a member ends whose log could not be written.
const LAST_BREATH: Duration = Duration::from_secs(5);

/// A sync that takes this long is counted as slow: six times what a disk needs at most that nobody has slowed down.
const SLOW_SYNC: Duration = Duration::from_millis(10);

/// Why a host is not started that runs, or is removed.
pub const NOT_NOW: &str = "it runs or is removed";
/// What a member says that finds no place any more.
pub const REMOVED: &str = "was removed";

/// Everything of one run.
pub struct World {
    pub chance: Chance,
    pub net: Arc<Net>,
    pub trace: Arc<Trace>,
    pub hosts: Mutex<BTreeMap<usize, Host>>,
    pub history: Mutex<History>,
    /// The last revision that somebody asked to compact.
    pub compaction: AtomicI64,
    /// How far a follower may be behind before it needs a snapshot.
    pub catch_up: u64,
    /// After how many entries a member writes a snapshot by itself.
    snapshot_count: u64,
    founders: BTreeMap<String, Vec<String>>,
    cluster: ClusterId,
    tmp: PathBuf,
    _tmp: tempfile::TempDir,
    lives: AtomicU64,
    checks: Mutex<Checks>,
}

/// A place for a member.
pub struct Host {
    pub id: MemberId,
    founder: bool,
    disk: MemFs,
    engine: Arc<MemoryEngine>,
    snapshots: PathBuf,
    pub up: Option<Up>,
    /// Somebody starts it just now.
    starting: bool,
    /// It has ended because it was removed.
    pub removed: bool,
    /// Its store cannot be used at the next start.
    lost: bool,
    /// Snapshot files of which a bit has changed, and that no start has found sound since.
    rotten: BTreeSet<String>,
    /// Where the others reach it, as it was told last.
    port: u64,
    /// Writes and syncs take up to this long.
    disk_micros: Arc<AtomicU64>,
}

/// A running member.
pub struct Up {
    pub node: Node,
    pub group: Group,
    pub state: Arc<State>,
    pub life: u64,
    /// Cancelled at the crash.
    pub gone: CancellationToken,
    member: Option<Member>,
    tasks: Vec<AbortHandle>,
}

/// What must hold at all times, as far as it was seen.
#[derive(Default)]
struct Checks {
    leaders: BTreeMap<u64, MemberId>,
    /// Term of each applied entry.
    terms: BTreeMap<u64, u64>,
    /// Hash at a revision and a compaction.
    hashes: BTreeMap<(i64, i64), u32>,
    /// The host of each member that there ever was.
    ids: BTreeMap<MemberId, usize>,
    /// The least entry at which somebody knew a member as removed.
    removed: BTreeMap<MemberId, u64>,
    found: Vec<String>,
}

/// How a host goes down.
#[derive(Clone, Copy, Debug)]
pub enum Crash {
    /// The process alone: what it wrote stays.
    Process,
    /// The power.
    Power(PowerLoss),
}

impl World {
    pub fn new(chance: Chance, founders: usize, told: bool) -> Arc<Self> {
        let trace = Arc::new(Trace::new(told));
        let names: BTreeMap<String, Vec<String>> =
            (0..founders).map(|at| (format!("m{at}"), vec![url_of(at, FIRST_PORT)])).collect();
        let id = |at: usize| ferretcd_node::boot::static_member_id(&[url_of(at, FIRST_PORT)], "sim");
        let cluster = ferretcd_node::boot::static_cluster_id((0..founders).map(id));
        let folder = tempfile::tempdir().expect("a folder for snapshot files");
        let tmp = folder.path().canonicalize().expect("the folder's name");
        let by_itself = chance.one_in(2);
        let world = World {
            net: Net::new(chance.fork(), trace.clone()),
            catch_up: if by_itself { chance.below(20) } else { 10 + chance.below(60) },
            snapshot_count: if by_itself { 5 + chance.below(40) } else { u64::MAX },
            chance,
            trace,
            hosts: Mutex::default(),
            history: Mutex::default(),
            compaction: AtomicI64::new(0),
            founders: names,
            cluster,
            tmp,
            _tmp: folder,
            lives: AtomicU64::new(0),
            checks: Mutex::default(),
        };
        let world = Arc::new(world);
        (0..founders).for_each(|at| world.furnish(at, id(at), true));
        world
    }

    /// An empty host for a member.
    pub fn furnish(&self, at: usize, id: MemberId, founder: bool) {
        let host = Host {
            id,
            founder,
            disk: MemFs::new(),
            engine: Arc::new(MemoryEngine::new()),
            snapshots: self.tmp.join(format!("{at}-0")),
            up: None,
            starting: false,
            removed: false,
            lost: false,
            rotten: BTreeSet::new(),
            port: FIRST_PORT,
            disk_micros: Arc::new(AtomicU64::new(1500)),
        };
        self.hosts.lock().insert(at, host);
    }

    /// Something is wrong.
    pub fn fault(&self, what: String) {
        self.trace.note(format_args!("FOUND {what}"));
        self.checks.lock().found.push(what);
    }

    pub fn faults(&self) -> Vec<String> {
        self.checks.lock().found.clone()
    }

    /// Those that run.
    pub fn running(&self) -> Vec<usize> {
        self.hosts.lock().iter().filter(|(_, host)| host.up.is_some()).map(|(at, _)| *at).collect()
    }

    /// Those that could.
    pub fn stopped(&self) -> Vec<usize> {
        self.hosts.lock().iter().filter(|(_, host)| host.up.is_none() && !host.removed).map(|(at, _)| *at).collect()
    }

    pub fn node(&self, at: usize) -> Option<(Node, Arc<State>, CancellationToken)> {
        let hosts = self.hosts.lock();
        let up = hosts.get(&at)?.up.as_ref()?;
        Some((up.node.clone(), up.state.clone(), up.gone.clone()))
    }

    pub fn group(&self, at: usize) -> Option<Group> {
        Some(self.hosts.lock().get(&at)?.up.as_ref()?.group.clone())
    }

    pub fn host_with(&self, id: MemberId) -> Option<usize> {
        self.hosts.lock().iter().find(|(_, host)| host.id == id).map(|(at, _)| *at)
    }

    pub fn slow_disk(&self, at: usize, most: Duration) {
        if let Some(host) = self.hosts.lock().get(&at) {
            host.disk_micros.store(most.as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// From now on the `count`-th change of this disk is its last.
    pub fn crash_at_write(&self, at: usize, count: u64) {
        if let Some(host) = self.hosts.lock().get(&at) {
            host.disk.crash_at(host.disk.calls() + count);
        }
    }

    /// The `skip`-th next call of this kind fails on this disk, and the others go on.
    pub fn fail_call(&self, at: usize, call: Call, skip: u64, kind: ErrorKind) {
        if let Some(host) = self.hosts.lock().get(&at) {
            host.disk.fail(call, skip, kind);
        }
    }

    /// The next flush of this store fails.
    pub fn fail_store(&self, at: usize) {
        if let Some(host) = self.hosts.lock().get(&at) {
            host.engine.fail_flush();
        }
    }

    /// After so many syncs of snapshot files and their folder, one fails. Gives the folder.
    pub fn fail_snapshot(&self, at: usize, skip: u64) -> Option<PathBuf> {
        let folder = self.hosts.lock().get(&at)?.snapshots.clone();
        files::fail(&folder, skip);
        Some(folder)
    }

    /// Flips a bit in the newest snapshot file of a host, whether it runs or not: that must do no harm.
    pub fn damage_snapshot(&self, at: usize, chance: &Chance) {
        let mut hosts = self.hosts.lock();
        let Some(host) = hosts.get_mut(&at).filter(|host| !host.starting) else { return };
        if let Some(name) = files::flip(&host.snapshots, ".snap", chance) {
            self.trace.note(format_args!("h{at} {name} is damaged"));
            self.trace.count("flipped bits of snapshot files");
            host.rotten.insert(name);
        }
    }

    /// A bit of a snapshot file of this host was flipped, and no start has found the file sound since.
    pub fn has_damaged_snapshot(&self, at: usize) -> bool {
        self.hosts.lock().get(&at).is_some_and(|host| !host.rotten.is_empty())
    }

    /// The store of a stopped host can't be used when it starts. One at a time: two of three members without a store and a
    /// snapshot file have lost what was acknowledged.
    pub fn lose_store(&self, at: usize) {
        let mut hosts = self.hosts.lock();
        if hosts.values().any(|host| host.lost) {
            return;
        }
        if let Some(host) = hosts.get_mut(&at).filter(|host| host.up.is_none() && !host.starting && !host.removed) {
            self.trace.note(format_args!("h{at} loses its store"));
            host.lost = true;
        }
    }

    /// Gives a host one more address, which it is reached at from now on. None for one that is not there.
    pub fn another_port(&self, at: usize) -> Option<u64> {
        let mut hosts = self.hosts.lock();
        let host = hosts.get_mut(&at)?;
        host.port += 1;
        self.net.listen(at, host.port);
        Some(host.port)
    }

    /// Flips a bit somewhere in the log of a stopped host, as often as not near its end; gives back how it was, and the file. It must
    /// be found, or not matter.
    pub fn damage(&self, at: usize, chance: &Chance) -> Option<(MemFs, PathBuf)> {
        use ferretcd_wal::Fs;
        let mut hosts = self.hosts.lock();
        let host = hosts.get_mut(&at)?;
        if host.up.is_some() || host.starting {
            return None;
        }
        let whole = host.disk.fork();
        let mut names = host.disk.list(Path::new("/wal")).ok()?;
        names.retain(|name| name.ends_with(".wal"));
        names.sort();
        let near_the_end = chance.one_in(2);
        let name = if near_the_end { names.last().cloned() } else { chance.pick(&names) };
        let path = Path::new("/wal").join(name?);
        let mut bytes = host.disk.contents(&path).ok()?;
        let used = bytes.iter().rposition(|byte| *byte != 0)? + 1;
        let back = if near_the_end { used.min(200) } else { used };
        let place = used - 1 - chance.below(back as u64) as usize;
        *bytes.get_mut(place)? ^= 1 << chance.below(8);
        self.trace.note(format_args!("h{at} {} is damaged at {place}", path.display()));
        let opened = |disk: &MemFs| {
            let identity = Identity { cluster_id: self.cluster.0, member_id: host.id.0 };
            let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
            Wal::open_inline(Arc::new(disk.fork()), Path::new("/wal"), options, identity).map(|(_, found)| found)
        };
        let before = opened(&whole).ok()?;
        let flipped = host.disk.fork();
        flipped.set_contents(&path, bytes);
        self.trace.count("flipped bits of logs");
        if let Ok(after) = opened(&flipped)
            && (after.last, after.vote, after.purged) != (before.last, before.vote, before.purged)
        {
            self.fault(format!("h{at} takes a flipped bit at {place} of {} for the end of its log", path.display()));
        }
        host.disk = flipped;
        Some((whole, path))
    }

    /// Puts a disk back as it was.
    pub fn repair(&self, at: usize, disk: MemFs) {
        if let Some(host) = self.hosts.lock().get_mut(&at) {
            host.disk = disk;
        }
    }

    /// Starts the member of a host. An error is what an operator would read.
    pub async fn start(self: &Arc<Self>, at: usize) -> Result<(), String> {
        match self.hosts.lock().get_mut(&at) {
            Some(host) if host.up.is_none() && !host.starting && !host.removed => host.starting = true,
            _ => return Err(NOT_NOW.to_owned()),
        }
        let started = self.start_now(at).await;
        if started.is_err() {
            self.net.down(at);
        }
        if let Some(host) = self.hosts.lock().get_mut(&at) {
            host.starting = false;
        }
        started
    }

    async fn start_now(self: &Arc<Self>, at: usize) -> Result<(), String> {
        let life = self.lives.fetch_add(1, Ordering::Relaxed) + 1;
        let (id, founder, disk, mut engine, snapshots, micros, lost) = {
            let hosts = self.hosts.lock();
            let host = hosts.get(&at).ok_or("no such host")?;
            let Host { id, founder, disk, engine, snapshots, disk_micros, lost, .. } = host;
            (*id, *founder, disk.clone(), engine.clone(), snapshots.clone(), disk_micros.clone(), *lost)
        };
        self.trace.note(format_args!("h{at} starts"));
        let text = |e: &dyn std::error::Error| format!("h{at}: {e}");
        let bell = Arc::new(Notify::new());
        let log = |inline: bool| {
            let options = Options { segment_bytes: SEGMENT_BYTES, cache_bytes: CACHE_BYTES, ..Options::default() };
            let identity = Identity { cluster_id: self.cluster.0, member_id: id.0 };
            let (fs, dir, ring) = (Arc::new(disk.clone()), Path::new("/wal"), bell.clone());
            let opened = match inline {
                true => Wal::open_inline(fs, dir, options, identity),
                false => Wal::open_driven(fs, dir, options, identity, Box::new(move || ring.notify_one())),
            };
            opened.map(|(wal, _)| wal).map_err(|e| text(&e))
        };
        let wal = log(false)?;
        let snapshots = SnapshotDir::open(&snapshots).map_err(|e| text(&e))?;
        let open = |engine: &Arc<MemoryEngine>| -> Result<_, String> {
            let store = Arc::new(Store::open_inline(engine.clone(), ferretcd_storage::Options::default()));
            let state = Arc::new(State::open_still(store.clone(), id).map_err(|e| text(&e))?);
            Ok((store, state))
        };
        let (store, state) = open(&engine)?;
        // The engine may lie behind the log, but never by more than the log can bring it.
        let (applied, purged) = (state.applied().map_or(0, |pos| pos.index), wal.purged().map_or(0, |pos| pos.index));
        if applied < purged {
            self.fault(format!(
                "h{at} purged its log to {purged}, and its engine holds what there was up to {applied}"
            ));
        }
        self.look_at_snapshots(at, &snapshots, purged);
        let cluster = self.cluster;
        let mut parts = Parts { wal, store, state, snapshots, cluster, member: id, founder };
        let boot = Boot::new(self.config(at, life));
        self.net.up(at, life, boot.door().service());
        let installed = parts.snapshots.newest().map_err(|e| text(&e))?.map_or(0, |(pos, _)| pos.index);
        if lost || !parts.fit() || applied < installed || parts.wal.end_index() <= installed {
            // Nobody drives the log yet.
            drop(parts.wal);
            parts = Parts { wal: log(true)?, ..parts };
            if lost || !parts.fit() {
                self.trace.note(format_args!("h{at} rebuilds its state"));
                self.trace.count("lost stores");
                let had = parts.snapshots.usable().ok().flatten();
                let epoch = parts.state.epoch();
                engine = Arc::new(MemoryEngine::new());
                (parts.store, parts.state) = open(&engine)?;
                let everybody = BootConfig { initial_cluster: self.addresses(), ..self.config(at, life) };
                Boot::new(everybody).rebuild_on(&parts, epoch).await.map_err(|e| text(&e))?;
                if parts.snapshots.usable().ok().flatten() != had {
                    self.trace.count("fetched snapshots");
                }
            }
            parts.take_up().map_err(|e| text(&e))?;
            drop(parts.wal);
            parts = Parts { wal: log(false)?, ..parts };
        }
        let (wal, store, state) = (parts.wal.clone(), parts.store.clone(), parts.state.clone());
        let gone = CancellationToken::new();
        let mut tasks = vec![
            tokio::spawn(self.clone().drive((at, life), wal, disk.clone(), bell, micros)).abort_handle(),
            tokio::spawn(self.clone().tend((at, life), engine.clone(), store, state.clone())).abort_handle(),
        ];
        let member = boot.run_on(parts).await.map_err(|e| text(&e))?;
        let (node, group) = (member.node.clone(), member.group().clone());
        tasks.push(tokio::spawn(self.clone().observe(at, id, group.clone(), state.clone())).abort_handle());
        tasks.push(
            tokio::spawn(self.clone().mourn(at, id, node.clone(), state.clone(), (disk, engine.clone())))
                .abort_handle(),
        );
        let up = Up { node, group, state, life, gone, member: Some(member), tasks };
        if let Some(host) = self.hosts.lock().get_mut(&at) {
            (host.engine, host.lost) = (engine, false);
            host.up = Some(up);
        }
        Ok(())
    }

    /// A snapshot file that counts is whole, and reaches as far as the log was purged: both were durable before. One of which a bit
    /// was flipped need not be whole, nor be there: the member sets it aside.
    fn look_at_snapshots(&self, at: usize, snapshots: &SnapshotDir, purged: u64) {
        let (found, newest) = (snapshots.usable(), snapshots.newest().ok().flatten());
        let newest = newest.and_then(|(_, file)| Some(file.path.file_name()?.to_str()?.to_owned())).unwrap_or_default();
        let mut hosts = self.hosts.lock();
        let Some(host) = hosts.get_mut(&at) else { return };
        let mut wrong = None;
        match &found {
            Ok(_) => drop(host.rotten.remove(&newest)),
            Err(_) if host.rotten.contains(&newest) => {}
            Err(e) => wrong = Some(format!("a snapshot file that counts is damaged: {e}")),
        }
        let reached = host.rotten.iter().filter_map(|name| reach_of(name)).max().unwrap_or(0);
        let reaches = found.ok().flatten().map_or(0, |pos| pos.index).max(reached);
        drop(hosts);
        if wrong.is_none() && reaches < purged {
            wrong = Some(format!("the log is purged to {purged}, the snapshot file reaches {reaches}"));
        }
        if let Some(wrong) = wrong {
            self.fault(format!("h{at}: {wrong}"));
        }
    }

    /// Where everybody is, as whoever starts a member would know.
    fn addresses(&self) -> BTreeMap<String, Vec<String>> {
        let hosts = self.hosts.lock();
        hosts.iter().map(|(at, host)| (format!("m{at}"), vec![url_of(*at, host.port)])).collect()
    }

    /// Members are reached where their list says, and nowhere else.
    pub fn only_as_listed(&self) {
        for at in self.running() {
            let Some(group) = self.group(at) else { continue };
            for (_, node, _) in group.view().borrow().members.iter() {
                for url in &node.peer_urls {
                    self.net.listen_only(host_of(url), port_of(url));
                }
            }
        }
    }

    /// It is no member any more.
    pub fn retire(&self, at: usize) {
        if let Some(host) = self.hosts.lock().get_mut(&at) {
            host.removed = true;
        }
    }

    /// Takes a host down.
    pub fn crash(&self, at: usize, crash: Crash) {
        let mut hosts = self.hosts.lock();
        let Some(host) = hosts.get_mut(&at) else { return };
        let Some(mut up) = host.up.take() else { return };
        self.trace.note(format_args!("h{at} crashes ({crash:?})"));
        self.net.down(at);
        up.gone.cancel();
        up.tasks.iter().for_each(AbortHandle::abort);
        if !host.disk.crashed() {
            host.disk.crash_at(host.disk.calls());
        }
        host.disk = match crash {
            Crash::Process => host.disk.fork(),
            Crash::Power(loss) => host.disk.power_loss(loss, self.chance.next()),
        };
        host.engine = Arc::new(host.engine.durable_copy());
        // What is left of the old life must not write to the files of the new one.
        let next = self.tmp.join(format!("{at}-{}", up.life));
        let loss = match crash {
            Crash::Process => None,
            Crash::Power(loss) => Some(loss),
        };
        if let Err(e) = files::restart(&host.snapshots, &next, loss, &self.chance) {
            self.fault(format!("h{at}: cannot keep the snapshot files: {e}"));
        }
        host.snapshots = next;
        if let Some(member) = up.member.take() {
            tokio::spawn(member.vanish());
        }
    }

    fn config(self: &Arc<Self>, at: usize, life: u64) -> BootConfig {
        let timing = Timing { catch_up_entries: self.catch_up, ..Timing::default() };
        let node = NodeConfig {
            name: format!("m{at}"),
            client_urls: vec![format!("http://h{at}:2")],
            limits: Limits::default(),
            timing,
            snapshot_count: self.snapshot_count,
            auto_compaction: None,
            watch_progress_every: Duration::from_secs(2),
            max_learners: 1,
            strict_reconfig_check: true,
            spool_dir: self.tmp.join("spool"),
            warning_apply: Duration::from_secs(3600),
            auth: AuthConfig::default(),
            compaction_pace: Pace::default(),
            defragment_above: None,
            lease_checkpoints: None,
            // They ask over sockets; the simulation compares hashes by itself.
            corruption: CorruptionChecks { at_start: false, every: None, compactions_every: None },
        };
        BootConfig {
            force: None,
            unsafe_no_fsync: false,
            data_dir: self.tmp.join(format!("data{at}")),
            wal_dir: None,
            initial_cluster: self.founders.clone(),
            state: ClusterState::New,
            token: "sim".to_owned(),
            engine: EngineKind::default(),
            write_behind: ferretcd_storage::Options::default(),
            advertise_peer_urls: vec![url_of(at, FIRST_PORT)],
            intent: None,
            dialer: Dialer::within(self.net.wires(at, life), timing.election),
            node,
        }
    }

    /// The disk at work.
    async fn drive(
        self: Arc<Self>,
        (at, life): (usize, u64),
        wal: Wal,
        disk: MemFs,
        bell: Arc<Notify>,
        micros: Arc<AtomicU64>,
    ) {
        let chance = self.chance.fork();
        let (mut doomed, mut end) = (false, wal.end_index());
        loop {
            bell.notified().await;
            let takes = chance.micros(50, micros.load(Ordering::Relaxed));
            if takes >= SLOW_SYNC {
                self.trace.count("slow syncs");
            }
            tokio::time::sleep(takes).await;
            if wal.end_index() < end {
                self.trace.count("truncated logs");
            }
            end = wal.end_index();
            wal.drive();
            // Nothing else writes there than the log itself, and what it gets ready for its next segment.
            if !doomed && !disk.failed().is_empty() {
                doomed = true;
                self.trace.count("logs that were not written");
                tokio::spawn(self.clone().must_end(at, life, disk.clone()));
            }
            if disk.crashed() {
                self.trace.count("crashes at a write");
                let loss = [PowerLoss::All, PowerLoss::Suffix, PowerLoss::Random];
                let loss = chance.pick(&loss).unwrap_or(PowerLoss::All);
                self.crash(at, Crash::Power(loss));
                return;
            }
        }
    }

    fn is_up(&self, at: usize, life: u64) -> bool {
        self.hosts.lock().get(&at).is_some_and(|host| host.up.as_ref().is_some_and(|up| up.life == life))
    }

    /// A member whose log was not written, or not synced, ends, and writes nothing any more.
    async fn must_end(self: Arc<Self>, at: usize, life: u64, disk: MemFs) {
        self.trace.note(format_args!("h{at} cannot write {:?}", disk.failed()));
        let calls = disk.calls();
        tokio::time::sleep(LAST_BREATH).await;
        if self.is_up(at, life) {
            self.fault(format!("h{at} goes on after {:?} could not be written", disk.failed()));
        }
        if disk.calls() > calls {
            self.fault(format!("h{at} writes on after {:?} could not be written", disk.failed()));
        }
    }

    /// The engine's flushes, and the state's background work. A member whose store could not be written takes nothing more
    /// up, and ends.
    async fn tend(
        self: Arc<Self>,
        (at, life): (usize, u64),
        engine: Arc<MemoryEngine>,
        store: Arc<Store>,
        state: Arc<State>,
    ) {
        let chance = self.chance.fork();
        loop {
            tokio::time::sleep(chance.millis(50, 300)).await;
            let flushed = store.flush();
            if engine.failed() {
                let last = state.applied();
                self.trace.note(format_args!("h{at} has a store that cannot be written, at {last:?}"));
                self.trace.count("stores that were not written");
                tokio::time::sleep(LAST_BREATH).await;
                if state.applied() > last || self.is_up(at, life) {
                    self.fault(format!("h{at} goes on after its store could not be written"));
                }
                return;
            }
            if let Err(e) = flushed {
                self.fault(format!("the store cannot flush: {e}"));
            }
            if chance.one_in(3)
                && let Err(e) = state.tend()
            {
                self.fault(format!("the state cannot tidy up: {e}"));
            }
        }
    }

    /// One leader in a term, the same entries everywhere, and never a step back.
    async fn observe(self: Arc<Self>, at: usize, id: MemberId, group: Group, state: Arc<State>) {
        let mut view = group.view();
        let mut applied = 0;
        let (mut role, mut term) = (Role::Learner, 0);
        let mut compared = None;
        loop {
            let now: GroupView = view.borrow_and_update().clone();
            if (now.role, now.term) != (role, term) {
                (role, term) = (now.role, now.term);
                self.trace.note(format_args!("h{at} is {role:?} in term {term}, leader {:?}", now.leader));
            }
            let position = state.applied();
            let mut found = Vec::new();
            {
                let mut checks = self.checks.lock();
                if now.role == Role::Leader {
                    let leader = *checks.leaders.entry(now.term).or_insert(id);
                    if leader != id {
                        found.push(format!("term {} has two leaders, {leader} and {id}", now.term));
                    }
                }
                if let Some(position) = position {
                    let term = *checks.terms.entry(position.index).or_insert(position.term);
                    if term != position.term {
                        found.push(format!("entry {} has two terms, {term} and {}", position.index, position.term));
                    }
                    if position.index < applied {
                        found.push(format!("h{at} applied {applied}, and then {}", position.index));
                    }
                    applied = position.index;
                }
                checks.members(&now, &state, &mut found);
            }
            found.into_iter().for_each(|what| self.fault(what));
            // A hash reads everything: once for what can differ.
            let revisions = Some((state.revision(), state.compacted_revision()));
            if compared != revisions {
                compared = revisions;
                self.compare(at, &state);
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    }

    /// Equal hashes at equal revisions.
    pub fn compare(&self, at: usize, state: &State) {
        let Ok(hash) = state.hash_kv(0) else { return };
        let known = self.checks.lock().hashes.insert((hash.revision, hash.compact_revision), hash.hash);
        let Some(known) = known else { return };
        self.trace.count("compared hashes");
        if known != hash.hash {
            self.fault(format!("h{at} has hash {:x} at {}, another has {known:x}", hash.hash, hash.revision));
        }
    }

    /// Why a member ends: because it was removed, or its disk is gone or has failed. It says which.
    async fn mourn(
        self: Arc<Self>,
        at: usize,
        id: MemberId,
        node: Node,
        state: Arc<State>,
        (disk, engine): (MemFs, Arc<MemoryEngine>),
    ) {
        let why = node.ended().await;
        self.trace.note(format_args!("h{at} ends: {why}"));
        let snapshots = self.hosts.lock().get(&at).map(|host| host.snapshots.clone()).unwrap_or_default();
        let injected = (disk.failures() > 0 || engine.failed()) && why.contains("injected");
        if why.contains(REMOVED) {
            self.trace.count("removed members that end");
            self.crash(at, Crash::Process);
            self.retire(at);
        } else if injected || (files::failed(&snapshots) && why.contains(files::FAILED)) {
            self.trace.count("members that end because a disk failed");
            let loss = [Crash::Process, Crash::Power(PowerLoss::All), Crash::Power(PowerLoss::Random)];
            self.crash(at, self.chance.pick(&loss).unwrap_or(Crash::Process));
        } else if disk.crashed() && why.contains("the power is gone") {
            self.crash(at, Crash::Power(PowerLoss::Suffix));
        } else {
            self.fault(format!("h{at} ({id}) ended by itself, at {:?}: {why}", state.applied()));
        }
    }
}

impl Checks {
    /// No member has the ID of another, and none that was removed comes back.
    fn members(&mut self, view: &GroupView, state: &State, found: &mut Vec<String>) {
        let applied = state.applied().map_or(0, |pos| pos.index);
        for id in state.removed_members() {
            let at = self.removed.entry(id).or_insert(applied);
            *at = applied.min(*at);
        }
        for (id, node, _) in view.members.iter() {
            let host = node.peer_urls.first().map_or(usize::MAX, |url| host_of(url));
            let first = *self.ids.entry(*id).or_insert(host);
            if first != host {
                found.push(format!("member {id} is on h{host}, and was on h{first}"));
            }
            if self.removed.get(id).is_some_and(|at| *at < view.membership_index) {
                found.push(format!("member {id} was removed, and entry {} lists it", view.membership_index));
            }
        }
    }
}

/// The entry that a snapshot file stands for, by its name.
fn reach_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".snap")?.split_once('-')?.1, 16).ok()
}
