//! The product on a real Kubernetes, told as stories: each in a namespace of its own, two at a time. `ferretcd-e2e test`
//! brings the cluster, the operator and the object store up and runs them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferretcd_e2e::bucket::Bucket;
use ferretcd_e2e::connect::condition;
use ferretcd_e2e::etcd::{
    EtcdCluster, Member, backup_manifest, cluster_manifest, credentials, restored_manifest, schedule_manifest, summary,
    wait_for_backup,
};
use ferretcd_e2e::writer::{Writer, check_nothing_lost};
use ferretcd_e2e::{Cluster, Namespace, Probe, s3, suite, wait_until};

/// How long an EtcdCluster may take to become Ready: 20 s are usual for three members, and two stories share two cores with
/// unoptimised servers.
const READY: Duration = Duration::from_secs(240);

/// How long a Job may take to end; one that succeeds needs 3 s.
const JOB: Duration = Duration::from_secs(120);

/// Runs a story in a namespace of its own, if the tests that need a cluster are to run.
fn tell(name: &str, story: impl FnOnce(&Namespace<'_>) -> Result<()>) -> Result<()> {
    if suite::enabled() { Cluster::connect()?.with_temp_ns(name, story) } else { Ok(()) }
}

fn create<'a>(namespace: &'a Namespace<'a>, name: &str, replicas: u8) -> Result<EtcdCluster<'a>> {
    namespace.apply(&cluster_manifest(name, replicas))?;
    let cluster = EtcdCluster::new(namespace, name)?;
    cluster.wait_ready(replicas, READY)?;
    Ok(cluster)
}

/// Puts `count` keys through the first member.
fn fill(cluster: &EtcdCluster<'_>, count: u32) -> Result<()> {
    let members = cluster.members()?;
    let first = members.first().context("there is no member")?;
    for number in 0..count {
        cluster.etcdctl(first, &["put", &format!("key/{number:03}"), &format!("value {number}")])?;
    }
    Ok(())
}

/// A cluster of one member with data, and a complete backup `first` of it.
fn with_backup<'a>(namespace: &'a Namespace<'a>) -> Result<(EtcdCluster<'a>, String)> {
    let cluster = create(namespace, "first", 1)?;
    fill(&cluster, 20)?;
    namespace.apply(&credentials())?;
    namespace.apply(&backup_manifest("backup", cluster.name(), s3::BUCKET, namespace.name()))?;
    let backup = wait_for_backup(namespace, "backup", JOB)?;
    let key = backup["status"]["key"].as_str().context("a complete backup has a key")?.to_owned();
    Ok((cluster, key))
}

