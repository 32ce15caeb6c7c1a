//! How this member reaches another: TCP for `http://`, TLS over it for `https://`, with what the server above holds for
//! certificates at that moment.

use crate::transport::client::{endpoint, source_text};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use tower::util::BoxCloneSyncService;

/// How long a connection attempt to a peer may take, its handshake included, beside the election time-out: over a slow
/// link, for which people raise that one, a few round trips take longer than this. (etcd's sum.) Where
/// nothing at all answers, the system gives up after [`Patience::write`] if that is shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection to a member may be silent or stuck before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// With nothing read (`--raft-read-timeout`). A silent member is asked every [`ASK_EVERY`].
    pub read: Duration,
    /// With something sent that its system has not acknowledged (`--raft-write-timeout`).
    pub write: Duration,
}

impl Patience {
    /// etcd's default and least value.
    pub const LEAST: Duration = Duration::from_secs(5);
}

impl Default for Patience {
    fn default() -> Self {
        Patience { read: Self::LEAST, write: Self::LEAST }
    }
}

/// Bytes that the system keeps for a member beyond those that are on the wire. What lies there cannot be overtaken by heartbeats
/// nor by the question whether the member lives, whose answer is due in seconds; the system's own bound is megabytes. Two times
/// what HTTP/2's frames are gathered to, and a fraction of a second on any wire that a group can live with.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// How often a silent connection is asked whether it lives.
pub const ASK_EVERY: Duration = Duration::from_secs(2);

/// Gives the TLS settings of the next connection. It may read files; nothing means that there are none.
pub type ClientTls = dyn Fn() -> Option<Arc<ClientConfig>> + Send + Sync;

/// What stands in for a connection in a simulation.
pub type Wire = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, StdError>;

/// Gives the wire to the member at a URL.
pub type Wires = dyn Fn(&str) -> Wire + Send + Sync;

/// The way to one member.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    Net(Channel),
    Wire(Wire),
}

impl Service<http::Request<Body>> for Link {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Link::Net(channel) => channel.poll_ready(cx).map_err(Into::into),
            Link::Wire(wire) => wire.poll_ready(cx),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self {
            Link::Net(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { answer.await.map_err(Into::into) })
            }
            Link::Wire(wire) => wire.call(request),
        }
    }
}

/// Makes connections to other members. Cheap to clone; the default one knows no TLS.
#[derive(Clone, Default)]
pub struct Dialer {
    tls: Option<Arc<ClientTls>>,
    /// In a simulation, which has no sockets.
    wires: Option<Arc<Wires>>,
    /// The election time-out.
    election: Duration,
    patience: Patience,
    /// The name that certificates must be for, if it is not the host that is called.
    server_name: Option<String>,
    /// The own address that connections come from, if it is not the kernel's choice.
    local: Option<IpAddr>,
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
    /// One that asks for its TLS settings before each `https://` connection, for members with this election time-out.
    pub fn new(tls: Arc<ClientTls>, election: Duration, patience: Patience) -> Self {
        Dialer { tls: Some(tls), election, patience, ..Dialer::default() }
    }

    /// One whose calls go to members with certificates for this name, whatever their hosts.
    pub fn to_name(self, server_name: Option<String>) -> Self {
        Dialer { server_name, ..self }
    }

    /// One whose connections come from this address.
    pub fn from_address(self, local: Option<IpAddr>) -> Self {
        Dialer { local, ..self }
    }

    /// One that makes no connections: for a simulation.
    pub fn within(wires: Arc<Wires>, election: Duration) -> Self {
        Dialer { wires: Some(wires), election, ..Dialer::default() }
    }

    /// A channel that connects when it is used, and again whenever its connection is lost.
    pub(crate) fn connect_lazy(&self, url: &str) -> Result<Link, String> {
        if let Some(wires) = &self.wires {
            return Ok(Link::Wire(wires(url)));
        }
        let (endpoint, target) = self.target(url)?;
        let connect = move |_| {
            let target = target.clone();
            async move { target.connect().await.map(TokioIo::new) }
        };
        Ok(Link::Net(endpoint.connect_with_connector_lazy(service_fn(connect))))
    }

    /// A channel that is connected.
    pub(crate) async fn connect(&self, url: &str) -> Result<Link, String> {
        if let Some(wires) = &self.wires {
            return Ok(Link::Wire(wires(url)));
        }
        let (endpoint, target) = self.target(url)?;
        let connect = move |_| {
            let target = target.clone();
            async move { target.connect().await.map(TokioIo::new) }
        };
        endpoint.connect_with_connector(service_fn(connect)).await.map(Link::Net).map_err(|e| source_text(&e))
    }

    fn target(&self, url: &str) -> Result<(Endpoint, Target), String> {
        let (secure, place) = match url.split_once("://") {
            Some(("http", place)) => (false, place),
            Some(("https", place)) => (true, place),
            _ => return Err(format!("{url}: members are reached by http:// or https://")),
        };
        // The connector does TLS, so the endpoint need not know of it.
        let endpoint = endpoint(format!("http://{place}"), self.patience.read).map_err(|e| source_text(&e))?;
        let host = place.rsplit_once(':').map_or(place, |(host, _)| host).trim_matches(['[', ']']).to_owned();
        let host = self.server_name.clone().unwrap_or(host);
        let tls = if secure { Some((self.tls.clone(), host)) } else { None };
        Ok((
            endpoint,
            Target {
                place: place.to_owned(),
                tls,
                timeout: CONNECT_TIMEOUT + self.election,
                write: self.patience.write,
                local: self.local,
            },
        ))
    }
}

