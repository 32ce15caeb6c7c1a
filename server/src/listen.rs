//! Listeners: HTTP/1.1 and HTTP/2 on one port, so that gRPC, the health endpoints and curl share it, with TLS, without,
//! or both, on TCP and on Unix sockets.

mod pings;

use self::pings::Watched;
use crate::config::{Address, Place};
use crate::tls::material::Material;
use crate::tls::{certificate, verify};
use axum::Router;
use ferretcd_api::trace::Local;
use ferretcd_api::{CertName, Remote};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// See `ferretcd_raft::transport::client`: small windows make h2 close connections with many small frames.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// Connections at once on one listener; beyond, new ones wait in the kernel's queue. It stays below the usual 65536 file
/// descriptors of a unit file, and what one connection may hold, times this, below what a machine has.
const CONNECTIONS_MAX: usize = 32_768;

/// File descriptors that are kept for the store, the log and other members (etcd's number).
const DESCRIPTORS_KEPT: u64 = 150;

/// Connections that the kernel keeps until they are taken (its own bound is often lower).
const BACKLOG: u32 = 1024;

/// Handshakes at once on one listener: callers that never finish theirs leave most of the places to others.
const HANDSHAKES_MAX: usize = CONNECTIONS_MAX / 8;

/// etcd's bound for one handshake, waiting for its turn and looking up of names included.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// etcd's time for the head of an HTTP/1 request; the first bytes, which tell HTTP/1 from HTTP/2, must be there as soon.
const HEAD_TIMEOUT: Duration = Duration::from_secs(300);

/// How many first bytes tell HTTP/1 from HTTP/2: the length of the preface of HTTP/2.
const PREFACE_BYTES: usize = 24;

/// When the kernel asks a silent connection whether its other end is still there, and how often again (etcd's number).
/// A client that lost its power says nothing any more, and its place would stay taken for good.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Bytes of the head of a request: Go's DefaultMaxHeaderBytes. (hyper's own bounds, 400 KiB and 16 KiB, would be in the
/// way of large tokens. grpc-go takes 16 MiB, which no client has a use for.)
const HEAD_BYTES_MAX: u32 = 1 << 20;

/// Calls that a client may take back before they were looked at. hyper ends the connection after 20, which a client that
/// gives up a batch of calls at once would meet; etcd has no such bound.
const TAKEN_BACK_MAX: usize = 10_000;

/// The first byte of a TLS connection: its record type "handshake".
const TLS_HANDSHAKE: u8 = 22;

/// How long open connections may finish what they do when the server stops, and no call is under way any more that is waited for.
pub const DRAIN: Duration = Duration::from_millis(500);

/// A bound socket. A Unix socket's file goes away with it.
#[derive(Debug)]
pub struct Socket {
    place: Place,
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// How connections are served, the same on all listeners of a kind.
#[derive(Clone, Debug)]
pub struct Service {
    /// "client" or "peer", for the log.
    pub kind: &'static str,
    /// What is served without TLS.
    pub router: Router,
    /// What is served over TLS: etcd looks less closely there at who asks.
    pub secure_router: Router,
    /// The certificates, where TLS is spoken.
    pub tls: Option<Arc<Material>>,
    /// A caller's address must be among the names of its certificate, if it shows one.
    pub compares_address: bool,
    /// Streams that one connection may have open.
    pub streams_max: u32,
    /// Connections at once on one listener.
    pub connections_max: usize,
    /// When a silent connection is asked whether it lives, and how long it may take to say so.
    pub keep_alive: (Option<Duration>, Duration),
    /// How far apart a client's own pings must be, where that is looked at.
    pub ping_min_time: Option<Duration>,
    /// The same over TLS.
    pub secure_ping_min_time: Option<Duration>,
    /// The calls that are answered before a stop, and for how long they are waited for. Closed, so that there may be none.
    pub under_way: (TaskTracker, Duration),
}

/// How many connections a listener may have by this process's limit of file descriptors, which is raised as far as this process
/// may, as Go's runtime does for etcd: a unit or a container without a word about it begins with 1024. Too low a limit is
/// an error: the first clients would leave nothing for the store.
pub fn connections_max() -> Result<usize, String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let allowed = getrlimit(Resource::Nofile).maximum;
    // It may stay as it was; that is looked at next.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: allowed, maximum: allowed });
    let limit = getrlimit(Resource::Nofile).current;
    places_for(limit).ok_or_else(|| {
        let limit = limit.unwrap_or_default();
        format!(
            "file descriptor limit of etcd process is too low; please set higher: it is {limit}, and more than \
             {DESCRIPTORS_KEPT} are needed (LimitNOFILE=65536 in a unit, ulimit -n in a shell)"
        )
    })
}

