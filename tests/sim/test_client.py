"""What the simulated clients write down is what they were answered."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np

from needle.base.model import ReadMode
from proof.checkers.history import History
from proof.sim.client import Client
from proof.sim.spec import profile
from proof.sim.trace import Trace
from proof.sim.workload import Budget, Workload

VECTOR = np.array([3.0, 4.0], np.float32)


class Session:
    """One session of a client; a read waits until it is let go."""

    via = ""

    def __init__(self, vector: Any) -> None:
        self.found, self.go_on = vector, asyncio.Event()
        self.read: Any = None

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        await self.go_on.wait()
        self.read = self.found
        return 7, {"tag": "put"}, 0

    def vector(self) -> Any:
        return self.read

    def answered_by(self) -> int:
        return -1


async def test_a_client_that_is_renewed_while_it_reads_tells_what_was_read() -> None:
    shards: Any = SimpleNamespace(owner=lambda name: 0, last=lambda: {0: 0})
    loop: Any = SimpleNamespace(time=lambda: 0.0)
    history = History()
    work = Workload(loop, history, Trace(lambda: 0.0), profile(1), 1, Budget(10), shards, wide=False)
    work.updating("k", "update", VECTOR)
    made: list[Session] = []

    def connect() -> Any:
        made.append(Session(VECTOR))
        return made[-1]

    client = Client("c0", connect, work)
    reading = asyncio.create_task(client.get("k", ReadMode.STRONG))
    await asyncio.sleep(0)
    client.renew()
    made[0].go_on.set()
    assert await reading
    assert [op.seen for op in history.operations] == ["put~update"]
