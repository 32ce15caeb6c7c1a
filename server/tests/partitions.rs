//! Members on hosts of their own, whose wires are cut, one way or both, and made slow; and the judge of what clients saw
//! meanwhile. Needs root. `FERRETCD_ROUNDS` and `FERRETCD_SEED` choose how often wires are cut at random, and which.

use crate::support::load::{Chance, Load, number};
use crate::support::network::Network;
use crate::support::{Busy, Cluster, Member, etcd_tool, eventually, free_address};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::cluster_client::ClusterClient;
use ferretcd_proto::etcdserverpb::kv_client::KvClient;
use ferretcd_proto::etcdserverpb::lease_client::LeaseClient;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const ABC: &[&str] = &["a", "b", "c"];
const ABCDE: &[&str] = &["a", "b", "c", "d", "e"];

/// `--election-timeout`'s default.
const ELECTION: Duration = Duration::from_secs(1);

/// How long clients under partitions wait for an answer: most of them ask a member that gives none.
const WAIT: Duration = Duration::from_millis(700);

async fn started(network: &Network, names: &[&str], flags: &[&str]) -> Cluster {
    let mut cluster = network.cluster(names);
    for member in &mut cluster.members {
        member.flags.extend(flags.iter().map(|flag| flag.to_string()));
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
    }
    cluster
}

fn load(cluster: &Cluster, seed: u64) -> Load {
    Load::start(cluster.members.iter().map(|m| m.client.clone()).collect(), seed, WAIT)
}

async fn id(member: &Member) -> u64 {
    member.status().await.unwrap().header.unwrap().member_id
}

/// One that waits longer than any member does.
fn patient(member: &Member) -> KvClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", member.client)).unwrap();
    KvClient::new(endpoint.timeout(Duration::from_secs(30)).connect_lazy())
}

async fn put(mut kv: KvClient<Channel>, key: &str) -> Result<(), tonic::Status> {
    let request = pb::PutRequest { key: key.to_owned().into(), value: "x".into(), ..Default::default() };
    kv.put(request).await.map(drop)
}

async fn get(mut kv: KvClient<Channel>, key: &str) -> Result<(), tonic::Status> {
    let request = pb::RangeRequest { key: key.to_owned().into(), ..Default::default() };
    kv.range(request).await.map(drop)
}

/// Waits until this member names no leader.
async fn leaderless(member: &Member) {
    eventually("it names no leader", async || match member.status().await?.leader {
        0 => Ok(()),
        leader => Err(format!("{} names {leader:x}", member.name)),
    })
    .await;
}

/// The leader that these members agree on.
async fn leader_of(members: &[&Member]) -> u64 {
    eventually("these members agree on a leader", async || {
        let mut leaders = Vec::new();
        for member in members {
            leaders.push(member.status().await?.leader);
        }
        match leaders.iter().all(|leader| *leader == leaders[0] && *leader != 0) {
            true => Ok(leaders[0]),
            false => Err(format!("{leaders:x?}")),
        }
    })
    .await
}

