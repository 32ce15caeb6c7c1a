//! What a member found by discovery, kept so that no later start depends on the service.

use crate::admission::write_durably;
use crate::boot::{Remembered, make_private};
use std::fs;
use std::io;
use std::path::Path;

const FILE: &str = "discovered";

/// The members that were found for this data directory: `name=URL` pairs, separated by commas.
pub fn load(data_dir: &Path) -> Result<Option<String>, String> {
    let path = data_dir.join("member").join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    }
}

/// Keeps them.
pub fn store(data_dir: &Path, members: &str) -> Result<(), String> {
    let dir = data_dir.join("member");
    make_private(data_dir).and_then(|()| make_private(&dir)).map_err(|e| e.to_string())?;
    let path = dir.join(FILE);
    write_durably(&path, &format!("{members}\n")).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Whether a member has its data there.
pub fn has_member(data_dir: &Path) -> bool {
    // One whose identity cannot be read is refused by the start, with the reason.
    !matches!(Remembered::load(&data_dir.join("member")), Ok(None))
}
