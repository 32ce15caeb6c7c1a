//! etcd's metrics that this floor knows, under etcd's names (etcd-mixin's dashboards read them). No global registry:
//! the binary owns it.

use crate::node::Inner;
use crate::process::Process;
use ferretcd_raft::{Role, Way};
use ferretcd_types::{AlarmKind, AuthChange, Command, Event, EventKind, MemberId};
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, exponential_buckets,
};
use std::time::{Duration, Instant, SystemTime};

/// A member's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    late_heartbeats: IntCounter,
    auth_revision: IntGauge,
    peers_disconnected: IntCounterVec,
    snapshots_sent: SnapshotMetrics,
    snapshots_received: SnapshotMetrics,
    pub(crate) proposals_pending: IntGauge,
    pub(crate) proposals_failed: IntCounter,
    proposals_committed: IntGauge,
    proposals_applied: IntGauge,
    has_leader: IntGauge,
    is_leader: IntGauge,
    is_learner: IntGauge,
    leader_changes: IntCounter,
    quota: IntGauge,
    db_total: Gauge,
    db_in_use: Gauge,
    keys: IntGauge,
    current_revision: IntGauge,
    compact_revision: IntGauge,
    watchers: IntGauge,
    watch_streams: IntGauge,
    puts: IntCounter,
    deletes: IntCounter,
    cluster_version: IntGaugeVec,
    wal_fsync: Histogram,
    wal_write: Histogram,
    wal_bytes: IntGauge,
    backend_commit: Histogram,
    /// The part of a commit that etcd calls writing; here it is all of it.
    backend_write: Histogram,
    pub(crate) defrag: Histogram,
    pub(crate) defrag_inflight: IntGauge,
    pub(crate) backend_snapshot: Histogram,
    pub(crate) hash: Histogram,
    pub(crate) hash_rev: Histogram,
    pub(crate) ranges: IntCounter,
    txns: IntCounter,
    put_bytes: IntGauge,
    leases_granted: IntCounter,
    leases_revoked: IntCounter,
    pub(crate) leases_renewed: IntCounter,
    pub(crate) leases_expired: IntCounter,
    lease_ttl: Histogram,
    apply: HistogramVec,
    slow_applies: IntCounter,
    range: HistogramVec,
    request: HistogramVec,
    pub(crate) read_indexes_failed: IntCounter,
    pub(crate) slow_read_indexes: IntCounter,
    pub(crate) read_index_rounds: IntCounter,
    pub(crate) learners_promoted: IntCounter,
    pub(crate) learners_not_promoted: IntCounterVec,
    alarms: IntGaugeVec,
    server_id: IntGaugeVec,
    known_peers: IntGaugeVec,
    active_peers: IntGaugeVec,
    peer_sent: IntCounterVec,
    peer_received: IntCounterVec,
    peer_send_failures: IntCounterVec,
    peer_round_trip: HistogramVec,
    process: ProcessMetrics,
    compaction: CompactionMetrics,
    events_sent: IntCounter,
    events_pending: IntGauge,
    watchers_behind: IntGauge,
    readers: IntGauge,
    snapshot_written: SavedMetrics,
    snapshot_received: SavedMetrics,
    features: IntGaugeVec,
    last_leader: parking_lot::Mutex<Option<u64>>,
}

/// Snapshots that go one way between members.
#[derive(Debug)]
struct SnapshotMetrics {
    under_way: IntGaugeVec,
    succeeded: IntCounterVec,
    failed: IntCounterVec,
    seconds: HistogramVec,
}

impl SnapshotMetrics {
    fn new(m: &Maker, way: &str, label: &str) -> Self {
        let name = |end: &str| format!("etcd_network_snapshot_{way}_{end}");
        SnapshotMetrics {
            under_way: m.gauges(&name("inflights_total"), "Snapshots on their way between members.", &[label]),
            succeeded: m.counters(&name("success"), "Snapshots that came whole.", &[label]),
            failed: m.counters(&name("failures"), "Snapshots that did not come whole.", &[label]),
            seconds: m.histograms(
                &name("total_duration_seconds"),
                "Latency of snapshots that came whole.",
                (0.1, 2.0, 10),
                &[label],
            ),
        }
    }
}

