//! Good histories pass, and each kind of bad one is found.

use super::*;
use crate::Refusal;
use crate::model::{Act, Compare, Kv};
use crate::watch::Watch;

fn call(begun: u64, ended: u64, request: Request, revision: i64, answer: Answer) -> Call {
    Call { client: format!("c{begun}"), begun, ended, request, outcome: Outcome::Done { revision, answer } }
}

fn unknown(begun: u64, request: Request) -> Call {
    Call { client: format!("c{begun}"), begun, ended: u64::MAX, request, outcome: Outcome::Unknown }
}

fn refused(begun: u64, ended: u64, request: Request, why: Refusal) -> Call {
    Call { client: format!("c{begun}"), begun, ended, request, outcome: Outcome::Refused(why) }
}

fn put(key: &str, value: &str) -> Request {
    Request::Do(Act::Put { key: key.into(), value: value.into(), lease: 0 })
}

fn leased(key: &str, value: &str, lease: i64) -> Request {
    Request::Do(Act::Put { key: key.into(), value: value.into(), lease })
}

fn get(key: &str) -> Request {
    Request::Do(Act::Range(Span::key(key)))
}

fn kv(key: &str, value: &str, created: i64, modified: i64, version: i64) -> (String, Kv) {
    (key.into(), Kv { value: value.into(), created, modified, version, lease: 0 })
}

fn found(kvs: &[(String, Kv)]) -> Answer {
    Answer::Kvs(kvs.to_vec())
}

fn judge(calls: Vec<Call>) -> Result<Verdict, Rule> {
    check(&History { calls, watches: vec![] }).map_err(|violation| violation.rule)
}

#[test]
fn writes_reads_transactions_and_deletions_in_order_are_good() {
    let swap = Request::Txn {
        compares: vec![Compare::Value("a".into(), "1".into()), Compare::Version("b".into(), 0)],
        then: vec![Act::Put { key: "b".into(), value: "2".into(), lease: 0 }, Act::Range(Span::all())],
        otherwise: vec![Act::Delete(Span::all())],
    };
    let (a, b) = (kv("a", "1", 2, 2, 1), kv("b", "2", 3, 3, 1));
    let both = [a.clone(), b.clone()];
    let swapped = Answer::Txn { succeeded: true, answers: vec![Answer::Done, found(&both)] };
    let calls = vec![
        call(0, 1, get("a"), 1, found(&[])),
        call(2, 3, put("a", "1"), 2, Answer::Done),
        call(4, 5, swap.clone(), 3, swapped),
        call(6, 7, swap, 4, Answer::Txn { succeeded: false, answers: vec![Answer::Deleted(2)] }),
        call(8, 9, Request::Do(Act::Delete(Span::all())), 4, Answer::Deleted(0)),
        call(10, 11, Request::Past(Span::all(), 3), 4, found(&both)),
        call(10, 11, Request::Serializable(Span::key("a")), 2, found(&[a])),
    ];
    assert_eq!(judge(calls.clone()).unwrap().last.revision, 4);

    // Each of them with another answer.
    let spoiled = |at: usize, answer: Answer| {
        let mut calls = calls.clone();
        let Outcome::Done { revision, .. } = calls[at].outcome else { panic!("it was answered") };
        calls[at].outcome = Outcome::Done { revision, answer };
        judge(calls).map(drop)
    };
    let txn = |succeeded, answers: &[Answer]| Answer::Txn { succeeded, answers: answers.to_vec() };
    assert_eq!(spoiled(2, txn(true, &[Answer::Done, found(&both)])), Ok(()), "as it was");
    assert_eq!(spoiled(2, txn(false, &[Answer::Done, found(&both)])), Err(Rule::Author), "it names the other branch");
    assert_eq!(spoiled(2, txn(false, &[Answer::Deleted(1)])), Err(Rule::Answer), "it is the other branch");
    assert_eq!(spoiled(2, txn(true, &[Answer::Done, found(&both[1..])])), Err(Rule::Answer), "a key is missing");
    assert_eq!(spoiled(2, txn(true, &[Answer::Done])), Err(Rule::Answer), "an answer is missing");
    assert_eq!(spoiled(3, txn(true, &[Answer::Deleted(2)])), Err(Rule::Answer), "it names the other branch");
    assert_eq!(spoiled(3, txn(true, &[Answer::Done, found(&both)])), Err(Rule::Answer), "it is the other branch");
    assert_eq!(spoiled(3, txn(false, &[Answer::Deleted(1)])), Err(Rule::Answer), "two were there");
    assert_eq!(spoiled(4, Answer::Deleted(1)), Err(Rule::OneWrite), "none was there");
    assert_eq!(spoiled(5, found(&both[..1])), Err(Rule::Answer), "a key is missing");
}

