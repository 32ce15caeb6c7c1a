//! The table of flags, with etcd 3.7.1's names, defaults and kinds, and the one struct that it makes: settings come
//! into it from the command line, from variables or from a file.

pub mod features;
pub mod url;
pub mod value;

use features::Gates;
use value::{Fallback, GoDuration, Hosts, InitialState, Kind, List, Origins, Urls, V2Stage, Value};

/// One row of the table.
#[derive(Debug)]
pub struct Spec {
    field: &'static str,
    /// The part of the help that lists it.
    pub group: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its default, as one would write it.
    pub default: &'static str,
    /// A line of help.
    pub help: &'static str,
}

impl Spec {
    /// The flag's name.
    pub fn name(&self) -> String {
        self.field.replace('_', "-")
    }

    /// Whether it has this name.
    pub fn is(&self, name: &str) -> bool {
        self.field.len() == name.len()
            && self.field.bytes().zip(name.bytes()).all(|(f, n)| n == if f == b'_' { b'-' } else { f })
    }

    /// The variable that sets it.
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.field.to_ascii_uppercase())
    }
}

macro_rules! flags {
    ($($group:literal { $($field:ident: $kind:ty = $default:literal, $help:literal;)* })*) => {
        /// Settings. Names, defaults and meaning are etcd's, unless the help says otherwise.
        #[derive(Clone, Debug)]
        pub struct Flags {
            $($(#[doc = $help] pub $field: $kind,)*)*
        }

        impl Default for Flags {
            fn default() -> Self {
                // A default that cannot be read is a mistake in the table; a test reads them all.
                Flags { $($($field: <$kind>::read($default).unwrap_or_default(),)*)* }
            }
        }

        impl Flags {
            /// Sets the flag of a row; the error is that of [`Value::set`].
            pub fn set(&mut self, spec: &Spec, text: &str) -> Result<(), String> {
                match spec.field {
                    $($(stringify!($field) => self.$field.set(text),)*)*
                    _ => Ok(()),
                }
            }

            /// Rows whose flags are not at their defaults.
            pub fn changed(&self) -> impl Iterator<Item = &'static Spec> {
                let default = Flags::default();
                let changed = [$($(self.$field != default.$field,)*)*];
                SPECS.iter().zip(changed).filter(|(_, changed)| *changed).map(|(spec, _)| spec)
            }
        }

        /// The table.
        pub const SPECS: &[Spec] = &[
            $($(Spec {
                field: stringify!($field),
                group: $group,
                kind: <$kind as Value>::KIND,
                default: $default,
                help: $help,
            },)*)*
        ];
    };
}

// Behind the macro, which it uses for its own table.
pub mod grpc_proxy;

flags! {
    "Member" {
        name: String = "default", "Human-readable name for this member.";
        data_dir: String = "", "Path to the data directory; empty is <name>.etcd.";
        wal_dir: String = "", "Path to the dedicated directory of the write-ahead log.";
        snapshot_count: u64 = "10000", "Committed entries between snapshots.";
        snapshot_catchup_entries: u64 = "5000", "Log entries kept after a snapshot for followers that are behind.";
        heartbeat_interval: usize = "100", "Heartbeat interval in milliseconds.";
        election_timeout: usize = "1000", "Election time-out in milliseconds; at least five heartbeats.";
        initial_election_tick_advance: bool = "true", "After a start, call an election as soon as one can be won; else only after the election time-out.";
        listen_peer_urls: Urls = "http://localhost:2380", "URLs to listen on for other members.";
        listen_client_urls: Urls = "http://localhost:2379", "URLs to listen on for clients: gRPC, and HTTP unless --listen-client-http-urls is set.";
        listen_client_http_urls: Urls = "", "URLs for HTTP clients alone; then --listen-client-urls serves gRPC alone.";
        max_snapshots: usize = "5", "Most snapshot files to keep; one is kept, so every number is kept to (0 is no bound).";
        max_wals: usize = "5", "Most log files to keep that are not needed any more; they are removed or used again at once, so every number is kept to.";
        memory_mlock: bool = "false", "Keep all memory of the process out of swap; it needs a large enough LimitMEMLOCK.";
        quota_backend_bytes: i64 = "0", "Storage quota in bytes; 0 is 2 GiB, below 0 is none.";
        backend_bbolt_freelist_type: String = "map", "Accepted without effect: the store is not bbolt.";
        backend_batch_interval: GoDuration = "0s", "How often the store behind the log is made durable, 10ms to 10s; 0 is 1s.";
        backend_batch_limit: isize = "0", "Most writes in one commit of the store; 0, and what is above 200, is 200.";
        max_txn_ops: usize = "128", "Most operations in a transaction.";
        max_request_bytes: usize = "1572864", "Largest client request in bytes.";
        max_concurrent_streams: u32 = "4294967295", "Most streams that one client connection may have open at once.";
        grpc_keepalive_min_time: GoDuration = "5s", "How far apart a client's own pings must be; 0 is 5m (grpc-go's). One that goes on is told too_many_pings.";
        grpc_keepalive_interval: GoDuration = "2h", "How often a silent client connection is pinged; 0 is never.";
        grpc_keepalive_timeout: GoDuration = "20s", "How long the answer to such a ping may take.";
        socket_reuse_port: bool = "false", "Set SO_REUSEPORT on listeners.";
        socket_reuse_address: bool = "false", "Set SO_REUSEADDR on listeners (always set here).";
        enable_grpc_gateway: bool = "true", "Serve the HTTP/JSON gateway.";
        raft_read_timeout: GoDuration = "5s", "How long a connection to a member may be silent; at least 5s.";
        raft_write_timeout: GoDuration = "5s", "How long what was sent to a member may wait for its acknowledgement; at least 5s.";
        feature_gates: Gates = "", "Features as Name=true,...; etcd's names are known, the log tells which switch nothing here.";
        storage_engine: String = "sled", "Not etcd's: the engine, sled or redb; a data directory that was made with the other one is refused.";
        member_intent: String = "", "Not etcd's: what starting this member means when its data directory is empty: bootstrap, join or run. Without it etcd's own rules hold.";
    }
    "Clustering" {
        initial_advertise_peer_urls: Urls = "http://localhost:2380", "Peer URLs to tell the other members.";
        initial_cluster: String = "", "The members at the beginning, as name=peer-url,...; empty is <name>=<initial-advertise-peer-urls>.";
        initial_cluster_state: InitialState = "new", "\"new\" to found a cluster, \"existing\" to join one.";
        initial_cluster_token: String = "etcd-cluster", "Goes into the IDs of a new cluster and its members.";
        advertise_client_urls: Urls = "http://localhost:2379", "Client URLs to tell the cluster.";
        discovery_token: String = "", "The new cluster's name at --discovery-endpoints; it is its token, too.";
        discovery_endpoints: List = "", "An etcd cluster by which the members of a new cluster find each other.";
        discovery_dial_timeout: GoDuration = "2s", "How long an attempt to connect to it may take.";
        discovery_request_timeout: GoDuration = "5s", "How long it may take to answer a request.";
        discovery_keepalive_time: GoDuration = "2s", "When a silent connection to it is pinged.";
        discovery_keepalive_timeout: GoDuration = "6s", "How long it may take to answer that.";
        discovery_insecure_transport: bool = "true", "Speak no TLS where an endpoint has no scheme.";
        discovery_insecure_skip_tls_verify: bool = "false", "Take any certificate of it.";
        discovery_cert: String = "", "The certificate that is shown to it.";
        discovery_key: String = "", "Its key.";
        discovery_cacert: String = "", "The authority of its certificate.";
        discovery_user: String = "", "User there, as name or name:password.";
        discovery_password: String = "", "The user's password there.";
        discovery_fallback: Fallback = "exit", "Accepted; only \"exit\" is left.";
        discovery_srv: String = "", "DNS domain whose SRV records _etcd-server-ssl._tcp and _etcd-server._tcp name the members of a new cluster.";
        discovery_srv_name: String = "", "Suffix of those records: _etcd-server-<name>._tcp.";
        strict_reconfig_check: bool = "true", "Refuse changes of members that would endanger the quorum.";
        pre_vote: bool = "true", "Ask whether an election could be won before it is called.";
        auto_compaction_retention: String = "0", "What auto-compaction keeps: a duration (5m; a bare number is hours) or a number of revisions. 0 is off.";
        auto_compaction_mode: String = "periodic", "\"periodic\" or \"revision\".";
        v2_deprecation: V2Stage = "", "Deprecated; accepted without effect.";
    }
    "Security" {
        cert_file: String = "", "Certificate of the client listeners.";
        key_file: String = "", "Its key.";
        client_cert_auth: bool = "false", "Ask clients for certificates, and take their common names for users.";
        client_cert_file: String = "", "Certificate with which etcd calls itself. This server does not, and only checks that it is good.";
        client_key_file: String = "", "Its key.";
        client_crl_file: String = "", "Revoked client certificates (DER or PEM).";
        client_cert_allowed_hostname: List = "", "Names of which a client certificate must have one.";
        client_cert_allowed_cn: List = "", "Not etcd's as a flag (its file has it): common names of which a client certificate must have one.";
        trusted_ca_file: String = "", "Authorities that client certificates must come from.";
        auto_tls: bool = "false", "Make a certificate for the client listeners.";
        peer_cert_file: String = "", "Certificate of the peer listeners.";
        peer_key_file: String = "", "Its key.";
        peer_client_cert_auth: bool = "false", "Ask members for certificates.";
        peer_client_cert_file: String = "", "Certificate for calls to other members; empty is --peer-cert-file.";
        peer_client_key_file: String = "", "Its key.";
        peer_trusted_ca_file: String = "", "Authorities that members' certificates must come from.";
        peer_cert_allowed_cn: List = "", "Common names of which a member's certificate must have one.";
        peer_cert_allowed_hostname: List = "", "Names of which a member's certificate must have one.";
        peer_auto_tls: bool = "false", "Make a certificate for the peer listeners.";
        self_signed_cert_validity: usize = "1", "Years that made certificates are valid.";
        peer_crl_file: String = "", "Revoked peer certificates (DER or PEM).";
        peer_skip_client_san_verification: bool = "false", "Do not compare a member's address with the names in its certificate.";
        cipher_suites: List = "", "Cipher suites of TLS 1.2, by their names; empty is all that are known.";
        cors: Origins = "*", "Origins that may read answers in a browser; empty or * is all.";
        host_whitelist: Hosts = "*", "Hosts that may be named in plain HTTP requests; empty or * is all.";
        tls_min_version: String = "TLS1.2", "Lowest TLS version: TLS1.2 or TLS1.3.";
        tls_max_version: String = "", "Highest TLS version: TLS1.2 or TLS1.3; empty is the highest known.";
    }
    "Auth" {
        auth_token: String = "simple", "Kind of tokens: simple, or jwt with its options.";
        bcrypt_cost: usize = "10", "Cost of hashing a password, 4 to 31.";
        auth_token_ttl: usize = "300", "Seconds that a simple token lives without use.";
        turn_auth_off: bool = "false", "Not etcd's: turn authentication off on all members when this one has started, for who has lost root's password.";
    }
    "Profiling and monitoring" {
        enable_pprof: bool = "false", "Serve profiles of this process at /debug/pprof/ of the client URLs.";
        metrics: String = "basic", "\"basic\" or \"extensive\".";
        listen_metrics_urls: Urls = "", "URLs to listen on for /metrics and the health endpoints.";
    }
    "Logging" {
        logger: String = "zap", "Only \"zap\", etcd's form of log lines.";
        log_outputs: List = "default", "default, stderr, stdout, systemd/journal alone, or files to append to.";
        log_level: String = "info", "debug, info, warn, error, panic or fatal.";
        log_format: String = "json", "json or console.";
        enable_log_rotation: bool = "false", "Rename the log's file when it is full, and begin a new one; --log-outputs must name one file.";
        log_rotation_config_json: String = "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}", "Megabytes of a file, days and number that full ones are kept (0 is no bound), local time in their names, packing.";
        warning_unary_request_duration: GoDuration = "300ms", "Calls without streams that take longer are mentioned in the log.";
    }
    "Distributed tracing" {
        enable_distributed_tracing: bool = "false", "Send traces of calls by OTLP over gRPC, without TLS.";
        distributed_tracing_address: String = "localhost:4317", "host:port of the collector.";
        distributed_tracing_service_name: String = "etcd", "service.name of the traces.";
        distributed_tracing_instance_id: String = "", "service.instance.id of the traces; none if empty.";
        distributed_tracing_sampling_rate: isize = "0", "Of a million traces that begin here, how many are sent. One that the caller began is sent if the caller says so.";
    }
    "Features" {
        corrupt_check_time: GoDuration = "0s", "How often the leader compares what the members hold; 0 is never. A difference raises the alarm CORRUPT.";
        compact_hash_check_time: GoDuration = "1m", "How often the leader looks for a new compaction to compare the members at; with the feature gate CompactHashCheck.";
        compaction_batch_limit: isize = "1000", "Records that compaction deletes before it pauses.";
        compaction_sleep_interval: GoDuration = "10ms", "How long it pauses then.";
        watch_progress_notify_interval: GoDuration = "10m", "How often an idle watcher that asked for it hears of progress.";
        warning_apply_duration: GoDuration = "100ms", "Applying an entry for longer than this is mentioned in the log.";
        bootstrap_defrag_threshold_megabytes: usize = "0", "Defragment at the start if it gives so many megabytes back; 0 is never.";
        max_learners: isize = "1", "Learners allowed at once.";
        downgrade_check_time: GoDuration = "5s", "How often the leader looks whether all members are of the version that a downgrade leads to; there is no earlier release yet, so none is.";
    }
    "Unsafe" {
        force_new_cluster: bool = "false", "Go on alone with what the data directory holds: the other members are removed, at every start.";
        force_new_cluster_once: String = "", "As --force-new-cluster, but only once in this data directory for each word that is given here.";
        unsafe_no_fsync: bool = "false", "Disables fsync, unsafe, will cause data loss: of the log, that is; the store behind it is made durable as ever.";
    }
}

/// Flags that etcd itself takes and ignores, since long ago.
pub const IGNORED: [&str; 15] = [
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "vv",
    "test.coverprofile",
    "test.outputdir",
];

/// The row of a flag.
pub fn find(name: &str) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| spec.is(name))
}

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
    text
}

