//! The command line and the environment, read as etcd reads them: Go's flag syntax, a flag and its variable together
//! refused, and a configuration file in place of both.

use crate::config_file;
use crate::flags::{self, Flags, IGNORED, SPECS, Spec, USAGE, value::Kind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use ferretcd_api::version::SERVER as ETCD_VERSION;

/// What the command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Print and end.
    Print(String),
    /// Run a member.
    Serve(Box<Settings>),
    /// A verb on files, and how it answers.
    Offline(Box<Offline>, Format),
    /// etcd's verb for a proxy before a cluster, with the words behind it.
    GrpcProxy(Vec<String>),
}

/// A member's flags, and how they came about.
#[derive(Debug)]
pub struct Settings {
    /// The flags.
    pub flags: Flags,
    /// Names of the flags that were set, to whatever value, by flag, variable or file.
    pub given: BTreeSet<String>,
    /// The file that they came from.
    pub file: Option<PathBuf>,
    /// What the log is to say about them.
    pub notices: Vec<Notice>,
}

/// A remark for the log, made before there is one. The words are etcd's where it makes the remark, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A variable was used.
    Used(String),
    /// A variable that looks like one of ours and is none. Its value is not repeated: it may be a secret.
    Unrecognized(String),
    /// `ETCD_VERSION`, which images set.
    Special(String),
    /// A flag that does nothing any more.
    Ignored(String),
    /// Something else to know.
    Other(String),
}

impl Notice {
    /// Writes it to the log.
    pub fn log(&self) {
        match self {
            Notice::Used(name) => {
                tracing::info!("variable-name" = name, "recognized and used environment variable");
            }
            Notice::Unrecognized(name) => {
                tracing::warn!("environment-variable" = name, "unrecognized environment variable");
            }
            Notice::Special(name) => tracing::warn!(key = name, "cannot set special environment variable"),
            Notice::Ignored(name) => tracing::warn!("flag-name" = name, "flag is no longer supported - ignoring"),
            Notice::Other(text) => tracing::warn!("{text}"),
        }
    }
}

/// A command line that cannot be followed.
#[derive(Debug)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub text: String,
    /// Exit code: 2 for what cannot be read at all, 1 otherwise (etcd's).
    pub code: u8,
}

impl Refusal {
    fn unreadable(text: String) -> Self {
        Refusal { text: format!("{text}\n{USAGE}"), code: 2 }
    }

    fn wrong(text: String) -> Self {
        Refusal { text, code: 1 }
    }
}

#[derive(Parser, Debug)]
#[command(name = "ferretcd", disable_version_flag = true)]
struct Verbs {
    #[command(subcommand)]
    verb: Offline,
    /// simple, json, table or fields.
    #[arg(long, short = 'w', global = true, default_value = "simple")]
    write_out: Format,
    /// Taken for etcdutl's sake: files that a process runs on are refused at once.
    #[arg(long, global = true, default_value = "10s", hide = true)]
    timeout: String,
}

/// How a verb answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Format {
    Simple,
    Json,
    Table,
    Fields,
}

/// Verbs on files that no process runs on: etcdutl's, with its flags, and two of our own.
#[derive(Subcommand, Clone, Debug)]
pub enum Offline {
    /// Verbs on snapshot files.
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Print the hash of a snapshot file's key space.
    Hashkv {
        /// The file.
        file: PathBuf,
        /// Up to this revision; 0 is the latest.
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        rev: i64,
    },
    /// Give the space of deleted records in a data directory back.
    Defrag {
        /// The data directory.
        #[arg(long)]
        data_dir: String,
        /// Its log, if that is elsewhere.
        #[arg(long, default_value = "")]
        wal_dir: String,
    },
    /// Tell what a data directory or a snapshot file holds.
    Inspect {
        /// The data directory, or the file.
        path: PathBuf,
        /// The log of the data directory, if that is elsewhere.
        #[arg(long, default_value = "")]
        wal_dir: String,
        /// List every record of the log, too.
        #[arg(long)]
        entries: bool,
    },
    /// Print the version.
    Version,
}

