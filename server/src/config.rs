//! From flags to what the member is started with: every value checked once, before anything is touched.

use crate::auth_token;
use crate::cli::Flags;
use ferretcd_node::cluster::is_peer_url;
use ferretcd_node::{AuthConfig, AutoCompaction, BootConfig, ClusterState, Intent, NodeConfig};
use ferretcd_raft::Timing;
use ferretcd_types::Limits;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// etcd's ceiling of the election time-out, in milliseconds.
const ELECTION_MAX_MS: u64 = 50_000;
const QUOTA_DEFAULT: u64 = 2 << 30;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// How the member starts.
    pub boot: BootConfig,
    /// Where it listens.
    pub listen: Listen,
    /// Streams that one client connection may open.
    pub max_concurrent_streams: u32,
}

/// Addresses to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// For clients.
    pub client: Vec<SocketAddr>,
    /// For members.
    pub peer: Vec<SocketAddr>,
    /// For metrics and probes.
    pub metrics: Vec<SocketAddr>,
}

/// Checks the flags.
pub fn check(flags: &Flags) -> Result<Config, String> {
    let Flags {
        name,
        data_dir,
        wal_dir,
        listen_peer_urls,
        listen_client_urls,
        listen_metrics_urls,
        initial_advertise_peer_urls,
        advertise_client_urls,
        initial_cluster,
        initial_cluster_state,
        initial_cluster_token,
        heartbeat_interval,
        election_timeout,
        snapshot_count,
        snapshot_catchup_entries,
        quota_backend_bytes,
        max_request_bytes,
        max_txn_ops,
        max_concurrent_streams,
        auto_compaction_mode,
        auto_compaction_retention,
        strict_reconfig_check,
        max_learners,
        watch_progress_notify_interval,
        auth_token,
        auth_token_ttl,
        bcrypt_cost,
        turn_auth_off,
        log_level: _,
        log_format: _,
        member_intent,
    } = flags;
    if *heartbeat_interval == 0 || *election_timeout < 5 * heartbeat_interval {
        return Err(format!(
            "--election-timeout[{election_timeout}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat_interval}ms]"
        ));
    }
    if *election_timeout > ELECTION_MAX_MS {
        return Err(format!(
            "--election-timeout[{election_timeout}ms] is too long, and should be set less than {ELECTION_MAX_MS}ms"
        ));
    }
    let listen = Listen {
        client: listen_addresses("--listen-client-urls", listen_client_urls)?,
        peer: listen_addresses("--listen-peer-urls", listen_peer_urls)?,
        metrics: listen_addresses("--listen-metrics-urls", listen_metrics_urls)?,
    };
    if listen.client.is_empty() || listen.peer.is_empty() {
        return Err("--listen-client-urls and --listen-peer-urls must each name at least one URL".to_owned());
    }
    let custom_listen = listen_client_urls != "http://localhost:2379";
    let client_urls = match advertise_client_urls {
        Some(urls) => advertised("--advertise-client-urls", urls)?,
        None if custom_listen => {
            return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned());
        }
        None => vec!["http://localhost:2379".to_owned()],
    };
    let peer_urls = advertised("--initial-advertise-peer-urls", initial_advertise_peer_urls)?;
    let initial_cluster = match initial_cluster {
        Some(text) => members(text)?,
        None => BTreeMap::from([(name.clone(), peer_urls.clone())]),
    };
    let state = match initial_cluster_state.as_str() {
        "new" => ClusterState::New,
        "existing" => ClusterState::Existing,
        other => return Err(format!("invalid value {other:?} for --initial-cluster-state: use new or existing")),
    };
    let intent = match member_intent.as_deref() {
        None => None,
        Some("bootstrap") => Some(Intent::Bootstrap),
        Some("join") => Some(Intent::Join),
        Some("run") => Some(Intent::Run),
        Some(other) => {
            return Err(format!("invalid value {other:?} for --member-intent: use bootstrap, join or run"));
        }
    };
    let quota_bytes = match *quota_backend_bytes {
        0 => Some(QUOTA_DEFAULT),
        n => u64::try_from(n).ok(),
    };
    let data_dir = data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.etcd")));
    let node = NodeConfig {
        name: name.clone(),
        client_urls,
        limits: Limits { max_request_bytes: *max_request_bytes, max_txn_ops: *max_txn_ops, quota_bytes },
        timing: Timing {
            heartbeat: Duration::from_millis(*heartbeat_interval),
            election: Duration::from_millis(*election_timeout),
            catch_up_entries: *snapshot_catchup_entries,
        },
        snapshot_count: (*snapshot_count).max(1),
        auto_compaction: auto_compaction(auto_compaction_mode, auto_compaction_retention)?,
        watch_progress_every: go_duration(watch_progress_notify_interval)
            .filter(|d| *d >= Duration::from_millis(100))
            .ok_or_else(|| format!("invalid --watch-progress-notify-interval {watch_progress_notify_interval:?}: a duration of at least 100ms, e.g. 10m"))?,
        max_learners: *max_learners,
        strict_reconfig_check: *strict_reconfig_check,
        spool_dir: data_dir.join("member").join("spool"),
        auth: AuthConfig {
            tokens: auth_token::check(auth_token, go_duration)?,
            // 0 is the default, as in etcd.
            token_ttl: Duration::from_secs(if *auth_token_ttl == 0 { 300 } else { *auth_token_ttl }),
            bcrypt_cost: bcrypt_cost_of(*bcrypt_cost),
            turn_off: *turn_auth_off,
        },
    };
    let boot = BootConfig {
        data_dir,
        wal_dir: wal_dir.clone(),
        initial_cluster,
        state,
        token: initial_cluster_token.clone(),
        advertise_peer_urls: peer_urls,
        intent,
        node,
    };
    Ok(Config { boot, listen, max_concurrent_streams: *max_concurrent_streams })
}

