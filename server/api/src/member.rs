//! What the doors ask of the member beside handing it requests. A trait, so that the doors can be tried without a cluster.

use std::future::Future;

use ferretcd_node::{Check, Credential, Node, Standing, Status};
use ferretcd_types::{Alarm, Error, MemberId};

/// A member, as far as it decides which calls are let in and what health checks say.
pub trait Member: Clone + Send + Sync + 'static {
    /// Its ID.
    fn id(&self) -> MemberId;
    /// What it says of itself.
    fn status(&self) -> Status;
    /// It knows a leader.
    fn has_leader(&self) -> bool;
    /// It has no vote.
    fn is_learner(&self) -> bool;
    /// Raised alarms.
    fn alarms(&self) -> Vec<Alarm>;
    /// The cluster version, once decided.
    fn cluster_version(&self) -> Option<String>;
    /// Refuses a caller that is not what its call asks for.
    fn require(&self, credential: Credential, standing: Standing) -> impl Future<Output = Result<(), Error>> + Send;
    /// Brings the gauges that are looked up, not counted, up to date: a scrape comes next.
    fn refresh_metrics(&self) {}
    /// Runs one health check. Ends within the member's request timeout.
    fn check(&self, check: Check) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Member for Node {
    fn id(&self) -> MemberId {
        self.header().member_id
    }
    fn status(&self) -> Status {
        Node::status(self)
    }
    fn has_leader(&self) -> bool {
        Node::has_leader(self)
    }
    fn is_learner(&self) -> bool {
        Node::is_learner(self)
    }
    fn alarms(&self) -> Vec<Alarm> {
        Node::alarms(self)
    }
    fn cluster_version(&self) -> Option<String> {
        Node::cluster_version(self)
    }
    async fn require(&self, credential: Credential, standing: Standing) -> Result<(), Error> {
        self.on_behalf_of(credential).require(standing).await
    }
    fn refresh_metrics(&self) {
        Node::refresh_metrics(self);
    }
    async fn check(&self, check: Check) -> Result<(), Error> {
        Node::check(self, check).await
    }
}

#[cfg(test)]
pub use fake::Fake;

#[cfg(test)]
mod fake {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use ferretcd_types::AlarmKind;

    use super::*;

    /// A member whose answers are set by the story. Clones are the same member.
    #[derive(Clone, Debug, Default)]
    pub struct Fake {
        leaderless: Arc<AtomicBool>,
        learner: bool,
        alarms: Vec<AlarmKind>,
        failing: Vec<(Check, Error)>,
    }

    impl Fake {
        pub fn healthy() -> Self {
            Fake::default()
        }
        pub fn learner() -> Self {
            Fake { learner: true, ..Fake::default() }
        }
        pub fn alarmed(kind: AlarmKind) -> Self {
            Fake { alarms: vec![kind], ..Fake::default() }
        }
        pub fn failing(check: Check, error: Error) -> Self {
            Fake { failing: vec![(check, error)], ..Fake::default() }
        }
        pub fn leaderless(self) -> Self {
            self.lose_leader();
            self
        }
        pub fn lose_leader(&self) {
            self.leaderless.store(true, Ordering::SeqCst);
        }
    }

    impl Member for Fake {
        fn id(&self) -> MemberId {
            MemberId(1)
        }
        fn status(&self) -> Status {
            Status::default()
        }
        fn has_leader(&self) -> bool {
            !self.leaderless.load(Ordering::SeqCst)
        }
        fn is_learner(&self) -> bool {
            self.learner
        }
        fn alarms(&self) -> Vec<Alarm> {
            self.alarms.iter().map(|kind| Alarm { member: MemberId(1), kind: *kind }).collect()
        }
        fn cluster_version(&self) -> Option<String> {
            self.has_leader().then(|| "3.7.0".into())
        }
        /// Tokens are names here, and root is called root.
        async fn require(&self, credential: Credential, standing: Standing) -> Result<(), Error> {
            match (credential, standing) {
                (Credential::None, _) => Err(Error::UserEmpty),
                (Credential::Token(name) | Credential::CertName(name), Standing::Root) if *name != *"root" => {
                    Err(Error::PermissionDenied)
                }
                _ => Ok(()),
            }
        }
        async fn check(&self, check: Check) -> Result<(), Error> {
            self.failing.iter().find(|(failing, _)| *failing == check).map_or(Ok(()), |(_, e)| Err(e.clone()))
        }
    }
}
