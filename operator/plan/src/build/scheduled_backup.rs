//! An EtcdBackup made by a schedule. It has no owner reference to it: backups outlive the schedule that made them.

use std::collections::BTreeMap;

use ferretcd_operator_api::{EtcdBackup, EtcdBackupScheduleSpec, EtcdBackupSpec, names};

use crate::action::Object;

/// The backup of this slot.
pub fn scheduled_backup(
    schedule: &str,
    namespace: &str,
    schedule_uid: &str,
    spec: &EtcdBackupScheduleSpec,
    slot_unix: i64,
) -> Object {
    let mut backup = EtcdBackup::new(
        &names::scheduled_backup(schedule, slot_unix),
        EtcdBackupSpec { cluster_ref: spec.cluster_ref.clone(), destination: spec.destination.clone() },
    );
    backup.metadata.namespace = Some(namespace.to_owned());
    backup.metadata.labels = Some(BTreeMap::from([
        ("app.kubernetes.io/managed-by".to_owned(), names::FIELD_MANAGER.to_owned()),
        (names::LABEL_CLUSTER.to_owned(), spec.cluster_ref.name.clone()),
        (names::LABEL_SCHEDULE.to_owned(), schedule.to_owned()),
    ]));
    backup.metadata.annotations = Some(BTreeMap::from([
        (names::ANNOTATION_SCHEDULE_UID.to_owned(), schedule_uid.to_owned()),
        (names::ANNOTATION_SLOT.to_owned(), slot_unix.to_string()),
    ]));
    Object::EtcdBackup(Box::new(backup))
}
