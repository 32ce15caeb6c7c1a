//! From flags to what the member is started with: every value checked once, before anything is touched, in etcd's order
//! and with its words.

use crate::auth_token;
use crate::cli::{Notice, Settings};
use crate::discovery::Discovery;
use crate::discovery::srv::Srv;
use crate::flags::Flags;
use crate::flags::url::{Scheme, Url};
use crate::flags::value::{GoDuration, List, Urls, go_duration};
use crate::tls::{Allowed, Files, Params};
use ferretcd_api::trace::{RATE_MAX, Target};
use ferretcd_api::{Access, Web};
use ferretcd_node::cluster::is_peer_url;
use ferretcd_node::lease::CHECKPOINT_EVERY;
use ferretcd_node::{
    AuthConfig, AutoCompaction, BootConfig, ClusterState, CorruptionChecks, Force, Intent, NodeConfig, Pace,
};
use ferretcd_raft::Timing;
use ferretcd_raft::transport::dial::{Dialer, Patience};
use ferretcd_types::Limits;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// etcd's ceiling of the election time-out, in milliseconds.
const ELECTION_MAX_MS: usize = 50_000;
const QUOTA_DEFAULT: u64 = 2 << 30;
/// Sizes from which etcd warns.
const QUOTA_USUAL_MAX: i64 = 8 << 30;
const REQUEST_USUAL_MAX: usize = 10 << 20;
/// etcd's default, which a zero in a file stands for as well.
const PROGRESS_DEFAULT: Duration = Duration::from_secs(600);
/// grpc-go's default, which holds if `--grpc-keepalive-min-time` is 0.
pub const PING_MIN_TIME: Duration = Duration::from_secs(300);

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// How the member starts.
    pub boot: BootConfig,
    /// How the members of a new cluster find each other, if they do not know.
    pub discovery: Option<Discovery>,
    /// Or where DNS names them.
    pub srv: Option<Srv>,
    /// The own address that connections to members come from.
    pub peer_local: Option<IpAddr>,
    /// Whether one was asked for (the feature gate SetMemberLocalAddr).
    pub binds_local: bool,
    /// Where it listens.
    pub listen: Listen,
    /// Certificates of the client and metrics listeners.
    pub client_tls: Files,
    /// Certificates for other members.
    pub peer_tls: Files,
    /// Protocol versions and cipher suites.
    pub tls: Params,
    /// Streams that one client connection may open.
    pub max_concurrent_streams: u32,
    /// How often a silent client connection is pinged, and how long it may take to answer.
    pub keep_alive: (Option<Duration>, Duration),
    /// How far apart a client's own pings must be while it has calls under way.
    pub ping_min_time: Duration,
    /// Share ports with another process.
    pub reuse_port: bool,
    /// A calling member's address must be among the names of its certificate.
    pub compares_peer_address: bool,
    /// How long connections to other members may be silent or stuck.
    pub peer_patience: Patience,
    /// Keep all memory out of swap (`--memory-mlock`).
    pub lock_memory: bool,
    /// A call without a stream that takes longer is mentioned in the log.
    pub warning_unary: Duration,
    /// Also say how long calls take (`--metrics=extensive`).
    pub extensive_metrics: bool,
    /// Where traces go, and of how many in a million ([`ferretcd_api::trace::RATE_MAX`]) that begin here; nothing: none are made.
    pub tracing: Option<(u32, Target)>,
    /// `grpc.health.v1` does not serve while this member is defragmented.
    pub stop_on_defragment: bool,
    /// Serve profiles of this process.
    pub profiles: bool,
    /// HTTP beside gRPC, and who may ask by it.
    pub web: Web,
    /// What the log is to say.
    pub notices: Vec<Notice>,
}

/// Where to listen, by what is served there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// For clients.
    pub client: Vec<Place>,
    /// For clients that speak plain HTTP; then the others get gRPC alone.
    pub http: Vec<Place>,
    /// For members.
    pub peer: Vec<Place>,
    /// For metrics and probes.
    pub metrics: Vec<Place>,
}

/// One place to listen at; the same one may be named for plain and for TLS connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address.
    pub address: Address,
    /// Accept connections without TLS.
    pub plain: bool,
    /// Accept TLS.
    pub secure: bool,
}

