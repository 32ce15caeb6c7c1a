//! Restores a backup into a running cluster through its API: the manifest is checked before anything is sent, and the last piece
//! of the file is held back until the checksum of the whole is known to be right. The server changes nothing before it has
//! the whole file, so whatever breaks off leaves the cluster as it was.

use std::{future::Future, ops::Range};

use bytes::Bytes;
use ferretcd_operator_api::{AgentReport, BackupManifest, names};
use ferretcd_proto::ferretcd_v1::{RestoreOptions, RestoreRequest, RestoreResponse, restore_request::Request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::info;

use crate::{
    agent::{AgentError, PART, Progress, digest::FileDigest, mib, store::BackupObject, until},
    cli::RestoreArgs,
    members::{Member, MemberError},
};

/// The largest piece of the file in one message; the limit of `RestoreRequest.chunk`.
const CHUNK: usize = 1 << 20;
/// Messages that wait for the server: one part of the store, so that reading and sending overlap.
const QUEUE: usize = PART / CHUNK;

/// Restores the backup that the flags name.
///
/// # Errors
/// The store's, the member's, a backup that is absent, damaged or of a newer server, or a result that is not what the
/// backup says.
pub async fn run(args: &RestoreArgs, terminated: impl Future<Output = ()>) -> Result<AgentReport, AgentError> {
    let object = BackupObject::open(&args.object)?;
    let member = Member::new(&args.endpoint).map_err(|source| attempt("restore", source))?;
    until(terminated, restore(&object, &member, &args.cluster_id)).await
}

async fn restore(object: &BackupObject, member: &Member, cluster_id: &str) -> Result<AgentReport, AgentError> {
    let manifest = object.manifest().await?.ok_or_else(|| {
        refused(object, "it has no manifest, so it is no complete backup; use another key (EtcdBackup.status.key)")
    })?;
    let size = sound(object, &manifest).await?;
    let status = member.status().await.map_err(|source| attempt("ask the member for its status", source))?;
    let found = names::hex_id(status.header.unwrap_or_default().cluster_id);
    if found != cluster_id {
        return Err(refused(
            object,
            &format!("{} is a member of the cluster {found}, not of {cluster_id}", member.url()),
        ));
    }
    if minor(&manifest.server_version) > minor(&status.version) {
        return Err(refused(
            object,
            &format!(
                "it was taken from a server {}, and {} is older ({}); use a server that is not older than the backup",
                manifest.server_version,
                member.url(),
                status.version
            ),
        ));
    }

    info!(from = object.location(), to = member.url(), "restoring {}", mib(size));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let sending = send(object, &manifest, size, sender);
    let receiving = member.restore(ReceiverStream::new(receiver));
    let (sent, received) = tokio::join!(sending, receiving);
    // Where the file broke off, the server only says that it did; the cause is on our side.
    sent?;
    let restored = received.map_err(|source| attempt("restore", source))?;
    verify(object, &manifest, member, &restored).await?;
    Ok(AgentReport::Restored { key: object.key().to_owned(), revision: restored.revision })
}

/// Compares data and manifest as far as that is possible without reading the data. Returns its size.
async fn sound(object: &BackupObject, manifest: &BackupManifest) -> Result<u64, AgentError> {
    let Some((size, _)) = object.data().await? else {
        return Err(refused(object, "its manifest is there, but its data is gone; use another backup"));
    };
    if i64::try_from(size) != Ok(manifest.size) {
        let says =
            format!("it has {size} bytes, but its manifest says {}; it is damaged, use another backup", manifest.size);
        return Err(refused(object, &says));
    }
    Ok(size)
}

/// Reads the file part by part and hands it to the stream in pieces; the last piece only when the checksum is right. A
/// stream that nobody reads any more is no error here: the server has said why.
async fn send(
    object: &BackupObject,
    manifest: &BackupManifest,
    size: u64,
    sender: mpsc::Sender<RestoreRequest>,
) -> Result<(), AgentError> {
    let options = RestoreOptions { revision_bump: None, file_bytes: size };
    if sender.send(RestoreRequest { request: Some(Request::Options(options)) }).await.is_err() {
        return Ok(());
    }
    let mut digest = FileDigest::default();
    let mut progress = Progress::new("restore");
    for range in parts(size) {
        let last = range.end == size;
        let mut part = object.read(range).await?;
        digest.update(&part);
        while part.len() > CHUNK || (!last && !part.is_empty()) {
            let piece = part.split_to(CHUNK.min(part.len()));
            if sender.send(chunk(piece)).await.is_err() {
                return Ok(());
            }
        }
        progress.at(digest.size(), size);
        if last {
            let read = digest.finish().map_err(|damage| refused(object, &format!("{damage}; use another backup")))?;
            if read.sha256 != manifest.sha256 {
                let says = format!(
                    "its SHA-256 is {}, but its manifest says {}; it is damaged, use another backup",
                    read.sha256, manifest.sha256
                );
                return Err(refused(object, &says));
            }
            let _ = sender.send(chunk(part)).await;
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the cluster has what the backup says, asked through its API.
async fn verify(
    object: &BackupObject,
    manifest: &BackupManifest,
    member: &Member,
    restored: &RestoreResponse,
) -> Result<(), AgentError> {
    let now = member.read(true).await.map_err(|source| attempt("read back what was restored", source))?;
    let revision = now.header.unwrap_or_default().revision;
    let keys = u64::try_from(now.count).unwrap_or_default();
    if revision < restored.revision || restored.revision < manifest.revision || keys != restored.keys {
        return Err(AgentError::Unverified(format!(
            "{} was restored, but the cluster does not show it: revision {revision} and {keys} keys instead of at least \
             revision {} (the backup has {}) and {} keys; is somebody writing to it?",
            object.location(),
            restored.revision,
            manifest.revision,
            restored.keys
        )));
    }
    info!(revision, keys, "verified through the API");
    Ok(())
}

/// The file in pieces of one request to the store.
fn parts(size: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size).step_by(PART).map(move |start| start..size.min(start + PART as u64))
}

fn chunk(piece: Bytes) -> RestoreRequest {
    RestoreRequest { request: Some(Request::Chunk(piece)) }
}

/// Major and minor of a version; what is none sorts first, and so refuses nothing.
fn minor(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn refused(object: &BackupObject, problem: &str) -> AgentError {
    AgentError::Refused(format!("{} is not restored, and the cluster was not changed: {problem}", object.location()))
}

fn attempt(attempt: &str, source: MemberError) -> AgentError {
    AgentError::Member { attempt: format!("cannot {attempt}"), source }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::{ObjectStoreExt, memory::InMemory, path::Path};

    use super::*;
    use crate::agent::{
        backup::tests::manifest,
        digest::{hex, tests::snapshot},
        fake::Fake,
        store::tests::in_memory,
    };
    use sha2::Digest as _;

    /// A backup of `file` in a store.
    async fn backup(file: &[u8]) -> (Arc<InMemory>, BackupObject) {
        let (store, object) = in_memory("a/b.db");
        store.put(&Path::from("a/b.db"), file.to_vec().into()).await.unwrap();
        let mut manifest = manifest("a/b.db", "mine");
        manifest.size = file.len() as i64;
        manifest.sha256 = hex(&sha2::Sha256::digest(file));
        object.put_manifest(&manifest).await.unwrap();
        (store, object)
    }

    #[tokio::test]
    async fn a_file_of_several_parts_arrives_whole_in_pieces_of_at_most_a_mebibyte() {
        for sectors in [1, (2 * PART + 3 * CHUNK + 512) / 512, 2 * PART / 512] {
            let file = snapshot(sectors);
            let (_, object) = backup(&file).await;
            let fake = Fake::start(0x1f, Vec::new()).await;
            let report = restore(&object, &Member::new(&fake.url).unwrap(), "1f").await.unwrap();
            assert_eq!(report, AgentReport::Restored { key: "a/b.db".to_owned(), revision: 1_000_000_042 });
            let received = fake.received();
            assert_eq!(received.file, file);
            assert!(received.largest <= CHUNK && received.complete);
        }
    }

    #[tokio::test]
    async fn a_damaged_file_is_never_sent_to_its_end() {
        let file = snapshot(3 * CHUNK / 512);
        let (store, object) = backup(&file).await;
        let mut damaged = file.clone();
        damaged[5] ^= 1;
        store.put(&Path::from("a/b.db"), damaged.into()).await.unwrap();
        let fake = Fake::start(0x1f, Vec::new()).await;
        let error = restore(&object, &Member::new(&fake.url).unwrap(), "1f").await.unwrap_err().to_string();
        assert!(error.contains("s3://backups/a/b.db") && error.contains("its checksum is"), "{error}");
        assert!(!fake.received().complete);
    }

    #[tokio::test]
    async fn a_file_with_another_content_than_its_manifest_says_is_never_sent_to_its_end() {
        let (store, object) = backup(&snapshot(8)).await;
        // Sound in itself, of the same size, and not the file that was backed up.
        let mut other = vec![9; 8 * 512];
        let sum = sha2::Sha256::digest(&other);
        other.extend_from_slice(&sum);
        store.put(&Path::from("a/b.db"), other.into()).await.unwrap();
        let fake = Fake::start(0x1f, Vec::new()).await;
        let error = restore(&object, &Member::new(&fake.url).unwrap(), "1f").await.unwrap_err().to_string();
        assert!(error.contains("its manifest says") && error.contains("SHA-256"), "{error}");
        assert!(!fake.received().complete);
    }

    #[tokio::test]
    async fn what_is_no_whole_backup_is_refused_before_the_member_is_asked() {
        let fake = Fake::start(0x1f, Vec::new()).await;
        let member = Member::new(&fake.url).unwrap();
        let (store, object) = backup(&snapshot(8)).await;

        store.put(&Path::from("a/b.db"), vec![0; 100].into()).await.unwrap();
        let error = restore(&object, &member, "1f").await.unwrap_err().to_string();
        assert!(error.contains("it has 100 bytes, but its manifest says 4128"), "{error}");

        object.delete_data().await.unwrap();
        let error = restore(&object, &member, "1f").await.unwrap_err().to_string();
        assert!(error.contains("its data is gone"), "{error}");

        object.delete_manifest().await.unwrap();
        let error = restore(&object, &member, "1f").await.unwrap_err().to_string();
        assert!(error.contains("no manifest"), "{error}");
        assert!(fake.received().file.is_empty());
    }

    #[tokio::test]
    async fn a_backup_of_a_newer_server_is_refused() {
        let (_, object) = backup(&snapshot(8)).await;
        let mut newer = object.manifest().await.unwrap().unwrap();
        newer.server_version = "3.10.1".to_owned();
        object.put_manifest(&newer).await.unwrap();
        let fake = Fake::start(0x1f, Vec::new()).await;
        let error = restore(&object, &Member::new(&fake.url).unwrap(), "1f").await.unwrap_err().to_string();
        assert!(error.contains("3.10.1") && error.contains("older (3.6.0)"), "{error}");
    }

    #[tokio::test]
    async fn a_member_of_another_cluster_is_refused() {
        let (_, object) = backup(&snapshot(8)).await;
        let fake = Fake::start(0x2f, Vec::new()).await;
        let error = restore(&object, &Member::new(&fake.url).unwrap(), "1f").await.unwrap_err().to_string();
        assert!(error.contains("cluster 2f, not of 1f"), "{error}");
        assert!(fake.received().file.is_empty());
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(minor("3.10.0") > minor("3.9.9"));
        assert_eq!(minor("3.6.1"), minor("3.6.0"));
    }
}
