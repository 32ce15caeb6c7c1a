//! Snapshot files of the state machine: `snap/<term>-<index>.snap` in the data directory.
//!
//! A file counts once it has its final name: it is written under another one, synced, renamed, and the directory is
//! synced. The newest one is the base that the log continues from, so the log is purged only below it.

use crate::machine::snapshot_membership;
use ferretcd_types::LogPos;
use parking_lot::Mutex;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SUFFIX: &str = ".snap";
const UNFINISHED: &str = ".part";

/// How often the folder is looked through for its newest file: one that is gone when it is measured was followed by a newer one, which
/// takes long to write.
pub(crate) const LOOKS_MAX: usize = 3;

/// What a snapshot leaves free: four segments of the log, which ends the member when it has no room; on a small volume less.
const SPARE_BYTES: u64 = 256 << 20;
const SPARE_PART: u64 = 10;

/// A snapshot file. A received one that is not installed yet removes itself when it is dropped.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Whether a member that was sent such a file could not use it. It is read again before it is sent again.
    suspect: Arc<AtomicBool>,
    /// Present while the file is only a received one.
    pub(crate) _temporary: Option<Arc<RemoveOnDrop>>,
}

impl SnapshotFile {
    /// A member that was sent it found its bytes wrong.
    pub(crate) fn suspected(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    /// Whether it was suspected since it was last asked.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.swap(false, Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The folder of a member's snapshot files.
#[derive(Clone, Debug)]
pub struct SnapshotDir {
    dir: PathBuf,
    /// See [`SnapshotFile::suspected`].
    suspect: Arc<AtomicBool>,
    /// Held by who gives a file its name: one may be written in the background while the leader's is installed.
    finishing: Arc<Mutex<()>>,
}

impl SnapshotDir {
    fn at(dir: &Path) -> Self {
        SnapshotDir { dir: dir.to_owned(), suspect: Arc::default(), finishing: Arc::default() }
    }

    /// Opens the folder, creating it; files that a crash left unfinished are removed.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(UNFINISHED) {
                fs::remove_file(&path)?;
            }
        }
        Ok(SnapshotDir::at(dir))
    }

    /// The newest finished snapshot of a folder that may not be there. Removes nothing.
    pub fn look(dir: &Path) -> io::Result<Option<(LogPos, SnapshotFile)>> {
        match dir.try_exists()? {
            true => SnapshotDir::at(dir).newest(),
            false => Ok(None),
        }
    }

    /// The position of the newest snapshot file, of which every byte was read; none without a file.
    ///
    /// # Errors
    /// It is damaged, or cannot be read: which, and why.
    pub fn usable(&self) -> io::Result<Option<LogPos>> {
        let Some((pos, file)) = self.newest()? else { return Ok(None) };
        snapshot_membership(&file.path)?;
        Ok(Some(pos))
    }

    /// Takes a file that cannot be used out of the way, for a person to look at. It takes the place of an earlier one.
    pub(crate) fn set_aside(&self, file: &SnapshotFile) -> io::Result<PathBuf> {
        let to = self.dir.join("damaged");
        fs::rename(&file.path, &to)?;
        Ok(to)
    }

    /// The newest finished snapshot and the position that it stands for.
    pub fn newest(&self) -> io::Result<Option<(LogPos, SnapshotFile)>> {
        for _ in 1..LOOKS_MAX {
            match self.look_through() {
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                found => return found,
            }
        }
        self.look_through()
    }

    fn look_through(&self) -> io::Result<Option<(LogPos, SnapshotFile)>> {
        let mut newest = None;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Some(pos) = position(&entry.file_name().to_string_lossy()) else { continue };
            if newest.as_ref().is_none_or(|(known, _)| *known < pos) {
                let bytes = entry.metadata()?.len();
                let (path, suspect) = (entry.path(), self.suspect.clone());
                newest = Some((pos, SnapshotFile { path, bytes, suspect, _temporary: None }));
            }
        }
        Ok(newest)
    }

    /// Whether so many bytes fit beside what is there, with room left for the log, which lies on the same volume if nobody has
    /// said otherwise.
    ///
    /// # Errors
    /// They do not fit, or the system does not say.
    pub fn has_room(&self, bytes: u64) -> io::Result<()> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let spare = SPARE_BYTES.min(stat.f_blocks.saturating_mul(stat.f_frsize) / SPARE_PART);
        if free >= bytes.saturating_add(spare) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "a snapshot of {bytes} bytes and {spare} to spare do not fit in {}, where {free} are free; make room",
                self.dir.display()
            ),
        ))
    }

    /// A path to write a new file to; unique by what it is for.
    pub fn unfinished(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{what}{UNFINISHED}"))
    }

    /// Marks a path from [`SnapshotDir::unfinished`] as a received snapshot that goes away unless it is installed.
    pub(crate) fn received(path: PathBuf, bytes: u64) -> SnapshotFile {
        let temporary = Some(Arc::new(RemoveOnDrop(path.clone())));
        SnapshotFile { path, bytes, suspect: Arc::default(), _temporary: temporary }
    }

    /// Gives a written file its final name and removes the older ones. `from` must be synced already. None if there is a newer one
    /// already: then it is `from` that goes.
    pub fn finish(&self, from: &Path, pos: LogPos) -> io::Result<Option<SnapshotFile>> {
        let _one = self.finishing.lock();
        if self.newest()?.is_some_and(|(newest, _)| newest > pos) {
            fs::remove_file(from)?;
            return Ok(None);
        }
        let to = self.dir.join(format!("{:016x}-{:016x}{SUFFIX}", pos.term, pos.index));
        fs::rename(from, &to)?;
        File::open(&self.dir)?.sync_all()?;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if position(&entry.file_name().to_string_lossy()).is_some_and(|other| other < pos) {
                fs::remove_file(entry.path())?;
            }
        }
        let bytes = fs::metadata(&to)?.len();
        Ok(Some(SnapshotFile { path: to, bytes, suspect: self.suspect.clone(), _temporary: None }))
    }
}