/// An address to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Checks the settings.
pub fn check(settings: &Settings) -> Result<Config, String> {
    let flags = &settings.flags;
    let mut notices = Vec::new();
    let remark = |text: &str| Notice::Other(text.to_owned());
    if flags.logger != "zap" {
        return Err(match flags.logger.as_str() {
            "capnslog" => "--logger=capnslog is removed in v3.5".to_owned(),
            other => format!("unknown logger option {other:?}"),
        });
    }
    let listen = Listen {
        peer: places(&flags.listen_peer_urls.0)?,
        client: places(&flags.listen_client_urls.0)?,
        http: places(&flags.listen_client_http_urls.0)?,
        metrics: places(&flags.listen_metrics_urls.0)?,
    };
    if let Some(url) = flags.listen_peer_urls.0.iter().find(|u| u.scheme.is_unix()) {
        return Err(format!("--listen-peer-urls: {url}: members reach each other by http:// and https:// only"));
    }
    if let Some(both) = listen.http.iter().find(|h| listen.client.iter().any(|c| c.address == h.address)) {
        return Err(format!(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {}",
            both.address
        ));
    }
    if listen.http.is_empty() {
        notices.push(remark("Running http and grpc server on single port. This is not recommended for production."));
    }
    let peer_urls = advertised(&flags.initial_advertise_peer_urls, |urls, why| {
        format!("--initial-advertise-peer-urls {urls:?} must be \"host:port\" ({why})")
    })?;
    let client_urls = advertised(&flags.advertise_client_urls, |urls, why| {
        format!(
            "--advertise-client-urls {urls:?} must be in the format \"host:port\", \"unix:/path/to/socket\" or \
             \"unixs:/path/to/socket\" ({why})"
        )
    })?;
    one_way_to_begin(flags)?;
    let discovery = Discovery::check(flags)?;
    let (heartbeat, election) = (flags.heartbeat_interval, flags.election_timeout);
    if heartbeat == 0 || election == 0 {
        let name = if heartbeat == 0 { "heartbeat-interval" } else { "election-timeout" };
        return Err(format!("--{name} must be >0 (set to 0ms)"));
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > ELECTION_MAX_MS {
        return Err(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_MAX_MS}ms"
        ));
    }
    let was_set = |name: &str| settings.given.contains(name);
    if settings.file.is_none() && was_set("listen-client-urls") && !was_set("advertise-client-urls") {
        return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned());
    }
    let auto_compaction = auto_compaction(&flags.auto_compaction_mode, &flags.auto_compaction_retention)?;
    let tracing = traces(flags)?;
    let gates = &flags.feature_gates;
    if gates.enabled("LeaseCheckpointPersist") && !gates.enabled("LeaseCheckpoint") {
        return Err(
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint".to_owned()
        );
    }
    if flags.compact_hash_check_time <= GoDuration(0) {
        let set = match flags.compact_hash_check_time.0 {
            0 => "0s".to_owned(),
            nanos => format!("{nanos}ns"),
        };
        return Err(format!("--compact-hash-check-time must be >0 (set to {set})"));
    }
    if flags.name == "default" {
        notices.push(remark(
            "it isn't recommended to use default name, please set a value for --name. Note that etcd might run into \
             issue when multiple members have the same default name",
        ));
    }
    let tls = Params::new(&flags.tls_min_version, &flags.tls_max_version, &flags.cipher_suites.0)?;
    for suite in &tls.left_out {
        notices.push(Notice::Other(format!("cipher suite {suite} is left out: this server does not have it")));
    }
    let client_tls = client_tls(flags, &mut notices)?;
    let peer_tls = peer_tls(flags, &mut notices)?;
    let force = match flags.force_new_cluster_once.as_str() {
        _ if flags.force_new_cluster => Some(Force::Always),
        "" => None,
        name if name.len() > 64 || name.chars().any(char::is_whitespace) => {
            return Err(format!("--force-new-cluster-once={name:?}: give it a word of at most 64 bytes"));
        }
        name => Some(Force::Once(name.to_owned())),
    };
    unusual(flags, &mut notices);

    let name = &flags.name;
    if let Some(url) = peer_urls.iter().find(|u| !is_peer_url(u)) {
        return Err(format!(
            "--initial-advertise-peer-urls: {url}: must be scheme, host and port, e.g. http://10.0.0.1:2380"
        ));
    }
    let initial_cluster = match flags.initial_cluster.as_str() {
        "" => BTreeMap::from([(name.clone(), peer_urls.clone())]),
        text => members(text)?,
    };
    let data_dir = match flags.data_dir.as_str() {
        "" => PathBuf::from(format!("{name}.etcd")),
        dir => PathBuf::from(dir),
    };
    let node = NodeConfig {
        name: name.clone(),
        client_urls,
        limits: Limits {
            max_request_bytes: flags.max_request_bytes,
            max_txn_ops: flags.max_txn_ops,
            quota_bytes: match flags.quota_backend_bytes {
                0 => Some(QUOTA_DEFAULT),
                n => u64::try_from(n).ok(),
            },
        },
        timing: Timing {
            heartbeat: Duration::from_millis(heartbeat as u64),
            election: Duration::from_millis(election as u64),
            catch_up_entries: flags.snapshot_catchup_entries,
            pre_vote: flags.pre_vote,
            may_elect_at_once: flags.initial_election_tick_advance,
        },
        snapshot_count: flags.snapshot_count.max(1),
        auto_compaction,
        watch_progress_every: match flags.watch_progress_notify_interval.length() {
            Duration::ZERO => PROGRESS_DEFAULT,
            often if often < Duration::from_millis(100) => {
                return Err(format!("--watch-progress-notify-interval must be at least 100ms (set to {often:?})"));
            }
            other => other,
        },
        max_learners: usize::try_from(flags.max_learners).unwrap_or(0),
        strict_reconfig_check: flags.strict_reconfig_check,
        spool_dir: data_dir.join("member").join("spool"),
        warning_apply: flags.warning_apply_duration.length(),
        auth: AuthConfig {
            tokens: auth_token::check(&flags.auth_token, |text| go_duration(text).map(|d| d.length()))?,
            // 0 is the default, as in etcd.
            token_ttl: Duration::from_secs(if flags.auth_token_ttl == 0 { 300 } else { flags.auth_token_ttl as u64 }),
            bcrypt_cost: bcrypt_cost(flags.bcrypt_cost, &mut notices),
            turn_off: flags.turn_auth_off,
        },
        compaction_pace: compaction_pace(flags),
        defragment_above: match flags.bootstrap_defrag_threshold_megabytes {
            0 => None,
            megabytes => Some((megabytes as u64).saturating_mul(1 << 20)),
        },
        // What is noted is always kept in the store, as in etcd from cluster version 3.6 on, whatever
        // LeaseCheckpointPersist says: members must not differ by their flags.
        lease_checkpoints: gates.enabled("LeaseCheckpoint").then_some(CHECKPOINT_EVERY),
        corruption: CorruptionChecks {
            at_start: gates.enabled("InitialCorruptCheck"),
            every: Some(flags.corrupt_check_time.length()).filter(|t| !t.is_zero()),
            compactions_every: gates.enabled("CompactHashCheck").then_some(flags.compact_hash_check_time.length()),
        },
    };
    let boot = BootConfig {
        data_dir,
        wal_dir: Some(PathBuf::from(&flags.wal_dir)).filter(|d| !d.as_os_str().is_empty()),
        write_behind: write_behind(flags),
        engine: flags.storage_engine.parse().map_err(|why| format!("invalid value for --storage-engine: {why}"))?,
        initial_cluster,
        state: if flags.initial_cluster_state.0 == "existing" { ClusterState::Existing } else { ClusterState::New },
        // As in etcd, so that two clusters that were found by different tokens are different ones.
        token: discovery.as_ref().map_or(&flags.initial_cluster_token[..], Discovery::token).to_owned(),
        advertise_peer_urls: peer_urls,
        intent: intent(&flags.member_intent)?,
        force,
        unsafe_no_fsync: flags.unsafe_no_fsync,
        dialer: Dialer::default(),
        node,
    };
    let interval = flags.grpc_keepalive_interval.length();
    Ok(Config {
        boot,
        discovery,
        srv: Srv::check(flags),
        peer_local: peer_local(flags, &mut notices),
        binds_local: gates.enabled("SetMemberLocalAddr"),
        listen,
        client_tls,
        peer_tls,
        tls,
        max_concurrent_streams: flags.max_concurrent_streams,
        keep_alive: (Some(interval).filter(|i| !i.is_zero()), flags.grpc_keepalive_timeout.length()),
        ping_min_time: Some(flags.grpc_keepalive_min_time.length()).filter(|t| !t.is_zero()).unwrap_or(PING_MIN_TIME),
        reuse_port: flags.socket_reuse_port,
        compares_peer_address: !flags.peer_skip_client_san_verification,
        peer_patience: patience(flags, &mut notices),
        lock_memory: flags.memory_mlock,
        warning_unary: flags.warning_unary_request_duration.length(),
        extensive_metrics: flags.metrics == "extensive",
        tracing,
        // With the debug level, too, as in etcd.
        profiles: flags.enable_pprof || flags.log_level == "debug",
        stop_on_defragment: gates.enabled("StopGRPCServiceOnDefrag"),
        web: Web {
            gateway: flags.enable_grpc_gateway,
            gateway_calls_max: flags.max_concurrent_streams,
            access: Access {
                origins: flags.cors.0.iter().cloned().collect(),
                hosts: flags.host_whitelist.0.iter().filter(|h| !h.is_empty()).cloned().collect(),
            },
        },
        notices,
    })
}

