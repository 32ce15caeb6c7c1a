//! One client's stream of watchers: their requests in, their answers out, in the client's own time.

use crate::caller::Caller;
use crate::kv;
use crate::shared::Shared;
use crate::watch::group::News;
use crate::watch::hub::{Hub, Place, Subject};
use crate::watch::watcher::{PROGRESS_ID, Watcher};
use bytes::Bytes;
use ferretcd_proto::etcdserverpb::watch_request::RequestUnion;
use ferretcd_proto::etcdserverpb::{RangeRequest, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tonic::{Code, Status, Streaming};

/// Requests of one stream that wait, each for those before it: for new watchers a member is asked whether their caller may watch.
/// The next request is read when one of them is done.
const REQUESTS_MAX: usize = 64;

/// How long an answer about progress is waited for before it is asked for again: the watch that was asked may have
/// been joined with another.
const PROGRESS_WAIT: Duration = Duration::from_secs(1);

/// How often the watchers are asked again if some of them went on while others were asked. Where that goes on the client hears
/// nothing, as from a member of which a watcher is behind, and asks again.
const PROGRESS_TRIES: u32 = 10;

/// Size from which an answer is split for clients that can put it together again, in bytes: what a member of etcd's
/// takes by default, its usual request limit with gRPC's overhead.
const FRAGMENT_BYTES: usize = (1536 << 10) + (512 << 10);

/// Where answers go.
pub type Answers = mpsc::Sender<Result<WatchResponse, Status>>;

/// A client's request, when those before it are done.
enum Asked {
    /// With what a member says of it.
    Create(WatchCreateRequest, Result<ResponseHeader, Status>),
    Cancel(i64),
    Progress,
}

type Asking = Pin<Box<dyn Future<Output = Asked> + Send>>;

/// The client has gone, or the stream ends so.
struct End(Option<Status>);

impl<T> From<mpsc::error::SendError<T>> for End {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        End(None)
    }
}

struct Stream {
    hub: Hub,
    caller: Caller,
    answers: Answers,
    to: UnboundedSender<(u64, News)>,
    /// By the names of their seats.
    watchers: BTreeMap<u64, (Watcher, Arc<Subject>, Place)>,
    /// Seats by the IDs that the client knows.
    ids: BTreeMap<i64, u64>,
    next_id: i64,
    /// Cluster, member and term as last heard.
    header: ResponseHeader,
    /// Seats that have yet to say how far they are, if the client asked, how far the others are, and how often all may be asked
    /// again (see [`PROGRESS_TRIES`]).
    asked: BTreeSet<u64>,
    reached: i64,
    tries: u32,
}

/// Serves a stream until its client goes, or something ends it.
pub async fn serve(hub: Hub, caller: Caller, requests: Streaming<WatchRequest>, answers: Answers) {
    // Unbounded, because what waits in it is bounded for each watcher (see `group`).
    let (to, news) = mpsc::unbounded_channel();
    let mut stream = Stream {
        hub,
        caller,
        answers: answers.clone(),
        to,
        watchers: BTreeMap::new(),
        ids: BTreeMap::new(),
        next_id: 0,
        header: ResponseHeader::default(),
        asked: BTreeSet::new(),
        reached: 0,
        tries: 0,
    };
    if let Err(End(Some(status))) = stream.run(requests, news).await {
        let _ = answers.send(Err(status)).await;
    }
}

