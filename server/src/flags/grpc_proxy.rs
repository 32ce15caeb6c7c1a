//! The table of `grpc-proxy start`, with etcd 3.7.1's names and defaults, and its syntax: two dashes, `--flag value` or
//! `--flag=value`, lists that grow when they are given again.

use super::Spec;
use super::value::{GoDuration, Kind, List, Value};
use std::collections::BTreeSet;

flags! {
    "Proxy" {
        endpoints: List = "127.0.0.1:2379", "The cluster's endpoints, with commas.";
        listen_addr: String = "127.0.0.1:23790", "Address to listen on for clients.";
        metrics_addr: String = "", "URL to listen on for /metrics and the health pages as well.";
        advertise_client_url: String = "127.0.0.1:23790", "Address that clients are told, by which they reach this proxy; empty: they are told the members'.";
        resolver_prefix: String = "", "Prefix below which proxies register; the same for all of them.";
        resolver_ttl: i64 = "0", "Seconds that a registered proxy stays listed when it is gone.";
        namespace: String = "", "What stands before every key in the cluster.";
        data_dir: String = "default.proxy", "Directory for certificates that --auto-tls makes.";
        max_send_bytes: i64 = "1572864", "Largest message to a member.";
        max_recv_bytes: i64 = "2147483647", "Largest message from a member.";
        max_concurrent_streams: u32 = "4294967295", "Most streams that one client connection may have open at once.";
        endpoints_auto_sync_interval: GoDuration = "0s", "How often the endpoints are replaced by the members' client URLs; 0 is never.";
        discovery_srv: String = "", "DNS domain whose SRV records _etcd-client-ssl._tcp and _etcd-client._tcp name the endpoints.";
        discovery_srv_name: String = "", "Suffix of those records: _etcd-client-<name>._tcp.";
        insecure_discovery: bool = "false", "Take endpoints without TLS from them, too.";
    }
    "Connections to the cluster" {
        cert: String = "", "Certificate to show to members. It may have no common name.";
        key: String = "", "Its key.";
        cacert: String = "", "Authorities that members' certificates must come from.";
        insecure_skip_tls_verify: bool = "false", "Believe any member's certificate. For tests only.";
        dial_keepalive_time: GoDuration = "0s", "How often a silent connection to a member is pinged; 0 is never.";
        dial_keepalive_timeout: GoDuration = "20s", "How long the answer to such a ping may take.";
        permit_without_stream: bool = "false", "Ping even when no call is open.";
    }
    "Connections of clients" {
        cert_file: String = "", "Certificate of the listeners.";
        key_file: String = "", "Its key.";
        trusted_ca_file: String = "", "Authorities that clients' certificates must come from.";
        client_crl_file: String = "", "Revoked client certificates (DER or PEM).";
        auto_tls: bool = "false", "Make a certificate for the listeners.";
        self_signed_cert_validity: usize = "1", "Years that a made certificate is valid.";
        listen_cipher_suites: List = "", "Cipher suites of TLS 1.2, by their names; empty is all that are known.";
        tls_min_version: String = "TLS1.2", "Lowest TLS version: TLS1.2 or TLS1.3.";
        tls_max_version: String = "", "Highest TLS version: TLS1.2 or TLS1.3; empty is the highest known.";
        grpc_keepalive_min_time: GoDuration = "5s", "How far apart a client's own pings must be; 0 is 5m. One that goes on is told too_many_pings.";
        grpc_keepalive_interval: GoDuration = "2h0m0s", "How often a silent client connection is pinged; 0 is never.";
        grpc_keepalive_timeout: GoDuration = "20s", "How long the answer to such a ping may take.";
    }
    "Experimental and debugging" {
        experimental_serializable_ordering: bool = "false", "No serializable read shows an older state than one before it.";
        experimental_leasing_prefix: String = "", "Not supported.";
        experimental_enable_grpc_logging: bool = "false", "Write a line about each call.";
        debug: bool = "false", "Write debug lines, too.";
        enable_pprof: bool = "false", "Serve profiles of this process at /debug/pprof/.";
    }
}

