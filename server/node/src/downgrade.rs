//! What the cluster runs at: its version and log format, the way back to an earlier version by etcd's rules, and the leader's
//! loop that takes the steps.
//!
//! Up it goes when every member has said that it is so far, by an entry that names them; from there on an older server refuses
//! to run in this cluster. The log format never goes down again: the log and the snapshots hold what it allowed.
//!
//! A downgrade lowers the promise that the cluster makes (its version, and with it the layout of snapshot files) so that
//! members of the release before could take over. Cancelling it raises the version again.

use crate::node::{Inner, Node};
use crate::workers::{self, CLUSTER_VERSION};
use ferretcd_proto::peer::ProbeRequest;
use ferretcd_raft::Role;
use ferretcd_raft::transport::client::probe;
use ferretcd_types::{Command, Error, MemberId, SetClusterVersion, SetDowngrade, codec};
use std::sync::Arc;
use std::time::Duration;

/// How often the leader looks whether the cluster version is still right (etcd's monitorVersionInterval).
const LOOK_EVERY: Duration = Duration::from_secs(4);

/// The same while the log format is behind the leader's own: new kinds of entries wait for it.
const LOOK_WHILE_BEHIND: Duration = Duration::from_secs(1);

/// How long a member may take to say what it is.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Of members that do not tell their version.
const FIRST_VERSION: &str = "3.7.0";

/// Major and minor: all that a cluster's version keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: i64,
    minor: i64,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.0", self.major, self.minor)
    }
}

impl Version {
    /// A version with three numbers, and perhaps a pre-release and build data behind them.
    fn parse(text: &str) -> Option<Version> {
        let text = text.split_once('+').map_or(text, |(version, _)| version);
        let text = text.split_once('-').map_or(text, |(version, _)| version);
        let mut numbers = text.splitn(3, '.').map(|n| n.parse::<i64>().ok());
        let (major, minor, _patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Version { major, minor })
    }

    /// What a client asks for: the patch may be left out.
    fn requested(text: &str) -> Result<Version, Error> {
        let parsed = Version::parse(text).or_else(|| Version::parse(&format!("{text}.0")));
        parsed.ok_or(Error::WrongDowngradeVersion)
    }

    /// The one version that a downgrade may go to.
    fn below(self) -> Version {
        Version { minor: self.minor - 1, ..self }
    }

