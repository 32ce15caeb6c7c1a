//! Data directories of earlier releases, as a process left them: today's starts on them, and holds what they held. See
//! `golden/README.md`.

use crate::support::{Cluster, Member, eventually};
use ferretcd_proto::etcdserverpb as pb;
use std::fs;
use std::path::{Path, PathBuf};

/// The member's name and peer URL are in its files.
const NAME: &str = "golden";

/// The first release's, and the first with blocks of revisions in sled.
const FIRST: &str = "first-release";
const BLOCKS: &str = "blocks";

fn folder(release: &str, engine: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(release).join(engine)
}

/// The files below `from`, by their paths in it.
fn files(from: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![from.to_owned()];
    while let Some(folder) = folders.pop() {
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(from).unwrap().to_owned()),
            }
        }
    }
    found.sort_unstable();
    found
}

/// Copies a data directory without the zeros that its files end in; `lengths` has what they were with them.
fn pack(from: &Path, to: &Path) {
    let mut lengths = String::new();
    for name in files(from) {
        let file = name.to_str().unwrap();
        // Segments in store, locks, and what is given away at a start.
        if file.ends_with(".spare") || file.ends_with("LOCK") {
            continue;
        }
        let bytes = fs::read(from.join(&name)).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::write(to.join(&name), &bytes[..used]).unwrap();
        lengths += &format!("{file} {}\n", bytes.len());
    }
    fs::write(to.join("lengths"), lengths).unwrap();
}

fn unpack(from: &Path, to: &Path) {
    for line in fs::read_to_string(from.join("lengths")).unwrap().lines() {
        let (name, length) = line.rsplit_once(' ').unwrap();
        fs::create_dir_all(to.join(name).parent().unwrap()).unwrap();
        fs::copy(from.join(name), to.join(name)).unwrap();
        let file = fs::File::options().write(true).open(to.join(name)).unwrap();
        file.set_len(length.parse().unwrap()).unwrap();
    }
}

fn solo(engine: &str) -> Cluster {
    let mut cluster = Cluster::new(&[NAME]);
    cluster.members[0].flags.push(format!("--storage-engine={engine}"));
    // For a small log and a snapshot file.
    cluster.members[0].flags.push("--snapshot-count=10".to_owned());
    cluster
}

/// A bit of everything that a data directory holds.
async fn live(m: &Member) {
    m.put("gone", "1").await.unwrap();
    m.put("kept", "1").await.unwrap();
    m.etcdctl(&["del", "gone"]).unwrap();
    m.put("kept", "2").await.unwrap();
    // In pieces, in one of the engines.
    m.put("long", &"x".repeat(10_000)).await.unwrap();
    m.etcdctl(&["compaction", "4"]).unwrap();
    let granted = m.etcdctl(&["lease", "grant", "1000000000"]).unwrap();
    let lease = granted.split_whitespace().nth(1).unwrap();
    m.etcdctl(&["put", "leased", "x", "--lease", lease]).unwrap();
    m.etcdctl(&["role", "add", "reader"]).unwrap();
    m.etcdctl(&["role", "grant-permission", "reader", "read", "k", "l"]).unwrap();
    m.etcdctl(&["user", "add", "ann:secret"]).unwrap();
    m.etcdctl(&["user", "grant-role", "ann", "reader"]).unwrap();
}

/// Revisions that are written together, so that they share a block; one of them is gone again.
async fn together(m: &Member) {
    let put = |n: u8| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
            key: format!("together-{n}").into_bytes().into(),
            value: b"x".to_vec().into(),
            ..Default::default()
        })),
    };
    let txn = pb::TxnRequest { success: (1..=4).map(put).collect(), ..Default::default() };
    m.kv().await.txn(txn).await.unwrap();
    m.etcdctl(&["del", "together-2"]).unwrap();
    m.etcdctl(&["compaction", "9"]).unwrap();
}

async fn is_as_it_was(m: &Member, release: &str) {
    let mut held = m.everything().await;
    held.retain(|(key, ..)| key != "later");
    if release == BLOCKS {
        let shared: Vec<_> = held.extract_if(.., |(key, ..)| key.starts_with("together")).collect();
        let expected = [1, 3, 4].map(|n| (format!("together-{n}"), "x".to_owned(), 8));
        assert_eq!(shared, expected);
    }
    let expected = [("kept", "2", 5), ("leased", "x", 7), ("long", "x".repeat(10_000).leak(), 6)];
    assert_eq!(held, expected.map(|(key, value, revision)| (key.to_owned(), value.to_owned(), revision)));
    if release == FIRST {
        let kept = m.etcdctl(&["get", "kept", "--rev=4"]).unwrap();
        assert_eq!(kept, "kept\n1\n");
    }
    assert!(m.etcdctl(&["get", "kept", "--rev=3"]).unwrap_err().contains("required revision has been compacted"));
    assert_eq!(m.etcdctl(&["lease", "list"]).unwrap().lines().count(), 2, "a heading and the lease");
    assert!(m.etcdctl(&["user", "get", "ann"]).unwrap().contains("Roles: reader"));
    assert!(m.etcdctl(&["role", "get", "reader"]).unwrap().contains("[k, l)"));
}

async fn snapshot_file(m: &Member) {
    let snap = m.dir.join("member/snap");
    eventually("there is a snapshot file", async || {
        let _ = m.put("later", "x").await;
        let files = fs::read_dir(&snap).map_err(|e| e.to_string())?;
        let is_there = files.flatten().any(|file| file.path().extension().is_some_and(|suffix| suffix == "snap"));
        is_there.then_some(()).ok_or_else(|| "none".to_owned())
    })
    .await;
}

async fn opens(release: &str, engine: &str) {
    if std::env::var_os("FERRETCD_WRITE_GOLDEN").is_some() {
        let mut cluster = solo(engine);
        let m = &mut cluster.members[0];
        m.start();
        m.ready().await;
        live(m).await;
        if release == BLOCKS {
            together(m).await;
        }
        snapshot_file(m).await;
        assert_eq!(m.terminate().await, Some(0));
        pack(&m.dir, &folder(release, engine));
    }
    let mut cluster = solo(engine);
    let m = &mut cluster.members[0];
    unpack(&folder(release, engine), &m.dir);
    let format = m.dir.join("member/format");
    assert!(release == FIRST || fs::read_to_string(&format).unwrap().starts_with("version = 2"));
    m.start();
    m.ready().await;
    is_as_it_was(m, release).await;
    assert!(fs::read_to_string(&format).unwrap().starts_with("version = 2"), "an older server must refuse it now");
    assert!(!m.log().contains("setting it aside"), "{}", m.log());
    assert_eq!(m.terminate().await, Some(0));
    // The snapshot file and the log alone.
    fs::remove_dir_all(m.dir.join("member/engine")).unwrap();
    m.start();
    m.ready().await;
    is_as_it_was(m, release).await;
    let list = pb::MemberListRequest { linearizable: false };
    let mut members = pb::cluster_client::ClusterClient::new(m.channel().await);
    let members = members.member_list(list).await.unwrap().into_inner().members;
    assert_eq!((members.len(), members[0].name.as_str()), (1, NAME));
    assert_eq!(m.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_the_first_release_with_sled_is_opened() {
    opens(FIRST, "sled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_with_blocks_of_revisions_is_opened() {
    opens(BLOCKS, "sled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_the_first_release_with_redb_is_opened() {
    opens(FIRST, "redb").await;
}
