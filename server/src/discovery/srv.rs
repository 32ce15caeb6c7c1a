//! `--discovery-srv`: the members of a new cluster are the SRV records of `_etcd-server-ssl._tcp` and `_etcd-server._tcp`
//! below a domain, and this member is the one whose record leads to its own advertised address.

use crate::flags::Flags;
use crate::flags::url::{Scheme, Url};
use ferretcd_node::BootConfig;
use ferretcd_node::discovered;
use ferretcd_node::names::address;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::system_conf::read_system_conf;
use std::net::SocketAddr;

/// Most records of one name that are looked at: a cluster has single digits of members, and each is resolved in turn.
const RECORDS_MAX: usize = 64;

/// Where the members are to be found, and who this one is.
#[derive(Clone, Debug)]
pub struct Srv {
    domain: String,
    /// What `--discovery-srv-name` puts behind the services' names, with its dash.
    suffix: String,
    name: String,
    own: Vec<Url>,
}

/// A record, and where it leads.
#[derive(Debug)]
struct Record {
    /// Its target, with the dot at the end.
    host: String,
    port: u16,
    address: Result<SocketAddr, String>,
}

impl Srv {
    /// From the flags; none where they name no domain.
    pub fn check(flags: &Flags) -> Option<Self> {
        let suffix = match flags.discovery_srv_name.as_str() {
            "" => String::new(),
            name => format!("-{name}"),
        };
        let (domain, name) = (flags.discovery_srv.clone(), flags.name.clone());
        (!domain.is_empty()).then(|| Srv { domain, suffix, name, own: flags.initial_advertise_peer_urls.0.clone() })
    }

    /// The domain, which certificates may be for instead of a member's host.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The members as DNS names them now, as `name=URL` pairs; nothing for a data directory that has its member.
    pub async fn members(&self, boot: &BootConfig) -> Result<Option<String>, String> {
        if discovered::has_member(&boot.data_dir) {
            return Ok(None);
        }
        let found = self.look().await.map_err(|why| format!("error setting up initial cluster: {why}"))?;
        Ok(Some(found))
    }

    async fn look(&self) -> Result<String, String> {
        let (mut members, mut troubles) = (Vec::new(), Vec::new());
        for (scheme, service) in [("https", "etcd-server-ssl"), ("http", "etcd-server")] {
            let service = format!("{service}{}", self.suffix);
            match self.service(scheme, &service).await {
                Ok(found) => members.extend(found),
                Err(why) => troubles.push(format!("error querying DNS SRV records for _{service} {why}")),
            }
        }
        let trouble = troubles.join("\n");
        if !trouble.is_empty() {
            tracing::warn!(error = trouble, "failed to resolve during SRV discovery");
        }
        if members.is_empty() {
            return Err(trouble);
        }
        for node in &members {
            tracing::info!(node, "got bootstrap from DNS for etcd-server");
        }
        if !members.iter().any(|m| m.split_once('=').is_some_and(|(name, _)| name == self.name)) {
            return Err(format!("cannot find local etcd member {:?} in SRV records", self.name));
        }
        Ok(members.join(","))
    }

    async fn service(&self, scheme: &str, service: &str) -> Result<Vec<String>, String> {
        let mut own = Vec::new();
        for url in &self.own {
            own.push((address(&url.place).await?, url));
        }
        let mut records = Vec::new();
        for (host, port) in records_of(&format!("_{service}._tcp.{}", self.domain)).await? {
            let address = address(&format!("{host}:{port}")).await;
            records.push(Record { host, port, address });
        }
        named(&self.name, scheme, service, &own, &records)
    }
}

/// Endpoints for clients, as etcd's tools find them: the records of `_etcd-client-ssl._tcp` and, if that is taken,
/// `_etcd-client._tcp`. Nothing without a domain.
pub async fn endpoints(domain: &str, name: &str, insecure: bool) -> Result<Vec<String>, String> {
    if domain.is_empty() {
        return Ok(Vec::new());
    }
    let suffix = if name.is_empty() { String::new() } else { format!("-{name}") };
    let (mut found, mut troubles) = (Vec::new(), Vec::new());
    for (scheme, service) in [("https", "etcd-client-ssl"), ("http", "etcd-client")] {
        match records_of(&format!("_{service}{suffix}._tcp.{domain}")).await {
            Ok(records) => found.extend(
                records.into_iter().map(|(host, port)| format!("{scheme}://{}:{port}", host.trim_end_matches('.'))),
            ),
            Err(why) => troubles.push(why),
        }
    }
    if let [secure, plain] = &troubles[..] {
        return Err(format!("dns lookup errors: {secure} and {plain}"));
    }
    tracing::info!("srv-server" = domain, endpoints = found.join(","), "discovered cluster from SRV");
    found.retain(|endpoint| insecure || endpoint.starts_with("https://"));
    Ok(found)
}

