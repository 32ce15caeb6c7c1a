//! What members say to each other, byte for byte: a release understands what another one sends. `golden/peer.txt` has a line
//! per message, with every field set, as it was first sent. A new field gets a line of its own, and the old one stays.

use bytes::Bytes;
use ferretcd_proto::peer as pb;
use ferretcd_proto::peer::change_members_request::Change;
use prost::Message;
use std::path::{Path, PathBuf};

/// The calls, as they are in the path of a request.
const CALLS: [&str; 13] = [
    "Append(stream AppendRequest) returns (stream AppendResponse)",
    "Vote(VoteRequest) returns (VoteResponse)",
    "PreVote(VoteRequest) returns (VoteResponse)",
    "InstallSnapshot(stream SnapshotPart) returns (SnapshotResponse)",
    "FetchSnapshot(FetchSnapshotRequest) returns (stream SnapshotPart)",
    "TransferLeader(TransferRequest) returns (TransferResponse)",
    "Forward(stream ForwardRequest) returns (stream ForwardResponse)",
    "ReadIndex(ReadIndexRequest) returns (ReadIndexResponse)",
    "LeaseKeepAlive(LeaseRequest) returns (LeaseResponse)",
    "LeaseTimeToLive(LeaseRequest) returns (LeaseResponse)",
    "HashKv(HashKvRequest) returns (HashKvResponse)",
    "ChangeMembers(ChangeMembersRequest) returns (ChangeMembersResponse)",
    "Probe(ProbeRequest) returns (ProbeResponse)",
];

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peer.txt")
}

type Reads = Box<dyn Fn(&[u8]) -> bool>;

/// A message as it goes, and whether these bytes come back as it.
struct Sent {
    name: &'static str,
    bytes: Vec<u8>,
    reads: Reads,
}

fn sent<M: Message + Default + PartialEq + 'static>(name: &'static str, message: M) -> Sent {
    Sent {
        name,
        bytes: message.encode_to_vec(),
        reads: Box::new(move |bytes| M::decode(bytes).as_ref() == Ok(&message)),
    }
}

