//! Refusals are answers too: a lease that surely lives is found, one that has surely ended is not found again, and a
//! revision that somebody was told of is no future one for who reads later.

use crate::judge::{Rule, Violation, told};
use crate::model::{Act, Request};
use crate::{Call, Outcome, Refusal};
use std::collections::BTreeMap;

/// What is sure of a lease, whose ID is never used twice. Its time may start anew with a new leader, which makes it live
/// longer and never shorter: what is sure is the least.
struct Life {
    /// It was granted before this moment.
    granted: u64,
    /// It does not expire before this one.
    until: u64,
    /// Nobody asked to revoke it before this one. One whose outcome nobody knows may happen at any time after it.
    revoked: u64,
    /// It had ended before this one.
    ended: u64,
}

impl Default for Life {
    fn default() -> Self {
        Life { granted: u64::MAX, until: 0, revoked: u64::MAX, ended: u64::MAX }
    }
}

/// Is there nothing that was refused, or done, and must not have been? A call happens at some moment between its
/// beginning and its end.
pub(crate) fn check(calls: &[Call]) -> Result<(), Violation> {
    let lives = lives(calls);
    let fault = |rule, text: String| Err(Violation { rule, story: text });
    for call in calls {
        let life = needs(&call.request).and_then(|lease| lives.get(&lease));
        match (&call.outcome, &call.request, life) {
            (Outcome::Refused(Refusal::LeaseNotFound), _, Some(life)) => {
                let Life { granted, until, revoked, .. } = *life;
                if granted < call.begun && call.ended < until && call.ended < revoked {
                    let story = format!(
                        "{}, and it was granted by {granted} and lives until {until}, and nobody revoked it",
                        told(call)
                    );
                    return fault(Rule::LeaseLost, story);
                }
            }
            (Outcome::Done { .. }, _, Some(life)) if life.ended < call.begun => {
                return fault(Rule::Lease, format!("{}: its lease had ended by {}", told(call), life.ended));
            }
            // There are no serializable reads of the past: those may be refused by a member that is behind.
            (Outcome::Refused(Refusal::FutureRevision), Request::Past(_, then), _) => {
                let knew = |other: &&Call| match &other.outcome {
                    Outcome::Done { revision, .. } => revision >= then && other.ended < call.begun,
                    _ => false,
                };
                if let Some(other) = calls.iter().find(knew) {
                    return fault(Rule::Future, format!("{}, and before it {}", told(call), told(other)));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The lease that must exist for a call to be done.
fn needs(request: &Request) -> Option<i64> {
    match request {
        Request::KeepAlive { lease, .. } | Request::Revoke { lease } => Some(*lease),
        Request::Do(Act::Put { lease, .. }) if *lease != 0 => Some(*lease),
        _ => None,
    }
}

fn lives(calls: &[Call]) -> BTreeMap<i64, Life> {
    let mut lives: BTreeMap<i64, Life> = BTreeMap::new();
    for call in calls {
        let done = matches!(call.outcome, Outcome::Done { .. });
        match &call.request {
            Request::Grant { lease, ttl } | Request::KeepAlive { lease, ttl } if done => {
                let life = lives.entry(*lease).or_default();
                life.granted = life.granted.min(call.ended);
                life.until = life.until.max(call.begun + ttl);
            }
            Request::Revoke { lease } if !matches!(call.outcome, Outcome::Refused(_)) => {
                let life = lives.entry(*lease).or_default();
                life.revoked = life.revoked.min(call.begun);
                if done {
                    life.ended = life.ended.min(call.ended);
                }
            }
            _ => {}
        }
    }
    // Once it is not found though it was granted before, it is gone for ever.
    for call in calls.iter().filter(|call| call.outcome == Outcome::Refused(Refusal::LeaseNotFound)) {
        let life = needs(&call.request).and_then(|lease| lives.get_mut(&lease));
        if let Some(life) = life.filter(|life| life.granted < call.begun) {
            life.ended = life.ended.min(call.ended);
        }
    }
    lives
}