/// The deletion of compacted records.
#[derive(Debug)]
struct CompactionMetrics {
    keys: IntCounter,
    last: Gauge,
    pauses: Histogram,
    /// A step takes records and index entries together, so it is a step of either.
    index_pauses: Histogram,
    total: Histogram,
    /// When the compaction under way began, and its step.
    begun: parking_lot::Mutex<(Option<Instant>, Option<Instant>)>,
}

impl CompactionMetrics {
    fn new(m: &Maker) -> Self {
        let name = |end: &str| format!("etcd_debugging_mvcc_db_compaction_{end}");
        CompactionMetrics {
            keys: m.counter(&name("keys_total"), "Records that compaction deleted."),
            last: m.add(Gauge::new(name("last"), "The unix time of the last compaction's end; 0 after a start.")),
            pauses: m.histogram(
                &name("pause_duration_milliseconds"),
                "How long one step of a compaction takes.",
                (1.0, 2.0, 13),
            ),
            index_pauses: m.histogram(
                "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
                "How long one step of a compaction of the index takes.",
                (0.5, 2.0, 14),
            ),
            total: m.histogram(&name("total_duration_milliseconds"), "How long a compaction takes.", (100.0, 2.0, 14)),
            begun: parking_lot::Mutex::default(),
        }
    }
}

impl ferretcd_state::CompactionObserver for Metrics {
    fn step_begins(&self) {
        let mut begun = self.compaction.begun.lock();
        let now = Instant::now();
        *begun = (begun.0.or(Some(now)), Some(now));
    }
    fn step_ends(&self, deleted: usize) {
        self.compaction.keys.inc_by(deleted as u64);
        if let (Some(begun), true) = (self.compaction.begun.lock().1, deleted > 0) {
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            self.compaction.pauses.observe(took);
            self.compaction.index_pauses.observe(took);
        }
    }
    fn finished(&self) {
        if let (Some(begun), _) = std::mem::take(&mut *self.compaction.begun.lock()) {
            self.compaction.total.observe(begun.elapsed().as_secs_f64() * 1000.0);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.compaction.last.set(now.as_secs() as f64);
    }
}

/// Snapshot files.
#[derive(Debug)]
struct SavedMetrics {
    total: Histogram,
    fsync: Histogram,
}

impl SavedMetrics {
    fn observe(&self, took: Duration, synced: Duration) {
        self.total.observe(took.as_secs_f64());
        self.fsync.observe(synced.as_secs_f64());
    }
}

/// See [`Process`].
#[derive(Debug)]
struct ProcessMetrics {
    cpu: Counter,
    open_fds: IntGauge,
    max_fds: IntGauge,
    resident: IntGauge,
    virtual_size: IntGauge,
    virtual_max: Gauge,
    start: Gauge,
    received: IntCounter,
    sent: IntCounter,
    fds_used: IntGauge,
    fd_limit: IntGauge,
}

impl ProcessMetrics {
    fn new(m: &Maker) -> Self {
        ProcessMetrics {
            cpu: m.add(Counter::new("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")),
            open_fds: m.gauge("process_open_fds", "Number of open file descriptors."),
            max_fds: m.gauge("process_max_fds", "Maximum number of open file descriptors."),
            resident: m.gauge("process_resident_memory_bytes", "Resident memory size in bytes."),
            virtual_size: m.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes."),
            virtual_max: m.add(Gauge::new(
                "process_virtual_memory_max_bytes",
                "Maximum amount of virtual memory available in bytes.",
            )),
            start: m.add(Gauge::new(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )),
            received: m.counter("process_network_receive_bytes_total", "Bytes received by the process's network."),
            sent: m.counter("process_network_transmit_bytes_total", "Bytes sent by the process's network."),
            fds_used: m.gauge("os_fd_used", "The number of used file descriptors."),
            fd_limit: m.gauge("os_fd_limit", "The file descriptor limit."),
        }
    }

