//! Maintenance and membership as an operator of etcd does them: downgrade, hash, member update, through the process.

use crate::support::{Busy, Cluster, Member, eventually};
use ferretcd_proto::etcdserverpb as pb;
use pb::maintenance_client::MaintenanceClient;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;
use tonic::transport::Endpoint;

const ABC: &[&str] = &["a", "b", "c"];

async fn hash(member: &Member) -> u32 {
    member.maintenance().await.hash(pb::HashRequest {}).await.unwrap().into_inner().hash
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downgrade_is_checked_begun_and_cancelled_as_in_etcd() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let refused = |args: &[&str], why: &str| {
        let told = m.etcdctl(args).unwrap_err();
        assert!(told.ends_with(&format!("Error: {why}\n")), "{told}");
    };
    refused(&["downgrade", "validate", "3.5"], "etcdserver: invalid downgrade target version");
    refused(&["downgrade", "enable", "3.8"], "etcdserver: invalid downgrade target version");
    refused(&["downgrade", "validate", "three"], "etcdserver: wrong downgrade target version format");
    assert_eq!(
        m.etcdctl(&["downgrade", "validate", "3.6.2"]).unwrap(),
        "Downgrade validate success, cluster version 3.7\n"
    );
    assert_eq!(m.status().await.unwrap().downgrade_info, Some(pb::DowngradeInfo::default()));
    assert_eq!(m.etcdctl(&["downgrade", "cancel"]).unwrap(), "Downgrade cancel success, cluster version 3.7\n");

    assert_eq!(m.etcdctl(&["downgrade", "enable", "3.6"]).unwrap(), "Downgrade enable success, cluster version 3.7\n");
    // The version may have come down by now, and then 3.6 is no step below it.
    let again = m.etcdctl(&["downgrade", "enable", "3.6"]).unwrap_err();
    let (busy, down) = ("cluster has a downgrade job in progress\n", "invalid downgrade target version\n");
    assert!(again.ends_with(busy) || again.ends_with(down), "{again}");
    let info = pb::DowngradeInfo { enabled: true, target_version: "3.6.0".into() };
    assert_eq!(m.status().await.unwrap().downgrade_info, Some(info));
    eventually("the cluster version goes down", async || {
        let versions = m.http("/version").await.1;
        let down = r#"{"etcdserver":"3.7.1","etcdcluster":"3.6.0","storage":"3.6.0"}"#;
        if versions == down { Ok(()) } else { Err(versions) }
    })
    .await;
    assert_eq!(m.status().await.unwrap().storage_version, "3.6.0");
    assert_eq!(m.etcdctl(&["downgrade", "cancel"]).unwrap(), "Downgrade cancel success, cluster version 3.6\n");
    assert_eq!(m.status().await.unwrap().downgrade_info, Some(pb::DowngradeInfo::default()));
    eventually("the cluster version comes back", async || {
        let version = m.status().await?.storage_version;
        if version == "3.7.0" { Ok(()) } else { Err(version) }
    })
    .await;
    let action = |action| pb::DowngradeRequest { action, version: "3.6".into() };
    let unknown = m.maintenance().await.downgrade(action(7)).await.unwrap_err();
    assert_eq!(unknown.message(), "etcdserver: unknown method");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_have_one_hash_and_it_changes_with_the_data() {
    let mut cluster = Cluster::start(ABC).await;
    for n in 0..50 {
        cluster.members[n % 3].put("k", &n.to_string()).await.unwrap();
    }
    cluster.members[0].etcdctl(&["compaction", "30"]).unwrap();
    let agreed = async |cluster: &Cluster| {
        eventually("all members have one hash", async || {
            let mut all = Vec::new();
            for m in &cluster.members {
                all.push(hash(m).await);
            }
            if all.iter().all(|h| *h == all[0]) { Ok(all[0]) } else { Err(format!("{all:x?}")) }
        })
        .await
    };
    let before = agreed(&cluster).await;
    cluster.members[1].etcdctl(&["lease", "grant", "100"]).unwrap();
    let after = agreed(&cluster).await;
    assert_ne!(after, before);
    cluster.members[2].kill();
    cluster.members[2].start();
    cluster.members[2].ready().await;
    assert_eq!(agreed(&cluster).await, after);
    let hashes = cluster.members[0].etcdctl(&["endpoint", "hashkv", "--cluster"]).unwrap();
    let parts = |line: &str| line.split_once(", ").unwrap().1.to_owned();
    let lines: Vec<String> = hashes.lines().map(parts).collect();
    assert!(lines.len() == 3 && lines.iter().all(|l| *l == lines[0]), "{hashes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_moves_to_another_peer_address() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("before", "x").await.unwrap();
    let mut ids = Vec::new();
    for m in &cluster.members {
        ids.push(format!("{:x}", m.status().await.unwrap().header.unwrap().member_id));
    }
    // A follower first, asked of another follower; then the member that leads.
    let leader = cluster.leader().await;
    for (round, moving) in [(leader + 1) % 3, leader].into_iter().enumerate() {
        let asked = (leader + 2) % 3;
        let place = Member::new("place", cluster.tmp.path());
        let urls = format!("--peer-urls={}", place.peer_url());
        let said = cluster.members[asked].etcdctl(&["member", "update", &ids[moving], &urls]).unwrap();
        assert!(said.starts_with(&format!("Member {:>16} updated in cluster", ids[moving])), "{said}");
        assert!(cluster.members[asked].etcdctl(&["member", "list"]).unwrap().contains(&place.peer_url()));
        assert_eq!(cluster.members[moving].terminate().await, Some(0));
        cluster.members[moving].peer = place.peer.clone();
        cluster.members[moving].start();
        cluster.members[moving].ready().await;
        cluster.members[asked].put(&format!("moved{round}"), "x").await.unwrap();
    }
    assert_eq!(cluster.agreed().await.len(), 3);
    // All three still make up quorums with one another: any one may be away.
    for away in 0..3 {
        cluster.members[away].kill();
        let other = (away + 1) % 3;
        cluster.leader().await;
        cluster.members[other].ready().await;
        cluster.members[other].put(&format!("without{away}"), "x").await.unwrap();
        cluster.members[away].start();
        cluster.members[away].ready().await;
    }
    assert_eq!(cluster.agreed().await.len(), 6);

    let refused = |args: &[&str], why: &str| {
        let told = cluster.members[0].etcdctl(args).unwrap_err();
        assert!(told.ends_with(&format!("Error: {why}\n")), "{told}");
    };
    refused(&["member", "update", "1234", "--peer-urls=http://127.0.0.1:1"], "etcdserver: member not found");
    let taken = format!("--peer-urls={}", cluster.members[1].peer_url());
    refused(&["member", "update", &ids[0], &taken], "etcdserver: Peer URLs already exists");
}

/// The store is rewritten in pieces, and a call waits for one of them at most: a small part of a hundred megabytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_defragmentation_takes_long_and_no_call_waits_for_all_of_it() {
    const VALUES: usize = 100;
    let cluster = Cluster::start_with(&["solo"], &["--heartbeat-interval=300", "--election-timeout=3000"]).await;
    let m = &cluster.members[0];
    let value = "x".repeat(1 << 20);
    for n in 0..VALUES {
        m.put(&format!("k{n}"), &value).await.unwrap();
    }
    let busy = Busy::start(m, "busy");
    let begun = Instant::now();
    // Longer than a client of these tests has patience for one call.
    let endpoint = Endpoint::from_shared(format!("http://{}", m.client)).unwrap().connect_lazy();
    MaintenanceClient::new(endpoint).defragment(pb::DefragmentRequest {}).await.unwrap();
    let took = begun.elapsed();
    let calls = busy.end().await;
    println!("{took:?} for {} bytes; {calls:?}", m.status().await.unwrap().db_size);
    let longest = calls.longest_put.max(calls.longest_get);
    assert!(longest < took / 4, "{took:?} for all, and {calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn defragmenting_gives_space_back_while_the_member_serves() {
    let mut cluster = Cluster::start(&["solo"]).await;
    let value = "x".repeat(200_000);
    for n in 0..300 {
        cluster.members[0].put(&format!("k{}", n % 10), &value).await.unwrap();
    }
    let revision = cluster.members[0].status().await.unwrap().header.unwrap().revision;
    let m = &cluster.members[0];
    m.etcdctl(&["compaction", "--physical", &revision.to_string()]).unwrap();
    let before = m.status().await.unwrap();
    // Writes and reads go on while the store is rewritten, and none of them is lost.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let busy = async {
        let mut written = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            m.put("busy", &written.to_string()).await.unwrap();
            assert_eq!(m.get("k3", true).await.unwrap().unwrap().len(), value.len());
            written += 1;
        }
        written
    };
    let defragment = async {
        for _ in 0..3 {
            let mut client = m.maintenance().await;
            client.defragment(pb::DefragmentRequest {}).await.unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (written, ()) = tokio::join!(busy, defragment);
    let after = m.status().await.unwrap();
    assert!(
        after.db_size < before.db_size / 2,
        "{} bytes before, {} after, {} in use",
        before.db_size,
        after.db_size,
        after.db_size_in_use
    );
    assert!(m.etcdctl(&["defrag"]).unwrap().starts_with("Finished defragmenting etcd member"));
    let everything = m.everything().await;
    cluster.members[0].kill();
    cluster.members[0].start();
    cluster.members[0].ready().await;
    assert_eq!(cluster.members[0].everything().await, everything);
    assert_eq!(cluster.members[0].get("busy", false).await.unwrap(), Some((written - 1).to_string()));
    assert!(!cluster.members[0].log().contains("setting it aside"), "{}", cluster.members[0].log());
}

/// A snapshot that nobody reads keeps compacted records from being deleted, and people's scripts go on compacting.
#[tokio::test(flavor = "multi_thread")]
async fn compactions_that_wait_take_no_thread_from_others() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    // More than what is in flight of a stream that is not read.
    for n in 0..20 {
        m.put(&format!("large{n}"), &"x".repeat(1 << 20)).await.unwrap();
    }
    // Without a time-out of its own.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", m.client)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let unread = MaintenanceClient::new(channel.clone()).snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    let kv = pb::kv_client::KvClient::new(channel);
    let mut waiting = tokio::task::JoinSet::new();
    // More than tokio has threads for work that blocks.
    for n in 0..560 {
        let revision = m.put("k", &n.to_string()).await.unwrap();
        let mut kv = kv.clone();
        let request = pb::CompactionRequest { revision, physical: true };
        waiting.spawn(async move { kv.compact(request).await.map(drop) });
    }
    // None is on its way any more.
    let newest = m.put("k", "newest").await.unwrap();
    eventually("the last one is taken", async || {
        let asked = pb::RangeRequest { key: "k".into(), revision: newest - 2, ..Default::default() };
        match m.kv().await.range(asked).await {
            Err(e) if e.message().contains("compacted") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // The first find nothing to delete, and one that a later one overtook is refused.
    while waiting.try_join_next().is_some() {}
    assert!(waiting.len() > 512, "{} wait: this test sees nothing", waiting.len());
    // Another one is read, on such a thread, and the member goes on.
    let mut other = m.maintenance().await.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    assert!(other.message().await.unwrap().is_some());
    assert_eq!(m.everything().await.len(), 21);
    m.put("k", "goes on").await.unwrap();
    drop((unread, other));
    while let Some(done) = waiting.join_next().await {
        let done = done.unwrap();
        assert!(done.is_ok(), "{done:?}");
    }
}

/// Where a member's store is: names, and which file or directory it is that has the name.
fn stores(member: &Member) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(member.dir.join("member")).unwrap().map(Result::unwrap);
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino()));
    named.filter(|(name, _)| name.starts_with("engine")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn defragmenting_one_member_leaves_the_others_alone() {
    let cluster = Cluster::start(ABC).await;
    let leader = cluster.leader().await;
    let value = "x".repeat(200_000);
    for n in 0..100 {
        cluster.members[leader].put(&format!("k{}", n % 5), &value).await.unwrap();
    }
    let revision = cluster.members[leader].status().await.unwrap().header.unwrap().revision;
    cluster.members[leader].etcdctl(&["compaction", "--physical", &revision.to_string()]).unwrap();
    let everything = cluster.agreed().await;
    eventually("every member has deleted what was overwritten", async || {
        for m in &cluster.members {
            let in_use = m.status().await?.db_size_in_use;
            if in_use > 10 * value.len() as i64 {
                return Err(format!("{} has {in_use} bytes in use", m.name));
            }
        }
        Ok(())
    })
    .await;
    let look = async || {
        let mut all = Vec::new();
        for m in &cluster.members {
            all.push((m.status().await.unwrap().db_size, stores(m), hash(m).await));
        }
        all
    };
    // A follower, and then the member that leads.
    for one in [(leader + 1) % 3, leader] {
        let before = look().await;
        cluster.members[one].maintenance().await.defragment(pb::DefragmentRequest {}).await.unwrap();
        let after = look().await;
        for (at, ((size_before, stores_before, hash), (size, stores, hash_after))) in
            before.iter().zip(&after).enumerate()
        {
            let name = &cluster.members[at].name;
            assert_eq!((hash_after, hash), (hash, &before[0].2), "{name}");
            if at == one {
                assert!(*size < size_before / 2, "{name}: {size_before} bytes before, {size} after");
                assert_ne!(stores, stores_before, "{name}: it was rewritten");
            } else {
                // What is still on its way to the disk may come meanwhile, but nothing goes.
                assert!(size >= size_before, "{name}: {size_before} bytes before, {size} after");
                assert_eq!(stores, stores_before, "{name}");
            }
        }
    }
    assert_eq!(cluster.agreed().await, everything);
}
