//! Locks and elections: the services, and etcdctl's own commands on plain keys, through the process.

use crate::support::{Cluster, Member, eventually};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::lease_client::LeaseClient;
use ferretcd_proto::v3electionpb as epb;
use ferretcd_proto::v3electionpb::election_client::ElectionClient;
use ferretcd_proto::v3lockpb as lpb;
use ferretcd_proto::v3lockpb::lock_client::LockClient;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use tonic::transport::Channel;
use tonic::{Code, Status};

async fn lease(member: &Member) -> i64 {
    let grant = pb::LeaseGrantRequest { ttl: 60, id: 0 };
    LeaseClient::new(member.channel().await).lease_grant(grant).await.unwrap().into_inner().id
}

fn told(status: Status) -> (Code, String) {
    (status.code(), status.message().to_owned())
}

fn unknown(text: &str) -> (Code, String) {
    (Code::Unknown, text.to_owned())
}

/// Keys below a prefix, in the order of their creation.
async fn keys(member: &Member) -> Vec<String> {
    let request = pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        sort_order: pb::range_request::SortOrder::Ascend.into(),
        sort_target: pb::range_request::SortTarget::Create.into(),
        ..Default::default()
    };
    let kvs = member.kv().await.range(request).await.unwrap().into_inner().kvs;
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

