//! Verbs on files that no process runs on, with etcdutl's flags and answers where it has them: `snapshot status`,
//! `snapshot verify`, `snapshot restore`, `hashkv`, `defrag`, `inspect`.

use super::output::{self, bytes, table};
use crate::cli::{Format, Offline, Restore, Settings, SnapshotVerb};
use crate::config;
use crate::flags::{self, Flags};
use ferretcd_node::BootConfig;
use ferretcd_node::offline::{self, Inspection, RestoreHow};
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

/// Runs a verb.
pub fn run(verb: &Offline, format: Format) -> ExitCode {
    let done = match verb {
        Offline::Snapshot(SnapshotVerb::Status { file }) => status(file, format),
        Offline::Snapshot(SnapshotVerb::Verify { file }) => verify(file, format),
        Offline::Snapshot(SnapshotVerb::Restore(restore)) => restored(restore),
        Offline::Hashkv { file, rev } => hashkv(file, *rev, format),
        Offline::Defrag { data_dir, wal_dir } => defrag(data_dir, wal_dir),
        Offline::Inspect { path, wal_dir, entries } => inspect(path, wal_dir, *entries, format),
        Offline::Version => Ok(String::new()),
    };
    match done {
        Ok(text) => output::answer(&text),
        Err(e) => output::refuse(&format!("Error: {e}"), 1),
    }
}

/// One answer in all formats; `heads` are a table's, `names` those of fields and JSON.
struct Column {
    head: &'static str,
    field: &'static str,
    key: &'static str,
    value: serde_json::Value,
    /// As people read it, where that differs.
    text: Option<String>,
}

fn column(head: &'static str, field: &'static str, key: &'static str, value: impl Into<serde_json::Value>) -> Column {
    Column { head, field, key, value: value.into(), text: None }
}

fn show(columns: &[Column], format: Format) -> String {
    let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = |column: &Column| column.text.clone().unwrap_or_else(|| plain(&column.value));
    match format {
        Format::Simple => columns.iter().map(text).collect::<Vec<_>>().join(", "),
        Format::Table => table(&columns.iter().map(|c| (c.head, text(c))).collect::<Vec<_>>()),
        Format::Fields => {
            let line = |c: &Column| format!("\"{}\" : {}", c.field, plain(&c.value));
            columns.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        // Keys in this order, as etcdutl has them.
        Format::Json => {
            let pair = |c: &Column| format!("\"{}\":{}", c.key, c.value);
            format!("{{{}}}", columns.iter().map(pair).collect::<Vec<_>>().join(","))
        }
    }
}

fn status(path: &Path, format: Format) -> Result<String, String> {
    let failed = |e: &dyn std::error::Error| format!("{}: {}", path.display(), chain(e));
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => format!("stat {}: no such file or directory", path.display()),
        _ => failed(&e),
    })?;
    // A raw copy of a database has no digest, and etcdutl shows its status, too.
    let is_raw = file.metadata().map_err(|e| failed(&e))?.len() % 512 == 0;
    let trailer = if is_raw { ferretcd_bolt::Trailer::Ignore } else { ferretcd_bolt::Trailer::Verify };
    let summary = ferretcd_bolt::File::open(file, trailer).and_then(|f| f.summary()).map_err(|e| failed(&e))?;
    let columns = [
        Column { text: Some(format!("{:x}", summary.hash)), ..column("HASH", "Hash", "hash", summary.hash) },
        column("REVISION", "Revision", "revision", summary.revision),
        column("TOTAL KEYS", "Keys", "totalKey", summary.total_keys),
        Column {
            text: Some(bytes(summary.total_size)),
            ..column("TOTAL SIZE", "Size", "totalSize", summary.total_size)
        },
        column("VERSION", "Version", "version", summary.version.unwrap_or_default()),
    ];
    Ok(show(&columns, format))
}

fn verify(path: &Path, format: Format) -> Result<String, String> {
    let found = offline::verify(path).map_err(|e| e.to_string())?;
    if format == Format::Simple {
        return Ok(format!(
            "{} is whole: revision {}, {} records of keys, {} leases, {} users, {} roles",
            path.display(),
            found.revision,
            found.keys,
            found.leases,
            found.users,
            found.roles
        ));
    }
    let columns = [
        column("REVISION", "Revision", "revision", found.revision),
        column("RECORDS", "Records", "records", found.keys),
        column("LEASES", "Leases", "leases", found.leases),
        column("USERS", "Users", "users", found.users),
        column("ROLES", "Roles", "roles", found.roles),
    ];
    Ok(show(&columns, format))
}

