//! The bytes of commands in the log and of key-values in the store, in the format of [`crate::wire`].
//!
//! Field numbers are a contract with every data directory that exists: they are never reused. A reader skips fields
//! that it does not know; a command kind that it does not know is an error, so a new kind is proposed only when the
//! cluster version allows it. `KeyValue` has etcd's own numbers (mvccpb.KeyValue).

mod auth;

use crate::wire::{DecodeError, Reader, Writer};
use crate::{
    Alarm, AlarmKind, Caller, Command, Compact, Compare, CompareResult, CompareTarget, DeleteRange, Epoch, Genesis,
    KeyRange, KeyValue, LeaseCheckpoint, LeaseGrant, LeaseId, LeaseRevoke, MemberAttributes, MemberId, Proposal, Put,
    Range, RequestId, RestoreAbort, RestoreBegin, RestoreChunk, RestoreCommit, RestoreRecord, RestoreTotals, Revision,
    SetAlarm, SetClusterVersion, SetDowngrade, SortOrder, SortTarget, Txn, TxnOp,
};
use bytes::Bytes;

/// What this release can decode of a log, as members tell each other. Every new kind of command (see [`Command::log_format`]), of
/// entry or of stored record makes it one more, and so does a new cluster version. It is written only once the cluster
/// itself has come so far: by an entry ([`SetClusterVersion::log_format`]) that follows when all members have said that they
/// are. From then on a member of an earlier one does not run in this cluster.
pub const LOG_FORMAT: u32 = 3;

/// The first format whose members know that a cluster has one: earlier ones would pass over the entry that raises it.
pub const LOG_FORMAT_RAISED_SINCE: u32 = 3;

/// Deepest nesting of transactions that is decoded. etcd has no number of its own, its operation budget (128) bounds
/// the depth; the same bound keeps hostile bytes from exhausting the stack.
const TXN_DEPTH_MAX: usize = 130;

/// Encodes a key-value as etcd stores it.
pub fn encode_key_value(kv: &KeyValue) -> Bytes {
    let mut w = Writer::with_capacity(kv.key.len() + kv.value.len() + 40);
    w.bytes(1, &kv.key);
    w.int(2, kv.create_revision);
    w.int(3, kv.mod_revision);
    w.int(4, kv.version);
    w.bytes(5, &kv.value);
    w.int(6, kv.lease.0);
    w.finish()
}

/// Decodes a stored key-value; key and value are slices of `bytes`.
pub fn decode_key_value(bytes: Bytes) -> Result<KeyValue, DecodeError> {
    const WHAT: &str = "key-value";
    let mut r = Reader::new(WHAT, bytes);
    let mut kv = KeyValue::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => kv.key = v.bytes(WHAT)?,
            2 => kv.create_revision = v.int(WHAT)?,
            3 => kv.mod_revision = v.int(WHAT)?,
            4 => kv.version = v.int(WHAT)?,
            5 => kv.value = v.bytes(WHAT)?,
            6 => kv.lease = LeaseId(v.int(WHAT)?),
            _ => {}
        }
    }
    Ok(kv)
}

/// Encodes a proposal for the log.
pub fn encode_proposal(p: &Proposal) -> Bytes {
    let (kind, body) = encode_command(&p.command);
    let mut w = Writer::with_capacity(body.len() + 24);
    w.uint(1, p.id.0);
    if let Caller::Client(client) = &p.caller {
        w.message(2, &auth::encode_client(client));
    }
    w.message(kind, &body);
    w.finish()
}

/// Decodes a proposal from the log.
pub fn decode_proposal(bytes: Bytes) -> Result<Proposal, DecodeError> {
    const WHAT: &str = "proposal";
    let mut r = Reader::new(WHAT, bytes);
    let mut id = RequestId::default();
    let mut caller = Caller::Member;
    let mut command = None;
    while let Some((n, v)) = r.field()? {
        match n {
            1 => id = RequestId(v.uint(WHAT)?),
            2 => caller = Caller::Client(auth::decode_client(v.bytes(WHAT)?)?),
            // Numbers 3 to 9 are kept for what else may go beside a command.
            3..=9 => {}
            kind => command = Some(decode_command(kind, v.bytes(WHAT)?)?),
        }
    }
    let command = command.ok_or(DecodeError { what: WHAT, why: "it holds no command" })?;
    Ok(Proposal { id, caller, command })
}

