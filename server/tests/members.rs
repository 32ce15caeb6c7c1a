//! Changes of the members that go beyond a learner's way: a second voter, and a member that goes on alone.

use crate::support::etcd::Etcd;
use crate::support::{Cluster, Member, PATIENCE, eventually};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::cluster_client::ClusterClient;
use tonic::transport::Endpoint;

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

/// Or the other way round. (`127.1` is a name to all but the resolver.)
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_added_by_its_hosts_name_is_started_by_its_address() {
    let mut cluster = Cluster::start(&["solo"]).await;
    let mut second = Member::new("second", cluster.tmp.path());
    let named = second.peer_url().replace("127.0.0.1", "127.1");
    cluster.members[0].etcdctl(&["member", "add", "second", &format!("--peer-urls={named}")]).unwrap();
    let both = format!("solo={},second={}", cluster.members[0].peer_url(), second.peer_url());
    second.flags = vec![format!("--initial-cluster={both}"), "--initial-cluster-state=existing".to_owned()];
    second.start();
    cluster.members.push(second);
    for member in &cluster.members {
        member.ready().await;
    }
    let list = cluster.members[0].etcdctl(&["member", "list"]).unwrap();
    assert!(list.contains(&format!("second, {named}")), "{list}");
}

/// Adds a voter through `cluster.members[0]`, starts it, and waits until it serves.
async fn grow(cluster: &mut Cluster, name: &str) {
    grow_with(cluster, name, &[]).await;
}

async fn grow_with(cluster: &mut Cluster, name: &str, flags: &[&str]) {
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
    new.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    new.start();
    new.ready().await;
    cluster.members.push(new);
}

/// ID, peer URLs, and whether it is a learner.
type Listed = (u64, Vec<String>, bool);

async fn list(member: &Member, linearizable: bool) -> Result<Vec<Listed>, String> {
    let request = pb::MemberListRequest { linearizable };
    let answer = ClusterClient::new(member.channel().await).member_list(request).await.map_err(|e| e.to_string())?;
    let members = answer.into_inner().members.into_iter();
    let mut listed: Vec<_> = members.map(|m| (m.id, m.peer_ur_ls, m.is_learner)).collect();
    listed.sort_unstable();
    Ok(listed)
}

/// The members that all who run list alike, when they have applied all.
async fn listed_by_all(cluster: &Cluster) -> Vec<Listed> {
    eventually("all list the same members", async || {
        let mut lists = Vec::new();
        for member in cluster.members.iter().filter(|m| m.runs()) {
            lists.push(list(member, true).await?);
        }
        match lists.iter().all(|list| *list == lists[0]) {
            true => Ok(lists.remove(0)),
            false => Err(format!("{lists:x?}")),
        }
    })
    .await
}

async fn add(member: &Member, url: &str, is_learner: bool) -> Result<Listed, tonic::Status> {
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };
    let answer = ClusterClient::new(member.channel().await).member_add(request).await?;
    let added = answer.into_inner().member.unwrap();
    Ok((added.id, added.peer_ur_ls, added.is_learner))
}

async fn remove(member: &Member, id: u64) -> Result<(), tonic::Status> {
    ClusterClient::new(member.channel().await).member_remove(pb::MemberRemoveRequest { id }).await.map(drop)
}

