//! etcdserverpb.Watch: many watchers on one stream, each with its ID.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    time::Instant,
};

use ferretcd_node::{Node, WatchCreate, WatchMessage, WatchStream};
use ferretcd_proto::etcdserverpb::{
    ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion, watch_server::Watch,
};
use ferretcd_proto::otlp::KeyValue;
use ferretcd_types::Error;
use prost::{Message, length_delimiter_len};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::asked_by;
use crate::{
    convert::watch as convert,
    header,
    metrics::WatchMetrics,
    status::{from_error, from_receive},
    trace::{self, flag, number, text},
};

/// The service.
#[derive(Clone, Debug)]
pub struct WatchService {
    /// Who does the work.
    pub node: Node,
    /// Size from which an answer is split for clients that can put it together again, in bytes.
    pub fragment_bytes: usize,
    /// Where it is noted how long answers take.
    pub metrics: WatchMetrics,
}

/// What a stream of watchers can do: the node's, or a story's.
trait Watchers: Send + 'static {
    fn create(&mut self, request: WatchCreate);
    fn cancel(&mut self, id: i64);
    fn request_progress(&mut self);
    /// `None` when the member stops. Safe to drop and call again.
    fn next(&mut self) -> impl Future<Output = Option<WatchMessage>> + Send;
}

impl Watchers for WatchStream {
    fn create(&mut self, request: WatchCreate) {
        WatchStream::create(self, request);
    }
    fn cancel(&mut self, id: i64) {
        WatchStream::cancel(self, id);
    }
    fn request_progress(&mut self) {
        WatchStream::request_progress(self);
    }
    async fn next(&mut self) -> Option<WatchMessage> {
        WatchStream::next(self).await
    }
}

/// One answer on its way to the wire, and one ready behind it; more would only be kept from being merged.
const ANSWERS_IN_FLIGHT: usize = 2;

/// How many requests are read while the client does not take the answers to earlier ones. A cancel gets through
/// a slow stream this way, and a client that never reads cannot make us hold its answers without end.
const REQUESTS_AHEAD_MAX: usize = 1024;

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, receiver) = mpsc::channel(ANSWERS_IN_FLIGHT);
        let asked = asked_by(&self.node, &request);
        // A token from another member is waited for here, once; whether it is good is each watcher's question.
        let _ = asked.client().await;
        let (stream, outbox) = (asked.watch_stream(), Outbox::new(self.fragment_bytes));
        let (node, metrics) = (self.node.clone(), self.metrics.clone());
        let work = serve(stream, request.into_inner(), outbox, (answers, metrics), move || header::now(&node));
        tokio::spawn(trace::scope(trace::current(), work));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Carries requests in and messages out until the client goes away or the member stops.
///
/// The end of the requests is not the end of the stream: a client may close its side and go on listening.
async fn serve<W: Watchers>(
    mut stream: W,
    mut requests: Streaming<WatchRequest>,
    mut outbox: Outbox,
    (answers, metrics): (mpsc::Sender<Result<WatchResponse, Status>>, WatchMetrics),
    header: impl Fn() -> ResponseHeader,
) {
    let mut reading = true;
    let mut ahead = 0;
    let end = loop {
        // In this order, so that what is there already is gathered into few answers before one is sent, and so that
        // requests are read freely only when no answer waits in the stream.
        tokio::select! {
            biased;
            message = stream.next(), if outbox.has_room() => match message {
                Some(message) => outbox.push(message),
                // As of a lost connection, which is what etcd's clients see when it stops: they go on at another member. At
                // `Canceled`, which etcd's code has here and cannot send any more, they would give up all watches of the stream.
                None => break from_error(Error::Stopped),
            },
            request = requests.message(), if reading && (outbox.has_room() || ahead < REQUESTS_AHEAD_MAX) => {
                ahead = if outbox.has_room() { 0 } else { ahead + 1 };
                match request {
                    Ok(Some(request)) => take(request, &mut stream, &mut outbox),
                    Ok(None) => reading = false,
                    Err(status) => break from_receive(status),
                }
            }
            permit = answers.reserve(), if !outbox.is_empty() => match permit {
                Ok(permit) => {
                    let begun = Instant::now();
                    if let Some(answer) = outbox.pop(header()) {
                        let (is_control, events) = (answer.created || answer.canceled, answer.events.len());
                        permit.send(Ok(answer));
                        metrics.sent(is_control, events, begun.elapsed());
                    }
                }
                Err(_client_is_gone) => return,
            },
            () = answers.closed() => return,
        }
    };
    // What the member said before it stopped still counts.
    while let Some(answer) = outbox.pop(header()) {
        if answers.send(Ok(answer)).await.is_err() {
            return;
        }
    }
    // A client that has gone needs no last word.
    let _ = answers.send(Err(end)).await;
}

