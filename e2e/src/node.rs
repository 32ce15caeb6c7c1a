//! The node: a process that is the first in process, mount and network namespaces of its own and starts what it is told to.
//!
//! Whatever the node makes, it makes in there: mounts, bridges, veths, iptables rules, containers. So the host stays as it
//! is, two clusters do not meet, and ending this one process makes the kernel end and remove all the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::components::Component;
use crate::host;
use crate::run;
use crate::wait::{Probe, wait_until};

/// How long the node's first process may take to make its mounts. It takes well under a second.
const INIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where volumes are: the one path that kube-controller-manager's hostpath provisioner knows.
const VOLUMES: &str = "/tmp/hostpath_pv";

/// How often new volumes are looked for: well below the second that a pod takes from its volume to its start.
const NEW_VOLUME_INTERVAL: Duration = Duration::from_millis(100);

/// The node's first process, by its process id on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// The process id on the host.
    pub pid: i32,
    /// When it started ([`host::start_time`]), so that a later process with the same id is not taken for it.
    pub start_time: u64,
}

impl Init {
    /// The process that `<run>/init.json` names, if there is such a file.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join("init.json");
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        host::start_time(self.pid) == Some(self.start_time)
    }

    /// Ends it, and with it everything on the node. Does nothing if it has ended already.
    pub fn kill(self) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { bail!("{} is no process id", self.pid) };
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
            .with_context(|| format!("ending the node's first process, {}", self.pid))?;
        wait_until("the node's processes to end", Duration::from_secs(60), || {
            Ok(Probe::when(!self.is_alive(), format!("process {} is still there", self.pid)))
        })
    }

    /// A command that runs in the node's namespaces.
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--pid", "--target", &self.pid.to_string(), "--"]).arg(program);
        command
    }
}

/// A node that has just been made. Dropping it leaves the node running; nothing more can be started on it then.
pub struct Node {
    init: Init,
    commands: ChildStdin,
}

impl Node {
    /// Makes the namespaces, and the node's first process in them. Folders in `keep` stay writable at their path.
    pub fn create(run: &Path, keep: &[&Path]) -> Result<Self> {
        let log_path = run.join("logs/node.log");
        let log = File::create(&log_path).with_context(|| format!("making {}", log_path.display()))?;
        // setsid: the node outlives this command and its terminal.
        let mut command = Command::new("setsid");
        command.args(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--"]);
        command.arg(std::env::current_exe()?).arg("node-init").arg(run).args(keep);
        command.current_dir("/").stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("starting setsid unshare")?;
        let Some(commands) = child.stdin.take() else { bail!("the node's first process has no standard input") };
        let init = wait_until("the node's first process", INIT_TIMEOUT, || {
            if let Some(status) = child.try_wait()? {
                return Ok(Probe::Failed(format!("it ended ({status}): {}", run::tail(&log_path))));
            }
            Ok(Init::read(run)?.map_or_else(|| Probe::Pending("not ready".into()), Probe::Ready))
        })?;
        Ok(Self { init, commands })
    }

    /// Its first process.
    pub fn init(&self) -> Init {
        self.init
    }

    /// Tells the node to start the component `name` of its `components.json`.
    pub fn start(&mut self, name: &str) -> Result<()> {
        writeln!(self.commands, "{name}").with_context(|| format!("telling the node to start {name}"))
    }
}

/// What a component said of its end, if it has ended.
pub fn exit_of(run: &Path, component: &str) -> Option<String> {
    fs::read_to_string(run.join("exits").join(component)).ok()
}

/// The log file of a component.
pub fn log_of(run: &Path, component: &str) -> PathBuf {
    run.join("logs").join(format!("{component}.log"))
}

/// The body of the node's first process. It returns only with an error.
pub fn init(run: &Path, keep: &[PathBuf]) -> Result<()> {
    // /proc is still the host's, and so is the number by which it calls this process.
    let pid: i32 = fs::read_link("/proc/self")?.to_string_lossy().parse().context("reading /proc/self")?;
    let start_time = host::start_time(pid).context("reading this process's start time")?;
    mount_all(run, keep)?;
    set_network_parameters()?;
    let components: Vec<Component> = serde_json::from_slice(&fs::read(run.join("components.json"))?)?;
    let ready = run.join("init.json.tmp");
    fs::write(&ready, serde_json::to_vec(&Init { pid, start_time })?)?;
    fs::rename(&ready, run.join("init.json"))?;

    let running = Running::default();
    let starter = running.clone();
    let run_folder = run.to_path_buf();
    std::thread::spawn(move || {
        for name in std::io::stdin().lock().lines().map_while(Result::ok) {
            match components.iter().find(|component| component.name == name) {
                Some(component) => starter.start(component, &run_folder),
                None => eprintln!("there is no component {name:?}"),
            }
        }
    });
    std::thread::spawn(|| {
        let mut known = BTreeSet::new();
        loop {
            open_new_volumes(Path::new(VOLUMES), &mut known);
            std::thread::sleep(NEW_VOLUME_INTERVAL);
        }
    });
    running.reap_forever(run)
}

/// Lets every user write to volumes that were not there before. A hostPath volume is the one kind that kubelet does not give
/// to a pod's `fsGroup`, and the provisioner makes it for root only: a server that does not run as root could not use it.
fn open_new_volumes(folder: &Path, known: &mut BTreeSet<OsString>) {
    for volume in fs::read_dir(folder).into_iter().flatten().flatten() {
        if known.insert(volume.file_name())
            && let Err(error) = fs::set_permissions(volume.path(), Permissions::from_mode(0o777))
        {
            eprintln!("opening the volume {}: {error}", volume.path().display());
        }
    }
}

/// The components that run, by their process id on the node. Shared by the thread that starts and the one that reaps.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<BTreeMap<i32, String>>>);

impl Running {
    fn start(&self, component: &Component, run: &Path) {
        // The lock is held until the process is in the map, so that it cannot end unnoticed before.
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match spawn(component, run) {
            Ok(pid) => drop(running.insert(pid, component.name.clone())),
            Err(error) => note_exit(run, &component.name, &format!("{error:#}")),
        }
    }

