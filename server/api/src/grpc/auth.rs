//! etcdserverpb.Auth: users, roles and permissions, and tokens for users.

use ferretcd_node::Node;
use ferretcd_proto::{authpb, etcdserverpb as pb, etcdserverpb::auth_server::Auth};
use ferretcd_types::{AuthChange, KeyRange, Permission};
use tonic::{Request, Response, Status};

use super::asked_by;
use crate::{header, status::from_error};

/// The service.
#[derive(Clone, Debug)]
pub struct AuthService {
    /// Who does the work.
    pub node: Node,
}

type Answer<T> = Result<Response<T>, Status>;

impl AuthService {
    /// Proposes a change in the name of who sent the request, and makes the header of its answer.
    async fn change<T>(&self, request: Request<T>, change: impl FnOnce(T) -> AuthChange) -> Answered {
        let node = asked_by(&self.node, &request);
        let reply = node.propose(change(request.into_inner())).await.map_err(from_error)?;
        Ok(Some(header::at(&self.node, reply.revision)))
    }
}

type Answered = Result<Option<pb::ResponseHeader>, Status>;

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(&self, request: Request<pb::AuthEnableRequest>) -> Answer<pb::AuthEnableResponse> {
        let header = self.change(request, |_| AuthChange::Enable).await?;
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(&self, request: Request<pb::AuthDisableRequest>) -> Answer<pb::AuthDisableResponse> {
        let header = self.change(request, |_| AuthChange::Disable).await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn auth_status(&self, request: Request<pb::AuthStatusRequest>) -> Answer<pb::AuthStatusResponse> {
        let status = asked_by(&self.node, &request).auth_status().await;
        let (enabled, auth_revision) = status.map_err(from_error)?;
        let header = Some(header::now(&self.node));
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(&self, request: Request<pb::AuthenticateRequest>) -> Answer<pb::AuthenticateResponse> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let (token, revision) = self.node.authenticate(name, password).await.map_err(from_error)?;
        let header = Some(header::at(&self.node, revision));
        Ok(Response::new(pb::AuthenticateResponse { header, token }))
    }

    async fn user_add(&self, request: Request<pb::AuthUserAddRequest>) -> Answer<pb::AuthUserAddResponse> {
        let node = asked_by(&self.node, &request);
        // A hash that a client sends is passed over, as etcd does.
        let pb::AuthUserAddRequest { name, password, options, hashed_password: _ } = request.into_inner();
        let no_password = options.is_some_and(|options| options.no_password);
        let reply = node.user_add(name, password, no_password).await.map_err(from_error)?;
        let header = Some(header::at(&self.node, reply.revision));
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_get(&self, request: Request<pb::AuthUserGetRequest>) -> Answer<pb::AuthUserGetResponse> {
        let node = asked_by(&self.node, &request);
        let roles = node.user_roles(&request.into_inner().name).await.map_err(from_error)?;
        let header = Some(header::now(&self.node));
        Ok(Response::new(pb::AuthUserGetResponse { header, roles }))
    }

    async fn user_list(&self, request: Request<pb::AuthUserListRequest>) -> Answer<pb::AuthUserListResponse> {
        let users = asked_by(&self.node, &request).user_list().await.map_err(from_error)?;
        let header = Some(header::now(&self.node));
        Ok(Response::new(pb::AuthUserListResponse { header, users }))
    }

    async fn user_delete(&self, request: Request<pb::AuthUserDeleteRequest>) -> Answer<pb::AuthUserDeleteResponse> {
        let header = self.change(request, |r| AuthChange::UserDelete { name: r.name }).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Answer<pb::AuthUserChangePasswordResponse> {
        let node = asked_by(&self.node, &request);
        let pb::AuthUserChangePasswordRequest { name, password, hashed_password: _ } = request.into_inner();
        let reply = node.user_change_password(name, password).await.map_err(from_error)?;
        let header = Some(header::at(&self.node, reply.revision));
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Answer<pb::AuthUserGrantRoleResponse> {
        let change = |r: pb::AuthUserGrantRoleRequest| AuthChange::UserGrantRole { user: r.user, role: r.role };
        let header = self.change(request, change).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Answer<pb::AuthUserRevokeRoleResponse> {
        let change = |r: pb::AuthUserRevokeRoleRequest| AuthChange::UserRevokeRole { user: r.name, role: r.role };
        let header = self.change(request, change).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(&self, request: Request<pb::AuthRoleAddRequest>) -> Answer<pb::AuthRoleAddResponse> {
        let header = self.change(request, |r| AuthChange::RoleAdd { name: r.name }).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_get(&self, request: Request<pb::AuthRoleGetRequest>) -> Answer<pb::AuthRoleGetResponse> {
        let node = asked_by(&self.node, &request);
        let permissions = node.role_permissions(&request.into_inner().role).await.map_err(from_error)?;
        let perm = permissions.into_iter().map(permission).collect();
        let header = Some(header::now(&self.node));
        Ok(Response::new(pb::AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(&self, request: Request<pb::AuthRoleListRequest>) -> Answer<pb::AuthRoleListResponse> {
        let roles = asked_by(&self.node, &request).role_list().await.map_err(from_error)?;
        let header = Some(header::now(&self.node));
        Ok(Response::new(pb::AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(&self, request: Request<pb::AuthRoleDeleteRequest>) -> Answer<pb::AuthRoleDeleteResponse> {
        let header = self.change(request, |r| AuthChange::RoleDelete { name: r.role }).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Answer<pb::AuthRoleGrantPermissionResponse> {
        let change = |r: pb::AuthRoleGrantPermissionRequest| {
            let permission = r.perm.map(|p| Permission { kind: p.perm_type, range: KeyRange::new(p.key, p.range_end) });
            AuthChange::RoleGrantPermission { role: r.name, permission }
        };
        let header = self.change(request, change).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Answer<pb::AuthRoleRevokePermissionResponse> {
        let change = |r: pb::AuthRoleRevokePermissionRequest| {
            let range = KeyRange::new(r.key, r.range_end);
            AuthChange::RoleRevokePermission { role: r.role, range }
        };
        let header = self.change(request, change).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}

fn permission(permission: Permission) -> authpb::Permission {
    let Permission { kind, range } = permission;
    authpb::Permission { perm_type: kind, key: range.start, range_end: range.end }
}
