//! Stories of watch streams over a real state machine, without raft: what is applied is published, as the log does it.

use crate::watch::{Hub, WatchCreate, WatchMessage, WatchStream};
use ferretcd_state::{Effect, State};
use ferretcd_storage::{MemoryEngine, Options, Store};
use ferretcd_types::{
    Caller, Command, Compact, DeleteRange, EventKind, KeyRange, LogPos, MemberId, Proposal, Put, RequestId, Txn, TxnOp,
};
use std::sync::Arc;
use std::time::Duration;

struct World {
    state: Arc<State>,
    hub: Arc<Hub>,
    index: u64,
}

impl World {
    fn new() -> Self {
        let store = Store::open(Arc::new(MemoryEngine::new()), Options::default()).unwrap();
        let state = Arc::new(State::open(store, MemberId(1)).unwrap());
        let hub = Arc::new(Hub::default());
        hub.start_at(state.revision());
        World { state, hub, index: 0 }
    }

    fn stream(&self) -> WatchStream {
        WatchStream::new(self.hub.clone(), self.state.clone(), Duration::from_secs(600), false)
    }

    fn apply_only(&mut self, command: impl Into<Command>) -> Vec<Effect> {
        self.index += 1;
        let proposal = Proposal { id: RequestId(self.index), caller: Caller::Member, command: command.into() };
        let applied = self.state.apply(LogPos { term: 1, index: self.index }, &proposal).unwrap();
        applied.outcome.unwrap();
        applied.effects
    }

    fn apply(&mut self, command: impl Into<Command>) -> i64 {
        for effect in self.apply_only(command) {
            if let Effect::Events { revision, events } = effect {
                self.hub.publish(revision, &events);
            }
        }
        self.state.revision()
    }

    fn put(&mut self, key: &str, value: &str) -> i64 {
        self.apply(put(key, value))
    }
}

fn put(key: &str, value: &str) -> Put {
    Put { key: key.to_owned().into(), value: value.to_owned().into(), ..Put::default() }
}

fn watch(prefix: &str) -> WatchCreate {
    WatchCreate { range: KeyRange::prefix(prefix.as_bytes()), ..WatchCreate::default() }
}

/// The next message, which must come without waiting.
async fn now(stream: &mut WatchStream) -> WatchMessage {
    tokio::time::timeout(Duration::from_secs(5), stream.next()).await.expect("a message is there").unwrap()
}

async fn nothing(stream: &mut WatchStream) {
    assert!(tokio::time::timeout(Duration::from_millis(20), stream.next()).await.is_err());
}

