"""What a change feed says of what it cannot do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import needle
from needle.client.feed import Change, Changes, Wish


async def _some(feed: Changes, count: int) -> list[Change]:
    async with asyncio.timeout(30):
        return [await anext(feed) for _ in range(count)]


async def test_a_filter_that_the_node_refuses_is_no_dropped_collection() -> None:
    deep: dict[str, Any] = {"n": 1}
    for _ in range(40):  # this client takes it, as if it had other limits than the node
        deep = {"$and": [deep, {"n": {"$gt": 0}}]}
    async with needle.open(":memory:") as client:
        await client.create_collection("a", dimensions=2)
        wish = Wish(filter=json.dumps(deep).encode())
        async with Changes(client._documents, "a", "start", wish, timeout=10.0) as feed:
            with pytest.raises(needle.InvalidArgument, match="depth"):
                await _some(feed, 2)
        async with client.changes("a", since="start") as feed:
            assert [one.kind for one in await _some(feed, 1)] == ["reset"]
            await client.drop_collection("a")
            await client.create_collection("a", dimensions=2)
            with pytest.raises(needle.CollectionNotFound):
                await _some(feed, 1)


async def test_a_watch_goes_on_from_no_token_that_tells_all_documents() -> None:
    async with needle.open(":memory:") as client:
        await client.create_collection("a", dimensions=2, metric="l2")
        await client.insert_batch([(f"d{n}", [n, 1]) for n in range(5)], collection="a")
        tokens = list[str]()
        async with client.changes("a", since="start") as feed:
            for kind in ["reset", *["insert"] * 5, "ready"]:
                assert (await _some(feed, 1))[0].kind == kind
                tokens.append(feed.token)
        for token in tokens[:-1]:
            with pytest.raises(needle.InvalidArgument, match='"reset" and "ready"') as caught:
                client.watch("a", [0, 0], max_distance=1.0, since=token)
            assert caught.value.details["field"] == "since"
        async with client.watch("a", [0, 0], max_distance=1.0, since=tokens[-1]) as watched:
            await client.insert("near", [0, 0.5], collection="a")
            assert [(one.kind, one.id) for one in await _some(watched, 1)] == [("insert", "near")]
