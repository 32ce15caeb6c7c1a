//! Who shares which watch. All watchers of one range (and one caller) form a group; it has one watch at the members
//! once all have caught up, and one more for each who reads history. Pure but for the channels that it writes to.

use ferretcd_proto::etcdserverpb::WatchResponse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc::UnboundedSender;
use tonic::Status;

/// Bytes of answers that may wait for one watcher whose client does not take them. Then it leaves the shared watch and
/// reads what it missed from the members when its client takes messages again. One answer always gets through.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// What an answer costs beside its bytes: its place in a queue.
const ANSWER_BYTES: usize = 128;

/// What a stream hears about one of its watchers. Unbounded channels carry it, since what waits in them is bounded for
/// each watcher.
#[derive(Clone, Debug)]
pub enum News {
    /// An answer of the shared watch; its cost is given back when it was handled.
    Answer(Arc<WatchResponse>, usize),
    /// Too much waited: the watcher is on its own now.
    Behind,
    /// The watch ended: compacted, or cancelled by the member.
    Cancelled(Arc<WatchResponse>),
    /// The watch cannot go on, and so the stream cannot.
    Failed(Status),
}

/// A watcher's place in a group.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its name, unique in this process.
    pub id: u64,
    /// Where its stream listens.
    pub to: UnboundedSender<(u64, News)>,
    /// Bytes that wait for it.
    pub waiting: Arc<AtomicUsize>,
}

/// A watch at the members.
#[derive(Debug)]
pub struct Shared {
    /// The first revision that it has not delivered.
    pub next: i64,
    /// It has seen the present: what comes is new.
    pub synced: bool,
    seats: BTreeMap<u64, Seat>,
}

/// See the module. Watches have numbers, given by whoever opens them.
#[derive(Debug, Default)]
pub struct Group {
    watches: BTreeMap<u64, Shared>,
}

/// What became of a watch by a delivery.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Watches that nobody needs any more.
    pub closed: Vec<u64>,
    /// Events that more than one watcher had from one delivery, counted for each but the first.
    pub spared: u64,
}

impl Group {
    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Watchers beyond the first of each watch.
    pub fn riders(&self) -> usize {
        self.watches.values().map(|watch| watch.seats.len().saturating_sub(1)).sum()
    }

    /// Finds a watch that brings everything from `start` on: one in the present, or one that begins there, too. (One
    /// that reads older history would keep this watcher waiting.)
    pub fn join(&mut self, start: i64, seat: Seat) -> Result<(), Seat> {
        let fits = |watch: &&mut Shared| watch.next <= start && (watch.synced || watch.next == start);
        match self.watches.values_mut().find(fits) {
            Some(watch) => {
                watch.seats.insert(seat.id, seat);
                Ok(())
            }
            None => Err(seat),
        }
    }

    /// A new watch with its first watcher.
    pub fn open(&mut self, number: u64, next: i64, synced: bool, seat: Seat) {
        self.watches.insert(number, Shared { next, synced, seats: BTreeMap::from([(seat.id, seat)]) });
    }

    /// Where a watch is to begin, again; nothing if it is not needed any more.
    pub fn next(&self, number: u64) -> Option<i64> {
        self.watches.get(&number).map(|watch| watch.next)
    }

    /// Whether a watch has seen the present.
    pub fn is_synced(&self, number: u64) -> bool {
        self.watches.get(&number).is_none_or(|watch| watch.synced)
    }

    /// The watch that a watcher sits in.
    pub fn watch_of(&self, seat: u64) -> Option<u64> {
        self.watches.iter().find(|(_, watch)| watch.seats.contains_key(&seat)).map(|(number, _)| *number)
    }

    /// A watcher leaves. Names the watch that is not needed any more, if that was its last.
    pub fn leave(&mut self, seat: u64) -> Option<u64> {
        let number = self.watch_of(seat)?;
        let watch = self.watches.get_mut(&number)?;
        watch.seats.remove(&seat);
        if !watch.seats.is_empty() {
            return None;
        }
        self.watches.remove(&number);
        Some(number)
    }

