//! The judge: replays a history by revision.

use crate::model::{Answer, Event, Request, Span, State};
use crate::refusal;
use crate::watch::Seen;
use crate::{Call, History, Outcome};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

/// Revisions that the search may try in all. A history whose gaps need more is beyond what a test should make.
const STEPS_MAX: usize = 2_000_000;

/// What a history must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A revision is made by one write.
    OneWrite,
    /// A revision is made by a write that was asked for.
    Author,
    /// An answer is what the store holds at its revision.
    Answer,
    /// What was answered before a call was made comes before it.
    Clock,
    /// A lease that ended takes its keys with it, and does not come back.
    Lease,
    /// A lease that was granted or renewed lives for its time, unless it is revoked.
    LeaseLost,
    /// A revision that somebody was told of is no future one for who reads later.
    Future,
    /// Watchers are told in order, and once.
    WatchOrder,
    /// Watchers are told of everything.
    WatchGap,
    /// Watchers are told what happened.
    WatchEvent,
    /// Too many calls without an outcome to say.
    Undecided,
}

/// Why there is no order of the calls that etcd's rules allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What was not kept.
    pub rule: Rule,
    /// By whom, and how.
    pub story: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.story)
    }
}

impl std::error::Error for Violation {}

/// What a good history comes to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The store at the end.
    pub last: State,
    /// Writes without an answer that have happened after all.
    pub late: usize,
}

/// A write that may have happened.
struct Perhaps<'h> {
    client: &'h str,
    begun: u64,
    request: Request,
    /// Only this revision, for a revocation that was answered: whether it had keys to delete nobody said.
    only: Option<i64>,
}

struct Judge<'h> {
    calls: &'h [Call],
    /// The author of a revision.
    authors: BTreeMap<i64, usize>,
    /// Calls that changed nothing, by revision and then by their beginning.
    readers: BTreeMap<i64, Vec<usize>>,
    perhaps: Vec<Perhaps<'h>>,
    /// The events of a revision, where somebody watched all keys.
    witnessed: BTreeMap<i64, Vec<Event>>,
    /// By revision: the earliest end of a call that saw it or a later one.
    seen_by: BTreeMap<i64, u64>,
    last: i64,
}

/// How far the replay is.
#[derive(Clone)]
struct Place {
    state: Rc<State>,
    /// The latest beginning of what is ordered so far, and whose.
    begun: u64,
    by: String,
    used: BTreeSet<usize>,
}

/// Is there an order of all calls, by their revisions and the clock, in which every answer and every watch is right?
pub fn check(history: &History) -> Result<Verdict, Violation> {
    refusal::check(&history.calls)?;
    let judge = Judge::new(history)?;
    let (path, place) = judge.replay()?;
    let events = |revision: i64| -> &[Event] {
        usize::try_from(revision - 1).ok().and_then(|at| path.get(at)).map_or(&[], |(_, events)| events)
    };
    history.watches.iter().try_for_each(|watch| watch.check(events))?;
    let late = place.used.iter().filter(|at| judge.perhaps[**at].only.is_none()).count();
    Ok(Verdict { last: (*place.state).clone(), late })
}

impl<'h> Judge<'h> {
    fn new(history: &'h History) -> Result<Self, Violation> {
        let mut judge = Judge {
            calls: &history.calls,
            authors: BTreeMap::new(),
            readers: BTreeMap::new(),
            perhaps: Vec::new(),
            witnessed: BTreeMap::new(),
            seen_by: BTreeMap::new(),
            last: 1,
        };
        // A lease lives for its time after each renewal that was answered, and may end then, whoever is told.
        let mut leases: BTreeMap<i64, u64> = BTreeMap::new();
        for (at, call) in history.calls.iter().enumerate() {
            if let Request::Grant { lease, ttl } | Request::KeepAlive { lease, ttl } = &call.request
                && (matches!(call.outcome, Outcome::Done { .. }) || matches!(call.request, Request::Grant { .. }))
            {
                let ends = leases.entry(*lease).or_default();
                *ends = (*ends).max(call.begun + ttl);
            }
            match &call.outcome {
                Outcome::Refused(_) => {}
                Outcome::Unknown => {
                    let Call { client, begun, request, .. } = call;
                    judge.perhaps.push(Perhaps { client, begun: *begun, request: request.clone(), only: None });
                }
                // Renewals are not in the log; their revision is that of some moment.
                Outcome::Done { .. } if matches!(call.request, Request::KeepAlive { .. }) => {}
                Outcome::Done { revision, answer } => {
                    let wrote = answer.wrote(&call.request);
                    // The empty store is revision 1: nothing is read before it, and no write makes it.
                    if *revision < 1 + i64::from(wrote) {
                        let story = format!("{}, which is a revision that never was", told(call));
                        return Err(Violation { rule: Rule::Answer, story });
                    }
                    if wrote {
                        if let Some(other) = judge.authors.insert(*revision, at) {
                            let story = format!(
                                "revision {revision} was given to {} and to {}",
                                told(call),
                                told(&history.calls[other])
                            );
                            return Err(Violation { rule: Rule::OneWrite, story });
                        }
                    } else {
                        judge.readers.entry(*revision).or_default().push(at);
                    }
                    if let Request::Revoke { .. } = call.request {
                        let Call { client, begun, request, .. } = call;
                        let request = request.clone();
                        judge.perhaps.push(Perhaps { client, begun: *begun, request, only: Some(*revision) });
                    }
                    let seen = judge.seen_by.entry(*revision).or_insert(u64::MAX);
                    *seen = (*seen).min(call.ended);
                    judge.last = judge.last.max(*revision);
                }
            }
        }
        for (lease, ends) in leases {
            let request = Request::Revoke { lease };
            judge.perhaps.push(Perhaps { client: "the lease's end", begun: ends, request, only: None });
        }
        for watch in &history.watches {
            judge.last = judge.last.max(watch.last());
            if watch.span != Span::all() {
                continue;
            }
            for event in watch.seen.iter().flat_map(|seen| match seen {
                Seen::Events(events) => &events[..],
                Seen::Progress(_) => &[],
            }) {
                let known = judge.witnessed.entry(event.revision).or_default();
                // What is told twice or differently shows when the watches are held against the replay.
                if !known.iter().any(|other| other.key == event.key) {
                    known.push(event.clone());
                }
            }
        }
        for readers in judge.readers.values_mut() {
            readers.sort_by_key(|at| history.calls[*at].begun);
        }
        let mut earliest = u64::MAX;
        for (_, ended) in judge.seen_by.iter_mut().rev() {
            earliest = earliest.min(*ended);
            *ended = earliest;
        }
        Ok(judge)
    }

