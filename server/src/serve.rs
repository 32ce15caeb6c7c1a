//! Running a member: start-up as a list, shutdown as the same list backwards.

use crate::cli::{ETCD_VERSION, Flags};
use crate::config::{self, Config};
use crate::{listen, telemetry};
use ferretcd_node::{Boot, BootError, Member};
use std::process::ExitCode;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Exit code of a data directory that does not fit what was asked (sysexits' EX_CONFIG): starting again cannot help.
const EXIT_IDENTITY: u8 = 78;

/// Streams of one peer connection: appends, votes, snapshots and forwarded requests of one member.
const PEER_STREAMS_MAX: u32 = 100_000;

/// Runs a member until a signal, its removal, or an error.
pub fn main(flags: &Flags) -> ExitCode {
    if let Err(e) = telemetry::init(&flags.log_level, &flags.log_format) {
        eprintln!("ferretcd: {e}");
        return ExitCode::FAILURE;
    }
    let config = match config::check(flags) {
        Ok(config) => config,
        Err(e) => return fail(&e, 1),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&format!("cannot start the runtime: {e}"), 1),
    };
    runtime.block_on(run(config))
}

fn fail(why: &str, code: u8) -> ExitCode {
    tracing::error!("{why}");
    eprintln!("ferretcd: {why}");
    ExitCode::from(code)
}

async fn run(config: Config) -> ExitCode {
    tracing::info!(
        version = ETCD_VERSION, server = concat!("ferretcd ", env!("CARGO_PKG_VERSION")),
        name = config.boot.node.name, data_dir = %config.boot.data_dir.display(), "starting"
    );
    // Signals first: one that comes during start-up must not be lost.
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return fail("cannot listen for signals", 1);
    };
    // Ports before files: a wrong URL changes nothing on disk.
    let bound = async {
        Ok::<_, String>((
            listen::bind("--listen-client-urls", &config.listen.client).await?,
            listen::bind("--listen-peer-urls", &config.listen.peer).await?,
            listen::bind("--listen-metrics-urls", &config.listen.metrics).await?,
        ))
    };
    let (client, peer, metrics) = match bound.await {
        Ok(bound) => bound,
        Err(e) => return fail(&e, 1),
    };
    let (stop_clients, stop_peers) = (CancellationToken::new(), CancellationToken::new());
    let (clients, peers) = (TaskTracker::new(), TaskTracker::new());

    let election = config.boot.node.timing.election;
    let boot = Boot::new(config.boot);
    let peer_router = tonic::service::Routes::new(boot.door().service()).into_axum_router();
    spawn(&peers, peer, &peer_router, PEER_STREAMS_MAX, &stop_peers);

    let member = tokio::select! {
        member = boot.run() => match member {
            Ok(member) => member,
            Err(e @ BootError::Identity(_)) => return fail(&e.to_string(), EXIT_IDENTITY),
            Err(e) => return fail(&e.to_string(), 1),
        },
        _ = term.recv() => return ExitCode::SUCCESS,
        _ = int.recv() => return ExitCode::SUCCESS,
    };
    let header = member.node.header();
    let registry = member.node.metrics().registry().clone();
    let options = match ferretcd_api::Options::new(registry, election) {
        Ok(options) => options.with_web(ferretcd_api::Web {
            gateway_calls_max: config.max_concurrent_streams,
            ..ferretcd_api::Web::default()
        }),
        Err(e) => return fail(&format!("cannot register the metrics: {e}"), 1),
    };
    spawn(&clients, metrics, &ferretcd_api::metrics_router(member.node.clone(), &options), u32::MAX, &stop_clients);
    spawn(
        &clients,
        client,
        &ferretcd_api::router(member.node.clone(), &options),
        config.max_concurrent_streams,
        &stop_clients,
    );
    // etcd's words: tools and people wait for them.
    tracing::info!(member_id = %header.member_id, cluster_id = %header.cluster_id, "ready to serve client requests");

    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        reason = member.node.ended() => Some(reason),
    };
    match &ended {
        None => tracing::info!("received a signal, shutting down"),
        Some(reason) => tracing::error!("{reason}"),
    }
    stop(member, stop_clients, clients, stop_peers, peers).await;
    match ended {
        None => ExitCode::SUCCESS,
        Some(reason) => fail(&reason, 1),
    }
}

fn spawn(
    tasks: &TaskTracker,
    listeners: Vec<TcpListener>,
    router: &axum::Router,
    streams: u32,
    stop: &CancellationToken,
) {
    for listener in listeners {
        tasks.spawn(listen::serve(listener, router.clone(), streams, stop.clone()));
    }
}

/// Leadership goes first, while clients are still served; peers are answered until the log is closed.
async fn stop(
    member: Member,
    stop_clients: CancellationToken,
    clients: TaskTracker,
    stop_peers: CancellationToken,
    peers: TaskTracker,
) {
    member.hand_over().await;
    stop_clients.cancel();
    clients.close();
    clients.wait().await;
    member.stop().await;
    stop_peers.cancel();
    peers.close();
    peers.wait().await;
    tracing::info!("stopped");
}
