//! `ferretcd-operator run`: start-up as a list, shutdown as the same list backwards.

use std::{future::Future, sync::atomic::Ordering, time::Duration};

use anyhow::Context as _;
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use tokio::{net::TcpListener, sync::watch};
use tracing::{info, warn};

use crate::{
    admin::{self, Admin},
    cli::RunArgs,
    controller,
    metrics::Metrics,
    reconcile::Context,
};

/// How long passes that are under way may take after the signal: longer than any single call, shorter than the grace period of
/// the pod (30 s). What is cut off here is taken up by the next operator, as after a crash.
const DRAIN: Duration = Duration::from_secs(20);

/// Runs until `terminated` resolves.
///
/// # Errors
/// The API server cannot be reached, our kinds are not installed, or the port is taken.
pub async fn run(args: RunArgs, terminated: impl Future<Output = ()>) -> anyhow::Result<()> {
    let RunArgs { namespace, admin_address, pod_name, settings } = args;
    let settings = settings.into();

    let client = Client::try_default().await.context("cannot find or use the address of the API server")?;
    let version = client.apiserver_version().await.context("cannot reach the API server")?;
    controller::preflight(&client, namespace.as_deref()).await.map_err(anyhow::Error::msg)?;
    info!(kubernetes = version.git_version, namespace = namespace.as_deref().unwrap_or("all"), ?settings, "starting");

    let admin = Admin::default();
    let metrics = Metrics::register(&admin.registry).context("cannot register metrics")?;
    let listener =
        TcpListener::bind(admin_address).await.with_context(|| format!("cannot listen on {admin_address}"))?;

    let (stop, stopping) = watch::channel(false);
    let ready = admin.ready.clone();
    let admin = tokio::spawn(admin::serve(listener, admin, controller::stopped(stopping.clone())));

    let reporter = Reporter { controller: "ferretcd-operator".to_owned(), instance: pod_name };
    let recorder = Recorder::new(client.clone(), reporter);
    let context = Context { client, recorder, settings };
    let controllers =
        tokio::spawn(async move { controller::run(context, metrics, namespace.as_deref(), stopping).await });
    ready.store(true, Ordering::Relaxed);

    terminated.await;
    info!("stopping");
    ready.store(false, Ordering::Relaxed);
    let _ = stop.send(true);
    if tokio::time::timeout(DRAIN, controllers).await.is_err() {
        warn!("passes are still under way after {} s and are cut off", DRAIN.as_secs());
    }
    admin.await.context("the admin server has panicked")?.context("the admin server has failed")?;
    info!("stopped");
    Ok(())
}
