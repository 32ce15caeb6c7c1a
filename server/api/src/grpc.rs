//! One file per service, each a thin door: check the request's shape, hand the value to the node, dress the answer.

pub mod cluster;
pub mod ferretcd_maintenance;
pub mod health;
pub mod kv;
pub mod lease;
pub mod maintenance;
pub mod watch;

use std::pin::Pin;

use futures::Stream;
use tonic::Status;

/// What a streaming call answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