async fn waits(member: &Member, places: usize) {
    eventually("all have their places", async || {
        let keys = keys(member).await;
        if keys.len() == places { Ok(()) } else { Err(format!("{keys:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_held_by_one_and_goes_to_the_next_in_line() {
    let cluster = Cluster::start(&["a", "b", "c"]).await;
    let m = &cluster.members[0];
    let mut channels = Vec::new();
    for member in &cluster.members {
        channels.push(member.channel().await);
    }
    let lock = |at: usize, lease| {
        let mut client = LockClient::new(channels[at].clone());
        tokio::spawn(async move { client.lock(lpb::LockRequest { name: "l".into(), lease }).await })
    };
    let mut client = LockClient::new(m.channel().await);
    let leases = [lease(m).await, lease(m).await, lease(m).await];
    let first = lock(0, leases[0]).await.unwrap().unwrap().into_inner();
    assert_eq!(first.key, format!("l/{:x}", leases[0]));
    let header = first.header.unwrap();
    assert_eq!(header.revision, m.status().await.unwrap().header.unwrap().revision);
    // Who holds it gets it again, at once, and with the same key.
    assert_eq!(lock(1, leases[0]).await.unwrap().unwrap().into_inner().key, first.key);

    // Two wait, on other members; the one between them goes away, and its place with it.
    let second = lock(1, leases[1]);
    waits(m, 2).await;
    let third = lock(2, leases[2]);
    waits(m, 3).await;
    second.abort();
    waits(m, 2).await;
    assert!(!third.is_finished());
    client.unlock(lpb::UnlockRequest { key: first.key }).await.unwrap();
    let third = third.await.unwrap().unwrap().into_inner();
    assert_eq!(third.key, format!("l/{:x}", leases[2]));
    assert_eq!(keys(m).await, [format!("l/{:x}", leases[2])]);

    // One whose lease ends while it waits does not get it.
    let expiring = lock(0, leases[1]);
    waits(m, 2).await;
    LeaseClient::new(m.channel().await).lease_revoke(pb::LeaseRevokeRequest { id: leases[1] }).await.unwrap();
    client.unlock(lpb::UnlockRequest { key: third.key }).await.unwrap();
    assert_eq!(told(expiring.await.unwrap().unwrap_err()), unknown("mutex: session is expired"));

    // Without a lease the server grants one of a minute, which nobody renews.
    let own = client.lock(lpb::LockRequest { name: "own".into(), lease: 0 }).await.unwrap().into_inner();
    let id = String::from_utf8(own.key.to_vec()).unwrap().split_once('/').unwrap().1.to_owned();
    assert!(m.etcdctl(&["lease", "timetolive", &id]).unwrap().contains("granted with TTL(60s)"));

    let refused = client.lock(lpb::LockRequest { name: "l".into(), lease: 12345 }).await.unwrap_err();
    assert_eq!(told(refused), unknown("etcdserver: requested lease not found"));
    let refused = client.unlock(lpb::UnlockRequest::default()).await.unwrap_err();
    assert_eq!(told(refused), unknown("etcdserver: key is not provided"));
    client.unlock(lpb::UnlockRequest { key: "nobody's".into() }).await.unwrap();
}

async fn campaign(mut client: ElectionClient<Channel>, lease: i64, value: &'static str) -> epb::CampaignResponse {
    let request = epb::CampaignRequest { name: "e".into(), lease, value: value.into() };
    client.campaign(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_has_one_leader_and_observers_see_each_word_of_it() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let mut client = ElectionClient::new(m.channel().await);
    let name = || epb::LeaderRequest { name: "e".into() };
    assert_eq!(told(client.leader(name()).await.unwrap_err()), unknown("election: no leader"));
    let mut observer = client.observe(name()).await.unwrap().into_inner();
    let first = campaign(client.clone(), lease(m).await, "one").await;
    let leader = first.leader.clone().unwrap();
    assert_eq!((leader.name.as_ref(), leader.rev), (&b"e"[..], first.header.unwrap().revision));
    let mut next = async || {
        let said = observer.message().await.unwrap().unwrap();
        let kv = said.kv.unwrap();
        (String::from_utf8_lossy(&kv.value).into_owned(), kv.mod_revision, said.header.unwrap().revision)
    };
    assert_eq!(next().await, ("one".to_owned(), leader.rev, leader.rev));

    let word = |leader: &epb::LeaderKey, value: &'static str| epb::ProclaimRequest {
        leader: Some(leader.clone()),
        value: value.into(),
    };
    let proclaimed = client.proclaim(word(&leader, "two")).await.unwrap().into_inner().header.unwrap().revision;
    assert_eq!(next().await, ("two".to_owned(), proclaimed, proclaimed));

    // Others stand in line, and one of them leaves it.
    let mut standing = Vec::new();
    for (place, value) in ["leaves", "three"].into_iter().enumerate() {
        standing.push(tokio::spawn(campaign(client.clone(), lease(m).await, value)));
        waits(m, place + 2).await;
    }
    standing[0].abort();
    waits(m, 2).await;
    assert_eq!(client.leader(name()).await.unwrap().into_inner().kv.unwrap().value, "two");
    client.resign(epb::ResignRequest { leader: Some(leader.clone()) }).await.unwrap();
    let third = standing.pop().unwrap().await.unwrap().leader.unwrap();
    assert_eq!(next().await.0, "three");
    assert_eq!(client.leader(name()).await.unwrap().into_inner().kv.unwrap().key, third.key);

    // A leader that stands again says a new word under the old key.
    let again = campaign(client.clone(), third.lease, "four").await.leader.unwrap();
    assert_eq!((again.key.clone(), again.rev), (third.key.clone(), third.rev));
    assert_eq!(next().await.0, "four");

    assert_eq!(told(client.proclaim(word(&leader, "late")).await.unwrap_err()), unknown("election: not leader"));
    client.resign(epb::ResignRequest { leader: Some(leader) }).await.unwrap();
    let missing = "\"leader\" field must be provided";
    assert_eq!(told(client.proclaim(epb::ProclaimRequest::default()).await.unwrap_err()), unknown(missing));
    assert_eq!(told(client.resign(epb::ResignRequest::default()).await.unwrap_err()), unknown(missing));
    let empty = Some(epb::LeaderKey::default());
    let refused = client.resign(epb::ResignRequest { leader: empty }).await.unwrap_err();
    assert_eq!(told(refused), unknown("etcdserver: key is not provided"));
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_locks_and_elects() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let start = |args: &[&str]| {
        let mut child = m.etcdctl_command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        (child, lines)
    };
    let (mut holder, mut held) = start(&["lock", "mutex"]);
    assert!(held.next().unwrap().starts_with("mutex/"));
    let (mut waiter, mut waited) = start(&["lock", "mutex"]);
    waits(m, 2).await;
    holder.kill().unwrap();
    holder.wait().unwrap();
    // What kill -9 leaves behind ends with its lease; nobody waits for that here.
    let stale = keys(m).await[0].clone();
    m.etcdctl(&["del", &stale]).unwrap();
    assert!(waited.next().unwrap().starts_with("mutex/"));
    waiter.kill().unwrap();
    waiter.wait().unwrap();
    assert_eq!(m.etcdctl(&["lock", "other", "/bin/echo", "inside"]).unwrap(), "inside\n");

    let (mut candidate, mut elected) = start(&["elect", "office", "me"]);
    assert!(elected.next().unwrap().starts_with("office/"));
    assert_eq!(elected.next().unwrap(), "me");
    let (mut listener, mut heard) = start(&["elect", "-l", "office"]);
    assert!(heard.next().unwrap().starts_with("office/"));
    assert_eq!(heard.next().unwrap(), "me");
    for child in [&mut candidate, &mut listener] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
