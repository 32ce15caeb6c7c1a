//! `ferretcd snapshot status`: what a snapshot file holds, and whether it is whole.

use crate::cli::SnapshotCommand;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

/// Runs an offline verb.
pub fn run(command: &SnapshotCommand) -> ExitCode {
    let SnapshotCommand::Status { file, write_out } = command;
    match status(file, write_out) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("ferretcd: {e}");
            ExitCode::FAILURE
        }
    }
}

fn status(path: &Path, write_out: &str) -> Result<String, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(|e| failed(&e))?;
    let summary = ferretcd_bolt::File::open(file, ferretcd_bolt::Trailer::Verify)
        .and_then(|f| f.summary())
        .map_err(|e| failed(&e))?;
    let version = summary.version.unwrap_or_default();
    match write_out {
        "simple" => Ok(format!(
            "{:x}, {}, {}, {}, {}",
            summary.hash, summary.revision, summary.total_keys, summary.total_size, version
        )),
        "json" => Ok(format!(
            "{{\"hash\":{},\"revision\":{},\"totalKey\":{},\"totalSize\":{},\"version\":\"{}\"}}",
            summary.hash, summary.revision, summary.total_keys, summary.total_size, version
        )),
        other => Err(format!("unknown output format {other:?}: use simple or json")),
    }
}
