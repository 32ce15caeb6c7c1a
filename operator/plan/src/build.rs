//! The Kubernetes objects that make up a cluster, one per file, and what they have in common. Each is a pure function of the
//! cluster and the ledger, so that the same pass builds the same object to the byte.

pub mod backup_job;
pub mod budget;
pub mod claim;
pub mod pod;
pub mod restore_job;
pub mod scheduled_backup;
pub mod service;
pub mod stateful_set;

use std::collections::BTreeMap;

use ferretcd_operator_api::{API_VERSION, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde::Serialize;

use crate::action::Object;
use crate::validate::Identity;

/// The name, namespace, labels and owner of an object of a cluster. The garbage collector removes it with the cluster.
pub(crate) fn cluster_metadata(identity: &Identity, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(identity.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![owner("EtcdCluster", &identity.name, &identity.uid)]),
        ..ObjectMeta::default()
    }
}

/// A reference to the resource that an object belongs to.
pub(crate) fn owner(kind: &str, name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: API_VERSION.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        // Blocking the owner's deletion would need a right on its finalizers and gain nothing: our own finalizer does that.
        block_owner_deletion: None,
    }
}

pub(crate) fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels), match_expressions: None }
}

/// How an object that exists compares to the one that is wanted.
pub(crate) enum Difference {
    /// It is absent.
    Missing(Object),
    /// Something else was applied last; the object carries the UID that it must still have.
    Changed(Object),
}

/// Stamps the wanted object with its hash and compares it to what exists (its UID and the hash that was applied last).
pub(crate) fn difference(mut wanted: Object, existing: Option<(&str, &str)>) -> Option<Difference> {
    let hash = hash(&wanted);
    let metadata = metadata_mut(&mut wanted);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(names::ANNOTATION_HASH.to_owned(), hash.clone());
    match existing {
        None => Some(Difference::Missing(wanted)),
        Some((_, applied)) if applied == hash => None,
        Some((uid, _)) => {
            metadata_mut(&mut wanted).uid = Some(uid.to_owned());
            Some(Difference::Changed(wanted))
        }
    }
}

fn metadata_mut(object: &mut Object) -> &mut ObjectMeta {
    match object {
        Object::Service(object) => &mut object.metadata,
        Object::PersistentVolumeClaim(object) => &mut object.metadata,
        Object::StatefulSet(object) => &mut object.metadata,
        Object::PodDisruptionBudget(object) => &mut object.metadata,
        Object::Job(object) => &mut object.metadata,
        Object::EtcdBackup(object) => &mut object.metadata,
    }
}

/// FNV-1a of the object's JSON, whose maps are sorted. It guards against needless writes, not against an adversary.
fn hash(object: &Object) -> String {
    let json = match object {
        Object::Service(object) => json(object),
        Object::PersistentVolumeClaim(object) => json(object),
        Object::StatefulSet(object) => json(object),
        Object::PodDisruptionBudget(object) => json(object),
        Object::Job(object) => json(object),
        Object::EtcdBackup(object) => json(object),
    };
    let fnv = json
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{fnv:016x}")
}

/// Types of the API serialise without fail; an empty text would only make a hash that never matches.
fn json<T: Serialize>(object: &T) -> String {
    serde_json::to_string(object).unwrap_or_default()
}
