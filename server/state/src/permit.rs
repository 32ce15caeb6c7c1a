//! What a client must be allowed for each command, at the moment at which it is applied.

use crate::auth::permits::Permits;
use crate::lease::Leases;
use bytes::Bytes;
use ferretcd_types::{Client, Command, Error, LeaseId};

/// Refuses a command that its client may not give. Without `_`, so that a new command has to say what it asks for.
pub(crate) fn permit(permits: &Permits, leases: &Leases, client: &Client, command: &Command) -> Result<(), Error> {
    let keys = |lease: LeaseId| -> Vec<Bytes> { leases.view(lease).map(|lease| lease.keys).unwrap_or_default() };
    match command {
        Command::Put(put) => permits.check_put(client, put, &keys(put.lease)),
        Command::DeleteRange(delete) => permits.check_delete(client, &delete.range, delete.prev_kv),
        Command::Txn(txn) => permits.check_txn(client, txn, &|put| keys(put.lease)),
        Command::LeaseGrant(grant) => {
            permits.check_user(client)?;
            // It takes over what names it already, and would delete that in the end.
            permits.check_lease(client, &leases.orphans(grant.id))
        }
        Command::LeaseRevoke(revoke) => {
            permits.check_user(client)?;
            permits.check_lease(client, &keys(revoke.id))
        }
        // Its password says whether it may.
        Command::Authenticate(_) => Ok(()),
        Command::Compact(_)
        | Command::LeaseCheckpoint(_)
        | Command::SetAlarm(_)
        | Command::Auth(_)
        | Command::SetClusterVersion(_)
        | Command::SetDowngrade(_)
        | Command::Genesis(_)
        | Command::MemberAttributes(_)
        | Command::RestoreBegin(_)
        | Command::RestoreChunk(_)
        | Command::RestoreCommit(_)
        | Command::RestoreAbort(_) => permits.check_root(client),
    }
}