/// 0 is the default of either. The store behind the log is made durable every second, etcd's every 100 ms; seldom enough not to
/// wear the disk, and often enough for a start not to replay minutes of the log. More writes in one commit than the default's
/// would hold up readers.
fn write_behind(flags: &Flags) -> ferretcd_storage::Options {
    const INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));
    let default = ferretcd_storage::Options::default();
    let most = default.max_ops_per_commit;
    ferretcd_storage::Options {
        flush_interval: match flags.backend_batch_interval.length() {
            Duration::ZERO => default.flush_interval,
            interval => interval.clamp(INTERVALS.0, INTERVALS.1),
        },
        max_ops_per_commit: usize::try_from(flags.backend_batch_limit)
            .ok()
            .filter(|n| *n > 0)
            .unwrap_or(most)
            .min(most),
        ..default
    }
}

/// Values that are no numbers of deletions, and no pauses, stand for etcd's defaults, as there.
fn compaction_pace(flags: &Flags) -> Pace {
    let batch = usize::try_from(flags.compaction_batch_limit).ok().filter(|limit| *limit > 0);
    let sleep = Some(flags.compaction_sleep_interval.length()).filter(|sleep| !sleep.is_zero());
    // A longer pause would never come to an end of a compaction.
    Pace::new(batch.unwrap_or(1000), sleep.unwrap_or(Duration::from_millis(10)).min(Duration::from_secs(60)))
}