/// What is shown without a verb, and after flags that cannot be read.
pub const USAGE: &str = "\
Usage:
  ferretcd grpc-proxy start [flags]

Run a proxy before a cluster. See ferretcd grpc-proxy start --help for its flags.
";

/// The help, part by part.
pub fn help() -> String {
    let mut text = String::from(USAGE);
    let mut group = "";
    for spec in SPECS {
        if spec.group != group {
            group = spec.group;
            text.push_str(&format!("\n{group}:\n"));
        }
        text.push_str(&format!("  --{} '{}'\n      {}\n", spec.name(), spec.default, spec.help));
    }
    text.trim_end().to_owned()
}

/// Reads the flags; nothing if help is asked for. What is no flag is ignored, as in etcd.
pub fn read(args: &[String]) -> Result<Option<Flags>, String> {
    let (mut flags, mut given) = (Flags::default(), BTreeSet::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(text) = arg.strip_prefix("--") else {
            match arg.as_str() {
                "-h" => return Ok(None),
                text if text.len() > 1 && text.starts_with('-') => {
                    return Err(format!("unknown shorthand flag in {text}: flags have two dashes here"));
                }
                _ => continue,
            }
        };
        if text.is_empty() {
            break;
        }
        if text == "help" {
            return Ok(None);
        }
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let spec = SPECS.iter().find(|spec| spec.is(name)).ok_or_else(|| format!("unknown flag: --{name}"))?;
        let value = match value {
            Some(value) => value,
            None if spec.kind == Kind::Bool => "true",
            None => args.next().ok_or_else(|| format!("flag needs an argument: --{name}"))?,
        };
        let before = flags.list(name).map(|list| list.0.clone());
        let bad = |why| format!("invalid argument {value:?} for \"--{name}\" flag: {why}");
        flags.set(spec, value).map_err(bad)?;
        let again = !given.insert(name.to_owned());
        if let (Some(mut all), Some(list), true) = (before, flags.list(name), again) {
            all.append(&mut list.0);
            list.0 = all;
        }
    }
    Ok(Some(flags))
}

impl Flags {
    fn list(&mut self, name: &str) -> Option<&mut List> {
        match name {
            "endpoints" => Some(&mut self.endpoints),
            "listen-cipher-suites" => Some(&mut self.listen_cipher_suites),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Option<Flags>, String> {
        read(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_default_can_be_read_and_is_the_default() {
        let mut flags = Flags::default();
        for spec in SPECS {
            flags.set(spec, spec.default).unwrap_or_else(|e| panic!("--{}: {e}", spec.name()));
        }
        assert_eq!(flags.changed().map(Spec::name).collect::<Vec<_>>(), Vec::<String>::new());
    }

    #[test]
    fn flags_are_read_as_etcds_proxy_reads_them() {
        let args = [
            "stray",
            "--endpoints",
            "a:1,b:2",
            "--endpoints=c:3",
            "--auto-tls",
            "--debug=false",
            "--resolver-ttl",
            "7",
        ];
        let flags = parsed(&args).unwrap().unwrap();
        assert_eq!(flags.endpoints.0, ["a:1", "b:2", "c:3"]);
        assert_eq!((flags.auto_tls, flags.debug, flags.resolver_ttl), (true, false, 7));
        assert!(parsed(&["--help"]).unwrap().is_none() && parsed(&["-h"]).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (args, error) in [
            (vec!["--foo"], "unknown flag: --foo"),
            (vec!["--namespace"], "flag needs an argument: --namespace"),
            (vec!["--debug=x"], "invalid argument \"x\" for \"--debug\" flag: parse error"),
            (vec!["-debug"], "unknown shorthand flag in -debug: flags have two dashes here"),
        ] {
            assert_eq!(parsed(&args).unwrap_err(), error);
        }
    }
}