/// What people type into etcdctl every day, each against another member than the one before where that could differ.
fn everyday_work(cluster: &EtcdCluster<'_>, members: &[Member]) -> Result<()> {
    let [a, b, c] = members else { bail!("three members are needed") };
    let expect = |what: &str, said: String, wanted: &str| {
        ensure!(said.contains(wanted), "{what}: {wanted:?} is not in {said:?}");
        Ok(said)
    };
    expect("put", cluster.etcdctl(a, &["put", "day/a", "1"])?, "OK")?;
    expect("get", cluster.etcdctl(b, &["get", "day/a", "--print-value-only"])?, "1")?;
    let mut txn = cluster.etcdctl_command(c.reach.url());
    let txn = txn.arg("txn").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting etcdctl txn")?;
    txn.stdin
        .as_ref()
        .context("etcdctl has a standard input")?
        .write_all(b"value(\"day/a\") = \"1\"\n\nput day/b 2\n\nput day/b 3\n\n")?;
    let said = String::from_utf8(txn.wait_with_output()?.stdout)?;
    expect("txn", said, "SUCCESS")?;
    // History and what happens now, through another member.
    let mut watch = cluster.etcdctl_command(b.reach.url());
    let mut watch = watch.args(["watch", "day/", "--prefix", "--rev=1"]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().context("etcdctl has a standard output")?).lines();
    for wanted in ["PUT", "day/a", "1", "PUT", "day/b", "2"] {
        expect("watch", lines.next().context("the watch ended")??, wanted)?;
    }
    expect("del", cluster.etcdctl(a, &["del", "day/b"])?, "1")?;
    expect("watch", lines.next().context("the watch ended")??, "DELETE")?;
    watch.kill()?;
    watch.wait()?;
    let granted = expect("lease grant", cluster.etcdctl(b, &["lease", "grant", "600"])?, "granted with TTL(600s)")?;
    let id = granted.split_whitespace().nth(1).context("a granted lease has an ID")?;
    cluster.etcdctl(c, &["put", "--lease", id, "day/leased", "x"])?;
    expect("keep-alive", cluster.etcdctl(a, &["lease", "keep-alive", "--once", id])?, "TTL(600)")?;
    expect("timetolive", cluster.etcdctl(b, &["lease", "timetolive", "--keys", id])?, "day/leased")?;
    expect("revoke", cluster.etcdctl(c, &["lease", "revoke", id])?, "revoked")?;
    ensure!(cluster.etcdctl(a, &["get", "day/leased"])?.is_empty(), "a revoked lease left its key behind");
    ensure!(cluster.etcdctl(b, &["member", "list"])?.lines().count() == 3, "member list");
    expect("endpoint status", cluster.etcdctl(c, &["endpoint", "status", "-w", "json"])?, "\"version\":\"3.7")?;
    let file = std::env::temp_dir().join(format!("ferretcd-story-{}.db", std::process::id()));
    let path = file.to_str().context("the temporary folder's name is text")?;
    expect("snapshot save", cluster.etcdctl(a, &["snapshot", "save", path])?, "Snapshot saved")?;
    let bytes = fs::metadata(&file)?.len();
    fs::remove_file(&file)?;
    ensure!(bytes % 512 == 32, "a snapshot file is pages and a SHA-256, not {bytes} bytes");
    Ok(())
}

#[test]
fn three_members_outlive_their_leader_and_grow_and_shrink() -> Result<()> {
    tell("members", |namespace| {
        let cluster = create(namespace, "etcd", 3)?;
        let members = cluster.members()?;
        ensure!(members.len() == 3, "there are {} members", members.len());
        for member in &members {
            let health = cluster.etcdctl(member, &["endpoint", "health"])?;
            ensure!(health.contains("is healthy"), "{}: {health}", member.name);
        }

        everyday_work(&cluster, &members)?;

        // Killed, so that it hands nothing over.
        let writer = Writer::start(&cluster, &members, "stream/");
        writer.wait_for(20)?;
        let leader = cluster.leader()?;
        let victim = members.iter().find(|member| member.name == leader).context("the leader is a member")?;
        namespace.cluster().kill_server(namespace.name(), &victim.pod)?;
        writer.wait_for(20)?;
        namespace.wait_for_pod(&victim.pod, READY)?;
        let log = writer.finish()?;
        ensure!(log.longest_gap < Duration::from_secs(20), "writes were away for {:?}", log.longest_gap);
        wait_until("the killed member's data", READY, || {
            check_nothing_lost(&cluster, &cluster.members()?, "stream/", &log).map(Probe::Ready)
        })?;

        for replicas in [5, 3] {
            cluster.scale(replicas)?;
            cluster.wait_ready(replicas, READY)?;
            let members = cluster.members()?;
            ensure!(members.len() == usize::from(replicas), "there are {} pods, not {replicas}", members.len());
            check_nothing_lost(&cluster, &members, "stream/", &log)?;
            let first = members.first().context("there is no member")?;
            let listed = cluster.etcdctl(first, &["member", "list"])?;
            ensure!(listed.lines().count() == members.len(), "etcd lists other members:\n{listed}");
            ensure!(!listed.contains("true"), "etcd lists a learner:\n{listed}");
        }
        Ok(())
    })
}

