//! Stories of starting: flags, variables and files as people's units, charts and tools give them, with the binary
//! exchanged and nothing else. Where it is cheap, real etcd is started with the same and must say the same.

use crate::support;
use crate::support::{Cluster, Member, PATIENCE, etcd_tool, eventually, finished};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn ferretcd(args: &[&str], env: &[(&str, &str)]) -> Output {
    run(Path::new(env!("CARGO_BIN_EXE_ferretcd")), args, env)
}

fn etcd(args: &[&str], env: &[(&str, &str)]) -> Output {
    run(&etcd_tool("etcd"), args, env)
}

fn run(program: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(env.iter().copied()).stdin(Stdio::null());
    command.current_dir(std::env::temp_dir()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The `error` of a server's line about its flags.
fn complaint(output: &Output) -> Option<String> {
    let text = stderr(output);
    let line = text.lines().find(|l| l.contains("\"msg\":\"failed to verify flags\""))?;
    let (_, error) = line.split_once("\"error\":\"")?;
    Some(error.trim_end_matches("\"}").to_owned())
}

/// Member without the flags that [`Member::command`] gives.
fn plain(member: &Member) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferretcd"));
    command.env_clear().current_dir(member.dir.parent().unwrap());
    command
}

#[test]
fn settings_that_cannot_be_followed_end_as_in_etcd() {
    for (args, env) in [
        (&["--nope=1"][..], &[][..]),
        (&["---x"], &[]),
        (&["--name"], &[]),
        (&["--pre-vote=maybe"], &[]),
        (&["--heartbeat-interval=x"], &[]),
        (&["--initial-cluster-state=old"], &[]),
        (&["--feature-gates=Foo=true"], &[]),
        (&["--listen-client-urls=127.0.0.1:1"], &[]),
        (&["--cors=foo"], &[]),
        (&["--max-concurrent-streams=-1"], &[]),
    ] {
        let (ours, theirs) = (ferretcd(args, env), etcd(args, env));
        assert_eq!(ours.status.code(), theirs.status.code(), "{args:?}");
        assert_eq!(stderr(&ours).lines().next(), stderr(&theirs).lines().next(), "{args:?}");
        assert_eq!(ours.status.code(), Some(2));
    }
    for (args, env) in [
        (&["--pre-vote", "false"][..], &[][..]),
        (&["start"], &[]),
        (&["--listen-client-urls=http://example.com:1", "--advertise-client-urls=http://a:1"], &[]),
        (&["--listen-client-urls=http://127.0.0.1:1"], &[]),
        (&["--listen-client-urls="], &[]),
        (&["--tls-min-version=TLS1.1"], &[]),
        (&["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"], &[]),
        (&["--log-format=x"], &[]),
        (&["--logger=capnslog"], &[]),
        (&["--auto-compaction-mode=x"], &[]),
        (&["--election-timeout=400"], &[]),
        (&["--discovery-srv=x", "--initial-cluster=a=http://b:1"], &[]),
        (&["--discovery-fallback=proxy"], &[]),
        (&["--config-file=/nope"], &[]),
        (&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")]),
        (&["--advertise-client-urls=http://:1"], &[]),
        (&["--enable-log-rotation"], &[]),
        (&["--enable-log-rotation", "--log-outputs=/tmp/a,/tmp/b"], &[]),
        (&["--enable-log-rotation", "--log-outputs=/tmp/a", "--log-rotation-config-json={\"maxage\":"], &[]),
        (&["--enable-log-rotation", "--log-outputs=/tmp/a", "--log-rotation-config-json={\"maxsize\":\"1\"}"], &[]),
        (&["--log-outputs=systemd/journal,stderr"], &[]),
        (&["--log-outputs=/no/such/file"], &[]),
        (&["--log-outputs=stdout,default"], &[]),
    ] {
        let (ours, theirs) = (ferretcd(args, env), etcd(args, env));
        assert_eq!((ours.status.code(), theirs.status.code()), (Some(1), Some(1)), "{args:?}: {}", stderr(&ours));
        assert!(complaint(&ours).is_some(), "{args:?}: {}", stderr(&ours));
        assert_eq!(complaint(&ours), complaint(&theirs), "{args:?}");
    }
}

#[test]
fn files_that_cannot_be_followed_end_as_in_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.yaml");
    for text in [
        "heartbeat-interval: 100ms\n",
        "watch-progress-notify-interval: 5s\n",
        "pre-vote: \"true\"\n",
        "name: 5\n",
        "name: [a]\n",
        "[]\n",
        "cipher-suites: foo\n",
        "peer-transport-security: x\n",
        "client-transport-security:\n  allowed-cn: a\n",
        "feature-gates: Foo=true\n",
        "initial-cluster-state: old\n",
        "max-concurrent-streams: -1\n",
        "quota-backend-bytes: 1.5\n",
        "snapshot-count: -3\n",
        "listen-client-urls: http://foo:1\n",
        "nope: 1\ntls-min-version: w\n",
        "{\"name\":\"x\",\"tls-min-version\":\"q\"}\n",
    ] {
        fs::write(&path, text).unwrap();
        let args = ["--config-file", path.to_str().unwrap(), "--name=ignored"];
        let (ours, theirs) = (ferretcd(&args, &[]), etcd(&args, &[("ETCD_DATA_DIR", "ignored")]));
        assert_eq!((ours.status.code(), theirs.status.code()), (Some(1), Some(1)), "{text}: {}", stderr(&ours));
        assert!(complaint(&ours).is_some(), "{text}: {}", stderr(&ours));
        assert_eq!(complaint(&ours), complaint(&theirs), "{text}");
    }
}

#[test]
fn every_flag_of_etcds_help_is_known() {
    let theirs = finished(etcd(&["--help"], &[])).unwrap();
    // Listed in the help of 3.7.1, but refused by it.
    let gone = ["discovery", "discovery-proxy"];
    let ours = finished(ferretcd(&["--help"], &[])).unwrap();
    let mut seen = 0;
    for line in theirs.lines().filter_map(|l| l.strip_prefix("  --")) {
        let (name, default) = line.split_once(' ').map_or((line, None), |(n, d)| (n, Some(d.trim_matches('\''))));
        if gone.contains(&name) {
            continue;
        }
        seen += 1;
        let mine = ours.lines().find_map(|l| l.strip_prefix(&format!("  --{name} '")));
        let mine = mine.unwrap_or_else(|| panic!("--{name} is not known")).trim_end_matches('\'');
        // etcd's help writes some defaults in words.
        let told_otherwise = matches!(
            name,
            "data-dir" | "max-concurrent-streams" | "initial-cluster" | "v2-deprecation" | "backend-batch-interval"
        );
        if let Some(default) = default.filter(|_| !told_otherwise) {
            assert_eq!(mine, default, "--{name}");
        }
    }
    assert!(seen > 100, "{seen}");
}

#[tokio::test]
async fn kubeadms_whole_line_runs() {
    let dir = tempfile::tempdir().unwrap();
    let pki = support::pki::Pki::new(dir.path());
    let mut member = Member::new("control-plane", dir.path());
    let (client, peer) = (format!("https://{}", member.client), format!("https://{}", member.peer));
    let metrics = format!("http://{}", support::free_address());
    let server = pki.issue("server", "control-plane");
    let path = |p: &Path| p.display().to_string();
    let args = [
        format!("--advertise-client-urls={client}"),
        format!("--cert-file={}", path(&server.cert)),
        "--client-cert-auth=true".to_owned(),
        format!("--data-dir={}", member.dir.display()),
        "--feature-gates=InitialCorruptCheck=true".to_owned(),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=control-plane={peer}"),
        format!("--key-file={}", path(&server.key)),
        format!("--listen-client-urls={client}"),
        format!("--listen-metrics-urls={metrics}"),
        format!("--listen-peer-urls={peer}"),
        "--name=control-plane".to_owned(),
        format!("--peer-cert-file={}", path(&server.cert)),
        "--peer-client-cert-auth=true".to_owned(),
        format!("--peer-key-file={}", path(&server.key)),
        format!("--peer-trusted-ca-file={}", path(&pki.ca)),
        "--snapshot-count=10000".to_owned(),
        format!("--trusted-ca-file={}", path(&pki.ca)),
        "--watch-progress-notify-interval=5s".to_owned(),
    ];
    let mut command = plain(&member);
    command.args(args);
    member.start_as(command);
    eventually("it is ready", async || {
        if member.log().contains("ready to serve client requests") { Ok(()) } else { Err(member.log()) }
    })
    .await;
    // kubeadm's probes, without a certificate.
    let probe = Member::at(metrics.strip_prefix("http://").unwrap(), dir.path());
    assert_eq!(probe.http("/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(probe.http("/livez").await, (200, "ok\n".to_owned()));
    let log = member.log();
    assert!(!log.contains("has no effect in this server"), "{log}");
    assert!(log.contains("\"msg\":\"serving client traffic securely\""), "{log}");
}

#[tokio::test]
async fn a_unit_with_a_file_of_variables_runs_and_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new("etcd-1", dir.path());
    let second = support::free_address();
    let socket_path = dir.path().join("notify");
    let notified = UnixDatagram::bind(&socket_path).unwrap();
    notified.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = plain(&member);
    command.envs([
        ("ETCD_NAME", "etcd-1".to_owned()),
        ("ETCD_DATA_DIR", member.dir.display().to_string()),
        ("ETCD_LISTEN_PEER_URLS", member.peer_url()),
        ("ETCD_LISTEN_CLIENT_URLS", format!("http://{},http://{second}", member.client)),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", member.peer_url()),
        ("ETCD_ADVERTISE_CLIENT_URLS", format!("http://{}", member.client)),
        ("ETCD_INITIAL_CLUSTER", format!("etcd-1={}", member.peer_url())),
        ("ETCD_INITIAL_CLUSTER_TOKEN", "etcd-cluster-1".to_owned()),
        ("ETCD_INITIAL_CLUSTER_STATE", "new".to_owned()),
        ("NOTIFY_SOCKET", socket_path.display().to_string()),
        ("PATH", "/usr/bin".to_owned()),
    ]);
    member.start_as(command);
    let said = || {
        let mut text = [0; 64];
        let n = notified.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..n]).into_owned()
    };
    assert_eq!(said(), "READY=1");
    member.put("k", "v").await.unwrap();
    let other = Member::at(&second, dir.path());
    assert_eq!(other.get("k", false).await.unwrap().as_deref(), Some("v"));
    assert_eq!(member.terminate().await, Some(0));
    assert_eq!(said(), "STOPPING=1");
}

