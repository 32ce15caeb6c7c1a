//! What an entry's payload looks like, in the log and between members: a kind byte, then the body.
//!
//! The kind byte is part of the application data's own buffer, so that an entry goes from the client's request to the
//! disk, to the peers and to the state machine without a copy.

use crate::types::{Data, Entry, Membership, StoredMembership, log_id, log_pos};
use bytes::{BufMut, Bytes, BytesMut};
use ferretcd_types::wire::{DecodeError, Reader, Writer};
use ferretcd_types::{LogPos, MemberId, PeerNode};
use openraft::EntryPayload;
use std::collections::{BTreeMap, BTreeSet};

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// An application payload from an encoded proposal.
pub fn normal(proposal: &[u8]) -> Bytes {
    let mut buf = BytesMut::with_capacity(proposal.len() + 1);
    buf.put_u8(NORMAL);
    buf.put_slice(proposal);
    buf.freeze()
}

/// The encoded proposal of an application payload.
pub fn proposal(data: &Data) -> Bytes {
    data.0.slice(1.min(data.0.len())..)
}

pub(crate) fn encode(entry: &Entry) -> Bytes {
    match &entry.payload {
        EntryPayload::Blank => Bytes::from_static(&[BLANK]),
        EntryPayload::Normal(data) => data.0.clone(),
        EntryPayload::Membership(m) => {
            let body = encode_membership(m);
            let mut buf = BytesMut::with_capacity(body.len() + 1);
            buf.put_u8(MEMBERSHIP);
            buf.put_slice(&body);
            buf.freeze()
        }
    }
}

pub(crate) fn decode(pos: LogPos, payload: Bytes) -> Result<Entry, DecodeError> {
    let payload = match payload.first() {
        Some(&BLANK) => EntryPayload::Blank,
        Some(&NORMAL) => EntryPayload::Normal(Data(payload)),
        Some(&MEMBERSHIP) => EntryPayload::Membership(decode_membership(payload.slice(1..))?),
        _ => return Err(DecodeError { what: "log entry", why: "its kind is newer than this server" }),
    };
    Ok(Entry { log_id: log_id(pos), payload })
}

/// 1: one config per voter set (1: voter id)*; 2: node (1: id, 2: peer url*).
fn encode_membership(m: &Membership) -> Bytes {
    let mut w = Writer::new();
    for config in m.get_joint_config() {
        let mut inner = Writer::new();
        config.iter().for_each(|id| inner.uint(1, *id));
        w.message(1, &inner.finish());
    }
    for (id, node) in m.nodes() {
        let mut inner = Writer::new();
        inner.uint(1, *id);
        node.peer_urls.iter().for_each(|u| inner.message(2, u.as_bytes()));
        w.message(2, &inner.finish());
    }
    w.finish()
}

fn decode_membership(bytes: Bytes) -> Result<Membership, DecodeError> {
    const WHAT: &str = "membership";
    let mut configs = Vec::new();
    let mut nodes = BTreeMap::new();
    let mut r = Reader::new(WHAT, bytes);
    while let Some((n, v)) = r.field()? {
        let mut inner = Reader::new(WHAT, v.bytes(WHAT)?);
        match n {
            1 => {
                let mut voters = BTreeSet::new();
                while let Some((n, v)) = inner.field()? {
                    if n == 1 {
                        voters.insert(member_id(v.uint(WHAT)?)?);
                    }
                }
                configs.push(voters);
            }
            2 => {
                let (mut id, mut node) = (0, PeerNode::default());
                while let Some((n, v)) = inner.field()? {
                    match n {
                        1 => id = v.uint(WHAT)?,
                        2 => node.peer_urls.push(v.string(WHAT)?),
                        _ => {}
                    }
                }
                nodes.insert(member_id(id)?, node);
            }
            _ => {}
        }
    }
    Membership::new(configs, nodes).map_err(|_| DecodeError { what: WHAT, why: "a voter has no node" })
}

/// No member has the ID 0, and it could not be written again: the encoding leaves zeros out.
fn member_id(id: u64) -> Result<u64, DecodeError> {
    match id {
        0 => Err(DecodeError { what: "membership", why: "a member has no ID" }),
        id => Ok(id),
    }
}

/// The membership with the entry that set it, as the state machine and snapshots keep it.
pub(crate) fn encode_stored(stored: &StoredMembership) -> Bytes {
    let mut w = Writer::new();
    if let Some(pos) = stored.log_id().as_ref().map(log_pos) {
        let mut inner = Writer::new();
        inner.uint(1, pos.term);
        inner.uint(2, pos.index);
        w.message(1, &inner.finish());
    }
    w.message(2, &encode_membership(stored.membership()));
    w.finish()
}

pub(crate) fn decode_stored(bytes: Bytes) -> Result<StoredMembership, DecodeError> {
    const WHAT: &str = "stored membership";
    let (mut set_by, mut membership) = (None, Membership::default());
    let mut r = Reader::new(WHAT, bytes);
    while let Some((n, v)) = r.field()? {
        match n {
            1 => {
                let mut pos = LogPos::default();
                let mut inner = Reader::new(WHAT, v.bytes(WHAT)?);
                while let Some((n, v)) = inner.field()? {
                    match n {
                        1 => pos.term = v.uint(WHAT)?,
                        2 => pos.index = v.uint(WHAT)?,
                        _ => {}
                    }
                }
                set_by = Some(log_id(pos));
            }
            2 => membership = decode_membership(v.bytes(WHAT)?)?,
            _ => {}
        }
    }
    Ok(StoredMembership::new(set_by, membership))
}

