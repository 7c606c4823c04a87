"""Three nodes without a network: what each answers is written down beforehand."""

from __future__ import annotations

import asyncio

from needle.base.errors import ConnectionLost, DeadlineExceeded, NeedleError, NotLeader
from needle.base.model import HitBatch, WriteResult
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer, WriteCall
from needle.protocol.commands import Insert, OpenSession, decode

ADDRESSES = {"n1": "h:1", "n2": "h:2", "n3": "h:3"}
VECTOR = [1.0, 0.0]


class Network:
    """Three nodes; `leader` leads. answers: for each write in turn an error to raise, None to execute it."""

    def __init__(self) -> None:
        self.leader: str | None = "n1"
        self.down: set[str] = set()
        self.script: list[NeedleError | None] = []
        self.writes: list[tuple[str, Insert]] = []
        self.calls: list[tuple[str, str]] = []
        self.sessions = 0
        self.stale_hint: str | None = None
        self.term = 1
        self.waits = True
        self.waiting: list[GroupCall] = []
        self.elected = asyncio.Event()

    def elect(self, node: str) -> None:
        self.leader, self.term, self.waiting = node, self.term + 1, []
        self.elected.set()
        self.elected = asyncio.Event()

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.calls.append((address, method))
        await asyncio.sleep(0)
        node = next(name for name, there in ADDRESSES.items() if there == address)
        if node in self.down:
            raise ConnectionLost(f"cannot connect to {address}", address=address)
        if method == calls.LEADER:
            asked = calls.decode(body, GroupCall)
            if self.waits and asked.after_term >= self.term:
                self.waiting.append(asked)
                try:
                    await asyncio.wait_for(self.elected.wait(), timeout)
                except TimeoutError:
                    raise DeadlineExceeded("no answer in time") from None
            return calls.encode(LeaderAnswer(node, self.stale_hint or self.leader, self.term, ADDRESSES))
        if method == calls.SEARCH:
            return calls.encode(HitBatch([], [], [], [], b"", 7))
        if node != self.leader:
            raise NotLeader("not here", leader=self.leader, leader_address=ADDRESSES.get(self.leader or ""))
        command = decode(calls.decode(body, WriteCall).command)
        if isinstance(command, OpenSession):
            self.sessions += 1
            return calls.encode(WriteResult(version=0, index=100 * self.sessions))
        assert isinstance(command, Insert)
        self.writes.append((node, command))
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        return calls.encode(WriteResult(version=9, index=len(self.writes)))

    def connected(self, address: str) -> bool:
        return True

    async def connect(self, address: str, timeout: float) -> None:
        raise AssertionError("connected() says there is no need")

    async def close(self) -> None:
        return


def numbers(network: Network) -> list[tuple[int, int]]:
    return [(command.session.id, command.session.seq) for _, command in network.writes]
