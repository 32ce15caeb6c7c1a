//! Members that are killed, held still and moved under load, and a judge of everything that their clients saw.
//! `FERRETCD_ROUNDS` (each kills a member, every second one holds one still first) and `FERRETCD_SEED` choose how often and where.

use crate::support::load::{Chance, Load, number};
use crate::support::{Cluster, eventually};
use ferretcd_proto::etcdserverpb as pb;
use ferretcd_proto::etcdserverpb::kv_client::KvClient;
use std::time::Duration;
use tonic::transport::Channel;

async fn disturbed(names: &[&str], rounds: u64, seed: u64) {
    let mut cluster = Cluster::start(names).await;
    let members = cluster.members.iter().map(|m| m.client.clone()).collect();
    let load = Load::start(members, seed, Duration::from_secs(3));
    let mut chance = Chance(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    for round in 0..rounds {
        // Each round has something to lose.
        load.answered(20).await;
        // Mostly whoever leads.
        let any = chance.below(names.len() as u64) as usize;
        let at = if chance.below(3) > 0 { cluster.leader().await } else { any };
        let member = &mut cluster.members[at];
        let pause = Duration::from_millis(100 + chance.below(900));
        // Longer than an election: when it goes on, another leads, and it must not answer from what it was.
        if round % 2 == 1 {
            member.pause();
            tokio::time::sleep(pause + Duration::from_millis(1200)).await;
            member.resume();
            tokio::time::sleep(Duration::from_millis(chance.below(300))).await;
        }
        let at = if chance.below(3) > 0 { cluster.leader().await } else { any };
        let member = &mut cluster.members[at];
        member.kill();
        tokio::time::sleep(pause).await;
        member.start();
        tokio::time::sleep(Duration::from_millis(chance.below(300))).await;
    }
    println!("{}", load.judge(&cluster, rounds as usize * 20).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_killed_and_held_still_lose_nothing_and_serve_nothing_stale() {
    let (rounds, seed) = (number("FERRETCD_ROUNDS", 10), number("FERRETCD_SEED", 1));
    disturbed(&["a", "b", "c"], rounds - rounds / 3, seed).await;
    disturbed(&["a", "b", "c", "d", "e"], rounds / 3, seed).await;
}

async fn read(mut kv: KvClient<Channel>) -> Result<bytes::Bytes, tonic::Status> {
    let answer = kv.range(pb::RangeRequest { key: "k".into(), ..Default::default() }).await?;
    Ok(answer.into_inner().kvs[0].value.clone())
}

/// What waits in its sockets when it goes on is answered by what it was, unless it asks the others first.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_held_still_answers_no_read_from_before() {
    const READS: usize = 50;
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let leader = cluster.leader().await;
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.members[leader].put("k", "old").await.unwrap();
    let kv = cluster.members[leader].kv().await;
    assert_eq!(read(kv.clone()).await.unwrap(), "old");
    let was = cluster.members[leader].status().await.unwrap().leader;
    cluster.members[leader].pause();
    eventually("the others elect", async || {
        let leaders = [cluster.members[other].status().await?.leader, cluster.members[third].status().await?.leader];
        if leaders[0] == leaders[1] && ![0, was].contains(&leaders[0]) { Ok(()) } else { Err(format!("{leaders:x?}")) }
    })
    .await;
    cluster.members[other].put("k", "new").await.unwrap();
    let reads: Vec<_> = (0..READS).map(|_| tokio::spawn(read(kv.clone()))).collect();
    // They are to be in its sockets; those that are late test nothing.
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.members[leader].resume();
    let mut answered = 0;
    for read in reads {
        if let Ok(value) = read.await.unwrap() {
            assert_eq!(value, "new");
            answered += 1;
        }
    }
    println!("{answered} of {READS} reads were answered");
    assert!(answered > 0, "nobody heard an answer: the test tests nothing");
    cluster.members[leader].ready().await;
    assert_eq!(cluster.members[leader].get("k", false).await.unwrap().as_deref(), Some("new"));
}
