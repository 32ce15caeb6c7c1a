//! `ferretcd grpc-proxy start`: etcd's gRPC proxy before a cluster. What it does is in `ferretcd_proxy`; here are its
//! flags, certificates and listeners.

use super::output;
use crate::cli::Notice;
use crate::config::{Address, PING_MIN_TIME, Place};
use crate::discovery::srv;
use crate::flags::grpc_proxy::{self as settings, Flags, USAGE};
use crate::flags::url::Url;
use crate::listen::{self, Service, Socket};
use crate::runtime::to_the_end;
use crate::serve::ignore_habits;
use crate::tls::material::Material;
use crate::tls::{Allowed, Files, Params, certificate, self_signed};
use crate::{flags, notify, telemetry};
use ferretcd_proxy::endpoint::Endpoint;
use ferretcd_proxy::upstream::Connecting;
use ferretcd_proxy::{MessageSizes, Options, Proxy};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest message to a member if the flag does not say (etcd's client).
const SEND_BYTES: usize = 2 << 20;

/// Follows the words behind `grpc-proxy`: runs a proxy until a signal, or prints help.
pub fn run(words: &[String]) -> ExitCode {
    let Some(("start", args)) = words.split_first().map(|(verb, args)| (verb.as_str(), args)) else {
        return output::answer(USAGE.trim_end());
    };
    match settings::read(args) {
        Ok(Some(flags)) => start(&flags),
        Ok(None) => output::answer(&settings::help()),
        Err(why) => fail(&format!("Error: {why}\n{USAGE}")),
    }
}

fn start(flags: &Flags) -> ExitCode {
    let log =
        flags::Flags { log_level: if flags.debug { "debug" } else { "info" }.to_owned(), ..flags::Flags::default() };
    if let Err(e) = telemetry::init(&log) {
        return fail(&e);
    }
    let ended = to_the_end(async {
        let found = srv::endpoints(&flags.discovery_srv, &flags.discovery_srv_name, flags.insecure_discovery).await?;
        let mut flags = flags.clone();
        if !found.is_empty() {
            flags.endpoints.0 = found;
        }
        serve(check(&flags)?).await
    });
    match ended.flatten() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn fail(why: &str) -> ExitCode {
    output::refuse(why, 1)
}

/// What the flags ask for, checked.
#[derive(Debug)]
struct Plan {
    options: Options,
    client: Place,
    metrics: Option<Place>,
    tls: Arc<Material>,
    streams_max: u32,
    keep_alive: (Option<Duration>, Duration),
    /// How far apart a client's own pings must be while it has calls under way.
    ping_min_time: Duration,
    /// Serve profiles of this process.
    profiles: bool,
    set: Vec<String>,
}

/// Checks all flags, in etcd's words where it has any, and reads the certificates.
fn check(flags: &Flags) -> Result<Plan, String> {
    if !flags.resolver_prefix.is_empty() && flags.resolver_ttl < 1 {
        return Err(format!("invalid resolver-ttl {}", flags.resolver_ttl));
    }
    if flags.resolver_prefix.is_empty() && flags.resolver_ttl > 0 {
        return Err(format!("invalid resolver-prefix {:?}", flags.resolver_prefix));
    }
    if !flags.resolver_prefix.is_empty() && flags.advertise_client_url.is_empty() {
        return Err(format!("invalid advertise-client-url {:?}", flags.advertise_client_url));
    }
    if flags.auto_tls && flags.self_signed_cert_validity == 0 {
        return Err("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
    }
    if !flags.experimental_leasing_prefix.is_empty() {
        return Err(
            "--experimental-leasing-prefix is not supported: leave it away, or use clientv3's leasing package in \
                    the clients"
                .to_owned(),
        );
    }
    let params =
        Params::new(&flags.tls_min_version, &flags.tls_max_version, &flags.listen_cipher_suites.0).map_err(|e| {
            if e.starts_with("unexpected TLS version") { format!("tls-min-version is invalid: {e}") } else { e }
        })?;
    let calls = caller(flags)?;
    let has_tls = calls.is_some();
    let endpoints = flags.endpoints.0.iter().map(|text| Endpoint::parse(text, has_tls));
    let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
    if endpoints.is_empty() {
        return Err("--endpoints names no endpoint".to_owned());
    }
    let calls = match calls {
        Some(calls) => calls,
        // Endpoints with https:// are reached by the system's authorities then, as in etcd.
        None => Material::open(calling(flags), Params::new("", "", &[])?, false)?,
    };
    let files = listening(flags);
    let mut notices = Vec::new();
    files.check(&mut notices, "proxy")?;
    notices.iter().for_each(Notice::log);
    if files.trusted_ca.is_some() && !files.is_given() && !files.auto {
        return Err("--trusted-ca-file is given without --cert-file and --key-file: there is no TLS to ask for \
                    clients' certificates in"
            .to_owned());
    }
    let secure = files.is_given() || files.auto;
    let client = Place { address: Address::Tcp(resolve("--listen-addr", &flags.listen_addr)?), plain: !secure, secure };
    let metrics = match flags.metrics_addr.as_str() {
        "" => None,
        text => Some(metrics_place(text, secure)?),
    };
    let tls = if files.auto && !files.is_given() {
        let dir = Path::new(&flags.data_dir).join("fixtures").join("proxy");
        let host = flags.listen_addr.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']).to_owned();
        let files = self_signed::ensure(files, &dir, &[host], flags.self_signed_cert_validity)?;
        Material::open(files, params, true)?
    } else {
        Material::open(files, params, false)?
    };
    let size = |given: i64, usual: usize| usize::try_from(given).ok().filter(|n| *n > 0).unwrap_or(usual);
    let spell = |d: flags::value::GoDuration| Some(d.length()).filter(|d| !d.is_zero());
    Ok(Plan {
        options: Options {
            endpoints,
            connecting: Connecting {
                tls: Some(Arc::new(move || calls.current().client)),
                keep_alive_time: spell(flags.dial_keepalive_time),
                keep_alive_timeout: flags.dial_keepalive_timeout.length(),
                keep_alive_idle: flags.permit_without_stream,
                connect_timeout: None,
            },
            namespace: flags.namespace.clone(),
            sizes: MessageSizes {
                send_max: size(flags.max_send_bytes, SEND_BYTES),
                receive_max: size(flags.max_recv_bytes, i32::MAX as usize),
            },
            ordering: flags.experimental_serializable_ordering,
            advertised: flags.advertise_client_url.clone(),
            registered: Some((flags.resolver_prefix.clone(), flags.resolver_ttl)).filter(|(p, _)| !p.is_empty()),
            sync: spell(flags.endpoints_auto_sync_interval).map(|every| (every, has_tls)),
            logs_calls: flags.experimental_enable_grpc_logging,
        },
        client,
        metrics,
        tls,
        streams_max: flags.max_concurrent_streams,
        keep_alive: (spell(flags.grpc_keepalive_interval), flags.grpc_keepalive_timeout.length()),
        ping_min_time: spell(flags.grpc_keepalive_min_time).unwrap_or(PING_MIN_TIME),
        profiles: flags.enable_pprof,
        set: flags.changed().map(flags::Spec::name).collect(),
    })
}

/// The files of the listeners.
fn listening(flags: &Flags) -> Files {
    Files {
        flags: ["--cert-file", "--key-file", "--trusted-ca-file", "--client-crl-file", "", ""],
        cert: path(&flags.cert_file),
        key: path(&flags.key_file),
        trusted_ca: path(&flags.trusted_ca_file),
        crl: path(&flags.client_crl_file),
        own_cert: None,
        own_key: None,
        asks_client: !flags.trusted_ca_file.is_empty(),
        names_client: false,
        allowed: Allowed::Anyone,
        auto: flags.auto_tls,
        calls: false,
    }
}

/// The files for calls to members.
fn calling(flags: &Flags) -> Files {
    Files {
        flags: ["", "", "--cacert", "", "--cert", "--key"],
        cert: None,
        key: None,
        trusted_ca: path(&flags.cacert),
        crl: None,
        own_cert: path(&flags.cert),
        own_key: path(&flags.key),
        asks_client: false,
        names_client: false,
        allowed: Allowed::Anyone,
        auto: false,
        calls: true,
    }
}

/// What is needed to call members by TLS, if a flag asks for it.
fn caller(flags: &Flags) -> Result<Option<Arc<Material>>, String> {
    if [&flags.cert, &flags.key, &flags.cacert].iter().all(|f| f.is_empty()) && !flags.insecure_skip_tls_verify {
        return Ok(None);
    }
    if flags.cert.is_empty() != flags.key.is_empty() {
        return Err(format!("KeyFile and CertFile must both be present[key: {}, cert: {}]", flags.key, flags.cert));
    }
    let material = Material::open(calling(flags), Params::new("", "", &[])?, flags.insecure_skip_tls_verify)?;
    // Members would take its common name for the user of every client without a token.
    let shown = path(&flags.cert).and_then(|path| CertificateDer::from_pem_file(path).ok());
    if let Some(name) = shown.as_ref().and_then(certificate::common_name).filter(|name| !name.is_empty()) {
        return Err(format!("cert has non empty Common Name ({name}): {}", flags.cert));
    }
    if flags.insecure_skip_tls_verify {
        tracing::warn!(
            "--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd server TLS \
             certificates. This option should be enabled only for testing purposes."
        );
    }
    Ok(Some(material))
}

fn path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|p| !p.as_os_str().is_empty())
}

/// An address to listen at. Without a host it is all of this machine's.
fn resolve(flag: &str, text: &str) -> Result<SocketAddr, String> {
    if !text.contains(':') {
        return Err(format!("listen tcp: address {text}: missing port in address ({flag})"));
    }
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    let found = full.to_socket_addrs().map_err(|e| format!("{flag}: {text}: {e}"))?.next();
    found.ok_or_else(|| format!("{flag}: {text} has no address"))
}

fn metrics_place(text: &str, has_tls: bool) -> Result<Place, String> {
    let url = Url::parse(text).map_err(|e| format!("cannot parse {text:?} (--metrics-addr): {e}"))?;
    let secure = url.scheme.is_secure();
    if secure && !has_tls {
        return Err(format!("--metrics-addr: {url} needs --cert-file and --key-file, or --auto-tls"));
    }
    let address = match url.host_port() {
        Some(_) => Address::Tcp(resolve("--metrics-addr", &url.place)?),
        None => Address::Unix(PathBuf::from(&url.place)),
    };
    Ok(Place { address, plain: !secure, secure })
}

async fn serve(plan: Plan) -> Result<(), String> {
    ignore_habits();
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut term), Ok(mut int)) = signals else { return Err("cannot listen for signals".to_owned()) };
    let connections_max = listen::connections_max()?;
    let bind = |flag: &str, place: &Place| listen::bind(flag, std::slice::from_ref(place), false);
    let client = bind("--listen-addr", &plan.client)?;
    let metrics = plan.metrics.as_ref().map_or(Ok(Vec::new()), |place| bind("--metrics-addr", place))?;
    tracing::info!(address = %plan.client.address, flags = plan.set.join(","), "listening for gRPC proxy client requests");
    let proxy = Proxy::start(plan.options)?;
    let service = |router: axum::Router| Service {
        kind: "client",
        router: router.clone(),
        secure_router: router,
        tls: Some(plan.tls.clone()),
        compares_address: false,
        streams_max: plan.streams_max,
        connections_max,
        keep_alive: plan.keep_alive,
        ping_min_time: Some(plan.ping_min_time),
        secure_ping_min_time: Some(plan.ping_min_time),
        under_way: listen::no_calls(),
    };
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let spawn = |sockets: Vec<Socket>, service: Service| {
        for socket in sockets {
            tasks.spawn(listen::serve(socket, service.clone(), stop.clone()));
        }
    };
    let pages =
        |router: axum::Router| if plan.profiles { router.merge(ferretcd_api::profiles_router()) } else { router };
    spawn(client, service(pages(proxy.router())));
    spawn(metrics, service(proxy.metrics_router()));
    tracing::info!(address = %plan.client.address, "started gRPC proxy");
    notify::tell("READY=1");
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    notify::tell("STOPPING=1");
    tracing::info!("received a signal, shutting down");
    // First from the list, so that no client is sent here any more.
    proxy.stop().await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(args: &[&str]) -> Result<Plan, String> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        check(&settings::read(&args)?.ok_or("help")?)
    }

    #[test]
    fn flags_that_etcds_proxy_refuses_are_refused_in_its_words() {
        for (args, error) in [
            (vec!["--resolver-prefix=x"], "invalid resolver-ttl 0"),
            (vec!["--resolver-ttl=5"], "invalid resolver-prefix \"\""),
            (
                vec!["--resolver-prefix=x", "--resolver-ttl=5", "--advertise-client-url="],
                "invalid advertise-client-url \"\"",
            ),
            (
                vec!["--auto-tls", "--self-signed-cert-validity=0"],
                "selfSignedCertValidity is invalid,it should be greater than 0",
            ),
            (
                vec!["--tls-min-version=x"],
                "tls-min-version is invalid: unexpected TLS version \"x\" (must be one of: TLS1.2, TLS1.3)",
            ),
            (
                vec!["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (vec!["--cert=x"], "KeyFile and CertFile must both be present[key: , cert: x]"),
        ] {
            assert_eq!(checked(&args).map(drop).unwrap_err(), error);
        }
    }

    #[test]
    fn other_bad_values_name_the_flag_and_the_way_out() {
        for (args, words) in [
            (vec!["--listen-addr=foo"], vec!["address foo", "missing port", "--listen-addr"]),
            (vec!["--endpoints=ftp://x:1"], vec!["--endpoints", "ftp://x:1", "use host:port"]),
            (vec!["--endpoints="], vec!["--endpoints"]),
            (vec!["--metrics-addr=127.0.0.1:1"], vec!["cannot parse \"127.0.0.1:1\"", "--metrics-addr"]),
            (vec!["--metrics-addr=https://127.0.0.1:1"], vec!["--metrics-addr", "--cert-file"]),
            (vec!["--experimental-leasing-prefix=x"], vec!["--experimental-leasing-prefix"]),
            (vec!["--cacert=/nowhere"], vec!["--cacert", "/nowhere"]),
            (vec!["--trusted-ca-file=/nowhere"], vec!["--trusted-ca-file", "--cert-file"]),
        ] {
            let error = checked(&args).map(drop).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_defaults_are_etcds() {
        let plan = checked(&[]).unwrap();
        assert_eq!(plan.client.address.to_string(), "127.0.0.1:23790");
        assert!(plan.client.plain && !plan.client.secure && plan.metrics.is_none());
        assert_eq!(plan.options.advertised, "127.0.0.1:23790");
        assert_eq!(plan.options.endpoints[0].text, "127.0.0.1:2379");
        assert_eq!(plan.options.connecting.keep_alive_time, None);
        assert_eq!(plan.keep_alive, (Some(Duration::from_secs(7200)), Duration::from_secs(20)));
    }
}