/// Verbs on a snapshot file.
#[derive(Subcommand, Clone, Debug)]
pub enum SnapshotVerb {
    /// Print a file's hash, revision, keys and size.
    Status {
        /// The file.
        file: PathBuf,
    },
    /// Check every byte of a file as a restore would, and change nothing.
    Verify {
        /// The file.
        file: PathBuf,
    },
    /// Make the data directory of a member of a new cluster.
    Restore(Restore),
}

/// `snapshot restore`.
#[derive(clap::Args, Clone, Debug)]
pub struct Restore {
    /// The file.
    pub file: PathBuf,
    /// The data directory to make.
    #[arg(long, default_value = "")]
    pub data_dir: String,
    /// Where the log goes, if elsewhere.
    #[arg(long, default_value = "")]
    pub wal_dir: String,
    /// This member's name.
    #[arg(long, default_value = "default")]
    pub name: String,
    /// All members of the new cluster.
    #[arg(long, default_value = "default=http://localhost:2380")]
    pub initial_cluster: String,
    /// The new cluster's token.
    #[arg(long, default_value = "etcd-cluster")]
    pub initial_cluster_token: String,
    /// This member's peer URLs.
    #[arg(long, default_value = "http://localhost:2380")]
    pub initial_advertise_peer_urls: String,
    /// Take a raw copy of a database, which has no SHA-256 at its end.
    #[arg(long)]
    pub skip_hash_check: bool,
    /// Raise the revision by so much.
    #[arg(long, default_value_t = 0)]
    pub bump_revision: u64,
    /// Let all history up to the raised revision count as compacted; required with --bump-revision, refused without.
    #[arg(long)]
    pub mark_compacted: bool,
    /// The engine of the new store: the member's --storage-engine.
    #[arg(long, default_value = "sled")]
    pub storage_engine: String,
    /// Taken for etcdutl's sake: nothing is mapped here.
    #[arg(long, hide = true)]
    pub initial_memory_map_size: Option<u64>,
}

/// Follows the command line and the environment.
pub fn parse(
    args: impl Iterator<Item = OsString>,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Action, Refusal> {
    let mut args: Vec<OsString> = args.collect();
    // Our image has an entry point, which etcd's has not: compose files and pods name the program as the first word.
    if args.first().is_some_and(|word| word == "etcd" || word == "/usr/local/bin/etcd") {
        args.remove(0);
    }
    if args.first().is_some_and(|word| word == "etcdutl" || word == "/usr/local/bin/etcdutl") {
        return verb(&args[1..]);
    }
    if args.first().is_some_and(|word| VERBS.iter().any(|verb| word == verb)) {
        return verb(&args);
    }
    if args.first().is_some_and(|a| a == "grpc-proxy") {
        let words = args.into_iter().skip(1).map(|a| a.to_string_lossy().into_owned());
        return Ok(Action::GrpcProxy(words.collect()));
    }
    let args = args.into_iter().map(|a| {
        a.into_string().map_err(|a| Refusal::unreadable(format!("an argument is not UTF-8: {}", a.display())))
    });
    let mut line = CommandLine::default();
    match line.read(args.collect::<Result<_, _>>()?)? {
        Wish::Help => return Ok(Action::Print(flags::help().trim_end().to_owned())),
        Wish::Version => return Ok(Action::Print(version())),
        Wish::Serve => {}
    }
    // Variables are text; one that is not cannot be one of ours.
    let mut env: Vec<(String, String)> =
        env.filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?))).collect();
    env.sort_unstable();
    let file = line.file.take().or_else(|| {
        env.iter().find(|(key, value)| key == "ETCD_CONFIG_FILE" && !value.is_empty()).map(|(_, path)| path.clone())
    });
    let settings = match file {
        Some(path) => from_file(Path::new(&path), line.given)?,
        None => line.with_environment(&env)?,
    };
    Ok(Action::Serve(Box::new(settings)))
}