    fn refresh(&self) {
        let now = Process::now();
        // Counters only grow; what the system says never shrinks.
        now.cpu_seconds.into_iter().for_each(|total| self.cpu.inc_by((total - self.cpu.get()).max(0.0)));
        let grow = |counter: &IntCounter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        now.network_received_bytes.into_iter().for_each(|total| grow(&self.received, total));
        now.network_sent_bytes.into_iter().for_each(|total| grow(&self.sent, total));
        let gauges = [
            (&self.open_fds, now.open_fds),
            (&self.fds_used, now.open_fds),
            (&self.max_fds, now.max_fds),
            (&self.fd_limit, now.max_fds),
            (&self.resident, now.resident_bytes),
            (&self.virtual_size, now.virtual_bytes),
        ];
        for (gauge, value) in gauges {
            value.into_iter().for_each(|value| gauge.set(value));
        }
        now.virtual_max_bytes.into_iter().for_each(|value| self.virtual_max.set(value));
        now.start_seconds.into_iter().for_each(|value| self.start.set(value));
    }
}

/// etcd's feature gates with their stages, and whether this server behaves as with the gate on where nothing was set.
const FEATURES: &[(&str, &str, bool)] = &[
    ("AllAlpha", "ALPHA", false),
    ("AllBeta", "BETA", false),
    ("CompactHashCheck", "ALPHA", false),
    ("FastLeaseKeepAlive", "BETA", true),
    ("InitialCorruptCheck", "ALPHA", false),
    ("LeaseCheckpoint", "ALPHA", false),
    ("LeaseCheckpointPersist", "ALPHA", false),
    ("PriorityRequest", "ALPHA", false),
    ("SetMemberLocalAddr", "ALPHA", false),
    ("StopGRPCServiceOnDefrag", "ALPHA", false),
    ("TxnModeWriteWithSharedBuffer", "BETA", true),
];

/// A sync that takes longer is mentioned in the log (etcd's number): an election time-out is as long, by default.
const SLOW_FSYNC: Duration = Duration::from_secs(1);

struct Maker(Registry);

impl Maker {
    // The names and buckets are constants below: registering them can only fail when one is given twice, which the
    // test of this file would find.
    #[allow(clippy::expect_used)]
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("a metric's constant definition is valid");
        self.0.register(Box::new(made.clone())).expect("a metric's name is given once");
        made
    }
    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }
    fn seconds(&self, name: &str, help: &str) -> Histogram {
        self.histogram(name, help, (0.001, 2.0, 14))
    }
    /// With buckets of etcd's: start, factor, count.
    fn histogram(&self, name: &str, help: &str, (start, factor, count): (f64, f64, usize)) -> Histogram {
        let buckets = exponential_buckets(start, factor, count).unwrap_or_default();
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }
    fn histograms(
        &self,
        name: &str,
        help: &str,
        (start, factor, count): (f64, f64, usize),
        labels: &[&str],
    ) -> HistogramVec {
        let buckets = exponential_buckets(start, factor, count).unwrap_or_default();
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Registry::new())
    }
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: Registry) -> Self {
        let m = Maker(registry.clone());
        let features =
            m.gauges("etcd_server_feature_enabled", "Whether a feature is enabled: 1 is yes.", &["name", "stage"]);
        for (name, stage, enabled) in FEATURES {
            features.with_label_values(&[name, stage]).set(i64::from(*enabled));
        }
        m.gauge("etcd_server_snapshot_apply_in_progress_total", "Whether a snapshot is being applied: 1 is yes.");
        // Steps of etcd's store that ours does not have: they are there for those who ask for them, and take no time.
        for step in ["backend_commit_rebalance", "backend_commit_spill"] {
            m.seconds(&format!("etcd_debugging_disk_{step}_duration_seconds"), "Not a step of a commit here.");
        }
        m.seconds(
            "etcd_debugging_snap_save_marshalling_duration_seconds",
            "Not a step of writing a snapshot file here.",
        );
        // From a tenth of a millisecond, as etcd has them.
        let fine = (0.0001, 2.0, 20);
        Metrics {
            late_heartbeats: m
                .counter("etcd_server_heartbeat_send_failures_total", "Heartbeats that the leader sent too late."),
            auth_revision: m.gauge("etcd_debugging_auth_revision", "Revision of users and roles."),
            peers_disconnected: m.counters(
                "etcd_network_disconnected_peers_total",
                "Times that a member was lost.",
                &["Local", "Remote"],
            ),
            snapshots_sent: SnapshotMetrics::new(&m, "send", "To"),
            snapshots_received: SnapshotMetrics::new(&m, "receive", "From"),
            proposals_pending: m.gauge("etcd_server_proposals_pending", "Proposals waiting to be committed."),
            proposals_failed: m.counter("etcd_server_proposals_failed_total", "Proposals that failed."),
            proposals_committed: m.gauge("etcd_server_proposals_committed_total", "Last committed raft index."),
            proposals_applied: m.gauge("etcd_server_proposals_applied_total", "Last applied raft index."),
            has_leader: m.gauge("etcd_server_has_leader", "Whether a leader exists: 1 is yes."),
            is_leader: m.gauge("etcd_server_is_leader", "Whether this member leads: 1 is yes."),
            is_learner: m.gauge("etcd_server_is_learner", "Whether this member is a learner: 1 is yes."),
            leader_changes: m.counter("etcd_server_leader_changes_seen_total", "Leader changes seen."),
            quota: m.gauge("etcd_server_quota_backend_bytes", "Storage quota in bytes."),
            db_total: m.add(Gauge::new("etcd_mvcc_db_total_size_in_bytes", "Bytes allocated on disk by the store.")),
            db_in_use: m
                .add(Gauge::new("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the store logically in use.")),
            keys: m.gauge("etcd_debugging_mvcc_keys_total", "Number of keys."),
            current_revision: m.gauge("etcd_debugging_mvcc_current_revision", "Current revision of the store."),
            compact_revision: m.gauge("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction."),
            watchers: m.gauge("etcd_debugging_mvcc_watcher_total", "Number of watchers."),
            watch_streams: m.gauge("etcd_debugging_mvcc_watch_stream_total", "Number of watch streams."),
            puts: m.counter("etcd_mvcc_put_total", "Puts seen by this member."),
            deletes: m.counter("etcd_mvcc_delete_total", "Deletes seen by this member."),
            cluster_version: m.add(IntGaugeVec::new(
                Opts::new("etcd_cluster_version", "Which version the cluster runs at: 1 for the label's."),
                &["cluster_version"],
            )),
            wal_fsync: m.seconds("etcd_disk_wal_fsync_duration_seconds", "Latency of fsync called by the log."),
            wal_write: m.seconds("etcd_disk_wal_write_duration_seconds", "Latency of writes of the log."),
            wal_bytes: m.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the log."),
            backend_write: m.seconds(
                "etcd_debugging_disk_backend_commit_write_duration_seconds",
                "Latency of writing within commits to the store.",
            ),
            backend_commit: m.seconds("etcd_disk_backend_commit_duration_seconds", "Latency of commits to the store."),
            defrag: m.histogram(
                "etcd_disk_backend_defrag_duration_seconds",
                "Latency of rewriting the store.",
                (0.1, 2.0, 13),
            ),
            defrag_inflight: m.gauge("etcd_disk_defrag_inflight", "Whether the store is being rewritten: 1 is yes."),
            backend_snapshot: m.histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                "Latency of snapshots for clients.",
                (0.01, 2.0, 17),
            ),
            hash: m.histogram("etcd_mvcc_hash_duration_seconds", "Latency of Hash.", (0.01, 2.0, 15)),
            hash_rev: m.histogram("etcd_mvcc_hash_rev_duration_seconds", "Latency of HashKV.", (0.01, 2.0, 15)),
            ranges: m.counter("etcd_mvcc_range_total", "Ranges seen by this member."),
            txns: m.counter("etcd_mvcc_txn_total", "Transactions seen by this member."),
            put_bytes: m
                .gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values that were put."),
            leases_granted: m.counter("etcd_debugging_lease_granted_total", "Leases granted."),
            leases_revoked: m.counter("etcd_debugging_lease_revoked_total", "Leases revoked."),
            leases_renewed: m.counter("etcd_debugging_lease_renewed_total", "Leases renewed by this leader."),
            leases_expired: m.counter("etcd_debugging_server_lease_expired_total", "Leases expired under this leader."),
            lease_ttl: m.histogram("etcd_debugging_lease_ttl_total", "Seconds of granted leases.", (1.0, 2.0, 24)),
            apply: m.histograms(
                "etcd_server_apply_duration_seconds",
                "Latency of applying an operation.",
                fine,
                &["version", "op", "success"],
            ),
            slow_applies: m.counter("etcd_server_slow_apply_total", "Entries that took long to apply."),
            range: m.histograms("etcd_server_range_duration_seconds", "Latency of ranges.", fine, &["success"]),
            request: m.histograms(
                "etcd_server_request_duration_seconds",
                "Latency of requests by type.",
                (0.001, 2.0, 14),
                &["type", "success"],
            ),
            read_indexes_failed: m.counter("etcd_server_read_indexes_failed_total", "Read indexes that failed."),
            slow_read_indexes: m.counter("etcd_server_slow_read_indexes_total", "Read indexes that timed out."),
            // Of our own: etcd does not say how many reads a round is for.
            read_index_rounds: m.counter(
                "ferretcd_read_index_rounds_total",
                "Times the leader was asked for a read index, each for all linearizable reads that waited.",
            ),
            learners_promoted: m.counter("etcd_server_learner_promote_successes", "Learners promoted by this leader."),
            learners_not_promoted: m.counters(
                "etcd_server_learner_promote_failures",
                "Learners that this leader did not promote.",
                &["Reason"],
            ),
            alarms: m.gauges("etcd_debugging_server_alarms", "Raised alarms.", &["server_id", "alarm_type"]),
            server_id: m.gauges("etcd_server_id", "This member's ID: 1 for the label's.", &["server_id"]),
            known_peers: m.gauges("etcd_network_known_peers", "Members of the cluster.", &["Local", "Remote"]),
            active_peers: m.gauges("etcd_network_active_peers", "Members heard lately.", &["Local", "Remote"]),
            peer_sent: m.counters("etcd_network_peer_sent_bytes_total", "Bytes sent to members.", &["To"]),
            peer_received: m.counters("etcd_network_peer_received_bytes_total", "Bytes from members.", &["From"]),
            peer_send_failures: m.counters(
                "etcd_network_peer_sent_failures_total",
                "Messages that did not reach a member.",
                &["To"],
            ),
            peer_round_trip: m.histograms(
                "etcd_network_peer_round_trip_time_seconds",
                "Time until a heartbeat is answered.",
                (0.0001, 2.0, 16),
                &["To"],
            ),
            process: ProcessMetrics::new(&m),
            compaction: CompactionMetrics::new(&m),
            events_sent: m.counter("etcd_debugging_mvcc_events_total", "Events that went to watchers."),
            events_pending: m.gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait for their clients."),
            watchers_behind: m.gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that history is read for."),
            readers: m.gauge("etcd_mvcc_db_open_read_transactions", "Snapshots and hashes under way."),
            snapshot_written: SavedMetrics {
                total: m.seconds("etcd_debugging_snap_save_total_duration_seconds", "Latency of own snapshot files."),
                fsync: m.seconds("etcd_snap_fsync_duration_seconds", "Latency of syncs of own snapshot files."),
            },
            snapshot_received: SavedMetrics {
                total: m.histogram(
                    "etcd_snap_db_save_total_duration_seconds",
                    "Latency of writing received snapshot files.",
                    (0.1, 2.0, 10),
                ),
                fsync: m.seconds("etcd_snap_db_fsync_duration_seconds", "Latency of syncs of received snapshot files."),
            },
            features,
            last_leader: parking_lot::Mutex::new(None),
            registry,
        }
    }

    /// The registry that these live in.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn applied(&self, command: &Command, success: bool, took: Duration, slow: bool) {
        let labels = ["v3", operation(command), flag(success)];
        self.apply.with_label_values(&labels).observe(took.as_secs_f64());
        if slow {
            self.slow_applies.inc();
        }
    }

    pub(crate) fn proposed(&self, operation: &str, success: bool, took: Duration) {
        self.request.with_label_values(&[operation, flag(success)]).observe(took.as_secs_f64());
    }

    pub(crate) fn ranged(&self, success: bool, took: Duration) {
        self.ranges.inc();
        self.range.with_label_values(&[flag(success)]).observe(took.as_secs_f64());
    }

    pub(crate) fn lease_granted(&self, ttl: i64) {
        self.leases_granted.inc();
        self.lease_ttl.observe(ttl as f64);
    }

    pub(crate) fn lease_revoked(&self) {
        self.leases_revoked.inc();
    }

    pub(crate) fn events(&self, events: &[Event]) {
        if events.len() > 1 {
            self.txns.inc();
        }
        for event in events {
            match event.kind {
                EventKind::Put => {
                    self.puts.inc();
                    self.put_bytes.add((event.kv.key.len() + event.kv.value.len()) as i64);
                }
                EventKind::Delete => self.deletes.inc(),
            }
        }
    }

    fn snapshots(&self, way: Way) -> &SnapshotMetrics {
        match way {
            Way::To => &self.snapshots_sent,
            Way::From => &self.snapshots_received,
        }
    }

    /// Reads the gauges that are looked up and not counted. Called before every scrape.
    pub(crate) fn refresh(&self, inner: &Inner) {
        let view = inner.group.look();
        self.proposals_committed.set(view.committed as i64);
        self.proposals_applied.set(view.applied as i64);
        self.has_leader.set(i64::from(view.leader.is_some()));
        // Not by raft's role: one that a quorum no longer answers has it still.
        self.is_leader.set(i64::from(view.leader == Some(inner.identity.member)));
        self.is_learner.set(i64::from(view.role == Role::Learner));
        self.quota.set(inner.limits.quota_bytes.unwrap_or(0) as i64);
        self.db_total.set(inner.disk_bytes() as f64);
        self.db_in_use.set(inner.state.logical_bytes() as f64);
        self.keys.set(inner.state.key_count() as i64);
        self.current_revision.set(inner.state.revision());
        self.auth_revision.set(i64::try_from(inner.state.permits().revision()).unwrap_or(i64::MAX));
        self.compact_revision.set(inner.state.compacted_revision());
        let (synced, behind, waiting) = inner.hub.figures();
        self.watchers.set((synced + behind) as i64);
        self.watchers_behind.set(behind as i64);
        self.events_pending.set(waiting as i64);
        self.events_sent.inc_by(inner.hub.sent().saturating_sub(self.events_sent.get()));
        self.readers.set(inner.state.pins() as i64);
        self.watch_streams.set(inner.hub.streams() as i64);
        self.process.refresh();
        let me = inner.identity.member;
        self.server_id.with_label_values(&[&me.to_string()]).set(1);
        self.alarms.reset();
        for alarm in inner.state.alarms() {
            let kind = match alarm.kind {
                AlarmKind::NoSpace => "NOSPACE",
                AlarmKind::Corrupt => "CORRUPT",
            };
            self.alarms.with_label_values(&[&alarm.member.to_string(), kind]).set(1);
        }
        self.known_peers.reset();
        self.active_peers.reset();
        for (id, ..) in view.members.iter() {
            let pair = [me.to_string(), id.to_string()];
            self.known_peers.with_label_values(&[&pair[0], &pair[1]]).set(1);
            // A leader hears all others, a follower its leader, and of the rest nothing can be said.
            let heard = view.progress.get(id).and_then(|p| p.last_heard).is_some_and(|at| at.elapsed() < PEER_ACTIVE);
            if *id != me && (view.leader == Some(me) || view.leader == Some(*id)) {
                let active = heard || view.leader == Some(*id);
                self.active_peers.with_label_values(&[&pair[0], &pair[1]]).set(active.into());
            }
        }
        // One version at a time.
        self.cluster_version.reset();
        if let Some(version) = inner.state.cluster_version() {
            let minor = version.rsplit_once('.').map_or(version.as_str(), |(minor, _)| minor).to_owned();
            self.cluster_version.with_label_values(&[minor.as_str()]).set(1);
        }
    }

    /// Says of a feature gate with an effect here whether it is on.
    pub fn feature(&self, name: &str, enabled: bool) {
        for (known, stage, _) in FEATURES.iter().filter(|(known, ..)| *known == name) {
            self.features.with_label_values(&[known, stage]).set(i64::from(enabled));
        }
    }

    pub(crate) fn snapshot_written(&self, took: Duration, synced: Duration) {
        self.snapshot_written.observe(took, synced);
    }

    pub(crate) fn saw_leader(&self, leader: Option<u64>) {
        let mut last = self.last_leader.lock();
        if leader.is_some() && *last != leader {
            self.leader_changes.inc();
        }
        *last = leader;
    }
}

