//! Snapshots that come from another member, sent by a leader or asked for.

use crate::identity::Identity;
use crate::machine::{aside, snapshot_membership};
use crate::snapshot::{SnapshotDir, SnapshotFile};
use crate::transport::client::client;
use crate::transport::dial::Dialer;
use crate::transport::server::SNAPSHOT_PATIENCE;
use ferretcd_proto::peer as pb;
use ferretcd_proto::peer::snapshot_part::Part;
use ferretcd_types::{LogPos, MemberId};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};
use tonic::{Request, Status, Streaming};

/// How long the next part of a snapshot may take, a megabyte: a wire that is slower than 20 kB/s carries no group, and a sender whose
/// disk hangs is not to be waited for.
const PART_PATIENCE: Duration = Duration::from_secs(60);

/// Takes a snapshot in, and reads all of it before anybody uses it: a file that cannot be installed ends a member, and it is the
/// sender's that is damaged. With its head comes how long the last sync took.
pub(crate) async fn receive(
    mut parts: Streaming<pb::SnapshotPart>,
    snapshots: &SnapshotDir,
    name: &str,
) -> Result<(pb::SnapshotHead, SnapshotFile, Duration), Status> {
    let Some(pb::SnapshotPart { part: Some(Part::Head(head)) }) = parts.message().await? else {
        return Err(Status::invalid_argument("a snapshot must begin with its head"));
    };
    // Twice, for it goes into the store, too, beside what is there. The leader tells its people.
    snapshots.has_room(head.bytes.saturating_mul(2)).map_err(|e| Status::resource_exhausted(e.to_string()))?;
    let path = snapshots.unfinished(name);
    let snapshot = SnapshotDir::received(path.clone(), head.bytes);
    let failed = |e: std::io::Error| Status::internal(format!("cannot write {}: {e}", path.display()));
    let to = path.clone();
    let mut file = aside(move || File::create(to)).await.map_err(failed)?;
    let mut received = 0u64;
    let late = |_| Status::deadline_exceeded(format!("nothing more of a snapshot came within {PART_PATIENCE:?}"));
    while let Some(part) = tokio::time::timeout(PART_PATIENCE, parts.message()).await.map_err(late)?? {
        let Some(Part::Data(data)) = part.part else {
            return Err(Status::invalid_argument("a snapshot has one head"));
        };
        received += data.len() as u64;
        if received > head.bytes {
            return Err(Status::invalid_argument("a snapshot is longer than its head says"));
        }
        file = aside(move || file.write_all(&data).map(|()| file)).await.map_err(failed)?;
    }
    if received != head.bytes {
        return Err(Status::data_loss(format!("a snapshot of {} bytes ended after {received}", head.bytes)));
    }
    let written = Instant::now();
    aside(move || file.sync_all()).await.map_err(failed)?;
    let synced = written.elapsed();
    let read = path.clone();
    aside(move || snapshot_membership(&read)).await.map_err(|e| Status::data_loss(e.to_string()))?;
    Ok((head, snapshot, synced))
}

/// Asks the member `of` at `url` for a snapshot that reaches at least as far, and makes it this member's own. What it stands for.
///
/// # Errors
/// Why there is none, in words.
pub async fn fetch_snapshot(
    dialer: &Dialer,
    identity: &Identity,
    (of, url): (MemberId, &str),
    at_least: u64,
    snapshots: &SnapshotDir,
) -> Result<LogPos, String> {
    let mut request = Request::new(pb::FetchSnapshotRequest { at_least });
    identity.sign(of, request.metadata_mut());
    let fetched = async {
        let channel = dialer.connect(url).await.map_err(Status::unavailable)?;
        let mut client = client(channel);
        let answer = tokio::time::timeout(SNAPSHOT_PATIENCE, client.fetch_snapshot(request)).await;
        let parts = answer.map_err(|_| Status::deadline_exceeded("it takes too long to write one"))??.into_inner();
        receive(parts, snapshots, "fetched").await
    };
    let (head, file, _) = fetched.await.map_err(|status| status.message().to_owned())?;
    let last = head.last.unwrap_or_default();
    let pos = LogPos { term: last.term, index: last.index };
    if pos.index < at_least {
        return Err(format!("it sent a snapshot of entry {}, which is too old", pos.index));
    }
    // The damaged one may have the same name.
    if let Ok(Some((_, damaged))) = snapshots.newest() {
        snapshots.set_aside(&damaged).map_err(|e| e.to_string())?;
    }
    snapshots.finish(&file.path, pos).map_err(|e| e.to_string())?;
    Ok(pos)
}
