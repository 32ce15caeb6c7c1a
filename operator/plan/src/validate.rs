//! From what a user wrote to a `Cluster` that cannot be wrong. The rules are those of the CRD's CEL, checked again here,
//! because an older API server or an edited CRD may have let something through.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ferretcd_operator_api::cluster::{MAX_NAME, SIZES};
use ferretcd_operator_api::status::reason;
use ferretcd_operator_api::{DeletionPolicy, EtcdCluster, Options, PullPolicy, Resources, RestoreFrom, S3Destination};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::plan::{Note, Plan};

/// How long a rejected resource is left alone; a change of it wakes us at once.
const REJECTED_REQUEUE: Duration = Duration::from_secs(300);

/// What the operator was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Repository of the server image, for example `ghcr.io/ferretcd/ferretcd`.
    pub server_repository: String,
    /// Tag of the server image where a cluster names none.
    pub server_version: String,
    /// The operator's own image, which the agent's Jobs run.
    pub operator_image: String,
    /// Pull policy of the agent's Jobs. `None`: Kubernetes' own rule.
    pub operator_pull_policy: Option<PullPolicy>,
}

/// Which resource a pass is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID; never that of a former resource with the same name.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// It has a deletion timestamp.
    pub deleting: bool,
}

impl Identity {
    /// The identity of a resource that was read from the API server.
    ///
    /// # Errors
    /// The resource has no name, namespace or UID, so it was never stored.
    pub fn of(object: &EtcdCluster) -> Result<Identity, Rejections> {
        let metadata = &object.metadata;
        match (&metadata.name, &metadata.namespace, &metadata.uid) {
            (Some(name), Some(namespace), Some(uid)) => Ok(Identity {
                name: name.clone(),
                namespace: namespace.clone(),
                uid: uid.clone(),
                generation: metadata.generation.unwrap_or_default(),
                deleting: metadata.deletion_timestamp.is_some(),
            }),
            _ => Err(Rejections(vec![Rejection {
                field: "metadata".to_owned(),
                problem: "the resource has no name, namespace or UID; it was not read from an API server".to_owned(),
            }])),
        }
    }
}

/// A valid, defaulted EtcdCluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Which resource.
    pub identity: Identity,
    /// Members asked for: 1, 3, 5 or 7.
    pub replicas: usize,
    /// Size of each volume.
    pub storage_size: Quantity,
    /// StorageClass of each volume; `None` for the default class.
    pub storage_class: Option<String>,
    /// The image that the spec and the operator's settings name now; members use `status.image`, resolved at bootstrap.
    pub image: String,
    /// Pull policy of the members.
    pub pull_policy: Option<PullPolicy>,
    /// Requests of the members' containers.
    pub requests: BTreeMap<String, Quantity>,
    /// Limits of the members' containers.
    pub limits: BTreeMap<String, Quantity>,
    /// What becomes of volumes.
    pub deletion_policy: DeletionPolicy,
    /// Settings of the server.
    pub options: Options,
    /// The backup to start from.
    pub restore: Option<RestoreFrom>,
    /// What the operator was started with.
    pub settings: Settings,
}

/// One thing that is wrong with a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Path of the field, for example `spec.replicas`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// All that is wrong with a resource; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Rejections(pub Vec<Rejection>);

impl fmt::Display for Rejections {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rejection) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(out, "{separator}{}: {}", rejection.field, rejection.problem)?;
        }
        Ok(())
    }
}

impl Rejections {
    /// The pass over a rejected resource: nothing is done, the status says why.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::idle(REJECTED_REQUEUE);
        plan.notes.push(Note {
            reason: reason::REJECTED,
            message: format!("the spec is refused and nothing was changed: {self}"),
        });
        plan
    }
}

/// Checks a resource and fills in defaults.
///
/// # Errors
/// All rules that the resource breaks, not only the first.
pub fn validate(object: &EtcdCluster, settings: &Settings) -> Result<Cluster, Rejections> {
    let identity = Identity::of(object)?;
    let spec = &object.spec;
    let mut wrong = Wrong::default();

    if identity.name.len() > MAX_NAME {
        wrong.add("metadata.name", format!("has {} characters, at most {MAX_NAME} are possible", identity.name.len()));
    }
    if !is_label(&identity.name) {
        wrong
            .add("metadata.name", "must be a DNS label that starts with a letter, because Services are named after it");
    }
    if !SIZES.contains(&spec.replicas) {
        wrong.add("spec.replicas", format!("is {}, must be 1, 3, 5 or 7", spec.replicas));
    }
    if !is_positive_quantity(&spec.storage.size) {
        wrong.add("spec.storage.size", format!("`{}` is not a positive quantity such as 8Gi", spec.storage.size));
    }
    if spec.image.is_some() && spec.version.is_some() {
        wrong.add("spec.version", "set image or version, not both");
    }
    let resources = spec.resources.clone().unwrap_or_default();
    let Resources { requests, limits } = &resources;
    let requests = wrong.quantities("spec.resources.requests", requests.as_ref());
    let limits = wrong.quantities("spec.resources.limits", limits.as_ref());
    let options = spec.options.clone().unwrap_or_default();
    check_options(&options, &mut wrong);
    let restore = spec.bootstrap.as_ref().map(|bootstrap| bootstrap.restore.clone());
    if let Some(restore) = &restore {
        match (&restore.backup_ref, &restore.source) {
            (Some(_), None) => {}
            (None, Some(source)) => {
                check_destination("spec.bootstrap.restore.source.store", &source.store, &mut wrong);
                if source.key.is_empty() {
                    wrong
                        .add("spec.bootstrap.restore.source.key", "is empty; it is the `status.key` of the EtcdBackup");
                }
            }
            _ => wrong.add("spec.bootstrap.restore", "set exactly one of backupRef and source"),
        }
    }
    if !wrong.0.is_empty() {
        return Err(Rejections(wrong.0));
    }

    let image = match (&spec.image, &spec.version) {
        (Some(image), _) => image.clone(),
        (None, Some(version)) => format!("{}:{version}", settings.server_repository),
        (None, None) => format!("{}:{}", settings.server_repository, settings.server_version),
    };
    Ok(Cluster {
        identity,
        replicas: usize::try_from(spec.replicas).unwrap_or_default(),
        storage_size: Quantity(spec.storage.size.clone()),
        storage_class: spec.storage.storage_class_name.clone(),
        image,
        pull_policy: spec.image_pull_policy,
        requests,
        limits,
        deletion_policy: spec.deletion_policy,
        options,
        restore,
        settings: settings.clone(),
    })
}

