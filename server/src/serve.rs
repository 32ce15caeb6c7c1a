//! Running a member: start-up as a list, shutdown as the same list backwards.

use crate::cli::{ETCD_VERSION, Notice, Settings};
use crate::commands::output;
use crate::config::{self, Address, Config, Place};
use crate::listen::{self, Service, Socket};
use crate::runtime::to_the_end;
use crate::tls::material::Material;
use crate::tls::{Files, Params, in_use, self_signed};
use crate::{notify, telemetry};
use ferretcd_api::Options;
use ferretcd_api::trace::Tracer;
use ferretcd_node::discovered::has_member;
use ferretcd_node::names::addresses;
use ferretcd_node::{Boot, BootError, Member, Node};
use ferretcd_raft::transport::dial::Dialer;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Exit code of a data directory that does not fit what was asked (sysexits' EX_CONFIG): starting again cannot help.
const EXIT_IDENTITY: u8 = 78;

/// Streams of one peer connection: appends, votes, snapshots and forwarded requests of one member.
const PEER_STREAMS_MAX: u32 = 100_000;

/// How members' silent connections are asked whether they live. Members that live are never silent for so long: they ask
/// themselves every two seconds. One that does not may hold half a snapshot here.
const PEER_KEEP_ALIVE: (Option<Duration>, Duration) = (Some(Duration::from_secs(30)), Duration::from_secs(20));

/// How long the names in peer URLs may stay unknown to DNS, and how often they are asked for (etcd's numbers).
const NAMES_TIMEOUT: Duration = Duration::from_secs(30);
const NAMES_LOOK: Duration = Duration::from_secs(1);

/// How often a member that is not ready looks whether it is.
const READY_LOOK: Duration = Duration::from_millis(50);

/// Runs a member until a signal, its removal, or an error.
pub fn main(settings: &Settings) -> ExitCode {
    if let Err(e) = telemetry::init(&settings.flags) {
        return refuse(&e, 1);
    }
    settings.notices.iter().for_each(Notice::log);
    if let Some(path) = &settings.file {
        tracing::info!(
            path = %path.display(),
            "loaded server configuration, other configuration command line flags and environment variables will be \
             ignored if provided"
        );
    }
    let config = match config::check(settings) {
        Ok(config) => config,
        Err(e) => return refuse(&e, 1),
    };
    config.notices.iter().for_each(Notice::log);
    // What must be finished is awaited in `stop`.
    to_the_end(run(config, settings.flags.self_signed_cert_validity)).unwrap_or_else(|e| fail(&e, 1))
}

/// Settings that cannot be followed: etcd's line for the log, and one for people.
pub fn refuse(why: &str, code: u8) -> ExitCode {
    let _ = telemetry::init(&crate::flags::Flags::default());
    tracing::warn!(error = why, "failed to verify flags");
    output::refuse(&format!("ferretcd: {why}"), code)
}

fn fail(why: &str, code: u8) -> ExitCode {
    tracing::error!("{why}");
    output::refuse(&format!("ferretcd: {why}"), code)
}

async fn run(mut config: Config, years: usize) -> ExitCode {
    tracing::info!(
        version = ETCD_VERSION, server = concat!("ferretcd ", env!("CARGO_PKG_VERSION")),
        name = config.boot.node.name, data_dir = %config.boot.data_dir.display(), "starting"
    );
    ignore_habits();
    // Signals first: one that comes during start-up must not be lost.
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return fail("cannot listen for signals", 1);
    };
    if config.lock_memory
        && let Err(e) = lock_memory()
    {
        return fail(&e, 1);
    }
    let connections_max = match listen::connections_max() {
        Ok(connections_max) => connections_max,
        Err(e) => return fail(&e, 1),
    };
    // Ports before files: a wrong URL changes nothing on disk.
    let bind = |flag: &str, places: &[Place]| listen::bind(flag, places, config.reuse_port);
    let bound = || {
        Ok::<_, String>((
            bind("--listen-client-urls", &config.listen.client)?,
            bind("--listen-client-http-urls", &config.listen.http)?,
            bind("--listen-peer-urls", &config.listen.peer)?,
            bind("--listen-metrics-urls", &config.listen.metrics)?,
        ))
    };
    let (client, client_http, peer, metrics) = match bound() {
        Ok(bound) => bound,
        Err(e) => return fail(&e, 1),
    };
    let listen = &config.listen;
    let (client_places, peer_places) = ([&listen.client[..], &listen.http, &listen.metrics].concat(), &listen.peer);
    let fixtures = config.boot.data_dir.join("fixtures");
    let certificates = material(&config.client_tls, &config.tls, &fixtures.join("client"), &client_places, years)
        .and_then(|client| {
            Ok((client, material(&config.peer_tls, &config.tls, &fixtures.join("peer"), peer_places, years)?))
        });
    let (client_tls, peer_tls) = match certificates {
        Ok(certificates) => certificates,
        Err(e) => return fail(&e, 1),
    };
    let called = peer_tls.clone();
    let election = config.boot.node.timing.election;
    // As in etcd: members that DNS names may all have a certificate for its domain.
    let domain =
        config.srv.as_ref().filter(|_| config.peer_tls.trusted_ca.is_none()).map(|srv| srv.domain().to_owned());
    config.boot.dialer = Dialer::new(Arc::new(move || called.current().client), election, config.peer_patience)
        .to_name(domain)
        .from_address(config.peer_local);
    let (stop_clients, stop_peers) = (CancellationToken::new(), CancellationToken::new());
    let (clients, peers) = (TaskTracker::new(), TaskTracker::new());
    let patience = config.boot.node.timing.request_timeout();

    let members = tokio::select! {
        members = members(&config) => members,
        _ = term.recv() => return ExitCode::SUCCESS,
        _ = int.recv() => return ExitCode::SUCCESS,
    };
    match members {
        Ok(Members { listed, own_urls }) => {
            config.boot.initial_cluster = listed;
            config.boot.advertise_peer_urls = own_urls;
        }
        Err(e) => return fail(&e, 1),
    }
    let boot = Boot::new(config.boot);
    let peer_router = tonic::service::Routes::new(boot.door().service()).into_axum_router();
    let peer_router = ferretcd_api::peer_router(peer_router);
    let peer_service = Service {
        kind: "peer",
        router: peer_router.clone(),
        secure_router: peer_router,
        tls: Some(peer_tls.clone()),
        compares_address: config.compares_peer_address,
        streams_max: PEER_STREAMS_MAX,
        connections_max,
        keep_alive: PEER_KEEP_ALIVE,
        ping_min_time: None,
        secure_ping_min_time: None,
        under_way: listen::no_calls(),
    };
    spawn(&peers, peer, &peer_service, None, &stop_peers);

    let member = tokio::select! {
        member = boot.run() => match member {
            Ok(member) => member,
            Err(e @ BootError::Identity(_)) => return fail(&e.to_string(), EXIT_IDENTITY),
            Err(e) => return fail(&e.to_string(), 1),
        },
        _ = term.recv() => return ExitCode::SUCCESS,
        _ = int.recv() => return ExitCode::SUCCESS,
    };
    let stop_traces = CancellationToken::new();
    let (tracer, traces) = match config.tracing.take().map(|(rate, target)| Tracer::new(rate, target)).transpose() {
        Ok(traced) => {
            traced.map(|(tracer, exporter)| (tracer, tokio::spawn(exporter.run(stop_traces.clone())))).unzip()
        }
        Err(e) => return fail(&e, 1),
    };
    member.node.metrics().feature("StopGRPCServiceOnDefrag", config.stop_on_defragment);
    member.node.metrics().feature("SetMemberLocalAddr", config.binds_local);
    let registry = member.node.metrics().registry().clone();
    if let Err(e) = in_use::register(&registry, vec![client_tls.clone(), peer_tls.clone()]) {
        return fail(&format!("cannot register the metrics: {e}"), 1);
    }
    let options = match Options::new(registry, election, config.extensive_metrics) {
        Ok(options) => options
            .with_web(config.web.clone())
            .with_warning(config.warning_unary)
            .with_tracer(tracer)
            .with_profiles(config.profiles)
            .with_stop_on_defragment(config.stop_on_defragment),
        Err(e) => return fail(&format!("cannot register the metrics: {e}"), 1),
    };
    // Only requests without TLS must call this server by one of the names that it has.
    let mut secure_web = config.web;
    secure_web.access.hosts.clear();
    let secure_options = options.clone().with_web(secure_web);
    let service = |serve: fn(Node, &Options) -> axum::Router| Service {
        kind: "client",
        router: serve(member.node.clone(), &options),
        secure_router: serve(member.node.clone(), &secure_options),
        tls: Some(client_tls.clone()),
        compares_address: false,
        streams_max: config.max_concurrent_streams,
        connections_max,
        keep_alive: config.keep_alive,
        ping_min_time: None,
        secure_ping_min_time: None,
        // One that was lost takes an answer with it that its client may not ask for again. etcd waits as long.
        under_way: (options.under_way().clone(), patience),
    };
    let has_both_doors = client_http.is_empty();
    let main_door = if has_both_doors { ferretcd_api::router } else { ferretcd_api::grpc_router };
    // etcd compares there, and not at the other listeners for clients.
    let metrics_service = Service { compares_address: true, ..service(ferretcd_api::metrics_router) };
    let ready = CancellationToken::new();
    spawn(&clients, metrics, &metrics_service, None, &stop_clients);
    spawn(&clients, client_http, &service(ferretcd_api::http_router), Some(&ready), &stop_clients);
    let main_service = Service {
        ping_min_time: Some(config.ping_min_time),
        // As in etcd: beside HTTP, gRPC over TLS is served by Go's HTTP server, which lets clients ping.
        secure_ping_min_time: (!has_both_doors).then_some(config.ping_min_time),
        ..service(main_door)
    };
    spawn(&clients, client, &main_service, Some(&ready), &stop_clients);
    tokio::spawn(tell_ready(member.node.clone(), config.listen.client, ready, stop_clients.clone()));

    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        reason = member.node.ended() => Some(reason),
    };
    notify::tell("STOPPING=1");
    match &ended {
        None => tracing::info!("received a signal, shutting down"),
        Some(reason) => tracing::error!("{reason}"),
    }
    // A member that cannot go on answers nobody.
    let drain = if ended.is_none() { patience + listen::DRAIN } else { listen::DRAIN };
    stop(member, (stop_clients, clients, drain), (stop_peers, peers)).await;
    // The calls have ended, so their spans are there.
    stop_traces.cancel();
    if let Some(traces) = traces {
        let _ = traces.await;
    }
    match ended {
        None => ExitCode::SUCCESS,
        Some(reason) => fail(&reason, 1),
    }
}

