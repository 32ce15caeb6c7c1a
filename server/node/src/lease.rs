//! What a member tells of a lease.

use bytes::Bytes;

/// A lease's remaining and granted time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTtl {
    /// Whole seconds that remain; -1 when there is no such lease.
    pub ttl: i64,
    /// Seconds as granted; 0 when there is no such lease.
    pub granted: i64,
    /// Its keys in order, if asked for.
    pub keys: Vec<Bytes>,
}
