//! From a data directory and flags to a running member: who am I, may I found a cluster, whom do I join.
//!
//! An empty data directory is the dangerous moment. A member founds a cluster only when so many of the named members
//! answer, all of them empty as well, that together they are a quorum: a member whose disk was lost can then never
//! help to found a second history beside the first, since any quorum of the named members meets one that remembers.
//! And it takes a place in a cluster only when it has never run there ([`crate::admission`]).

use crate::admission::{Answers, Arrivals, Asker, Verdict, judge, own_arrival, sealed, unsealed, write_durably};
use crate::aside::{delete_unfilled, set_aside};
use crate::auth::SimpleTokens;
use crate::difference::difference;
use crate::lease::LeaseClock;
use crate::maintenance::free_bytes;
use crate::metrics::Metrics;
use crate::names;
use crate::node::{Node, NodeConfig, Requests, Running, Shared, Threshold};
use crate::offline::{Force, RESTORING, stand_alone};
use crate::watch::Hub;
use crate::workers;
use ferretcd_proto::peer::{ProbeMember, ProbeRequest, ProbeResponse};
use ferretcd_raft::offline;
use ferretcd_raft::snapshot::SnapshotDir;
use ferretcd_raft::transport::client::probe;
use ferretcd_raft::transport::dial::Dialer;
use ferretcd_raft::transport::fetch::fetch_snapshot;
use ferretcd_raft::transport::server::Door;
use ferretcd_raft::{Group, GroupParts, Identity, Peers};
use ferretcd_state::{State, StateError};
use ferretcd_storage::{EngineKind, Format, FormatError, Options, Store, WaitForLog};
use ferretcd_types::{ClusterId, Epoch, LogPos, MemberId, PeerNode, codec};
use ferretcd_wal::fs::Lock;
use ferretcd_wal::{Fs as _, OsFs, Wal, WalError, segment};
use parking_lot::Mutex;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// How long one member may take to say who it is, beside the election time-out.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait between two rounds of asking.
const PROBE_PAUSE: Duration = Duration::from_millis(200);
/// How often a wait for the other members is mentioned in the log.
const PROBE_REPORT: Duration = Duration::from_secs(10);
/// How long a member that joins looks for the cluster before it gives up (its supervisor starts it again).
const JOIN_TIMEOUT: Duration = Duration::from_secs(120);
/// Memory that the engine may keep pages in. Recently written records are cached in front of it, where a record takes a
/// third of the memory that sled's decoded pages take: with 64 MiB here a member with a million keys has 0.4 GiB
/// instead of 0.7 after its start, and starts a second later (docs/performance.md).
const ENGINE_CACHE_BYTES: u64 = 64 << 20;

/// What the operator of this member means by starting it. Without one, etcd's own rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Found a cluster, if the data directory is empty.
    Bootstrap,
    /// Join the cluster that already lists this member's peer URLs, if the data directory is empty.
    Join,
    /// Run what is there; an empty data directory is an error.
    Run,
}

/// etcd's `--initial-cluster-state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// The cluster is to be founded.
    New,
    /// The cluster exists; this member was added to it.
    Existing,
}

/// What a member is started from.
#[derive(Clone, Debug)]
pub struct BootConfig {
    /// `--data-dir`.
    pub data_dir: PathBuf,
    /// `--wal-dir`, if it is elsewhere.
    pub wal_dir: Option<PathBuf>,
    /// How soon the store writes behind the log (`--backend-batch-interval`, `--backend-batch-limit`).
    pub write_behind: Options,
    /// `--storage-engine`.
    pub engine: EngineKind,
    /// `--initial-cluster`: peer URLs by name.
    pub initial_cluster: BTreeMap<String, Vec<String>>,
    /// `--initial-cluster-state`.
    pub state: ClusterState,
    /// `--initial-cluster-token`.
    pub token: String,
    /// `--initial-advertise-peer-urls`.
    pub advertise_peer_urls: Vec<String>,
    /// `--member-intent`.
    pub intent: Option<Intent>,
    /// Acknowledge what a power cut may take back (`--unsafe-no-fsync`).
    pub unsafe_no_fsync: bool,
    /// Whether to go on alone with what the data directory holds (`--force-new-cluster`).
    pub force: Option<Force>,
    /// How other members are reached.
    pub dialer: Dialer,
    /// The rest.
    pub node: NodeConfig,
}

/// Why a member does not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The flags contradict each other.
    #[error("{0}")]
    Config(String),
    /// The data directory does not fit what was asked: a supervisor must not simply try again.
    #[error("{0}")]
    Identity(String),
    /// Files that cannot be used.
    #[error("{0}")]
    Storage(String),
    /// Nobody answered.
    #[error("{0}")]
    Unreachable(String),
    /// What this member holds differs from what the others do.
    #[error("{0}")]
    Corrupt(String),
    /// Raft did not come up.
    #[error("{0}")]
    Raft(String),
}

/// A member that is about to run: its door for other members can be served at once.
pub struct Boot {
    config: BootConfig,
    requests: Arc<Requests>,
    door: Door,
}

/// A running member with what must be stopped in the end.
pub struct Member {
    /// The handle.
    pub node: Node,
    tasks: TaskTracker,
    store: Arc<Store>,
    wal: Wal,
    _claim: Option<Box<dyn Lock>>,
}

/// A member's ID as etcd computes it at static bootstrap: SHA-1 over its sorted peer URLs and the token.
pub fn static_member_id(peer_urls: &[String], token: &str) -> MemberId {
    let mut sorted: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut hash = Sha1::new();
    sorted.iter().for_each(|u| hash.update(u));
    hash.update(token);
    MemberId(first_eight(&hash.finalize()))
}

/// A cluster's ID as etcd computes it: SHA-1 over the sorted member IDs.
pub fn static_cluster_id(members: impl IntoIterator<Item = MemberId>) -> ClusterId {
    let mut ids: Vec<u64> = members.into_iter().map(|id| id.0).collect();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    ids.iter().for_each(|id| hash.update(id.to_be_bytes()));
    ClusterId(first_eight(&hash.finalize()))
}

fn first_eight(hash: &[u8]) -> u64 {
    hash.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Who this member is, as its data directory remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    /// It came as one of the founders, early or late.
    pub(crate) founder: bool,
    /// Its log was made: from then on a log that is not there is a lost one.
    pub(crate) logged: bool,
    /// The history's epoch, as of the last start at which the store knew it, or since; unknown before. Who has lost the store knows
    /// by it whose history is its own: IDs alone do not tell, if others were restored from a backup.
    pub(crate) epoch: Epoch,
}

