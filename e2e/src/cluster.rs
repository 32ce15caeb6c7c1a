//! Bringing a local cluster up, and taking it down so that nothing is left of it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::components::{self, Programs, Settings};
use crate::connect::{Cluster, fill};
use crate::datastore::{Choice, Datastore, Store};
use crate::host;
use crate::images;
use crate::network::{self, Network};
use crate::node::{self, Init, Node};
use crate::pki::{self, Authority, Subject};
use crate::progress::say;
use crate::run;
use crate::tools::{Bin, Tools};
use crate::wait::{Probe, wait_until};

/// The cluster that is meant when none is named.
pub const DEFAULT_NAME: &str = "local";

/// How long any one component may take to become ready. kube-apiserver, the slowest, takes 5 s on an idle machine with two
/// cores; builds beside it can make that ten times as long.
const COMPONENT_TIMEOUT: Duration = Duration::from_secs(120);

/// A Unix socket's path holds 108 bytes with its final zero, and kubelet's longest below the run directory needs 45 of them.
const LONGEST_RUN_DIRECTORY: usize = 60;

/// What [`up`] may be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cluster's name: a DNS label of at most 20 characters.
    pub name: String,
    /// What answers as etcd.
    pub datastore: Choice,
    /// The server's binary for [`Store::Ferretcd`]; the one beside this program if absent.
    pub ferretcd: Option<PathBuf>,
}

/// What a run directory says of its cluster (`cluster.json`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The cluster's name.
    pub name: String,
    /// Its addresses.
    pub network: Network,
    /// What answers as etcd.
    pub datastore: Choice,
    /// The name of its cgroup.
    pub cgroup: String,
}

impl Record {
    /// The record in a run directory, if there is one.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join("cluster.json");
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
}

/// Brings the cluster up: packages, tools, node, control plane, DNS, storage. Does nothing if it is up already. If it
/// fails, the node keeps running with its logs, for a look; [`down`] or the next `up` removes it.
pub fn up(cache: &Cache, tools: &Tools, options: &Options) -> Result<Cluster> {
    let began = Instant::now();
    host::require_root()?;
    let run = cache.run(&options.name);
    check_name(&options.name)?;
    check_run_directory(&run)?;
    let _lock = cache.lock(&format!("cluster-{}", options.name))?;
    if is_up(&run)? {
        match standing(&run)? {
            Standing::Whole(datastore) if datastore == options.datastore => {
                say(format!("the cluster {} is up already", options.name));
                return Cluster::local(cache, tools, &options.name);
            }
            Standing::Whole(datastore) => bail!(
                "the cluster {} is up already, on {datastore} and not on {}; run `cluster down` first",
                options.name,
                options.datastore
            ),
            Standing::Broken(why) => say(format!("the cluster {} is broken and starts anew: {why}", options.name)),
        }
    }
    host::ensure_packages(cache)?;
    let programs = programs(tools, options)?;
    let images = [images::pause(tools)?, images::coredns(tools)?];

    remove(&run)?;
    let (settings, mut node) = create_node(cache, options, &run, programs)?;
    say(format!("the node {} is at {}, its state in {}", settings.name, settings.network.node(), run.display()));

    let members = settings.datastore.members();
    for member in &members {
        node.start(&member.name)?;
    }
    node.start("containerd")?;
    let curl = host::find_program("curl").context("curl is not installed")?;
    for member in &members {
        ready(&run, &member.name, || member.probe(node.init().command(&curl), "readyz").map(Probe::Ready))?;
    }
    node.start("kube-apiserver")?;
    ready(&run, "containerd", || {
        let socket = components::containerd_socket(&run);
        run::output(Command::new("ctr").arg("--address").arg(socket).arg("version")).map(|_| Probe::Ready(()))
    })?;
    let cluster = Cluster::local(cache, tools, &options.name)?;
    for image in &images {
        cluster.load(image)?;
    }
    ready(&run, "kube-apiserver", || cluster.kubectl(&["get", "--raw=/readyz"]).map(|_| Probe::Ready(())))?;
    for component in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
        node.start(component)?;
    }
    cluster.apply(include_str!("manifests/storage.yaml"))?;
    let dns_ip = settings.network.dns_service().to_string();
    cluster.apply(&fill(include_str!("manifests/coredns.yaml"), &[("image", images::COREDNS), ("dns_ip", &dns_ip)]))?;
    ready(&run, "kubelet", || cluster.node_ready(&settings.name))?;
    // DNS needs all the rest: the controllers and the scheduler for its pod, kube-proxy for its address.
    wait_until("the cluster's DNS", COMPONENT_TIMEOUT, || {
        for component in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
            if let Some(failed) = ended(&run, component) {
                return Ok(Probe::Failed(format!("{component}: {failed}")));
            }
        }
        cluster.deployment_available("kube-system", "coredns")
    })?;
    fs::write(run.join(COMPLETE), "")?;
    say(format!("the cluster {} is up, {} s after the command began", options.name, began.elapsed().as_secs()));
    Ok(cluster)
}

