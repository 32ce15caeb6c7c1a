//! `/debug/vars`: what Go programs publish about themselves, as far as it makes sense for this one. (`memstats` are
//! figures of Go's memory management, which is not here.)

use axum::response::{IntoResponse, Response};
use ferretcd_node::Status;
use ferretcd_types::MemberId;
use http::header::CONTENT_TYPE;
use serde::Serialize;

/// etcd's `raft.status`, without what only its leader keeps.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Raft {
    id: String,
    term: u64,
    commit: u64,
    lead: String,
    raft_state: &'static str,
    applied: u64,
}

/// The page.
pub fn page(member: MemberId, status: &Status) -> Response {
    let raft = Raft {
        id: member.to_string(),
        term: status.raft_term,
        commit: status.raft_index,
        lead: status.leader.unwrap_or_default().to_string(),
        raft_state: match status.leader {
            Some(leader) if leader == member => "StateLeader",
            Some(_) => "StateFollower",
            None => "StateCandidate",
        },
        applied: status.raft_applied_index,
    };
    let command: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    // No limit shows as the largest number.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // Strings and numbers always encode.
    let json = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
    let body = format!(
        "{{\n\"cmdline\": {},\n\"file_descriptor_limit\": {files},\n\"raft.status\": {}\n}}\n",
        json(serde_json::to_string(&command)),
        json(serde_json::to_string(&raft)),
    );
    ([(CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_page_is_json_with_etcds_names() {
        let status = Status { leader: Some(MemberId(10)), raft_term: 3, raft_index: 7, ..Default::default() };
        let response = page(MemberId(10), &status);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json; charset=utf-8");
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(page["raft.status"]["raftState"], "StateLeader");
        assert_eq!((&page["raft.status"]["id"], &page["raft.status"]["lead"]), (&"a".into(), &"a".into()));
        assert!(page["file_descriptor_limit"].as_u64() > Some(0) && page["cmdline"][0].is_string(), "{page}");
    }
}
