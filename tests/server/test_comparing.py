"""A shard's leader compares its replicas at the same entry: who differs is told of, and nobody who is behind."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.fake_shards import virtually
from needle.base.errors import InvalidArgument, NotLeader, Unavailable
from needle.base.model import PeerStatus, RaftStatus
from needle.base.versions import KNOWN
from needle.client.conditions import NodeView, conditions
from needle.client.divergence import differing, strays
from needle.protocol import calls, commands
from needle.routing.topology import Topology
from needle.server.chores.comparing import COMPARE_SECONDS, DIGEST_AT, Comparing
from needle.server.chores.context import ChoreContext
from needle.server.service.documents import judged
from needle.shard.compared import KEPT, Compared
from shard.replica_util import Log, open_replica, put, spec


class World:
    """Three replicas of one log; n1 leads. silent: nodes that do not answer. differs: whose documents are others."""

    def __init__(self, path: Path) -> None:
        self.log = Log()
        self.replicas = {name: open_replica(path / name) for name in ("n1", "n2", "n3")}
        self.stopped, self.leads, self.version = False, True, KNOWN
        self.silent: set[str] = set()
        self.proposed = self.asked = 0
        now = asyncio.get_running_loop().time
        clock: Any = SimpleNamespace(monotonic=now, wall=now)
        host: Any = self
        self.comparing = Comparing(
            ChoreContext(1, self.replicas["n1"], host, clock, host, lambda: Topology(cluster_version=self.version)),
            lambda: ["n2", "n3"], self._call,
        )  # fmt: skip
        self.write(commands.CreateCollection(spec()))

    def write(self, command: Any, *, differs: str = "") -> Any:
        entries, told = self.log.add(command), None
        for name, replica in self.replicas.items():
            other = put(["a"], [[9, 9, 9]])
            mine = Log().add(other) if name == differs else entries
            found = replica.apply([SimpleNamespace(index=e.index, term=e.term, conf=e.conf, data=m.data)
                                   for e, m in zip(entries, mine, strict=True)])  # fmt: skip
            told = found[0] if name == "n1" else told
        return told

    def is_leader(self, _: int) -> bool:
        return self.leads

    def applied_index(self, _: int) -> int:
        return self.replicas["n1"].applied_index()

    def status(self, _: int) -> Any:
        return SimpleNamespace(node_id="n1")

    async def propose(self, group: int, data: bytes, timeout: float) -> Any:
        if not self.leads:
            raise NotLeader("not any more")
        self.proposed += 1
        return self.write(commands.decode_logged(data))

    async def _call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        assert method == DIGEST_AT
        self.asked += 1
        if node in self.silent:
            raise Unavailable("silent")
        found = self.replicas[node].compared.at(calls.decode(body, tuple[int, int])[1])
        return calls.encode([] if found is None else [found])

    async def run(self, beats: int) -> None:
        task = asyncio.get_running_loop().create_task(self.comparing.run())
        await asyncio.sleep((beats + 0.5) * COMPARE_SECONDS)
        task.cancel()


def test_equal_replicas_are_compared_once_after_a_change(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        world.write(put(["a", "b"], [[1, 2, 3], [4, 5, 6]]))
        await world.run(5)
        assert (world.proposed, world.comparing.whole, world.comparing.diverged) == (1, 1, {})
        assert world.comparing.index == world.replicas["n1"].applied_index()
        world.write(put(["c"], [[1, 2, 3]]))
        await world.run(5)
        assert (world.proposed, world.comparing.whole) == (2, 2)
        world.leads = False
        world.write(put(["d"], [[1, 2, 3]]))
        await world.run(5)
        assert (world.proposed, world.comparing.index) == (2, 0)  # a follower compares nothing
        world.leads, world.version = True, 3
        await world.run(5)
        assert world.proposed == 2  # older nodes could not read the entry

    virtually(work())


def test_a_replica_that_differs_is_told_of_until_it_is_as_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        world = World(tmp_path)
        world.write(put(["a"], [[1, 2, 3]]), differs="n3")
        with caplog.at_level(logging.INFO, "needle.server"):
            await world.run(4)
            found = world.comparing
            assert strays(found.diverged) == ["n3"]
            assert found.diverged.keys() == {"n1", "n2", "n3"}
            told = [record.getMessage() for record in caplog.records]
            assert len(told) == 1  # once, not at each comparison
            digest = world.replicas["n3"].digest()
            assert "shard 0" in told[0] and f"n3 has {digest}" in told[0] and "n3 differs from most" in told[0]
            world.silent = {"n3"}
            await world.run(2)
            assert strays(found.diverged) == ["n3"]  # that it is silent now makes it no better
            world.silent = set()
            world.write(put(["a"], [[1, 2, 3]]))  # (its ordinals are the same again, so are its documents)
            await world.run(2)
            assert found.diverged == {}
            assert "hold the same again" in caplog.records[-1].getMessage()

    virtually(work())


def test_one_that_is_silent_is_asked_again_and_one_that_has_no_note_is_not(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        world.write(put(["a"], [[1, 2, 3]]))
        world.silent = {"n2"}
        world.replicas["n3"].compared.at = lambda index: None  # type: ignore[method-assign]
        await world.run(3)
        assert (world.proposed, world.asked, world.comparing.whole) == (1, 4, 0)
        world.silent = set()
        await world.run(3)
        assert (world.proposed, world.asked, world.comparing.whole) == (1, 5, 0)  # n2 answered, and n3 never can
        assert world.comparing.diverged == {}

    virtually(work())


def test_a_replica_keeps_a_few_notes_and_each_of_its_own_entry(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(commands.CreateCollection(spec())))
    entries = [*log.add(put(["a"], [[1, 2, 3]])), *log.add(commands.Compare()), *log.add(put(["b"], [[1, 2, 3]]))]
    replica.apply(entries)  # together
    other = open_replica(tmp_path / "other")
    for entry in log.entries[:3]:
        other.apply([entry])
    assert replica.compared.at(3) == other.digest() != replica.digest()
    notes = Compared()
    for index in range(1, KEPT + 3):
        notes.note(index, f"{index}")
    assert notes.at(2) is None
    assert notes.at(3) == "3"


def test_who_differs_from_most() -> None:
    assert strays({}) == []
    assert strays({"a": "1", "b": "1"}) == []
    assert strays({"a": "2", "b": "1", "c": "1"}) == ["a"]
    assert "a differs from most" in differing({"a": "2", "b": "1", "c": "1"}, 7)
    assert "no digest is that of most" in differing({"a": "2", "b": "1"}, 7)


def test_the_wire_takes_no_such_command_as_a_write() -> None:
    with pytest.raises(InvalidArgument, match="by leaders only"):
        judged(SimpleNamespace(), SimpleNamespace(), commands.Compare())  # type: ignore[arg-type]
    assert commands.decode(commands.encode(commands.Compare())) == commands.Compare()
    assert commands.Compare().needs() == 4


def test_status_and_health_tell_of_it() -> None:
    leader = RaftStatus(
        node_id="n1", group=1, state="Leader", current_term=2, leader="n1", commit_index=9, last_applied=9,
        first_index=1, last_index=9, peers=list[PeerStatus](), voters=["n1", "n2", "n3"], learners=[],
        lease_remaining=1.0, leader_changes=1, compared=9, diverged={"n1": "aa", "n2": "aa", "n3": "bb"},
    )  # fmt: skip
    view = NodeView(node="n1", address="a:1", status=leader)
    found = [one for one in conditions([view]) if one.alert == "NeedleReplicaDivergence"]
    assert [(one.severity, one.runbook) for one in found] == [("critical", "docs/alerts.md#needlereplicadivergence")]
    assert "index 9 n1 has aa, n2 has aa, n3 has bb: n3 differs from most" in found[0].subject
