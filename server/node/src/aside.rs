//! Stores that could not be used any more: set aside beside the one that takes their place, for people who want to know
//! what happened to them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The store that was set aside last, and the one before it. The second is there because what comes first explains most: a
/// disk that fails damages the next store, too, often within the hour.
const NAMES: [&str; 2] = ["damaged", "damaged.1"];

/// What the new store leaves free: four segments of the log, which ends the member when it has no room.
const SPARE_BYTES: u64 = 256 << 20;

/// Sets the store in `dir` aside, if there is one. Where it lies now, and what was deleted for that: of three the oldest, and
/// the one before if the disk would not hold the new store, which is made from a snapshot of so many bytes, beside both. Never
/// what is the only one.
pub(crate) fn set_aside(
    dir: &Path,
    snapshot_bytes: u64,
    free_bytes: impl FnOnce(&Path) -> Option<u64>,
) -> io::Result<(PathBuf, Vec<PathBuf>)> {
    let [newest, older] = NAMES.map(|name| dir.with_extension(name));
    if !dir.exists() {
        return Ok((newest, Vec::new()));
    }
    let mut deleted = Vec::new();
    let mut delete = |path: &Path| {
        deleted.push(path.to_owned());
        fs::remove_dir_all(path)
    };
    if newest.exists() {
        if older.exists() {
            delete(&older)?;
        }
        // sled takes 1.7 times what was written to it at once. The lost store may be larger, or nothing of it left.
        let needed = bytes_of(dir).max(snapshot_bytes.saturating_mul(2)).saturating_add(SPARE_BYTES);
        // What cannot be asked is taken for enough: the next write says more.
        match free_bytes(dir).is_none_or(|free| free >= needed) {
            true => fs::rename(&newest, &older)?,
            false => delete(&newest)?,
        }
    }
    fs::rename(dir, &newest)?;
    Ok((newest, deleted))
}

/// Deletes a store that holds nothing, if another lies aside already: it was being made in that one's place, and a start cut it
/// short. True if it was that.
pub(crate) fn delete_unfilled(dir: &Path) -> io::Result<bool> {
    let is_second = dir.with_extension(NAMES[0]).exists();
    if is_second {
        fs::remove_dir_all(dir)?;
    }
    Ok(is_second)
}

/// About how much the files of a store take; an engine has no folder below its own that holds much.
fn bytes_of(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is set aside, newest first, when a store with this content is, and what was deleted; with a snapshot of 10 bytes.
    fn asides(dir: &Path, content: &str, free: u64) -> (Vec<String>, Vec<String>) {
        let store = dir.join("engine");
        fs::create_dir(&store).unwrap();
        fs::write(store.join("db"), content).unwrap();
        let (newest, deleted) = set_aside(&store, 10, |_| Some(free)).unwrap();
        assert!(newest.ends_with("engine.damaged") && !store.exists());
        let mut names: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
        names.sort_unstable();
        let kept = names.iter().map(|path| fs::read_to_string(path.join("db")).unwrap()).collect();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        (kept, deleted.iter().map(name).collect())
    }

    fn texts(kept: &[&str]) -> Vec<String> {
        kept.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_last_two_stores_are_kept_and_it_is_said_what_goes() {
        let dir = tempfile::tempdir().unwrap();
        let plenty = 1 << 30;
        assert_eq!(asides(dir.path(), "first", plenty), (texts(&["first"]), texts(&[])));
        assert_eq!(asides(dir.path(), "second", plenty), (texts(&["second", "first"]), texts(&[])));
        let goes = texts(&["engine.damaged.1"]);
        assert_eq!(asides(dir.path(), "third", plenty), (texts(&["third", "second"]), goes));
        let goes = texts(&["engine.damaged.1", "engine.damaged"]);
        assert_eq!(asides(dir.path(), "fourth", 0), (texts(&["fourth"]), goes));
    }

    #[test]
    fn a_disk_without_room_for_a_third_keeps_the_last_one_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(asides(dir.path(), "first", 0), (texts(&["first"]), texts(&[])));
        // It is made from a snapshot, of which it takes twice the bytes.
        let goes = texts(&["engine.damaged"]);
        assert_eq!(asides(dir.path(), "second", SPARE_BYTES + 19), (texts(&["second"]), goes));
        assert_eq!(asides(dir.path(), "third", SPARE_BYTES + 20), (texts(&["third", "second"]), texts(&[])));
    }

    #[test]
    fn a_store_whose_making_was_cut_short_takes_no_place_among_those_that_explain_something() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("engine");
        fs::create_dir(&store).unwrap();
        assert!(!delete_unfilled(&store).unwrap(), "a damaged one may look empty");
        fs::remove_dir(&store).unwrap();
        asides(dir.path(), "first", 0);
        fs::create_dir(&store).unwrap();
        assert!(delete_unfilled(&store).unwrap() && !store.exists());
    }

    #[test]
    fn where_there_is_no_store_nothing_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        asides(dir.path(), "first", 1 << 30);
        let (_, deleted) = set_aside(&dir.path().join("engine"), 0, |_| None).unwrap();
        assert!(deleted.is_empty());
        assert_eq!(fs::read_to_string(dir.path().join("engine.damaged/db")).unwrap(), "first");
    }
}
