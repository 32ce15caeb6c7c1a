//! etcdserverpb.Maintenance: status, alarms, hashes, snapshots, leadership.

use bytes::Bytes;
use ferretcd_node::{Node, SnapshotStream, Standing};
use ferretcd_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest, DowngradeResponse,
    HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse, ResponseHeader,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction,
    downgrade_request::DowngradeAction, maintenance_server::Maintenance,
};
use ferretcd_types::{Alarm, AlarmKind, Error, MemberId, SetAlarm};
use futures::stream;
use tonic::{Request, Response, Status};

use super::{Answers, asked_by, health::Serving};
use crate::{convert::cluster as convert, header, status::from_error};

/// The service.
#[derive(Clone, Debug)]
pub struct MaintenanceService {
    /// Who does the work.
    pub node: Node,
    /// Says that this server pauses, while it is defragmented.
    pub serving: Serving,
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let request = request.into_inner();
        let looks = request.action == i32::from(AlarmAction::Get);
        let standing = if looks { Standing::User } else { Standing::Root };
        node.require(standing).await.map_err(from_error)?;
        let member = MemberId(request.member_id);
        let kind = convert::alarm_kind(request.alarm).map_err(from_error)?;
        let action = AlarmAction::try_from(request.action).map_err(|_| from_error(Error::UnknownMethod))?;
        let alarms = match action {
            AlarmAction::Get => matching(self.node.alarms(), member, kind),
            AlarmAction::Activate => set_alarm(&node, member, kind, true).await.map_err(from_error)?,
            AlarmAction::Deactivate => set_alarm(&node, member, kind, false).await.map_err(from_error)?,
        };
        let alarms = alarms.into_iter().map(convert::alarm).collect();
        Ok(Response::new(AlarmResponse { header: Some(header::now(&self.node)), alarms }))
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(convert::status_response(self.node.status(), header::now(&self.node))))
    }

    /// etcd answers without a header here.
    async fn defragment(&self, _request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        let _pause = self.serving.pause();
        self.node.defragment().await.map_err(from_error)?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let hash = self.node.hash().await.map_err(from_error)?;
        Ok(Response::new(HashResponse { header: Some(header::now(&self.node)), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let revision = request.into_inner().revision;
        let (hash, compact_revision, hash_revision) = self.node.hash_kv(revision).await.map_err(from_error)?;
        let header = Some(header::now(&self.node));
        Ok(Response::new(HashKvResponse { header, hash, compact_revision, hash_revision }))
    }

    type SnapshotStream = Answers<SnapshotResponse>;

    async fn snapshot(&self, _request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let SnapshotStream { total_bytes, revision, chunks } = self.node.snapshot().await.map_err(from_error)?;
        // The layout that is promised follows the cluster's version.
        let version = self.node.cluster_version().unwrap_or_default();
        // etcd's API has a place for it, which etcd leaves empty: whose snapshot it is, and of which revision.
        let header = header::at(&self.node, revision);
        let start = (Slicer::new(total_bytes, header, version).map_err(from_error)?, chunks);
        let answers = stream::try_unfold(start, |(mut slicer, mut chunks)| async move {
            loop {
                if let Some(answer) = slicer.next() {
                    return Ok(Some((answer, (slicer, chunks))));
                }
                match chunks.recv().await {
                    Some(chunk) => slicer.push(chunk.map_err(from_error)?).map_err(from_error)?,
                    None => return slicer.finish().map(|()| None).map_err(from_error),
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    /// etcd answers without a header here.
    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        self.node.move_leader(MemberId(request.into_inner().target_id)).await.map_err(from_error)?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let DowngradeRequest { action, version } = request.into_inner();
        let action = DowngradeAction::try_from(action).map_err(|_| from_error(Error::UnknownMethod))?;
        let version = match action {
            DowngradeAction::Validate => node.downgrade_validate(&version).await,
            DowngradeAction::Enable => node.downgrade_enable(&version).await,
            DowngradeAction::Cancel => node.downgrade_cancel().await,
        };
        let version = version.map_err(from_error)?;
        Ok(Response::new(DowngradeResponse { header: Some(header::now(&self.node)), version }))
    }
}

/// Raises or disarms one alarm. The answer names it, except that disarming what is not raised names nothing.
async fn set_alarm(node: &Node, member: MemberId, kind: Option<AlarmKind>, raised: bool) -> Result<Vec<Alarm>, Error> {
    let Some(kind) = kind else { return Ok(Vec::new()) };
    let alarm = Alarm { member, kind };
    let changes_something = raised || node.alarms().contains(&alarm);
    node.propose(SetAlarm { alarm, raised }).await?;
    Ok(if changes_something { vec![alarm] } else { Vec::new() })
}

/// Alarms of one member (0: of all) and one kind (none: of all).
fn matching(alarms: Vec<Alarm>, member: MemberId, kind: Option<AlarmKind>) -> Vec<Alarm> {
    let asked = |a: &Alarm| (member.0 == 0 || a.member == member) && kind.is_none_or(|k| a.kind == k);
    alarms.into_iter().filter(asked).collect()
}

/// Most bytes in one answer (etcd's size; small enough for every client's receive limit).
const BLOB_BYTES_MAX: u64 = 32 << 10;

/// Bytes of SHA-256 at the end of a snapshot.
const CHECKSUM_BYTES: u64 = 32;

/// Cuts a snapshot's bytes into answers: pieces of the database, then the checksum in an answer of its own.
#[derive(Debug)]
struct Slicer {
    /// Bytes of the database that no answer has carried yet.
    database_left: u64,
    /// The same for the checksum.
    checksum_left: u64,
    /// What came in and has not gone out.
    chunk: Bytes,
    /// Goes out with the first answer.
    header: Option<ResponseHeader>,
    /// The storage version that each answer carries.
    version: String,
}

impl Slicer {
    fn new(total_bytes: u64, header: ResponseHeader, version: String) -> Result<Self, Error> {
        let database_left = total_bytes
            .checked_sub(CHECKSUM_BYTES)
            .ok_or_else(|| Error::internal("a snapshot without its checksum"))?;
        let header = Some(header);
        Ok(Slicer { database_left, checksum_left: CHECKSUM_BYTES, chunk: Bytes::new(), header, version })
    }

    /// The next answer, if there are bytes for it. The checksum waits until it is whole.
    fn next(&mut self) -> Option<SnapshotResponse> {
        let here = self.chunk.len() as u64;
        let take = if self.database_left > 0 { here.min(self.database_left).min(BLOB_BYTES_MAX) } else { here };
        if take == 0 || (self.database_left == 0 && take < self.checksum_left) {
            return None;
        }
        let blob = self.chunk.split_to(take as usize);
        if self.database_left > 0 {
            self.database_left -= take;
        } else {
            self.checksum_left = 0;
        }
        let (header, version) = (self.header.take(), self.version.clone());
        Some(SnapshotResponse { header, remaining_bytes: self.database_left, blob, version })
    }

    /// Takes the next bytes, after [`Slicer::next`] had nothing more to give.
    fn push(&mut self, chunk: Bytes) -> Result<(), Error> {
        let left = self.database_left + self.checksum_left;
        if (self.chunk.len() + chunk.len()) as u64 > left {
            return Err(Error::internal("the snapshot is longer than it was announced to be"));
        }
        self.chunk = if self.chunk.is_empty() { chunk } else { [self.chunk.as_ref(), chunk.as_ref()].concat().into() };
        Ok(())
    }

    /// All bytes that were announced have gone out: a client must not take half a file for a whole one.
    fn finish(&self) -> Result<(), Error> {
        match self.database_left + self.checksum_left {
            0 => Ok(()),
            left => Err(Error::Internal(format!("the snapshot ended {left} bytes early; ask for it again"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slicer(total: u64) -> Result<Slicer, Error> {
        Slicer::new(total, ResponseHeader::default(), String::new())
    }

    /// Pushes a file in chunks of the given size and returns each answer's blob length and remaining bytes.
    fn slice(total: u64, chunk: usize) -> Vec<(usize, u64)> {
        let file: Vec<u8> = (0..total).map(|i| i as u8).collect();
        let mut slicer = slicer(total).unwrap();
        let mut answers = Vec::new();
        for piece in file.chunks(chunk) {
            slicer.push(Bytes::copy_from_slice(piece)).unwrap();
            answers.extend(std::iter::from_fn(|| slicer.next()));
        }
        slicer.finish().unwrap();
        let bytes: Vec<u8> = answers.iter().flat_map(|a| a.blob.iter().copied()).collect();
        assert_eq!(bytes, file);
        assert!(answers.iter().enumerate().all(|(at, answer)| answer.header.is_some() == (at == 0)));
        answers.into_iter().map(|a| (a.blob.len(), a.remaining_bytes)).collect()
    }

    #[test]
    fn a_snapshot_counts_down_and_ends_with_its_checksum() {
        let expected = [(32768, 8192), (8192, 0), (32, 0)];
        assert_eq!(slice(40960 + 32, 1 << 20), expected);
        // The checksum is one answer however the bytes arrive.
        let odd = slice(40960 + 32, 1000);
        assert_eq!(odd.last(), Some(&(32, 0)));
        assert_eq!(odd.iter().filter(|(_, left)| *left == 0).count(), 2);
    }

    #[test]
    fn a_snapshot_of_another_length_is_no_snapshot() {
        assert!(slicer(31).is_err());
        let mut slicer = slicer(64).unwrap();
        assert!(slicer.push(Bytes::from(vec![0; 65])).is_err());
        slicer.push(Bytes::from(vec![0; 63])).unwrap();
        assert_eq!(slicer.next().map(|a| a.blob.len()), Some(32));
        assert_eq!(slicer.next(), None);
        assert!(slicer.finish().is_err());
    }

    #[test]
    fn alarms_are_filtered_by_member_and_kind() {
        let alarm = |member, kind| Alarm { member: MemberId(member), kind };
        let all = vec![alarm(1, AlarmKind::NoSpace), alarm(1, AlarmKind::Corrupt), alarm(2, AlarmKind::NoSpace)];
        assert_eq!(matching(all.clone(), MemberId(0), None), all);
        assert_eq!(matching(all.clone(), MemberId(2), None), [alarm(2, AlarmKind::NoSpace)]);
        assert_eq!(matching(all, MemberId(1), Some(AlarmKind::Corrupt)), [alarm(1, AlarmKind::Corrupt)]);
    }
}
