//! An `EtcdCluster` as its users see it: a manifest, a status, and etcdctl against its members.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::connect::{Namespace, condition};
use crate::reach::Reach;
use crate::run;
use crate::s3;
use crate::wait::{Probe, wait_until};

/// The port that clients use.
const CLIENT_PORT: u16 = 2379;

/// The Secret with the store's keys, made by [`credentials`].
pub const CREDENTIALS: &str = "s3-credentials";

/// Keys and values, both as text.
pub type Contents = BTreeMap<String, String>;

/// An `EtcdCluster` in a namespace.
#[derive(Debug)]
pub struct EtcdCluster<'a> {
    namespace: &'a Namespace<'a>,
    name: String,
    etcdctl: PathBuf,
}

/// A member whose pod has an address.
#[derive(Debug)]
pub struct Member {
    /// etcd's name of it.
    pub name: String,
    /// The name of its pod.
    pub pod: String,
    /// The UID of its pod.
    pub pod_uid: String,
    /// The way to its client port.
    pub reach: Reach,
}

impl<'a> EtcdCluster<'a> {
    /// The cluster `name` of a namespace, which need not exist yet.
    pub fn new(namespace: &'a Namespace<'a>, name: &str) -> Result<Self> {
        let etcdctl = namespace.cluster().tools().etcdctl()?;
        Ok(Self { namespace, name: name.to_owned(), etcdctl })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object.
    pub fn object(&self) -> Result<Value> {
        self.namespace.get(&["etcdcluster", &self.name])
    }

    /// Waits until the operator calls it Ready with this many members.
    pub fn wait_ready(&self, replicas: u8, timeout: Duration) -> Result<()> {
        let wanted = format!("{replicas}/{replicas}");
        wait_until(&format!("EtcdCluster {} Ready {wanted}", self.name), timeout, || {
            let object = self.object()?;
            let status = &object["status"];
            let ready = status["phase"] == "Ready"
                && status["readyMembers"] == wanted
                && status["observedGeneration"] == object["metadata"]["generation"];
            Ok(Probe::when(ready, summary(&object)))
        })
    }

    /// Asks for another number of members.
    pub fn scale(&self, replicas: u8) -> Result<()> {
        let patch = format!(r#"{{"spec":{{"replicas":{replicas}}}}}"#);
        self.namespace.kubectl(&["patch", "etcdcluster", &self.name, "--type=merge", "--patch", &patch]).map(drop)
    }

    /// The name of the leader, by the cluster's status.
    pub fn leader(&self) -> Result<String> {
        let object = self.object()?;
        match object["status"]["leader"].as_str() {
            Some(leader) => Ok(leader.to_owned()),
            None => bail!("EtcdCluster {} names no leader: {}", self.name, summary(&object)),
        }
    }

    /// The members, by serial.
    pub fn members(&self) -> Result<Vec<Member>> {
        let selector = format!("ferretcd.io/cluster={},app.kubernetes.io/component=member", self.name);
        let pods = self.namespace.get(&["pods", "--selector", &selector])?;
        let mut members = Vec::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let Some(name) = pod["metadata"]["name"].as_str() else { continue };
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            members.push(Member {
                name: name.strip_suffix("-0").unwrap_or(name).to_owned(),
                pod: name.to_owned(),
                pod_uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
                reach: self.namespace.cluster().reach_pod(self.namespace.name(), name, CLIENT_PORT)?,
            });
        }
        Ok(members)
    }

    /// etcdctl for these endpoints, to be completed by the caller.
    pub fn etcdctl_command(&self, endpoints: &str) -> Command {
        let mut command = Command::new(&self.etcdctl);
        // Longer than an election, shorter than a person's patience.
        command.args(["--endpoints", endpoints, "--dial-timeout=2s", "--command-timeout=5s"]);
        command
    }

    /// Runs etcdctl through one member.
    pub fn etcdctl(&self, member: &Member, args: &[&str]) -> Result<String> {
        run::output(self.etcdctl_command(member.reach.url()).args(args)).map(|output| output.stdout)
    }

    /// All keys that start with `prefix`, read linearizably through this member; all keys if it is empty.
    pub fn contents(&self, member: &Member, prefix: &str) -> Result<Contents> {
        let json = match prefix {
            "" => self.etcdctl(member, &["get", "", "--from-key", "--write-out=json"])?,
            prefix => self.etcdctl(member, &["get", prefix, "--prefix", "--write-out=json"])?,
        };
        let answer: Value = serde_json::from_str(&json).context("reading etcdctl's JSON")?;
        let text = |value: &Value| -> Result<String> {
            let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default())?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let pairs = answer["kvs"].as_array().into_iter().flatten();
        pairs.map(|pair| Ok((text(&pair["key"])?, text(&pair["value"])?))).collect()
    }
}

/// The manifest of a cluster whose volumes go with it, so that demo and tests leave none.
pub fn cluster_manifest(name: &str, replicas: u8) -> String {
    format!(
        "apiVersion: ferretcd.io/v1alpha1\nkind: EtcdCluster\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  \
         storage:\n    size: 1Gi\n  deletionPolicy: Delete\n"
    )
}

/// The manifest of a cluster that begins with what the EtcdBackup `backup` holds.
pub fn restored_manifest(name: &str, replicas: u8, backup: &str) -> String {
    let cluster = cluster_manifest(name, replicas);
    format!("{cluster}  bootstrap:\n    restore:\n      backupRef:\n        name: {backup}\n")
}

/// The manifest of a backup of `cluster` into `bucket`.
pub fn backup_manifest(name: &str, cluster: &str, bucket: &str, prefix: &str) -> String {
    let head = "apiVersion: ferretcd.io/v1alpha1\nkind: EtcdBackup\n";
    format!(
        "{head}metadata:\n  name: {name}\nspec:\n  clusterRef:\n    name: {cluster}\n{}",
        destination(bucket, prefix)
    )
}

/// The manifest of a schedule of `cluster` into the bucket that is there.
pub fn schedule_manifest(name: &str, cluster: &str, cron: &str, keep: u8, prefix: &str) -> String {
    let head = "apiVersion: ferretcd.io/v1alpha1\nkind: EtcdBackupSchedule\n";
    format!(
        "{head}metadata:\n  name: {name}\nspec:\n  clusterRef:\n    name: {cluster}\n  schedule: \"{cron}\"\n  keepLast: {keep}\n{}",
        destination(s3::BUCKET, prefix)
    )
}

fn destination(bucket: &str, prefix: &str) -> String {
    format!(
        "  destination:\n    bucket: {bucket}\n    prefix: {prefix}\n    endpoint: {}\n    region: {}\n    \
         forcePathStyle: true\n    credentialsSecretRef:\n      name: {CREDENTIALS}\n",
        s3::ENDPOINT,
        s3::REGION
    )
}

/// The manifest of the Secret with the store's keys.
pub fn credentials() -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {CREDENTIALS}\nstringData:\n  AWS_ACCESS_KEY_ID: {}\n  \
         AWS_SECRET_ACCESS_KEY: {}\n",
        s3::ACCESS_KEY,
        s3::SECRET_KEY
    )
}

