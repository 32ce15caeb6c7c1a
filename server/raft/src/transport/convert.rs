//! openraft's requests and answers as protobuf messages, and back.

use crate::entry;
use crate::types::{Entry, TypeConfig, log_id_from_pb, log_id_to_pb, log_pos, vote_from_pb, vote_to_pb};
use ferretcd_proto::peer as pb;
use ferretcd_types::LogPos;
use openraft::entry::RaftEntry;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use tonic::Status;

pub fn append_request(rpc: AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    let entry = |e: &Entry| {
        let pos = log_pos(&e.log_id());
        pb::Entry { term: pos.term, index: pos.index, payload: entry::encode(e) }
    };
    pb::AppendRequest {
        vote: Some(vote_to_pb(&rpc.vote)),
        previous: log_id_to_pb(rpc.prev_log_id.as_ref()),
        entries: rpc.entries.iter().map(entry).collect(),
        commit: log_id_to_pb(rpc.leader_commit.as_ref()),
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
