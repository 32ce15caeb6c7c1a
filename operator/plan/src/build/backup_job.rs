//! The Jobs of the agent: `ferretcd-operator backup`, `restore` and `prune`. This file is the contract between the operator
//! that makes them and the agent that runs in them.
//!
//! ```text
//! ferretcd-operator backup   --endpoint=URL… --bucket=B --key=K [--s3-endpoint=URL] [--region=R] [--force-path-style]
//!                            --cluster=NAME --cluster-uid=UID --cluster-id=HEX --backup-uid=UID
//! ferretcd-operator restore  --endpoint=URL  --bucket=B --key=K [--s3-endpoint=URL] [--region=R] [--force-path-style]
//!                            --cluster-id=HEX
//! ferretcd-operator prune                    --bucket=B --key=K [--s3-endpoint=URL] [--region=R] [--force-path-style]
//!                            --backup-uid=UID
//! ```
//!
//! - `--endpoint`: client URL of a member; given again for each further one, best first. The agent takes the first that answers.
//! - `--key`: key of the data object; its manifest is `names::manifest_key(key)`.
//! - `--cluster-id`: etcd's cluster ID in hex. A member that answers with another one is refused.
//! - `--backup-uid`: goes into the manifest. `backup` that finds a manifest with its own UID reports it and is done; one with
//!   another UID is never overwritten; data without a manifest is the rest of an earlier attempt and is overwritten. `prune`
//!   deletes nothing under a manifest with another UID, deletes the manifest before the data, and takes absence for success.
//! - Environment: the keys of the credentials Secret (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`).
//! - Output: one `AgentReport` as the termination message; progress on stderr. Exit code 0 for success, `EXIT_PERMANENT` for an
//!   error that another attempt would repeat, anything else for one that may pass.
//! - The container has no service account token, a root filesystem that cannot be written, and no volume.

use std::collections::BTreeMap;

use ferretcd_operator_api::agent::EXIT_PERMANENT;
use ferretcd_operator_api::{S3Destination, names};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{Container, EnvFromSource, PodSpec, PodTemplateSpec, SecretEnvSource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::owner;
use super::pod::{container_security, pod_security};
use crate::action::Object;
use crate::validate::Settings;

/// How often a Job is tried again after an error that may pass. Kubernetes waits 10 s, 20 s, 40 s in between: a store or
/// a member that restarts is back by then, and an error that stays is reported within two minutes.
const RETRIES: i32 = 3;
/// How long a Job may take, in seconds: 8 GiB, the largest database etcd recommends, at a poor 1 MiB/s take 2.3 hours.
const DEADLINE_SECONDS: i64 = 4 * 3600;
/// The container's name.
const CONTAINER: &str = "agent";

/// One backup, as far as its Jobs need to know it.
#[derive(Clone, Debug)]
pub struct BackupRef<'a> {
    /// Name of the EtcdBackup.
    pub name: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Name of the EtcdCluster.
    pub cluster: &'a str,
    /// Where it is stored.
    pub destination: &'a S3Destination,
    /// Key of its data object.
    pub key: &'a str,
}

impl BackupRef<'_> {
    fn owner(&self) -> OwnerReference {
        owner("EtcdBackup", self.name, self.uid)
    }
}

/// The Job that takes a backup from one of these endpoints.
pub fn backup_job(
    backup: &BackupRef<'_>,
    cluster_uid: &str,
    cluster_id: &str,
    endpoints: &[String],
    settings: &Settings,
) -> Object {
    let mut arguments = vec!["backup".to_owned()];
    arguments.extend(endpoints.iter().map(|endpoint| format!("--endpoint={endpoint}")));
    arguments.extend(store_arguments(backup.destination, backup.key));
    arguments.extend([
        format!("--cluster={}", backup.cluster),
        format!("--cluster-uid={cluster_uid}"),
        format!("--cluster-id={cluster_id}"),
        format!("--backup-uid={}", backup.uid),
    ]);
    agent_job(Agent {
        name: names::backup_job(backup.name),
        namespace: backup.namespace,
        cluster: backup.cluster,
        half: "backup",
        owner: backup.owner(),
        arguments,
        destination: backup.destination,
        settings,
    })
}

