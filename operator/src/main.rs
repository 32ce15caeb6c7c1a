//! The binary: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser;
use ferretcd_operator::cli::Cli;

fn main() -> ExitCode {
    ferretcd_operator::run(Cli::parse())
}