#[test]
fn an_answer_of_a_revision_that_never_was_is_found() {
    let one = |request, revision, answer| judge(vec![call(0, 1, request, revision, answer)]).map(drop);
    let delete = || Request::Do(Act::Delete(Span::all()));
    assert_eq!(one(get("a"), 0, found(&[])), Err(Rule::Answer));
    assert_eq!(one(put("a", "1"), 1, Answer::Done), Err(Rule::Answer), "the empty store is the first");
    assert_eq!(one(delete(), 1, Answer::Deleted(1)), Err(Rule::Answer));
    assert_eq!(one(delete(), 1, Answer::Deleted(0)), Ok(()));
}

#[test]
fn a_stale_read_is_found_and_a_serializable_one_may_be_stale() {
    let read = |request| {
        vec![
            call(0, 1, put("a", "1"), 2, Answer::Done),
            call(2, 3, put("a", "2"), 3, Answer::Done),
            call(4, 5, request, 2, found(&[kv("a", "1", 2, 2, 1)])),
        ]
    };
    assert_eq!(judge(read(get("a"))).unwrap_err(), Rule::Clock);
    assert!(judge(read(Request::Serializable(Span::key("a")))).is_ok());
    // Two that overlap may come either way; a reader after a reader may not go back.
    let overlap = |first: i64| {
        vec![
            call(0, 9, put("a", "1"), 2, Answer::Done),
            call(1, 2, get("a"), first, if first == 2 { found(&[kv("a", "1", 2, 2, 1)]) } else { found(&[]) }),
            call(3, 4, get("a"), 1, found(&[])),
        ]
    };
    assert!(judge(overlap(1)).is_ok());
    assert_eq!(judge(overlap(2)).unwrap_err(), Rule::Clock);
}

#[test]
fn a_read_of_the_future_is_found() {
    let calls = vec![
        call(0, 1, Request::Serializable(Span::key("a")), 2, found(&[kv("a", "1", 2, 2, 1)])),
        call(2, 3, put("a", "1"), 2, Answer::Done),
    ];
    assert_eq!(judge(calls).unwrap_err(), Rule::Clock);
}

#[test]
fn a_lost_write_is_found() {
    // The acknowledged one is gone, and its revision went to the next.
    let calls = vec![call(0, 1, put("a", "1"), 2, Answer::Done), call(2, 3, get("a"), 1, found(&[]))];
    assert_eq!(judge(calls).unwrap_err(), Rule::Clock);
    let calls = vec![call(0, 1, put("a", "1"), 2, Answer::Done), call(2, 3, get("a"), 2, found(&[]))];
    assert_eq!(judge(calls).unwrap_err(), Rule::Answer);
}

#[test]
fn a_revision_that_is_given_twice_is_found() {
    let calls = vec![call(0, 1, put("a", "1"), 2, Answer::Done), call(2, 3, put("b", "1"), 2, Answer::Done)];
    assert_eq!(judge(calls).unwrap_err(), Rule::OneWrite);
}

#[test]
fn a_write_without_an_answer_may_happen_late_once_or_never() {
    let lost = unknown(0, put("a", "x"));
    let after = |revision: i64| {
        let kvs = if revision == 3 { vec![kv("a", "x", 3, 3, 1)] } else { vec![] };
        vec![lost.clone(), call(2, 3, put("b", "1"), 2, Answer::Done), call(4, 5, get("a"), revision, found(&kvs))]
    };
    assert_eq!(judge(after(2)).unwrap().late, 0);
    assert_eq!(judge(after(3)).unwrap().late, 1);
    // Applied twice: there is nobody who made the second revision.
    let twice = vec![lost.clone(), call(4, 5, get("a"), 3, found(&[kv("a", "x", 2, 3, 2)]))];
    assert_eq!(judge(twice).unwrap_err(), Rule::Author);
    // And not before it was asked for.
    let early = vec![call(0, 1, get("a"), 2, found(&[kv("a", "x", 2, 2, 1)])), unknown(5, put("a", "x"))];
    assert_eq!(judge(early).unwrap_err(), Rule::Author);
}

