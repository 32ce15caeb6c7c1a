//! The hall: the one place where the rooms meet, and where the order is written in which a command is admitted, decided
//! and made visible.
//!
//! A turn decides without changing anything a reader could see; what it decided is a batch for the store, changes of
//! the key space, edits of the rooms and effects. Then the batch is written, and the rest published.

use crate::auth::{Auth, Dropped};
use crate::effect::{Applied, Effect};
use crate::error::Fault;
use crate::lease::LeaseTimes;
use crate::member::Members;
use crate::mvcc::space::Space;
use crate::mvcc::view::View;
use crate::restore::staging::{Chunk, Staging};
use crate::rooms::{self, Rooms, encode_u64, known_log_format};
use crate::state::{Applier, Inner, State};
use crate::{StateError, alarm, lease, op, permit, txn};
use bytes::Bytes;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::limits::LEASE_TTL_SECONDS_MAX;
use ferretcd_types::{
    Alarm, AuthChange, Authenticate, Authenticated, Caller, Command, Compact, DeleteRange, Epoch, Error, EventKind,
    Genesis, KeyRange, LeaseCheckpoint, LeaseGrant, LeaseGrantReply, LeaseId, LeaseRevoke, LogPos, MemberAttributes,
    MemberId, PeerNode, Proposal, Put, Reply, RestoreAbort, RestoreBegin, RestoreChunk, RestoreCommit, RestoreReply,
    RestoreTotals, Revised, SetAlarm, SetClusterVersion, Txn,
};
use std::sync::Arc;

impl State {
    /// Applies one proposal of the log. Entries at or below [`State::applied`] change nothing.
    ///
    /// The outcome is the same on every member, a refusal too; an `Err` is this member's own trouble, after which it
    /// must stop.
    pub fn apply(&self, position: LogPos, proposal: &Proposal) -> Result<Applied, StateError> {
        let inner = &*self.inner;
        let mut applier = inner.applier.lock();
        if inner.has_applied(position) {
            let outcome = Err(Error::internal(format!("entry {position} was applied before")));
            return Ok(Applied { outcome, effects: Vec::new() });
        }
        let space = inner.mvcc.live();
        let mut turn = Turn::new(inner, &space);
        let outcome = match turn.decide(&mut applier, position, proposal) {
            Ok(outcome) => outcome,
            Err(Fault::Refused(err)) => {
                turn = Turn::new(inner, &space);
                Err(err)
            }
            Err(Fault::Broken(err)) => return Err(err),
        };
        Ok(Applied { outcome, effects: turn.publish(position)? })
    }

    /// Passes over an entry that carries nothing, such as a new leader's first.
    pub fn apply_blank(&self, position: LogPos) -> Result<(), StateError> {
        let inner = &*self.inner;
        let _applier = inner.applier.lock();
        if !inner.has_applied(position) {
            let space = inner.mvcc.live();
            Turn::new(inner, &space).publish(position)?;
        }
        Ok(())
    }

    /// Takes in a membership entry: who is in the group now, where, and whether as a learner. Who was and is no more
    /// is removed for ever. `blob` is the raft floor's own record of it, kept in the same batch.
    pub fn apply_membership(
        &self,
        position: LogPos,
        blob: Bytes,
        group: &[(MemberId, PeerNode, bool)],
    ) -> Result<Vec<Effect>, StateError> {
        let inner = &*self.inner;
        let _applier = inner.applier.lock();
        if inner.has_applied(position) {
            return Ok(Vec::new());
        }
        let space = inner.mvcc.live();
        let mut turn = Turn::new(inner, &space);
        let mut members = inner.rooms.read().members.clone();
        members.set_group(group, &mut turn.batch);
        turn.batch.put(keyspace::META_MEMBERSHIP, blob.clone());
        turn.edits.push(Edit::Members(members));
        turn.edits.push(Edit::Membership(blob));
        turn.effects.push(Effect::MembersChanged);
        turn.publish(position)
    }
}

