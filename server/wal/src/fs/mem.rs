//! A file system in memory that models what a power loss may leave, for tests and simulators. It counts what is done
//! to it, can lose power at any count, and can fail a chosen call.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{File, Fs, Lock};

/// A disk writes its sectors whole; a torn write is cut at a multiple of this.
const SECTOR: u64 = 512;

/// A file system in memory. Clones share one disk; [`MemFs::fork`] and [`MemFs::power_loss`] make a new one.
///
/// Directories exist as soon as something is in them, and are not themselves subject to power loss.
#[derive(Clone, Default)]
pub struct MemFs {
    disk: Arc<Mutex<Disk>>,
}

/// What happened to data that was written and not synced when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// All of it is lost.
    All,
    /// Of each file a random number of writes, the last ones, is lost; so are the last changes of names.
    Suffix,
    /// Each write and each change of a name is kept or lost by chance, and a write may be kept in some sectors only.
    Random,
}

/// Calls that change the disk; they are counted, and can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Fs::create`].
    Create,
    /// [`File::write_at`].
    Write,
    /// [`File::set_len`].
    SetLen,
    /// [`File::sync_data`] and [`File::sync_all`].
    Sync,
    /// [`Fs::rename`].
    Rename,
    /// [`Fs::remove`].
    Remove,
    /// [`Fs::sync_dir`].
    SyncDir,
}

#[derive(Clone, Default)]
struct Disk {
    nodes: Vec<Node>,
    /// Names as the running system sees them.
    names: BTreeMap<PathBuf, usize>,
    /// Names as they would be after a power loss, without `pending`.
    durable_names: BTreeMap<PathBuf, usize>,
    pending: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    calls: BTreeMap<Call, u64>,
    crash_at: Option<u64>,
    /// The call of this kind and number fails once.
    faults: Vec<(Call, u64, io::ErrorKind)>,
    /// How many of them have.
    failures: u64,
    /// The files of those that were writes and syncs.
    failed: Vec<PathBuf>,
}

/// A file's content.
#[derive(Clone, Default)]
struct Node {
    /// As the running system sees it.
    current: Vec<u8>,
    /// As it would be after a power loss, without `pending`.
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
}

#[derive(Clone)]
enum NameChange {
    Add { path: PathBuf, node: usize },
    Rename { from: PathBuf, to: PathBuf, node: usize },
    Remove { path: PathBuf },
}

struct MemFile {
    disk: Arc<Mutex<Disk>>,
    node: usize,
    path: PathBuf,
}

struct MemLock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
}

impl MemFs {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy as it is now, un-synced data included, with no locks, no counts and no faults: what a new process sees
    /// after `kill -9`.
    pub fn fork(&self) -> MemFs {
        let disk = Disk {
            locks: BTreeSet::new(),
            calls: BTreeMap::new(),
            crash_at: None,
            faults: Vec::new(),
            failures: 0,
            failed: Vec::new(),
            ..self.disk.lock().clone()
        };
        MemFs { disk: Arc::new(Mutex::new(disk)) }
    }

    /// A copy as a power loss now would leave it. The same seed gives the same loss.
    pub fn power_loss(&self, loss: PowerLoss, seed: u64) -> MemFs {
        let survivor = self.fork();
        survivor.disk.lock().lose_power(loss, &mut Chance(seed));
        survivor
    }

    /// From the `count`-th changing call on (counted from 0 over all kinds, see [`MemFs::calls`]) every call fails, as
    /// if the power were gone. That call itself, if it is a write, may still reach the disk.
    pub fn crash_at(&self, count: u64) {
        self.disk.lock().crash_at = Some(count);
    }

    /// Whether the point set by [`MemFs::crash_at`] was reached.
    pub fn crashed(&self) -> bool {
        self.disk.lock().crashed()
    }

    /// Makes the `skip`-th next call of this kind (0: the very next) fail once. A failed write is half done; a failed
    /// sync of a file drops what it should have written from what a later sync writes, as Linux does.
    pub fn fail(&self, call: Call, skip: u64, kind: io::ErrorKind) {
        let mut disk = self.disk.lock();
        let number = disk.calls.get(&call).copied().unwrap_or(0) + skip;
        disk.faults.push((call, number, kind));
    }