/// Go's programs ignore these signals, and scripts send them by habit, such as after a log was moved away.
pub fn ignore_habits() {
    for harmless in [SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::alarm()] {
        let _ = signal(harmless);
    }
}

/// Who the members are, and by what URLs this one is among them.
struct Members {
    listed: BTreeMap<String, Vec<String>>,
    own_urls: Vec<String>,
}

/// The members as the flags name them, or as this member finds them. It goes by the URLs that stand there if they lead
/// to the same addresses as those that it advertises, as in etcd.
async fn members(config: &Config) -> Result<Members, String> {
    let boot = &config.boot;
    let found = match (&config.discovery, &config.srv) {
        (Some(discovery), _) => discovery.members(boot).await?,
        (None, Some(srv)) => srv.members(boot).await?,
        (None, None) => None,
    };
    let listed = match found {
        Some(found) => config::members(&found)?,
        None => boot.initial_cluster.clone(),
    };
    let own_urls = match listed.get(&boot.node.name) {
        Some(urls) if !has_member(&boot.data_dir) && lead_alike(urls, &boot.advertise_peer_urls).await => urls.clone(),
        _ => boot.advertise_peer_urls.clone(),
    };
    Ok(Members { listed, own_urls })
}

/// Whether these URLs lead to the same addresses. Names may be known late, so they are asked for again for a while.
async fn lead_alike(listed: &[String], advertised: &[String]) -> bool {
    let sorted = |urls: &[String]| urls.iter().cloned().collect::<BTreeSet<_>>();
    if listed.len() != advertised.len() || sorted(listed) == sorted(advertised) {
        return false;
    }
    let until = tokio::time::Instant::now() + NAMES_TIMEOUT;
    loop {
        match (addresses(listed).await, addresses(advertised).await) {
            (Ok(listed), Ok(advertised)) => return listed == advertised,
            (Err(why), _) | (_, Err(why)) if tokio::time::Instant::now() > until => {
                tracing::warn!(error = why, "failed to resolve URL Host; returning");
                return false;
            }
            (Err(why), _) | (_, Err(why)) => tracing::warn!(error = why, "failed to resolve URL Host"),
        }
        tokio::time::sleep(NAMES_LOOK).await;
    }
}

