//! Who holds which keys, and for how many seconds each lease was granted. No clock: expiry is a command.

use crate::StateError;
use bytes::Bytes;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::LeaseId;
use ferretcd_types::wire::{DecodeError, Reader, Writer};
use std::collections::{BTreeMap, BTreeSet};

/// A lease as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Granted seconds.
    pub ttl: i64,
    /// Its keys, in order.
    pub keys: Vec<Bytes>,
}

/// A lease's times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// Which.
    pub id: LeaseId,
    /// As granted.
    pub ttl: i64,
    /// As its last checkpoint noted it; 0 where it has its full time.
    pub remaining: i64,
}

/// The leases, and which key hangs on which. Sees no other room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases {
    leases: BTreeMap<LeaseId, Lease>,
    /// The lease that each key names; the inverse of `Lease::keys` and `orphans`.
    holder: BTreeMap<Bytes, LeaseId>,
    /// Keys of leases that do not exist. Only a restored file has such.
    orphans: BTreeMap<LeaseId, BTreeSet<Bytes>>,
}

#[derive(Clone, Debug, Default)]
struct Lease {
    ttl: i64,
    /// Seconds that a checkpoint noted; 0 where it has its full time.
    remaining: i64,
    keys: BTreeSet<Bytes>,
}

impl Leases {
    /// True when there is such a lease.
    pub fn exists(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// All leases with their granted seconds, by ID.
    pub fn all(&self) -> Vec<(LeaseId, i64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect()
    }

    /// All leases with their granted seconds and those of their last checkpoint (0 for none), by ID.
    pub fn times(&self) -> Vec<LeaseTimes> {
        let times =
            |(id, lease): (&LeaseId, &Lease)| LeaseTimes { id: *id, ttl: lease.ttl, remaining: lease.remaining };
        self.leases.iter().map(times).collect()
    }

    /// What a checkpoint makes of a lease, if there is such a one: it never lengthens one.
    pub fn checkpointed(&self, id: LeaseId, remaining: i64) -> Option<LeaseTimes> {
        let ttl = self.leases.get(&id)?.ttl;
        Some(LeaseTimes { id, ttl, remaining: remaining.clamp(0, ttl.max(0)) })
    }

    /// Notes how long a lease still lives.
    pub fn checkpoint(&mut self, id: LeaseId, remaining: i64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.remaining = remaining;
        }
    }

    /// One lease.
    pub fn view(&self, id: LeaseId) -> Option<LeaseView> {
        let lease = self.leases.get(&id)?;
        Some(LeaseView { ttl: lease.ttl, keys: lease.keys.iter().cloned().collect() })
    }

    /// The keys that name a lease which does not exist.
    pub fn orphans(&self, id: LeaseId) -> Vec<Bytes> {
        self.orphans.get(&id).into_iter().flatten().cloned().collect()
    }

    /// Begins a lease. It holds the keys that name it already: those of a member that starts later do, too.
    pub fn grant(&mut self, id: LeaseId, ttl: i64) {
        let keys = self.orphans.remove(&id).unwrap_or_default();
        self.leases.insert(id, Lease { ttl, remaining: 0, keys });
    }

    /// Ends a lease and lets go of its keys.
    pub fn revoke(&mut self, id: LeaseId) {
        for key in self.leases.remove(&id).unwrap_or_default().keys {
            self.holder.remove(&key);
        }
    }

    /// A put left `key` with this lease, a deletion with none. A restored key may name a lease that the file did not have: it
    /// lives on, as in etcd, until there is one of that ID.
    pub fn attach(&mut self, key: &Bytes, id: LeaseId) {
        if self.holder.get(key).copied().unwrap_or_default() == id {
            return;
        }
        if let Some(old) = self.holder.remove(key) {
            self.keys_of(old).remove(key);
            if self.orphans.get(&old).is_some_and(BTreeSet::is_empty) {
                self.orphans.remove(&old);
            }
        }
        if id != LeaseId::NONE {
            // A copy of its own: a slice would keep the whole record in memory for as long as the lease lives.
            let key = Bytes::copy_from_slice(key);
            self.keys_of(id).insert(key.clone());
            self.holder.insert(key, id);
        }
    }

