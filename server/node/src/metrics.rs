//! etcd's metrics that this floor knows, under etcd's names (etcd-mixin's dashboards read them). No global registry:
//! the binary owns it.

use crate::node::Inner;
use ferretcd_raft::Role;
use ferretcd_types::{Event, EventKind};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry, exponential_buckets,
};
use std::time::Duration;

/// A member's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
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
    last_leader: parking_lot::Mutex<Option<u64>>,
}

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
        let buckets = exponential_buckets(0.001, 2.0, 14).unwrap_or_default();
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
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
        Metrics {
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
            backend_commit: m.seconds("etcd_disk_backend_commit_duration_seconds", "Latency of commits to the store."),
            last_leader: parking_lot::Mutex::new(None),
            registry,
        }
    }

    /// The registry that these live in.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn events(&self, events: &[Event]) {
        for event in events {
            match event.kind {
                EventKind::Put => self.puts.inc(),
                EventKind::Delete => self.deletes.inc(),
            }
        }
    }

    /// Reads the gauges that are looked up and not counted. Called before every scrape.
    pub(crate) fn refresh(&self, inner: &Inner) {
        let view = inner.view();
        self.proposals_committed.set(view.committed as i64);
        self.proposals_applied.set(view.applied as i64);
        self.has_leader.set(i64::from(view.leader.is_some()));
        self.is_leader.set(i64::from(view.role == Role::Leader));
        self.is_learner.set(i64::from(view.role == Role::Learner));
        self.quota.set(inner.limits.quota_bytes.unwrap_or(0) as i64);
        self.db_total.set(inner.disk_bytes() as f64);
        self.db_in_use.set(inner.state.logical_bytes() as f64);
        self.keys.set(inner.state.key_count() as i64);
        self.current_revision.set(inner.state.revision());
        self.compact_revision.set(inner.state.compacted_revision());
        self.watchers.set(inner.hub.synced() as i64);
        self.watch_streams.set(inner.hub.streams() as i64);
        if let Some(version) = inner.state.cluster_version() {
            let minor = version.rsplit_once('.').map_or(version.as_str(), |(minor, _)| minor).to_owned();
            self.cluster_version.with_label_values(&[minor.as_str()]).set(1);
        }
    }

    pub(crate) fn saw_leader(&self, leader: Option<u64>) {
        let mut last = self.last_leader.lock();
        if leader.is_some() && *last != leader {
            self.leader_changes.inc();
        }
        *last = leader;
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
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_metric_is_defined_once() {
        let metrics = super::Metrics::default();
        assert!(metrics.registry().gather().iter().any(|f| f.name() == "etcd_server_has_leader"));
    }
}
