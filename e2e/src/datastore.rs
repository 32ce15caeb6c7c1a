//! What kube-apiserver keeps its data in, as values: one to three members with TLS everywhere, each with the command line
//! that kubeadm writes for its static pod. etcd and ferretcd take the same one.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::components::Component;
use crate::pki::{Authority, Subject};
use crate::run;

/// How many members a datastore may have: what fits the ports, and the number that kubeadm's users run.
pub const MOST_MEMBERS: u8 = 3;

/// What answers as etcd behind kube-apiserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// The real one.
    Etcd,
    /// Our own server.
    Ferretcd,
}

impl Store {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Ferretcd => "ferretcd",
        }
    }
}

/// What a cluster is told to keep its data in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct Choice {
    /// What answers as etcd behind kube-apiserver.
    #[arg(long = "etcd", env = "FERRETCD_CONTROL_PLANE_ETCD", value_enum, default_value = "ferretcd")]
    pub store: Store,
    /// How many members of it, 1 to 3.
    #[arg(
        long = "etcd-members",
        env = "FERRETCD_CONTROL_PLANE_MEMBERS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_MEMBERS))
    )]
    pub members: u8,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = if self.members == 1 { "" } else { "s" };
        write!(f, "{} member{plural} of {}", self.members, self.store.name())
    }
}

/// The members behind one kube-apiserver, all at one address.
#[derive(Debug, Clone)]
pub struct Datastore {
    /// The folder with `pki/etcd` and the members' data.
    run: PathBuf,
    address: Ipv4Addr,
    /// From 1 to [`MOST_MEMBERS`].
    members: u8,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, also that of its process and its data folder.
    pub name: String,
    /// Where clients reach it, by https.
    pub client: SocketAddr,
    /// Where the other members reach it, by https.
    pub peer: SocketAddr,
    /// Where probes and scrapers reach it, by plain http.
    pub metrics: SocketAddr,
}

/// Whether a member begins a cluster or joins one that is there (`--initial-cluster-state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// All begin together.
    New,
    /// It was added to the others before.
    Existing,
}

impl Datastore {
    /// `members` members at `address`, whose files are in `run`, an absolute path.
    pub fn new(run: &Path, address: Ipv4Addr, members: u8) -> Self {
        Self { run: run.to_path_buf(), address, members: members.clamp(1, MOST_MEMBERS) }
    }

    /// The members, in order. The ports are etcd's own, and those of its Procfile for the others.
    pub fn members(&self) -> Vec<Member> {
        let member = |number: u8| {
            let at = |port: u16| SocketAddr::from((self.address, port + 10_000 * u16::from(number - 1)));
            Member { name: format!("etcd-{number}"), client: at(2379), peer: at(2380), metrics: at(2381) }
        };
        (1..=self.members).map(member).collect()
    }

