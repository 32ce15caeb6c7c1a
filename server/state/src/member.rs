//! The members of the cluster, and those that may never come back.

use crate::StateError;
use bytes::Bytes;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::wire::{DecodeError, Reader, Writer};
use ferretcd_types::{Member, MemberAttributes, MemberId, PeerNode};
use std::collections::{BTreeMap, BTreeSet};

/// The members as the log has them. Sees no other room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
}

impl Members {
    /// All of them, by ID.
    pub fn all(&self) -> Vec<Member> {
        self.members.values().cloned().collect()
    }

    /// Exactly these, of whom none was ever removed.
    pub fn of(members: Vec<Member>) -> Self {
        let members = members.into_iter().map(|member| (member.id, member)).collect();
        Members { members, removed: BTreeSet::new() }
    }

    /// Those that were members once, by ID.
    pub fn removed(&self) -> impl Iterator<Item = MemberId> {
        self.removed.iter().copied()
    }

    /// True when this ID was a member and is none any more. It never becomes one again.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// Takes in a membership entry: who is in the group, where, and with a vote or not. Names and client URLs stay.
    pub fn set_group(&mut self, group: &[(MemberId, PeerNode, bool)], batch: &mut Batch) {
        let now: BTreeSet<MemberId> = group.iter().map(|(id, ..)| *id).collect();
        let gone: Vec<MemberId> = self.members.keys().filter(|id| !now.contains(id)).copied().collect();
        for id in gone {
            self.members.remove(&id);
            self.removed.insert(id);
            batch.delete(keyspace::member(id.0));
            batch.put(keyspace::removed_member(id.0), "");
        }
        for (id, node, is_learner) in group {
            let member = self.members.entry(*id).or_default();
            member.id = *id;
            member.peer_urls.clone_from(&node.peer_urls);
            member.is_learner = *is_learner;
            batch.put(keyspace::member(id.0), encode(member));
        }
    }

    /// Takes in what a member published of itself. False when there is no such member.
    pub fn set_attributes(&mut self, attributes: &MemberAttributes, batch: &mut Batch) -> bool {
        let Some(member) = self.members.get_mut(&attributes.id) else { return false };
        member.name.clone_from(&attributes.name);
        member.client_urls.clone_from(&attributes.client_urls);
        batch.put(keyspace::member(attributes.id.0), encode(member));
        true
    }

    /// Adds all records of the room.
    pub fn save(&self, batch: &mut Batch) {
        for (id, member) in &self.members {
            batch.put(keyspace::member(id.0), encode(member));
        }
        for id in &self.removed {
            batch.put(keyspace::removed_member(id.0), "");
        }
    }

    /// Takes in one member's record.
    pub fn load(&mut self, value: Bytes) -> Result<(), StateError> {
        let member = decode(value).map_err(StateError::record("a member"))?;
        self.members.insert(member.id, member);
        Ok(())
    }

    /// Takes in one removed member's key (without its first byte).
    pub fn load_removed(&mut self, key: &[u8]) -> Result<(), StateError> {
        let id = key.try_into().map_err(|_| StateError::Record {
            what: "a removed member".to_owned(),
            why: format!("its key is {key:?}"),
        })?;
        self.removed.insert(MemberId(u64::from_be_bytes(id)));
        Ok(())
    }
}

fn encode(member: &Member) -> Bytes {
    let Member { id, name, peer_urls, client_urls, is_learner } = member;
    let mut w = Writer::new();
    w.uint(1, id.0);
    w.str(2, name);
    peer_urls.iter().for_each(|url| w.message(3, url.as_bytes()));
    client_urls.iter().for_each(|url| w.message(4, url.as_bytes()));
    w.bool(5, *is_learner);
    w.finish()
}

fn decode(value: Bytes) -> Result<Member, DecodeError> {
    const WHAT: &str = "member";
    let mut r = Reader::new(WHAT, value);
    let mut member = Member::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => member.id = MemberId(v.uint(WHAT)?),
            2 => member.name = v.string(WHAT)?,
            3 => member.peer_urls.push(v.string(WHAT)?),
            4 => member.client_urls.push(v.string(WHAT)?),
            5 => member.is_learner = v.bool(WHAT)?,
            _ => {}
        }
    }
    Ok(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(url: &str) -> PeerNode {
        PeerNode { peer_urls: vec![url.to_owned()] }
    }

    #[test]
    fn who_vanishes_from_the_group_is_removed_for_ever() {
        let mut members = Members::default();
        let mut batch = Batch::new();
        let (a, b) = (MemberId(1), MemberId(2));
        members.set_group(&[(a, node("http://a"), false), (b, node("http://b"), true)], &mut batch);
        let attributes = MemberAttributes { id: a, name: "a".into(), client_urls: vec!["http://c".into()] };
        assert!(members.set_attributes(&attributes, &mut batch));
        members.set_group(&[(a, node("http://a2"), false)], &mut batch);
        assert!(members.is_removed(b) && !members.is_removed(a));
        let [only] = &members.all()[..] else { panic!("one member is left") };
        assert_eq!((only.name.as_str(), only.peer_urls[0].as_str()), ("a", "http://a2"));
        assert!(!members.set_attributes(&MemberAttributes { id: b, ..attributes }, &mut batch));

        // What was saved loads to the same.
        let mut saved = Batch::new();
        members.save(&mut saved);
        let mut again = Members::default();
        for write in saved.writes() {
            match write.key[0] {
                keyspace::MEMBERS => again.load(write.value.clone().unwrap()).unwrap(),
                _ => again.load_removed(&write.key[1..]).unwrap(),
            }
        }
        assert_eq!((again.all(), again.removed), (members.all(), members.removed));
    }
}