/// What a command does, decided and not yet visible.
struct Turn<'a> {
    inner: &'a Inner,
    view: View<'a>,
    batch: Batch,
    edits: Vec<Edit>,
    effects: Vec<Effect>,
}

/// A change of a room.
enum Edit {
    Genesis(Epoch, String),
    /// The version, and the log format if it rises.
    ClusterVersion(String, Option<u32>),
    Downgrade(Option<String>),
    Members(Members),
    Membership(Bytes),
    Alarm(Alarm, bool),
    Grant(LeaseId, i64),
    Revoke(LeaseId),
    Checkpoint(LeaseTimes),
    Compact(i64),
    /// A restore began, in place of an earlier one.
    Begin(Box<Staging>),
    Stage(Box<Chunk>),
    DropStaged,
    /// The staged restore is what counts from now on, at this revision and auth revision.
    Swap(i64, u64),
    Auth(Box<Auth>),
}

/// Refuses what may not happen now: restore, alarms. (Quota is the proposer's to check; it only raises an alarm.)
fn admit(rooms: &Rooms, is_restoring: bool, command: &Command) -> Result<(), Error> {
    let (is_client_write, needs_room) = match command {
        Command::Put(_) | Command::LeaseGrant(_) => (true, true),
        Command::Txn(txn) => (true, txn::has_puts(txn)),
        Command::DeleteRange(_) | Command::Compact(_) | Command::LeaseRevoke(_) => (true, false),
        // A restore replaces the users, too.
        Command::Auth(_) if is_restoring => return Err(Error::RestoreInProgress),
        Command::Auth(_)
        | Command::Authenticate(_)
        | Command::Genesis(_)
        | Command::LeaseCheckpoint(_)
        | Command::MemberAttributes(_)
        | Command::SetAlarm(_)
        | Command::RestoreBegin(_)
        | Command::RestoreChunk(_)
        | Command::RestoreCommit(_)
        | Command::RestoreAbort(_)
        | Command::SetClusterVersion(_)
        | Command::SetDowngrade(_) => (false, false),
    };
    if !is_client_write {
        return Ok(());
    }
    if is_restoring {
        return Err(Error::RestoreInProgress);
    }
    rooms.alarms.allow_writes()?;
    if needs_room {
        rooms.alarms.allow_growth()?;
    }
    Ok(())
}

/// A verb's answer. The outer error undoes the turn; an inner one lets it stand (a restore that does not match is
/// refused *and* dropped).
type Decided = Result<Result<Reply, Error>, Fault>;

impl<'a> Turn<'a> {
    fn new(inner: &'a Inner, space: &'a Space) -> Self {
        let view = View::new(&inner.mvcc.store, space);
        Turn { inner, view, batch: Batch::new(), edits: Vec::new(), effects: Vec::new() }
    }

    fn decide(&mut self, applier: &mut Applier, position: LogPos, proposal: &Proposal) -> Decided {
        let Proposal { id: _, caller, command } = proposal;
        let inner = self.inner;
        let rooms = inner.rooms.read();
        let staging = inner.staging.read();
        admit(&rooms, staging.is_some(), command)?;
        if let Caller::Client(client) = caller
            && rooms.auth.enabled
        {
            permit::permit(&inner.permits.read(), &rooms.leases, client, command)?;
        }
        match command {
            Command::Put(put) => self.put(&rooms, put),
            Command::DeleteRange(delete) => self.delete_range(delete),
            Command::Txn(txn) => self.txn(&rooms, txn),
            Command::Compact(compact) => self.compact(*compact),
            Command::LeaseGrant(grant) => self.lease_grant(&rooms, *grant),
            Command::LeaseRevoke(revoke) => self.lease_revoke(&rooms, *revoke),
            Command::LeaseCheckpoint(checkpoint) => self.lease_checkpoint(&rooms, checkpoint),
            Command::Genesis(genesis) => self.genesis(&rooms, genesis),
            Command::MemberAttributes(attributes) => self.member_attributes(&rooms, attributes),
            Command::SetAlarm(set) => self.set_alarm(&rooms, *set),
            Command::RestoreBegin(begin) => self.restore_begin(staging.as_ref(), applier, begin),
            Command::RestoreChunk(chunk) => self.restore_chunk(staging.as_ref(), chunk),
            Command::RestoreCommit(commit) => self.restore_commit(&rooms, staging.as_ref(), commit),
            Command::RestoreAbort(abort) => self.restore_abort(staging.as_ref(), abort),
            Command::Auth(change) => self.auth(&rooms, change),
            Command::Authenticate(authenticate) => self.authenticate(&rooms, position, authenticate),
            Command::SetClusterVersion(set) => self.set_cluster_version(&rooms, set),
            Command::SetDowngrade(set) => self.set_downgrade(set.target.as_deref()),
        }
    }

