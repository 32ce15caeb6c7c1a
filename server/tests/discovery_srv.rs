//! Stories of `--discovery-srv`: members that DNS names, with a small DNS server in a network of the test's own, and real
//! etcd in the same one, which must find the same members with the same IDs and fail in the same words.

use crate::support::{Member, etcd_tool, eventually};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::cluster_client::ClusterClient;
use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set where the test runs again within its own network.
const WITHIN: &str = "FERRETCD_TEST_WITHIN";

/// Runs a story of this file again where port 53 and `/etc/resolv.conf` are its own. False if that needs rights that are
/// not there.
fn runs_within(name: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: a network namespace needs root");
        return false;
    }
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("resolv.conf");
    fs::write(&conf, "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n").unwrap();
    let script = "ip link set lo up && mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", script])
        .arg(&conf)
        .arg(std::env::current_exe().unwrap())
        .args([&format!("discovery_srv::{name}"), "--exact", "--nocapture"])
        .env(WITHIN, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} within its own network: {status}");
    true
}

/// Answers for names below `ferret.test`: addresses of `a` to `d`, records of services.
fn serve_dns() {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&answer(&buffer[..n]), from);
        }
    });
}

fn answer(query: &[u8]) -> Vec<u8> {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let len = query[at] as usize;
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + len]).to_lowercase());
        at += len + 1;
    }
    let name = labels.join(".");
    let (kind, end) = (u16::from_be_bytes([query[at + 1], query[at + 2]]), at + 5);
    let target = |host: &str, port: u16| {
        let mut data = vec![0, 10, 0, 10];
        data.extend(port.to_be_bytes());
        for label in [host, "ferret", "test"] {
            data.push(label.len() as u8);
            data.extend(label.as_bytes());
        }
        data.push(0);
        data
    };
    const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
    let host = HOSTS.iter().position(|h| name == format!("{h}.ferret.test"));
    let records: Option<Vec<Vec<u8>>> = match (name.as_str(), kind) {
        ("_etcd-server._tcp.ferret.test", 33) => Some(["a", "b", "c"].map(|h| target(h, 2380)).into()),
        // One name that leads nowhere, and one member.
        ("_etcd-server-some._tcp.ferret.test", 33) => Some(["gone", "a"].map(|h| target(h, 2380)).into()),
        ("_etcd-client._tcp.ferret.test", 33) => Some(vec![target("a", 2379)]),
        ("_etcd-server-ssl-tls._tcp.ferret.test", 33) => Some(vec![target("a", 2380)]),
        (_, 1) => host.map(|at| vec![vec![127, 0, 0, at as u8 + 1]]),
        _ => host.map(|_| Vec::new()),
    };
    let mut text = query[..2].to_vec();
    text.extend([0x84, if records.is_some() { 0x80 } else { 0x83 }, 0, 1, 0]);
    text.push(records.as_ref().map_or(0, Vec::len) as u8);
    text.extend([0; 4]);
    text.extend(&query[12..end]);
    for data in records.into_iter().flatten() {
        text.extend([0xc0, 12]);
        text.extend(kind.to_be_bytes());
        text.extend([0, 1, 0, 0, 0, 60]);
        text.extend((data.len() as u16).to_be_bytes());
        text.extend(data);
    }
    text
}

fn programs() -> [PathBuf; 2] {
    [env!("CARGO_BIN_EXE_ferretcd").into(), etcd_tool("etcd")]
}

fn command(program: &Path, dir: &Path, name: &str, host: u8, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(dir).args([
        format!("--name={name}"),
        format!("--data-dir={}", dir.join(name).display()),
        format!("--listen-client-urls=http://127.0.0.{host}:2379"),
        format!("--advertise-client-urls=http://127.0.0.{host}:2379"),
        format!("--listen-peer-urls=http://127.0.0.{host}:2380"),
        format!("--initial-advertise-peer-urls=http://127.0.0.{host}:2380"),
    ]);
    command.args(args);
    command
}

/// Who serves clients at this address, with a folder of its own for the log.
fn place(client: &str, dir: &Path, name: &str) -> Member {
    let root = dir.join(format!("{name}-log"));
    fs::create_dir_all(&root).unwrap();
    Member::at(client, &root)
}

/// Names, IDs and peer URLs of the members, and the cluster's ID.
async fn members(member: &Member) -> Result<(u64, BTreeMap<String, (u64, Vec<String>)>), String> {
    let mut cluster = ClusterClient::new(member.channel().await);
    let list = cluster.member_list(pb::MemberListRequest { linearizable: true }).await;
    let list = list.map_err(|e| e.to_string())?.into_inner();
    let members = list.members.into_iter().map(|m| (m.name, (m.id, m.peer_ur_ls))).collect();
    Ok((list.header.unwrap().cluster_id, members))
}

