//! The pages that say what shows each promise name tests by file and function: each must be there. So must be what the mutations break.

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn every_test_that_the_proofs_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pages =
        ["docs/dev/proofs.md", "docs/dev/proofs-group.md"].map(|page| fs::read_to_string(root.join(page)).unwrap());
    let words = pages.iter().flat_map(|page| page.split('`'));
    let named: Vec<(&str, &str)> = words.filter_map(|word| word.split_once("::")).collect();
    assert!(named.len() > 300, "{} tests are named", named.len());
    let missing: Vec<_> = named
        .into_iter()
        .filter(|(file, name)| {
            let text = fs::read_to_string(root.join(file)).unwrap_or_default();
            // A word of a file that is no Rust is a program or a line of it.
            !text.contains(&format!("fn {name}(")) && (file.ends_with(".rs") || !text.contains(name))
        })
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_mutation_still_has_something_to_break() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let patches = fs::read_dir(root.join("e2e/mutations")).unwrap().map(|file| file.unwrap().path());
    let patches: Vec<_> = patches.filter(|path| path.extension().is_some_and(|e| e == "patch")).collect();
    assert!(patches.len() > 30, "{} patches", patches.len());
    // `make mutations` takes hours and says so, too; this says it at the change.
    let applies = |patch: &Path| {
        let mut command = Command::new("patch");
        command.args(["--strip=1", "--dry-run", "--silent", "--force"]).current_dir(&root).stdout(Stdio::null());
        command.stdin(File::open(patch).unwrap()).status().unwrap().success()
    };
    let stale: Vec<_> = patches.into_iter().filter(|patch| !applies(patch)).collect();
    assert!(stale.is_empty(), "write these anew: {stale:?}");
}
