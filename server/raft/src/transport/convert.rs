//! openraft's requests and answers as protobuf messages, and back.

use crate::entry;
use crate::types::{Entry, TypeConfig, log_id_from_pb, log_id_to_pb, log_pos, vote_from_pb, vote_to_pb};
use ferretcd_proto::peer as pb;
use ferretcd_types::LogPos;
use openraft::entry::RaftEntry;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use tonic::Status;

pub fn append_request(rpc: AppendEntriesRequest<TypeConfig>, without_quorum: bool) -> pb::AppendRequest {
    let entry = |e: &Entry| {
        let pos = log_pos(&e.log_id());
        pb::Entry { term: pos.term, index: pos.index, payload: entry::encode(e) }
    };
    pb::AppendRequest {
        vote: Some(vote_to_pb(&rpc.vote)),
        previous: log_id_to_pb(rpc.prev_log_id.as_ref()),
        entries: rpc.entries.iter().map(entry).collect(),
        commit: log_id_to_pb(rpc.leader_commit.as_ref()),
        without_quorum,
    }
}

pub fn append_request_from(rpc: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let entries = rpc
        .entries
        .into_iter()
        .map(|e| entry::decode(LogPos { term: e.term, index: e.index }, e.payload))
        .collect::<Result<_, _>>()
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(AppendEntriesRequest {
        vote: vote_from_pb(rpc.vote),
        prev_log_id: log_id_from_pb(rpc.previous),
        entries,
        leader_commit: log_id_from_pb(rpc.commit),
    })
}

pub fn append_response(result: StreamAppendResult<TypeConfig>) -> pb::AppendResponse {
    use pb::append_response::Result as R;
    let result = match result {
        Ok(id) => R::Matched(pb::Matched { log_id: log_id_to_pb(id.as_ref()) }),
        Err(StreamAppendError::Conflict(id)) => {
            let pos = log_pos(&id);
            R::Conflict(pb::LogId { term: pos.term, index: pos.index })
        }
        Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(vote_to_pb(&vote)),
    };
    pb::AppendResponse { result: Some(result) }
}

pub fn append_response_from(response: pb::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, Status> {
    use pb::append_response::Result as R;
    match response.result {
        Some(R::Matched(m)) => Ok(Ok(log_id_from_pb(m.log_id))),
        Some(R::Conflict(id)) => {
            Ok(Err(StreamAppendError::Conflict(crate::types::log_id(LogPos { term: id.term, index: id.index }))))
        }
        Some(R::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(vote_from_pb(Some(vote))))),
        None => Err(Status::internal("an append was answered with nothing")),
    }
}

pub fn vote_request(rpc: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(vote_to_pb(&rpc.vote)),
        last: log_id_to_pb(rpc.last_log_id.as_ref()),
        leadership_transfer: rpc.leadership_transfer,
    }
}

pub fn vote_request_from(rpc: pb::VoteRequest) -> VoteRequest<TypeConfig> {
    let mut request = VoteRequest::new(vote_from_pb(rpc.vote), log_id_from_pb(rpc.last));
    request.leadership_transfer = rpc.leadership_transfer;
    request
}

pub fn vote_response(r: &VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(vote_to_pb(&r.vote)),
        granted: r.vote_granted,
        last: log_id_to_pb(r.last_log_id.as_ref()),
    }
}