#[test]
fn of_several_writes_without_answers_the_order_is_found_that_explains_what_was_read() {
    let mut calls: Vec<Call> = (0..8).map(|n| unknown(n, put(&format!("k{}", n % 2), &n.to_string()))).collect();
    let kvs = [kv("k0", "6", 2, 5, 2), kv("k1", "3", 3, 4, 2)];
    calls.push(call(20, 21, Request::Do(Act::Range(Span::all())), 5, found(&kvs)));
    assert_eq!(judge(calls.clone()).unwrap().late, 4);
    // No order gives this one.
    let kvs = [kv("k0", "6", 2, 5, 2), kv("k1", "6", 3, 4, 2)];
    calls.push(call(22, 23, Request::Do(Act::Range(Span::all())), 5, found(&kvs)));
    assert!(judge(calls).is_err());
}

#[test]
fn leases_take_their_keys_not_before_their_time_and_never_give_them_back() {
    let grant = || call(0, 1, Request::Grant { lease: 7, ttl: 100 }, 1, Answer::Done);
    let with = |rest: Vec<Call>| [vec![grant(), call(2, 3, leased("a", "1", 7), 2, Answer::Done)], rest].concat();
    let gone = |at: u64| call(at, at + 1, get("a"), 3, found(&[]));
    assert!(judge(with(vec![gone(150)])).is_ok(), "it expired");
    assert_eq!(judge(with(vec![gone(50)])).unwrap_err(), Rule::Author, "too early");
    let renewed = || call(90, 91, Request::KeepAlive { lease: 7, ttl: 100 }, 2, Answer::Done);
    assert_eq!(judge(with(vec![renewed(), gone(150)])).unwrap_err(), Rule::Author, "it was renewed");
    assert!(judge(with(vec![renewed(), gone(200)])).is_ok());
    let revoked = |revision| call(10, 11, Request::Revoke { lease: 7 }, revision, Answer::Done);
    assert!(judge(with(vec![revoked(3), gone(12)])).is_ok());
    assert_eq!(judge(with(vec![revoked(2)])).unwrap_err(), Rule::Lease, "its key is still there");
    let again = call(14, 15, leased("a", "2", 7), 4, Answer::Done);
    assert_eq!(judge(with(vec![revoked(3), again])).unwrap_err(), Rule::Lease);
}

const GRANT: Request = Request::Grant { lease: 7, ttl: 100 };
const RENEW: Request = Request::KeepAlive { lease: 7, ttl: 100 };
const REVOKE: Request = Request::Revoke { lease: 7 };

/// Calls after a lease was granted at 10 to 20, which lives until 110 at least.
fn granted(rest: &[Call]) -> Result<(), Rule> {
    judge([&[call(10, 20, GRANT, 1, Answer::Done)], rest].concat()).map(drop)
}

#[test]
fn a_lease_is_found_for_its_time_by_all_that_need_it() {
    let lost = |begun, ended, request| refused(begun, ended, request, Refusal::LeaseNotFound);
    for request in [RENEW, REVOKE, leased("a", "1", 7)] {
        assert_eq!(granted(&[lost(30, 109, request.clone())]), Err(Rule::LeaseLost), "{request:?}");
        assert_eq!(granted(&[lost(30, 110, request.clone())]), Ok(()), "{request:?}: it may have expired");
        assert_eq!(granted(&[lost(19, 30, request.clone())]), Ok(()), "{request:?}: it may come before the grant");
        // A renewal is a grant of its own.
        let renewed = |at| call(at, at + 1, RENEW, 0, Answer::Done);
        assert_eq!(granted(&[renewed(100), lost(110, 199, request.clone())]), Err(Rule::LeaseLost), "{request:?}");
        assert_eq!(granted(&[renewed(100), lost(110, 200, request.clone())]), Ok(()), "{request:?}");
        // Of another lease, and for another reason, it says nothing.
        assert_eq!(granted(&[refused(30, 40, request.clone(), Refusal::Other)]), Ok(()), "{request:?}");
    }
    let another = Request::KeepAlive { lease: 8, ttl: 100 };
    assert_eq!(granted(&[lost(30, 40, another)]), Ok(()));
    assert_eq!(judge(vec![unknown(10, GRANT), lost(30, 40, RENEW)]).map(drop), Ok(()), "perhaps it was never granted");
}

