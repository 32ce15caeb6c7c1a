//! The two storage engines, behind real processes: what one of them does, the other does, and neither opens the
//! other's directory.

use crate::support::{Cluster, Member, eventually};
use ferretcd_proto::etcdserverpb as pb;

fn on(cluster: &mut Cluster, member: usize, engine: &str) {
    cluster.members[member].flags.push(format!("--storage-engine={engine}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn redb_keeps_what_was_written_gives_space_back_and_is_rebuilt_when_damaged() {
    let mut cluster = Cluster::new(&["solo"]);
    on(&mut cluster, 0, "redb");
    let m = &mut cluster.members[0];
    m.start();
    m.ready().await;
    let large = "x".repeat(300_000);
    for n in 0..100 {
        m.put(&format!("k{}", n % 10), &large).await.unwrap();
    }
    m.kill();
    m.start();
    m.ready().await;
    assert_eq!(m.everything().await.len(), 10);

    let revision = m.status().await.unwrap().header.unwrap().revision;
    m.etcdctl(&["compaction", "--physical", &revision.to_string()]).unwrap();
    let before = m.status().await.unwrap().db_size;
    m.maintenance().await.defragment(pb::DefragmentRequest {}).await.unwrap();
    let after = m.status().await.unwrap().db_size;
    assert!(after < before / 2, "{before} bytes before, {after} after");
    m.put("after", "the rewrite").await.unwrap();
    let everything = m.everything().await;
    assert_eq!(m.terminate().await, Some(0));

    let file = m.dir.join("member/engine.1/redb");
    let mut bytes = std::fs::read(&file).unwrap();
    // In a value: an `x` by itself may be a byte of some checksum.
    let value = bytes.windows(4096).position(|window| window.iter().all(|byte| *byte == b'x'));
    let middle = value.unwrap() + 1000;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    m.start();
    m.ready().await;
    assert_eq!(m.everything().await, everything);
    assert!(m.log().contains("setting it aside and rebuilding it"), "{}", m.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_on_different_engines_hold_the_same() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    on(&mut cluster, 0, "sled");
    on(&mut cluster, 1, "redb");
    on(&mut cluster, 2, "redb");
    cluster.members.iter_mut().for_each(Member::start);
    for member in &cluster.members {
        member.ready().await;
    }
    for n in 0..30 {
        cluster.members[n % 3].put(&format!("k{}", n % 7), &n.to_string()).await.unwrap();
    }
    cluster.agreed().await;
    let hashes = cluster.members[0].etcdctl(&["endpoint", "hashkv", "--cluster"]).unwrap();
    let hash = |line: &str| line.split_once(", ").unwrap().1.to_owned();
    let lines: Vec<String> = hashes.lines().map(hash).collect();
    assert!(lines.len() == 3 && lines.iter().all(|l| *l == lines[0]), "{hashes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_the_other_engine_is_refused_and_left_alone() {
    for (made, asked) in [("sled", "redb"), ("redb", "sled")] {
        let mut cluster = Cluster::new(&["solo"]);
        on(&mut cluster, 0, made);
        let m = &mut cluster.members[0];
        m.start();
        m.ready().await;
        m.put("k", "v").await.unwrap();
        assert_eq!(m.terminate().await, Some(0));
        m.flags.pop();
        let output = m.command(&[&format!("--storage-engine={asked}")]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(&format!("--storage-engine={made}")), "{text}");
        m.flags.push(format!("--storage-engine={made}"));
        m.start();
        eventually("it goes on as before", async || match m.get("k", false).await {
            Ok(Some(value)) if value == "v" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    let tmp = tempfile::tempdir().unwrap();
    let m = Member::new("solo", tmp.path());
    let output = m.command(&["--storage-engine=bolt"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("--storage-engine") && text.contains("use sled or redb"), "{text}");
    assert!(!m.dir.exists());
}
