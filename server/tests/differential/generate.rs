//! Makes calls from numbers: mostly sensible ones on few keys, so that they meet; some are wrong on purpose.

use super::call::{Answer, AuthCall, Call, Who};
use bytes::Bytes;
use ferretcd_proto::{authpb, etcdserverpb as pb};
use pb::compare::TargetUnion;
use pb::request_op::Request;

/// SplitMix64: small, and good enough to choose with.
pub struct Random {
    state: u64,
    /// Ranges whose end does not follow their start are left out.
    ordered: bool,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Random { state: seed, ordered: false }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

/// Twelve different ones, "foo" twice as often: Go's sort, which etcd uses, keeps equal values in their order up to twelve
/// elements, and promises nothing beyond.
const KEYS: &[&[u8]] =
    &[b"a", b"aa", b"ab", b"abc", b"b", b"ba", b"c", b"foo", b"foo0", b"\0", b"\xff", b"\xff\xff", b"foo"];
const ENDS: &[&[u8]] = &[b"\0", b"b", b"c", b"ab", b"abd", b"fop", b"foo0", b"zz", b"a", b"\xff"];
const VALUES: &[&[u8]] = &[b"", b"1", b"2", b"long enough", b"\0\xff"];
/// Streams that watches are put on.
pub const STREAMS: usize = 2;

/// What the answers so far said.
pub struct World {
    pub revision: i64,
    pub compacted: i64,
    /// Created so far on each stream, whatever became of them.
    watches: [i64; STREAMS],
    /// There are users.
    users: bool,
    /// The one that lets root in.
    pub root_password: String,
}

impl World {
    pub fn new(revision: i64, compacted: i64, users: bool) -> Self {
        World { revision, compacted, watches: [0; STREAMS], users, root_password: PASSWORDS[0].to_owned() }
    }

    pub fn learn(&mut self, call: &Call, answer: &Answer) {
        if let Some(revision) = answer.revision {
            self.revision = self.revision.max(revision);
        }
        match call {
            Call::Compact(c) if answer.ok => self.compacted = c.revision,
            Call::WatchCreate(stream, _) => self.watches[*stream] += 1,
            Call::Auth(AuthCall::UserAdd(user)) if answer.ok && user.name == "root" => {
                self.root_password.clone_from(&user.password);
            }
            Call::Auth(AuthCall::UserChangePassword(user)) if answer.ok && user.name == "root" => {
                self.root_password.clone_from(&user.password);
            }
            _ => {}
        }
    }

