"""aetcd, a client for asyncio, against members at the addresses given: keys, transactions, watches, leases, locks."""

import asyncio
import hashlib
import io
import sys

import aetcd

# Longest wait for one thing; two busy cores are slow.
PATIENCE = 60


async def keys(client):
    await client.delete_prefix(b"aetcd/")
    await client.put(b"aetcd/a", b"1")
    again = await client.put(b"aetcd/a", b"2", prev_kv=True)
    assert again.prev_kv.value == b"1", again
    await client.put(b"aetcd/b", b"3")
    got = await client.get(b"aetcd/a")
    assert (got.value, got.version) == (b"2", 2), got
    down = [kv.key for kv in await client.get_prefix(b"aetcd/", sort_order="descend")]
    assert down == [b"aetcd/b", b"aetcd/a"], down
    assert await client.replace(b"aetcd/a", b"2", b"4")
    assert not await client.replace(b"aetcd/a", b"2", b"5")
    assert await client.get(b"aetcd/none") is None
    gone = await client.delete(b"aetcd/a", prev_kv=True)
    assert gone.prev_kv.value == b"4", gone
    assert (await client.delete_prefix(b"aetcd/")).deleted == 1


async def transactions(client):
    t = client.transactions
    for wanted, value in ((True, b"made"), (False, b"there")):
        made, _ = await client.transaction(
            compare=[t.version(b"aetcd/txn") == 0],
            success=[t.put(b"aetcd/txn", b"made"), t.get(b"aetcd/txn")],
            failure=[t.put(b"aetcd/txn", b"there")],
        )
        assert made is wanted
        assert (await client.get(b"aetcd/txn")).value == value


async def watches(client, other):
    watch = await client.watch_prefix(b"aetcd/w/", prev_kv=True)
    for number in range(20):
        await other.put(b"aetcd/w/k", str(number).encode())
    await other.delete(b"aetcd/w/k")
    seen = []
    async for event in watch:
        seen.append((event.kind, event.kv.value))
        if event.kind == "DELETE":
            assert event.prev_kv.value == b"19", event
            break
    await watch.cancel()
    assert seen == [("PUT", str(number).encode()) for number in range(20)] + [("DELETE", b"")], seen


async def leases(client):
    lease = await client.lease(60)
    await client.put(b"aetcd/leased", b"v", lease=lease)
    assert await lease.granted_ttl() == 60
    assert list(await lease.keys()) == [b"aetcd/leased"]
    assert (await lease.refresh()).TTL == 60
    await lease.revoke()
    assert await client.get(b"aetcd/leased") is None
    assert await lease.remaining_ttl() == -1


async def locks(client, other):
    inside, most = 0, 0

    async def work(one):
        nonlocal inside, most
        for _ in range(5):
            lock = one.lock(b"aetcd/lock", ttl=60)
            assert await lock.acquire(timeout=PATIENCE)
            inside += 1
            most = max(most, inside)
            assert await lock.is_acquired()
            inside -= 1
            assert await lock.release()

    await asyncio.gather(work(client), work(other))
    assert most == 1, most


async def cluster(client, count):
    members = [member async for member in await maybe(client.members())]
    assert len(members) == count, members
    status = await client.status()
    assert status.version == "3.7.1" and status.leader is not None, status
    assert [alarm async for alarm in await maybe(client.list_alarms())] == []
    file = io.BytesIO()
    await client.snapshot(file)
    whole = file.getvalue()
    assert hashlib.sha256(whole[:-32]).digest() == whole[-32:], len(whole)


async def maybe(thing):
    """What a call gives, whether it must be awaited or is gone through."""
    return await thing if asyncio.iscoroutine(thing) else thing


async def main(addresses):
    def connect(address):
        host, port = address.split(":")
        return aetcd.Client(host=host, port=int(port), timeout=PATIENCE)

    async with connect(addresses[0]) as client, connect(addresses[-1]) as other:
        await keys(client)
        await transactions(client)
        await asyncio.wait_for(watches(client, other), PATIENCE)
        await leases(client)
        await locks(client, other)
        await cluster(client, len(addresses))
    print("ok")


asyncio.run(main(sys.argv[1].split(",")))
