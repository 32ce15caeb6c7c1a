//! The command line. Flags of `backup`, `restore` and `prune` are a contract with the Jobs that `ferretcd-operator-plan`
//! builds and documents (`build/backup_job.rs`); credentials never travel here but in the environment (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//! `AWS_SESSION_TOKEN`).

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ferretcd_operator_api::{PullPolicy, agent::TERMINATION_MESSAGE_PATH};
use ferretcd_operator_plan::Settings;

/// Runs ferretcd clusters on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "ferretcd-operator", version)]
pub struct Cli {
    /// Form of the log on stderr.
    #[arg(long, global = true, env = "FERRETCD_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Which events are logged: a level, or a filter as in RUST_LOG.
    #[arg(long, global = true, env = "FERRETCD_LOG_LEVEL", default_value = "info,kube_runtime=warn")]
    pub log_level: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator.
    Run(RunArgs),
    /// Stream a snapshot of a cluster into an object store (runs in a Job).
    Backup(BackupArgs),
    /// Stream a backup from an object store into a cluster, replacing its data (runs in a Job).
    Restore(RestoreArgs),
    /// Remove a backup from an object store (runs in a Job).
    Prune(PruneArgs),
    /// Print the custom resource definitions as YAML.
    Crd,
}

/// What `run` needs.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The only namespace to look after. Absent: all of them.
    #[arg(long, env = "FERRETCD_WATCH_NAMESPACE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub namespace: Option<String>,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "FERRETCD_ADMIN_ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,
    /// Name of the operator's own pod, for its events.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Images.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Which images the operator makes clusters and Jobs with.
#[derive(Clone, Debug, Args)]
pub struct SettingsArgs {
    /// Repository of the server image.
    #[arg(long, env = "FERRETCD_SERVER_REPOSITORY")]
    pub server_repository: String,
    /// Tag of the server image where a cluster names none.
    #[arg(long, env = "FERRETCD_SERVER_VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    pub server_version: String,
    /// The operator's own image, which the Jobs run.
    #[arg(long, env = "FERRETCD_OPERATOR_IMAGE")]
    pub operator_image: String,
    /// Pull policy of the Jobs. Absent: Kubernetes' own rule.
    #[arg(long, env = "FERRETCD_OPERATOR_PULL_POLICY", value_parser = pull_policy)]
    pub operator_pull_policy: Option<PullPolicy>,
}

impl From<SettingsArgs> for Settings {
    fn from(args: SettingsArgs) -> Settings {
        let SettingsArgs { server_repository, server_version, operator_image, operator_pull_policy } = args;
        Settings { server_repository, server_version, operator_image, operator_pull_policy }
    }
}

/// A pull policy in the word that Kubernetes uses.
fn pull_policy(word: &str) -> Result<PullPolicy, String> {
    [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never]
        .into_iter()
        .find(|policy| policy.as_str() == word)
        .ok_or_else(|| "must be Always, IfNotPresent or Never".to_owned())
}

/// One object in a bucket.
#[derive(Clone, Debug, Args)]
pub struct ObjectArgs {
    /// The bucket; it must exist.
    #[arg(long)]
    pub bucket: String,
    /// Key of the data object; its manifest is <KEY>.manifest.json.
    #[arg(long)]
    pub key: String,
    /// URL of the store. Absent: AWS.
    #[arg(long, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket.
    #[arg(long, default_value = "us-east-1")]
    pub region: String,
    /// Address the bucket as a path of the endpoint, not as a subdomain of it.
    #[arg(long)]
    pub force_path_style: bool,
}

/// What `backup` needs.
#[derive(Clone, Debug, Args)]
pub struct BackupArgs {
    /// Client URL of a member to read from; given again for each further one, best first. The first that answers is taken.
    #[arg(long = "endpoint", value_name = "URL", required = true)]
    pub endpoints: Vec<String>,
    /// Where the backup goes.
    #[command(flatten)]
    pub object: ObjectArgs,
    /// Name of the EtcdCluster, for the manifest.
    #[arg(long)]
    pub cluster: String,
    /// UID of the EtcdCluster, for the manifest.
    #[arg(long)]
    pub cluster_uid: String,
    /// etcd's cluster ID in hex. A member of another cluster is refused.
    #[arg(long, value_name = "HEX")]
    pub cluster_id: String,
    /// UID of the EtcdBackup. A manifest with another UID is never overwritten.
    #[arg(long)]
    pub backup_uid: String,
    /// Where the report goes.
    #[arg(long, value_name = "FILE", default_value = TERMINATION_MESSAGE_PATH)]
    pub report: PathBuf,
}

