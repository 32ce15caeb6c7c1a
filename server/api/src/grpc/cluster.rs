//! etcdserverpb.Cluster: who the members are.

use ferretcd_node::{Node, Standing};
use ferretcd_proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    cluster_server::Cluster,
};
use ferretcd_types::MemberId;
use tonic::{Request, Response, Status};

use super::asked_by;
use crate::{
    convert::cluster::{member, members},
    header,
    status::from_error,
    validate,
};

/// The service.
#[derive(Clone, Debug)]
pub struct ClusterService {
    /// Who does the work.
    pub node: Node,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let node = asked_by(&self.node, &request);
        let MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        validate::peer_urls(&peer_ur_ls).map_err(from_error)?;
        node.require(Standing::Root).await.map_err(from_error)?;
        let (added, all) = self.node.member_add(peer_ur_ls, is_learner).await.map_err(from_error)?;
        let header = Some(header::without_revision(&self.node));
        Ok(Response::new(MemberAddResponse { header, member: Some(member(added)), members: members(all) }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let id = MemberId(request.into_inner().id);
        let all = self.node.member_remove(id).await.map_err(from_error)?;
        let header = Some(header::without_revision(&self.node));
        Ok(Response::new(MemberRemoveResponse { header, members: members(all) }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        validate::peer_urls(&peer_ur_ls).map_err(from_error)?;
        let all = self.node.member_update(MemberId(id), peer_ur_ls).await.map_err(from_error)?;
        let header = Some(header::without_revision(&self.node));
        Ok(Response::new(MemberUpdateResponse { header, members: members(all) }))
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        let linearizable = request.into_inner().linearizable;
        let all = self.node.member_list(linearizable).await.map_err(from_error)?;
        let header = Some(header::without_revision(&self.node));
        Ok(Response::new(MemberListResponse { header, members: members(all) }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let id = MemberId(request.into_inner().id);
        let all = self.node.member_promote(id).await.map_err(from_error)?;
        let header = Some(header::without_revision(&self.node));
        Ok(Response::new(MemberPromoteResponse { header, members: members(all) }))
    }
}