impl Remembered {
    const FILE: &str = "identity";

    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, BootError> {
        let path = dir.join(Self::FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(BootError::Storage(format!("cannot read {}: {e}", path.display()))),
        };
        let lines = unsealed(&text).unwrap_or_default();
        let field = |name: &str| {
            lines
                .lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(" = "))
                .and_then(|v| u64::from_str_radix(v, 16).ok())
        };
        let me = field("cluster").zip(field("member")).map(|(cluster, member)| Remembered {
            cluster: ClusterId(cluster),
            member: MemberId(member),
            founder: field("founder") == Some(1),
            logged: field("logged") == Some(1),
            epoch: field("epoch").map_or(Epoch::UNKNOWN, Epoch),
        });
        match me {
            Some(me) if me.lines() == lines => Ok(Some(me)),
            _ => Err(BootError::Storage(format!(
                "{} is damaged: it does not name a cluster and a member with the checksum of both; restore the file, \
                 or replace this member",
                path.display()
            ))),
        }
    }

    fn lines(self) -> String {
        let Remembered { cluster, member, founder, logged, epoch } = self;
        let (founder, logged) = (u8::from(founder), u8::from(logged));
        let epoch = if epoch == Epoch::UNKNOWN { String::new() } else { format!("epoch = {:x}\n", epoch.0) };
        format!("cluster = {cluster}\nmember = {member}\nfounder = {founder}\nlogged = {logged}\n{epoch}")
    }

    pub(crate) fn store(self, dir: &Path) -> Result<(), BootError> {
        let path = dir.join(Self::FILE);
        write_durably(&path, &sealed(&self.lines())).map_err(|e| unwritable(&path, &e))
    }
}

impl Boot {
    /// Takes the flags; nothing is touched yet.
    pub fn new(config: BootConfig) -> Self {
        let requests = Arc::new(Requests::default());
        Boot { config, door: Door::new(requests.clone()), requests }
    }

    /// What the peer listener serves; it answers probes before [`Boot::run`].
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Finds out who this member is, recovers what it holds, and runs it.
    pub async fn run(self) -> Result<Member, BootError> {
        let dir = self.config.data_dir.join("member");
        make_private(&self.config.data_dir)?;
        // Before anything is written: it could not be restored into any more, nor be etcd's again. Earlier releases wrote all the
        // same, and what they wrote is a member's.
        if Remembered::load(&dir)?.is_none() {
            refuse_half_restored(&self.config.data_dir)?;
            Format::refuse_etcd(&dir).map_err(|e| unfit(&e))?;
        }
        make_private(&dir)?;
        let claim = claim(&dir)?;
        let known = Remembered::load(&dir)?;
        // What a restore was given when the process was killed, as large as a quota.
        forget(&self.config.node.spool_dir)?;
        let intent = self.config.intent;
        let may_found = match (intent, self.config.state) {
            (Some(Intent::Bootstrap), _) | (None, ClusterState::New) => true,
            (Some(Intent::Join | Intent::Run), _) | (None, ClusterState::Existing) => false,
        };
        self.requests.meet(self.threshold(&dir, known, may_found)?);
        let (me, start) = match (known, intent, self.config.state) {
            (Some(me), _, _) => (me, Start::Again),
            (None, Some(Intent::Run), _) => {
                return Err(BootError::Identity(format!(
                    "{} holds no member, and --member-intent=run only runs one that is there; \
                     if its data is lost, remove the member from the cluster and add a new one",
                    dir.display()
                )));
            }
            (None, ..) if may_found => {
                let me = self.founder()?;
                (me, self.admission(me, None).await?)
            }
            (None, ..) => {
                let started = Instant::now();
                let me = self.join(started).await?;
                (me, self.admission(me, Some(started + JOIN_TIMEOUT)).await?)
            }
        };
        let opened = Opened { claim: Some(claim), ..self.open(&dir, me, start).await? };
        self.bring_up(opened, me, start).await
    }

    fn own_urls(&self) -> Result<&Vec<String>, BootError> {
        let name = &self.config.node.name;
        let urls = self.config.initial_cluster.get(name).ok_or_else(|| {
            BootError::Config(format!(
                "couldn't find local name {name:?} in the initial cluster configuration; \
                 --initial-cluster must contain {name}=<peer URL>"
            ))
        })?;
        let sorted = |urls: &[String]| {
            let mut urls = urls.to_vec();
            urls.sort_unstable();
            urls
        };
        if sorted(urls) != sorted(&self.config.advertise_peer_urls) {
            return Err(BootError::Config(format!(
                "--initial-cluster has {name}={} but --initial-advertise-peer-urls is {}; make them equal",
                urls.join(","),
                self.config.advertise_peer_urls.join(",")
            )));
        }
        Ok(urls)
    }

    /// Members of a new cluster, with etcd's IDs.
    pub(crate) fn founders(&self) -> BTreeMap<MemberId, PeerNode> {
        let token = &self.config.token;
        self.config
            .initial_cluster
            .values()
            .map(|urls| (static_member_id(urls, token), PeerNode { peer_urls: urls.clone() }))
            .collect()
    }

    /// The members that the flags name, for others to compare.
    fn named(&self) -> Vec<ProbeMember> {
        let member = |(name, urls): (&String, &Vec<String>)| ProbeMember {
            id: static_member_id(urls, &self.config.token).0,
            name: name.clone(),
            peer_urls: urls.clone(),
            is_learner: false,
        };
        self.config.initial_cluster.iter().map(member).collect()
    }

    /// How a member was started whose flags lead to another cluster.
    fn difference(&self, there: &[ProbeMember]) -> String {
        difference(&self.config.initial_cluster, there).map_or_else(
            || "--initial-cluster-token differs".to_owned(),
            |how| format!("--initial-cluster differs: {how}"),
        )
    }

    pub(crate) fn founder(&self) -> Result<Remembered, BootError> {
        let member = static_member_id(self.own_urls()?, &self.config.token);
        let founders = self.founders();
        if founders.len() != self.config.initial_cluster.len() {
            return Err(BootError::Config("--initial-cluster gives two members the same peer URLs".to_owned()));
        }
        let cluster = static_cluster_id(founders.into_keys());
        Ok(Remembered { cluster, member, founder: true, logged: false, epoch: Epoch::UNKNOWN })
    }

    fn threshold(&self, dir: &Path, known: Option<Remembered>, may_found: bool) -> Result<Threshold, BootError> {
        let founder = known.map_or(may_found, |me| me.founder);
        let arrivals = Arrivals::load(dir)
            .map_err(|e| BootError::Storage(format!("cannot read what this member knows of the others: {e}")))?;
        Ok(Threshold {
            empty: match known {
                Some(_) => None,
                None if founder => Some(self.founder()?.member),
                None => Some(MemberId(0)),
            },
            founder,
            founds: if founder { static_cluster_id(self.founders().into_keys()) } else { ClusterId(0) },
            named: if founder { self.named() } else { Vec::new() },
            founders: if founder { self.founders().into_keys().collect() } else { BTreeSet::new() },
            arrivals: Arc::new(Mutex::new(arrivals)),
        })
    }

    fn other_urls(&self) -> Vec<String> {
        let own = &self.config.advertise_peer_urls;
        self.config.initial_cluster.values().flatten().filter(|u| !own.contains(u)).cloned().collect()
    }