    /// Collects every process that ends: components, and what is orphaned to the first process (container shims).
    fn reap_forever(&self, run: &Path) -> Result<()> {
        loop {
            match rustix::process::wait(rustix::process::WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
                    if let Some(name) = ended {
                        let how = match (status.exit_status(), status.terminating_signal()) {
                            (Some(code), _) => format!("it exited with status {code}"),
                            (_, Some(signal)) => format!("signal {signal} ended it"),
                            _ => format!("it ended ({status:?})"),
                        };
                        note_exit(run, &name, &how);
                    }
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                // Nothing runs yet; a start is noticed within this time.
                Err(rustix::io::Errno::CHILD) => std::thread::sleep(Duration::from_millis(50)),
                Err(error) => return Err(error).context("waiting for processes"),
            }
        }
    }
}

fn spawn(component: &Component, run: &Path) -> Result<i32> {
    let log = log_of(run, &component.name);
    let log =
        File::options().create(true).append(true).open(&log).with_context(|| format!("opening {}", log.display()))?;
    let child = Command::new(&component.program)
        .args(&component.args)
        .env_clear()
        .env("PATH", host::SYSTEM_PATH)
        .current_dir(run)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", component.program.display()))?;
    Ok(i32::try_from(child.id())?)
}

fn note_exit(run: &Path, component: &str, how: &str) {
    eprintln!("{component}: {how}");
    if let Err(error) = fs::write(run.join("exits").join(component), how) {
        eprintln!("noting the end of {component}: {error}");
    }
}

/// Folders in which kubelet, containerd and the CNI plugins write at fixed paths. The node sees them under a layer of its
/// own, so what is written there never reaches the host.
const LAYERED: [&str; 3] = ["/var/lib", "/var/log", "/tmp"];

/// Kernel settings that kubelet would change for the whole host. The node sees files with the values that kubelet wants.
const KERNEL_SETTINGS: [(&str, &str); 5] = [
    ("vm/overcommit_memory", "1"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

fn mount_all(run: &Path, keep: &[PathBuf]) -> Result<()> {
    mount(&["-t", "proc", "proc", "/proc"])?;
    mount(&["-t", "tmpfs", "-o", "mode=755", "ferretcd", "/run"])?;
    let keep: Vec<&PathBuf> =
        keep.iter().filter(|path| LAYERED.iter().any(|layered| path.starts_with(layered))).collect();
    for (number, path) in keep.iter().enumerate() {
        let place = format!("/run/keep/{number}");
        fs::create_dir_all(&place)?;
        mount(&["--rbind", &text(path)?, &place])?;
    }
    for (number, folder) in LAYERED.iter().enumerate() {
        let (upper, work) = (format!("/run/layers/{number}/upper"), format!("/run/layers/{number}/work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!("lowerdir={folder},upperdir={upper},workdir={work}");
        mount(&["-t", "overlay", "-o", &options, "ferretcd", folder])?;
    }
    for (number, path) in keep.iter().enumerate() {
        fs::create_dir_all(path)?;
        mount(&["--rbind", &format!("/run/keep/{number}"), &text(path)?])?;
    }
    fs::create_dir_all(VOLUMES)?;
    mount(&["--bind", &text(&run.join("volumes"))?, VOLUMES])?;
    for (number, (name, value)) in KERNEL_SETTINGS.iter().enumerate() {
        let file = format!("/run/kernel-setting-{number}");
        fs::write(&file, value)?;
        mount(&["--bind", &file, &format!("/proc/sys/{name}")])?;
    }
    // kubelet's mounts must be seen in containers that ask for it.
    mount(&["--make-rshared", "/"])
}

fn mount(args: &[&str]) -> Result<()> {
    run::output(Command::new("mount").args(args)).map(drop)
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// Lets the node forward packets, and lets kube-proxy's rules see those between pods. Both hold for this namespace only.
fn set_network_parameters() -> Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("allowing the node to forward packets")?;
    let bridged = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    if bridged.exists() {
        fs::write(bridged, "1").context("letting iptables see bridged packets")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_reuses_the_id_is_not_the_node() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start_time = host::start_time(pid).unwrap();
        assert!(Init { pid, start_time }.is_alive());
        let other = Init { pid, start_time: start_time - 1 };
        assert!(!other.is_alive());
        other.kill().unwrap();
    }

    #[test]
    fn a_new_volume_is_opened_once() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("pvc");
        let mode = || fs::metadata(&volume).unwrap().permissions().mode() & 0o777;
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, Permissions::from_mode(0o750)).unwrap();
        let mut known = BTreeSet::new();
        open_new_volumes(folder.path(), &mut known);
        assert_eq!(mode(), 0o777);
        // What its owner makes of it later stays.
        fs::set_permissions(&volume, Permissions::from_mode(0o700)).unwrap();
        open_new_volumes(folder.path(), &mut known);
        assert_eq!(mode(), 0o700);
    }

    #[test]
    fn a_component_that_cannot_start_leaves_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("logs")).unwrap();
        fs::create_dir_all(folder.path().join("exits")).unwrap();
        let component = Component { name: "x".into(), program: "/no/such/program".into(), args: vec![] };
        Running::default().start(&component, folder.path());
        assert!(exit_of(folder.path(), "x").unwrap().contains("/no/such/program"));
    }
}
