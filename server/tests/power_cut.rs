//! Power cuts under real members: clients write, one member or all of them lose their power at any moment, and with it
//! what was not synced. Whatever was acknowledged is there afterwards, at its revision, on all members.

use crate::support::{Cluster, Member, eventually};
use ferretcd_power_cut::{Cut, Disk, Lose, Random};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::watch_client::WatchClient;
use std::collections::BTreeMap;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Clients that write at once, each to keys of its own.
const CLIENTS: usize = 4;
/// Keys of each client.
const KEYS: u64 = 8;
/// Memory that must be free for the tests of this file to use it: three at a time, with three members each.
const ROOM: u64 = 4 << 30;
/// MiB of a segment of the log, which is an entry of the filler each.
const SEGMENT_MIB: usize = 64;
/// Large values that clients write beyond those that are awaited: some are under way when the power goes. Without a bound a busy
/// machine writes gigabytes of them, since each makes the next snapshot, and the next start, take longer.
const AHEAD: usize = 4 * CLIENTS;
/// How often the power goes in a round.
const LIVES: u64 = 2;

/// What clients know: by revision what was acknowledged there, and the values that may be there or not.
#[derive(Default)]
struct Known {
    acknowledged: BTreeMap<i64, (String, String)>,
    in_doubt: BTreeMap<(String, String), ()>,
    written: u64,
    /// Large values are written until so many are acknowledged.
    wanted: usize,
}

type Shared = Arc<parking_lot::Mutex<Known>>;

