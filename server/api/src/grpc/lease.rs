//! etcdserverpb.Lease: keys that live as long as somebody renews their lease.

use ferretcd_node::{LeaseTtl, Node, Standing};
use ferretcd_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, lease_server::Lease,
};
use ferretcd_types::{Error, LeaseId, LeaseRevoke};
use futures::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, asked_by};
use crate::{
    header,
    status::{from_error, from_receive},
    trace::{self, number},
    validate,
};

/// Keep-alives of one stream under way at once: members that are 50 ms apart renew some three hundred a second. Each waits with the
/// reads for a round, of which thousands of streams that come back together must not take all places.
const KEEP_ALIVES_AHEAD: usize = 16;

/// The service.
#[derive(Clone, Debug)]
pub struct LeaseService {
    /// Who does the work.
    pub node: Node,
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let request = request.into_inner();
        // etcd looks at the caller first.
        node.require(Standing::User).await.map_err(from_error)?;
        validate::lease_grant(&request).map_err(from_error)?;
        let mut span = trace::span("lease_grant", || vec![number("id", request.id), number("ttl", request.ttl)]);
        let granted = trace::proposed(&mut span, node.lease_grant(LeaseId(request.id), request.ttl)).await;
        let reply = granted.map_err(from_error)?;
        let header = Some(header::at(&self.node, reply.revision));
        Ok(Response::new(LeaseGrantResponse { header, id: reply.id.0, ttl: reply.ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let id = LeaseId(request.into_inner().id);
        let mut span = trace::span("lease_revoke", || vec![number("id", id.0)]);
        let reply = trace::proposed(&mut span, node.propose(LeaseRevoke { id })).await.map_err(from_error)?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(header::at(&self.node, reply.revision)) }))
    }

    type LeaseKeepAliveStream = Answers<LeaseKeepAliveResponse>;

    /// One answer per request, in order. Those that come together share the round that each needs: a client has all of its
    /// leases on one stream, thousands in some.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (node, requests) = (asked_by(&self.node, &request), request.into_inner());
        let context = trace::current();
        let answers = requests.map(move |request| {
            let (node, context) = (node.clone(), context.clone());
            async move {
                let request = request.map_err(from_receive)?;
                let _span = context.as_ref().map(|c| c.span("lease_renew", vec![number("id", request.id)]));
                keep_alive(&node, request).await
            }
        });
        let answers = answers.buffered(KEEP_ALIVES_AHEAD);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let lease = node.lease_time_to_live(LeaseId(id), keys).await.map_err(from_error)?;
        let LeaseTtl { ttl, granted, keys } = lease;
        let header = Some(header::now(&self.node));
        Ok(Response::new(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl: granted, keys }))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = asked_by(&self.node, &request).leases().await.map_err(from_error)?;
        let leases = leases.into_iter().map(|id| LeaseStatus { id: id.0 }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: Some(header::now(&self.node)), leases }))
    }
}

/// A lease that is gone is an answer with TTL 0, not an error. The header is from before the renewal, as etcd's.
async fn keep_alive(node: &Node, request: LeaseKeepAliveRequest) -> Result<LeaseKeepAliveResponse, Status> {
    let header = Some(header::now(node));
    let ttl = match node.lease_keep_alive(LeaseId(request.id)).await {
        Err(Error::LeaseNotFound) => 0,
        result => result.map_err(from_error)?,
    };
    Ok(LeaseKeepAliveResponse { header, id: request.id, ttl })
}
