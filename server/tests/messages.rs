//! What people read when something is wrong: each story makes one trouble with real processes, and looks for the line of
//! the log that names who, why and how much.

use crate::support;
use crate::support::{Cluster, Member, eventually};
use ferretcd_proto::etcdserverpb as pb;
use serde_json::Value;
use std::time::Duration;

/// The first line with all of these in the log of one of the members, once it is there.
async fn line(members: &[&Member], parts: &[&str]) -> Value {
    eventually(&format!("somebody says {parts:?}"), async || {
        let logs: String = members.iter().map(|member| member.log()).collect();
        let found = logs.lines().find(|line| line.ends_with('}') && parts.iter().all(|part| line.contains(part)));
        found.map(|line| serde_json::from_str(line).unwrap()).ok_or(logs)
    })
    .await
}

async fn id(member: &Member) -> String {
    format!("{:x}", member.status().await.unwrap().header.unwrap().member_id)
}

#[tokio::test]
async fn a_member_that_waits_for_the_others_names_them_and_why_they_are_not_there() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    // Somebody else sits where c should be.
    let stranger = std::net::TcpListener::bind(&cluster.members[2].peer).unwrap();
    std::thread::spawn(move || stranger.incoming().for_each(drop));
    cluster.members[0].start();
    let a = &cluster.members[0];
    let waits = line(&[a], &["waiting: 1 of the 3 named members are there and agree, 2 can found the cluster"]).await;
    assert_eq!(waits["level"], "warn");
    let refused = line(&[a], &["no answer: ", &cluster.members[1].peer_url()]).await;
    assert!(refused["msg"].as_str().unwrap().contains("Connection refused"), "{refused}");
    line(&[a], &["no answer: ", &cluster.members[2].peer_url()]).await;
}

/// A supervisor may end it before it gives up.
#[tokio::test]
async fn a_member_that_cannot_join_says_at_once_why() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let b = &mut cluster.members[1];
    b.flags.push("--initial-cluster-state=existing".to_owned());
    b.start();
    line(
        &[&cluster.members[1]],
        &["cannot join the cluster yet: ", &cluster.members[0].peer_url(), "Connection refused"],
    )
    .await;
}

#[tokio::test]
async fn a_member_that_speaks_tls_to_one_that_does_not_is_told_so() {
    let mut cluster = Cluster::new(&["a", "b"]);
    let pki = support::pki::Pki::new(cluster.tmp.path());
    let cert = pki.issue("member", "member");
    // Each takes the other for what it is itself.
    let list = cluster.members[1].flags[0].replace("http://", "https://");
    let b = &mut cluster.members[1];
    let url = format!("https://{}", b.peer);
    b.flags = vec![
        list,
        format!("--listen-peer-urls={url}"),
        format!("--initial-advertise-peer-urls={url}"),
        format!("--peer-cert-file={}", cert.cert.display()),
        format!("--peer-key-file={}", cert.key.display()),
        format!("--peer-trusted-ca-file={}", pki.ca.display()),
    ];
    cluster.members.iter_mut().for_each(Member::start);
    let [a, b] = [&cluster.members[0], &cluster.members[1]];
    line(&[a], &["no answer: ", "it seems to speak TLS; is its peer URL https://?", &b.peer]).await;
    line(&[b], &["no answer: ", "it seems to speak no TLS; is its peer URL http://?", &a.peer]).await;
    let said = "tls: first record does not look like a TLS handshake";
    line(&[b], &["rejected connection on peer endpoint", said]).await;
}

