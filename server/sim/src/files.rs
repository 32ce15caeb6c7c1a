//! What a power loss leaves of the files that members write through the system, which are their snapshot files: this takes the
//! place of the C library's `fsync`, so it knows what was made durable, and can let a sync fail.
#![allow(unsafe_code, reason = "a symbol of the C library is replaced")]

use crate::chance::Chance;
use ferretcd_wal::fs::mem::PowerLoss;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A disk writes its sectors whole.
const SECTOR: usize = 512;
/// The system writes pages.
const PAGE: usize = 4096;

/// What a failed sync is known by to who asked for it.
pub const FAILED: &str = "os error 5";

static SYNCED: Mutex<Synced> = Mutex::new(Synced {
    contents: BTreeMap::new(),
    names: BTreeMap::new(),
    dropped: BTreeMap::new(),
    failing: BTreeMap::new(),
    failed: BTreeSet::new(),
});

struct Synced {
    /// By number. An open file keeps its number from being given to another.
    contents: BTreeMap<u64, (File, Vec<u8>)>,
    /// The names in a folder.
    names: BTreeMap<PathBuf, BTreeMap<String, u64>>,
    /// What files held when a sync of theirs failed, by number. The system takes that for written: of a page that has not changed
    /// since, a later sync writes nothing.
    dropped: BTreeMap<u64, Vec<u8>>,
    /// Folders in which a sync fails after so many.
    failing: BTreeMap<PathBuf, u64>,
    failed: BTreeSet<PathBuf>,
}

/// The C library's call, for everybody in this process. Nothing comes to a disk: what runs here ends with this process.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: i32) -> i32 {
    unsafe extern "C" {
        fn __errno_location() -> *mut i32;
    }
    const EIO: i32 = 5;
    let Err(why) = sync(&PathBuf::from(format!("/proc/self/fd/{file}"))) else { return 0 };
    // SAFETY: it points to this thread's error number.
    unsafe { *__errno_location() = why.raw_os_error().unwrap_or(EIO) };
    -1
}

fn sync(open: &Path) -> io::Result<()> {
    let (path, about) = (fs::read_link(open)?, fs::metadata(open)?);
    let mut synced = SYNCED.lock();
    let folder = if about.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
    let fails = synced.failing.get(folder) == Some(&0);
    if fails {
        synced.failing.remove(folder);
        synced.failed.insert(folder.to_owned());
    } else if let Some(more) = synced.failing.get_mut(folder) {
        *more -= 1;
    }
    let failed = if fails { Err(io::Error::other("injected")) } else { Ok(()) };
    if about.is_dir() {
        // Names are metadata, which file systems journal: after a failure they are still to be written.
        failed?;
        synced.names.insert(path.clone(), names(&path)?);
        return Ok(());
    }
    let (number, written) = (about.ino(), fs::read(open)?);
    let Synced { contents, dropped, .. } = &mut *synced;
    let (_, durable) = contents.entry(number).or_insert((File::open(open)?, Vec::new()));
    if fails {
        dropped.insert(number, written);
        return failed;
    }
    *durable = match dropped.get(&number) {
        Some(dropped) => without(dropped, written, durable),
        None => written,
    };
    Ok(())
}

/// What a sync makes durable of a file after one has failed.
fn without(dropped: &[u8], written: Vec<u8>, durable: &[u8]) -> Vec<u8> {
    let page_of = |bytes: &[u8], at: usize| bytes.get(at..bytes.len().min(at + PAGE)).unwrap_or_default().to_vec();
    let pages = (0..written.len()).step_by(PAGE).flat_map(|at| {
        let page = page_of(&written, at);
        if page != page_of(dropped, at) {
            return page;
        }
        let mut old = page_of(durable, at);
        old.resize(page.len(), 0);
        old
    });
    pages.collect()
}

/// The numbers of the files in a folder.
fn names(folder: &Path) -> io::Result<BTreeMap<String, u64>> {
    let file = |file: io::Result<fs::DirEntry>| {
        let file = file?;
        Ok((file.file_name().to_string_lossy().into_owned(), file.metadata()?.ino()))
    };
    fs::read_dir(folder)?.map(file).collect()
}

/// After so many syncs, one fails in this folder.
pub fn fail(folder: &Path, after: u64) {
    SYNCED.lock().failing.insert(folder.to_owned(), after);
}

/// Whether one has failed.
pub fn failed(folder: &Path) -> bool {
    SYNCED.lock().failed.contains(folder)
}

/// Makes `to` what a restart finds of `from`: everything after the end of a process alone, else what the power left.
pub fn restart(from: &Path, to: &Path, loss: Option<PowerLoss>, chance: &Chance) -> io::Result<()> {
    fs::create_dir_all(from)?;
    fs::create_dir_all(to)?;
    let now = names(from)?;
    let mut synced = SYNCED.lock();
    let durable = synced.names.get(from).cloned().unwrap_or_default();
    let Some(loss) = loss else {
        now.keys().try_for_each(|name| fs::hard_link(from.join(name), to.join(name)))?;
        synced.names.insert(to.to_owned(), durable);
        return Ok(());
    };
    let with_all_names = chance.one_in(2);
    let by_number: BTreeMap<u64, &String> = now.iter().map(|(name, number)| (*number, name)).collect();
    for name in now.keys().chain(durable.keys()).collect::<BTreeSet<_>>() {
        let kept = match loss {
            PowerLoss::All => false,
            PowerLoss::Suffix => with_all_names,
            PowerLoss::Random => chance.one_in(2),
        };
        let Some(number) = (if kept { &now } else { &durable }).get(name) else { continue };
        let safe = synced.contents.get(number).map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        let written = match by_number.get(number) {
            Some(name) => fs::read(from.join(name))?,
            None => safe.clone(),
        };
        fs::write(to.join(name), torn(safe, written, loss, chance))?;
    }
    let left = names(to)?;
    for (name, number) in &left {
        let path = to.join(name);
        synced.contents.insert(*number, (File::open(&path)?, fs::read(&path)?));
    }
    synced.names.insert(to.to_owned(), left);
    Ok(())
}