/// Keys and revisions of the events that come until the given revision, checked for order and for whole revisions.
async fn keys_up_to(stream: &mut WatchStream, last: i64) -> Vec<(String, i64)> {
    let mut seen: Vec<(String, i64)> = Vec::new();
    let mut complete = 0;
    while complete < last {
        let WatchMessage::Events { revision, events, .. } = now(stream).await else { panic!("events were due") };
        assert!(revision >= complete);
        for (event, _) in events {
            assert!(event.revision.main > complete && event.revision.main <= revision, "{event:?} after {complete}");
            seen.push((String::from_utf8(event.kv.key.to_vec()).unwrap(), event.revision.main));
        }
        complete = revision;
    }
    assert!(seen.windows(2).all(|w| w[0].1 <= w[1].1));
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn history_comes_first_then_what_happens_in_order_and_once() {
    let mut world = World::new();
    world.put("a1", "old");
    world.put("b", "other");
    let mut stream = world.stream();
    stream.create(WatchCreate { start_revision: 1, prev_kv: true, ..watch("a") });
    assert_eq!(now(&mut stream).await, WatchMessage::Created { id: 0, revision: 3 });
    let WatchMessage::Events { events, .. } = now(&mut stream).await else { panic!() };
    assert_eq!(events.len(), 1);
    world.put("a1", "new");
    let WatchMessage::Events { revision, events, .. } = now(&mut stream).await else { panic!() };
    assert_eq!((revision, events.len()), (4, 1));
    assert_eq!(events[0].1.as_ref().unwrap().value, "old", "what was there before comes along");
    nothing(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_drop_a_kind_and_a_start_in_the_future_drops_what_is_before_it() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.create(WatchCreate { no_put: true, ..watch("a") });
    stream.create(WatchCreate { start_revision: 4, ..watch("a") });
    now(&mut stream).await;
    now(&mut stream).await;
    world.put("a", "2");
    world.apply(DeleteRange { range: KeyRange::single("a"), prev_kv: false });
    world.put("a", "4");
    let mut got = Vec::new();
    for _ in 0..2 {
        let WatchMessage::Events { id, events, .. } = now(&mut stream).await else { panic!() };
        got.push((id, events[0].0.kind, events[0].0.revision.main, events.len()));
    }
    got.sort_unstable_by_key(|g| g.0);
    assert_eq!(got, [(0, EventKind::Delete, 3, 1), (1, EventKind::Put, 4, 1)]);
    nothing(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_costs_its_queue_and_misses_nothing() {
    let mut world = World::new();
    let mut slow = world.stream();
    slow.create(watch("k"));
    now(&mut slow).await;
    // Far beyond the queue's bound.
    let mut last = 0;
    for i in 0..10_000 {
        last = world.put(&format!("k{i}"), "v");
    }
    let (synced, _, waiting) = world.hub.figures();
    assert!(synced == 0 && waiting > 4000, "the watcher fell behind and is no longer fed: {waiting} wait");
    let seen = keys_up_to(&mut slow, last).await;
    assert_eq!(seen.len(), 10_000);
    assert!(seen.iter().enumerate().all(|(i, (key, _))| *key == format!("k{i}")));
    world.put("k-live", "v");
    assert_eq!(keys_up_to(&mut slow, last + 1).await, [("k-live".to_owned(), last + 1)]);
    assert_eq!((world.hub.figures(), world.hub.sent()), ((1, 0, 0), 10_001), "it has caught up");
    let mut late = world.stream();
    late.create(WatchCreate { start_revision: 2, ..watch("k") });
    now(&mut late).await;
    assert_eq!(world.hub.figures(), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_one_revision_stay_together_when_the_queue_fills_up_in_its_middle() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.create(watch("k"));
    now(&mut stream).await;
    let mut last = 0;
    // 4096 is no multiple of 100: the queue fills up inside a transaction.
    for t in 0..60 {
        let success = (0..100).map(|i| TxnOp::Put(put(&format!("k{t:02}{i:02}"), "v"))).collect();
        last = world.apply(Txn { success, ..Txn::default() });
    }
    let mut complete = 0;
    let mut seen = 0;
    while complete < last {
        let WatchMessage::Events { revision, events, .. } = now(&mut stream).await else { panic!() };
        assert_eq!(events.len() % 100, 0, "a revision was torn at {revision}");
        seen += events.len();
        complete = revision;
    }
    assert_eq!(seen, 6000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_below_the_compacted_revision_is_created_and_then_cancelled_with_it() {
    let mut world = World::new();
    for i in 0..5 {
        world.put("a", &i.to_string());
    }
    world.apply(Compact { revision: 4 });
    let mut stream = world.stream();
    stream.create(WatchCreate { start_revision: 3, ..watch("a") });
    assert!(matches!(now(&mut stream).await, WatchMessage::Created { .. }));
    assert_eq!(now(&mut stream).await, WatchMessage::Cancelled { id: 0, compact_revision: Some(4) });
    stream.create(WatchCreate { start_revision: 4, ..watch("a") });
    assert!(matches!(now(&mut stream).await, WatchMessage::Created { .. }));
    assert_eq!(keys_up_to(&mut stream, 6).await.len(), 3, "the compacted revision itself is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_cancels_every_watcher_with_its_revision_and_drops_what_was_queued() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.create(watch("a"));
    stream.create(watch("b"));
    now(&mut stream).await;
    now(&mut stream).await;
    world.put("a", "queued");
    world.hub.restored(1000);
    for id in 0..2 {
        assert_eq!(now(&mut stream).await, WatchMessage::Cancelled { id, compact_revision: Some(1000) });
    }
    nothing(&mut stream).await;
    assert_eq!(world.hub.synced(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_only_after_every_event_up_to_it() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.request_progress();
    nothing(&mut stream).await;
    stream.create(watch("a"));
    now(&mut stream).await;
    world.put("a", "1");
    stream.request_progress();
    assert!(matches!(now(&mut stream).await, WatchMessage::Events { revision: 2, .. }));
    assert_eq!(now(&mut stream).await, WatchMessage::Progress { id: -1, revision: 2 });
    nothing(&mut stream).await;
}

/// The state is ahead of what is published while a snapshot is being installed, and for a moment at each entry.
#[tokio::test(flavor = "multi_thread")]
async fn progress_is_not_below_what_a_watcher_has_seen() {
    let mut world = World::new();
    world.put("a", "1");
    world.apply_only(put("a", "2"));
    for start_revision in [1, 0] {
        let mut stream = world.stream();
        stream.create(WatchCreate { start_revision, ..watch("a") });
        assert_eq!(now(&mut stream).await, WatchMessage::Created { id: 0, revision: 3 });
        if start_revision > 0 {
            assert_eq!(keys_up_to(&mut stream, 3).await.len(), 2);
        }
        stream.request_progress();
        nothing(&mut stream).await;
    }
    world.hub.installed(3);
    let mut stream = world.stream();
    stream.create(watch("a"));
    now(&mut stream).await;
    stream.request_progress();
    assert_eq!(now(&mut stream).await, WatchMessage::Progress { id: -1, revision: 3 });
}

/// A client that heard of it would go on behind it, with what it has from before.
#[tokio::test]
async fn no_progress_is_told_of_a_restore_before_the_watchers_are_cancelled() {
    let world = World::new();
    let mut stream = WatchStream::new(world.hub.clone(), world.state.clone(), Duration::from_secs(600), false);
    stream.create(WatchCreate { progress_notify: true, ..watch("a") });
    now(&mut stream).await;
    stream.progress_tick();
    world.hub.restored(1000);
    assert_eq!(stream.progress_of_all(), None);
    stream.progress_tick();
    assert_eq!(now(&mut stream).await, WatchMessage::Cancelled { id: 0, compact_revision: Some(1000) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watcher_hears_of_progress_however_busy_its_neighbour_is() {
    let mut world = World::new();
    let mut stream = WatchStream::new(world.hub.clone(), world.state.clone(), Duration::ZERO, false);
    stream.create(WatchCreate { progress_notify: true, ..watch("quiet") });
    stream.create(WatchCreate { progress_notify: true, ..watch("busy") });
    world.put("busy", "1");
    let mut said = Vec::new();
    while !said.iter().any(|m| matches!(m, WatchMessage::Progress { id: 0, .. })) {
        // There is always an event that waits.
        world.put("busy", "2");
        said.push(now(&mut stream).await);
        assert!(said.len() < 10, "{said:?}");
    }
    assert!(!said.iter().any(|m| matches!(m, WatchMessage::Progress { id: 1, .. })), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_are_counted_or_chosen_and_a_cancelled_one_may_come_back() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.create(watch("a"));
    stream.create(WatchCreate { id: 7, ..watch("a") });
    stream.create(WatchCreate { id: 7, ..watch("a") });
    stream.create(WatchCreate { range: KeyRange::new("b", "a"), ..WatchCreate::default() });
    stream.create(WatchCreate { start_revision: -1, ..watch("a") });
    let mut said = Vec::new();
    for _ in 0..5 {
        said.push(match now(&mut stream).await {
            WatchMessage::Created { id, .. } => id.to_string(),
            WatchMessage::CreateFailed { reason, .. } => reason,
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(
        said,
        [
            "0",
            "7",
            "mvcc: duplicate watch ID provided on the WatchStream",
            "mvcc: watcher range is empty",
            "etcdserver: mvcc: required revision has been compacted",
        ]
    );
    world.put("a", "for both");
    stream.cancel(7);
    stream.cancel(99);
    stream.create(WatchCreate { id: 7, ..watch("z") });
    assert_eq!(now(&mut stream).await, WatchMessage::Cancelled { id: 7, compact_revision: None });
    assert!(matches!(now(&mut stream).await, WatchMessage::Created { id: 7, .. }));
    assert!(matches!(now(&mut stream).await, WatchMessage::Events { id: 0, .. }));
    nothing(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_leaves_nothing_behind_and_a_stopped_member_ends_the_others() {
    let world = World::new();
    let mut stays = world.stream();
    stays.create(watch("a"));
    let mut goes = world.stream();
    goes.create(watch("a"));
    goes.create(WatchCreate { range: KeyRange::single("k"), ..WatchCreate::default() });
    assert_eq!((world.hub.synced(), world.hub.streams()), (3, 2));
    drop(goes);
    assert_eq!((world.hub.synced(), world.hub.streams()), (1, 1));
    now(&mut stays).await;
    world.hub.stop();
    assert!(stays.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_reads_while_events_are_given_never_sees_half_a_revision() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.create(watch("k"));
    now(&mut stream).await;
    let writer = tokio::task::spawn_blocking(move || {
        let mut last = 0;
        for t in 0..200 {
            let success = (0..50).map(|i| TxnOp::Put(put(&format!("k{t:03}{i:02}"), "v"))).collect();
            last = world.apply(Txn { success, ..Txn::default() });
        }
        (world, last)
    });
    let (mut seen, mut complete) = (0, 1);
    while seen < 200 * 50 {
        let WatchMessage::Events { revision, events, .. } = now(&mut stream).await else { panic!() };
        assert_eq!(events.len() % 50, 0, "a revision was torn at {revision}");
        assert!(events.iter().all(|(e, _)| e.revision.main > complete));
        seen += events.len();
        complete = revision;
    }
    let (_world, last) = writer.await.unwrap();
    assert_eq!((seen, complete), (10_000, last));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installed_snapshot_sets_watchers_back_to_what_they_lack_and_not_further() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.create(WatchCreate { range: KeyRange::single("quiet"), ..WatchCreate::default() });
    now(&mut stream).await;
    for i in 0..20 {
        world.put("busy", &i.to_string());
    }
    world.apply(Compact { revision: 15 });
    // The watcher had no event for long; it lacks nothing of what was compacted.
    world.hub.installed(world.state.revision());
    nothing(&mut stream).await;
    let last = world.put("quiet", "x");
    assert_eq!(keys_up_to(&mut stream, last).await, [("quiet".to_owned(), last)]);
    nothing(&mut stream).await;
}

#[tokio::test]
async fn a_member_that_stops_gives_what_was_queued_and_promises_nothing_beyond_it() {
    let mut world = World::new();
    let mut stream = world.stream();
    stream.create(watch("k"));
    assert!(matches!(now(&mut stream).await, WatchMessage::Created { .. }));
    let queued = world.put("k", "queued");
    world.hub.stop();
    world.put("k", "too late");
    stream.request_progress();
    let WatchMessage::Events { revision, events, .. } = now(&mut stream).await else { panic!() };
    assert_eq!((revision, events.len()), (queued, 1));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn behind_its_end_a_stream_tells_nobody_how_far_it_is() {
    let mut world = World::new();
    let mut stream = WatchStream::new(world.hub.clone(), world.state.clone(), Duration::ZERO, false);
    stream.create(WatchCreate { progress_notify: true, ..watch("k") });
    while !matches!(now(&mut stream).await, WatchMessage::Progress { .. }) {}
    world.hub.stop();
    stream.create(watch("k"));
    let revision = world.put("k", "too late") - 1;
    let mut said = Vec::new();
    while let Some(message) = stream.next().await {
        said.push(message);
        assert!(said.len() < 10, "{said:?}");
    }
    assert!(matches!(said[..], [WatchMessage::Created { id: 1, .. }]), "it has seen up to {revision}: {said:?}");
}
