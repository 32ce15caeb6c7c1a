//! Timing of the group, from etcd's two numbers.

use openraft::{Config, SnapshotPolicy};
use std::sync::Arc;
use std::time::Duration;

/// etcd's `--heartbeat-interval` and `--election-timeout`, and what follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader speaks when it has nothing to say.
    pub heartbeat: Duration,
    /// How long a follower waits for its leader before it asks for votes.
    pub election: Duration,
    /// Log entries that stay after a snapshot, for followers that are a little behind
    /// (`--snapshot-catchup-entries`).
    pub catch_up_entries: u64,
    /// Ask whether an election could be won before it is called (`--pre-vote`).
    pub pre_vote: bool,
    /// Whether a member that has just started may call an election at once, instead of after the election time-out
    /// (`--initial-election-tick-advance`).
    pub may_elect_at_once: bool,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1000),
            catch_up_entries: 5000,
            pre_vote: true,
            may_elect_at_once: true,
        }
    }
}

impl Timing {
    /// How long a request may take in all: etcd's 5 s plus two elections.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + self.election * 2
    }

    /// openraft's settings.
    ///
    /// Its interval of heartbeats is the time in which one must be answered as well: with etcd's 100 ms nobody who is further
    /// away would ever be heard, and a leader with half the world between it and the others would be unseated each second. So it is as
    /// long as openraft lets it be, below the shortest election, and heartbeats are sent by [`crate::Group`] at their own pace.
    /// Members may be 0.24 of an election time-out away then, there and back; etcd's advice is a tenth.
    ///
    /// A follower of openraft waits its lease (the maximum) plus a random time between minimum
    /// and maximum; 0.3 and 0.6 of etcd's election timeout give 0.9 to 1.2 of it, which is etcd's own class of
    /// fail-over (measured: with 1.0 and 2.0 it was three to four times as slow).
    pub(crate) fn openraft(&self) -> Result<Arc<Config>, String> {
        let election = self.election.as_millis() as u64;
        let (min, max) = (election * 3 / 10, election * 6 / 10);
        let config = Config {
            cluster_name: "ferretcd".to_owned(),
            heartbeat_interval: (election * 24 / 100).clamp(1, min.max(2) - 1),
            enable_heartbeat: false,
            election_timeout_min: min.max(2),
            election_timeout_max: max.max(3),
            // A snapshot travels as one stream; this bounds each send, not the whole.
            install_snapshot_timeout: 60_000,
            // Entries per request. Bytes are capped where the log is read (log.rs).
            max_payload_entries: 512,
            // One attempt per heartbeat at a member that is away, as etcd probes it. openraft's own wait grows to a second,
            // which a member that is back would have to sit out before it is sent anything.
            backoff: format!("{0}ms {0}ms {0}ms", self.heartbeat.as_millis().max(1)),
            replication_lag_threshold: self.catch_up_entries.max(1),
            // The node decides when: by entries and by bytes (node/src/workers.rs).
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.catch_up_entries,
            // Fewer are not worth a purge; with a short tail to keep, the batch must not outgrow it.
            purge_batch_size: self.catch_up_entries.clamp(1, 1024),
            enable_pre_vote: Some(self.pre_vote),
            // Heartbeats of a leader that lost its quorum would keep a partially cut group from electing another.
            quorum_loss_probe_interval: Some(2 * max.max(3)),
            // Leadership is won by an election after every start: the engine may lag behind the log on disk, and a
            // restored leader would answer reads from it.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        config.validate().map(Arc::new).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_defaults_are_valid_and_keep_its_fail_over_time() {
        let config = Timing::default().openraft().unwrap();
        assert_eq!((config.election_timeout_min, config.election_timeout_max), (300, 600));
        for millis in (5..200).chain([50_000]) {
            let (heartbeat, election) = (Duration::from_millis(millis / 5), Duration::from_millis(millis));
            Timing { heartbeat, election, ..Timing::default() }.openraft().unwrap();
        }
        assert_eq!(Timing::default().request_timeout(), Duration::from_secs(7));
    }

    #[test]
    fn what_openraft_must_not_do_by_itself_is_off_and_what_it_must_is_on() {
        let config = Timing::default().openraft().unwrap();
        assert_eq!(config.enable_leader_restore, Some(false), "a restored leader would answer from a state that lags");
        assert!(matches!(config.snapshot_policy, SnapshotPolicy::Never), "the node decides by bytes, too");
        assert_eq!(config.enable_pre_vote, Some(true));
        let probe = config.quorum_loss_probe_interval;
        assert!(probe >= Some(2 * config.election_timeout_max), "half a cut keeps a leader that can do nothing");
        assert_eq!(config.heartbeat_interval, 240, "a heartbeat has so long to be answered");
        assert!(!config.enable_heartbeat, "the group sends them, more often than that");
        assert_eq!((config.max_in_snapshot_log_to_keep, config.purge_batch_size), (5000, 1024));
    }
}