/// Checks what the CRD's schema and CEL also check about an object store.
pub(crate) fn check_destination(field: &str, destination: &S3Destination, wrong: &mut Wrong) {
    let bucket = &destination.bucket;
    let bucket_ok = (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-')
        && !bucket.starts_with(['.', '-'])
        && !bucket.ends_with(['.', '-']);
    if !bucket_ok {
        wrong.add(&format!("{field}.bucket"), format!("`{bucket}` is not the name of a bucket"));
    }
    if let Some(prefix) = &destination.prefix
        && (prefix.is_empty() || prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains("//"))
    {
        wrong.add(&format!("{field}.prefix"), format!("`{prefix}` must not be empty or begin or end with a slash"));
    }
    if let Some(endpoint) = &destination.endpoint
        && !(endpoint.starts_with("http://") || endpoint.starts_with("https://"))
    {
        wrong.add(
            &format!("{field}.endpoint"),
            format!("`{endpoint}` must be a URL that starts with http:// or https://"),
        );
    }
}

fn check_options(options: &Options, wrong: &mut Wrong) {
    let Options {
        quota_backend_bytes,
        auto_compaction_mode,
        auto_compaction_retention,
        snapshot_count,
        heartbeat_interval_ms,
        election_timeout_ms,
    } = options;
    let positive = [
        ("quotaBackendBytes", quota_backend_bytes),
        ("snapshotCount", snapshot_count),
        ("heartbeatIntervalMs", heartbeat_interval_ms),
        ("electionTimeoutMs", election_timeout_ms),
    ];
    for (name, value) in positive {
        if let Some(value) = value
            && *value < 1
        {
            wrong.add(&format!("spec.options.{name}"), format!("is {value}, must be at least 1"));
        }
    }
    if auto_compaction_mode.is_some() && auto_compaction_retention.is_none() {
        wrong.add("spec.options.autoCompactionMode", "needs autoCompactionRetention, or nothing would be compacted");
    }
    // etcd's defaults, which also hold for our server: a heartbeat of 100 ms, an election after 1000 ms.
    let heartbeat = heartbeat_interval_ms.unwrap_or(100);
    let election = election_timeout_ms.unwrap_or(1000);
    if heartbeat > 0 && election > 0 && election < heartbeat.saturating_mul(5) {
        wrong.add(
            "spec.options.electionTimeoutMs",
            format!("is {election}, must be at least 5 times heartbeatIntervalMs ({heartbeat})"),
        );
    }
    if election > 50_000 {
        wrong.add("spec.options.electionTimeoutMs", format!("is {election}, must be at most 50000"));
    }
}

/// Collects what is wrong.
#[derive(Default)]
pub(crate) struct Wrong(pub(crate) Vec<Rejection>);

impl Wrong {
    pub(crate) fn add(&mut self, field: &str, problem: impl Into<String>) {
        self.0.push(Rejection { field: field.to_owned(), problem: problem.into() });
    }

    fn quantities(
        &mut self,
        field: &str,
        amounts: Option<&BTreeMap<String, IntOrString>>,
    ) -> BTreeMap<String, Quantity> {
        let mut quantities = BTreeMap::new();
        for (name, amount) in amounts.into_iter().flatten() {
            let text = match amount {
                IntOrString::Int(number) => number.to_string(),
                IntOrString::String(text) => text.clone(),
            };
            if !is_positive_quantity(&text) {
                self.add(
                    &format!("{field}.{name}"),
                    format!("`{text}` is not a positive quantity such as 500m or 512Mi"),
                );
            }
            quantities.insert(name.clone(), Quantity(text));
        }
        quantities
    }
}

/// Whether a name is a DNS label (RFC 1035) that starts with a letter; its length is checked elsewhere.
fn is_label(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Whether a text is a Kubernetes quantity above zero (digits, at most one point, a known suffix).
fn is_positive_quantity(text: &str) -> bool {
    let split = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let known = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].contains(&suffix);
    known && !number.is_empty() && number.parse::<f64>().is_ok_and(|value| value > 0.0 && value.is_finite())
}
