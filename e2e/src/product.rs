//! The product on a cluster: server and operator built, their images loaded, the chart installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::connect::Cluster;
use crate::images;
use crate::progress::say;
use crate::run;
use crate::wait::wait_until;

/// The operator's namespace.
pub const NAMESPACE: &str = "ferretcd-system";
/// The chart's release, and the operator's deployment.
pub const RELEASE: &str = "ferretcd-operator";

/// How long the operator's pod may take: its image is on the node, so seconds are normal.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The repository that this program was built from.
pub fn repository() -> Result<&'static Path> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no parent folder")?;
    if !repository.join("charts").is_dir() {
        bail!("the repository is not at {} any more: build ferretcd-e2e again", repository.display());
    }
    Ok(repository)
}

/// The cargo profile that `FERRETCD_PROFILE` names, else `default`.
pub fn profile(default: &str) -> String {
    std::env::var("FERRETCD_PROFILE").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// cargo, without what `cargo run` told this program about itself: build scripts that look at that (ring's does) would run
/// anew, and all that stands on them would be built anew with every call.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let about_us = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(about_us)) {
        command.env_remove(name);
    }
    command
}

/// Builds server and operator, and returns the folder that they are in.
pub fn build(cache: &Cache, profile: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().nth(2).context("this program is not in a target folder")?;
    let log = cache.root().join("logs/cargo.log");
    std::fs::create_dir_all(cache.root().join("logs"))?;
    std::fs::write(&log, "")?;
    let mut command = cargo();
    command.args(["build", "--locked", "--profile", profile, "--package=ferretcd", "--package=ferretcd-operator"]);
    command.arg("--target-dir").arg(target).current_dir(repository()?);
    say(format!("building server and operator (profile {profile}; log: {})", log.display()));
    run::logged(&mut command, "building server and operator", &log)?;
    // cargo's one exception: the profile `dev` is built into `debug`.
    Ok(target.join(if profile == "dev" { "debug" } else { profile }))
}

/// Loads the images made of the programs in `folder` and installs the chart, or brings an older release up to date.
pub fn install(cluster: &Cluster, folder: &Path) -> Result<()> {
    cluster.load_product(folder)?;
    let older = cluster.get(&["--namespace", NAMESPACE, "deployment", RELEASE]).is_ok();
    let chart = repository()?.join("charts/ferretcd-operator");
    let mut helm = cluster.helm_command()?;
    helm.args(["upgrade", "--install", RELEASE]).arg(chart).args(["--namespace", NAMESPACE, "--create-namespace"]);
    for (value, image) in [("image", images::OPERATOR), ("server", images::FERRETCD)] {
        let image = cluster.image(image)?;
        let (repository, tag) = image.rsplit_once(':').context("an image of ours has no tag")?;
        helm.args(["--set-string", &format!("{value}.repository={repository},{value}.tag={tag}")]);
    }
    run::output(&mut helm)?;
    if older {
        // The image's name is the same as before, so nothing else would start its new contents.
        cluster.kubectl(&["--namespace", NAMESPACE, "rollout", "restart", &format!("deployment/{RELEASE}")])?;
    }
    let timeout = format!("--timeout={}s", TIMEOUT.as_secs());
    cluster.kubectl(&["--namespace", NAMESPACE, "rollout", "status", &format!("deployment/{RELEASE}"), &timeout])?;
    wait_until("the operator", TIMEOUT, || cluster.deployment_available(NAMESPACE, RELEASE))
}
