//! What runs on the node, as values: the command line and the configuration file of each component. Nothing here acts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::datastore::{Begin, Datastore};
use crate::images;
use crate::network::Network;

/// Everything that the command lines and files depend on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's name; the node has it too.
    pub name: String,
    /// The run directory, an absolute path.
    pub run: PathBuf,
    /// The cluster's addresses.
    pub network: Network,
    /// The members behind kube-apiserver, on the node's loopback only: nobody else needs them.
    pub datastore: Datastore,
    /// Where the CNI plugins are.
    pub cni_plugins: PathBuf,
    /// The programs.
    pub programs: Programs,
}

/// The path of each program that the node runs.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each field is the program of that name")]
pub struct Programs {
    /// etcd or ferretcd; both take the same flags.
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kube_scheduler: PathBuf,
    pub kubelet: PathBuf,
    pub kube_proxy: PathBuf,
    pub containerd: PathBuf,
}

/// One process of the node. Its output goes to `<run>/logs/<name>.log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// The name, unique on the node.
    pub name: String,
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Settings {
    /// The name of the node's cgroup, under which kubelet keeps those of the pods. Unique on the host, as the network is.
    pub fn cgroup(&self) -> String {
        self.network.interface()
    }

    /// The URL of kube-apiserver, for the host and for the node.
    pub fn server(&self) -> String {
        format!("https://{}:6443", self.network.node())
    }

    /// A path in the run directory, as text.
    fn at(&self, path: &str) -> String {
        self.run.join(path).display().to_string()
    }

    fn containerd_socket(&self) -> String {
        containerd_socket(&self.run).display().to_string()
    }
}

/// containerd's socket in a run directory.
pub fn containerd_socket(run: &Path) -> PathBuf {
    run.join("containerd.sock")
}

/// The components, in the order in which they start.
pub fn components(settings: &Settings) -> Vec<Component> {
    let programs = &settings.programs;
    let component = |name: &str, program: &Path, args: Vec<String>| Component {
        name: name.to_owned(),
        program: program.to_path_buf(),
        args,
    };
    let members = settings.datastore.members();
    let members = members.iter().map(|one| settings.datastore.component(&programs.etcd, one, Begin::New));
    let others = vec![
        component(
            "containerd",
            &programs.containerd,
            vec![format!("--config={}", settings.at("config/containerd.toml"))],
        ),
        component("kube-apiserver", &programs.kube_apiserver, kube_apiserver(settings)),
        component("kube-controller-manager", &programs.kube_controller_manager, kube_controller_manager(settings)),
        component("kube-scheduler", &programs.kube_scheduler, kube_scheduler(settings)),
        component("kubelet", &programs.kubelet, kubelet(settings)),
        component(
            "kube-proxy",
            &programs.kube_proxy,
            vec![format!("--config={}", settings.at("config/kube-proxy.json"))],
        ),
    ];
    members.chain(others).collect()
}

/// kube-apiserver's flags for whom it trusts and what it signs with: files of `<run>/pki`.
pub fn apiserver_credentials(run: &Path) -> Vec<String> {
    let pki = |file: &str| run.join("pki").join(file).display().to_string();
    vec![
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("kube-apiserver.crt")),
        format!("--tls-private-key-file={}", pki("kube-apiserver.key")),
        format!("--service-account-key-file={}", pki("service-account.pub")),
        format!("--service-account-signing-key-file={}", pki("service-account.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
    ]
}

fn kube_apiserver(settings: &Settings) -> Vec<String> {
    let pki = |file: &str| settings.at(&format!("pki/{file}"));
    let own = vec![
        format!("--advertise-address={}", settings.network.node()),
        "--secure-port=6443".into(),
        format!("--service-cluster-ip-range={}", settings.network.services()),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        format!("--kubelet-client-certificate={}", pki("kube-apiserver-kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("kube-apiserver-kubelet-client.key")),
        // The node's name does not resolve; logs and exec would fail by name.
        "--kubelet-preferred-address-types=InternalIP".into(),
    ];
    [settings.datastore.apiserver_flags(), apiserver_credentials(&settings.run), own].concat()
}

fn kube_controller_manager(settings: &Settings) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", settings.at("config/kube-controller-manager.kubeconfig")),
        // One of each: an election would only make it give up when kube-apiserver is slow for a moment.
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        "--use-service-account-credentials=true".into(),
        format!("--root-ca-file={}", settings.at("pki/ca.crt")),
        format!("--service-account-private-key-file={}", settings.at("pki/service-account.key")),
        format!("--cluster-signing-cert-file={}", settings.at("pki/ca.crt")),
        format!("--cluster-signing-key-file={}", settings.at("pki/ca.key")),
        "--allocate-node-cidrs=true".into(),
        format!("--cluster-cidr={}", settings.network.pods()),
        format!("--service-cluster-ip-range={}", settings.network.services()),
        "--enable-hostpath-provisioner=true".into(),
        // Made if it is missing, and the default is below /usr.
        format!("--flex-volume-plugin-dir={}", settings.at("kubelet-volume-plugins")),
    ]
}

fn kube_scheduler(settings: &Settings) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", settings.at("config/kube-scheduler.kubeconfig")),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
    ]
}