/// The first words of verbs on files.
const VERBS: [&str; 4] = ["snapshot", "hashkv", "defrag", "inspect"];

fn verb(args: &[OsString]) -> Result<Action, Refusal> {
    let matches = match Verbs::command().no_binary_name(true).try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(e) if !e.use_stderr() => return Ok(Action::Print(e.to_string().trim_end().to_owned())),
        Err(e) => return Err(Refusal { text: e.to_string().trim_end().to_owned(), code: 2 }),
    };
    let verbs = Verbs::from_arg_matches(&matches).map_err(|e| Refusal::wrong(e.to_string()))?;
    Ok(match verbs.verb {
        Offline::Version => Action::Print(format!("etcdutl version: {ETCD_VERSION}\nAPI version: 3.7")),
        verb => Action::Offline(Box::new(verb), verbs.write_out),
    })
}

fn from_file(path: &Path, shadowed: BTreeSet<String>) -> Result<Settings, Refusal> {
    let mut settings = Settings {
        flags: Flags::default(),
        given: BTreeSet::new(),
        file: Some(path.to_owned()),
        notices: shadowed
            .into_iter()
            .map(|name| Notice::Other(format!("--{name} is ignored: {} is in its place", path.display())))
            .collect(),
    };
    let text = std::fs::read_to_string(path).map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => e.to_string(),
        };
        Refusal::wrong(format!("open {}: {why}", path.display()))
    })?;
    config_file::read(&text, &mut settings).map_err(Refusal::wrong)?;
    settings.notices.extend(deprecated(&settings.given));
    Ok(settings)
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

/// etcd's remarks on flags that will go.
fn deprecated(given: &BTreeSet<String>) -> impl Iterator<Item = Notice> {
    const TEXTS: [(&str, &str); 2] = [
        ("max-snapshots", "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8."),
        (
            "v2-deprecation",
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
        ),
    ];
    TEXTS.iter().filter(|(name, _)| given.contains(*name)).map(|(_, text)| Notice::Other((*text).to_owned()))
}

enum Wish {
    Serve,
    Help,
    Version,
}

/// What a command line says.
#[derive(Default)]
struct CommandLine {
    flags: Flags,
    given: BTreeSet<String>,
    file: Option<String>,
    notices: Vec<Notice>,
}

/// Flags of etcd 3.6 that old charts still give, with their names of today.
const RENAMED: [(&str, &str); 2] = [
    ("experimental-initial-corrupt-check", "feature-gates"),
    ("experimental-watch-progress-notify-interval", "watch-progress-notify-interval"),
];