mod kind {
    pub const GENESIS: u32 = 10;
    pub const PUT: u32 = 11;
    pub const DELETE_RANGE: u32 = 12;
    pub const TXN: u32 = 13;
    pub const COMPACT: u32 = 14;
    pub const LEASE_GRANT: u32 = 15;
    pub const LEASE_REVOKE: u32 = 16;
    pub const MEMBER_ATTRIBUTES: u32 = 17;
    pub const SET_ALARM: u32 = 18;
    pub const RESTORE_BEGIN: u32 = 19;
    pub const RESTORE_CHUNK: u32 = 20;
    pub const RESTORE_COMMIT: u32 = 21;
    pub const RESTORE_ABORT: u32 = 22;
    pub const LEASE_CHECKPOINT: u32 = 23;
    pub const AUTH: u32 = 40;
    pub const AUTHENTICATE: u32 = 41;
    pub const SET_CLUSTER_VERSION: u32 = 50;
    pub const SET_DOWNGRADE: u32 = 51;
}

fn encode_command(command: &Command) -> (u32, Bytes) {
    let mut w = Writer::new();
    let kind = match command {
        Command::Genesis(c) => {
            w.uint(1, c.epoch.0);
            w.str(2, &c.cluster_version);
            kind::GENESIS
        }
        Command::Put(c) => {
            put(&mut w, c);
            kind::PUT
        }
        Command::DeleteRange(c) => {
            delete_range(&mut w, c);
            kind::DELETE_RANGE
        }
        Command::Txn(c) => {
            txn(&mut w, c);
            kind::TXN
        }
        Command::Compact(c) => {
            w.int(1, c.revision);
            kind::COMPACT
        }
        Command::LeaseGrant(c) => {
            w.int(1, c.id.0);
            w.int(2, c.ttl);
            kind::LEASE_GRANT
        }
        Command::LeaseRevoke(c) => {
            w.int(1, c.id.0);
            kind::LEASE_REVOKE
        }
        Command::LeaseCheckpoint(c) => {
            for (id, remaining) in &c.remaining {
                let mut lease = Writer::new();
                lease.int(1, id.0);
                lease.int(2, *remaining);
                w.message(1, &lease.finish());
            }
            kind::LEASE_CHECKPOINT
        }
        Command::MemberAttributes(c) => {
            w.uint(1, c.id.0);
            w.str(2, &c.name);
            c.client_urls.iter().for_each(|u| w.message(3, u.as_bytes()));
            kind::MEMBER_ATTRIBUTES
        }
        Command::SetAlarm(c) => {
            w.uint(1, c.alarm.member.0);
            w.uint(2, alarm_number(c.alarm.kind));
            w.bool(3, c.raised);
            kind::SET_ALARM
        }
        Command::RestoreBegin(c) => {
            w.uint(1, c.id);
            kind::RESTORE_BEGIN
        }
        Command::RestoreChunk(c) => {
            w.uint(1, c.id);
            w.uint(2, c.sequence);
            w.bytes(3, &c.records);
            kind::RESTORE_CHUNK
        }
        Command::RestoreCommit(c) => {
            w.uint(1, c.id);
            w.message(2, &encode_restore_totals(&c.totals));
            w.uint(3, c.revision_bump);
            kind::RESTORE_COMMIT
        }
        Command::RestoreAbort(c) => {
            w.uint(1, c.id);
            kind::RESTORE_ABORT
        }
        Command::Auth(c) => {
            auth::change(&mut w, c);
            kind::AUTH
        }
        Command::Authenticate(c) => {
            auth::authenticate(&mut w, c);
            kind::AUTHENTICATE
        }
        Command::SetClusterVersion(c) => {
            w.str(1, &c.version);
            w.uint(2, u64::from(c.log_format));
            c.told_by.iter().for_each(|id| w.uint(3, id.0));
            kind::SET_CLUSTER_VERSION
        }
        Command::SetDowngrade(c) => {
            // A version is never empty, so an absent one stands for none.
            w.str(1, c.target.as_deref().unwrap_or_default());
            kind::SET_DOWNGRADE
        }
    };
    (kind, w.finish())
}

