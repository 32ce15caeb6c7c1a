//! Snapshot files that anybody may have written: a restore's plan refuses or reads them, a member takes them or not.

use crate::member::{Member, bolt_file};
use crate::snapshot::furnished;
use crate::{auth, restore};
use bytes::Bytes;
use ferretcd_fuzz::Fuzz;
use ferretcd_state::{SnapshotKind, State, restore_plan, snapshot_hash_kv};
use ferretcd_storage::{Batch, Engine as _, MemoryEngine, Options, Store};
use ferretcd_types::wire::{Reader, Writer};
use ferretcd_types::{Client, Error, KeyRange, MemberId, Range};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The file with a checksum that fits: who means harm computes it, too.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    [bytes, &Sha256::digest(bytes)].concat()
}

fn unsealed(mut file: Vec<u8>) -> Vec<u8> {
    file.truncate(file.len() - 32);
    file
}

#[test]
fn fuzz_restore_file() {
    let tiny = bolt_file(&[
        ("key", vec![(vec![0; 17], vec![10, 1, b'k'])]),
        ("lease", vec![(vec![1; 8], vec![8, 1])]),
        ("meta", vec![]),
    ]);
    let seeds = [unsealed(furnished().snapshot(SnapshotKind::Client)), unsealed(tiny)];
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), "restore_file").seeds(seeds).run(|bytes| {
        let file = sealed(bytes);
        let plan = restore_plan(&&file[..], 4096).and_then(|source| {
            let mut chunks = 0;
            source.for_each_chunk(|_, _| {
                chunks += 1;
                Ok::<_, Error>(())
            })?;
            Ok("x".repeat(chunks))
        });
        let hash = snapshot_hash_kv(&&file[..], 0).map(|_| ()).map_err(|e| e.to_string());
        format!("{:?} {hash:?}", plan.map_err(|e| e.to_string()))
    });
}

#[test]
fn fuzz_member_snapshot() {
    let seeds =
        [unsealed(furnished().snapshot(SnapshotKind::Raft)), unsealed(furnished().snapshot(SnapshotKind::Client))];
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), "member_snapshot").seeds(seeds).run(|bytes| {
        match Member::new().install(&sealed(bytes)) {
            Ok(effects) => format!("{} effects", "x".repeat(effects.len())),
            Err(e) => e.to_string(),
        }
    });
}

/// All records of a member's store, as messages of key (1) and value (2).
fn records(member: &Member) -> Vec<u8> {
    member.state.flush().unwrap();
    let mut all = Writer::new();
    for (key, value) in member.engine.scan(&[], None, usize::MAX).unwrap() {
        let mut record = Writer::new();
        record.bytes(1, &key);
        record.bytes(2, &value);
        all.message(1, &record.finish());
    }
    all.finish().to_vec()
}

/// A store with these records, opened; and everything that it says to those who ask.
fn opened(bytes: &[u8]) -> Result<String, String> {
    let mut batch = Batch::default();
    let mut all = Reader::new("records", Bytes::copy_from_slice(bytes));
    while let Some((_, value)) = all.field().map_err(|e| e.to_string())? {
        let mut record = Reader::new("record", value.bytes("record").map_err(|e| e.to_string())?);
        let mut pair = [Bytes::new(), Bytes::new()];
        while let Some((number, value)) = record.field().map_err(|e| e.to_string())? {
            if let Some(place) = pair.get_mut((number as usize).wrapping_sub(1)) {
                *place = value.bytes("bytes").map_err(|e| e.to_string())?;
            }
        }
        let [key, value] = pair;
        // What no engine takes cannot lie in one.
        if key.is_empty() || key.len() > 256 {
            return Err("no key of a store".to_owned());
        }
        batch.put(key, value);
    }
    let engine = Arc::new(MemoryEngine::new());
    engine.commit(&batch).map_err(|e| e.to_string())?;
    let store = Store::open_inline(engine, Options::default());
    let state = State::open_still(store, MemberId(1)).map_err(|e| e.to_string())?;
    let told = |result: Result<String, Error>| result.unwrap_or_else(|e| e.to_string());
    let all = Range { range: KeyRange::new("\0", "\0"), ..Range::default() };
    let mut said = vec![
        told(state.range(&all).map(|reply| "x".repeat(reply.kvs.len()))),
        told(state.events(state.compacted_revision().saturating_add(1).max(1), 100, 1 << 20).map(|_| String::new())),
        told(state.hash_kv(0).map(|_| String::new())),
        format!("{:?} {:?} {:?}", state.applied().is_some(), state.members().len(), state.alarms()),
        format!("{:?} {:?}", state.cluster_version(), state.restore_in_progress()),
    ];
    let permits = state.permits();
    for user in state.auth_users() {
        let client = Client { user: user.clone(), auth_revision: permits.revision() };
        said.push(told(permits.check_root(&client).map(|()| "root".to_owned())));
        said.push(told(state.auth_user(&user).map(|_| String::new())));
    }
    for role in state.auth_roles() {
        said.push(told(state.auth_role(&role).map(|_| String::new())));
    }
    for (lease, _) in state.leases() {
        said.push(format!("{}", state.lease(lease).map_or(0, |view| view.keys.len())));
    }
    for kind in [SnapshotKind::Client, SnapshotKind::Raft] {
        let written = state.pin().write(kind, &mut |_: Bytes| Ok(()));
        said.push(written.map_or_else(|e| e.to_string(), |_| String::new()));
    }
    said.push(state.tend().map_or_else(|e| e.to_string(), |()| String::new()));
    Ok(said.join(" "))
}

/// A store that another release wrote, or somebody with an editor: opened or refused, and what was opened can be read.
#[test]
fn fuzz_stored_state() {
    let seeds = [furnished(), auth::guarded(), restore::under_way()].map(|member| records(&member));
    for seed in &seeds {
        assert!(opened(seed).is_ok(), "{:?}", opened(seed));
    }
    let words =
        ["mapplied", "mauth", "mrestore", "mgeneration", "mreplaced", "mcompact-scheduled", "mcompact-finished"];
    Fuzz::new(env!("CARGO_MANIFEST_DIR"), "stored_state")
        .seeds(seeds)
        .words(&words)
        .run(|bytes| opened(bytes).unwrap_or_else(|e| e));
}