/// What is left of a file of which something was not synced.
fn torn(safe: Vec<u8>, written: Vec<u8>, loss: PowerLoss, chance: &Chance) -> Vec<u8> {
    if safe == written {
        return safe;
    }
    match loss {
        PowerLoss::All => safe,
        PowerLoss::Suffix => {
            let kept = safe.len().max(chance.below(written.len() as u64 + 1) as usize);
            written[..kept.min(written.len())].to_vec()
        }
        PowerLoss::Random => {
            let mut left = written;
            for sector in (0..left.len()).step_by(SECTOR).filter(|_| chance.one_in(2)) {
                let end = left.len().min(sector + SECTOR);
                for (at, byte) in left[sector..end].iter_mut().enumerate() {
                    *byte = safe.get(sector + at).copied().unwrap_or(0);
                }
            }
            left
        }
    }
}

/// Flips a bit in the newest file whose name ends so: the disk has changed it. Its name.
pub fn flip(folder: &Path, suffix: &str, chance: &Chance) -> Option<String> {
    let (name, number) = names(folder).ok()?.into_iter().rfind(|(name, _)| name.ends_with(suffix))?;
    let path = folder.join(&name);
    let mut bytes = fs::read(&path).ok()?;
    let place = chance.below(bytes.len() as u64) as usize;
    let bit = 1 << chance.below(8);
    *bytes.get_mut(place)? ^= bit;
    fs::write(&path, &bytes).ok()?;
    // And what the disk has of it.
    if let Some((_, durable)) = SYNCED.lock().contents.get_mut(&number)
        && let Some(byte) = durable.get_mut(place)
    {
        *byte ^= bit;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_takes_what_was_not_synced_and_names_of_a_folder_that_was_not() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().canonicalize().unwrap().join(name);
        let (first, chance) = (at("0"), Chance::new(1));
        fs::create_dir(&first).unwrap();
        let write = |name: &str, bytes: &str| {
            fs::write(first.join(name), bytes).unwrap();
            File::open(first.join(name)).unwrap()
        };
        write("synced", "1").sync_all().unwrap();
        write("unsynced", "2");
        File::open(&first).unwrap().sync_all().unwrap();
        write("unnamed", "3").sync_all().unwrap();
        fs::rename(first.join("synced"), first.join("renamed")).unwrap();
        let left = |folder: &str| -> BTreeMap<String, String> {
            let names = names(&at(folder)).unwrap();
            names.into_keys().map(|name| (name.clone(), fs::read_to_string(at(folder).join(name)).unwrap())).collect()
        };
        restart(&first, &at("1"), Some(PowerLoss::All), &chance).unwrap();
        assert_eq!(left("1"), [("synced".into(), "1".into()), ("unsynced".into(), String::new())].into());
        // The end of a process takes nothing; the power does so later.
        restart(&first, &at("2"), None, &chance).unwrap();
        assert_eq!(left("2"), left("0"));
        restart(&at("2"), &at("3"), Some(PowerLoss::All), &chance).unwrap();
        assert_eq!(left("3"), left("1"));

        fail(&at("3"), 1);
        let file = File::open(at("3").join("synced")).unwrap();
        file.sync_all().unwrap();
        assert!(file.sync_all().is_err() && failed(&at("3")) && !failed(&at("2")));
        file.sync_all().unwrap();
    }

    #[test]
    fn neither_a_sync_after_a_failed_one_nor_a_flipped_bit_makes_durable_what_was_dropped() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().canonicalize().unwrap().join(name);
        let (file, chance) = (at("0").join("file"), Chance::new(1));
        fs::create_dir(at("0")).unwrap();
        let sync = |path: &Path| File::open(path).unwrap().sync_all();
        fs::write(&file, [b'a'; 2 * PAGE]).unwrap();
        sync(&file).unwrap();
        sync(&at("0")).unwrap();
        fs::write(&file, [b'b'; 2 * PAGE]).unwrap();
        fail(&at("0"), 0);
        assert!(sync(&file).unwrap_err().to_string().contains(FAILED));
        fs::write(&file, [[b'b'; PAGE], [b'c'; PAGE]].concat()).unwrap();
        sync(&file).unwrap();
        restart(&at("0"), &at("1"), Some(PowerLoss::All), &chance).unwrap();
        let left = fs::read(at("1").join("file")).unwrap();
        assert_eq!(left, [[b'a'; PAGE], [b'c'; PAGE]].concat(), "the first page was not written to again");

        fs::write(at("1").join("file"), [b'd'; 2 * PAGE]).unwrap();
        assert_eq!(flip(&at("1"), "le", &chance).unwrap(), "file");
        restart(&at("1"), &at("2"), Some(PowerLoss::All), &chance).unwrap();
        let flipped = fs::read(at("2").join("file")).unwrap();
        let bits: u32 = left.iter().zip(&flipped).map(|(was, is)| (was ^ is).count_ones()).sum();
        assert_eq!((flipped.len(), bits), (left.len(), 1));
    }
}