fn decode_command(kind: u32, bytes: Bytes) -> Result<Command, DecodeError> {
    const WHAT: &str = "command";
    let fields = |each: &mut dyn FnMut(u32, crate::wire::Value) -> Result<(), DecodeError>| {
        let mut r = Reader::new(WHAT, bytes.clone());
        while let Some((n, v)) = r.field()? {
            each(n, v)?;
        }
        Ok(())
    };
    let one_uint = |field: u32| {
        let mut out = 0;
        fields(&mut |n, v| {
            if n == field {
                out = v.uint(WHAT)?;
            }
            Ok(())
        })?;
        Ok(out)
    };
    Ok(match kind {
        kind::GENESIS => {
            let mut c = Genesis { epoch: Epoch::UNKNOWN, cluster_version: String::new() };
            fields(&mut |n, v| {
                match n {
                    1 => c.epoch = Epoch(v.uint(WHAT)?),
                    2 => c.cluster_version = v.string(WHAT)?,
                    _ => {}
                }
                Ok(())
            })?;
            Command::Genesis(c)
        }
        kind::PUT => Command::Put(decode_put(bytes)?),
        kind::DELETE_RANGE => Command::DeleteRange(decode_delete_range(bytes)?),
        kind::TXN => Command::Txn(decode_txn(bytes, 0)?),
        kind::COMPACT => Command::Compact(Compact { revision: one_uint(1)? as i64 }),
        kind::LEASE_GRANT => {
            let mut c = LeaseGrant { id: LeaseId::NONE, ttl: 0 };
            fields(&mut |n, v| {
                match n {
                    1 => c.id = LeaseId(v.int(WHAT)?),
                    2 => c.ttl = v.int(WHAT)?,
                    _ => {}
                }
                Ok(())
            })?;
            Command::LeaseGrant(c)
        }
        kind::LEASE_REVOKE => Command::LeaseRevoke(LeaseRevoke { id: LeaseId(one_uint(1)? as i64) }),
        kind::LEASE_CHECKPOINT => {
            let mut c = LeaseCheckpoint { remaining: Vec::new() };
            fields(&mut |n, v| {
                if n == 1 {
                    c.remaining.push(decode_remaining(v.bytes(WHAT)?)?);
                }
                Ok(())
            })?;
            Command::LeaseCheckpoint(c)
        }
        kind::MEMBER_ATTRIBUTES => {
            let mut c = MemberAttributes { id: MemberId(0), name: String::new(), client_urls: Vec::new() };
            fields(&mut |n, v| {
                match n {
                    1 => c.id = MemberId(v.uint(WHAT)?),
                    2 => c.name = v.string(WHAT)?,
                    3 => c.client_urls.push(v.string(WHAT)?),
                    _ => {}
                }
                Ok(())
            })?;
            Command::MemberAttributes(c)
        }
        kind::SET_ALARM => {
            let (mut member, mut alarm, mut raised) = (MemberId(0), None, false);
            fields(&mut |n, v| {
                match n {
                    1 => member = MemberId(v.uint(WHAT)?),
                    2 => alarm = alarm_kind(v.uint(WHAT)?),
                    3 => raised = v.bool(WHAT)?,
                    _ => {}
                }
                Ok(())
            })?;
            let kind = alarm.ok_or(DecodeError { what: WHAT, why: "it names no known alarm" })?;
            Command::SetAlarm(SetAlarm { alarm: Alarm { member, kind }, raised })
        }
        kind::RESTORE_BEGIN => Command::RestoreBegin(RestoreBegin { id: one_uint(1)? }),
        kind::RESTORE_CHUNK => {
            let mut c = RestoreChunk { id: 0, sequence: 0, records: Bytes::new() };
            fields(&mut |n, v| {
                match n {
                    1 => c.id = v.uint(WHAT)?,
                    2 => c.sequence = v.uint(WHAT)?,
                    3 => c.records = v.bytes(WHAT)?,
                    _ => {}
                }
                Ok(())
            })?;
            Command::RestoreChunk(c)
        }
        kind::RESTORE_COMMIT => {
            let mut c = RestoreCommit { id: 0, totals: RestoreTotals::default(), revision_bump: 0 };
            fields(&mut |n, v| {
                match n {
                    1 => c.id = v.uint(WHAT)?,
                    2 => c.totals = decode_restore_totals(v.bytes(WHAT)?)?,
                    3 => c.revision_bump = v.uint(WHAT)?,
                    _ => {}
                }
                Ok(())
            })?;
            Command::RestoreCommit(c)
        }
        kind::SET_CLUSTER_VERSION => {
            let mut c = SetClusterVersion::default();
            fields(&mut |n, v| {
                match n {
                    1 => c.version = v.string(WHAT)?,
                    2 => {
                        c.log_format = u32::try_from(v.uint(WHAT)?)
                            .map_err(|_| DecodeError { what: WHAT, why: "a log format is out of range" })?;
                    }
                    3 => match v.uint(WHAT)? {
                        0 => return Err(DecodeError { what: WHAT, why: "a member has no ID" }),
                        id => c.told_by.push(MemberId(id)),
                    },
                    _ => {}
                }
                Ok(())
            })?;
            Command::SetClusterVersion(c)
        }
        kind::SET_DOWNGRADE => {
            let mut version = String::new();
            fields(&mut |n, v| {
                if n == 1 {
                    version = v.string(WHAT)?;
                }
                Ok(())
            })?;
            Command::SetDowngrade(SetDowngrade { target: Some(version).filter(|v| !v.is_empty()) })
        }
        kind::RESTORE_ABORT => Command::RestoreAbort(RestoreAbort { id: one_uint(1)? }),
        kind::AUTH => Command::Auth(auth::decode_change(bytes)?),
        kind::AUTHENTICATE => Command::Authenticate(auth::decode_authenticate(bytes)?),
        _ => return Err(DecodeError { what: WHAT, why: "its kind is newer than this server; upgrade the server" }),
    })
}