/// Ends the cluster in `run` and removes everything it had. The cache of tools stays. Returns whether there was one.
pub fn down(cache: &Cache, name: &str) -> Result<bool> {
    check_name(name)?;
    let run = cache.run(name);
    if !run.exists() {
        return Ok(false);
    }
    host::require_root()?;
    let _lock = cache.lock(&format!("cluster-{name}"))?;
    remove(&run)?;
    say(format!("the cluster {name} is gone"));
    Ok(true)
}

/// Whether the cluster's node runs.
pub fn is_up(run: &Path) -> Result<bool> {
    Ok(Init::read(run)?.is_some_and(Init::is_alive))
}

/// A few lines about the cluster: its node, the components that have ended, its nodes and pods.
pub fn status(cache: &Cache, tools: &Tools, name: &str) -> Result<String> {
    let run = cache.run(name);
    let Some(record) = Record::read(&run)? else {
        return Ok(format!("there is no cluster {name} (nothing in {})\n", run.display()));
    };
    let Some(init) = Init::read(&run)?.filter(|init| init.is_alive()) else {
        return Ok(format!(
            "the cluster {name} is not running, but {} is left; `cluster down` removes it\n",
            run.display()
        ));
    };
    let mut lines = format!(
        "cluster {name}: node {} (process {}), network {}, datastore {}, state in {}\n",
        record.network.node(),
        init.pid,
        record.network.cidr(),
        record.datastore,
        run.display()
    );
    for component in fs::read_dir(run.join("exits"))?.flatten() {
        let component = component.file_name().to_string_lossy().into_owned();
        lines += &format!("{component}: {}\n", ended(&run, &component).unwrap_or_default());
    }
    let cluster = Cluster::local(cache, tools, name)?;
    lines += &match cluster.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output=wide"]) {
        Ok(output) => output.stdout,
        Err(error) => format!("{error:#}\n"),
    };
    Ok(lines)
}

/// The file that says that an [`up`] came to its end.
const COMPLETE: &str = "complete";

/// What a running node is good for.
enum Standing {
    /// It was brought up whole, on this datastore, and nothing has ended since.
    Whole(Choice),
    /// It was not brought up to the end, or something has ended.
    Broken(String),
}

fn standing(run: &Path) -> Result<Standing> {
    if let Some(component) = fs::read_dir(run.join("exits"))?.flatten().next() {
        let component = component.file_name().to_string_lossy().into_owned();
        return Ok(Standing::Broken(format!("{component}: {}", ended(run, &component).unwrap_or_default())));
    }
    match Record::read(run)? {
        Some(record) if run.join(COMPLETE).exists() => Ok(Standing::Whole(record.datastore)),
        _ => Ok(Standing::Broken("an earlier `cluster up` did not come to its end".into())),
    }
}

fn programs(tools: &Tools, options: &Options) -> Result<Programs> {
    let etcd = match options.datastore.store {
        Store::Etcd => tools.path(Bin::Etcd)?,
        Store::Ferretcd => {
            let beside = || std::env::current_exe().map(|exe| exe.with_file_name("ferretcd"));
            let path = options.ferretcd.clone().map_or_else(beside, Ok)?;
            fs::canonicalize(&path).with_context(|| {
                format!(
                    "the server {} is not there: build it (cargo build -p ferretcd) or give its path",
                    path.display()
                )
            })?
        }
    };
    Ok(Programs {
        etcd,
        kube_apiserver: tools.path(Bin::KubeApiserver)?,
        kube_controller_manager: tools.path(Bin::KubeControllerManager)?,
        kube_scheduler: tools.path(Bin::KubeScheduler)?,
        kubelet: tools.path(Bin::Kubelet)?,
        kube_proxy: tools.path(Bin::KubeProxy)?,
        containerd: host::find_program("containerd").context("containerd is not installed")?,
    })
}

