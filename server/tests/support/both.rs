//! This server and real etcd side by side, to be asked the same.

use super::etcd::Etcd;
use super::{Cluster, Member};
use tonic::Status;

/// This server and real etcd, one member each, with the same flags.
pub struct Both {
    pub ours: Cluster,
    pub etcd: Etcd,
}

impl Both {
    pub async fn start(flags: &[&str]) -> Self {
        let mut ours = Cluster::new(&["solo"]);
        ours.members[0].flags.extend(flags.iter().map(|f| (*f).to_owned()));
        ours.members[0].start();
        let etcd = Etcd::start(flags).await;
        ours.members[0].ready().await;
        Both { ours, etcd }
    }

    pub fn ours(&self) -> &Member {
        &self.ours.members[0]
    }

    /// Both as somebody to ask, etcd first.
    pub fn sides(&self) -> [Member; 2] {
        [&self.etcd.client, &self.ours().client].map(|client| Member::at(client, self.ours.tmp.path()))
    }

    /// Asks both the same, and returns what both said.
    pub async fn agree<T: PartialEq + std::fmt::Debug>(&self, what: &str, ask: impl AsyncFn(Member) -> T) -> T {
        let [etcd, ours] = self.sides();
        let (etcd, ours) = tokio::join!(ask(etcd), ask(ours));
        assert_eq!(ours, etcd, "{what}: ours, then etcd's");
        ours
    }
}

/// How a call ended.
pub fn ended<T>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(_) => "OK".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}