impl CommandLine {
    /// Go's flag syntax: one dash or two, `-flag=value` or `-flag value`, and a boolean's value only after a `=`.
    fn read(&mut self, args: Vec<String>) -> Result<Wish, Refusal> {
        let mut wish = Wish::Serve;
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some(text) = arg.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                return Err(Refusal::wrong(format!("{arg:?} is not a valid flag")));
            };
            let text = text.strip_prefix('-').unwrap_or(text);
            if text.is_empty() {
                // Two dashes end the flags.
                return match args.next() {
                    Some(stray) => Err(Refusal::wrong(format!("{stray:?} is not a valid flag"))),
                    None => Ok(wish),
                };
            }
            if text.starts_with(['-', '=']) {
                return Err(Refusal::unreadable(format!("bad flag syntax: {arg}")));
            }
            let (name, value) = text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v.to_owned())));
            let is_boolean = matches!(name, "version" | "experimental-initial-corrupt-check")
                || IGNORED.contains(&name)
                || flags::find(name).is_some_and(|spec| spec.kind == Kind::Bool);
            let is_known = is_boolean
                || name == "config-file"
                || flags::find(name).is_some()
                || RENAMED.iter().any(|(old, _)| *old == name);
            if !is_known {
                return match name {
                    "help" | "h" => Ok(Wish::Help),
                    _ => Err(Refusal::unreadable(unknown(name))),
                };
            }
            let value = match value {
                Some(value) => value,
                None if is_boolean => "true".to_owned(),
                None => args.next().ok_or_else(|| Refusal::unreadable(format!("flag needs an argument: -{name}")))?,
            };
            let set = match name {
                "version" => self.asks_version(&value, &mut wish),
                _ => self.set(name, &value),
            };
            set.map_err(|why| {
                Refusal::unreadable(match is_boolean {
                    true => format!("invalid boolean value {value:?} for -{name}: {why}"),
                    false => format!("invalid value {value:?} for flag -{name}: {why}"),
                })
            })?;
        }
        Ok(wish)
    }

    fn asks_version(&self, value: &str, wish: &mut Wish) -> Result<(), String> {
        use crate::flags::value::Value;
        if bool::read(value)? {
            *wish = Wish::Version;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if name == "config-file" {
            self.file = Some(value.to_owned()).filter(|path| !path.is_empty());
            return Ok(());
        }
        if IGNORED.contains(&name) {
            self.notices.push(Notice::Ignored(name.to_owned()));
            return Ok(());
        }
        if let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == name) {
            self.notices.push(Notice::Other(format!("--{old} is gone since etcd 3.6; taken for --{new}")));
            return match *new {
                "feature-gates" => self.set(new, &format!("InitialCorruptCheck={value}")),
                _ => self.set(new, value),
            };
        }
        let Some(spec) = flags::find(name) else { return Ok(()) };
        self.flags.set(spec, value)?;
        self.given.insert(name.to_owned());
        Ok(())
    }

    /// Variables fill in what no flag has set. Both at once are an error, even where the variable is empty.
    fn with_environment(mut self, env: &[(String, String)]) -> Result<Settings, Refusal> {
        let by_flag = self.given.clone();
        let mut failed = None;
        for (key, value) in env {
            let Some(rest) = key.strip_prefix("ETCD_") else { continue };
            if key == "ETCD_VERSION" {
                self.notices.push(Notice::Special(key.clone()));
                continue;
            }
            let spec = SPECS.iter().find(|spec| spec.variable() == *key);
            let ignored = IGNORED.iter().find(|name| name.to_ascii_uppercase().replace('-', "_") == rest);
            if spec.is_some_and(|spec| by_flag.contains(&spec.name())) {
                return Err(Refusal::wrong(format!(
                    "conflicting environment variable is shadowed by corresponding command-line flag \
                     (either unset environment variable or disable flag)): {key}"
                )));
            }
            match (spec.map(Spec::name), ignored) {
                // etcd takes an empty variable for one that is not there, and then does not know it.
                (Some(name), _) if !value.is_empty() => match self.set(&name, value) {
                    Ok(()) => self.notices.push(Notice::Used(key.clone())),
                    Err(why) => failed = Some(format!("invalid value {value:?} for {key}: {why}")),
                },
                (None, Some(name)) => self.notices.push(Notice::Ignored((*name).to_owned())),
                _ if key == "ETCD_UNSUPPORTED_ARCH" => {}
                _ => self.notices.push(Notice::Unrecognized(key.clone())),
            }
        }
        if let Some(text) = failed {
            return Err(Refusal::wrong(text));
        }
        if self.flags.discovery_fallback.0 == "proxy" {
            return Err(Refusal::wrong(
                "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"".to_owned(),
            ));
        }
        self.notices.extend(deprecated(&self.given));
        Ok(Settings { flags: self.flags, given: self.given, file: None, notices: self.notices })
    }
}