impl Stream {
    async fn run(
        &mut self,
        mut requests: Streaming<WatchRequest>,
        mut news: UnboundedReceiver<(u64, News)>,
    ) -> Result<(), End> {
        let mut reading = true;
        let mut asking: FuturesOrdered<Asking> = FuturesOrdered::new();
        let answers = self.answers.clone();
        loop {
            tokio::select! {
                () = answers.closed() => return Ok(()),
                Some((seat, news)) = news.recv() => self.heard(seat, news).await?,
                Some(asked) = asking.next(), if !asking.is_empty() => match asked {
                    Asked::Create(request, checked) => self.create(request, checked).await?,
                    Asked::Cancel(id) => self.cancel(id).await?,
                    Asked::Progress => {
                        self.tries = PROGRESS_TRIES;
                        self.ask_progress();
                    }
                },
                request = requests.message(), if reading && asking.len() < REQUESTS_MAX => {
                    match request.map_err(|status| End(Some(status)))?.map(|r| r.request_union) {
                        Some(Some(RequestUnion::CreateRequest(create))) => {
                            asking.push_back(Box::pin(check(self.hub.shared.clone(), self.caller.clone(), create)));
                        }
                        Some(Some(RequestUnion::CancelRequest(cancel))) => {
                            asking.push_back(Box::pin(ready(Asked::Cancel(cancel.watch_id))));
                        }
                        Some(Some(RequestUnion::ProgressRequest(_))) => asking.push_back(Box::pin(ready(Asked::Progress))),
                        Some(None) => {}
                        // A client may close its side and go on listening.
                        None => reading = false,
                    }
                }
                () = tokio::time::sleep(PROGRESS_WAIT), if !self.asked.is_empty() => {
                    self.watchers.iter().filter(|(seat, _)| self.asked.contains(seat)).for_each(|(_, (_, _, place))| place.ask_progress());
                }
            }
        }
    }

    async fn send(&self, answer: WatchResponse) -> Result<(), End> {
        Ok(self.answers.send(Ok(answer)).await?)
    }

    /// Says that a watcher is not there, with etcd's reason.
    async fn refuse(&self, reason: String) -> Result<(), End> {
        let header = Some(self.now());
        let answer = WatchResponse {
            header,
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Default::default()
        };
        self.send(answer).await
    }

    fn now(&self) -> ResponseHeader {
        ResponseHeader { revision: self.hub.shared.revision(), ..self.header }
    }

    /// A watcher begins, if its caller may see what it asks for.
    async fn create(
        &mut self,
        request: WatchCreateRequest,
        checked: Result<ResponseHeader, Status>,
    ) -> Result<(), End> {
        match checked {
            Ok(header) => self.header = header,
            // What the members cannot say now ends the stream: its client comes again.
            Err(status)
                if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled) =>
            {
                return Err(End(Some(status)));
            }
            Err(status) => {
                // Go's text of a status: etcd puts the whole of it here.
                return self.refuse(format!("rpc error: code = {:?} desc = {}", status.code(), status.message())).await;
            }
        }
        let (key, end) = bounds(&request);
        if !(end.is_empty() || end.as_ref() == b"\0" || end > key) {
            return self.refuse("mvcc: watcher range is empty".to_owned()).await;
        }
        let id = match request.watch_id {
            0 => {
                while self.ids.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            taken if self.ids.contains_key(&taken) => {
                return self.refuse("mvcc: duplicate watch ID provided on the WatchStream".to_owned()).await;
            }
            id => id,
        };
        let now = self.now();
        let start = if request.start_revision > 0 { request.start_revision } else { now.revision + 1 };
        self.send(WatchResponse { header: Some(now), watch_id: id, created: true, ..WatchResponse::default() }).await?;
        let subject = {
            let namespace = &self.hub.shared.namespace;
            Arc::new(Subject { key: namespace.key(&key), end: namespace.end(&end), standing: self.caller.standing() })
        };
        self.join(Watcher::new(id, start, &request), subject, start > now.revision);
        // What is said of the others holds for this one, too, as a client takes it.
        if !self.asked.is_empty()
            && let Some(seat) = self.ids.get(&id)
            && let Some((_, _, place)) = self.watchers.get(seat)
        {
            self.asked.insert(*seat);
            place.ask_progress();
        }
        Ok(())
    }

    fn join(&mut self, watcher: Watcher, subject: Arc<Subject>, synced: bool) {
        let place = self.hub.join(subject.clone(), &self.caller, watcher.next, synced, self.to.clone());
        self.ids.insert(watcher.id, place.id);
        self.watchers.insert(place.id, (watcher, subject, place));
    }

