//! A running cluster, as tests see it: kubectl, images, and namespaces that are gone afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cache::Cache;
use crate::cluster::{self, DEFAULT_NAME};
use crate::components;
use crate::host;
use crate::images;
use crate::node::Init;
use crate::oci::Image;
use crate::progress::say;
use crate::run::{self, Output};
use crate::tools::Tools;
use crate::wait::{Probe, wait_until};

/// A cluster that answers.
#[derive(Debug, Clone)]
pub struct Cluster {
    tools: Tools,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    place: Place,
}

/// Where a cluster runs, which decides how images get to it.
#[derive(Debug, Clone)]
enum Place {
    /// On this host, brought up by [`cluster::up`]; its run directory.
    Local(PathBuf),
    /// Elsewhere, named by `KUBECONFIG`.
    Elsewhere,
}

impl Cluster {
    /// The cluster that `KUBECONFIG` names if it is set, else the local cluster ([`default_name`]), which must be up.
    pub fn connect() -> Result<Self> {
        let cache = Cache::from_env()?;
        let tools = Tools::new(cache.clone());
        match elsewhere(&cache) {
            Some(kubeconfig) => {
                let kubectl = tools.kubectl()?;
                let cluster = Self { tools, kubectl, kubeconfig, place: Place::Elsewhere };
                cluster.kubectl(&["get", "--raw=/readyz"]).with_context(|| {
                    format!("the cluster that KUBECONFIG={} names does not answer", cluster.kubeconfig.display())
                })?;
                Ok(cluster)
            }
            None => Self::local(&cache, &tools, &default_name(&cache)),
        }
    }

    /// The local cluster `name`, which must be up.
    pub fn local(cache: &Cache, tools: &Tools, name: &str) -> Result<Self> {
        let run = cache.run(name);
        if !cluster::is_up(&run)? {
            bail!("the cluster {name} is not up: run `ferretcd-e2e cluster up --name {name}`");
        }
        Ok(Self {
            tools: tools.clone(),
            kubectl: tools.kubectl()?,
            kubeconfig: run.join("kubeconfig"),
            place: Place::Local(run),
        })
    }

    /// The kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The tools that go with it.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The run directory of a local cluster, with `logs/`; `None` for one elsewhere.
    pub fn run_directory(&self) -> Option<&Path> {
        match &self.place {
            Place::Local(run) => Some(run),
            Place::Elsewhere => None,
        }
    }