    /// How many calls have failed as [`MemFs::fail`] asked.
    pub fn failures(&self) -> u64 {
        self.disk.lock().failures
    }

    /// Files, under the names that they had then, of which a write or a sync has failed as [`MemFs::fail`] asked.
    pub fn failed(&self) -> Vec<PathBuf> {
        self.disk.lock().failed.clone()
    }

    /// Changing calls so far.
    pub fn calls(&self) -> u64 {
        self.disk.lock().calls.values().sum()
    }

    /// Calls of one kind so far.
    pub fn calls_of(&self, call: Call) -> u64 {
        self.disk.lock().calls.get(&call).copied().unwrap_or(0)
    }

    /// A file's content as the running system sees it.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let disk = self.disk.lock();
        Ok(disk.nodes[disk.find(path)?].current.clone())
    }

    /// Replaces a file's content, durably, creating it if need be: for tests that damage it.
    pub fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut disk = self.disk.lock();
        let node = disk.nodes.len();
        disk.nodes.push(Node { current: bytes.clone(), durable: bytes, pending: Vec::new() });
        disk.names.insert(path.to_owned(), node);
        disk.durable_names.insert(path.to_owned(), node);
    }
}

impl Fs for MemFs {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        self.disk.lock().alive()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        if !disk.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock { disk: self.disk.clone(), path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let disk = self.disk.lock();
        disk.alive()?;
        let node = disk.find(path)?;
        Ok(Arc::new(MemFile { disk: self.disk.clone(), node, path: path.to_owned() }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.disk.lock();
        disk.count(Call::Create)?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = disk.nodes.len();
        disk.nodes.push(Node::default());
        disk.names.insert(path.to_owned(), node);
        disk.pending.push(NameChange::Add { path: path.to_owned(), node });
        Ok(Arc::new(MemFile { disk: self.disk.clone(), node, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let node = disk.find(from)?;
        disk.count(Call::Rename)?;
        disk.names.remove(from);
        disk.names.insert(to.to_owned(), node);
        disk.pending.push(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), node });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.find(path)?;
        disk.count(Call::Remove)?;
        disk.names.remove(path);
        disk.pending.push(NameChange::Remove { path: path.to_owned() });
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        disk.alive()?;
        let names = disk.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        // Names are metadata, which file systems journal: after a failure they stay pending.
        disk.count(Call::SyncDir)?;
        let (here, elsewhere) = std::mem::take(&mut disk.pending).into_iter().partition(|change| change.is_in(dir));
        disk.pending = elsewhere;
        disk.keep_names(here);
        Ok(())
    }
}

impl File for MemFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let was_alive = disk.alive().is_ok();
        let done = disk.count(Call::Write);
        let reached = match &done {
            Ok(()) => bytes,
            // The call during which the power goes may have got all of it to the disk's cache.
            Err(_) if disk.crashed() && was_alive => bytes,
            Err(_) if disk.crashed() => b"",
            // Half of it, as a kernel and a disk do things by halves: in whole sectors of the file.
            Err(_) => {
                disk.failed_at(self.node);
                let half = (offset + bytes.len() as u64 / 2) / SECTOR * SECTOR;
                &bytes[..half.saturating_sub(offset) as usize]
            }
        };
        disk.nodes[self.node].change(Change::Write { offset, bytes: reached.to_vec() });
        done.map_err(|error| self.name(error))
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.lock();
        disk.alive()?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len());
        bytes.copy_from_slice(disk.nodes[self.node].current.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let done = disk.count(Call::Sync);
        if done.is_err() && disk.crashed() {
            return done.map_err(|error| self.name(error));
        }
        if done.is_err() {
            disk.failed_at(self.node);
        }
        let node = &mut disk.nodes[self.node];
        let pending = std::mem::take(&mut node.pending);
        if done.is_ok() {
            for change in pending {
                change.apply(&mut node.durable);
            }
        }
        done.map_err(|error| self.name(error))
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.alive()?;
        Ok(disk.nodes[self.node].current.len() as u64)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.count(Call::SetLen)?;
        disk.nodes[self.node].change(Change::SetLen(length));
        Ok(())
    }
}

impl MemFile {
    fn name(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

impl Lock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.disk.lock().locks.remove(&self.path);
    }
}

impl Disk {
    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn crashed(&self) -> bool {
        self.crash_at.is_some_and(|at| self.calls.values().sum::<u64>() > at)
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed() { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    /// Counts a call and says whether it may succeed.
    fn count(&mut self, call: Call) -> io::Result<()> {
        let count = self.calls.entry(call).or_default();
        let number = *count;
        *count += 1;
        self.alive()?;
        match self.faults.iter().position(|&(kind, at, _)| (kind, at) == (call, number)) {
            Some(fault) => {
                self.failures += 1;
                Err(io::Error::new(self.faults.swap_remove(fault).2, "injected"))
            }
            None => Ok(()),
        }
    }

    fn failed_at(&mut self, node: usize) {
        let name = self.names.iter().find(|(_, named)| **named == node).map(|(path, _)| path.clone());
        self.failed.extend(name);
    }

    fn keep_names(&mut self, changes: Vec<NameChange>) {
        for change in changes {
            match change {
                NameChange::Add { path, node } => {
                    self.durable_names.insert(path, node);
                }
                NameChange::Rename { from, to, node } => {
                    self.durable_names.remove(&from);
                    self.durable_names.insert(to, node);
                }
                NameChange::Remove { path } => {
                    self.durable_names.remove(&path);
                }
            }
        }
    }

    fn lose_power(&mut self, loss: PowerLoss, chance: &mut Chance) {
        let pending = std::mem::take(&mut self.pending);
        let kept = match loss {
            PowerLoss::All => 0,
            PowerLoss::Suffix => chance.below(pending.len() as u64 + 1) as usize,
            PowerLoss::Random => pending.len(),
        };
        let kept = pending.into_iter().take(kept);
        let kept = kept.filter(|_| loss != PowerLoss::Random || chance.below(2) == 0).collect();
        self.keep_names(kept);
        self.names = self.durable_names.clone();
        for node in &mut self.nodes {
            node.lose_power(loss, chance);
        }
    }
}

impl Node {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    fn lose_power(&mut self, loss: PowerLoss, chance: &mut Chance) {
        let pending = std::mem::take(&mut self.pending);
        let kept = match loss {
            PowerLoss::All => 0,
            PowerLoss::Suffix => chance.below(pending.len() as u64 + 1) as usize,
            PowerLoss::Random => pending.len(),
        };
        for (number, change) in pending.into_iter().enumerate() {
            match loss {
                // The first write that is lost may have got some of its sectors down, from its start.
                PowerLoss::Suffix if number == kept => change.sectors(kept_until(chance)).apply_all(&mut self.durable),
                _ if number >= kept => {}
                PowerLoss::Random => match chance.below(3) {
                    0 => change.apply(&mut self.durable),
                    1 => {}
                    _ => change.sectors(|_| chance.below(2) == 0).apply_all(&mut self.durable),
                },
                _ => change.apply(&mut self.durable),
            }
        }
        self.current = self.durable.clone();
    }
}

/// Keeps sectors until chance says stop.
fn kept_until(chance: &mut Chance) -> impl FnMut(u64) -> bool + '_ {
    let mut going = true;
    move |_| {
        going = going && chance.below(4) != 0;
        going
    }
}

struct Pieces(Vec<Change>);

impl Pieces {
    fn apply_all(self, content: &mut Vec<u8>) {
        for change in self.0 {
            change.apply(content);
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => {
                let start = *offset as usize;
                let end = start + bytes.len();
                if content.len() < end && !bytes.is_empty() {
                    content.resize(end, 0);
                }
                if !bytes.is_empty() {
                    content[start..end].copy_from_slice(bytes);
                }
            }
            Change::SetLen(length) => content.resize(*length as usize, 0),
        }
    }

