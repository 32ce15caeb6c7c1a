//! Snapshots of any size in memory of a fixed one: out of a member, into a cluster, and into a data directory.
//! `FERRETCD_SNAPSHOT_MIB` says how large (1024 in `make test-long`).

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::ferretcd_v1::maintenance_client::MaintenanceClient as OwnMaintenanceClient;
use ferretcd_proto::ferretcd_v1::{RestoreOptions, RestoreRequest, restore_request::Request};
use std::io::Read;
use std::process::{Command, Stdio};
use support::{Cluster, Member};
use tonic::transport::Endpoint;

/// The engine's cache and the one before it (256 MiB each), the log's recent entries and its queue (64 MiB each), a
/// commit under way, and the program. None of it grows with the file once they are full: a restore by the call was measured
/// with 971 MiB for a file of 512 MiB, and 1009 MiB for one of 1 GiB.
const MEMORY_MAX: usize = 1280 << 20;

/// A snapshot under way holds a page per level, a record, and a chunk. What else grows meanwhile are the caches.
const SAVE_MAX: usize = 300 << 20;

/// The most that the process ever held.
fn peak_bytes(pid: u32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? << 10)
}

fn peak_of(member: &Member) -> usize {
    peak_bytes(member.pid()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_goes_out_and_in_without_being_in_memory() {
    let mib: usize = std::env::var("FERRETCD_SNAPSHOT_MIB").map_or(48, |text| text.parse().unwrap());
    let mut cluster = Cluster::new(&["from", "to"]);
    for member in &mut cluster.members {
        let own = format!("--initial-cluster={}={}", member.name, member.peer_url());
        member.flags = vec![own, "--quota-backend-bytes=8589934592".to_owned()];
        member.start();
        member.ready().await;
    }
    let from = &cluster.members[0];
    let mut kv = from.kv().await;
    for at in 0..mib {
        // Not to be packed by anyone.
        let mut number = at as u64 + 1;
        let value: Vec<u8> = (0..1 << 20)
            .map(|_| {
                number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (number >> 56) as u8
            })
            .collect();
        let request = pb::PutRequest { key: format!("k{at:05}").into(), value: value.into(), ..Default::default() };
        kv.put(request).await.unwrap();
    }
    let before = peak_of(from);
    let file = cluster.tmp.path().join("large.db");
    // Nothing times out on a slow disk.
    from.etcdctl(&["snapshot", "save", file.to_str().unwrap(), "--command-timeout=30m"]).unwrap();
    let bytes = std::fs::metadata(&file).unwrap().len();
    let after = peak_of(from);
    println!("{} MiB saved: peak {} MiB before, {} MiB after", bytes >> 20, before >> 20, after >> 20);
    assert!(bytes >= (mib as u64) << 20 && after - before < SAVE_MAX, "{before} {after}");

    let to = &cluster.members[1];
    let mut source = std::fs::File::open(&file).unwrap();
    let options = RestoreOptions { revision_bump: None, file_bytes: bytes };
    let (sender, requests) = tokio::sync::mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        sender.blocking_send(RestoreRequest { request: Some(Request::Options(options)) }).unwrap();
        let mut piece = vec![0; 1 << 20];
        loop {
            let n = source.read(&mut piece).unwrap();
            let chunk = RestoreRequest { request: Some(Request::Chunk(Bytes::copy_from_slice(&piece[..n]))) };
            if n == 0 || sender.blocking_send(chunk).is_err() {
                return;
            }
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", to.client)).unwrap();
    let mut client = OwnMaintenanceClient::new(endpoint.connect_lazy());
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    assert_eq!(client.restore(requests).await.unwrap().into_inner().keys, mib as u64);
    println!("restored by the call: peak {} MiB", peak_of(to) >> 20);
    assert!(peak_of(to) < MEMORY_MAX, "{}", peak_of(to));

    let dir = cluster.tmp.path().join("offline");
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferretcd"))
        .env_clear()
        .args(["snapshot", "restore", file.to_str().unwrap(), "--data-dir", dir.to_str().unwrap()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    let status = loop {
        peak = peak_bytes(child.id()).unwrap_or(peak);
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    println!("restored offline: peak {} MiB", peak >> 20);
    assert!(status.success() && peak < MEMORY_MAX, "{status} {peak}");
}
