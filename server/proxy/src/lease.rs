//! etcdserverpb.Lease: passed on, with keep-alives of one lease by many clients made one.

use crate::caller::{Caller, Standing};
use crate::client;
use crate::shared::Shared;
use bytes::Bytes;
use ferretcd_proto::etcdserverpb::lease_client::LeaseClient;
use ferretcd_proto::etcdserverpb::lease_server::Lease;
use ferretcd_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, Streaming};

/// How long an answer to a keep-alive serves others for the same lease: an eighth of the shortest life that etcd gives
/// a lease (2 s), and clients come three times in a life.
const FRESH: Duration = Duration::from_millis(250);

/// Attempts to keep a lease alive while members cannot answer, and the pause between them: about as long as the
/// shortest lease lives.
const ATTEMPTS_MAX: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Keep-alives of one client's stream that are under way at once; further ones are not read meanwhile.
const UNDER_WAY_MAX: usize = 64;

type Answer = Result<LeaseKeepAliveResponse, Status>;

/// An answer that is waited for.
type Coming = watch::Receiver<Option<Answer>>;

/// The service.
#[derive(Clone, Debug)]
pub struct LeaseService {
    /// What it works with.
    pub shared: Shared,
    keep_alives: KeepAlives,
}

impl LeaseService {
    /// Nothing is under way.
    pub fn new(shared: Shared) -> Self {
        LeaseService { shared, keep_alives: KeepAlives::default() }
    }
}

/// Keep-alives that are under way or have just been answered.
#[derive(Clone, Debug, Default)]
struct KeepAlives {
    by_lease: Arc<Mutex<HashMap<(i64, Standing), Coming>>>,
}

impl KeepAlives {
    /// Keeps a lease alive by `work`, or waits for whoever is at it.
    async fn join<W>(&self, id: i64, standing: Standing, work: W) -> Answer
    where
        W: Future<Output = Answer> + Send + 'static,
    {
        let mut answer = self
            .by_lease
            .lock()
            .entry((id, standing.clone()))
            .or_insert_with(|| {
                let (to, from) = watch::channel(None);
                let leases = self.clone();
                // Not the first client's own work: others wait for it when that client has gone.
                tokio::spawn(async move {
                    let answer = work.await;
                    let is_alive = answer.as_ref().is_ok_and(|a| a.ttl > 0);
                    if !is_alive {
                        leases.by_lease.lock().remove(&(id, standing.clone()));
                    }
                    to.send_replace(Some(answer));
                    if is_alive {
                        tokio::time::sleep(FRESH).await;
                        // A revocation may have taken it out, and somebody else come; then that one goes early.
                        leases.by_lease.lock().remove(&(id, standing));
                    }
                });
                from
            })
            .clone();
        let found = answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        found.unwrap_or_else(|| Err(Status::unavailable("the keep-alive was given up")))
    }

    /// A lease is revoked: what was answered does not hold.
    fn forget(&self, id: i64) {
        self.by_lease.lock().retain(|(lease, _), _| *lease != id);
    }
}

