//! etcd's discovery: members that do not know one another find each other's URLs in another etcd cluster, under
//! `/_etcd/registry/<token>`: how many there are to be in `_config/size`, and each of them in `members/<ID>`.

pub mod srv;

use crate::flags::Flags;
use crate::tls::material::Material;
use crate::tls::{Allowed, Files, Params};
use ferretcd_node::BootConfig;
use ferretcd_node::boot::static_member_id;
use ferretcd_node::discovered;
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::auth_client::AuthClient;
use ferretcd_proto::etcdserverpb::kv_client::KvClient;
use ferretcd_proto::mvccpb::KeyValue;
use ferretcd_proxy::endpoint::Endpoint;
use ferretcd_proxy::upstream::{Connecting, Upstream};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

/// How often the list of those who came is looked at while some are missing.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Pauses after a request that nobody answered: etcd's first, doubling up to a minute. There are no fewer tries than it
/// takes: the service may come up last.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(64));

/// A look logs in, reads size and members, registers, and reads them again: as many times `--discovery-request-timeout`.
const REQUESTS_PER_LOOK: u32 = 5;

/// Where the others are to be found.
#[derive(Clone)]
pub struct Discovery {
    token: String,
    endpoints: Vec<Endpoint>,
    connecting: Connecting,
    request_timeout: Duration,
    /// Name and password, if the service asks for them.
    user: Option<(String, String)>,
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Why a look did not succeed.
#[derive(Debug)]
enum Trouble {
    /// Trying again does not help. etcd's words.
    Final(&'static str),
    /// Nobody answered, or not as hoped.
    Passing(String),
}

impl From<Status> for Trouble {
    fn from(status: Status) -> Self {
        Trouble::Passing(status.to_string())
    }
}

impl Discovery {
    /// From the flags; none where they name no endpoint.
    pub fn check(flags: &Flags) -> Result<Option<Self>, String> {
        if flags.discovery_endpoints.0.is_empty() {
            return Ok(None);
        }
        let path = |text: &str| Some(PathBuf::from(text)).filter(|p| !p.as_os_str().is_empty());
        let (cert, key) = (&flags.discovery_cert, &flags.discovery_key);
        if cert.is_empty() != key.is_empty() {
            return Err(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"));
        }
        let files = Files {
            flags: ["", "", "--discovery-cacert", "", "--discovery-cert", "--discovery-key"],
            cert: None,
            key: None,
            trusted_ca: path(&flags.discovery_cacert),
            crl: None,
            own_cert: path(cert),
            own_key: path(key),
            asks_client: false,
            names_client: false,
            allowed: Allowed::Anyone,
            auto: false,
            calls: true,
        };
        let has_tls = files.own_cert.is_some() || files.trusted_ca.is_some() || !flags.discovery_insecure_transport;
        let material = Material::open(files, Params::new("", "", &[])?, flags.discovery_insecure_skip_tls_verify)?;
        let endpoints = flags.discovery_endpoints.0.iter().map(|text| Endpoint::parse(text, has_tls));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>();
        let endpoints = endpoints.map_err(|e| e.replace("--endpoints", "--discovery-endpoints"))?;
        let connecting = Connecting {
            tls: Some(Arc::new(move || material.current().client)),
            keep_alive_time: Some(flags.discovery_keepalive_time.length()).filter(|time| !time.is_zero()),
            keep_alive_timeout: flags.discovery_keepalive_timeout.length(),
            keep_alive_idle: false,
            connect_timeout: Some(flags.discovery_dial_timeout.length()).filter(|time| !time.is_zero()),
        };
        let user = match (flags.discovery_user.split_once(':'), flags.discovery_password.as_str()) {
            _ if flags.discovery_user.is_empty() => None,
            (Some((name, password)), "") => Some((name.to_owned(), password.to_owned())),
            (None, "") => return Err("--discovery-user has no password: give it as name:password".to_owned()),
            (_, password) => Some((flags.discovery_user.clone(), password.to_owned())),
        };
        let (token, request_timeout) = (flags.discovery_token.clone(), flags.discovery_request_timeout.length());
        Ok(Some(Discovery { token, endpoints, connecting, request_timeout, user }))
    }

    /// The token of the cluster that is found so.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The members of the cluster that this data directory's member belongs to: as found before, or found now. None for
    /// a member that was there before it was told of discovery.
    pub async fn members(&self, boot: &BootConfig) -> Result<Option<String>, String> {
        if let Some(found) = discovered::load(&boot.data_dir)? {
            return Ok(Some(found));
        }
        if discovered::has_member(&boot.data_dir) {
            return Ok(None);
        }
        let found = self.join(&boot.node.name, &boot.advertise_peer_urls).await?;
        discovered::store(&boot.data_dir, &found)?;
        Ok(Some(found))
    }

    /// Registers this member, and waits until all are there: their `name=URL` pairs.
    async fn join(&self, name: &str, peer_urls: &[String]) -> Result<String, String> {
        let mut service = Service {
            kv: Upstream::new(self.endpoints.clone(), self.connecting.clone()),
            discovery: self,
            login: None,
        };
        let id = static_member_id(peer_urls, &self.token);
        let mut urls: Vec<&String> = peer_urls.iter().collect();
        urls.sort_unstable();
        let pairs: Vec<String> = urls.into_iter().map(|url| format!("{name}={url}")).collect();
        let me = (format!("{}/members/{:x}", service.registry(), id.0), pairs.join(","));
        let mut pause = PAUSES.0;
        loop {
            let look = tokio::time::timeout(self.request_timeout * REQUESTS_PER_LOOK, service.look(&me)).await;
            match look.unwrap_or_else(|_| Err(Trouble::Passing("no answer in time".to_owned()))) {
                Ok(Look::All(cluster)) => {
                    tracing::info!(cluster, "discovery joined cluster successfully");
                    return Ok(cluster);
                }
                Ok(Look::Some { there, size }) => {
                    pause = PAUSES.0;
                    tracing::debug!(there, size, "waiting for peers from discovery service");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(Trouble::Final(why)) => {
                    return Err(format!(
                        "failed to join discovery cluster ({why}); do not reuse a discovery token, generate a new one \
                         to bootstrap a cluster"
                    ));
                }
                Err(Trouble::Passing(why)) => {
                    tracing::warn!(reason = why, backoff = ?pause, "retry connecting to discovery service");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    service.login = None;
                }
            }
        }
    }
}

/// How many members there are to be.
fn size_of(kvs: &[KeyValue]) -> Result<usize, Trouble> {
    let size = &kvs.first().ok_or(Trouble::Final("discovery: size key not found"))?.value;
    let size = std::str::from_utf8(size).ok().and_then(|text| text.parse::<usize>().ok()).filter(|n| *n > 0);
    size.ok_or(Trouble::Final("discovery: size key is bad"))
}

fn first_come(mut members: Vec<KeyValue>) -> Vec<KeyValue> {
    members.sort_by_key(|m| m.create_revision);
    members
}

/// Whether all are there of whom this one is one.
fn gathered(mut members: Vec<KeyValue>, size: usize, key: &[u8]) -> Result<Look, Trouble> {
    // Who came when all were there already is none of them, though its key is in.
    members.truncate(size);
    if !members.iter().any(|m| m.key == key) {
        return Err(Trouble::Final("discovery: cluster is full"));
    }
    if members.len() < size {
        return Ok(Look::Some { there: members.len(), size });
    }
    let texts: Vec<_> = members.iter().map(|m| String::from_utf8_lossy(&m.value).into_owned()).collect();
    Ok(Look::All(texts.join(",")))
}

/// What a look at the registry showed.
#[derive(Debug)]
enum Look {
    /// All are there.
    All(String),
    /// Only so many.
    Some { there: usize, size: usize },
}

struct Service<'a> {
    kv: Upstream,
    discovery: &'a Discovery,
    login: Option<String>,
}

impl Service<'_> {
    fn registry(&self) -> String {
        format!("/_etcd/registry/{}", self.discovery.token)
    }

