//! The watches at the members: one stream for each, opened again from where it stood when its member is lost, so that
//! no event is missed and none comes twice.

use crate::caller::{Caller, Standing};
use crate::client;
use crate::shared::Shared;
use crate::watch::group::{Group, News, Seat};
use bytes::Bytes;
use ferretcd_proto::etcdserverpb::watch_client::WatchClient;
use ferretcd_proto::etcdserverpb::watch_request::RequestUnion;
use ferretcd_proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// Pauses before a lost watch is opened again: doubling from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

/// How long a member may take to open a watch before another is asked.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pauses between questions whether a watch has reached the present: doubling from the first to the last. A member
/// says nothing to one that comes too early.
const ASK_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What is watched, and in whose name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// First key, at the members.
    pub key: Bytes,
    /// End of the range, at the members.
    pub end: Bytes,
    /// Only callers of the same standing share a watch: what they may see may change.
    pub standing: Standing,
}

/// All watches. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    /// What it works with.
    pub shared: Shared,
    state: Arc<Mutex<State>>,
    numbers: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    groups: HashMap<Arc<Subject>, Group>,
    tasks: HashMap<u64, Task>,
}

#[derive(Debug)]
struct Task {
    handle: AbortHandle,
    ask: Arc<Notify>,
}

/// A watcher's place. It is given up when this is dropped.
#[derive(Debug)]
pub struct Place {
    hub: Hub,
    subject: Arc<Subject>,
    /// The seat's name, which news carry.
    pub id: u64,
    /// The seat.
    pub seat: Seat,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hub.leave(&self.subject, self.id);
    }
}

impl Place {
    /// Asks the member how far it is. The answer comes as an answer of the watch, without events.
    pub fn ask_progress(&self) {
        let state = self.hub.state.lock();
        let number = state.groups.get(&self.subject).and_then(|group| group.watch_of(self.id));
        if let Some(task) = number.and_then(|number| state.tasks.get(&number)) {
            task.ask.notify_one();
        }
    }
}

/// How a watch at a member ended.
enum Ended {
    /// Nobody needs it.
    Unneeded,
    /// The member said so; all have heard.
    Told,
    /// The stream broke.
    Broken(Status),
}

impl Hub {
    /// Without watches.
    pub fn new(shared: Shared) -> Self {
        Hub { shared, state: Arc::default(), numbers: Arc::default() }
    }

    /// A place in a watch that brings everything from `start` on; `synced` says that `start` is in the present.
    pub fn join(
        &self,
        subject: Arc<Subject>,
        caller: &Caller,
        start: i64,
        synced: bool,
        to: UnboundedSender<(u64, News)>,
    ) -> Place {
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        let seat = Seat { id, to, waiting: Arc::default() };
        let place = Place { hub: self.clone(), subject: subject.clone(), id, seat: seat.clone() };
        let mut state = self.state.lock();
        self.counted(&mut state, &subject, |group, tasks| {
            let Err(seat) = group.join(start, seat) else { return };
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            group.open(number, start, synced, seat);
            let ask = Arc::new(Notify::new());
            let work = self.clone().keep(subject.clone(), caller.lasting(), number, ask.clone());
            tasks.insert(number, Task { handle: tokio::spawn(work).abort_handle(), ask });
        });
        place
    }

    fn leave(&self, subject: &Arc<Subject>, seat: u64) {
        let mut state = self.state.lock();
        self.counted(&mut state, subject, |group, tasks| {
            let closed = group.leave(seat);
            closed.into_iter().for_each(|number| close(tasks, number));
        });
    }

    /// Works on a group, and keeps the count of those who ride along. A group without watches goes away.
    fn counted<T>(
        &self,
        state: &mut State,
        subject: &Arc<Subject>,
        work: impl FnOnce(&mut Group, &mut HashMap<u64, Task>) -> T,
    ) -> T {
        let State { groups, tasks } = state;
        let group = groups.entry(subject.clone()).or_default();
        let before = group.riders();
        let done = work(group, tasks);
        let riders = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.shared.metrics.watchers_coalescing.add(riders(group.riders()) - riders(before));
        if group.is_empty() {
            groups.remove(subject);
        }
        done
    }

