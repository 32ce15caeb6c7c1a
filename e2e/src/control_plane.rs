//! Two kube-apiservers on three members, as plain processes at a loopback address that only they have: no node, no root, and
//! nothing that another test could meet. One of the two has its watch cache, the other asks the members for everything.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::complaints::{self, Complaints};
use crate::components::{self, Component};
use crate::datastore::{Begin, Datastore, Member, Store};
use crate::host::{self, Usage};
use crate::pki::{self, Authority, Subject};
use crate::progress::say;
use crate::run;
use crate::tools::{Bin, Tools};
use crate::wait::{Probe, wait_until};

/// How long a process may take to become ready: kube-apiserver, the slowest, takes 5 s on an idle machine, and two of them
/// share two cores with unoptimised members and whatever else runs.
const READY: Duration = Duration::from_secs(240);

/// How long a change of the membership may take. etcd refuses one for 5 s after a member came back.
const MEMBERSHIP: Duration = Duration::from_secs(120);

/// Between two compactions by kube-apiserver. What is older than two of them is compacted, so a story sees several.
pub const COMPACTION_INTERVAL: Duration = Duration::from_secs(10);

/// How long an Event lives, by a lease of etcd's.
pub const EVENT_TTL: Duration = Duration::from_secs(20);

/// The two kube-apiservers, by what they do with lists and watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// Answers them from its watch cache, as is usual.
    Cached,
    /// Asks the members for each.
    Direct,
}

impl Api {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cached, Self::Direct];

    /// The name of its process.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cached => "kube-apiserver",
            Self::Direct => "kube-apiserver-uncached",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Cached => 6443,
            Self::Direct => 6444,
        }
    }
}

/// The processes. Dropping it ends them and removes their files, unless they are to be kept.
pub struct ControlPlane {
    run: PathBuf,
    address: Ipv4Addr,
    datastore: Datastore,
    /// etcd or ferretcd.
    program: PathBuf,
    kube_apiserver: PathBuf,
    etcdctl: PathBuf,
    processes: BTreeMap<String, Child>,
    /// What processes that have ended had used, by name.
    ended: BTreeMap<String, Usage>,
    keep_files: bool,
}

impl ControlPlane {
    /// Starts three members of `store`, whose program is `program`, and when they are ready both kube-apiservers.
    pub fn start(tools: &Tools, store: Store, program: &Path) -> Result<Self> {
        let address = own_address();
        let run = std::env::temp_dir().join(format!("ferretcd-control-plane-{address}"));
        fs::create_dir_all(run.join("logs"))?;
        fs::create_dir_all(run.join("pki"))?;
        let datastore = Datastore::new(&run, address, 3);
        datastore.write_credentials()?;
        let mut this = Self {
            address,
            datastore,
            program: program.to_path_buf(),
            kube_apiserver: tools.path(Bin::KubeApiserver)?,
            etcdctl: tools.etcdctl()?,
            processes: BTreeMap::new(),
            ended: BTreeMap::new(),
            keep_files: false,
            run,
        };
        this.write_credentials()?;
        say(format!("three members of {} at {address}, files in {}", store.name(), this.run.display()));
        for member in this.members() {
            this.start_member(&member, Begin::New)?;
        }
        for member in this.members() {
            this.wait_member(&member)?;
        }
        // One after the other: two that start at once make the same objects, and complain of each other.
        for api in Api::ALL {
            let component = this.apiserver(api);
            this.spawn(&component)?;
            this.wait_apiserver(api)?;
        }
        Ok(this)
    }

    /// The members, in order.
    pub fn members(&self) -> Vec<Member> {
        self.datastore.members()
    }

    /// The kubeconfig of the administrator of one kube-apiserver.
    pub fn kubeconfig(&self, api: Api) -> PathBuf {
        self.run.join(format!("{}.kubeconfig", api.name()))
    }

