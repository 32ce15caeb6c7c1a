//! Real processes on loopback: members of the server under test, and etcdctl as the client.

pub mod both;
pub mod etcd;
pub mod http;
pub mod load;
pub mod network;
pub mod pki;

use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::{
    cluster_client::ClusterClient, kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything in these tests. Two busy cores are slow; a healthy run never comes near it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A member's process with its data, or the place for one.
pub struct Member {
    pub name: String,
    pub client: String,
    pub peer: String,
    pub dir: PathBuf,
    pub flags: Vec<String>,
    /// What is run, with its first arguments: the server under test, unless the test says otherwise.
    pub program: Vec<OsString>,
    /// Its logs, with their numbers for extensions; beside the data, wherever that goes.
    logs: PathBuf,
    child: Option<Child>,
    starts: u32,
}

/// Members that belong together, in a folder that goes away with them.
pub struct Cluster {
    pub members: Vec<Member>,
    pub tmp: tempfile::TempDir,
}

/// An address that nobody listens at, for a process that is started next. The kernel's own choice (port 0) would be one
/// of those that it gives to outgoing connections, too: one of them may take it before the process does. So this counts
/// through lower ones, from a place that differs between test processes.
pub fn free_address() -> String {
    const PORTS: std::ops::Range<u32> = 10_000..30_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(7919);
    for _ in PORTS {
        let at = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS.len() as u32;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", (PORTS.start + at) as u16)) {
            return listener.local_addr().unwrap().to_string();
        }
    }
    panic!("no free port");
}

/// All keys of a member, with values and mod revisions.
pub type Contents = Vec<(String, String, i64)>;

/// A test that this machine does not allow says so, and passes; but not where everything is to be shown (`.ci/run`).
pub fn left_out(why: &str) {
    assert!(std::env::var_os("FERRETCD_ALL").is_none(), "{why}");
    eprintln!("{why}, and is left out");
}