#[tokio::test]
async fn a_file_sets_everything_and_a_unix_socket_serves_etcdctl() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new("filed", dir.path());
    let socket = dir.path().join("client.sock");
    let log = dir.path().join("server.log");
    let config = dir.path().join("etcd.yaml");
    let text = format!(
        "name: filed\ndata-dir: {}\nlisten-client-urls: http://{},unix://{}\nadvertise-client-urls: http://{}\n\
         listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\ninitial-cluster: filed={peer}\n\
         log-outputs: [{}, stderr]\nmax-txn-ops: 5\n",
        member.dir.display(),
        member.client,
        socket.display(),
        member.client,
        log.display(),
        peer = member.peer_url(),
    );
    fs::write(&config, text).unwrap();
    // What an earlier process left behind is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut command = plain(&member);
    command.arg("--config-file").arg(&config).arg("--name=ignored").env("ETCD_NAME", "ignored");
    member.start_as(command);
    member.ready().await;
    let etcdctl = |args: &[&str]| {
        let mut command = Command::new(etcd_tool("etcdctl"));
        command.env_clear().arg(format!("--endpoints=unix://{}", socket.display())).args(args);
        finished(command.stdin(Stdio::null()).output().unwrap())
    };
    assert_eq!(etcdctl(&["put", "a", "b"]).unwrap(), "OK\n");
    assert_eq!(etcdctl(&["get", "a", "--print-value-only"]).unwrap(), "b\n");
    assert!(etcdctl(&["member", "list"]).unwrap().contains("filed"));
    assert!(fs::read_to_string(&log).unwrap().contains("loaded server configuration"));
    assert!(member.log().contains("loaded server configuration"));
    assert_eq!(member.terminate().await, Some(0));
    assert!(!socket.exists(), "the socket's file is left");
}

