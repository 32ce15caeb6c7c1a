//! Numbers that this member chooses before a command goes into the log, so that applying it is the same everywhere.

use ferretcd_types::{Epoch, LeaseId, MemberId, RequestId};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names proposals: the member's low bits, then a counter from a random start, so that two members, or two lives of
/// one, do not wait by the same name.
#[derive(Debug)]
pub(crate) struct RequestIds {
    prefix: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new(member: MemberId) -> Self {
        RequestIds { prefix: member.0 << 48, next: AtomicU64::new(rand::random::<u64>() >> 16) }
    }

    pub(crate) fn next(&self) -> RequestId {
        RequestId(self.prefix | (self.next.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff_ffff))
    }
}

/// A positive lease ID.
pub(crate) fn lease() -> LeaseId {
    LeaseId((rand::random::<u64>() >> 1).max(1) as i64)
}

/// A member ID that `taken` does not know. Random, so that an ID is never that of a member whose data may still be
/// somewhere; zero means "none" in etcd's API.
pub(crate) fn member(taken: impl Fn(MemberId) -> bool) -> MemberId {
    loop {
        let id = MemberId(rand::random::<u64>());
        if id.0 != 0 && !taken(id) {
            return id;
        }
    }
}

/// The epoch of a new history.
pub(crate) fn epoch() -> Epoch {
    Epoch(rand::random::<u64>().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_member_id_that_is_taken_is_not_given_out() {
        let asked = RefCell::new(Vec::new());
        let given = member(|id| {
            asked.borrow_mut().push(id);
            asked.borrow().len() <= 2
        });
        let asked = asked.into_inner();
        assert_eq!(asked.len(), 3, "the first two are taken");
        assert_eq!(given, asked[2]);
        assert!(!asked[..2].contains(&given));
    }
}