#[test]
fn a_lease_may_be_gone_early_once_somebody_asked_to_revoke_it() {
    let lost = || refused(30, 40, RENEW, Refusal::LeaseNotFound);
    let done = |begun| call(begun, begun + 20, REVOKE, 1, Answer::Done);
    for asked in [25, 39] {
        assert_eq!(granted(&[done(asked), lost()]), Ok(()), "from {asked} on");
        assert_eq!(granted(&[unknown(asked, REVOKE), lost()]), Ok(()), "in doubt, from {asked} on");
        let not = refused(asked, asked + 1, REVOKE, Refusal::Other);
        assert_eq!(granted(&[not, lost()]), Err(Rule::LeaseLost), "a revocation that was refused ends nothing");
    }
    assert_eq!(granted(&[unknown(41, REVOKE), lost()]), Err(Rule::LeaseLost), "it was asked for too late");
}

#[test]
fn a_lease_that_has_ended_is_not_found_again() {
    let revoked = |revoke: Call, request: Request, begun| {
        let answered = call(begun, 80, request.clone(), if request == RENEW { 0 } else { 1 }, Answer::Done);
        granted(&[revoke, answered])
    };
    let acknowledged = || call(30, 40, REVOKE, 1, Answer::Done);
    let not_found = || refused(130, 140, RENEW, Refusal::LeaseNotFound);
    for request in [RENEW, REVOKE] {
        assert_eq!(revoked(acknowledged(), request.clone(), 41), Err(Rule::Lease), "{request:?}");
        assert_eq!(revoked(acknowledged(), request.clone(), 40), Ok(()), "{request:?}: it may come before");
        let in_doubt = Call { ended: 40, ..unknown(30, REVOKE) };
        assert_eq!(revoked(in_doubt, request.clone(), 41), Ok(()), "{request:?}: perhaps it was not revoked");
    }
    // Nor does it come back once it has expired.
    assert_eq!(granted(&[not_found(), call(141, 150, REVOKE, 1, Answer::Done)]), Err(Rule::Lease));
    assert_eq!(granted(&[not_found(), call(140, 150, REVOKE, 1, Answer::Done)]), Ok(()));
    let early = refused(5, 9, RENEW, Refusal::LeaseNotFound);
    assert_eq!(granted(&[early, call(30, 31, RENEW, 0, Answer::Done)]), Ok(()), "it was not granted yet");
}

#[test]
fn a_revision_that_somebody_was_told_of_is_no_future_one() {
    let written = call(0, 10, put("a", "1"), 2, Answer::Done);
    let read = |begun, then| refused(begun, 20, Request::Past(Span::all(), then), Refusal::FutureRevision);
    let told = |read| judge(vec![written.clone(), read]).map(drop);
    assert_eq!(told(read(11, 2)), Err(Rule::Future));
    assert_eq!(told(read(11, 1)), Err(Rule::Future));
    assert_eq!(told(read(10, 2)), Ok(()), "it may come before");
    assert_eq!(told(read(11, 3)), Ok(()), "nobody has seen that one");
    let compacted = refused(11, 20, Request::Past(Span::all(), 1), Refusal::Other);
    assert_eq!(told(compacted), Ok(()));
    assert_eq!(judge(vec![unknown(0, put("a", "1")), read(11, 2)]).map(drop), Ok(()), "perhaps it was never made");
}

fn events(list: &[(i64, &str)]) -> Seen {
    let event = |(revision, value): &(i64, &str)| {
        let kv = Kv { value: (*value).into(), created: 2, modified: *revision, version: revision - 1, lease: 0 };
        Event { revision: *revision, key: "a".into(), kv: Some(kv) }
    };
    Seen::Events(list.iter().map(event).collect())
}

fn watched(seen: Vec<Seen>) -> Result<(), Rule> {
    let calls = (2..6).map(|n| call(n as u64, n as u64, put("a", &n.to_string()), n, Answer::Done)).collect();
    let watch = Watch { client: "w".into(), span: Span::key("a"), start: 3, seen, until: 5 };
    check(&History { calls, watches: vec![watch] }).map(drop).map_err(|violation| violation.rule)
}