    /// The parts of a write, cut at sectors, that `keep` keeps. A change of length is kept whole or not at all.
    fn sectors(self, mut keep: impl FnMut(u64) -> bool) -> Pieces {
        let (offset, bytes) = match self {
            Change::SetLen(_) => return Pieces(if keep(0) { vec![self] } else { Vec::new() }),
            Change::Write { offset, bytes } => (offset, bytes),
        };
        let mut pieces = Vec::new();
        let (mut at, end) = (offset, offset + bytes.len() as u64);
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            if keep(at) {
                let piece = bytes[(at - offset) as usize..(next - offset) as usize].to_vec();
                pieces.push(Change::Write { offset: at, bytes: piece });
            }
            at = next;
        }
        Pieces(pieces)
    }
}

impl NameChange {
    fn is_in(&self, dir: &Path) -> bool {
        let (NameChange::Add { path, .. } | NameChange::Rename { to: path, .. } | NameChange::Remove { path }) = self;
        path.parent() == Some(dir)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough chance for a test, and the same on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        Path::new("/d").join(name)
    }

    #[test]
    fn what_is_not_synced_is_lost_and_what_is_stays() {
        let fs = MemFs::new();
        let file = fs.create(&path("a")).unwrap();
        file.write_at(0, b"durable").unwrap();
        file.sync_data().unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        file.write_at(0, b"FLEETING").unwrap();
        let later = fs.power_loss(PowerLoss::All, 0);
        assert_eq!(later.contents(&path("a")).unwrap(), b"durable");
        assert_eq!(fs.fork().contents(&path("a")).unwrap(), b"FLEETING");
    }

