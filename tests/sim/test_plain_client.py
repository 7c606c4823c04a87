"""A client without a map: any node will do, and one that says nothing at all is left for another."""

import asyncio
import random

import pytest

from harness.connected import Connected
from needle.base.errors import DeadlineExceeded
from needle.base.model import HitBatch
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from proof import plain_nodes
from proof.plain_client import PlainClient

VECTOR = [1.0, 0.0]


class Nodes(Connected):
    """Nodes that route. Those in `paused` say nothing; a search waits for `release`."""

    def __init__(self) -> None:
        self.paused: set[str] = set()
        self.searched: list[str] = []
        self.asked: list[str] = []
        self.release = asyncio.Event()

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        searches = method == calls.SEARCH
        (self.searched if searches else self.asked).append(address)
        try:
            async with asyncio.timeout(timeout):
                if address in self.paused:
                    await asyncio.Event().wait()
                if searches:
                    await self.release.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {address} in time") from None
        found = HitBatch([], [], [], [], b"", 0) if searches else LeaderAnswer("n", "n", 0, {})
        return calls.encode(found)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_nodes, "PATIENCE_SECONDS", 0.01)


async def test_a_node_that_says_nothing_is_left_for_another() -> None:
    nodes = Nodes()
    nodes.release.set()
    client = PlainClient(nodes, ["h:1", "h:2"], rng=random.Random(1))
    await client.search(VECTOR, 1)
    nodes.paused = {nodes.searched[0]}
    await asyncio.wait_for(client.search(VECTOR, 1, timeout=60), 30)
    assert nodes.searched[2] not in nodes.paused


async def test_a_node_that_is_slow_is_asked_once() -> None:
    nodes = Nodes()
    client = PlainClient(nodes, ["h:1", "h:2"], rng=random.Random(1))
    search = asyncio.create_task(client.search(VECTOR, 1, timeout=60))
    await wait_for(lambda: len(nodes.asked) >= 5, 30, "the node is asked whether it is there")
    nodes.release.set()
    assert await search == []
    assert len(nodes.searched) == 1
