//! Every name that is derived from a resource: total, pure functions, so that a thing is found again by what it is for.

use std::collections::BTreeMap;

use crate::backup::S3Destination;

/// Port of the client API.
pub const CLIENT_PORT: i32 = 2379;
/// Port of the peers.
pub const PEER_PORT: i32 = 2380;
/// Port of `/metrics`, `/livez` and `/readyz`.
pub const METRICS_PORT: i32 = 2381;

/// The finalizer of an EtcdCluster: volumes are dealt with before the object goes.
pub const FINALIZER: &str = "ferretcd.io/cluster";
/// Who the field manager of our objects is.
pub const FIELD_MANAGER: &str = "ferretcd-operator";

/// Label: the cluster that an object belongs to.
pub const LABEL_CLUSTER: &str = "ferretcd.io/cluster";
/// Label: the serial of the member that an object belongs to.
pub const LABEL_SERIAL: &str = "ferretcd.io/serial";
/// Label of a pod: the client Service may send clients here.
pub const LABEL_SERVING: &str = "ferretcd.io/serving";
/// Label of a volume claim that outlived its member or cluster by `deletionPolicy: Retain`.
pub const LABEL_RETAINED: &str = "ferretcd.io/retained";
/// Label of an EtcdBackup: the schedule that made it.
pub const LABEL_SCHEDULE: &str = "ferretcd.io/schedule";
/// Label of a Job: which half of the agent it runs (`backup`, `restore`, `prune`).
pub const LABEL_AGENT: &str = "ferretcd.io/agent";

/// Annotation of a volume claim: UID of the EtcdCluster that owns it.
pub const ANNOTATION_CLUSTER_UID: &str = "ferretcd.io/cluster-uid";
/// Annotation of a volume claim: serial of its member.
pub const ANNOTATION_SERIAL: &str = "ferretcd.io/serial";
/// Annotation of a volume claim: etcd's member ID in hex.
pub const ANNOTATION_MEMBER_ID: &str = "ferretcd.io/member-id";
/// Annotation of a volume claim: etcd's cluster ID in hex.
pub const ANNOTATION_CLUSTER_ID: &str = "ferretcd.io/cluster-id";
/// Annotation of every object that we apply: the hash of what was applied, so that a pass without changes writes nothing.
pub const ANNOTATION_HASH: &str = "ferretcd.io/applied-hash";
/// Annotation of an EtcdBackup made by a schedule: UID of the EtcdBackupSchedule. Not an owner reference, because backups
/// must outlive the schedule that made them.
pub const ANNOTATION_SCHEDULE_UID: &str = "ferretcd.io/schedule-uid";
/// Annotation of an EtcdBackup made by a schedule: unix time of its slot.
pub const ANNOTATION_SLOT: &str = "ferretcd.io/slot";

/// `<cluster>-headless`: the Service that gives members their DNS names.
pub fn headless_service(cluster: &str) -> String {
    format!("{cluster}-headless")
}

/// `<cluster>-client`: the Service that clients use.
pub fn client_service(cluster: &str) -> String {
    format!("{cluster}-client")
}

/// `<cluster>-<serial>`: etcd's name of a member, and the name of its StatefulSet.
pub fn member(cluster: &str, serial: i64) -> String {
    format!("{cluster}-{serial}")
}

/// The name of a member's only pod.
pub fn pod(cluster: &str, serial: i64) -> String {
    format!("{cluster}-{serial}-0")
}

/// `data-<cluster>-<serial>`: a member's volume claim.
pub fn volume_claim(cluster: &str, serial: i64) -> String {
    format!("data-{cluster}-{serial}")
}

/// `<cluster>`: the PodDisruptionBudget.
pub fn disruption_budget(cluster: &str) -> String {
    cluster.to_owned()
}

/// `<cluster>-restore`: the Job that restores into the seed.
pub fn restore_job(cluster: &str) -> String {
    format!("{cluster}-restore")
}

/// `<backup>-backup`: the Job that takes a backup.
pub fn backup_job(backup: &str) -> String {
    format!("{backup}-backup")
}

/// `<backup>-prune`: the Job that removes a backup from the store.
pub fn prune_job(backup: &str) -> String {
    format!("{backup}-prune")
}

/// `<schedule>-<unix time of the slot>`: the same slot gives the same name, whoever asks and however often.
pub fn scheduled_backup(schedule: &str, slot_unix: i64) -> String {
    format!("{schedule}-{slot_unix}")
}

/// The name in DNS of a member's pod. It lacks the cluster domain: the search path of every pod adds it.
pub fn host(cluster: &str, namespace: &str, serial: i64) -> String {
    format!("{}.{}.{namespace}.svc", pod(cluster, serial), headless_service(cluster))
}

/// The URL on which peers reach a member; etcd knows the member by it before it has a name.
pub fn peer_url(cluster: &str, namespace: &str, serial: i64) -> String {
    format!("http://{}:{PEER_PORT}", host(cluster, namespace, serial))
}

/// The URL on which clients (and the operator) reach one member.
pub fn client_url(cluster: &str, namespace: &str, serial: i64) -> String {
    format!("http://{}:{CLIENT_PORT}", host(cluster, namespace, serial))
}

/// The URL of a member's `/readyz`, `/livez` and `/metrics`, without a path.
pub fn metrics_url(cluster: &str, namespace: &str, serial: i64) -> String {
    format!("http://{}:{METRICS_PORT}", host(cluster, namespace, serial))
}