    /// Keeps one watch open at some member for as long as it is needed.
    async fn keep(self, subject: Arc<Subject>, caller: Caller, number: u64, ask: Arc<Notify>) {
        let mut pause = PAUSES.0;
        loop {
            let next = self.state.lock().groups.get(&subject).and_then(|group| group.next(number));
            let Some(next) = next else { return };
            let mut opened = false;
            let status = match self.follow(&subject, &caller, number, next, &ask, &mut opened).await {
                Ended::Unneeded | Ended::Told => return,
                Ended::Broken(status) => status,
            };
            if opened {
                pause = PAUSES.0;
            }
            if !passes(&status, caller.wants_leader) {
                self.end(&subject, number, &News::Failed(status));
                return;
            }
            tracing::debug!(status = status.message(), next, "a watch was lost and is opened again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Opens the watch and hands its answers on until it ends.
    async fn follow(
        &self,
        subject: &Arc<Subject>,
        caller: &Caller,
        number: u64,
        next: i64,
        ask: &Notify,
        opened: &mut bool,
    ) -> Ended {
        // The request to create it, and one for progress.
        let (to, requests) = mpsc::channel(2);
        let create = WatchCreateRequest {
            key: subject.key.clone(),
            range_end: subject.end.clone(),
            start_revision: next,
            progress_notify: true,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let _ = to.try_send(request(RequestUnion::CreateRequest(create)));
        let open = async {
            let asked = caller.request(ReceiverStream::new(requests));
            let mut answers = client!(self.shared, WatchClient).watch(asked).await?.into_inner();
            let first = answers.message().await?;
            Ok::<_, Status>((answers, first))
        };
        let (mut answers, first) = match tokio::time::timeout(OPEN_TIMEOUT, open).await {
            Ok(Ok((answers, Some(first)))) => (answers, first),
            Ok(Ok((_, None))) => return Ended::Broken(Status::unavailable("the member closed the watch")),
            Ok(Err(status)) => return Ended::Broken(status),
            Err(_) => return Ended::Broken(Status::unavailable(format!("no watch within {OPEN_TIMEOUT:?}"))),
        };
        *opened = true;
        if let Some(ended) = self.take(subject, number, first) {
            return ended;
        }
        let mut asking = ASK_PAUSES.0;
        let mut is_synced = self.is_synced(subject, number);
        if !is_synced {
            ask.notify_one();
        }
        loop {
            tokio::select! {
                answer = answer(&mut answers) => {
                    let ended = match answer {
                        Ok(answer) => self.take(subject, number, answer),
                        Err(status) => Some(Ended::Broken(status)),
                    };
                    if let Some(ended) = ended {
                        return ended;
                    }
                    is_synced = is_synced || self.is_synced(subject, number);
                }
                () = ask.notified() => {
                    // If one waits to be sent already, its answer serves this question, too.
                    let _ = to.try_send(request(RequestUnion::ProgressRequest(WatchProgressRequest {})));
                }
                () = tokio::time::sleep(asking), if !is_synced => {
                    asking = (asking * 2).min(ASK_PAUSES.1);
                    ask.notify_one();
                }
            }
        }
    }

    fn is_synced(&self, subject: &Arc<Subject>, number: u64) -> bool {
        self.state.lock().groups.get(subject).is_none_or(|group| group.is_synced(number))
    }

    /// Handles one answer of a member.
    fn take(&self, subject: &Arc<Subject>, number: u64, answer: WatchResponse) -> Option<Ended> {
        self.shared.saw(answer.header.as_ref());
        if answer.canceled {
            if answer.cancel_reason.contains("code = Unauthenticated") {
                // A token that has expired meanwhile. On a new stream its client is asked for a new one.
                self.end(subject, number, &News::Failed(Status::unavailable(answer.cancel_reason)));
            } else {
                self.end(subject, number, &News::Cancelled(Arc::new(answer)));
            }
            return Some(Ended::Told);
        }
        if answer.created {
            return None;
        }
        self.shared.cache(|cache| {
            for kv in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
                cache.changed(&kv.key, &Bytes::new(), Some(kv.mod_revision));
            }
        });
        let answer = Arc::new(answer);
        let mut state = self.state.lock();
        let delivered = self.counted(&mut state, subject, |group, tasks| {
            let delivered = group.deliver(number, &answer);
            // This task ends by itself, after this.
            delivered.closed.iter().filter(|closed| **closed != number).for_each(|closed| close(tasks, *closed));
            delivered
        });
        self.shared.metrics.events_coalescing.inc_by(delivered.spared);
        if delivered.closed.contains(&number) {
            state.tasks.remove(&number);
            return Some(Ended::Unneeded);
        }
        None
    }

    fn end(&self, subject: &Arc<Subject>, number: u64, news: &News) {
        let mut state = self.state.lock();
        self.counted(&mut state, subject, |group, tasks| {
            group.end(number, news);
            tasks.remove(&number);
        });
    }
}

fn close(tasks: &mut HashMap<u64, Task>, number: u64) {
    if let Some(task) = tasks.remove(&number) {
        task.handle.abort();
    }
}

fn request(union: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(union) }
}

/// The next answer; the end of a stream that nobody cancelled is a loss.
async fn answer(answers: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Status> {
    answers.message().await?.ok_or_else(|| Status::unavailable("the member closed the watch"))
}

/// Whether another try may help: a member was lost, or has no leader and nobody wants to hear of that.
fn passes(status: &Status, wants_leader: bool) -> bool {
    match status.code() {
        Code::Unavailable => !(wants_leader && status.message().contains("no leader")),
        Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted | Code::DeadlineExceeded => true,
        _ => false,
    }
}