    /// Runs etcdctl for all members that there should be.
    pub fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.etcdctl);
        // Longer than an election, shorter than a person's patience.
        command.args(self.datastore.etcdctl_flags()).args(["--dial-timeout=2s", "--command-timeout=10s"]).args(args);
        run::output(&mut command).map(|output| output.stdout)
    }

    /// The member that leads, by what the others say too.
    pub fn leader(&self) -> Result<Member> {
        wait_until("a leader", MEMBERSHIP, || {
            let status: Value = serde_json::from_str(&self.etcdctl(&["endpoint", "status", "--write-out=json"])?)?;
            let statuses: Vec<_> = status.as_array().into_iter().flatten().collect();
            let leaders: Vec<_> = statuses.iter().map(|one| one["Status"]["leader"].as_u64().unwrap_or(0)).collect();
            let leader = leaders.first().copied().filter(|id| *id != 0 && leaders.iter().all(|other| other == id));
            let found = leader.and_then(|leader| {
                let own = |one: &&&Value| one["Status"]["header"]["member_id"].as_u64() == Some(leader);
                let endpoint = statuses.iter().find(own)?["Endpoint"].as_str()?.to_owned();
                self.members().into_iter().find(|member| endpoint.ends_with(&member.client.to_string()))
            });
            Ok(found.map_or_else(|| Probe::Pending(format!("the members name {leaders:?}")), Probe::Ready))
        })
    }

    /// Ends a member as a crash would (SIGKILL).
    pub fn kill(&mut self, member: &Member) -> Result<()> {
        let Some(mut child) = self.processes.remove(&member.name) else { bail!("{} does not run", member.name) };
        self.ended.insert(member.name.clone(), self.usage_of(&member.name, Some(&child)));
        child.kill().and_then(|()| child.wait()).with_context(|| format!("ending {}", member.name))?;
        Ok(())
    }

    /// Starts a member that was killed, on the data that it has.
    pub fn restart(&mut self, member: &Member) -> Result<()> {
        self.start_member(member, Begin::New)?;
        self.wait_member(member)
    }

    /// Begins to replace a member as kubeadm's users do: it ends, is removed, loses its data, is added as a learner and starts
    /// empty. Until [`Self::promote`] it does not vote, and refuses most requests.
    pub fn rejoin(&mut self, member: &Member) -> Result<()> {
        self.kill(member)?;
        wait_until("the member to be removed", MEMBERSHIP, || match self.id_of(member)? {
            Some(id) => self.etcdctl(&["member", "remove", &id]).map(Probe::Ready),
            None => Ok(Probe::Ready(String::new())),
        })?;
        let data = self.datastore.data(member);
        fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
        let peer = format!("--peer-urls=https://{}", member.peer);
        wait_until("the member to be added", MEMBERSHIP, || {
            self.etcdctl(&["member", "add", &member.name, "--learner", &peer]).map(Probe::Ready)
        })?;
        self.start_member(member, Begin::Existing)?;
        self.wait_running(&member.name, |this| this.id_of(member)?.map(drop).context("it has not said its name yet"))
    }

    /// Makes a learner a member that votes, as soon as it has caught up.
    pub fn promote(&mut self, member: &Member) -> Result<()> {
        let id = self.id_of(member)?.with_context(|| format!("{} is no member", member.name))?;
        self.wait_running(&member.name, |this| this.etcdctl(&["member", "promote", &id]).map(drop))?;
        self.wait_member(member)
    }

    /// Keeps logs and data for a look when all has ended: after a failure.
    pub fn keep_files(&mut self) {
        self.keep_files = true;
    }

    /// What kube-apiservers have complained of so far.
    pub fn complaints(&self) -> Result<Complaints> {
        let mut all = Complaints::new();
        for api in Api::ALL {
            let log = fs::read(self.log(api.name()))?;
            for (class, count) in complaints::of_log(&String::from_utf8_lossy(&log)) {
                *all.entry(class).or_default() += count;
            }
        }
        Ok(all)
    }

    /// CPU time of all members together, and the most memory that one of them had.
    pub fn usage(&self) -> Usage {
        let used =
            self.members().into_iter().map(|member| self.usage_of(&member.name, self.processes.get(&member.name)));
        used.fold(Usage::default(), |sum, one| Usage {
            cpu: sum.cpu + one.cpu,
            peak_memory: sum.peak_memory.max(one.peak_memory),
        })
    }

    fn usage_of(&self, name: &str, running: Option<&Child>) -> Usage {
        let before = self.ended.get(name).copied().unwrap_or_default();
        let now = running.and_then(|child| host::usage(child.id())).unwrap_or_default();
        Usage { cpu: before.cpu + now.cpu, peak_memory: before.peak_memory.max(now.peak_memory) }
    }

    /// The member's id in hexadecimal, if the members know it by its name.
    fn id_of(&self, member: &Member) -> Result<Option<String>> {
        let list: Value = serde_json::from_str(&self.etcdctl(&["member", "list", "--write-out=json"])?)?;
        let found = list["members"].as_array().into_iter().flatten().find(|one| one["name"] == member.name.as_str());
        Ok(found.and_then(|one| one["ID"].as_u64()).map(|id| format!("{id:x}")))
    }

    fn start_member(&mut self, member: &Member, begin: Begin) -> Result<()> {
        let component = self.datastore.component(&self.program, member, begin);
        self.spawn(&component)
    }

    /// Waits until kubeadm's probes find the member started and alive.
    fn wait_member(&mut self, member: &Member) -> Result<()> {
        self.wait_running(&member.name, |_| {
            member.probe(Command::new("curl"), "readyz")?;
            member.probe(Command::new("curl"), "livez")
        })
    }

    fn wait_apiserver(&mut self, api: Api) -> Result<()> {
        let kubectl = self.kube_apiserver.with_file_name(Bin::Kubectl.file_name());
        self.wait_running(api.name(), |this| {
            let mut command = Command::new(&kubectl);
            command.arg("--kubeconfig").arg(this.kubeconfig(api)).args(["get", "--raw=/readyz"]);
            run::output(&mut command).map(drop)
        })
    }

    /// Waits until `probe` succeeds, at once giving up if the process `name` has ended.
    fn wait_running(&mut self, name: &str, probe: impl Fn(&Self) -> Result<()>) -> Result<()> {
        wait_until(name, READY, || {
            let log = self.log(name);
            if let Some(child) = self.processes.get_mut(name)
                && let Some(status) = child.try_wait()?
            {
                let end = run::tail(&log);
                return Ok(Probe::Failed(format!("it ended ({status}); the end of {}:\n{end}", log.display())));
            }
            probe(self).map(Probe::Ready)
        })
    }

    fn apiserver(&self, api: Api) -> Component {
        let own = vec![
            format!("--bind-address={}", self.address),
            format!("--advertise-address={}", self.address),
            format!("--secure-port={}", api.port()),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            // A loopback address may not be an endpoint of the service `kubernetes`.
            "--endpoint-reconciler-type=none".into(),
            "--authorization-mode=RBAC".into(),
            // Named by the host, so the two would quarrel about one lease.
            "--feature-gates=APIServerIdentity=false".into(),
            format!("--etcd-compaction-interval={}s", COMPACTION_INTERVAL.as_secs()),
            format!("--event-ttl={}s", EVENT_TTL.as_secs()),
            format!("--watch-cache={}", api == Api::Cached),
        ];
        let args = [self.datastore.apiserver_flags(), components::apiserver_credentials(&self.run), own].concat();
        Component { name: api.name().into(), program: self.kube_apiserver.clone(), args }
    }

    fn write_credentials(&self) -> Result<()> {
        let authority = Authority::new()?;
        let pki = self.run.join("pki");
        authority.write(&pki)?;
        let names = ["localhost".to_owned(), "kubernetes.default.svc".to_owned(), self.address.to_string()];
        authority.issue(Subject { user: "kube-apiserver", group: None }, &names)?.write(&pki, "kube-apiserver")?;
        let (private, public) = pki::signing_keys()?;
        pki::write(&pki.join("service-account.key"), &private)?;
        pki::write(&pki.join("service-account.pub"), &public)?;
        for api in Api::ALL {
            let server = format!("https://{}:{}", self.address, api.port());
            let admin = Subject { user: "admin", group: Some("system:masters") };
            pki::write(&self.kubeconfig(api), &authority.kubeconfig(&server, admin)?)?;
        }
        Ok(())
    }

    fn spawn(&mut self, component: &Component) -> Result<()> {
        let path = self.log(&component.name);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut command = Command::new(&component.program);
        command.args(&component.args).env_clear().env("PATH", host::SYSTEM_PATH).current_dir(&self.run);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", component.program.display()))?;
        self.processes.insert(component.name.clone(), child);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.run.join("logs").join(format!("{name}.log"))
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            // It may have ended already.
            let _ = child.kill().and_then(|()| child.wait());
        }
        if self.keep_files || std::thread::panicking() {
            say(format!("logs and data stay in {}", self.run.display()));
        } else if let Err(error) = fs::remove_dir_all(&self.run) {
            say(format!("removing {}: {error}", self.run.display()));
        }
    }
}

/// A loopback address that no other process of this host has, as long as it lives: made of its id.
fn own_address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = (std::process::id() << 2) + (COUNT.fetch_add(1, Ordering::Relaxed) & 3);
    // 127.1.0.0 and on: 127.0.0.0/16 is what other programs use. An id has at most 22 bits.
    Ipv4Addr::from(0x7f01_0000 + number % 0x00fd_0000)
}