    /// kubectl for this cluster, to be completed by the caller.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs kubectl to its end; an exit status other than 0 is an error with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        run::output(self.kubectl_command().args(args))
    }

    /// Runs `kubectl get` and gives the objects as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let output = run::output(self.kubectl_command().arg("get").args(args).arg("--output=json"))?;
        serde_json::from_str(&output.stdout).context("reading kubectl's JSON")
    }

    /// Applies a manifest (YAML or JSON, any number of documents) on the server's side.
    pub fn apply(&self, manifest: &str) -> Result<Output> {
        let mut command = self.kubectl_command();
        command.args(["apply", "--server-side", "--force-conflicts", "--field-manager=ferretcd-e2e", "--filename=-"]);
        run::output_with_input(&mut command, Some(manifest))
    }

    /// Helm for this cluster, to be completed by the caller.
    pub fn helm_command(&self) -> Result<Command> {
        let mut command = Command::new(self.tools.helm()?);
        command.env("KUBECONFIG", &self.kubeconfig);
        Ok(command)
    }

    /// The name that a pod must use for one of the project's images: for a cluster elsewhere, in `IMAGE_REGISTRY`.
    pub fn image(&self, name: &str) -> Result<String> {
        match &self.place {
            Place::Local(_) => Ok(name.to_owned()),
            Place::Elsewhere => Ok(images::in_registry(name, &registry()?)),
        }
    }

    /// Makes an image known to the cluster: imports it on the local node, or sends it to `IMAGE_REGISTRY`.
    pub fn load(&self, image: &Image) -> Result<()> {
        let file = format!("{}.tar", image.name().replace(['/', ':'], "_"));
        let folder = match &self.place {
            Place::Local(run) => run.join("images"),
            // Asked for before the archive is made: without a registry it would be for nothing.
            Place::Elsewhere => registry().map(|_| std::env::temp_dir())?,
        };
        let archive = folder.join(file);
        image.write(&archive)?;
        self.load_archive(&archive, image.name())?;
        // The cluster has its own copy now. Where sending failed, the error names the file, which is kept.
        std::fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
    }

    /// Like [`Cluster::load`], from an archive of the image `name`.
    pub fn load_archive(&self, archive: &Path, name: &str) -> Result<()> {
        match &self.place {
            Place::Local(run) => {
                let mut command = Command::new("ctr");
                command.arg("--address").arg(components::containerd_socket(run));
                command.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
                run::output(&mut command).with_context(|| format!("importing {}", archive.display()))?;
                say(format!("loaded the image {name}"));
            }
            Place::Elsewhere => {
                let target = images::in_registry(name, &registry()?);
                images::push(archive, &target)?;
                say(format!("sent the image {target}"));
            }
        }
        Ok(())
    }

    /// Makes the images of server and operator from `folder` (for example `target/debug`) and loads them.
    pub fn load_product(&self, folder: &Path) -> Result<()> {
        let work = std::env::temp_dir().join(format!("ferretcd-strip-{}", std::process::id()));
        std::fs::create_dir_all(&work)?;
        let loaded = (|| {
            self.load(&images::ferretcd(&images::stripped(&folder.join("ferretcd"), &work)?)?)?;
            self.load(&images::operator(&images::stripped(&folder.join("ferretcd-operator"), &work)?)?)
        })();
        std::fs::remove_dir_all(&work)?;
        loaded
    }

    /// Makes and loads the toolbox image ([`images::TOOLBOX`]), from which tests look around inside the cluster.
    pub fn load_toolbox(&self) -> Result<()> {
        self.load(&images::toolbox(&self.tools)?)
    }

    /// The cluster address of a service. On a local cluster the host reaches it too.
    pub fn service_address(&self, namespace: &str, service: &str) -> Result<String> {
        let service_object = self.get(&["--namespace", namespace, "service", service])?;
        match service_object["spec"]["clusterIP"].as_str() {
            Some(address) if address != "None" && !address.is_empty() => Ok(address.to_owned()),
            _ => bail!("the service {namespace}/{service} has no cluster address"),
        }
    }

    /// A command that runs in the namespaces of the local node, for a look at its mounts, network and processes.
    pub fn node_command(&self, program: &Path) -> Result<Command> {
        match &self.place {
            Place::Local(run) => {
                let init = Init::read(run)?.context("the node has no first process")?;
                Ok(init.command(program))
            }
            Place::Elsewhere => bail!("only a local cluster has a node that commands can run on"),
        }
    }

    /// Ends the processes of a pod's containers with SIGKILL, as a crash would; its pod stays and starts them again. On a
    /// cluster elsewhere the pod is deleted without grace, which comes closest.
    pub fn kill_server(&self, namespace: &str, pod: &str) -> Result<()> {
        if matches!(self.place, Place::Elsewhere) {
            let force = ["delete", "pod", pod, "--grace-period=0", "--force"];
            return self.kubectl(&[&["--namespace", namespace], force.as_slice()].concat()).map(drop);
        }
        let object = self.get(&["--namespace", namespace, "pod", pod])?;
        let uid = object["metadata"]["uid"].as_str().context("the pod has no UID")?;
        let pids = host::processes_of_pod(uid)?;
        if pids.is_empty() {
            bail!("the pod {namespace}/{pod} has no process");
        }
        for pid in pids {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)
                .with_context(|| format!("ending process {pid:?} of {namespace}/{pod}"))?;
        }
        Ok(())
    }

    /// Whether the node `name` is ready.
    pub fn node_ready(&self, name: &str) -> Result<Probe<()>> {
        let node = self.get(&["node", name])?;
        let ready = condition(&node, "Ready");
        Ok(Probe::when(ready.0 == "True", format!("node {name}: Ready={} {}", ready.0, ready.1)))
    }

    /// Whether a deployment's pods are available.
    pub fn deployment_available(&self, namespace: &str, name: &str) -> Result<Probe<()>> {
        let deployment = self.get(&["--namespace", namespace, "deployment", name])?;
        let available = condition(&deployment, "Available");
        let pods = self.kubectl(&["--namespace", namespace, "get", "pods", "--no-headers"])?.stdout;
        let seen =
            format!("deployment {namespace}/{name}: Available={} {}; pods: {}", available.0, available.1, pods.trim());
        Ok(Probe::when(available.0 == "True", seen))
    }

    /// The namespace `name`, made if it is missing.
    pub fn namespace(&self, name: &str) -> Result<Namespace<'_>> {
        self.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n"))?;
        let namespace = Namespace { cluster: self, name: name.to_owned() };
        namespace.wait_for_service_account()?;
        Ok(namespace)
    }

    /// Runs `story` in a new namespace that starts with `prefix`, and deletes the namespace. If the story fails, its
    /// pods, events and logs are printed first, and with `FERRETCD_KEEP=1` the namespace stays.
    pub fn with_temp_ns<T>(&self, prefix: &str, story: impl FnOnce(&Namespace<'_>) -> Result<T>) -> Result<T> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name])?;
        let namespace = Namespace { cluster: self, name };
        // A pod without its service account is refused, and a controller makes the account a moment after the namespace.
        let told = namespace.wait_for_service_account().and_then(|()| story(&namespace));
        if told.is_err() {
            say(format!(
                "the story in the namespace {} failed; this is what is in it:\n{}",
                namespace.name,
                namespace.dump()
            ));
        }
        let keep = std::env::var("FERRETCD_KEEP").is_ok_and(|keep| keep == "1");
        if told.is_err() && keep {
            say(format!("keeping the namespace {} (FERRETCD_KEEP=1)", namespace.name));
        } else {
            let deleted = self.kubectl(&["delete", "namespace", &namespace.name, "--wait=false"]);
            if told.is_ok() {
                deleted?;
            }
        }
        told
    }
}