fn messages() -> Vec<Sent> {
    let id = |term, index| Some(pb::LogId { term, index });
    let vote = || Some(pb::Vote { term: 300, node: u64::MAX, committed: true });
    let entry = pb::Entry { term: 300, index: 70_000, payload: Bytes::from_static(b"\x01put") };
    let append = pb::AppendRequest {
        vote: vote(),
        previous: id(299, 69_999),
        entries: vec![entry, pb::Entry::default()],
        commit: id(298, 69_000),
        without_quorum: true,
    };
    let appended = |result| pb::AppendResponse { result: Some(result) };
    let matched = pb::Matched { log_id: id(300, 70_000) };
    let head =
        pb::SnapshotHead { vote: vote(), last: id(300, 70_000), membership: Bytes::from_static(b"m"), bytes: 1 << 40 };
    let part = |part| pb::SnapshotPart { part: Some(part) };
    let change = |change| pb::ChangeMembersRequest { change: Some(change) };
    let urls = || vec!["http://a:1".to_owned(), "http://b:1".to_owned()];
    let listed = pb::ProbeMember { id: 7, name: "a".to_owned(), peer_urls: urls(), is_learner: true };
    let first_release = pb::ProbeResponse {
        cluster_id: 5,
        member_id: u64::MAX,
        epoch: 4,
        name: "a".to_owned(),
        formed: true,
        has_leader: true,
        members: vec![listed],
        removed: vec![8, 9],
        arrival: pb::ProbeArrival::Other.into(),
        replaced_epochs: vec![1, 2],
        log_format: 2,
        ..Default::default()
    };
    let probed = pb::ProbeResponse {
        server_version: "3.7.0".to_owned(),
        cluster_version: "3.6.0".to_owned(),
        cluster_log_format: 3,
        ..first_release.clone()
    };
    vec![
        sent("append", append),
        sent("append: matched", appended(pb::append_response::Result::Matched(matched))),
        sent("append: conflict", appended(pb::append_response::Result::Conflict(pb::LogId { term: 1, index: 2 }))),
        sent("append: higher vote", appended(pb::append_response::Result::HigherVote(vote().unwrap_or_default()))),
        sent("vote", pb::VoteRequest { vote: vote(), last: id(3, 4), leadership_transfer: true }),
        sent("voted", pb::VoteResponse { vote: vote(), granted: true, last: id(3, 4) }),
        sent("snapshot: head", part(pb::snapshot_part::Part::Head(head))),
        sent("snapshot: data", part(pb::snapshot_part::Part::Data(Bytes::from_static(b"bolt")))),
        sent("snapshot: installed", pb::SnapshotResponse { vote: vote() }),
        sent("fetch snapshot", pb::FetchSnapshotRequest { at_least: 70_000 }),
        sent("transfer", pb::TransferRequest { from: vote(), to: 7, last: id(3, 4) }),
        sent("transfer: refused", pb::TransferResponse { refusal: "no".to_owned() }),
        sent(
            "forward",
            pb::ForwardRequest {
                number: 300,
                proposals: vec![Bytes::from_static(b"put"), Bytes::from_static(b"other")],
            },
        ),
        sent(
            "forward: answer",
            pb::ForwardResponse { number: 300, refusals: vec![pb::ForwardRefusal { at: 1, why: "no".to_owned() }] },
        ),
        sent("read index", pb::ReadIndexRequest {}),
        sent("read index: answer", pb::ReadIndexResponse { index: 70_000 }),
        sent("lease", pb::LeaseRequest { id: -7 }),
        sent("lease: answer", pb::LeaseResponse { ttl: -1 }),
        sent("hash", pb::HashKvRequest { revision: 9 }),
        sent("hash: answer", pb::HashKvResponse { hash: u32::MAX, compact_revision: -1, revision: 9 }),
        sent("add", change(Change::Add(pb::AddMember { peer_urls: urls(), is_learner: true }))),
        sent("remove", change(Change::Remove(7))),
        sent("promote", change(Change::Promote(7))),
        sent("update", change(Change::Update(pb::UpdateMember { id: 7, peer_urls: urls() }))),
        sent("changed", pb::ChangeMembersResponse { id: 7, index: 70_000 }),
        sent("probe", pb::ProbeRequest { member_id: 7, arrival: u64::MAX, founder: true }),
        sent("probe: answer of the first release", first_release),
        sent("probe: answer", probed),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_message_is_read_as_it_was_sent_and_still_sent_so() {
    let messages = messages();
    let now: String = messages.iter().map(|sent| format!("{}={}\n", sent.name, hex(&sent.bytes))).collect();
    if std::env::var_os("FERRETCD_WRITE_GOLDEN").is_some() {
        std::fs::write(file(), &now).unwrap();
    }
    let golden = std::fs::read_to_string(file()).unwrap();
    assert_eq!(golden.lines().count(), messages.len());
    for (line, sent) in golden.lines().zip(messages) {
        let (name, bytes) = line.split_once('=').unwrap();
        assert_eq!((name, bytes), (sent.name, hex(&sent.bytes).as_str()), "it is sent in another way");
        let bytes = |hex: &str| u8::from_str_radix(hex, 16).unwrap();
        let mut bytes: Vec<u8> = (0..line.len() - name.len() - 1)
            .step_by(2)
            .map(|at| bytes(&line[name.len() + 1 + at..name.len() + 3 + at]))
            .collect();
        assert!((sent.reads)(&bytes), "{name}: it is read in another way");
        // And by a release that knows fewer fields: number 1000, a text.
        bytes.extend(b"\xc2\x3e\x03new");
        assert!((sent.reads)(&bytes), "{name}: a later release's is not read");
    }
}

#[test]
fn every_call_has_the_name_that_other_releases_call_it_by() {
    assert_eq!(pb::peer_server::SERVICE_NAME, "ferretcd.peer.v1.Peer");
    let source = include_str!("../proto/ferretcd_peer.proto");
    let calls: Vec<&str> =
        source.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.strip_suffix(';')).collect();
    assert_eq!(calls, CALLS);
}
