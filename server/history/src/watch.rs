//! Watches: complete, in order, nothing twice, and no promise that was not kept.

use crate::judge::{Rule, Violation};
use crate::model::{Event, Span};

/// What one watcher saw.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Whose, for the story.
    pub client: String,
    /// Which keys.
    pub span: Span,
    /// The first revision that it must be told of.
    pub start: i64,
    /// What came, in order.
    pub seen: Vec<Seen>,
    /// It was open until it should have been told of everything up to here; 0 asks for nothing.
    pub until: i64,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// One message with whole revisions.
    Events(Vec<Event>),
    /// Nothing up to this revision is still to come.
    Progress(i64),
}

impl Watch {
    /// The highest revision that it was told of.
    pub(crate) fn last(&self) -> i64 {
        let last = |seen: &Seen| match seen {
            Seen::Events(events) => events.iter().map(|event| event.revision).max().unwrap_or(0),
            Seen::Progress(revision) => *revision,
        };
        self.seen.iter().map(last).max().unwrap_or(0)
    }

    /// Holds it against what happened: `events` of a revision, all of them, in order.
    pub(crate) fn check<'e>(&self, events: impl Fn(i64) -> &'e [Event]) -> Result<(), Violation> {
        let fault = |rule, text: String| {
            let Watch { client, span, start, .. } = self;
            Err(Violation { rule, story: format!("{client}, who watches {span:?} from {start} on, {text}") })
        };
        let due = |revision: i64| -> Vec<&Event> {
            events(revision).iter().filter(|event| self.span.has(&event.key)).collect()
        };
        let missed = |from: i64, to: i64| (from..=to).flat_map(due).next();
        // Complete up to here, and told of so far: a member that is behind may say so to a watcher who is ahead of it.
        let (mut done, mut told_of) = (self.start - 1, 0);
        for seen in &self.seen {
            match seen {
                Seen::Events(message) => {
                    for told in message.chunk_by(|a, b| a.revision == b.revision) {
                        let revision = told.first().map_or(0, |event| event.revision);
                        if revision <= done {
                            return fault(Rule::WatchOrder, format!("was told of {told:?} after {done}"));
                        }
                        if let Some(event) = missed(done + 1, revision - 1) {
                            return fault(Rule::WatchGap, format!("was told of {told:?} and never of {event:?}"));
                        }
                        let due = due(revision);
                        if told.iter().ne(due.iter().copied()) {
                            return fault(Rule::WatchEvent, format!("was told {told:?}, and it was {due:?}"));
                        }
                        (done, told_of) = (revision, revision);
                    }
                }
                Seen::Progress(revision) => {
                    if *revision < told_of {
                        return fault(Rule::WatchOrder, format!("was told of progress to {revision} after {told_of}"));
                    }
                    if let Some(event) = missed(done + 1, *revision) {
                        let text = format!("was told that there is nothing up to {revision}, and not of {event:?}");
                        return fault(Rule::WatchGap, text);
                    }
                    (done, told_of) = (done.max(*revision), *revision);
                }
            }
        }
        match missed(done + 1, self.until) {
            Some(event) => fault(Rule::WatchGap, format!("was told of nothing after {done}, and not of {event:?}")),
            None => Ok(()),
        }
    }
}
