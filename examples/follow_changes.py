"""A copy of a collection that follows it by a change feed, and goes on where it was after a break.

python examples/follow_changes.py                       # in memory
python examples/follow_changes.py 127.0.0.1:7001        # a cluster
"""

import sys

import needle

copy: dict[str, object] = {}


def follow(client: needle.SyncClient, since: str) -> str:
    """Bring the copy up to date; where to go on the next time."""
    with client.changes("stock", since=since, with_vectors=False) as feed:
        while (change := feed.next(1.0)) is not None:
            if change.kind == "reset":  # all that there are follow
                copy.clear()
            elif change.kind == "delete":
                del copy[change.id]
            elif change.kind != "ready":
                copy[change.id] = change.metadata
        return feed.token


with needle.connect_sync(sys.argv[1]) if len(sys.argv) > 1 else needle.open_sync(":memory:") as client:
    client.create_collection("stock", dimensions=2, if_absent=True)
    client.insert_batch([("nails", [1, 0], {"left": 40}), ("screws", [0, 1], {"left": 7})], collection="stock")
    token = follow(client, "start")
    print(f"at first: {sorted(copy)}")

    client.patch("nails", set={"left": 39}, collection="stock")
    client.delete("screws", collection="stock")
    client.insert("bolts", [1, 1], {"left": 3}, collection="stock")
    follow(client, token)  # as another process would, with the token that it has stored
    print(f"later: {sorted(copy)}, nails left: {copy['nails']}")
