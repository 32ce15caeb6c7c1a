//! Verbs on files that no process runs on, judged by etcd's own tools and by real etcd.

use crate::support::etcd::Etcd;
use crate::support::{Cluster, Member, etcd_tool, eventually, finished};
use ferretcd_proto::etcdserverpb::HashKvRequest;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const ABC: &[&str] = &["a", "b", "c"];

fn run(mut command: Command, args: &[&str]) -> Result<String, String> {
    finished(command.env_clear().args(args).stdin(Stdio::null()).output().unwrap())
}

fn ours(args: &[&str]) -> Result<String, String> {
    run(Command::new(env!("CARGO_BIN_EXE_ferretcd")), args)
}

fn theirs(args: &[&str]) -> Result<String, String> {
    run(Command::new(etcd_tool("etcdutl")), args)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file below a directory with its bytes.
fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => dirs.push(path),
                false => drop(files.insert(path.clone(), std::fs::read(&path).unwrap())),
            }
        }
    }
    files
}

/// Real etcd on a data directory that etcdutl made.
struct Served(Child);

impl Served {
    fn start(at: &Member) -> Served {
        let child = Command::new(etcd_tool("etcd"))
            .env_clear()
            .arg(format!("--data-dir={}", at.dir.display()))
            .args([
                format!("--listen-client-urls=http://{}", at.client),
                format!("--advertise-client-urls=http://{}", at.client),
            ])
            .args([format!("--listen-peer-urls=http://{}", at.peer), "--log-level=error".to_owned()])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Served(child)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Something of everything that a snapshot carries; the lease's ID.
fn furnish(member: &Member) -> String {
    let ctl = |args: &[&str]| member.etcdctl(args).unwrap();
    for i in 0..40 {
        ctl(&["put", &format!("k{:02}", i % 25), &format!("value {i} {}", "x".repeat(i * 50))]);
    }
    ctl(&["del", "k03"]);
    let lease = ctl(&["lease", "grant", "36000"]).split_whitespace().nth(1).unwrap().to_owned();
    ctl(&["put", "leased", "x", &format!("--lease={lease}")]);
    ctl(&["compact", "20"]);
    ctl(&["role", "add", "app"]);
    ctl(&["role", "grant-permission", "app", "readwrite", "app/", "--prefix"]);
    ctl(&["user", "add", "ann:secret"]);
    ctl(&["user", "grant-role", "ann", "app"]);
    ctl(&["put", "last", "y"]);
    lease
}

/// What a member answers of all that.
fn facts(member: &Member, lease: &str) -> Result<Vec<String>, String> {
    let json = |args: &[&str]| -> Result<serde_json::Value, String> {
        serde_json::from_str(&member.etcdctl(&[args, &["-w", "json"]].concat())?).map_err(|e| e.to_string())
    };
    let mut facts = Vec::new();
    for revision in ["0", "20", "33", "41"] {
        let answer = json(&["get", "", "--prefix", &format!("--rev={revision}")])?;
        facts.push(format!("at {revision}: {}", answer["kvs"]));
    }
    let hash = &json(&["endpoint", "hashkv"])?[0]["HashKV"];
    facts.push(format!("hash {} at {} after {}", hash["hash"], hash["hash_revision"], hash["compact_revision"]));
    let leased = json(&["lease", "timetolive", lease, "--keys"])?;
    facts.push(format!("lease {} {}", leased["granted-ttl"], leased["keys"]));
    facts.push(format!("{} {}", json(&["user", "get", "ann"])?["roles"], json(&["role", "get", "app"])?["perm"]));
    facts.push(member.etcdctl(&["get", "k01", "--rev=19"]).unwrap_err().lines().last().unwrap().to_owned());
    Ok(facts)
}

#[tokio::test(flavor = "multi_thread")]
async fn etcds_snapshot_serves_in_three_members_and_theirs_in_etcd() {
    let etcd = Etcd::start(&[]).await;
    let tmp = tempfile::tempdir().unwrap();
    let origin = Member::at(&etcd.client, tmp.path());
    let lease = furnish(&origin);
    let wanted = facts(&origin, &lease).unwrap();
    let file = tmp.path().join("etcd.db");
    origin.etcdctl(&["snapshot", "save", text(&file)]).unwrap();
    drop(etcd);

    // Status and hash, as etcdutl prints them. It writes to the file that it hashes.
    for format in ["simple", "json", "table", "fields"] {
        for verb in [&["snapshot", "status"][..], &["hashkv"], &["hashkv", "--rev=30"]] {
            let copy = tmp.path().join("copy.db");
            std::fs::copy(&file, &copy).unwrap();
            let asked = |path| [verb, &["-w", format, path]].concat();
            let (mine, etcds) = (ours(&asked(text(&file))), theirs(&asked(text(&copy))));
            assert_eq!(mine, etcds, "{verb:?} -w {format}");
        }
    }
    assert!(ours(&["snapshot", "verify", text(&file)]).unwrap().contains("is whole: revision 44"));

    // The same file into three members, one of them with its log elsewhere, by etcdutl's name and flags.
    let utl = tmp.path().join("etcdutl");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ferretcd"), &utl).unwrap();
    let mut cluster = Cluster::new(ABC);
    let list: Vec<String> = cluster.members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
    let wal = cluster.tmp.path().join("b-wal");
    cluster.members[1].flags.push(format!("--wal-dir={}", wal.display()));
    cluster.members[2].flags.push("--storage-engine=redb".to_owned());
    for member in &mut cluster.members {
        member.flags.push("--initial-cluster-token=anew".to_owned());
        let (urls, all) = (member.peer_url(), list.join(","));
        let mut args =
            vec!["snapshot", "restore", text(&file), "--data-dir", text(&member.dir), "--name", &member.name];
        args.extend(["--initial-cluster", &all, "--initial-advertise-peer-urls", &urls]);
        args.extend(["--initial-cluster-token=anew"]);
        if member.name == "b" {
            args.extend(["--wal-dir", text(&wal)]);
        }
        if member.name == "c" {
            args.push("--storage-engine=redb");
        }
        run(Command::new(&utl), &args).unwrap();
        let again = run(Command::new(&utl), &args).unwrap_err();
        assert!(again.contains("not empty or could not be read"), "{again}");
        assert!(ours(&["inspect", text(&member.dir)]).is_ok() || member.name == "b");
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
        assert_eq!(facts(member, &lease).unwrap(), wanted, "{}", member.name);
    }
    let members = cluster.members[0].etcdctl(&["member", "list"]).unwrap();
    assert!(members.lines().count() == 3 && list.iter().all(|m| members.contains(m.split('=').nth(1).unwrap())));

    // And back.
    let back = tmp.path().join("back.db");
    cluster.members[1].etcdctl(&["snapshot", "save", text(&back)]).unwrap();
    let real = Member::new("real", tmp.path());
    theirs(&["snapshot", "restore", text(&back), "--data-dir", text(&real.dir)]).unwrap();
    let _served = Served::start(&real);
    let answered = eventually("etcd serves", async || facts(&real, &lease)).await;
    assert_eq!(answered, wanted);

    // The cluster goes on, through a restart and the loss of a member.
    cluster.members[0].put("new", "x").await.unwrap();
    cluster.members[2].kill();
    cluster.members[0].kill();
    cluster.members[0].start();
    cluster.members[0].ready().await;
    assert_eq!(cluster.members[0].get("new", false).await.unwrap().as_deref(), Some("x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raised_revision_tells_old_watchers_and_a_mixed_restore_forms_no_cluster() {
    let solo = Cluster::start(&["solo"]).await;
    for i in 0..5 {
        solo.members[0].put("k", &i.to_string()).await.unwrap();
    }
    let (first, second) = (solo.tmp.path().join("first.db"), solo.tmp.path().join("second.db"));
    solo.members[0].etcdctl(&["snapshot", "save", text(&first)]).unwrap();
    solo.members[0].put("k", "later").await.unwrap();
    solo.members[0].etcdctl(&["snapshot", "save", text(&second)]).unwrap();

    let mut raised = Member::new("raised", solo.tmp.path());
    let into = |m: &Member, file: &Path, all: &str, more: &[&str]| {
        let (urls, name) = (m.peer_url(), m.name.clone());
        let mut args = vec!["snapshot", "restore", text(file), "--data-dir", text(&m.dir), "--name", &name];
        args.extend(["--initial-cluster", all, "--initial-advertise-peer-urls", &urls]);
        args.extend(more);
        ours(&args)
    };
    let alone = format!("raised={}", raised.peer_url());
    for odd in [&["--bump-revision=1000"][..], &["--mark-compacted"]] {
        let refused = into(&raised, &first, &alone, odd).unwrap_err();
        assert!(refused.contains("--mark-compacted required if --revision-bump > 0"), "{refused}");
    }
    into(&raised, &first, &alone, &["--bump-revision=1000", "--mark-compacted"]).unwrap();
    raised.start();
    raised.ready().await;
    assert_eq!(raised.get("k", false).await.unwrap().as_deref(), Some("4"));
    let compacted = raised.etcdctl(&["get", "k", "--rev=6"]).unwrap_err();
    assert!(compacted.contains("required revision has been compacted"), "{compacted}");
    assert_eq!(raised.put("k", "5").await.unwrap(), 1007, "6 + 1000, and one");

    // Each member from its own backup is what people do by mistake.
    let mut mixed = Cluster::new(&["x", "y"]);
    let all: Vec<String> = mixed.members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
    for (member, file) in mixed.members.iter_mut().zip([&first, &second]) {
        into(member, file, &all.join(","), &[]).unwrap();
        member.start();
    }
    eventually("both say why", async || {
        let logs: Vec<String> = mixed.members.iter().map(Member::log).collect();
        let says = |log: &&String| log.contains("cluster ID mismatch") && log.contains("epoch");
        logs.iter().any(|log| says(&log)).then_some(()).ok_or_else(|| "nothing in the logs".to_owned())
    })
    .await;
    assert!(mixed.members[0].put("k", "x").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::start(&["solo"]).await;
    for i in 0..50 {
        cluster.members[0].put(&format!("k{i}"), "v").await.unwrap();
    }
    let tmp = tempfile::tempdir().unwrap();
    let file = tmp.path().join("good.db");
    cluster.members[0].etcdctl(&["snapshot", "save", text(&file)]).unwrap();
    let dir = cluster.members[0].dir.clone();

    // A process runs on it.
    for verb in [&["defrag", "--data-dir"][..], &["inspect"]] {
        let refused = ours(&[verb, &[text(&dir)]].concat()).unwrap_err();
        assert!(refused.contains("is locked: another process runs on this data directory"), "{verb:?}: {refused}");
    }
    assert_eq!(cluster.members[0].terminate().await, Some(0));
    cluster.members[0].start();
    cluster.members[0].ready().await;
    assert_eq!(cluster.members[0].terminate().await, Some(0));
    // What an interrupted rewrite left is for the next start to delete.
    std::fs::create_dir(dir.join("member/engine.7.part")).unwrap();
    std::fs::write(dir.join("member/engine.7.part/db"), "half").unwrap();
    let before = bytes_of(&dir);
    let told = ours(&["inspect", "--entries", text(&dir)]).unwrap();
    assert!(bytes_of(&dir) == before, "looking changes no byte of a healthy directory");
    assert!(told.contains("50 keys") && told.contains("applied up to entry") && told.contains(": Put"), "{told}");
    let published = told.matches(": ClusterMemberAttrSet").count();
    assert_eq!(published, 2, "once at each start, for those of an earlier one may be on their way: {told}");
    let told: serde_json::Value = serde_json::from_str(&ours(&["inspect", "-w", "json", text(&dir)]).unwrap()).unwrap();
    assert_eq!((&told["store"]["revision"], &told["store"]["keys"]), (&51.into(), &50.into()));
    assert_eq!(told["log"]["last"], told["store"]["applied"]);

    // Files and targets that are wrong; nothing is left behind.
    let good = std::fs::read(&file).unwrap();
    let bad = |name: &str, bytes: &[u8]| {
        let path = tmp.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let cases = [
        (bad("flipped.db", &flipped), "SHA-256"),
        (bad("cut.db", &good[..good.len() - 512]), "SHA-256"),
        (bad("raw.db", &good[..good.len() - 32]), "hash"),
        (bad("other.db", b"not a snapshot at all"), "bytes"),
        (tmp.path().join("absent.db"), "no such file or directory"),
    ];
    let (target, wal) = (tmp.path().join("target"), tmp.path().join("target-wal"));
    for (path, needle) in &cases {
        let restore = ["snapshot", "restore", text(path), "--data-dir", text(&target), "--wal-dir", text(&wal)];
        let refused = ours(&restore).unwrap_err();
        assert!(refused.contains(needle), "{}: {refused}", path.display());
        assert!(!target.exists() && !wal.exists(), "{}", path.display());
        // Raw copies have a status, as with etcdutl.
        let is_raw = path.ends_with("raw.db");
        assert_eq!(ours(&["snapshot", "status", text(path)]).is_ok(), is_raw, "{}", path.display());
        assert!(ours(&["snapshot", "verify", text(path)]).is_err());
    }
    ours(&["snapshot", "restore", text(&cases[2].0), "--skip-hash-check", "--data-dir", text(&target)]).unwrap();
    let named = ["--name=a", "--initial-cluster=b=http://127.0.0.1:1"];
    let refused = ours(&[&["snapshot", "restore", text(&file)][..], &named].concat()).unwrap_err();
    assert!(refused.contains(r#"couldn't find local name "a" in the initial cluster configuration"#), "{refused}");
    let before = bytes_of(&dir);
    let refused = ours(&["snapshot", "restore", text(&file), "--data-dir", text(&dir)]).unwrap_err();
    assert!(refused.contains("not empty or could not be read"), "{refused}");
    assert!(before == bytes_of(&dir));
    assert!(ours(&["defrag", "--data-dir", text(&tmp.path().join("none"))]).unwrap_err().contains("holds no member"));

    // A damaged log.
    let segment = before.keys().find(|path| path.ends_with("wal/00000001.wal")).unwrap();
    let mut damaged = before[segment].clone();
    damaged[200] ^= 1;
    std::fs::write(segment, &damaged).unwrap();
    let before = bytes_of(&dir);
    for verb in [&["defrag", "--data-dir"][..], &["inspect"]] {
        let refused = ours(&[verb, &[text(&dir)]].concat()).unwrap_err();
        assert!(refused.contains("00000001.wal is damaged at offset"), "{verb:?}: {refused}");
    }
    assert!(before == bytes_of(&dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn defrag_gives_the_space_of_a_stopped_member_back_and_keeps_all_that_it_has() {
    for engine in ["sled", "redb"] {
        let mut cluster = Cluster::new(&["solo"]);
        let wal = cluster.tmp.path().join("wal");
        let member = &mut cluster.members[0];
        member.flags = vec![format!("--storage-engine={engine}"), format!("--wal-dir={}", wal.display())];
        member.start();
        member.ready().await;
        let value = "x".repeat(100_000);
        for n in 0..60 {
            member.put(&format!("k{}", n % 5), &format!("{n} {value}")).await.unwrap();
        }
        let revision = member.put("last", "x").await.unwrap().to_string();
        member.etcdctl(&["compaction", "--physical", &revision]).unwrap();
        eventually("what was overwritten is deleted", async || match member.status().await?.db_size_in_use {
            few if few < 10 * value.len() as i64 => Ok(()),
            many => Err(format!("{many} bytes in use")),
        })
        .await;
        let facts = async |member: &Member| {
            let asked = member.maintenance().await.hash_kv(HashKvRequest { revision: 0 }).await.unwrap().into_inner();
            (member.everything().await, asked.hash_revision, asked.compact_revision, asked.hash)
        };
        let wanted = facts(member).await;
        assert_eq!(wanted.0.len(), 6);
        assert_eq!(member.terminate().await, Some(0));

        let store = member.dir.join("member");
        // What an interrupted rewrite left does not count, and goes.
        std::fs::create_dir(store.join("engine.7.part")).unwrap();
        let engines = || -> Vec<PathBuf> {
            let paths = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
            paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("engine")).collect()
        };
        let size = || -> usize { engines().iter().flat_map(|dir| bytes_of(dir).into_values()).map(|b| b.len()).sum() };
        // Without --wal-dir no empty log is begun beside it, which the next start would take for this member's.
        let untouched = bytes_of(&member.dir);
        let refused = ours(&["defrag", "--data-dir", text(&member.dir)]).unwrap_err();
        assert!(refused.contains("check --wal-dir") && refused.contains("member/wal,"), "{refused}");
        assert!(bytes_of(&member.dir) == untouched);
        let before = size();
        let told = ours(&["defrag", "--data-dir", text(&member.dir), "--wal-dir", text(&wal)]).unwrap();
        let after = size();
        println!("{engine}: {before} bytes before, {after} after: {told}");
        assert!(after < before / 2, "{engine}: {before} bytes before, {after} after: {told}");
        assert_eq!(engines().len(), 1, "{engine}: {:?}", engines());

        member.start();
        member.ready().await;
        assert!(facts(member).await == wanted, "{engine}: other keys or another hash");
        assert!(!member.log().contains("setting it aside"), "{}", member.log());
    }
}

/// Killed just before its last step.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_is_run_again_and_is_no_empty_cluster() {
    let cluster = Cluster::start(&["solo"]).await;
    cluster.members[0].put("k", "v").await.unwrap();
    let file = cluster.tmp.path().join("backup.db");
    cluster.members[0].etcdctl(&["snapshot", "save", text(&file)]).unwrap();
    let mut member = Member::new("default", cluster.tmp.path());
    let urls = member.peer_url();
    let named = format!("default={urls}");
    let mut restore = vec!["snapshot", "restore", text(&file), "--initial-cluster", &named];
    restore.extend(["--initial-advertise-peer-urls", &urls]);
    let dir = member.dir.clone();
    restore.extend(["--data-dir", text(&dir)]);
    ours(&restore).unwrap();
    std::fs::rename(dir.join("member"), dir.join("member.part")).unwrap();

    let before = bytes_of(&dir);
    member.start();
    assert_eq!(member.ended().await, Some(78));
    let log = member.log();
    assert!(log.contains("interrupted `ferretcd snapshot restore`") && log.contains("run it again"), "{log}");
    assert!(bytes_of(&dir) == before && !dir.join("member").exists());
    ours(&restore).unwrap();
    member.start();
    member.ready().await;
    assert_eq!(member.get("k", false).await.unwrap().as_deref(), Some("v"));

    // A release that founded a cluster beside what was left has a member there by now; so has one that was started on etcd's files.
    member.kill();
    std::fs::create_dir(dir.join("member.part")).unwrap();
    std::fs::write(dir.join("member/snap/db"), "etcd's").unwrap();
    member.start();
    member.ready().await;
    assert_eq!(member.get("k", false).await.unwrap().as_deref(), Some("v"));
    std::fs::remove_dir(dir.join("member.part")).unwrap();

    // One that still works is left alone; so is whatever else is there.
    member.kill();
    std::fs::rename(dir.join("member"), dir.join("member.part")).unwrap();
    let working = std::fs::File::open(dir.join("member.part/LOCK")).unwrap();
    rustix::fs::flock(&working, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let before = bytes_of(&dir);
    let refused = ours(&restore).unwrap_err();
    assert!(refused.contains("is locked"), "{refused}");
    drop(working);
    let other = dir.join("other");
    std::fs::write(&other, "x").unwrap();
    let refused = ours(&restore).unwrap_err();
    assert!(refused.contains("not empty"), "{refused}");
    std::fs::remove_file(other).unwrap();
    assert!(bytes_of(&dir) == before);
}

/// The same volume and flags, and another image.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_real_etcd_stays_as_it_is() {
    let tmp = tempfile::tempdir().unwrap();
    let mut member = Member::new("default", tmp.path());
    let served = Served::start(&member);
    eventually("etcd serves", async || member.etcdctl(&["put", "k", "v"])).await;
    drop(served);
    let before = bytes_of(&member.dir);
    member.start();
    assert_eq!(member.ended().await, Some(78));
    let log = member.log();
    assert!(log.contains("belongs to etcd") && log.contains("ferretcd snapshot restore"), "{log}");
    assert!(bytes_of(&member.dir) == before, "it is etcd's again when the flags are");
    let _served = Served::start(&member);
    let kept = eventually("etcd serves", async || member.etcdctl(&["get", "k", "--print-value-only"])).await;
    assert_eq!(kept.trim(), "v");
}

/// What `inspect` says of a member that is stopped, in JSON and in words.
fn inspected(member: &Member) -> (serde_json::Value, String) {
    let json = ours(&["inspect", "-w", "json", text(&member.dir)]).unwrap();
    (serde_json::from_str(&json).unwrap(), ours(&["inspect", text(&member.dir)]).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_tells_of_a_stopped_member_what_it_told_when_it_ran() {
    let mut cluster = Cluster::start(ABC).await;
    cluster.members[0].put("k", "v").await.unwrap();
    let leader = cluster.leader().await;
    let told = cluster.members[leader].etcdctl(&["member", "list", "-w", "json"]).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let hex = |id: &serde_json::Value| format!("{:x}", id.as_u64().unwrap());
    let mut wanted: Vec<_> = told["members"].as_array().unwrap().iter().collect();
    wanted.sort_unstable_by_key(|m| m["name"].as_str());
    let wanted: Vec<_> = wanted.iter().map(|m| (hex(&m["ID"]), &m["name"], &m["peerURLs"], &m["clientURLs"])).collect();
    assert_eq!(wanted.len(), 3);
    // All of them, so that none elects another leader when the first one goes.
    let mut statuses = Vec::new();
    for member in &cluster.members {
        statuses.push(member.status().await.unwrap());
    }
    cluster.members.iter_mut().for_each(Member::kill);

    let mut epochs = Vec::new();
    for (at, (member, status)) in cluster.members.iter().zip(&statuses).enumerate() {
        let (told, words) = inspected(member);
        let header = status.header.as_ref().unwrap();
        assert_eq!(told["clusterID"], format!("{:x}", header.cluster_id), "{told}");
        assert_eq!(told["memberID"], format!("{:x}", header.member_id), "{told}");
        let line = format!("member     {:x} of cluster {:x}\n", header.member_id, header.cluster_id);
        assert!(words.starts_with(&line), "{words}");

        // Everybody's vote is for who led, in its term; nobody has heard of another one.
        let vote = json!({"term": status.raft_term, "node": format!("{:x}", status.leader), "committed": true});
        assert_eq!(told["log"]["vote"], vote, "{told}");
        let line = format!("vote       in term {} for {:x}, who leads\n", status.raft_term, status.leader);
        assert!(words.contains(&line), "{words}");

        let index = |what: &serde_json::Value| what["index"].as_u64().unwrap();
        let (last, committed) = (index(&told["log"]["last"]), index(&told["log"]["committed"]));
        // How far it knew is written behind the entries: what it told is there, and may be the last but one record.
        assert!(committed <= last && last >= status.raft_index, "{told} {status:?}");
        assert!(words.contains(&format!("known to be committed up to {committed} of term ")), "{words}");
        println!("{at}: {committed} of {last}, {} told", status.raft_index);

        let store = &told["store"];
        let mut listed: Vec<_> = store["members"].as_array().unwrap().iter().collect();
        listed.sort_unstable_by_key(|m| m["name"].as_str());
        assert!(listed.iter().all(|m| m["isLearner"] == false), "{store}");
        let listed =
            listed.iter().map(|m| (m["id"].as_str().unwrap().to_owned(), &m["name"], &m["peerURLs"], &m["clientURLs"]));
        assert_eq!(listed.collect::<Vec<_>>(), wanted);
        for (id, name, urls, _) in &wanted {
            let line = format!("{id} {}: {}", name.as_str().unwrap(), urls[0].as_str().unwrap());
            assert!(words.contains(&line), "{line}: {words}");
        }
        assert_eq!(store["clusterVersion"], "3.7.0");
        let epoch = store["epoch"].as_str().unwrap().to_owned();
        assert!(words.contains(&format!("version 3.7.0, epoch {epoch}")), "{words}");
        epochs.push(epoch);
    }
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "one history: {epochs:?}");

    // Who goes on alone has another history, and says so.
    let alone = &mut cluster.members[0];
    alone.flags.push("--force-new-cluster-once=fire".to_owned());
    alone.start();
    alone.ready().await;
    assert_eq!(alone.terminate().await, Some(0));
    let (told, _) = inspected(alone);
    assert_eq!(told["clusterID"], format!("{:x}", statuses[0].header.as_ref().unwrap().cluster_id));
    assert_eq!(told["store"]["members"].as_array().unwrap().len(), 1, "{told}");
    assert!(!epochs.contains(&told["store"]["epoch"].as_str().unwrap().to_owned()), "{told}");
}

/// Name, and a value if it takes one, of each flag in etcdutl's help.
fn flags_of(verb: &[&str]) -> Vec<(String, Option<String>)> {
    let help = theirs(&[verb, &["--help"]].concat()).unwrap();
    let flags = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let (name, rest) = line.find("--").filter(|_| line.starts_with('-')).map(|at| {
            let flag = &line[at..];
            flag.split_at(flag.find(' ').unwrap_or(flag.len()))
        })?;
        // Its type stands one blank behind it, and what it is for at some distance.
        let kind = rest.strip_prefix(' ').filter(|rest| !rest.starts_with(' ')).and_then(|rest| rest.split(' ').next());
        let default = line.rsplit_once("(default ").map(|(_, value)| value.trim_end_matches(')').trim_matches('"'));
        let value = kind.map(|kind| match (kind, default) {
            (_, Some(default)) => default,
            ("int" | "uint", _) => "1",
            ("string", _) => "x",
            (kind, _) => panic!("{verb:?} {name}: which value has a {kind}?"),
        });
        Some((name.to_owned(), value.map(str::to_owned)))
    });
    flags.filter(|(name, _)| name != "--help").collect()
}

#[test]
fn each_flag_of_etcdutl_is_taken() {
    let mut seen = 0;
    for verb in [&["snapshot", "status"][..], &["snapshot", "restore"], &["hashkv"], &["defrag"]] {
        for (name, value) in flags_of(verb) {
            let flag = value.map_or(name.clone(), |value| format!("{name}={value}"));
            // Help is asked for behind it, so that nothing is done; a flag that is not known is refused before.
            let taken = ours(&[verb, &[&flag, "--help"]].concat());
            assert!(taken.is_ok(), "{verb:?} {flag}: {taken:?}");
            seen += 1;
        }
        assert!(ours(&[verb, &["--unheard-of=1", "--help"]].concat()).is_err(), "{verb:?}: this test sees nothing");
    }
    assert_eq!(seen, 2 + 12 + 3 + 3, "etcdutl has other flags than 3.7.1");
}

/// `ferretcd … | head -1`, and a full disk.
#[test]
fn what_is_printed_may_find_no_reader() {
    use std::fs::OpenOptions;
    let closed = || std::process::Stdio::from(std::io::pipe().unwrap().1);
    let full = || std::process::Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let ferretcd = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferretcd"));
        command.args(args);
        command
    };
    for answered in [&["--version"][..], &["--help"], &["grpc-proxy"], &["grpc-proxy", "start", "--help"]] {
        assert_eq!(ferretcd(answered).stdout(closed()).status().unwrap().code(), Some(0), "{answered:?}");
        let told = ferretcd(answered).stdout(full()).output().unwrap();
        let why = String::from_utf8(told.stderr).unwrap();
        assert_eq!((told.status.code(), why.contains("No space left")), (Some(1), true), "{answered:?}: {why}");
    }
    for (refused, code) in
        [(&["--unheard-of"][..], 2), (&["inspect", "/nowhere"], 1), (&["grpc-proxy", "start", "--x"], 1)]
    {
        assert_eq!(ferretcd(refused).stderr(closed()).status().unwrap().code(), Some(code), "{refused:?}");
    }
}

/// Its usual place, spelled out, and one of its own in the data directory: a restore leaves nothing in either when it fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_the_data_directory_is_restored_there() {
    let solo = Cluster::start(&["solo"]).await;
    let (data, bad, good) =
        (solo.tmp.path().join("data"), solo.tmp.path().join("bad.db"), solo.tmp.path().join("good.db"));
    std::fs::write(&bad, "no snapshot").unwrap();
    solo.members[0].etcdctl(&["snapshot", "save", text(&good)]).unwrap();
    for wal in ["member/wal", "wal"] {
        let wal = data.join(wal);
        let restore =
            |file: &str| ours(&["snapshot", "restore", file, "--data-dir", text(&data), "--wal-dir", text(&wal)]);
        assert!(restore(text(&bad)).is_err());
        assert!(!data.exists(), "{wal:?}");
        restore(text(&good)).unwrap();
        assert!(wal.join("00000001.wal").exists(), "{wal:?}");
        // What one that was killed left is told by its name.
        std::fs::rename(data.join("member"), data.join("member.part")).unwrap();
        let again = restore(text(&good));
        match wal.ends_with("member/wal") {
            true => drop(again.unwrap()),
            false => {
                assert!(again.as_ref().is_err_and(|why| why.contains("a restore was interrupted here")), "{again:?}")
            }
        }
        std::fs::remove_dir_all(&data).unwrap();
    }
}

/// The runbook of a Kubernetes cluster that is to have no old watcher. etcd leaves a record of nothing in the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_marked_as_compacted_has_etcdutls_hash() {
    let solo = Cluster::start(&["solo"]).await;
    for n in 0..5 {
        solo.members[0].put(&format!("k{}", n % 3), "v").await.unwrap();
    }
    let (file, dir) = (solo.tmp.path().join("good.db"), solo.tmp.path().join("theirs"));
    solo.members[0].etcdctl(&["snapshot", "save", text(&file)]).unwrap();
    let marked = ["--bump-revision", "1000", "--mark-compacted"];
    theirs(&[&["snapshot", "restore", text(&file), "--data-dir", text(&dir)][..], &marked].concat()).unwrap();
    let db = dir.join("member/snap/db");
    for verb in [&["hashkv", text(&db), "-w", "json"][..], &["snapshot", "status", text(&db), "-w", "json"]] {
        assert_eq!(ours(verb).unwrap(), theirs(verb).unwrap());
    }
}
