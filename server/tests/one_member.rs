//! One member, as real process, with etcdctl as its client.

use crate::support;
use crate::support::{Cluster, Member, PATIENCE, eventually, finished};
use ferretcd_proto::etcdserverpb as pb;
use pb::lease_client::LeaseClient;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_puts_gets_deletes_compares_leases_and_lists() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    assert_eq!(m.etcdctl(&["put", "a", "1"]).unwrap(), "OK\n");
    assert_eq!(m.etcdctl(&["put", "ab", "2"]).unwrap(), "OK\n");
    assert_eq!(m.etcdctl(&["get", "a", "--prefix", "--print-value-only"]).unwrap(), "1\n2\n");
    assert_eq!(m.etcdctl(&["del", "ab"]).unwrap(), "1\n");
    assert_eq!(m.etcdctl(&["get", "ab"]).unwrap(), "");
    assert_eq!(m.etcdctl(&["get", "ab", "--rev=3", "--print-value-only"]).unwrap(), "2\n");

    let mut txn = m.etcdctl_command(&["txn"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    txn.stdin.take().unwrap().write_all(b"value(\"a\") = \"1\"\n\nput a 5\nget a\n\nput a 6\n\n").unwrap();
    assert_eq!(finished(txn.wait_with_output().unwrap()).unwrap(), "SUCCESS\n\nOK\n\na\n5\n");

    let grant = m.etcdctl(&["lease", "grant", "100"]).unwrap();
    let id = grant.split_whitespace().nth(1).unwrap();
    m.etcdctl(&["put", "--lease", id, "leased", "x"]).unwrap();
    assert!(m.etcdctl(&["lease", "timetolive", id, "--keys"]).unwrap().contains("attached keys([leased])"));
    assert!(m.etcdctl(&["lease", "keep-alive", "--once", id]).unwrap().contains("keepalived with TTL(100)"));
    m.etcdctl(&["lease", "revoke", id]).unwrap();
    assert_eq!(m.etcdctl(&["get", "leased"]).unwrap(), "");

    assert!(m.etcdctl(&["member", "list"]).unwrap().contains("started, solo"));
    assert!(m.etcdctl(&["endpoint", "health"]).is_ok());
    assert!(m.etcdctl(&["endpoint", "status", "-w", "json"]).unwrap().contains("\"version\":\"3.7.1\""));
    m.etcdctl(&["compaction", "5"]).unwrap();
    assert!(m.etcdctl(&["get", "a", "--rev=2"]).unwrap_err().contains("required revision has been compacted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_history_then_what_happens() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    m.etcdctl(&["put", "w1", "old"]).unwrap();
    let mut watch = m.etcdctl_command(&["watch", "w", "--prefix", "--rev=1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut three = || lines.by_ref().take(3).collect::<Vec<_>>();
    assert_eq!(three(), ["PUT", "w1", "old"]);
    m.etcdctl(&["put", "w2", "new"]).unwrap();
    assert_eq!(three(), ["PUT", "w2", "new"]);
    m.etcdctl(&["del", "w1"]).unwrap();
    assert_eq!(three(), ["DELETE", "w1", ""]);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_lease_takes_its_keys_along() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let grant = m.etcdctl(&["lease", "grant", "1"]).unwrap();
    let id = grant.split_whitespace().nth(1).unwrap();
    assert!(grant.contains("TTL(2s)"), "etcd's shortest lease outlives an election: {grant}");
    let lease = i64::from_str_radix(id, 16).unwrap();
    let put = pb::PutRequest { key: "gone".into(), value: "soon".into(), lease, ..Default::default() };
    m.kv().await.put(put).await.unwrap();
    support::eventually("the key expires", async || match m.get("gone", false).await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(m.etcdctl(&["lease", "list"]).unwrap().lines().next(), Some("found 0 leases"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_survives_sigterm_and_kill() {
    let mut cluster = Cluster::start(&["solo"]).await;
    let m = &mut cluster.members[0];
    m.put("kept", "over sigterm").await.unwrap();
    assert_eq!(m.terminate().await, Some(0));
    m.start();
    m.ready().await;
    assert_eq!(m.get("kept", false).await.unwrap().as_deref(), Some("over sigterm"));
    for i in 0..20 {
        m.put(&format!("k{i}"), "over kill").await.unwrap();
    }
    m.kill();
    m.start();
    m.ready().await;
    assert_eq!(m.everything().await.len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_set_aside_and_rebuilt_from_the_log() {
    let mut cluster = Cluster::start(&["solo"]).await;
    let m = &mut cluster.members[0];
    for i in 0..50 {
        m.put(&format!("k{i}"), "v").await.unwrap();
    }
    assert_eq!(m.terminate().await, Some(0));
    let engine = m.dir.join("member/engine");
    // sled takes a database without a readable log for an empty one; the log gives everything back.
    std::fs::write(engine.join("db"), b"not a database").unwrap();
    m.start();
    m.ready().await;
    assert_eq!(m.everything().await.len(), 50);
    assert_eq!(m.terminate().await, Some(0));
    for conf in ["not a configuration", "nor is this a configuration"] {
        std::fs::write(engine.join("conf"), conf).unwrap();
        m.start();
        m.ready().await;
        assert_eq!(m.everything().await.len(), 50);
        assert!(m.log().contains("setting it aside and rebuilding it"), "{}", m.log());
        assert_eq!(m.terminate().await, Some(0));
    }
    // Both are there for people to look at.
    let conf = |aside: &str| std::fs::read_to_string(m.dir.join("member").join(aside).join("conf")).unwrap();
    assert_eq!(
        (conf("engine.damaged.1"), conf("engine.damaged")),
        ("not a configuration".into(), "nor is this a configuration".into())
    );
}

/// sled takes some damage for a bug of its own, and panics: here where a piece of its file is gone that holds what later pieces
/// build on. Which one that is differs.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_engine_panics_when_it_is_opened_is_set_aside_and_rebuilt() {
    const SEGMENT: usize = 512 << 10;
    let mut cluster = Cluster::start(&["solo"]).await;
    let m = &mut cluster.members[0];
    for i in 0..60 {
        m.put(&format!("k{}", i % 7), &i.to_string().repeat(20_000)).await.unwrap();
    }
    let wanted = m.everything().await;
    assert_eq!(m.terminate().await, Some(0));
    let (engine, db) = (m.dir.join("member/engine"), m.dir.join("member/engine/db"));
    let (whole, sound) = (cluster.tmp.path().join("engine"), std::fs::read(&db).unwrap());
    std::fs::rename(&engine, &whole).unwrap();
    for gone in (0..sound.len()).step_by(SEGMENT) {
        let copied = std::process::Command::new("cp").arg("-a").args([&whole, &engine]).status().unwrap();
        assert!(copied.success());
        let mut damaged = sound.clone();
        damaged[gone..sound.len().min(gone + SEGMENT)].fill(0);
        std::fs::write(&db, damaged).unwrap();
        m.start();
        m.ready().await;
        assert_eq!(m.everything().await, wanted);
        let log = m.log();
        assert_eq!(m.terminate().await, Some(0));
        if log.contains("thread 'engine-open'") && log.contains("panicked at") {
            assert!(log.contains("setting it aside and rebuilding it"), "{log}");
            return;
        }
        std::fs::remove_dir_all(&engine).unwrap();
    }
    panic!("sled panics at none of these any more");
}

/// An old copy of the log, under a store that has gone further.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_ahead_of_the_log_is_set_aside_and_rebuilt_from_it() {
    let mut cluster = Cluster::start(&["solo"]).await;
    let m = &mut cluster.members[0];
    m.put("early", "v").await.unwrap();
    assert_eq!(m.terminate().await, Some(0));
    let (wal, copy) = (m.dir.join("member/wal"), cluster.tmp.path().join("wal"));
    let copied = std::process::Command::new("cp").arg("-a").args([&wal, &copy]).status().unwrap();
    assert!(copied.success());
    m.start();
    m.ready().await;
    for i in 0..50 {
        m.put(&format!("late{i}"), "v").await.unwrap();
    }
    assert_eq!(m.terminate().await, Some(0));
    std::fs::remove_dir_all(&wal).unwrap();
    std::fs::rename(&copy, &wal).unwrap();

    m.start();
    m.ready().await;
    assert!(m.log().contains("it does not fit the log): setting it aside and rebuilding it"), "{}", m.log());
    assert!(m.dir.join("member/engine.damaged").exists());
    let keys = async |m: &support::Member| m.everything().await.into_iter().map(|(key, ..)| key).collect::<Vec<_>>();
    assert_eq!(keys(m).await, ["early"], "what the log has, and nothing that another log may say otherwise");
    m.put("again", "v").await.unwrap();
    m.kill();
    m.start();
    m.ready().await;
    assert_eq!(keys(m).await, ["again", "early"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_quota_refuses_what_grows_until_there_is_room_and_the_alarm_is_disarmed() {
    let mut cluster = Cluster::new(&["solo"]);
    cluster.members[0].flags.push("--quota-backend-bytes=20000".to_owned());
    cluster.members[0].start();
    let m = &cluster.members[0];
    m.ready().await;
    let full = support::eventually("the quota is used up", async || match m.put("k", &"x".repeat(1000)).await {
        Ok(revision) => Err(format!("revision {revision}")),
        Err(status) => Ok(status.message().to_owned()),
    })
    .await;
    assert_eq!(full, "etcdserver: mvcc: database space exceeded");
    assert!(m.etcdctl(&["alarm", "list"]).unwrap().contains("alarm:NOSPACE"));
    assert_eq!(m.http("/health").await.0, 503);
    assert_eq!(m.http("/readyz").await.0, 200, "a full store is still a member");
    assert!(m.get("k", false).await.unwrap().is_some());
    let revision = m.status().await.unwrap().header.unwrap().revision.to_string();
    m.etcdctl(&["compaction", "--physical", &revision]).unwrap();
    assert!(m.put("k", "still refused").await.is_err(), "the alarm stays until somebody disarms it");
    m.etcdctl(&["alarm", "disarm"]).unwrap();
    m.put("k", "room again").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_compacted_by_itself_when_it_is_asked_for() {
    let mut cluster = Cluster::new(&["solo"]);
    cluster.members[0].flags.push("--auto-compaction-retention=1s".to_owned());
    cluster.members[0].start();
    let m = &cluster.members[0];
    m.ready().await;
    let first = m.put("k", "old").await.unwrap().to_string();
    m.put("k", "new").await.unwrap();
    support::eventually("the first revision is gone", async || match m.etcdctl(&["get", "k", "--rev", &first]) {
        Err(e) if e.contains("required revision has been compacted") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(m.get("k", false).await.unwrap().as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn compacted_records_are_deleted_at_the_pace_of_the_flags() {
    let mut cluster = Cluster::new(&["solo"]);
    let pace = ["--compaction-batch-limit=1", "--compaction-sleep-interval=1m"];
    cluster.members[0].flags.extend(pace.map(str::to_owned));
    cluster.members[0].start();
    let m = &cluster.members[0];
    m.ready().await;
    for _ in 0..9 {
        m.put("k", "v").await.unwrap();
    }
    let last = m.put("k", "v").await.unwrap().to_string();
    m.etcdctl(&["compaction", &last]).unwrap();
    let deleted = "etcd_debugging_mvcc_db_compaction_keys_total";
    support::eventually("a record is deleted", async || match m.figure(deleted).await {
        0 => Err("none yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    // One of nine; the next comes in a minute, and at the pace of a member without these flags all would be gone.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(m.figure(deleted).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_have_etcds_form() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    assert_eq!(m.http("/health").await, (200, "{\"health\":\"true\",\"reason\":\"\"}".to_owned()));
    assert_eq!(m.http("/livez").await, (200, "ok\n".to_owned()));
    let (code, verbose) = m.http("/readyz?verbose").await;
    assert_eq!(code, 200);
    for check in ["data_corruption", "serializable_read", "linearizable_read", "non_learner"] {
        assert!(verbose.contains(&format!("[+]{check} ok\n")), "{verbose}");
    }
    let (_, version) = m.http("/version").await;
    assert!(version.starts_with(r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0""#), "{version}");
    m.put("a", "b").await.unwrap();
    let (_, metrics) = m.http("/metrics").await;
    for line in ["etcd_server_has_leader 1", "etcd_mvcc_put_total 1", "etcd_debugging_mvcc_keys_total 1"] {
        assert!(metrics.lines().any(|l| l == line), "{line} is missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_what_where_and_what_to_do() {
    let tmp = tempfile::tempdir().unwrap();
    let m = Member::new("bad", tmp.path());
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--no-such-flag=1"], 2, &["flag provided but not defined: -no-such-flag"]),
        (&["start"], 1, &["\"start\" is not a valid flag"]),
        (
            &["--listen-metrics-urls=http://example.com:1"],
            1,
            &["expected IP in URL for binding (http://example.com:1)"],
        ),
        (&["--initial-cluster=other=http://127.0.0.1:1"], 1, &["local name \"bad\"", "--initial-cluster"]),
        (&["--initial-cluster=bad=http://127.0.0.1:1"], 1, &["--initial-advertise-peer-urls", "make them equal"]),
        (&["--member-intent=run"], 78, &["holds no member", "add a new one"]),
    ];
    for (args, code, needles) in cases {
        let output = m.command(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {text}");
        needles.iter().for_each(|n| assert!(text.contains(n), "{args:?}: {n}: {text}"));
        assert!(!m.dir.join("member/wal").exists(), "{args:?} left a log behind");
    }
    let m = Member::new("late", tmp.path());
    let taken = std::net::TcpListener::bind(&m.client).unwrap();
    let output = m.command(&[]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&m.client) && text.contains("is another server running there?"), "{text}");
    assert!(!m.dir.exists(), "a taken port changes nothing on disk");
    drop(taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_on_one_data_directory_are_refused() {
    let cluster = Cluster::start(&["solo"]).await;
    let mut second = Member::new("solo", cluster.tmp.path());
    second.dir = cluster.members[0].dir.clone();
    let elsewhere = format!("--wal-dir={}", cluster.tmp.path().join("elsewhere").display());
    for flags in [&[][..], &[elsewhere.as_str()]] {
        let output = second.command(flags).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = "member/LOCK is locked: another process runs on this data directory";
        assert!(!output.status.success() && text.contains(told), "{text}");
    }
    assert!(!cluster.tmp.path().join("elsewhere").exists());
    cluster.members[0].put("still", "there").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_with_one_log_directory_are_refused() {
    let mut cluster = Cluster::new(&["solo"]);
    let flag = format!("--wal-dir={}", cluster.tmp.path().join("log").display());
    cluster.members[0].flags.push(flag.clone());
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let second = Member::new("other", cluster.tmp.path());
    let output = second.command(&[&flag]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("log/LOCK is locked: another process has this log open"),
        "{text}"
    );
    cluster.members[0].put("still", "there").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_a_newer_release_is_refused_and_left_alone() {
    let mut cluster = Cluster::start(&["solo"]).await;
    let m = &mut cluster.members[0];
    m.put("k", "v").await.unwrap();
    assert_eq!(m.terminate().await, Some(0));
    let place = m.dir.join("member/format");
    let own = std::fs::read_to_string(&place).unwrap();
    let version = own.lines().find(|line| line.starts_with("version")).unwrap();
    let newer = own.replace(version, "version = 4711");
    std::fs::write(&place, &newer).unwrap();
    // Its log is not ours to read, either.
    let segments = std::fs::read_dir(m.dir.join("member/wal")).unwrap().map(|e| e.unwrap().path());
    let segment = segments.filter(|path| path.metadata().unwrap().len() > 0).max().unwrap();
    let log = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, "of a later version").unwrap();
    m.start();
    assert_eq!(m.ended().await, Some(78));
    assert!(m.log().contains("format version 4711") && m.log().contains("start a newer version"), "{}", m.log());
    assert_eq!(std::fs::read_to_string(&place).unwrap(), newer);
    assert_eq!(std::fs::read_to_string(&segment).unwrap(), "of a later version");
    std::fs::write(&place, &own).unwrap();
    std::fs::write(&segment, &log).unwrap();
    m.start();
    m.ready().await;
    assert_eq!(m.get("k", false).await.unwrap().as_deref(), Some("v"));
}

/// A service that starts again asks for the lease of its own ID until the old one is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_granted_again_the_moment_it_ends_ends_in_its_turn() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    let client = LeaseClient::new(m.channel().await);
    let services = (1..=10).map(|id| {
        let mut client = client.clone();
        async move {
            let mut granted = 0;
            while granted < 4 {
                match client.lease_grant(pb::LeaseGrantRequest { ttl: 1, id }).await {
                    Ok(_) => granted += 1,
                    Err(e) => assert_eq!(e.message(), "etcdserver: lease already exists"),
                }
            }
        }
    });
    tokio::time::timeout(PATIENCE, futures::future::join_all(services)).await.expect("each ends, and is granted again");
    eventually("all are gone", async || {
        let mut left = Vec::new();
        for id in 1..=10 {
            let ask = pb::LeaseTimeToLiveRequest { id, keys: false };
            left.extend(
                Some(client.clone().lease_time_to_live(ask).await.unwrap().into_inner()).filter(|l| l.granted_ttl > 0),
            );
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// Scripts send them by habit, such as after they have moved a log away; Go's programs ignore them.
#[tokio::test(flavor = "multi_thread")]
async fn signals_that_mean_nothing_do_nothing() {
    use rustix::process::Signal;
    let mut cluster = Cluster::start(&["solo"]).await;
    for signal in [Signal::USR1, Signal::USR2, Signal::ALARM] {
        cluster.members[0].signal(signal);
        cluster.members[0].put("still", "there").await.unwrap();
    }
}

/// Left in a template of variables when TLS was turned off.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_nobody_is_shown_need_not_be_there() {
    let mut cluster = Cluster::new(&["solo"]);
    let m = &mut cluster.members[0];
    m.flags
        .extend(["cert-file", "key-file", "trusted-ca-file", "client-crl-file"].map(|f| format!("--{f}=/nowhere/{f}")));
    m.start();
    m.ready().await;
    assert!(m.log().contains("ignoring key and cert files"), "{}", m.log());
}