fn alarm_number(kind: AlarmKind) -> u64 {
    match kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    }
}

fn alarm_kind(number: u64) -> Option<AlarmKind> {
    match number {
        1 => Some(AlarmKind::NoSpace),
        2 => Some(AlarmKind::Corrupt),
        _ => None,
    }
}

fn decode_remaining(bytes: Bytes) -> Result<(LeaseId, i64), DecodeError> {
    const WHAT: &str = "lease checkpoint";
    let mut r = Reader::new(WHAT, bytes);
    let (mut id, mut remaining) = (LeaseId::NONE, 0);
    while let Some((n, v)) = r.field()? {
        match n {
            1 => id = LeaseId(v.int(WHAT)?),
            2 => remaining = v.int(WHAT)?,
            _ => {}
        }
    }
    Ok((id, remaining))
}

fn put(w: &mut Writer, c: &Put) {
    w.bytes(1, &c.key);
    w.bytes(2, &c.value);
    w.int(3, c.lease.0);
    w.bool(4, c.prev_kv);
    w.bool(5, c.ignore_value);
    w.bool(6, c.ignore_lease);
}

fn decode_put(bytes: Bytes) -> Result<Put, DecodeError> {
    const WHAT: &str = "put";
    let mut r = Reader::new(WHAT, bytes);
    let mut c = Put::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => c.key = v.bytes(WHAT)?,
            2 => c.value = v.bytes(WHAT)?,
            3 => c.lease = LeaseId(v.int(WHAT)?),
            4 => c.prev_kv = v.bool(WHAT)?,
            5 => c.ignore_value = v.bool(WHAT)?,
            6 => c.ignore_lease = v.bool(WHAT)?,
            _ => {}
        }
    }
    Ok(c)
}

fn delete_range(w: &mut Writer, c: &DeleteRange) {
    w.bytes(1, &c.range.start);
    w.bytes(2, &c.range.end);
    w.bool(3, c.prev_kv);
}

fn decode_delete_range(bytes: Bytes) -> Result<DeleteRange, DecodeError> {
    const WHAT: &str = "delete range";
    let mut r = Reader::new(WHAT, bytes);
    let mut c = DeleteRange::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => c.range.start = v.bytes(WHAT)?,
            2 => c.range.end = v.bytes(WHAT)?,
            3 => c.prev_kv = v.bool(WHAT)?,
            _ => {}
        }
    }
    Ok(c)
}

fn range(w: &mut Writer, c: &Range) {
    w.bytes(1, &c.range.start);
    w.bytes(2, &c.range.end);
    w.int(3, c.limit);
    w.int(4, c.revision);
    w.uint(
        5,
        match c.sort_order {
            SortOrder::None => 0,
            SortOrder::Ascend => 1,
            SortOrder::Descend => 2,
        },
    );
    w.uint(
        6,
        match c.sort_target {
            SortTarget::Key => 0,
            SortTarget::Version => 1,
            SortTarget::Create => 2,
            SortTarget::Mod => 3,
            SortTarget::Value => 4,
        },
    );
    w.bool(7, c.serializable);
    w.bool(8, c.keys_only);
    w.bool(9, c.count_only);
    w.int(10, c.min_mod_revision);
    w.int(11, c.max_mod_revision);
    w.int(12, c.min_create_revision);
    w.int(13, c.max_create_revision);
}

fn decode_range(bytes: Bytes) -> Result<Range, DecodeError> {
    const WHAT: &str = "range";
    let mut r = Reader::new(WHAT, bytes);
    let mut c = Range::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => c.range.start = v.bytes(WHAT)?,
            2 => c.range.end = v.bytes(WHAT)?,
            3 => c.limit = v.int(WHAT)?,
            4 => c.revision = v.int(WHAT)?,
            5 => {
                c.sort_order = match v.uint(WHAT)? {
                    0 => SortOrder::None,
                    1 => SortOrder::Ascend,
                    2 => SortOrder::Descend,
                    _ => return Err(DecodeError { what: WHAT, why: "its sort order is unknown" }),
                }
            }
            6 => {
                c.sort_target = match v.uint(WHAT)? {
                    0 => SortTarget::Key,
                    1 => SortTarget::Version,
                    2 => SortTarget::Create,
                    3 => SortTarget::Mod,
                    4 => SortTarget::Value,
                    _ => return Err(DecodeError { what: WHAT, why: "its sort target is unknown" }),
                }
            }
            7 => c.serializable = v.bool(WHAT)?,
            8 => c.keys_only = v.bool(WHAT)?,
            9 => c.count_only = v.bool(WHAT)?,
            10 => c.min_mod_revision = v.int(WHAT)?,
            11 => c.max_mod_revision = v.int(WHAT)?,
            12 => c.min_create_revision = v.int(WHAT)?,
            13 => c.max_create_revision = v.int(WHAT)?,
            _ => {}
        }
    }
    Ok(c)
}