/// etcd takes its default instead of a cost that bcrypt does not have.
fn bcrypt_cost_of(given: u32) -> u32 {
    if (4..=31).contains(&given) {
        return given;
    }
    let default = AuthConfig::default().bcrypt_cost;
    tracing::warn!(given, default, "use default bcrypt cost instead of the invalid given cost: it is 4 to 31");
    default
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|u| !u.is_empty())
}

fn no_tls_yet(flag: &str, url: &str) -> Option<String> {
    let scheme = url.split("://").next().unwrap_or_default();
    matches!(scheme, "https" | "unix" | "unixs")
        .then(|| format!("{flag}: {url}: {scheme}:// is not supported by this version; use http://"))
}

/// Listen URLs name an IP address or localhost, as in etcd: a name could resolve to an address of another host.
fn listen_addresses(flag: &str, list: &str) -> Result<Vec<SocketAddr>, String> {
    split(list)
        .map(|url| {
            if let Some(refusal) = no_tls_yet(flag, url) {
                return Err(refusal);
            }
            let rest = url
                .strip_prefix("http://")
                .ok_or_else(|| format!("{flag}: {url}: URL scheme must be http, e.g. http://127.0.0.1:2379"))?;
            let rest = rest.strip_prefix("localhost").map_or(rest.to_owned(), |port| format!("127.0.0.1{port}"));
            rest.parse().map_err(|_| {
                format!("{flag}: {url}: expected IP in URL for binding, and a port, e.g. http://127.0.0.1:2379")
            })
        })
        .collect()
}

fn advertised(flag: &str, list: &str) -> Result<Vec<String>, String> {
    let urls: Vec<String> = split(list)
        .map(|url| {
            if let Some(refusal) = no_tls_yet(flag, url) {
                return Err(refusal);
            }
            if !is_peer_url(url) {
                return Err(format!("{flag}: {url}: must be scheme, host and port, e.g. http://10.0.0.1:2380"));
            }
            Ok(url.to_owned())
        })
        .collect::<Result<_, _>>()?;
    if urls.is_empty() {
        return Err(format!("{flag} must name at least one URL"));
    }
    Ok(urls)
}

/// `a=http://…,b=http://…`; a name may come more than once, for more than one URL.
fn members(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for item in split(text) {
        let (name, url) = item
            .split_once('=')
            .ok_or_else(|| format!("--initial-cluster: {item:?} is not of the form name=http://host:2380"))?;
        let urls = advertised("--initial-cluster", url)?;
        members.entry(name.to_owned()).or_default().extend(urls);
    }
    if members.is_empty() {
        return Err("--initial-cluster names no member".to_owned());
    }
    Ok(members)
}