/// Polls until `probe` gives something; its last complaint is the panic's text.
pub async fn eventually<T, F: AsyncFnMut() -> Result<T, String>>(what: &str, mut probe: F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => panic!("{what}: not within {PATIENCE:?}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

impl Member {
    pub fn new(name: &str, root: &Path) -> Self {
        Member {
            name: name.to_owned(),
            client: free_address(),
            peer: free_address(),
            dir: root.join(name),
            flags: Vec::new(),
            program: vec![env!("CARGO_BIN_EXE_ferretcd").into()],
            logs: root.join(name),
            child: None,
            starts: 0,
        }
    }

    /// Whoever serves clients at this address; not started by the test.
    pub fn at(client: &str, root: &Path) -> Self {
        let mut member = Member::new("somebody", root);
        client.clone_into(&mut member.client);
        member
    }

    pub fn peer_url(&self) -> String {
        format!("http://{}", self.peer)
    }

    pub fn log_path(&self) -> PathBuf {
        self.logs.with_extension(format!("log{}", self.starts))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The command that starts it, with these flags on top.
    pub fn command(&self, extra: &[&str]) -> Command {
        let mut command = Command::new(&self.program[0]);
        let own = [
            format!("--name={}", self.name),
            format!("--data-dir={}", self.dir.display()),
            format!("--listen-client-urls=http://{}", self.client),
            format!("--advertise-client-urls=http://{}", self.client),
            format!("--listen-peer-urls={}", self.peer_url()),
            format!("--initial-advertise-peer-urls={}", self.peer_url()),
        ];
        command.args(&self.program[1..]).args(own).args(&self.flags).args(extra).env_clear();
        // Every story with the other engine: FERRETCD_TEST_ENGINE=redb cargo test -p ferretcd --test stories one_member::
        let ours = self.program.last().is_some_and(|program| program == env!("CARGO_BIN_EXE_ferretcd"));
        if let (Ok(engine), true) = (std::env::var("FERRETCD_TEST_ENGINE"), ours) {
            command.arg(format!("--storage-engine={engine}"));
        }
        command
    }

    pub fn start(&mut self) {
        let command = self.command(&[]);
        self.start_as(command);
    }

    /// Starts it by a command of the test's own.
    pub fn start_as(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        self.starts += 1;
        let log = File::create(self.log_path()).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    pub fn signal(&mut self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().unwrap();
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Holds it still until [`Member::resume`]: none of its threads runs any more when this returns.
    pub fn pause(&mut self) {
        use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
        self.signal(Signal::STOP);
        let pid = Pid::from_child(self.child.as_ref().unwrap());
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    }

    pub fn resume(&mut self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// kill -9: what was acknowledged must survive it.
    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        self.child.take().unwrap().wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.ended().await
    }

    /// Waits until the process ends by itself.
    pub async fn ended(&mut self) -> Option<i32> {
        let name = self.name.clone();
        let child = self.child.as_mut().unwrap();
        let status = eventually(&format!("{name} ends"), async || {
            child.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        self.child = None;
        status.code()
    }

    /// The exit code (none: a signal) if the process has ended by itself.
    pub fn has_ended(&mut self) -> Option<Option<i32>> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status.code())
    }

    /// What the process holds in memory.
    pub fn resident_bytes(&self) -> usize {
        self.memory("VmRSS:")
    }

    /// The most that it held since its start, or since [`Member::forget_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.memory("VmHWM:")
    }

    /// The peak begins anew with what the process holds now.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    /// What of it cannot be swapped out.
    pub fn locked_bytes(&self) -> usize {
        self.memory("VmLck:")
    }

    fn memory(&self, what: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.as_ref().unwrap().id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(what)).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    pub async fn channel(&self) -> Channel {
        self.channel_for(Duration::from_secs(10))
    }

    /// One whose calls may take this long.
    pub fn channel_for(&self, patience: Duration) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.client)).unwrap();
        endpoint.connect_timeout(Duration::from_secs(2)).timeout(patience).connect_lazy()
    }

    pub async fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel().await).max_decoding_message_size(usize::MAX)
    }

    pub async fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel().await)
    }

    pub async fn status(&self) -> Result<pb::StatusResponse, String> {
        let status = self.maintenance().await.status(pb::StatusRequest {}).await;
        status.map(tonic::Response::into_inner).map_err(|e| e.to_string())
    }

    /// Waits until a linearizable read works through it, and the cluster knows its client URLs: a member writes them
    /// as the first thing that it does, and a test that came before them would see the list of members change.
    pub async fn ready(&self) {
        eventually(&format!("{} is ready", self.name), async || {
            self.listed().await.map_err(|e| format!("{e}\n{}", tail(&self.log())))
        })
        .await;
    }

    /// One look for [`Member::ready`].
    async fn listed(&self) -> Result<(), String> {
        let header = self.kv().await.range(pb::RangeRequest { key: "\0".into(), ..Default::default() }).await;
        let me = header.map_err(|e| e.to_string())?.into_inner().header.unwrap().member_id;
        let list = pb::MemberListRequest { linearizable: true };
        let list = ClusterClient::new(self.channel().await).member_list(list).await.map_err(|e| e.to_string())?;
        match list.into_inner().members.iter().any(|m| m.id == me && !m.client_ur_ls.is_empty()) {
            true => Ok(()),
            false => Err("its client URLs are not published".to_owned()),
        }
    }

    pub async fn put(&self, key: &str, value: &str) -> Result<i64, tonic::Status> {
        let request =
            pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        Ok(self.kv().await.put(request).await?.into_inner().header.unwrap().revision)
    }

    pub async fn get(&self, key: &str, serializable: bool) -> Result<Option<String>, tonic::Status> {
        let request = pb::RangeRequest { key: key.to_owned().into(), serializable, ..Default::default() };
        let kvs = self.kv().await.range(request).await?.into_inner().kvs;
        Ok(kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }

    /// All keys with their values and mod revisions, from this member alone. They may be hundreds of megabytes.
    pub async fn everything(&self) -> Contents {
        let request =
            pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), serializable: true, ..Default::default() };
        let mut kv = KvClient::new(self.channel_for(PATIENCE)).max_decoding_message_size(usize::MAX);
        let kvs = kv.range(request).await.unwrap().into_inner().kvs;
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        kvs.iter().map(|kv| (text(&kv.key), text(&kv.value), kv.mod_revision)).collect()
    }

    /// etcdctl against this member: its output, and an error with everything it said when it fails.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String, String> {
        let output = self.etcdctl_command(args).output().expect("etcdctl runs");
        finished(output)
    }

    pub fn etcdctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(etcd_tool("etcdctl"));
        // Its own limit of 5 s is for people; machines that run tests are busy.
        command.env_clear().args(["--command-timeout=30s", "--dial-timeout=15s"]);
        command.arg(format!("--endpoints=http://{}", self.client)).args(args).stdin(Stdio::null());
        command
    }

    /// What `/metrics` says of this series now; nothing counts as 0.
    pub async fn figure(&self, series: &str) -> i64 {
        let (_, text) = self.http("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// A plain HTTP GET: status code and body.
    pub async fn http(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.client).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.client);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let code = text.split(' ').nth(1).unwrap().parse().unwrap();
        (code, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {} ({}):\n{}", self.name, self.log_path().display(), tail(&self.log()));
        }
    }
}

/// A client that writes and reads (linearizable) one after the other, while something else is done.
pub struct Busy {
    stop: Arc<AtomicBool>,
    calls: tokio::task::JoinHandle<Calls>,
}

