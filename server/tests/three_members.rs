//! Three members, as real processes: losing one, being asked anywhere, coming and going.

use crate::support::{Cluster, Member, eventually, free_address};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::cluster_client::ClusterClient;
use ferretcd_proto::etcdserverpb::lease_client::LeaseClient;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ABC: &[&str] = &["a", "b", "c"];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_a_follower_works_like_one_to_the_leader() {
    let cluster = Cluster::start(ABC).await;
    cluster.leader().await;
    for (at, m) in cluster.members.iter().enumerate() {
        m.etcdctl(&["put", &format!("key{at}"), "v"]).unwrap();
        // The member that answered the write has it, and so has every other one for a linearizable reader.
        for other in &cluster.members {
            assert_eq!(other.etcdctl(&["get", &format!("key{at}"), "--print-value-only"]).unwrap(), "v\n");
        }
        let grant = m.etcdctl(&["lease", "grant", "60"]).unwrap();
        let id = grant.split_whitespace().nth(1).unwrap();
        assert!(m.etcdctl(&["lease", "keep-alive", "--once", id]).unwrap().contains("TTL(60)"));
        assert!(m.etcdctl(&["lease", "timetolive", id]).unwrap().contains("granted with TTL(60s)"));
        assert_eq!(m.etcdctl(&["member", "list"]).unwrap().lines().count(), 3);
        assert!(m.etcdctl(&["endpoint", "health"]).is_ok());
        assert_eq!(m.http("/readyz").await.0, 200);
    }
    let ids: Vec<u64> = {
        let mut ids = Vec::new();
        for m in &cluster.members {
            ids.push(m.status().await.unwrap().header.unwrap().cluster_id);
        }
        ids
    };
    assert!(ids.iter().all(|id| *id == ids[0]), "one cluster ID: {ids:x?}");
}

/// While nobody confirms the leader, reads pile up: at the leader, then at a follower.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_linearizable_reads_that_wait_share_a_few_rounds() {
    const READS: usize = 1000;
    const STARTED: &str =
        "grpc_server_started_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
    const ROUNDS: &str = "ferretcd_read_index_rounds_total";
    // Nobody is to be elected meanwhile.
    let flags = ["--election-timeout=20000", "--heartbeat-interval=200"];
    let mut cluster = Cluster::start_with(ABC, &flags).await;
    cluster.members[0].put("k", "v").await.unwrap();
    let leader = cluster.leader().await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    for (asked, held) in [(leader, &others[..]), (others[0], &[leader][..])] {
        held.iter().for_each(|at| cluster.members[*at].pause());
        let m = &cluster.members[asked];
        let (started, rounds) = (m.figure(STARTED).await, m.figure(ROUNDS).await);
        let kv = m.kv().await;
        let read = |_| {
            let mut kv = kv.clone();
            tokio::spawn(async move { kv.range(pb::RangeRequest { key: "k".into(), ..Default::default() }).await })
        };
        let reads: Vec<_> = (0..READS).map(read).collect();
        eventually("all reads have come", async || match m.figure(STARTED).await - started {
            n if n >= READS as i64 => Ok(()),
            n => Err(format!("{n} have")),
        })
        .await;
        // A lease of the leader's would be good for seconds yet.
        let answered = reads.iter().filter(|read| read.is_finished()).count();
        assert_eq!(answered, 0, "nobody has confirmed the leader since they came");
        held.iter().for_each(|at| cluster.members[*at].resume());
        for read in reads {
            assert_eq!(read.await.unwrap().unwrap().into_inner().kvs.len(), 1);
        }
        // One that nobody answered is asked again every half second.
        let rounds = cluster.members[asked].figure(ROUNDS).await - rounds;
        assert!((2..100).contains(&rounds), "{rounds} rounds");
    }
}

