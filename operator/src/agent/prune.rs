//! Removes a backup: its manifest first, so that no reader ever finds a manifest whose data is gone.

use std::future::Future;

use ferretcd_operator_api::AgentReport;
use tracing::info;

use crate::{
    agent::{AgentError, store::BackupObject, until},
    cli::PruneArgs,
};

/// Removes the backup that the flags name; one that is gone already counts as removed.
///
/// # Errors
/// The store's, and a manifest that belongs to another EtcdBackup.
pub async fn run(args: &PruneArgs, terminated: impl Future<Output = ()>) -> Result<AgentReport, AgentError> {
    let object = BackupObject::open(&args.object)?;
    until(terminated, prune(&object, &args.backup_uid)).await
}

async fn prune(object: &BackupObject, backup_uid: &str) -> Result<AgentReport, AgentError> {
    if let Some(manifest) = object.manifest().await?
        && manifest.backup_uid != backup_uid
    {
        return Err(AgentError::Refused(format!(
            "{} is not removed: it belongs to the EtcdBackup with UID {}, not to {backup_uid}",
            object.location(),
            manifest.backup_uid
        )));
    }
    object.delete_manifest().await?;
    object.delete_data().await?;
    info!(location = object.location(), "the backup is removed");
    Ok(AgentReport::Pruned { key: object.key().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{backup::tests::manifest, store::tests::in_memory};

    #[tokio::test]
    async fn a_backup_is_removed_once_and_another_ones_is_left_alone() {
        let (_, object) = in_memory("a/b.db");
        let mut upload = object.upload().await.unwrap();
        upload.write("data".into()).await.unwrap();
        upload.finish().await.unwrap();
        object.put_manifest(&manifest("a/b.db", "mine")).await.unwrap();

        let refused = prune(&object, "other").await.unwrap_err().to_string();
        assert!(refused.contains("UID mine"), "{refused}");
        assert!(object.data().await.unwrap().is_some());

        for _ in 0..2 {
            assert_eq!(prune(&object, "mine").await.unwrap(), AgentReport::Pruned { key: "a/b.db".to_owned() });
            assert_eq!(object.manifest().await.unwrap(), None);
            assert_eq!(object.data().await.unwrap(), None);
        }
    }
}
