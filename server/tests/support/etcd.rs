//! Real etcd as the oracle: one member on free ports, with its data in a folder that goes away with it.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use super::{etcd_tool, eventually, free_address, http};

/// A running member of real etcd.
pub struct Etcd {
    pub client: String,
    pub metrics: String,
    child: Child,
    // Removed after the process, which Drop ends.
    _dir: tempfile::TempDir,
}

impl Etcd {
    /// Started and healthy. It does not sync to disk: nothing here pulls its plug.
    pub async fn start(flags: &[&str]) -> Self {
        let (client, peer, metrics) = (free_address(), free_address(), free_address());
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(etcd_tool("etcd"))
            .env_clear()
            .args(["--name=solo", "--unsafe-no-fsync", "--log-level=error"])
            .arg(format!("--data-dir={}", dir.path().join("data").display()))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
            .arg(format!("--initial-cluster=solo=http://{peer}"))
            .arg(format!("--listen-metrics-urls=http://{metrics}"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd runs");
        let etcd = Etcd { client, metrics, child, _dir: dir };
        eventually("etcd is healthy", async || {
            match http::try_ask(&etcd.client, &http::Ask::get("/version")).await {
                // Its version is decided a moment after it is healthy.
                Ok(answer) if answer.text().contains("\"etcdcluster\":\"3.7.0\"") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
