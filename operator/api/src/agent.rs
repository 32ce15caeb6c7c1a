//! The contract between the operator and its agent, which runs in a Job: the report that the agent leaves as the
//! container's termination message, and the manifest that it stores beside each backup.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

/// Where the agent writes its report; Kubernetes' default `terminationMessagePath`.
pub const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";
/// The longest report, in bytes: Kubernetes cuts a termination message at 4096.
pub const MAX_REPORT: usize = 4096;
/// The longest text of an error in a report, in characters. At up to 4 bytes each, and 6 for an escaped control character,
/// 600 leave room for the rest of the report within `MAX_REPORT`.
const MAX_ERROR: usize = 600;
/// Exit code of the agent after an error that another attempt would only repeat: no such bucket, a damaged backup, a refused
/// key (`EX_DATAERR` of sysexits). The Job fails at once; any other code but 0 is tried again.
pub const EXIT_PERMANENT: i32 = 65;
/// The format that `BackupManifest` describes.
pub const MANIFEST_FORMAT: i32 = 1;

/// What the agent did, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum AgentReport {
    /// Data and manifest are in the store and were read back.
    BackedUp {
        /// Key of the data object.
        key: String,
        /// Revision of the data.
        revision: i64,
        /// Size of the data object in bytes.
        size: i64,
        /// SHA-256 of the data object, in hex.
        sha256: String,
    },
    /// The backup was streamed into the cluster, and the cluster's revision was read back.
    Restored {
        /// Key of the data object.
        key: String,
        /// Revision of the cluster afterwards.
        revision: i64,
    },
    /// Manifest and data are gone from the store, in this order.
    Pruned {
        /// Key of the data object.
        key: String,
    },
    /// Nothing was achieved.
    Failed {
        /// What was attempted, what went wrong, what to do.
        message: String,
    },
}

impl AgentReport {
    /// The text of a termination message, at most `MAX_REPORT` bytes; a longer error is cut.
    pub fn to_message(&self) -> String {
        let report = match self {
            AgentReport::Failed { message } if message.chars().count() > MAX_ERROR => {
                AgentReport::Failed { message: message.chars().take(MAX_ERROR).chain(['…']).collect() }
            }
            other => other.clone(),
        };
        serde_json::to_string(&report).unwrap_or_default()
    }

    /// The report in a termination message; `None` if it holds none, for example because the container was killed.
    pub fn parse(message: &str) -> Option<AgentReport> {
        serde_json::from_str(message.trim()).ok()
    }
}

/// The object `<key>.manifest.json`, written last: without it there is no backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupManifest {
    /// `MANIFEST_FORMAT`; a reader refuses a higher one.
    pub format: i32,
    /// Key of the data object.
    pub key: String,
    /// SHA-256 of the data object, in hex.
    pub sha256: String,
    /// Size of the data object in bytes.
    pub size: i64,
    /// Revision of the data.
    pub revision: i64,
    /// Raft index at which the snapshot was taken; 0 if the server did not say.
    pub raft_index: u64,
    /// Name of the EtcdCluster.
    pub cluster: String,
    /// UID of the EtcdCluster.
    pub cluster_uid: String,
    /// etcd's cluster ID in hex.
    pub cluster_id: String,
    /// UID of the EtcdBackup. An attempt that finds a manifest with its own UID has nothing left to do.
    pub backup_uid: String,
    /// Version of the server that made the snapshot.
    pub server_version: String,
    /// When the agent finished the data.
    pub created_at: Time,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_termination_message() {
        let report = AgentReport::BackedUp { key: "k".to_owned(), revision: 7, size: 9, sha256: "ab".to_owned() };
        assert_eq!(report.to_message(), r#"{"outcome":"backedUp","key":"k","revision":7,"size":9,"sha256":"ab"}"#);
        assert_eq!(AgentReport::parse(&format!("{}\n", report.to_message())), Some(report));
        assert_eq!(AgentReport::parse("panicked at main.rs"), None);
    }

    #[test]
    fn the_longest_error_is_cut_to_fit() {
        for character in ['a', '\u{1}', '😀'] {
            let report = AgentReport::Failed { message: character.to_string().repeat(100_000) };
            let message = report.to_message();
            assert!(message.len() <= MAX_REPORT, "{} bytes of {character:?}", message.len());
            assert!(AgentReport::parse(&message).is_some());
        }
    }

    #[test]
    fn fuzz_report() {
        let report = AgentReport::BackedUp { key: "k".to_owned(), revision: 7, size: 9, sha256: "ab".to_owned() };
        let seeds = [
            report.to_message(),
            AgentReport::Failed { message: "no\n".to_owned() }.to_message(),
            "panicked\n{}".to_owned(),
        ];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "report").seeds(seeds);
        fuzz.words(&["\"outcome\":", "\"message\":", "\"revision\":", "-1", "\n"]).run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let report = AgentReport::parse(&text);
            if let Some(report) = &report {
                assert!(AgentReport::parse(&report.to_message()).is_some(), "{report:?}");
            }
            format!("{report:?} {:?}", crate::names::parse_hex_id(&text))
        });
    }
}