/// The URL of all serving members together.
pub fn client_service_url(cluster: &str, namespace: &str) -> String {
    format!("http://{}.{namespace}.svc:{CLIENT_PORT}", client_service(cluster))
}

/// `--initial-cluster-token`: holds the UID of the EtcdCluster and the serial of the seed.
pub fn cluster_token(uid: &str, serial: i64) -> String {
    format!("{uid}-{serial}")
}

/// Labels of every object of a cluster.
pub fn cluster_labels(cluster: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "ferretcd".to_owned()),
        ("app.kubernetes.io/instance".to_owned(), cluster.to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), FIELD_MANAGER.to_owned()),
        (LABEL_CLUSTER.to_owned(), cluster.to_owned()),
    ])
}

/// Labels of every object of one member.
pub fn member_labels(cluster: &str, serial: i64) -> BTreeMap<String, String> {
    let mut labels = cluster_labels(cluster);
    labels.insert(LABEL_SERIAL.to_owned(), serial.to_string());
    labels.insert("app.kubernetes.io/component".to_owned(), "member".to_owned());
    labels
}

/// Selects the pods of all members, and nothing else (Jobs carry no component `member`).
pub fn members_selector(cluster: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (LABEL_CLUSTER.to_owned(), cluster.to_owned()),
        ("app.kubernetes.io/component".to_owned(), "member".to_owned()),
    ])
}

/// Selects the pod of one member.
pub fn member_selector(cluster: &str, serial: i64) -> BTreeMap<String, String> {
    let mut selector = members_selector(cluster);
    selector.insert(LABEL_SERIAL.to_owned(), serial.to_string());
    selector
}

/// Selects the pods that clients are sent to.
pub fn serving_selector(cluster: &str) -> BTreeMap<String, String> {
    let mut selector = members_selector(cluster);
    selector.insert(LABEL_SERVING.to_owned(), "true".to_owned());
    selector
}

/// A selector as `kubectl -l` and the `scale` subresource write it.
pub fn selector_string(selector: &BTreeMap<String, String>) -> String {
    selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The key of a backup's data object: `<prefix>/<cluster>/<cluster UID>/<cluster ID>/<backup>-<start of its UID>.db`. It is
/// the same for every attempt, so an attempt finds what an earlier one has left, and no other cluster or history ever
/// writes there.
pub fn backup_key(
    destination: &S3Destination,
    cluster: &str,
    cluster_uid: &str,
    cluster_id: &str,
    backup: &str,
    backup_uid: &str,
) -> String {
    let prefix = destination.prefix.as_deref().map(|prefix| format!("{prefix}/")).unwrap_or_default();
    let short: String = backup_uid.chars().take(8).collect();
    format!("{prefix}{cluster}/{cluster_uid}/{cluster_id}/{backup}-{short}.db")
}

/// The key of the manifest that commits a data object.
pub fn manifest_key(key: &str) -> String {
    format!("{key}.manifest.json")
}

/// An ID as etcdctl prints it: hex without leading zeros.
pub fn hex_id(id: u64) -> String {
    format!("{id:x}")
}

/// The ID that `hex_id` wrote; `None` for anything else.
pub fn parse_hex_id(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{MAX_BACKUP_NAME, MAX_SCHEDULE_NAME};
    use crate::cluster::MAX_NAME;

    /// The longest value of a label, and the longest name of a Job.
    const LABEL: usize = 63;

    #[test]
    fn the_longest_names_still_fit() {
        let cluster = "c".repeat(MAX_NAME);
        // Serials of a cluster that has replaced a member every minute for 190 years.
        for name in
            [pod(&cluster, 99_999_999), client_service(&cluster), headless_service(&cluster), restore_job(&cluster)]
        {
            assert!(name.len() <= LABEL, "{name}");
        }
        let backup = scheduled_backup(&"s".repeat(MAX_SCHEDULE_NAME), 9_999_999_999);
        assert!(backup.len() <= MAX_BACKUP_NAME, "{backup}");
        assert!(backup_job(&"b".repeat(MAX_BACKUP_NAME)).len() <= LABEL);
        assert!(prune_job(&"b".repeat(MAX_BACKUP_NAME)).len() <= LABEL);
    }

    #[test]
    fn clients_are_sent_to_serving_members_only() {
        let member = member_labels("demo", 1);
        let serving = serving_selector("demo");
        let selects =
            |labels: &BTreeMap<String, String>| serving.iter().all(|(key, value)| labels.get(key) == Some(value));
        assert!(!selects(&member));
        let mut labelled = member;
        labelled.insert(LABEL_SERVING.to_owned(), "true".to_owned());
        assert!(selects(&labelled));
        assert_eq!(
            selector_string(&member_selector("demo", 1)),
            "app.kubernetes.io/component=member,ferretcd.io/cluster=demo,ferretcd.io/serial=1"
        );
    }

    #[test]
    fn ids_are_written_as_etcdctl_writes_them() {
        assert_eq!(hex_id(0x8e9e_05c5_2164_694d), "8e9e05c52164694d");
        assert_eq!(parse_hex_id("8e9e05c52164694d"), Some(0x8e9e_05c5_2164_694d));
        assert_eq!(parse_hex_id("demo"), None);
    }
}