    async fn look(&mut self, (key, value): &(String, String)) -> Result<Look, Trouble> {
        let size_key = format!("{}/_config/size", self.registry());
        let size = size_of(&self.range(size_key.into(), Vec::new()).await?)?;
        let mut members = self.members().await?;
        if !members.iter().any(|m| m.key == key.as_bytes()) {
            if members.len() >= size {
                return Err(Trouble::Final("discovery: cluster is full"));
            }
            let put = pb::PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
            let put = self.request(put).await?;
            KvClient::new(self.kv.clone()).put(put).await?;
            tracing::info!(member_key = key, member_info = value, "register member itself successfully");
            members = self.members().await?;
        }
        gathered(members, size, key.as_bytes())
    }

    /// Those who came, first come first.
    async fn members(&mut self) -> Result<Vec<KeyValue>, Trouble> {
        let prefix = format!("{}/members/", self.registry());
        // The byte after the slash ends the prefix.
        let end = format!("{}/members0", self.registry());
        Ok(first_come(self.range(prefix.into(), end.into()).await?))
    }

    async fn range(&mut self, key: Vec<u8>, end: Vec<u8>) -> Result<Vec<KeyValue>, Trouble> {
        let range = pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
        let range = self.request(range).await?;
        Ok(KvClient::new(self.kv.clone()).range(range).await?.into_inner().kvs)
    }