/// Keeps all memory of this process out of swap, now and later, each page once it is used.
fn lock_memory() -> Result<(), String> {
    use rustix::mm::{MlockAllFlags, mlockall};
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(|e| {
        format!(
            "--memory-mlock: cannot lock the memory: {e}; raise the limit of locked memory (LimitMEMLOCK, ulimit -l)"
        )
    })
}

/// The certificates of one side. With `--auto-tls` they are made, for the hosts that are listened at.
fn material(
    files: &Files,
    params: &Params,
    dir: &Path,
    places: &[Place],
    years: usize,
) -> Result<Arc<Material>, String> {
    // Where only listeners need them, and none speaks TLS, they are remarked on and need not be there. (etcd's, too.)
    if !files.calls && !places.iter().any(|place| place.secure) {
        return Material::open(files.without(), params.clone(), false);
    }
    if !files.auto || files.is_given() {
        return Material::open(files.clone(), params.clone(), false);
    }
    let hosts = places.iter().filter_map(|place| match &place.address {
        Address::Tcp(address) => Some(address.ip().to_string()),
        Address::Unix(_) => None,
    });
    let files = self_signed::ensure(files.clone(), dir, &hosts.collect::<Vec<_>>(), years)?;
    Material::open(files, params.clone(), true)
}