    /// Gives an answer with events, or with progress, to all of a watch. Never waits: who has not room leaves.
    pub fn deliver(&mut self, number: u64, answer: &Arc<WatchResponse>) -> Delivered {
        let mut delivered = Delivered::default();
        let Some(watch) = self.watches.get_mut(&number) else { return delivered };
        let revision = answer.header.as_ref().map_or(0, |h| h.revision);
        if answer.events.is_empty() {
            // Progress is only told of watches that are in the present.
            watch.next = watch.next.max(revision.saturating_add(1));
            watch.synced = true;
        } else {
            let last = answer.events.iter().filter_map(|e| e.kv.as_ref()).map(|kv| kv.mod_revision).max();
            watch.next = watch.next.max(last.unwrap_or(0).saturating_add(1));
            let riders = watch.seats.len().saturating_sub(1) * answer.events.len();
            delivered.spared = u64::try_from(riders).unwrap_or(u64::MAX);
        }
        let cost = ANSWER_BYTES + prost::Message::encoded_len(answer.as_ref());
        watch.seats.retain(|id, seat| {
            let waiting = seat.waiting.load(Ordering::SeqCst);
            let has_room = waiting == 0 || waiting + cost <= WAITING_BYTES_MAX;
            let news = if has_room {
                seat.waiting.fetch_add(cost, Ordering::SeqCst);
                News::Answer(answer.clone(), cost)
            } else {
                News::Behind
            };
            let is_there = seat.to.send((*id, news)).is_ok();
            has_room && is_there
        });
        if watch.seats.is_empty() {
            self.watches.remove(&number);
            delivered.closed.push(number);
        }
        self.merge(&mut delivered.closed);
        delivered
    }

    /// Who has caught up with a watch in the present joins it.
    fn merge(&mut self, closed: &mut Vec<u64>) {
        while self.watches.len() > 1 {
            let target = |from: &u64, next: i64| {
                let fits = |(to, watch): &(&u64, &Shared)| *to != from && watch.synced && watch.next <= next;
                self.watches.iter().find(fits).map(|(to, _)| *to)
            };
            // The newest first: of two that are as far, the older stays.
            // The newest first: of two that are as far, the older stays.
            let pair = self.watches.iter().rev().find_map(|(from, watch)| Some((*from, target(from, watch.next)?)));
            let Some((from, to)) = pair else { return };
            let Some(moved) = self.watches.remove(&from) else { return };
            if let Some(to) = self.watches.get_mut(&to) {
                to.seats.extend(moved.seats);
            }
            closed.push(from);
        }
    }

