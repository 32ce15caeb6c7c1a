//! Changes of the members: who may come, who may go, and when (etcd's rules of 2.14 in our reference: one learner at a
//! time, no change that endangers the quorum, no ID twice).

use crate::ids;
use crate::node::{Inner, Node, from_group};
use ferretcd_proto::peer::{AddMember, UpdateMember, change_members_request::Change};
use ferretcd_raft::{GroupError, GroupView, Role};
use ferretcd_state::State;
use ferretcd_types::{Error, Member, MemberId, PeerNode};
use std::time::Duration;
use tokio::time::Instant;

/// How often a change of members is decided anew because another one came first: more than people make at a time.
const DECISIONS_MAX: usize = 8;

/// A voter that the leader has not heard for this long counts as down (etcd's HealthInterval).
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// A learner may vote once its log has this part of the leader's (etcd's readyPercent).
const LEARNER_READY: f64 = 0.9;

impl Node {
    /// All members; linearizable asks the quorum first.
    pub async fn member_list(&self, linearizable: bool) -> Result<Vec<Member>, Error> {
        if linearizable {
            self.inner.linearize().await?;
        }
        Ok(self.inner.members())
    }

    /// Adds a member under a fresh random ID.
    pub async fn member_add(&self, peer_urls: Vec<String>, learner: bool) -> Result<(Member, Vec<Member>), Error> {
        let change = Change::Add(AddMember { peer_urls, is_learner: learner });
        let id = self.inner.change_members(change).await?;
        let members = self.inner.members();
        let added = members.iter().find(|m| m.id == id).cloned().ok_or(Error::MemberNotFound)?;
        Ok((added, members))
    }

    /// Removes a member for good.
    pub async fn member_remove(&self, id: MemberId) -> Result<Vec<Member>, Error> {
        self.inner.change_members(Change::Remove(id.0)).await?;
        Ok(self.inner.members())
    }

    /// Changes where the other members reach a member.
    pub async fn member_update(&self, id: MemberId, peer_urls: Vec<String>) -> Result<Vec<Member>, Error> {
        self.inner.change_members(Change::Update(UpdateMember { id: id.0, peer_urls })).await?;
        Ok(self.inner.members())
    }

    /// Gives a learner that has caught up its vote.
    pub async fn member_promote(&self, id: MemberId) -> Result<Vec<Member>, Error> {
        self.inner.change_members(Change::Promote(id.0)).await?;
        Ok(self.inner.members())
    }
}

impl Inner {
    /// Members as this member's log has them, with the names that they published. A change is in force before it is
    /// applied: a second voter must be found in this list so that it can start, which the quorum waits for.
    pub(crate) fn members(&self) -> Vec<Member> {
        let applied = self.state.applied().map_or(0, |pos| pos.index);
        let known = self.state.members();
        let view = self.view.borrow();
        match view.membership_index > applied {
            true => in_force(&view, &known),
            false => known,
        }
    }

