//! Synced watchers by what they watch, so that an event is not held against each of them: tens of thousands of agents may watch
//! a few prefixes, or each one of its own.

use crate::watch::hub::Target;
use bytes::Bytes;
use ferretcd_types::KeyRange;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The registry. A watcher is in it once, under its range.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Watchers of one key, by key.
    keys: HashMap<Bytes, Vec<Target>>,
    /// Watchers of all keys that begin so, which most ranges are. An event's key is looked for with each length that there is:
    /// a handful, where there are any.
    prefixes: HashMap<Bytes, Vec<Target>>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
    /// Watchers of other ranges. Each of these is held against each event.
    others: HashMap<KeyRange, Vec<Target>>,
    watchers: usize,
}

/// How a range is looked for.
enum Form {
    Key,
    Prefix,
    Other,
}

fn form(range: &KeyRange) -> Form {
    if range.is_single() {
        return Form::Key;
    }
    match next_prefix(&range.start) {
        Some(next) if next == range.end => Form::Prefix,
        _ => Form::Other,
    }
}

/// The first key behind all that begin so, if there is one: what clients give as the end of a prefix's range.
fn next_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next)
}

impl Watched {
    /// Watchers in all.
    pub fn len(&self) -> usize {
        self.watchers
    }

    pub fn clear(&mut self) {
        *self = Watched::default();
    }

    /// A watcher that is not in it.
    pub fn insert(&mut self, target: Target) {
        let range = &target.range;
        let targets = match form(range) {
            Form::Key => self.keys.entry(range.start.clone()).or_default(),
            Form::Other => self.others.entry(range.clone()).or_default(),
            Form::Prefix => {
                let targets = self.prefixes.entry(range.start.clone()).or_default();
                if targets.is_empty() {
                    *self.lengths.entry(range.start.len()).or_default() += 1;
                }
                targets
            }
        };
        targets.push(target);
        self.watchers += 1;
    }

    /// Without the watchers of this range that are such; what is not there is no error.
    pub fn remove(&mut self, range: &KeyRange, is_such: impl Fn(&Target) -> bool) {
        let without = |targets: &mut Vec<Target>| {
            let before = targets.len();
            targets.retain(|target| !is_such(target));
            (before - targets.len(), targets.is_empty())
        };
        let form = form(range);
        let looked = match form {
            Form::Key => self.keys.get_mut(&range.start).map(without),
            Form::Prefix => self.prefixes.get_mut(&range.start).map(without),
            Form::Other => self.others.get_mut(range).map(without),
        };
        let Some((gone, is_empty)) = looked else { return };
        self.watchers -= gone;
        if !is_empty {
            return;
        }
        match form {
            Form::Key => drop(self.keys.remove(&range.start)),
            Form::Other => drop(self.others.remove(range)),
            Form::Prefix => {
                self.prefixes.remove(&range.start);
                if let Some(prefixes) = self.lengths.get_mut(&range.start.len()) {
                    *prefixes -= 1;
                    if *prefixes == 0 {
                        self.lengths.remove(&range.start.len());
                    }
                }
            }
        }
    }

    /// Without the watchers of one stream, which watch these ranges: each range is gone through once, however many they are.
    pub fn remove_stream<'a>(&mut self, stream: u64, ranges: impl Iterator<Item = &'a KeyRange>) {
        let ranges: BTreeSet<(&[u8], &[u8])> = ranges.map(|range| (&*range.start, &*range.end)).collect();
        for (start, end) in ranges {
            let range = KeyRange { start: Bytes::copy_from_slice(start), end: Bytes::copy_from_slice(end) };
            self.remove(&range, |target| target.stream() == stream);
        }
    }

    /// Who watches a key.
    pub fn of<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Target> {
        let prefixes = self.lengths.keys().filter_map(|length| self.prefixes.get(key.get(..*length)?));
        let others = self.others.iter().filter(|(range, _)| range.contains(key)).map(|(_, targets)| targets);
        self.keys.get(key).into_iter().chain(prefixes).chain(others).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &[u8], end: &[u8]) -> KeyRange {
        KeyRange { start: Bytes::copy_from_slice(start), end: Bytes::copy_from_slice(end) }
    }

    /// All keys of up to three letters, and what lies at both ends of them.
    fn keys() -> Vec<Vec<u8>> {
        const LETTERS: [u8; 4] = [0, b'a', b'b', u8::MAX];
        let longer = |keys: &Vec<Vec<u8>>| -> Vec<Vec<u8>> {
            keys.iter().flat_map(|key| LETTERS.map(|letter| [&key[..], &[letter]].concat())).collect()
        };
        let one = longer(&vec![Vec::new()]);
        let two = longer(&one);
        let three = longer(&two);
        [one, two, three].concat()
    }

    #[test]
    fn a_key_is_told_to_whose_range_has_it_and_to_nobody_else() {
        let keys = keys();
        let ends = keys.iter().map(|key| &key[..]).chain([&b""[..]]);
        let ranges: Vec<KeyRange> = ends.flat_map(|end| keys.iter().map(move |start| range(start, end))).collect();
        let mut watched = Watched::default();
        for (id, range) in ranges.iter().enumerate() {
            watched.insert(Target::quiet(1, id as i64, range.clone()));
        }
        assert_eq!(watched.len(), ranges.len());
        let told = |watched: &Watched, key: &[u8]| -> BTreeSet<usize> {
            let ids: Vec<usize> = watched.of(key).map(|target| target.id as usize).collect();
            let once: BTreeSet<usize> = ids.iter().copied().collect();
            assert_eq!(ids.len(), once.len(), "nobody twice");
            once
        };
        for key in &keys {
            let wanted = (0..ranges.len()).filter(|id| ranges[*id].contains(key)).collect();
            assert_eq!(told(&watched, key), wanted, "{key:?}");
        }
        // Every other one goes.
        for (id, range) in ranges.iter().enumerate().filter(|(id, _)| id % 2 == 0) {
            watched.remove(range, |target| target.id == id as i64);
        }
        for key in keys.iter().step_by(7) {
            let wanted = (0..ranges.len()).filter(|id| id % 2 == 1 && ranges[*id].contains(key)).collect();
            assert_eq!(told(&watched, key), wanted, "{key:?}");
        }
        watched.remove_stream(1, ranges.iter());
        assert_eq!(watched.len(), 0);
        assert!(watched.keys.is_empty() && watched.prefixes.is_empty() && watched.others.is_empty());
        assert!(watched.lengths.is_empty());
    }

    #[test]
    fn who_watches_the_same_goes_with_its_stream_alone() {
        let mut watched = Watched::default();
        let all = range(b"k/", b"k0");
        for (stream, id) in [(1, 0), (2, 0), (1, 1)] {
            watched.insert(Target::quiet(stream, id, all.clone()));
        }
        watched.remove_stream(1, [&all, &all].into_iter());
        let left: Vec<_> = watched.of(b"k/x").map(|target| (target.stream(), target.id)).collect();
        assert_eq!((left, watched.len()), (vec![(2, 0)], 1));
        watched.remove(&range(b"other", b""), |_| true);
        assert_eq!(watched.len(), 1);
    }
}
