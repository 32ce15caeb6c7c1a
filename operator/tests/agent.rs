//! The agent's binary between real etcd and a real S3 server, all on loopback: what the Jobs do in a cluster, without one.

// Helpers of tests fail by panicking; Clippy's allowance covers only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use ferretcd_e2e::{Bin, Cache, Probe, Tools, wait_until};
use ferretcd_operator_api::{AgentReport, BackupManifest, agent::EXIT_PERMANENT};
use serde_json::Value;

const ACCESS_KEY: &str = "ferretcd-test";
const SECRET_KEY: &str = "ferretcd-test-secret";
const KEY: &str = "demo/uid/backup.db";

/// Etcd, an S3 server with the bucket `backups`, and a folder; all gone at the end.
struct World {
    tools: Tools,
    folder: tempfile::TempDir,
    etcd: String,
    s3: String,
    running: Vec<Child>,
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port of loopback that nobody listens on, below those that the system gives to outgoing connections.
fn free_port() -> Result<u16> {
    const PORTS: std::ops::Range<u32> = 10_000..30_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(7919);
    for _ in PORTS {
        let at = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", u16::try_from(PORTS.start + at)?)) {
            return Ok(listener.local_addr()?.port());
        }
    }
    bail!("no free port");
}

impl World {
    fn begin() -> Result<World> {
        let tools = Tools::new(Cache::from_env()?);
        let folder = tempfile::tempdir()?;
        let (client, peer, s3) = (free_port()?, free_port()?, free_port()?);
        let etcd = format!("http://127.0.0.1:{client}");
        let mut world =
            World { etcd: etcd.clone(), s3: format!("http://127.0.0.1:{s3}"), tools, folder, running: Vec::new() };
        fs::create_dir_all(world.bucket())?;

        let mut server = Command::new(world.tools.path(Bin::Versitygw)?);
        server.env("ROOT_ACCESS_KEY", ACCESS_KEY).env("ROOT_SECRET_KEY", SECRET_KEY);
        server.args(["--quiet", "--port", &format!("127.0.0.1:{s3}"), "posix"]).arg(world.folder.path().join("s3"));
        world.run(server)?;
        let mut server = Command::new(world.tools.path(Bin::Etcd)?);
        server.args(["--listen-client-urls", &etcd, "--advertise-client-urls", &etcd, "--log-level", "error"]);
        server.args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")]);
        server.arg("--data-dir").arg(world.folder.path().join("etcd"));
        world.run(server)?;
        wait_until("etcd", Duration::from_secs(30), || world.etcdctl(&["endpoint", "health"]).map(Probe::Ready))?;
        wait_until("the S3 server", Duration::from_secs(30), || {
            std::net::TcpStream::connect(("127.0.0.1", s3)).context("no connection").map(Probe::Ready)
        })?;
        Ok(world)
    }

    fn run(&mut self, mut command: Command) -> Result<()> {
        self.running.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        Ok(())
    }

    /// The bucket, which the S3 server keeps as a folder.
    fn bucket(&self) -> PathBuf {
        self.folder.path().join("s3/backups")
    }

    fn data(&self) -> PathBuf {
        self.bucket().join(KEY)
    }

    fn manifest(&self) -> PathBuf {
        self.bucket().join(format!("{KEY}.manifest.json"))
    }

    fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.tools.etcdctl()?).args(["--endpoints", &self.etcd]).args(arguments).output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn cluster_id(&self) -> Result<String> {
        let status: Value = serde_json::from_str(&self.etcdctl(&["endpoint", "status", "--write-out", "json"])?)?;
        Ok(format!("{:x}", status[0]["Status"]["header"]["cluster_id"].as_u64().context("no cluster ID")?))
    }

    /// Runs a verb of the agent; returns its exit code and its report.
    fn agent(&self, verb: &str, bucket: &str, secret: &str, arguments: &[&str]) -> Result<(i32, AgentReport)> {
        let report = self.folder.path().join("report");
        let _ = fs::remove_file(&report);
        let status = Command::new(env!("CARGO_BIN_EXE_ferretcd-operator"))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .args([verb, "--bucket", bucket, "--key", KEY, "--s3-endpoint", &self.s3, "--force-path-style"])
            .arg("--report")
            .arg(&report)
            .args(arguments)
            .status()?;
        let left = fs::read_to_string(&report)?;
        Ok((status.code().context("ended by a signal")?, AgentReport::parse(&left).context(left)?))
    }

    fn backup(&self, bucket: &str, secret: &str, backup_uid: &str) -> Result<(i32, AgentReport)> {
        let id = self.cluster_id()?;
        // The first endpoint is a member that is away.
        let endpoints = ["--endpoint", "http://127.0.0.1:1", "--endpoint", &self.etcd];
        let names = ["--cluster", "demo", "--cluster-uid", "uid", "--cluster-id", &id, "--backup-uid", backup_uid];
        self.agent("backup", bucket, secret, &[endpoints.as_slice(), names.as_slice()].concat())
    }

    fn restore(&self) -> Result<(i32, AgentReport)> {
        let id = self.cluster_id()?;
        self.agent("restore", "backups", SECRET_KEY, &["--endpoint", &self.etcd, "--cluster-id", &id])
    }
}