/// The same story for real etcd and for the server: what both must do, and show.
async fn a_leader_without_a_quorum(program: Option<std::path::PathBuf>) {
    let Some(network) = Network::new(3) else { return };
    let mut cluster = network.cluster(ABC);
    for member in &mut cluster.members {
        if let Some(program) = &program {
            *member.program.last_mut().unwrap() = program.into();
        }
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
    }
    cluster.members[0].put("before", "x").await.unwrap();
    cluster.agreed().await;
    let at = cluster.leader().await;
    let (old, others) = (&cluster.members[at], [&cluster.members[(at + 1) % 3], &cluster.members[(at + 2) % 3]]);
    let figure = async |series: &str| old.figure(&format!("etcd_server_{series}")).await;
    let (term, failed) = (old.status().await.unwrap().raft_term, figure("proposals_failed_total").await);
    let changes = others[0].figure("etcd_server_leader_changes_seen_total").await;
    assert_eq!((figure("has_leader").await, figure("is_leader").await), (1, 1));

    network.isolate(&[at]);
    let cut = Instant::now();
    let pending = tokio::spawn(put(patient(old), "pending"));
    let read = tokio::spawn(get(patient(old), "before"));
    eventually("one proposal is pending", async || match figure("proposals_pending").await {
        1 => Ok(()),
        n => Err(format!("{n}")),
    })
    .await;
    leaderless(old).await;
    // etcd's leader looks every election time-out whether a quorum answers; a busy machine gets some more.
    assert!(cut.elapsed() < ELECTION * 8, "it took {:?} to notice", cut.elapsed());
    eventually("the metrics say so", async || {
        match (figure("has_leader").await, figure("is_leader").await, figure("leader_changes_seen_total").await) {
            (0, 0, 1..) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let (code, health) = old.http("/health").await;
    assert_eq!((code, health.trim_end()), (503, r#"{"health":"false","reason":"RAFT NO LEADER"}"#));
    let late = tokio::spawn(put(patient(old), "late"));
    let ready = tokio::time::timeout(ELECTION, old.http("/readyz")).await;
    assert!(!matches!(ready, Ok((200, _))), "{ready:?}");
    assert_eq!(old.get("before", true).await.unwrap().as_deref(), Some("x"), "what it has, it still shows");
    // The second one waits for a leader: nobody has it yet.
    assert_eq!(figure("proposals_pending").await, 1);

    let next = leader_of(&others).await;
    others[0].put("during", "x").await.unwrap();
    eventually("the others count the change", async || {
        match others[0].figure("etcd_server_leader_changes_seen_total").await {
            n if n > changes => Ok(()),
            n => Err(format!("{n}")),
        }
    })
    .await;

    let refusal = pending.await.unwrap().unwrap_err();
    assert_eq!((refusal.code(), refusal.message()), (Code::Unavailable, "etcdserver: request timed out"));
    let refusal = read.await.unwrap().unwrap_err();
    assert_eq!((refusal.code(), refusal.message()), (Code::Unavailable, "etcdserver: request timed out"));
    let refusal = late.await.unwrap().unwrap_err();
    assert_eq!((refusal.code(), refusal.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
    assert_eq!(figure("proposals_failed_total").await - failed, 2);
    assert_eq!(figure("proposals_pending").await, 0);
    assert!(figure("slow_read_indexes_total").await > 0);
    assert_eq!(figure("read_indexes_failed_total").await, 0);
    assert_eq!(old.status().await.unwrap().raft_term, term, "it asks for votes without a new term (pre-vote)");

    network.mend_all();
    assert_ne!(next, id(old).await);
    leader_of(&cluster.members.iter().collect::<Vec<_>>()).await;
    let there: Vec<String> = cluster.agreed().await.into_iter().map(|(key, ..)| key).collect();
    assert_eq!(there, ["before", "during"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_refuses_and_says_so_and_takes_nothing_along() {
    a_leader_without_a_quorum(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_does_the_same() {
    a_leader_without_a_quorum(Some(etcd_tool("etcd"))).await;
}

/// Of five, one hears nobody but is heard, and one has lost its wire to the leader alone. Both ask for votes all the time.
#[tokio::test(flavor = "multi_thread")]
async fn members_with_half_a_connection_do_not_unseat_a_leader_and_come_back_quietly() {
    let Some(network) = Network::new(5) else { return };
    let cluster = started(&network, ABCDE, &[]).await;
    // A busy machine may elect for reasons of its own; a group that is disturbed does it every time.
    for turn in 1.. {
        let leader = cluster.leader().await;
        let (deaf, apart) = ((leader + 1) % 5, (leader + 2) % 5);
        let before = cluster.members[leader].status().await.unwrap();
        (0..5).filter(|other| *other != deaf).for_each(|other| network.cut(other, deaf));
        network.cut(leader, apart);
        network.cut(apart, leader);
        for lonely in [deaf, apart] {
            leaderless(&cluster.members[lonely]).await;
        }
        // Some elections long they try.
        tokio::time::sleep(ELECTION * 3).await;
        let tried = cluster.members[deaf].status().await.unwrap();
        cluster.members[leader].put(&format!("during {turn}"), "x").await.unwrap();
        network.mend_all();
        let back = leader_of(&cluster.members.iter().collect::<Vec<_>>()).await;
        let after = cluster.members[leader].status().await.unwrap();
        if (back, tried.raft_term, after.raft_term) == (before.leader, before.raft_term, before.raft_term) {
            break;
        }
        assert!(turn < 3, "term {} became {}, the deaf one's {}", before.raft_term, after.raft_term, tried.raft_term);
    }
    cluster.agreed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_members_go_on_without_two_and_wait_without_three() {
    let Some(network) = Network::new(5) else { return };
    let cluster = started(&network, ABCDE, &[]).await;
    let load = load(&cluster, number("FERRETCD_SEED", 1));
    load.answered(100).await;
    let leader = cluster.leader().await;
    let [second, third, fourth, fifth] = [1, 2, 3, 4].map(|n| (leader + n) % 5);
    network.isolate(&[leader, second]);
    leader_of(&[&cluster.members[third], &cluster.members[fourth], &cluster.members[fifth]]).await;
    load.answered(100).await;
    network.isolate(&[third]);
    for member in &cluster.members {
        leaderless(member).await;
    }
    let refusal = cluster.members[fourth].put("k", "refused").await.unwrap_err();
    assert_eq!(refusal.code(), Code::DeadlineExceeded, "{refusal}");
    network.mend_all();
    load.answered(100).await;
    println!("{}", load.judge(&cluster, 300).await);
}

/// One round of trouble with the wires: which it was, and for how long.
fn trouble(network: &Network, hosts: usize, leader: usize, chance: &mut Chance) -> (String, Duration) {
    let any = chance.below(hosts as u64) as usize;
    let other = (any + 1 + chance.below(hosts as u64 - 1) as usize) % hosts;
    let others = |host: usize| (0..hosts).filter(move |other| *other != host);
    let what = match chance.below(7) {
        0 => {
            network.isolate(&[leader]);
            format!("{leader}, which leads, is alone")
        }
        1 => {
            network.isolate(&[any]);
            format!("{any} is alone")
        }
        2 => {
            others(leader).for_each(|other| network.cut(leader, other));
            format!("nobody hears {leader}, which leads")
        }
        3 => {
            others(leader).for_each(|other| network.cut(other, leader));
            format!("{leader}, which leads, hears nobody")
        }
        4 => {
            network.cut(any, other);
            network.cut(other, any);
            format!("{any} and {other} do not hear each other")
        }
        5 => {
            network.cut(any, other);
            format!("{other} does not hear {any}")
        }
        _ => {
            let minority: Vec<usize> = (0..hosts / 2).map(|n| (leader + n) % hosts).collect();
            network.isolate(&minority);
            format!("{minority:?} are apart, the leader among them")
        }
    };
    (what, Duration::from_millis(500 + chance.below(2500)))
}

async fn cut_at_random(names: &[&str], rounds: u64, seed: u64) {
    let Some(network) = Network::new(names.len()) else { return };
    let cluster = started(&network, names, &[]).await;
    let load = load(&cluster, seed);
    let mut chance = Chance(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    for round in 0..rounds {
        let leader = cluster.leader().await;
        let (what, time) = trouble(&network, names.len(), leader, &mut chance);
        println!("seed {seed}, round {round}: {what} for {time:?}");
        tokio::time::sleep(time).await;
        network.mend_all();
        load.answered(20).await;
    }
    println!("seed {seed}: {}", load.judge(&cluster, rounds as usize * 20).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_whose_wires_are_cut_at_random_lose_nothing_and_serve_nothing_stale() {
    let (rounds, seed) = (number("FERRETCD_ROUNDS", 4), number("FERRETCD_SEED", 1));
    cut_at_random(ABC, rounds - rounds / 4, seed).await;
    cut_at_random(ABCDE, rounds / 4, seed).await;
}

/// The files of a member's snapshots that end so, with their lengths.
fn files(member: &Member, end: &str) -> Vec<(String, u64)> {
    let entries = std::fs::read_dir(member.dir.join("member/snap")).unwrap().flatten();
    let files = entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().map_or(0, |m| m.len())));
    files.filter(|(name, _)| name.ends_with(end)).collect()
}

/// Parts of snapshots that came from the leader. A member may be about to write one of its own.
fn received(member: &Member) -> Vec<(String, u64)> {
    let parts = files(member, ".part");
    parts.into_iter().filter(|(name, _)| name.starts_with("received-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_cut_off_for_longer_than_the_log_gets_a_snapshot_though_it_is_cut_again() {
    const VALUES: usize = 12;
    let Some(network) = Network::new(3) else { return };
    let mut cluster = started(&network, ABC, &["--snapshot-count=20", "--snapshot-catchup-entries=5"]).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    network.isolate(&[away]);
    let value = "v".repeat(1 << 20);
    for n in 0..VALUES {
        cluster.members[leader].put(&format!("large{n}"), &value).await.unwrap();
    }
    let written = eventually("the leader has a snapshot", async || {
        cluster.members[leader].put("small", "x").await.unwrap();
        files(&cluster.members[leader], ".snap").first().map(|(_, bytes)| *bytes).ok_or_else(|| "none yet".to_owned())
    })
    .await;
    assert!(written > (VALUES as u64) << 20);
    // Purging follows the snapshot; more writes make sure that the log no longer begins where the other one stopped.
    for n in 0..50 {
        cluster.members[leader].put(&format!("small{n}"), "x").await.unwrap();
    }
    // What is on its way when the wires are cut arrives when they are whole again, as long as the connection lives: it is given up
    // after five silent seconds (`--raft-read-timeout`, of which this is the least).
    tokio::time::sleep(Duration::from_secs(8)).await;
    // Slow enough to see it half done; then it is cut, and then it is killed.
    network.slow(away, 2000);
    let begun = Instant::now();
    let sending =
        format!("etcd_network_snapshot_send_inflights_total{{To=\"{:x}\"}}", id(&cluster.members[away]).await);
    let mut torn = Vec::new();
    for kill in [false, true] {
        network.mend_all();
        let part = eventually("a part of a snapshot is there", async || {
            let mut parts = received(&cluster.members[away]);
            parts.retain(|(name, _)| !torn.contains(name));
            match parts.pop() {
                Some((name, bytes)) if bytes > 2 << 20 => Ok(name),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(files(&cluster.members[away], ".snap").is_empty(), "it is all there: the test tests nothing");
        println!("half done after {:?}", begun.elapsed());
        torn.push(part);
        if kill {
            cluster.members[away].kill();
            cluster.members[away].start();
        } else {
            network.isolate(&[away]);
            eventually("the leader gives it up", async || match cluster.members[leader].figure(&sending).await {
                0 => Ok(()),
                n => Err(format!("{n} on their way")),
            })
            .await;
        }
    }
    network.fast(away);
    cluster.members[away].ready().await;
    assert_eq!(cluster.agreed().await.len(), VALUES + 51);
    println!("caught up after {:?}", begun.elapsed());
    assert!(!files(&cluster.members[away], ".snap").is_empty(), "it caught up without a snapshot");
    assert_eq!(received(&cluster.members[away]), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_moves_under_load_and_the_group_outlives_a_move_to_a_member_that_is_away() {
    let Some(network) = Network::new(3) else { return };
    let cluster = started(&network, ABC, &[]).await;
    let load = load(&cluster, number("FERRETCD_SEED", 1));
    for _ in 0..4 {
        load.answered(50).await;
        eventually("it moves", async || {
            let leader = cluster.leader().await;
            let to = id(&cluster.members[(leader + 1) % 3]).await;
            cluster.members[leader].etcdctl(&["move-leader", &format!("{to:x}")])
        })
        .await;
    }
    let leader = cluster.leader().await;
    let to = (leader + 1) % 3;
    let target = id(&cluster.members[to]).await;
    network.isolate(&[to]);
    let begun = Instant::now();
    let mut maintenance = cluster.members[leader].maintenance().await;
    let refusal = maintenance.move_leader(pb::MoveLeaderRequest { target_id: target }).await.unwrap_err();
    let said = "etcdserver: request timed out, leader transfer took too long";
    assert_eq!((refusal.code(), refusal.message()), (Code::Unknown, said));
    assert!(begun.elapsed() < ELECTION * 8, "{:?}", begun.elapsed());
    // Somebody leads the two that are left, and they go on.
    leader_of(&[&cluster.members[leader], &cluster.members[(leader + 2) % 3]]).await;
    load.answered(50).await;
    network.mend_all();
    println!("{}", load.judge(&cluster, 250).await);
}

/// What an answer was, in etcd's words.
fn said<T>(answer: Result<T, tonic::Status>) -> Result<(), (Code, String)> {
    answer.map(drop).map_err(|status| (status.code(), status.message().to_owned()))
}

/// The same story for real etcd and for the server: a learner that has far less than the leader gets no vote, and does
/// not lead.
async fn a_learner_that_lags(program: Option<std::path::PathBuf>) {
    const VALUES: usize = 100;
    let Some(network) = Network::new(2) else { return };
    let mut cluster = network.cluster(&["a"]);
    let mut learner = network.member("learner", 1, cluster.tmp.path());
    for member in cluster.members.iter_mut().chain([&mut learner]) {
        if let Some(program) = &program {
            *member.program.last_mut().unwrap() = program.into();
        }
    }
    cluster.members[0].start();
    let leader = &cluster.members[0];
    leader.ready().await;
    let mut api = ClusterClient::new(leader.channel().await);
    let add = pb::MemberAddRequest { peer_ur_ls: vec![learner.peer_url()], is_learner: true };
    let id = api.member_add(add).await.unwrap().into_inner().member.unwrap().id;
    let list = format!("--initial-cluster=a={},learner={}", leader.peer_url(), learner.peer_url());
    learner.flags = vec![list, "--initial-cluster-state=existing".to_owned()];
    learner.start();
    let has = async |key: &str| match learner.get(key, true).await.map_err(|e| e.to_string())? {
        Some(_) => Ok(()),
        None => Err(format!("no {key}")),
    };
    leader.put("early", "x").await.unwrap();
    eventually("the learner was heard of", async || has("early").await).await;

    network.slow(1, 50);
    let value = "v".repeat(64 << 10);
    for n in 0..VALUES {
        leader.put(&format!("large{n}"), &value).await.unwrap();
    }
    let not_ready = "etcdserver: can only promote a learner member which is in sync with leader";
    let promote = || pb::MemberPromoteRequest { id };
    let refused = said(api.member_promote(promote()).await);
    assert_eq!(refused, Err((Code::FailedPrecondition, not_ready.to_owned())));
    let mut maintenance = leader.maintenance().await;
    let refused = said(maintenance.move_leader(pb::MoveLeaderRequest { target_id: id }).await);
    assert_eq!(refused, Err((Code::FailedPrecondition, "etcdserver: bad leader transferee".to_owned())));
    let listed = api.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner().members;
    assert_eq!(listed.iter().filter(|m| m.is_learner).count(), 1, "{listed:?}");

    network.fast(1);
    eventually("it is promoted", async || api.member_promote(promote()).await.map_err(|e| e.to_string())).await;
    eventually("it has all", async || has(&format!("large{}", VALUES - 1)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_lags_gets_no_vote_and_does_not_lead() {
    a_learner_that_lags(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_in_etcd() {
    a_learner_that_lags(Some(etcd_tool("etcd"))).await;
}

/// etcd gives up after an election time-out, too, but says so when its caller's patience ends: it then knows who leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_a_voter_that_lags_ends_soon_and_takes_nothing_along() {
    const VALUES: usize = 24;
    let Some(network) = Network::new(3) else { return };
    let cluster = started(&network, ABC, &[]).await;
    let leader = cluster.leader().await;
    let (slow, third) = ((leader + 1) % 3, (leader + 2) % 3);
    network.slow(slow, 200);
    let value = "v".repeat(256 << 10);
    for n in 0..VALUES {
        cluster.members[leader].put(&format!("large{n}"), &value).await.unwrap();
    }
    let target_id = id(&cluster.members[slow]).await;
    let mut maintenance = cluster.members[leader].maintenance().await;
    let begun = Instant::now();
    let moved = said(maintenance.move_leader(pb::MoveLeaderRequest { target_id }).await);
    let took = begun.elapsed();
    println!("{moved:?} after {took:?}");
    let late = "etcdserver: request timed out, leader transfer took too long".to_owned();
    assert_eq!(moved, Err((Code::Unknown, late)), "it has megabytes to come");
    // Two elections, and what a busy machine adds.
    assert!(took < ELECTION * 4, "{took:?}");
    // Whoever leads now has all of it, and takes more.
    leader_of(&[&cluster.members[leader], &cluster.members[third]]).await;
    eventually("writes are taken", async || cluster.members[third].put("after", "x").await.map_err(|e| e.to_string()))
        .await;
    network.fast(slow);
    assert_eq!(cluster.agreed().await.len(), VALUES + 1);
    eventually("it moves to one that has all", async || {
        let leader = cluster.leader().await;
        if leader == slow {
            return Ok(());
        }
        let mut maintenance = cluster.members[leader].maintenance().await;
        maintenance.move_leader(pb::MoveLeaderRequest { target_id }).await.map(drop).map_err(|e| e.to_string())
    })
    .await;
    assert_eq!(cluster.leader().await, slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_replaced_under_load_and_stops_when_it_hears_of_it() {
    let Some(network) = Network::new(4) else { return };
    let mut cluster = started(&network, ABC, &[]).await;
    let new = network.member("d", 3, cluster.tmp.path());
    let all = cluster.members.iter().chain([&new]).map(|m| m.client.clone()).collect();
    let load = Load::start(all, number("FERRETCD_SEED", 1), WAIT);
    load.answered(50).await;
    // Its host is gone, though it runs on there; once more for a leader.
    let gone = cluster.leader().await;
    let there = (gone + 1) % 3;
    let (old, url) = (id(&cluster.members[gone]).await, cluster.members[gone].peer_url());
    network.isolate(&[gone]);
    // Refused as unhealthy until the two others have a leader that has heard both of them lately.
    eventually("it is removed", async || cluster.members[there].etcdctl(&["member", "remove", &format!("{old:x}")]))
        .await;
    load.answered(50).await;
    eventually("another is added", async || {
        cluster.members[there].etcdctl(&["member", "add", "d", &format!("--peer-urls={}", new.peer_url())])
    })
    .await;
    let mut new = new;
    let left = cluster.members.iter().filter(|m| m.peer_url() != url).chain([&new]);
    let list: Vec<String> = left.map(|m| format!("{}={}", m.name, m.peer_url())).collect();
    new.flags = vec![format!("--initial-cluster={}", list.join(",")), "--initial-cluster-state=existing".to_owned()];
    new.start();
    new.ready().await;
    cluster.members.push(new);
    load.answered(50).await;
    assert_eq!(cluster.members[gone].has_ended(), None, "it has heard nothing");
    network.mend_all();
    assert_eq!(cluster.members[gone].ended().await, Some(1));
    let log = cluster.members[gone].log();
    assert!(log.contains("was removed from the cluster"), "{log}");
    // The new one has a vote: with it, two of three go on.
    let other = (gone + 2) % 3;
    network.isolate(&[other]);
    load.answered(50).await;
    network.mend_all();
    println!("{}", load.judge(&cluster, 200).await);
}

/// With the vote of the member that lost its disk, the one that was away would lead, without what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_an_emptied_disk_does_not_vote_for_one_that_missed_a_write() {
    let Some(network) = Network::new(3) else { return };
    let mut cluster = started(&network, ABC, &[]).await;
    let has_it = cluster.leader().await;
    let (emptied, missed) = ((has_it + 1) % 3, (has_it + 2) % 3);
    network.isolate(&[missed]);
    cluster.members[has_it].put("acknowledged", "x").await.unwrap();
    leaderless(&cluster.members[missed]).await;
    cluster.members[emptied].kill();
    std::fs::remove_dir_all(&cluster.members[emptied].dir).unwrap();
    network.isolate(&[has_it]);
    network.mend(missed, emptied);
    network.mend(emptied, missed);
    cluster.members[emptied].start();
    assert_eq!(cluster.members[emptied].ended().await, Some(78));
    let log = cluster.members[emptied].log();
    assert!(log.contains("has already been bootstrapped"), "{log}");
    assert_eq!(cluster.members[missed].status().await.unwrap().leader, 0);
    network.mend_all();
    cluster.members[missed].ready().await;
    assert_eq!(cluster.members[missed].get("acknowledged", false).await.unwrap().as_deref(), Some("x"));
    assert_eq!(cluster.agreed().await.len(), 1);
}

/// `FERRETCD_SLOW_MIB` says how much is written while one of three hears 400 kilobytes a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_behind_a_slow_wire_slows_nobody_and_takes_no_memory_of_the_leader() {
    const VALUE: usize = 128 << 10;
    /// What may be on its way to one member (64 requests of a megabyte at most), and the difference between two processes.
    const MORE_MAX: usize = 160 << 20;
    let Some(network) = Network::new(3) else { return };
    let cluster = started(&network, ABC, &["--quota-backend-bytes=8589934592"]).await;
    let leader = cluster.leader().await;
    let (slow, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let writes = (number("FERRETCD_SLOW_MIB", 12) as usize) * (1 << 20) / VALUE;
    let value = "v".repeat(VALUE);
    let write = async || {
        let begun = Instant::now();
        for n in 0..writes {
            cluster.members[leader].put(&format!("k{n}"), &value).await.unwrap();
        }
        begun.elapsed()
    };
    let well = write().await;
    network.slow(slow, 100);
    let slowed = write().await;
    // It has heard of a few of them only: nobody has waited for it.
    let applied = async |at: usize| {
        // A connection over the slow wire waits behind what fills it, and may be given up.
        let status = eventually("its status", async || cluster.members[at].status().await).await;
        status.raft_applied_index as usize
    };
    let behind = applied(leader).await - applied(slow).await;
    let (leads, follows) = (cluster.members[leader].resident_bytes(), cluster.members[other].resident_bytes());
    println!("{behind} of {writes} behind; the leader has {} MiB, the other {} MiB", leads >> 20, follows >> 20);
    println!("{slowed:?} with a slow wire, {well:?} without: {:.2}", slowed.as_secs_f64() / well.as_secs_f64());
    assert!(behind > writes / 2, "{behind} of {writes}: the writes took as long as the slow wire");
    assert!(leads < follows + MORE_MAX, "{leads} {follows}");
    // Generous: a busy machine, and one follower where two share the answers otherwise.
    assert!(slowed < well * 5 + Duration::from_secs(1), "{slowed:?} {well:?}");
    // A request of a megabyte takes seconds on that wire, and is not begun again for it.
    let at_first = applied(slow).await;
    eventually("the slow one goes on", async || match applied(slow).await {
        at if at >= at_first + 8 => Ok(()),
        at => Err(format!("{at_first}, then {at}")),
    })
    .await;
    network.fast(slow);
    let begun = Instant::now();
    assert_eq!(cluster.agreed().await.len(), writes);
    println!("caught up after {:?}", begun.elapsed());
}

/// `FERRETCD_SLOW_MIB` says how large the snapshot is: more than a segment of the log (64 MiB), which is gone when that is purged.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_over_a_slow_wire_slows_nobody_and_takes_no_memory() {
    /// How long it is on its way.
    const SECONDS: usize = 12;
    let Some(network) = Network::new(3) else { return };
    let values = number("FERRETCD_SLOW_MIB", 96) as usize;
    // No snapshot is written before all is there. They keep their leader, though the machine is busy.
    let count = format!("--snapshot-count={}", values + 20);
    let flags = ["--quota-backend-bytes=8589934592", &count, "--snapshot-catchup-entries=5"];
    let flags = [&flags[..], &["--heartbeat-interval=300", "--election-timeout=3000"]].concat();
    let mut cluster = started(&network, ABC, &flags).await;
    let leader = cluster.leader().await;
    let (away, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.members[away].kill();
    let value = "v".repeat(1 << 20);
    for n in 0..values {
        cluster.members[leader].put(&format!("large{n}"), &value).await.unwrap();
    }
    let bytes = eventually("the leader has a snapshot", async || {
        cluster.members[leader].put("small", "x").await.unwrap();
        let snapshots = files(&cluster.members[leader], ".snap");
        snapshots.first().map(|(_, bytes)| *bytes as usize).ok_or_else(|| "none yet".to_owned())
    })
    .await;
    assert!(bytes >= values << 20, "{bytes}");
    // Whoever comes back before is sent entries first, and fills its caches with them while the snapshot comes.
    let first = cluster.members[leader].dir.join("member/wal/00000001.wal");
    eventually("the log is purged", async || match first.exists() {
        true => Err(format!("{} is there", first.display())),
        false => Ok(()),
    })
    .await;
    network.slow(away, (bytes / 1024 / SECONDS) as u32);
    cluster.members[leader].forget_peak();
    let before_sending = cluster.members[leader].resident_bytes();
    let busy = [leader, third].map(|at| Busy::start(&cluster.members[at], &format!("busy{at}")));
    cluster.members[away].start();
    let part = async |least: usize| {
        let what = format!("{least} of {bytes} bytes have come");
        eventually(&what, async || match received(&cluster.members[away]).as_slice() {
            [(_, there)] if *there as usize >= least => Ok((Instant::now(), cluster.members[away].resident_bytes())),
            other => Err(format!("{other:?}")),
        })
        .await
    };
    let (begun, at_first) = part(1).await;
    let (_, at_last) = part(bytes / 10 * 9).await;
    eventually("the snapshot is there", async || match files(&cluster.members[away], ".snap").is_empty() {
        true => Err(format!("{:?}", received(&cluster.members[away]))),
        false => Ok(()),
    })
    .await;
    let took = begun.elapsed();
    network.fast(away);
    cluster.members[away].ready().await;
    let mib = |bytes: usize| bytes >> 20;
    println!("{} MiB in {took:?}", mib(bytes));
    for (at, busy) in [leader, third].into_iter().zip(busy) {
        let calls = busy.end().await;
        println!("{at}, where {leader} leads: {calls:?}");
        assert!(calls.rounds > 20, "{calls:?}");
        assert!(calls.longest_put.max(calls.longest_get) < took / 4, "{took:?} for the snapshot, and {calls:?}");
    }
    // What came is in a file and not in memory. Then it is installed: queues and caches fill as where it was written.
    let [sends, receives, writes] = [leader, away, third].map(|at| cluster.members[at].peak_bytes());
    println!("{} MiB before it is sent, then {} at most", mib(before_sending), mib(sends));
    println!("{} MiB when it begins to come, {} when it has", mib(at_first), mib(at_last));
    println!("{} MiB at most to install it, {} where it was written", mib(receives), mib(writes));
    // Caches breathe, and two processes differ; whoever held the snapshot would have all of it on top.
    let half = bytes / 2;
    assert!(at_last < at_first + half, "{at_first} {at_last} of {bytes}");
    assert!(sends < before_sending + half, "{before_sending} {sends} of {bytes}");
    assert!(receives < writes + half, "{receives} {writes} of {bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_behind_a_slow_wire_does_not_keep_the_log_from_being_purged() {
    const VALUES: usize = 12;
    let Some(network) = Network::new(3) else { return };
    let cluster = started(&network, ABC, &["--snapshot-count=20", "--snapshot-catchup-entries=5"]).await;
    let leader = cluster.leader().await;
    let slow = (leader + 1) % 3;
    let snapshots =
        format!("etcd_network_snapshot_send_inflights_total{{To=\"{:x}\"}}", id(&cluster.members[slow]).await);
    network.slow(slow, 400);
    let value = "v".repeat(1 << 20);
    for n in 0..VALUES {
        cluster.members[leader].put(&format!("large{n}"), &value).await.unwrap();
    }
    // It answers every few seconds, so that it is never given up for silence; a purge of the log waits until it is.
    eventually("it is sent a snapshot", async || {
        cluster.members[leader].put("small", "x").await.unwrap();
        match cluster.members[leader].figure(&snapshots).await {
            1 => Ok(()),
            n => Err(format!("{n} on their way")),
        }
    })
    .await;
    network.fast(slow);
    assert_eq!(cluster.agreed().await.len(), VALUES + 1);
    assert!(!files(&cluster.members[slow], ".snap").is_empty(), "it caught up without a snapshot");
}

/// Passes on what comes, so much later, as a long wire does.
async fn far(listener: TcpListener, to: String, one_way: Duration) {
    async fn late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration) {
        let (tx, mut rx) = mpsc::channel::<(Instant, Vec<u8>)>(1000);
        let reads = async move {
            let mut piece = vec![0; 1 << 16];
            while let Ok(n @ 1..) = from.read(&mut piece).await {
                if tx.send((Instant::now() + one_way, piece[..n].to_vec())).await.is_err() {
                    break;
                }
            }
        };
        let writes = async move {
            while let Some((at, piece)) = rx.recv().await {
                tokio::time::sleep_until(at.into()).await;
                if to.write_all(&piece).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(reads, writes);
    }
    while let Ok((near, _)) = listener.accept().await {
        let to = to.clone();
        tokio::spawn(async move {
            let Ok(there) = TcpStream::connect(&to).await else { return };
            let _ = (near.set_nodelay(true), there.set_nodelay(true));
            let ((near_in, near_out), (there_in, there_out)) = (near.into_split(), there.into_split());
            tokio::join!(late(near_in, there_out, one_way), late(there_in, near_out, one_way));
        });
    }
}

/// Three regions, or a line by satellite. etcd's advice for its two times is that the election be ten round trips.
#[tokio::test(flavor = "multi_thread")]
async fn a_round_trip_longer_than_the_heartbeats_interval_unseats_nobody() {
    for (one_way, flags) in [(80, &[][..]), (150, &["--heartbeat-interval=300", "--election-timeout=3000"])] {
        let one_way = Duration::from_millis(one_way);
        let mut cluster = Cluster::new(ABC);
        for member in &mut cluster.members {
            let listener = TcpListener::bind(&member.peer).await.unwrap();
            let own = free_address();
            tokio::spawn(far(listener, own.clone(), one_way));
            member.flags.push(format!("--listen-peer-urls=http://{own}"));
            member.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
            member.start();
        }
        for member in &cluster.members {
            member.ready().await;
        }
        cluster.leader().await;
        let terms = async || {
            let mut terms = Vec::new();
            for member in &cluster.members {
                terms.push(member.status().await.unwrap().raft_term);
            }
            terms
        };
        let before = terms().await;
        // Idle: what is written tells the leader that the others live, too.
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(terms().await, before, "{one_way:?}: nobody was away");
        for member in &cluster.members {
            let begun = Instant::now();
            assert_eq!(member.get("k", false).await.unwrap(), None);
            assert!(begun.elapsed() < one_way * 20, "{one_way:?}: {:?} for a read", begun.elapsed());
        }
        for (n, member) in cluster.members.iter().enumerate() {
            let begun = Instant::now();
            member.put(&format!("k{n}"), "x").await.unwrap();
            assert!(begun.elapsed() < one_way * 20, "{one_way:?}: {:?} for a put", begun.elapsed());
        }
        // A client has all of its leases on one stream.
        for member in &cluster.members {
            let mut client = LeaseClient::new(member.channel().await);
            let granted = client.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 0 }).await.unwrap().into_inner();
            let begun = Instant::now();
            let alive = tokio_stream::iter(vec![pb::LeaseKeepAliveRequest { id: granted.id }; 100]);
            let mut alive = client.lease_keep_alive(alive).await.unwrap().into_inner();
            let mut answers = 0;
            while let Some(answer) = alive.message().await.unwrap() {
                assert_eq!(answer.ttl, 600);
                answers += 1;
            }
            assert_eq!(answers, 100);
            // One after the other they take two hundred and more, alone.
            assert!(begun.elapsed() < one_way * 120, "{one_way:?}: {:?} to renew", begun.elapsed());
        }
        assert_eq!(terms().await, before, "{one_way:?}");
        for member in &cluster.members {
            let late = member.http("/metrics").await.1;
            let late = late.lines().find(|line| line.starts_with("etcd_server_heartbeat_send_failures_total"));
            println!("{one_way:?}: {late:?}");
        }
    }
}
