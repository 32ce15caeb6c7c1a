"""etcd3gw, a client of the JSON gateway, against members at the addresses given."""

import sys

from etcd3gw.client import Etcd3Client
from etcd3gw.utils import _encode

# Longest wait for one answer; two busy cores are slow.
PATIENCE = 60


def connect(address):
    host, port = address.split(":")
    # No path is given, so that it is found by the server's version.
    return Etcd3Client(host=host, port=int(port), timeout=PATIENCE, api_path=None)


def main(addresses):
    client, other = connect(addresses[0]), connect(addresses[-1])
    assert client.api_path == "/v3/", client.api_path
    client.delete_prefix("gw/")

    assert client.put("gw/a", "1")
    assert other.get("gw/a") == [b"1"]
    value, about = client.get("gw/a", metadata=True)[0]
    assert (value, about["version"]) == (b"1", "1"), about
    assert client.create("gw/b", "2") and not client.create("gw/b", "3")
    assert client.replace("gw/b", "2", "4") and not client.replace("gw/b", "2", "5")
    pairs = [(about["key"], value) for value, about in client.get_prefix("gw/", sort_order="descend")]
    assert pairs == [(b"gw/b", b"4"), (b"gw/a", b"1")], pairs
    assert client.delete("gw/a") and not client.delete("gw/a")

    made = client.transaction(
        {
            "compare": [{"key": _encode("gw/txn"), "result": "EQUAL", "target": "VERSION", "version": 0}],
            "success": [{"request_put": {"key": _encode("gw/txn"), "value": _encode("v")}}],
            "failure": [],
        }
    )
    assert made["succeeded"] and "response_put" in made["responses"][0], made

    lease = client.lease(60)
    client.put("gw/leased", "v", lease=lease)
    assert lease.keys() == [b"gw/leased"] and 0 < lease.ttl() <= 60 and lease.refresh() == 60
    assert lease.revoke() and other.get("gw/leased") == []

    start = int(client.status()["header"]["revision"]) + 1
    for number in range(10):
        other.put("gw/watched", str(number))
    other.delete("gw/watched")
    events, cancel = client.watch("gw/watched", start_revision=start)
    seen = [next(events) for _ in range(11)]
    assert [event["kv"].get("value") for event in seen] == [str(n).encode() for n in range(10)] + [None], seen
    assert seen[10]["type"] == "DELETE", seen
    cancel()

    mutex = client.lock("gw", ttl=60)
    assert mutex.acquire() and mutex.is_acquired() and not other.lock("gw", ttl=60).acquire()
    assert mutex.release() and not mutex.is_acquired()
    assert len(client.members()) == len(addresses) and client.status()["version"] == "3.7.1"
    print("ok")


main(sys.argv[1].split(","))
