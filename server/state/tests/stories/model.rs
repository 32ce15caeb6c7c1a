//! A naive model of the key space to hold the real one against, and random logs for both.

use crate::member::Entry;
use bytes::Bytes;
use ferretcd_types::codec::encode_key_value;
use ferretcd_types::{
    Command, Compact, Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, Error, Event, EventKind,
    KeyRange, KeyValue, LeaseGrant, LeaseGrantReply, LeaseId, LeaseRevoke, OpReply, Put, PutReply, Range, RangeReply,
    Reply, Revised, Revision, SortOrder, SortTarget, Txn, TxnOp, TxnReply,
};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// A small generator of numbers (xorshift64*), the same on every run.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(format!("k{}", self.below(9)))
    }

    pub fn key_range(&mut self) -> KeyRange {
        match self.below(6) {
            0..=2 => KeyRange::single(self.key()),
            3 => KeyRange::new(self.key(), self.key()),
            4 => KeyRange::new(self.key(), "\0"),
            _ => KeyRange::all(),
        }
    }

    fn value(&mut self) -> Bytes {
        Bytes::from(format!("v{}", self.below(4)))
    }

    pub fn put(&mut self) -> Put {
        let mut put = Put { key: self.key(), value: self.value(), prev_kv: self.chance(2), ..Put::default() };
        if self.chance(5) {
            put.lease = LeaseId(1 + self.below(4) as i64);
        } else if self.chance(5) {
            put.ignore_lease = true;
        }
        if self.chance(8) {
            (put.value, put.ignore_value) = (Bytes::new(), true);
        }
        put
    }

    pub fn range(&mut self, revision: i64) -> Range {
        let mut range = Range { range: self.key_range(), ..Range::default() };
        range.limit = if self.chance(3) { self.below(4) as i64 } else { 0 };
        range.revision = if self.chance(2) { self.below(revision as u64 + 3) as i64 - 1 } else { 0 };
        range.sort_order = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend][self.below(3) as usize];
        if self.chance(2) {
            use SortTarget::{Create, Key, Mod, Value, Version};
            range.sort_target = [Key, Version, Create, Mod, Value][self.below(5) as usize];
        }
        range.keys_only = self.chance(6);
        range.count_only = self.chance(6);
        for bound in [
            &mut range.min_mod_revision,
            &mut range.max_mod_revision,
            &mut range.min_create_revision,
            &mut range.max_create_revision,
        ] {
            *bound = if self.chance(8) { self.below(revision as u64 + 2) as i64 } else { 0 };
        }
        range
    }

    fn compare(&mut self) -> Compare {
        use CompareResult::{Equal, Greater, Less, NotEqual};
        let number = self.below(6) as i64;
        Compare {
            range: self.key_range(),
            result: [Equal, Greater, Less, NotEqual][self.below(4) as usize],
            target: match self.below(5) {
                0 => CompareTarget::Version(number),
                1 => CompareTarget::Create(number),
                2 => CompareTarget::Mod(number),
                3 => CompareTarget::Value(self.value()),
                _ => CompareTarget::Lease(number),
            },
        }
    }

    fn ops(&mut self, revision: i64, depth: u64) -> Vec<TxnOp> {
        (0..self.below(4))
            .map(|_| match self.below(8 - depth) {
                0..=2 => TxnOp::Put(self.put()),
                3 => TxnOp::DeleteRange(DeleteRange { range: self.key_range(), prev_kv: self.chance(2) }),
                4 | 5 => TxnOp::Range(self.range(revision)),
                _ => TxnOp::Txn(self.txn(revision, depth + 1)),
            })
            .collect()
    }

    pub fn txn(&mut self, revision: i64, depth: u64) -> Txn {
        Txn {
            compares: (0..self.below(3)).map(|_| self.compare()).collect(),
            success: self.ops(revision, depth),
            failure: self.ops(revision, depth),
        }
    }

    /// A transaction that the border lets through: no key is put twice or put and deleted in one branch.
    fn valid_txn(&mut self, revision: i64) -> Txn {
        loop {
            let txn = self.txn(revision, 0);
            if is_valid(&txn.success) && is_valid(&txn.failure) {
                return txn;
            }
        }
    }

    /// A command; `revision` is about where history stands.
    pub fn command(&mut self, revision: i64) -> Command {
        let lease = LeaseId(1 + self.below(4) as i64);
        match self.below(20) {
            0..=7 => self.put().into(),
            8..=10 => DeleteRange { range: self.key_range(), prev_kv: self.chance(2) }.into(),
            11..=15 => self.valid_txn(revision).into(),
            16 => Compact { revision: self.below(revision as u64 + 2) as i64 }.into(),
            17 | 18 => LeaseGrant { id: lease, ttl: 60 }.into(),
            _ => LeaseRevoke { id: lease }.into(),
        }
    }
}