    /// One round of asking the other named members.
    async fn ask(&self, request: ProbeRequest) -> Box<Answers> {
        let timeout = PROBE_TIMEOUT + self.config.node.timing.election;
        let asked = self.other_urls().into_iter().map(|url| async move {
            let answer = probe(&self.config.dialer, &url, request, timeout).await;
            (url, answer)
        });
        futures::future::join_all(asked).await.into_boxed_slice()
    }

    /// Waits until it is clear how a member without a log comes to its place: as one of those that found the cluster,
    /// or, never having run, as one that the cluster awaits.
    async fn admission(&self, me: Remembered, until: Option<Instant>) -> Result<Start, BootError> {
        let dir = self.config.data_dir.join("member");
        let arrival = own_arrival(&dir).map_err(|e| BootError::Storage(e.to_string()))?;
        let named = self.config.initial_cluster.len();
        let asker = Asker { member: me.member, cluster: me.cluster, founder: me.founder, named, intact: me.logged };
        let request = ProbeRequest { member_id: me.member.0, arrival, founder: me.founder };
        let started = Instant::now();
        let mut reported = None;
        loop {
            let answers = self.ask(request).await;
            fits_cluster(&answers)?;
            let missing = match judge(&asker, &answers) {
                Verdict::Found => return Ok(Start::Found),
                Verdict::Join(epoch) => return Ok(Start::Join(epoch)),
                Verdict::Ran(url) => return Err(self.formed(me, &url, &answers, true)),
                Verdict::Unlisted(url) => return Err(self.formed(me, &url, &answers, false)),
                Verdict::Wait(missing) => missing,
            };
            if until.is_some_and(|at| Instant::now() > at) {
                return Err(BootError::Unreachable(format!(
                    "this member was not let in within {JOIN_TIMEOUT:?}: {missing}"
                )));
            }
            if reported.is_none_or(|at: Instant| at.elapsed() > PROBE_REPORT) {
                reported = Some(Instant::now());
                let waited_s = started.elapsed().as_secs();
                tracing::warn!(waited_s, "waiting: {missing}");
                for (url, answer) in &answers {
                    match answer {
                        Err(why) => tracing::warn!(peer = url, "no answer: {why}"),
                        Ok(a) if !a.formed && a.cluster_id != 0 && a.cluster_id != me.cluster.0 => {
                            let (here, there) = (me.cluster, ClusterId(a.cluster_id));
                            let how = self.difference(&a.members);
                            tracing::error!(
                                peer = url, %here, %there,
                                "cluster ID mismatch: this member and the one at {url} would found different clusters; \
                                 {how}; start all members with the same"
                            );
                        }
                        Ok(_) => {}
                    }
                }
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    /// Why an empty member must not start where a cluster is.
    fn formed(&self, me: Remembered, url: &str, answers: &Answers, listed: bool) -> BootError {
        let dir = self.config.data_dir.display();
        let me = me.member;
        let there = answers.iter().find(|(at, _)| at == url).and_then(|(_, answer)| answer.as_ref().ok());
        let how = there.map_or_else(String::new, |there| self.difference(&there.members));
        let is_named = there.is_some_and(|there| there.members.iter().any(|m| m.id == me.0));
        let other = if is_named { "has other members" } else { "does not list this member" };
        BootError::Identity(if listed {
            format!(
                "member {me} has already been bootstrapped: the member at {url} knows that it has run, and this data \
                 directory ({dir}) is empty; remove the member, add it anew, and start it with \
                 --initial-cluster-state existing (if no cluster has formed yet, empty the data directories of all of \
                 its members and start them again)"
            )
        } else {
            format!(
                "the member at {url} is in a cluster that was formed already and {other} (this is {me}): {how}; \
                 check --initial-cluster and --initial-cluster-token, or join it with `member add` and \
                 --initial-cluster-state existing"
            )
        })
    }

    /// Finds this member in the cluster that was told of it.
    async fn join(&self, started: Instant) -> Result<Remembered, BootError> {
        let own = self.own_urls()?;
        let mut last = "no other member is named in --initial-cluster".to_owned();
        let mut reported: Option<Instant> = None;
        loop {
            let answers = self.ask(ProbeRequest::default()).await;
            fits_cluster(&answers)?;
            let removed: BTreeSet<u64> =
                answers.iter().flat_map(|(_, a)| a.iter().flat_map(|a| &a.removed)).copied().collect();
            for (url, answer) in answers {
                let answer = match answer {
                    Ok(answer) if answer.formed => answer,
                    Ok(_) => {
                        last = format!("the member at {url} is in no cluster yet");
                        continue;
                    }
                    Err(why) => {
                        last = format!("{url}: {why}");
                        continue;
                    }
                };
                // One that lags may still list an earlier member of this URL.
                let mine = |m: &&ProbeMember| m.peer_urls.iter().any(|u| own.contains(u)) && !removed.contains(&m.id);
                let by_text = answer.members.iter().find(mine);
                // Added by its host's name and started by its address, or the other way round: it is known by what was added.
                let new = || answer.members.iter().filter(|m| m.name.is_empty() && !removed.contains(&m.id));
                let listed = match by_text {
                    Some(listed) => Some(listed),
                    None => names::at_the_same_place(own, new().collect()).await,
                };
                let Some(listed) = listed else {
                    let new: Vec<String> = new().map(|m| m.peer_urls.join(",")).collect();
                    last = format!(
                        "cluster {:x} at {url} lists no member with the peer URL {}; add it with `member add` first \
                         (what was added and has not started: {})",
                        answer.cluster_id,
                        own.join(","),
                        if new.is_empty() { "nobody".to_owned() } else { new.join("; ") }
                    );
                    continue;
                };
                let (cluster, member) = (ClusterId(answer.cluster_id), MemberId(listed.id));
                tracing::info!(%member, %cluster, via = url, "joining the cluster");
                return Ok(Remembered { cluster, member, founder: false, logged: false, epoch: Epoch::UNKNOWN });
            }
            if started.elapsed() > JOIN_TIMEOUT {
                return Err(BootError::Unreachable(format!(
                    "cannot fetch cluster info from peer urls within {JOIN_TIMEOUT:?}: {last}"
                )));
            }
            // At once, too: a supervisor may have less patience than this member.
            if reported.is_none_or(|at| at.elapsed() > PROBE_REPORT) {
                reported = Some(Instant::now());
                tracing::warn!("cannot join the cluster yet: {last}");
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    async fn open(&self, dir: &Path, me: Remembered, start: Start) -> Result<Opened, BootError> {
        if start != Start::Again {
            // Before the identity, by which the next start is one of a member that has run.
            if let Some(force) = &self.config.force {
                force.pass(dir)?;
            }
            me.store(dir)?;
        }
        expect_log(&self.config, dir, me)?;
        let metrics = Arc::new(Metrics::default());
        let config = self.config.clone();
        let mut fetched = false;
        let opened = loop {
            let (metrics, dir, config) = (metrics.clone(), dir.to_owned(), config.clone());
            let force = config.force.clone().filter(|_| start == Start::Again);
            let open = move || {
                let opening = Opening { config: &config, dir: &dir, me, damage: Damage::Rebuild };
                let (wal, store, state, snapshots) = open_storage(&opening, &metrics)?;
                if let Some(force) = force {
                    let ids = (me.cluster, me.member);
                    stand_alone(&force, &dir, &config.advertise_peer_urls, ids, (&wal, &state, &snapshots))?;
                }
                Ok::<Storage, Unopened>((wal, store, state, snapshots))
            };
            match tokio::task::spawn_blocking(open).await.map_err(|e| BootError::Storage(e.to_string()))? {
                Ok(opened) => break opened,
                // Once: what comes is checked, and joins up.
                Err(Unopened::Lacks(lack)) if !fetched => {
                    let snap = self.config.data_dir.join("member").join("snap");
                    let snapshots = SnapshotDir::open(&snap).map_err(|e| unwritable(&snap, &e))?;
                    self.fetch(me, lack, &snapshots).await?;
                }
                Err(unopened) => return Err(unopened.into()),
            }
            fetched = true;
        };
        let (wal, store, state, snapshots) = opened;
        let epoch = if state.epoch() == Epoch::UNKNOWN { me.epoch } else { state.epoch() };
        let now = Remembered { logged: true, epoch, ..me };
        if now != me {
            now.store(dir)?;
        }
        let epoch = match (state.epoch(), start) {
            (Epoch::UNKNOWN, Start::Join(epoch)) => epoch,
            (known, _) => known,
        };
        let identity = Identity::new(me.cluster, me.member, epoch);
        Ok(Opened { wal, store, state, snapshots, identity: Arc::new(identity), metrics, claim: None })
    }

    /// Fetches what this member lacks from another: a snapshot, which with its own log is all that it had. The log and the vote
    /// stay, so that nothing is lost that it has promised to keep.
    pub(crate) async fn fetch(&self, me: Remembered, lack: Lack, snapshots: &SnapshotDir) -> Result<(), BootError> {
        let identity = Identity::new(me.cluster, me.member, me.epoch);
        let started = Instant::now();
        let mut reported = Instant::now();
        if self.other_urls().is_empty() {
            return Err(Unopened::Lacks(lack).into());
        }
        if me.epoch == Epoch::UNKNOWN {
            return Err(BootError::Storage(format!(
                "{lack}; other members are not asked for a snapshot, because the file {} does not say which history is this \
                 member's own, as it does from the first whole start of this release on; remove this member and add a new \
                 one, or restore a backup",
                Remembered::FILE
            )));
        }
        tracing::warn!("{lack}: asking the other members for a snapshot");
        loop {
            let mut refusals = Vec::new();
            for (url, answer) in self.ask(ProbeRequest::default()).await {
                let from = match answer {
                    Ok(there) if there.cluster_id != me.cluster.0 || !there.formed => {
                        Err("it is in another cluster, or none".to_owned())
                    }
                    Ok(there)
                        if there.removed.contains(&me.member.0)
                            && (me.epoch.agrees_with(Epoch(there.epoch))
                                || there.replaced_epochs.contains(&me.epoch.0)) =>
                    {
                        return Err(BootError::Identity(format!(
                            "{lack}; the member at {url} says that this one was removed"
                        )));
                    }
                    Ok(there) => Ok(MemberId(there.member_id)),
                    Err(why) => Err(why),
                };
                let got = match from {
                    Ok(of) => {
                        fetch_snapshot(&self.config.dialer, &identity, (of, &url), lack.at_least, snapshots).await
                    }
                    Err(why) => Err(why),
                };
                match got {
                    Ok(pos) => {
                        tracing::warn!(
                            from = url,
                            index = pos.index,
                            "{lack}; a snapshot of another member takes its place"
                        );
                        return Ok(());
                    }
                    Err(why) => refusals.push(format!("{url}: {why}")),
                }
            }
            let refusals = refusals.join("; ");
            if started.elapsed() > JOIN_TIMEOUT {
                return Err(BootError::Unreachable(lack.nobody_fills(&refusals, self.other_urls().len())));
            }
            if reported.elapsed() > PROBE_REPORT {
                reported = Instant::now();
                tracing::warn!("{lack}: waiting for a snapshot of another member ({refusals})");
            }
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    pub(crate) async fn bring_up(self, opened: Opened, me: Remembered, start: Start) -> Result<Member, BootError> {
        let state = opened.state;
        let hub = Arc::new(Hub::default());
        hub.start_at(state.revision());
        let lease_clock = Arc::new(LeaseClock::new(self.config.node.lease_checkpoints));
        lease_clock.reset(|| state.lease_times(), Duration::ZERO);
        let checks = self.config.node.corruption;
        opened.metrics.feature("InitialCorruptCheck", checks.at_start);
        opened.metrics.feature("LeaseCheckpoint", self.config.node.lease_checkpoints.is_some());
        opened.metrics.feature("CompactHashCheck", checks.compactions_every.is_some());
        let shared = Arc::new(Shared {
            waiters: Arc::default(),
            hub,
            lease_clock,
            applied: tokio::sync::watch::channel(state.applied().map_or(0, |p| p.index)).0,
            identity: opened.identity.clone(),
            state: state.clone(),
            metrics: opened.metrics,
            warning_apply: self.config.node.warning_apply,
            members_changed: tokio::sync::Notify::new(),
            tokens: Arc::new(SimpleTokens::new(self.config.node.auth.token_ttl, state.permits().revision())),
        });
        let raft = |e: ferretcd_raft::GroupError| BootError::Raft(e.to_string());
        let group = Group::open(GroupParts {
            timing: self.config.node.timing,
            wal: opened.wal.clone(),
            state,
            snapshots: opened.snapshots,
            peers: Peers::new(opened.identity, self.config.dialer.clone(), shared.metrics.clone()),
            effects: shared.clone(),
        })
        .await
        .map_err(raft)?;
        let running = Running {
            named: self.other_urls(),
            config: self.config.node.clone(),
            group: group.clone(),
            wal: opened.wal.clone(),
            shared,
        };
        let (node, rounds) = Node::assemble(running);
        if start == Start::Again && checks.at_start {
            node.inner.check_before_serving().await.map_err(BootError::Corrupt)?;
        }
        node.inner.state.set_pace(self.config.node.compaction_pace);
        node.inner.state.observe_compactions(node.inner.metrics.clone());
        node.defragment_above(self.config.node.defragment_above).await;
        let _ = self.requests.node.set(node.clone());
        group.run();
        self.door.open(&group);
        let tasks = TaskTracker::new();
        // What was known to be committed before a restart is applied in the background. Nobody waits for it here: a
        // member whose quorum is away must still answer its probes, and a linearizable read waits by itself.
        let founds = match start {
            Start::Found => true,
            Start::Join(_) => false,
            // One that stopped before its first entry asks anew: if the others went on and formed the cluster with
            // it, it has only to listen.
            Start::Again if group.is_founded().await.map_err(raft)? || !self.founds(me)? => false,
            Start::Again => {
                let intact = Remembered { logged: true, ..me };
                self.admission(intact, None).await? == Start::Found
            }
        };
        if founds {
            group.found(self.founders()).await.map_err(raft)?;
        }
        workers::start(&node.inner, rounds, &tasks);
        let intact = Remembered { logged: true, ..me };
        tasks.spawn(remember_epoch(node.inner.clone(), self.config.data_dir.join("member"), intact));
        Ok(Member { node, tasks, store: opened.store, wal: opened.wal, _claim: opened.claim })
    }

    /// Whether an empty log is to be founded: only under the identity that the flags compute.
    fn founds(&self, me: Remembered) -> Result<bool, BootError> {
        let founding = match (self.config.intent, self.config.state) {
            (Some(Intent::Bootstrap), _) | (None, ClusterState::New) => true,
            (Some(Intent::Join), _) | (None, ClusterState::Existing) => false,
            // A seed that was stopped before its first entry; its supervisor now says "run".
            (Some(Intent::Run), state) => state == ClusterState::New,
        };
        let founder = self.founder()?;
        Ok(founding && (founder.cluster, founder.member) == (me.cluster, me.member))
    }
}

/// A member without its log has forgotten its votes: it must not come back as if it had given none. Asked by all that opens a
/// member's files, before a new log is begun where none is.
pub(crate) fn expect_log(config: &BootConfig, dir: &Path, me: Remembered) -> Result<(), BootError> {
    let wal_dir = wal_dir(config, dir);
    // Whatever else is there, such as `lost+found` of a disk that was made anew, is no log.
    let is_segment = |file: fs::DirEntry| file.file_name().to_str().is_some_and(|n| segment::sequence_of(n).is_some());
    let there = fs::read_dir(&wal_dir).is_ok_and(|files| files.flatten().any(is_segment));
    if me.logged && !there {
        return Err(BootError::Identity(format!(
            "the log of member {} is not in {}, where it should be; check --wal-dir and its mount; if the log is \
             lost, remove the member, add it anew, and start it with an empty data directory",
            me.member,
            wal_dir.display()
        )));
    }
    Ok(())
}

fn wal_dir(config: &BootConfig, dir: &Path) -> PathBuf {
    config.wal_dir.clone().unwrap_or_else(|| dir.join("wal"))
}

/// Who finds a backup that was on its way here must not found an empty cluster instead.
fn refuse_half_restored(data_dir: &Path) -> Result<(), BootError> {
    let part = data_dir.join(RESTORING);
    match part.try_exists().map_err(|e| unwritable(&part, &e))? {
        true => Err(BootError::Identity(format!(
            "{} is what an interrupted `ferretcd snapshot restore` left: run it again with the same file and flags, or \
             remove that to begin without the backup",
            part.display()
        ))),
        false => Ok(()),
    }
}

/// Removes a folder with all that is in it, if it is there.
fn forget(dir: &Path) -> Result<(), BootError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(unwritable(dir, &e)),
        _ => Ok(()),
    }
}

/// What is wrong with a data directory, for a supervisor: to start it once more helps only if the machine was at fault.
fn unfit(e: &FormatError) -> BootError {
    match e {
        FormatError::Io { .. } => BootError::Storage(chain(e)),
        _ => BootError::Identity(chain(e)),
    }
}

/// Refuses to join a cluster that has come to what a later release brought.
fn fits_cluster(answers: &Answers) -> Result<(), BootError> {
    let formed = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).filter(|answer| answer.formed);
    match formed.max_by_key(|answer| answer.cluster_log_format) {
        Some(ProbeResponse { cluster_version, cluster_log_format, .. }) if *cluster_log_format > codec::LOG_FORMAT => {
            let (cluster_version, log_format) = (cluster_version.clone(), *cluster_log_format);
            Err(BootError::Identity(StateError::Older { cluster_version, log_format }.to_string()))
        }
        _ => Ok(()),
    }
}

/// How a member comes to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// With what its data directory holds.
    Again,
    /// Empty, as one of those that found the cluster.
    Found,
    /// Empty, into a cluster of this epoch that lists it.
    Join(Epoch),
}

pub(crate) struct Opened {
    pub(crate) wal: Wal,
    pub(crate) store: Arc<Store>,
    pub(crate) state: Arc<State>,
    pub(crate) snapshots: SnapshotDir,
    pub(crate) identity: Arc<Identity>,
    pub(crate) metrics: Arc<Metrics>,
    /// Keeps other processes off the data directory; none if there is no directory.
    pub(crate) claim: Option<Box<dyn Lock>>,
}

/// Keeps every other process off this folder of a data directory while the guard lives, wherever either has its log (which has
/// a lock of its own, for two data directories with one log).
pub(crate) fn claim(dir: &Path) -> Result<Box<dyn Lock>, BootError> {
    let path = dir.join("LOCK");
    OsFs.lock(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => BootError::Storage(format!(
            "{} is locked: another process runs on this data directory; stop it, or choose another --data-dir",
            path.display()
        )),
        _ => unwritable(&path, &e),
    })
}

pub(crate) fn unwritable(path: &Path, e: &std::io::Error) -> BootError {
    BootError::Storage(format!("cannot write {}: {e}", path.display()))
}

/// Makes a directory that only this user may look into, so that a power cut does not take it away again with all that
/// is in it. Its ancestors' names are synced each time: an earlier start may have been killed between making and syncing.
pub(crate) fn make_private(dir: &Path) -> Result<(), BootError> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |e: std::io::Error| BootError::Storage(format!("cannot create {}: {e}", dir.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let whole = dir.canonicalize().map_err(failed)?;
    for ancestor in whole.ancestors().skip(1) {
        match File::open(ancestor).and_then(|ancestor| ancestor.sync_all()) {
            Ok(()) => {}
            // A folder that this user cannot read, or a read-only file system, is none that was made by it.
            Err(e) if UNREADABLE.contains(&e.kind()) => break,
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

const UNREADABLE: [std::io::ErrorKind; 3] = [
    std::io::ErrorKind::PermissionDenied,
    std::io::ErrorKind::ReadOnlyFilesystem,
    // Some file systems (of overlays, of networks) know no sync of folders.
    std::io::ErrorKind::InvalidInput,
];

pub(crate) type Storage = (Wal, Arc<Store>, Arc<State>, SnapshotDir);

/// What to do with a store that cannot be used, though the log and a snapshot file hold all that was in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Set it aside and build it anew, as a member that starts does.
    Rebuild,
    /// Say so and change nothing.
    Refuse,
}

/// Whose files are opened, and how.
pub(crate) struct Opening<'a> {
    pub(crate) config: &'a BootConfig,
    /// The folder `member` of the data directory.
    pub(crate) dir: &'a Path,
    pub(crate) me: Remembered,
    pub(crate) damage: Damage,
}

/// Writes down the epoch of a member's first history, once it is known.
async fn remember_epoch(inner: Arc<crate::node::Inner>, dir: PathBuf, me: Remembered) {
    let mut applied = inner.applied.subscribe();
    tokio::select! {
        _ = applied.wait_for(|_| inner.state.epoch() != Epoch::UNKNOWN) => {}
        () = inner.stop.cancelled() => return,
    }
    let now = Remembered { epoch: inner.state.epoch(), ..me };
    if me.epoch == Epoch::UNKNOWN
        && let Err(e) = ferretcd_raft::blocking(|| now.store(&dir))
    {
        tracing::warn!("cannot write down the history's epoch: {e}; the next start does it");
    }
}

/// A store that cannot be used, and a snapshot file and a log that do not make a new one.
#[derive(Debug)]
pub(crate) struct Lack {
    /// What is wrong, with the files' names.
    why: String,
    /// The least index that a snapshot must stand for to help.
    at_least: u64,
}

impl Lack {
    /// Why this member does not start, and what to do: who else there is cannot lead without it if there is one alone.
    fn nobody_fills(&self, refusals: &str, others: usize) -> String {
        let alone = match others {
            1 => {
                "; if the other one cannot lead without this one, start it once with --force-new-cluster-once, which keeps all \
                  that it has"
            }
            _ => "",
        };
        format!(
            "{self}, and no other member gives a snapshot within {JOIN_TIMEOUT:?} ({refusals}); see that one can be reached, or \
             remove this member and add a new one{alone}"
        )
    }
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Why a member's files are not open.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// A snapshot of another member would help.
    Lacks(Lack),
    /// Nothing helps that this process could do.
    Failed(BootError),
}

impl From<BootError> for Unopened {
    fn from(e: BootError) -> Self {
        Unopened::Failed(e)
    }
}

impl From<Unopened> for BootError {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::Lacks(lack) => {
                BootError::Storage(format!("{lack}; remove this member and add a new one, or restore a backup"))
            }
            Unopened::Failed(e) => e,
        }
    }
}

pub(crate) fn open_storage(opening: &Opening<'_>, metrics: &Arc<Metrics>) -> Result<Storage, Unopened> {
    let Opening { config, dir, me, damage } = *opening;
    let storage = |e: &dyn std::error::Error| BootError::Storage(chain(e));
    let wal_dir = wal_dir(config, dir);
    make_private(&wal_dir)?;
    let identity = ferretcd_wal::Identity { cluster_id: me.cluster.0, member_id: me.member.0 };
    let sync = !config.unsafe_no_fsync;
    let options = ferretcd_wal::Options { sync, observer: metrics.clone(), ..ferretcd_wal::Options::default() };
    // Before the log, which is repaired as it is opened: one of a later version would be misread.
    Format::load(dir).map_err(|e| unfit(&e))?;
    let (wal, _) = Wal::open(Arc::new(OsFs), &wal_dir, options, identity).map_err(|e| match e {
        WalError::Foreign { .. } | WalError::NewerFormat { .. } => BootError::Identity(chain(&e)),
        e => storage(&e),
    })?;
    let kind = config.engine;
    Format::ensure(dir, kind.name(), &format!("ferretcd {}", env!("CARGO_PKG_VERSION"))).map_err(|e| unfit(&e))?;
    make_private(&dir.join("snap"))?;
    let snapshots = SnapshotDir::open(&dir.join("snap")).map_err(|e| storage(&e))?;
    let engine_dir = EngineKind::newest(&dir.join("engine")).map_err(|e| storage(&e))?;
    let opener = Opener {
        kind,
        dir: engine_dir,
        options: config.write_behind.clone(),
        member: me.member,
        metrics: metrics.clone(),
        log: Some(wal.clone()),
    };
    let (store, state) = match opener.open() {
        Ok((store, state)) if fits(&state, &wal, &snapshots) => {
            take_up(&state, &snapshots, &wal, me.member).map_err(|e| storage(&e))?;
            (store, state)
        }
        Ok(_) if damage == Damage::Refuse => {
            return Err(BootError::Storage(format!("the store {} does not fit the log", opener.dir.display())).into());
        }
        Err(Unusable::Older(why)) => return Err(BootError::Identity(why).into()),
        Err(Unusable::Kept(why)) => {
            let dir = opener.dir.display();
            let text =
                format!("the store {dir} cannot be opened now: {why}; it stays as it is: mend that and start again");
            return Err(BootError::Storage(text).into());
        }
        Err(why) if damage == Damage::Refuse => {
            return Err(
                BootError::Storage(format!("the store {} cannot be opened: {why}", opener.dir.display())).into()
            );
        }
        Ok((store, state)) => {
            let is_unfilled = state.applied().is_none();
            let _ = store.close();
            drop((store, state));
            let dir = &opener.dir;
            if is_unfilled && delete_unfilled(dir).map_err(|e| unwritable(dir, &e))? {
                tracing::warn!(store = %dir.display(), "the store was not whole yet when its rebuilding was interrupted");
            }
            rebuild(&opener, "it does not fit the log", &snapshots, &wal)?
        }
        Err(why) => rebuild(&opener, &why.to_string(), &snapshots, &wal)?,
    };
    Ok((wal, store, state, snapshots))
}

/// The store may lag behind the log, and never run ahead of it or behind what the log still holds. It may be as far as
/// the newest snapshot file: one that was installed just before a crash, whose log was not purged yet (openraft does it
/// at its start).
pub(crate) fn fits(state: &State, wal: &Wal, snapshots: &SnapshotDir) -> bool {
    let applied = state.applied().map_or(0, |p| p.index);
    let installed = snapshots.newest().ok().flatten().map_or(0, |(pos, _)| pos.index);
    let last = wal.last().or(wal.purged()).map_or(0, |p| p.index).max(installed);
    let purged = wal.purged().map_or(0, |p| p.index);
    applied <= last && applied >= purged
}

/// Name of the thread that opens the engine and reads it for the first time. Engines report some damage by panicking;
/// there, and only there, a panic is caught and leads to a rebuild, while anywhere else it ends the process.
pub const ENGINE_OPENER: &str = "engine-open";

/// Opens the engine in `dir` with defaults, to look into it.
pub(crate) fn open_engine(
    dir: &Path,
    kind: EngineKind,
    member: MemberId,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Store>, Arc<State>), String> {
    let opener =
        Opener { kind, dir: dir.to_owned(), options: Options::default(), member, metrics: metrics.clone(), log: None };
    opener.open().map_err(|why| why.to_string())
}

/// Why an engine is not taken as the store. The text says it.
#[derive(Debug)]
enum Unusable {
    /// It cannot be read.
    Damaged(String),
    /// It is sound, and this server is older than the cluster that it belongs to.
    Older(String),
    /// The machine does not let it be opened, which says nothing of it.
    Kept(String),
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Unusable::Damaged(why) | Unusable::Older(why) | Unusable::Kept(why)) = self;
        f.write_str(why)
    }
}

fn damaged(e: &dyn std::error::Error) -> Unusable {
    Unusable::Damaged(chain(e))
}

/// A store is set aside for what is wrong with it, not for a full disk or a missing right: at the third such start the sound one
/// would be deleted.
fn unusable(e: &ferretcd_storage::Error) -> Unusable {
    use std::io::ErrorKind;
    let kept = match e {
        ferretcd_storage::Error::Io { source, .. } => {
            // No kind stands for too many open files, of the process (24) or of the system (23).
            matches!(source.raw_os_error(), Some(23 | 24))
                || matches!(
                    source.kind(),
                    ErrorKind::StorageFull
                        | ErrorKind::QuotaExceeded
                        | ErrorKind::PermissionDenied
                        | ErrorKind::ReadOnlyFilesystem
                        | ErrorKind::OutOfMemory
                )
        }
        ferretcd_storage::Error::NotDurable { .. } => true,
        _ => false,
    };
    if kept { Unusable::Kept(chain(e)) } else { damaged(e) }
}

/// What the engine is opened with.
#[derive(Clone)]
struct Opener {
    kind: EngineKind,
    dir: PathBuf,
    options: Options,
    member: MemberId,
    metrics: Arc<Metrics>,
    /// What the store is written behind, if it is written.
    log: Option<Wal>,
}

impl Opener {
    fn open(&self) -> Result<(Arc<Store>, Arc<State>), Unusable> {
        let this = self.clone();
        let thread = std::thread::Builder::new().name(ENGINE_OPENER.to_owned());
        let opened = thread.spawn(move || this.open_here()).map_err(|e| Unusable::Kept(chain(&e)))?;
        opened.join().map_err(|_| Unusable::Damaged("it panicked while it was opened".to_owned()))?
    }

