//! Snapshots out of and restores into running clusters, as real processes, judged by etcd's own tools.

use crate::support::{Cluster, Member, etcd_tool, eventually, finished};
use bytes::Bytes;
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::ferretcd_v1::maintenance_client::MaintenanceClient as OwnMaintenanceClient;
use ferretcd_proto::ferretcd_v1::{RestoreOptions, RestoreRequest, RestoreResponse, restore_request::Request};
use ferretcd_proto::peer::{ForwardRequest, ProbeRequest, peer_client::PeerClient};
use ferretcd_types::{
    Caller, Command, Proposal, RequestId, RestoreBegin, RestoreChunk, RestoreCommit, RestoreRecord, RestoreTotals,
    Revision, codec,
};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tonic::transport::Endpoint;

const ABC: &[&str] = &["a", "b", "c"];

async fn restore(member: &Member, file: &[u8], bump: Option<u64>) -> Result<RestoreResponse, tonic::Status> {
    let options = RestoreOptions { revision_bump: bump, file_bytes: file.len() as u64 };
    let mut requests = vec![RestoreRequest { request: Some(Request::Options(options)) }];
    requests.extend(
        file.chunks(1 << 20).map(|c| RestoreRequest { request: Some(Request::Chunk(Bytes::copy_from_slice(c))) }),
    );
    let endpoint = Endpoint::from_shared(format!("http://{}", member.client)).unwrap();
    let mut client = OwnMaintenanceClient::new(endpoint.connect_lazy());
    Ok(client.restore(tokio_stream::iter(requests)).await?.into_inner())
}