    /// A watch has ended, and all its watchers hear why.
    pub fn end(&mut self, number: u64, news: &News) {
        let Some(watch) = self.watches.remove(&number) else { return };
        for (id, seat) in watch.seats {
            let _ = seat.to.send((id, news.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_proto::etcdserverpb::ResponseHeader;
    use ferretcd_proto::mvccpb::{Event, KeyValue};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    struct Stream {
        to: UnboundedSender<(u64, News)>,
        from: UnboundedReceiver<(u64, News)>,
    }
    impl Stream {
        fn new() -> Self {
            let (to, from) = unbounded_channel();
            Stream { to, from }
        }
        fn seat(&self, id: u64) -> Seat {
            Seat { id, to: self.to.clone(), waiting: Arc::default() }
        }
        /// Who heard what: revisions of the answers, or a word.
        fn heard(&mut self) -> Vec<(u64, String)> {
            let text = |news| match news {
                News::Answer(answer, _) => answer.header.unwrap().revision.to_string(),
                News::Behind => "behind".to_owned(),
                News::Cancelled(_) => "cancelled".to_owned(),
                News::Failed(status) => status.message().to_owned(),
            };
            std::iter::from_fn(|| self.from.try_recv().ok()).map(|(id, news)| (id, text(news))).collect()
        }
    }
    fn at(revision: i64, value_bytes: usize) -> Arc<WatchResponse> {
        let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
        let kv = KeyValue { mod_revision: revision, value: vec![0; value_bytes].into(), ..KeyValue::default() };
        let events = vec![Event { kv: Some(kv), ..Event::default() }];
        Arc::new(WatchResponse { header, events, ..WatchResponse::default() })
    }
    fn progress(revision: i64) -> Arc<WatchResponse> {
        Arc::new(WatchResponse { events: vec![], ..WatchResponse::clone(&at(revision, 0)) })
    }

    /// A stream of a member's answers, each with its length before it.
    #[test]
    fn fuzz_watch_answer() {
        use crate::namespace::Namespace;
        use crate::watch::watcher::Watcher;
        use ferretcd_proto::etcdserverpb::WatchCreateRequest;
        use prost::Message as _;
        let answers = [at(4, 3), progress(9), at(10, 1), at(2, 0)];
        let seed = |answers: &[Arc<WatchResponse>]| {
            answers.iter().map(|answer| answer.encode_length_delimited_to_vec()).collect::<Vec<_>>().concat()
        };
        let seeds = [seed(&answers), seed(&answers[1..]), seed(&answers[..1])];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "watch_answer").seeds(seeds);
        fuzz.words(&["ns/a"]).run(|mut bytes| {
            let (mut group, mut stream, namespace) = (Group::default(), Stream::new(), Namespace::new("ns/"));
            group.open(100, 10, true, stream.seat(1));
            group.open(101, 3, false, stream.seat(2));
            let request = WatchCreateRequest { progress_notify: true, fragment: true, ..WatchCreateRequest::default() };
            let mut watchers = [10, 3].map(|next| Watcher::new(1, next, &request));
            let mut said = String::new();
            while !bytes.is_empty() {
                let answer = match WatchResponse::decode_length_delimited(&mut bytes) {
                    Ok(answer) => Arc::new(answer),
                    Err(e) => return format!("{said} {e}"),
                };
                for (number, watcher) in [100, 101].into_iter().zip(&mut watchers) {
                    let taken = watcher.take(&answer, &namespace).map(|answer| watcher.pieces(answer, 64).len());
                    said += &format!("{:?} {taken:?} ", group.deliver(number, &answer));
                }
                while stream.from.try_recv().is_ok() {}
            }
            said
        });
    }

    #[test]
    fn watchers_of_the_present_share_one_watch() {
        let (mut group, mut stream) = (Group::default(), Stream::new());
        assert!(group.join(10, stream.seat(1)).is_err());
        group.open(100, 10, true, stream.seat(1));
        assert!(group.join(10, stream.seat(2)).is_ok());
        assert!(group.join(12, stream.seat(3)).is_ok(), "who starts later can ride along");
        assert!(group.join(9, stream.seat(4)).is_err(), "who starts earlier cannot");
        assert_eq!(group.riders(), 2);
        assert_eq!(group.deliver(100, &at(11, 1)), Delivered { closed: vec![], spared: 2 });
        assert_eq!(stream.heard().len(), 3);
        assert_eq!((group.leave(1), group.leave(2), group.leave(3)), (None, None, Some(100)));
        assert!(group.is_empty());
    }

    #[test]
    fn who_reads_history_joins_when_it_has_caught_up() {
        let (mut group, mut stream) = (Group::default(), Stream::new());
        group.open(100, 10, true, stream.seat(1));
        group.open(101, 3, false, stream.seat(2));
        assert!(group.join(3, stream.seat(3)).is_ok(), "another may read the same history");
        assert!(group.deliver(101, &at(5, 1)).closed.is_empty());
        // Nothing more happened in its range; that it is in the present shows by progress.
        assert_eq!(group.deliver(101, &progress(9)).closed, [101]);
        assert_eq!((group.watch_of(2), group.watch_of(3)), (Some(100), Some(100)));
        stream.heard();
        group.deliver(100, &at(10, 1));
        assert_eq!(stream.heard().len(), 3);
    }

    #[test]
    fn the_first_of_a_range_may_read_history_without_keeping_others_waiting() {
        let (mut group, stream) = (Group::default(), Stream::new());
        group.open(100, 1, false, stream.seat(1));
        assert!(group.join(10, stream.seat(2)).is_err());
        group.open(101, 10, true, stream.seat(2));
        assert!(group.deliver(100, &at(4, 1)).closed.is_empty());
        assert_eq!(group.deliver(100, &at(9, 1)).closed, [100]);
        assert_eq!(group.watch_of(1), Some(101));
    }

    #[test]
    fn a_slow_watcher_leaves_and_others_go_on() {
        let (mut group, mut slow, mut fast) = (Group::default(), Stream::new(), Stream::new());
        group.open(100, 1, true, slow.seat(1));
        let seat = fast.seat(2);
        let waiting = seat.waiting.clone();
        assert!(group.join(1, seat).is_ok());
        for revision in 1..=5 {
            group.deliver(100, &at(revision, 300 << 10));
            waiting.store(0, Ordering::SeqCst);
        }
        let words: Vec<String> = slow.heard().into_iter().map(|(_, word)| word).collect();
        assert_eq!(words, ["1", "2", "3", "behind"]);
        assert_eq!(fast.heard().len(), 5);
        assert_eq!(group.watch_of(1), None);
    }

    #[test]
    fn an_answer_larger_than_the_room_gets_through_alone() {
        let (mut group, mut stream) = (Group::default(), Stream::new());
        group.open(100, 1, true, stream.seat(1));
        group.deliver(100, &at(1, 2 * WAITING_BYTES_MAX));
        assert_eq!(stream.heard(), [(1, "1".to_owned())]);
    }

    #[test]
    fn the_end_of_a_watch_is_told_to_all_of_it() {
        let (mut group, mut stream) = (Group::default(), Stream::new());
        group.open(100, 1, true, stream.seat(1));
        assert!(group.join(1, stream.seat(2)).is_ok());
        group.end(100, &News::Cancelled(at(0, 0)));
        assert_eq!(stream.heard(), [(1, "cancelled".to_owned()), (2, "cancelled".to_owned())]);
        assert!(group.is_empty());
    }
}
