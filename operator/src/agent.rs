//! The agent: what runs inside the Jobs. It talks to etcd's API and to an object store, never to Kubernetes; its last word is
//! an [`AgentReport`] in the container's termination message.

pub mod backup;
pub mod digest;
#[cfg(test)]
pub mod fake;
pub mod prune;
pub mod restore;
pub mod store;

use std::{
    future::Future,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use ferretcd_operator_api::{AgentReport, agent::EXIT_PERMANENT};
use tracing::{error, info};

/// How often a long transfer says how far it is.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// How much is read from or written to the store in one request. S3 allows 10,000 parts of at least 5 MiB, so this reaches
/// 80 GiB, ten times etcd's recommended size; with two parts under way the agent needs less than 64 MiB of memory.
pub const PART: usize = 8 << 20;

/// Why the agent failed: what was attempted, what went wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The object store refused or did not answer.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The member refused or did not answer.
    #[error("{attempt}: {source}")]
    Member {
        /// What was attempted.
        attempt: String,
        /// What the member said.
        source: crate::members::MemberError,
    },
    /// The snapshot that the member sent is damaged.
    #[error("the snapshot from {url} is not used: {damage}. Nothing was stored; take the backup again")]
    Snapshot {
        /// The member.
        url: String,
        /// What is wrong with it.
        damage: digest::Damage,
    },
    /// The backup is not what was asked for, or not what it should be. Another attempt would find the same.
    #[error("{0}")]
    Refused(String),
    /// The result is not what it should be; another attempt may do better.
    #[error("{0}")]
    Unverified(String),
    /// The process was asked to end.
    #[error("ended by a signal before it was done; nothing counts as stored or restored, another attempt starts over")]
    Interrupted,
}

impl AgentError {
    /// Whether another attempt would meet the same error, so that the Job need not make one.
    fn is_permanent(&self) -> bool {
        match self {
            AgentError::Store(error) => error.is_permanent(),
            AgentError::Member { source, .. } => source.is_permanent(),
            AgentError::Refused(_) => true,
            AgentError::Snapshot { .. } | AgentError::Unverified(_) | AgentError::Interrupted => false,
        }
    }
}

/// Runs one verb of the agent to its end and leaves the report.
pub async fn run(report: &Path, work: impl Future<Output = Result<AgentReport, AgentError>>) -> ExitCode {
    let outcome = work.await;
    let (outcome, code) = match outcome {
        Ok(outcome) => (outcome, ExitCode::SUCCESS),
        Err(error) => {
            let code = if error.is_permanent() { ExitCode::from(EXIT_PERMANENT as u8) } else { ExitCode::FAILURE };
            (AgentReport::Failed { message: error.to_string() }, code)
        }
    };
    let message = outcome.to_message();
    match &outcome {
        AgentReport::Failed { message } => error!("{message}"),
        _ => info!("done: {message}"),
    }
    if let Err(error) = std::fs::write(report, &message) {
        error!(%error, file = %report.display(), "cannot write the report; the operator will count this attempt as failed");
        return ExitCode::FAILURE;
    }
    code
}

/// Drops `work` half-way when the process is asked to end.
async fn until<T>(
    terminated: impl Future<Output = ()>,
    work: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, AgentError> {
    tokio::select! {
        biased;
        () = terminated => Err(AgentError::Interrupted),
        outcome = work => outcome,
    }
}

/// Says from time to time how far a transfer is.
struct Progress {
    what: &'static str,
    last: Instant,
}

impl Progress {
    fn new(what: &'static str) -> Progress {
        Progress { what, last: Instant::now() }
    }

    fn at(&mut self, done: u64, of: u64) {
        if self.last.elapsed() >= PROGRESS_EVERY {
            self.last = Instant::now();
            info!("{}: {} of {}", self.what, mib(done), mib(of));
        }
    }
}

/// Bytes for people.
pub fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{bytes} bytes") } else { format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_report_is_left_whatever_happens() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("termination-log");

        run(&file, async { Ok(AgentReport::Pruned { key: "k".to_owned() }) }).await;
        let left = AgentReport::parse(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(left, Some(AgentReport::Pruned { key: "k".to_owned() }));

        run(&file, until(async {}, std::future::pending())).await;
        let left = AgentReport::parse(&std::fs::read_to_string(&file).unwrap());
        assert!(matches!(left, Some(AgentReport::Failed { message }) if message.contains("signal")));
    }
}
