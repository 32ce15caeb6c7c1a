//! The addresses of one cluster: all in one 10.N.0.0/16, which no route or address of the host overlaps.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::run;

/// The second octets that a cluster may get, in the order in which they are tried: high ones, since people count from 0.
const OCTETS: std::ops::RangeInclusive<u8> = 213..=250;

/// A cluster's network. The host reaches node, pods and services through one veth pair; the host's own routes, firewall and
/// forwarding stay as they are, so pods do not reach beyond the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// N of 10.N.0.0/16.
    octet: u8,
}

impl Network {
    /// The network 10.`octet`.0.0/16.
    pub fn new(octet: u8) -> Self {
        Self { octet }
    }

    /// Takes a network that nothing on this host overlaps, by making the link that has its name: only one process can. The
    /// link stays until [`release`], or until the node that it is joined to ends.
    pub fn claim() -> Result<Self> {
        let addresses = run::output(Command::new("ip").args(["-4", "-o", "addr", "show"]))?.stdout;
        let routes = run::output(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?.stdout;
        let mut last = anyhow!("a route of this host covers each of them");
        for network in Self::free(&format!("{addresses}\n{routes}")) {
            let (host_end, node_end) = (network.interface(), network.node_interface());
            let pair = ["link", "add", &host_end, "type", "veth", "peer", "name", &node_end];
            match run::output(Command::new("ip").args(pair)) {
                Ok(_) => return Ok(network),
                Err(error) => last = error,
            }
        }
        let (first, final_one) = (OCTETS.start(), OCTETS.end());
        Err(last).with_context(|| {
            format!(
                "no network from 10.{first}.0.0/16 to 10.{final_one}.0.0/16 is free; end a cluster with `cluster down`"
            )
        })
    }

    /// The networks that no address and no prefix among the words of `used` overlaps.
    fn free(used: &str) -> impl Iterator<Item = Self> {
        let used: Vec<(u32, u32)> = used.split_whitespace().filter_map(parse_range).collect();
        OCTETS.map(|octet| Self { octet }).filter(move |network| {
            let first = u32::from(Ipv4Addr::new(10, network.octet, 0, 0));
            used.iter().all(|(start, end)| *end < first || *start > first + 0xffff)
        })
    }

    /// The whole of it, which the host routes to the node.
    pub fn cidr(self) -> String {
        format!("10.{}.0.0/16", self.octet)
    }

    /// The host's end of the link to the node.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 0, 1)
    }

    /// The node's address, which kube-apiserver and NodePorts answer on.
    pub fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 0, 2)
    }

    /// The prefix length of the link that both ends are on.
    pub fn link_prefix(self) -> u8 {
        30
    }

    /// The addresses of pods: 253 of them, more than the 110 pods that a kubelet runs.
    pub fn pods(self) -> String {
        format!("10.{}.64.0/24", self.octet)
    }

    /// The addresses of services.
    pub fn services(self) -> String {
        format!("10.{}.32.0/20", self.octet)
    }

    /// The service `kubernetes`, always the first address of its range.
    pub fn kubernetes_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 32, 1)
    }

    /// The service of the cluster's DNS.
    pub fn dns_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.octet, 32, 10)
    }

    /// The name of the host's end of the link, at most 15 bytes.
    pub fn interface(self) -> String {
        format!("ferretcd{}", self.octet)
    }

    /// The name of the node's end until it is in the node, where it is eth0.
    fn node_interface(self) -> String {
        format!("ferretcd{}n", self.octet)
    }
}

/// The first and last address of a word like `10.1.0.0/16`, `10.1.0` (as `ip` shortens) or `10.1.2.3`; `None` for any other
/// word. The default route is no claim on an address and is written without one.
fn parse_range(word: &str) -> Option<(u32, u32)> {
    let (address, prefix) = match word.split_once('/') {
        Some((address, prefix)) => (address, prefix.parse::<u32>().ok().filter(|prefix| *prefix <= 32)?),
        None => (word, 32),
    };
    let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
    let host_bits = u32::MAX.checked_shr(prefix).unwrap_or(0);
    Some((address & !host_bits, address | host_bits))
}

/// Joins the claimed link to the node whose first process is `init_pid`: one end stays here, with the route to the cluster,
/// the other becomes the node's eth0. It vanishes with the node's network namespace.
pub fn join(network: Network, init_pid: i32) -> Result<()> {
    let (host_end, node_end, pid) = (network.interface(), network.node_interface(), init_pid.to_string());
    let (host, node) = (network.host().to_string(), network.node().to_string());
    let prefix = network.link_prefix();
    let ip = |line: &str| {
        run::output(Command::new("ip").args(line.split_whitespace())).with_context(|| "linking the node to the host")
    };
    let node_ip = |line: &str| {
        run::output(Command::new("nsenter").args(["--net", "--target", &pid, "ip"]).args(line.split_whitespace()))
            .with_context(|| "setting up the node's network")
    };
    ip(&format!("link set {node_end} netns {pid} name eth0"))?;
    ip(&format!("addr add {host}/{prefix} dev {host_end}"))?;
    ip(&format!("link set {host_end} up"))?;
    node_ip("link set lo up")?;
    node_ip(&format!("addr add {node}/{prefix} dev eth0"))?;
    node_ip("link set eth0 up")?;
    // There is no default route, so that an address outside is refused at once. A service's address needs some route
    // before kube-proxy's rules can rewrite it.
    node_ip(&format!("route add {} dev eth0", network.services()))?;
    ip(&format!("route add {} via {node} dev {host_end}", network.cidr()))?;
    Ok(())
}

/// Gives a claimed network back, if its link is still there. The kernel takes it away a moment after the node's end; a node
/// that never got so far leaves it.
pub fn release(network: Network) -> Result<()> {
    let there = || Path::new("/sys/class/net").join(network.interface()).exists();
    if there() {
        let deleted = run::output(Command::new("ip").args(["link", "delete", &network.interface()]));
        // The kernel may have been faster.
        if there() {
            deleted.with_context(|| format!("removing the network link {}", network.interface()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_network_is_taken_when_nothing_is_in_the_way() {
        let used = "default via 192.0.2.1 dev eth0\n2: eth0 inet 192.0.2.2/24 brd 192.0.2.255";
        assert_eq!(Network::free(used).next(), Some(Network::new(213)));
    }

    #[test]
    fn an_address_or_a_wider_or_narrower_route_is_in_the_way() {
        assert_eq!(Network::free("inet 10.213.4.5/32").next(), Some(Network::new(214)));
        assert_eq!(Network::free("10.213.8.0/24 dev x\n10.214.0.0/15 dev y").next(), Some(Network::new(216)));
        assert_eq!(Network::free("10.0.0.0/8 dev vpn").next(), None);
    }

    #[test]
    fn the_parts_do_not_overlap() {
        let network = Network::new(213);
        let pods = parse_range(&network.pods()).unwrap();
        let services = parse_range(&network.services()).unwrap();
        assert!(services.1 < pods.0);
        assert!(u32::from(network.node()) < services.0);
        assert!((services.0..=services.1).contains(&u32::from(network.dns_service())));
    }
}