/// Makes the run directory with all that the components read, the cgroup, the node and its network.
fn create_node(cache: &Cache, options: &Options, run: &Path, programs: Programs) -> Result<(Settings, Node)> {
    for folder in ["config", "cni", "exits", "images", "kubelet", "logs", "pki", "pod-logs", "volumes"] {
        fs::create_dir_all(run.join(folder)).with_context(|| format!("making {}", run.join(folder).display()))?;
    }
    let settings = Settings {
        name: options.name.clone(),
        run: run.to_path_buf(),
        network: Network::claim()?,
        datastore: Datastore::new(run, Ipv4Addr::LOCALHOST, options.datastore.members),
        cni_plugins: host::cni_plugins().context("the CNI plugins are not installed")?.to_path_buf(),
        programs,
    };
    // Written at once: from here on, `remove` knows what to give back.
    let record = Record {
        name: settings.name.clone(),
        network: settings.network,
        datastore: options.datastore,
        cgroup: settings.cgroup(),
    };
    fs::write(run.join("cluster.json"), serde_json::to_vec_pretty(&record)?)?;
    fs::write(run.join("components.json"), serde_json::to_vec_pretty(&components::components(&settings))?)?;
    for (path, text) in components::config_files(&settings) {
        fs::write(run.join(path), text)?;
    }
    write_credentials(&settings)?;
    for folder in host::cgroup_folders(&settings.cgroup()) {
        fs::create_dir_all(&folder).with_context(|| format!("making the cgroup {}", folder.display()))?;
    }
    let node = Node::create(run, &[cache.root(), run])?;
    network::join(settings.network, node.init().pid)?;
    Ok((settings, node))
}

fn write_credentials(settings: &Settings) -> Result<()> {
    let authority = Authority::new()?;
    let pki = settings.run.join("pki");
    authority.write(&pki)?;
    settings.datastore.write_credentials()?;
    let node_ip = settings.network.node().to_string();
    let mut api_names: Vec<String> =
        ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .to_vec();
    api_names.push("kubernetes.default.svc.cluster.local".into());
    api_names.extend([node_ip.clone(), settings.network.kubernetes_service().to_string()]);
    authority.issue(Subject { user: "kube-apiserver", group: None }, &api_names)?.write(&pki, "kube-apiserver")?;
    let kubelet_client = Subject { user: "kube-apiserver-kubelet-client", group: Some("system:masters") };
    authority.issue(kubelet_client, &[])?.write(&pki, kubelet_client.user)?;
    authority
        .issue(Subject { user: "kubelet", group: None }, &[settings.name.clone(), node_ip])?
        .write(&pki, "kubelet")?;
    let (private, public) = pki::signing_keys()?;
    pki::write(&pki.join("service-account.key"), &private)?;
    pki::write(&pki.join("service-account.pub"), &public)?;

    let node_user = format!("system:node:{}", settings.name);
    let users = [
        ("kubeconfig", "admin", Some("system:masters")),
        ("config/kube-controller-manager.kubeconfig", "system:kube-controller-manager", None),
        ("config/kube-scheduler.kubeconfig", "system:kube-scheduler", None),
        ("config/kube-proxy.kubeconfig", "system:kube-proxy", None),
        ("config/kubelet.kubeconfig", node_user.as_str(), Some("system:nodes")),
    ];
    for (path, user, group) in users {
        let config = authority.kubeconfig(&settings.server(), Subject { user, group })?;
        pki::write(&settings.run.join(path), &config)?;
    }
    Ok(())
}

/// Waits for a component, at once giving up if it has ended; either way the error shows the end of its log.
fn ready(run: &Path, component: &str, mut probe: impl FnMut() -> Result<Probe<()>>) -> Result<()> {
    let began = Instant::now();
    let result = wait_until(component, COMPONENT_TIMEOUT, || match ended(run, component) {
        Some(failed) => Ok(Probe::Failed(failed)),
        None => probe(),
    });
    match result {
        Ok(()) => {
            say(format!("{component} is ready after {:.1} s", began.elapsed().as_secs_f32()));
            Ok(())
        }
        Err(error) if ended(run, component).is_some() => Err(error),
        Err(error) => {
            let log = node::log_of(run, component);
            bail!("{error:#}\nthe end of {}:\n{}", log.display(), run::tail(&log))
        }
    }
}

