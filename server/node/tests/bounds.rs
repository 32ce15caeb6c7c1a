//! A member in this process, with more asked of it at one moment than it lets wait. On one thread nothing ends between two polls.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use ferretcd_types::{Error, KeyRange, Put, Range};
use futures::future::{join, poll_fn};
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