#[test]
fn a_backup_becomes_a_second_cluster_with_equal_contents() -> Result<()> {
    tell("restore", |namespace| {
        let (first, key) = with_backup(namespace)?;
        let bucket = Bucket::open(namespace.cluster())?;
        let listed: Vec<String> = bucket.list(&key)?.into_iter().map(|(key, _)| key).collect();
        ensure!(listed == [key.clone(), format!("{key}.manifest.json")], "the store lists {listed:?}");

        namespace.apply(&restored_manifest("second", 3, "backup"))?;
        let second = EtcdCluster::new(namespace, "second")?;
        second.wait_ready(3, READY)?;
        let source = first.members()?;
        let wanted = first.contents(source.first().context("there is no member")?, "")?;
        ensure!(wanted.len() == 20, "the source has {} keys", wanted.len());
        for member in second.members()? {
            ensure!(second.contents(&member, "")? == wanted, "{} has other contents", member.name);
        }
        let (old, new) = (first.object()?, second.object()?);
        ensure!(old["status"]["clusterId"] != new["status"]["clusterId"], "two clusters have one ID");
        Ok(())
    })
}

#[test]
fn a_damaged_backup_is_refused_and_nothing_serves() -> Result<()> {
    tell("damage", |namespace| {
        let (_, key) = with_backup(namespace)?;
        let bucket = Bucket::open(namespace.cluster())?;
        let file = std::env::temp_dir().join(format!("{}.db", namespace.name()));
        bucket.download(&key, &file)?;
        let mut bytes = fs::read(&file)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("the backup is empty")? ^= 0xff;
        fs::write(&file, bytes)?;
        bucket.upload(&file, &key)?;
        fs::remove_file(&file)?;

        namespace.apply(&restored_manifest("second", 1, "backup"))?;
        let second = EtcdCluster::new(namespace, "second")?;
        let message = wait_until("the restore's refusal", READY, || {
            let object = second.object()?;
            let (degraded, message) = condition(&object, "Degraded");
            let refused = degraded == "True" && message.contains("the restore failed");
            Ok(if refused { Probe::Ready(message) } else { Probe::Pending(summary(&object)) })
        })?;
        ensure!(message.contains("SHA-256") || message.contains("checksum"), "the message has no reason: {message}");
        ensure!(message.contains(&key), "the message does not name the object: {message}");
        ensure!(condition(&second.object()?, "Available").0 == "False", "it is available");
        let endpoints = namespace.get(&["endpointslices", "--selector=kubernetes.io/service-name=second-client"])?;
        let addresses: usize = endpoints["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|slice| slice["endpoints"].as_array().map_or(0, Vec::len))
            .sum();
        ensure!(addresses == 0, "{addresses} addresses are behind the client Service");
        // What was refused has changed nothing.
        for member in second.members()? {
            ensure!(second.contents(&member, "")?.is_empty(), "{} has keys", member.name);
        }
        Ok(())
    })
}

#[test]
fn a_missing_bucket_fails_the_backup_and_changes_nothing() -> Result<()> {
    tell("bucket", |namespace| {
        let cluster = create(namespace, "etcd", 1)?;
        fill(&cluster, 3)?;
        let revision = |cluster: &EtcdCluster<'_>| -> Result<String> {
            let members = cluster.members()?;
            cluster.etcdctl(members.first().context("there is no member")?, &["get", "key/", "--prefix", "-w", "json"])
        };
        let before = revision(&cluster)?;
        namespace.apply(&credentials())?;
        namespace.apply(&backup_manifest("backup", cluster.name(), "no-such-bucket", "x"))?;
        let message = wait_until("the backup's failure", JOB, || {
            let backup = namespace.get(&["etcdbackup", "backup"])?;
            let message = backup["status"]["message"].as_str().unwrap_or_default().to_owned();
            Ok(match backup["status"]["phase"].as_str() {
                Some("Failed") => Probe::Ready(message),
                Some("Complete") => Probe::Failed("it is Complete".into()),
                phase => Probe::Pending(format!("{phase:?}: {message}")),
            })
        })?;
        ensure!(message.contains("bucket no-such-bucket does not exist"), "the message does not say it: {message}");
        ensure!(revision(&cluster)? == before, "the cluster has changed");
        cluster.wait_ready(1, READY)
    })
}