/// Asks the members to keep a lease alive, again while they cannot answer.
pub async fn keep_alive(shared: Shared, caller: Caller, id: i64) -> Answer {
    let mut left = ATTEMPTS_MAX;
    loop {
        left -= 1;
        let once = async {
            let request = caller.request(futures::stream::iter([LeaseKeepAliveRequest { id }]));
            let mut answers = client!(shared, LeaseClient).lease_keep_alive(request).await?.into_inner();
            let answer = answers.message().await?.ok_or_else(|| Status::unavailable("no answer to a keep-alive"))?;
            // To the end: the member would be told that the stream is given up, for each of them.
            let _ = answers.message().await;
            Ok(answer)
        };
        let late = |_| Status::unavailable(format!("no answer to a keep-alive within {TIMEOUT:?}"));
        match tokio::time::timeout(TIMEOUT, once).await.map_err(late).flatten() {
            Err(status) if status.code() == Code::Unavailable && left > 0 && !caller.wants_leader => {
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let caller = Caller::of(request.metadata());
        client!(self.shared, LeaseClient).lease_grant(caller.request(request.into_inner())).await
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let request = request.into_inner();
        let id = request.id;
        let answer = client!(self.shared, LeaseClient).lease_revoke(caller.request(request)).await?;
        self.keep_alives.forget(id);
        let header = answer.get_ref().header;
        self.shared.saw(header.as_ref());
        // Its keys are gone, whichever they were.
        self.shared.cache(|cache| cache.clear(header.map(|h| h.revision)));
        Ok(answer)
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let caller = Caller::of(request.metadata()).lasting();
        let service = self.clone();
        let answers = request.into_inner().map(move |request| {
            let (service, caller) = (service.clone(), caller.clone());
            async move {
                let id = request?.id;
                let (standing, work) = (caller.standing(), keep_alive(service.shared.clone(), caller, id));
                service.keep_alives.join(id, standing, work).await
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(UNDER_WAY_MAX))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let caller = Caller::of(request.metadata());
        let mut answer =
            client!(self.shared, LeaseClient).lease_time_to_live(caller.request(request.into_inner())).await?;
        let strip = |key: &Bytes| self.shared.namespace.strip(key);
        // Keys from outside the namespace are nobody's business within.
        let keys = answer.get_ref().keys.iter().filter_map(strip).collect();
        answer.get_mut().keys = keys;
        Ok(answer)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let caller = Caller::of(request.metadata());
        client!(self.shared, LeaseClient).lease_leases(caller.request(request.into_inner())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};
    use tokio::sync::Semaphore;

    /// Work that waits for a permit, and says how often work was done.
    fn work(gate: &Arc<Semaphore>, done: &Arc<AtomicI64>, ttl: i64) -> impl Future<Output = Answer> + Send + 'static {
        let (gate, done) = (gate.clone(), done.clone());
        async move {
            gate.acquire().await.unwrap().forget();
            done.fetch_add(1, Ordering::SeqCst);
            Ok(LeaseKeepAliveResponse { ttl, ..LeaseKeepAliveResponse::default() })
        }
    }
    fn nobody() -> Standing {
        Caller::default().standing()
    }

    #[tokio::test(start_paused = true)]
    async fn many_clients_keep_a_lease_alive_by_one_call() {
        let (all, gate, done) = (KeepAlives::default(), Arc::new(Semaphore::new(0)), Arc::new(AtomicI64::new(0)));
        let clients: Vec<_> = (0..200)
            .map(|_| {
                let (all, work) = (all.clone(), work(&gate, &done, 5));
                tokio::spawn(async move { all.join(1, nobody(), work).await.unwrap().ttl })
            })
            .collect();
        gate.add_permits(200);
        for client in clients {
            assert_eq!(client.await.unwrap(), 5);
        }
        assert_eq!(done.load(Ordering::SeqCst), 1);
        tokio::time::sleep(FRESH * 2).await;
        all.join(1, nobody(), work(&gate, &done, 5)).await.unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 2, "an old answer was given");
        all.join(2, nobody(), work(&gate, &done, 5)).await.unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 3, "another lease was taken for this one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_gone_is_asked_for_each_time() {
        let (all, gate, done) = (KeepAlives::default(), Arc::new(Semaphore::new(9)), Arc::new(AtomicI64::new(0)));
        all.join(1, nobody(), work(&gate, &done, 0)).await.unwrap();
        all.join(1, nobody(), work(&gate, &done, 5)).await.unwrap();
        all.forget(1);
        all.join(1, nobody(), work(&gate, &done, 5)).await.unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_goes_on_without_the_client_that_began_it() {
        let (all, gate, done) = (KeepAlives::default(), Arc::new(Semaphore::new(0)), Arc::new(AtomicI64::new(0)));
        let (first, begun) = (all.clone(), work(&gate, &done, 5));
        let first = tokio::spawn(async move { first.join(1, nobody(), begun).await });
        tokio::task::yield_now().await;
        first.abort();
        let (second, other) = (all.clone(), work(&gate, &done, 7));
        let second = tokio::spawn(async move { second.join(1, nobody(), other).await });
        tokio::task::yield_now().await;
        gate.add_permits(1);
        assert_eq!(second.await.unwrap().unwrap().ttl, 5);
    }
}