fn is_valid(ops: &[TxnOp]) -> bool {
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    collect(ops, &mut puts, &mut deletes);
    let distinct: BTreeSet<_> = puts.iter().collect();
    distinct.len() == puts.len() && !puts.iter().any(|key| deletes.iter().any(|range: &KeyRange| range.contains(key)))
}

/// Stricter than etcd with nested ones: their branches count together.
fn collect(ops: &[TxnOp], puts: &mut Vec<Bytes>, deletes: &mut Vec<KeyRange>) {
    for op in ops {
        match op {
            TxnOp::Range(_) => {}
            TxnOp::Put(put) => puts.push(put.key.clone()),
            TxnOp::DeleteRange(delete) => deletes.push(delete.range.clone()),
            TxnOp::Txn(txn) => {
                collect(&txn.success, puts, deletes);
                collect(&txn.failure, puts, deletes);
            }
        }
    }
}

/// A random log.
pub fn entries(random: &mut Random, count: usize) -> Vec<Entry> {
    (0..count)
        .map(|at| match random.below(30) {
            0 => Entry::Blank,
            _ => Entry::Command(random.command(1 + at as i64 / 2)),
        })
        .collect()
}

type Keys = BTreeMap<Bytes, KeyValue>;

/// The key space as a list of whole states: slow, large and hard to get wrong.
pub struct Model {
    /// The state at each revision, from 0.
    states: Vec<Keys>,
    pub events: Vec<Event>,
    pub compacted: i64,
    pub leases: BTreeSet<LeaseId>,
}

impl Model {
    pub fn new() -> Self {
        Model { states: vec![Keys::new(); 2], events: Vec::new(), compacted: -1, leases: BTreeSet::new() }
    }

    pub fn revision(&self) -> i64 {
        self.states.len() as i64 - 1
    }

    fn keys(&self) -> &Keys {
        &self.states[self.states.len() - 1]
    }

    /// Keys of a lease, in order.
    pub fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.keys().values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect()
    }

    /// Applies a command: its answer, and the events of it.
    pub fn apply(&mut self, command: &Command) -> Result<Reply, Error> {
        let mut draft = Draft { model: self, keys: self.keys().clone(), events: Vec::new() };
        let mut compacted = self.compacted;
        let mut leases = self.leases.clone();
        let reply = match command {
            Command::Put(put) => {
                draft.check_put(put)?;
                Reply::Put(draft.put(put)?)
            }
            Command::DeleteRange(delete) => Reply::DeleteRange(draft.delete(delete)),
            Command::Txn(txn) => Reply::Txn(draft.txn(txn)?),
            Command::Compact(Compact { revision }) => {
                if *revision <= compacted {
                    return Err(Error::Compacted);
                }
                if *revision > self.revision() {
                    return Err(Error::FutureRevision);
                }
                compacted = *revision;
                Reply::Revised(Revised { revision: self.revision() })
            }
            Command::LeaseGrant(LeaseGrant { id, ttl }) => {
                if !leases.insert(*id) {
                    return Err(Error::LeaseExists);
                }
                Reply::LeaseGrant(LeaseGrantReply { revision: self.revision(), id: *id, ttl: *ttl })
            }
            Command::LeaseRevoke(LeaseRevoke { id }) => {
                if !leases.remove(id) {
                    return Err(Error::LeaseNotFound);
                }
                for key in self.lease_keys(*id) {
                    draft.delete(&DeleteRange { range: KeyRange::single(key), prev_kv: false });
                }
                Reply::Revised(Revised { revision: draft.revision() })
            }
            other => panic!("the model does not know {other:?}"),
        };
        let Draft { keys, events, .. } = draft;
        (self.compacted, self.leases) = (compacted, leases);
        if !events.is_empty() {
            self.states.push(keys);
            self.events.extend(events);
        }
        Ok(reply)
    }

    pub fn range(&self, request: &Range) -> Result<RangeReply, Error> {
        Draft { model: self, keys: self.keys().clone(), events: Vec::new() }.range(request)
    }

    /// What a key was before an event, unless that is compacted.
    pub fn value_before(&self, event: &Event) -> Option<KeyValue> {
        let before = event.revision.main - 1;
        let is_creation = event.kind == EventKind::Put && event.kv.version == 1;
        if is_creation || before < self.compacted {
            return None;
        }
        self.states[before as usize].get(&event.kv.key).cloned()
    }

    /// etcd's hash, from its definition.
    pub fn hash(&self, revision: i64) -> u32 {
        let newest_at = |key: &Bytes, at: i64| {
            self.events.iter().rfind(|event| event.kv.key == *key && event.revision.main <= at).map(|e| e.revision)
        };
        let kept_by_compaction = |event: &Event| {
            newest_at(&event.kv.key, self.compacted) == Some(event.revision)
                && (event.kind == EventKind::Put || event.revision.main == self.compacted)
        };
        let keep: Vec<Revision> = self
            .events
            .iter()
            .filter(|event| event.kind == EventKind::Put && newest_at(&event.kv.key, revision) == Some(event.revision))
            .map(|event| event.revision)
            .collect();
        let mut crc = crc32c::crc32c(b"key");
        for event in self.events.iter().filter(|event| event.revision.main <= revision) {
            let Revision { main, sub } = event.revision;
            let tombstone = event.kind == EventKind::Delete;
            if main <= self.compacted {
                let skipped = !keep.is_empty() && !keep.contains(&event.revision);
                if !kept_by_compaction(event) || skipped || (tombstone && main == self.compacted) {
                    continue;
                }
            }
            let kv = match tombstone {
                true => KeyValue { key: event.kv.key.clone(), ..KeyValue::default() },
                false => event.kv.clone(),
            };
            let mark: &[u8] = if tombstone { b"t" } else { b"" };
            crc = crc32c::crc32c_append(crc, &[&main.to_be_bytes(), &b"_"[..], &sub.to_be_bytes(), mark].concat());
            crc = crc32c::crc32c_append(crc, &encode_key_value(&kv));
        }
        crc
    }
}

