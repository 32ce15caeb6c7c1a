//! The files and commands of `docs/operating` that people copy, run as they stand: only addresses and folders are put in
//! their places, and the program is found by its second name, `etcd`.

use crate::support::{Cluster, Member, PATIENCE, etcd_tool, eventually, finished, free_address};
use serde_yaml::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating").join(path)).unwrap()
}

/// The program by its second name, as in the image.
fn second_name(dir: &Path) -> PathBuf {
    let path = dir.join("etcd");
    symlink(env!("CARGO_BIN_EXE_ferretcd"), &path).unwrap();
    path
}

fn replace(text: &str, places: &[(String, String)]) -> String {
    places.iter().fold(text.to_owned(), |text, (place, what)| text.replace(place, what))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compose_file_makes_three_members_that_keep_their_data() {
    let mut file: Value = serde_yaml::from_str(&document("examples/compose.yaml")).unwrap();
    file.apply_merge().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let program = second_name(dir.path());
    let mut members = Vec::new();
    let mut hosts = Vec::new();
    for (name, service) in file["services"].as_mapping().unwrap() {
        let name = name.as_str().unwrap();
        let member = Member::new(name, dir.path());
        hosts.push((format!("{name}:2379"), member.client.clone()));
        hosts.push((format!("{name}:2380"), member.peer.clone()));
        members.push((member, service.clone()));
    }
    assert_eq!(members.len(), 3);
    let commands: Vec<Vec<String>> = members
        .iter()
        .map(|(member, service)| {
            assert_eq!(service["image"], "ferretcd.io/ferretcd:dev");
            let volume = format!("{}:/var/lib/etcd", member.name);
            assert_eq!(service["volumes"][0], volume.as_str());
            assert!(file["volumes"].get(&member.name).is_some());
            let mut places = hosts.clone();
            places.push(("0.0.0.0:2379".to_owned(), member.client.clone()));
            places.push(("0.0.0.0:2380".to_owned(), member.peer.clone()));
            places.push(("/var/lib/etcd".to_owned(), member.dir.display().to_string()));
            replace(service["command"].as_str().unwrap(), &places).split_whitespace().map(str::to_owned).collect()
        })
        .collect();
    assert_eq!(members[0].1["ports"][0], "2379:2379");
    let start = |member: &mut Member, words: &[String]| {
        assert_eq!(words[0], "etcd");
        let mut command = Command::new(&program);
        command.args(&words[1..]).env_clear();
        member.start_as(command);
    };
    let mut members: Vec<Member> = members.into_iter().map(|(member, _)| member).collect();
    for (member, words) in members.iter_mut().zip(&commands) {
        start(member, words);
    }
    for member in &members {
        member.ready().await;
    }
    members[0].put("k", "v").await.unwrap();
    assert_eq!(members[2].etcdctl(&["get", "k", "--print-value-only"]).unwrap(), "v\n");
    // `docker compose down`, then `up`.
    for member in &mut members {
        member.kill();
    }
    for (member, words) in members.iter_mut().zip(&commands) {
        start(member, words);
    }
    for member in &members {
        member.ready().await;
        assert_eq!(member.get("k", false).await.unwrap().as_deref(), Some("v"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unit_and_its_variables_start_three_hosts() {
    let unit = document("examples/etcd.service");
    for line in [
        "Type=notify",
        "User=etcd",
        "EnvironmentFile=/etc/etcd/etcd.env",
        "ExecStart=/usr/local/bin/etcd",
        "Restart=always",
        "LimitNOFILE=65536",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line}");
    }
    let variables = document("examples/etcd.env");
    let dir = tempfile::tempdir().unwrap();
    let program = second_name(dir.path());
    let mut hosts: Vec<(Member, String)> = Vec::new();
    let mut places = Vec::new();
    for number in 1..=3 {
        let member = Member::new(&format!("etcd-{number}"), dir.path());
        places.push((format!("10.0.0.{number}:2379"), member.client.clone()));
        places.push((format!("10.0.0.{number}:2380"), member.peer.clone()));
        hosts.push((member, free_address()));
    }
    let mut sockets = Vec::new();
    for (number, (member, local)) in (1..).zip(&mut hosts) {
        let socket = dir.path().join(format!("notify{number}"));
        let notified = UnixDatagram::bind(&socket).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut own = places.clone();
        own.push(("127.0.0.1:2379".to_owned(), local.clone()));
        own.push(("/var/lib/etcd".to_owned(), member.dir.display().to_string()));
        let mut command = Command::new(&program);
        command.env_clear().env("NOTIFY_SOCKET", &socket);
        for line in variables.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (name, value) = line.split_once('=').unwrap();
            // What the comment says: the others differ in the name and in their own address.
            let value = match name {
                "ETCD_INITIAL_CLUSTER" => value.to_owned(),
                "ETCD_NAME" => value.replace("etcd-1", &member.name),
                _ => value.replace("10.0.0.1:", &format!("10.0.0.{number}:")),
            };
            command.env(name, replace(&value, &own));
        }
        member.start_as(command);
        sockets.push(notified);
    }
    for notified in &sockets {
        let mut text = [0; 64];
        let length = notified.recv(&mut text).unwrap();
        assert_eq!(&text[..length], b"READY=1");
    }
    hosts[0].0.put("k", "v").await.unwrap();
    for (_, local) in &hosts {
        assert_eq!(Member::at(local, dir.path()).get("k", false).await.unwrap().as_deref(), Some("v"));
    }
}

/// Each block of commands of the page in one shell, in its order, on the cluster that they speak of.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_work() {
    let cluster = Cluster::start(&["one", "two", "three"]).await;
    let page = document("running-a-cluster.md");
    // What runs in the background would keep the test waiting when something fails.
    let mut script = String::from("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n");
    let mut shell = false;
    for line in page.lines() {
        match line {
            "```sh" => shell = true,
            "```" => shell = false,
            _ if shell => script = format!("{script}{line}\n"),
            _ => {}
        }
    }
    assert!(script.lines().count() > 30, "the page has commands");
    let endpoints: Vec<&str> = cluster.members.iter().map(|m| m.client.as_str()).collect();
    let tools = etcd_tool("etcdctl");
    let path = format!("{}:{}", tools.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let places = [
        ("127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379".to_owned(), endpoints.join(",")),
        ("127.0.0.1:12379".to_owned(), endpoints[0].to_owned()),
    ];
    // Those of the README, whose members people have at this point.
    assert!(include_str!("../../README.md").contains(&places[0].0));
    let mut command = Command::new("timeout");
    command
        .args(["100", "bash", "-c", &replace(&script, &places)])
        .env_clear()
        .env("PATH", path)
        .current_dir(cluster.tmp.path());
    let said = finished(command.output().unwrap()).unwrap();
    for part in
        ["hello", "is healthy", "[+]linearizable_read ok", "etcd_server_has_leader 1", "Snapshot saved", "SUCCESS"]
    {
        assert!(said.contains(part), "no {part}: {said}");
    }
}

/// "Unhealthy right after start": a line names the member that cannot be reached, and why.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_reaches_nobody_says_whom_and_why() {
    let mut cluster = Cluster::new(&["one", "two", "three"]);
    cluster.members[0].start();
    let (member, away) = (&cluster.members[0], &cluster.members[1]);
    eventually("it complains", async || {
        let log = member.log();
        let line = log.lines().find(|line| line.contains(&away.peer_url()) && line.contains("refused"));
        line.map(drop).ok_or(log)
    })
    .await;
}

/// "Cluster can't form": who was told of other members, or of another token, says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_told_of_another_cluster_says_so() {
    for different in ["token", "members"] {
        let mut cluster = Cluster::new(&["one", "two", "three"]);
        let elsewhere = cluster.members[0].peer.clone();
        let odd = &mut cluster.members[2];
        match different {
            "token" => odd.flags.push("--initial-cluster-token=other".to_owned()),
            _ => odd.flags[0] = odd.flags[0].replace(&elsewhere, &free_address()),
        }
        cluster.members.iter_mut().for_each(Member::start);
        let odd = &cluster.members[2];
        eventually("the odd one complains", async || {
            let log = odd.log();
            let line = log.lines().find(|line| line.contains("check --initial-cluster and --initial-cluster-token"));
            line.map(drop).ok_or(log)
        })
        .await;
    }
}