/// How a component ended and the end of its log, if it has ended.
fn ended(run: &Path, component: &str) -> Option<String> {
    let how = node::exit_of(run, component)?;
    let log = node::log_of(run, component);
    Some(format!("{how}; the end of {}:\n{}", log.display(), run::tail(&log)))
}

/// Ends the node in `run`, if it runs, and removes its cgroups, its end of the network and the run directory.
fn remove(run: &Path) -> Result<()> {
    if !run.exists() {
        return Ok(());
    }
    if let Some(init) = Init::read(run)? {
        init.kill()?;
    }
    if let Some(record) = Record::read(run)? {
        for folder in host::cgroup_folders(&record.cgroup) {
            wait_until("the cgroups to empty", Duration::from_secs(30), || {
                host::remove_cgroup(&folder).map(Probe::Ready)
            })?;
        }
        network::release(record.network)?;
    }
    fs::remove_dir_all(run).with_context(|| format!("removing {}", run.display()))
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 20 || !name.bytes().all(allowed) || name.starts_with('-') || name.ends_with('-')
    {
        bail!("the cluster name {name:?} must be 1 to 20 lower-case letters, digits and inner hyphens");
    }
    Ok(())
}

fn check_run_directory(run: &Path) -> Result<()> {
    let Some(text) = run.to_str().filter(|text| !text.contains(['"', '\\', ',', ':', '\n'])) else {
        bail!(
            "{} holds a character that configuration files cannot: set FERRETCD_CACHE to a plain path",
            run.display()
        );
    };
    if text.len() > LONGEST_RUN_DIRECTORY {
        bail!(
            "{text} is longer than {LONGEST_RUN_DIRECTORY} bytes, too long for Unix sockets: set FERRETCD_CACHE to a short path"
        );
    }
    if run.starts_with("/run") || run.starts_with("/var/run") || run.starts_with("/proc") {
        bail!("{text} is in a folder that the node replaces by its own: set FERRETCD_CACHE to another");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_name_or_place_is_refused_before_anything_is_made() {
        for name in ["", "A", "a_b", "-a", "a-", "../x", "a-name-that-is-too-long"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        check_name("test-1").unwrap();
        for place in ["/run/x", "/c/\"x", &format!("/{}", "x".repeat(60))] {
            assert!(check_run_directory(Path::new(place)).is_err(), "{place}");
        }
        check_run_directory(Path::new("/home/user/.cache/ferretcd/run/local")).unwrap();
    }

    #[test]
    fn only_a_cluster_that_was_brought_up_whole_and_lost_nothing_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        fs::create_dir_all(run.join("exits")).unwrap();
        let datastore = Choice { store: Store::Ferretcd, members: 3 };
        let record = Record { name: "x".into(), network: Network::new(213), datastore, cgroup: "x".into() };
        fs::write(run.join("cluster.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(matches!(standing(run).unwrap(), Standing::Broken(why) if why.contains("did not come to its end")));
        fs::write(run.join(COMPLETE), "").unwrap();
        assert!(matches!(standing(run).unwrap(), Standing::Whole(whole) if whole == datastore));
        fs::write(run.join("exits/kubelet"), "signal 9 ended it").unwrap();
        assert!(matches!(standing(run).unwrap(), Standing::Broken(why) if why.contains("kubelet: signal 9")));
    }

    #[test]
    fn a_component_that_ended_is_reported_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        fs::create_dir_all(run.join("exits")).unwrap();
        fs::create_dir_all(run.join("logs")).unwrap();
        fs::write(run.join("exits/etcd"), "it exited with status 1").unwrap();
        fs::write(run.join("logs/etcd.log"), "the disk is full\n").unwrap();
        let error = ready(run, "etcd", || Ok(Probe::Pending("no".into()))).unwrap_err().to_string();
        assert!(
            error.contains("status 1") && error.contains("the disk is full") && error.contains("etcd.log"),
            "{error}"
        );
    }
}
