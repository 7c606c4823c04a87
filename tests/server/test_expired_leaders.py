"""A leader whose certificate has expired: nobody connects to it any more, so it hands over what it leads, and nobody
hands it anything back. By real processes: tests/cluster/test_tls_processes.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from client.fake_shards import virtually
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.server.beats import Beats
from needle.server.certificates import EXPIRED
from needle.server.service.operations import Operations
from needle.server.upkeep.leaders import LeaderSpread
from needle.server.upkeep.roomier_leaders import RoomierLeaders
from server.test_leader_news import FakeHost, node_of

PEER = SimpleNamespace(recently_active=True, is_learner=False, lag_entries=0)


class Group:
    """Groups 0 and 1, which node-1 leads; each of `others` says of itself what hinders it."""

    maintenance, stopped = False, False

    def __init__(self, **others: str) -> None:
        self._others = {name.replace("_", "-"): hinders for name, hinders in others.items()}
        self.led = {0, 1}
        self.moved: list[tuple[int, str]] = []

    def groups(self) -> list[int]:
        return [0, 1]

    def is_leader(self, group: int) -> bool:
        return group in self.led

    def status(self, group: int) -> Any:
        return SimpleNamespace(peers=[SimpleNamespace(id=name, **vars(PEER)) for name in self._others])

    async def call(self, peer: str, method: str, body: bytes, timeout: float) -> bytes:
        return calls.encode(LeaderAnswer(peer, "node-1", 1, {}, False, True, self._others[peer]))

    async def transfer(self, group: int, to: str, timeout: float) -> str:
        self.led.discard(group)
        self.moved.append((group, to))
        return to


def leading(host: Group) -> Any:
    info = SimpleNamespace(shard=0, replicas=["node-2", "node-1"])
    return SimpleNamespace(
        node_id="node-1",
        config=SimpleNamespace(election_timeout=1.0),
        host=host,
        peers=host,
        space=SimpleNamespace(low=False),
        topology=SimpleNamespace(serving=[info, info], hosted_by=lambda node: [info]),
        groups={1: None},
        expired=False,
        now=lambda: asyncio.get_running_loop().time(),
        beats=Beats(lambda: asyncio.get_running_loop().time(), lambda: host.stopped),
    )


def test_it_hands_over_all_that_it_leads_to_whom_callers_reach() -> None:
    async def work() -> None:
        host = Group(node_2=EXPIRED, node_3="")
        node = leading(host)
        running = asyncio.create_task(RoomierLeaders(node).run())
        await asyncio.sleep(10)
        assert host.moved == [], "its certificate is good still"
        node.expired = True
        await asyncio.sleep(10)
        assert host.moved == [(0, "node-3"), (1, "node-3")]
        running.cancel()

    virtually(work())


def test_it_gets_back_nothing_though_the_catalog_prefers_it() -> None:
    async def moved(hinders: str) -> list[tuple[int, str]]:
        host = Group(node_2=hinders)
        host.led = {1}
        await LeaderSpread(leading(host))._look()
        return host.moved

    assert virtually(moved("")) == [(1, "node-2")]
    assert virtually(moved(EXPIRED)) == []


async def test_it_says_so_when_it_is_asked() -> None:
    node = node_of(FakeHost())
    node.expired = True
    assert (await Operations(node).leader(GroupCall(1, 5.0))).hinders == EXPIRED