/// Hands one request to the stream. A request without content is ignored, as etcd does.
fn take(request: WatchRequest, stream: &mut impl Watchers, outbox: &mut Outbox) {
    match request.request_union {
        Some(RequestUnion::CreateRequest(create)) => {
            outbox.expect_watcher(create.fragment);
            let _span = trace::span("watch", || attributes(&create));
            stream.create(convert::create(create));
        }
        Some(RequestUnion::CancelRequest(cancel)) => stream.cancel(cancel.watch_id),
        Some(RequestUnion::ProgressRequest(_)) => stream.request_progress(),
        None => {}
    }
}

/// What etcd tells of a watcher.
fn attributes(create: &WatchCreateRequest) -> Vec<KeyValue> {
    let key = if create.key.is_empty() { &b"\0"[..] } else { &create.key };
    let range_end = if &create.range_end[..] == b"\0" { &b""[..] } else { &create.range_end };
    vec![
        text("key", key),
        text("range_end", range_end),
        number("start_rev", create.start_revision),
        flag("progress_notify", create.progress_notify),
        flag("prev_kv", create.prev_kv),
        flag("fragment", create.fragment),
    ]
}

/// Messages that wait for the client: those of one watcher are merged, large ones split for watchers that asked for it.
#[derive(Debug)]
struct Outbox {
    fragment_bytes: usize,
    /// Whether each watcher that is not yet created wants its answers split. They are created in the order asked.
    expected: VecDeque<bool>,
    /// Watchers that want their answers split.
    fragmenting: HashSet<i64>,
    messages: VecDeque<WatchMessage>,
    /// Roughly what `messages` holds.
    bytes: usize,
    /// Pieces of the answer that is being sent.
    pieces: VecDeque<WatchResponse>,
}

/// Most messages that wait; also how far back a message looks for an earlier one to merge with.
const OUTBOX_MESSAGES_MAX: usize = 64;

/// Room ends here, so at most this much and one message wait, and merged answers stay near this size.
const OUTBOX_BYTES_MAX: usize = 1 << 20;

impl Outbox {
    fn new(fragment_bytes: usize) -> Self {
        Outbox {
            fragment_bytes,
            expected: VecDeque::new(),
            fragmenting: HashSet::new(),
            messages: VecDeque::new(),
            bytes: 0,
            pieces: VecDeque::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.messages.len() < OUTBOX_MESSAGES_MAX && self.bytes < OUTBOX_BYTES_MAX
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.pieces.is_empty()
    }

    /// A watcher was asked for.
    fn expect_watcher(&mut self, fragment: bool) {
        self.expected.push_back(fragment);
    }

    /// Takes what the stream says. Events join earlier ones of their watcher that still wait, as long as nothing but
    /// events lies between: a progress notice or a cancellation must not be overtaken.
    fn push(&mut self, message: WatchMessage) {
        self.note_watchers(&message);
        self.bytes += rough_bytes(&message);
        if let WatchMessage::Events { id, revision, events } = message {
            let waiting = self.messages.iter_mut().rev().map_while(|m| match m {
                WatchMessage::Events { id, revision, events } => Some((*id, revision, events)),
                _ => None,
            });
            if let Some((_, waiting_revision, waiting_events)) = { waiting }.find(|(waiting_id, ..)| *waiting_id == id)
            {
                *waiting_revision = revision;
                waiting_events.extend(events);
                return;
            }
            self.messages.push_back(WatchMessage::Events { id, revision, events });
        } else {
            self.messages.push_back(message);
        }
    }

    fn note_watchers(&mut self, message: &WatchMessage) {
        match message {
            WatchMessage::Created { id, .. } => {
                if self.expected.pop_front() == Some(true) {
                    self.fragmenting.insert(*id);
                }
            }
            WatchMessage::CreateFailed { .. } | WatchMessage::Refused { .. } => {
                self.expected.pop_front();
            }
            // Its last events may still wait unsplit: only a client that cancels sees that, and it drops them.
            WatchMessage::Cancelled { id, .. } => {
                self.fragmenting.remove(id);
            }
            WatchMessage::Events { .. } | WatchMessage::Progress { .. } => {}
        }
    }

    /// The next answer, if any; `now` is the header that it gets its IDs from.
    fn pop(&mut self, now: ResponseHeader) -> Option<WatchResponse> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(piece);
        }
        let message = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(rough_bytes(&message));
        let response = response(message, now);
        if !self.fragmenting.contains(&response.watch_id) {
            return Some(response);
        }
        self.pieces = split(response, self.fragment_bytes).into();
        self.pieces.pop_front()
    }
}

