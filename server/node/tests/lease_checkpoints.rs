//! Leases of a member in this process: what its log has noted of one, and when one is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use ferretcd_node::{Member, Node};
use ferretcd_proto::peer as pb;
use ferretcd_raft::transport::server::{Answer, Door, PeerRequests};
use ferretcd_types::{Error, LeaseId, LeaseRevoke, MemberId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use support::{eventually, run};

const LEASE: LeaseId = LeaseId(7);

/// Checkpoints that were applied.
fn noted(node: &Node) -> u64 {
    let families = node.metrics().registry().gather();
    let applied = families.iter().filter(|family| family.name() == "etcd_server_apply_duration_seconds");
    let of_kind = applied
        .flat_map(|family| family.get_metric())
        .filter(|metric| metric.get_label().iter().any(|label| label.value() == "LeaseCheckpoint"));
    of_kind.map(|metric| metric.get_histogram().get_sample_count()).sum()
}

async fn ttl(member: &Member) -> i64 {
    let told = member.node.lease_time_to_live(LEASE, false).await.unwrap();
    assert_eq!(told.granted, 100);
    told.ttl
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_starts_a_lease_with_what_was_noted_and_renewing_it_gives_it_its_full_time() {
    let dir = tempfile::tempdir().unwrap();
    let member = run(dir.path(), Some(Duration::from_secs(1))).await;
    member.node.lease_grant(LEASE, 100).await.unwrap();
    eventually("five seconds are noted", async || noted(&member.node) >= 5).await;
    member.stop().await;

    // At most 95 s were noted at the last; an election comes on top.
    let member = run(dir.path(), None).await;
    let left = ttl(&member).await;
    assert!(left <= 96, "{left}");
    assert_eq!(member.node.lease_keep_alive(LEASE).await.unwrap(), 100);
    member.stop().await;

    let member = run(dir.path(), None).await;
    let left = ttl(&member).await;
    assert!(left > 96, "{left}: the note outlived the renewal");
    member.stop().await;
}

/// etcd's `lessor.Renew` waits for the revocation, too: whoever hears that a lease is gone may take its place at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_is_called_gone_only_when_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let member = run(dir.path(), None).await;
    // The leader looks for ended leases every half second: some of these have ended and it did not look yet.
    let node = &member.node;
    let leases = (1..=8).map(|id| async move {
        tokio::time::sleep(Duration::from_millis(60 * id as u64)).await;
        let granted = node.lease_grant(LeaseId(id), 1).await.unwrap();
        // Its time is counted from before it was answered, so now it is over.
        tokio::time::sleep(Duration::from_secs(granted.ttl as u64)).await;
        let left = node.lease_keep_alive(LeaseId(id)).await.unwrap();
        (left, node.propose(LeaseRevoke { id: LeaseId(id) }).await)
    });
    for (left, revoked) in futures::future::join_all(leases).await {
        assert_eq!(left, 0);
        assert!(matches!(revoked, Err(Error::LeaseNotFound)), "{revoked:?}");
    }
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_gate_nothing_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let member = run(dir.path(), None).await;
    member.node.lease_grant(LEASE, 100).await.unwrap();
    assert!(ttl(&member).await <= 100);
    assert_eq!(noted(&member.node), 0);
    member.stop().await;
}

/// A member of another release, as far as a leader hears of it: it says what it can decode, and nothing else.
#[derive(Default)]
struct Stranger {
    id: AtomicU64,
    log_format: AtomicU32,
    asked: AtomicUsize,
}

impl PeerRequests for Stranger {
    fn propose(&self, proposals: Vec<Bytes>) -> Answer<'_, Vec<Result<(), Error>>> {
        Box::pin(async move { vec![Err(Error::NotLeader); proposals.len()] })
    }
    fn read_index(&self) -> Answer<'_, Result<u64, Error>> {
        Box::pin(async { Err(Error::NotLeader) })
    }
    fn lease_keep_alive(&self, _: LeaseId) -> Answer<'_, Result<i64, Error>> {
        Box::pin(async { Err(Error::NotLeader) })
    }
    fn lease_time_to_live(&self, _: LeaseId) -> Answer<'_, Result<i64, Error>> {
        Box::pin(async { Err(Error::NotLeader) })
    }
    fn hash_kv(&self, _: i64) -> Answer<'_, Result<pb::HashKvResponse, Error>> {
        Box::pin(async { Err(Error::NotLeader) })
    }
    fn change_members(&self, _: pb::change_members_request::Change) -> Answer<'_, Result<(MemberId, u64), Error>> {
        Box::pin(async { Err(Error::NotLeader) })
    }
    fn probe(&self, _: pb::ProbeRequest) -> Answer<'_, Option<pb::ProbeResponse>> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let (id, format) = (self.id.load(Ordering::SeqCst), self.log_format.load(Ordering::SeqCst));
            Some(pb::ProbeResponse { member_id: id, log_format: format, ..Default::default() })
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_kind_of_entry_waits_until_every_member_can_decode_it() {
    let dir = tempfile::tempdir().unwrap();
    let member = run(dir.path(), Some(Duration::from_secs(1))).await;
    let stranger = Arc::new(Stranger::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = tonic::service::Routes::new(Door::new(stranger.clone()).service()).into_axum_router();
    let served = tokio::spawn(async move { axum::serve(listener, routes).await });
    let (added, _) = member.node.member_add(vec![url], true).await.unwrap();
    stranger.id.store(added.id.0, Ordering::SeqCst);
    // One of the first release, which does not know of such numbers.
    member.node.lease_grant(LEASE, 100).await.unwrap();
    eventually("it is asked twice", async || stranger.asked.load(Ordering::SeqCst) >= 2).await;
    assert_eq!(noted(&member.node), 0);
    stranger.log_format.store(ferretcd_types::codec::LOG_FORMAT, Ordering::SeqCst);
    eventually("what is left is noted", async || noted(&member.node) > 0).await;
    // The cluster has gone up for good: one that goes back to its first release is not asked again, it must not start.
    stranger.log_format.store(0, Ordering::SeqCst);
    let before = noted(&member.node);
    eventually("more is noted", async || noted(&member.node) > before).await;
    served.abort();
    member.stop().await;
}