/// A command under way.
struct Draft<'a> {
    model: &'a Model,
    keys: Keys,
    events: Vec<Event>,
}

impl Draft<'_> {
    fn revision(&self) -> i64 {
        self.model.revision() + i64::from(!self.events.is_empty())
    }

    fn within(keys: &Keys, range: &KeyRange) -> Vec<KeyValue> {
        keys.values().filter(|kv| range.contains(&kv.key)).cloned().collect()
    }

    fn check_put(&self, put: &Put) -> Result<(), Error> {
        // The lease is looked for first, as in etcd.
        if put.lease != LeaseId::NONE && !self.model.leases.contains(&put.lease) {
            return Err(Error::LeaseNotFound);
        }
        if (put.ignore_value || put.ignore_lease) && !self.keys.contains_key(&put.key) {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    fn put(&mut self, put: &Put) -> Result<PutReply, Error> {
        let before = self.keys.get(&put.key).cloned();
        if (put.ignore_value || put.ignore_lease) && before.is_none() {
            return Err(Error::KeyNotFound);
        }
        let main = self.model.revision() + 1;
        let old = before.clone().unwrap_or(KeyValue { create_revision: main, ..KeyValue::default() });
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.create_revision,
            mod_revision: main,
            version: old.version + 1,
            value: if put.ignore_value { old.value } else { put.value.clone() },
            lease: if put.ignore_lease { old.lease } else { put.lease },
        };
        self.keys.insert(put.key.clone(), kv.clone());
        self.event(EventKind::Put, kv);
        Ok(PutReply { revision: main, prev_kv: before.filter(|_| put.prev_kv) })
    }

    fn delete(&mut self, delete: &DeleteRange) -> DeleteRangeReply {
        let gone = Self::within(&self.keys, &delete.range);
        for kv in &gone {
            self.keys.remove(&kv.key);
            let mod_revision = self.model.revision() + 1;
            self.event(EventKind::Delete, KeyValue { key: kv.key.clone(), mod_revision, ..KeyValue::default() });
        }
        let prev_kvs = if delete.prev_kv { gone.clone() } else { Vec::new() };
        DeleteRangeReply { revision: self.revision(), deleted: gone.len() as i64, prev_kvs }
    }

    fn event(&mut self, kind: EventKind, kv: KeyValue) {
        let revision = Revision::new(self.model.revision() + 1, self.events.len() as i64);
        self.events.push(Event { kind, kv, revision });
    }

    fn range(&self, request: &Range) -> Result<RangeReply, Error> {
        if request.revision > self.revision() {
            return Err(Error::FutureRevision);
        }
        if request.revision > 0 && request.revision < self.model.compacted {
            return Err(Error::Compacted);
        }
        let keys = match request.revision {
            at if at > 0 && at <= self.model.revision() => &self.model.states[at as usize],
            _ => &self.keys,
        };
        let mut kvs = Self::within(keys, &request.range);
        let count = kvs.len() as i64;
        if request.count_only {
            return Ok(RangeReply { revision: self.revision(), count, ..RangeReply::default() });
        }
        let within = |v: i64, min: i64, max: i64| (min == 0 || v >= min) && (max == 0 || v <= max);
        kvs.retain(|kv| {
            within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
                && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
        });
        // Without an order or a filter the first keys are taken, one more than asked for, and only those are sorted.
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if request.limit > 0 && request.sort_order == SortOrder::None && filters == [0; 4] {
            kvs.truncate(request.limit as usize + 1);
        }
        kvs.sort_by(|a, b| {
            let order = match request.sort_target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            if request.sort_order == SortOrder::Descend { order.reverse() } else { order }
        });
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if request.keys_only {
            let by_value = request.sort_target == SortTarget::Value;
            for kv in &mut kvs {
                kv.value = Bytes::new();
                kv.lease = if by_value { kv.lease } else { LeaseId::NONE };
            }
        }
        Ok(RangeReply { revision: self.revision(), kvs, more, count })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let mut kvs = Self::within(&self.keys, &compare.range);
        if kvs.is_empty() {
            if matches!(compare.target, CompareTarget::Value(_)) {
                return false;
            }
            kvs.push(KeyValue::default());
        }
        kvs.iter().all(|kv| {
            let order = match &compare.target {
                CompareTarget::Version(v) => kv.version.cmp(v),
                CompareTarget::Create(v) => kv.create_revision.cmp(v),
                CompareTarget::Mod(v) => kv.mod_revision.cmp(v),
                CompareTarget::Value(v) => kv.value.cmp(v),
                CompareTarget::Lease(v) => kv.lease.0.cmp(v),
            };
            match compare.result {
                CompareResult::Equal => order == Ordering::Equal,
                CompareResult::Greater => order == Ordering::Greater,
                CompareResult::Less => order == Ordering::Less,
                CompareResult::NotEqual => order != Ordering::Equal,
            }
        })
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnReply, Error> {
        // Flattened first: the chosen operations with their nested answers as a tree, before anything changes.
        let chosen = self.choose(txn);
        self.check(&chosen)?;
        self.execute(chosen)
    }

    fn choose<'t>(&self, txn: &'t Txn) -> Chosen<'t> {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let ops = ops
            .iter()
            .map(|op| match op {
                TxnOp::Txn(inner) => ChosenOp::Txn(self.choose(inner)),
                op => ChosenOp::Op(op),
            })
            .collect();
        Chosen { succeeded, ops }
    }

    fn check(&self, chosen: &Chosen<'_>) -> Result<(), Error> {
        for op in &chosen.ops {
            match op {
                ChosenOp::Txn(inner) => self.check(inner)?,
                ChosenOp::Op(TxnOp::Put(put)) => self.check_put(put)?,
                ChosenOp::Op(TxnOp::Range(range)) if range.revision > self.model.revision() => {
                    return Err(Error::FutureRevision);
                }
                ChosenOp::Op(TxnOp::Range(range)) if range.revision != 0 && range.revision < self.model.compacted => {
                    return Err(Error::Compacted);
                }
                ChosenOp::Op(_) => {}
            }
        }
        Ok(())
    }

    fn execute(&mut self, chosen: Chosen<'_>) -> Result<TxnReply, Error> {
        let mut responses = Vec::new();
        for op in chosen.ops {
            responses.push(match op {
                ChosenOp::Txn(inner) => OpReply::Txn(self.execute(inner)?),
                ChosenOp::Op(TxnOp::Put(put)) => OpReply::Put(self.put(put)?),
                ChosenOp::Op(TxnOp::DeleteRange(delete)) => OpReply::DeleteRange(self.delete(delete)),
                ChosenOp::Op(TxnOp::Range(range)) => OpReply::Range(self.range(range)?),
                ChosenOp::Op(TxnOp::Txn(_)) => unreachable!("nested ones were chosen above"),
            });
        }
        Ok(TxnReply { revision: self.revision(), succeeded: chosen.succeeded, responses })
    }
}

struct Chosen<'t> {
    succeeded: bool,
    ops: Vec<ChosenOp<'t>>,
}

enum ChosenOp<'t> {
    Op(&'t TxnOp),
    Txn(Chosen<'t>),
}
