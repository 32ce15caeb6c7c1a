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

/// How many marks there are, and how many pages are written at once behind them.
const MARKS: usize = 12;
const PAGES: usize = 4;
const PAGE: usize = 4096;

/// Another writer: marks one after the other, appended to one file or the other or as a name; then one write of several
/// pages. None of it is made durable.
#[test]
fn writer_of_marks() {
    let Some(dir) = std::env::var_os(WRITES_IN) else { return };
    let dir = Path::new(&dir);
    let mut appended = ["0", "1"].map(|name| {
        write(&dir.join(name), "", true);
        fs::OpenOptions::new().append(true).open(dir.join(name)).unwrap()
    });
    write(&dir.join("pages"), &".".repeat(PAGES * PAGE), true);
    sync(dir);
    for n in 0..MARKS {
        match n % 3 {
            2 => write(&dir.join(n.to_string()), "", false),
            file => appended[file].write_all(b"!").unwrap(),
        }
    }
    let mut pages = fs::OpenOptions::new().write(true).open(dir.join("pages")).unwrap();
    pages.write_all("!".repeat(PAGES * PAGE).as_bytes()).unwrap();
}

/// Which of the marks are there, in their order, and which of the pages, each of them whole.
fn marks(disk: &Disk) -> (Vec<bool>, Vec<bool>) {
    let left = left(disk);
    let mark = |n: usize| match n % 3 {
        2 => left.contains_key(&n.to_string()),
        file => left[&file.to_string()].as_bytes().get(n / 3) == Some(&b'!'),
    };
    let page = |page: &[u8]| {
        assert!(page.iter().all(|byte| *byte == page[0]), "half of a page");
        page[0] == b'!'
    };
    ((0..MARKS).map(mark).collect(), left["pages"].as_bytes().chunks(PAGE).map(page).collect())
}

fn written(disk: &Disk, by: &str, syncs: bool) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", by]).env(WRITES_IN, disk.root());
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
    written(&disk, "writer", false);
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
        written(&disk, "writer", true);
        let cut = disk.cut(lose, seed as u64);
        assert_eq!((left(&disk), cut.lost), (files(&AFTER), 0), "{lose:?}");
    }
}

/// The replacement, the removal and the renaming, in the order in which they were done.
#[test]
fn a_name_that_is_taken_over_removed_or_changed_is_lost_or_kept_wholly_and_with_half_in_any_order() {
    for lose in [Lose::Suffix, Lose::Half] {
        let (mut kept, mut lost) = ([0; 3], [0; 3]);
        let mut unordered = 0;
        for seed in 0..30 {
            let place = tempfile::tempdir().unwrap();
            let disk = Disk::new(place.path(), "disk");
            written(&disk, "writer", false);
            disk.cut(lose, seed);
            let left = left(&disk);
            let is = |name: &str, content: &str| left.get(name).is_some_and(|found| found == content);
            // What these names stand for is durable, so each of them has all of its content.
            let done = [is("replaced", "after"), !left.contains_key("removed"), is("elsewhere", "before")];
            let undone = [is("replaced", "before"), is("removed", "before"), is("moved", "before")];
            for (n, (done, undone)) in done.into_iter().zip(undone).enumerate() {
                assert!(done != undone, "{lose:?}, seed {seed}: {left:?}");
                kept[n] += usize::from(done);
                lost[n] += usize::from(undone);
            }
            unordered += usize::from(!done.is_sorted_by(|earlier, later| earlier >= later));
            assert!(is("created", "after") || !left.contains_key("created"), "{lose:?}, seed {seed}: {left:?}");
        }
        let counts = format!("{lose:?}: {kept:?} kept, {lost:?} lost, {unordered} in another order");
        println!("{counts}");
        assert!(kept.iter().chain(&lost).all(|seen| *seen > 0), "{counts}");
        assert_eq!(unordered > 0, lose == Lose::Half, "{counts}");
    }
}

#[test]
fn a_suffix_is_lost_in_the_order_of_the_writes_and_a_half_in_any_with_torn_writes() {
    for lose in [Lose::Suffix, Lose::Half] {
        let (mut losing, mut keeping, mut unordered, mut torn) = (0, 0, 0, 0);
        for seed in 0..30 {
            let place = tempfile::tempdir().unwrap();
            let disk = Disk::new(place.path(), "disk");
            written(&disk, "writer_of_marks", false);
            assert_eq!(marks(&disk), (vec![true; MARKS], vec![true; PAGES]), "before the power goes");
            let cut = disk.cut(lose, seed);
            let (marks, pages) = marks(&disk);
            let is_torn = pages.iter().any(|page| *page != pages[0]);
            let there = [marks, pages].concat();
            // What may be torn is counted by its pages.
            let counted = if lose == Lose::Half { there.len() } else { MARKS + 1 };
            let lost = there[..counted].iter().filter(|kept| !**kept).count();
            assert_eq!((cut.unsynced, cut.lost), (MARKS + 1, lost), "{lose:?}, seed {seed}: {there:?}");
            losing += usize::from(lost > 0);
            keeping += usize::from(there.contains(&true));
            unordered += usize::from(!there[..=MARKS].is_sorted_by(|earlier, later| earlier >= later));
            torn += usize::from(is_torn);
        }
        println!("{lose:?}: {losing} lose, {keeping} keep, {unordered} in another order, {torn} torn");
        assert!(losing > 0 && keeping > 0, "{lose:?}: {losing} lose something, {keeping} keep something");
        let any_order = lose == Lose::Half;
        assert_eq!(
            (unordered > 0, torn > 0),
            (any_order, any_order),
            "{lose:?}: {unordered} in another order, {torn} torn"
        );
    }
}