#[test]
fn a_watch_is_complete_and_in_order() {
    assert_eq!(watched(vec![events(&[(3, "3"), (4, "4")]), Seen::Progress(4), events(&[(5, "5")])]), Ok(()));
    assert_eq!(watched(vec![events(&[(3, "3"), (5, "5")])]), Err(Rule::WatchGap), "one is missing");
    assert_eq!(watched(vec![events(&[(4, "4")])]), Err(Rule::WatchGap), "the first is missing");
    assert_eq!(watched(vec![events(&[(3, "3"), (4, "4")])]), Err(Rule::WatchGap), "the last is missing");
    assert_eq!(watched(vec![Seen::Progress(4), events(&[(5, "5")])]), Err(Rule::WatchGap), "an empty promise");
    let twice = vec![events(&[(3, "3"), (4, "4")]), events(&[(4, "4"), (5, "5")])];
    assert_eq!(watched(twice), Err(Rule::WatchOrder));
    let behind = vec![Seen::Progress(1), events(&[(3, "3"), (4, "4"), (5, "5")])];
    assert_eq!(watched(behind), Ok(()), "the member was behind the watcher's start");
    let back = vec![events(&[(3, "3"), (4, "4")]), Seen::Progress(3), events(&[(5, "5")])];
    assert_eq!(watched(back), Err(Rule::WatchOrder));
    assert_eq!(watched(vec![events(&[(3, "x"), (4, "4"), (5, "5")])]), Err(Rule::WatchEvent));
}

#[test]
fn what_only_a_watcher_saw_has_an_author_too() {
    let one = Watch { client: "w".into(), span: Span::all(), start: 2, seen: vec![events(&[(2, "x")])], until: 0 };
    let with = |calls| check(&History { calls, watches: vec![one.clone()] }).map(|v| v.late).map_err(|v| v.rule);
    assert_eq!(with(vec![unknown(0, put("a", "y")), unknown(1, put("a", "x"))]), Ok(1));
    assert_eq!(with(vec![unknown(0, put("a", "y"))]), Err(Rule::Author));
}

/// A sequence of numbers that looks like chance (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Calls that a right store answers at a moment between their beginning and their end; if asked for, some that are lost.
fn random(seed: u64, loses: bool) -> History {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut state, mut history) = (State::default(), History::default());
    for n in 0..120u64 {
        let key = format!("k{}", chance.below(3));
        let value = n.to_string();
        let request = match chance.below(10) {
            0..4 => Request::Do(Act::Put { key, value, lease: 0 }),
            4 => Request::Do(Act::Delete(Span::all())),
            5..7 => Request::Txn {
                compares: vec![Compare::Version(key.clone(), chance.below(3) as i64)],
                otherwise: vec![Act::Delete(Span::key(&key)), Act::Range(Span::all())],
                then: vec![Act::Put { key, value, lease: 0 }, Act::Range(Span::all())],
            },
            _ => Request::Do(Act::Range(Span::key(&key))),
        };
        let now = 10 * (n + 10);
        let (begun, ended) = (now - chance.below(60), now + chance.below(60));
        let lost = loses && chance.below(12) == 0;
        let outcome = if lost && chance.below(2) == 0 {
            Outcome::Unknown
        } else {
            let (next, answer, _) = state.apply(&request).unwrap();
            state = next;
            if lost { Outcome::Unknown } else { Outcome::Done { revision: state.revision, answer } }
        };
        history.calls.push(Call { client: n.to_string(), begun, ended, request, outcome });
    }
    history
}

/// Makes an answer wrong, if there is something in it: of a transaction the branch it took, or what that answered.
fn spoil(answer: &mut Answer, branch: bool) -> bool {
    match answer {
        Answer::Done => return false,
        Answer::Deleted(n) => *n += 1,
        Answer::Kvs(kvs) => return kvs.pop().is_some(),
        Answer::Txn { succeeded, .. } if branch => *succeeded = !*succeeded,
        Answer::Txn { answers, .. } => return answers.iter_mut().any(|answer| spoil(answer, branch)),
    }
    true
}

#[test]
fn random_good_histories_pass_and_each_answer_in_them_matters() {
    let (mut caught, mut spoiled) = (0, 0);
    for seed in 1..=200 {
        // Where nothing is lost each revision has its author, so that no other order of the calls explains a wrong answer.
        let mut history = random(seed, false);
        check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let at = Chance(seed).below(history.calls.len() as u64) as usize;
        let wrong = history.calls[at..].iter_mut().find_map(|call| match &mut call.outcome {
            Outcome::Done { answer, .. } => spoil(answer, seed % 2 == 0).then(|| told(call)),
            _ => None,
        });
        if let Some(wrong) = wrong {
            assert!(check(&history).is_err(), "seed {seed}: {wrong}");
            spoiled += 1;
        }

        let mut history = random(seed, true);
        check(&history).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let mut chance = Chance(seed);
        let at = chance.below(history.calls.len() as u64) as usize;
        let Outcome::Done { revision, .. } = &mut history.calls[at].outcome else { continue };
        *revision += 1;
        caught += usize::from(check(&history).is_err());
    }
    assert!(caught > 120 && spoiled > 190, "{caught} and {spoiled} of 200");
}
