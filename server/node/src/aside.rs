//! Stores that could not be used any more: set aside beside the one that takes their place, for people who want to know
//! what happened to them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The store that was set aside last, and the one before it. The second is there because what comes first explains most: a
/// disk that fails damages the next store, too, often within the hour.
const NAMES: [&str; 2] = ["damaged", "damaged.1"];

/// Sets the store in `dir` aside, if there is one. Where it lies now, and what was deleted for that: of three the oldest, and
/// the one before if the disk would not hold another store beside both. Never what is the only one.
pub(crate) fn set_aside(
    dir: &Path,
    free_bytes: impl FnOnce(&Path) -> Option<u64>,
) -> io::Result<(PathBuf, Option<PathBuf>)> {
    let [newest, older] = NAMES.map(|name| dir.with_extension(name));
    if !dir.exists() {
        return Ok((newest, None));
    }
    let mut deleted = None;
    let mut delete = |path: &Path| {
        deleted = Some(path.to_owned());
        fs::remove_dir_all(path)
    };
    if newest.exists() {
        if older.exists() {
            delete(&older)?;
        }
        // What cannot be asked is taken for enough: the next write says more.
        match free_bytes(dir).is_none_or(|free| free >= bytes_of(dir)) {
            true => fs::rename(&newest, &older)?,
            false => delete(&newest)?,
        }
    }
    fs::rename(dir, &newest)?;
    Ok((newest, deleted))
}

/// About how much the files of a store take; an engine has no folder below its own that holds much.
fn bytes_of(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is set aside, newest first, when a store with this content is.
    fn asides(dir: &Path, content: &str, free: u64) -> (Vec<String>, Option<String>) {
        let store = dir.join("engine");
        fs::create_dir(&store).unwrap();
        fs::write(store.join("db"), content).unwrap();
        let (newest, deleted) = set_aside(&store, |_| Some(free)).unwrap();
        assert!(newest.ends_with("engine.damaged") && !store.exists());
        let mut names: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
        names.sort_unstable();
        let kept = names.iter().map(|path| fs::read_to_string(path.join("db")).unwrap()).collect();
        (kept, deleted.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()))
    }

    fn texts(kept: &[&str]) -> Vec<String> {
        kept.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_last_two_stores_are_kept_and_it_is_said_what_goes() {
        let dir = tempfile::tempdir().unwrap();
        let plenty = 1 << 30;
        assert_eq!(asides(dir.path(), "first", plenty), (texts(&["first"]), None));
        assert_eq!(asides(dir.path(), "second", plenty), (texts(&["second", "first"]), None));
        let goes = Some("engine.damaged.1".to_owned());
        assert_eq!(asides(dir.path(), "third", plenty), (texts(&["third", "second"]), goes));
    }

    #[test]
    fn a_disk_without_room_for_a_third_keeps_the_last_one_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(asides(dir.path(), "first", 0), (texts(&["first"]), None));
        let goes = Some("engine.damaged".to_owned());
        assert_eq!(asides(dir.path(), "second", 5), (texts(&["second"]), goes));
    }

    #[test]
    fn where_there_is_no_store_nothing_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        asides(dir.path(), "first", 1 << 30);
        let (_, deleted) = set_aside(&dir.path().join("engine"), |_| None).unwrap();
        assert_eq!(deleted, None);
        assert_eq!(fs::read_to_string(dir.path().join("engine.damaged/db")).unwrap(), "first");
    }
}