fn message(report: &AgentReport) -> &str {
    match report {
        AgentReport::Failed { message } => message,
        other => panic!("not a failure: {other:?}"),
    }
}

#[test]
fn a_backup_of_real_etcd_is_a_snapshot_that_etcds_own_tools_accept_and_goes_when_it_is_pruned() -> Result<()> {
    let world = World::begin()?;
    // More than one part of 8 MiB, with values that do not repeat.
    for n in 0..10_u32 {
        let value: String =
            (0..110_000_u32).map(|at| format!("{:08x}", (at ^ n).wrapping_mul(2_654_435_761))).collect();
        let mut put = Command::new(world.tools.etcdctl()?)
            .args(["--endpoints", &world.etcd, "put", &format!("key-{n}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        std::io::Write::write_all(&mut put.stdin.take().context("no stdin")?, value.as_bytes())?;
        assert!(put.wait()?.success());
    }

    let (code, report) = world.backup("backups", SECRET_KEY, "mine")?;
    assert_eq!(code, 0, "{report:?}");
    let AgentReport::BackedUp { key, revision, size, sha256 } = report.clone() else { panic!("{report:?}") };
    assert_eq!((key.as_str(), revision), (KEY, 11));
    assert!(size > 8 << 20, "{size}");

    let manifest: BackupManifest = serde_json::from_str(&fs::read_to_string(world.manifest())?)?;
    assert_eq!((manifest.size, manifest.sha256.as_str()), (size, sha256.as_str()));
    assert_eq!((manifest.cluster_id, manifest.backup_uid.as_str()), (world.cluster_id()?, "mine"));

    let status = Command::new(world.tools.path(Bin::Etcdutl)?)
        .args(["snapshot", "status", "--write-out", "json"])
        .arg(world.data())
        .output()?;
    let status: Value = serde_json::from_slice(&status.stdout)?;
    assert_eq!((status["revision"].as_i64(), status["totalKey"].as_i64()), (Some(11), Some(10)));

    // Another attempt reports the same; another backup under the same key changes nothing.
    let written = fs::metadata(world.data())?.modified()?;
    assert_eq!(world.backup("backups", SECRET_KEY, "mine")?, (0, report));
    let (code, refused) = world.backup("backups", SECRET_KEY, "other")?;
    assert_eq!(code, EXIT_PERMANENT);
    assert!(message(&refused).contains("UID mine"), "{refused:?}");
    assert_eq!(fs::metadata(world.data())?.modified()?, written);

    let (code, report) = world.agent("prune", "backups", SECRET_KEY, &["--backup-uid", "mine"])?;
    assert_eq!((code, report), (0, AgentReport::Pruned { key: KEY.to_owned() }));
    assert!(!world.data().exists() && !world.manifest().exists());
    Ok(())
}

#[test]
fn a_missing_bucket_wrong_credentials_and_a_store_that_is_away_are_named_and_leave_nothing() -> Result<()> {
    let world = World::begin()?;
    let (code, report) = world.backup("no-such-bucket", SECRET_KEY, "mine")?;
    assert_eq!(code, EXIT_PERMANENT);
    assert!(message(&report).contains("bucket no-such-bucket does not exist; create it"), "{report:?}");

    let (code, report) = world.backup("backups", "not-the-secret", "mine")?;
    assert_eq!(code, EXIT_PERMANENT);
    assert!(message(&report).contains("does not accept the credentials (SignatureDoesNotMatch)"), "{report:?}");
    assert!(!message(&report).contains("not-the-secret"), "{report:?}");

    assert!(!world.data().exists() && !world.manifest().exists());

    // Not permanent: the Job tries again.
    let mut world = world;
    world.s3 = "http://127.0.0.1:1".to_owned();
    let (code, report) = world.backup("backups", SECRET_KEY, "mine")?;
    assert_eq!(code, 1, "{report:?}");
    assert!(message(&report).contains("refused"), "{report:?}");
    Ok(())
}

#[test]
fn a_backup_that_is_damaged_or_incomplete_in_the_store_is_not_restored() -> Result<()> {
    let world = World::begin()?;
    world.etcdctl(&["put", "a", "1"])?;
    assert_eq!(world.backup("backups", SECRET_KEY, "mine")?.0, 0);
    let whole = fs::read(world.data())?;
    let keys = world.etcdctl(&["get", "", "--prefix"])?;

    let damage = |file: &Path, bytes: &[u8], says: &str| -> Result<()> {
        fs::write(file, bytes)?;
        let (code, report) = world.restore()?;
        assert_eq!(code, EXIT_PERMANENT, "{report:?}");
        assert!(message(&report).contains(says), "{report:?}");
        Ok(())
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    damage(&world.data(), &flipped, "its checksum is")?;
    damage(&world.data(), &whole[..whole.len() - 512], "but its manifest says")?;
    damage(&world.manifest(), b"{", "damaged, use another backup")?;
    fs::remove_file(world.manifest())?;
    damage(&world.data(), &whole, "no manifest")?;
    assert_eq!(world.etcdctl(&["get", "", "--prefix"])?, keys);
    Ok(())
}
