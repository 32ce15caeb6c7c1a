//! The `etcd-client` crate against members at the addresses given: keys, transactions, leases, watches, and the Lock and
//! Election services.

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, LockOptions, ProclaimOptions, ResignOptions, SortOrder,
    SortTarget, Txn, TxnOp, WatchOptions,
};
use std::error::Error;
use std::time::Duration;

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest run; a healthy one takes a second, and two busy cores are slow.
const PATIENCE: Duration = Duration::from_secs(100);

#[tokio::main]
async fn main() -> Done {
    let addresses = std::env::args().nth(1).ok_or("usage: rust-clients ADDRESS,ADDRESS...")?;
    let addresses: Vec<&str> = addresses.split(',').collect();
    let client = Client::connect(&addresses, None).await?;
    tokio::time::timeout(PATIENCE, all(client, addresses.len())).await??;
    println!("ok");
    Ok(())
}

async fn all(mut client: Client, members: usize) -> Done {
    client.delete("rs/", Some(etcd_client::DeleteOptions::new().with_prefix())).await?;
    keys(&mut client).await?;
    transactions(&mut client).await?;
    leases(&mut client).await?;
    watches(&mut client).await?;
    locks(&client).await?;
    elections(&client).await?;
    check(client.member_list().await?.members().len() == members, "members")?;
    check(client.status().await?.version() == "3.7.1", "version")
}

fn check(holds: bool, what: &str) -> Done {
    if holds { Ok(()) } else { Err(format!("not as it should be: {what}").into()) }
}

async fn keys(client: &mut Client) -> Done {
    for (key, value) in [("rs/k/a", "1"), ("rs/k/b", "2"), ("rs/k/c", "3")] {
        client.put(key, value, None).await?;
    }
    let options = GetOptions::new().with_prefix().with_sort(SortTarget::Value, SortOrder::Descend).with_limit(2);
    let got = client.get("rs/k/", Some(options)).await?;
    let values: Vec<&str> = got.kvs().iter().map(|kv| kv.value_str()).collect::<Result<_, _>>()?;
    check(values == ["3", "2"] && got.count() == 3 && got.more(), "a sorted page")?;
    let revision = got.header().ok_or("no header")?.revision();
    client.put("rs/k/a", "later", None).await?;
    let old = client.get("rs/k/a", Some(GetOptions::new().with_revision(revision))).await?;
    check(old.kvs()[0].value() == b"1", "an old revision")?;
    check(client.get("", None).await.is_err_and(|e| e.to_string().contains("key is not provided")), "an empty key")
}

async fn transactions(client: &mut Client) -> Done {
    for wanted in [true, false] {
        let txn = Txn::new()
            .when([Compare::version("rs/txn", CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put("rs/txn", "made", None),
                TxnOp::txn(Txn::new().and_then([TxnOp::get("rs/txn", None)])),
            ])
            .or_else([TxnOp::delete("rs/none", None)]);
        let made = client.txn(txn).await?;
        check(made.succeeded() == wanted, "a transaction")?;
        check(made.op_responses().len() == if wanted { 2 } else { 1 }, "its answers")?;
    }
    Ok(())
}

async fn leases(client: &mut Client) -> Done {
    let id = client.lease_grant(60, None).await?.id();
    client.put("rs/leased", "v", Some(etcd_client::PutOptions::new().with_lease(id))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(id).await?;
    for _ in 0..3 {
        keeper.keep_alive().await?;
        check(answers.message().await?.ok_or("keep-alive ended")?.ttl() == 60, "a lease kept alive")?;
    }
    let left = client.lease_time_to_live(id, Some(etcd_client::LeaseTimeToLiveOptions::new().with_keys())).await?;
    check(left.keys() == [b"rs/leased".to_vec()] && left.granted_ttl() == 60, "a lease's keys")?;
    client.lease_revoke(id).await?;
    check(client.get("rs/leased", None).await?.kvs().is_empty(), "a revoked lease's key")
}

/// Two watches on one stream, progress asked for, and both cancelled.
async fn watches(client: &mut Client) -> Done {
    let mut stream =
        client.watch("rs/w/", Some(WatchOptions::new().with_prefix().with_prev_key().with_watch_id(7))).await?;
    check(stream.message().await?.is_some_and(|m| m.created() && m.watch_id() == 7), "a watch of a chosen ID")?;
    stream.watch("rs/other", None).await?;
    let second = stream.message().await?.ok_or("the stream ended")?;
    check(second.created() && second.watch_id() != 7, "a second watch")?;
    for number in 0..50 {
        client.put("rs/w/k", number.to_string(), None).await?;
    }
    let deleted = client.delete("rs/w/k", None).await?.header().ok_or("no header")?.revision();
    let mut next = 0;
    'all: while let Some(message) = stream.message().await? {
        for event in message.events() {
            let kv = event.kv().ok_or("an event without a key")?;
            if event.event_type() == EventType::Delete {
                check(next == 50 && kv.mod_revision() == deleted, "the deletion comes last")?;
                break 'all;
            }
            check(kv.value_str()? == next.to_string(), "events in order")?;
            next += 1;
        }
    }
    stream.request_progress().await?;
    loop {
        let message = stream.message().await?.ok_or("the stream ended")?;
        check(message.events().is_empty(), "nothing else happened")?;
        if message.header().is_some_and(|h| h.revision() >= deleted) {
            break;
        }
    }
    stream.cancel(7).await?;
    while !stream.message().await?.ok_or("the stream ended")?.canceled() {}
    Ok(())
}

async fn locks(client: &Client) -> Done {
    let mut first = client.clone();
    let mut second = client.clone();
    let lease = first.lease_grant(60, None).await?.id();
    let held = first.lock("rs/mutex", Some(LockOptions::new().with_lease(lease))).await?;
    check(held.key().starts_with(b"rs/mutex/"), "the lock's key")?;
    let waiter = tokio::spawn(async move { second.lock("rs/mutex", None).await });
    while client.kv_client().get("rs/mutex/", Some(GetOptions::new().with_prefix().with_count_only())).await?.count()
        < 2
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    check(!waiter.is_finished(), "the second one waits")?;
    first.lease_revoke(lease).await?;
    let next = waiter.await??;
    first.unlock(next.key()).await?;
    check(first.get("rs/mutex/", Some(GetOptions::new().with_prefix())).await?.kvs().is_empty(), "an unlocked mutex")
}

async fn elections(client: &Client) -> Done {
    let mut client = client.clone();
    let lease = client.lease_grant(60, None).await?.id();
    let won = client.campaign("rs/office", "first word", lease).await?;
    let leader = won.leader().ok_or("no leader")?.clone();
    let mut heard = client.observe("rs/office").await?;
    let word = heard.message().await?.ok_or("the observer was cut off")?;
    check(word.kv().is_some_and(|kv| kv.value() == b"first word"), "the first word")?;
    client.proclaim("second word", Some(ProclaimOptions::new().with_leader(leader.clone()))).await?;
    let word = heard.message().await?.ok_or("the observer was cut off")?;
    check(word.kv().is_some_and(|kv| kv.value() == b"second word"), "the second word")?;
    client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
    check(
        client.leader("rs/office").await.is_err_and(|e| e.to_string().contains("election: no leader")),
        "nobody leads",
    )
}