/// Says, in etcd's words and at its time, that this member serves: it has heard from a quorum, and the cluster knows its
/// URLs. Tools and people wait for the line, and systemd for its message.
async fn tell_ready(node: Node, places: Vec<Place>, opens: CancellationToken, stop: CancellationToken) {
    let me = node.header().member_id;
    let ready = async {
        loop {
            let members = node.member_list(true).await.unwrap_or_default();
            if members.iter().any(|m| m.id == me && !m.client_urls.is_empty()) {
                return;
            }
            tokio::time::sleep(READY_LOOK).await;
        }
    };
    tokio::select! {
        () = ready => {}
        () = stop.cancelled() => return,
    }
    opens.cancel();
    let cluster_id = node.header().cluster_id;
    tracing::info!(member_id = %me, %cluster_id, "ready to serve client requests");
    for place in places {
        let address = place.address.to_string();
        if place.secure {
            tracing::info!(address, "serving client traffic securely");
        }
        if place.plain {
            tracing::info!(address, "serving client traffic insecurely; this is strongly discouraged!");
        }
    }
    notify::tell("READY=1");
}

/// Serves at each of these sockets, once this member is `ready` where that is asked for. Until then callers wait in the
/// kernel's queue, as at etcd: a client that has other endpoints goes on to one that can answer it, instead of being refused
/// by a member that has only just started.
fn spawn(
    tasks: &TaskTracker,
    sockets: Vec<Socket>,
    service: &Service,
    ready: Option<&CancellationToken>,
    stop: &CancellationToken,
) {
    for socket in sockets {
        let (service, ready, stop) = (service.clone(), ready.cloned(), stop.clone());
        tasks.spawn(async move {
            if let Some(ready) = ready {
                tokio::select! {
                    () = ready.cancelled() => {}
                    () = stop.cancelled() => return,
                }
            }
            listen::serve(socket, service, stop).await;
        });
    }
}

/// Leadership goes first, while clients are still served; peers are answered until the log is closed.
async fn stop(
    member: Member,
    (stop_clients, clients, drain): (CancellationToken, TaskTracker, Duration),
    (stop_peers, peers): (CancellationToken, TaskTracker),
) {
    member.hand_over().await;
    stop_clients.cancel();
    clients.close();
    let _ = tokio::time::timeout(drain, clients.wait()).await;
    member.stop().await;
    stop_peers.cancel();
    peers.close();
    peers.wait().await;
    tracing::info!("stopped");
}
