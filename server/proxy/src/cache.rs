//! Answers to reads, kept for serializable ones that ask the same again.
//!
//! An answer goes when a write to one of its keys passes, or an event of one. A member that lags may answer an old
//! state after that: so the last changes are remembered with their revisions, and an answer from before one of them is
//! not kept.

use bytes::Bytes;
use ferretcd_proto::etcdserverpb::{RangeRequest, RangeResponse};
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Most answers that are kept (etcd's number).
const ENTRIES_MAX: usize = 2048;

/// Most bytes of all answers: etcd has no such bound, and a few large ranges would fill its memory.
const BYTES_MAX: usize = 64 << 20;

/// Largest answer that is kept: sixty-four of them fill the cache.
const ENTRY_BYTES_MAX: usize = BYTES_MAX / 64;

/// Changes that are remembered: far more than happen while one read is on its way, and few enough to look through.
const CHANGES_MAX: usize = 256;

/// The cache. Its keys are the members', with the namespace.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Bytes, Entry>,
    /// Entries by their last use.
    by_use: BTreeMap<u64, Bytes>,
    uses: u64,
    bytes: usize,
    /// Answers about the present by their key, if they are about one, and all others.
    points: HashMap<Bytes, HashSet<Bytes>>,
    spans: HashSet<Bytes>,
    /// The last changes with their revisions, the newest last.
    changes: VecDeque<(Span, i64)>,
    /// The highest revision of the changes that are no longer remembered.
    floor: i64,
    /// The highest revision that is known to be compacted.
    compacted: i64,
}

#[derive(Debug)]
struct Entry {
    span: Span,
    /// It is about the present, which changes.
    present: bool,
    answer: RangeResponse,
    bytes: usize,
    used: u64,
}

/// A key, or all from `key` up to `end`, which is "\0" for no end.
#[derive(Clone, Debug)]
struct Span {
    key: Bytes,
    end: Bytes,
}

impl Span {
    fn is_point(&self) -> bool {
        self.end.is_empty()
    }

    /// Whether everything in it is before `key`.
    fn is_before(&self, key: &[u8]) -> bool {
        match self.end.as_ref() {
            [] => self.key.as_ref() < key,
            [0] => false,
            end => end <= key,
        }
    }

    fn meets(&self, other: &Span) -> bool {
        !self.is_before(&other.key) && !other.is_before(&self.key)
    }
}

/// What the cache says.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// This was answered.
    Answer(RangeResponse),
    /// The revision is compacted.
    Compacted,
    /// Nothing.
    Nothing,
}

/// What an answer is kept under: the request as a serializable one.
fn name(request: &RangeRequest) -> Bytes {
    if request.serializable {
        return request.encode_to_vec().into();
    }
    RangeRequest { serializable: true, ..request.clone() }.encode_to_vec().into()
}

impl Cache {
    /// Answers that are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Looks the answer to a serializable read up.
    pub fn find(&mut self, request: &RangeRequest) -> Found {
        let name = name(request);
        if request.revision > 0 && request.revision < self.compacted {
            self.remove(&name);
            return Found::Compacted;
        }
        let Some(entry) = self.entries.get_mut(&name) else { return Found::Nothing };
        self.by_use.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.by_use.insert(self.uses, name);
        Found::Answer(entry.answer.clone())
    }

    /// Keeps an answer, unless it is too large or from before a change that passed.
    pub fn keep(&mut self, request: &RangeRequest, answer: &RangeResponse) {
        let present = request.revision <= 0;
        let revision = answer.header.map_or(0, |h| h.revision);
        let span = Span { key: request.key.clone(), end: request.range_end.clone() };
        let missed = |(changed, at): &(Span, i64)| *at > revision && changed.meets(&span);
        if present && (revision < self.floor || self.changes.iter().any(missed)) {
            return;
        }
        let name = name(request);
        let bytes = answer.encoded_len() + 2 * name.len();
        if bytes > ENTRY_BYTES_MAX || (!present && request.revision <= self.compacted) {
            return;
        }
        self.remove(&name);
        self.uses += 1;
        self.by_use.insert(self.uses, name.clone());
        self.bytes += bytes;
        if present && span.is_point() {
            self.points.entry(span.key.clone()).or_default().insert(name.clone());
        } else if present {
            self.spans.insert(name.clone());
        }
        self.entries.insert(name, Entry { span, present, answer: answer.clone(), bytes, used: self.uses });
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, name: &Bytes) {
        let Some(entry) = self.entries.remove(name) else { return };
        self.by_use.remove(&entry.used);
        self.bytes -= entry.bytes;
        if !entry.present {
            return;
        }
        if !entry.span.is_point() {
            self.spans.remove(name);
        } else if let Some(names) = self.points.get_mut(&entry.span.key) {
            names.remove(name);
            if names.is_empty() {
                self.points.remove(&entry.span.key);
            }
        }
    }

    /// A key changed, or may change, or all of a range. With the revision of the change answers from before it are not
    /// kept either.
    pub fn changed(&mut self, key: &Bytes, end: &Bytes, revision: Option<i64>) {
        let span = Span { key: key.clone(), end: end.clone() };
        let mut met: Vec<Bytes> = self
            .spans
            .iter()
            .filter(|name| self.entries.get(*name).is_some_and(|e| e.span.meets(&span)))
            .cloned()
            .collect();
        if span.is_point() {
            met.extend(self.points.get(key).into_iter().flatten().cloned());
        } else {
            let points =
                self.points.iter().filter(|(key, _)| key.as_ref() >= span.key.as_ref() && !span.is_before(key));
            met.extend(points.flat_map(|(_, names)| names.iter().cloned()));
        }
        for name in met {
            self.remove(&name);
        }
        if let Some(revision) = revision {
            self.changes.push_back((span, revision));
            if self.changes.len() > CHANGES_MAX
                && let Some((_, forgotten)) = self.changes.pop_front()
            {
                self.floor = self.floor.max(forgotten);
            }
        }
    }

