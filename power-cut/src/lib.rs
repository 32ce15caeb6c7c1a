//! Power cuts for tests: a library that is preloaded into a process writes down all that it changes below a folder
//! (`shim.c`), and [`Disk::cut`] takes back after a kill what no sync had made durable: data, lengths and names.
//!
//! What counts as durable is the letter of POSIX, which is less than what one file system gives: a file's content after
//! its fsync, a name after an fsync of its folder, whatever was synced in between.

// This crate is for tests alone, and what goes wrong in it is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod journal;
mod names;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use journal::{Bytes, Op, What};
use names::Names;

/// What a power cut takes of the writes and names that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lose {
    /// All of them.
    All,
    /// All after a random moment: the disk worked in order.
    Suffix,
    /// Each with a probability of one half, every 4 KiB of a write by itself: the disk worked in any order.
    Half,
}

impl Lose {
    /// All models, for loops over seeds.
    pub const ALL: [Lose; 3] = [Lose::All, Lose::Suffix, Lose::Half];
}

/// Where a write is torn: page caches write pages.
const PAGE: u64 = 4096;

/// A folder whose writer is watched, with the notes about it beside it.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    notes: PathBuf,
    ignored: Vec<String>,
    failing: Vec<String>,
    delay_us: u32,
    kill_after: u32,
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Writes, lengths and names that no sync had covered.
    pub unsynced: usize,
    /// Those of them that were taken back (a torn write counts once per lost page).
    pub lost: usize,
}

impl Disk {
    /// An empty folder below `place`, which is on a file system with hard links.
    pub fn new(place: &Path, name: &str) -> Disk {
        let place = fs::canonicalize(place).unwrap();
        let (root, notes) = (place.join(name), place.join(format!("{name}.notes")));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&notes).unwrap();
        Disk { root, notes, ignored: Vec::new(), failing: Vec::new(), delay_us: 0, kill_after: 0 }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Syncs of paths like this (`*/wal/*`, say) do nothing from the next start on: they lie.
    pub fn ignore_syncs(&mut self, pattern: &str) {
        self.ignored.push(pattern.to_owned());
    }

    /// The next sync of a path like this fails, once [`Disk::fail_now`] was called. For starts after this call.
    pub fn may_fail_syncs(&mut self, pattern: &str) {
        self.failing.push(pattern.to_owned());
    }

    /// See [`Disk::may_fail_syncs`]. As with a real disk one call fails for each open file, and the next one succeeds without
    /// having made anything durable that was written before.
    pub fn fail_now(&self) {
        File::create(self.notes.join("fail")).unwrap();
    }

    /// Whether the failure that [`Disk::fail_now`] asked for has been met.
    pub fn has_failed(&self) -> bool {
        !self.notes.join("fail").exists()
    }

    /// How long each sync takes: more time for the cut to come in between.
    pub fn delay_syncs(&mut self, microseconds: u32) {
        self.delay_us = microseconds;
    }

    /// The next process is killed at its `notes`th note: a change of the folder that it was about to make or has just made, or a
    /// sync. 0: never.
    pub fn kill_after(&mut self, notes: u32) {
        self.kill_after = notes;
    }

    /// How many notes there are up to the first that gives such a name.
    pub fn notes_until(&self, is_such: impl Fn(&str) -> bool) -> Option<u32> {
        let gives = |op: &Op| match &op.what {
            What::Add { name, .. } | What::Rename { to: name, .. } => is_such(name),
            _ => false,
        };
        let at = journal::read(&self.notes).unwrap().iter().position(gives);
        at.and_then(|at| u32::try_from(at + 1).ok())
    }

    /// Has a process watched.
    pub fn attach(&self, command: &mut Command) {
        command.env("LD_PRELOAD", shim()).env("POWER_CUT_ROOT", &self.root).env("POWER_CUT_NOTES", &self.notes);
        command.env("POWER_CUT_DELAY_US", self.delay_us.to_string()).env("POWER_CUT_KILL", self.kill_after.to_string());
        command.env("POWER_CUT_IGNORE", self.ignored.join(":")).env("POWER_CUT_FAIL", self.failing.join(":"));
    }

