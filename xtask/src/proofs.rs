//! `docs/dev/proofs.md` names tests by file and function: each must be there.

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

#[test]
fn every_test_that_the_proofs_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/dev/proofs.md")).unwrap();
    let named: Vec<(&str, &str)> = page.split('`').filter_map(|word| word.split_once("::")).collect();
    assert!(named.len() > 100, "{} tests are named", named.len());
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
