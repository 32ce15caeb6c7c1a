//! Snapshot files that anybody may have written: a restore's plan refuses or reads them, a member takes them or not.

use crate::member::{Member, bolt_file};
use crate::snapshot::furnished;
use ferretcd_fuzz::Fuzz;
use ferretcd_state::{SnapshotKind, restore_plan};
use ferretcd_types::Error;
use sha2::{Digest, Sha256};

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
        plan.unwrap_or_else(|e| e.to_string())
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
