//! v3lockpb.Lock: mutual exclusion for clients that have no library for it.

use ferretcd_node::Node;
use ferretcd_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock};
use ferretcd_types::{DeleteRange, Error, KeyRange, Range, TxnOp};
use tonic::{Request, Response, Status};

use super::{
    asked_by,
    session::{self, Claim, refusal},
};
use crate::header;

/// The service.
#[derive(Clone, Debug)]
pub struct LockService {
    /// Who does the work.
    pub node: Node,
}

/// etcd's words for a lease that ended while its holder waited.
const SESSION_EXPIRED: &str = "mutex: session is expired";

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let node = &asked_by(&self.node, &request);
        let LockRequest { name, lease } = request.into_inner();
        let lease = session::lease(node, lease).await.map_err(refusal)?;
        let (queue, key) = (session::queue(&name), session::key(&name, lease));
        let mine = Range { range: KeyRange::single(key.clone()), ..Range::default() };
        let owner = || TxnOp::Range(session::oldest(queue.clone()));
        // Takes a place, or finds the one that this lease has; and sees in the same moment who is first.
        let take = vec![session::put(&key, Default::default(), lease), owner()];
        let txn = session::if_created(&key, 0, take, vec![TxnOp::Range(mine.clone()), owner()]);
        let reply = node.txn(txn).await.map_err(refusal)?;
        let created = match session::first(reply.responses.first()) {
            Some(mine) => mine.create_revision,
            None => reply.revision,
        };
        let is_first = session::first(reply.responses.get(1)).is_none_or(|first| first.create_revision == created);
        if is_first {
            return Ok(Response::new(LockResponse { header: Some(header::at(node, reply.revision)), key }));
        }
        let claim = Claim::new(node, &key, created);
        session::wait_for_turn(node, &queue, created).await.map_err(refusal)?;
        // The lease may have ended meanwhile, and the place with it.
        let mine = node.range(mine).await.map_err(refusal)?;
        if mine.kvs.is_empty() {
            return Err(Status::unknown(SESSION_EXPIRED));
        }
        claim.keep();
        Ok(Response::new(LockResponse { header: Some(header::at(node, mine.revision)), key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let key = request.into_inner().key;
        if key.is_empty() {
            return Err(refusal(Error::EmptyKey));
        }
        let delete = DeleteRange { range: KeyRange::single(key), prev_kv: false };
        let reply = node.propose(delete).await.map_err(refusal)?;
        Ok(Response::new(UnlockResponse { header: Some(header::at(&self.node, reply.revision)) }))
    }
}