    /// Whether the notes tell everything: those of all processes since this disk was empty, done once more in memory,
    /// give what is there now, byte for byte and name for name. To be called after a kill, before any cut. The error says
    /// what was changed unseen.
    pub fn saw_everything(&self) -> Result<(), String> {
        let ops = journal::read(&self.notes)?;
        if ops.is_empty() {
            return Err("the library was not loaded, or saw nothing".to_owned());
        }
        let there = Names::walk(&self.root);
        let mut told = Names::empty(there.root);
        let mut contents: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for op in &ops {
            match &op.what {
                What::Write { at, fresh, .. } => {
                    let content = contents.entry(op.inode).or_default();
                    let end = *at as usize + fresh.len();
                    content.resize(content.len().max(end), 0);
                    fresh.copy_to(&mut content[*at as usize..end]);
                }
                What::Length { to, .. } => contents.entry(op.inode).or_default().resize(*to as usize, 0),
                What::Sync { .. } | What::SyncFailed | What::SyncAll | What::Intent => {}
                What::Blind(how) => return Err(format!("a change that cannot be seen: {how}")),
                name => told.redo(op.inode, name),
            }
        }
        // A kill comes at any time: the last thing that a process noted may not be done, or done in part.
        let last = |(n, op): &(usize, &Op)| ops.get(n + 1).is_none_or(|next| next.process != op.process);
        let unsure: Vec<&Op> = ops.iter().enumerate().filter(last).map(|(_, op)| op).collect();
        told.compare(&there, unsure.iter().filter(|op| matches!(op.what, What::Intent)).count())?;
        for (inode, path) in &there.files {
            let found = fs::read(path).unwrap();
            let known = contents.remove(inode).unwrap_or_default();
            let unsure: Vec<_> = unsure.iter().filter(|op| op.inode == *inode).filter_map(|op| touched(op)).collect();
            let longer = found.len().max(known.len());
            let sure = |at: &usize| !unsure.iter().any(|range| range.contains(at));
            let differ = |at: &usize| found.get(*at) != known.get(*at);
            let flaw = if found == known { None } else { (0..longer).filter(differ).find(sure) };
            if let Some(at) = flaw {
                return Err(format!(
                    "{} was changed unseen at {at} ({} bytes, {} by the notes)",
                    path.display(),
                    found.len(),
                    known.len()
                ));
            }
        }
        Ok(())
    }

    /// Takes back what no sync covered, as `lose` and `seed` say. To be called when the process is dead. Afterwards
    /// everything that is left is durable.
    pub fn cut(&self, lose: Lose, seed: u64) -> Cut {
        let ops = journal::read(&self.notes).unwrap();
        let unsynced = unsynced(&ops);
        let mut random = Random(seed);
        let keep_until = random.below(unsynced.len() as u64 + 1) as usize;
        let mut cut = Cut { unsynced: unsynced.len(), lost: 0 };
        let mut survivors = Vec::new();
        for (number, op) in unsynced.iter().enumerate() {
            for piece in pieces(op, lose) {
                let kept = match lose {
                    Lose::All => false,
                    Lose::Suffix => number < keep_until,
                    Lose::Half => random.below(2) == 0,
                };
                match kept {
                    true => survivors.push(piece),
                    false => cut.lost += 1,
                }
            }
        }
        let mut names = Names::walk(&self.root);
        names.add_buried(&self.notes);
        for op in unsynced.iter().rev() {
            match &op.what {
                What::Write { .. } | What::Length { .. } => undo(&names, op),
                name => names.undo(op.inode, name),
            }
        }
        for op in &survivors {
            match &op.what {
                What::Write { .. } | What::Length { .. } => redo(&names, op),
                name => names.redo(op.inode, name),
            }
        }
        names.build(&self.root);
        for entry in fs::read_dir(&self.notes).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => fs::remove_dir(&path).unwrap(),
                false => fs::remove_file(&path).unwrap(),
            }
        }
        cut
    }
}