    fn revised(&self) -> Decided {
        Ok(Ok(Reply::Revised(Revised { revision: self.view.revision() })))
    }

    fn put(&mut self, rooms: &Rooms, put: &Put) -> Decided {
        op::check_put(&self.view, &rooms.leases, put)?;
        Ok(Ok(Reply::Put(op::put(&mut self.view, put)?)))
    }

    fn delete_range(&mut self, delete: &DeleteRange) -> Decided {
        Ok(Ok(Reply::DeleteRange(op::delete_range(&mut self.view, delete)?)))
    }

    fn txn(&mut self, rooms: &Rooms, txn: &Txn) -> Decided {
        Ok(Ok(Reply::Txn(txn::run(&mut self.view, &rooms.leases, txn)?)))
    }

    fn compact(&mut self, Compact { revision }: Compact) -> Decided {
        if revision <= self.view.compacted() {
            return Err(Error::Compacted.into());
        }
        if revision > self.view.base() {
            return Err(Error::FutureRevision.into());
        }
        self.batch.put(keyspace::META_COMPACT_SCHEDULED, encode_u64(revision as u64));
        self.edits.push(Edit::Compact(revision));
        self.effects.push(Effect::Compacted { revision });
        self.revised()
    }

    fn lease_grant(&mut self, rooms: &Rooms, LeaseGrant { id, ttl }: LeaseGrant) -> Decided {
        if id.is_none() {
            return Err(Error::internal("a lease was proposed without an ID").into());
        }
        if ttl > LEASE_TTL_SECONDS_MAX {
            return Err(Error::LeaseTtlTooLarge.into());
        }
        if rooms.leases.exists(id) {
            return Err(Error::LeaseExists.into());
        }
        lease::save(&mut self.batch, LeaseTimes { id, ttl, remaining: 0 });
        self.edits.push(Edit::Grant(id, ttl));
        self.effects.push(Effect::LeaseGranted { id, ttl });
        Ok(Ok(Reply::LeaseGrant(LeaseGrantReply { revision: self.view.revision(), id, ttl })))
    }

    fn lease_revoke(&mut self, rooms: &Rooms, LeaseRevoke { id }: LeaseRevoke) -> Decided {
        let lease = rooms.leases.view(id).ok_or(Error::LeaseNotFound)?;
        for key in lease.keys {
            self.view.delete_range(&KeyRange::single(key), false)?;
        }
        self.batch.delete(keyspace::lease(id.0));
        self.edits.push(Edit::Revoke(id));
        self.effects.push(Effect::LeaseRevoked { id });
        self.revised()
    }

    fn lease_checkpoint(&mut self, rooms: &Rooms, checkpoint: &LeaseCheckpoint) -> Decided {
        let noted =
            checkpoint.remaining.iter().filter_map(|(id, remaining)| rooms.leases.checkpointed(*id, *remaining));
        let noted: Vec<LeaseTimes> = noted.collect();
        for times in &noted {
            lease::save(&mut self.batch, *times);
            self.edits.push(Edit::Checkpoint(*times));
        }
        let remaining = noted.iter().map(|times| (times.id, times.remaining)).collect();
        self.effects.push(Effect::LeasesCheckpointed { remaining });
        self.revised()
    }

