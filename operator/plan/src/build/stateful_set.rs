//! A member's StatefulSet, of one replica: Kubernetes keeps the pod alive while the operator is down, and the operator alone
//! decides when it gets a new template.

use std::collections::BTreeMap;

use ferretcd_operator_api::{Options, names};
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, HTTPGetAction, PersistentVolumeClaimVolumeSource, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::{container_security, pod_security};
use super::{cluster_metadata, selector};
use crate::action::Object;
use crate::validate::Cluster;

/// Where the volume is mounted. The data directory is below it, because the root of a volume may hold `lost+found`.
const MOUNT: &str = "/var/lib/ferretcd";

/// How long a member may take to stop, in seconds. It hands leadership over (bounded by one election timeout: 1 s by default,
/// 50 s at the most that etcd allows; 5 s are usual), drains its streams and flushes; 30 leave room for a slow disk.
/// A longer election timeout adds its own length.
const GRACE_SECONDS: i64 = 30;

/// How long a member may take until it answers `/livez` for the first time, in probes of 5 s: 15 minutes, since it opens its
/// database and replays its log first, and a kill in the middle would only start that anew.
const STARTUP_PROBES: i32 = 180;

/// Why a member is started, said to the server by `--member-intent`; without that flag etcd's own rules would hold, and an
/// empty volume could found a second cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Found the cluster, alone. Only while the cluster ID is not known.
    Bootstrap {
        /// `--initial-cluster-token`.
        token: String,
    },
    /// Join the cluster that has added this member already.
    Join {
        /// `--initial-cluster-token` of the seed.
        token: String,
        /// `--initial-cluster`: name and peer URL of every member, this one included.
        members: Vec<(String, String)>,
    },
    /// Go on with the data directory, which must exist.
    Run {
        /// `--initial-cluster-token` of the seed.
        token: String,
    },
}

/// The StatefulSet of the member with this serial.
pub fn stateful_set(cluster: &Cluster, image: &str, serial: i64, serving: bool, intent: &Intent) -> Object {
    let name = cluster.identity.name.as_str();
    let mut pod_labels = names::member_labels(name, serial);
    if serving {
        // In the template too, so that a pod that is made again while the operator is down serves.
        pod_labels.insert(names::LABEL_SERVING.to_owned(), "true".to_owned());
    }
    Object::StatefulSet(Box::new(StatefulSet {
        metadata: cluster_metadata(&cluster.identity, names::member(name, serial), names::member_labels(name, serial)),
        spec: StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(names::headless_service(name)),
            // The serial is in the selector: no StatefulSet ever takes another member's pod for its own.
            selector: selector(names::member_selector(name, serial)),
            // A new template restarts nothing by itself.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            revision_history_limit: Some(2),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(pod_labels), ..ObjectMeta::default() }),
                spec: Some(pod(cluster, image, serial, intent)),
            },
            ..StatefulSetSpec::default()
        },
        status: None,
    }))
}