    async fn cancel(&mut self, id: i64) -> Result<(), End> {
        let Some(seat) = self.ids.remove(&id) else { return Ok(()) };
        self.watchers.remove(&seat);
        self.send(WatchResponse { header: Some(self.now()), watch_id: id, canceled: true, ..Default::default() })
            .await?;
        self.reached(seat, i64::MAX).await
    }

    async fn heard(&mut self, seat: u64, news: News) -> Result<(), End> {
        // What was on its way to a watcher that is cancelled.
        let Some((watcher, _, place)) = self.watchers.get_mut(&seat) else { return Ok(()) };
        match news {
            News::Answer(shared, cost) => {
                let waiting = place.seat.waiting.clone();
                let pieces = watcher
                    .take(&shared, &self.hub.shared.namespace)
                    .map_or(vec![], |answer| watcher.pieces(answer, FRAGMENT_BYTES));
                for piece in pieces {
                    self.answers.send(Ok(piece)).await?;
                }
                waiting.fetch_sub(cost, Ordering::SeqCst);
                if let Some(header) =
                    shared.header.filter(|_| shared.events.is_empty() && shared.watch_id == PROGRESS_ID)
                {
                    self.header = header;
                    self.reached(seat, header.revision).await?;
                }
            }
            News::Behind => {
                let Some((watcher, subject, old)) = self.watchers.remove(&seat) else { return Ok(()) };
                drop(old);
                tracing::debug!(watch_id = watcher.id, next = watcher.next, "a slow watcher reads what it missed");
                let id = watcher.id;
                self.join(watcher, subject, false);
                if self.asked.remove(&seat) {
                    self.asked.extend(self.ids.get(&id));
                }
            }
            News::Cancelled(shared) => {
                let answer = WatchResponse {
                    header: shared.header,
                    watch_id: watcher.id,
                    canceled: true,
                    compact_revision: shared.compact_revision,
                    cancel_reason: shared.cancel_reason.clone(),
                    ..WatchResponse::default()
                };
                self.ids.remove(&watcher.id);
                self.watchers.remove(&seat);
                self.send(answer).await?;
                self.reached(seat, i64::MAX).await?;
            }
            News::Failed(status) => return Err(End(Some(status))),
        }
        Ok(())
    }

    /// The client wants to know how far all its watchers are.
    fn ask_progress(&mut self) {
        self.asked = self.watchers.keys().copied().collect();
        self.reached = i64::MAX;
        self.watchers.values().for_each(|(_, _, place)| place.ask_progress());
    }

    /// A watcher is at this revision, or gone. When all that were asked are heard of, the client is, unless it knows more of one
    /// of them by then (or that one begins later): no watcher goes back.
    async fn reached(&mut self, seat: u64, revision: i64) -> Result<(), End> {
        if !self.asked.remove(&seat) {
            return Ok(());
        }
        self.reached = self.reached.min(revision);
        if !self.asked.is_empty() || self.reached == i64::MAX {
            return Ok(());
        }
        if self.watchers.values().any(|(watcher, _, _)| watcher.known > self.reached) {
            if self.tries > 0 {
                self.tries -= 1;
                self.ask_progress();
            }
            return Ok(());
        }
        self.watchers.values_mut().for_each(|(watcher, _, _)| watcher.known = self.reached);
        let header = Some(ResponseHeader { revision: self.reached, ..self.header });
        self.send(WatchResponse { header, watch_id: PROGRESS_ID, ..WatchResponse::default() }).await
    }
}

/// First key and end; no key is etcd's smallest.
fn bounds(request: &WatchCreateRequest) -> (Bytes, Bytes) {
    let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key.clone() };
    (key, request.range_end.clone())
}

/// Asks a member whether the caller may read the range, and for its revision.
async fn check(shared: Shared, caller: Caller, request: WatchCreateRequest) -> Asked {
    let (key, end) = bounds(&request);
    let read = RangeRequest {
        key: shared.namespace.key(&key),
        range_end: shared.namespace.end(&end),
        limit: 1,
        count_only: true,
        serializable: true,
        ..RangeRequest::default()
    };
    let answer = kv::range(&shared, &caller.lasting(), &read).await;
    Asked::Create(request, answer.map(|answer| answer.header.unwrap_or_default()))
}