/// What was done. The other one of two may be refused for what the first has changed, or be told to come again.
fn done<T>(answer: Result<T, tonic::Status>, refusals: &[&str]) -> Option<T> {
    let is_refusal = |e: &tonic::Status| [refusals, &["etcdserver: unhealthy cluster"]].concat().contains(&e.message());
    answer.inspect_err(|e| assert!(is_refusal(e), "{e}")).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_changes_that_come_together_one_is_done_or_both_and_none_in_part() {
    const ROUNDS: usize = 8;
    const LEARNERS_MAX: usize = 2;
    const TOO_MANY: &str = "etcdserver: too many learner members in cluster";
    let flags = ["--max-learners=2", "--heartbeat-interval=300", "--election-timeout=3000"];
    let mut cluster = Cluster::start_with(ABC, &flags).await;
    let voters = listed_by_all(&cluster).await;
    let mut both = 0;
    for round in 0..ROUNDS {
        let [a, b] = [round, round + 1].map(|at| &cluster.members[at % 3]);
        let url = |which: usize| format!("http://127.0.0.1:{}", 1 + 10 * round + which);
        let mut known = voters.clone();
        let changed = async |known: &mut Vec<Listed>| {
            known.sort_unstable();
            assert_eq!(listed_by_all(&cluster).await, *known, "round {round}");
        };
        // Two adds, for both of which there is a place.
        let (first, second) = (url(0), url(1));
        let (first, second) = tokio::join!(add(a, &first, true), add(b, &second, true));
        let added: Vec<Listed> = [first, second].into_iter().filter_map(|added| done(added, &[])).collect();
        assert!(!added.is_empty(), "round {round}: neither was done");
        both += usize::from(added.len() == 2);
        known.extend(added.clone());
        changed(&mut known).await;

        // A removal, and an add that may need its place.
        let (gone, third) = (added[0].0, url(2));
        let (removed, third) = tokio::join!(remove(a, gone), add(b, &third, true));
        let (removed, third) = (done(removed, &[]), done(third, &[TOO_MANY]));
        assert!(removed.is_some() || third.is_some(), "round {round}: neither was done");
        both += usize::from(removed.is_some() && third.is_some());
        known.retain(|m| removed.is_none() || m.0 != gone);
        known.extend(third);
        assert!(known.len() <= voters.len() + LEARNERS_MAX, "{known:x?}");
        changed(&mut known).await;

        // The same one, removed twice; and one place for two.
        for (id, _, is_learner) in known.clone() {
            if is_learner {
                let gone = ["etcdserver: member not found"];
                let (first, second) = tokio::join!(remove(a, id), remove(b, id));
                assert!(done(first, &gone).is_some() != done(second, &gone).is_some(), "round {round}");
            }
        }
        known.retain(|m| !m.2);
        changed(&mut known).await;
        let place = url(3);
        let (first, second) = tokio::join!(add(a, &place, true), add(b, &place, true));
        let taken = ["etcdserver: Peer URLs already exists"];
        let added: Vec<Listed> = [first, second].into_iter().filter_map(|added| done(added, &taken)).collect();
        assert_eq!(added.len(), 1, "round {round}: {added:x?}");
        known.extend(added.clone());
        changed(&mut known).await;
        if round + 1 < ROUNDS {
            remove(a, added[0].0).await.unwrap();
        }
    }
    println!("of {} pairs both were done {both} times", 2 * ROUNDS);
    let known = listed_by_all(&cluster).await;
    cluster.members.iter_mut().for_each(Member::kill);
    cluster.members.iter_mut().for_each(Member::start);
    assert_eq!(listed_by_all(&cluster).await, known);
}

/// The leader that is left writes an entry, which counts for all once there is a quorum; nobody else writes one.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_url_that_is_changed_without_a_quorum_is_changed_for_all_or_for_none() {
    for leads in [true, false] {
        let mut cluster = Cluster::start(ABC).await;
        let before = listed_by_all(&cluster).await;
        let left = cluster.leader().await;
        let (moved, other) = ((left + 1) % 3, (left + 2) % 3);
        let id = cluster.members[moved].status().await.unwrap().header.unwrap().member_id;
        let place = Member::new("place", cluster.tmp.path());
        for at in [moved, other] {
            cluster.members[at].kill();
        }
        if !leads {
            eventually("it has nobody to lead", async || match cluster.members[left].status().await?.leader {
                0 => Ok(()),
                leader => Err(format!("it names {leader:x}")),
            })
            .await;
        }
        let update = pb::MemberUpdateRequest { id, peer_ur_ls: vec![place.peer_url()] };
        let channel = Endpoint::from_shared(format!("http://{}", cluster.members[left].client)).unwrap();
        let mut api = ClusterClient::new(channel.connect_lazy());
        let answer = tokio::time::timeout(PATIENCE, api.member_update(update)).await.expect("it is answered");
        let refused = answer.unwrap_err();
        println!("leads: {leads}: {refused}");
        assert!(list(&cluster.members[left], true).await.is_err(), "there is no quorum");

        cluster.members[other].start();
        cluster.members[other].ready().await;
        let listed = listed_by_all(&cluster).await;
        let has_moved = listed != before;
        if has_moved {
            let mut after = before.clone();
            after.iter_mut().filter(|m| m.0 == id).for_each(|m| m.1 = vec![place.peer_url()]);
            assert_eq!(listed, after);
            cluster.members[moved].peer = place.peer.clone();
        }
        println!("leads: {leads}, has moved: {has_moved}");
        assert!(leads || !has_moved, "nobody could write it");
        cluster.members[moved].start();
        cluster.members[moved].ready().await;
        assert_eq!(listed_by_all(&cluster).await, listed);
        // It is reached where the list says: with it, one of the others may go.
        cluster.members[left].kill();
        cluster.members[moved].put("after", "x").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_member_goes_on_alone_with_all_that_was_acknowledged_and_grows_again() {
    // Who begins with nothing has used the word up: a supervisor leaves the flag set.
    let mut cluster = Cluster::start_with(ABC, &["--force-new-cluster-once=begin"]).await;
    cluster.members[0].kill();
    cluster.members[0].start();
    cluster.members[0].ready().await;
    assert_eq!(cluster.members[0].etcdctl(&["member", "list"]).unwrap().lines().count(), 3);
    cluster.members.iter_mut().for_each(|m| m.flags.retain(|flag| !flag.starts_with("--force-new-cluster")));

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
    grow_with(&mut cluster, "d", &["--force-new-cluster-once=fire"]).await;
    cluster.members[3].put("grown", "x").await.unwrap();
    cluster.members[3].kill();
    cluster.members[3].start();
    cluster.members[3].ready().await;
    assert_eq!(cluster.members[3].etcdctl(&["member", "list"]).unwrap().lines().count(), 2);

    // The flag is still set: nothing happens again under the same name, and a name that cannot be read is not taken for another.
    cluster.members[0].kill();
    let mark = cluster.members[0].dir.join("member/forced");
    let right = std::fs::read(&mark).unwrap();
    for at in [0, right.len() / 2, right.len() - 2] {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        std::fs::write(&mark, wrong).unwrap();
        cluster.members[0].start();
        assert_ne!(cluster.members[0].ended().await, Some(0));
        let log = cluster.members[0].log();
        assert!(log.lines().last().unwrap_or_default().contains(mark.to_str().unwrap()), "byte {at}: {log}");
    }
    std::fs::write(&mark, right).unwrap();
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