fn pod(cluster: &Cluster, image: &str, serial: i64, intent: &Intent) -> PodSpec {
    let name = cluster.identity.name.as_str();
    let election_seconds = cluster.options.election_timeout_ms.unwrap_or_default() / 1000;
    PodSpec {
        automount_service_account_token: Some(false),
        // Otherwise a Service named `etcd` would set ETCD_… variables, which the server reads as its settings.
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS + election_seconds),
        security_context: Some(pod_security()),
        topology_spread_constraints: Some(vec![
            spread("topology.kubernetes.io/zone", name),
            spread("kubernetes.io/hostname", name),
        ]),
        containers: vec![container(cluster, image, serial, intent)],
        volumes: Some(vec![Volume {
            name: "data".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: names::volume_claim(name, serial),
                read_only: None,
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn container(cluster: &Cluster, image: &str, serial: i64, intent: &Intent) -> Container {
    Container {
        name: "ferretcd".to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: cluster.pull_policy.map(|policy| policy.as_str().to_owned()),
        command: Some(vec!["ferretcd".to_owned()]),
        args: Some(arguments(cluster, serial, intent)),
        ports: Some(vec![
            port("client", names::CLIENT_PORT),
            port("peer", names::PEER_PORT),
            port("metrics", names::METRICS_PORT),
        ]),
        resources: Some(ResourceRequirements {
            requests: non_empty(&cluster.requests),
            limits: non_empty(&cluster.limits),
            claims: None,
        }),
        security_context: Some(container_security()),
        // The last words of a server that refuses to start, such as etcd's sentence on a cluster that has formed already,
        // show up in our status.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        startup_probe: Some(probe("/livez", 5, STARTUP_PROBES)),
        // Never depends on a quorum: a restart would not bring one back.
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 5, 2)),
        volume_mounts: Some(vec![VolumeMount {
            name: "data".to_owned(),
            mount_path: MOUNT.to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

/// The server's command line: etcd's flags, and `--member-intent`.
pub fn arguments(cluster: &Cluster, serial: i64, intent: &Intent) -> Vec<String> {
    let (name, namespace) = (cluster.identity.name.as_str(), cluster.identity.namespace.as_str());
    let member = names::member(name, serial);
    let peer_url = names::peer_url(name, namespace, serial);
    let alone = vec![(member.clone(), peer_url.clone())];
    let (word, state, token, members) = match intent {
        Intent::Bootstrap { token } => ("bootstrap", "new", token, &alone),
        Intent::Join { token, members } => ("join", "existing", token, members),
        // The membership is in the data directory by now; a list that changed with each scaling would only make templates differ.
        Intent::Run { token } => ("run", "existing", token, &alone),
    };
    let initial: Vec<String> = members.iter().map(|(name, url)| format!("{name}={url}")).collect();
    let mut arguments = vec![
        format!("--name={member}"),
        format!("--data-dir={MOUNT}/data"),
        // Listeners take addresses, not names.
        format!("--listen-client-urls=http://0.0.0.0:{}", names::CLIENT_PORT),
        format!("--advertise-client-urls={}", names::client_url(name, namespace, serial)),
        format!("--listen-peer-urls=http://0.0.0.0:{}", names::PEER_PORT),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--listen-metrics-urls=http://0.0.0.0:{}", names::METRICS_PORT),
        format!("--initial-cluster={}", initial.join(",")),
        format!("--initial-cluster-state={state}"),
        format!("--initial-cluster-token={token}"),
        format!("--member-intent={word}"),
    ];
    let Options {
        quota_backend_bytes,
        auto_compaction_mode,
        auto_compaction_retention,
        snapshot_count,
        heartbeat_interval_ms,
        election_timeout_ms,
    } = &cluster.options;
    let mut option = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.push(format!("--{flag}={value}"));
        }
    };
    option("quota-backend-bytes", quota_backend_bytes.map(|bytes| bytes.to_string()));
    option("auto-compaction-mode", auto_compaction_mode.map(|mode| mode.as_str().to_owned()));
    option("auto-compaction-retention", auto_compaction_retention.clone());
    option("snapshot-count", snapshot_count.map(|count| count.to_string()));
    option("heartbeat-interval", heartbeat_interval_ms.map(|interval| interval.to_string()));
    option("election-timeout", election_timeout_ms.map(|timeout| timeout.to_string()));
    arguments
}

fn non_empty(amounts: &BTreeMap<String, Quantity>) -> Option<BTreeMap<String, Quantity>> {
    (!amounts.is_empty()).then(|| amounts.clone())
}

/// Members keep away from each other where they can, and still run where they cannot.
fn spread(topology: &str, cluster: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        topology_key: topology.to_owned(),
        max_skew: 1,
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector(names::members_selector(cluster))),
        ..TopologySpreadConstraint::default()
    }
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: number, ..ContainerPort::default() }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(names::METRICS_PORT),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}
