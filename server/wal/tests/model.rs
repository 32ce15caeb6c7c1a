//! The log against a naive model of it: random requests, restarts, and a power loss at every call that changes the
//! disk. Everything is drawn from seeds, and the log runs without threads, so that a failure can be repeated.

// The helpers of a test fail it by panicking; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ferretcd_wal::fs::Fs;
use ferretcd_wal::fs::mem::{Call, MemFs, PowerLoss};
use ferretcd_wal::{Entry, Identity, LogPos, Options, Recovered, Vote, Wal, WalError};

const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2 };

/// SplitMix64.
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

/// One record, as the model understands it.
#[derive(Clone, Debug)]
enum Change {
    Entry(Entry),
    Vote(Vote),
    Committed(LogPos),
    Truncate(Option<u64>),
    Purge(LogPos),
}

/// One request.
#[derive(Clone, Debug)]
enum Request {
    Append(Vec<Entry>),
    Other(Change),
}

impl Request {
    fn changes(&self) -> Vec<Change> {
        match self {
            Request::Append(entries) => entries.iter().cloned().map(Change::Entry).collect(),
            Request::Other(change) => vec![change.clone()],
        }
    }
}

/// The naive log.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogPos>,
    purged: Option<LogPos>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Entry(entry) => {
                self.entries.insert(entry.index, entry.clone());
            }
            Change::Vote(vote) => self.vote = Some(*vote),
            Change::Committed(pos) => self.committed = Some(*pos),
            Change::Truncate(after) => self.entries.retain(|index, _| after.is_some_and(|after| *index <= after)),
            Change::Purge(upto) => {
                self.entries.retain(|index, _| *index > upto.index);
                self.purged = self.purged.max(Some(*upto));
            }
        }
    }

    fn last(&self) -> Option<LogPos> {
        let last = self.entries.values().next_back();
        last.map(|entry| LogPos { term: entry.term, index: entry.index }).or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn first(&self) -> u64 {
        self.entries.keys().next().copied().unwrap_or(self.next())
    }

    fn recovered(&self) -> Recovered {
        Recovered {
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
            last: self.last(),
            first_index: self.first(),
            end_index: self.next(),
        }
    }

    /// A request that a raft node could make now. Terms never go down, so that positions compare as indexes do.
    fn request(&self, chance: &mut Chance) -> Request {
        let term = self.last().map_or(1, |last| last.term) + u64::from(chance.below(6) == 0);
        let (first, next) = (self.first(), self.next());
        match chance.below(20) {
            0..=9 => {
                let count = 1 + chance.below(4);
                let sizes = [0, 1, 7, 8, 100, 100, 100, 700, 3900];
                let entry = |index| {
                    let size = sizes[chance.below(sizes.len() as u64) as usize];
                    let payload: Vec<u8> = (0..size).map(|_| chance.below(256) as u8).collect();
                    Entry { term, index, payload: Bytes::from(payload) }
                };
                Request::Append((next..next + count).map(entry).collect())
            }
            10..=11 => {
                let vote = Vote { term: term + 1, node: chance.below(3), committed: chance.below(2) == 0 };
                Request::Other(Change::Vote(vote))
            }
            12..=14 => Request::Other(Change::Committed(LogPos { term, index: next })),
            15..=16 if next > first => {
                let after = first + chance.below(next - first + 1);
                Request::Other(Change::Truncate(after.checked_sub(1)))
            }
            17..=18 if next > first => {
                let index = first + chance.below(next - first);
                Request::Other(Change::Purge(LogPos { term: self.entries[&index].term, index }))
            }
            19 if chance.below(4) == 0 => {
                Request::Other(Change::Purge(LogPos { term, index: next + chance.below(50) }))
            }
            _ => Request::Append(vec![Entry { term, index: next, payload: Bytes::from_static(b"one more") }]),
        }
    }
}

fn options(chance: &mut Chance) -> Options {
    let cache_bytes = [0, 1000, 1 << 20][chance.below(3) as usize];
    Options { segment_bytes: 4096, cache_bytes, ..Options::default() }
}

fn open(fs: &MemFs, chance: &mut Chance) -> Result<(Wal, Recovered), WalError> {
    Wal::open_inline(Arc::new(fs.clone()), Path::new("/wal"), options(chance), IDENTITY)
}

