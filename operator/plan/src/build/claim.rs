//! A member's volume claim. The operator makes it itself, not through a StatefulSet's template, and it has no owner
//! reference: the garbage collector must never delete data. Its annotations say whose it is.

use std::collections::BTreeMap;

use ferretcd_operator_api::names;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::action::Object;
use crate::validate::Cluster;

/// The claim of the member with this serial.
pub fn claim(cluster: &Cluster, serial: i64) -> Object {
    let identity = &cluster.identity;
    Object::PersistentVolumeClaim(Box::new(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::volume_claim(&identity.name, serial)),
            namespace: Some(identity.namespace.clone()),
            labels: Some(names::member_labels(&identity.name, serial)),
            annotations: Some(BTreeMap::from([
                (names::ANNOTATION_CLUSTER_UID.to_owned(), identity.uid.clone()),
                (names::ANNOTATION_SERIAL.to_owned(), serial.to_string()),
            ])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: cluster.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), cluster.storage_size.clone())])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }))
}
