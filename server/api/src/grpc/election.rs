//! v3electionpb.Election: one leader at a time under a name, for clients that have no library for it.

use std::collections::VecDeque;

use bytes::Bytes;
use ferretcd_node::{Node, WatchStream};
use ferretcd_proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse, election_server::Election,
};
use ferretcd_types::{Error, EventKind, KeyRange, KeyValue, LeaseId, Range, TxnOp, TxnReply};
use futures::stream;
use tonic::{Request, Response, Status};

use super::{
    Answers, asked_by,
    session::{self, Claim, Seen, refusal},
};
use crate::{convert, header};

/// The service.
#[derive(Clone, Debug)]
pub struct ElectionService {
    /// Who does the work.
    pub node: Node,
}

// etcd's words.
const NO_LEADER: &str = "election: no leader";
const NOT_LEADER: &str = "election: not leader";
const MISSING_LEADER: &str = "\"leader\" field must be provided";

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let node = &asked_by(&self.node, &request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = session::lease(node, lease).await.map_err(refusal)?;
        let key = session::key(&name, lease);
        let mine = Range { range: KeyRange::single(key.clone()), ..Range::default() };
        let take = vec![session::put(&key, value.clone(), lease)];
        let txn = session::if_created(&key, 0, take, vec![TxnOp::Range(mine)]);
        let reply = node.txn(txn).await.map_err(refusal)?;
        let known = session::first(reply.responses.first());
        let created = known.map_or(reply.revision, |known| known.create_revision);
        let claim = Claim::new(node, &key, created);
        if known.is_some_and(|known| known.value != value) {
            proclaim_as(node, &key, created, value, lease).await?;
        }
        // A wait that fails leaves the candidate where it is, as in etcd; a client that goes away takes it along.
        if let Err(error) = session::wait_for_turn(node, &session::queue(&name), created).await {
            claim.keep();
            return Err(refusal(error));
        }
        claim.keep();
        let leader = LeaderKey { name, key, rev: created, lease: lease.0 };
        Ok(Response::new(CampaignResponse { header: Some(header::at(node, reply.revision)), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let LeaderKey { key, rev, lease, .. } = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        let lease = session::lease(&node, lease).await.map_err(refusal)?;
        let reply = proclaim_as(&node, &key, rev, value, lease).await?;
        Ok(Response::new(ProclaimResponse { header: Some(header::at(&self.node, reply.revision)) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let queue = session::queue(&request.into_inner().name);
        let reply = node.range(session::oldest(queue)).await.map_err(refusal)?;
        let leader = reply.kvs.into_iter().next().ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(answer(&self.node, reply.revision, leader)))
    }

    type ObserveStream = Answers<LeaderResponse>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let node = asked_by(&self.node, &request);
        let queue = session::queue(&request.into_inner().name);
        let observer = Observer { node, queue, watch: Watch::Nothing, answers: VecDeque::new() };
        let answers = stream::try_unfold(observer, |mut observer| async move {
            let answer = observer.next().await.map_err(refusal)?;
            Ok(Some((answer, observer)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let leader = request.into_inner().leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        session::lease(&node, leader.lease).await.map_err(refusal)?;
        if leader.key.is_empty() {
            return Err(refusal(Error::EmptyKey));
        }
        // Resigning what one does not lead is no error.
        let reply = node.txn(session::give_up(&leader.key, leader.rev)).await.map_err(refusal)?;
        Ok(Response::new(ResignResponse { header: Some(header::at(&self.node, reply.revision)) }))
    }
}

async fn proclaim_as(node: &Node, key: &Bytes, created: i64, value: Bytes, lease: LeaseId) -> Result<TxnReply, Status> {
    if key.is_empty() {
        return Err(refusal(Error::EmptyKey));
    }
    let txn = session::if_created(key, created, vec![session::put(key, value, lease)], Vec::new());
    let reply = node.txn(txn).await.map_err(refusal)?;
    if reply.succeeded { Ok(reply) } else { Err(Status::unknown(NOT_LEADER)) }
}

fn answer(node: &Node, revision: i64, leader: KeyValue) -> LeaderResponse {
    LeaderResponse { header: Some(header::at(node, revision)), kv: Some(convert::key_value(leader)) }
}

/// Follows who leads and what the leader proclaims.
struct Observer {
    node: Node,
    queue: KeyRange,
    watch: Watch,
    /// What the client is to be told next. Bounded by what one message of the watcher holds.
    answers: VecDeque<LeaderResponse>,
}

enum Watch {
    /// Look who leads.
    Nothing,
    /// Nobody leads: the first key that comes does.
    Queue(WatchStream),
    /// This leader's key, until it goes.
    Leader(WatchStream),
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, Error> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(answer);
            }
            match &mut self.watch {
                Watch::Nothing => self.look().await?,
                Watch::Queue(watch) => match session::next(watch).await? {
                    Seen::Events(_, events) => {
                        if let Some(put) = events.into_iter().find(|event| event.kind == EventKind::Put) {
                            self.elected(put.kv.mod_revision, put.kv);
                        }
                    }
                    Seen::Lost => self.watch = Watch::Nothing,
                },
                Watch::Leader(watch) => match session::next(watch).await? {
                    Seen::Events(revision, events) => {
                        for event in events {
                            if event.kind == EventKind::Delete {
                                self.watch = Watch::Nothing;
                                break;
                            }
                            self.answers.push_back(answer(&self.node, revision, event.kv));
                        }
                    }
                    Seen::Lost => self.watch = Watch::Nothing,
                },
            }
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let reply = self.node.range(session::oldest(self.queue.clone())).await?;
        match reply.kvs.into_iter().next() {
            Some(leader) => self.elected(reply.revision, leader),
            None => self.watch = Watch::Queue(session::watch(&self.node, self.queue.clone(), reply.revision + 1)),
        }
        Ok(())
    }

    /// Tells of a leader as of a revision, and follows it from there.
    fn elected(&mut self, revision: i64, leader: KeyValue) {
        let key = KeyRange::single(leader.key.clone());
        self.watch = Watch::Leader(session::watch(&self.node, key, revision + 1));
        self.answers.push_back(answer(&self.node, revision, leader));
    }
}
