//! What the host must have before a node can run on it: root, and a few Debian packages, installed if they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::progress::say;
use crate::run;

/// Programs that the node runs, and the Debian package of each. nsenter, unshare, setsid and mount are in util-linux,
/// which every Debian has.
const PROGRAMS: [(&str, &str); 9] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("conntrack", "conntrack"),
    // Not the node but the checks of the object store call it.
    ("curl", "curl"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
];

/// Folders that distributions keep the CNI plugins in; the first is Debian's.
const CNI_FOLDERS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The PATH of the node's processes, and where the host's programs are looked for besides the caller's own PATH: Debian
/// leaves /usr/sbin out of a normal user's.
pub const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The folder of the CNI plugins.
pub fn cni_plugins() -> Option<&'static Path> {
    CNI_FOLDERS.iter().map(Path::new).find(|folder| folder.join("bridge").is_file())
}

/// The program's path, from the caller's PATH or the system's.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(SYSTEM_PATH))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Fails unless this process is root's, which making namespaces, bridges and cgroups needs.
pub fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "a local cluster needs root (namespaces, network, cgroups), and this is user {}; run as root, or set KUBECONFIG \
             to use a cluster that you have",
            rustix::process::geteuid().as_raw()
        );
    }
    Ok(())
}

/// Makes sure that containerd, runc, the CNI plugins and the network programs are installed: by apt if they are missing.
pub fn ensure_packages(cache: &Cache) -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!(
            "this host lacks {}, and has no apt-get to install them: install them and run this again",
            missing.join(" ")
        );
    }
    let log = cache.root().join("logs/apt.log");
    std::fs::create_dir_all(cache.root().join("logs"))?;
    say(format!("installing {} (apt-get)", missing.join(" ")));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        // RUNLEVEL=1 keeps invoke-rc.d from starting a containerd service of the host: the node has its own.
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
        command
    };
    run::logged(&mut apt(&["update", "-q"]), "apt-get update", &log)?;
    let install = [&["install", "-q", "-y", "--no-install-recommends"], missing.as_slice()].concat();
    run::logged(&mut apt(&install), "apt-get install", &log)?;
    let still = missing_packages();
    if !still.is_empty() {
        bail!("after apt-get install, {} are still missing; see {}", still.join(" "), log.display());
    }
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| find_program(program).is_none()).map(|(_, package)| *package).collect();
    if cni_plugins().is_none() {
        missing.push("containernetworking-plugins");
    }
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// When the process `pid` started, in clock ticks since boot: with it, a recorded process id cannot be taken for a later
/// process that got the same number. `None` if there is no such process, or only its remains.
pub fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time of all its threads, in seconds.
    pub cpu: f64,
    /// The most memory that it had at once (resident), in MiB.
    pub peak_memory: u64,
}

/// What the process `pid` has used so far; `None` if there is no such process.
pub fn usage(pid: u32) -> Option<Usage> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let stat = read("stat")?;
    // Field 3 comes first after the name; 14 and 15 are the ticks in user and kernel mode, a hundred a second on Linux.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let cpu = f64::from(ticks()? + ticks()?) / 100.0;
    let status = read("status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(Usage { cpu, peak_memory: kibibytes / 1024 })
}

/// What the process `pid` holds in memory now, in MiB; `None` if there is no such process.
pub fn resident(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(held.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

/// The processes of a pod's containers, by the pod's UID, which is in the name of their cgroup. The process that holds the
/// pod's namespaces is not among them.
pub fn processes_of_pod(uid: &str) -> Result<Vec<rustix::process::Pid>> {
    let folder = format!("/pod{uid}/");
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let pid =
            process.file_name().to_str().and_then(|name| name.parse().ok()).and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else { continue };
        // A process may end while it is looked at.
        let read = |file: &str| std::fs::read_to_string(process.path().join(file)).unwrap_or_default();
        if read("cgroup").contains(&folder) && read("comm").trim() != "pause" {
            found.push(pid);
        }
    }
    Ok(found)
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses and may hold anything; state is field 3, the time field 22.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Folders at the root of each cgroup hierarchy, by the name `name`: one for each controller with cgroup v1, one with v2.
pub fn cgroup_folders(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.join(name)];
    }
    let Ok(entries) = root.read_dir() else { return Vec::new() };
    let hierarchies = entries.flatten().map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists());
    // cpu and cpuacct may be links to one folder.
    hierarchies.filter(|path| !path.is_symlink()).map(|path| path.join(name)).collect()
}

/// Removes a cgroup and all below it. They hold no process any more.
pub fn remove_cgroup(folder: &Path) -> Result<()> {
    let Ok(entries) = folder.read_dir() else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    std::fs::remove_dir(folder).with_context(|| format!("removing the cgroup {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_time_survives_an_odd_program_name() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time(&stat.replace(" S ", " Z ")), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(usage(std::process::id()).unwrap().peak_memory > 0);
        assert_eq!(usage(u32::MAX), None);
    }

    #[test]
    fn this_process_has_a_start_time_and_an_unused_number_has_none() {
        assert!(start_time(i32::try_from(std::process::id()).unwrap()).is_some());
        assert_eq!(start_time(i32::MAX), None);
    }
}