    fn genesis(&mut self, rooms: &Rooms, Genesis { epoch, cluster_version }: &Genesis) -> Decided {
        if rooms.epoch == Epoch::UNKNOWN {
            self.batch.put(keyspace::META_EPOCH, encode_u64(epoch.0));
            self.batch.put(keyspace::META_CLUSTER_VERSION, cluster_version.clone());
            self.edits.push(Edit::Genesis(*epoch, cluster_version.clone()));
            self.effects.push(Effect::EpochKnown);
        }
        self.revised()
    }

    fn set_cluster_version(&mut self, rooms: &Rooms, set: &SetClusterVersion) -> Decided {
        let SetClusterVersion { version, log_format, told_by } = set;
        let is_raise = *log_format > 0 || !told_by.is_empty();
        let not_asked = rooms.members.all().into_iter().find(|member| !told_by.contains(&member.id));
        if let Some(member) = not_asked.filter(|_| is_raise) {
            let id = member.id;
            return Err(Error::internal(format!("member {id} came meanwhile, and may be older than {version}")).into());
        }
        let raised = Some(*log_format).filter(|format| *format > rooms.log_format);
        if let Some(format) = raised {
            known_log_format(Some(version), format)?;
            self.batch.put(keyspace::META_LOG_FORMAT, format.to_be_bytes().to_vec());
        }
        self.batch.put(keyspace::META_CLUSTER_VERSION, version.to_owned());
        self.edits.push(Edit::ClusterVersion(version.to_owned(), raised));
        self.revised()
    }

    fn set_downgrade(&mut self, target: Option<&str>) -> Decided {
        match target {
            Some(target) => self.batch.put(keyspace::META_DOWNGRADE, target.to_owned()),
            None => self.batch.delete(keyspace::META_DOWNGRADE),
        };
        self.edits.push(Edit::Downgrade(target.map(str::to_owned)));
        self.revised()
    }

    fn member_attributes(&mut self, rooms: &Rooms, attributes: &MemberAttributes) -> Decided {
        let mut members = rooms.members.clone();
        if !members.set_attributes(attributes, &mut self.batch) {
            return Err(Error::MemberNotFound.into());
        }
        self.edits.push(Edit::Members(members));
        self.effects.push(Effect::MembersChanged);
        self.revised()
    }

    fn set_alarm(&mut self, rooms: &Rooms, SetAlarm { alarm, raised }: SetAlarm) -> Decided {
        if rooms.alarms.would_change(alarm, raised) {
            alarm::save(&mut self.batch, alarm, raised);
            self.edits.push(Edit::Alarm(alarm, raised));
            self.effects.push(Effect::AlarmsChanged);
        }
        self.revised()
    }

    fn restore_begin(
        &mut self,
        earlier: Option<&Staging>,
        applier: &mut Applier,
        RestoreBegin { id }: &RestoreBegin,
    ) -> Decided {
        if let Some(earlier) = earlier {
            earlier.delete(&mut self.batch);
        }
        let staging = Staging::new(*id, applier.new_generation());
        staging.save_header(&mut self.batch);
        self.edits.push(Edit::Begin(Box::new(staging)));
        self.revised()
    }

    fn restore_chunk(
        &mut self,
        staging: Option<&Staging>,
        RestoreChunk { id, sequence, records }: &RestoreChunk,
    ) -> Decided {
        let staging = staging.filter(|staging| staging.id == *id).ok_or(Error::RestoreSuperseded)?;
        let next = staging.totals.chunks;
        if *sequence > next {
            let why = format!("chunk {sequence} came while {next} is the next");
            return Err(Error::RestoreMismatch(why).into());
        }
        if *sequence == next {
            let chunk = staging.accept(records)?;
            let (full, mut last) = chunk.batches();
            for batch in full {
                // Uncounted until the header of the last batch says otherwise, so these may go ahead of it.
                self.inner.mvcc.store.write(batch, 0).map_err(StateError::store("stage a restore"))?;
            }
            last.put(keyspace::META_RESTORE, chunk.header(*id, staging.space.generation));
            self.batch.append(last);
            self.edits.push(Edit::Stage(Box::new(chunk)));
        }
        self.revised()
    }

