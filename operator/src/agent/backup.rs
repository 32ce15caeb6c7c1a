//! Takes a backup (algorithm H): a linearizable read as a barrier, the snapshot stream checked while it goes into the store, and
//! the manifest last. Without the manifest there is no backup, so whatever breaks off before leaves nothing that counts.

use std::{future::Future, time::Duration};

use chrono::Utc;
use ferretcd_operator_api::{AgentReport, BackupManifest, agent::MANIFEST_FORMAT, names};
use ferretcd_operator_plan::time::to_kube;
use tracing::{info, warn};

use crate::{
    agent::{
        AgentError, Progress,
        digest::{Checked, FileDigest},
        store::{BackupObject, Upload},
        until,
    },
    cli::BackupArgs,
    members::{Member, MemberError},
};

/// The longest silence within a snapshot stream. The member may have to wait for a disk, but not for this long.
const SILENCE: Duration = Duration::from_secs(60);

/// Takes the backup that the flags describe. An earlier attempt that has finished it is found and reported again.
///
/// # Errors
/// The member's, the store's, a damaged snapshot, a member of another cluster, or a key that another backup has taken.
pub async fn run(args: &BackupArgs, terminated: impl Future<Output = ()>) -> Result<AgentReport, AgentError> {
    let object = BackupObject::open(&args.object)?;
    backup(args, &object, terminated).await
}

async fn backup(
    args: &BackupArgs,
    object: &BackupObject,
    terminated: impl Future<Output = ()>,
) -> Result<AgentReport, AgentError> {
    if let Some(done) = earlier(args, object).await? {
        info!(location = object.location(), "an earlier attempt has finished this backup");
        return Ok(report(done));
    }
    let (member, revision) = source(args).await?;
    let status = member.status().await.map_err(|source| attempt("ask the member for its status", source))?;

    info!(from = member.url(), to = object.location(), revision, "taking a snapshot");
    let mut upload = object.upload().await?;
    let checked = match until(terminated, transfer(&member, &mut upload)).await {
        Ok(checked) => checked,
        Err(error) => {
            upload.abort().await;
            return Err(error);
        }
    };
    let tag = upload.finish().await?;
    same_data(object, &checked, tag.as_deref()).await?;

    let manifest = BackupManifest {
        format: MANIFEST_FORMAT,
        key: object.key().to_owned(),
        sha256: checked.sha256,
        size: i64::try_from(checked.size).unwrap_or(i64::MAX),
        revision,
        raft_index: status.raft_applied_index,
        cluster: args.cluster.clone(),
        cluster_uid: args.cluster_uid.clone(),
        cluster_id: args.cluster_id.clone(),
        backup_uid: args.backup_uid.clone(),
        server_version: status.version,
        created_at: to_kube(Utc::now()),
    };
    object.put_manifest(&manifest).await?;
    Ok(report(manifest))
}

/// The manifest that an earlier attempt of the same backup has left.
async fn earlier(args: &BackupArgs, object: &BackupObject) -> Result<Option<BackupManifest>, AgentError> {
    let Some(manifest) = object.manifest().await? else { return Ok(None) };
    if manifest.backup_uid != args.backup_uid {
        return Err(AgentError::Refused(format!(
            "{} holds the backup of the EtcdBackup with UID {} already and is not overwritten; delete it or choose another \
             prefix",
            object.location(),
            manifest.backup_uid
        )));
    }
    match object.data().await? {
        Some((size, _)) if i64::try_from(size) == Ok(manifest.size) => Ok(Some(manifest)),
        // The manifest is ours and its data is not there: it is no backup, and this attempt takes its place.
        _ => {
            warn!(location = object.location(), "an earlier attempt left a manifest without its data; it is replaced");
            object.delete_manifest().await?;
            Ok(None)
        }
    }
}

/// The first member that serves a linearizable read, and the revision of that read: a snapshot that is taken from it afterwards
/// holds that revision at the least.
async fn source(args: &BackupArgs) -> Result<(Member, i64), AgentError> {
    let mut failure = None;
    for url in &args.endpoints {
        let member = Member::new(url).map_err(|source| attempt("take a snapshot", source))?;
        let header = match member.read(false).await {
            Ok(answer) => answer.header.unwrap_or_default(),
            Err(error) => {
                warn!(%error, "trying the next member");
                failure = Some(error);
                continue;
            }
        };
        let cluster_id = names::hex_id(header.cluster_id);
        if cluster_id != args.cluster_id {
            return Err(AgentError::Refused(format!(
                "{url} is a member of the cluster {cluster_id}, but the backup is of {}; nothing was stored",
                args.cluster_id
            )));
        }
        return Ok((member, header.revision));
    }
    Err(match failure {
        Some(source) => attempt("read through any member", source),
        None => AgentError::Refused("no endpoint was given".to_owned()),
    })
}

/// Moves the whole snapshot into the upload and checks it on the way.
async fn transfer(member: &Member, upload: &mut Upload) -> Result<Checked, AgentError> {
    const CALL: &str = "Snapshot";
    let failed = |source| attempt("read the snapshot", source);
    let mut stream = member.snapshot().await.map_err(failed)?;
    let mut digest = FileDigest::default();
    let mut progress = Progress::new("snapshot");
    loop {
        let message = match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(answer) => answer.map_err(|status| failed(member.error(CALL, &status)))?,
            Err(_) => {
                let source = MemberError::TimedOut { url: member.url().to_owned(), call: CALL, after: SILENCE };
                return Err(failed(source));
            }
        };
        let Some(message) = message else { break };
        digest.update(&message.blob);
        progress.at(digest.size(), digest.size() + message.remaining_bytes);
        upload.write(message.blob).await?;
    }
    digest.finish().map_err(|damage| AgentError::Snapshot { url: member.url().to_owned(), damage })
}

