//! KV/RangeStream through the process, as kube-apiserver 1.37 and `etcdctl get --stream` use it.

use crate::support::{Cluster, Member};
use ferretcd_proto::etcdserverpb as pb;
use tonic::Code;

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

async fn chunks(member: &Member, request: pb::RangeRequest) -> Vec<pb::RangeResponse> {
    let mut stream = member.kv().await.range_stream(request).await.unwrap().into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await.unwrap() {
        chunks.push(chunk.range_response.unwrap());
    }
    chunks
}

fn keys(chunks: &[pb::RangeResponse]) -> Vec<&[u8]> {
    chunks.iter().flat_map(|c| &c.kvs).map(|kv| kv.key.as_ref()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_join_up_to_the_range_at_the_revision_of_the_first() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    for n in 0..100 {
        m.put(&format!("k{n:03}"), "v").await.unwrap();
    }
    let whole = m.kv().await.range(all()).await.unwrap().into_inner();
    let streamed = chunks(m, all()).await;
    assert_eq!(streamed.iter().map(|c| c.kvs.len()).collect::<Vec<_>>(), [10, 20, 40, 30]);
    let (last, earlier) = streamed.split_last().unwrap();
    assert!(earlier.iter().all(|c| c.header.is_none() && !c.more && c.count == 0));
    assert_eq!((last.header, last.more, last.count), (whole.header, whole.more, whole.count));
    assert_eq!(streamed.iter().flat_map(|c| c.kvs.clone()).collect::<Vec<_>>(), whole.kvs);

    let limited = chunks(m, pb::RangeRequest { limit: 15, keys_only: true, ..all() }).await;
    let (last, _) = limited.split_last().unwrap();
    assert_eq!((keys(&limited).len(), last.more, last.count), (15, true, 100));
    let counted = chunks(m, pb::RangeRequest { count_only: true, ..all() }).await;
    assert_eq!((counted.len(), counted[0].count, counted[0].kvs.len()), (1, 100, 0));
    // The header is of now, the keys are of then.
    let old = chunks(m, pb::RangeRequest { revision: 6, serializable: true, ..all() }).await;
    assert_eq!((keys(&old).len(), old[0].header.unwrap().revision), (5, whole.header.unwrap().revision));

    let listed = m.etcdctl(&["get", "k", "--prefix", "--stream", "--keys-only"]).unwrap();
    assert_eq!(listed.lines().filter(|l| !l.is_empty()).count(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_meanwhile_is_not_seen_and_a_compaction_ends_the_stream() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    // Chunks of one key, and more of them than connection and server hold ahead of the client.
    let value = "x".repeat(1 << 20);
    for n in 0..30 {
        m.put(&format!("k{n:02}"), &value).await.unwrap();
    }
    let mut kv = m.kv().await;
    let mut seen = kv.range_stream(all()).await.unwrap().into_inner();
    let mut cut = kv.range_stream(all()).await.unwrap().into_inner();
    assert_eq!(seen.message().await.unwrap().unwrap().range_response.unwrap().kvs.len(), 10);
    assert_eq!(cut.message().await.unwrap().unwrap().range_response.unwrap().kvs.len(), 10);
    m.put("k99", "late").await.unwrap();
    let mut count = 10;
    while let Some(chunk) = seen.message().await.unwrap() {
        let chunk = chunk.range_response.unwrap();
        count += chunk.kvs.len();
        assert!(chunk.header.is_none_or(|h| h.revision == 31));
    }
    assert_eq!(count, 30);
    let revision = m.put("k98", "later").await.unwrap();
    m.etcdctl(&["compaction", &revision.to_string()]).unwrap();
    let ended = loop {
        match cut.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream went on past the compaction"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
    );
}
