//! The tests that need a cluster, from one command: brings a cluster up with the product on it, runs them, takes it down.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cluster::{self, Options};
use crate::connect::{self, Cluster};
use crate::datastore::Choice;
use crate::product;
use crate::progress::say;
use crate::s3;
use crate::tools::Tools;

/// The local cluster of the tests.
pub const NAME: &str = "test";

/// The test that runs kube-apiserver on members of its own, beside any cluster.
const CONTROL_PLANE: &str = "control_plane";

/// The test binaries that need a cluster, or Kubernetes' programs.
const TESTS: [&str; 3] = ["platform", "story", CONTROL_PLANE];

/// Whether the tests that need a cluster are to run: `FERRETCD_E2E=1`. If not, it says so, and how they would.
pub fn enabled() -> bool {
    let enabled = std::env::var("FERRETCD_E2E").is_ok_and(|value| value == "1");
    if !enabled {
        eprintln!("skipped: it needs a Kubernetes with the product on it; run `cargo run -p ferretcd-e2e -- test`");
    }
    enabled
}

/// Runs the tests, with `arguments` for them (a name, for example). After a failure the cluster keeps running for a look,
/// until the next run or `cluster down --name test`.
pub fn run(cache: &Cache, tools: &Tools, datastore: Choice, arguments: &[String]) -> Result<ExitCode> {
    tools.build_named(&[])?;
    let programs = product::build(cache, &product::profile("dev"))?;
    let local = connect::elsewhere(cache).is_none();
    let cluster = if local {
        cluster::down(cache, NAME)?;
        let ferretcd = Some(programs.join("ferretcd"));
        cluster::up(cache, tools, &Options { name: NAME.to_owned(), datastore, ferretcd })?
    } else {
        Cluster::connect()?
    };
    s3::up(&cluster)?;
    product::install(&cluster, &programs)?;

    let mut command = product::cargo();
    command.args(["test", "--package=ferretcd-e2e", "--no-fail-fast"]);
    command.args(TESTS.map(|name| format!("--test={name}")));
    command.arg("--").args(arguments).current_dir(product::repository()?);
    command.env("FERRETCD_E2E", "1").env("FERRETCD_CLUSTER", NAME);
    command.env("FERRETCD_PROGRAMS", &programs);
    let status = command.status().context("starting cargo test")?;
    if !status.success() {
        if local {
            say(format!(
                "the cluster {NAME} keeps running; logs of its node: {}",
                cache.run(NAME).join("logs").display()
            ));
        }
        return Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from));
    }
    if local {
        cluster::down(cache, NAME)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells the story of kube-apiserver on three members with 10,000 objects, on real etcd and on ours, and compares.
pub fn run_control_plane(cache: &Cache, tools: &Tools) -> Result<ExitCode> {
    tools.build_named(&["etcd".into(), "kubernetes".into()])?;
    let programs = product::build(cache, &product::profile("release"))?;
    let mut command = product::cargo();
    command.args(["test", "--package=ferretcd-e2e", &format!("--test={CONTROL_PLANE}")]);
    command.args(["--", "--ignored", "--nocapture"]).current_dir(product::repository()?);
    let status = command.env("FERRETCD_PROGRAMS", &programs).status().context("starting cargo test")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
