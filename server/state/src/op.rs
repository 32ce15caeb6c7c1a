//! The single operations of the key space, alone or inside a transaction: what must hold before, and the doing.

use crate::error::Fault;
use crate::lease::Leases;
use crate::mvcc::view::View;
use ferretcd_types::{DeleteRange, DeleteRangeReply, Error, Put, PutReply, Range};

/// What must hold before a put.
pub(crate) fn check_put(view: &View<'_>, leases: &Leases, put: &Put) -> Result<(), Error> {
    if put.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if !put.lease.is_none() && !leases.exists(put.lease) {
        return Err(Error::LeaseNotFound);
    }
    if (put.ignore_value || put.ignore_lease) && view.find(&put.key).is_none() {
        return Err(Error::KeyNotFound);
    }
    Ok(())
}

/// What must hold before a range inside a transaction. Unlike a range alone, a negative revision is held against the
/// compacted one (etcd's words for it are in `checkRange`).
pub(crate) fn check_range(view: &View<'_>, range: &Range) -> Result<(), Error> {
    match range.revision {
        0 => Ok(()),
        later if later > view.base() => Err(Error::FutureRevision),
        earlier if earlier < view.compacted() => Err(Error::Compacted),
        _ => Ok(()),
    }
}

/// Writes a key.
pub(crate) fn put(view: &mut View<'_>, put: &Put) -> Result<PutReply, Fault> {
    let Put { key, value, lease, prev_kv, ignore_value, ignore_lease } = put;
    let before = match prev_kv | ignore_value | ignore_lease {
        true => view.get(key)?,
        false => None,
    };
    let (mut value, mut lease) = (value.clone(), *lease);
    if *ignore_value || *ignore_lease {
        let before = before.as_ref().ok_or(Error::KeyNotFound)?;
        if *ignore_value {
            value.clone_from(&before.value);
        }
        if *ignore_lease {
            lease = before.lease;
        }
    }
    view.put(key, value, lease);
    Ok(PutReply { revision: view.revision(), prev_kv: before.filter(|_| *prev_kv) })
}

/// Deletes keys.
pub(crate) fn delete_range(view: &mut View<'_>, delete: &DeleteRange) -> Result<DeleteRangeReply, Fault> {
    let (deleted, prev_kvs) = view.delete_range(&delete.range, delete.prev_kv)?;
    Ok(DeleteRangeReply { revision: view.revision(), deleted, prev_kvs })
}