/// A namespace of a cluster.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Namespace<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// kubectl for this namespace, to be completed by the caller.
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.cluster.kubectl_command();
        command.args(["--namespace", &self.name]);
        command
    }

    /// Runs kubectl in this namespace.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        run::output(self.kubectl_command().args(args))
    }

    /// Runs `kubectl get` in this namespace and gives the objects as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        self.cluster.get(&[&["--namespace", self.name.as_str()], args].concat())
    }

    /// Applies a manifest in this namespace.
    pub fn apply(&self, manifest: &str) -> Result<Output> {
        let mut command = self.kubectl_command();
        command.args(["apply", "--server-side", "--force-conflicts", "--field-manager=ferretcd-e2e", "--filename=-"]);
        run::output_with_input(&mut command, Some(manifest))
    }

    /// Waits until the pod `name` is ready.
    pub fn wait_for_pod(&self, name: &str, timeout: Duration) -> Result<()> {
        wait_until(&format!("pod {}/{name}", self.name), timeout, || {
            let pod = self.get(&["pod", name])?;
            let ready = condition(&pod, "Ready");
            let phase = pod["status"]["phase"].as_str().unwrap_or("?");
            Ok(Probe::when(ready.0 == "True", format!("phase {phase}, Ready={} {}", ready.0, ready.1)))
        })
    }

    /// The UID of the pod `name`.
    pub fn pod_uid(&self, name: &str) -> Result<String> {
        let pod = self.get(&["pod", name])?;
        pod["metadata"]["uid"].as_str().map(str::to_owned).with_context(|| format!("the pod {name} has no UID"))
    }

    /// Waits until another pod than the one with this UID has the name `name` and is ready.
    pub fn wait_for_new_pod(&self, name: &str, old_uid: &str, timeout: Duration) -> Result<()> {
        wait_until(&format!("another pod {}/{name}", self.name), timeout, || {
            Ok(Probe::when(self.pod_uid(name)? != old_uid, "the old one is still there"))
        })?;
        self.wait_for_pod(name, timeout)
    }

    fn wait_for_service_account(&self) -> Result<()> {
        wait_until("the namespace's service account", Duration::from_secs(60), || {
            self.get(&["serviceaccount", "default"]).map(|_| Probe::Ready(()))
        })
    }

    /// Pods, volumes, events and the last lines of each pod's log.
    fn dump(&self) -> String {
        let show = |args: &[&str]| match self.kubectl(args) {
            Ok(output) => output.stdout,
            Err(error) => format!("{error:#}\n"),
        };
        let mut text = show(&["get", "pods,persistentvolumeclaims,services", "--output=wide"]);
        // Not there in a cluster without the product.
        if let Ok(output) = self.kubectl(&["get", "etcdclusters,etcdbackups,etcdbackupschedules", "--output=yaml"]) {
            text += &output.stdout;
        }
        text += &show(&["get", "events", "--sort-by=.lastTimestamp"]);
        for pod in show(&["get", "pods", "--output=name"]).lines() {
            text += &format!("--- log of {pod}\n{}", show(&["logs", pod, "--all-containers", "--tail=30"]));
        }
        text
    }
}