/// What a message says on the wire.
fn response(message: WatchMessage, now: ResponseHeader) -> WatchResponse {
    let at = |revision| Some(ResponseHeader { revision, ..now });
    match message {
        WatchMessage::Created { id, revision } => {
            WatchResponse { header: at(revision), watch_id: id, created: true, ..WatchResponse::default() }
        }
        WatchMessage::CreateFailed { reason, revision } => WatchResponse {
            header: at(revision),
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..WatchResponse::default()
        },
        WatchMessage::Refused { error, revision } => {
            // Go's text of a status: etcd puts the whole of it here.
            let status = from_error(error);
            let reason = format!("rpc error: code = {:?} desc = {}", status.code(), status.message());
            response(WatchMessage::CreateFailed { reason, revision }, now)
        }
        WatchMessage::Events { id, revision, events } => WatchResponse {
            header: at(revision),
            watch_id: id,
            events: events.into_iter().map(convert::event).collect(),
            ..WatchResponse::default()
        },
        WatchMessage::Cancelled { id, compact_revision } => WatchResponse {
            // etcd gives no revision with a compaction: the watcher's place in history is what was lost.
            header: at(if compact_revision.is_some() { 0 } else { now.revision }),
            watch_id: id,
            canceled: true,
            compact_revision: compact_revision.unwrap_or(0),
            ..WatchResponse::default()
        },
        WatchMessage::Progress { id, revision } => {
            WatchResponse { header: at(revision), watch_id: id, ..WatchResponse::default() }
        }
    }
}

/// Splits an answer into pieces below `limit` bytes, each with at least one event; all but the last say so.
fn split(response: WatchResponse, limit: usize) -> Vec<WatchResponse> {
    if response.events.len() < 2 || response.encoded_len() < limit {
        return vec![response];
    }
    let WatchResponse { events, .. } = response;
    let frame = WatchResponse { events: Vec::new(), fragment: true, ..response };
    let frame_bytes = frame.encoded_len();
    let mut pieces = vec![frame.clone()];
    let mut bytes = frame_bytes;
    for event in events {
        let encoded = event.encoded_len();
        // The field's tag takes one byte.
        let event_bytes = 1 + length_delimiter_len(encoded) + encoded;
        match pieces.last_mut() {
            Some(piece) if piece.events.is_empty() || bytes + event_bytes < limit => {
                piece.events.push(event);
                bytes += event_bytes;
            }
            _ => {
                pieces.push(WatchResponse { events: vec![event], ..frame.clone() });
                bytes = frame_bytes + event_bytes;
            }
        }
    }
    if let Some(last) = pieces.last_mut() {
        last.fragment = false;
    }
    pieces
}

