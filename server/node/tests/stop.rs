//! A member in this process that is to stop.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use ferretcd_node::{WatchCreate, WatchMessage};
use ferretcd_types::KeyRange;
use std::time::Duration;

/// Their clients are cut off next, and are to know by then that they must go on elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn watch_streams_end_before_the_member_stops() {
    let dir = tempfile::tempdir().unwrap();
    let member = support::run(dir.path(), None).await;
    let mut stream = member.node.watch_stream();
    stream.create(WatchCreate { range: KeyRange::single("k"), ..WatchCreate::default() });
    assert!(matches!(stream.next().await, Some(WatchMessage::Created { .. })));
    member.hand_over().await;
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), stream.next()).await, Ok(None));
    drop(stream);
    member.stop().await;
}