/// Time-outs of connections between members, with etcd's least values.
fn patience(flags: &Flags, notices: &mut Vec<Notice>) -> Patience {
    let mut at_least = |name: &str, given: GoDuration| {
        let (least, given) = (Patience::LEAST, given.length());
        if given < least {
            notices.push(Notice::Other(format!("{name} increased to minimum value: {}s", least.as_secs())));
        }
        given.max(least)
    };
    Patience {
        read: at_least("raft-read-timeout", flags.raft_read_timeout),
        write: at_least("raft-write-timeout", flags.raft_write_timeout),
    }
}

/// etcd takes its default instead of a cost that bcrypt does not have.
fn bcrypt_cost(given: usize, notices: &mut Vec<Notice>) -> u32 {
    if let Some(cost) = u32::try_from(given).ok().filter(|cost| (4..=31).contains(cost)) {
        return cost;
    }
    let default = AuthConfig::default().bcrypt_cost;
    notices.push(Notice::Other(format!(
        "use default bcrypt cost {default} instead of the invalid given cost {given}: it is 4 to 31"
    )));
    default
}

/// Remarks on values that are odd, or that have no effect here. A flag without effect is one whose help says so.
fn unusual(flags: &Flags, notices: &mut Vec<Notice>) {
    let mut remark = |text: String| notices.push(Notice::Other(text));
    if flags.quota_backend_bytes > QUOTA_USUAL_MAX {
        remark(format!("--quota-backend-bytes {} exceeds the maximum recommended value", flags.quota_backend_bytes));
    }
    if flags.max_request_bytes > REQUEST_USUAL_MAX {
        remark(format!("--max-request-bytes {} exceeds the maximum recommended size", flags.max_request_bytes));
    }
    for spec in flags.changed().filter(|spec| spec.help.starts_with("Accepted")) {
        remark(format!("--{} is accepted without effect in this server", spec.name()));
    }
    if flags.unsafe_no_fsync {
        remark(
            "--unsafe-no-fsync disables fsync, is unsafe, and will cause data loss when the machine fails".to_owned(),
        );
    }
    if !["basic", "extensive"].contains(&flags.metrics.as_str()) {
        remark(format!("--metrics={} is taken for \"basic\"; there are \"basic\" and \"extensive\"", flags.metrics));
    }
    for gate in flags.feature_gates.without_effect() {
        remark(format!("feature gate {gate} has no effect in this server"));
    }
}

fn one_way_to_begin(flags: &Flags) -> Result<(), String> {
    let (endpoints, srv) = (!flags.discovery_endpoints.0.is_empty(), !flags.discovery_srv.is_empty());
    if [!flags.initial_cluster.is_empty(), endpoints, srv].iter().filter(|set| **set).count() > 1 {
        return Err("multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
                    \"discovery-endpoints\" or \"discovery-srv\""
            .to_owned());
    }
    if endpoints == flags.discovery_token.is_empty() {
        return Err("both --discovery-token and --discovery-endpoints must be set".to_owned());
    }
    Ok(())
}