fn txn(w: &mut Writer, c: &Txn) {
    for compare in &c.compares {
        let mut inner = Writer::new();
        inner.bytes(1, &compare.range.start);
        inner.bytes(2, &compare.range.end);
        inner.uint(
            3,
            match compare.result {
                CompareResult::Equal => 0,
                CompareResult::Greater => 1,
                CompareResult::Less => 2,
                CompareResult::NotEqual => 3,
            },
        );
        // The target's number is written even when its value is zero: it says what is compared.
        match &compare.target {
            CompareTarget::Version(v) => inner.message(4, &int_message(*v)),
            CompareTarget::Create(v) => inner.message(5, &int_message(*v)),
            CompareTarget::Mod(v) => inner.message(6, &int_message(*v)),
            CompareTarget::Value(v) => inner.message(7, v),
            CompareTarget::Lease(v) => inner.message(8, &int_message(*v)),
        }
        w.message(1, &inner.finish());
    }
    for (field, ops) in [(2, &c.success), (3, &c.failure)] {
        for op in ops {
            let mut inner = Writer::new();
            let mut body = Writer::new();
            let number = match op {
                TxnOp::Range(o) => {
                    range(&mut body, o);
                    1
                }
                TxnOp::Put(o) => {
                    put(&mut body, o);
                    2
                }
                TxnOp::DeleteRange(o) => {
                    delete_range(&mut body, o);
                    3
                }
                TxnOp::Txn(o) => {
                    txn(&mut body, o);
                    4
                }
            };
            inner.message(number, &body.finish());
            w.message(field, &inner.finish());
        }
    }
}

fn int_message(v: i64) -> Bytes {
    let mut w = Writer::new();
    w.int(1, v);
    w.finish()
}

fn decode_int_message(bytes: Bytes) -> Result<i64, DecodeError> {
    let mut r = Reader::new("number", bytes);
    let mut out = 0;
    while let Some((n, v)) = r.field()? {
        if n == 1 {
            out = v.int("number")?;
        }
    }
    Ok(out)
}

fn decode_txn(bytes: Bytes, depth: usize) -> Result<Txn, DecodeError> {
    const WHAT: &str = "txn";
    if depth > TXN_DEPTH_MAX {
        return Err(DecodeError { what: WHAT, why: "it is nested too deeply" });
    }
    let mut r = Reader::new(WHAT, bytes);
    let mut c = Txn::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => c.compares.push(decode_compare(v.bytes(WHAT)?)?),
            2 => c.success.push(decode_op(v.bytes(WHAT)?, depth)?),
            3 => c.failure.push(decode_op(v.bytes(WHAT)?, depth)?),
            _ => {}
        }
    }
    Ok(c)
}

fn decode_compare(bytes: Bytes) -> Result<Compare, DecodeError> {
    const WHAT: &str = "compare";
    let mut r = Reader::new(WHAT, bytes);
    let mut range = KeyRange::default();
    let mut result = CompareResult::Equal;
    let mut target = None;
    while let Some((n, v)) = r.field()? {
        match n {
            1 => range.start = v.bytes(WHAT)?,
            2 => range.end = v.bytes(WHAT)?,
            3 => {
                result = match v.uint(WHAT)? {
                    0 => CompareResult::Equal,
                    1 => CompareResult::Greater,
                    2 => CompareResult::Less,
                    3 => CompareResult::NotEqual,
                    _ => return Err(DecodeError { what: WHAT, why: "its result is unknown" }),
                }
            }
            4 => target = Some(CompareTarget::Version(decode_int_message(v.bytes(WHAT)?)?)),
            5 => target = Some(CompareTarget::Create(decode_int_message(v.bytes(WHAT)?)?)),
            6 => target = Some(CompareTarget::Mod(decode_int_message(v.bytes(WHAT)?)?)),
            7 => target = Some(CompareTarget::Value(v.bytes(WHAT)?)),
            8 => target = Some(CompareTarget::Lease(decode_int_message(v.bytes(WHAT)?)?)),
            _ => {}
        }
    }
    let target = target.ok_or(DecodeError { what: WHAT, why: "it has no target" })?;
    Ok(Compare { range, result, target })
}

fn decode_op(bytes: Bytes, depth: usize) -> Result<TxnOp, DecodeError> {
    const WHAT: &str = "txn operation";
    let mut r = Reader::new(WHAT, bytes);
    let mut op = None;
    while let Some((n, v)) = r.field()? {
        let body = v.bytes(WHAT)?;
        op = Some(match n {
            1 => TxnOp::Range(decode_range(body)?),
            2 => TxnOp::Put(decode_put(body)?),
            3 => TxnOp::DeleteRange(decode_delete_range(body)?),
            4 => TxnOp::Txn(decode_txn(body, depth + 1)?),
            _ => return Err(DecodeError { what: WHAT, why: "its kind is newer than this server" }),
        });
    }
    op.ok_or(DecodeError { what: WHAT, why: "it is empty" })
}