/// Names and ports of the records of a name, the preferred ones first. The error is Go's.
async fn records_of(name: &str) -> Result<Vec<(String, u16)>, String> {
    let bad = |why: String| format!("lookup {name}: {why}");
    let (config, options) = read_system_conf().map_err(|e| bad(e.to_string()))?;
    let server =
        config.name_servers().first().map_or(String::new(), |server| format!(" on {}", SocketAddr::new(server.ip, 53)));
    let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let resolver = resolver.with_options(options).build().map_err(|e| bad(e.to_string()))?;
    let answer = resolver.srv_lookup(name).await.map_err(|e| match e.is_no_records_found() {
        true => format!("lookup {name}{server}: no such host"),
        false => format!("lookup {name}{server}: {e}"),
    })?;
    let mut records: Vec<_> = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => Some((srv.priority, srv.target.to_utf8(), srv.port)),
            _ => None,
        })
        .collect();
    // Go shuffles those of one priority. Members that number the others alike are easier to compare.
    records.sort_unstable();
    Ok(records.into_iter().take(RECORDS_MAX).map(|(_, target, port)| (target, port)).collect())
}

/// The members of one service, by etcd's rules: this member's record has its name, others are numbered; what leads nowhere
/// is left out unless nothing else is there.
fn named(
    name: &str,
    scheme: &str,
    service: &str,
    own: &[(SocketAddr, &Url)],
    records: &[Record],
) -> Result<Vec<String>, String> {
    let (mut members, mut trouble, mut number) = (Vec::new(), None, 0);
    for Record { host, port, address } in records {
        let address = match address {
            Ok(address) => address,
            Err(why) => {
                trouble = Some(why.clone());
                continue;
            }
        };
        let mine = own.iter().find(|(own, _)| own == address).map(|(_, url)| *url);
        let member = match mine {
            Some(_) => name.to_owned(),
            None => {
                number += 1;
                (number - 1).to_string()
            }
        };
        let url = format!("{scheme}://{}:{port}", host.trim_end_matches('.'));
        match mine {
            Some(mine) if (scheme == "https") != (mine.scheme == Scheme::Https) => {
                let why = "has scheme mismatch with expected peer";
                trouble = Some(format!("bootstrap at {url} from DNS for {service} {why} {mine}"));
            }
            _ => members.push(format!("{member}={url}")),
        }
    }
    match trouble {
        Some(why) if members.is_empty() => Err(why),
        _ => Ok(members),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: &str, address: Result<&str, &str>) -> Record {
        let address = address.map(|a| a.parse().unwrap()).map_err(str::to_owned);
        Record { host: host.to_owned(), port: 2380, address }
    }

    #[test]
    fn this_members_record_has_its_name_and_the_others_numbers() {
        let url = Url::parse("http://10.0.0.2:2380").unwrap();
        let own = [("10.0.0.2:2380".parse().unwrap(), &url)];
        let records = [
            record("a.test.", Ok("10.0.0.1:2380")),
            record("b.test.", Ok("10.0.0.2:2380")),
            record("gone.test.", Err("lookup gone.test: no such host")),
            record("c.test.", Ok("10.0.0.3:2380")),
        ];
        let members = ["0=http://a.test:2380", "b=http://b.test:2380", "1=http://c.test:2380"];
        assert_eq!(named("b", "http", "etcd-server", &own, &records).unwrap(), members);
    }

    #[test]
    fn what_is_wrong_counts_only_if_nothing_else_was_found() {
        let url = Url::parse("http://10.0.0.2:2380").unwrap();
        let own = [("10.0.0.2:2380".parse().unwrap(), &url)];
        let mine = record("b.test.", Ok("10.0.0.2:2380"));
        let mismatch = "bootstrap at https://b.test:2380 from DNS for etcd-server-ssl has scheme mismatch with expected \
                        peer http://10.0.0.2:2380";
        assert_eq!(named("b", "https", "etcd-server-ssl", &own, &[mine]).unwrap_err(), mismatch);
        let both = [record("b.test.", Ok("10.0.0.2:2380")), record("a.test.", Ok("10.0.0.1:2380"))];
        assert_eq!(named("b", "https", "etcd-server-ssl", &own, &both).unwrap(), ["0=https://a.test:2380"]);
        let gone = [record("gone.test.", Err("lookup gone.test: no such host"))];
        assert_eq!(named("b", "http", "etcd-server", &own, &gone).unwrap_err(), "lookup gone.test: no such host");
    }
}