fn traces(flags: &Flags) -> Result<Option<(u32, Target)>, String> {
    if !flags.enable_distributed_tracing {
        return Ok(None);
    }
    // etcd's words, its spelling included.
    let bad = |why: String| Err(format!("distributed tracing configurition is not valid: ({why})"));
    let rate = flags.distributed_tracing_sampling_rate;
    if rate < 0 {
        return bad("tracing sampling rate must be positive".to_owned());
    }
    let Some(rate) = u32::try_from(rate).ok().filter(|rate| *rate <= RATE_MAX) else {
        return bad(format!("tracing sampling rate must be less than {RATE_MAX}"));
    };
    let target = Target {
        address: flags.distributed_tracing_address.clone(),
        service_name: flags.distributed_tracing_service_name.clone(),
        instance_id: flags.distributed_tracing_instance_id.clone(),
    };
    Ok(Some((rate, target)))
}

/// With the gate SetMemberLocalAddr connections to members come from the first advertised address that others can reach.
fn peer_local(flags: &Flags, notices: &mut Vec<Notice>) -> Option<IpAddr> {
    if !flags.feature_gates.enabled("SetMemberLocalAddr") {
        return None;
    }
    let mut hosts =
        flags.initial_advertise_peer_urls.0.iter().filter_map(|url| url.host_port()?.0.parse::<IpAddr>().ok());
    let found = hosts.find(|ip| !ip.is_loopback() && !ip.is_unspecified());
    if found.is_none() {
        notices.push(Notice::Other(
            "unable to set a member local address due to lack of suitable local addresses".to_owned(),
        ));
    }
    found
}

fn intent(text: &str) -> Result<Option<Intent>, String> {
    Ok(Some(match text {
        "" => return Ok(None),
        "bootstrap" => Intent::Bootstrap,
        "join" => Intent::Join,
        "run" => Intent::Run,
        other => return Err(format!("invalid value {other:?} for --member-intent: use bootstrap, join or run")),
    }))
}

/// What is in the way of `http://` beside certificates, or of `https://` without.
fn client_tls(flags: &Flags, notices: &mut Vec<Notice>) -> Result<Files, String> {
    let files = Files {
        flags: [
            "--cert-file",
            "--key-file",
            "--trusted-ca-file",
            "--client-crl-file",
            "--client-cert-file",
            "--client-key-file",
        ],
        cert: path(&flags.cert_file),
        key: path(&flags.key_file),
        trusted_ca: path(&flags.trusted_ca_file),
        crl: path(&flags.client_crl_file),
        // Shown to nobody, since this server has no need to call itself; but they must be good, as in etcd.
        own_cert: path(&flags.client_cert_file),
        own_key: path(&flags.client_key_file),
        asks_client: flags.client_cert_auth || !flags.trusted_ca_file.is_empty(),
        names_client: flags.client_cert_auth,
        allowed: allowed(&flags.client_cert_allowed_cn, &flags.client_cert_allowed_hostname)?,
        auto: flags.auto_tls,
        calls: false,
    };
    let urls = || flags.listen_client_urls.0.iter().chain(&flags.listen_client_http_urls.0);
    for url in urls().filter(|u| !u.scheme.is_secure()) {
        if files.is_given() {
            notices.push(Notice::Other(format!(
                "scheme is http or unix while key and cert files are present; ignoring key and cert files: {url}"
            )));
        }
        if flags.client_cert_auth {
            notices.push(Notice::Other(format!(
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL: {url}"
            )));
        }
    }
    if let Some(url) = urls().find(|u| u.scheme.is_secure() && !files.is_given() && !files.auto) {
        return Err(format!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
        ));
    }
    if flags.listen_metrics_urls.0.iter().any(|u| u.scheme.is_secure() && !files.is_given() && !files.auto) {
        return Err("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url".to_owned());
    }
    files.check(notices, "client")?;
    Ok(files)
}

fn peer_tls(flags: &Flags, notices: &mut Vec<Notice>) -> Result<Files, String> {
    let files = Files {
        flags: [
            "--peer-cert-file",
            "--peer-key-file",
            "--peer-trusted-ca-file",
            "--peer-crl-file",
            "--peer-client-cert-file",
            "--peer-client-key-file",
        ],
        cert: path(&flags.peer_cert_file),
        key: path(&flags.peer_key_file),
        trusted_ca: path(&flags.peer_trusted_ca_file),
        crl: path(&flags.peer_crl_file),
        own_cert: path(&flags.peer_client_cert_file),
        own_key: path(&flags.peer_client_key_file),
        asks_client: flags.peer_client_cert_auth || !flags.peer_trusted_ca_file.is_empty(),
        names_client: false,
        allowed: allowed(&flags.peer_cert_allowed_cn, &flags.peer_cert_allowed_hostname)?,
        auto: flags.peer_auto_tls,
        calls: true,
    };
    for url in &flags.listen_peer_urls.0 {
        if url.scheme == Scheme::Http {
            if files.is_given() {
                notices.push(Notice::Other(format!(
                    "scheme is HTTP while key and cert files are present; ignoring key and cert files: {url}"
                )));
            }
            if flags.peer_client_cert_auth {
                notices.push(Notice::Other(format!(
                    "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL: {url}"
                )));
            }
        } else if !files.is_given() && !files.auto {
            return Err(format!("cannot listen on TLS for {}: KeyFile and CertFile are not presented", url.place));
        }
    }
    files.check(notices, "peer")?;
    Ok(files)
}