fn save(member: &Member, to: &Path) {
    member.etcdctl(&["snapshot", "save", to.to_str().unwrap()]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_taken_while_writes_go_on_is_one_etcd_restores_and_serves() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    for i in 0..200 {
        m.put(&format!("k{i:03}"), &"x".repeat(100)).await.unwrap();
    }
    m.etcdctl(&["del", "k000"]).unwrap();
    let grant = m.etcdctl(&["lease", "grant", "36000"]).unwrap();
    let lease = grant.split_whitespace().nth(1).unwrap();
    m.etcdctl(&["put", "leased", "x", &format!("--lease={lease}")]).unwrap();
    let leased = |m: &Member| -> Result<String, String> {
        let told = m.etcdctl(&["lease", "timetolive", lease, "--keys", "-w", "json"])?;
        let told: serde_json::Value = serde_json::from_str(&told).map_err(|e| e.to_string())?;
        Ok(format!("{} {}", told["granted-ttl"], told["keys"]))
    };
    let before = m.status().await.unwrap().header.unwrap().revision;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, kv) = (stop.clone(), m.kv().await);
        tokio::spawn(async move {
            let mut n = 0usize;
            while !stop.load(Ordering::Relaxed) {
                let request = pb::PutRequest { key: format!("w{n}").into(), value: "y".into(), ..Default::default() };
                kv.clone().put(request).await.unwrap();
                n += 1;
            }
            n
        })
    };
    eventually("writes go on", async || match m.get("w9", true).await.unwrap() {
        Some(_) => Ok(()),
        None => Err("not yet".to_owned()),
    })
    .await;
    let file = cluster.tmp.path().join("snapshot.db");
    save(m, &file);
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();

    let status = |tool: Process| {
        finished({
            let mut t = tool;
            t.output().unwrap()
        })
        .unwrap()
    };
    let mut theirs = Process::new(etcd_tool("etcdutl"));
    theirs.args(["snapshot", "status", "-w", "json"]).arg(&file);
    let mut ours = Process::new(env!("CARGO_BIN_EXE_ferretcd"));
    ours.args(["snapshot", "status", "-w", "json"]).arg(&file);
    let (theirs, ours) = (status(theirs), status(ours));
    assert_eq!(theirs.trim(), ours.trim(), "etcdutl and we read the same file");

    // Real etcd on the restored file.
    let real = Member::new("real", cluster.tmp.path());
    let mut etcdutl = Process::new(etcd_tool("etcdutl"));
    etcdutl.args(["snapshot", "restore"]).arg(&file).arg("--data-dir").arg(&real.dir);
    finished(etcdutl.output().unwrap()).unwrap();
    let mut etcd = Process::new(etcd_tool("etcd"))
        .env_clear()
        .args(["--data-dir".into(), real.dir.display().to_string()])
        .args([
            format!("--listen-client-urls=http://{}", real.client),
            format!("--advertise-client-urls=http://{}", real.client),
        ])
        .args([format!("--listen-peer-urls=http://{}", real.peer), "--log-level=error".to_owned()])
        .spawn()
        .unwrap();
    let answered = eventually("etcd serves", async || real.etcdctl(&["get", "k", "--prefix", "--keys-only"])).await;
    let revision = real.status().await.map(|status| status.header.unwrap().revision);
    let (mut came_along, their_lease) = (real.everything().await, leased(&real));
    etcd.kill().unwrap();
    etcd.wait().unwrap();
    assert_eq!(answered.lines().filter(|l| !l.is_empty()).count(), 199);
    // Of what was written meanwhile: all up to a moment, each at its revision.
    came_along.retain(|(key, ..)| key.starts_with('w'));
    came_along.sort_by_key(|(_, _, revision)| *revision);
    let put = |n| (format!("w{n}"), "y".to_owned(), before + 1 + n);
    let wanted: Vec<_> = (0..came_along.len() as i64).map(put).collect();
    assert_eq!(came_along, wanted);
    assert!((10..=written).contains(&wanted.len()), "{} of {written}", wanted.len());
    assert_eq!(revision, Ok(before + wanted.len() as i64));
    assert_eq!(their_lease, leased(m));
    assert_eq!(their_lease.unwrap(), "36000 [\"bGVhc2Vk\"]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_replaces_the_key_space_of_a_running_cluster_on_every_member() {
    let source = Cluster::start(&["solo"]).await;
    let from = &source.members[0];
    for i in 0..300 {
        from.put(&format!("k{i:03}"), &format!("value {i}")).await.unwrap();
    }
    let grant = from.etcdctl(&["lease", "grant", "3600"]).unwrap();
    let lease = grant.split_whitespace().nth(1).unwrap().to_owned();
    from.etcdctl(&["put", "--lease", &lease, "leased", "x"]).unwrap();
    let file = source.tmp.path().join("backup.db");
    save(from, &file);
    let bytes = std::fs::read(&file).unwrap();

    let cluster = Cluster::start(ABC).await;
    for m in &cluster.members {
        m.put("old", "gone after the restore").await.unwrap();
    }
    let ids_before = cluster.members[0].etcdctl(&["member", "list"]).unwrap();
    let mut watch = {
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        let create = pb::WatchCreateRequest { key: "old".into(), ..Default::default() };
        let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        tx.send(create).await.unwrap();
        let channel = Endpoint::from_shared(format!("http://{}", cluster.members[1].client)).unwrap().connect_lazy();
        let mut client = pb::watch_client::WatchClient::new(channel);
        let stream = client.watch(tokio_stream::wrappers::ReceiverStream::new(rx)).await.unwrap().into_inner();
        (tx, stream)
    };
    assert!(watch.1.message().await.unwrap().unwrap().created);

    let follower = (cluster.leader().await + 1) % 3;
    let answer = restore(&cluster.members[follower], &bytes, None).await.unwrap();
    assert_eq!((answer.keys, answer.leases), (301, 1));
    assert!(answer.revision > 1_000_000_000, "the default bump: {}", answer.revision);

    let cancelled = watch.1.message().await.unwrap().unwrap();
    assert!(cancelled.canceled && cancelled.compact_revision == answer.revision, "{cancelled:?}");

    let restored = cluster.agreed().await;
    let wanted: Vec<(String, String, i64)> = from.everything().await;
    assert_eq!(restored, wanted, "keys, values and revisions are the file's");
    let hashes: Vec<u32> = {
        let mut hashes = Vec::new();
        for m in &cluster.members {
            let request = pb::HashKvRequest { revision: answer.revision };
            hashes.push(m.maintenance().await.hash_kv(request).await.unwrap().into_inner().hash);
        }
        hashes
    };
    assert!(hashes.iter().all(|h| *h == hashes[0]), "{hashes:x?}");
    assert_eq!(cluster.members[0].etcdctl(&["member", "list"]).unwrap(), ids_before, "members are never the file's");
    let ttl = cluster.members[0].etcdctl(&["lease", "timetolive", &lease]).unwrap();
    assert!(ttl.contains("granted with TTL(3600s)"), "{ttl}");
    // History before the restore counts as compacted, and writes go on after it.
    let error = cluster.members[0].etcdctl(&["get", "k001", "--rev=5"]).unwrap_err();
    assert!(error.contains("required revision has been compacted"), "{error}");
    let next = cluster.members[follower].put("new", "x").await.unwrap();
    assert_eq!(next, answer.revision + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_foreign_file_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    m.put("kept", "x").await.unwrap();
    let file = cluster.tmp.path().join("backup.db");
    save(m, &file);
    let good = std::fs::read(&file).unwrap();
    let revision = m.status().await.unwrap().header.unwrap().revision;
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let cases: [(&[u8], &str); 4] = [
        (&flipped, "SHA-256"),
        (&good[..good.len() - 512], "SHA-256"),
        (b"not a snapshot at all", "bytes"),
        (&good[..good.len() - 32], "SHA-256"),
    ];
    for (bytes, needle) in cases {
        let status = restore(m, bytes, None).await.unwrap_err();
        let text = status.message();
        assert!(text.contains("refused, nothing was changed") && text.contains(needle), "{needle}: {text}");
    }
    assert_eq!(m.get("kept", false).await.unwrap().as_deref(), Some("x"));
    assert_eq!(m.status().await.unwrap().header.unwrap().revision, revision);
    m.put("writes", "go on").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_quota_has_no_room_for_is_refused_before_anything_changes() {
    let source = Cluster::start(&["solo"]).await;
    let file = source.tmp.path().join("backup.db");
    source.members[0].put("k", "v").await.unwrap();
    save(&source.members[0], &file);
    let little = std::fs::read(&file).unwrap();
    source.members[0].put("large", &"v".repeat(little.len())).await.unwrap();
    save(&source.members[0], &file);
    let much = std::fs::read(&file).unwrap();
    let mut small = Cluster::new(&["small"]);
    small.members[0].flags.push(format!("--quota-backend-bytes={}", little.len() - 1));
    small.members[0].start();
    small.members[0].ready().await;
    let status = restore(&small.members[0], &much, None).await.unwrap_err();
    let text = status.message();
    assert!(text.contains("nothing was changed") && text.contains("raise --quota-backend-bytes"), "{text}");
    small.members[0].put("writes", "go on").await.unwrap();
    // Most of a file is not what it holds. That of a store which was full may be free pages to nine tenths.
    restore(&small.members[0], &little, None).await.unwrap();
    assert_eq!(small.members[0].get("k", false).await.unwrap().as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_value_that_is_let_in_comes_back() {
    let source = Cluster::start(&["solo"]).await;
    let m = &source.members[0];
    let (mut fits, mut above) = (1_572_000, 1_572_864);
    while above - fits > 1 {
        let middle = (fits + above) / 2;
        match m.put("large", &"v".repeat(middle)).await {
            Ok(_) => fits = middle,
            Err(_) => above = middle,
        }
    }
    m.put("large", &"v".repeat(fits)).await.unwrap();
    let file = source.tmp.path().join("backup.db");
    save(m, &file);
    let other = Cluster::start(&["other"]).await;
    restore(&other.members[0], &std::fs::read(&file).unwrap(), None).await.unwrap();
    assert_eq!(other.members[0].get("large", false).await.unwrap().map(|value| value.len()), Some(fits));
}

/// As large as a quota, and perhaps what filled the disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_member_was_given_to_restore_goes_at_its_next_start() {
    let mut cluster = Cluster::start(&["solo"]).await;
    let m = &mut cluster.members[0];
    let endpoint = Endpoint::from_shared(format!("http://{}", m.client)).unwrap();
    let mut client = OwnMaintenanceClient::new(endpoint.connect_lazy());
    let options = RestoreOptions { revision_bump: None, file_bytes: 100_000 };
    let piece = Request::Chunk(Bytes::from(vec![1; 50_000]));
    let begun = [Request::Options(options), piece].map(|request| RestoreRequest { request: Some(request) });
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter(begun), tokio_stream::pending());
    let restoring = tokio::spawn(async move { client.restore(requests).await.map(drop) });
    let spool = m.dir.join("member/spool/restore.spool");
    eventually("a piece is there", async || match std::fs::metadata(&spool).map(|file| file.len()) {
        Ok(50_000) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    m.kill();
    restoring.abort();
    assert!(spool.exists(), "this test sees nothing");
    m.start();
    m.ready().await;
    assert!(!spool.exists());
}

/// Puts an entry into the log of whoever leads, as a follower does.
async fn propose(cluster: &Cluster, command: Command) {
    eventually("the entry is taken", async || {
        let leader = &cluster.members[cluster.leader().await];
        let endpoint = Endpoint::from_shared(leader.peer_url()).unwrap();
        let mut peer = PeerClient::new(endpoint.connect().await.map_err(|e| e.to_string())?);
        let who = peer.probe(ProbeRequest::default()).await.map_err(|e| e.to_string())?.into_inner();
        let proposal =
            codec::encode_proposal(&Proposal { id: RequestId(1), caller: Caller::Member, command: command.clone() });
        let mut request =
            tonic::Request::new(futures::stream::iter([ForwardRequest { number: 1, proposals: vec![proposal] }]));
        for (key, value) in [
            ("ferretcd-cluster-id", who.cluster_id),
            ("ferretcd-epoch", who.epoch),
            ("ferretcd-from", who.member_id),
            ("ferretcd-to", who.member_id),
        ] {
            request.metadata_mut().insert(key, value.into());
        }
        let mut answers = peer.forward(request).await.map_err(|e| e.to_string())?.into_inner();
        match answers.message().await.map_err(|e| e.to_string())? {
            Some(answer) => answer.refusals.first().map_or(Ok(()), |refusal| Err(refusal.why.clone())),
            None => Err("it was not answered".to_owned()),
        }
    })
    .await;
}

fn chunk(id: u64, sequence: u64) -> (RestoreChunk, RestoreTotals) {
    let mut totals = RestoreTotals { checksum: Bytes::from_static(&[0; 32]), ..RestoreTotals::default() };
    let mut last = None;
    for n in 0..=sequence {
        let records: Vec<RestoreRecord> = (0..10)
            .map(|i| {
                let revision = 2 + (n * 10 + i) as i64;
                let kv = ferretcd_types::KeyValue {
                    key: format!("restored{revision}").into(),
                    create_revision: revision,
                    mod_revision: revision,
                    version: 1,
                    value: "v".into(),
                    ..Default::default()
                };
                let value = codec::encode_key_value(&kv);
                RestoreRecord::Key { revision: Revision::new(revision, 0), tombstone: false, value }
            })
            .collect();
        let records = codec::encode_restore_records(&records);
        let mut hash = Sha256::new();
        hash.update(&totals.checksum);
        hash.update(&records);
        totals.checksum = Bytes::copy_from_slice(&hash.finalize());
        totals.chunks += 1;
        totals.keys += 10;
        last = Some(RestoreChunk { id, sequence: n, records });
    }
    (last.unwrap(), totals)
}

async fn kill_and_restart_leader(cluster: &mut Cluster) {
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    cluster.leader().await;
    cluster.members[leader].start();
    cluster.members[leader].ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed_after_each_kind_of_entry_and_a_member_joins_in_the_middle() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("old", "x").await.unwrap();
    propose(&cluster, Command::RestoreBegin(RestoreBegin { id: 7 })).await;
    kill_and_restart_leader(&mut cluster).await;
    let refused = cluster.members[0].put("during", "x").await.unwrap_err();
    assert!(refused.message().contains("a restore is in progress"), "{refused}");
    propose(&cluster, Command::RestoreChunk(chunk(7, 0).0)).await;
    kill_and_restart_leader(&mut cluster).await;

    // A member joins between two chunks: what is staged comes to it through the log.
    let mut d = Member::new("d", cluster.tmp.path());
    eventually("the learner is added", async || {
        let url = format!("--peer-urls={}", d.peer_url());
        cluster.members[0].etcdctl(&["member", "add", "d", "--learner", &url])
    })
    .await;
    let list: Vec<String> =
        cluster.members.iter().chain([&d]).map(|m| format!("{}={}", m.name, m.peer_url())).collect();
    d.flags = vec![format!("--initial-cluster={}", list.join(",")), "--initial-cluster-state=existing".to_owned()];
    d.start();
    cluster.members.push(d);

    let (second, totals) = chunk(7, 1);
    propose(&cluster, Command::RestoreChunk(second.clone())).await;
    // The proposer lost the answer and says it again.
    propose(&cluster, Command::RestoreChunk(second)).await;
    let commit = RestoreCommit { id: 7, totals, revision_bump: 1000 };
    propose(&cluster, Command::RestoreCommit(commit)).await;
    kill_and_restart_leader(&mut cluster).await;
    let everything = cluster.agreed().await;
    assert_eq!(everything.len(), 20);
    assert!(everything.iter().all(|(k, _, _)| k.starts_with("restored")));
    cluster.members[0].put("after", "x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_restore_lets_writes_in_again_and_leaves_the_old_keys() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    m.put("old", "x").await.unwrap();
    propose(&cluster, Command::RestoreBegin(RestoreBegin { id: 7 })).await;
    propose(&cluster, Command::RestoreChunk(chunk(7, 0).0)).await;
    propose(&cluster, Command::RestoreAbort(ferretcd_types::RestoreAbort { id: 7 })).await;
    m.put("new", "x").await.unwrap();
    assert_eq!(m.everything().await.len(), 2);
}