/// Makes the request and returns what its callback said.
fn make(wal: &Wal, request: &Request) -> io::Result<()> {
    let answer = Arc::new(Mutex::new(None));
    let done = Box::new({
        let answer = answer.clone();
        move |result| assert!(answer.lock().unwrap().replace(result).is_none(), "answered twice")
    });
    match request.clone() {
        Request::Append(entries) => wal.append(entries, done),
        Request::Other(Change::Vote(vote)) => wal.save_vote(vote, done),
        Request::Other(Change::Truncate(after)) => wal.truncate_after(after, done),
        Request::Other(Change::Purge(upto)) => wal.purge(upto, done),
        Request::Other(Change::Committed(pos)) => return wal.save_committed(pos),
        Request::Other(Change::Entry(entry)) => wal.append(vec![entry], done),
    }
    answer.lock().unwrap().take().expect("an inline log answers before it returns")
}

fn check(wal: &Wal, model: &Model) {
    let Recovered { vote, committed, purged, last, first_index, end_index } = model.recovered();
    assert_eq!((wal.vote(), wal.committed(), wal.purged(), wal.last()), (vote, committed, purged, last));
    assert_eq!((wal.first_index(), wal.end_index()), (first_index, end_index));
    let entries = wal.read(first_index, u64::MAX, usize::MAX).unwrap();
    assert!(entries.iter().eq(model.entries.values()), "the entries differ");
}

/// The states that a log may be found in: those since the last answer, the last first.
struct History {
    states: Vec<Model>,
    answered: usize,
}

impl History {
    fn from(state: Model) -> Self {
        History { states: vec![state], answered: 0 }
    }

    fn last(&self) -> &Model {
        self.states.last().unwrap()
    }

    /// Makes up to `count` random requests, until one fails.
    fn go_on(&mut self, wal: &Wal, chance: &mut Chance, count: u64) {
        for _ in 0..count {
            let request = self.last().request(chance);
            for change in request.changes() {
                let mut next = self.last().clone();
                next.apply(&change);
                self.states.push(next);
            }
            match make(wal, &request) {
                // A committed position rides with the next request, and promises nothing itself.
                Ok(()) if matches!(request, Request::Other(Change::Committed(_))) => {}
                Ok(()) => self.answered = self.states.len() - 1,
                Err(_) => return,
            }
        }
    }

    /// Whether a log was found in one of the states that are allowed.
    fn allows(&self, wal: &Wal, recovered: &Recovered) -> bool {
        let entries = wal.read(recovered.first_index, u64::MAX, usize::MAX).unwrap();
        self.states[self.answered..]
            .iter()
            .any(|model| model.recovered() == *recovered && entries.iter().eq(model.entries.values()))
    }

    /// The state that a log was found in, if it is one of those that are allowed.
    fn find(&self, wal: &Wal, recovered: &Recovered, story: &str) -> Model {
        let allowed = &self.states[self.answered..];
        let entries = wal.read(recovered.first_index, u64::MAX, usize::MAX).unwrap();
        let found = allowed
            .iter()
            .find(|model| model.recovered() == *recovered && entries.iter().eq(model.entries.values()))
            .unwrap_or_else(|| {
                let states: Vec<_> = allowed.iter().map(Model::recovered).collect();
                panic!("{story}: found {recovered:?}, which is none of {states:#?}")
            });
        check(wal, found);
        found.clone()
    }
}

#[test]
fn random_requests_and_restarts_agree_with_the_model() {
    for seed in 0..60 {
        let mut chance = Chance(seed);
        let mut fs = MemFs::new();
        let mut model = Model::default();
        for life in 0..8 {
            let (wal, recovered) = open(&fs, &mut chance).unwrap();
            assert_eq!(recovered, model.recovered(), "seed {seed}, life {life}");
            for _ in 0..chance.below(40) {
                let request = model.request(&mut chance);
                make(&wal, &request).unwrap();
                request.changes().iter().for_each(|change| model.apply(change));
                if chance.below(4) == 0 {
                    check(&wal, &model);
                }
            }
            check(&wal, &model);
            match chance.below(3) {
                // kill -9: what was written is there, synced or not.
                0 => fs = fs.fork(),
                1 => wal.close().unwrap(),
                _ => {
                    wal.close().unwrap();
                    fs = fs.power_loss(PowerLoss::All, 0);
                }
            }
        }
    }
}

/// What may happen to the disk at the end of a life. None: the process is killed and the page cache survives.
const ENDS: [(Option<PowerLoss>, u64); 7] = [
    (None, 0),
    (Some(PowerLoss::All), 0),
    (Some(PowerLoss::Suffix), 1),
    (Some(PowerLoss::Suffix), 2),
    (Some(PowerLoss::Random), 3),
    (Some(PowerLoss::Random), 4),
    (Some(PowerLoss::Random), 5),
];

fn end(fs: &MemFs, (loss, seed): (Option<PowerLoss>, u64)) -> MemFs {
    loss.map_or_else(|| fs.fork(), |loss| fs.power_loss(loss, seed))
}