fn position(name: &str) -> Option<LogPos> {
    let (term, index) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    Some(LogPos { term: u64::from_str_radix(term, 16).ok()?, index: u64::from_str_radix(index, 16).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two that are finished at once, as one that was begun in the background and the leader's; both see the same older ones.
    #[test]
    fn files_that_are_finished_at_once_leave_the_newest_and_fail_nobody() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = SnapshotDir::open(tmp.path()).unwrap();
        for round in 0..100 {
            std::thread::scope(|scope| {
                for own in 1..=4 {
                    let dir = dir.clone();
                    scope.spawn(move || {
                        let index = 10 * round + own;
                        let part = dir.unfinished(&format!("build-{index}"));
                        fs::write(&part, index.to_string()).unwrap();
                        dir.finish(&part, LogPos { term: 2, index }).unwrap();
                        assert!(dir.newest().unwrap().unwrap().0.index >= index);
                    });
                }
            });
            assert_eq!(dir.newest().unwrap().unwrap().0.index, 10 * round + 4);
            assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn only_the_newest_finished_file_counts() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = SnapshotDir::open(tmp.path()).unwrap();
        assert!(dir.newest().unwrap().is_none());
        for index in [7, 300, 40] {
            let part = dir.unfinished(&format!("build-{index}"));
            fs::write(&part, index.to_string()).unwrap();
            if index != 40 {
                dir.finish(&part, LogPos { term: 2, index }).unwrap().unwrap();
            }
        }
        let (pos, file) = dir.newest().unwrap().unwrap();
        assert_eq!((pos.index, file.bytes), (300, 3));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2, "the older one is gone, the unfinished one is not");
        dir.has_room(0).unwrap();
        let refused = dir.has_room(u64::MAX).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull, "{refused}");
        // Begun before the newest, as one in the background is while the leader's is installed.
        assert!(dir.finish(&dir.unfinished("build-40"), LogPos { term: 2, index: 40 }).unwrap().is_none());
        assert_eq!(dir.newest().unwrap().unwrap().0.index, 300);
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "the one that came too late is gone");
        fs::write(dir.unfinished("build-500"), "500").unwrap();
        SnapshotDir::open(tmp.path()).unwrap();
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "opening removes what a crash left");
    }
}