fn path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|p| !p.as_os_str().is_empty())
}

fn allowed(names: &List, hosts: &List) -> Result<Allowed, String> {
    match (names.0.as_slice(), hosts.0.as_slice()) {
        ([], []) => Ok(Allowed::Anyone),
        (names, []) => Ok(Allowed::CommonNames(names.to_vec())),
        ([], hosts) => Ok(Allowed::Hostnames(hosts.to_vec())),
        (names, hosts) => {
            Err(format!("AllowedCNs and AllowedHostnames are mutually exclusive (cns={names:?}, hostnames={hosts:?})"))
        }
    }
}

/// Listen URLs name an IP address or localhost, as in etcd: a name could resolve to an address of another host.
fn places(urls: &[Url]) -> Result<Vec<Place>, String> {
    let mut places: Vec<Place> = Vec::new();
    for url in urls {
        let address = match url.host_port() {
            None => Address::Unix(PathBuf::from(&url.place)),
            Some((host, port)) => {
                let ip = match host {
                    "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    _ => host.parse().ok(),
                };
                let ip = ip.ok_or_else(|| format!("expected IP in URL for binding ({url})"))?;
                let port = port.parse().map_err(|_| format!("{url}: {port:?} is not a port"))?;
                Address::Tcp(SocketAddr::new(ip, port))
            }
        };
        let secure = url.scheme.is_secure();
        match places.iter_mut().find(|p| p.address == address) {
            Some(place) if secure => place.secure = true,
            Some(place) => place.plain = true,
            None => places.push(Place { address, plain: !secure, secure }),
        }
    }
    // Whether the next bytes are TLS is looked up without taking them, which a Unix socket does not offer.
    match places.iter().find(|p| p.plain && p.secure && matches!(p.address, Address::Unix(_))) {
        Some(both) => Err(format!("{} cannot be listened on as unix:// and unixs:// at once", both.address)),
        None => Ok(places),
    }
}

fn advertised(urls: &Urls, error: impl Fn(String, String) -> String) -> Result<Vec<String>, String> {
    let texts = urls.texts();
    match urls.0.iter().find(|u| u.host_port().is_some_and(|(host, _)| host.is_empty())) {
        Some(url) => Err(error(texts.join(","), format!("unexpected empty host ({url})"))),
        None => Ok(texts),
    }
}

/// `a=http://…,b=http://…`; a name may come more than once, for more than one URL.
pub fn members(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
        let (name, url) = item
            .split_once('=')
            .ok_or_else(|| format!("--initial-cluster: {item:?} is not of the form name=http://host:2380"))?;
        let url = Url::parse(url).map_err(|e| format!("--initial-cluster: {e}"))?.to_string();
        if !is_peer_url(&url) {
            return Err(format!(
                "--initial-cluster: {url}: must be scheme, host and port, e.g. {name}=http://10.0.0.1:2380"
            ));
        }
        members.entry(name.to_owned()).or_default().push(url);
    }
    if members.is_empty() {
        return Err("--initial-cluster names no member".to_owned());
    }
    Ok(members)
}

