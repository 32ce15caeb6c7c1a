//! One of the two servers: its members as plain processes on a loopback address of its own, without TLS, all with the same
//! flags.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::datastore::Store;
use crate::{host, run};

/// The members of one server. Dropping it ends them; the data stays.
pub struct Side {
    /// Which it is.
    pub store: Store,
    program: PathBuf,
    address: Ipv4Addr,
    data: PathBuf,
    members: Vec<Child>,
}

impl Side {
    /// Starts `members` members whose data and logs are in `data`.
    pub fn start(store: Store, program: &Path, address: Ipv4Addr, members: u8, data: &Path) -> Result<Self> {
        fs::create_dir_all(data).with_context(|| format!("making {}", data.display()))?;
        let mut side =
            Self { store, program: program.to_path_buf(), address, data: data.to_path_buf(), members: Vec::new() };
        for number in 1..=members {
            let child = side.spawn(number, members)?;
            side.members.push(child);
        }
        Ok(side)
    }

    /// kill -9 of all members, and a start on what they have.
    pub fn restart(&mut self) -> Result<()> {
        let members = u8::try_from(self.members.len())?;
        self.end();
        for number in 1..=members {
            let child = self.spawn(number, members)?;
            self.members.push(child);
        }
        Ok(())
    }

    /// Ends the members and removes what they have.
    pub fn remove(mut self) -> Result<()> {
        self.end();
        fs::remove_dir_all(&self.data).with_context(|| format!("removing {}", self.data.display()))
    }

    /// Runs `benchmark`, and returns what it printed.
    pub fn benchmark(&self, program: &Path, arguments: &[String]) -> Result<String> {
        let mut command = Command::new(program);
        // Without `--precise` latencies come in tenths of a millisecond: 0.24 and 0.26 would be a ratio of two thirds.
        command.arg("--precise").arg(format!("--endpoints={}", self.endpoints())).args(arguments);
        Ok(run::output(&mut command)?.stdout)
    }

    /// Runs etcdctl for all members.
    pub fn etcdctl(&self, program: &Path, arguments: &[&str]) -> Result<String> {
        let endpoints = match arguments.contains(&"snapshot") {
            true => self.url(1, 2379),
            false => self.endpoints(),
        };
        let mut command = Command::new(program);
        command.arg(format!("--endpoints={endpoints}")).arg("--dial-timeout=1s").args(arguments);
        Ok(run::output(&mut command)?.stdout)
    }

    /// CPU time that the members have used, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        let used = self.members.iter().map(|member| host::usage(member.id()).map(|usage| usage.cpu));
        used.sum::<Option<f64>>().with_context(|| format!("a member of {} has ended", self.store.name()))
    }

    /// What the largest member holds in memory, in MiB.
    pub fn memory(&self) -> Result<f64> {
        let held = self.members.iter().map(|member| host::resident(member.id()));
        let held: Option<Vec<_>> = held.collect();
        let held = held.with_context(|| format!("a member of {} has ended", self.store.name()))?;
        Ok(held.into_iter().fold(0.0, f64::max))
    }

    fn url(&self, number: u8, port: u16) -> String {
        format!("http://{}:{}", self.address, port + 10_000 * u16::from(number - 1))
    }

    fn endpoints(&self) -> String {
        let count = u8::try_from(self.members.len()).unwrap_or(u8::MAX);
        (1..=count).map(|number| self.url(number, 2379)).collect::<Vec<_>>().join(",")
    }

    fn spawn(&self, number: u8, members: u8) -> Result<Child> {
        let (client, peer) = (self.url(number, 2379), self.url(number, 2380));
        let all: Vec<_> = (1..=members).map(|number| format!("m{number}={}", self.url(number, 2380))).collect();
        let log = File::options().create(true).append(true).open(self.data.join(format!("m{number}.log")))?;
        let mut command = Command::new(&self.program);
        command.args([
            format!("--name=m{number}"),
            format!("--data-dir={}", self.data.join(format!("m{number}")).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", all.join(",")),
            // A million keys are more than the default allows.
            "--quota-backend-bytes=8589934592".to_owned(),
            "--log-level=warn".to_owned(),
        ]);
        command.env_clear().stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting {}", self.program.display()))
    }

    fn end(&mut self) {
        for mut member in self.members.drain(..) {
            // It may have ended already.
            let _ = member.kill().and_then(|()| member.wait());
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.end();
    }
}