fn hashkv(path: &Path, revision: i64, format: Format) -> Result<String, String> {
    // As etcdutl says it: there is no server.
    let failed = |e: ferretcd_node::BootError| e.to_string().trim_start_matches("etcdserver: ").to_owned();
    let (hash, compacted, hashed) = offline::hash_kv(path, revision).map_err(failed)?;
    let columns = [
        column("HASH", "Hash", "hash", hash),
        column("HASH REVISION", "Hash revision", "hashRevision", hashed),
        column("COMPACT REVISION", "Compact revision", "compactRevision", compacted),
    ];
    Ok(show(&columns, format))
}

/// A member's settings from these flags, checked as at a start.
fn member(given: &[(&str, &str)]) -> Result<BootConfig, String> {
    let mut settings = Settings { flags: Flags::default(), given: BTreeSet::new(), file: None, notices: Vec::new() };
    for (name, value) in given {
        let spec = flags::find(name).ok_or_else(|| format!("there is no flag --{name}"))?;
        settings.flags.set(spec, value).map_err(|why| format!("invalid value {value:?} for --{name}: {why}"))?;
        settings.given.insert((*name).to_owned());
    }
    Ok(config::check(&settings)?.boot)
}

fn restored(asked: &Restore) -> Result<String, String> {
    if (asked.bump_revision > 0) != asked.mark_compacted {
        // etcd's words, for both.
        return Err("--mark-compacted required if --revision-bump > 0".to_owned());
    }
    let config = member(&[
        ("name", &asked.name),
        ("data-dir", &asked.data_dir),
        ("wal-dir", &asked.wal_dir),
        ("initial-cluster", &asked.initial_cluster),
        ("initial-cluster-token", &asked.initial_cluster_token),
        ("initial-advertise-peer-urls", &asked.initial_advertise_peer_urls),
        ("storage-engine", &asked.storage_engine),
    ])?;
    let bump = Some(asked.bump_revision).filter(|bump| *bump > 0);
    let how = RestoreHow { skip_hash_check: asked.skip_hash_check, bump };
    let made = offline::restore(&config, &asked.file, how).map_err(|e| e.to_string())?;
    Ok(format!(
        "restored member {} of cluster {} at revision {} into {}",
        made.member,
        made.cluster,
        made.revision,
        config.data_dir.display()
    ))
}

fn defrag(data_dir: &str, wal_dir: &str) -> Result<String, String> {
    let config = member(&[("data-dir", data_dir), ("wal-dir", wal_dir)])?;
    let (before, after) =
        offline::defragment(&config).map_err(|e| format!("Failed to defragment etcd data[{data_dir}] ({e})"))?;
    Ok(format!("Finished defragmenting directory {data_dir}: {} before, {} after", bytes(before), bytes(after)))
}

fn inspect(path: &Path, wal_dir: &str, entries: bool, format: Format) -> Result<String, String> {
    if path.is_file() {
        return status(path, format);
    }
    let config = member(&[("data-dir", &path.display().to_string()), ("wal-dir", wal_dir)])?;
    let mut records = Vec::new();
    let found = offline::inspect(&config.data_dir, config.wal_dir.as_deref(), |segment, offset, what| {
        if entries {
            records.push((segment, offset, what));
        }
    });
    let found = found.map_err(|e| e.to_string())?;
    Ok(match format {
        Format::Json => as_json(&found, &records).to_string(),
        _ => as_text(&found, &records),
    })
}