    fn open_here(&self) -> Result<(Arc<Store>, Arc<State>), Unusable> {
        let engine = self.kind.open(&self.dir, ENGINE_CACHE_BYTES).map_err(|e| unusable(&e))?;
        let log = self.log.clone().map(|wal| Arc::new(move |position| wal.wait_durable(position)) as WaitForLog);
        let store =
            Store::open_behind(engine, self.options.clone(), self.metrics.clone(), log).map_err(|e| unusable(&e))?;
        let store = Arc::new(store);
        let state = State::open(store.clone(), self.member).map_err(|e| match e {
            StateError::Older { .. } => Unusable::Older(chain(&e)),
            e => damaged(&e),
        })?;
        Ok((store, Arc::new(state)))
    }
}

/// Sets a store that cannot be used aside and makes a new one from the last snapshot file; the log gives the rest.
fn rebuild(
    opener: &Opener,
    why: &str,
    snapshots: &SnapshotDir,
    wal: &Wal,
) -> Result<(Arc<Store>, Arc<State>), Unopened> {
    let dir = &opener.dir;
    // Before anything is touched. The log must be free for the next attempt.
    if let Some(lack) = lack(&opener.dir, why, snapshots, wal) {
        wal.close().map_err(|e| BootError::Storage(chain(&e)))?;
        return Err(Unopened::Lacks(lack));
    }
    tracing::error!(
        store = %dir.display(),
        "the store cannot be used ({why}): setting it aside and rebuilding it from the last snapshot and the log"
    );
    let failed = |e: &dyn std::error::Error| {
        BootError::Storage(format!("cannot rebuild the store {}: {}; replace this member", dir.display(), chain(e)))
    };
    let snapshot_bytes = snapshots.newest().map_err(|e| failed(&e))?.map_or(0, |(_, file)| file.bytes);
    let (aside, deleted) = set_aside(dir, snapshot_bytes, |path| free_bytes(path).ok()).map_err(|e| failed(&e))?;
    let deleted: Vec<_> = deleted.iter().map(|path| path.display().to_string()).collect();
    let deleted = if deleted.is_empty() { "nothing".to_owned() } else { deleted.join(" ") };
    tracing::warn!(aside = %aside.display(), deleted, "the store was set aside; delete it when nobody wants to look at it");
    let (store, state) =
        opener.open().map_err(|e| BootError::Storage(format!("cannot make a new store at {}: {e}", dir.display())))?;
    fill(&state, snapshots, wal, opener.member).map_err(|e| match e {
        Unfilled::Older(why) => BootError::Identity(why),
        Unfilled::Io(e) => failed(&e),
    })?;
    Ok((store, state))
}

/// Why an empty state was not filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfilled {
    /// The snapshot is sound, and this server is older than the cluster that it belongs to.
    #[error("{0}")]
    Older(String),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Fills an empty state from the last snapshot file, if there is one.
pub(crate) fn fill(state: &State, snapshots: &SnapshotDir, wal: &Wal, member: MemberId) -> Result<(), Unfilled> {
    let Some((pos, snapshot)) = snapshots.newest()? else { return Ok(()) };
    // Before there is a store that a start would take without a second look.
    offline::join_up(wal, pos, member)?;
    state.install(&File::open(&snapshot.path)?).map_err(|e| match e {
        StateError::Older { .. } => Unfilled::Older(chain(&e)),
        e => Unfilled::Io(io::Error::other(e)),
    })?;
    Ok(state.flush().map(drop).map_err(io::Error::other)?)
}

/// Lets the log go on from a snapshot file that raft takes up because the state is behind it, one that was fetched, or that the
/// log does not reach, because a crash came between its installation and the purge.
pub(crate) fn take_up(state: &State, snapshots: &SnapshotDir, wal: &Wal, member: MemberId) -> io::Result<()> {
    let newest = snapshots.newest()?.map(|(pos, _)| pos);
    let is_behind = |pos: &LogPos| state.applied().is_none_or(|applied| applied.index < pos.index);
    match newest.filter(|pos| is_behind(pos) || wal.end_index() <= pos.index) {
        Some(pos) => offline::join_up(wal, pos, member),
        None => Ok(()),
    }
}

/// What the last snapshot file and the log lack to make a store.
pub(crate) fn lack(store: &Path, why: &str, snapshots: &SnapshotDir, wal: &Wal) -> Option<Lack> {
    let (store, purged) = (store.display(), wal.purged().map_or(0, |pos| pos.index));
    match snapshots.usable() {
        Ok(found) => {
            let reaches = found.map_or(0, |pos| pos.index);
            let why = || {
                format!("the store {store} cannot be used ({why}), and the last snapshot and the log do not join up")
            };
            (reaches < purged).then(|| Lack { why: why(), at_least: purged })
        }
        Err(unusable) => {
            let stands_for = snapshots.newest().ok().flatten().map_or(0, |(pos, _)| pos.index);
            let why = format!("the store {store} cannot be used ({why}), nor can the last snapshot: {unusable}");
            Some(Lack { why, at_least: purged.max(stands_for) })
        }
    }
}

pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

impl Member {
    /// Gets ready to leave: hands leadership to the voter that is furthest, if this member has it, then ends the watch
    /// streams, whose clients go on elsewhere.
    pub async fn hand_over(&self) {
        self.hand_leadership_over().await;
        self.node.inner.hub.stop();
    }

