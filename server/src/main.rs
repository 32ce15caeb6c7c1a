//! `ferretcd`: a member of an etcd-compatible cluster, and its offline verbs.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod auth_token;
mod cli;
mod commands;
mod config;
mod config_file;
mod discovery;
mod flags;
mod listen;
mod notify;
mod runtime;
mod serve;
mod telemetry;
mod tls;

use std::path::PathBuf;
use std::process::ExitCode;

use commands::output;

/// glibc's allocator took a fifth of the CPU time of puts (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    telemetry::abort_on_panic();
    let mut args = std::env::args_os();
    // By this name it is etcd's tool for files.
    let name = args.next().map(PathBuf::from).filter(|name| name.file_name().is_some_and(|name| name == "etcdutl"));
    let args = name.map(|_| "etcdutl".into()).into_iter().chain(args);
    match cli::parse(args, std::env::vars_os()) {
        Ok(cli::Action::Print(text)) => output::answer(&text),
        Ok(cli::Action::Offline(verb, format)) => commands::offline::run(&verb, format),
        Ok(cli::Action::GrpcProxy(words)) => commands::grpc_proxy::run(&words),
        Ok(cli::Action::Serve(settings)) => serve::main(&settings),
        Err(refusal) if refusal.code == 1 => serve::refuse(&refusal.text, 1),
        Err(refusal) => output::refuse(&refusal.text, refusal.code),
    }
}