    pub fn next(&self, r: &mut Random) -> Call {
        if self.users {
            // Whether somebody may ask for a range without keys depends in etcd on the shape of the tree that it keeps
            // permissions in, and nothing depends on the answer.
            r.ordered = true;
            match r.below(100) {
                0..35 => return Call::Auth(self.auth(r)),
                35..50 => return Call::Become(self.who(r)),
                _ => {}
            }
        }
        match r.below(100) {
            0..27 => Call::Put(self.put(r)),
            27..43 => Call::Range(self.range(r)),
            43..45 => Call::RangeStream(self.streamed_range(r)),
            45..55 => Call::DeleteRange(self.delete(r)),
            55..72 => Call::Txn(self.txn(r, 2)),
            72..76 => Call::Compact(pb::CompactionRequest { revision: self.compaction(r), physical: r.one_in(2) }),
            76..79 => {
                let id = lease(r);
                Call::LeaseGrant(pb::LeaseGrantRequest { id, ttl: self.ttl(r, id) })
            }
            79..81 => Call::LeaseRevoke(pb::LeaseRevokeRequest { id: lease(r) }),
            81..83 => Call::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id: lease(r), keys: r.one_in(2) }),
            83 => Call::LeaseLeases,
            84 => Call::LeaseKeepAlive(lease(r)),
            85..88 => Call::HashKv(self.hashed_at(r)),
            88..95 => Call::WatchCreate(r.below(STREAMS as u64) as usize, self.watch(r)),
            95..97 => {
                let stream = r.below(STREAMS as u64) as usize;
                Call::WatchCancel(stream, r.below(self.watches[stream] as u64 + 2) as i64)
            }
            _ => Call::Settle,
        }
    }

    fn auth(&self, r: &mut Random) -> AuthCall {
        let user = |r: &mut Random| r.pick(USERS).to_owned();
        let role = |r: &mut Random| r.pick(ROLES).to_owned();
        match r.below(32) {
            0..2 => AuthCall::Enable,
            2 => AuthCall::Disable,
            3..5 => AuthCall::Status,
            5..8 => {
                let name = user(r);
                let no_password = name != "root" && r.one_in(6);
                let options = r.one_in(2).then_some(authpb::UserAddOptions { no_password });
                let password = password(r, &name);
                AuthCall::UserAdd(pb::AuthUserAddRequest { name, password, options, ..Default::default() })
            }
            8..10 => AuthCall::UserGet(user(r)),
            10 => AuthCall::UserList,
            11 => AuthCall::UserDelete(user(r)),
            12..14 => {
                let name = user(r);
                let password = password(r, &name);
                AuthCall::UserChangePassword(pb::AuthUserChangePasswordRequest { name, password, ..Default::default() })
            }
            14..17 => AuthCall::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user(r), role: role(r) }),
            17..19 => AuthCall::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: user(r), role: role(r) }),
            19..21 => AuthCall::RoleAdd(role(r)),
            21..23 => AuthCall::RoleGet(role(r)),
            23 => AuthCall::RoleList,
            24 => AuthCall::RoleDelete(role(r)),
            25..30 => {
                let (key, range_end) = interval(r);
                let perm_type = r.pick(&[0, 0, 1, 1, 2, 2, 5]);
                let perm = (!r.one_in(12)).then_some(authpb::Permission { perm_type, key, range_end });
                AuthCall::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: role(r), perm })
            }
            _ => {
                let (key, range_end) = interval(r);
                AuthCall::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest { role: role(r), key, range_end })
            }
        }
    }

    fn who(&self, r: &mut Random) -> Who {
        match r.below(12) {
            0 => Who::Nobody,
            1 => Who::Stranger,
            2..6 => Who::User("root".to_owned(), self.root_password.clone()),
            _ => {
                let name = r.pick(USERS).to_owned();
                let password = if r.one_in(4) { password(r, &name) } else { PASSWORDS[0].to_owned() };
                Who::User(name, password)
            }
        }
    }

    /// A revision to read at.
    fn at(&self, r: &mut Random) -> i64 {
        match r.below(20) {
            0..13 => 0,
            13..17 => self.revision - r.below(8) as i64,
            17 => self.compacted,
            18 => self.compacted - r.below(2) as i64,
            _ => self.revision + r.below(3) as i64,
        }
    }

    /// At a revision that was compacted to, etcd answers with a hash that it took while it compacted (as long as the
    /// process lives). This server makes it anew, the same on each member, so those revisions are left out.
    fn hashed_at(&self, r: &mut Random) -> i64 {
        let at = self.at(r);
        if at > 0 && at <= self.compacted { 0 } else { at }
    }

    fn compaction(&self, r: &mut Random) -> i64 {
        let revision = match r.below(10) {
            0 => self.compacted,
            1 => self.revision + 1,
            2 => self.revision,
            3 => r.pick(&[-1, i64::MAX]),
            _ => self.revision - r.below(10) as i64,
        };
        // etcd takes a compaction to 0 once, and keeps its hash for HashKV's "now".
        if revision == 0 { -1 } else { revision }
    }

    fn range(&self, r: &mut Random) -> pb::RangeRequest {
        let (key, range_end) = interval(r);
        let some = |r: &mut Random, revision: i64| if r.one_in(12) { revision - r.below(6) as i64 } else { 0 };
        pb::RangeRequest {
            key,
            range_end,
            limit: if r.one_in(4) { r.pick(&[1, 2, 3, 100, -1]) } else { 0 },
            revision: self.at(r),
            sort_order: if r.one_in(3) { r.pick(&[0, 1, 2, 2, 7]) } else { 0 },
            sort_target: if r.one_in(3) { r.pick(&[0, 1, 2, 3, 4, 4, 9]) } else { 0 },
            serializable: r.one_in(4),
            keys_only: r.one_in(6),
            count_only: r.one_in(8),
            min_mod_revision: some(r, self.revision),
            max_mod_revision: some(r, self.revision),
            min_create_revision: some(r, self.revision),
            max_create_revision: some(r, self.revision),
        }
    }

    /// Mostly one that can be streamed: orders and filters by revision are refused.
    fn streamed_range(&self, r: &mut Random) -> pb::RangeRequest {
        let mut range = self.range(r);
        // Without an order but with another target than the key, etcd sorts each chunk and goes on behind its last key,
        // wherever that stood: keys are missing, or come twice. This server keeps the keys' own order.
        if range.sort_order == 0 {
            range.sort_target = 0;
        }
        if r.one_in(4) {
            return range;
        }
        let pb::RangeRequest { key, range_end, limit, revision, serializable, keys_only, count_only, .. } = range;
        pb::RangeRequest { key, range_end, limit, revision, serializable, keys_only, count_only, ..Default::default() }
    }

    fn put(&self, r: &mut Random) -> pb::PutRequest {
        let ignore_value = r.one_in(12);
        let ignore_lease = r.one_in(12);
        pb::PutRequest {
            key: key(r),
            value: if ignore_value && !r.one_in(6) { Bytes::new() } else { Bytes::from_static(r.pick(VALUES)) },
            lease: if !r.one_in(4) || (ignore_lease && !r.one_in(6)) { 0 } else { lease(r) },
            prev_kv: r.one_in(3),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&self, r: &mut Random) -> pb::DeleteRangeRequest {
        let (key, range_end) = interval(r);
        pb::DeleteRangeRequest { key, range_end, prev_kv: r.one_in(2) }
    }

    fn txn(&self, r: &mut Random, depth: u32) -> pb::TxnRequest {
        let compare = (0..r.below(3)).map(|_| self.compare(r)).collect();
        let ops = |r: &mut Random| -> Vec<pb::RequestOp> {
            (0..r.below(4)).map(|_| pb::RequestOp { request: self.op(r, depth) }).collect()
        };
        let success = ops(r);
        let failure = ops(r);
        pb::TxnRequest { compare, success, failure }
    }

    fn op(&self, r: &mut Random, depth: u32) -> Option<Request> {
        Some(match r.below(20) {
            0..8 => Request::RequestPut(self.put(r)),
            8..12 => Request::RequestRange(self.range(r)),
            12..16 => {
                let mut delete = self.delete(r);
                // Such a one may delete a key that the same transaction then puts. etcd's compaction at that revision
                // takes the new record away, and its hash misses it; a put that keeps the old value ends its process.
                if delete.range_end == b"\0"[..] {
                    delete.range_end = Bytes::from_static(b"c");
                }
                Request::RequestDeleteRange(delete)
            }
            16..19 if depth > 0 => Request::RequestTxn(self.txn(r, depth - 1)),
            19 if r.one_in(6) => return None,
            _ => Request::RequestPut(self.put(r)),
        })
    }

    fn compare(&self, r: &mut Random) -> pb::Compare {
        let (key, range_end) = interval(r);
        let revision = if r.one_in(3) { 0 } else { self.revision - r.below(8) as i64 };
        let union = match r.below(6) {
            0 => Some(TargetUnion::Version(r.below(4) as i64)),
            1 => Some(TargetUnion::CreateRevision(revision)),
            2 => Some(TargetUnion::ModRevision(revision)),
            3 => Some(TargetUnion::Value(Bytes::from_static(r.pick(VALUES)))),
            4 => Some(TargetUnion::Lease(lease(r))),
            _ if r.one_in(4) => None,
            _ => Some(TargetUnion::Version(0)),
        };
        let fitting = match &union {
            Some(TargetUnion::Version(_)) | None => 0,
            Some(TargetUnion::CreateRevision(_)) => 1,
            Some(TargetUnion::ModRevision(_)) => 2,
            Some(TargetUnion::Value(_)) => 3,
            Some(TargetUnion::Lease(_)) => 4,
        };
        pb::Compare {
            // Numbers that do not exist are left out: etcd takes such a comparison as true, and this server refuses it,
            // since nothing should be written for a condition that nobody understood.
            result: r.pick(&[0, 0, 1, 2, 3]),
            target: if r.one_in(12) { r.below(5) as i32 } else { fitting },
            key,
            range_end: if r.one_in(3) { range_end } else { Bytes::new() },
            target_union: union,
        }
    }

    /// Far apart, since LeaseLeases lists by expiry, and never the same for two leases: etcd's comparison asks the clock
    /// anew for each side, so two that end a moment apart may come either way round. Never so short that one ends by itself.
    fn ttl(&self, r: &mut Random, id: i64) -> i64 {
        let own = 300 * id.rem_euclid(10);
        match r.below(12) {
            0 => 9_000_000_001,
            1 => 9_000_000_000 - own,
            n => 3000 * n as i64 + own,
        }
    }

    fn watch(&self, r: &mut Random) -> pb::WatchCreateRequest {
        let (key, range_end) = interval(r);
        pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: match r.below(10) {
                0..4 => 0,
                4..8 => self.revision - r.below(12) as i64,
                8 => self.compacted + r.below(2) as i64 - 1,
                _ => self.revision + r.below(6) as i64,
            },
            progress_notify: r.one_in(6),
            filters: r.pick(&[vec![], vec![], vec![0], vec![1], vec![0, 1]]),
            prev_kv: r.one_in(2),
            watch_id: if r.one_in(3) { r.below(8) as i64 } else { 0 },
            fragment: r.one_in(4),
        }
    }
}