/// What is shown with the help, and after a command line that cannot be read.
pub const USAGE: &str = "\
Usage:

  ferretcd [flags]
      Run a member. A flag can also be given as a variable: --data-dir is ETCD_DATA_DIR.
  ferretcd --config-file <path>
      Run a member from a YAML or JSON file; other flags and variables are then ignored.
  ferretcd grpc-proxy start [flags]
      Run a proxy before a cluster; its own flags: ferretcd grpc-proxy start --help
  ferretcd snapshot status|verify|restore <file>, hashkv <file>, defrag, inspect <path>
      etcdutl's verbs on files that no process runs on, with its flags; so does a link by the name etcdutl.
  ferretcd --version
  ferretcd --help
";

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two tiers of the reference's table of flags: those that people set, and those that are worth having.
    #[rustfmt::skip]
    const WITH_EFFECT: &str = "
        name data-dir wal-dir listen-peer-urls listen-client-urls listen-client-http-urls listen-metrics-urls
        initial-advertise-peer-urls advertise-client-urls initial-cluster initial-cluster-state initial-cluster-token
        heartbeat-interval election-timeout initial-election-tick-advance pre-vote snapshot-count
        snapshot-catchup-entries quota-backend-bytes max-txn-ops max-request-bytes max-concurrent-streams
        grpc-keepalive-min-time grpc-keepalive-interval grpc-keepalive-timeout auto-compaction-mode
        auto-compaction-retention strict-reconfig-check max-learners force-new-cluster cert-file key-file
        trusted-ca-file client-cert-auth client-cert-allowed-hostname client-crl-file peer-cert-file peer-key-file
        peer-trusted-ca-file peer-client-cert-auth peer-cert-allowed-cn peer-cert-allowed-hostname peer-crl-file
        peer-skip-client-san-verification client-cert-file client-key-file peer-client-cert-file peer-client-key-file
        auto-tls peer-auto-tls self-signed-cert-validity tls-min-version tls-max-version cipher-suites auth-token
        auth-token-ttl bcrypt-cost metrics log-level log-format log-outputs logger watch-progress-notify-interval
        feature-gates enable-grpc-gateway cors host-whitelist
        corrupt-check-time compact-hash-check-time compaction-batch-limit compaction-sleep-interval downgrade-check-time
        warning-apply-duration warning-unary-request-duration bootstrap-defrag-threshold-megabytes enable-pprof
        enable-log-rotation log-rotation-config-json enable-distributed-tracing distributed-tracing-address
        distributed-tracing-service-name distributed-tracing-instance-id distributed-tracing-sampling-rate
        socket-reuse-port socket-reuse-address discovery-token discovery-endpoints discovery-dial-timeout
        discovery-request-timeout discovery-keepalive-time discovery-keepalive-timeout discovery-insecure-transport
        discovery-insecure-skip-tls-verify discovery-cert discovery-key discovery-cacert discovery-user
        discovery-password discovery-srv discovery-srv-name unsafe-no-fsync max-wals raft-read-timeout
        raft-write-timeout backend-batch-interval backend-batch-limit memory-mlock";

    #[test]
    fn every_flag_that_people_set_has_its_effect() {
        for name in WITH_EFFECT.split_whitespace() {
            let spec = find(name).unwrap_or_else(|| panic!("--{name} is missing"));
            let help = spec.help.to_lowercase();
            let idle = ["accepted", "not supported", "without effect", "no effect"].iter().find(|w| help.contains(**w));
            assert!(idle.is_none() && !help.starts_with("see --discovery"), "--{name}: {}", spec.help);
        }
        let idle: Vec<String> = SPECS.iter().filter(|s| s.help.contains("ccepted")).map(Spec::name).collect();
        assert_eq!(idle, ["backend-bbolt-freelist-type", "discovery-fallback", "v2-deprecation"]);
    }

    #[test]
    fn every_default_can_be_read_and_is_the_default() {
        let mut flags = Flags::default();
        for spec in SPECS {
            flags.set(spec, spec.default).unwrap_or_else(|e| panic!("--{}: {e}", spec.name()));
        }
        assert_eq!(flags.changed().map(Spec::name).collect::<Vec<_>>(), Vec::<String>::new());
        assert_eq!(flags.heartbeat_interval, 100);
        assert_eq!(flags.listen_client_urls.texts(), ["http://localhost:2379"]);
    }

    #[test]
    fn names_are_those_of_fields_with_dashes() {
        assert_eq!(find("data-dir").map(Spec::variable).as_deref(), Some("ETCD_DATA_DIR"));
        assert!(find("data_dir").is_none() && find("data").is_none());
    }

    #[test]
    fn the_help_names_every_flag() {
        let help = help();
        assert!(SPECS.iter().all(|s| help.contains(&format!("  --{} '", s.name()))));
    }
}