/// As etcd: until a member has heard from a quorum, callers wait at its door, and clients go on to another endpoint.
/// Probes and scrapers have a listener of their own, which answers from the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_serves_clients_only_once_a_quorum_answers_it() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("k", "v").await.unwrap();
    cluster.members.iter_mut().for_each(Member::kill);
    let metrics = free_address();
    let probes = Member::at(&metrics, cluster.tmp.path());
    cluster.members[0].flags.push(format!("--listen-metrics-urls=http://{metrics}"));
    cluster.members[0].start();
    eventually("it probes as alive", async || {
        tokio::net::TcpStream::connect(&metrics).await.map_err(|e| e.to_string())?;
        match probes.http("/livez").await {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(probes.http("/readyz").await.0, 503);
    let asked = tokio::time::timeout(Duration::from_millis(500), cluster.members[0].http("/version")).await;
    assert!(asked.is_err(), "alone it answered {asked:?}");

    cluster.members[1].start();
    cluster.members[0].ready().await;
    assert_eq!(cluster.members[0].get("k", false).await.unwrap().as_deref(), Some("v"));
    assert_eq!(cluster.members[0].http("/readyz").await.0, 200);
}

/// Puts numbered keys through whichever member answers, until told to stop; returns those that were acknowledged.
async fn stream_of_puts(
    kvs: Vec<pb::kv_client::KvClient<tonic::transport::Channel>>,
    stop: Arc<AtomicBool>,
) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut at = 0;
    for i in 0u32.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("stream{i:06}");
        let request = pb::PutRequest { key: key.clone().into(), value: "v".into(), ..Default::default() };
        match kvs[at].clone().put(request).await {
            Ok(_) => acknowledged.push(key),
            Err(_) => at = (at + 1) % kvs.len(),
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_put_survives_kill_9_of_the_leader_on_every_member() {
    let mut cluster = Cluster::start(ABC).await;
    for round in 0..2 {
        let stop = Arc::new(AtomicBool::new(false));
        let leader = cluster.leader().await;
        let mut kvs = Vec::new();
        for m in &cluster.members {
            kvs.push(m.kv().await);
        }
        let writer = tokio::spawn(stream_of_puts(kvs, stop.clone()));
        let before = cluster.members[leader].status().await.unwrap().header.unwrap().revision;
        eventually("writes flow", async || {
            let now = cluster.members[leader].status().await?.header.unwrap().revision;
            if now > before + 50 { Ok(()) } else { Err(format!("revision {now}")) }
        })
        .await;
        cluster.members[leader].kill();
        let killed = Instant::now();
        let next = cluster.leader().await;
        let at = cluster.members[next].status().await.unwrap().header.unwrap().revision;
        eventually("writes flow again", async || {
            let now = cluster.members[next].status().await?.header.unwrap().revision;
            if now > at + 50 { Ok(()) } else { Err(format!("revision {now}")) }
        })
        .await;
        assert!(killed.elapsed() < Duration::from_secs(20), "writes were away for {:?}", killed.elapsed());
        stop.store(true, Ordering::Relaxed);
        let acknowledged = writer.await.unwrap();
        cluster.members[leader].start();
        cluster.members[leader].ready().await;
        let everything: BTreeMap<String, String> = cluster.agreed().await.into_iter().map(|(k, v, _)| (k, v)).collect();
        let lost: Vec<&String> = acknowledged.iter().filter(|k| !everything.contains_key(*k)).collect();
        assert!(lost.is_empty(), "round {round}: {} of {} are lost: {lost:?}", lost.len(), acknowledged.len());
        assert!(acknowledged.len() > 100);
    }
}

/// With these flags they keep their leader, and it waits for its heir, though the machine is busy.
const PATIENT: [&str; 2] = ["--heartbeat-interval=300", "--election-timeout=3000"];

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_leadership_over_and_exits_0() {
    let mut cluster = Cluster::start_with(ABC, &PATIENT).await;
    cluster.members[0].put("before", "x").await.unwrap();
    let leader = cluster.leader().await;
    assert_eq!(cluster.members[leader].terminate().await, Some(0));
    assert!(cluster.members[leader].log().contains("handing leadership over"), "{}", cluster.members[leader].log());
    assert!(!cluster.members[leader].log().contains("could not hand leadership over"));
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.members[next].put("after", "x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn move_leader_moves_it_and_refuses_what_etcd_refuses() {
    let cluster = Cluster::start_with(ABC, &PATIENT).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let id = format!("{:x}", cluster.members[follower].status().await.unwrap().header.unwrap().member_id);
    let endpoints: Vec<String> = cluster.members.iter().map(|m| format!("http://{}", m.client)).collect();
    let everyone = format!("--endpoints={}", endpoints.join(","));
    let out = cluster.members[leader].etcdctl(&["move-leader", &id, &everyone]).unwrap();
    assert!(out.contains("Leadership transferred"), "{out}");
    assert_eq!(cluster.leader().await, follower);
    let refused = cluster.members[follower].etcdctl(&["move-leader", "1234", &everyone]).unwrap_err();
    assert!(refused.contains("bad leader transferee"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founding_member_that_comes_late_is_awaited() {
    let mut cluster = Cluster::new(ABC);
    cluster.members[0].start();
    cluster.members[1].start();
    cluster.members[0].ready().await;
    cluster.members[0].put("early", "x").await.unwrap();
    cluster.members[2].start();
    cluster.members[2].ready().await;
    assert_eq!(cluster.agreed().await.len(), 1);
    assert_eq!(cluster.members[2].etcdctl(&["member", "list"]).unwrap().lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_restart_together_and_one_has_lost_its_disk() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("kept", "x").await.unwrap();
    cluster.agreed().await;
    cluster.members.iter_mut().for_each(Member::kill);
    std::fs::remove_dir_all(&cluster.members[2].dir).unwrap();
    // The one that lost its disk is there first, while the others still open theirs.
    cluster.members.iter_mut().rev().for_each(Member::start);
    assert_eq!(cluster.members[2].ended().await, Some(78));
    for m in &cluster.members[..2] {
        m.ready().await;
        assert_eq!(m.get("kept", false).await.unwrap().as_deref(), Some("x"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_lost_disk_does_not_start_a_second_history() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("kept", "x").await.unwrap();
    let m = &mut cluster.members[2];
    m.kill();
    std::fs::remove_dir_all(&m.dir).unwrap();
    m.start();
    assert_eq!(m.ended().await, Some(78));
    assert!(m.log().contains("has already been bootstrapped"), "{}", m.log());
    assert!(m.log().contains("remove the member"), "{}", m.log());
    assert!(!m.dir.join("member/wal").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_log_is_lost_does_not_vote_with_an_empty_one() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("kept", "x").await.unwrap();
    let m = &mut cluster.members[2];
    m.kill();
    // As when a disk of its own for --wal-dir is not mounted.
    let wal = m.dir.join("member/wal");
    std::fs::remove_dir_all(&wal).unwrap();
    m.start();
    assert_eq!(m.ended().await, Some(78));
    assert!(m.log().contains("check --wal-dir"), "{}", m.log());
    assert!(!wal.exists());
    // As when that disk was replaced by a new one.
    std::fs::create_dir_all(wal.join("lost+found")).unwrap();
    m.start();
    assert_eq!(m.ended().await, Some(78));
    assert!(m.log().contains("check --wal-dir"), "{}", m.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_cluster_is_refused_in_the_handshake() {
    let mut cluster = Cluster::start(ABC).await;
    // The same names and addresses under another token: another cluster ID.
    let mut other = Cluster::new(ABC);
    for (m, own) in other.members.iter_mut().zip(&cluster.members) {
        (m.client, m.peer) = (own.client.clone(), own.peer.clone());
        m.flags = own.flags.clone();
        m.flags.push("--initial-cluster-token=another".to_owned());
    }
    cluster.members[0].put("here", "x").await.unwrap();
    cluster.members.iter_mut().for_each(Member::kill);
    other.members.iter_mut().for_each(Member::start);
    for m in &other.members {
        m.ready().await;
    }
    other.members[2].kill();
    // Member c of the first cluster comes back at the address of member c of the second.
    cluster.members[2].start();
    eventually("both sides say why", async || {
        let logs = format!("{}{}", cluster.members[2].log(), other.members[0].log());
        if logs.contains("cluster ID mismatch") && logs.contains("--initial-cluster-token") {
            Ok(())
        } else {
            Err("nothing about it in the logs".to_owned())
        }
    })
    .await;
    other.members[0].put("there", "y").await.unwrap();
    assert_eq!(other.members[0].everything().await.len(), 1, "nothing of the other cluster came in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_joins_catches_up_votes_and_is_removed() {
    let mut cluster = Cluster::start(ABC).await;
    for i in 0..30 {
        cluster.members[0].put(&format!("k{i}"), "v").await.unwrap();
    }
    let mut d = Member::new("d", cluster.tmp.path());
    // A leader must have heard all voters lately before it lets another one come.
    let (id, bad) = {
        let mut api = ClusterClient::new(cluster.members[0].channel().await);
        let url = d.peer_url();
        let added = eventually("the learner is added", async || {
            let request = pb::MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: true };
            api.member_add(request).await.map_err(|e| e.to_string())
        })
        .await
        .into_inner();
        let again = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: true };
        (added.member.unwrap().id, api.member_add(again).await.unwrap_err())
    };
    assert_eq!(bad.message(), "etcdserver: too many learner members in cluster");
    let list: Vec<String> =
        cluster.members.iter().chain([&d]).map(|m| format!("{}={}", m.name, m.peer_url())).collect();
    d.flags = vec![format!("--initial-cluster={}", list.join(",")), "--initial-cluster-state=existing".to_owned()];
    d.start();
    cluster.members.push(d);
    eventually("the learner is promoted", async || {
        let id = format!("{id:x}");
        cluster.members[0].etcdctl(&["member", "promote", &id]).map(drop)
    })
    .await;
    cluster.members[3].ready().await;
    assert_eq!(cluster.agreed().await.len(), 30);
    cluster.members[3].put("through", "d").await.unwrap();
    // Refused as unhealthy while a voter was not heard from lately, which a busy machine makes happen.
    eventually("it is removed", async || cluster.members[0].etcdctl(&["member", "remove", &format!("{id:x}")])).await;
    assert_eq!(cluster.members[3].ended().await, Some(1));
    assert!(cluster.members[3].log().contains("was removed from the cluster"), "{}", cluster.members[3].log());
    assert_eq!(cluster.members[0].etcdctl(&["member", "list"]).unwrap().lines().count(), 3);
    cluster.members[3].start();
    assert_eq!(cluster.members[3].ended().await, Some(1), "a removed member does not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_not_taken_for_the_one_that_was_added_at_its_url() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("kept", "x").await.unwrap();
    cluster.agreed().await;
    // It is away while it is removed, and hears nothing of it.
    let gone = (cluster.leader().await + 1) % 3;
    let id = cluster.members[gone].status().await.unwrap().header.unwrap().member_id;
    cluster.members[gone].kill();
    let there = (gone + 1) % 3;
    eventually("it is removed", async || cluster.members[there].etcdctl(&["member", "remove", &format!("{id:x}")]))
        .await;
    let added = eventually("another is added at its URL", async || {
        let peers = format!("--peer-urls={}", cluster.members[gone].peer_url());
        cluster.members[there].etcdctl(&["member", "add", "new", &peers])
    })
    .await;
    assert!(!added.contains(&format!("{id:x}")), "{added}");
    cluster.members[gone].start();
    assert_eq!(cluster.members[gone].ended().await, Some(1));
    let log = cluster.members[gone].log();
    assert!(log.contains("was removed from the cluster"), "{log}");
    let list = cluster.members[there].etcdctl(&["member", "list"]).unwrap();
    assert_eq!(list.matches("unstarted").count(), 1, "{list}");
    // The one that is meant comes with an empty data directory.
    let new = &mut cluster.members[gone];
    new.dir = new.dir.with_file_name("new");
    new.flags.push("--initial-cluster-state=existing".to_owned());
    new.start();
    new.ready().await;
    assert_ne!(new.status().await.unwrap().header.unwrap().member_id, id);
    assert_eq!(cluster.agreed().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_reads_of_one_member_work_and_nothing_else() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("known", "x").await.unwrap();
    cluster.agreed().await;
    cluster.members[1].kill();
    cluster.members[2].kill();
    let m = &cluster.members[0];
    eventually("the member notices", async || match m.status().await?.leader {
        0 => Ok(()),
        leader => Err(format!("it still names {leader:x}")),
    })
    .await;
    assert_eq!(m.get("known", true).await.unwrap().as_deref(), Some("x"));
    assert_eq!(m.http("/livez").await.0, 200);
    let error = m.etcdctl(&["put", "refused", "x", "--command-timeout=9s"]).unwrap_err();
    assert!(error.contains("timed out") || error.contains("deadline exceeded"), "{error}");
    assert_eq!(m.http("/readyz").await.0, 503);
    cluster.members[1].start();
    cluster.members[1].ready().await;
    cluster.members[0].put("back", "x").await.unwrap();
}

fn snapshots(m: &Member) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(m.dir.join("member/snap"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".snap"))
        .collect();
    names.sort_unstable();
    names
}

/// In the order of etcd's guide: compact, defrag, disarm.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_stops_writes_on_every_member_over_a_restart_until_it_is_disarmed() {
    let mut cluster = Cluster::start_with(ABC, &["--quota-backend-bytes=20000"]).await;
    let mut asked = 0;
    let full = eventually("the quota is used up", async || {
        asked += 1;
        match cluster.members[asked % 3].put("k", &"x".repeat(1000)).await {
            Ok(revision) => Err(format!("revision {revision}")),
            Err(status) => Ok(status.message().to_owned()),
        }
    })
    .await;
    assert_eq!(full, "etcdserver: mvcc: database space exceeded");
    let alarms = |member: &Member| {
        let list = member.etcdctl(&["alarm", "list"]).unwrap();
        list.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let raised = alarms(&cluster.members[0]);
    assert!(!raised.is_empty() && raised.iter().all(|line| line.contains("alarm:NOSPACE")), "{raised:?}");

    cluster.members.iter_mut().for_each(Member::kill);
    cluster.members.iter_mut().for_each(Member::start);
    for member in &cluster.members {
        member.ready().await;
        assert_eq!(member.put("k", "x").await.unwrap_err().message(), full);
        // Each member that is asked may have added its own.
        assert!(alarms(member).is_superset(&raised), "{:?}", alarms(member));
        assert!(member.get("k", false).await.unwrap().is_some());
    }

    let member = &cluster.members[0];
    let revision = member.status().await.unwrap().header.unwrap().revision.to_string();
    member.etcdctl(&["compaction", "--physical", &revision]).unwrap();
    assert_eq!(member.etcdctl(&["defrag", "--cluster"]).unwrap().matches("Finished defragmenting").count(), 3);
    assert_eq!(member.put("k", "x").await.unwrap_err().message(), full, "the alarm stays until somebody disarms it");
    member.etcdctl(&["alarm", "disarm"]).unwrap();
    assert_eq!(alarms(member), BTreeSet::new());
    for member in &cluster.members {
        member.put("k", "room again").await.unwrap();
    }
}

/// Its clock says that the lease has ended: it heard nothing of what its successor was told.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_revokes_no_lease_that_was_kept_alive_meanwhile() {
    /// A machine that is slower than the lease tells nothing; one that is so each time is a member that renews no lease.
    const ATTEMPTS: usize = 3;
    let mut told = Vec::new();
    while told.len() < ATTEMPTS {
        match a_lease_is_kept_while_the_leader_stands_still().await {
            Ok(()) => return,
            Err(why) => {
                println!("{why}");
                told.push(why);
            }
        }
    }
    panic!("the lease could not be kept alive: {told:?}");
}

/// Tells when the holder could not do its part.
async fn a_lease_is_kept_while_the_leader_stands_still() -> Result<(), String> {
    const TTL: i64 = 4;
    let mut cluster = Cluster::start(ABC).await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % 3;
    let mut leases = LeaseClient::new(cluster.members[other].channel().await);
    let id = leases.lease_grant(pb::LeaseGrantRequest { ttl: TTL, id: 0 }).await.unwrap().into_inner().id;
    let put = pb::PutRequest { key: "held".into(), value: "x".into(), lease: id, ..Default::default() };
    cluster.members[other].kv().await.put(put).await.unwrap();
    cluster.members[leader].pause();
    let begun = Instant::now();
    let mut kept = begun;
    // As long as the paused one counts, and as long again after it woke. A holder asks often, so that an election between costs
    // it nothing.
    for (asleep, until) in [(true, Duration::from_secs(6)), (false, Duration::from_secs(10))] {
        while begun.elapsed() < until {
            let ask = futures::stream::iter([pb::LeaseKeepAliveRequest { id }]);
            let answer = async { leases.lease_keep_alive(ask).await.ok()?.into_inner().message().await.ok()? };
            // One that went to the paused member is not waited for.
            let answer = tokio::time::timeout(Duration::from_secs(1), answer).await.ok().flatten();
            let ttl = answer.map(|answer| answer.ttl);
            if kept.elapsed() > Duration::from_secs(TTL as u64) {
                return Err(format!("not kept alive for {:?}, asleep: {asleep}", kept.elapsed()));
            }
            assert_ne!(ttl, Some(0), "revoked after {:?}, asleep: {asleep}", begun.elapsed());
            if ttl.is_some() {
                kept = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if asleep {
            cluster.members[leader].resume();
        }
    }
    assert_eq!(cluster.members[other].get("held", false).await.unwrap().as_deref(), Some("x"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_longer_than_the_log_reaches_back_gets_a_snapshot() {
    let mut cluster = Cluster::start_with(ABC, &["--snapshot-count=50", "--snapshot-catchup-entries=5"]).await;
    let away = (cluster.leader().await + 1) % 3;
    cluster.members[away].kill();
    let leader = cluster.leader().await;
    for i in 0..150 {
        cluster.members[leader].put(&format!("k{i}"), "v").await.unwrap();
    }
    cluster.members[leader].etcdctl(&["lease", "grant", "3600"]).unwrap();
    eventually("the leader has a snapshot", async || match snapshots(&cluster.members[leader]).is_empty() {
        true => Err("none yet".to_owned()),
        false => Ok(()),
    })
    .await;
    // Purging follows the snapshot; more writes make sure that the log no longer begins where the other one stopped.
    for i in 0..100 {
        cluster.members[leader].put(&format!("k{i}"), "again").await.unwrap();
    }
    assert!(snapshots(&cluster.members[away]).is_empty());
    cluster.members[away].start();
    cluster.members[away].ready().await;
    assert_eq!(cluster.agreed().await.len(), 150);
    assert!(!snapshots(&cluster.members[away]).is_empty(), "it caught up without a snapshot: the test tests nothing");
    assert!(cluster.members[away].etcdctl(&["lease", "list"]).unwrap().starts_with("found 1 leases"));
    for (at, family) in [(leader, "etcd_snap_fsync"), (away, "etcd_snap_db_fsync")] {
        let (_, figures) = cluster.members[at].http("/metrics").await;
        let none = format!("{family}_duration_seconds_count 0");
        assert!(figures.contains(none.trim_end_matches('0')) && !figures.lines().any(|l| l == none), "{figures}");
    }

    // What a snapshot and the log give back: the store of this member is lost.
    assert_eq!(cluster.members[away].terminate().await, Some(0));
    std::fs::remove_dir_all(cluster.members[away].dir.join("member/engine")).unwrap();
    cluster.members[away].start();
    cluster.members[away].ready().await;
    assert_eq!(cluster.agreed().await.len(), 150);

    // And of another member's snapshot and the log: both are damaged.
    assert_eq!(cluster.members[away].terminate().await, Some(0));
    std::fs::remove_dir_all(cluster.members[away].dir.join("member/engine")).unwrap();
    let snapshot = snapshots(&cluster.members[away]).pop().unwrap();
    std::fs::write(cluster.members[away].dir.join("member/snap").join(&snapshot), "no snapshot").unwrap();
    cluster.members[leader].put("k0", "meanwhile").await.unwrap();
    cluster.members[away].start();
    cluster.members[away].ready().await;
    assert!(cluster.agreed().await.iter().any(|(key, value, _)| (key.as_str(), value.as_str()) == ("k0", "meanwhile")));
    let log = cluster.members[away].log();
    assert!(log.contains("a snapshot of another member takes its place"), "{log}");
    assert!(log.contains(&snapshot), "it says which file is damaged: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_kept_alive_survives_the_loss_of_the_leader_and_ends_when_it_is_not() {
    use ferretcd_proto::etcdserverpb::lease_client::LeaseClient;
    let mut cluster = Cluster::start(ABC).await;
    let leader = cluster.leader().await;
    let survivor = (leader + 1) % 3;
    let mut leases = LeaseClient::new(cluster.members[survivor].channel().await);
    let id = leases.lease_grant(pb::LeaseGrantRequest { ttl: 3, id: 0 }).await.unwrap().into_inner().id;
    let put = pb::PutRequest { key: "leased".into(), lease: id, ..Default::default() };
    cluster.members[survivor].kv().await.put(put).await.unwrap();
    cluster.members[leader].kill();
    // Renewed without a pause over the change of leaders: nobody may ever say that it is gone.
    for _ in 0..40 {
        let once = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
        let mut answers = match leases.lease_keep_alive(once).await {
            Ok(answers) => answers.into_inner(),
            Err(_) => continue,
        };
        if let Ok(Some(answer)) = answers.message().await {
            assert_eq!(answer.ttl, 3, "a living lease was said to be gone");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(cluster.members[survivor].get("leased", false).await.unwrap().is_some());
    eventually("the lease expires when nobody renews it", async || {
        match cluster.members[survivor].get("leased", false).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