/// Places for connections under a limit of file descriptors, if there are any.
fn places_for(limit: Option<u64>) -> Option<usize> {
    let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(DESCRIPTORS_KEPT));
    Some(usize::try_from(left).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)).filter(|places| *places > 0)
}

/// For a listener whose connections alone are waited for at a stop.
pub fn no_calls() -> (TaskTracker, Duration) {
    let none = TaskTracker::new();
    none.close();
    (none, Duration::ZERO)
}

/// Binds, with an error that names the flag and the address.
pub fn bind(flag: &str, places: &[Place], reuse_port: bool) -> Result<Vec<Socket>, String> {
    // Beside an address of IPv6 that is named, 0.0.0.0 is what it says: both at one port would not go together.
    let has_v6 = |port| {
        places.iter().any(|place| matches!(&place.address, Address::Tcp(SocketAddr::V6(v6)) if v6.port() == port))
    };
    let bound = places.iter().map(|place| {
        let listener = match &place.address {
            Address::Tcp(address) => bind_tcp(*address, reuse_port, !has_v6(address.port())),
            Address::Unix(path) => bind_unix(path.clone()),
        };
        let listener = listener.map_err(|e| {
            format!("{flag}: cannot listen on {}: {e}; is another server running there?", place.address)
        })?;
        Ok(Socket { place: place.clone(), listener })
    });
    bound.collect()
}

/// `0.0.0.0` is all addresses of the host, those of IPv6 among them, as for Go's servers: people write it for a host that has no
/// others. Where the kernel has no IPv6 it is those of IPv4.
fn bind_tcp(address: SocketAddr, reuse_port: bool, for_both: bool) -> io::Result<Listener> {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() && for_both => match bind_to(any, reuse_port) {
            Err(e) if NO_IPV6.contains(&e.raw_os_error()) => bind_to(address, reuse_port),
            bound => bound,
        },
        _ => bind_to(address, reuse_port),
    }
}

/// What the kernel says of an IPv6 address where it has none.
const NO_IPV6: [Option<i32>; 2] =
    [Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()), Some(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error())];

fn bind_to(address: SocketAddr, reuse_port: bool) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(reuse_port)?;
    socket.bind(address)?;
    Ok(Listener::Tcp(socket.listen(BACKLOG)?))
}

/// An address of IPv4 is one, also where it comes to a socket for both.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Takes the place of a socket that an earlier process left, but of no other file.
fn bind_unix(path: PathBuf) -> io::Result<Listener> {
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(&path)?,
        Ok(_) => return Err(io::Error::other("there is a file that is no socket")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(Listener::Unix(UnixListener::bind(&path)?, path))
}

/// A connection as it was accepted.
enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok(Accepted::Tcp(stream, canonical(from)))
            }
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

/// Serves until `stop`, then lets calls that are under way end, and open connections drain for a moment.
pub async fn serve(socket: Socket, service: Service, stop: CancellationToken) {
    let Socket { place, listener } = socket;
    let door = Arc::new(Door { place, service, handshakes: Semaphore::new(HANDSHAKES_MAX) });
    let places = Arc::new(Semaphore::new(door.service.connections_max));
    let connections = TaskTracker::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        // When all places are taken, the wait for one must not outlast the stop.
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok(accepted) => {
                let (door, stop) = (door.clone(), stop.clone());
                connections.spawn(async move {
                    door.enter(accepted, stop).await;
                    drop(place);
                });
            }
            Err(e) => {
                // Out of file descriptors, mostly: it passes when connections close.
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let (calls, patience) = &door.service.under_way;
    let _ = tokio::time::timeout(*patience, calls.wait()).await;
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, TCP_KEEP_ALIVE)
}