    /// Has the leader change the members, and waits until the change is applied here.
    async fn change_members(&self, change: Change) -> Result<MemberId, Error> {
        let deadline = Instant::now() + self.timing.request_timeout();
        loop {
            // A leader that has lost its quorum says what is in the way, as in etcd.
            let leader = match self.view().role {
                Role::Leader => self.identity.member,
                _ => self.leader_by(deadline).await?,
            };
            let changed = if leader == self.identity.member {
                // Without a quorum the entry would be waited for until there is one.
                let changed = tokio::time::timeout_at(deadline, self.change_members_here(change.clone())).await;
                changed.unwrap_or(Err(Error::Timeout))
            } else {
                let Some(node) = self.view().node(leader).cloned() else {
                    self.pause(deadline).await?;
                    continue;
                };
                self.group.peers().change_members(leader, &node, change.clone()).await
            };
            match changed {
                Ok((id, index)) => {
                    match change {
                        // It is applied when the new quorum is there: the new voter may have to be started for that.
                        Change::Add(_) => self.wait_in_force(index, deadline).await?,
                        // The member that removes itself may not get to apply it any more.
                        Change::Remove(gone) if gone == self.identity.member.0 => {}
                        _ => self.wait_applied(index, deadline).await?,
                    }
                    return Ok(id);
                }
                Err(Error::NotLeader) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The leader's half. Decides on what it sees, then changes exactly that or nothing: the group refuses when the
    /// members changed in between, and it is decided anew.
    pub(crate) async fn change_members_here(&self, change: Change) -> Result<(MemberId, u64), Error> {
        for _ in 0..DECISIONS_MAX {
            if let Some(changed) = self.try_to_change_members(change.clone()).await? {
                return Ok(changed);
            }
        }
        Err(Error::Unhealthy)
    }

    /// Nothing if another change came first.
    async fn try_to_change_members(&self, change: Change) -> Result<Option<(MemberId, u64)>, Error> {
        let (view, is_settled) = self.settled_view().await?;
        if view.role != Role::Leader {
            return Err(Error::NotLeader);
        }
        let members = self.members();
        let id = match &change {
            Change::Add(add) => {
                self.may_add(&view, &members, add)?;
                ids::member(|id| is_taken(id, &members, &self.state))
            }
            Change::Remove(id) => {
                self.may_remove(&view, &members, MemberId(*id))?;
                MemberId(*id)
            }
            Change::Promote(id) => {
                self.may_promote(&view, &members, MemberId(*id)).inspect_err(|e| {
                    self.metrics.learners_not_promoted.with_label_values(&[&e.to_string()]).inc();
                })?;
                MemberId(*id)
            }
            Change::Update(update) => {
                may_update(&members, update)?;
                MemberId(update.id)
            }
        };
        if !is_settled {
            return Err(Error::Unhealthy);
        }
        let decided_on = view.membership_index;
        let promotes = matches!(change, Change::Promote(_));
        let changed = match change {
            Change::Update(update) => {
                self.group.move_member(decided_on, id, PeerNode { peer_urls: update.peer_urls }).await
            }
            Change::Add(add) => {
                self.group
                    .change_members(decided_on, |voters, nodes| {
                        nodes.insert(id, PeerNode { peer_urls: add.peer_urls });
                        if !add.is_learner {
                            voters.insert(id);
                        }
                    })
                    .await
            }
            Change::Remove(_) => {
                self.group
                    .change_members(decided_on, |voters, nodes| {
                        voters.remove(&id);
                        nodes.remove(&id);
                    })
                    .await
            }
            Change::Promote(_) => {
                self.group
                    .change_members(decided_on, |voters, _| {
                        voters.insert(id);
                    })
                    .await
            }
        };
        if matches!(changed, Err(GroupError::Overtaken)) {
            // What is seen may lag.
            let mut view = self.view.clone();
            let seen = view.wait_for(|view| view.membership_index > decided_on);
            let _ = tokio::time::timeout(self.timing.election, seen).await;
            return Ok(None);
        }
        let pos = changed
            .inspect_err(|e| tracing::warn!(member = %id, "the members were not changed: {e}"))
            .map_err(from_group)?;
        if promotes {
            self.metrics.learners_promoted.inc();
        }
        tracing::info!(member = %id, index = pos.index, "the members changed");
        Ok(Some((id, pos.index)))
    }

    /// Waits until this member's log has the change of members at `index`.
    async fn wait_in_force(&self, index: u64, deadline: Instant) -> Result<(), Error> {
        let mut view = self.view.clone();
        let there = view.wait_for(|view| view.membership_index >= index || view.applied >= index);
        match tokio::time::timeout_at(deadline, there).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// What this member knows of the group, and whether it has applied the last change of members. A change that a
    /// quorum does not take up within an election time-out is a sign of trouble, and no other one may come on top of it.
    async fn settled_view(&self) -> Result<(GroupView, bool), Error> {
        let mut view = self.view.clone();
        let settled = view.wait_for(|v| v.role != Role::Leader || v.applied >= v.membership_index);
        match tokio::time::timeout(self.timing.election, settled).await {
            Ok(Ok(view)) => Ok((view.clone(), true)),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Ok((self.view(), false)),
        }
    }

    fn may_add(&self, view: &GroupView, members: &[Member], add: &AddMember) -> Result<(), Error> {
        if add.peer_urls.is_empty() || add.peer_urls.iter().any(|u| !is_peer_url(u)) {
            return Err(Error::BadMemberUrls);
        }
        // In etcd's order: it looks at the cluster before the log, and at the list of members behind it.
        if self.config.strict_reconfig_check {
            self.is_fit_to_grow(view, members, add.is_learner)?;
        }
        if members.iter().any(|m| m.peer_urls.iter().any(|u| add.peer_urls.contains(u))) {
            return Err(Error::PeerUrlExists);
        }
        if add.is_learner && members.iter().filter(|m| m.is_learner).count() >= self.config.max_learners {
            return Err(Error::TooManyLearners);
        }
        Ok(())
    }

    fn is_fit_to_grow(&self, view: &GroupView, members: &[Member], by_learner: bool) -> Result<(), Error> {
        let voters: Vec<&Member> = members.iter().filter(|m| !m.is_learner).collect();
        let started = voters.iter().filter(|m| !m.name.is_empty()).count();
        let quorum_after = voters.len().div_ceil(2) + 1;
        let alone = started == 1 && voters.len() == 1;
        if !by_learner && !alone && started < quorum_after {
            return Err(Error::NotEnoughStartedMembers);
        }
        // The new one counts as one that is down (etcd 3.7: 3.6 and before wanted all voters up).
        if !may_have_another(voters.len(), self.connected(view)) {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    fn may_remove(&self, view: &GroupView, members: &[Member], id: MemberId) -> Result<(), Error> {
        let member = members.iter().find(|m| m.id == id).ok_or(Error::MemberNotFound);
        if !self.config.strict_reconfig_check || member.as_ref().is_ok_and(|m| m.is_learner) {
            return member.map(drop);
        }
        // In etcd's order: who is asked for is looked for last.
        let left: Vec<&Member> = members.iter().filter(|m| !m.is_learner && m.id != id).collect();
        let quorum_after = left.len() / 2 + 1;
        if left.iter().filter(|m| !m.name.is_empty()).count() < quorum_after {
            return Err(Error::NotEnoughStartedMembers);
        }
        let is_up = id == self.identity.member || heard(view, id);
        if is_up && self.connected(view) < quorum_after + 1 {
            return Err(Error::Unhealthy);
        }
        member.map(drop)
    }

    fn may_promote(&self, view: &GroupView, members: &[Member], id: MemberId) -> Result<(), Error> {
        let member = members.iter().find(|m| m.id == id).ok_or(Error::MemberNotFound)?;
        if !member.is_learner {
            return Err(Error::MemberNotLearner);
        }
        let matched = view.progress.get(&id).and_then(|p| p.matched).unwrap_or(0);
        if !has_caught_up(matched, view.last_log_index) {
            return Err(Error::LearnerNotReady);
        }
        let voters = members.iter().filter(|m| !m.is_learner).count();
        if self.config.strict_reconfig_check && self.connected(view) < voters / 2 + 1 {
            return Err(Error::Unhealthy);
        }
        Ok(())
    }

    /// Voters that this leader has heard lately, itself included.
    fn connected(&self, view: &GroupView) -> usize {
        view.voters().filter(|(id, _, _)| *id == self.identity.member || heard(view, *id)).count()
    }
}

/// A member's ID is its own for ever: who was removed may come back with its data and must not be taken for a new one.
fn is_taken(id: MemberId, members: &[Member], state: &State) -> bool {
    members.iter().any(|m| m.id == id) || state.is_removed(id)
}

/// A member may move to URLs that no other one has. etcd asks for no quorum of healthy members here: the change itself
/// needs one.
fn may_update(members: &[Member], update: &UpdateMember) -> Result<(), Error> {
    if update.peer_urls.is_empty() || update.peer_urls.iter().any(|u| !is_peer_url(u)) {
        return Err(Error::BadMemberUrls);
    }
    if !members.iter().any(|m| m.id.0 == update.id) {
        return Err(Error::MemberNotFound);
    }
    let others = members.iter().filter(|m| m.id.0 != update.id);
    match others.flat_map(|m| &m.peer_urls).any(|u| update.peer_urls.contains(u)) {
        true => Err(Error::PeerUrlExists),
        false => Ok(()),
    }
}

/// The members in force, with what is known of them by the state machine.
fn in_force(view: &GroupView, known: &[Member]) -> Vec<Member> {
    let member = |(id, node, is_learner): &(MemberId, PeerNode, bool)| Member {
        id: *id,
        peer_urls: node.peer_urls.clone(),
        is_learner: *is_learner,
        ..known.iter().find(|m| m.id == *id).cloned().unwrap_or_default()
    };
    view.members.iter().map(member).collect()
}

/// Whether so many voters may be told of another, which nobody has heard of yet, with `connected` of them up: one alone may
/// always, others when they would still have a quorum without it.
fn may_have_another(voters: usize, connected: usize) -> bool {
    voters == 1 || connected > voters.div_ceil(2)
}

/// Whether a learner whose log is held up to `matched` may vote, when the leader's ends at `last`.
fn has_caught_up(matched: u64, last: u64) -> bool {
    matched as f64 >= last as f64 * LEARNER_READY
}

fn heard(view: &GroupView, id: MemberId) -> bool {
    let last = view.progress.get(&id).and_then(|p| p.last_heard);
    last.is_some_and(|at| at.elapsed() < HEALTH_INTERVAL)
}

/// What a peer URL must look like: scheme, host and port, nothing after them.
pub fn is_peer_url(url: &str) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some((host, port)) = rest.and_then(|r| r.rsplit_once(':')) else { return false };
    // A path, a query, a second port or a space would end up in the host; u16 takes a plus sign.
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let foreign = |c: char| "/?#@".contains(c) || c.is_whitespace() || (c == ':' && !bracketed);
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    !host.is_empty() && !host.contains(foreign) && digits && port.parse::<u16>().is_ok_and(|p| p > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ferretcd_storage::{MemoryEngine, Options, Store};
    use ferretcd_types::LogPos;
    use std::sync::Arc;

    #[test]
    fn the_id_of_a_member_is_taken_before_it_is_applied_and_after_it_was_removed() {
        let store = Store::open(Arc::new(MemoryEngine::new()), Options::default()).unwrap();
        let state = State::open(store, MemberId(1)).unwrap();
        let [kept, removed, added, free] = [1, 2, 3, 4].map(MemberId);
        for (index, group) in [vec![kept, removed], vec![kept]].into_iter().enumerate() {
            let group: Vec<_> = group.into_iter().map(|id| (id, PeerNode::default(), false)).collect();
            let at = LogPos { term: 1, index: index as u64 + 1 };
            state.apply_membership(at, Bytes::new(), &group).unwrap();
        }
        // The log has one more that is not applied yet.
        let member = |id| Member { id, ..Member::default() };
        let members = [member(kept), member(added)];
        let taken = |id| is_taken(id, &members, &state);
        assert_eq!([kept, removed, added, free].map(taken), [true, true, true, false]);
    }

    #[test]
    fn a_member_may_move_where_no_other_is() {
        let member = |id, url: &str| Member { id: MemberId(id), peer_urls: vec![url.into()], ..Member::default() };
        let members = [member(1, "http://a:1"), member(2, "http://b:1")];
        let update = |id, url: &str| may_update(&members, &UpdateMember { id, peer_urls: vec![url.into()] });
        assert_eq!(update(1, "http://c:1"), Ok(()));
        assert_eq!(update(1, "http://a:1"), Ok(()), "its own");
        assert_eq!(update(1, "http://b:1"), Err(Error::PeerUrlExists));
        assert_eq!(update(3, "http://c:1"), Err(Error::MemberNotFound));
        assert_eq!(update(1, "c"), Err(Error::BadMemberUrls));
        assert_eq!(may_update(&members, &UpdateMember { id: 1, peer_urls: vec![] }), Err(Error::BadMemberUrls));
    }

    #[test]
    fn voters_may_have_another_when_they_keep_a_quorum_without_it() {
        let least = [(1, 0), (2, 2), (3, 3), (4, 3), (5, 4), (6, 4), (7, 5)];
        for (voters, connected) in least {
            assert!(may_have_another(voters, connected), "{connected} of {voters}");
            assert!(connected == 0 || !may_have_another(voters, connected - 1), "{} of {voters}", connected - 1);
        }
    }

    #[test]
    fn a_learner_may_vote_once_it_holds_nine_tenths_of_the_log() {
        assert!(!has_caught_up(89, 100));
        assert!(has_caught_up(90, 100));
    }

    #[test]
    fn a_peer_url_has_scheme_host_and_port_only() {
        for good in ["http://10.0.0.1:2380", "https://a.b.svc:2380", "http://[::1]:2380"] {
            assert!(is_peer_url(good), "{good}");
        }
        for bad in ["10.0.0.1:2380", "http://a", "http://:2380", "http://a:0", "http://a:2380/x", "ftp://a:1", ""] {
            assert!(!is_peer_url(bad), "{bad}");
        }
        for bad in ["http://a b:1", "http://a:1:2", "http://a/b:1", "http://u@a:1", "http://a:+1", "http://a?q:1"] {
            assert!(!is_peer_url(bad), "{bad}");
        }
    }
}
