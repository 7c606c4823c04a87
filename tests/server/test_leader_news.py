"""What a node is told of its peers' connections, and how long a caller may wait to hear of a new leader."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from needle.base.access import everybody
from needle.base.config import Limits
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.peer_calls import SHARD_LEADER
from needle.server.service.dispatch import Service
from needle.server.service.operations import AFTER_SECONDS_MAX, Operations


class FakeHost:
    maintenance = False
    damage = ""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.waits: list[tuple[int, int, float]] = []
        self.engine = self
        """What runs the groups: one thing here."""

    def disconnected(self, node: str) -> None:
        self.gone.append(node)

    async def leader_after(self, group: int, term: int, timeout: float) -> None:
        self.waits.append((group, term, timeout))

    def status(self, group: int) -> SimpleNamespace:
        return SimpleNamespace(leader="n2", current_term=4, lost="", damage=self.damage)


def node_of(host: FakeHost) -> Any:
    return SimpleNamespace(
        node_id="n1",
        host=host,
        addresses=lambda: {"n1": "h:1"},
        space=SimpleNamespace(low=False),
        expired=False,
        ports=SimpleNamespace(rng=None, audit=None, search_pool=None, spent=None),
        coordinator=None,
        config=SimpleNamespace(log=SimpleNamespace(slow_request_seconds=0.0), limits=Limits()),
        now=lambda: 0.0,
        observe=lambda *_: None,
    )


def service(host: FakeHost) -> Service:
    return Service(node_of(host))


def test_the_end_of_a_nodes_connection_is_told_to_raft_and_that_of_a_client_is_not() -> None:
    host = FakeHost()
    served = service(host)
    served.on_gone(SimpleNamespace(node_id=""))
    assert host.gone == []
    served.on_gone(SimpleNamespace(node_id="n3"))
    assert host.gone == ["n3"]


async def test_who_leads_is_told_at_once_unless_the_caller_waits_for_a_later_term() -> None:
    host = FakeHost()
    served = service(host)

    async def ask(call: GroupCall) -> LeaderAnswer:
        body = await served.on_request(
            SimpleNamespace(node_id="", identity=everybody()), SHARD_LEADER, calls.encode(call)
        )
        return calls.decode(body, LeaderAnswer)

    assert (await ask(GroupCall(1, 0.5))).leader == "n2"
    assert host.waits == []
    assert (await ask(GroupCall(1, 0.5, 3))).term == 4
    await ask(GroupCall(1, 3600.0, 3))
    assert host.waits == [(1, 3, 0.5), (1, 3, AFTER_SECONDS_MAX)]


async def test_a_node_whose_replica_is_damaged_says_so_when_it_is_asked_who_leads() -> None:
    host = FakeHost()
    host.damage = "documents.db is damaged"
    answer = await Operations(node_of(host)).leader(GroupCall(1, 5.0))
    assert answer.hinders == "documents.db is damaged"
