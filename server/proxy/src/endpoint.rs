//! Where a member is reached, as `--endpoints` names it, and one connection to it.

use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::cmp::Ordering;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// How long a connection attempt may take, its handshake included (etcd's proxy: its dial time-out).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent connection is asked so often whether its host is there, as by Go's default, which etcd's proxy has. A host that goes
/// without a word would keep its watches silent for good.
const SILENCE: Duration = Duration::from_secs(15);

/// What is sent and not acknowledged for so long ends the connection.
const STUCK_MILLIS: u32 = 30_000;

/// Gives the TLS settings of the next connection. It may read files, so it is called on a thread that may block.
pub type ClientTls = dyn Fn() -> Option<Arc<ClientConfig>> + Send + Sync;

/// One of `--endpoints`. Two are the same if they lead to the same place, whatever their texts.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// As it was given.
    pub text: String,
    /// Whether TLS is spoken.
    pub secure: bool,
    /// What the request names as its authority: `host:port`.
    pub authority: String,
    place: Place,
    /// The name that the certificate must be for.
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Tcp(String),
    Unix(PathBuf),
}

impl Ord for Endpoint {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.secure, &self.place).cmp(&(other.secure, &other.place))
    }
}

impl PartialOrd for Endpoint {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Endpoint {}

impl Endpoint {
    /// Reads one: `host:port`, `http://host:port`, `https://host:port`, `unix:///path`, `unixs:///path`. Without a scheme
    /// TLS is spoken if there are settings for it (`has_tls`), as etcd's clients do.
    pub fn parse(text: &str, has_tls: bool) -> Result<Self, String> {
        let text = text.trim();
        let bad = |why: &str| {
            Err(format!(
                "--endpoints: {text:?} {why}; use host:port, http://host:port, https://host:port or unix:///path"
            ))
        };
        let (scheme, place) = text.split_once("://").unwrap_or(("", text));
        let secure = match scheme {
            "" => has_tls,
            "http" | "unix" => false,
            "https" | "unixs" => true,
            _ => return bad("has a scheme that is not known"),
        };
        if matches!(scheme, "unix" | "unixs") {
            if place.is_empty() {
                return bad("names no socket");
            }
            let (host, place) = ("localhost".to_owned(), Place::Unix(PathBuf::from(place)));
            return Ok(Endpoint { text: text.to_owned(), secure, authority: host.clone(), place, host });
        }
        let place = place.strip_suffix('/').unwrap_or(place);
        let Some((host, port)) = place.rsplit_once(':') else { return bad("has no port") };
        if port.parse::<u16>().is_err() {
            return bad("has a port that is none");
        }
        if host.is_empty() || host.contains(['/', '@', '?', '#']) || place.parse::<http::uri::Authority>().is_err() {
            return bad("has no usable host");
        }
        Ok(Endpoint {
            text: text.to_owned(),
            secure,
            authority: place.to_owned(),
            place: Place::Tcp(place.to_owned()),
            host: host.trim_matches(['[', ']']).to_owned(),
        })
    }

    /// Connects, for a protocol by its name in TLS (`h2`, `http/1.1`).
    pub async fn connect(&self, tls: Option<Arc<ClientTls>>, protocol: &[u8]) -> io::Result<TokioIo<Box<dyn Io>>> {
        self.connect_within(CONNECT_TIMEOUT, tls, protocol).await
    }

    /// Connects, or gives up after a time.
    pub async fn connect_within(
        &self,
        time: Duration,
        tls: Option<Arc<ClientTls>>,
        protocol: &[u8],
    ) -> io::Result<TokioIo<Box<dyn Io>>> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {time:?}"));
        let connected = tokio::time::timeout(time, self.connect_now(tls, protocol)).await.map_err(late)?;
        connected.map(TokioIo::new)
    }

    async fn connect_now(&self, tls: Option<Arc<ClientTls>>, protocol: &[u8]) -> io::Result<Box<dyn Io>> {
        let stream: Box<dyn Io> = match &self.place {
            Place::Tcp(place) => {
                let stream = TcpStream::connect(place).await?;
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, SILENCE)?;
                sockopt::set_tcp_keepintvl(&stream, SILENCE)?;
                sockopt::set_tcp_user_timeout(&stream, STUCK_MILLIS)?;
                Box::new(stream)
            }
            Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        if !self.secure {
            return Ok(stream);
        }
        let config = match tls {
            Some(tls) => tokio::task::spawn_blocking(move || tls()).await.map_err(io::Error::other)?,
            None => None,
        };
        let config = config.ok_or_else(|| {
            io::Error::other("no certificate authority is known for https:// endpoints: set --cacert")
        })?;
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }
}

/// A byte stream, with TLS or without.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_endpoint() {
        let seeds = ["127.0.0.1:2379", "https://[::1]:2379/", "unix:///a/b", "unixs://x", " http://a.test:1 "];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "endpoint").seeds(seeds);
        fuzz.words(&["http://", "https://", "unix://", "unixs://", ":2379", "[", "]", "@", "/", "?", "%"]).run(
            |bytes| {
                let text = String::from_utf8_lossy(bytes);
                let read = [false, true].map(|has_tls| Endpoint::parse(&text, has_tls));
                if let Ok(endpoint) = &read[0] {
                    assert_eq!(Endpoint::parse(&endpoint.text, false).as_ref(), Ok(endpoint));
                }
                format!("{read:?}")
            },
        );
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_secure_if_there_are_certificates() {
        let bare = |has_tls| Endpoint::parse("127.0.0.1:2379", has_tls).unwrap().secure;
        assert!(!bare(false) && bare(true));
        assert!(!Endpoint::parse("http://127.0.0.1:2379", true).unwrap().secure);
        let v6 = Endpoint::parse("https://[::1]:2379", false).unwrap();
        assert_eq!((v6.secure, v6.host.as_str(), v6.authority.as_str()), (true, "::1", "[::1]:2379"));
        assert_eq!(Endpoint::parse("unix:///run/etcd", true).unwrap().place, Place::Unix("/run/etcd".into()));
    }

    #[test]
    fn what_is_no_endpoint_is_refused_by_its_text() {
        for bad in
            ["", "127.0.0.1", "ftp://x:1", "http://:1", "http://a:b", "http://a:70000", "unix://", "http://a/b:1"]
        {
            let error = Endpoint::parse(bad, false).unwrap_err();
            assert!(error.starts_with(&format!("--endpoints: {bad:?} ")), "{error}");
        }
    }
}
