//! Members that hold different data find it out; members that hold the same are never accused.

use crate::support::{Cluster, Member, eventually};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_storage::{Batch, Engine, EngineKind, SledEngine, keyspace};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ABC: &[&str] = &["a", "b", "c"];

/// Changes `from` to `to`, of the same length, in the stored values of a member that does not run: as a disk does that
/// gives back other bytes than it was given.
fn damage(member: &Member, from: &[u8], to: &[u8]) {
    assert!(!member.runs() && from.len() == to.len());
    let path = EngineKind::newest(&member.dir.join("member/engine")).unwrap();
    let engine = SledEngine::open(&path, 16 << 20).unwrap();
    let (start, end) = keyspace::keyspace_range(keyspace::KEYS);
    let mut batch = Batch::new();
    for (key, value) in engine.scan(&start, Some(&end), usize::MAX).unwrap() {
        let mut bytes = value.to_vec();
        if let Some(at) = bytes.windows(from.len()).position(|part| part == from) {
            bytes[at..at + to.len()].copy_from_slice(to);
            batch.put(key, bytes);
        }
    }
    assert!(!batch.is_empty(), "there is nothing to damage");
    engine.commit(&batch).unwrap();
    engine.flush().unwrap();
}

/// Stops a member and damages what it holds.
async fn stopped_and_damaged(cluster: &mut Cluster, at: usize) -> u64 {
    let id = cluster.members[at].status().await.unwrap().header.unwrap().member_id;
    cluster.agreed().await;
    assert_eq!(cluster.members[at].terminate().await, Some(0));
    damage(&cluster.members[at], b"honest", b"forged");
    id
}

/// Stops a member, damages what it holds, and starts it again.
async fn damaged(cluster: &mut Cluster, at: usize) -> u64 {
    let id = stopped_and_damaged(cluster, at).await;
    cluster.members[at].start();
    id
}

async fn compacted(member: &Member, revision: i64) {
    eventually("it compacts", async || match member.figure("etcd_debugging_mvcc_compact_revision").await {
        now if now == revision => Ok(()),
        now => Err(format!("at {now} of {revision}")),
    })
    .await;
}

async fn alarms(member: &Member) -> Result<Vec<pb::AlarmMember>, String> {
    let request = pb::AlarmRequest { action: pb::alarm_request::AlarmAction::Get.into(), ..Default::default() };
    let answer = member.maintenance().await.alarm(request).await.map_err(|e| e.to_string())?;
    Ok(answer.into_inner().alarms)
}