#[tokio::test]
async fn elections_wait_for_their_time_out_after_a_start_and_need_no_vote_before_if_that_is_asked_for() {
    let mut cluster = Cluster::new(&["a", "b", "c"]);
    for member in &mut cluster.members {
        let flags = ["--initial-election-tick-advance=false", "--pre-vote=false", "--election-timeout=3000"];
        member.flags.extend(flags.map(str::to_owned));
    }
    for _ in 0..2 {
        let begun = Instant::now();
        cluster.members.iter_mut().for_each(Member::start);
        for member in &cluster.members {
            member.ready().await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
        cluster.members[0].put("k", "v").await.unwrap();
        cluster.members.iter_mut().for_each(Member::kill);
    }
}

#[tokio::test]
async fn http_can_have_listeners_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new("split", dir.path());
    let http = support::free_address();
    member.flags.push(format!("--listen-client-http-urls=http://{http}"));
    member.start();
    member.ready().await;
    assert_eq!(Member::at(&http, dir.path()).http("/health").await.0, 200);
    let (_, told) = member.http("/health").await;
    assert!(!told.contains("health"), "{told}");
    let grpc = Member::at(&http, dir.path()).get("k", true).await;
    assert!(grpc.is_err());
}

#[tokio::test]
async fn a_full_log_is_renamed_and_packed() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let mut member = Member::new("rotating", dir.path());
    member.flags.extend([
        "--log-level=debug".to_owned(),
        "--log-outputs=".to_owned() + logs.join("etcd.log").to_str().unwrap(),
        "--enable-log-rotation".to_owned(),
        r#"--log-rotation-config-json={"maxsize": 1, "maxbackups": 2, "compress": true}"#.to_owned(),
    ]);
    // What an earlier process wrote leaves no room for another line.
    fs::write(logs.join("etcd.log"), vec![b'x'; 1 << 20]).unwrap();
    member.start();
    member.ready().await;
    eventually("the full file is packed", async || {
        let names: Vec<String> =
            fs::read_dir(&logs).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let packed = |n: &&String| n.starts_with("etcd-2") && n.ends_with(".log.gz");
        if names.iter().filter(packed).count() == 1 && names.len() == 2 { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    let log = fs::read_to_string(logs.join("etcd.log")).unwrap();
    assert!(log.starts_with("{\"level\":") && log.contains("\"msg\":\"starting\""), "{log}");
}

#[tokio::test]
async fn a_slow_call_and_a_store_with_room_to_gain_are_mentioned() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new("slow", dir.path());
    member.flags.extend([
        "--warning-unary-request-duration=1ns".to_owned(),
        "--bootstrap-defrag-threshold-megabytes=3".to_owned(),
        "--raft-read-timeout=1s".to_owned(),
    ]);
    member.start();
    member.ready().await;
    assert!(member.log().contains("\"msg\":\"Skipping defragmentation\""), "{}", member.log());
    assert!(member.log().contains("raft-read-timeout increased to minimum value: 5s"), "{}", member.log());
    let mut revision = 0;
    for _ in 0..8 {
        revision = member.put("k", &"x".repeat(1 << 20)).await.unwrap();
    }
    let log = member.log();
    let line = log.lines().find(|l| l.contains("\"msg\":\"request stats\"") && l.contains("KV/Put")).unwrap();
    for part in ["\"response type\":\"/etcdserverpb.KV/Put\"", "\"remote\":\"127.0.0.1:", "\"request size\":10485"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let compact = ["compact", "--physical", &revision.to_string()];
    member.etcdctl(&compact).unwrap();
    assert_eq!(member.terminate().await, Some(0));
    assert!(!member.log().contains("the store was rewritten"));
    member.start();
    member.ready().await;
    assert!(member.log().contains("the store was rewritten"), "{}", member.log());
    assert_eq!(member.get("k", false).await.unwrap().map(|v| v.len()), Some(1 << 20));
}

#[tokio::test]
async fn memory_is_locked_or_the_start_says_why_it_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::new("locked", dir.path());
    member.flags.push("--memory-mlock".to_owned());
    member.start();
    let locked = eventually("it serves or it ends", async || {
        // Without the right to it, the limit of most machines is too low.
        if member.log().contains("--memory-mlock: cannot lock the memory") {
            return Ok(None);
        }
        match member.log().contains("ready to serve client requests") {
            true => Ok(Some(member.locked_bytes())),
            false => Err(member.log()),
        }
    })
    .await;
    match locked {
        Some(bytes) => assert!(bytes > 0),
        None => assert_eq!(member.ended().await, Some(1)),
    }
}
