"""A read that any replica may answer, while some of them refuse it: on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client.fake_shards import virtually
from needle.base.errors import NeedleError, TooManyRequests
from needle.client.router.any_replica import AnyReplica
from needle.routing.topology import Topology


class Group:
    """Its replicas refuse a key until they have room again. waits: the seconds until then, by address."""

    def __init__(self, waits: dict[str, float]) -> None:
        self.waits = waits
        self.asked: list[tuple[float, str]] = []

    def replicas(self) -> list[str]:
        return [*self.waits]

    def suspect(self, address: str) -> None:
        raise AssertionError("who has no room is well")

    async def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        now = asyncio.get_running_loop().time()
        self.asked.append((now, address))
        await asyncio.sleep(0.001)
        if now < self.waits[address]:
            raise TooManyRequests("used up", wait=self.waits[address] - now, limit="requests")
        return address.encode()


async def asked(group: Any, timeout: float) -> bytes:
    async def refresh(version: int, timeout: float) -> Topology:
        raise AssertionError("nobody has moved")

    found = await AnyReplica(Topology, refresh).ask(0, group, "count", lambda left: b"", timeout)
    return bytes(found)


@pytest.mark.parametrize("waits", [{"a": 0.2, "b": 90.0}, {"b": 90.0, "a": 0.2}], ids=",".join)
def test_who_has_room_first_is_waited_for(waits: dict[str, float]) -> None:
    """It was refused at once, as one of them would have had room too late."""

    async def work() -> None:
        group = Group(waits)
        assert await asked(group, 5.0) == b"a"
        assert 0.2 <= asyncio.get_running_loop().time() < 0.5 and len(group.asked) <= 4

    virtually(work())


def test_where_nobody_has_room_in_time_that_is_told_at_once() -> None:
    async def work() -> None:
        group = Group({"a": 9.0, "b": 90.0})
        with pytest.raises(NeedleError) as refused:
            await asked(group, 5.0)
        assert isinstance(refused.value, TooManyRequests) and asyncio.get_running_loop().time() < 0.1
        assert [address for _, address in group.asked] == ["a", "b"]

    virtually(work())