/// What `restore` needs.
#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// Client URL of the member that receives the file.
    #[arg(long, value_name = "URL")]
    pub endpoint: String,
    /// The backup.
    #[command(flatten)]
    pub object: ObjectArgs,
    /// etcd's cluster ID in hex. A member of another cluster is refused.
    #[arg(long, value_name = "HEX")]
    pub cluster_id: String,
    /// Where the report goes.
    #[arg(long, value_name = "FILE", default_value = TERMINATION_MESSAGE_PATH)]
    pub report: PathBuf,
}

/// What `prune` needs.
#[derive(Clone, Debug, Args)]
pub struct PruneArgs {
    /// The backup.
    #[command(flatten)]
    pub object: ObjectArgs,
    /// UID of the EtcdBackup that is removed. A manifest with another UID is left alone.
    #[arg(long)]
    pub backup_uid: String,
    /// Where the report goes.
    #[arg(long, value_name = "FILE", default_value = TERMINATION_MESSAGE_PATH)]
    pub report: PathBuf,
}

#[cfg(test)]
mod tests {
    use ferretcd_operator_api::S3Destination;
    use ferretcd_operator_plan::{
        Object,
        build::backup_job::{BackupRef, backup_job, prune_job},
    };

    use super::*;

    /// The command line of the Job, as a container runs it.
    fn command_of(object: Object) -> Command {
        let Object::Job(job) = object else { panic!("{object:?}") };
        let container = job.spec.unwrap().template.spec.unwrap().containers.remove(0);
        let line = container.command.unwrap().into_iter().chain(container.args.unwrap());
        Cli::try_parse_from(line).unwrap().command
    }

    #[test]
    fn the_command_lines_of_the_jobs_are_understood() {
        let destination = S3Destination {
            bucket: "backups".to_owned(),
            prefix: Some("p".to_owned()),
            endpoint: Some("http://s3:9000".to_owned()),
            region: Some("eu-west-1".to_owned()),
            force_path_style: true,
            credentials_secret_ref: None,
        };
        let backup = BackupRef {
            name: "nightly",
            namespace: "ns",
            uid: "b-uid",
            cluster: "demo",
            destination: &destination,
            key: "p/demo/x.db",
        };
        let settings = Settings {
            server_repository: "ferretcd".to_owned(),
            server_version: "0.1.0".to_owned(),
            operator_image: "ferretcd-operator:0.1.0".to_owned(),
            operator_pull_policy: Some(PullPolicy::IfNotPresent),
        };
        let endpoints = ["http://demo-1-0:2379".to_owned(), "http://demo-2-0:2379".to_owned()];
        let Command::Backup(args) = command_of(backup_job(&backup, "c-uid", "1f", &endpoints, &settings)) else {
            panic!("not a backup");
        };
        assert_eq!(args.endpoints, endpoints);
        assert_eq!((args.object.bucket.as_str(), args.object.key.as_str()), ("backups", "p/demo/x.db"));
        assert_eq!((args.object.region.as_str(), args.object.force_path_style), ("eu-west-1", true));
        assert_eq!(args.object.s3_endpoint.as_deref(), Some("http://s3:9000"));
        assert_eq!(
            (args.cluster.as_str(), args.cluster_uid.as_str(), args.cluster_id.as_str()),
            ("demo", "c-uid", "1f")
        );
        assert_eq!((args.backup_uid.as_str(), args.report.to_str()), ("b-uid", Some("/dev/termination-log")));

        let Command::Prune(args) = command_of(prune_job(&backup, &settings)) else { panic!("not a prune") };
        assert_eq!((args.object.key.as_str(), args.backup_uid.as_str()), ("p/demo/x.db", "b-uid"));
    }
}