    fn restore_commit(
        &mut self,
        rooms: &Rooms,
        staging: Option<&Staging>,
        RestoreCommit { id, totals, revision_bump }: &RestoreCommit,
    ) -> Decided {
        let staging = staging.filter(|staging| staging.id == *id).ok_or(Error::RestoreSuperseded)?;
        let auth_revision = staging.auth_revision_after(&rooms.auth);
        let before = self.view.base().max(staging.last.main);
        let after = i64::try_from(*revision_bump).ok().and_then(|bump| before.checked_add(bump));
        let revision = match (mismatch(&staging.totals, totals), after) {
            (None, Some(revision)) => revision,
            (why, _) => {
                let why = why.unwrap_or_else(|| format!("revision {before} plus {revision_bump} is too large"));
                staging.delete(&mut self.batch);
                self.edits.push(Edit::DropStaged);
                return Ok(Err(Error::RestoreMismatch(why)));
            }
        };
        let batch = &mut self.batch;
        for (id, _) in rooms.leases.all() {
            batch.delete(keyspace::lease(id.0));
        }
        rooms.auth.delete(batch);
        staging.delete(batch);
        batch.append(staging.small_records());
        batch.put(keyspace::META_AUTH, staging.auth_state(auth_revision));
        batch.put(keyspace::META_GENERATION, staging.space.generation.to_be_bytes().to_vec());
        batch.put(keyspace::META_COMPACT_SCHEDULED, encode_u64(revision as u64));
        batch.delete(keyspace::META_COMPACT_FINISHED);
        self.edits.push(Edit::Swap(revision, auth_revision));
        self.effects.push(Effect::Restored { revision });
        self.effects.push(Effect::LeasesReset);
        let live_keys = staging.space.index.read().live;
        Ok(Ok(Reply::Restored(RestoreReply { revision, live_keys, totals: totals.clone() })))
    }

    fn restore_abort(&mut self, staging: Option<&Staging>, RestoreAbort { id }: &RestoreAbort) -> Decided {
        if let Some(staging) = staging.filter(|staging| staging.id == *id) {
            staging.delete(&mut self.batch);
            self.edits.push(Edit::DropStaged);
        }
        self.revised()
    }

    fn auth(&mut self, rooms: &Rooms, change: &AuthChange) -> Decided {
        if let Some(changed) = rooms.auth.change(change, &mut self.batch)? {
            match changed.dropped {
                Dropped::Nobodys => {}
                Dropped::Of(user) => self.effects.push(Effect::TokensDropped { user: Some(user) }),
                Dropped::All => self.effects.push(Effect::TokensDropped { user: None }),
            }
            self.effects.push(Effect::UsersChanged { auth_revision: changed.auth.revision });
            self.edits.push(Edit::Auth(Box::new(changed.auth)));
        }
        self.revised()
    }

    /// The password was checked by the proposer, which compares the auth revision and starts again if it has changed.
    /// A token ends with its entry's index: a member waits until it has applied that before it looks the token up.
    fn authenticate(
        &mut self,
        rooms: &Rooms,
        position: LogPos,
        Authenticate { user, token }: &Authenticate,
    ) -> Decided {
        if !rooms.auth.enabled {
            return Err(Error::AuthNotEnabled.into());
        }
        if rooms.auth.user_view(user)?.is_none_or(|user| user.no_password) {
            return Err(Error::AuthFailed.into());
        }
        let mut reply =
            Authenticated { revision: self.view.revision(), auth_revision: rooms.auth.revision, token: String::new() };
        if !token.is_empty() {
            reply.token = format!("{token}.{}", position.index);
            self.effects.push(Effect::TokenAssigned { token: reply.token.clone(), user: user.clone() });
        }
        Ok(Ok(Reply::Authenticated(reply)))
    }