async fn accused(member: &Member) -> Vec<u64> {
    let corrupt = i32::from(pb::AlarmType::Corrupt);
    eventually("the alarm is raised", async || {
        let raised: Vec<u64> =
            alarms(member).await?.iter().filter(|a| a.alarm == corrupt).map(|a| a.member_id).collect();
        if raised.is_empty() { Err("there is none".to_owned()) } else { Ok(raised) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_value_raises_the_alarm_and_stops_writes_until_it_is_disarmed() {
    let mut cluster = Cluster::start_with(ABC, &["--corrupt-check-time=500ms"]).await;
    cluster.members[0].put("victim", "honest").await.unwrap();
    let follower = (cluster.leader().await + 1) % 3;
    let id = damaged(&mut cluster, follower).await;
    // An alarm that names the member is there at each, in etcdctl's words.
    for m in &cluster.members {
        assert_eq!(accused(m).await, [id]);
    }
    let m = &cluster.members[(follower + 1) % 3];
    // Go's text of a message has spaces as it pleases.
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let line = [format!("memberID:{id}"), "alarm:CORRUPT".to_owned()];
    assert_eq!(words(m.etcdctl(&["alarm", "list"]).unwrap()), line);
    let refused = m.put("k", "v").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::DataLoss, "etcdserver: corrupt cluster"));
    let refused = m.etcdctl(&["lease", "grant", "60"]).unwrap_err();
    assert!(refused.contains("etcdserver: corrupt cluster"), "{refused}");
    assert_eq!(m.get("victim", false).await.unwrap().as_deref(), Some("honest"));
    let (code, body) = m.http("/readyz").await;
    assert_eq!(code, 503);
    assert!(body.contains("[-]data_corruption failed: alarm activated: CORRUPT"), "{body}");
    assert_eq!(m.http("/livez").await.0, 200);
    let (_, metrics) = m.http("/metrics").await;
    let metric = format!("etcd_debugging_server_alarms{{alarm_type=\"CORRUPT\",server_id=\"{id:x}\"}} 1");
    assert!(metrics.contains(&metric), "{metric}\n{metrics}");

    // Replaced as the alarm says; then the alarm can go, and nothing raises it again.
    let gone = &mut cluster.members[follower];
    gone.kill();
    let hex = format!("{id:x}");
    let m = &cluster.members[(follower + 1) % 3];
    eventually("it is removed", async || m.etcdctl(&["member", "remove", &hex])).await;
    assert_eq!(words(m.etcdctl(&["alarm", "disarm"]).unwrap()), line);
    m.put("k", "v").await.unwrap();
    let checks = checks_of(&cluster);
    eventually("they are compared again", async || match checks_of(&cluster) > checks + 1 {
        true => Ok(()),
        false => Err("not yet".to_owned()),
    })
    .await;
    assert_eq!(alarms(&cluster.members[(follower + 1) % 3]).await.unwrap(), []);
}

fn told(cluster: &Cluster, line: &str) -> usize {
    cluster.members.iter().map(|m| m.log().matches(line).count()).sum()
}

fn checks_of(cluster: &Cluster) -> usize {
    told(cluster, "finished peer corruption check")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_written_for_long_is_compared_at_a_compaction_and_a_start() {
    let mut cluster =
        Cluster::start_with(ABC, &["--feature-gates=CompactHashCheck=true", "--compact-hash-check-time=300ms"]).await;
    cluster.members[0].put("victim", "honest").await.unwrap();
    let follower = (cluster.leader().await + 1) % 3;
    let others = [(follower + 1) % 3, (follower + 2) % 3];
    let id = stopped_and_damaged(&mut cluster, follower).await;
    let m = &cluster.members[others[0]];
    let revision = m.put("other", "x").await.unwrap();
    m.etcdctl(&["compact", &revision.to_string()]).unwrap();
    // All have compacted before they are compared: of a member that lags the leader knows no hash, and of two that differ
    // it cannot tell which is right.
    for other in others {
        compacted(&cluster.members[other], revision).await;
    }
    assert_eq!(alarms(m).await.unwrap(), [], "they hold the same");
    cluster.members[follower].start();
    assert_eq!(accused(&cluster.members[others[0]]).await, [id]);

    // With the other gate it does not even start.
    let m = &mut cluster.members[follower];
    assert_eq!(m.terminate().await, Some(0));
    m.flags.push("--feature-gates=InitialCorruptCheck=true".to_owned());
    m.start();
    assert_eq!(m.ended().await, Some(1));
    let log = m.log();
    assert!(log.contains("checkInitialHashKV failed"), "{log}");
    assert!(log.contains(&format!("{id:x} found data inconsistency with peers")), "{log}");
    assert!(!log.contains("ready to serve client requests"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_hold_the_same_are_not_accused_while_they_write_compact_and_restart() {
    let mut cluster = Cluster::start_with(
        ABC,
        &[
            "--corrupt-check-time=20ms",
            "--compact-hash-check-time=20ms",
            "--feature-gates=CompactHashCheck=true,InitialCorruptCheck=true",
        ],
    )
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for m in &cluster.members {
        let (mut kv, stop) = (m.kv().await, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut revision = 0;
            for i in 0u32.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("k{}", i % 20);
                // Puts, deletions and compactions right behind them; members come and go meanwhile.
                let put = pb::PutRequest { key: key.clone().into(), value: "v".into(), ..Default::default() };
                if let Ok(answer) = kv.put(put).await {
                    revision = answer.into_inner().header.unwrap().revision;
                }
                if i % 3 == 0 {
                    let delete = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
                    let _ = kv.delete_range(delete).await;
                }
                if i % 10 == 0 && revision > 0 {
                    let _ = kv.compact(pb::CompactionRequest { revision: revision - 1, physical: false }).await;
                }
            }
        }));
    }
    for round in 0..3 {
        let at = match round {
            0 => (cluster.leader().await + 1) % 3,
            _ => cluster.leader().await,
        };
        let (checks, compared) = (checks_of(&cluster), told(&cluster, "finished compaction hash check"));
        eventually("members are compared", async || {
            let now = (checks_of(&cluster), told(&cluster, "finished compaction hash check"));
            if now.0 > checks + 5 && now.1 > compared { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        cluster.members[at].kill();
        cluster.members[at].start();
        cluster.members[at].ready().await;
        assert!(cluster.members[at].log().contains("initial corruption checking passed; no corruption"));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(alarms(&cluster.members[0]).await.unwrap(), []);

    // All of them at once, and one that is left alone: nobody waits for one that does not answer.
    cluster.members.iter_mut().for_each(Member::kill);
    cluster.members[0].start();
    eventually("it does not wait for the others", async || {
        match cluster.members[0].log().contains("initial corruption checking passed") {
            true => Ok(()),
            false => Err(cluster.members[0].log()),
        }
    })
    .await;
    cluster.members[1].start();
    cluster.members[2].start();
    for m in &cluster.members {
        m.ready().await;
    }
    cluster.agreed().await;
}
