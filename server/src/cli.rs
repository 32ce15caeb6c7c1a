//! Flags and `ETCD_*` variables, with etcd's names, defaults and precedence: a flag and its variable together are an
//! error, an unknown flag ends with code 2, an unknown variable is only a warning.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

pub use ferretcd_api::version::SERVER as ETCD_VERSION;

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Print and end.
    Print(String),
    /// Run a member.
    Serve(Box<Flags>),
    /// An offline verb on a snapshot file.
    Snapshot(SnapshotCommand),
}

/// A command line that cannot be followed.
#[derive(Debug)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub text: String,
    /// Exit code: 2 for an unknown flag, 1 otherwise (etcd's).
    pub code: u8,
}

/// A member's flags. Names, defaults and meaning are etcd's, unless the help says otherwise.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Human-readable name for this member.
    #[arg(long, default_value = "default")]
    pub name: String,
    /// Path to the data directory [default: <name>.etcd].
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Path to the dedicated directory of the write-ahead log.
    #[arg(long)]
    pub wal_dir: Option<PathBuf>,
    /// Comma-separated URLs to listen on for peer traffic.
    #[arg(long, default_value = "http://localhost:2380")]
    pub listen_peer_urls: String,
    /// Comma-separated URLs to listen on for clients: gRPC and HTTP.
    #[arg(long, default_value = "http://localhost:2379")]
    pub listen_client_urls: String,
    /// Comma-separated URLs to listen on for /metrics and the health endpoints.
    #[arg(long, default_value = "")]
    pub listen_metrics_urls: String,
    /// Comma-separated peer URLs to tell the other members.
    #[arg(long, default_value = "http://localhost:2380")]
    pub initial_advertise_peer_urls: String,
    /// Comma-separated client URLs to tell the cluster.
    #[arg(long)]
    pub advertise_client_urls: Option<String>,
    /// The members at the beginning, as name=peer-url,... [default: <name>=<initial-advertise-peer-urls>]
    #[arg(long)]
    pub initial_cluster: Option<String>,
    /// "new" to found a cluster, "existing" to join one.
    #[arg(long, default_value = "new")]
    pub initial_cluster_state: String,
    /// Goes into the IDs of a new cluster and its members.
    #[arg(long, default_value = "etcd-cluster")]
    pub initial_cluster_token: String,
    /// Heartbeat interval in milliseconds.
    #[arg(long, default_value_t = 100)]
    pub heartbeat_interval: u64,
    /// Election time-out in milliseconds; at least five heartbeats.
    #[arg(long, default_value_t = 1000)]
    pub election_timeout: u64,
    /// Committed entries between snapshots.
    #[arg(long, default_value_t = 10_000)]
    pub snapshot_count: u64,
    /// Log entries kept after a snapshot for followers that are behind.
    #[arg(long, default_value_t = 5000)]
    pub snapshot_catchup_entries: u64,
    /// Storage quota in bytes; 0 is 2 GiB, below 0 is none.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    pub quota_backend_bytes: i64,
    /// Largest client request in bytes.
    #[arg(long, default_value_t = 1_572_864)]
    pub max_request_bytes: usize,
    /// Most operations in a transaction.
    #[arg(long, default_value_t = 128)]
    pub max_txn_ops: usize,
    /// Most streams that one client connection may have open at once.
    #[arg(long, default_value_t = u32::MAX)]
    pub max_concurrent_streams: u32,
    /// "periodic" or "revision".
    #[arg(long, default_value = "periodic")]
    pub auto_compaction_mode: String,
    /// What auto-compaction keeps: a duration (5m; a bare number is hours) or a number of revisions. 0 is off.
    #[arg(long, default_value = "0")]
    pub auto_compaction_retention: String,
    /// Refuse changes of members that would endanger the quorum.
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub strict_reconfig_check: bool,
    /// Learners allowed at once.
    #[arg(long, default_value_t = 1)]
    pub max_learners: usize,
    /// How often an idle watcher that asked for it hears of progress.
    #[arg(long, default_value = "10m")]
    pub watch_progress_notify_interval: String,
    /// How users are known: "simple", or "jwt,sign-method=RS256,pub-key=…,priv-key=…,ttl=5m".
    #[arg(long, default_value = "simple")]
    pub auth_token: String,
    /// Seconds that a simple token stays good after its last use.
    #[arg(long, default_value_t = 300)]
    pub auth_token_ttl: u64,
    /// Cost of hashing passwords, 4 to 31.
    #[arg(long, default_value_t = 10)]
    pub bcrypt_cost: u32,
    /// debug, info, warn, error, panic or fatal.
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// json or console.
    #[arg(long, default_value = "json")]
    pub log_format: String,
    /// Not etcd's: turn authentication off on all members when this one has started, for who has lost root's password.
    #[arg(long)]
    pub turn_auth_off: bool,
    /// Not etcd's: what starting this member means when its data directory is empty (bootstrap, join or run).
    /// Without it etcd's own rules hold.
    #[arg(long)]
    pub member_intent: Option<String>,
}

#[derive(Parser, Debug)]
#[command(name = "ferretcd", disable_version_flag = true, about = "An etcd-compatible key-value store")]
struct Cli {
    #[command(flatten)]
    flags: Flags,
    /// Print the version and exit.
    #[arg(long)]
    version: bool,
    #[command(subcommand)]
    verb: Option<VerbCommand>,
}