#[tokio::test]
async fn members_that_name_different_members_say_which_differ_and_how() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    let (real, wrong) = (cluster.members[2].peer_url(), format!("http://{}", support::free_address()));
    let list = cluster.members[1].flags[0].replace(&real, &wrong);
    cluster.members[1].flags[0] = list;
    cluster.members[..2].iter_mut().for_each(Member::start);
    for (at, other, here, there) in [(0, 1, &real, &wrong), (1, 0, &wrong, &real)] {
        let how = format!("--initial-cluster differs: c is {here} here and {there} there;");
        let said = line(&[&cluster.members[at]], &["cluster ID mismatch", &how]).await;
        assert_eq!((&said["level"], &said["peer"]), (&"error".into(), &cluster.members[other].peer_url().into()));
        assert_ne!(said["here"], said["there"]);
    }
    // Neither has founded anything: those that agree do, and the other ends with the reason.
    cluster.members[2].start();
    cluster.members[0].ready().await;
    let b = &mut cluster.members[1];
    assert_eq!(b.ended().await, Some(78));
    // (The others may not have published their names yet.)
    line(&[b], &["has other members (this is", "--initial-cluster differs: c", &wrong, &real]).await;
    b.flags[0] = b.flags[0].replace(&wrong, &real);
    b.start();
    b.ready().await;
}

#[tokio::test]
async fn members_with_different_tokens_say_so_and_form_once_it_is_mended() {
    let mut cluster = Cluster::new(&["a", "b"]);
    cluster.members[1].flags.push("--initial-cluster-token=other".to_owned());
    cluster.members.iter_mut().for_each(Member::start);
    for (at, other) in [(0, 1), (1, 0)] {
        let said = line(&[&cluster.members[at]], &["cluster ID mismatch", "--initial-cluster-token differs"]).await;
        assert_eq!(said["peer"], cluster.members[other].peer_url().as_str());
    }
    let b = &mut cluster.members[1];
    b.kill();
    b.flags.pop();
    b.start();
    cluster.members[0].ready().await;
    cluster.members[1].ready().await;
}

#[tokio::test]
async fn a_member_that_is_lost_is_named_with_the_reason_and_so_is_its_return() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let leader = cluster.leader().await;
    let leader_id = id(&cluster.members[leader]).await;
    line(&[&cluster.members[leader]], &[&format!("elected leader {leader_id} at term ")]).await;
    let away = (leader + 1) % 3;
    let who = format!("\"peer-id\":\"{}\"", id(&cluster.members[away]).await);
    let urls = format!("\"peer-urls\":\"{}\"", cluster.members[away].peer_url());
    cluster.members[away].kill();
    // Whoever leads now calls it.
    let others = [&cluster.members[leader], &cluster.members[(leader + 2) % 3]];
    let said = ["peer became inactive (message send to peer failed)", &who, &urls];
    let told = line(&others, &said).await;
    assert_eq!(told["level"], "warn");
    // The first failure after a second is told: on a busy machine it may be a call that came to no end.
    let why = told["error"].as_str().unwrap();
    assert!(why.contains("Connection refused") || why.contains("no answer in time"), "{why}");
    let counted = eventually("it is counted", async || {
        for member in others {
            let (_, metrics) = member.http("/metrics").await;
            if metrics.contains("\netcd_network_disconnected_peers_total{Local=") {
                return Ok(());
            }
        }
        Err("no series".to_owned())
    });
    counted.await;
    cluster.members[away].start();
    let others = [&cluster.members[leader], &cluster.members[(leader + 2) % 3]];
    line(&others, &["peer became active", &who]).await;

    // Left alone, it says whom it has lost.
    cluster.members[away].ready().await;
    let losses = |member: &Member| member.log().lines().filter(|l| l.contains("lost leader ")).count();
    let before = losses(&cluster.members[away]);
    for (at, member) in cluster.members.iter_mut().enumerate() {
        if at != away {
            member.kill();
        }
    }
    let left = &cluster.members[away];
    eventually("it tells of the loss", async || if losses(left) > before { Ok(()) } else { Err(left.log()) }).await;
}

