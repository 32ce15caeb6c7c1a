//! Peer URLs whose hosts are names: which of them lead to the same place.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// The address of a `host:port`; of several one of IPv4, as Go has it. The error names the host.
pub async fn address(place: &str) -> Result<SocketAddr, String> {
    let found = tokio::net::lookup_host(place).await.map_err(|e| {
        let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
        format!("lookup {}: {e}", host.trim_end_matches('.'))
    })?;
    let found: Vec<SocketAddr> = found.collect();
    let first = found.iter().find(|a| a.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("lookup {place}: no such host"))
}

/// URLs with addresses for names. `localhost` stays, as in etcd.
pub async fn addresses(urls: &[String]) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    for url in urls {
        let place = url.split_once("://").map(|(scheme, place)| (scheme, place.to_owned()));
        found.insert(match place {
            Some((scheme, place)) if !place.starts_with("localhost:") => {
                format!("{scheme}://{}", address(&place).await?)
            }
            _ => url.clone(),
        });
    }
    Ok(found)
}
