//! etcdserverpb.Cluster: passed on, but for the list of members, which names the proxies: clients that follow it are to
//! stay with them.

use crate::caller::Caller;
use crate::client;
use crate::kv;
use crate::register::{Registered, hostname};
use crate::shared::Shared;
use ferretcd_proto::etcdserverpb::cluster_client::ClusterClient;
use ferretcd_proto::etcdserverpb::cluster_server::Cluster;
use ferretcd_proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    RangeRequest,
};
use tonic::{Request, Response, Status};

/// Proxies that are listed; far more than anybody runs, and one answer has room for them.
const PROXIES_MAX: i64 = 1000;

/// The service.
#[derive(Clone, Debug)]
pub struct ClusterService {
    /// What it works with.
    pub shared: Shared,
    /// `--advertise-client-url`; empty: clients see the members.
    pub advertised: String,
    /// `--resolver-prefix`; empty: this proxy knows of no other.
    pub prefix: String,
}

impl ClusterService {
    /// The proxies that have registered below the prefix.
    async fn proxies(&self) -> Result<Vec<Member>, Status> {
        let (mut key, mut end) = Registered::all(&self.prefix);
        self.shared.namespace.range(&mut key, &mut end);
        let read = RangeRequest { key, range_end: end, limit: PROXIES_MAX, serializable: true, ..Default::default() };
        let answer = kv::range(&self.shared, &Caller::default(), &read).await?;
        let registered = answer.kvs.iter().filter_map(|kv| Registered::read(&kv.value));
        Ok(registered.map(|r| Member { name: r.name, client_ur_ls: vec![r.address], ..Member::default() }).collect())
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if self.advertised.is_empty() {
            let caller = Caller::of(request.metadata());
            return client!(self.shared, ClusterClient).member_list(caller.request(request.into_inner())).await;
        }
        let mut members = Vec::new();
        if !self.prefix.is_empty() {
            match self.proxies().await {
                Ok(proxies) => members = proxies,
                Err(status) => tracing::warn!(prefix = self.prefix, "cannot read the registered proxies: {status}"),
            }
        }
        if members.is_empty() {
            members.push(Member { name: hostname(), client_ur_ls: vec![self.advertised.clone()], ..Member::default() });
        }
        Ok(Response::new(MemberListResponse { header: None, members }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let caller = Caller::of(request.metadata());
        client!(self.shared, ClusterClient).member_add(caller.request(request.into_inner())).await
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let caller = Caller::of(request.metadata());
        client!(self.shared, ClusterClient).member_remove(caller.request(request.into_inner())).await
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let caller = Caller::of(request.metadata());
        client!(self.shared, ClusterClient).member_update(caller.request(request.into_inner())).await
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let caller = Caller::of(request.metadata());
        client!(self.shared, ClusterClient).member_promote(caller.request(request.into_inner())).await
    }
}
