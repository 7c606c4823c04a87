"""How fresh a replica is: what who waits for it is told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from needle.base.errors import InvalidArgument, Unavailable
from needle.multiraft.background import Background
from needle.server.replica import HostedReplica


@pytest.mark.parametrize("turns", range(1, 4))
async def test_who_waits_when_the_replica_is_closed_is_told_so_and_not_cancelled(turns: int) -> None:
    """In the node's own process the wait is in the caller's task, which would end as if its owner had cancelled it."""

    async def silent(*_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def close() -> None:
        """The searches end."""

    hosted = object.__new__(HostedReplica)  # only what asks how fresh it is
    hosted.group, hosted._fresh_at, hosted._asking = 1, float("-inf"), None
    hosted._host = SimpleNamespace(leader=lambda _: "node-2", is_leader=lambda _: False)  # type: ignore[assignment]
    hosted._clock = SimpleNamespace(monotonic=asyncio.get_running_loop().time)  # type: ignore[assignment]
    hosted._call, hosted.batcher = silent, SimpleNamespace(close=close)  # type: ignore[assignment]
    hosted._several = SimpleNamespace(passed=close)  # type: ignore[assignment]
    hosted._background = Background(lambda _: None)
    waiting = asyncio.create_task(hosted.be_fresh(1.0, 5.0))
    for _ in range(turns):
        await asyncio.sleep(0)
    await hosted.stop()
    with pytest.raises(Unavailable, match="is closed"):
        await waiting


@pytest.mark.parametrize("age", [-1.0, float("nan"), float("-inf")])
async def test_what_is_no_age_is_refused_at_once(age: float) -> None:
    """Of a negative one the leader was asked again and again until the call's time was over, a day at most; a NaN was
    passed over."""
    hosted = object.__new__(HostedReplica)
    with pytest.raises(InvalidArgument, match="max_staleness"):
        await hosted.be_fresh(age, 5.0)