/// Counts in a gauge as something that goes on, until it is dropped.
pub(crate) struct Inflight<'a>(&'a IntGauge);

impl<'a> Inflight<'a> {
    pub(crate) fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Inflight(gauge)
    }
}

impl Drop for Inflight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A member that was heard within this time counts as active: a few heartbeats.
const PEER_ACTIVE: Duration = Duration::from_secs(5);

fn flag(success: bool) -> &'static str {
    if success { "true" } else { "false" }
}

/// etcd's name of an operation, where it has one.
pub(crate) fn operation(command: &Command) -> &'static str {
    match command {
        Command::Put(_) => "Put",
        Command::DeleteRange(_) => "DeleteRange",
        Command::Txn(_) => "Txn",
        Command::Compact(_) => "Compaction",
        Command::LeaseGrant(_) => "LeaseGrant",
        Command::LeaseRevoke(_) => "LeaseRevoke",
        Command::LeaseCheckpoint(_) => "LeaseCheckpoint",
        Command::SetAlarm(_) => "Alarm",
        Command::MemberAttributes(_) => "ClusterMemberAttrSet",
        Command::Genesis(_) | Command::SetClusterVersion(_) => "ClusterVersionSet",
        Command::SetDowngrade(_) => "DowngradeInfoSet",
        Command::Authenticate(_) => "Authenticate",
        Command::Auth(change) => match change {
            AuthChange::Enable => "AuthEnable",
            AuthChange::Disable => "AuthDisable",
            AuthChange::UserAdd { .. } => "AuthUserAdd",
            AuthChange::UserDelete { .. } => "AuthUserDelete",
            AuthChange::UserChangePassword { .. } => "AuthUserChangePassword",
            AuthChange::UserGrantRole { .. } => "AuthUserGrantRole",
            AuthChange::UserRevokeRole { .. } => "AuthUserRevokeRole",
            AuthChange::RoleAdd { .. } => "AuthRoleAdd",
            AuthChange::RoleDelete { .. } => "AuthRoleDelete",
            AuthChange::RoleGrantPermission { .. } => "AuthRoleGrantPermission",
            AuthChange::RoleRevokePermission { .. } => "AuthRoleRevokePermission",
        },
        Command::RestoreBegin(_) | Command::RestoreChunk(_) | Command::RestoreCommit(_) | Command::RestoreAbort(_) => {
            "Restore"
        }
    }
}