#[derive(Subcommand, Debug)]
enum VerbCommand {
    /// Offline verbs on snapshot files.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// Offline verbs on a snapshot file; nothing is changed.
#[derive(Subcommand, Clone, Debug)]
pub enum SnapshotCommand {
    /// Check a snapshot file and print its hash, revision, keys and size.
    Status {
        /// The file.
        file: PathBuf,
        /// simple or json.
        #[arg(long, short = 'w', default_value = "simple")]
        write_out: String,
    },
}

/// Follows the command line and the environment.
pub fn parse(
    args: impl Iterator<Item = OsString>,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Action, Refusal> {
    let args: Vec<OsString> = args.map(two_dashes).collect();
    let is_verb = args.first().is_some_and(|a| a == "snapshot" || a == "help");
    let (args, warnings) = if is_verb { (args, Vec::new()) } else { with_environment(args, env)? };
    let matches = match Cli::command().no_binary_name(true).try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(e) if !e.use_stderr() => return Ok(Action::Print(e.to_string().trim_end().to_owned())),
        Err(e) => return Err(refusal(&e, &args)),
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|e| refusal(&e, &args))?;
    warnings.into_iter().for_each(|w| eprintln!("ferretcd: {w}"));
    if cli.version {
        return Ok(Action::Print(version()));
    }
    match cli.verb {
        Some(VerbCommand::Snapshot(command)) => Ok(Action::Snapshot(command)),
        None => Ok(Action::Serve(Box::new(cli.flags))),
    }
}

/// etcd's four lines (tools parse the first), and ours.
fn version() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: ferretcd-{}\nGo Version: none, written in Rust\nGo OS/Arch: {}/{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    )
}

/// Go's flag package takes one dash or two.
fn two_dashes(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text) if text.starts_with('-') && !text.starts_with("--") && text.len() > 2 => format!("-{text}").into(),
        _ => arg,
    }
}

fn flag_names() -> Vec<String> {
    let command = Cli::command();
    command.get_arguments().filter_map(|a| a.get_long()).filter(|n| *n != "version").map(str::to_owned).collect()
}

/// Variables become flags. Both at once are an error, as in etcd.
fn with_environment(
    mut args: Vec<OsString>,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Vec<OsString>, Vec<String>), Refusal> {
    let names = flag_names();
    let mut warnings = Vec::new();
    for (key, value) in env {
        let Some(key) = key.to_str() else { continue };
        let Some(name) = key.strip_prefix("ETCD_") else { continue };
        let name = name.to_lowercase().replace('_', "-");
        if !names.contains(&name) {
            if !matches!(key, "ETCD_VERSION" | "ETCD_UNSUPPORTED_ARCH") {
                warnings.push(format!("unrecognized environment variable {key}"));
            }
            continue;
        }
        let flag = format!("--{name}");
        let given = args.iter().any(|a| a.to_str().is_some_and(|a| a == flag || a.starts_with(&format!("{flag}="))));
        if given {
            return Err(Refusal {
                text: format!(
                    "conflicting environment variable is shadowed by corresponding command-line flag \
                     (either unset environment variable or disable flag)): {key}"
                ),
                code: 1,
            });
        }
        let mut arg = OsString::from(format!("{flag}="));
        arg.push(&value);
        args.push(arg);
    }
    Ok((args, warnings))
}

fn refusal(e: &clap::Error, args: &[OsString]) -> Refusal {
    use clap::error::ErrorKind;
    let stray = args.iter().filter_map(|a| a.to_str()).find(|a| !a.starts_with('-'));
    match (e.kind(), stray) {
        (ErrorKind::InvalidSubcommand, Some(stray)) => {
            Refusal { text: format!("{stray:?} is not a valid flag"), code: 1 }
        }
        (ErrorKind::UnknownArgument, _) => Refusal { text: e.to_string().trim_end().to_owned(), code: 2 },
        _ => Refusal { text: e.to_string().trim_end().to_owned(), code: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Action, Refusal> {
        parse(args.iter().map(OsString::from), env.iter().map(|(k, v)| ((*k).into(), (*v).into())))
    }

    fn flags(args: &[&str], env: &[(&str, &str)]) -> Flags {
        match run(args, env) {
            Ok(Action::Serve(flags)) => *flags,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_come_with_one_dash_or_two_and_from_variables() {
        let f = flags(&["-name", "a", "--election-timeout=500"], &[("ETCD_DATA_DIR", "/tmp/x"), ("PATH", "/bin")]);
        assert_eq!((f.name.as_str(), f.election_timeout), ("a", 500));
        assert_eq!(f.data_dir.unwrap().to_str(), Some("/tmp/x"));
    }

    #[test]
    fn a_flag_and_its_variable_together_are_refused_by_name() {
        let refusal = run(&["--name=a"], &[("ETCD_NAME", "b")]).unwrap_err();
        assert!(refusal.text.contains("ETCD_NAME") && refusal.code == 1, "{}", refusal.text);
    }

    #[test]
    fn an_unknown_flag_ends_with_two_and_a_stray_word_with_one() {
        let unknown = run(&["--no-such-flag=1"], &[]).unwrap_err();
        assert!(unknown.code == 2 && unknown.text.contains("--no-such-flag"), "{}", unknown.text);
        let stray = run(&["start"], &[]).unwrap_err();
        assert!(stray.code == 1 && stray.text.contains("\"start\" is not a valid flag"), "{}", stray.text);
    }

    #[test]
    fn booleans_may_stand_alone() {
        assert!(flags(&["--strict-reconfig-check"], &[]).strict_reconfig_check);
        assert!(!flags(&["--strict-reconfig-check=false"], &[]).strict_reconfig_check);
    }

    #[test]
    fn the_version_is_etcds_in_the_first_line() {
        let Ok(Action::Print(text)) = run(&["--version"], &[]) else { panic!() };
        assert_eq!(text.lines().next(), Some("etcd Version: 3.7.1"));
    }
}
