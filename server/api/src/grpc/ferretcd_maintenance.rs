//! ferretcd.v1.Maintenance: Restore, the way back of a backup.

use std::time::Duration;

use ferretcd_node::Node;
use ferretcd_proto::ferretcd_v1::{
    RestoreOptions, RestoreRequest, RestoreResponse, maintenance_server::Maintenance, restore_request,
};
use ferretcd_types::{
    Error,
    limits::{RESTORE_CHUNK_BYTES_MAX, RESTORE_REVISION_BUMP},
};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    header,
    status::{from_error, from_receive},
};

/// How long a client may take between two pieces. Only one restore runs at a time, so one that has stalled must not
/// keep the next one out; an agent that reads from an object store has no reason for a longer pause.
const PIECE_WAIT_MAX: Duration = Duration::from_secs(60);

/// The service.
#[derive(Clone, Debug)]
pub struct FerretcdMaintenanceService {
    /// Who does the work.
    pub node: Node,
}

#[tonic::async_trait]
impl Maintenance for FerretcdMaintenanceService {
    /// Spools the whole file first; a client that gives up, or a file of another length than announced, leaves
    /// nothing behind.
    async fn restore(&self, request: Request<Streaming<RestoreRequest>>) -> Result<Response<RestoreResponse>, Status> {
        let mut requests = request.into_inner();
        let mut intake = Intake::default();
        let first = next(&mut requests).await?;
        let RestoreOptions { revision_bump, file_bytes } = intake.options(first).map_err(from_error)?;
        let mut spool = self.node.restore_spool().map_err(from_error)?;
        spool.expect_bytes(file_bytes).map_err(from_error)?;
        while let Some(request) = next(&mut requests).await? {
            spool.write(intake.chunk(request).map_err(from_error)?).await.map_err(from_error)?;
        }
        intake.finish().map_err(from_error)?;
        let reply = spool.restore(revision_bump.unwrap_or(RESTORE_REVISION_BUMP)).await.map_err(from_error)?;
        Ok(Response::new(RestoreResponse {
            header: Some(header::at(&self.node, reply.revision)),
            revision: reply.revision,
            keys: reply.live_keys,
            leases: reply.totals.leases,
            users: reply.totals.users,
            roles: reply.totals.roles,
        }))
    }
}

async fn next(requests: &mut Streaming<RestoreRequest>) -> Result<Option<RestoreRequest>, Status> {
    match timeout(PIECE_WAIT_MAX, requests.message()).await {
        Ok(request) => request.map_err(from_receive),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "ferretcd: no piece of the file came for {PIECE_WAIT_MAX:?}; nothing was changed, start the restore again"
        ))),
    }
}

/// The order that a restore's messages must have: options, then pieces that add up to the length announced.
#[derive(Debug, Default)]
struct Intake {
    /// Bytes that are still to come.
    left: u64,
}

impl Intake {
    fn options(&mut self, first: Option<RestoreRequest>) -> Result<RestoreOptions, Error> {
        match first.and_then(|r| r.request) {
            Some(restore_request::Request::Options(options)) => {
                self.left = options.file_bytes;
                Ok(options)
            }
            _ => Err(Error::BadSnapshot("the first message must hold the options".into())),
        }
    }

    fn chunk(&mut self, request: RestoreRequest) -> Result<bytes::Bytes, Error> {
        let Some(restore_request::Request::Chunk(chunk)) = request.request else {
            return Err(Error::BadSnapshot("after the options every message must hold a piece of the file".into()));
        };
        if chunk.len() > RESTORE_CHUNK_BYTES_MAX {
            let text = format!("a piece of {} bytes; send at most {RESTORE_CHUNK_BYTES_MAX}", chunk.len());
            return Err(Error::BadSnapshot(text));
        }
        let longer = || Error::BadSnapshot("the file is longer than file_bytes announced".into());
        self.left = self.left.checked_sub(chunk.len() as u64).ok_or_else(longer)?;
        Ok(chunk)
    }

    fn finish(&self) -> Result<(), Error> {
        match self.left {
            0 => Ok(()),
            left => Err(Error::BadSnapshot(format!("the file ended {left} bytes before the length announced"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn options(file_bytes: u64) -> RestoreRequest {
        let options = RestoreOptions { revision_bump: None, file_bytes };
        RestoreRequest { request: Some(restore_request::Request::Options(options)) }
    }
    fn piece(bytes: usize) -> RestoreRequest {
        RestoreRequest { request: Some(restore_request::Request::Chunk(Bytes::from(vec![0; bytes]))) }
    }
    fn intake(file_bytes: u64) -> Intake {
        let mut intake = Intake::default();
        intake.options(Some(options(file_bytes))).unwrap();
        intake
    }

    #[test]
    fn pieces_add_up_to_the_file() {
        let mut intake = intake(5);
        assert_eq!(intake.chunk(piece(3)).map(|c| c.len()), Ok(3));
        assert!(intake.finish().unwrap_err().to_string().contains("2 bytes before"));
        intake.chunk(piece(2)).unwrap();
        assert_eq!(intake.finish(), Ok(()));
        assert!(intake.chunk(piece(1)).unwrap_err().to_string().contains("longer than file_bytes"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stalls_is_given_up() {
        use ferretcd_proto::ferretcd_v1::{
            maintenance_client::MaintenanceClient, maintenance_server::MaintenanceServer,
        };
        use futures::{StreamExt, stream};

        /// Takes pieces as the service does, and has nowhere to put them.
        struct Stage;
        #[tonic::async_trait]
        impl Maintenance for Stage {
            async fn restore(
                &self,
                request: Request<Streaming<RestoreRequest>>,
            ) -> Result<Response<RestoreResponse>, Status> {
                let mut requests = request.into_inner();
                while next(&mut requests).await?.is_some() {}
                Ok(Response::new(RestoreResponse::default()))
            }
        }
        let mut client = MaintenanceClient::new(MaintenanceServer::new(Stage));
        let whole = stream::iter([options(1), piece(1)]);
        assert!(client.restore(whole.clone()).await.is_ok());
        let status = client.restore(whole.chain(stream::pending())).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    }

    #[test]
    fn messages_out_of_order_are_refused() {
        for first in [None, Some(RestoreRequest { request: None }), Some(piece(1))] {
            assert!(matches!(Intake::default().options(first), Err(Error::BadSnapshot(_))));
        }
        assert!(matches!(intake(1).chunk(options(1)), Err(Error::BadSnapshot(_))));
        let big = RESTORE_CHUNK_BYTES_MAX + 1;
        assert!(matches!(intake(big as u64).chunk(piece(big)), Err(Error::BadSnapshot(_))));
    }
}
