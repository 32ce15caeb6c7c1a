//! Where an engine's files are: in a directory of their own, which a rewrite replaces by one with the next number.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What follows the last dot of a rewritten database's name while it is being written.
const PART: &str = "part";

/// Where the newest complete database of a place is: `base`, or `base.N` after the Nth rewrite. Deletes what
/// interrupted rewrites left beside it.
pub(crate) fn newest(base: &Path) -> Result<PathBuf> {
    let (newest, left) = look(base)?;
    for path in left {
        tracing::info!(path = %path.display(), "deleting what an interrupted rewrite of the store left");
        fs::remove_dir_all(&path).map_err(Error::io("delete", &path))?;
    }
    Ok(newest)
}

/// Where the newest complete database of a place is, and what interrupted rewrites left beside it.
pub(crate) fn look(base: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let (mut newest, mut unfinished) = ((0, base.to_owned()), Vec::new());
    let parent = parent(base);
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok((newest.1, unfinished)),
        Err(err) => return Err(Error::io("list", parent)(err)),
    };
    let mut complete = vec![newest.clone()];
    for entry in entries {
        let path = entry.map_err(Error::io("list", parent))?.path();
        match rewrite_number(base, &path) {
            Some((number, true)) => complete.push((number, path)),
            Some((_, false)) => unfinished.push(path),
            None => {}
        }
    }
    newest = complete.iter().max().cloned().unwrap_or(newest);
    let older = complete.into_iter().filter(|(number, _)| *number < newest.0).map(|(_, path)| path);
    let left = older.chain(unfinished).filter(|path| path.exists()).collect();
    Ok((newest.1, left))
}

/// Where the next rewrite of a database goes, and where it is written.
pub(crate) fn next(path: &Path) -> (PathBuf, PathBuf) {
    let number = path.extension().and_then(|number| number.to_str()?.parse::<u32>().ok());
    let target = match number {
        Some(number) => path.with_extension(number.wrapping_add(1).to_string()),
        None => path.with_extension("1"),
    };
    let part = target.with_added_extension(PART);
    (target, part)
}

/// Fills `part` by `copy`, gives it its final name and opens it by `open`. After an error neither is left.
pub(crate) fn replace<E>(
    target: &Path,
    part: &Path,
    copy: impl FnOnce() -> Result<()>,
    open: impl FnOnce() -> Result<E>,
) -> Result<E> {
    let opened = copy().and_then(|()| {
        // Closed while it is renamed, because engines know their files by path; complete from here on.
        fs::rename(part, target).map_err(Error::io("rename", part))?;
        sync(parent(target))?;
        open()
    });
    if opened.is_err() {
        for left in [part, target].iter().filter(|left| left.exists()) {
            // What cannot be deleted now is looked at again at the next start.
            let _ = fs::remove_dir_all(left);
        }
    }
    opened
}

/// Makes names durable: those in `path`, and that of `path` itself.
pub(crate) fn sync_names(path: &Path) -> Result<()> {
    sync(path)?;
    match fs::canonicalize(path).map_err(Error::io("resolve", path))?.parent() {
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

/// An fsync of a file or a directory.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("fsync", path))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Which rewrite of `base` a path belongs to, and whether it is complete.
fn rewrite_number(base: &Path, path: &Path) -> Option<(u32, bool)> {
    let name = path.file_name()?.to_str()?.strip_prefix(base.file_name()?.to_str()?)?.strip_prefix('.')?;
    match name.strip_suffix(PART).and_then(|name| name.strip_suffix('.')) {
        Some(number) => Some((number.parse().ok()?, false)),
        None => Some((name.parse().ok()?, true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_takes_the_newest_complete_rewrite_and_deletes_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(newest(&at("none/engine")).unwrap(), at("none/engine"));
        assert_eq!(newest(&at("engine")).unwrap(), at("engine"));
        for name in ["engine", "engine.9", "engine.10", "engine.11.part", "engine.damaged", "engine.x.part", "other.12"]
        {
            fs::create_dir(at(name)).unwrap();
        }
        let (found, left) = look(&at("engine")).unwrap();
        assert_eq!((found, left.len()), (at("engine.10"), 3));
        assert!(left.iter().all(|path| path.exists()), "looking deletes nothing");
        assert_eq!(newest(&at("engine")).unwrap(), at("engine.10"));
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["engine.10", "engine.damaged", "engine.x.part", "other.12"]);
    }
}