/// The bytes that a change is about.
fn touched(op: &Op) -> Option<Range<usize>> {
    match &op.what {
        What::Write { at, fresh, .. } => Some(*at as usize..*at as usize + fresh.len()),
        What::Length { to, length_before, .. } => Some(*to.min(length_before) as usize..usize::MAX),
        _ => None,
    }
}

/// The changes that no sync covered, in their order.
fn unsynced(ops: &[Op]) -> Vec<Op> {
    // By the inode whose sync they wait for, and those for which a sync has failed: the kernel takes their pages for
    // clean then, and no later sync writes them.
    let mut waiting: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    let mut given_up = Vec::new();
    for (number, op) in ops.iter().enumerate() {
        match op.what {
            What::Sync { begun } => {
                let covered = |n: &usize| ops[*n].process < op.process || ops[*n].offset < begun;
                waiting.entry(op.inode).or_default().retain(|n| !covered(n));
            }
            What::SyncAll => waiting.clear(),
            What::SyncFailed => given_up.extend(waiting.remove(&op.inode).unwrap_or_default()),
            What::Blind(_) | What::Intent => {}
            _ => waiting.entry(op.belongs_to()).or_default().push(number),
        }
    }
    let mut left: Vec<usize> = waiting.into_values().flatten().chain(given_up).collect();
    left.sort_unstable();
    left.into_iter().map(|n| ops[n].clone()).collect()
}

/// A write as it may be torn.
fn pieces(op: &Op, lose: Lose) -> Vec<Op> {
    let What::Write { at, length_before, fresh, .. } = &op.what else { return vec![op.clone()] };
    if lose != Lose::Half {
        return vec![op.clone()];
    }
    let (mut pieces, mut from, end) = (Vec::new(), *at, *at + fresh.len() as u64);
    while from < end {
        let to = ((from / PAGE + 1) * PAGE).min(end);
        let fresh = fresh.part((from - at) as usize, (to - at) as usize);
        let what = What::Write { at: from, length_before: *length_before, fresh, old: Bytes::Zeros(0) };
        pieces.push(Op { what, ..op.clone() });
        from = to;
    }
    pieces
}

fn open(names: &Names, inode: u64) -> Option<File> {
    // A file that was removed by a process that the library did not see is none that could come back.
    let path = names.files.get(&inode)?;
    Some(OpenOptions::new().write(true).open(path).unwrap())
}

fn undo(names: &Names, op: &Op) {
    let Some(file) = open(names, op.inode) else { return };
    match &op.what {
        What::Write { at, length_before, old, .. } => {
            file.write_all_at(&old.to_vec(), *at).unwrap();
            file.set_len(*length_before).unwrap();
        }
        What::Length { to, length_before, old } => {
            file.set_len(*length_before).unwrap();
            file.write_all_at(&old.to_vec(), *to).unwrap();
        }
        _ => {}
    }
}

fn redo(names: &Names, op: &Op) {
    let Some(file) = open(names, op.inode) else { return };
    match &op.what {
        What::Write { at, fresh, .. } => file.write_all_at(&fresh.to_vec(), *at).unwrap(),
        What::Length { to, .. } => file.set_len(*to).unwrap(),
        _ => {}
    }
}

/// A reproducible source of choices (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)] // It never ends, and is no iterator.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// The library, compiled beside the test's own binary when there is none of this source yet.
fn shim() -> PathBuf {
    const SOURCE: &str = include_str!("shim.c");
    let mut hash = DefaultHasher::new();
    SOURCE.hash(&mut hash);
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = folder.join(format!("power-cut-{:016x}.so", hash.finish()));
    if !library.exists() {
        let own = tempfile::tempdir_in(&folder).unwrap();
        let (source, made) = (own.path().join("shim.c"), own.path().join("shim.so"));
        fs::write(&source, SOURCE).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"]);
        let done = cc.arg(&made).arg(&source).output().expect("a C compiler is needed, as for linking");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // Another test may have been faster with the same.
        fs::rename(&made, &library).unwrap();
    }
    library
}

/// The inode number of what is at a path.
fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}