pub fn vote_response_from(r: pb::VoteResponse) -> VoteResponse<TypeConfig> {
    VoteResponse::new(vote_from_pb(r.vote), log_id_from_pb(r.last), r.granted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use ferretcd_fuzz::Fuzz;
    use ferretcd_proto::peer::snapshot_part::Part;
    use ferretcd_types::{ClusterId, Epoch, MemberId};
    use prost::Message;
    use tonic::metadata::{MetadataMap, MetadataValue};

    fn tagged(tag: u8, message: &impl Message) -> Vec<u8> {
        [&[tag][..], &message.encode_to_vec()].concat()
    }

    #[test]
    fn fuzz_peer_message() {
        let entry = |index, payload: &[u8]| pb::Entry { term: 1, index, payload: payload.to_vec().into() };
        let at = Some(pb::LogId { term: 1, index: 1 });
        let append = pb::AppendRequest {
            entries: vec![
                entry(2, b"\x01proposal"),
                entry(3, b"\x00"),
                entry(4, b"\x02\x0a\x02\x08\x01\x12\x02\x08\x01"),
            ],
            previous: at,
            commit: at,
            ..Default::default()
        };
        let membership = b"\x0a\x04\x08\x01\x10\x02\x12\x0a\x0a\x02\x08\x01\x12\x04\x08\x01\x12\x00"[..].into();
        let head = pb::SnapshotHead { last: at, membership, bytes: 9, ..Default::default() };
        let conflict = pb::append_response::Result::Conflict(pb::LogId { term: 1, index: 1 });
        let seeds = [
            tagged(0, &append),
            tagged(1, &pb::AppendResponse { result: Some(conflict) }),
            tagged(2, &pb::VoteRequest { last: at, leadership_transfer: true, ..Default::default() }),
            tagged(3, &pb::VoteResponse { granted: true, last: at, ..Default::default() }),
            b"\x04\x0a\x04\x08\x01\x10\x02\x12\x0a\x0a\x02\x08\x01\x12\x04\x08\x01\x12\x00".to_vec(),
            tagged(5, &pb::SnapshotPart { part: Some(Part::Head(head)) }),
            tagged(6, &pb::TransferRequest { to: 2, last: at, from: Some(pb::Vote::default()) }),
        ];
        Fuzz::new(env!("CARGO_MANIFEST_DIR"), "peer_message").seeds(seeds).run(|bytes| {
            let (tag, body) = bytes.split_first().unwrap_or((&0, &[]));
            match tag % 7 {
                0 => match pb::AppendRequest::decode(body) {
                    Ok(message) => match append_request_from(message) {
                        Ok(rpc) => format!("{:?}", append_request(rpc, false)),
                        Err(status) => status.message().to_owned(),
                    },
                    Err(e) => e.to_string(),
                },
                1 => format!(
                    "{:?}",
                    pb::AppendResponse::decode(body).map(|r| append_response_from(r).map_err(|s| s.code()))
                ),
                2 => format!("{:?}", pb::VoteRequest::decode(body).map(|r| vote_request(&vote_request_from(r)))),
                3 => format!("{:?}", pb::VoteResponse::decode(body).map(|r| vote_response(&vote_response_from(r)))),
                5 => match pb::SnapshotPart::decode(body).map(|part| part.part) {
                    Ok(Some(Part::Head(head))) => {
                        let membership = entry::decode_stored(head.membership).map_err(|e| e.to_string());
                        format!("{membership:?} {:?} {:?}", log_id_from_pb(head.last), vote_from_pb(head.vote))
                    }
                    other => format!("{other:?}"),
                },
                6 => match pb::TransferRequest::decode(body) {
                    Ok(r) => format!("{:?} {:?}", vote_from_pb(r.from), log_id_from_pb(r.last)),
                    Err(e) => e.to_string(),
                },
                _ => match entry::decode_stored(body.to_vec().into()) {
                    Ok(stored) => format!("{:?}", entry::decode_stored(entry::encode_stored(&stored))),
                    Err(e) => e.to_string(),
                },
            }
        });
    }

    #[test]
    fn fuzz_peer_proof() {
        let me = Identity::new(ClusterId(1), MemberId(2), Epoch(3));
        let mut proof = MetadataMap::new();
        me.sign(MemberId(2), &mut proof);
        let names: Vec<String> = proof.keys().map(|key| format!("{key:?}")).collect();
        assert_eq!(names.len(), 4);
        let seeds = ["1\n3\n2\n2", "1\n0\n9\n2", "18446744073709551616\n-1\n\n"];
        Fuzz::new(env!("CARGO_MANIFEST_DIR"), "peer_proof").seeds(seeds).run(|bytes| {
            let mut metadata = MetadataMap::new();
            let keys: Vec<String> = proof
                .iter()
                .filter_map(|kv| match kv {
                    tonic::metadata::KeyAndValueRef::Ascii(key, _) => Some(key.as_str().to_owned()),
                    tonic::metadata::KeyAndValueRef::Binary(..) => None,
                })
                .collect();
            for (key, value) in keys.iter().zip(bytes.split(|b| *b == b'\n')) {
                let key = tonic::metadata::MetadataKey::from_bytes(key.as_bytes());
                if let (Ok(key), Ok(value)) = (key, MetadataValue::try_from(value)) {
                    metadata.insert(key, value);
                }
            }
            match me.check(&metadata) {
                Ok(peer) => format!("{peer:?}"),
                Err(status) => status.message().to_owned(),
            }
        });
    }
}