fn auto_compaction(mode: &str, retention: &str) -> Result<Option<AutoCompaction>, String> {
    let bad = |why: &str| format!("invalid --auto-compaction-retention {retention:?} for mode {mode}: {why}");
    match mode {
        "periodic" => {
            let period = match retention.parse::<u64>() {
                Ok(hours) => Duration::from_secs(hours.checked_mul(3600).ok_or_else(|| bad("it is too long"))?),
                Err(_) => go_duration(retention).ok_or_else(|| bad("use a duration such as 30m or 1h"))?,
            };
            Ok((period > Duration::ZERO).then_some(AutoCompaction::Periodic(period)))
        }
        "revision" => {
            let keep: i64 = retention.parse().map_err(|_| bad("use a number of revisions"))?;
            if keep < 0 {
                return Err(bad("use a number of revisions, 0 for off"));
            }
            Ok((keep > 0).then_some(AutoCompaction::Revision(keep)))
        }
        other => Err(format!("invalid value {other:?} for --auto-compaction-mode: use periodic or revision")),
    }
}

/// Go's durations: a sequence of numbers with units, `1h30m`, `1.5s`, `100ms`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest == "0" {
        return Some(total);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Action, parse};

    fn config(args: &[&str]) -> Result<Config, String> {
        match parse(args.iter().map(Into::into), std::iter::empty()) {
            Ok(Action::Serve(flags)) => check(&flags),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_a_single_member_on_localhost() {
        let c = config(&[]).unwrap();
        assert_eq!(c.boot.initial_cluster, BTreeMap::from([("default".into(), vec!["http://localhost:2380".into()])]));
        assert_eq!(c.listen.client, ["127.0.0.1:2379".parse().unwrap()]);
        assert_eq!(c.boot.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(c.boot.node.limits.quota_bytes, Some(2 << 30));
    }

    #[test]
    fn bad_values_name_the_flag_the_value_and_the_way_out() {
        for (args, needles) in [
            (&["--listen-client-urls=http://example.com:2379"][..], &["--listen-client-urls", "example.com", "IP"][..]),
            (&["--listen-client-urls=127.0.0.1:2379"], &["scheme"]),
            (&["--listen-client-urls=http://127.0.0.1:1"], &["--advertise-client-urls is required"]),
            (&["--listen-peer-urls=https://127.0.0.1:2380"], &["https", "not supported"]),
            (&["--initial-cluster=default"], &["name=http://host:2380"]),
            (&["--initial-cluster=default=http://a"], &["--initial-cluster", "port"]),
            (&["--initial-cluster-state=old"], &["old", "new or existing"]),
            (&["--election-timeout=400"], &["5 times"]),
            (&["--member-intent=maybe"], &["maybe", "bootstrap, join or run"]),
            (&["--auto-compaction-retention=soon"], &["soon", "30m"]),
            (&["--auto-compaction-mode=never"], &["never", "periodic or revision"]),
            (&["--auth-token=jwt,sign-method=NONE"], &["--auth-token", "NONE", "RS256"]),
        ] {
            let error = config(args).unwrap_err();
            for needle in needles {
                assert!(error.contains(needle), "{args:?}: {error}");
            }
        }
    }

    #[test]
    fn compaction_retention_is_hours_a_duration_or_revisions() {
        let of = |mode: &str, r: &str| auto_compaction(mode, r).unwrap();
        assert_eq!(of("periodic", "1"), Some(AutoCompaction::Periodic(Duration::from_secs(3600))));
        assert_eq!(of("periodic", "1h30m"), Some(AutoCompaction::Periodic(Duration::from_secs(5400))));
        assert_eq!(of("revision", "1000"), Some(AutoCompaction::Revision(1000)));
        assert_eq!(of("periodic", "0"), None);
    }

    #[test]
    fn go_durations() {
        assert_eq!(go_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(go_duration("100ms"), Some(Duration::from_millis(100)));
        assert!(go_duration("5").is_none() && go_duration("").is_none() && go_duration("3 weeks").is_none());
    }
}
