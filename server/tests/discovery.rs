//! Members that find each other through another etcd cluster, as real etcd does.

use crate::support::etcd::Etcd;
use crate::support::{Cluster, Member, etcd_tool, eventually};
use std::process::{Child, Command, Stdio};

fn by_discovery(member: &mut Member, service: &str) {
    member.flags =
        vec!["--discovery-token=tok".to_owned(), format!("--discovery-endpoints=http://127.0.0.1:1,http://{service}")];
}

#[tokio::test(flavor = "multi_thread")]
async fn members_find_each_other_once_and_need_the_service_no_more() {
    let etcd = Etcd::start(&[]).await;
    let tmp = tempfile::tempdir().unwrap();
    let service = Member::at(&etcd.client, tmp.path());
    let mut members: Vec<Member> = ["a", "b", "late"].map(|name| Member::new(name, tmp.path())).into();
    members.iter_mut().for_each(|m| by_discovery(m, &etcd.client));

    // Nobody said how many there are to be.
    members[0].start();
    assert_eq!(members[0].ended().await, Some(1));
    assert!(members[0].log().contains("discovery: size key not found"), "{}", members[0].log());
    service.etcdctl(&["put", "/_etcd/registry/tok/_config/size", "2"]).unwrap();

    members[0].start();
    eventually("the first registers", async || {
        let keys = service.etcdctl(&["get", "/_etcd/registry/tok/members/", "--prefix"])?;
        keys.contains(&members[0].peer_url()).then_some(()).ok_or(keys)
    })
    .await;
    // One that is killed while it waits finds its own key again.
    members[0].kill();
    members[0].start();
    members[1].start();
    for member in &members[..2] {
        member.ready().await;
    }
    // Its keys are etcd's: each member's ID, and its name and URLs.
    let list = members[0].etcdctl(&["member", "list"]).unwrap();
    let mut expected: Vec<String> = list
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(", ").collect();
            format!("/_etcd/registry/tok/members/{}\n{}={}", fields[0], fields[2], fields[3])
        })
        .collect();
    expected.sort_unstable();
    let found = service.etcdctl(&["get", "/_etcd/registry/tok/members/", "--prefix"]).unwrap();
    assert_eq!(found.trim(), expected.join("\n"));

    members[2].start();
    assert_eq!(members[2].ended().await, Some(1));
    assert!(members[2].log().contains("discovery: cluster is full"), "{}", members[2].log());

    drop(etcd);
    members[0].put("k", "v").await.unwrap();
    members[1].kill();
    members[1].start();
    members[1].ready().await;
    assert_eq!(members[1].get("k", false).await.unwrap().as_deref(), Some("v"));
}

/// Ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_real_etcd_find_each_other_through_ours() {
    let cluster = Cluster::start(&["solo"]).await;
    let service = &cluster.members[0];
    service.put("/_etcd/registry/tok/_config/size", "2").await.unwrap();
    let members: Vec<Member> = ["a", "b"].map(|name| Member::new(name, cluster.tmp.path())).into();
    let _running: Vec<Ends> = members
        .iter()
        .map(|m| {
            let child = Command::new(etcd_tool("etcd"))
                .env_clear()
                .args([format!("--name={}", m.name), format!("--data-dir={}", m.dir.display())])
                .args([format!("--listen-client-urls=http://{}", m.client)])
                .args([format!("--advertise-client-urls=http://{}", m.client)])
                .args([format!("--listen-peer-urls={}", m.peer_url())])
                .args([format!("--initial-advertise-peer-urls={}", m.peer_url())])
                .args(["--discovery-token=tok".to_owned(), format!("--discovery-endpoints=http://{}", service.client)])
                .args(["--log-level=error", "--unsafe-no-fsync"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            Ends(child)
        })
        .collect();
    eventually("they serve", async || members[0].etcdctl(&["put", "k", "v"])).await;
    assert_eq!(members[1].etcdctl(&["member", "list"]).unwrap().lines().count(), 2);
}