/// Waits until an EtcdBackup is Complete, and gives it. A backup that failed ends the wait with its message.
pub fn wait_for_backup(namespace: &Namespace<'_>, name: &str, timeout: Duration) -> Result<Value> {
    wait_until(&format!("EtcdBackup {name} Complete"), timeout, || {
        let backup = namespace.get(&["etcdbackup", name])?;
        let (phase, message) = (&backup["status"]["phase"], &backup["status"]["message"]);
        Ok(match phase.as_str() {
            Some("Complete") => Probe::Ready(backup),
            Some("Failed") => Probe::Failed(format!("it failed: {message}")),
            _ => Probe::Pending(format!("{phase}: {message}")),
        })
    })
}

/// One line on where a cluster is: phase, members, step, and what its conditions complain of.
pub fn summary(object: &Value) -> String {
    let status = &object["status"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut line = format!("{} {}", text(&status["phase"]), text(&status["readyMembers"]));
    if let Some(operation) = status["operation"].as_object() {
        line += &format!(
            ", {} of {} at {}",
            text(&operation["kind"]),
            text(&operation["member"]),
            text(&operation["step"])
        );
    }
    for kind in ["Degraded", "Progressing"] {
        let (holds, message) = condition(object, kind);
        if holds == "True" {
            line += &format!(", {kind}: {message}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_summary_tells_phase_step_and_complaint() {
        let object = json!({"status": {
            "phase": "Scaling", "readyMembers": "3/5",
            "operation": {"kind": "ScaleUp", "member": "demo-3", "step": "Promote"},
            "conditions": [{"type": "Degraded", "status": "True", "message": "demo-1: no answer"}],
        }});
        assert_eq!(summary(&object), "Scaling 3/5, ScaleUp of demo-3 at Promote, Degraded: demo-1: no answer");
        assert_eq!(summary(&json!({})), "- -");
    }
}