#[test]
fn nothing_answered_is_lost_and_nothing_else_appears_whenever_the_power_goes() {
    let mut lives = 0;
    for seed in 0..4 {
        for crash_at in 0.. {
            let fs = MemFs::new();
            fs.crash_at(crash_at);
            let mut chance = Chance(seed);
            let mut history = History::from(Model::default());
            if let Ok((wal, _)) = open(&fs, &mut chance) {
                history.go_on(&wal, &mut chance, 60);
            }
            for how in ENDS {
                // A second and a third life, each of which ends at a point of its own, be it during recovery.
                let story = format!("seed {seed}, crash at {crash_at}, {how:?}");
                let mut chance = Chance(seed * 1_000_000 + crash_at * 10 + how.1);
                let mut fs = end(&fs, how);
                let mut history = History { states: history.states.clone(), answered: history.answered };
                for life in 0..3 {
                    if life < 2 {
                        fs.crash_at(chance.below(60));
                    }
                    match open(&fs, &mut chance) {
                        Ok((wal, recovered)) => {
                            // The crash may come while this reads.
                            if !fs.crashed() {
                                history = History::from(history.find(&wal, &recovered, &story));
                                history.go_on(&wal, &mut chance, 15);
                            }
                        }
                        Err(_) if fs.crashed() => {}
                        Err(error) => panic!("{story}: {error}"),
                    }
                    let loss = ENDS[chance.below(ENDS.len() as u64) as usize].0;
                    fs = end(&fs, (loss, chance.below(1000)));
                    lives += 1;
                }
            }
            if !fs.crashed() {
                break;
            }
        }
    }
    assert!(lives > 5000, "{lives} lives are too few to mean much");
}

#[test]
fn a_failed_call_anywhere_loses_nothing_that_was_answered() {
    for call in [Call::Create, Call::Write, Call::Sync, Call::Rename, Call::Remove, Call::SyncDir] {
        for number in 0..60 {
            let fs = MemFs::new();
            fs.fail(call, number, io::ErrorKind::StorageFull);
            let mut chance = Chance(number);
            let mut history = History::from(Model::default());
            if let Ok((wal, _)) = open(&fs, &mut chance) {
                history.go_on(&wal, &mut chance, 80);
                let fs = fs.fork();
                let story = format!("{call:?} {number} failed");
                let (wal, recovered) = open(&fs, &mut chance).unwrap_or_else(|error| panic!("{story}: {error}"));
                let found = history.find(&wal, &recovered, &story);
                // The process that started after the failure has promised what it found.
                let fs = fs.power_loss(PowerLoss::All, 0);
                let (wal, recovered) = open(&fs, &mut chance).unwrap_or_else(|error| panic!("{story}: {error}"));
                History::from(found).find(&wal, &recovered, &story);
            }
        }
    }
}

/// A flipped bit anywhere, after whatever end of a life: the log is refused, or nothing that was answered is missing.
#[test]
fn a_flipped_bit_takes_nothing_that_was_answered() {
    let (mut opened, mut refused) = (0, 0);
    for seed in 0..150 {
        let mut chance = Chance(seed);
        let fs = MemFs::new();
        fs.crash_at(20 + chance.below(120));
        let mut history = History::from(Model::default());
        let Ok((wal, _)) = open(&fs, &mut chance) else { continue };
        history.go_on(&wal, &mut chance, 60);
        for how in ENDS {
            let fs = end(&fs, how);
            let mut names: Vec<String> = fs.list(Path::new("/wal")).unwrap();
            names.retain(|name| name.ends_with(".wal"));
            for name in names {
                let path = Path::new("/wal").join(name);
                let whole = fs.contents(&path).unwrap();
                let used = whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
                for _ in 0..12 {
                    let rotten = fs.fork();
                    let mut bytes = whole.clone();
                    // Mostly among the last records.
                    let back = [used, 1200, 200][chance.below(3) as usize].min(used);
                    let at = (used - 1 - chance.below(back)) as usize;
                    bytes[at] ^= 1 << chance.below(8);
                    rotten.set_contents(&path, bytes);
                    let story = format!("seed {seed}, {how:?}, a bit of byte {at} of {}", path.display());
                    match open(&rotten, &mut chance) {
                        Ok((wal, recovered)) => {
                            assert!(history.allows(&wal, &recovered), "{story}: found {recovered:?}");
                            opened += 1;
                        }
                        Err(error @ WalError::Io { .. }) => panic!("{story}: {error}"),
                        Err(_) => refused += 1,
                    }
                }
            }
        }
    }
    assert!(opened > 0 && refused > 1000, "{opened} were opened and {refused} refused");
}