    /// As answers name it: without the patch.
    fn short(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

/// Whether a downgrade may begin.
fn may_begin(cluster: Version, under_way: bool, target: Version) -> Result<(), Error> {
    if target != cluster.below() {
        return Err(Error::InvalidDowngradeTarget);
    }
    if under_way { Err(Error::DowngradeInProcess) } else { Ok(()) }
}

/// What the cluster's version should become, if anything: the target of a downgrade while one is under way, else the
/// version of the servers.
fn decide(cluster: Version, servers: Version, downgrade: Option<Version>) -> Option<Version> {
    match downgrade {
        Some(target) if target == cluster => None,
        Some(target) => (cluster.below() == target && servers.below() == target).then_some(target),
        None => (cluster.major == servers.major && cluster < servers).then_some(servers),
    }
}

impl Node {
    /// Says whether the cluster could go down to a version; the answer is the version that it runs at (`3.7`).
    pub async fn downgrade_validate(&self, target: &str) -> Result<String, Error> {
        Ok(self.downgrade_check(target).await?.0.short())
    }

    /// Lets the cluster go down to a version; the answer is the version that it ran at when this began.
    pub async fn downgrade_enable(&self, target: &str) -> Result<String, Error> {
        let (cluster, target) = self.downgrade_check(target).await?;
        self.propose(SetDowngrade { target: Some(target.to_string()) }).await?;
        Ok(cluster.short())
    }

    /// Ends a downgrade; where none is under way, nothing happens (etcd only logs it). The answer is the version that
    /// the cluster runs at.
    pub async fn downgrade_cancel(&self) -> Result<String, Error> {
        self.inner.linearize().await?;
        if self.inner.state.downgrade().is_some() {
            self.propose(SetDowngrade { target: None }).await?;
        }
        Ok(self.inner.version()?.short())
    }

    async fn downgrade_check(&self, target: &str) -> Result<(Version, Version), Error> {
        let target = Version::requested(target)?;
        self.inner.version()?;
        self.inner.linearize().await?;
        let cluster = self.inner.version()?;
        may_begin(cluster, self.inner.state.downgrade().is_some(), target)?;
        Ok((cluster, target))
    }
}

impl Inner {
    fn version(&self) -> Result<Version, Error> {
        self.state.cluster_version().and_then(|v| Version::parse(&v)).ok_or(Error::ClusterVersionUnavailable)
    }
}

/// What a member has said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    id: MemberId,
    version: Version,
    log_format: u32,
}

/// The entry that brings the cluster up to what all members are capable of; none if it is there.
fn raise(cluster: Version, log_format: u32, told: &[Told]) -> Option<SetClusterVersion> {
    let version = told.iter().map(|member| member.version).min()?;
    let format = told.iter().map(|member| member.log_format).min()?;
    let version = decide(cluster, version, None);
    let format = Some(format).filter(|format| *format > log_format && *format >= codec::LOG_FORMAT_RAISED_SINCE);
    (version.is_some() || format.is_some()).then(|| SetClusterVersion {
        version: version.unwrap_or(cluster).to_string(),
        log_format: format.unwrap_or(0),
        told_by: told.iter().map(|member| member.id).collect(),
    })
}

/// What the cluster is to run at next, asked of the members if it may have to go up.
async fn next_step(inner: &Inner, own: Told, cluster: Version) -> Option<SetClusterVersion> {
    if let Some(downgrade) = inner.state.downgrade() {
        let next = decide(cluster, own.version, Version::parse(&downgrade))?;
        return Some(SetClusterVersion { version: next.to_string(), ..SetClusterVersion::default() });
    }
    let log_format = inner.state.log_format();
    raise(cluster, log_format, &[own])?;
    raise(cluster, log_format, &ask_members(inner, own).await?)
}

/// What every member says of itself, learners too; none if one of them does not say it now.
async fn ask_members(inner: &Inner, own: Told) -> Option<Vec<Told>> {
    let dialer = inner.group.peers().dialer();
    let asked = inner.members().into_iter().map(|member| async move {
        if member.id == own.id {
            return Some(own);
        }
        let url = member.peer_urls.first()?;
        let answer = probe(dialer, url, ProbeRequest::default(), ANSWER_TIME).await.ok()?;
        let version = Some(answer.server_version.as_str()).filter(|version| !version.is_empty());
        let version = Version::parse(version.unwrap_or(FIRST_VERSION))?;
        (answer.member_id == member.id.0).then_some(Told { id: member.id, version, log_format: answer.log_format })
    });
    futures::future::join_all(asked).await.into_iter().collect()
}

/// Keeps right what the cluster runs at, on the leader.
pub(crate) async fn decide_cluster_version(inner: Arc<Inner>) {
    let Some(version) = Version::parse(CLUSTER_VERSION) else { return };
    let own = Told { id: inner.identity.member, version, log_format: codec::LOG_FORMAT };
    let pause = || if inner.state.log_format() < own.log_format { LOOK_WHILE_BEHIND } else { LOOK_EVERY };
    while workers::pause(&inner, pause()).await {
        let (Ok(cluster), view) = (inner.version(), inner.view()) else { continue };
        if view.role != Role::Leader {
            continue;
        }
        let Some(next) = next_step(&inner, own, cluster).await else { continue };
        let (to, log_format) = (next.version.clone(), next.log_format);
        match inner.propose_here(view.term, Command::SetClusterVersion(next)).await {
            Ok(_) => tracing::info!(from = %cluster, to, log_format, "what the cluster runs at changed"),
            Err(e) => tracing::warn!(to, log_format, "cannot change what the cluster runs at: {e}; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V35: Version = Version { major: 3, minor: 5 };
    const V36: Version = Version { major: 3, minor: 6 };
    const V37: Version = Version { major: 3, minor: 7 };

    /// Each as real etcd 3.7.1 answers it.
    #[test]
    fn a_target_is_read_as_etcd_reads_it() {
        for good in ["3.6", "3.6.0", "3.6.3", "3.6.0-alpha", "3.6.1+build"] {
            assert_eq!(Version::requested(good), Ok(V36), "{good}");
        }
        for bad in ["", "x", "3", "v3.6", "3.6.x", "3.6.0.1", "3.6-alpha"] {
            assert_eq!(Version::requested(bad), Err(Error::WrongDowngradeVersion), "{bad}");
        }
    }

    /// A client's target, and what a snapshot says of the cluster's version and of a downgrade.
    #[test]
    fn fuzz_version() {
        let seeds = ["3.6\n3.7.0\n", "3.6.0-alpha+b.1\n3.6.0\n3.6.0", "-1.-9223372036854775808.0\nx\n9.9"];
        let fuzz = ferretcd_fuzz::Fuzz::new(env!("CARGO_MANIFEST_DIR"), "version").seeds(seeds);
        fuzz.words(&["3.7.0", ".", "-", "+", "9223372036854775807", "-9223372036854775808", "\n"]).run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let mut lines = text.split('\n');
            let mut line = || lines.next().unwrap_or_default();
            let (target, cluster, downgrade) = (Version::requested(line()), Version::parse(line()), line());
            if let Ok(target) = target {
                assert_eq!(Version::parse(&target.to_string()), Some(target));
            }
            let cluster = cluster.unwrap_or(V37);
            let begun = target.clone().map(|target| may_begin(cluster, false, target));
            format!("{begun:?} {:?}", decide(cluster, V37, Version::parse(downgrade)))
        });
    }

    #[test]
    fn a_downgrade_goes_one_minor_down_and_one_at_a_time() {
        assert_eq!(may_begin(V37, false, V36), Ok(()));
        assert_eq!(may_begin(V37, false, V35), Err(Error::InvalidDowngradeTarget));
        assert_eq!(may_begin(V37, false, V37), Err(Error::InvalidDowngradeTarget));
        assert_eq!(may_begin(V37, true, V36), Err(Error::DowngradeInProcess));
        assert_eq!(may_begin(V36, true, V36), Err(Error::InvalidDowngradeTarget));
    }

    #[test]
    fn the_cluster_version_follows_the_downgrade_and_comes_back() {
        assert_eq!(decide(V37, V37, None), None);
        assert_eq!(decide(V37, V37, Some(V36)), Some(V36));
        assert_eq!(decide(V36, V37, Some(V36)), None);
        assert_eq!(decide(V36, V37, None), Some(V37));
        assert_eq!(decide(V37, V37, Some(V35)), None, "two steps are never taken");
    }

    #[test]
    fn the_cluster_goes_up_to_what_its_oldest_member_is() {
        let told = |id, version, log_format| Told { id: MemberId(id), version, log_format };
        let raised = |cluster, format, told: &[Told]| {
            raise(cluster, format, told).map(|set| {
                assert_eq!(set.told_by.len(), told.len());
                (set.version, set.log_format)
            })
        };
        let to = |version: &str, format| Some((version.to_owned(), format));
        let v38 = Version { minor: 8, ..V37 };
        assert_eq!(raised(V37, 1, &[told(1, V37, 3), told(2, V37, 3)]), to("3.7.0", 3));
        assert_eq!(raised(V37, 3, &[told(1, V37, 3), told(2, V37, 4)]), None);
        assert_eq!(raised(V37, 3, &[told(1, v38, 5), told(2, V37, 4)]), to("3.7.0", 4));
        assert_eq!(raised(V37, 4, &[told(1, v38, 5), told(2, v38, 5)]), to("3.8.0", 5));
        assert_eq!(raised(V36, 3, &[told(1, V37, 3)]), to("3.7.0", 0), "a downgrade was cancelled");
        // These would pass over the entry, and the first release does not tell.
        assert_eq!(raised(V37, 1, &[told(1, V37, 3), told(2, V37, 2)]), None);
        assert_eq!(raised(V37, 1, &[told(1, V37, 3), told(2, V37, 0)]), None);
    }
}