fn auto_compaction(mode: &str, retention: &str) -> Result<Option<AutoCompaction>, String> {
    let bad = |why: &str| format!("error parsing CompactionRetention: {why}");
    match mode {
        "periodic" => {
            let period = match retention.parse::<u64>() {
                Ok(hours) => Duration::from_secs(hours.checked_mul(3600).ok_or_else(|| bad("it is too long"))?),
                Err(_) => {
                    let invalid = || bad(&format!("time: invalid duration {retention:?}; use e.g. 30m or 1h"));
                    go_duration(retention).filter(|d| d.0 >= 0).ok_or_else(invalid)?.length()
                }
            };
            Ok((period > Duration::ZERO).then_some(AutoCompaction::Periodic(period)))
        }
        "revision" => {
            let keep: i64 =
                retention.parse().map_err(|_| bad(&format!("{retention:?} is not a number of revisions")))?;
            if keep < 0 {
                return Err(bad("use a number of revisions, 0 for off"));
            }
            Ok((keep > 0).then_some(AutoCompaction::Revision(keep)))
        }
        "" => Err("undefined auto-compaction-mode".to_owned()),
        other => Err(format!("unknown auto-compaction-mode {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Action, parse};

    fn config(args: &[&str]) -> Result<Config, String> {
        match parse(args.iter().map(Into::into), std::iter::empty()) {
            Ok(Action::Serve(settings)) => check(&settings),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_a_single_member_on_localhost() {
        let c = config(&[]).unwrap();
        assert_eq!(c.boot.initial_cluster, BTreeMap::from([("default".into(), vec!["http://localhost:2380".into()])]));
        let place = Place { address: Address::Tcp("127.0.0.1:2379".parse().unwrap()), plain: true, secure: false };
        assert_eq!(c.listen.client, [place]);
        assert_eq!(c.boot.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(c.boot.node.limits.quota_bytes, Some(2 << 30));
    }

    #[test]
    fn values_that_etcd_refuses_are_refused_in_its_words() {
        for (args, error) in [
            (
                &["--listen-client-urls=http://example.com:1"][..],
                "expected IP in URL for binding (http://example.com:1)",
            ),
            (
                &["--listen-client-urls=http://127.0.0.1:1"],
                "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            ),
            (
                &["--listen-peer-urls=https://127.0.0.1:2380"],
                "cannot listen on TLS for 127.0.0.1:2380: KeyFile and CertFile are not presented",
            ),
            (
                &["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1"],
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
            ),
            (
                &["--listen-metrics-urls=https://127.0.0.1:1"],
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
            ),
            (&["--cert-file=x"], "KeyFile and CertFile must both be present[key: , cert: x]"),
            (
                &["--election-timeout=400"],
                "--election-timeout[400ms] should be at least as 5 times as --heartbeat-interval[100ms]",
            ),
            (
                &["--election-timeout=60000"],
                "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
            ),
            (&["--heartbeat-interval=0"], "--heartbeat-interval must be >0 (set to 0ms)"),
            (&["--auto-compaction-mode=x"], "unknown auto-compaction-mode \"x\""),
            (&["--tls-min-version=TLS1.1"], "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"),
            (
                &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (
                &["--tls-min-version=TLS1.3", "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
                "cipher suites cannot be configured when only TLS1.3 is enabled",
            ),
            (&["--compact-hash-check-time=0"], "--compact-hash-check-time must be >0 (set to 0s)"),
            (&["--logger=capnslog"], "--logger=capnslog is removed in v3.5"),
            (
                &["--discovery-srv=x", "--initial-cluster=a=http://b:1"],
                "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"",
            ),
            (
                &["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=1000001"],
                "distributed tracing configurition is not valid: (tracing sampling rate must be less than 1000000)",
            ),
            (
                &["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=-1"],
                "distributed tracing configurition is not valid: (tracing sampling rate must be positive)",
            ),
            (&["--discovery-token=x"], "both --discovery-token and --discovery-endpoints must be set"),
            (
                &["--feature-gates=LeaseCheckpointPersist=true"],
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            ),
        ] {
            assert_eq!(config(args).unwrap_err(), error, "{args:?}");
        }
    }

    #[test]
    fn other_bad_values_name_the_flag_the_value_and_the_way_out() {
        for (args, needles) in [
            (&["--initial-cluster=default"][..], &["--initial-cluster", "name=http://host:2380"][..]),
            (&["--initial-cluster=default=http://a"], &["--initial-cluster", "host:port"]),
            (&["--member-intent=maybe"], &["maybe", "bootstrap, join or run"]),
            (&["--auto-compaction-retention=soon"], &["CompactionRetention", "soon", "30m"]),
            (&["--force-new-cluster-once=two words"], &["--force-new-cluster-once", "a word"]),
            (&["--discovery-token=t", "--discovery-endpoints=ftp://a:1"], &["--discovery-endpoints", "scheme"]),
            (&["--listen-peer-urls=unix:///tmp/x"], &["--listen-peer-urls", "https://"]),
            (
                &["--cipher-suites=TLS_RSA_WITH_RC4_128_SHA"],
                &["unexpected TLS cipher suite", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
            ),
        ] {
            let error = config(args).unwrap_err();
            for needle in needles {
                assert!(error.contains(needle), "{args:?}: {error}");
            }
        }
    }

    #[test]
    fn http_and_https_may_share_a_place() {
        let c = config(&[
            "--listen-client-urls=http://127.0.0.1:1,https://127.0.0.1:1,unix:///tmp/x",
            "--advertise-client-urls=https://a:1",
            "--auto-tls",
        ]);
        let client = c.unwrap().listen.client;
        assert!(client.len() == 2 && client[0].plain && client[0].secure, "{client:?}");
        assert_eq!(client[1].address, Address::Unix("/tmp/x".into()));
    }

    #[test]
    fn the_store_is_made_durable_as_often_as_asked_for_within_bounds() {
        let of = |args: &[&str]| {
            let options = config(args).unwrap().boot.write_behind;
            (options.flush_interval.as_millis(), options.max_ops_per_commit)
        };
        assert_eq!(of(&[]), (1000, 200));
        assert_eq!(of(&["--backend-batch-interval=50ms", "--backend-batch-limit=20"]), (50, 20));
        assert_eq!(of(&["--backend-batch-interval=1ns", "--backend-batch-limit=10000"]), (10, 200));
        assert_eq!(of(&["--backend-batch-interval=1h", "--backend-batch-limit=-1"]), (10_000, 200));
    }

    #[test]
    fn compacted_records_are_deleted_as_fast_as_asked_for_or_as_in_etcd() {
        let of = |args: &[&str]| config(args).unwrap().boot.node.compaction_pace;
        let pace = |batch, millis| Pace::new(batch, Duration::from_millis(millis));
        assert_eq!(of(&[]), pace(1000, 10));
        assert_eq!(of(&["--compaction-batch-limit=50", "--compaction-sleep-interval=200ms"]), pace(50, 200));
        assert_eq!(of(&["--compaction-batch-limit=-1", "--compaction-sleep-interval=0s"]), pace(1000, 10));
        assert_eq!(of(&["--compaction-sleep-interval=1h"]), pace(1000, 60_000));
    }

    #[test]
    fn time_outs_between_members_have_etcds_least_value() {
        let c = config(&["--raft-read-timeout=1s", "--raft-write-timeout=20s"]).unwrap();
        assert_eq!((c.peer_patience.read.as_secs(), c.peer_patience.write.as_secs()), (5, 20));
        let texts: Vec<String> = c.notices.iter().map(|n| format!("{n:?}")).collect();
        assert!(texts.iter().any(|t| t.contains("raft-read-timeout increased to minimum value: 5s")), "{texts:?}");
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let args =
            ["--name=a", "--backend-bbolt-freelist-type=array", "--feature-gates=PriorityRequest=true", "--max-wals=9"];
        let texts: Vec<String> = config(&args).unwrap().notices.iter().map(|n| format!("{n:?}")).collect();
        assert!(
            texts.iter().any(|t| t.contains("--backend-bbolt-freelist-type is accepted without effect")),
            "{texts:?}"
        );
        assert!(texts.iter().any(|t| t.contains("PriorityRequest")), "{texts:?}");
        assert!(!texts.iter().any(|t| t.contains("max-wals")), "{texts:?}");
    }

    #[test]
    fn a_flag_leads_to_what_it_is_for() {
        let c = config(&["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=7", "--enable-pprof"])
            .unwrap();
        assert_eq!(c.tracing.map(|(rate, target)| (rate, target.address)), Some((7, "localhost:4317".to_owned())));
        assert!(c.profiles && config(&["--log-level=debug"]).unwrap().profiles && !config(&[]).unwrap().profiles);
        let c =
            config(&["--pre-vote=false", "--initial-election-tick-advance=false", "--discovery-srv=a.test"]).unwrap();
        assert!(!c.boot.node.timing.pre_vote && !c.boot.node.timing.may_elect_at_once);
        assert_eq!(c.srv.map(|srv| srv.domain().to_owned()).as_deref(), Some("a.test"));
        let local = |urls: &str| {
            let urls = format!("--initial-advertise-peer-urls={urls}");
            config(&[&urls, "--feature-gates=SetMemberLocalAddr=true"]).unwrap().peer_local
        };
        assert_eq!(local("http://127.0.0.1:1,http://10.0.0.1:1"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(local("http://localhost:1"), None);
    }

    #[test]
    fn compaction_retention_is_hours_a_duration_or_revisions() {
        let of = |mode: &str, r: &str| auto_compaction(mode, r).unwrap();
        assert_eq!(of("periodic", "1"), Some(AutoCompaction::Periodic(Duration::from_secs(3600))));
        assert_eq!(of("periodic", "1h30m"), Some(AutoCompaction::Periodic(Duration::from_secs(5400))));
        assert_eq!(of("revision", "1000"), Some(AutoCompaction::Revision(1000)));
        assert_eq!(of("periodic", "0"), None);
    }
}
