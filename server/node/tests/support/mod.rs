//! A member of one in this process.

use ferretcd_node::{AuthConfig, Boot, BootConfig, ClusterState, CorruptionChecks, Member, NodeConfig};
use ferretcd_raft::Timing;
use ferretcd_raft::transport::dial::Dialer;
use ferretcd_state::Pace;
use ferretcd_types::Limits;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

pub async fn run(dir: &Path, lease_checkpoints: Option<Duration>) -> Member {
    let url = vec!["http://127.0.0.1:1".to_owned()];
    let node = NodeConfig {
        name: "a".to_owned(),
        client_urls: Vec::new(),
        limits: Limits { max_request_bytes: 1 << 20, max_txn_ops: 128, quota_bytes: None },
        timing: Timing::default(),
        snapshot_count: 10_000,
        auto_compaction: None,
        watch_progress_every: Duration::from_secs(600),
        max_learners: 8,
        strict_reconfig_check: true,
        spool_dir: dir.join("spool"),
        warning_apply: Duration::from_secs(1),
        auth: AuthConfig::default(),
        compaction_pace: Pace::default(),
        defragment_above: None,
        lease_checkpoints,
        corruption: CorruptionChecks::default(),
    };
    let boot = Boot::new(BootConfig {
        engine: ferretcd_storage::EngineKind::default(),
        force: None,
        unsafe_no_fsync: false,
        data_dir: dir.to_owned(),
        wal_dir: None,
        write_behind: ferretcd_storage::Options::default(),
        initial_cluster: BTreeMap::from([("a".to_owned(), url.clone())]),
        state: ClusterState::New,
        token: "t".to_owned(),
        advertise_peer_urls: url,
        intent: None,
        dialer: Dialer::default(),
        node,
    });
    let member = boot.run().await.unwrap();
    eventually("it leads", async || member.node.member_list(true).await.is_ok()).await;
    member
}

pub async fn eventually(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !probe().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