#[derive(Clone)]
struct Target {
    place: String,
    /// For TLS: where the settings come from, and the host that the certificate must be for.
    tls: Option<(Option<Arc<ClientTls>>, String)>,
    /// How long it may take.
    timeout: Duration,
    /// See [`Patience::write`].
    write: Duration,
    /// See [`Dialer::from_address`].
    local: Option<IpAddr>,
}

impl Target {
    async fn connect(self) -> io::Result<Box<dyn Io>> {
        let timeout = self.timeout;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}"));
        tokio::time::timeout(timeout, self.connect_now()).await.map_err(late)?
    }

    /// `connector` finds the addresses of a name.
    async fn tcp<R>(&self, mut connector: HttpConnector<R>) -> io::Result<TcpStream>
    where
        HttpConnector<R>: Service<http::Uri, Response = TokioIo<TcpStream>, Error: Error>,
    {
        connector.set_nodelay(true);
        connector.set_tcp_user_timeout(Some(self.write));
        connector.set_local_address(self.local);
        // Each of its addresses has its part; those of the other kind are tried when the first have not answered for a moment.
        connector.set_connect_timeout(Some(self.timeout));
        let url = format!("http://{}", self.place).parse().map_err(io::Error::other)?;
        let stream = connector.call(url).await.map_err(|e| io::Error::other(source_text(&e)))?.into_inner();
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        Ok(stream)
    }

    async fn connect_now(self) -> io::Result<Box<dyn Io>> {
        let stream = self.tcp(HttpConnector::new()).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_util::client::legacy::connect::dns::Name;
    use std::net::SocketAddr;

    fn target(place: &str, local: Option<&str>) -> Target {
        let local = local.map(|local| local.parse().unwrap());
        Dialer::default().from_address(local).target(&format!("http://{place}")).unwrap().1
    }

    #[tokio::test]
    async fn a_connection_comes_from_the_address_that_was_asked_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap().to_string();
        let _stream = target(&place, Some("127.0.0.7")).tcp(HttpConnector::new()).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().1.ip().to_string(), "127.0.0.7");
        let none = target(&place, Some("::1")).tcp(HttpConnector::new()).await.unwrap_err();
        assert_eq!(none.to_string(), "Network unreachable");
    }

    /// Such as one of IPv6 where the network has none, or that of a host that went.
    #[tokio::test]
    async fn an_address_that_swallows_all_does_not_hide_the_others() {
        let swallows = tokio::net::TcpSocket::new_v4().unwrap();
        swallows.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let swallows = swallows.listen(0).unwrap();
        let place = swallows.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(place)).await {
            waiting.push(stream);
        }
        for other in ["127.0.0.2", "::1"] {
            let other = SocketAddr::new(other.parse().unwrap(), place.port());
            let Ok(listens) = tokio::net::TcpListener::bind(other).await else { continue };
            let addresses = move |_: Name| async move { Ok::<_, io::Error>([place, other].into_iter()) };
            let connector = HttpConnector::new_with_resolver(service_fn(addresses));
            let member = target(&format!("member:{}", place.port()), None);
            // A connection that is not answered is given up after the 5 s of `write`, too.
            let stream = tokio::time::timeout(Duration::from_secs(4), member.tcp(connector)).await.unwrap().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), listens.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn a_connection_may_take_a_second_and_an_election_time_out() {
        let dialer = Dialer { election: Duration::from_millis(1500), ..Dialer::default() };
        let (_, target) = dialer.target("https://[::1]:2380").unwrap();
        assert_eq!(target.timeout, Duration::from_millis(2500));
        // One that takes the connection, and never says a word of TLS.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let roots = rustls::RootCertStore::empty();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = Arc::new(config);
        let dialer = Dialer::new(Arc::new(move || Some(config.clone())), Duration::ZERO, Patience::default());
        let why = dialer.connect(&format!("https://{}", silent.local_addr().unwrap())).await.unwrap_err();
        assert_eq!(why, "no connection within 1s");
    }

    #[tokio::test]
    async fn a_connection_is_given_up_as_late_as_it_was_asked_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let patience = Patience { read: Duration::from_secs(6), write: Duration::from_secs(7) };
        let dialer = Dialer { patience, ..Dialer::default() };
        let (_, target) = dialer.target(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        assert_eq!(target.write, patience.write);
        let stream = target.tcp(HttpConnector::new()).await.unwrap();
        assert_eq!(rustix::net::sockopt::tcp_user_timeout(&stream).unwrap(), 7000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_takes_the_connection_and_says_nothing_more_is_given_up_after_the_read_time_out() {
        use ferretcd_proto::peer::ProbeRequest;
        // h2's greeting comes, and then no answer to any question.
        let (near, mut far) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let _ = far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            let mut buf = [0; 4096];
            while far.read(&mut buf).await.is_ok_and(|n| n > 0) {}
        });
        let endpoint = endpoint("http://silent:1".to_owned(), Duration::from_secs(60)).unwrap();
        let mut near = Some(near);
        let connect = move |_| {
            let near = near.take().ok_or_else(|| io::Error::other("only once"));
            async move { near.map(TokioIo::new) }
        };
        let channel = endpoint.connect_with_connector(service_fn(connect)).await.unwrap();
        let begun = tokio::time::Instant::now();
        let mut client = ferretcd_proto::peer::peer_client::PeerClient::new(channel);
        assert!(client.probe(ProbeRequest::default()).await.is_err());
        let took = begun.elapsed();
        assert!((55..=65).contains(&took.as_secs()), "{took:?}");
    }
}