    #[test]
    fn a_name_that_is_not_synced_is_lost() {
        let fs = MemFs::new();
        fs.create(&path("a")).unwrap().sync_all().unwrap();
        assert!(fs.power_loss(PowerLoss::All, 0).list(Path::new("/d")).unwrap().is_empty());
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.rename(&path("a"), &path("b")).unwrap();
        assert_eq!(fs.list(Path::new("/d")).unwrap(), ["b"]);
        assert_eq!(fs.power_loss(PowerLoss::All, 0).list(Path::new("/d")).unwrap(), ["a"]);
    }

    #[test]
    fn random_loss_can_reorder_and_tear() {
        let fs = MemFs::new();
        let file = fs.create(&path("a")).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        file.write_at(0, &[1; 2048]).unwrap();
        file.write_at(2048, &[2; 512]).unwrap();
        let outcomes: BTreeSet<Vec<u8>> =
            (0..200).map(|seed| fs.power_loss(PowerLoss::Random, seed).contents(&path("a")).unwrap()).collect();
        assert!(outcomes.contains(&Vec::new()), "nothing may be left");
        assert!(outcomes.iter().any(|left| left.ends_with(&[2]) && left[0] == 0), "the second without the first");
        assert!(outcomes.iter().any(|left| left.contains(&1) && left[..2048.min(left.len())].contains(&0)), "torn");
        let again = fs.power_loss(PowerLoss::Random, 7).contents(&path("a")).unwrap();
        assert_eq!(again, fs.power_loss(PowerLoss::Random, 7).contents(&path("a")).unwrap());
    }

    #[test]
    fn a_failed_sync_forgets_what_it_should_have_written() {
        let fs = MemFs::new();
        let file = fs.create(&path("a")).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        file.write_at(0, b"x").unwrap();
        fs.fail(Call::Sync, 0, io::ErrorKind::StorageFull);
        assert_eq!(file.sync_data().unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!((fs.failures(), fs.failed()), (1, vec![path("a")]));
        file.sync_data().unwrap();
        assert_eq!(fs.contents(&path("a")).unwrap(), b"x");
        assert_eq!(fs.power_loss(PowerLoss::All, 0).contents(&path("a")).unwrap(), b"");
    }

    #[test]
    fn after_the_crash_point_everything_fails() {
        let fs = MemFs::new();
        fs.crash_at(1);
        let file = fs.create(&path("a")).unwrap();
        assert!(!fs.crashed());
        assert!(file.write_at(0, b"x").is_err());
        assert!(fs.crashed());
        assert!(file.len().is_err() && fs.list(Path::new("/d")).is_err());
    }

    #[test]
    fn a_lock_has_one_holder() {
        let fs = MemFs::new();
        let held = fs.lock(&path("LOCK")).unwrap();
        assert_eq!(fs.lock(&path("LOCK")).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        fs.lock(&path("LOCK")).unwrap();
    }
}
