//! One file per service, each a thin door: check the request's shape, hand the value to the node, dress the answer.

pub mod auth;
pub mod cluster;
pub mod election;
pub mod ferretcd_maintenance;
pub mod health;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod range_stream;
mod session;
pub mod watch;

use std::pin::Pin;

use ferretcd_node::{Credential, Node};
use futures::Stream;
use tonic::{Request, Status};

/// What a streaming call answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The node, asked in the name of whoever sent the request. Every handler whose method asks [`Below`] goes through it:
/// while auth is on, the plain node answers nobody.
///
/// [`Below`]: crate::method::Asks::Below
pub fn asked_by<T>(node: &Node, request: &Request<T>) -> Node {
    node.on_behalf_of(request.extensions().get::<Credential>().cloned().unwrap_or_default())
}
