//! The messages in a request's body: the first one, or all of them one by one as they come.

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use prost::Message;
use prost_reflect::MessageDescriptor;
use tokio::sync::oneshot;
use tonic::Status;

use super::{
    parse,
    scan::{Broken, Values},
};

/// Reads messages out of a body.
#[derive(Debug)]
pub struct Messages {
    body: BodyDataStream,
    values: Values,
    kind: MessageDescriptor,
    /// Longest JSON value in bytes.
    limit: usize,
    /// Told when the body breaks off.
    gone: Option<oneshot::Sender<()>>,
}

impl Messages {
    /// The messages of this type in a body. A JSON value of more than `limit` bytes is refused.
    pub fn new(body: Body, kind: MessageDescriptor, limit: usize) -> Self {
        Messages { body: body.into_data_stream(), values: Values::new(limit), kind, limit, gone: None }
    }

    /// The first message, encoded; the empty one if the body is empty. What follows it is read and forgotten, as etcd
    /// does, so that the client is not cut off while it still sends. The error is for the client.
    pub async fn only(mut self) -> Result<Bytes, Status> {
        let message = match self.next().await {
            Ok(message) => Ok(message.unwrap_or_default()),
            Err(Broken::Syntax(text)) => Err(Status::invalid_argument(text)),
            // The words of gRPC's own limit, which this one stands for.
            Err(Broken::TooLarge) => Err(Status::resource_exhausted(format!(
                "grpc: received message larger than max (more than {0} vs. {0})",
                self.limit
            ))),
        };
        let mut left = self.limit;
        while let Some(Ok(bytes)) = self.body.next().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
        }
        message
    }

    /// All messages, encoded. The stream ends where the body does, or before the first value that is no message, as
    /// etcd's does: its client is not told. The future ends if the body breaks off: then the client has gone, and nothing
    /// else may ever say so if there is nothing to write to it.
    pub fn all(mut self) -> (impl Stream<Item = Bytes> + Send + 'static, BoxFuture<'static, ()>) {
        let (gone, told) = oneshot::channel();
        self.gone = Some(gone);
        let messages = stream::unfold(self, |mut messages| async move {
            match messages.next().await {
                Ok(message) => message.map(|message| (message, messages)),
                Err(why) => {
                    tracing::debug!("a request stream of the gateway ends: {why:?}");
                    None
                }
            }
        });
        let gone = async {
            if told.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        (messages, gone.boxed())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        let json = loop {
            if let Some(json) = self.values.next()? {
                break Some(json);
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.values.push(&bytes),
                None => break self.values.finish()?,
                // A body that breaks off is a client that went; nobody reads what it is told.
                Some(Err(_)) => {
                    if let Some(gone) = self.gone.take() {
                        let _ = gone.send(());
                    }
                    break self.values.finish()?;
                }
            }
        };
        let Some(json) = json else { return Ok(None) };
        let message = parse::message(&self.kind, &json).map_err(Broken::Syntax)?;
        Ok(Some(message.encode_to_vec().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::routes;
    use std::io;

    /// How many messages came out of these pieces, and whether the client has gone after them.
    async fn messages(pieces: Vec<io::Result<Bytes>>) -> (usize, bool) {
        let kind = routes::table()["/v3/watch"].input.clone();
        let body = Body::from_stream(stream::iter(pieces));
        let (messages, gone) = Messages::new(body, kind, 100).all();
        (messages.count().await, gone.now_or_never().is_some())
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_a_client_that_has_gone() {
        let watch = || Ok(Bytes::from_static(br#"{"create_request":{}}"#));
        assert_eq!(messages(vec![watch(), watch()]).await, (2, false));
        assert_eq!(messages(vec![watch(), Err(io::ErrorKind::UnexpectedEof.into())]).await, (1, true));
        assert_eq!(messages(vec![watch(), Ok(Bytes::from_static(b"nonsense"))]).await, (1, false));
    }
}