fn as_json(found: &Inspection, records: &[(u32, u64, String)]) -> serde_json::Value {
    let log = &found.log.recovered;
    let position = |term: u64, index: u64| json!({"term": term, "index": index});
    let store = found.store.as_ref().map(|store| {
        let members = store.members.iter().map(|m| {
            json!({
                "id": m.id.to_string(), "name": m.name, "peerURLs": m.peer_urls, "clientURLs": m.client_urls,
                "isLearner": m.is_learner,
            })
        });
        json!({
            "applied": store.applied.map(|pos| position(pos.term, pos.index)),
            "epoch": store.epoch.to_string(), "clusterVersion": store.cluster_version,
            "members": members.collect::<Vec<_>>(),
            "revision": store.revision, "compactRevision": store.compacted, "keys": store.keys,
            "leases": store.leases, "users": store.users.0, "roles": store.users.1, "alarms": store.alarms,
            "logicalBytes": store.logical_bytes, "diskBytes": store.disk_bytes,
        })
    });
    let segments = found.log.segments.iter().map(|segment| {
        json!({
            "file": segment.path.display().to_string(), "bytes": segment.bytes, "usedBytes": segment.used_bytes,
            "nextIndex": segment.next_at_start,
        })
    });
    let listed =
        records.iter().map(|(segment, offset, what)| json!({"segment": segment, "offset": offset, "record": what}));
    json!({
        "clusterID": found.cluster.to_string(), "memberID": found.member.to_string(),
        "format": found.format.as_ref().map(|f| json!({"version": f.version, "engine": f.engine, "createdBy": f.created_by})),
        "log": {
            "firstIndex": log.first_index, "endIndex": log.end_index,
            "last": log.last.map(|pos| position(pos.term, pos.index)),
            "purged": log.purged.map(|pos| position(pos.term, pos.index)),
            "committed": log.committed.map(|pos| position(pos.term, pos.index)),
            "vote": log.vote.map(|vote| json!({
                "term": vote.term, "node": format!("{:x}", vote.node), "committed": vote.committed,
            })),
            "segments": segments.collect::<Vec<_>>(),
            "records": listed.collect::<Vec<_>>(),
        },
        "snapshot": found.snapshot.as_ref().map(|(pos, path, bytes)| json!({
            "last": position(pos.term, pos.index), "file": path.display().to_string(), "bytes": bytes,
        })),
        "store": store.as_ref().ok(),
        "storeError": store.as_ref().err(),
    })
}

fn as_text(found: &Inspection, records: &[(u32, u64, String)]) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<10} {value}");
    };
    line("member", format!("{} of cluster {}", found.member, found.cluster));
    if let Some(format) = &found.format {
        line("format", format!("version {}, engine {}, by {}", format.version, format.engine, format.created_by));
    }
    let log = &found.log.recovered;
    line(
        "log",
        match log.end_index.checked_sub(1).filter(|last| *last >= log.first_index) {
            Some(last) => format!("entries {} to {last}", log.first_index),
            None => "no entries".to_owned(),
        },
    );
    if let Some(pos) = log.last {
        line("", format!("last is {} of term {}", pos.index, pos.term));
    }
    if let Some(pos) = log.purged {
        line("", format!("purged up to {} of term {}", pos.index, pos.term));
    }
    if let Some(pos) = log.committed {
        line("", format!("known to be committed up to {} of term {}", pos.index, pos.term));
    }
    if let Some(vote) = log.vote {
        let leads = if vote.committed { ", who leads" } else { "" };
        line("vote", format!("in term {} for {:x}{leads}", vote.term, vote.node));
    }
    for segment in &found.log.segments {
        let next = segment.next_at_start.map_or_else(String::new, |next| format!(", from entry {next}"));
        let (used, all) = (bytes(segment.used_bytes), bytes(segment.bytes));
        line("segment", format!("{}{next}: {used} of {all} in use", segment.path.display()));
        for (_, offset, what) in records.iter().filter(|(of, _, _)| *of == segment.sequence) {
            line("", format!("at {offset}: {what}"));
        }
    }
    if let Some((pos, path, size)) = &found.snapshot {
        line(
            "snapshot",
            format!("{}: up to entry {} of term {}, {}", path.display(), pos.index, pos.term, bytes(*size)),
        );
    }
    match &found.store {
        Err(why) => line("store", format!("cannot be opened, a start would build it anew: {why}")),
        Ok(store) => {
            let applied = store.applied.map_or_else(
                || "nothing applied".to_owned(),
                |pos| format!("applied up to entry {} of term {}", pos.index, pos.term),
            );
            line("store", format!("{applied}, revision {}, compacted {}", store.revision, store.compacted));
            line(
                "",
                format!(
                    "{} keys, {} leases, {} users, {} roles, {} alarms",
                    store.keys, store.leases, store.users.0, store.users.1, store.alarms
                ),
            );
            line("", format!("{} of records, {} of files", bytes(store.logical_bytes), bytes(store.disk_bytes)));
            let version = store.cluster_version.clone().unwrap_or_else(|| "undecided".to_owned());
            line("cluster", format!("version {version}, epoch {}", store.epoch));
            for m in &store.members {
                let learner = if m.is_learner { ", a learner" } else { "" };
                line("", format!("{} {}{learner}: {}", m.id, m.name, m.peer_urls.join(",")));
            }
        }
    }
    out.trim_end().to_owned()
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        let _ = write!(text, ": {e}");
        cause = e.source();
    }
    text
}