    /// From the empty store to the last revision; where a revision has no author, tries all that may have been it.
    fn replay(&self) -> Result<(Path, Place), Violation> {
        let start = Place { state: Rc::default(), begun: 0, by: "nobody".to_owned(), used: BTreeSet::new() };
        let mut path: Path = vec![(start.state.clone(), Vec::new())];
        let mut place = self.readers_at(1, start, &path)?;
        // Gaps with what is still to be tried.
        let mut gaps: Vec<(i64, Place, Vec<usize>)> = Vec::new();
        let mut tried = HashSet::new();
        let mut worst: Option<(i64, Violation)> = None;
        let mut revision = 2;
        for _ in 0..STEPS_MAX {
            if revision > self.last {
                return Ok((path, place));
            }
            let step = match self.authors.get(&revision) {
                Some(at) => self.author(revision, *at, &place, &mut path),
                None => {
                    let mut hash = DefaultHasher::new();
                    (&place.state, &place.used, place.begun).hash(&mut hash);
                    let candidates = match tried.insert((revision, hash.finish())) {
                        true => self.candidates(revision, &place),
                        false => Vec::new(),
                    };
                    gaps.push((revision, place.clone(), candidates));
                    Err(Violation {
                        rule: Rule::Author,
                        story: format!(
                            "nobody who asked can have made revision {revision} (witnessed: {:?})",
                            self.witnessed.get(&revision)
                        ),
                    })
                }
            };
            let mut step = step;
            // Back to the last gap that has something left to try.
            loop {
                match step {
                    Ok(next) => {
                        place = next;
                        revision += 1;
                        break;
                    }
                    Err(violation) => {
                        // What stopped the replay that came furthest says most; of those, the first that is no gap.
                        let says_more = |(at, known): &(i64, Violation)| {
                            *at < revision || (*at == revision && known.rule == Rule::Author)
                        };
                        if violation.rule != Rule::Undecided && worst.as_ref().is_none_or(says_more) {
                            worst = Some((revision, violation));
                        }
                        let Some((at, from, left)) = gaps.last_mut() else {
                            return Err(worst.map_or_else(undecided, |(_, violation)| violation));
                        };
                        match left.pop() {
                            Some(perhaps) => {
                                revision = *at;
                                path.truncate((revision - 1) as usize);
                                step = self.perhaps(revision, perhaps, from, &mut path);
                            }
                            None => {
                                gaps.pop();
                                step = Err(undecided());
                                if gaps.is_empty() {
                                    return Err(worst.map_or_else(undecided, |(_, violation)| violation));
                                }
                            }
                        }
                    }
                }
            }
        }
        Err(undecided())
    }

    /// Who may have made a revision, the likeliest last.
    fn candidates(&self, revision: i64, place: &Place) -> Vec<usize> {
        let seen_by = self.seen_by.range(revision..).next().map_or(u64::MAX, |(_, ended)| *ended);
        let may = |(at, perhaps): &(usize, &Perhaps<'_>)| {
            !place.used.contains(at)
                && perhaps.begun <= seen_by
                && perhaps.only.is_none_or(|only| only == revision)
                && place.state.apply(&perhaps.request).is_some_and(|(_, _, events)| {
                    !events.is_empty() && self.witnessed.get(&revision).is_none_or(|seen| *seen == events)
                })
        };
        let mut found: Vec<usize> = self.perhaps.iter().enumerate().filter(may).map(|(at, _)| at).collect();
        found.sort_by_key(|at| (self.perhaps[*at].only.is_some(), std::cmp::Reverse(self.perhaps[*at].begun)));
        found
    }

