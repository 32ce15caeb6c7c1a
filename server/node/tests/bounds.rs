//! A member in this process, with more asked of it at one moment than it lets wait. On one thread nothing ends between two polls.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use ferretcd_node::Node;
use ferretcd_types::{Error, KeyRange, Member, Put, Range, SortOrder, SortTarget, Txn, TxnOp};
use futures::future::{join, join_all, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// How many of these calls are refused at once, each asked once, and that the others wait.
async fn refused<T: std::fmt::Debug>(calls: &mut [Pin<Box<impl Future<Output = Result<T, Error>>>>]) -> usize {
    poll_fn(|task| {
        let refused = calls.iter_mut().filter_map(|call| match call.as_mut().poll(task) {
            Poll::Ready(Err(Error::TooManyRequests)) => Some(()),
            Poll::Ready(other) => panic!("{other:?}"),
            Poll::Pending => None,
        });
        Poll::Ready(refused.count())
    })
    .await
}

#[tokio::test]
async fn more_reads_than_may_wait_for_a_round_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let member = support::run(dir.path(), None).await;
    let read = |_| Box::pin(member.node.range(Range { range: KeyRange::single("k"), ..Range::default() }));
    let mut reads: Vec<_> = (0..50_010).map(read).collect();
    assert_eq!(refused(&mut reads).await, 10);
    // Those that wait are answered.
    let (one, other) = (reads.remove(0), reads.remove(49_998));
    let (one, other) = join(one, other).await;
    assert!(one.is_ok() && other.is_ok());
    drop(reads);
    member.stop().await;
}

#[tokio::test]
async fn more_proposals_than_may_be_under_way_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let member = support::run(dir.path(), None).await;
    let put = |_| Box::pin(member.node.propose(Put { key: "k".into(), value: "v".into(), ..Put::default() }));
    let mut puts: Vec<_> = (0..20_010).map(put).collect();
    // The member's own of its start, attributes and cluster version, may still be among those that wait.
    let refused = refused(&mut puts).await;
    assert!((10..=12).contains(&refused), "{refused}");
    puts.remove(0).await.unwrap();
    drop(puts);
    member.stop().await;
}

/// To count, or to find the newest, is to visit all of a range, whatever the limit.
#[test]
fn a_read_of_many_keys_holds_up_nothing_else() {
    /// Reads until something else ran meanwhile: on a busy machine it may not come to it in one read.
    async fn lets_others_run(node: &Node, read: &Range) -> bool {
        for _ in 0..20 {
            let (node, read) = (node.clone(), read.clone());
            let reading = tokio::spawn(async move { node.range(read).await.unwrap() });
            let mut turns = 0;
            while !reading.is_finished() {
                tokio::task::yield_now().await;
                turns += 1;
            }
            // One thread polls both in turn: one that reads without handing it over is polled a few times in all.
            if turns > 20 {
                return true;
            }
        }
        false
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let member = support::run(dir.path(), None).await;
        let node = member.node.clone();
        let looked = tokio::spawn(async move {
            for batch in 0..100 {
                let puts = (0..1000).map(|n| {
                    let key = format!("{batch:03}/{n:03}").into();
                    TxnOp::Put(Put { key, value: "v".into(), ..Default::default() })
                });
                node.txn(Txn { success: puts.collect(), ..Default::default() }).await.unwrap();
            }
            let all = Range { range: KeyRange::all(), serializable: true, ..Default::default() };
            for read in [
                Range { count_only: true, ..all.clone() },
                Range { limit: 1, ..all.clone() },
                Range { limit: 1, sort_order: SortOrder::Descend, sort_target: SortTarget::Mod, ..all },
            ] {
                assert!(lets_others_run(&node, &read).await, "{read:?}");
            }
        });
        looked.await.unwrap();
        member.stop().await;
    });
}

#[tokio::test]
async fn changes_of_members_that_were_decided_on_the_same_ones_are_all_done_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let member = support::run(dir.path(), None).await;
    let add = |n| member.node.member_add(vec![format!("http://127.0.0.1:{n}")], true);
    let added = join_all((10..14).map(add)).await;
    let listed = member.node.member_list(true).await.unwrap();
    let is_listed = |added: Member| listed.iter().any(|m| m.id == added.id && m.peer_urls == added.peer_urls);
    assert!(added.into_iter().all(|added| is_listed(added.unwrap().0)) && listed.len() == 5, "{listed:?}");
    member.stop().await;
}
