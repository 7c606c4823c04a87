"""What a change feed says of what it cannot do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

import needle
from needle.client import feed_token
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


async def test_a_token_names_no_shard_that_never_was() -> None:
    """Each was asked for changes again and again, and the feed told nothing of it."""
    async with needle.open(":memory:") as client:
        await client.create_collection("a", dimensions=2)
        async with client.changes("a") as feed:
            token = feed_token.decode(feed.token)
        for shard in (-1, 7, 1 << 63):
            made = replace(token, positions={**token.positions, shard: (1, 0)})
            with pytest.raises(needle.InvalidArgument, match=f"never had \\({shard}\\)") as caught:
                await client.changes("a", since=feed_token.encode(made)).begin()
            assert caught.value.details["field"] == "since"


async def test_a_token_of_a_place_that_its_shard_has_not_come_to_is_refused() -> None:
    """Nothing was told until the log had so many entries, and then what came before was passed over in silence."""
    async with needle.open(":memory:") as client:
        await client.create_collection("a", dimensions=2)
        async with client.changes("a") as feed:
            token = feed_token.decode(feed.token)
        [(shard, (entry, _))] = token.positions.items()
        for ahead in ((entry + 1, 0), (entry, 1), (1 << 62, 0)):
            made = feed_token.encode(replace(token, positions={shard: ahead}))
            for feed in (client.changes("a", since=made), client.watch("a", [0, 0], max_distance=1.0, since=made)):
                with pytest.raises(needle.InvalidArgument, match=f"ends with entry {entry - 1}: no feed") as caught:
                    await feed.begin()
                assert caught.value.details["field"] == "since"
        async with client.changes("a", since=feed_token.encode(token)) as feed:  # the last place that there is
            await client.insert("x", [0, 1], collection="a")
            assert [one.id for one in await _some(feed, 1)] == ["x"]


async def test_a_bound_that_no_float_holds_is_refused() -> None:
    async with needle.open(":memory:") as client:
        with pytest.raises(needle.InvalidArgument, match="max_distance"):
            client.watch("a", [0, 0], max_distance=10**400)