    /// Nothing that is kept holds any more: who may read what has changed, or keys went that nobody named.
    pub fn clear(&mut self, revision: Option<i64>) {
        self.changed(&Bytes::new(), &Bytes::from_static(b"\0"), revision);
    }

    /// A compaction passed.
    pub fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_proto::etcdserverpb::ResponseHeader;

    fn get(key: &'static str, end: &'static str) -> RangeRequest {
        RangeRequest { key: key.into(), range_end: end.into(), serializable: true, ..Default::default() }
    }
    fn at(revision: i64) -> RangeResponse {
        let header = ResponseHeader { revision, ..ResponseHeader::default() };
        RangeResponse { header: Some(header), count: revision, ..RangeResponse::default() }
    }
    fn has(cache: &mut Cache, request: &RangeRequest) -> bool {
        matches!(cache.find(request), Found::Answer(_))
    }

    #[test]
    fn a_linearizable_answer_serves_serializable_reads() {
        let mut cache = Cache::default();
        cache.keep(&RangeRequest { serializable: false, ..get("a", "") }, &at(5));
        assert_eq!(cache.find(&get("a", "")), Found::Answer(at(5)));
        assert_eq!(cache.find(&get("b", "")), Found::Nothing);
        assert_eq!(cache.find(&RangeRequest { limit: 1, ..get("a", "") }), Found::Nothing);
    }

    #[test]
    fn a_change_removes_every_answer_that_it_touches_and_no_other() {
        for (changed, gone) in [
            (("b", ""), ["b", "a-c", "a-"].as_slice()),
            (("c", ""), &["a-"]),
            (("a", "b"), &["a", "a-c", "a-"]),
            (("b", "\0"), &["b", "a-c", "a-"]),
            (("", "\0"), &["a", "b", "a-c", "a-"]),
        ] {
            let mut cache = Cache::default();
            let all = [("a", get("a", "")), ("b", get("b", "")), ("a-c", get("a", "c")), ("a-", get("a", "\0"))];
            all.iter().for_each(|(_, request)| cache.keep(request, &at(5)));
            cache.changed(&changed.0.into(), &changed.1.into(), Some(6));
            let went: Vec<&str> = all.iter().filter(|(_, r)| !has(&mut cache, r)).map(|(name, _)| *name).collect();
            assert_eq!(went, gone, "{changed:?}");
        }
    }

    #[test]
    fn an_answer_from_before_a_change_is_not_kept() {
        let mut cache = Cache::default();
        cache.changed(&"a".into(), &Bytes::new(), Some(6));
        cache.keep(&get("a", ""), &at(5));
        assert!(!has(&mut cache, &get("a", "")), "a member that lags has brought the old value back");
        cache.keep(&get("b", ""), &at(5));
        cache.keep(&get("a", ""), &at(6));
        assert!(has(&mut cache, &get("b", "")) && has(&mut cache, &get("a", "")));

        for _ in 0..=CHANGES_MAX {
            cache.changed(&"x".into(), &Bytes::new(), Some(7));
        }
        cache.keep(&get("c", ""), &at(6));
        assert!(!has(&mut cache, &get("c", "")), "what is forgotten counts for all keys");
        cache.keep(&get("c", ""), &at(7));
        assert!(has(&mut cache, &get("c", "")));
    }

    #[test]
    fn the_past_does_not_change_but_is_compacted() {
        let mut cache = Cache::default();
        let past = RangeRequest { revision: 3, ..get("a", "") };
        cache.keep(&past, &at(5));
        cache.changed(&"a".into(), &Bytes::new(), Some(6));
        assert!(has(&mut cache, &past));
        cache.compact(3);
        assert!(has(&mut cache, &past));
        cache.compact(4);
        assert_eq!(cache.find(&past), Found::Compacted);
        cache.keep(&past, &at(5));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn the_least_used_answer_goes_first_and_a_huge_one_never_comes() {
        let mut cache = Cache::default();
        let key = |n: usize| RangeRequest { key: n.to_string().into(), serializable: true, ..Default::default() };
        (0..ENTRIES_MAX).for_each(|n| cache.keep(&key(n), &at(5)));
        assert!(has(&mut cache, &key(0)));
        cache.keep(&key(ENTRIES_MAX), &at(5));
        assert_eq!(cache.len(), ENTRIES_MAX);
        assert!(has(&mut cache, &key(0)) && !has(&mut cache, &key(1)));

        let kv = ferretcd_proto::mvccpb::KeyValue { value: vec![0; ENTRY_BYTES_MAX].into(), ..Default::default() };
        cache.keep(&get("huge", ""), &RangeResponse { kvs: vec![kv], ..at(5) });
        assert!(!has(&mut cache, &get("huge", "")));
        cache.clear(None);
        assert_eq!((cache.len(), cache.bytes, cache.by_use.len(), cache.points.len()), (0, 0, 0, 0));
    }
}
