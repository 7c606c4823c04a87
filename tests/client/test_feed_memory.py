"""What a change feed holds in memory: counted, bounded by whoever counts, and nothing once it is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import needle
from needle.base.errors import Overloaded
from needle.client.feed import Changes

DOCUMENTS = 700


async def _read(feed: Changes, count: int) -> list[str]:
    async with asyncio.timeout(60):
        return [(await anext(feed)).id for _ in range(count)]


async def _filled(client: Any) -> None:
    await client.create_collection("a", dimensions=2)
    rows = [(f"d{n:04}", [n, 1], {"text": "x" * 1000}) for n in range(DOCUMENTS)]
    await client.insert_batch(rows, collection="a")


async def test_a_feed_holds_a_page_at_most_and_nothing_at_its_end() -> None:
    async with needle.open(":memory:") as client:
        await _filled(client)
        feed, most, held = client.changes("a", since="start"), 0, 0

        def told(count: int) -> None:
            nonlocal most, held
            held += count
            most = max(most, held)
            assert held >= 0

        feed.page_max, feed.held.told = 100, told
        async with feed:
            told_ids = await _read(feed, DOCUMENTS + 2)
            assert told_ids == ["", *(f"d{n:04}" for n in range(DOCUMENTS)), ""]
            assert 100 * 4000 < most < 150 * 5000
            await client.insert_batch([(f"e{n:04}", [n, 1], {"text": "x" * 1000}) for n in range(300)], collection="a")
            await _read(feed, 300)
            assert most < 250 * 5000
        assert held == 0


@pytest.mark.parametrize("since", ["start", "now"])
async def test_what_there_is_no_room_for_is_asked_for_anew(since: str) -> None:
    async with needle.open(":memory:") as client:
        if since == "start":
            await _filled(client)
        else:
            await client.create_collection("a", dimensions=2)
        refuses = True
        held = 0

        def told(count: int) -> None:
            nonlocal held
            if refuses and count > 10_000:
                raise Overloaded("no room")
            held += count

        feed = client.changes("a", since=since)
        feed.held.told = told
        async with feed:
            if since == "start":
                assert await _read(feed, 1) == [""]
            else:
                rows = [(f"d{n:04}", [n, 1], {"text": "x" * 1000}) for n in range(DOCUMENTS)]
                await client.insert_batch(rows, collection="a")
            for _ in range(3):
                with pytest.raises(Overloaded):
                    await _read(feed, 1)
            refuses = False
            assert sorted(await _read(feed, DOCUMENTS)) == [f"d{n:04}" for n in range(DOCUMENTS)]
        assert held == 0