/// Nothing is to reach a real disk; 128 MiB of log per member are faster in memory, if there is enough.
fn place_of_disks() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map_or(0, |found| found.f_bavail * found.f_frsize);
    if room > ROOM { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Members whose power can be cut.
struct Place {
    cluster: Cluster,
    disks: Vec<Disk>,
    engine: &'static str,
    known: Shared,
    /// The log is not in the data directory.
    own_wal_dir: bool,
    large: bool,
    /// An engine was taken away, and has to be made anew.
    without_engine: bool,
    /// What the segments of the first member's log were called last, by their files.
    names: BTreeMap<u64, String>,
    /// Where the disks are.
    _tmp: tempfile::TempDir,
}

impl Place {
    fn new(names: &[&str], engine: &'static str, own_wal_dir: bool, large: bool) -> Place {
        let mut cluster = Cluster::new(names);
        let tmp = place_of_disks();
        let mut disks = Vec::new();
        for member in &mut cluster.members {
            let mut disk = Disk::new(tmp.path(), &format!("disk-{}", member.name));
            disk.delay_syncs(500);
            member.dir = disk.root().join("data");
            member.flags.push(format!("--storage-engine={engine}"));
            // A snapshot is written several times in a life, and the log purged; in one that is large segments are used again.
            member.flags.push("--snapshot-count=50".to_owned());
            member.flags.push("--snapshot-catchup-entries=10".to_owned());
            if own_wal_dir {
                member.flags.push(format!("--wal-dir={}", disk.root().join("log/wal").display()));
            }
            disks.push(disk);
        }
        Place {
            cluster,
            disks,
            engine,
            known: Shared::default(),
            own_wal_dir,
            large,
            without_engine: false,
            names: BTreeMap::new(),
            _tmp: tmp,
        }
    }

    fn start(&mut self, at: usize) {
        let member = &mut self.cluster.members[at];
        // Its log file must not be on the watched disk.
        let mut command = member.command(&[]);
        self.disks[at].attach(&mut command);
        member.start_as(command);
    }

    async fn ready(&self) {
        for member in &self.cluster.members {
            member.ready().await;
        }
    }

    fn clients(&self, random: &mut Random) -> (Arc<AtomicBool>, Vec<tokio::task::JoinHandle<()>>) {
        let stop = Arc::new(AtomicBool::new(false));
        let addresses: Vec<String> = self.cluster.members.iter().map(|m| m.client.clone()).collect();
        let tasks = (0..CLIENTS).map(|client| {
            let (known, stop, addresses) = (self.known.clone(), stop.clone(), addresses.clone());
            tokio::spawn(write(client, addresses, known, stop, Random(random.next()), self.large))
        });
        let tasks = tasks.collect();
        (stop, tasks)
    }

    async fn acknowledged(&self, more: usize) {
        let target = {
            let mut known = self.known.lock();
            let target = known.acknowledged.len() + more;
            known.wanted = target + AHEAD;
            target
        };
        eventually("writes are acknowledged", async || match self.known.lock().acknowledged.len() {
            n if n >= target => Ok(()),
            n => Err(format!("{n} of {target}")),
        })
        .await;
    }

    /// Fills the first member's log by transactions that change nothing and are logged all the same, until one of its segments
    /// has a second name. Snapshots come seconds apart, and there is nothing to use again before one: it waits for that.
    async fn use_a_segment_again(&mut self) {
        use pb::compare::{CompareResult, CompareTarget, TargetUnion};
        let (key, value) = (bytes::Bytes::from("filler"), vec![b'x'; 1 << 20].into());
        let never = pb::Compare {
            key: key.clone(),
            result: CompareResult::Greater.into(),
            target: CompareTarget::Version.into(),
            target_union: Some(TargetUnion::Version(0)),
            ..Default::default()
        };
        let put = pb::request_op::Request::RequestPut(pb::PutRequest { key, value, ..Default::default() });
        let success = vec![pb::RequestOp { request: Some(put) }];
        let txn = pb::TxnRequest { compare: vec![never], success, failure: Vec::new() };
        let mut kv = self.cluster.members[0].kv().await;
        let first = self.segments().into_values().min().unwrap();
        for written in 0..7 * SEGMENT_MIB {
            if written == 3 * SEGMENT_MIB {
                eventually("the first segment is purged", async || {
                    let now = self.segments();
                    if now.values().all(|name| *name != first) { Ok(()) } else { Err(format!("{now:?}")) }
                })
                .await;
            }
            kv.txn(txn.clone()).await.unwrap();
            for (file, name) in self.segments() {
                if self.names.insert(file, name.clone()).is_some_and(|before| before != name) {
                    return;
                }
            }
        }
        panic!("no segment is used again: {:?}", self.names);
    }

    /// The files of the first member's log that are segments now, and what they are called.
    fn segments(&self) -> BTreeMap<u64, String> {
        let dirs = [self.cluster.members[0].dir.join("member/wal"), self.disks[0].root().join("log/wal")];
        let files = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
        let names = files.map(|file| (file.ino(), file.file_name().into_string().unwrap()));
        names.filter(|(_, name)| name.ends_with(".wal")).collect()
    }

    /// Takes the engine of a member that does not run away; false if it has none.
    fn remove_engine(&mut self, at: usize) -> bool {
        let engine = self.cluster.members[at].dir.join("member/engine");
        self.without_engine |= engine.exists();
        engine.exists() && std::fs::remove_dir_all(engine).is_ok()
    }

    /// How the first member, which has lost something, shows it: it does not start, or has not all.
    async fn lost(&mut self, random: &mut Random) -> String {
        let start = eventually("it starts or ends", async || {
            if let Some(code) = self.cluster.members[0].has_ended() {
                return Ok(Some(code));
            }
            self.cluster.members[0].get("k", false).await.map(|_| None).map_err(|e| e.to_string())
        });
        match start.await {
            Some(code) => format!("it ends with {code:?}"),
            None => self.check(random).await.expect_err("something is lost"),
        }
    }

    /// Everything that clients know, against what the members have now.
    async fn check(&mut self, random: &mut Random) -> Result<(), String> {
        let hashes = eventually("all members have one revision", async || {
            let mut hashes = Vec::new();
            for member in &self.cluster.members {
                let request = pb::HashKvRequest { revision: 0 };
                let answer = member.maintenance().await.hash_kv(request).await.map_err(|e| e.to_string())?.into_inner();
                hashes.push((answer.hash_revision, answer.compact_revision, answer.hash));
            }
            match hashes.iter().all(|(revision, ..)| *revision == hashes[0].0) {
                true => Ok(hashes),
                false => Err(format!("{hashes:?}")),
            }
        })
        .await;
        if hashes.iter().any(|hash| *hash != hashes[0]) {
            return Err(format!("the hashes differ: {hashes:x?}"));
        }
        let asked = &self.cluster.members[random.below(self.cluster.members.len() as u64) as usize];
        let mut there = history(asked, hashes[0].0).await?;
        let known = self.known.lock();
        for (revision, (key, value)) in &known.acknowledged {
            match there.remove(revision) {
                Some(found) if found == (key.clone(), value.clone()) => {}
                found => {
                    let found = found.map(|(key, value)| format!("{key} = {}", short(&value)));
                    return Err(format!("{key} = {} was acknowledged at {revision}, there is {found:?}", short(value)));
                }
            }
        }
        // What nobody heard of may be there, but not what nobody wrote.
        for (revision, pair) in there {
            if !known.in_doubt.contains_key(&pair) {
                return Err(format!("nobody wrote {} = {} at {revision}", pair.0, short(&pair.1)));
            }
        }
        drop(known);
        for member in &self.cluster.members {
            let log = member.log();
            if log.contains("setting it aside") && !self.without_engine {
                let line = log.lines().find(|line| line.contains("setting it aside")).unwrap_or_default();
                return Err(format!("the engine of {} did not survive: {line}", member.name));
            }
        }
        Ok(())
    }
}

fn short(value: &str) -> &str {
    &value[..value.len().min(30)]
}

/// Writes to its own keys until it is stopped, through any member.
async fn write(
    client: usize,
    addresses: Vec<String>,
    known: Shared,
    stop: Arc<AtomicBool>,
    mut random: Random,
    large: bool,
) {
    let mut member = Member::at(&addresses[0], Path::new("/nowhere"));
    let padding = if large { "x".repeat(300_000) } else { "x".repeat(random.below(2000) as usize) };
    let mut kv = None;
    while !stop.load(Ordering::Relaxed) {
        let enough = {
            let known = known.lock();
            large && known.acknowledged.len() >= known.wanted
        };
        if enough {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let number = {
            let mut known = known.lock();
            known.written += 1;
            known.written
        };
        let (key, value) = (format!("c{client}-{}", random.below(KEYS)), format!("{number}:{padding}"));
        if kv.is_none() {
            member.client.clone_from(&addresses[random.below(addresses.len() as u64) as usize]);
            kv = Some(member.kv().await);
        }
        let request = pb::PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
        let put = kv.as_mut().unwrap().put(request);
        // In doubt from the moment on which it is sent.
        known.lock().in_doubt.insert((key.clone(), value.clone()), ());
        match put.await {
            Ok(answer) => {
                let revision = answer.into_inner().header.unwrap().revision;
                let mut known = known.lock();
                known.in_doubt.remove(&(key.clone(), value.clone()));
                let before = known.acknowledged.insert(revision, (key.clone(), value));
                assert!(before.is_none(), "revision {revision} was given twice, to {key} and {:?}", before.unwrap().0);
            }
            Err(_) => {
                kv = None;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// What a member has at each revision up to `last`; every revision is one put.
async fn history(member: &Member, last: i64) -> Result<BTreeMap<i64, (String, String)>, String> {
    let mut there = BTreeMap::new();
    if last <= 1 {
        return Ok(there);
    }
    let create =
        pb::WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), start_revision: 1, ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let mut client = WatchClient::new(member.channel().await).max_decoding_message_size(usize::MAX);
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter([create]), tokio_stream::pending());
    let mut events = client.watch(requests).await.map_err(|e| e.to_string())?.into_inner();
    while there.last_key_value().is_none_or(|(revision, _)| *revision < last) {
        let answer = events.message().await.map_err(|e| e.to_string())?.ok_or("the watch ended")?;
        if answer.canceled {
            return Err(format!("the watch was cancelled: {}", answer.cancel_reason));
        }
        for event in answer.events {
            let kv = event.kv.ok_or("an event without its key")?;
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            let revision = kv.mod_revision;
            if there.insert(revision, (text(&kv.key), text(&kv.value))).is_some() {
                return Err(format!("revision {revision} is there twice"));
            }
        }
    }
    match (2..).zip(there.keys()).find(|(expected, found)| expected != *found) {
        Some((missing, _)) => Err(format!("revision {missing} is missing")),
        None => Ok(there),
    }
}

/// One round: a fresh cluster and some cuts. What it was is in the line that it prints.
async fn round(seed: u64) {
    let engine = if seed.is_multiple_of(2) { "sled" } else { "redb" };
    let names: &[&str] = if (seed / 2).is_multiple_of(2) { &["a"] } else { &["a", "b", "c"] };
    // By a digit of the seed like the others: the first eight rounds have all of it with each other.
    let own_wal_dir = !(seed / 4).is_multiple_of(2);
    // Snapshots and purges take a minute; the first rounds leave them to the long run.
    let large = seed % 20 == 18 || seed % 20 == 19;
    round_in(Place::new(names, engine, own_wal_dir, large), seed, false).await;
}

async fn round_in(mut place: Place, seed: u64, again: bool) {
    let (count, engine, large) = (place.cluster.members.len(), place.engine, place.large);
    let mut random = Random(seed);
    let begun = std::time::Instant::now();
    let mut story = if place.own_wal_dir { " log elsewhere,".to_owned() } else { String::new() };
    for at in 0..count {
        place.start(at);
    }
    place.ready().await;
    for life in 0..LIVES {
        // Each kind with each engine and size in the first rounds, which chance does not give.
        let lose = Lose::ALL[((seed + life) % 3) as usize];
        let (stop, clients) = place.clients(&mut random);
        if again {
            place.use_a_segment_again().await;
        }
        if large {
            // A busy machine takes more than one wait for so much.
            for _ in 0..10 {
                place.acknowledged(25).await;
            }
        } else {
            place.acknowledged(5 + random.below(60) as usize).await;
        }
        // A member of one may also be killed first: the next process must not trust what the page cache shows it.
        if random.below(3) == 0 {
            let at = random.below(count as u64) as usize;
            place.cluster.members[at].kill();
            place.start(at);
            story += &format!(" kill {}", place.cluster.members[at].name);
            if random.below(2) == 0 {
                place.acknowledged(5).await;
            }
        }
        // Somebody in any case.
        let one = random.below(count as u64) as usize;
        let victims: Vec<usize> = match random.below(3) {
            0 => vec![one],
            1 => (0..count).filter(|at| *at == one || random.below(2) == 0).collect(),
            _ => (0..count).collect(),
        };
        for at in &victims {
            place.cluster.members[*at].kill();
        }
        if life == 0 {
            for at in &victims {
                place.disks[*at].saw_everything().unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            }
        }
        let majority = victims.len() * 2 < count;
        if majority && random.below(2) == 0 {
            place.acknowledged(10).await;
        }
        let mut lost = Cut::default();
        for at in &victims {
            let cut = place.disks[*at].cut(lose, random.next());
            lost = Cut { unsynced: lost.unsynced + cut.unsynced, lost: lost.lost + cut.lost };
            // The log and the snapshot file must give all of it back.
            if life == LIVES - 1 && random.below(2) == 0 && place.remove_engine(*at) {
                story += " without its engine";
            }
            place.start(*at);
        }
        story += &format!(" cut {} {lose:?} ({} of {})", victims.len(), lost.lost, lost.unsynced);
        if majority && random.below(2) == 0 {
            place.acknowledged(5).await;
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        place.ready().await;
        if let Err(why) = place.check(&mut random).await {
            panic!("seed {seed}, {engine}, {count} members, life {life}:{story}: {why}");
        }
    }
    let acknowledged = place.known.lock().acknowledged.len();
    let took = begun.elapsed().as_millis();
    println!("round {seed} ({took} ms): {count} on {engine}, {acknowledged} acknowledged:{story}");
}

/// Seeds from `FERRETCD_SEED` on, `FERRETCD_POWER_CUTS` of them.
async fn rounds(part: u64) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (first, count) = (number("FERRETCD_SEED", 1), number("FERRETCD_POWER_CUTS", 10));
    for seed in (first..first + count).filter(|seed| seed % 2 == part) {
        round(seed).await;
    }
}

/// The others commit what the third has in its log, and that applies it, long before its disk has it. What its store has of that may
/// outlive the log's part, so the store waits; else it would have to be built anew.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_of_a_member_whose_log_is_slow_does_not_run_ahead_of_it() {
    let mut place = Place::new(&["a", "b", "c"], "sled", false, false);
    place.disks[2].delay_syncs(120_000);
    for at in 0..3 {
        place.start(at);
    }
    place.ready().await;
    let random = &mut Random(1);
    let (stop, clients) = place.clients(random);
    for life in 0..5 {
        place.acknowledged(60).await;
        place.cluster.members[2].kill();
        place.disks[2].cut(Lose::Half, life);
        place.start(2);
        place.cluster.members[2].ready().await;
        let log = place.cluster.members[2].log();
        assert!(!log.contains("setting it aside"), "life {life}: {log}");
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    place.ready().await;
    place.check(random).await.unwrap();
}

/// The same cuts find a loss when a sync is left out that a member relies on.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_syncs_of_the_log_or_of_its_names_what_was_acknowledged_is_lost() {
    for ignored in ["*/wal/*", "*/wal", "*/member", "*/data", "*/disk-a"] {
        let mut place = Place::new(&["a"], "redb", false, false);
        place.disks[0].ignore_syncs(ignored);
        place.start(0);
        place.ready().await;
        let random = &mut Random(1);
        let (stop, clients) = place.clients(random);
        place.acknowledged(5).await;
        place.cluster.members[0].kill();
        stop.store(true, Ordering::Relaxed);
        place.disks[0].cut(Lose::All, 1);
        for client in clients {
            client.await.unwrap();
        }
        place.start(0);
        let lost = place.lost(random).await;
        println!("without syncs of {ignored}: {lost}");
    }
}

/// And of the snapshot file or its name, which the log's purge relies on. With all of them the engine that a power cut leaves
/// goes on with the rest of the log, and so does a new one. (Of sled the former says little: its own thread syncs every 100 ms.)
#[tokio::test(flavor = "multi_thread")]
async fn without_the_syncs_of_a_snapshot_file_or_of_its_name_what_was_purged_is_lost() {
    for (engine, ignored) in [("sled", None), ("redb", None), ("redb", Some("*/snap/*")), ("redb", Some("*/snap"))] {
        let mut place = Place::new(&["a"], engine, false, false);
        // So that it is the snapshot that makes the engine durable, and not the store by itself.
        place.cluster.members[0].flags.push("--backend-batch-interval=10s".to_owned());
        if let Some(ignored) = ignored {
            place.disks[0].ignore_syncs(ignored);
        }
        place.start(0);
        place.ready().await;
        let random = &mut Random(1);
        let (stop, clients) = place.clients(random);
        let snapshots = place.cluster.members[0].dir.join("member/snap");
        eventually("a snapshot is written", async || {
            let mut files = std::fs::read_dir(&snapshots).unwrap().flatten();
            let is_whole = |file: std::fs::DirEntry| file.path().extension().is_some_and(|end| end == "snap");
            if files.any(is_whole) { Ok(()) } else { Err("none yet".to_owned()) }
        })
        .await;
        place.acknowledged(60).await;
        place.cluster.members[0].kill();
        stop.store(true, Ordering::Relaxed);
        place.disks[0].cut(Lose::All, 1);
        for client in clients {
            client.await.unwrap();
        }
        if ignored.is_none() {
            place.start(0);
            place.ready().await;
            place.check(random).await.unwrap_or_else(|why| panic!("with its own engine, {engine}: {why}"));
            place.cluster.members[0].kill();
            place.disks[0].cut(Lose::All, 2);
        }
        assert!(place.remove_engine(0));
        place.start(0);
        match ignored {
            None => {
                place.ready().await;
                place.check(random).await.unwrap();
            }
            Some(ignored) => println!("without syncs of {ignored}: {}", place.lost(random).await),
        }
    }
}

/// The last member of three is made the only one, is killed at each write of that, and loses its power.
#[tokio::test(flavor = "multi_thread")]
async fn whenever_it_is_interrupted_a_member_goes_on_alone_with_all_that_was_acknowledged() {
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    for n in 0..30 {
        cluster.members[0].put(&format!("k{n}"), "v").await.unwrap();
    }
    let wanted = cluster.agreed().await;
    cluster.members.iter_mut().for_each(Member::kill);
    let whole = cluster.members[0].dir.clone();
    let member = &mut cluster.members[0];
    member.flags.push("--force-new-cluster-once=fire".to_owned());
    let tmp = place_of_disks();
    let fresh = |member: &mut Member, kill_after: u32| {
        let mut disk = Disk::new(tmp.path(), &format!("disk-{kill_after}"));
        member.dir = disk.root().join("data");
        let copy =
            std::process::Command::new("cp").args(["-a", "--sparse=always"]).args([&whole, &member.dir]).status();
        assert!(copy.unwrap().success());
        disk.kill_after(kill_after);
        let mut command = member.command(&[]);
        disk.attach(&mut command);
        member.start_as(command);
        disk
    };
    // From where to where it writes: its snapshot file, the log, and at the end its name for that it was done.
    let disk = fresh(member, 0);
    member.ready().await;
    member.kill();
    let begun = disk.notes_until(|name| name.starts_with("build-")).unwrap();
    let done = disk.notes_until(|name| name == "forced").unwrap();
    println!("notes {begun} to {done}");
    let mut interrupted = 0;
    for kill_after in begun - 10..=done + 2 {
        let disk = fresh(member, kill_after);
        member.ended().await;
        let cut = disk.cut(Lose::ALL[kill_after as usize % 3], kill_after.into());
        let is_done = member.dir.join("member/forced").exists();
        interrupted += usize::from(!is_done);
        // Then under the same name once more; a few of these tell it.
        let starts = if kill_after % 5 == 0 { 2 } else { 1 };
        for start in 0..starts {
            member.start();
            member.ready().await;
            let all = member.everything().await;
            assert!(
                wanted.iter().all(|entry| all.contains(entry)),
                "killed after {kill_after} notes, {cut:?}: {all:?}"
            );
            assert_eq!(all.len(), wanted.len() + start);
            assert_eq!(member.etcdctl(&["member", "list"]).unwrap().lines().count(), 1);
            let again = member.log().contains("was made the only one under this name before");
            assert_eq!(again, is_done || start > 0, "killed after {kill_after} notes");
            member.put("alone", "v").await.unwrap();
            member.kill();
        }
        std::fs::remove_dir_all(disk.root()).unwrap();
    }
    assert!(interrupted > 10, "it was interrupted {interrupted} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_power_goes_with_sled() {
    rounds(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_power_goes_with_redb() {
    rounds(1).await;
}

/// What a segment held before must not come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_segments_are_used_again_loses_nothing_to_a_power_cut() {
    // Half of what was not synced is lost in its first life, and all of it in the second.
    round_in(Place::new(&["a"], "redb", false, false), 2, true).await;
}