/// A stream whose first bytes are counted.
struct Counted<S> {
    stream: S,
    /// Bytes that were read, counted up to [`PREFACE_BYTES`].
    read: Arc<AtomicUsize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.read.load(Ordering::Relaxed) < PREFACE_BYTES {
            self.read.fetch_add(buf.filled().len() - before, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Both ends of a connection by TCP.
#[derive(Clone, Copy)]
struct Ends {
    remote: SocketAddr,
    local: Option<SocketAddr>,
}

/// One listener's way in.
struct Door {
    place: Place,
    service: Service,
    handshakes: Semaphore,
}

impl Door {
    async fn enter(&self, accepted: Accepted, stop: CancellationToken) {
        match accepted {
            Accepted::Tcp(stream, from) => {
                let _ = stream.set_nodelay(true);
                let _ = keep_alive(&stream);
                let from = Ends { remote: from, local: stream.local_addr().ok().map(canonical) };
                match self.speaks_tls(&stream).await {
                    Some(true) => self.enter_secure(stream, Some(from), stop).await,
                    Some(false) => self.enter_plain(stream, Some(from), stop).await,
                    None => {}
                }
            }
            Accepted::Unix(stream) if self.place.secure => self.enter_secure(stream, None, stop).await,
            Accepted::Unix(stream) => self.enter_plain(stream, None, stop).await,
        }
    }

    async fn enter_plain<S>(&self, stream: S, from: Option<Ends>, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = Watched::new(stream, self.service.ping_min_time);
        self.connection(stream, &self.service.router, (None, from), stop).await;
    }

    /// Where both are spoken, the first byte tells; nothing if it does not come.
    async fn speaks_tls(&self, stream: &TcpStream) -> Option<bool> {
        if !(self.place.secure && self.place.plain) {
            return Some(self.place.secure);
        }
        let mut first = [0];
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await {
            Ok(Ok(1)) => Some(first[0] == TLS_HANDSHAKE),
            _ => None,
        }
    }

    async fn enter_secure<S>(&self, stream: S, from: Option<Ends>, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = &self.service.tls else { return };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(tls, stream, from.map(|f| f.remote.ip()))) => shaken,
            () = stop.cancelled() => return,
        };
        match shaken.unwrap_or_else(|_| Err(format!("no handshake within {HANDSHAKE_TIMEOUT:?}"))) {
            Ok((stream, name)) => {
                let stream = Watched::new(stream, self.service.secure_ping_min_time);
                self.connection(stream, &self.service.secure_router, (name, from), stop).await;
            }
            Err(error) => {
                // Somebody who speaks without TLS; in Go's words, which people look for.
                let error = match error.contains("InvalidContentType") {
                    true => "tls: first record does not look like a TLS handshake".to_owned(),
                    false => error,
                };
                let remote = from.map_or_else(|| "@".to_owned(), |f| f.remote.to_string());
                // Probes of load balancers come and go without a word.
                if error.contains("eof") {
                    tracing::debug!(
                        "remote-addr" = remote,
                        error,
                        "rejected connection on {} endpoint",
                        self.service.kind
                    );
                } else {
                    tracing::warn!(
                        "remote-addr" = remote,
                        error,
                        "rejected connection on {} endpoint",
                        self.service.kind
                    );
                }
            }
        }
    }

    async fn handshake<S>(
        &self,
        tls: &Arc<Material>,
        stream: S,
        from: Option<IpAddr>,
    ) -> Result<(TlsStream<S>, Option<CertName>), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let _turn = self.handshakes.acquire().await.map_err(|e| e.to_string())?;
        let material = tls.clone();
        let configs = tokio::task::spawn_blocking(move || material.current()).await.map_err(|e| e.to_string())?;
        let config = configs.server.ok_or("no certificate")?;
        let stream = TlsAcceptor::from(config).accept(stream).await.map_err(|e| e.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        if let (Some(cert), Some(from), true) = (shown, from, self.service.compares_address) {
            verify::address_fits(cert, from).await?;
        }
        let name = shown.filter(|_| tls.files().names_client);
        let name = name.map(|cert| CertName(certificate::common_name(cert).unwrap_or_default()));
        Ok((stream, name))
    }

    async fn connection<S>(
        &self,
        stream: S,
        router: &Router,
        (name, from): (Option<CertName>, Option<Ends>),
        stop: CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (interval, timeout) = self.service.keep_alive;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_concurrent_streams(self.service.streams_max)
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_pending_accept_reset_streams(TAKEN_BACK_MAX)
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX as usize);
        let router = router.clone();
        let remote = from.map(|from| Remote(from.remote.to_string().into()));
        let local = from.and_then(|from| from.local).map(Local);
        let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
            if let Some(name) = &name {
                request.extensions_mut().insert(name.clone());
            }
            if let Some(remote) = &remote {
                request.extensions_mut().insert(remote.clone());
            }
            if let Some(local) = local {
                request.extensions_mut().insert(local);
            }
            router.clone().oneshot(request)
        });
        let read = Arc::new(AtomicUsize::new(0));
        let stream = Counted { stream, read: read.clone() };
        // hyper waits without end for the bytes that tell the versions apart.
        let silent = async {
            tokio::time::sleep(HEAD_TIMEOUT).await;
            if read.load(Ordering::Relaxed) >= PREFACE_BYTES {
                std::future::pending::<()>().await;
            }
        };
        // Upgrades are the gateway's WebSockets.
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(served);
        let ended = tokio::select! {
            ended = served.as_mut() => ended,
            () = silent => return,
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(e) = ended {
            tracing::debug!("a connection ended with {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Allowed, Files, Params};
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn who(request: axum::extract::Request) -> String {
        request.extensions().get::<CertName>().map_or("nobody".to_owned(), |n| n.0.clone())
    }

    fn plain_service(router: Router) -> Service {
        Service {
            kind: "client",
            secure_router: router.clone(),
            router,
            tls: None,
            compares_address: false,
            streams_max: 10,
            connections_max: 1,
            keep_alive: (None, Duration::from_secs(20)),
            ping_min_time: None,
            secure_ping_min_time: None,
            under_way: no_calls(),
        }
    }

    fn door_of(service: Service) -> Door {
        let place = Place { address: Address::Unix("x".into()), plain: true, secure: true };
        Door { place, service, handshakes: Semaphore::new(1) }
    }

    /// Whether a connection on which these bytes come, and nothing more, is closed in the time for a request's head.
    async fn is_closed_after(bytes: &[u8]) -> bool {
        let door = door_of(plain_service(Router::new()));
        let (mut here, there) = tokio::io::duplex(1 << 16);
        here.write_all(bytes).await.unwrap();
        let served = door.connection(there, &door.service.router, (None, None), CancellationToken::new());
        tokio::time::timeout(HEAD_TIMEOUT + Duration::from_secs(1), served).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_half_a_head_loses_the_connection() {
        for bytes in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\nHost: a.test.with.a.long.name\r\n"] {
            assert!(is_closed_after(bytes).await, "{}", String::from_utf8_lossy(bytes));
        }
        // A gRPC client connects long before it has something to ask.
        assert!(!is_closed_after(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
    }

    #[tokio::test]
    async fn the_kernel_is_told_to_look_for_lost_clients() {
        use rustix::net::sockopt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (here, there) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        keep_alive(&here.unwrap()).unwrap();
        let there = there.unwrap().0;
        assert!(!sockopt::socket_keepalive(&there).unwrap());
        keep_alive(&there).unwrap();
        assert!(sockopt::socket_keepalive(&there).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&there).unwrap(), TCP_KEEP_ALIVE);
    }

    #[tokio::test]
    async fn a_stop_waits_neither_for_a_request_that_never_ends_nor_for_a_place() {
        let (begun, mut begins) = tokio::sync::mpsc::channel(1);
        let take = move |request: axum::extract::Request| async move {
            let _ = begun.send(()).await;
            let _ = axum::body::to_bytes(request.into_body(), 100).await;
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let place = Place { address: Address::Tcp(address), plain: true, secure: false };
        let socket = Socket { place, listener: Listener::Tcp(listener) };
        let stop = CancellationToken::new();
        let service = plain_service(Router::new().fallback(take));
        let serving = tokio::spawn(serve(socket, service, stop.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
        begins.recv().await.unwrap();
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), serving).await.expect("it stops").unwrap();
    }

    /// Who a handler takes a caller with alice's certificate for.
    async fn taken_for(names_client: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "alice");
        let cert = params.signed_by(&own, &issuer).unwrap();
        std::fs::write(at("ca"), ca.pem()).unwrap();
        std::fs::write(at("cert"), cert.pem()).unwrap();
        std::fs::write(at("key"), own.serialize_pem()).unwrap();
        let files = Files {
            flags: [""; 6],
            cert: Some(at("cert")),
            key: Some(at("key")),
            trusted_ca: Some(at("ca")),
            crl: None,
            own_cert: None,
            own_key: None,
            asks_client: true,
            names_client,
            allowed: Allowed::CommonNames(vec!["alice".to_owned()]),
            auto: false,
            calls: false,
        };
        let material = Material::open(files, Params::new("", "", &[]).unwrap(), false).unwrap();
        let service = Service {
            kind: "client",
            router: Router::new(),
            secure_router: Router::new().route("/who", axum::routing::get(who)),
            tls: Some(material),
            ..plain_service(Router::new())
        };
        let door = door_of(service);
        let (here, there) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(async move { door.enter_secure(there, None, CancellationToken::new()).await });

        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.pem().as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(own.serialize_pem().as_bytes()).unwrap(),
            )
            .unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), here).await.unwrap();
        stream.write_all(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        serving.await.unwrap();
        text.lines().last().unwrap().to_owned()
    }

    #[test]
    fn places_follow_the_limit_of_descriptors() {
        assert_eq!(places_for(Some(1024)), Some(874));
        assert_eq!(places_for(Some(65_536)), Some(CONNECTIONS_MAX));
        assert_eq!(places_for(None), Some(CONNECTIONS_MAX));
        assert_eq!(places_for(Some(150)), None);
    }

    #[tokio::test]
    async fn requests_carry_the_common_name_of_the_callers_certificate_if_it_names_users() {
        assert_eq!(taken_for(true).await, "alice");
        assert_eq!(taken_for(false).await, "nobody");
    }
}
