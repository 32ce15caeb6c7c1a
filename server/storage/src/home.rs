//! Where an engine's files are: in a directory of their own, which a rewrite replaces by one with the next number.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// What follows the name of a rewritten database in that of its mark, while it is being written. (Earlier builds wrote the database
/// itself under that name.)
const PART: &str = "part";

/// What a copy of a database leaves free on its volume: two segments of the log, which may lie there, is written on meanwhile, and
/// ends the member when it has no room; on a small volume less.
const SPARE_BYTES: u64 = 128 << 20;
const SPARE_PART: u64 = 10;

/// An error if a copy beside the database in `path` must not go on, of which so many bytes are still to be written.
pub(crate) fn has_room(path: &Path, unflushed: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(parent(path));
    let stat = stat.map_err(|e| Error::io("ask for the free space of", parent(path))(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let spare = SPARE_BYTES.min(stat.f_blocks.saturating_mul(stat.f_frsize) / SPARE_PART);
    match free >= spare.saturating_add(unflushed) {
        true => Ok(()),
        false => Err(Error::Io {
            attempt: format!(
                "copy the store beside {}, where {free} bytes are free and {spare} stay so for the log; make room first",
                path.display()
            ),
            source: Arc::new(io::ErrorKind::StorageFull.into()),
        }),
    }
}

/// Where the newest complete database of a place is: `base`, or `base.N` after the Nth rewrite. Deletes what
/// interrupted rewrites left beside it.
pub(crate) fn newest(base: &Path) -> Result<PathBuf> {
    let (newest, left) = look(base)?;
    for path in left {
        tracing::info!(path = %path.display(), "deleting what an interrupted rewrite of the store left");
        match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        }
        .map_err(Error::io("delete", &path))?;
        // A mark goes after what it marks.
        sync(parent(&path))?;
    }
    Ok(newest)
}

/// Where the newest complete database of a place is, and what interrupted rewrites left beside it.
pub(crate) fn look(base: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let mut newest = (0, base.to_owned());
    let parent = parent(base);
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok((newest.1, Vec::new())),
        Err(err) => return Err(Error::io("list", parent)(err)),
    };
    let mut numbered = vec![newest.clone()];
    let mut marks = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", parent))?.path();
        match rewrite_number(base, &path) {
            Some((number, true)) => numbered.push((number, path)),
            Some((number, false)) => drop(marks.insert(number, path)),
            None => {}
        }
    }
    let complete = numbered.iter().filter(|(number, _)| !marks.contains_key(number));
    newest = complete.max().cloned().unwrap_or(newest);
    let others = numbered.into_iter().map(|(_, path)| path).filter(|path| *path != newest.1);
    let left = others.chain(marks.into_values()).filter(|path| path.exists()).collect();
    Ok((newest.1, left))
}

/// A place for the next rewrite of a database. While its mark lies beside it, it is unfinished.
pub(crate) struct Next {
    /// Where the new database is, from its first byte on: engines know their files by path.
    pub path: PathBuf,
    mark: PathBuf,
    /// The database that it is to replace.
    pub old: PathBuf,
}

impl Next {
    /// The place after `old`, marked as unfinished and empty.
    pub fn begin(old: &Path) -> Result<Next> {
        let number = old.extension().and_then(|number| number.to_str()?.parse::<u32>().ok());
        let path = old.with_extension(number.map_or(1, |number| number.wrapping_add(1)).to_string());
        let next = Next { mark: path.with_added_extension(PART), path, old: old.to_owned() };
        if next.path.exists() {
            return Err(Error::Engine(format!("{} is there already", next.path.display())));
        }
        // Before there is anything that a start could take for a complete database.
        next.mark()?;
        Ok(next)
    }

    /// Marks it as unfinished, also anew: after a `finish` that failed the mark may be gone, or come back with the power.
    fn mark(&self) -> Result<()> {
        File::create(&self.mark).map_err(Error::io("create", &self.mark))?;
        sync(parent(&self.mark))
    }

    /// It is complete and durable.
    pub fn finish(&self) -> Result<()> {
        fs::remove_file(&self.mark).map_err(Error::io("delete", &self.mark))?;
        sync(parent(&self.mark))
    }

    /// Deletes the new database, and its mark after it.
    pub fn discard(&self) -> Result<()> {
        self.discard_by(|path| fs::remove_dir_all(path))
    }

    fn discard_by(&self, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        self.mark()?;
        if self.path.exists() {
            remove(&self.path).map_err(Error::io("delete", &self.path))?;
            sync(parent(&self.path))?;
        }
        fs::remove_file(&self.mark).map_err(Error::io("delete", &self.mark))
    }

    /// Deletes the database that was replaced.
    pub fn settle(&self) -> Result<()> {
        fs::remove_dir_all(&self.old).map_err(Error::io("delete", &self.old))
    }
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

/// Which rewrite of `base` a path belongs to, and whether it is the database (true) or the mark.
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
        for name in [
            "engine",
            "engine.9",
            "engine.10",
            "engine.11",
            "engine.11.part",
            "engine.damaged",
            "engine.x.part",
            "other.12",
        ] {
            fs::create_dir(at(name)).unwrap();
        }
        let (found, left) = look(&at("engine")).unwrap();
        assert_eq!((found, left.len()), (at("engine.10"), 4));
        assert!(left.iter().all(|path| path.exists()), "looking deletes nothing");
        assert_eq!(newest(&at("engine")).unwrap(), at("engine.10"));
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["engine.10", "engine.damaged", "engine.x.part", "other.12"]);
    }

    #[test]
    fn a_rewrite_that_is_given_up_when_its_mark_is_gone_is_never_taken_for_complete() {
        let dir = tempfile::tempdir().unwrap();
        let engine = dir.path().join("engine");
        fs::create_dir(&engine).unwrap();
        let next = Next::begin(&engine).unwrap();
        fs::create_dir(&next.path).unwrap();
        next.finish().unwrap();
        assert_eq!(look(&engine).unwrap().0, next.path);
        // A crash in the middle of the deletion: what is left is no database.
        next.discard_by(|_| Err(io::ErrorKind::Interrupted.into())).unwrap_err();
        assert_eq!(look(&engine).unwrap().0, engine);
        next.discard().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
