//! How this member reaches another: TCP for `http://`, TLS over it for `https://`, with what the server above holds for
//! certificates at that moment.

use crate::transport::client::{endpoint, source_text};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// How long a connection attempt to a peer may take, its handshake included: about an election timeout; a member that
/// takes longer is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Gives the TLS settings of the next connection. It may read files; nothing means that there are none.
pub type ClientTls = dyn Fn() -> Option<Arc<ClientConfig>> + Send + Sync;

/// Makes connections to other members. Cheap to clone; the default one knows no TLS.
#[derive(Clone, Default)]
pub struct Dialer {
    tls: Option<Arc<ClientTls>>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("tls", &self.tls.is_some()).finish()
    }
}

/// A byte stream, with TLS or without.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Dialer {
    /// One that asks for its TLS settings before each `https://` connection.
    pub fn with_tls(tls: Arc<ClientTls>) -> Self {
        Dialer { tls: Some(tls) }
    }

    /// A channel that connects when it is used, and again whenever its connection is lost.
    pub(crate) fn connect_lazy(&self, url: &str) -> Result<Channel, String> {
        let (endpoint, target) = self.target(url)?;
        let connect = move |_| {
            let target = target.clone();
            async move { target.connect().await.map(TokioIo::new) }
        };
        Ok(endpoint.connect_with_connector_lazy(service_fn(connect)))
    }

    /// A channel that is connected.
    pub(crate) async fn connect(&self, url: &str) -> Result<Channel, String> {
        let (endpoint, target) = self.target(url)?;
        let connect = move |_| {
            let target = target.clone();
            async move { target.connect().await.map(TokioIo::new) }
        };
        endpoint.connect_with_connector(service_fn(connect)).await.map_err(|e| source_text(&e))
    }

    fn target(&self, url: &str) -> Result<(Endpoint, Target), String> {
        let (secure, place) = match url.split_once("://") {
            Some(("http", place)) => (false, place),
            Some(("https", place)) => (true, place),
            _ => return Err(format!("{url}: members are reached by http:// or https://")),
        };
        // The connector does TLS, so the endpoint need not know of it.
        let endpoint = endpoint(format!("http://{place}")).map_err(|e| source_text(&e))?;
        let host = place.rsplit_once(':').map_or(place, |(host, _)| host).trim_matches(['[', ']']).to_owned();
        let tls = if secure { Some((self.tls.clone(), host)) } else { None };
        Ok((endpoint, Target { place: place.to_owned(), tls }))
    }
}

#[derive(Clone)]
struct Target {
    place: String,
    /// For TLS: where the settings come from, and the host that the certificate must be for.
    tls: Option<(Option<Arc<ClientTls>>, String)>,
}

impl Target {
    async fn connect(self) -> io::Result<Box<dyn Io>> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}"));
        tokio::time::timeout(CONNECT_TIMEOUT, self.connect_now()).await.map_err(late)?
    }

    async fn connect_now(self) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(&self.place).await?;
        stream.set_nodelay(true)?;
        let Some((tls, host)) = self.tls else { return Ok(Box::new(stream)) };
        let config = match tls {
            Some(tls) => tokio::task::spawn_blocking(move || tls()).await.map_err(io::Error::other)?,
            None => None,
        };
        let config = config.ok_or_else(|| {
            io::Error::other("no certificate authority is known for https:// members: set --peer-trusted-ca-file")
        })?;
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}