/// Members of a membership: ID, node, and whether it is a learner.
pub(crate) fn members(m: &Membership) -> Vec<(MemberId, PeerNode, bool)> {
    let voters: BTreeSet<u64> = m.voter_ids().collect();
    m.nodes().map(|(id, node)| (MemberId(*id), node.clone(), !voters.contains(id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::describe;
    use ferretcd_fuzz::Fuzz;
    use ferretcd_types::codec::encode_proposal;
    use ferretcd_types::{Caller, Command, Proposal, Put, RequestId};

    fn membership() -> Membership {
        let node = |u: &str| PeerNode { peer_urls: vec![u.to_owned()] };
        let nodes = BTreeMap::from([(1, node("http://a:1")), (2, node("http://b:1")), (3, node("http://c:1"))]);
        Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap()
    }

    #[test]
    fn payloads_come_back_as_they_went() {
        let pos = LogPos { term: 3, index: 9 };
        for payload in
            [EntryPayload::Blank, EntryPayload::Normal(Data(normal(b"put"))), EntryPayload::Membership(membership())]
        {
            let entry = Entry { log_id: log_id(pos), payload };
            assert_eq!(decode(pos, encode(&entry)).unwrap(), entry);
        }
        assert_eq!(proposal(&Data(normal(b"put"))), "put");
    }

    #[test]
    fn a_stored_membership_keeps_its_entry_and_its_learner() {
        let stored = StoredMembership::new(Some(log_id(LogPos { term: 2, index: 5 })), membership());
        let back = decode_stored(encode_stored(&stored)).unwrap();
        assert_eq!(back, stored);
        let learners: Vec<u64> = members(back.membership()).iter().filter(|m| m.2).map(|m| m.0.0).collect();
        assert_eq!(learners, [3]);
    }

    /// A line per payload, as the first release wrote it to its log and sent it to others. One that has changed gets a line of its own,
    /// and the old one stays.
    #[test]
    fn entries_of_old_logs_are_understood_and_still_written_so() {
        let pos = LogPos { term: 300, index: 70_000 };
        let node = |u: &str| PeerNode { peer_urls: vec![u.to_owned(), format!("{u}0")] };
        let nodes =
            BTreeMap::from([(1, node("http://a:1")), (300, node("http://b:1")), (u64::MAX, PeerNode::default())]);
        let voters = vec![BTreeSet::from([1, u64::MAX]), BTreeSet::from([1])];
        let joint = Membership::new(voters, nodes).unwrap();
        let put = Put { key: "k".into(), value: "v".into(), ..Put::default() };
        let put = Proposal { id: RequestId(77), caller: Caller::Member, command: Command::Put(put) };
        let entry = |payload| Entry { log_id: log_id(pos), payload };
        let entries = [
            entry(EntryPayload::Blank),
            entry(EntryPayload::Normal(Data(normal(&encode_proposal(&put))))),
            entry(EntryPayload::Membership(membership())),
            entry(EntryPayload::Membership(joint.clone())),
        ];
        let stored = StoredMembership::new(Some(log_id(pos)), joint);
        let now = entries.iter().map(encode).chain([encode_stored(&stored)]);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let now: Vec<String> = now.map(|bytes| hex(&bytes)).collect();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/entries.txt");
        if std::env::var_os("FERRETCD_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, now.join("\n") + "\n").unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap();
        assert_eq!(now, golden.lines().collect::<Vec<_>>(), "an entry is written in another way");
        let bytes = |line: &str| -> Bytes {
            (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
        };
        let mut read: Vec<Bytes> = golden.lines().map(bytes).collect();
        assert_eq!(decode_stored(read.pop().unwrap()).unwrap(), stored);
        for (bytes, entry) in read.into_iter().zip(entries) {
            assert_eq!(decode(pos, bytes).unwrap(), entry);
        }
    }

    /// What a log record holds behind a checksum that is right, and what another member sends.
    #[test]
    fn fuzz_log_entry() {
        let pos = LogPos { term: 3, index: 9 };
        let put = Put { key: "k".into(), value: "v".into(), ..Put::default() };
        let put = Proposal { id: RequestId(1), caller: Caller::Member, command: Command::Put(put) };
        let seeds = [EntryPayload::Blank, EntryPayload::Membership(membership())]
            .map(|payload| encode(&Entry { log_id: log_id(pos), payload }))
            .into_iter()
            .chain([normal(&encode_proposal(&put))]);
        let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "log_entry").seeds(seeds.map(Vec::from));
        fuzz.run(|bytes| {
            let payload = Bytes::copy_from_slice(bytes);
            let stored = decode_stored(payload.clone());
            if let Ok(stored) = &stored {
                assert_eq!(decode_stored(encode_stored(stored)).as_ref(), Ok(stored));
            }
            if let Ok(entry) = decode(pos, payload) {
                assert_eq!(decode(pos, encode(&entry)).as_ref(), Ok(&entry));
            }
            let stored = stored.map(|stored| members(stored.membership()));
            format!("{} {stored:?}", describe(pos, bytes, |_| "command"))
        });
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        assert!(decode(LogPos::default(), Bytes::from_static(&[9])).is_err());
        assert!(decode(LogPos::default(), Bytes::new()).is_err());
    }
}