    fn keys_of(&mut self, id: LeaseId) -> &mut BTreeSet<Bytes> {
        match self.leases.get_mut(&id) {
            Some(lease) => &mut lease.keys,
            None => self.orphans.entry(id).or_default(),
        }
    }

    /// Adds all records of the room. Attachments have none: the keys' own records name their leases.
    pub fn save(&self, batch: &mut Batch) {
        self.times().into_iter().for_each(|times| save(batch, times));
    }

    /// Takes in one record of the keyspace (key without its first byte).
    pub fn load(&mut self, value: Bytes) -> Result<(), StateError> {
        let times = decode(value).map_err(StateError::record("a lease"))?;
        self.grant(times.id, times.ttl);
        self.checkpoint(times.id, times.remaining);
        Ok(())
    }
}

/// Adds the record of one lease.
pub(crate) fn save(batch: &mut Batch, times: LeaseTimes) {
    batch.put(keyspace::lease(times.id.0), encode(times));
}

/// A lease in etcd's own encoding (`leasepb.Lease`: 1 ID, 2 TTL, 3 RemainingTTL).
pub(crate) fn encode(times: LeaseTimes) -> Bytes {
    let mut w = Writer::new();
    w.int(1, times.id.0);
    w.int(2, times.ttl);
    w.int(3, times.remaining);
    w.finish()
}

/// The inverse of [`encode`].
pub(crate) fn decode(value: Bytes) -> Result<LeaseTimes, DecodeError> {
    const WHAT: &str = "lease";
    let mut r = Reader::new(WHAT, value);
    let mut times = LeaseTimes { id: LeaseId::NONE, ttl: 0, remaining: 0 };
    while let Some((n, v)) = r.field()? {
        match n {
            1 => times.id = LeaseId(v.int(WHAT)?),
            2 => times.ttl = v.int(WHAT)?,
            3 => times.remaining = v.int(WHAT)?,
            _ => {}
        }
    }
    Ok(times)
}

#[cfg(test)]
pub(crate) fn full(id: i64, ttl: i64) -> LeaseTimes {
    LeaseTimes { id: LeaseId(id), ttl, remaining: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_hangs_on_one_lease_at_most() {
        let mut leases = Leases::default();
        leases.grant(LeaseId(1), 10);
        leases.grant(LeaseId(2), 20);
        let key = Bytes::from("k");
        leases.attach(&key, LeaseId(1));
        leases.attach(&key, LeaseId(2));
        assert!(leases.view(LeaseId(1)).unwrap().keys.is_empty());
        assert_eq!(leases.view(LeaseId(2)).unwrap(), LeaseView { ttl: 20, keys: vec![key.clone()] });
        leases.attach(&key, LeaseId::NONE);
        assert!(leases.view(LeaseId(2)).unwrap().keys.is_empty());
        leases.attach(&key, LeaseId(9));
        assert!(leases.view(LeaseId(9)).is_none());
        leases.grant(LeaseId(9), 5);
        assert_eq!(leases.view(LeaseId(9)).unwrap().keys, std::slice::from_ref(&key), "as on a member that starts now");
        leases.attach(&key, LeaseId(8));
        leases.attach(&key, LeaseId::NONE);
        assert!(leases.orphans.is_empty() && leases.holder.is_empty());
    }

    #[test]
    fn the_encoding_is_etcds() {
        assert_eq!(encode(full(1, 60)).as_ref(), b"\x08\x01\x10\x3c");
        let noted = LeaseTimes { remaining: 5, ..full(1, 60) };
        assert_eq!(encode(noted).as_ref(), b"\x08\x01\x10\x3c\x18\x05");
        assert_eq!(decode(encode(noted)).unwrap(), noted);
    }
}