    /// The process of one of the members, with the flags of kubeadm's manifest.
    pub fn component(&self, program: &Path, member: &Member, begin: Begin) -> Component {
        let (client, peer) = (format!("https://{}", member.client), format!("https://{}", member.peer));
        let pki = |file: &str| self.at(&format!("pki/etcd/{file}"));
        let own = |kind: &str, end: &str| pki(&format!("{}-{kind}.{end}", member.name));
        let cluster: Vec<_> =
            self.members().iter().map(|member| format!("{}=https://{}", member.name, member.peer)).collect();
        let state = match begin {
            Begin::New => "new",
            Begin::Existing => "existing",
        };
        let args = vec![
            format!("--name={}", member.name),
            format!("--data-dir={}", self.data(member).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", cluster.join(",")),
            format!("--initial-cluster-state={state}"),
            format!("--listen-metrics-urls=http://{}", member.metrics),
            format!("--cert-file={}", own("server", "crt")),
            format!("--key-file={}", own("server", "key")),
            format!("--trusted-ca-file={}", pki("ca.crt")),
            "--client-cert-auth=true".into(),
            format!("--peer-cert-file={}", own("peer", "crt")),
            format!("--peer-key-file={}", own("peer", "key")),
            format!("--peer-trusted-ca-file={}", pki("ca.crt")),
            "--peer-client-cert-auth=true".into(),
            "--snapshot-count=10000".into(),
            "--feature-gates=InitialCorruptCheck=true".into(),
            "--watch-progress-notify-interval=5s".into(),
        ];
        Component { name: member.name.clone(), program: program.to_path_buf(), args }
    }

    /// The data folder of a member.
    pub fn data(&self, member: &Member) -> PathBuf {
        self.run.join(&member.name)
    }

    /// kube-apiserver's flags for it.
    pub fn apiserver_flags(&self) -> Vec<String> {
        vec![
            format!("--etcd-servers={}", self.endpoints()),
            format!("--etcd-cafile={}", self.at("pki/etcd/ca.crt")),
            format!("--etcd-certfile={}", self.at("pki/etcd/apiserver-etcd-client.crt")),
            format!("--etcd-keyfile={}", self.at("pki/etcd/apiserver-etcd-client.key")),
        ]
    }

    /// etcdctl's flags for all members.
    pub fn etcdctl_flags(&self) -> Vec<String> {
        vec![
            format!("--endpoints={}", self.endpoints()),
            format!("--cacert={}", self.at("pki/etcd/ca.crt")),
            format!("--cert={}", self.at("pki/etcd/healthcheck-client.crt")),
            format!("--key={}", self.at("pki/etcd/healthcheck-client.key")),
        ]
    }

    /// Makes an authority and all certificates of it, under the names that kubeadm gives them.
    pub fn write_credentials(&self) -> Result<()> {
        let folder = self.run.join("pki/etcd");
        std::fs::create_dir_all(&folder)?;
        let authority = Authority::new()?;
        authority.write(&folder)?;
        for member in self.members() {
            let hosts = [member.name.clone(), "localhost".into(), "127.0.0.1".into(), self.address.to_string()];
            for kind in ["server", "peer"] {
                let pair = authority.issue(Subject { user: &member.name, group: None }, &hosts)?;
                pair.write(&folder, &format!("{}-{kind}", member.name))?;
            }
        }
        for user in ["apiserver-etcd-client", "healthcheck-client"] {
            authority.issue(Subject { user, group: None }, &[])?.write(&folder, user)?;
        }
        Ok(())
    }

    fn endpoints(&self) -> String {
        let urls: Vec<_> = self.members().iter().map(|member| format!("https://{}", member.client)).collect();
        urls.join(",")
    }

    /// A path in the run directory, as text.
    fn at(&self, path: &str) -> String {
        self.run.join(path).display().to_string()
    }
}

impl Member {
    /// Asks what kubeadm's probes ask, `readyz` or `livez`; an answer other than 200 is an error with its text. `curl` runs
    /// it, to be completed: on the host, or in a node's namespaces.
    pub fn probe(&self, mut curl: Command, what: &str) -> Result<()> {
        let url = format!("http://{}/{what}", self.metrics);
        // A probe of kubelet's gives up after 15 s.
        run::output(curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "15", &url])).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_members_have_nine_addresses_and_name_each_other() {
        let datastore = Datastore::new(Path::new("/run"), Ipv4Addr::LOCALHOST, 3);
        let members = datastore.members();
        let addresses: std::collections::BTreeSet<_> =
            members.iter().flat_map(|member| [member.client, member.peer, member.metrics]).collect();
        assert_eq!(addresses.len(), 9);
        let component = datastore.component(Path::new("/etcd"), &members[2], Begin::Existing);
        let cluster = "--initial-cluster=etcd-1=https://127.0.0.1:2380,etcd-2=https://127.0.0.1:12380,\
                       etcd-3=https://127.0.0.1:22380";
        for wanted in [cluster, "--initial-cluster-state=existing", "--data-dir=/run/etcd-3"] {
            assert!(component.args.iter().any(|arg| arg == wanted), "{wanted}: {:?}", component.args);
        }
    }

    #[test]
    fn every_file_that_a_flag_names_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let datastore = Datastore::new(folder.path(), Ipv4Addr::LOCALHOST, 3);
        datastore.write_credentials().unwrap();
        let members = datastore.members();
        let flags = members.iter().flat_map(|one| datastore.component(Path::new("/etcd"), one, Begin::New).args);
        let all = flags.chain(datastore.apiserver_flags()).chain(datastore.etcdctl_flags());
        let files = all.filter_map(|flag| Some(flag.split_once('=')?.1.to_owned())).filter(|path| path.contains("pki"));
        let mut count = 0;
        for file in files {
            assert!(Path::new(&file).is_file(), "{file}");
            count += 1;
        }
        assert_eq!(count, 3 * 6 + 3 + 3);
    }
}
