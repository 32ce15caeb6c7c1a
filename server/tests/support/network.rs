//! Hosts for members: network namespaces on one switch, whose wires can be cut one way or both, and made slow. It needs
//! root, and of the kernel bridges and veth pairs; the slow wires need its token bucket (`sch_tbf`).

use super::{Cluster, Member, left_out};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// How many networks there may be at once on one machine: each is a /24 of 198.18.0.0/15, the addresses for measuring
/// networks (RFC 2544), which no real one has.
const NETWORKS: u32 = 512;

/// The last part of the test's own address.
const OUTSIDE: usize = 254;

/// What namespaces are named by, before the process that they belong to.
const PREFIX: &str = "ferretcd-test-";

/// Hosts on a switch, which go away with it. The test's own process has a wire to the switch that is never cut, so that
/// its clients reach every host.
pub struct Network {
    ip: PathBuf,
    /// What its namespaces' names begin with.
    name: String,
    /// Which of [`NETWORKS`].
    number: u32,
    hosts: usize,
}

impl Network {
    /// Hosts with whole wires. None, and a line that says why, where this user may not make any.
    pub fn new(hosts: usize) -> Option<Network> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            left_out("not root: this test needs network namespaces");
            return None;
        }
        let Some(ip) = tool("ip") else {
            left_out("there is no `ip` (iproute2): this test needs network namespaces");
            return None;
        };
        let process = std::process::id();
        let name = format!("{PREFIX}{process}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut network = Network { ip, name, number: 0, hosts };
        network.remove_leftovers();
        if let Err(why) = network.run(&["netns", "add", &network.switch()]) {
            left_out(&format!("network namespaces cannot be made here ({why}): this test needs them"));
            return None;
        }
        network.claim_number(process);
        network.lay_wires();
        Some(network)
    }

    /// Members on the hosts, which name each other in --initial-cluster; not started.
    pub fn cluster(&self, names: &[&str]) -> Cluster {
        let tmp = tempfile::tempdir().unwrap();
        let members = names.iter().enumerate().map(|(host, name)| self.member(name, host, tmp.path()));
        Cluster::of(members.collect(), tmp)
    }

    /// A member on a host; only one at a time runs there.
    pub fn member(&self, name: &str, host: usize, root: &Path) -> Member {
        let mut member = Member::new(name, root);
        (member.client, member.peer) = (format!("{}:2379", self.address(host)), format!("{}:2380", self.address(host)));
        let program = std::mem::take(&mut member.program);
        let into = [self.ip.clone().into(), "netns".into(), "exec".into(), self.host(host).into()];
        member.program = into.into_iter().chain(program).collect::<Vec<OsString>>();
        member
    }

    /// Nothing that `from` sends arrives at `to`.
    pub fn cut(&self, from: usize, to: usize) {
        self.direct(from, to, &hardware(self.number, usize::from(u8::MAX)));
    }

    /// Everything that `from` sends arrives at `to`.
    pub fn mend(&self, from: usize, to: usize) {
        self.direct(from, to, &hardware(self.number, to));
    }

    /// Cuts these hosts off from all others, both ways. Among themselves they stay connected.
    pub fn isolate(&self, hosts: &[usize]) {
        for host in hosts {
            for other in (0..self.hosts).filter(|other| !hosts.contains(other)) {
                self.cut(*host, other);
                self.cut(other, *host);
            }
        }
    }

    /// All wires are whole again.
    pub fn mend_all(&self) {
        for from in 0..self.hosts {
            (0..self.hosts).filter(|to| *to != from).for_each(|to| self.mend(from, to));
        }
    }

    /// A host's wire carries so many kilobytes a second each way, and drops what waits longer than half a second.
    pub fn slow(&self, host: usize, kilobytes: u32) {
        let tc = tool("tc").expect("iproute2 has tc beside ip");
        let rate = format!("{kilobytes}kbps");
        for (namespace, device) in [(self.host(host), "eth0".to_owned()), (self.switch(), format!("host{host}"))] {
            let shape = ["qdisc", "replace", "dev", &device, "root", "tbf", "rate", &rate];
            let args = [&["-n", &namespace], shape.as_slice(), &["burst", "64kb", "latency", "500ms"]].concat();
            run(Command::new(&tc).args(args)).unwrap();
        }
    }

    /// The wire's full speed again.
    pub fn fast(&self, host: usize) {
        let tc = tool("tc").expect("iproute2 has tc beside ip");
        for (namespace, device) in [(self.host(host), "eth0".to_owned()), (self.switch(), format!("host{host}"))] {
            run(Command::new(&tc).args(["-n", &namespace, "qdisc", "del", "dev", &device, "root"])).unwrap();
        }
    }

    fn address(&self, host: usize) -> String {
        format!("198.{}.{}.{}", 18 + self.number / 256, self.number % 256, last(host))
    }

    fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    /// The wire's end in the namespace of the test. Its name is how networks of several processes keep apart.
    fn outside(&self) -> String {
        format!("ferretcd{}", self.number)
    }

    /// Where the frames of `from` for `to` go. Nobody asks who is there (ARP), so this says it all.
    fn direct(&self, from: usize, to: usize, hardware: &str) {
        let (namespace, address) = (self.host(from), self.address(to));
        let args = ["neigh", "replace", &address, "lladdr", hardware, "dev", "eth0", "nud", "permanent"];
        self.run(&[&["-n", &namespace], args.as_slice()].concat()).unwrap();
    }

    /// Takes the first number that no other network has.
    fn claim_number(&mut self, process: u32) {
        for at in 0..NETWORKS {
            self.number = process.wrapping_add(at) % NETWORKS;
            let (outside, switch) = (self.outside(), self.switch());
            let wire = ["link", "add", &outside, "type", "veth", "peer", "name", "outside", "netns", &switch];
            match self.run(&wire) {
                Ok(()) => return,
                Err(why) if why.contains("File exists") => {}
                Err(why) => panic!("{why}"),
            }
        }
        panic!("all {NETWORKS} networks are taken");
    }

    fn lay_wires(&self) {
        let switch = self.switch();
        self.batch(
            Some(&switch),
            &[
                "link add switch type bridge".to_owned(),
                "link set switch up".to_owned(),
                "link set outside master switch up".to_owned(),
            ],
        );
        let outside = self.outside();
        let mut own = vec![
            format!("link set {outside} address {} up", hardware(self.number, OUTSIDE - 1)),
            format!("addr add {}/24 dev {outside}", self.address(OUTSIDE - 1)),
        ];
        for host in 0..self.hosts {
            let namespace = self.host(host);
            self.run(&["netns", "add", &namespace]).unwrap();
            self.batch(
                Some(&switch),
                &[
                    format!("link add host{host} type veth peer name eth0 netns {namespace}"),
                    format!("link set host{host} master switch up"),
                ],
            );
            let others = (0..self.hosts).chain([OUTSIDE - 1]).filter(|other| *other != host);
            let known = others.map(|other| {
                let (address, hardware) = (self.address(other), hardware(self.number, other));
                format!("neigh replace {address} lladdr {hardware} dev eth0 nud permanent")
            });
            let wire = [
                "link set lo up".to_owned(),
                format!("link set eth0 address {} up", hardware(self.number, host)),
                format!("addr add {}/24 dev eth0", self.address(host)),
            ];
            self.batch(Some(&namespace), &wire.into_iter().chain(known).collect::<Vec<_>>());
            let (address, hardware) = (self.address(host), hardware(self.number, host));
            own.push(format!("neigh replace {address} lladdr {hardware} dev {outside} nud permanent"));
        }
        self.batch(None, &own);
    }

    fn batch(&self, namespace: Option<&str>, lines: &[String]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), lines.join("\n") + "\n").unwrap();
        let within = namespace.map_or(vec![], |namespace| vec!["-n", namespace]);
        self.run(&[within.as_slice(), &["-batch", file.path().to_str().unwrap()]].concat()).unwrap();
    }

    fn run(&self, args: &[&str]) -> Result<(), String> {
        run(Command::new(&self.ip).args(args)).map(drop)
    }

    /// What tests that were killed have left: their namespaces, and the members that still run in them.
    fn remove_leftovers(&self) {
        let Ok(names) = fs::read_dir("/run/netns") else { return };
        for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(process, _)| process);
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                self.remove(&name);
            }
        }
    }

    /// Its processes, too: a namespace lives as long as they do. Somebody else may be at it.
    fn remove(&self, namespace: &str) {
        let found = run(Command::new(&self.ip).args(["netns", "pids", namespace])).unwrap_or_default();
        for process in found.split_whitespace().filter_map(|id| rustix::process::Pid::from_raw(id.parse().ok()?)) {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        let _ = self.run(&["netns", "del", namespace]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // At once; the kernel takes its time to clear a namespace away.
        let _ = self.run(&["link", "del", &self.outside()]);
        (0..self.hosts).map(|host| self.host(host)).chain([self.switch()]).for_each(|name| self.remove(&name));
    }
}

fn last(host: usize) -> usize {
    host + 1
}

/// A host's hardware address.
fn hardware(network: u32, host: usize) -> String {
    format!("02:fe:c0:{:02x}:{:02x}:{:02x}", network / 256, network % 256, last(host) % 256)
}

/// Where a tool of iproute2 is: its folder is in no PATH but root's.
fn tool(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