/// Replaces each `{{name}}` in a manifest of ours by its value.
pub fn fill(manifest: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(manifest.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value))
}

/// The local cluster that is meant when none is named: the one that `FERRETCD_CLUSTER` names, else the one whose
/// kubeconfig `KUBECONFIG` is (in a shell that took `cluster env`), else `local`.
pub fn default_name(cache: &Cache) -> String {
    let named = std::env::var("FERRETCD_CLUSTER").ok().filter(|name| !name.is_empty());
    named.or_else(|| local_name(cache, &kubeconfig_variable()?)).unwrap_or_else(|| DEFAULT_NAME.into())
}

/// The kubeconfig of a cluster elsewhere, if `KUBECONFIG` names one. That of a local cluster of ours is not elsewhere.
pub fn elsewhere(cache: &Cache) -> Option<PathBuf> {
    kubeconfig_variable().filter(|path| local_name(cache, path).is_none())
}

fn kubeconfig_variable() -> Option<PathBuf> {
    std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The name of the local cluster that has this kubeconfig.
fn local_name(cache: &Cache, kubeconfig: &Path) -> Option<String> {
    let name = kubeconfig.parent()?.file_name()?.to_str()?;
    (cache.run(name).join("kubeconfig") == kubeconfig).then(|| name.to_owned())
}

fn registry() -> Result<String> {
    match std::env::var("IMAGE_REGISTRY") {
        Ok(registry) if !registry.is_empty() => Ok(registry),
        _ => bail!(
            "KUBECONFIG names a cluster that this host cannot hand images to: set IMAGE_REGISTRY to a registry that it \
             pulls from, for example IMAGE_REGISTRY=registry.example/team"
        ),
    }
}

/// Status and message of a condition of an object; `Unknown` if it does not have it.
pub fn condition(object: &Value, kind: &str) -> (String, String) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|one| one["type"] == kind));
    let text = |field: &str, otherwise: &str| found.and_then(|one| one[field].as_str()).unwrap_or(otherwise).to_owned();
    (text("status", "Unknown"), text("message", ""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manifest_is_filled() {
        assert_eq!(fill("a: \"{{x}}\" {{y}} {{x}}", &[("x", "1"), ("y", "2")]), "a: \"1\" 2 1");
    }

    #[test]
    fn a_kubeconfig_of_ours_names_its_cluster_and_another_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_path_buf()).unwrap();
        assert_eq!(local_name(&cache, &cache.run("two").join("kubeconfig")).as_deref(), Some("two"));
        assert_eq!(local_name(&cache, Path::new("/home/user/.kube/config")), None);
    }

    #[test]
    fn a_condition_is_found_or_unknown() {
        let pod = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "message": "no"}]}});
        assert_eq!(condition(&pod, "Ready"), ("False".into(), "no".into()));
        assert_eq!(condition(&json!({}), "Ready"), ("Unknown".into(), String::new()));
    }
}
