//! etcd's store as a value: what each request does to it and answers.

use std::collections::{BTreeMap, BTreeSet};

/// A key with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kv {
    /// Its value.
    pub value: String,
    /// The revision that created it.
    pub created: i64,
    /// The revision that changed it last.
    pub modified: i64,
    /// How often it was written since it was created.
    pub version: i64,
    /// The lease that it hangs on; 0 for none.
    pub lease: i64,
}

/// One key, or the keys from `start` up to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first key.
    pub start: String,
    /// The key after the last; none for a single key.
    pub end: Option<String>,
}

impl Span {
    /// One key.
    pub fn key(key: &str) -> Self {
        Span { start: key.to_owned(), end: None }
    }

    /// All keys (of text).
    pub fn all() -> Self {
        Span { start: String::new(), end: Some(char::MAX.to_string()) }
    }

    /// Whether a key is in it.
    pub fn has(&self, key: &str) -> bool {
        match &self.end {
            None => key == self.start,
            Some(end) => self.start.as_str() <= key && key < end.as_str(),
        }
    }
}

/// A condition of a transaction; a key that does not exist has version and revisions 0, and no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key has this value.
    Value(String, String),
    /// The key was changed last by this revision.
    Modified(String, i64),
    /// The key has this version.
    Version(String, i64),
}

/// A part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Writes a key.
    Put {
        /// Which.
        key: String,
        /// Its value.
        value: String,
        /// Its lease, or 0.
        lease: i64,
    },
    /// Deletes keys.
    Delete(Span),
    /// Reads keys.
    Range(Span),
}

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A single act. A range is linearizable.
    Do(Act),
    /// A range that may be of any moment of the past, or at a revision.
    Serializable(Span),
    /// A linearizable range at an older revision.
    Past(Span, i64),
    /// A transaction.
    Txn {
        /// All must hold.
        compares: Vec<Compare>,
        /// Done if they do.
        then: Vec<Act>,
        /// Done if they do not.
        otherwise: Vec<Act>,
    },
    /// A lease begins.
    Grant {
        /// Its ID, never used twice in a history.
        lease: i64,
        /// How long it lives without a renewal, in the history's unit of time.
        ttl: u64,
    },
    /// A lease is renewed.
    KeepAlive {
        /// Which.
        lease: i64,
        /// As granted.
        ttl: u64,
    },
    /// A lease ends, and takes its keys with it.
    Revoke {
        /// Which.
        lease: i64,
    },
}

/// What a client was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done; there is no more to say.
    Done,
    /// So many keys were deleted.
    Deleted(i64),
    /// These keys were there.
    Kvs(Vec<(String, Kv)>),
    /// A transaction.
    Txn {
        /// Whether the conditions held.
        succeeded: bool,
        /// The answer of each act.
        answers: Vec<Answer>,
    },
}

impl Answer {
    /// Whether a request with this answer made a revision. Of a revocation nobody can say.
    pub(crate) fn wrote(&self, request: &Request) -> bool {
        match (self, request) {
            (Answer::Done, Request::Do(Act::Put { .. })) => true,
            (Answer::Deleted(n), _) => *n > 0,
            (Answer::Txn { succeeded, answers }, Request::Txn { then, otherwise, .. }) => {
                let acts = if *succeeded { then } else { otherwise };
                acts.iter().zip(answers).any(|(act, answer)| match (act, answer) {
                    (Act::Put { .. }, _) => true,
                    (_, Answer::Deleted(n)) => *n > 0,
                    _ => false,
                })
            }
            _ => false,
        }
    }
}

/// A change of a key, as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision that made it.
    pub revision: i64,
    /// The key.
    pub key: String,
    /// What it is now; none for a deletion.
    pub kv: Option<Kv>,
}

/// The store at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The revision; 1 in an empty store.
    pub revision: i64,
    /// The keys.
    pub kvs: BTreeMap<String, Kv>,
    /// Leases that have ended.
    pub ended: BTreeSet<i64>,
}

impl Default for State {
    fn default() -> Self {
        State { revision: 1, kvs: BTreeMap::new(), ended: BTreeSet::new() }
    }
}

impl State {
    /// What a request leaves, answers, and shows watchers. The revision is one more if it changed anything. None where
    /// etcd would refuse it: a key put on a lease that has ended.
    pub fn apply(&self, request: &Request) -> Option<(State, Answer, Vec<Event>)> {
        let mut next = self.clone();
        let mut events = Vec::new();
        let answer = match request {
            Request::Do(act) => next.act(act, &mut events)?,
            Request::Serializable(span) | Request::Past(span, _) => Answer::Kvs(self.range(span)),
            Request::Txn { compares, then, otherwise } => {
                let succeeded = compares.iter().all(|compare| self.holds(compare));
                let acts = if succeeded { then } else { otherwise };
                let answers = acts.iter().map(|act| next.act(act, &mut events)).collect::<Option<_>>()?;
                Answer::Txn { succeeded, answers }
            }
            Request::Grant { .. } | Request::KeepAlive { .. } => Answer::Done,
            Request::Revoke { lease } => {
                next.ended.insert(*lease);
                next.delete(|_, kv| kv.lease == *lease, &mut events);
                Answer::Done
            }
        };
        if !events.is_empty() {
            next.revision += 1;
        }
        Some((next, answer, events))
    }

    /// Keys in order.
    pub fn range(&self, span: &Span) -> Vec<(String, Kv)> {
        self.kvs.iter().filter(|(key, _)| span.has(key)).map(|(key, kv)| (key.clone(), kv.clone())).collect()
    }

    /// Whether keys hang on a lease.
    pub(crate) fn has_lease(&self, lease: i64) -> bool {
        self.kvs.values().any(|kv| kv.lease == lease)
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = |key: &String| self.kvs.get(key);
        match compare {
            Compare::Value(key, value) => kv(key).is_some_and(|kv| kv.value == *value),
            Compare::Modified(key, revision) => kv(key).map_or(0, |kv| kv.modified) == *revision,
            Compare::Version(key, version) => kv(key).map_or(0, |kv| kv.version) == *version,
        }
    }

    /// The new revision is that of the whole request: it is counted when all acts are done.
    fn act(&mut self, act: &Act, events: &mut Vec<Event>) -> Option<Answer> {
        let revision = self.revision + 1;
        match act {
            Act::Put { key, value, lease } => {
                if *lease != 0 && self.ended.contains(lease) {
                    return None;
                }
                let (created, version) = self.kvs.get(key).map_or((revision, 1), |kv| (kv.created, kv.version + 1));
                let kv = Kv { value: value.clone(), created, modified: revision, version, lease: *lease };
                events.push(Event { revision, key: key.clone(), kv: Some(kv.clone()) });
                self.kvs.insert(key.clone(), kv);
                Some(Answer::Done)
            }
            Act::Delete(span) => Some(Answer::Deleted(self.delete(|key, _| span.has(key), events))),
            Act::Range(span) => Some(Answer::Kvs(self.range(span))),
        }
    }

    fn delete(&mut self, gone: impl Fn(&str, &Kv) -> bool, events: &mut Vec<Event>) -> i64 {
        let revision = self.revision + 1;
        let before = self.kvs.len();
        self.kvs.retain(|key, kv| {
            let gone = gone(key, kv);
            if gone {
                events.push(Event { revision, key: key.clone(), kv: None });
            }
            !gone
        });
        (before - self.kvs.len()) as i64
    }
}
