"""Change feeds without asyncio, on a database in this process."""

from __future__ import annotations

import needle


def test_changes_come_one_after_the_other_and_waiting_has_an_end() -> None:
    with needle.open_sync(":memory:") as client:
        client.create_collection("a", dimensions=2)
        with client.changes("a") as feed:
            assert feed.next(0.05) is None
            client.insert("x", [3, 4], {"n": 1}, collection="a")
            client.delete("x", collection="a")
            first = next(feed)
            token = feed.token
            assert (first.kind, first.id, first.metadata) == ("insert", "x", {"n": 1})
            second = feed.next(30)
            assert second is not None
            assert (second.kind, second.id, second.vector, second.metadata) == ("delete", "x", None, None)
            assert second.version > first.version
        with client.changes("a", since=token, with_vectors=False) as feed:
            assert next(feed) == second
        with client.changes("a", since="start") as feed:
            assert [next(feed).kind, next(feed).kind] == ["reset", "ready"]
