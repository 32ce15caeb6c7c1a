//! The operator's hands: what it sees of Kubernetes and of etcd, and what it does to them. The decisions are in
//! `ferretcd-operator-plan`; only `observe` reads the cluster, only `act` writes to it. The same binary is the agent that runs
//! inside backup and restore Jobs.

pub mod act;
pub mod admin;
pub mod agent;
pub mod cause;
pub mod cli;
pub mod controller;
pub mod kube_error;
pub mod members;
pub mod metrics;
pub mod observe;
pub mod rbac;
pub mod reconcile;
pub mod serve;
pub mod telemetry;
pub mod yaml;

use std::{future::Future, io::Write, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

use crate::cli::{Cli, Command};

/// Runs one command; the exit code is 0 when it has achieved what it is for.
pub fn run(cli: Cli) -> ExitCode {
    telemetry::init(cli.log_format, &cli.log_level);
    // kube and object_store take the process's default provider. A second call in one process is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "cannot start the async runtime");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        match cli.command {
            Command::Run(args) => match serve::run(args, terminated()).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    error!("{error:#}");
                    ExitCode::FAILURE
                }
            },
            Command::Backup(args) => agent::run(&args.report, agent::backup::run(&args, terminated())).await,
            Command::Restore(args) => agent::run(&args.report, agent::restore::run(&args, terminated())).await,
            Command::Prune(args) => agent::run(&args.report, agent::prune::run(&args, terminated())).await,
            Command::Crd => print_crds(),
        }
    })
}

/// Prints the definitions of our kinds, for `kubectl apply -f -`.
fn print_crds() -> ExitCode {
    match yaml::documents(&ferretcd_operator_api::crds()) {
        Ok(text) => {
            // A reader that has seen enough (`| head`) is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(%error, "cannot write the definitions as YAML");
            ExitCode::FAILURE
        }
    }
}

/// Resolves when the process is asked to end. Where no handler can be installed it never does, and the default of the
/// signal (to end at once) stays in force.
pub fn terminated() -> impl Future<Output = ()> + Send + 'static {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        match signals {
            (Ok(mut terminate), Ok(mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            _ => std::future::pending().await,
        }
    }
}
