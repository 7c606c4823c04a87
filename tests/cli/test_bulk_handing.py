"""Who is told to lack the files of a bulk load, when replicas are asked again while the leader is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from needle.base.errors import Unavailable
from needle.base.model import CollectionSpec, WriteResult
from needle.cli.bulk.handing import Handed, hand_in
from needle.cli.bulk.job import ShardFiles, ShardJob
from needle.protocol import calls
from needle.protocol.bulk_calls import BULK_BEGIN, BULK_HERE, BULK_LOAD, BulkBeginAnswer, BulkHereAnswer

ROUNDS = 3


class Replicas:
    """Of one shard, behind a client. One has the file and does not answer a second time, one never answers, one lacks
    the file until it is asked again and is handed it. The leader answers when they were asked for the last round."""

    def __init__(self) -> None:
        self.asked = dict.fromkeys(("busy", "away", "late"), 0)
        self.enough = asyncio.Event()

    @property
    def _shards(self) -> Replicas:
        return self

    def group(self, _: int) -> Replicas:
        return self

    def look(self) -> None:
        pass

    def replicas(self) -> list[str]:
        return list(self.asked)

    async def ask_leader(self, method: str, *_: Any) -> bytes:
        if method == BULK_BEGIN:
            spec = CollectionSpec(name="books", dimensions=1)
            return calls.encode(BulkBeginAnswer(1, spec, 0, 0, False, "", 100, 0))
        assert method == BULK_LOAD
        await self.enough.wait()
        return calls.encode(WriteResult(version=5, index=5, count=1))

    async def ask_replica(self, address: str, method: str, *_: Any) -> bytes:
        if method == BULK_HERE:
            self.asked[address] += 1
        if min(self.asked.values()) > ROUNDS:
            self.enough.set()
        if address == "away" or (address == "busy" and self.asked[address] > 1):
            raise Unavailable(f"{address} does not answer")
        if address == "late" and self.asked[address] == 1:
            raise Unavailable("it begins")
        whole = address == "busy" or method != BULK_HERE or self.asked[address] > 2
        return calls.encode(BulkHereAnswer([-1 if whole else 0]))


async def handed(shard: Any, monkeypatch: pytest.MonkeyPatch) -> Handed:
    """One file of four bytes."""
    monkeypatch.setattr("needle.cli.bulk.handing.AGAIN_SECONDS", 0)

    async def read(_: str, at: int) -> tuple[int, int, bytes]:
        return 4, at, b"rows"

    files = ShardFiles(0, 1, 4, "00", [], ["1.rows"])
    async with asyncio.timeout(20):
        return await hand_in(shard, "books", ShardJob(0, 1, 0, 0, 100), files, read, 5.0, lambda _: None)


class Silent(Replicas):
    """The one that never answers says nothing at all, from the second question on."""

    async def ask_replica(self, address: str, method: str, *_: Any) -> bytes:
        if address == "away" and self.asked[address]:
            self.asked[address] += 1
            await asyncio.Event().wait()
        answer = await super().ask_replica(address, method)
        if self.asked["late"] > ROUNDS:
            self.enough.set()
        return answer


async def test_who_says_nothing_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next leader got its files half a minute later."""
    shard = Silent()
    done = await handed(shard, monkeypatch)
    assert done.lacking == {"away": "away does not answer"} and done.sent == 4
    assert shard.asked["away"] == 2, "it is asked once at a time"


async def test_who_has_the_files_and_is_busy_with_them_does_not_lack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    done = await handed(Replicas(), monkeypatch)
    assert done.lacking == {"away": "away does not answer"} and done.sent == 4