    fn author(&self, revision: i64, at: usize, place: &Place, path: &mut Path) -> Result<Place, Violation> {
        let call = &self.calls[at];
        let Outcome::Done { answer, .. } = &call.outcome else { return Err(undecided()) };
        let Some((state, given, events)) = place.state.apply(&call.request) else {
            return Err(Violation { rule: Rule::Lease, story: format!("{}: its lease had ended", told(call)) });
        };
        if given != *answer || state.revision != revision {
            let story = format!("{}, and by what is before revision {revision} it is {given:?}", told(call));
            return Err(Violation { rule: Rule::Answer, story });
        }
        let mut next = Place { state: Rc::new(state), ..place.clone() };
        next.in_time(call)?;
        path.push((next.state.clone(), events));
        self.readers_at(revision, next, path)
    }

    fn perhaps(&self, revision: i64, at: usize, place: &Place, path: &mut Path) -> Result<Place, Violation> {
        let perhaps = &self.perhaps[at];
        let Some((state, _, events)) = place.state.apply(&perhaps.request) else { return Err(undecided()) };
        let mut next = Place { state: Rc::new(state), ..place.clone() };
        next.used.insert(at);
        if perhaps.begun > next.begun {
            (next.begun, next.by) = (perhaps.begun, format!("{} {:?}", perhaps.client, perhaps.request));
        }
        path.push((next.state.clone(), events));
        self.readers_at(revision, next, path)
    }

    /// The calls that changed nothing and saw this revision.
    fn readers_at(&self, revision: i64, mut place: Place, path: &Path) -> Result<Place, Violation> {
        let Some(readers) = self.readers.get(&revision) else { return Ok(place) };
        let written = place.clone();
        for at in readers {
            let call = &self.calls[*at];
            let Outcome::Done { answer, .. } = &call.outcome else { continue };
            let wrong = |given: &dyn fmt::Debug| Violation {
                rule: Rule::Answer,
                story: format!("{}, and at revision {revision} it is {given:?}", told(call)),
            };
            match &call.request {
                Request::Past(span, then) => {
                    let state = usize::try_from(*then - 1).ok().and_then(|at| path.get(at));
                    let given = state.map(|(state, _)| Answer::Kvs(state.range(span)));
                    if given.as_ref() != Some(answer) {
                        return Err(wrong(&given));
                    }
                    place.in_time(call)?;
                }
                Request::Revoke { lease } => {
                    if place.state.has_lease(*lease) {
                        let story = format!("{}, and at revision {revision} keys still hang on it", told(call));
                        return Err(Violation { rule: Rule::Lease, story });
                    }
                    let mut state = (*place.state).clone();
                    state.ended.insert(*lease);
                    place.state = Rc::new(state);
                    place.in_time(call)?;
                }
                request => {
                    let given = place.state.apply(request);
                    let given = given.map(|(_, given, events)| (given, events.is_empty()));
                    if given.as_ref() != Some(&(answer.clone(), true)) {
                        return Err(wrong(&given));
                    }
                    match request {
                        // It may be of the past, and not of the future.
                        Request::Serializable(_) => written.clone().in_time(&Call { begun: 0, ..call.clone() })?,
                        _ => place.in_time(call)?,
                    }
                }
            }
        }
        Ok(place)
    }
}

/// The state at each revision from 1 on, and the events that made it.
type Path = Vec<(Rc<State>, Vec<Event>)>;

impl Place {
    /// Puts a call behind everything so far, if the clock allows it.
    fn in_time(&mut self, call: &Call) -> Result<(), Violation> {
        if call.begun > self.begun {
            (self.begun, self.by) = (call.begun, told(call));
        }
        if call.ended < self.begun {
            let story = format!(
                "{} was over at {}, and by the revisions it comes after {}, begun at {}",
                told(call),
                call.ended,
                self.by,
                self.begun
            );
            return Err(Violation { rule: Rule::Clock, story });
        }
        Ok(())
    }
}

pub(crate) fn told(call: &Call) -> String {
    let Call { client, begun, ended, request, outcome } = call;
    match outcome {
        Outcome::Done { revision, answer } => {
            format!("{client} [{begun}..{ended}] {request:?} was answered {answer:?} at {revision}")
        }
        Outcome::Refused(why) => format!("{client} [{begun}..{ended}] {request:?} was refused: {why:?}"),
        Outcome::Unknown => format!("{client} [{begun}..] {request:?}"),
    }
}

fn undecided() -> Violation {
    let story = "too many calls without an outcome to say what happened".to_owned();
    Violation { rule: Rule::Undecided, story }
}

#[cfg(test)]
mod tests;