    async fn hand_leadership_over(&self) {
        let inner = &self.node.inner;
        // Of this moment, as Status tells it: the usual view may still name this member.
        let view = inner.group.look();
        // A leader whose quorum is silent has nobody to hand over to, and would wait for that.
        if view.role != ferretcd_raft::Role::Leader || view.leader != Some(inner.identity.member) {
            return;
        }
        // One that does not answer would make the stop wait, too.
        let answers = |at: Instant| at.elapsed() < inner.timing.election;
        let heir = view
            .voters()
            .filter(|(id, _, _)| *id != inner.identity.member)
            .filter_map(|(id, _, _)| Some((*id, view.progress.get(id)?)))
            .max_by_key(|(_, p)| (p.last_heard.is_some_and(answers), p.matched, p.last_heard))
            .map(|(id, _)| id);
        if let Some(heir) = heir
            && let Err(e) = self.node.move_leader(heir).await
        {
            tracing::warn!(%heir, "could not hand leadership over ({e}); the others will elect");
        }
    }

    /// Stops everything in reverse.
    pub async fn stop(self) {
        let inner = &self.node.inner;
        inner.hub.stop();
        inner.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        inner.group.shutdown().await;
        let (store, wal) = (self.store.clone(), self.wal.clone());
        let closed = tokio::task::spawn_blocking(move || {
            if let Err(e) = store.close() {
                tracing::warn!("the store did not close cleanly ({e}); the log has everything");
            }
            if let Err(e) = wal.close() {
                tracing::error!("the log did not close cleanly: {e}");
            }
        });
        if let Err(e) = closed.await {
            tracing::error!("closing failed: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_no_snapshot_is_told_what_to_do_in_a_group_of_two() {
        let lack = Lack { why: "the store is damaged".to_owned(), at_least: 7 };
        let of_three = lack.nobody_fills("http://b: refused; http://c: refused", 2);
        assert!(
            of_three.starts_with("the store is damaged, and no other member gives a snapshot within"),
            "{of_three}"
        );
        assert!(of_three.ends_with("or remove this member and add a new one"), "{of_three}");
        assert!(lack.nobody_fills("http://b: refused", 1).contains("start it once with --force-new-cluster-once"));
    }

    /// A crash comes between the installation of a leader's snapshot and the purge of a shorter log, whose last entry is of a later
    /// term and was never committed.
    #[test]
    fn a_log_that_ends_before_an_installed_snapshot_goes_on_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let identity = ferretcd_wal::Identity { cluster_id: 1, member_id: 1 };
        let fs = Arc::new(ferretcd_wal::fs::mem::MemFs::new());
        let options = ferretcd_wal::Options { segment_bytes: 4096, ..ferretcd_wal::Options::default() };
        let (wal, _) = Wal::open_inline(fs, Path::new("/wal"), options, identity).unwrap();
        let entry = |index| ferretcd_wal::Entry { term: 3, index, payload: bytes::Bytes::from_static(&[0]) };
        wal.append((0..=100).map(entry).collect(), Box::new(|appended| appended.unwrap()));
        let store = Store::open(Arc::new(ferretcd_storage::MemoryEngine::new()), Options::default()).unwrap();
        let state = State::open(store, MemberId(1)).unwrap();
        let installed = LogPos { term: 2, index: 110 };
        state.apply_blank(installed).unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        let part = dir.path().join("part");
        fs::write(&part, "").unwrap();
        snapshots.finish(&part, installed).unwrap();
        assert!(fits(&state, &wal, &snapshots));
        for _again in 0..2 {
            take_up(&state, &snapshots, &wal, MemberId(1)).unwrap();
            assert_eq!((wal.first_index(), wal.end_index()), (111, 111));
        }
    }

    #[test]
    fn a_sound_store_is_not_set_aside_for_a_full_disk() {
        let io = |kind: std::io::ErrorKind| ferretcd_storage::Error::Io {
            attempt: "open the database".to_owned(),
            source: Arc::new(kind.into()),
        };
        let kept = |e| matches!(unusable(&e), Unusable::Kept(_));
        assert!(kept(io(std::io::ErrorKind::StorageFull)) && kept(io(std::io::ErrorKind::PermissionDenied)));
        assert!(!kept(io(std::io::ErrorKind::UnexpectedEof)), "a file that is too short is damage");
        assert!(!kept(ferretcd_storage::Error::Corrupt { path: PathBuf::from("db"), detail: "a page".to_owned() }));
    }

    #[test]
    fn static_bootstrap_computes_etcds_ids() {
        // What etcd 3.7.1 answers for these flags (name default, its default URL and token).
        let urls = vec!["http://localhost:2380".to_owned()];
        let id = static_member_id(&urls, "etcd-cluster");
        assert_eq!(id.to_string(), "8e9e05c52164694d");
        assert_eq!(static_cluster_id([id]).to_string(), "cdf818194e3a8c32");
    }

    #[test]
    fn the_first_releases_identities_are_read_and_still_written_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity");
        let me = Remembered {
            cluster: ClusterId(0xcdf8_1819_4e3a_8c32),
            member: MemberId(0x8e9e_05c5_2164_694d),
            founder: true,
            logged: true,
            epoch: Epoch(0xe90c),
        };
        let fields = "cluster = cdf818194e3a8c32\nmember = 8e9e05c52164694d\nfounder = 1\nlogged = 1\n";
        let golden = format!("{fields}epoch = e90c\nchecksum = 3656a22b\n");
        me.store(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), golden);
        let early = Remembered { epoch: Epoch::UNKNOWN, ..me };
        // Before there was an epoch in it, and before there was a checksum.
        for (text, read) in [(golden.as_str(), me), (fields, early)] {
            fs::write(&file, text).unwrap();
            assert_eq!(Remembered::load(dir.path()).unwrap(), Some(read), "{text}");
        }
    }