fn kubelet(settings: &Settings) -> Vec<String> {
    vec![
        format!("--config={}", settings.at("config/kubelet.json")),
        format!("--kubeconfig={}", settings.at("config/kubelet.kubeconfig")),
        format!("--root-dir={}", settings.at("kubelet")),
        format!("--hostname-override={}", settings.name),
        format!("--node-ip={}", settings.network.node()),
    ]
}

/// The configuration files, by their path in the run directory.
pub fn config_files(settings: &Settings) -> Vec<(&'static str, String)> {
    vec![
        ("config/containerd.toml", containerd_config(settings)),
        ("config/kubelet.json", format!("{:#}", kubelet_config(settings))),
        ("config/kube-proxy.json", format!("{:#}", kube_proxy_config(settings))),
        ("config/resolv.conf", "# Pods that ask for the node's DNS get none.\n".into()),
        ("cni/10-ferretcd.conflist", format!("{:#}", cni_config(settings))),
    ]
}

/// TOML by hand: the few values are paths of ours, and a path with a quote or a backslash is refused before (`cluster::up`).
fn containerd_config(settings: &Settings) -> String {
    let (root, state) = (settings.at("containerd"), "/run/containerd");
    let (socket, cni) = (settings.containerd_socket(), settings.at("cni"));
    let plugins = settings.cni_plugins.display();
    let pause = images::PAUSE;
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # A host without CAP_SYS_RESOURCE may not lower an OOM score, and every sandbox would fail.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
    )
}

fn kubelet_config(settings: &Settings) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": settings.network.node(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": settings.at("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": settings.at("pki/kubelet.crt"),
        "tlsPrivateKeyFile": settings.at("pki/kubelet.key"),
        "clusterDNS": [settings.network.dns_service()],
        "clusterDomain": "cluster.local",
        "resolvConf": settings.at("config/resolv.conf"),
        "containerRuntimeEndpoint": format!("unix://{}", settings.containerd_socket()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", settings.cgroup()),
        // From 1.35 on kubelet refuses cgroup v1 unless told.
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "podLogsDir": settings.at("pod-logs"),
        "volumePluginDir": settings.at("kubelet-volume-plugins"),
        // The disk is shared with everything else on the host, and no image can be pulled again.
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
            "imagefs.available": "1%", "imagefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
    })
}

fn kube_proxy_config(settings: &Settings) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": settings.at("config/kube-proxy.kubeconfig")},
        "mode": "iptables",
        "clusterCIDR": settings.network.pods(),
        "hostnameOverride": settings.name,
        "oomScoreAdj": 0,
        // Zero leaves the kernel's values: they belong to the whole host.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

fn cni_config(settings: &Settings) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "ferretcd",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-addresses",
                    "ranges": [[{"subnet": settings.network.pods()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let program = |name: &str| Path::new("/tools").join(name);
        Settings {
            name: "local".into(),
            run: "/c/run/local".into(),
            network: Network::new(213),
            datastore: Datastore::new(Path::new("/c/run/local"), std::net::Ipv4Addr::LOCALHOST, 3),
            cni_plugins: "/usr/lib/cni".into(),
            programs: Programs {
                etcd: program("etcd"),
                kube_apiserver: program("kube-apiserver"),
                kube_controller_manager: program("kube-controller-manager"),
                kube_scheduler: program("kube-scheduler"),
                kubelet: program("kubelet"),
                kube_proxy: program("kube-proxy"),
                containerd: program("containerd"),
            },
        }
    }

    #[test]
    fn every_file_that_a_component_names_is_in_the_run_directory() {
        for component in components(&settings()) {
            for arg in component.args.iter().filter(|arg| arg.contains("config") || arg.contains("pki")) {
                let path = arg.split_once('=').map_or(arg.as_str(), |(_, path)| path);
                assert!(path.starts_with("/c/run/local/"), "{}: {arg}", component.name);
            }
        }
    }

    #[test]
    fn every_configuration_file_that_is_named_is_written() {
        let settings = settings();
        let written: Vec<_> = config_files(&settings).into_iter().map(|(path, _)| settings.at(path)).collect();
        for arg in components(&settings).iter().flat_map(|component| &component.args) {
            let path = arg.split_once('=').map_or(arg.as_str(), |(_, path)| path);
            if path.ends_with(".json") || path.ends_with(".toml") {
                assert!(written.iter().any(|one| one == path), "{path}");
            }
        }
    }
}
