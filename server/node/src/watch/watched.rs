//! Synced watchers by what they watch, so that an event is not held against each of them: tens of thousands of agents may watch
//! a few prefixes, or each one of its own.

use crate::watch::hub::Target;
use bytes::Bytes;
use ferretcd_types::KeyRange;
use std::collections::BTreeMap;

/// The registry. A watcher is in it once, under its range. Whoever comes or goes is found among all the others at once: thousands
/// that watch the same fall behind together, or lose their connection.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Watchers of one key.
    keys: BTreeMap<Seat, Target>,
    /// Watchers of all keys that begin so, which most ranges are.
    prefixes: BTreeMap<Seat, Target>,
    /// How many of them there are of each length. An event's key is looked for with each: a handful, where there are any.
    lengths: BTreeMap<usize, usize>,
    /// Watchers of other ranges, by start and end. Each of these ranges is held against each event.
    others: BTreeMap<(Bytes, Bytes), BTreeMap<(u64, i64), Target>>,
    watchers: usize,
}

/// A key or prefix, the stream, and the watcher's ID there.
type Seat = (Bytes, u64, i64);

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
        let KeyRange { start, end } = target.range.clone();
        let (stream, id) = (target.stream(), target.id);
        let length = start.len();
        let before = match form(&target.range) {
            Form::Key => self.keys.insert((start, stream, id), target),
            Form::Other => self.others.entry((start, end)).or_default().insert((stream, id), target),
            Form::Prefix => {
                *self.lengths.entry(length).or_default() += 1;
                self.prefixes.insert((start, stream, id), target)
            }
        };
        debug_assert!(before.is_none(), "it is there already");
        self.watchers += 1;
    }

    /// Without a watcher of this range; one that is not there is no error.
    pub fn remove(&mut self, range: &KeyRange, stream: u64, id: i64) {
        let KeyRange { start, end } = range.clone();
        let length = start.len();
        let gone = match form(range) {
            Form::Key => self.keys.remove(&(start, stream, id)),
            Form::Prefix => {
                let gone = self.prefixes.remove(&(start, stream, id));
                if gone.is_some() {
                    uncount(&mut self.lengths, length);
                }
                gone
            }
            Form::Other => {
                let range = (start, end);
                let gone = self.others.get_mut(&range).and_then(|targets| targets.remove(&(stream, id)));
                if self.others.get(&range).is_some_and(BTreeMap::is_empty) {
                    self.others.remove(&range);
                }
                gone
            }
        };
        self.watchers -= usize::from(gone.is_some());
    }

    /// Who watches a key.
    pub fn of<'a>(&'a self, key: &'a Bytes) -> impl Iterator<Item = &'a Target> {
        let at = |seats: &'a BTreeMap<Seat, Target>, start: Bytes| {
            seats.range((start.clone(), 0, i64::MIN)..=(start, u64::MAX, i64::MAX)).map(|(_, target)| target)
        };
        let lengths = self.lengths.keys().take_while(|length| **length <= key.len());
        let prefixes = lengths.flat_map(move |length| at(&self.prefixes, key.slice(..*length)));
        let has = |(start, end): &(Bytes, Bytes)| KeyRange { start: start.clone(), end: end.clone() }.contains(key);
        let others = self.others.iter().filter(move |(range, _)| has(range)).flat_map(|(_, targets)| targets.values());
        at(&self.keys, key.clone()).chain(prefixes).chain(others)
    }
}

fn uncount(lengths: &mut BTreeMap<usize, usize>, length: usize) {
    if let Some(count) = lengths.get_mut(&length) {
        *count -= 1;
        if *count == 0 {
            lengths.remove(&length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

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
            let ids: Vec<usize> = watched.of(&Bytes::copy_from_slice(key)).map(|target| target.id as usize).collect();
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
            watched.remove(range, 1, id as i64);
        }
        for key in keys.iter().step_by(7) {
            let wanted = (0..ranges.len()).filter(|id| id % 2 == 1 && ranges[*id].contains(key)).collect();
            assert_eq!(told(&watched, key), wanted, "{key:?}");
        }
        for (id, range) in ranges.iter().enumerate() {
            // Who is not there any more, too.
            watched.remove(range, 1, id as i64);
        }
        assert_eq!(watched.len(), 0);
        assert!(watched.keys.is_empty() && watched.prefixes.is_empty() && watched.others.is_empty());
        assert!(watched.lengths.is_empty());
    }

    /// One event may be too much for all of them at once, under the lock that applying waits for.
    #[test]
    fn of_a_hundred_thousand_who_watch_the_same_each_is_found_at_once() {
        let mut watched = Watched::default();
        let same = [range(b"k/", b"k0"), range(b"k", b""), range(b"k", b"m")];
        for stream in 0..100_000 {
            watched.insert(Target::quiet(stream, 0, same[stream as usize % 3].clone()));
        }
        for stream in 0..100_000 {
            watched.remove(&same[stream as usize % 3], stream, 0);
            if stream == 0 {
                assert_eq!(watched.of(&Bytes::from_static(b"k/x")).count(), 2 * 33_333);
            }
        }
        assert_eq!(watched.len(), 0);
    }
}
