//! Changes of the members that go beyond a learner's way: a second voter, and a member that goes on alone.

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::cluster_client::ClusterClient;
use support::etcd::Etcd;
use support::{Cluster, Member, eventually};

const ABC: &[&str] = &["a", "b", "c"];

/// The IDs aside, what a member says to three commands of somebody who adds voters.
fn second_voter(member: &Member, url: &str) -> Vec<String> {
    let said = |args: &[&str]| match member.etcdctl(args) {
        Ok(out) => out,
        Err(e) => e.lines().rfind(|line| line.starts_with("Error")).unwrap_or(&e).to_owned(),
    };
    let added = said(&["member", "add", "second", &format!("--peer-urls={url}")]);
    let list = said(&["member", "list", "--consistency=s"]);
    let again = said(&["member", "add", "third", "--peer-urls=http://127.0.0.1:2"]);
    let unhex = |text: &str| {
        let is_id = |word: &str| word.len() >= 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
        let words = text.split([' ', ',', '\n']).filter(|word| !word.is_empty());
        words.map(|word| if is_id(word) { "ID" } else { word }).collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = added.lines().take(1).map(unhex).collect();
    let mut listed: Vec<String> =
        list.lines().map(|line| unhex(line).replace(&member.client, "CLIENT")).filter(|l| l.contains(url)).collect();
    lines.append(&mut listed);
    lines.push(format!("{} members", list.lines().count()));
    lines.push(again.trim().to_owned());
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_voter_is_a_member_at_once_as_in_etcd() {
    let etcd = Etcd::start(&[]).await;
    let mut cluster = Cluster::start(&["solo"]).await;
    cluster.members[0].put("before", "x").await.unwrap();
    let mut second = Member::new("second", cluster.tmp.path());
    let url = second.peer_url();
    let theirs = second_voter(&Member::at(&etcd.client, cluster.tmp.path()), &url);
    let ours = second_voter(&cluster.members[0], &url);
    assert_eq!(ours, theirs);
    assert!(ours.last().unwrap().contains("not enough started members"), "{ours:?}");

    // Two voters are in force: nothing is committed until the second one runs, though the first is started again.
    let alone = cluster.members[0].etcdctl(&["put", "alone", "x", "--command-timeout=1s"]);
    assert!(alone.is_err(), "{alone:?}");
    cluster.members[0].kill();
    cluster.members[0].start();
    let both = format!("solo={},second={url}", cluster.members[0].peer_url());
    second.flags = vec![format!("--initial-cluster={both}"), "--initial-cluster-state=existing".to_owned()];
    second.start();
    cluster.members.push(second);
    for member in &cluster.members {
        member.ready().await;
    }
    cluster.members[1].put("both", "x").await.unwrap();
    assert_eq!(cluster.members[0].get("before", false).await.unwrap().as_deref(), Some("x"));
    cluster.agreed().await;
}

/// Adds a voter through `cluster.members[0]`, starts it, and waits until it serves.
async fn grow(cluster: &mut Cluster, name: &str) {
    let mut new = Member::new(name, cluster.tmp.path());
    let url = new.peer_url();
    let mut api = ClusterClient::new(cluster.members[0].channel().await);
    // Refused as unhealthy while a voter was not heard from lately, which a busy machine makes happen.
    let added = eventually("it is added", async || {
        let request = pb::MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: false };
        api.member_add(request).await.map_err(|e| e.to_string())
    })
    .await
    .into_inner();
    let listed: Vec<String> = added.members.iter().flat_map(|m| m.peer_ur_ls.clone()).collect();
    assert!(listed.contains(&url), "{listed:?}");
    let list: Vec<String> = cluster
        .members
        .iter()
        .filter(|m| m.runs())
        .chain([&new])
        .map(|m| format!("{}={}", m.name, m.peer_url()))
        .collect();
    new.flags = vec![format!("--initial-cluster={}", list.join(",")), "--initial-cluster-state=existing".to_owned()];
    new.start();
    new.ready().await;
    cluster.members.push(new);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_member_goes_on_alone_with_all_that_was_acknowledged_and_grows_again() {
    let mut cluster = Cluster::start(ABC).await;
    let leader = cluster.leader().await;
    cluster.members.swap(0, (leader + 1) % 3);
    for i in 0..200 {
        cluster.members[1].put(&format!("k{i:03}"), &i.to_string()).await.unwrap();
    }
    let cluster_id = cluster.members[0].status().await.unwrap().header.unwrap().cluster_id;
    let wanted = cluster.agreed().await;
    cluster.members.iter_mut().for_each(Member::kill);

    cluster.members[0].flags.push("--force-new-cluster-once=fire".to_owned());
    cluster.members[0].start();
    cluster.members[0].ready().await;
    assert_eq!(cluster.members[0].everything().await, wanted);
    assert_eq!(cluster.members[0].status().await.unwrap().header.unwrap().cluster_id, cluster_id);
    assert_eq!(cluster.members[0].etcdctl(&["member", "list"]).unwrap().lines().count(), 1);
    cluster.members[0].put("alone", "x").await.unwrap();

    // One that comes back is told to go, and both of them do not make a second history.
    for at in [1, 2] {
        cluster.members[at].start();
    }
    for at in [1, 2] {
        assert_eq!(cluster.members[at].ended().await, Some(1));
        assert!(cluster.members[at].log().contains("was removed from the cluster"), "{}", cluster.members[at].log());
    }
    grow(&mut cluster, "d").await;
    cluster.members[3].put("grown", "x").await.unwrap();

    // The flag is still set: nothing happens again under the same name.
    cluster.members[0].kill();
    cluster.members[0].start();
    cluster.members[0].ready().await;
    assert_eq!(cluster.members[0].etcdctl(&["member", "list"]).unwrap().lines().count(), 2);
    let all = cluster.agreed().await;
    assert_eq!(all.len(), wanted.len() + 2);
    assert!(wanted.iter().all(|entry| all.contains(entry)), "revisions included");

    // etcd's own flag is followed at every start.
    cluster.members[3].kill();
    cluster.members[0].kill();
    cluster.members[0].flags.retain(|flag| !flag.starts_with("--force-new-cluster"));
    for _ in 0..2 {
        let command = cluster.members[0].command(&["--force-new-cluster"]);
        cluster.members[0].start_as(command);
        cluster.members[0].ready().await;
        assert_eq!(cluster.members[0].etcdctl(&["member", "list"]).unwrap().lines().count(), 1);
        assert_eq!(cluster.members[0].everything().await, all);
        cluster.members[0].kill();
    }
}

/// It has voted, perhaps: who comes back without its disk is another member.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joined_and_lost_its_disk_does_not_join_again() {
    let mut cluster = Cluster::start(&["solo"]).await;
    cluster.members[0].put("k", "v").await.unwrap();
    grow(&mut cluster, "second").await;
    let second = &mut cluster.members[1];
    second.kill();
    std::fs::remove_dir_all(&second.dir).unwrap();
    for intent in ["join", "run"] {
        let command = second.command(&[&format!("--member-intent={intent}")]);
        second.start_as(command);
        assert_eq!(second.ended().await, Some(78), "{}", second.log());
        let told = if intent == "join" { "has already been bootstrapped" } else { "holds no member" };
        let log = second.log();
        let said = log.lines().last().unwrap_or_default();
        assert!(said.contains(told) && said.contains("remove the member"), "{log}");
    }
}
