//! Calls that go to a member as they come, unread: users and roles, maintenance, locks and elections. (As in etcd's
//! proxy the namespace says nothing about locks and elections of those two services.)

use crate::caller::pass_headers;
use crate::shared::Shared;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{Extensions, Version};
use tonic::body::Body;

/// Changes of users and roles: what was cached for all may be for few now.
const CHANGES: &str = "/etcdserverpb.Auth/";

/// The one call of that service that changes nothing.
const LOGIN: &str = "/etcdserverpb.Auth/Authenticate";

/// Sends a call on.
pub async fn pass(State(shared): State<Shared>, request: Request) -> Response {
    let path = request.uri().path();
    let changes = path.starts_with(CHANGES) && path != LOGIN;
    let (mut parts, body) = request.into_parts();
    pass_headers(&mut parts.headers);
    parts.version = Version::HTTP_2;
    parts.extensions = Extensions::new();
    let answer = shared.upstream.send(http::Request::from_parts(parts, Body::new(body))).await;
    if changes {
        shared.cache(|cache| cache.clear(None));
    }
    match answer {
        Ok(answer) => {
            let (mut parts, body) = answer.into_parts();
            pass_headers(&mut parts.headers);
            parts.extensions = Extensions::new();
            Response::from_parts(parts, axum::body::Body::new(body))
        }
        Err(status) => status.into_http(),
    }
}
