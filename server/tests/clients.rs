//! What people do with an etcd cluster, through clients that others maintain, on three real members. The programs are in
//! `e2e/clients`; `make test-clients` builds them. Where it matters, the leader is killed in the middle and started again.

use crate::support::http::{Ask, try_ask};
use crate::support::{Cluster, cached, eventually};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

const MADE_BY: &str = "make test-clients";

/// Longest run of one program. Each has a shorter limit of its own, after which it says where it was.
const LONGEST: Duration = Duration::from_secs(120);

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/clients").join(path)
}

fn addresses(cluster: &Cluster) -> String {
    let addresses: Vec<&str> = cluster.members.iter().map(|m| m.client.as_str()).collect();
    addresses.join(",")
}

async fn three() -> Cluster {
    Cluster::start(&["one", "two", "three"]).await
}

/// Three members that keep their leader, also on a machine so busy that it would lose it: these programs give up at a
/// write that fails, as any client would that does not expect it.
async fn calm() -> Cluster {
    let mut cluster = Cluster::new(&["one", "two", "three"]);
    for member in &mut cluster.members {
        member.flags.extend(["--heartbeat-interval=300", "--election-timeout=3000"].map(str::to_owned));
        member.start();
    }
    for member in &cluster.members {
        member.ready().await;
    }
    cluster
}

/// How the leader is lost.
#[derive(Clone, Copy, Debug)]
enum Lost {
    Killed,
    /// As in each rolling update.
    Stopped,
}

/// Runs a program to its end. For each line `disturb` that it says, the leader is lost and started again, and the
/// program is told when that is done.
async fn run(cluster: &mut Cluster, what: &str, mut command: Command, lost: Lost) {
    let errors = cluster.tmp.path().join("stderr");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors).unwrap()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = String::new();
    let finished = tokio::time::timeout(LONGEST, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            said = format!("{said}{line}\n");
            if line == "disturb" {
                restart_leader(cluster, lost).await;
                // One that has given up meanwhile does not listen; how it ended is told below.
                let _ = input.write_all(b"\n").await;
            }
        }
        child.wait().await.unwrap()
    })
    .await;
    let said = format!("{said}{}", std::fs::read_to_string(errors).unwrap());
    assert!(finished.is_ok_and(|status| status.success()), "{what}: {said}");
    println!("{what}:\n{said}");
}

/// Ends the leader, waits for another, and starts it again. It asks by what needs no user.
async fn restart_leader(cluster: &mut Cluster, lost: Lost) {
    let leader = leader(cluster).await;
    match lost {
        Lost::Killed => cluster.members[leader].kill(),
        Lost::Stopped => assert_eq!(cluster.members[leader].terminate().await, Some(0)),
    }
    self::leader(cluster).await;
    let member = &mut cluster.members[leader];
    member.start();
    eventually("it is ready again", async || match try_ask(&member.client, &Ask::get("/readyz")).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Position of the one that leads, once all that run have a leader.
async fn leader(cluster: &Cluster) -> usize {
    eventually("one leads", async || {
        let mut leaders = Vec::new();
        for (at, member) in cluster.members.iter().enumerate().filter(|(_, m)| m.runs()) {
            let figures = try_ask(&member.client, &Ask::get("/metrics")).await?.text();
            if !figures.contains("\netcd_server_has_leader 1\n") {
                return Err(format!("{} has no leader", member.name));
            }
            if figures.contains("\netcd_server_is_leader 1\n") {
                leaders.push(at);
            }
        }
        match leaders[..] {
            [leader] => Ok(leader),
            _ => Err(format!("leaders: {leaders:?}")),
        }
    })
    .await
}

fn go(cluster: &Cluster, program: &str, disturb: bool) -> Command {
    let mut command = Command::new(cached("go-clients-3.7.1/go-clients", MADE_BY));
    command.env_clear().arg("-endpoints").arg(addresses(cluster));
    command.arg(format!("-disturb={disturb}")).arg(program);
    command
}

async fn go_calmly(cluster: &mut Cluster, program: &str) {
    let command = go(cluster, program, false);
    run(cluster, program, command, Lost::Killed).await;
}

/// With a leader that is killed, then with one that is stopped.
async fn go_on(program: &str) {
    for lost in [Lost::Killed, Lost::Stopped] {
        let mut cluster = three().await;
        let command = go(&cluster, program, true);
        run(&mut cluster, &format!("{program}, leader {lost:?}"), command, lost).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn patterns_with_etcds_go_client() {
    let mut cluster = calm().await;
    for program in ["discovery", "balance", "config", "pubsub", "flags", "queue", "barrier", "double-barrier", "rwlock"]
    {
        go_calmly(&mut cluster, program).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn all_parts_of_etcds_go_client() {
    let mut cluster = calm().await;
    for program in ["kv", "stm", "leasing", "namespace", "ordering", "mirror", "kubernetes", "upkeep"] {
        go_calmly(&mut cluster, program).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn go_clients_lock_while_the_leader_is_lost() {
    go_on("lock").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn go_clients_elect_while_the_leader_is_lost() {
    go_on("election").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn go_clients_watch_while_the_leader_is_lost() {
    go_on("watch").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn a_go_client_keeps_a_lease_while_the_leader_is_lost() {
    go_on("lease").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn a_go_clients_user_writes_on_while_the_leader_is_lost() {
    go_on("auth").await;
}

async fn python(program: &str) {
    let mut cluster = calm().await;
    let mut command = Command::new(cached("python-clients-1/venv", MADE_BY).join("bin/python"));
    command.env_clear().arg(source("python").join(program)).arg(addresses(&cluster));
    run(&mut cluster, program, command, Lost::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn pythons_aetcd_over_grpc() {
    python("grpc_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn pythons_etcd3gw_over_the_gateway() {
    python("gateway_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn rusts_etcd_client() {
    let mut cluster = calm().await;
    let mut command = Command::new(cached("rust-clients-0.21.1/rust-clients", MADE_BY));
    command.env_clear().arg(addresses(&cluster));
    run(&mut cluster, "etcd-client", command, Lost::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs other people's clients: make test-clients builds them and runs this"]
async fn curl() {
    let mut cluster = calm().await;
    let mut command = Command::new("bash");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.arg(source("curl/recipes.sh")).arg(&cluster.members[1].client);
    run(&mut cluster, "curl", command, Lost::Killed).await;
}