#[tokio::test]
async fn members_find_each_other_by_dns() {
    if std::env::var_os(WITHIN).is_none() {
        runs_within("members_find_each_other_by_dns");
        return;
    }
    serve_dns();
    let mut seen = Vec::new();
    for program in programs() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster: Vec<Member> = Vec::new();
        for (host, name) in [(1, "m1"), (2, "m2"), (3, "m3")] {
            let mut member = place(&format!("127.0.0.{host}:2379"), dir.path(), name);
            member.start_as(command(&program, dir.path(), name, host, &["--discovery-srv=ferret.test"]));
            cluster.push(member);
        }
        let found = eventually("all members are there", async || {
            let found = members(&cluster[0]).await?;
            let known = ["m1", "m2", "m3"].iter().all(|name| found.1.contains_key(*name));
            if known { Ok(found) } else { Err(format!("{found:?}")) }
        })
        .await;
        assert_eq!(found.1["m2"].1, ["http://b.ferret.test:2380"]);
        // What DNS says is for the first start alone.
        let first = &mut cluster[0];
        first.kill();
        first.start_as(command(&program, dir.path(), "m1", 1, &["--discovery-srv=nowhere.test"]));
        assert_eq!(eventually("it runs again", async || members(first).await).await, found);
        seen.push(found);
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_name_in_the_list_may_stand_for_the_advertised_address() {
    if std::env::var_os(WITHIN).is_none() {
        runs_within("a_name_in_the_list_may_stand_for_the_advertised_address");
        return;
    }
    serve_dns();
    for args in [
        &["--initial-cluster=m=http://d.ferret.test:2380"][..],
        &["--discovery-srv=ferret.test", "--discovery-srv-name=some"],
    ] {
        let host = if args.len() == 1 { 4 } else { 1 };
        let mut seen = Vec::new();
        for program in programs() {
            let dir = tempfile::tempdir().unwrap();
            let mut member = place(&format!("127.0.0.{host}:2379"), dir.path(), "m");
            member.start_as(command(&program, dir.path(), "m", host, args));
            seen.push(eventually("it serves", async || members(&member).await).await);
        }
        assert_eq!(seen[0], seen[1], "{args:?}");
    }
}

#[tokio::test]
async fn a_proxy_finds_its_endpoints_by_dns() {
    if std::env::var_os(WITHIN).is_none() {
        runs_within("a_proxy_finds_its_endpoints_by_dns");
        return;
    }
    serve_dns();
    let dir = tempfile::tempdir().unwrap();
    let mut member = place("127.0.0.1:2379", dir.path(), "m");
    let [ours, theirs] = programs();
    member.start_as(command(&ours, dir.path(), "m", 1, &["--initial-cluster=m=http://127.0.0.1:2380"]));
    member.ready().await;
    let proxy = |program: &Path, flags: &[&str]| {
        let mut command = Command::new(program);
        command.env_clear().args(["grpc-proxy", "start", "--listen-addr=127.0.0.1:23790", "--endpoints=127.0.0.1:1"]);
        command.args(flags).stdin(Stdio::null());
        command
    };
    let mut before = place("127.0.0.1:23790", dir.path(), "proxy");
    before.start_as(proxy(&ours, &["--discovery-srv=ferret.test", "--insecure-discovery", "--enable-pprof"]));
    eventually("a put goes through", async || before.put("k", "v").await.map_err(|e| e.to_string())).await;
    assert_eq!(before.http("/debug/pprof/cmdline").await.0, 200);
    before.kill();
    let told = [ours, theirs].map(|program| {
        let output = proxy(&program, &["--discovery-srv=nowhere.test"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().find(|line| line.starts_with("dns lookup errors")).unwrap_or_else(|| panic!("{text}")).to_owned()
    });
    assert_eq!(told[0], told[1]);
}

#[tokio::test]
async fn what_dns_does_not_say_ends_the_start_in_etcds_words() {
    if std::env::var_os(WITHIN).is_none() {
        runs_within("what_dns_does_not_say_ends_the_start_in_etcds_words");
        return;
    }
    serve_dns();
    for (host, args) in [
        (1, &["--discovery-srv=nowhere.test"][..]),
        (9, &["--discovery-srv=ferret.test"]),
        (1, &["--discovery-srv=ferret.test", "--discovery-srv-name=tls"]),
        (1, &["--discovery-srv=ferret.test", "--discovery-srv-name=none"]),
    ] {
        let told = programs().map(|program| {
            let dir = tempfile::tempdir().unwrap();
            let output = command(&program, dir.path(), "m", host, args).stdin(Stdio::null()).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            let text = log.split_once("error setting up initial cluster: ").unwrap_or_else(|| panic!("{log}")).1;
            // The end of the field, or of the line.
            text.split("\",\"").next().unwrap().split("\"}").next().unwrap().to_owned()
        });
        assert!(!told[0].is_empty());
        assert_eq!(told[0], told[1], "{args:?}");
    }
}