/// Encodes a restore's totals: part of its Commit, and of what a snapshot carries of an unfinished restore.
pub fn encode_restore_totals(t: &RestoreTotals) -> Bytes {
    let mut w = Writer::new();
    w.uint(1, t.chunks);
    w.uint(2, t.keys);
    w.uint(3, t.leases);
    w.uint(4, t.users);
    w.uint(5, t.roles);
    w.bytes(6, &t.checksum);
    w.finish()
}

/// The inverse of [`encode_restore_totals`].
pub fn decode_restore_totals(bytes: Bytes) -> Result<RestoreTotals, DecodeError> {
    const WHAT: &str = "restore totals";
    let mut r = Reader::new(WHAT, bytes);
    let mut t = RestoreTotals::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => t.chunks = v.uint(WHAT)?,
            2 => t.keys = v.uint(WHAT)?,
            3 => t.leases = v.uint(WHAT)?,
            4 => t.users = v.uint(WHAT)?,
            5 => t.roles = v.uint(WHAT)?,
            6 => t.checksum = v.bytes(WHAT)?,
            _ => {}
        }
    }
    Ok(t)
}

/// Encodes one record of a restore. Records are concatenated into chunks with [`encode_restore_records`].
pub fn encode_restore_record(record: &RestoreRecord) -> Bytes {
    let mut w = Writer::new();
    let mut body = Writer::new();
    let number = match record {
        RestoreRecord::Key { revision, tombstone, value } => {
            body.int(1, revision.main);
            body.int(2, revision.sub);
            body.bool(3, *tombstone);
            body.bytes(4, value);
            1
        }
        RestoreRecord::Lease { id, ttl } => {
            body.int(1, id.0);
            body.int(2, *ttl);
            2
        }
        RestoreRecord::User { name, value } => {
            body.bytes(1, name);
            body.bytes(2, value);
            3
        }
        RestoreRecord::Role { name, value } => {
            body.bytes(1, name);
            body.bytes(2, value);
            4
        }
        RestoreRecord::Auth { enabled, revision } => {
            body.bool(1, *enabled);
            body.uint(2, *revision);
            5
        }
    };
    w.message(number, &body.finish());
    w.finish()
}

/// Encodes records for a chunk.
pub fn encode_restore_records(records: &[RestoreRecord]) -> Bytes {
    let mut out = Vec::new();
    records.iter().for_each(|r| out.extend_from_slice(&encode_restore_record(r)));
    Bytes::from(out)
}

