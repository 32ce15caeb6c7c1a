//! The door for other members: whoever belongs to another cluster, or to another history of this one, is refused in each call.

use crate::support::{Cluster, Member};
use ferretcd_proto::peer::peer_server::SERVICE_NAME;
use ferretcd_proto::peer::{ProbeRequest, ProbeResponse, peer_client::PeerClient};
use std::time::Duration;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// Where the calls are listed, so that none can be forgotten here.
const SERVICE: &str = include_str!("../../proto/proto/ferretcd_peer.proto");

/// All that a caller must be known for: a probe is answered to anyone.
fn calls() -> Vec<&'static str> {
    let names = SERVICE.lines().filter_map(|line| Some(line.trim().strip_prefix("rpc ")?.split_once('(')?.0));
    names.filter(|name| *name != "Probe").collect()
}

async fn channel(member: &Member) -> Channel {
    // For the asked member's snapshot, which it writes first.
    let endpoint = Endpoint::from_shared(member.peer_url()).unwrap().timeout(Duration::from_secs(30));
    endpoint.connect().await.unwrap()
}

/// What the member tells anyone of itself.
async fn probed(member: &Member) -> ProbeResponse {
    PeerClient::new(channel(member).await).probe(ProbeRequest::default()).await.unwrap().into_inner()
}

/// Makes a call with one message in which no field is set, which is one of every call, and waits for the first answer.
async fn call(member: &Member, name: &str, proof: &[(&'static str, u64)]) -> Result<(), Status> {
    let mut request = Request::new(futures::stream::iter([()]));
    for (key, value) in proof {
        request.metadata_mut().insert(*key, (*value).into());
    }
    let mut grpc = Grpc::new(channel(member).await);
    grpc.ready().await.unwrap();
    let path = format!("/{SERVICE_NAME}/{name}").parse().unwrap();
    let answers = grpc.streaming(request, path, ProstCodec::<(), ()>::default()).await?;
    answers.into_inner().message().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_in_every_call_of_the_peer_service() {
    let cluster = Cluster::start(&["solo"]).await;
    let solo = &cluster.members[0];
    let who = probed(solo).await;
    // A member that calls itself: nobody else is there.
    let proof = |cluster_id: u64, epoch: u64, to: u64| {
        [
            ("ferretcd-cluster-id", cluster_id),
            ("ferretcd-epoch", epoch),
            ("ferretcd-from", who.member_id),
            ("ferretcd-to", to),
        ]
    };
    let other = |number: u64| number.wrapping_add(1);
    let strangers = [
        (proof(other(who.cluster_id), who.epoch, who.member_id), "belongs to cluster"),
        (proof(who.cluster_id, other(who.epoch), who.member_id), "has the history of epoch"),
        (proof(who.cluster_id, who.epoch, other(who.member_id)), "looked for member"),
    ];
    let calls = calls();
    assert!(calls.contains(&"Vote") && calls.contains(&"FetchSnapshot"), "{calls:?}");
    for name in &calls {
        for (proof, why) in &strangers {
            let refused =
                call(solo, name, proof).await.expect_err(&format!("{name} is answered though its caller {why} ..."));
            assert_eq!(refused.code(), Code::FailedPrecondition, "{name}: {refused}");
            assert!(refused.message().contains(why), "{name}: {refused}");
        }
        let unknown =
            call(solo, name, &[]).await.expect_err(&format!("{name} is answered though its caller is unknown"));
        assert_eq!(unknown.code(), Code::Unauthenticated, "{name}: {unknown}");
    }
    // A member passes with the same messages: it was the proof that was refused. Two are looked at and found to be empty.
    for name in &calls {
        let answer = call(solo, name, &proof(who.cluster_id, who.epoch, who.member_id)).await;
        let passed = answer.as_ref().err().is_none_or(|status| status.code() == Code::InvalidArgument);
        assert!(passed, "{name}: {answer:?}");
    }
    solo.put("after", "x").await.unwrap();
}

/// A probe that looks there must not think well of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_door_for_members_serves_nothing_else() {
    let cluster = Cluster::start(&["solo"]).await;
    let door = Member::at(&cluster.members[0].peer, cluster.tmp.path());
    assert_eq!(door.http("/health").await.0, 404);
    let unknown = door.put("k", "v").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::Unimplemented, "{unknown}");
}

/// A leader that calls again at once burns a core for each member that is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_away_is_called_about_once_in_a_heartbeat() {
    const LOOKED: Duration = Duration::from_secs(3);
    let mut cluster = Cluster::start(&["a", "b", "c"]).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.members[away].kill();
    // In its place somebody who hangs up.
    let place = cluster.members[away].peer_url().replace("http://", "");
    let listener = tokio::net::TcpListener::bind(place).await.unwrap();
    cluster.members[leader].put("for", "both").await.unwrap();
    let mut calls = 0;
    let counted = async {
        loop {
            drop(listener.accept().await.unwrap());
            calls += 1;
        }
    };
    assert!(tokio::time::timeout(LOOKED, counted).await.is_err());
    println!("{calls} calls in {LOOKED:?}");
    // A heartbeat and an attempt to send the entry each 100 ms, and looks at how it is.
    assert!((10..200).contains(&calls), "{calls} calls in {LOOKED:?}");
}