    #[test]
    fn an_identity_survives_a_restart_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Remembered::load(dir.path()).unwrap(), None);
        let me = Remembered {
            cluster: ClusterId(7),
            member: MemberId(u64::MAX),
            founder: true,
            logged: false,
            epoch: Epoch::UNKNOWN,
        };
        me.store(dir.path()).unwrap();
        let of_a_history = Remembered { epoch: Epoch(u64::MAX - 1), logged: true, ..me };
        of_a_history.store(dir.path()).unwrap();
        assert_eq!(Remembered::load(dir.path()).unwrap(), Some(of_a_history));
        me.store(dir.path()).unwrap();
        assert_eq!(Remembered::load(dir.path()).unwrap(), Some(me));
        let file = dir.path().join("identity");
        let whole = fs::read(&file).unwrap();
        for (at, bit) in (0..whole.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            fs::write(&file, damaged).unwrap();
            let refused = Remembered::load(dir.path());
            assert!(refused.is_err_and(|e| e.to_string().contains("identity")), "bit {bit} of byte {at}");
        }
        fs::write(&file, "cluster = 7\n").unwrap();
        assert!(Remembered::load(dir.path()).unwrap_err().to_string().contains("identity"));
        // As it was written at first.
        fs::write(&file, "cluster = 7\nmember = ffffffffffffffff\nfounder = 1\nlogged = 0\n").unwrap();
        assert_eq!(Remembered::load(dir.path()).unwrap(), Some(me));
    }
}