impl ferretcd_raft::PeerObserver for Metrics {
    fn sent(&self, to: MemberId, bytes: u64) {
        self.peer_sent.with_label_values(&[&to.to_string()]).inc_by(bytes);
    }
    fn received(&self, from: MemberId, bytes: u64) {
        self.peer_received.with_label_values(&[&from.to_string()]).inc_by(bytes);
    }
    fn send_failed(&self, to: MemberId) {
        self.peer_send_failures.with_label_values(&[&to.to_string()]).inc();
    }
    fn disconnected(&self, from: MemberId, to: MemberId) {
        self.peers_disconnected.with_label_values(&[&from.to_string(), &to.to_string()]).inc();
    }
    fn heartbeat_late(&self) {
        self.late_heartbeats.inc();
    }
    fn snapshot_begins(&self, way: Way, member: MemberId) {
        self.snapshots(way).under_way.with_label_values(&[&member.to_string()]).inc();
    }
    fn snapshot_ends(&self, way: Way, member: MemberId, well: bool, took: Duration) {
        let (metrics, member) = (self.snapshots(way), member.to_string());
        metrics.under_way.with_label_values(&[&member]).dec();
        match well {
            true => {
                metrics.succeeded.with_label_values(&[&member]).inc();
                metrics.seconds.with_label_values(&[&member]).observe(took.as_secs_f64());
            }
            false => metrics.failed.with_label_values(&[&member]).inc(),
        }
    }
    fn snapshot_received(&self, took: Duration, synced: Duration) {
        self.snapshot_received.observe(took, synced);
    }
    fn round_trip(&self, to: MemberId, took: Duration) {
        self.peer_round_trip.with_label_values(&[&to.to_string()]).observe(took.as_secs_f64());
    }
}

