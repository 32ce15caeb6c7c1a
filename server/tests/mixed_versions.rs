//! Members of several releases in one cluster. This build is the older one where it meets a cluster that has gone further,
//! and the newer one where a member does not say what it knows.

use crate::support::{Cluster, Member, eventually};
use bytes::Bytes;
use ferretcd_proto::peer as pb;
use ferretcd_raft::transport::client::probe;
use ferretcd_raft::transport::dial::Dialer;
use ferretcd_raft::transport::server::{Answer, Door, PeerRequests};
use ferretcd_storage::{Batch, EngineKind, keyspace};
use ferretcd_types::codec::LOG_FORMAT;
use ferretcd_types::{Error, LeaseId, MemberId};
use std::sync::Arc;
use std::time::Duration;

/// The exit code of a member whose data or cluster is not for it.
const NOT_FOR_IT: Option<i32> = Some(78);

async fn told(member: &Member) -> Result<pb::ProbeResponse, String> {
    let request = pb::ProbeRequest::default();
    probe(&Dialer::default(), &member.peer_url(), request, Duration::from_secs(2)).await
}

async fn has_reached(member: &Member, format: u32) {
    eventually(&format!("{} is at log format {format}", member.name), async || {
        match told(member).await?.cluster_log_format {
            reached if reached == format => Ok(()),
            reached => Err(format!("it is at {reached}")),
        }
    })
    .await;
}

fn names_both_versions(log: &str) {
    let own = format!("log format {LOG_FORMAT}) is older than its cluster");
    let clusters = format!("(version 3.8.0, log format {})", LOG_FORMAT + 1);
    assert!(log.contains(&own) && log.contains(&clusters), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_format_rises_when_the_last_member_has_said_what_it_decodes() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    cluster.members[0].start();
    cluster.members[1].start();
    cluster.members[0].ready().await;
    // Several looks of the leader; it may be of any release, as far as anybody knows.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(told(&cluster.members[0]).await.unwrap().cluster_log_format, 1);
    cluster.members[2].start();
    for member in &cluster.members {
        has_reached(member, LOG_FORMAT).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_does_not_start_once_its_cluster_is_newer_than_it_and_its_store_stays() {
    let mut cluster = Cluster::new(&["a"]);
    let member = &mut cluster.members[0];
    member.start();
    member.ready().await;
    has_reached(member, LOG_FORMAT).await;
    member.put("k", "v").await.unwrap();
    assert_eq!(member.terminate().await, Some(0));
    // A later release brought the cluster up, and then this binary was put back.
    let engine = EngineKind::newest(&member.dir.join("member/engine")).unwrap();
    let reach = |version: &'static str, format: u32| {
        let kind = std::env::var("FERRETCD_TEST_ENGINE").map_or(EngineKind::default(), |name| name.parse().unwrap());
        let engine = kind.open(&engine, 16 << 20).unwrap();
        let mut batch = Batch::new();
        batch.put(keyspace::META_CLUSTER_VERSION, version);
        batch.put(keyspace::META_LOG_FORMAT, format.to_be_bytes().to_vec());
        engine.commit(&batch).unwrap();
        engine.flush().unwrap();
    };
    reach("3.8.0", LOG_FORMAT + 1);
    member.start();
    assert_eq!(member.ended().await, NOT_FOR_IT);
    names_both_versions(&member.log());
    assert!(!member.dir.join("member/engine.damaged").exists(), "it is sound");
    // As the newer release would find it.
    reach("3.7.0", LOG_FORMAT);
    member.start();
    member.ready().await;
    assert_eq!(member.get("k", false).await.unwrap().as_deref(), Some("v"));
}

/// A member of a cluster that has gone further, as far as a member that joins hears of it.
struct Newer {
    joins: String,
}

impl PeerRequests for Newer {
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
        let joins = pb::ProbeMember { id: 7, peer_urls: vec![self.joins.clone()], ..Default::default() };
        let answer = pb::ProbeResponse {
            cluster_id: 5,
            member_id: 6,
            epoch: 4,
            formed: true,
            has_leader: true,
            members: vec![joins],
            arrival: pb::ProbeArrival::First.into(),
            log_format: LOG_FORMAT + 1,
            server_version: "3.8.0".to_owned(),
            cluster_version: "3.8.0".to_owned(),
            cluster_log_format: LOG_FORMAT + 1,
            ..Default::default()
        };
        Box::pin(async { Some(answer) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_does_not_join_a_cluster_that_is_newer_than_it() {
    let tmp = tempfile::tempdir().unwrap();
    let mut member = Member::new("b", tmp.path());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let door = Door::new(Arc::new(Newer { joins: member.peer_url() }));
    let served = tokio::spawn(async move {
        axum::serve(listener, tonic::service::Routes::new(door.service()).into_axum_router()).await
    });
    member.flags.push(format!("--initial-cluster=a={url},b={}", member.peer_url()));
    member.flags.push("--initial-cluster-state=existing".to_owned());
    member.start();
    assert_eq!(member.ended().await, NOT_FOR_IT);
    names_both_versions(&member.log());
    assert!(!member.dir.join("member/identity").exists(), "it took a place in the cluster");
    served.abort();
}