/// Whether the store has what was sent, and nobody has written the same key in between.
async fn same_data(object: &BackupObject, checked: &Checked, tag: Option<&str>) -> Result<(), AgentError> {
    let found = object.data().await?;
    match &found {
        Some((size, found_tag)) if *size == checked.size && (tag.is_none() || found_tag.as_deref() == tag) => Ok(()),
        _ => Err(AgentError::Unverified(format!(
            "{} was written with {} bytes, but the store has {}; it does not count as a backup, another attempt starts over",
            object.location(),
            checked.size,
            found.map_or("nothing".to_owned(), |(size, _)| format!("an object of {size} bytes with another tag"))
        ))),
    }
}

fn attempt(attempt: &str, source: MemberError) -> AgentError {
    AgentError::Member { attempt: format!("cannot {attempt}; nothing was stored"), source }
}

fn report(manifest: BackupManifest) -> AgentReport {
    AgentReport::BackedUp {
        key: manifest.key,
        revision: manifest.revision,
        size: manifest.size,
        sha256: manifest.sha256,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::pending;

    use super::*;
    use crate::{
        agent::{PART, digest::tests::snapshot, fake::Fake, store::tests::in_memory},
        cli::ObjectArgs,
    };

    pub(crate) fn manifest(key: &str, backup_uid: &str) -> BackupManifest {
        BackupManifest {
            format: MANIFEST_FORMAT,
            key: key.to_owned(),
            sha256: String::new(),
            size: 4,
            revision: 7,
            raft_index: 9,
            cluster: "c".to_owned(),
            cluster_uid: "u".to_owned(),
            cluster_id: "1f".to_owned(),
            backup_uid: backup_uid.to_owned(),
            server_version: "3.6.0".to_owned(),
            created_at: to_kube(Utc::now()),
        }
    }

    fn args(endpoint: &str) -> BackupArgs {
        BackupArgs {
            endpoints: vec!["http://127.0.0.1:1".to_owned(), endpoint.to_owned()],
            object: ObjectArgs {
                bucket: "backups".to_owned(),
                key: "a/b.db".to_owned(),
                s3_endpoint: None,
                region: "us-east-1".to_owned(),
                force_path_style: true,
            },
            cluster: "c".to_owned(),
            cluster_uid: "u".to_owned(),
            cluster_id: "1f".to_owned(),
            backup_uid: "mine".to_owned(),
            report: "/dev/null".into(),
        }
    }

    async fn take(fake: &Fake, object: &BackupObject) -> Result<AgentReport, AgentError> {
        backup(&args(&fake.url), object, pending()).await
    }

    #[tokio::test]
    async fn a_snapshot_of_several_parts_arrives_whole_with_its_manifest() {
        let (_, object) = in_memory("a/b.db");
        let file = snapshot((2 * PART + PART / 2) / 512);
        let fake = Fake::start(0x1f, file.clone()).await;
        let report = take(&fake, &object).await.unwrap();

        let manifest = object.manifest().await.unwrap().unwrap();
        assert_eq!((manifest.size, manifest.revision), (file.len() as i64, 42));
        assert_eq!((manifest.cluster_id.as_str(), manifest.server_version.as_str()), ("1f", "3.6.0"));
        let AgentReport::BackedUp { key, revision, size, sha256 } = report.clone() else { panic!("{report:?}") };
        assert_eq!((key.as_str(), revision, size), ("a/b.db", 42, file.len() as i64));
        assert_eq!(sha256, manifest.sha256);
        assert_eq!(object.read(0..file.len() as u64).await.unwrap(), file);

        // The next attempt finds it, and does not ask the member again.
        fake.stop();
        assert_eq!(take(&fake, &object).await.unwrap(), report);
    }

    #[tokio::test]
    async fn a_snapshot_that_is_cut_short_or_damaged_leaves_nothing() {
        let whole = snapshot(64);
        let mut flipped = whole.clone();
        flipped[777] ^= 4;
        for (file, says) in [(whole[..whole.len() - 700].to_vec(), "cut short"), (flipped, "its checksum is")] {
            let (_, object) = in_memory("a/b.db");
            let fake = Fake::start(0x1f, file).await;
            let error = take(&fake, &object).await.unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("Nothing was stored"), "{error}");
            assert_eq!(object.data().await.unwrap(), None);
            assert_eq!(object.manifest().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_member_of_another_cluster_is_refused() {
        let (_, object) = in_memory("a/b.db");
        let fake = Fake::start(0x2f, snapshot(64)).await;
        let error = take(&fake, &object).await.unwrap_err().to_string();
        assert!(error.contains("cluster 2f, but the backup is of 1f"), "{error}");
        assert_eq!(object.data().await.unwrap(), None);
    }

    #[tokio::test]
    async fn another_backup_under_the_same_key_is_not_overwritten() {
        let (_, object) = in_memory("a/b.db");
        object.put_manifest(&manifest("a/b.db", "other")).await.unwrap();
        let fake = Fake::start(0x1f, snapshot(64)).await;
        let error = take(&fake, &object).await.unwrap_err().to_string();
        assert!(error.contains("UID other") && error.contains("not overwritten"), "{error}");
    }

    #[tokio::test]
    async fn a_signal_ends_the_transfer_and_removes_its_parts() {
        let (_, object) = in_memory("a/b.db");
        let fake = Fake::start(0x1f, snapshot(64)).await;
        let error = backup(&args(&fake.url), &object, std::future::ready(())).await;
        assert!(matches!(error, Err(AgentError::Interrupted)), "{error:?}");
        assert_eq!(object.data().await.unwrap(), None);
        assert_eq!(object.manifest().await.unwrap(), None);
    }
}