fn unknown(name: &str) -> String {
    let text = format!("flag provided but not defined: -{name}");
    match name.strip_prefix("experimental-").filter(|rest| flags::find(rest).is_some()) {
        Some(today) => format!("{text}; since etcd 3.6 it is --{today}"),
        None if name.starts_with("experimental-") => format!("{text}; see --feature-gates"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Action, Refusal> {
        parse(args.iter().map(OsString::from), env.iter().map(|(k, v)| ((*k).into(), (*v).into())))
    }

    fn settings(args: &[&str], env: &[(&str, &str)]) -> Settings {
        match run(args, env) {
            Ok(Action::Serve(settings)) => *settings,
            other => panic!("{other:?}"),
        }
    }

    fn refused(args: &[&str], env: &[(&str, &str)]) -> (u8, String) {
        let refusal = run(args, env).unwrap_err();
        (refusal.code, refusal.text.lines().next().unwrap().to_owned())
    }

    #[test]
    fn flags_come_with_one_dash_or_two_and_from_variables() {
        let s = settings(&["-name", "a", "--election-timeout=500"], &[("ETCD_DATA_DIR", "/tmp/x"), ("PATH", "/bin")]);
        assert_eq!((s.flags.name.as_str(), s.flags.election_timeout), ("a", 500));
        assert_eq!(s.flags.data_dir, "/tmp/x");
        assert_eq!(s.notices, [Notice::Used("ETCD_DATA_DIR".into())]);
        assert!(s.given.contains("name") && s.given.contains("data-dir"));
    }

    #[test]
    fn a_compose_file_may_name_the_program() {
        assert_eq!(settings(&["etcd", "--name", "etcd1"], &[]).flags.name, "etcd1");
        assert_eq!(refused(&["--name=a", "etcd"], &[]), (1, "\"etcd\" is not a valid flag".to_owned()));
    }

    #[test]
    fn the_last_of_a_flag_given_twice_counts() {
        assert_eq!(settings(&["--name=a", "--name=b"], &[]).flags.name, "b");
    }

    #[test]
    fn a_flag_and_its_variable_together_are_refused_by_name() {
        for value in ["b", ""] {
            let (code, text) = refused(&["--name=a"], &[("ETCD_NAME", value)]);
            assert!(text.ends_with("disable flag)): ETCD_NAME") && code == 1, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_in_etcds_words() {
        for (args, code, text) in [
            (&["--nope=1"][..], 2, "flag provided but not defined: -nope"),
            (&["---x"], 2, "bad flag syntax: ---x"),
            (&["--name"], 2, "flag needs an argument: -name"),
            (&["--pre-vote=maybe"], 2, "invalid boolean value \"maybe\" for -pre-vote: parse error"),
            (&["--pre-vote", "false"], 1, "\"false\" is not a valid flag"),
            (&["start"], 1, "\"start\" is not a valid flag"),
            (&["--heartbeat-interval=x"], 2, "invalid value \"x\" for flag -heartbeat-interval: parse error"),
            (&["--grpc-keepalive-timeout=5"], 2, "invalid value \"5\" for flag -grpc-keepalive-timeout: parse error"),
            (
                &["--initial-cluster-state=old"],
                2,
                "invalid value \"old\" for flag -initial-cluster-state: invalid value",
            ),
            (&["--feature-gates=Foo"], 2, "invalid value \"Foo\" for flag -feature-gates: missing bool value for Foo"),
            (
                &["--listen-client-urls=http://a:1/x"],
                2,
                "invalid value \"http://a:1/x\" for flag -listen-client-urls: URL must not contain a path: http://a:1/x",
            ),
            (
                &["--discovery-fallback=proxy"],
                1,
                "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
            ),
        ] {
            assert_eq!(refused(args, &[]), (code, text.to_owned()), "{args:?}");
        }
        let bad = refused(&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")]);
        assert_eq!(bad, (1, "invalid value \"x\" for ETCD_HEARTBEAT_INTERVAL: parse error".to_owned()));
    }

    #[test]
    fn old_names_are_taken_or_say_what_they_are_today() {
        let s = settings(
            &["--experimental-initial-corrupt-check=true", "--experimental-watch-progress-notify-interval=5s"],
            &[],
        );
        assert!(s.flags.feature_gates.enabled("InitialCorruptCheck"));
        assert_eq!(s.flags.watch_progress_notify_interval.length().as_secs(), 5);
        let (code, text) = refused(&["--experimental-compaction-batch-limit=5"], &[]);
        assert!(code == 2 && text.ends_with("since etcd 3.6 it is --compaction-batch-limit"), "{text}");
    }

    #[test]
    fn remarks_are_etcds() {
        let env = [("ETCD_FOO", "secret"), ("ETCD_VERSION", "v3"), ("ETCD_NAME", "")];
        let s = settings(&["--snapshot", "--max-snapshots=3"], &env);
        assert_eq!(
            s.notices,
            [
                Notice::Ignored("snapshot".into()),
                Notice::Unrecognized("ETCD_FOO".into()),
                Notice::Unrecognized("ETCD_NAME".into()),
                Notice::Special("ETCD_VERSION".into()),
                Notice::Other("--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.".into()),
            ]
        );
    }

    #[test]
    fn booleans_may_stand_alone() {
        assert!(settings(&["--client-cert-auth"], &[]).flags.client_cert_auth);
        assert!(!settings(&["-strict-reconfig-check=F"], &[]).flags.strict_reconfig_check);
    }

    #[test]
    fn a_file_replaces_flags_and_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.yaml");
        std::fs::write(&path, "name: from-file\n").unwrap();
        let path = path.to_str().unwrap();
        let flag = format!("--config-file={path}");
        let by_flag = settings(&["--name=a", &flag], &[("ETCD_NAME", "b"), ("ETCD_DATA_DIR", "/x")]);
        let by_variable = settings(&["--data-dir=/x"], &[("ETCD_CONFIG_FILE", path)]);
        for s in [by_flag, by_variable] {
            assert_eq!((s.flags.name.as_str(), s.flags.data_dir.as_str()), ("from-file", ""));
        }
        let missing = refused(&["--config-file=/nope"], &[]);
        assert_eq!(missing, (1, "open /nope: no such file or directory".to_owned()));
    }

    #[test]
    fn the_version_is_etcds_in_the_first_line() {
        let Ok(Action::Print(text)) = run(&["--version"], &[]) else { panic!() };
        assert_eq!(text.lines().next(), Some("etcd Version: 3.7.1"));
        let Ok(Action::Print(help)) = run(&["-h"], &[]) else { panic!() };
        assert!(help.contains("--listen-client-urls"));
    }

    #[test]
    fn fuzz_command_line() {
        let seeds = [
            "--name=a\n--listen-client-urls\nhttp://127.0.0.1:1\nETCD_DATA_DIR=x",
            "-name\na\n--feature-gates=A=true\n--max-request-bytes=0x10\n--heartbeat-interval 10",
            "ETCD_AUTO_COMPACTION_RETENTION=1h30m\nETCD_LISTEN_PEER_URLS=unix:///a,http://[::1]:2380",
            "snapshot\nstatus\nfile\n-w\njson",
        ];
        let names: Vec<String> =
            flags::SPECS.iter().flat_map(|s| [format!("--{}=", s.name()), format!("{}=", s.variable())]).collect();
        let mut words: Vec<&str> = names.iter().map(String::as_str).collect();
        words.extend([
            "\n",
            "=",
            ",",
            "http://",
            "https://",
            "1h",
            "-1",
            "true",
            "18446744073709551616",
            "simple",
            "jwt",
        ]);
        ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "command_line").seeds(seeds).words(&words).run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            // A file that is named would be read.
            if text.to_lowercase().replace('_', "-").contains("file") || text.contains("jwt") {
                return "names a file".to_owned();
            }
            let (env, args): (Vec<&str>, Vec<&str>) = text.split('\n').partition(|line| line.starts_with("ETCD_"));
            let env = env.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into()));
            match parse(args.iter().map(OsString::from), env) {
                Ok(Action::Serve(settings)) => {
                    crate::config::check(&settings).map_or_else(|e| e, |_| "serves".to_owned())
                }
                Ok(action) => format!("{action:?}"),
                Err(refusal) => refusal.text,
            }
        });
    }
}