/// About what a message takes in memory beyond the queue itself: keys, values and a record's fixed part.
fn rough_bytes(message: &WatchMessage) -> usize {
    const RECORD: usize = 64;
    match message {
        WatchMessage::Events { events, .. } => events
            .iter()
            .flat_map(|(event, prev_kv)| std::iter::once(&event.kv).chain(prev_kv))
            .map(|kv| RECORD + kv.key.len() + kv.value.len())
            .sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use ferretcd_types::{Event, EventKind, KeyValue, Revision};

    use super::*;

    const NOW: ResponseHeader = ResponseHeader { cluster_id: 1, member_id: 2, revision: 50, raft_term: 3 };

    fn events(id: i64, revisions: std::ops::RangeInclusive<i64>, value_bytes: usize) -> WatchMessage {
        let revision = *revisions.end();
        let event = |r| {
            let value = vec![b'v'; value_bytes].into();
            let kv = KeyValue { key: "k".into(), value, mod_revision: r, ..KeyValue::default() };
            (Event { kind: EventKind::Put, kv, revision: Revision::new(r, 0) }, None)
        };
        WatchMessage::Events { id, revision, events: revisions.map(event).collect() }
    }
    fn pops(outbox: &mut Outbox) -> Vec<WatchResponse> {
        std::iter::from_fn(|| outbox.pop(NOW)).collect()
    }
    fn revisions(response: &WatchResponse) -> Vec<i64> {
        response.events.iter().filter_map(|e| e.kv.as_ref().map(|kv| kv.mod_revision)).collect()
    }
    fn header_revision(response: &WatchResponse) -> i64 {
        response.header.map_or(-1, |h| h.revision)
    }

    #[test]
    fn waiting_events_of_one_watcher_become_one_answer() {
        let mut outbox = Outbox::new(1 << 20);
        for message in [events(0, 2..=2, 1), events(1, 2..=2, 1), events(0, 3..=4, 1)] {
            outbox.push(message);
        }
        let answers = pops(&mut outbox);
        assert_eq!(answers.len(), 2);
        assert_eq!((answers[0].watch_id, revisions(&answers[0])), (0, vec![2, 3, 4]));
        assert_eq!(header_revision(&answers[0]), 4);
        assert_eq!((answers[1].watch_id, header_revision(&answers[1])), (1, 2));
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn nothing_overtakes_a_progress_notice() {
        let mut outbox = Outbox::new(1 << 20);
        outbox.push(events(0, 2..=2, 1));
        outbox.push(WatchMessage::Progress { id: -1, revision: 2 });
        outbox.push(events(0, 3..=3, 1));
        let answers = pops(&mut outbox);
        let seen: Vec<_> = answers.iter().map(|a| (a.watch_id, header_revision(a), revisions(a))).collect();
        assert_eq!(seen, [(0, 2, vec![2]), (-1, 2, vec![]), (0, 3, vec![3])]);
    }

    #[test]
    fn the_answers_that_are_not_events() {
        let say = |message| response(message, NOW);
        let created = say(WatchMessage::Created { id: 4, revision: 9 });
        assert_eq!((created.watch_id, created.created, created.canceled), (4, true, false));
        assert_eq!(header_revision(&created), 9);
        let failed = say(WatchMessage::CreateFailed { reason: "why".into(), revision: 9 });
        assert_eq!((failed.watch_id, failed.created, failed.canceled), (-1, true, true));
        let refused = say(WatchMessage::Refused { error: Error::PermissionDenied, revision: 9 });
        let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        assert_eq!((refused.watch_id, refused.created, refused.canceled), (-1, true, true));
        assert_eq!((refused.cancel_reason.as_str(), header_revision(&refused)), (reason, 9));
        assert_eq!(failed.cancel_reason, "why");
        let cancelled = say(WatchMessage::Cancelled { id: 4, compact_revision: None });
        assert_eq!((cancelled.canceled, cancelled.compact_revision, header_revision(&cancelled)), (true, 0, 50));
        let compacted = say(WatchMessage::Cancelled { id: 4, compact_revision: Some(7) });
        assert_eq!((compacted.canceled, compacted.compact_revision, header_revision(&compacted)), (true, 7, 0));
        assert_eq!(compacted.cancel_reason, "");
    }

    #[test]
    fn only_watchers_that_asked_get_pieces() {
        let mut outbox = Outbox::new(250);
        outbox.expect_watcher(false);
        outbox.expect_watcher(true);
        outbox.expect_watcher(true);
        outbox.push(WatchMessage::Created { id: 0, revision: 1 });
        outbox.push(WatchMessage::CreateFailed { reason: "no".into(), revision: 1 });
        outbox.push(WatchMessage::Created { id: 1, revision: 1 });
        assert_eq!(pops(&mut outbox).len(), 3);

        outbox.push(events(0, 2..=6, 100));
        outbox.push(events(1, 2..=6, 100));
        let answers = pops(&mut outbox);
        assert_eq!((revisions(&answers[0]), answers[0].fragment), (vec![2, 3, 4, 5, 6], false));
        let pieces: Vec<_> = answers[1..].iter().map(|a| (revisions(a), a.fragment)).collect();
        assert_eq!(pieces, [(vec![2, 3], true), (vec![4, 5], true), (vec![6], false)]);
        assert!(answers[1..].iter().all(|a| a.encoded_len() < 250 && header_revision(a) == 6));
    }

    #[test]
    fn an_event_that_is_too_large_alone_is_sent_alone() {
        let WatchMessage::Events { revision, events, .. } = events(1, 2..=4, 300) else { panic!("no events") };
        let large = response(WatchMessage::Events { id: 1, revision, events }, NOW);
        let pieces: Vec<_> = split(large, 250).iter().map(|p| (revisions(p), p.fragment)).collect();
        assert_eq!(pieces, [(vec![2], true), (vec![3], true), (vec![4], false)]);
    }

    /// A stream whose messages the story sends itself, and that notes what it is asked.
    struct Scripted {
        messages: mpsc::UnboundedReceiver<WatchMessage>,
        asked: mpsc::UnboundedSender<String>,
    }

    impl Scripted {
        fn note(&mut self, request: String) {
            // A story that is over listens no more.
            let _ = self.asked.send(request);
        }
    }

    impl Watchers for Scripted {
        fn create(&mut self, request: WatchCreate) {
            self.note(format!("create {}", request.id));
        }
        fn cancel(&mut self, id: i64) {
            self.note(format!("cancel {id}"));
        }
        fn request_progress(&mut self) {
            self.note("progress".into());
        }
        async fn next(&mut self) -> Option<WatchMessage> {
            self.messages.recv().await
        }
    }

    /// The service over a scripted stream; it serves one call.
    struct Stage(std::sync::Mutex<Option<Scripted>>);

    #[tonic::async_trait]
    impl Watch for Stage {
        type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

        async fn watch(
            &self,
            request: Request<Streaming<WatchRequest>>,
        ) -> Result<Response<Self::WatchStream>, Status> {
            let (answers, receiver) = mpsc::channel(ANSWERS_IN_FLIGHT);
            let stream = self.0.lock().unwrap().take().unwrap();
            let metrics = WatchMetrics::register(&prometheus::Registry::new()).unwrap();
            tokio::spawn(serve(stream, request.into_inner(), Outbox::new(1 << 20), (answers, metrics), || NOW));
            Ok(Response::new(ReceiverStream::new(receiver)))
        }
    }

    /// A call under way, from all four sides.
    struct Story {
        requests: Option<mpsc::Sender<WatchRequest>>,
        answers: Streaming<WatchResponse>,
        messages: mpsc::UnboundedSender<WatchMessage>,
        asked: mpsc::UnboundedReceiver<String>,
    }

    impl Story {
        async fn begin() -> Self {
            use ferretcd_proto::etcdserverpb::{watch_client::WatchClient, watch_server::WatchServer};
            let (messages, script) = mpsc::unbounded_channel();
            let (notes, asked) = mpsc::unbounded_channel();
            let stage = Stage(std::sync::Mutex::new(Some(Scripted { messages: script, asked: notes })));
            let (requests, incoming) = mpsc::channel(16);
            let mut client = WatchClient::new(WatchServer::new(stage));
            let answers = client.watch(ReceiverStream::new(incoming)).await.unwrap().into_inner();
            Story { requests: Some(requests), answers, messages, asked }
        }

        async fn ask(&self, request: RequestUnion) {
            let request = WatchRequest { request_union: Some(request) };
            self.requests.as_ref().unwrap().send(request).await.unwrap();
        }
        fn say(&self, message: WatchMessage) {
            self.messages.send(message).unwrap();
        }
        async fn hear(&mut self) -> WatchResponse {
            self.answers.message().await.unwrap().unwrap()
        }
    }

    fn create(id: i64) -> RequestUnion {
        use ferretcd_proto::etcdserverpb::WatchCreateRequest;
        RequestUnion::CreateRequest(WatchCreateRequest { watch_id: id, ..Default::default() })
    }
    fn cancel(id: i64) -> RequestUnion {
        use ferretcd_proto::etcdserverpb::WatchCancelRequest;
        RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })
    }

    #[tokio::test]
    async fn requests_go_in_and_messages_come_out() {
        let mut story = Story::begin().await;
        story.ask(create(7)).await;
        story.ask(RequestUnion::ProgressRequest(Default::default())).await;
        story.ask(cancel(7)).await;
        for expected in ["create 7", "progress", "cancel 7"] {
            assert_eq!(story.asked.recv().await.unwrap(), expected);
        }
        story.say(WatchMessage::Created { id: 7, revision: 4 });
        assert!(story.hear().await.created);
        story.say(events(7, 5..=5, 1));
        assert_eq!(revisions(&story.hear().await), [5]);
    }

    #[tokio::test]
    async fn a_client_that_asks_no_more_still_hears() {
        let mut story = Story::begin().await;
        story.ask(create(0)).await;
        story.requests = None;
        assert_eq!(story.asked.recv().await.unwrap(), "create 0");
        story.say(events(0, 5..=5, 1));
        assert_eq!(revisions(&story.hear().await), [5]);
    }

    #[tokio::test]
    async fn a_member_that_stops_says_what_it_had_and_ends_the_stream() {
        let mut story = Story::begin().await;
        story.say(events(0, 5..=5, 1));
        story.say(WatchMessage::Progress { id: -1, revision: 5 });
        drop(std::mem::replace(&mut story.messages, mpsc::unbounded_channel().0));
        assert_eq!(revisions(&story.hear().await), [5]);
        assert_eq!(story.hear().await.watch_id, -1);
        let end = story.answers.message().await.unwrap_err();
        assert_eq!((end.code(), end.message()), (tonic::Code::Unavailable, "etcdserver: server stopped"));
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_its_watchers_along() {
        let Story { requests, answers, messages, asked: _asked } = Story::begin().await;
        drop((requests, answers));
        // The script's receiving end is dropped together with the stream.
        let gone = tokio::time::timeout(std::time::Duration::from_secs(10), messages.closed());
        assert_eq!(gone.await, Ok(()), "the stream is still there");
    }

    #[tokio::test]
    async fn a_client_that_never_listens_is_read_only_so_far() {
        let mut story = Story::begin().await;
        // More messages than the outbox and the channel take.
        for id in 0..(OUTBOX_MESSAGES_MAX + ANSWERS_IN_FLIGHT) as i64 + 10 {
            story.say(WatchMessage::Created { id, revision: 1 });
        }
        let requests = story.requests.take().unwrap();
        let asking = tokio::spawn(async move {
            for id in 0..2 * REQUESTS_AHEAD_MAX as i64 {
                let request = WatchRequest { request_union: Some(cancel(id)) };
                requests.send(request).await.unwrap();
            }
        });
        for id in 0..REQUESTS_AHEAD_MAX {
            assert_eq!(story.asked.recv().await.unwrap(), format!("cancel {id}"));
        }
        // Nothing more moves on its own: let everything that can run do so, then look.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(story.asked.try_recv().is_err() && !asking.is_finished());
        // It listens at last, and is read again.
        for _ in 0..OUTBOX_MESSAGES_MAX + ANSWERS_IN_FLIGHT + 10 {
            story.hear().await;
        }
        asking.await.unwrap();
    }

    #[test]
    fn a_full_outbox_takes_no_more_until_an_answer_has_gone() {
        let mut outbox = Outbox::new(1 << 20);
        outbox.push(events(0, 2..=2, OUTBOX_BYTES_MAX));
        assert!(!outbox.has_room());
        assert!(outbox.pop(NOW).is_some());
        assert!(outbox.has_room());
        for id in 0..OUTBOX_MESSAGES_MAX as i64 {
            assert!(outbox.has_room());
            outbox.push(events(id, 2..=2, 1));
        }
        assert!(!outbox.has_room());
    }
}