/// Decodes a chunk's records.
pub fn decode_restore_records(bytes: Bytes) -> Result<Vec<RestoreRecord>, DecodeError> {
    const WHAT: &str = "restore record";
    let mut records = Vec::new();
    let mut r = Reader::new(WHAT, bytes);
    while let Some((kind, v)) = r.field()? {
        let mut inner = Reader::new(WHAT, v.bytes(WHAT)?);
        let (mut a, mut b, mut flag) = (0i64, 0i64, false);
        let (mut first, mut second, mut fourth) = (Bytes::new(), Bytes::new(), Bytes::new());
        while let Some((n, v)) = inner.field()? {
            match (n, v) {
                (1, crate::wire::Value::Uint(u)) => a = u as i64,
                (2, crate::wire::Value::Uint(u)) => b = u as i64,
                (3, crate::wire::Value::Uint(u)) => flag = u != 0,
                (1, crate::wire::Value::Bytes(x)) => first = x,
                (2, crate::wire::Value::Bytes(x)) => second = x,
                (4, crate::wire::Value::Bytes(x)) => fourth = x,
                _ => {}
            }
        }
        records.push(match kind {
            1 => RestoreRecord::Key { revision: Revision::new(a, b), tombstone: flag, value: fourth },
            2 => RestoreRecord::Lease { id: LeaseId(a), ttl: b },
            3 => RestoreRecord::User { name: first, value: second },
            4 => RestoreRecord::Role { name: first, value: second },
            5 => RestoreRecord::Auth { enabled: a != 0, revision: b as u64 },
            _ => return Err(DecodeError { what: WHAT, why: "its kind is newer than this server" }),
        });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authenticate, Client};
    use ferretcd_fuzz::Fuzz;

    fn all_commands() -> Vec<Command> {
        let put = Put { key: "k".into(), value: "v".into(), lease: LeaseId(7), prev_kv: true, ..Put::default() };
        let range = Range {
            range: KeyRange::new("a", "b"),
            limit: 5,
            revision: 9,
            sort_order: SortOrder::Descend,
            sort_target: SortTarget::Value,
            keys_only: true,
            max_create_revision: 3,
            ..Range::default()
        };
        let delete = DeleteRange { range: KeyRange::all(), prev_kv: true };
        let inner = Txn { success: vec![TxnOp::Put(put.clone())], ..Txn::default() };
        let targets = [
            CompareTarget::Version(0),
            CompareTarget::Create(0),
            CompareTarget::Mod(5),
            CompareTarget::Value(Bytes::new()),
            CompareTarget::Lease(-1),
        ];
        let compares = targets
            .into_iter()
            .map(|target| Compare { range: KeyRange::single("k"), result: CompareResult::NotEqual, target })
            .collect();
        let txn = Txn {
            compares,
            success: vec![TxnOp::Range(range), TxnOp::DeleteRange(delete.clone())],
            failure: vec![TxnOp::Txn(inner)],
        };
        let totals = RestoreTotals { chunks: 1, keys: 2, leases: 3, users: 4, roles: 5, checksum: "sum".into() };
        let alarm = Alarm { member: MemberId(3), kind: AlarmKind::Corrupt };
        let mut all = vec![
            Command::Genesis(Genesis { epoch: Epoch(u64::MAX), cluster_version: "3.7.0".into() }),
            Command::Put(put),
            Command::DeleteRange(delete),
            Command::Txn(txn),
            Command::Compact(Compact { revision: 12 }),
            Command::LeaseGrant(LeaseGrant { id: LeaseId(9), ttl: 60 }),
            Command::LeaseRevoke(LeaseRevoke { id: LeaseId(i64::MAX) }),
            Command::LeaseCheckpoint(LeaseCheckpoint { remaining: vec![(LeaseId(9), 41), (LeaseId(10), 0)] }),
            Command::MemberAttributes(MemberAttributes {
                id: MemberId(1),
                name: "a".into(),
                client_urls: vec!["http://x:1".into(), String::new()],
            }),
            Command::SetAlarm(SetAlarm { alarm, raised: true }),
            Command::RestoreBegin(RestoreBegin { id: 4 }),
            Command::RestoreChunk(RestoreChunk { id: 4, sequence: 1, records: "x".into() }),
            Command::RestoreCommit(RestoreCommit { id: 4, totals, revision_bump: 10 }),
            Command::RestoreAbort(RestoreAbort { id: 4 }),
            Command::SetClusterVersion(SetClusterVersion { version: "3.6.0".into(), ..SetClusterVersion::default() }),
            Command::SetClusterVersion(SetClusterVersion {
                version: "3.7.0".into(),
                log_format: 3,
                told_by: vec![MemberId(1), MemberId(u64::MAX)],
            }),
            Command::SetDowngrade(SetDowngrade { target: Some("3.6.0".into()) }),
            Command::SetDowngrade(SetDowngrade { target: None }),
            Command::Authenticate(Authenticate { user: "u".into(), token: "t".into() }),
        ];
        all.extend(auth::all_changes().into_iter().map(Command::Auth));
        all
    }

    #[test]
    fn every_command_comes_back_as_it_went() {
        for command in all_commands() {
            let known = Client { user: "alice".into(), auth_revision: 7 };
            for caller in [Caller::Member, Caller::Client(Client::default()), Caller::Client(known)] {
                let proposal = Proposal { id: RequestId(77), caller, command: command.clone() };
                assert_eq!(decode_proposal(encode_proposal(&proposal)).unwrap(), proposal);
            }
        }
    }

    /// A line per command, as the first release that had it wrote it to its log. A command that has changed gets a line of
    /// its own, and the old one stays.
    #[test]
    fn commands_in_old_logs_are_understood_and_still_written_so() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/commands.txt");
        let proposals = all_commands().into_iter().map(|command| {
            let caller = Caller::Client(Client { user: "alice".into(), auth_revision: 7 });
            Proposal { id: RequestId(77), caller, command }
        });
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let proposals: Vec<Proposal> = proposals.collect();
        if std::env::var_os("FERRETCD_WRITE_GOLDEN").is_some() {
            let lines = proposals.iter().map(|p| hex(&encode_proposal(p)) + "\n");
            std::fs::write(&path, lines.collect::<String>()).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap();
        assert_eq!(golden.lines().count(), proposals.len());
        for (line, proposal) in golden.lines().zip(proposals) {
            let bytes: Vec<u8> =
                (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect();
            assert_eq!(decode_proposal(Bytes::from(bytes)).unwrap(), proposal);
            assert_eq!(hex(&encode_proposal(&proposal)), line, "{:?}", proposal.command);
        }
    }

    #[test]
    fn no_command_is_newer_than_the_format_that_members_tell() {
        let newest = all_commands().iter().map(Command::log_format).max();
        assert_eq!(newest, Some(2), "format 3 has no kind of its own, but a new field of an old one");
        assert!(newest <= Some(LOG_FORMAT));
    }

    #[test]
    fn a_lease_checkpoint_has_its_bytes_for_good() {
        let command = Command::LeaseCheckpoint(LeaseCheckpoint { remaining: vec![(LeaseId(9), 41), (LeaseId(10), 0)] });
        let bytes = encode_proposal(&Proposal { id: RequestId(1), caller: Caller::Member, command });
        assert_eq!(bytes.as_ref(), b"\x08\x01\xba\x01\x0a\x0a\x04\x08\x09\x10\x29\x0a\x02\x08\x0a");
    }

    #[test]
    fn damaged_commands_never_panic() {
        for command in all_commands() {
            let bytes = encode_proposal(&Proposal { id: RequestId(1), caller: Caller::Member, command });
            for cut in 0..bytes.len() {
                let _ = decode_proposal(bytes.slice(..cut));
            }
            for at in 0..bytes.len() {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 0x55;
                let _ = decode_proposal(Bytes::from(flipped));
            }
        }
    }

    #[test]
    fn a_key_value_is_byte_for_byte_etcds() {
        let kv = KeyValue {
            key: "foo".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            value: "bar".into(),
            lease: LeaseId(1),
        };
        let bytes = encode_key_value(&kv);
        assert_eq!(bytes.as_ref(), b"\x0a\x03foo\x10\x02\x18\x03\x20\x02\x2a\x03bar\x30\x01");
        assert_eq!(decode_key_value(bytes).unwrap(), kv);
    }

    #[test]
    fn restore_records_come_back_as_they_went() {
        let records = vec![
            RestoreRecord::Key { revision: Revision::new(5, 1), tombstone: true, value: "kv".into() },
            RestoreRecord::Key { revision: Revision::new(6, 0), tombstone: false, value: Bytes::new() },
            RestoreRecord::Lease { id: LeaseId(4), ttl: 60 },
            RestoreRecord::User { name: "u".into(), value: "raw".into() },
            RestoreRecord::Role { name: "r".into(), value: Bytes::new() },
            RestoreRecord::Auth { enabled: true, revision: 8 },
        ];
        assert_eq!(decode_restore_records(encode_restore_records(&records)).unwrap(), records);
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut txn = Txn::default();
        for _ in 0..200 {
            txn = Txn { success: vec![TxnOp::Txn(txn)], ..Txn::default() };
        }
        let bytes = encode_proposal(&Proposal { id: RequestId(1), caller: Caller::Member, command: Command::Txn(txn) });
        assert!(decode_proposal(bytes).is_err());
    }

    #[test]
    fn fuzz_proposal() {
        let client = Client { user: "u".to_owned(), auth_revision: 4 };
        let callers = [Caller::Member, Caller::Client(client)];
        let seeds = all_commands().into_iter().flat_map(|command| {
            callers.clone().map(|caller| Proposal { id: RequestId(1), caller, command: command.clone() })
        });
        let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "proposal").seeds(seeds.map(|p| encode_proposal(&p).to_vec()));
        fuzz.run(|bytes| match decode_proposal(Bytes::copy_from_slice(bytes)) {
            Ok(proposal) => {
                assert_eq!(decode_proposal(encode_proposal(&proposal)).as_ref(), Ok(&proposal));
                format!("{proposal:?}")
            }
            Err(e) => e.to_string(),
        });
    }

    #[test]
    fn fuzz_stored_record() {
        let kv = KeyValue {
            key: "foo".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            value: "bar".into(),
            lease: LeaseId(1),
        };
        let records = [
            RestoreRecord::Key { revision: Revision::new(5, 1), tombstone: true, value: "kv".into() },
            RestoreRecord::Lease { id: LeaseId(4), ttl: 60 },
            RestoreRecord::User { name: "u".into(), value: "raw".into() },
            RestoreRecord::Auth { enabled: true, revision: 8 },
        ];
        let seeds = [encode_key_value(&kv), encode_restore_records(&records)];
        Fuzz::new(env!("CARGO_MANIFEST_DIR"), "stored_record").seeds(seeds.map(Vec::from)).run(|bytes| {
            let bytes = Bytes::copy_from_slice(bytes);
            let kv = decode_key_value(bytes.clone());
            if let Ok(kv) = &kv {
                assert_eq!(decode_key_value(encode_key_value(kv)).as_ref(), Ok(kv));
            }
            let records = decode_restore_records(bytes.clone());
            if let Ok(records) = &records {
                assert_eq!(decode_restore_records(encode_restore_records(records)).as_ref(), Ok(records));
            }
            format!("{kv:?} {records:?} {:?}", decode_restore_totals(bytes))
        });
    }
}