/// What a [`Busy`] client met. Each of its calls was answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// How often it wrote and read.
    pub rounds: usize,
    pub longest_put: Duration,
    pub longest_get: Duration,
}

impl Busy {
    /// Its values of `key` are numbers, from 1 on.
    pub fn start(member: &Member, key: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", member.client)).unwrap();
        let mut kv = KvClient::new(endpoint.timeout(PATIENCE).connect_lazy());
        let (stop, key, name) = (Arc::new(AtomicBool::new(false)), key.to_owned(), member.name.clone());
        let stopped = stop.clone();
        let calls = tokio::spawn(async move {
            let mut calls = Calls::default();
            while !stopped.load(Ordering::Relaxed) {
                calls.rounds += 1;
                let value = calls.rounds.to_string();
                let put = pb::PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
                let get = pb::RangeRequest { key: key.clone().into(), ..Default::default() };
                let begun = Instant::now();
                kv.put(put).await.unwrap_or_else(|e| panic!("{name} refuses a put: {e}"));
                let written = Instant::now();
                let got = kv.range(get).await.unwrap_or_else(|e| panic!("{name} refuses a read: {e}"));
                assert_eq!(got.into_inner().kvs[0].value, value.as_bytes(), "{name}");
                calls.longest_put = calls.longest_put.max(written - begun);
                calls.longest_get = calls.longest_get.max(written.elapsed());
            }
            calls
        });
        Busy { stop, calls }
    }

    pub async fn end(self) -> Calls {
        self.stop.store(true, Ordering::Relaxed);
        self.calls.await.unwrap()
    }
}

pub fn finished(output: Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// A tool of real etcd, built by `ferretcd-e2e tools etcd` into the cache.
pub fn etcd_tool(name: &str) -> PathBuf {
    cached(&format!("etcd-3.7.1/{name}"), "make tools")
}

/// What the cache has at `bin/<path>` after `made_by`.
pub fn cached(path: &str, made_by: &str) -> PathBuf {
    let cache = std::env::var_os("FERRETCD_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        base.unwrap_or_else(home).join("ferretcd")
    });
    let path = cache.join("bin").join(path);
    assert!(path.exists(), "{} is missing: run `{made_by}` first", path.display());
    path
}

impl Cluster {
    /// Members that name each other in --initial-cluster; not started.
    pub fn new(names: &[&str]) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let members = names.iter().map(|n| Member::new(n, tmp.path())).collect();
        Cluster::of(members, tmp)
    }

    /// These members, which name each other in --initial-cluster; not started.
    pub fn of(mut members: Vec<Member>, tmp: tempfile::TempDir) -> Self {
        let list: Vec<String> = members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
        for member in &mut members {
            member.flags.push(format!("--initial-cluster={}", list.join(",")));
        }
        Cluster { members, tmp }
    }

    /// Started and ready.
    pub async fn start(names: &[&str]) -> Self {
        Cluster::start_with(names, &[]).await
    }

    /// Started with these flags beside their own, and ready.
    pub async fn start_with(names: &[&str], flags: &[&str]) -> Self {
        let mut cluster = Cluster::new(names);
        for member in &mut cluster.members {
            member.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
            member.start();
        }
        for member in &cluster.members {
            member.ready().await;
        }
        cluster
    }

    /// Position of the leader, once all running members agree on it.
    pub async fn leader(&self) -> usize {
        eventually("the members agree on a leader", async || {
            let mut leader = None;
            for member in self.members.iter().filter(|m| m.runs()) {
                let status = member.status().await?;
                match leader {
                    None if status.leader != 0 => leader = Some(status.leader),
                    Some(known) if known == status.leader => {}
                    _ => return Err(format!("{} names {:x}, another names {leader:x?}", member.name, status.leader)),
                }
            }
            for (at, member) in self.members.iter().enumerate().filter(|(_, m)| m.runs()) {
                if Some(member.status().await?.header.unwrap().member_id) == leader {
                    return Ok(at);
                }
            }
            Err("the leader does not run".to_owned())
        })
        .await
    }

    /// Waits until every running member holds the same keys, and returns them.
    pub async fn agreed(&self) -> Contents {
        eventually("all members hold the same", async || {
            let mut first: Option<(&str, i64, Contents)> = None;
            for member in self.members.iter().filter(|m| m.runs()) {
                let revision = member.status().await?.header.unwrap().revision;
                let all = member.everything().await;
                match &first {
                    None => first = Some((&member.name, revision, all)),
                    Some((_, r, known)) if *r == revision && *known == all => {}
                    Some((name, r, known)) => {
                        return Err(format!(
                            "{name}: {} keys at {r}, {}: {} keys at {revision}",
                            known.len(),
                            member.name,
                            all.len()
                        ));
                    }
                }
            }
            Ok(first.unwrap().2)
        })
        .await
    }
}