    /// Writes the batch, then makes everything visible, the applied position last: who waits for it sees the rest.
    fn publish(self, position: LogPos) -> Result<Vec<Effect>, StateError> {
        let Turn { inner, view, mut batch, edits, mut effects } = self;
        view.save(&mut batch);
        rooms::save_applied(&mut batch, position);
        inner.mvcc.store.write(batch, position.index).map_err(StateError::store("write what an entry changed"))?;
        let events = match view.changes().is_empty() {
            true => Vec::new(),
            false => view.publish(),
        };
        let mut rooms = inner.rooms.write();
        for event in &events {
            let lease = if event.kind == EventKind::Put { event.kv.lease } else { LeaseId::NONE };
            rooms.leases.attach(&event.kv.key, lease);
        }
        for edit in edits {
            inner.edit(&mut rooms, edit);
        }
        rooms.applied = Some(position);
        drop(rooms);
        if let Some(last) = events.last() {
            effects.insert(0, Effect::Events { revision: last.revision.main, events });
        }
        Ok(effects)
    }
}

/// The first figure in which what was staged is not what was announced.
fn mismatch(staged: &RestoreTotals, announced: &RestoreTotals) -> Option<String> {
    let RestoreTotals { chunks, keys, leases, users, roles, checksum } = staged;
    let figures = [
        ("chunks", chunks, announced.chunks),
        ("key records", keys, announced.keys),
        ("leases", leases, announced.leases),
        ("users", users, announced.users),
        ("roles", roles, announced.roles),
    ];
    let differing = figures.into_iter().find(|(_, staged, announced)| *staged != announced);
    match differing {
        Some((what, staged, announced)) => Some(format!("{staged} {what} are staged, {announced} were announced")),
        None if *checksum != announced.checksum => Some("the checksums differ".to_owned()),
        None => None,
    }
}

impl Inner {
    fn edit(&self, rooms: &mut Rooms, edit: Edit) {
        match edit {
            Edit::Genesis(epoch, version) => (rooms.epoch, rooms.cluster_version) = (epoch, Some(version)),
            Edit::ClusterVersion(version, raised) => {
                rooms.cluster_version = Some(version);
                rooms.log_format = raised.unwrap_or(rooms.log_format);
            }
            Edit::Downgrade(target) => rooms.downgrade = target,
            Edit::Members(members) => rooms.members = members,
            Edit::Membership(blob) => rooms.membership = Some(blob),
            Edit::Alarm(alarm, raised) => rooms.alarms.set(alarm, raised),
            Edit::Grant(id, ttl) => rooms.leases.grant(id, ttl),
            Edit::Revoke(id) => rooms.leases.revoke(id),
            Edit::Checkpoint(times) => rooms.leases.checkpoint(times.id, times.remaining),
            Edit::Compact(revision) => {
                self.mvcc.live().index.write().compacted = revision;
                self.work.wake();
            }
            Edit::Begin(staging) => self.replace_staging(Some(*staging)),
            Edit::Stage(chunk) => {
                if let Some(staging) = &mut *self.staging.write() {
                    staging.take(*chunk);
                }
            }
            Edit::DropStaged => self.replace_staging(None),
            Edit::Swap(revision, auth_revision) => self.swap_staged(rooms, revision, auth_revision),
            Edit::Auth(auth) => {
                self.refresh_permits(&auth);
                rooms.auth = *auth;
            }
        }
    }

    fn replace_staging(&self, staging: Option<Staging>) {
        if let Some(earlier) = std::mem::replace(&mut *self.staging.write(), staging) {
            self.work.retire(earlier.space);
        }
    }

    fn swap_staged(&self, rooms: &mut Rooms, revision: i64, auth_revision: u64) {
        let Some(staging) = self.staging.write().take() else { return };
        (rooms.leases, rooms.auth) = staging.rooms();
        rooms.auth.revision = auth_revision;
        self.refresh_permits(&rooms.auth);
        {
            let mut index = staging.space.index.write();
            (index.revision, index.compacted) = (revision, revision);
        }
        let old = self.mvcc.swap(Arc::clone(&staging.space));
        self.work.retire(old);
        // The new generation has its history, even where the old one was compacted up to this revision (a bump of 0).
        self.work.start_over(-1);
    }
}