#[test]
fn a_schedule_makes_backups_and_keeps_the_last_two() -> Result<()> {
    tell("schedule", |namespace| {
        let cluster = create(namespace, "etcd", 1)?;
        fill(&cluster, 3)?;
        namespace.apply(&credentials())?;
        namespace.apply(&schedule_manifest("often", cluster.name(), "* * * * *", 2, namespace.name()))?;
        let bucket = Bucket::open(namespace.cluster())?;
        let prefix = format!("{}/", namespace.name());
        let mut seen = std::collections::BTreeSet::new();
        // Three slots of a minute each, and the time of three Jobs and of the one that prunes.
        wait_until("the third backup, and the first one's end", Duration::from_secs(330), || {
            let listed = bucket.list(&prefix)?;
            let manifests: Vec<&String> =
                listed.iter().map(|(key, _)| key).filter(|key| key.ends_with(".manifest.json")).collect();
            seen.extend(manifests.iter().map(|key| (*key).clone()));
            if manifests.len() > 3 {
                return Ok(Probe::Failed(format!("the store lists {} backups: {manifests:?}", manifests.len())));
            }
            let settled = seen.len() >= 3 && manifests.len() == 2 && listed.len() == 4;
            Ok(Probe::when(settled, format!("{} seen, {} objects there", seen.len(), listed.len())))
        })?;
        // The third is one of the two that are left, and the first is not.
        let left: Vec<String> = bucket.list(&prefix)?.into_iter().map(|(key, _)| key).collect();
        let (first, last) = (seen.first().context("no backup")?, seen.last().context("no backup")?);
        ensure!(left.contains(last) && !left.contains(first), "of {seen:?}, the store lists {left:?}");
        wait_until("the first EtcdBackup to go", JOB, || {
            let backups = namespace.get(&["etcdbackups"])?;
            let count = backups["items"].as_array().map_or(0, Vec::len);
            // A slot may have begun meanwhile.
            Ok(Probe::when((2..=3).contains(&count), format!("{count} EtcdBackups")))
        })
    })
}

#[test]
fn two_replicas_are_refused_with_a_reason() -> Result<()> {
    tell("replicas", |namespace| {
        match namespace.apply(&cluster_manifest("etcd", 2)) {
            Ok(_) => bail!("replicas 2 was accepted"),
            Err(error) => {
                let error = format!("{error:#}");
                ensure!(error.contains("replicas must be 1, 3, 5 or 7"), "the refusal does not say why: {error}");
            }
        }
        let objects = namespace.get(&["etcdclusters,statefulsets,persistentvolumeclaims"])?;
        ensure!(objects["items"].as_array().is_some_and(Vec::is_empty), "something was made: {objects}");
        Ok(())
    })
}

#[test]
fn volumes_outlive_their_cluster_and_no_other_takes_them() -> Result<()> {
    tell("retain", |namespace| {
        let manifest = cluster_manifest("etcd", 1).replace("deletionPolicy: Delete", "deletionPolicy: Retain");
        namespace.apply(&manifest)?;
        let cluster = EtcdCluster::new(namespace, "etcd")?;
        cluster.wait_ready(1, READY)?;
        fill(&cluster, 3)?;
        namespace.kubectl(&["delete", "etcdcluster", "etcd", "--timeout=120s"])?;
        let claim = namespace.get(&["persistentvolumeclaim", "data-etcd-0"])?;
        ensure!(claim["metadata"]["labels"]["ferretcd.io/retained"] == "true", "not labelled: {claim}");
        ensure!(claim["metadata"]["deletionTimestamp"].is_null(), "the claim is being deleted");

        namespace.apply(&manifest)?;
        let message = wait_until("the conflict", READY, || {
            let object = cluster.object()?;
            let refused = object["status"]["phase"] == "Rejected";
            let message = condition(&object, "Degraded").1;
            Ok(if refused { Probe::Ready(message) } else { Probe::Pending(summary(&object)) })
        })?;
        ensure!(message.contains("data-etcd-0"), "the message does not name the claim: {message}");
        let after = namespace.get(&["persistentvolumeclaim", "data-etcd-0"])?;
        ensure!(after["metadata"]["annotations"] == claim["metadata"]["annotations"], "the claim has changed: {after}");
        Ok(())
    })
}