/// The Job that removes a backup from the store.
pub fn prune_job(backup: &BackupRef<'_>, settings: &Settings) -> Object {
    let mut arguments = vec!["prune".to_owned()];
    arguments.extend(store_arguments(backup.destination, backup.key));
    arguments.push(format!("--backup-uid={}", backup.uid));
    agent_job(Agent {
        name: names::prune_job(backup.name),
        namespace: backup.namespace,
        cluster: backup.cluster,
        half: "prune",
        owner: backup.owner(),
        arguments,
        destination: backup.destination,
        settings,
    })
}

pub(crate) fn store_arguments(destination: &S3Destination, key: &str) -> Vec<String> {
    // The prefix is part of the key already; the credentials come by the environment.
    let S3Destination { bucket, prefix: _, endpoint, region, force_path_style, credentials_secret_ref: _ } =
        destination;
    let mut arguments = vec![format!("--bucket={bucket}"), format!("--key={key}")];
    arguments.extend(endpoint.iter().map(|endpoint| format!("--s3-endpoint={endpoint}")));
    arguments.extend(region.iter().map(|region| format!("--region={region}")));
    if *force_path_style {
        arguments.push("--force-path-style".to_owned());
    }
    arguments
}

/// A Job that runs the operator's image as agent.
pub(crate) struct Agent<'a> {
    pub(crate) name: String,
    pub(crate) namespace: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) half: &'a str,
    pub(crate) owner: OwnerReference,
    pub(crate) arguments: Vec<String>,
    pub(crate) destination: &'a S3Destination,
    pub(crate) settings: &'a Settings,
}

pub(crate) fn agent_job(agent: Agent<'_>) -> Object {
    let Agent { name, namespace, cluster, half, owner, arguments, destination, settings } = agent;
    // Not the labels of members: the client Service and the disruption budget must not select the agent's pods.
    let labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "ferretcd".to_owned()),
        ("app.kubernetes.io/component".to_owned(), "agent".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), names::FIELD_MANAGER.to_owned()),
        (names::LABEL_CLUSTER.to_owned(), cluster.to_owned()),
        (names::LABEL_AGENT.to_owned(), half.to_owned()),
    ]);
    let credentials = destination.credentials_secret_ref.as_ref().map(|secret| {
        vec![EnvFromSource {
            secret_ref: Some(SecretEnvSource { name: secret.name.clone(), optional: None }),
            ..EnvFromSource::default()
        }]
    });
    let container = Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.operator_image.clone()),
        image_pull_policy: settings.operator_pull_policy.map(|policy| policy.as_str().to_owned()),
        command: Some(vec!["ferretcd-operator".to_owned()]),
        args: Some(arguments),
        env_from: credentials,
        security_context: Some(container_security()),
        ..Container::default()
    };
    let give_up = PodFailurePolicyRule {
        action: "FailJob".to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(CONTAINER.to_owned()),
            operator: "In".to_owned(),
            values: vec![EXIT_PERMANENT],
        }),
        ..PodFailurePolicyRule::default()
    };
    Object::Job(Box::new(Job {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.clone()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(RETRIES),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            pod_failure_policy: Some(PodFailurePolicy { rules: vec![give_up] }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    // Each attempt is a pod of its own that keeps its report.
                    restart_policy: Some("Never".to_owned()),
                    automount_service_account_token: Some(false),
                    enable_service_links: Some(false),
                    security_context: Some(pod_security()),
                    containers: vec![container],
                    ..PodSpec::default()
                }),
            },
            ..JobSpec::default()
        }),
        status: None,
    }))
}
