//! The Job that restores a backup into the seed of a new cluster; its command line is documented in `backup_job.rs`.

use ferretcd_operator_api::{S3Destination, names};

use super::backup_job::{Agent, agent_job, store_arguments};
use super::owner;
use crate::action::Object;
use crate::validate::Cluster;

/// The Job that restores the object `key` into the member with this serial.
pub fn restore_job(cluster: &Cluster, seed: i64, cluster_id: &str, store: &S3Destination, key: &str) -> Object {
    let identity = &cluster.identity;
    let mut arguments = vec![
        "restore".to_owned(),
        format!("--endpoint={}", names::client_url(&identity.name, &identity.namespace, seed)),
    ];
    arguments.extend(store_arguments(store, key));
    arguments.push(format!("--cluster-id={cluster_id}"));
    agent_job(Agent {
        name: names::restore_job(&identity.name),
        namespace: &identity.namespace,
        cluster: &identity.name,
        half: "restore",
        owner: owner("EtcdCluster", &identity.name, &identity.uid),
        arguments,
        destination: store,
        settings: &cluster.settings,
    })
}