impl crate::Node {
    /// Brings the gauges that are looked up, not counted, up to date.
    pub fn refresh_metrics(&self) {
        self.inner.metrics.refresh(&self.inner);
    }
}

impl ferretcd_wal::Observer for Metrics {
    fn fsync_duration(&self, duration: Duration) {
        self.wal_fsync.observe(duration.as_secs_f64());
        if duration > SLOW_FSYNC {
            tracing::warn!(took = ?duration, "expected-duration" = ?SLOW_FSYNC, "slow fdatasync");
        }
    }
    fn write_duration(&self, duration: Duration) {
        self.wal_write.observe(duration.as_secs_f64());
    }
    fn written(&self, bytes: u64) {
        self.wal_bytes.add(bytes as i64);
    }
}

impl ferretcd_storage::Observer for Metrics {
    fn commit_duration(&self, duration: Duration) {
        self.backend_commit.observe(duration.as_secs_f64());
        self.backend_write.observe(duration.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn snapshots_between_members_are_counted_by_member_and_way() {
        use ferretcd_raft::{PeerObserver, Way};
        use ferretcd_types::MemberId;
        let metrics = super::Metrics::default();
        for (well, way) in [(true, Way::To), (false, Way::To), (true, Way::From)] {
            metrics.snapshot_begins(way, MemberId(10));
            metrics.snapshot_ends(way, MemberId(10), well, std::time::Duration::from_secs(1));
        }
        metrics.snapshot_begins(Way::To, MemberId(10));
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
        for line in [
            "send_success{To=\"a\"} 1",
            "send_failures{To=\"a\"} 1",
            "send_inflights_total{To=\"a\"} 1",
            "send_total_duration_seconds_count{To=\"a\"} 1",
            "receive_success{From=\"a\"} 1",
            "receive_inflights_total{From=\"a\"} 0",
        ] {
            assert!(text.lines().any(|l| l == format!("etcd_network_snapshot_{line}")), "{line}\n{text}");
        }
    }

    #[test]
    fn every_metric_is_defined_once() {
        let metrics = super::Metrics::default();
        assert!(metrics.registry().gather().iter().any(|f| f.name() == "etcd_server_has_leader"));
    }
}
