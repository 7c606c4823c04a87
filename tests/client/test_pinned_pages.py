"""Pages of a consistent scan as a client asks for them: of which shards, at which indexes, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import spec, topology
from needle.base.errors import (
    ClusterTooOld,
    InvalidArgument,
    NeedleError,
    NotLeader,
    Overloaded,
    ScanEnded,
    StaleEpoch,
)
from needle.base.model import ReadMode
from needle.client.changes import ChangeMethods
from needle.client.document_calls import DocumentCalls
from needle.client.router.router import Router
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, ScanAnswer, ScanCall, ScanPin
from needle.protocol.peer_calls import ShardAnswer
from needle.routing.topology import CollectionInfo, Ownership


class Shards:
    """Two shards, each with documents of its own; what they are asked is noted: (shard, call)."""

    def __init__(self) -> None:
        made = CollectionInfo(id=7, spec=spec("docs", 2))
        self.known = msgspec.structs.replace(topology(shards=2), collections=(made,))
        self.asked: list[tuple[int, ScanCall]] = []
        self.held = {0: ["a", "c", "e"], 1: ["b", "d", "f"]}
        self.stale = 0
        self.knows_pins = True
        self.ends_fail = False
        self.refuses: NeedleError | None = None
        """What shard 1 says instead of opening a pin."""

    def topology(self) -> Any:
        return self.known

    async def refresh(self, version: int, timeout: float) -> Any:
        return self.known

    def nonce(self) -> int:
        return 4242

    def group(self, shard: int) -> Group:
        return Group(self, shard)

    async def scan(self, cursor: ScanPin | None, after: str) -> ScanAnswer:
        mode = ReadMode.STRONG
        return await Router(self).scan("docs", b"", after, 2, False, (0, 1), mode, 5, None, 0, cursor)  # type: ignore[arg-type]


class Group:
    def __init__(self, shards: Shards, shard: int) -> None:
        self._shards = shards
        self._shard = shard

    async def ask_leader(self, method: str, body: Callable[[float], bytes], timeout: float) -> bytes:
        return self._answer(calls.decode(body(timeout), ScanCall))

    async def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        return self._answer(calls.decode(body, ScanCall))

    def replicas(self) -> list[str]:
        return ["one"]

    def suspect(self, address: str) -> None: ...

    def _answer(self, call: ScanCall) -> bytes:
        shards, shard = self._shards, self._shard
        shards.asked.append((shard, call))
        assert call.pin is not None
        if call.pin.ends:
            if shards.ends_fail:
                raise NotLeader("not any more")
            return calls.encode(ShardAnswer(call.epoch, 0, b""))
        if shards.refuses is not None and shard == 1:
            raise shards.refuses
        owned = Ownership(shards.known.map)
        if not call.pin.open and shard == 1 and shards.stale:
            shards.stale -= 1
            raise StaleEpoch("another map", version=shards.known.version)
        rows = [name for name in shards.held[shard] if name > call.after][: call.limit]
        left = bool(rows) and rows[-1] < shards.held[shard][-1]
        index = call.pin.open[0][1] if call.pin.open else 10 + shard
        batch = DocumentBatch(rows, [1] * len(rows), [b"{}"] * len(rows), b"", index)
        pin = ScanPin(call.pin.token, [(shard, index)]) if shards.knows_pins else None
        answer = calls.encode(ScanAnswer(batch, rows[-1] if left else None, 0, pin))
        fingerprint = 0 if call.pin.open else owned.fingerprint(shard)
        return calls.encode(ShardAnswer(call.epoch, fingerprint, answer))


async def test_the_first_page_opens_pins_and_the_last_one_ends_them() -> None:
    shards = Shards()
    shards.stale = 1  # then both are asked again, by one map
    page = await shards.scan(ScanPin(), "")
    assert page.pin == ScanPin(4242, [(0, 10), (1, 11)])
    assert {call.pin.token for _, call in shards.asked if call.pin} == {4242}
    opened = [call for _, call in shards.asked]
    assert all(call.freshness.mode is ReadMode.STRONG and call.epoch == shards.known.map.epoch for call in opened)
    found, after = list(page.documents.ids), page.reached
    while after is not None:
        shards.asked.clear()
        page = await shards.scan(page.pin, after)
        found, after = found + page.documents.ids, page.reached
        pages = [(shard, call) for shard, call in shards.asked if call.pin and not call.pin.ends]
        for shard, call in pages:
            assert call.pin is not None and call.pin.open == [(shard, 10 + shard)]
            assert (call.freshness.mode, call.freshness.min_index) == (ReadMode.EVENTUAL, 10 + shard)
    assert found == ["a", "b", "c", "d", "e", "f"]
    ends = [(shard, call.pin) for shard, call in shards.asked if call.pin and call.pin.ends]
    assert sorted(ends) == [(shard, ScanPin(4242, [(shard, 10 + shard)], True)) for shard in (0, 1)]


async def test_what_some_shards_have_opened_ends_if_another_refuses() -> None:
    """Else it is kept, and counted among those that a shard takes, until its time is over."""
    shards = Shards()
    shards.refuses = Overloaded("too many are open")
    for ends_fail in (False, True):
        shards.ends_fail = ends_fail
        shards.asked.clear()
        with pytest.raises(Overloaded):
            await shards.scan(ScanPin(), "")
        ends = [(shard, call.pin) for shard, call in shards.asked if call.pin and call.pin.ends]
        assert sorted(ends) == [(shard, ScanPin(4242, [(shard, calls.ANY_INDEX)], True)) for shard in (0, 1)]


async def test_who_does_not_hear_of_the_end_spoils_nothing() -> None:
    shards = Shards()
    shards.ends_fail = True
    pin = ScanPin(5, [(0, 10), (1, 11)])
    page = await shards.scan(pin, "d")
    assert (page.documents.ids, page.reached) == (["e", "f"], None)


async def test_shards_that_know_no_pins_and_shards_that_are_gone_are_named() -> None:
    shards = Shards()
    shards.knows_pins = False
    with pytest.raises(ClusterTooOld, match="upgrade"):
        await shards.scan(ScanPin(), "")
    shards.knows_pins = True
    with pytest.raises(InvalidArgument, match="shard 9"):
        await shards.scan(ScanPin(5, [(0, 10), (9, 3)]), "")
    first, second = shards.known.shards
    retired = msgspec.structs.replace(second, retired=True)
    shards.known = msgspec.structs.replace(shards.known, shards=(first, retired))
    asked = len(shards.asked)
    with pytest.raises(ScanEnded, match="shard 1 was removed"):
        await shards.scan(ScanPin(5, [(0, 10), (1, 11)]), "")
    assert len(shards.asked) == asked


async def test_a_timeout_may_be_a_timedelta_until_the_scan_is_given_back() -> None:
    shards = Shards()

    class Documents(ChangeMethods):
        async def _documents(self) -> DocumentCalls:
            return Router(shards)

    scan = Documents().scan(consistent=True, limit=2, collection="docs", timeout=timedelta(seconds=5))
    assert [document.id async for document in scan] == ["a", "b"]
    ends = [(shard, call.freshness.timeout) for shard, call in shards.asked if call.pin and call.pin.ends]
    assert sorted(shard for shard, _ in ends) == [0, 1] and all(0 < seconds <= 5 for _, seconds in ends)
