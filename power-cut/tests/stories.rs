//! What a power cut takes back: writes, and names that were given, taken over or removed. The writer is this test program once
//! more, in a process of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ferretcd_power_cut::{Disk, Lose};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Set for the writer: the folder, and whether it makes everything durable in the end.
const WRITES_IN: &str = "POWER_CUT_STORY_DIR";
const SYNCS: &str = "POWER_CUT_STORY_SYNCS";

fn write(path: &Path, text: &str, synced: bool) {
    let mut file = File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    if synced {
        file.sync_data().unwrap();
    }
}

fn sync(dir: &Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}

/// The writer's part; elsewhere it does nothing.
#[test]
fn writer() {
    let Some(dir) = std::env::var_os(WRITES_IN) else { return };
    let dir = Path::new(&dir);
    for name in ["replaced", "removed", "moved", "grown"] {
        write(&dir.join(name), "before", true);
    }
    sync(dir);
    // The new content is durable, its name is not.
    write(&dir.join("new"), "after", true);
    fs::rename(dir.join("new"), dir.join("replaced")).unwrap();
    fs::remove_file(dir.join("removed")).unwrap();
    fs::rename(dir.join("moved"), dir.join("elsewhere")).unwrap();
    fs::OpenOptions::new().append(true).open(dir.join("grown")).unwrap().write_all(b", and more").unwrap();
    write(&dir.join("created"), "after", true);
    if std::env::var_os(SYNCS).is_some() {
        File::open(dir.join("grown")).unwrap().sync_data().unwrap();
        sync(dir);
    }
}

fn written(disk: &Disk, syncs: bool) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "writer"]).env(WRITES_IN, disk.root());
    if syncs {
        child.env(SYNCS, "yes");
    }
    disk.attach(&mut child);
    assert!(child.output().unwrap().status.success());
    disk.saw_everything().unwrap();
}

fn left(disk: &Disk) -> BTreeMap<String, String> {
    let entries = fs::read_dir(disk.root()).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap())).collect()
}

fn files(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
}

const BEFORE: [(&str, &str); 4] =
    [("grown", "before"), ("moved", "before"), ("removed", "before"), ("replaced", "before")];
const AFTER: [(&str, &str); 4] =
    [("created", "after"), ("elsewhere", "before"), ("grown", "before, and more"), ("replaced", "after")];

#[test]
fn what_no_sync_covers_is_as_it_was_names_that_were_removed_and_replaced_too() {
    let place = tempfile::tempdir().unwrap();
    let disk = Disk::new(place.path(), "disk");
    written(&disk, false);
    assert_eq!(left(&disk), files(&AFTER), "before the power goes");
    let cut = disk.cut(Lose::All, 1);
    assert_eq!(left(&disk), files(&BEFORE));
    assert_eq!(cut.unsynced, cut.lost);
    assert!(cut.lost >= 5, "{cut:?}");
}

#[test]
fn what_was_synced_stays() {
    for (seed, lose) in Lose::ALL.into_iter().enumerate() {
        let place = tempfile::tempdir().unwrap();
        let disk = Disk::new(place.path(), "disk");
        written(&disk, true);
        let cut = disk.cut(lose, seed as u64);
        assert_eq!((left(&disk), cut.lost), (files(&AFTER), 0), "{lose:?}");
    }
}
