//! Peer URLs whose hosts are names: which of them lead to the same place.

use ferretcd_proto::peer::ProbeMember;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// How long names of members are looked up in one round: a resolver that is away must not hide why nobody can be asked.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// The one member whose peer URLs lead to the same addresses as these. Names that nobody knows lead nowhere, and of two that lead to
/// one place neither is meant.
pub(crate) async fn at_the_same_place<'m>(own: &[String], members: Vec<&'m ProbeMember>) -> Option<&'m ProbeMember> {
    if members.is_empty() {
        return None;
    }
    let look = async {
        let own = addresses(own).await.ok()?;
        let mut found = Vec::new();
        for member in members {
            if addresses(&member.peer_urls).await.is_ok_and(|there| there == own) {
                found.push(member);
            }
        }
        found.pop().filter(|_| found.is_empty())
    };
    tokio::time::timeout(PATIENCE, look).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_is_known_by_where_its_names_lead_if_no_other_is_there() {
        let member = |id, url: &str| ProbeMember { id, peer_urls: vec![url.to_owned()], ..Default::default() };
        let [by_name, by_address] = [1, 2].map(|id| member(id, "http://127.0.0.1:2380"));
        let (elsewhere, nowhere) = (member(3, "http://127.0.0.1:2381"), member(4, "http://no such name:2380"));
        let own = ["http://127.0.0.1:2380".to_owned()];
        let found = at_the_same_place(&own, vec![&nowhere, &by_name, &elsewhere]).await;
        assert_eq!(found.map(|m| m.id), Some(1));
        assert_eq!(at_the_same_place(&own, vec![&by_name, &by_address]).await, None, "either may be meant");
        assert_eq!(at_the_same_place(&own, vec![&nowhere, &elsewhere]).await, None);
    }
}