const USERS: &[&str] = &["alice", "bob", "alice", "bob", "carol", "root", ""];
const ROLES: &[&str] = &["reader", "writer", "reader", "writer", "root", "late", ""];
/// The first is the usual one.
const PASSWORDS: &[&str] = &["p", "q", ""];

/// Root always has one that is not empty: who ends the sequence must get in.
fn password(r: &mut Random, name: &str) -> String {
    let password = r.pick(&[PASSWORDS[0], PASSWORDS[0], PASSWORDS[1], PASSWORDS[2]]);
    if name == "root" && password.is_empty() { PASSWORDS[1].to_owned() } else { password.to_owned() }
}

/// What a sequence with users begins with.
pub fn users() -> Vec<Call> {
    let user = |name: &str| {
        AuthCall::UserAdd(pb::AuthUserAddRequest {
            name: name.into(),
            password: PASSWORDS[0].into(),
            ..Default::default()
        })
    };
    let grant = |user: &str, role: &str| {
        AuthCall::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
    };
    let permit = |role: &str, perm_type, key: &'static str, end: &'static str| {
        let perm = authpb::Permission { perm_type, key: key.into(), range_end: end.into() };
        AuthCall::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) })
    };
    let calls = [
        user("root"),
        user("alice"),
        user("bob"),
        AuthCall::RoleAdd("reader".into()),
        AuthCall::RoleAdd("writer".into()),
        permit("reader", 0, "a", "b"),
        permit("writer", 2, "b", "\0"),
        grant("root", "root"),
        grant("alice", "reader"),
        grant("alice", "writer"),
        grant("bob", "reader"),
        AuthCall::Enable,
    ];
    let root = Call::Become(Who::User("root".to_owned(), PASSWORDS[0].to_owned()));
    calls.into_iter().map(Call::Auth).chain([root]).collect()
}

fn key(r: &mut Random) -> Bytes {
    if r.one_in(40) { Bytes::new() } else { Bytes::from_static(r.pick(KEYS)) }
}

fn interval(r: &mut Random) -> (Bytes, Bytes) {
    match r.below(6) {
        0 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        1 | 2 => {
            let (start, end) = (key(r), r.pick(ENDS));
            let empty = end != b"\0" && end <= &start[..];
            (start, if r.ordered && empty { Bytes::new() } else { Bytes::from_static(end) })
        }
        _ => (key(r), Bytes::new()),
    }
}

/// Chosen by the client, so that both servers know them by the same number; 0 and one that is never granted.
fn lease(r: &mut Random) -> i64 {
    r.pick(&[1, 2, 3, 4, 1, 2, 3, 4, 77, 0, -5])
}