    /// A request in this member's name.
    async fn request<T>(&mut self, message: T) -> Result<Request<T>, Trouble> {
        if let (Some((name, password)), None) = (&self.discovery.user, &self.login) {
            let login = pb::AuthenticateRequest { name: name.clone(), password: password.clone() };
            let answer = AuthClient::new(self.kv.clone()).authenticate(login).await?;
            self.login = Some(answer.into_inner().token);
        }
        let mut request = Request::new(message);
        if let Some(token) = &self.login {
            let token = MetadataValue::try_from(token).map_err(|e| Trouble::Passing(e.to_string()))?;
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    /// What the service holds, which anybody may have written who knows the token; and what comes of it: the text is
    /// kept and taken for `--initial-cluster`.
    #[test]
    fn fuzz_discovery_answer() {
        let kv = |key: &str, value: &str, create_revision| KeyValue {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            create_revision,
            ..KeyValue::default()
        };
        let answer = |kvs: &[KeyValue]| {
            pb::RangeResponse { kvs: kvs.to_vec(), ..Default::default() }.encode_length_delimited_to_vec()
        };
        let members = [kv("me", "a=http://a:2380,a=http://b:2380", 5), kv("other", "b=http://[::1]:2380", 4)];
        let seeds = [("2", &members[..]), ("3", &members), ("1", &members), ("x", &members), ("2", &members[..1])];
        let seeds = seeds.map(|(size, members)| [answer(&[kv("size", size, 1)]), answer(members)].concat());
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "discovery_answer").seeds(seeds);
        fuzz.words(&["=http://", "https://", ",", "me", "1", "18446744073709551615", ":2380", "["]).run(|mut bytes| {
            let mut answer = || pb::RangeResponse::decode_length_delimited(&mut bytes).map(|answer| answer.kvs);
            let (size, members) = match (answer(), answer()) {
                (Ok(size), Ok(members)) => (size, members),
                (Err(e), _) | (_, Err(e)) => return e.to_string(),
            };
            let look = size_of(&size).and_then(|size| gathered(first_come(members), size, b"me"));
            let members = match &look {
                Ok(Look::All(text)) => crate::config::members(text),
                _ => Err(String::new()),
            };
            format!("{look:?} {members:?}")
        });
    }
}