#[tokio::test]
async fn heartbeats_that_leave_late_are_told_with_figures() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    for member in &mut cluster.members {
        // No election while the leader stands still.
        member.flags.push("--election-timeout=10000".to_owned());
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
    }
    let leader = cluster.leader().await;
    let said = "leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk";
    // A stop in the midst of a heartbeat is a time-out of that one, and the next is not late: so more than one stop, each
    // after some heartbeats that were answered.
    let text = eventually("the leader tells", async || {
        let member = &mut cluster.members[leader];
        let _ = member.get("k", false).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        member.pause();
        tokio::time::sleep(Duration::from_millis(700)).await;
        member.resume();
        let _ = member.get("k", false).await;
        let log = member.log();
        log.lines().find(|l| l.contains(said)).map(str::to_owned).ok_or(log)
    })
    .await;
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&told["heartbeat-interval"], &told["expected-duration"]), (&"100ms".into(), &"200ms".into()));
    assert!(told["exceeded-duration"].as_str().unwrap().ends_with('s') && told["to"].is_string(), "{told}");
    let (_, metrics) = cluster.members[leader].http("/metrics").await;
    let count = metrics.lines().find_map(|l| l.strip_prefix("etcd_server_heartbeat_send_failures_total ")).unwrap();
    assert!(count.parse::<u64>().unwrap() > 0, "{count}");
}

#[tokio::test]
async fn a_slow_disk_and_a_slow_apply_are_told_with_figures() {
    let mut cluster = Cluster::new(&["a"]);
    cluster.members[0].flags.push("--warning-apply-duration=1ns".to_owned());
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut kv = cluster.members[0].kv().await;
        writers.spawn(async move {
            loop {
                let _ = kv.put(pb::PutRequest { key: "k".into(), ..Default::default() }).await;
            }
        });
    }
    let told = line(&[&cluster.members[0]], &["apply request took too long", "\"request\":\"Put\""]).await;
    assert_eq!(told["expected-duration"], "1ns");
    // The disk of a process that stands still in the midst of a sync is slow. It syncs most of the time.
    let text = eventually("it tells of the sync", async || {
        let member = &mut cluster.members[0];
        let _ = member.put("k", "v").await;
        member.pause();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        member.resume();
        let _ = member.put("k", "v").await;
        let log = member.log();
        log.lines().find(|l| l.contains("slow fdatasync")).map(str::to_owned).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&told["level"], &told["expected-duration"]), (&"warn".into(), &"1s".into()));
    let took = told["took"].as_str().and_then(|t| t.strip_suffix('s')).and_then(|t| t.parse::<f64>().ok());
    assert!(took.is_some_and(|seconds| seconds > 1.0), "{told}");
}

/// A rolling update is no alarm.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_stopped_while_it_is_written_to_logs_no_error() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let leader = cluster.leader().await;
    let other = cluster.members[(leader + 1) % 3].kv().await;
    let writes = tokio::spawn(async move {
        let mut kv = other;
        for number in 0.. {
            let put = pb::PutRequest { key: "k".into(), value: number.to_string().into(), ..Default::default() };
            // Some are in doubt when the leader goes.
            let _ = kv.put(put).await;
        }
    });
    cluster.members[leader].put("begun", "").await.unwrap();
    assert_eq!(cluster.members[leader].terminate().await, Some(0));
    writes.abort();
    let log = cluster.members[leader].log();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"level\":\"error\"")).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[tokio::test]
async fn a_leader_that_is_left_alone_stops_without_waiting_for_an_heir() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let leader = cluster.leader().await;
    for (at, member) in cluster.members.iter_mut().enumerate() {
        if at != leader {
            member.kill();
        }
    }
    let leader = &mut cluster.members[leader];
    eventually("it knows that its quorum is silent", async || match leader.status().await?.leader {
        0 => Ok(()),
        leads => Err(format!("{leads:x} leads")),
    })
    .await;
    assert_eq!(leader.terminate().await, Some(0));
    assert!(!leader.log().contains("could not hand leadership over"), "{}", leader.log());
}
