"""A shard's leader compares its replicas at the same entry: who differs is told of, and nobody who is behind."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catalog.catalog_util import create
from client.fake_shards import virtually
from needle.base.compared import KEPT, Compared
from needle.base.errors import InvalidArgument, NotLeader, Unavailable
from needle.base.ids import CATALOG_GROUP
from needle.base.model import PeerStatus, RaftStatus
from needle.base.versions import KNOWN
from needle.catalog.machine import CatalogMachine, form
from needle.client.conditions import NodeView, catalog_conditions, conditions
from needle.client.divergence import differing, strays
from needle.protocol import calls, commands
from needle.protocol.catalog_commands import encode
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.chores.comparing import COMPARE_SECONDS, DIGEST_AT, Comparing, ShardCompared
from needle.server.chores.comparing_catalog import CatalogCompared
from needle.server.chores.context import ChoreContext
from needle.server.service.documents import judged
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
            ShardCompared(
                ChoreContext(1, self.replicas["n1"], host, clock, host, self._topology, Beats(now)),
            ),
            lambda: ["n2", "n3"], self._call,
        )  # fmt: skip
        self.write(commands.CreateCollection(spec()))

    def _topology(self) -> Topology:
        return Topology(cluster_version=self.version)

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


def founding(nodes: int) -> bytes:
    return encode(create(1, 1, nodes))


class CatalogWorld:
    """Three replicas of the catalog; n1 leads. odd: the node that founds the cluster otherwise, if any."""

    def __init__(self, path: Path, *, odd: str = "") -> None:
        self.machines = {name: CatalogMachine(str(path / name)) for name in ("n1", "n2", "n3")}
        self.odd, self.leads, self.stopped, self.index, self.asked = odd, True, False, 0, 0
        self.forms = dict.fromkeys(self.machines, form())
        now = asyncio.get_running_loop().time
        node: Any = self
        self.sides = {
            name: CatalogCompared(node, node, lambda name=name: self.machines[name], Beats(now))  # type: ignore[misc]
            for name in self.machines
        }
        self.comparing = Comparing(self.sides["n1"], self.sides["n1"].others, self._call)

    def write(self, *commands_: bytes, batches: bool = False) -> None:
        """Entries; batches: which followers get in one step, the leader one by one."""
        entries = [
            SimpleNamespace(index=self.index + n + 1, term=1, conf=None, data=d) for n, d in enumerate(commands_)
        ]
        self.index += len(entries)
        for name, machine in self.machines.items():
            mine = [SimpleNamespace(**{**vars(e), "data": founding(2)}) if name == self.odd else e for e in entries]
            for batch in [mine] if batches and name != "n1" else [[one] for one in mine]:
                machine.apply(batch)

    def is_leader(self, _: int) -> bool:
        return self.leads

    def applied_index(self, _: int) -> int:
        return self.machines["n1"].applied_index()

    def status(self, _: int) -> Any:
        return SimpleNamespace(node_id="n1", leader="n1", voters=["n1", "n2", "n3"], learners=[])

    async def run(self, work: Any, *values: Any) -> Any:
        return work(*values)

    async def _call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        self.asked += 1
        group, index = calls.decode(body, tuple[int, int])
        assert (method, group) == (DIGEST_AT, CATALOG_GROUP)
        found = await self.sides[node].answer(index)
        return calls.encode([*found[:1], self.forms[node]] if found else [])

    async def beats(self, count: int) -> None:
        task = asyncio.get_running_loop().create_task(self.comparing.run())
        await asyncio.sleep((count + 0.5) * COMPARE_SECONDS)
        task.cancel()


def test_the_replicas_of_the_catalog_are_compared_without_an_entry(tmp_path: Path) -> None:
    async def work() -> None:
        world = CatalogWorld(tmp_path)
        await world.beats(2)
        assert (world.comparing.index, world.asked) == (0, 0)  # nothing was ever applied
        world.write(founding(1), b"", b"", batches=True)
        await world.beats(4)
        assert (world.comparing.index, world.comparing.whole, world.asked) == (3, 1, 2)  # once, at the last one
        world.machines["n2"].close()
        world.machines["n2"] = CatalogMachine(str(tmp_path / "n2"))  # a restart: it says what it was opened with
        world.leads = False
        await world.beats(2)
        world.leads = True
        await world.beats(2)
        assert (world.comparing.whole, world.comparing.diverged) == (2, {})

    virtually(work())


def test_a_replica_of_the_catalog_that_differs_is_told_of_until_it_has_the_others(tmp_path: Path) -> None:
    async def work() -> None:
        world = CatalogWorld(tmp_path, odd="n3")
        world.write(founding(1))
        await world.beats(3)
        assert strays(world.comparing.diverged) == ["n3"]
        image = tmp_path / "image"
        image.mkdir()
        world.machines["n1"].export_snapshot(str(image))
        world.machines["n3"].install_snapshot(str(image))  # as of the same entry: nothing was written since
        await world.beats(2)
        assert world.comparing.diverged == {}

    virtually(work())


def test_a_replica_of_the_catalog_that_went_on_has_nothing_to_say_of_an_entry(tmp_path: Path) -> None:
    async def work() -> None:
        world = CatalogWorld(tmp_path)
        world.write(founding(1))
        for name in ("n2", "n3"):  # their batches end behind the leader's
            world.machines[name] = machine = CatalogMachine(str(tmp_path / f"{name}-anew"))
            machine.apply([SimpleNamespace(index=n, term=1, conf=None, data=founding(1) if n == 1 else b"")
                           for n in (1, 2)])  # fmt: skip
        await world.beats(3)
        assert (world.asked, world.comparing.whole, world.comparing.diverged) == (2, 0, {})
        world.machines["n1"].apply([SimpleNamespace(index=2, term=1, conf=None, data=b"")])
        await world.beats(3)
        assert (world.comparing.index, world.comparing.whole, world.comparing.diverged) == (2, 1, {})

    virtually(work())


def test_catalogs_that_are_written_in_another_form_are_not_compared(tmp_path: Path) -> None:
    async def work() -> None:
        world = CatalogWorld(tmp_path, odd="n3")
        world.forms["n3"] = "of another release"
        world.write(founding(1))
        await world.beats(3)
        assert (world.comparing.diverged, world.comparing.whole) == ({}, 0)

    virtually(work())


def test_status_and_health_tell_of_the_catalog() -> None:
    leader = RaftStatus(
        node_id="n1", group=0, state="Leader", current_term=2, leader="n1", commit_index=9, last_applied=9,
        first_index=1, last_index=9, peers=list[PeerStatus](), voters=["n1", "n2", "n3"], learners=[],
        lease_remaining=1.0, leader_changes=1, compared=9, diverged={"n1": "aa", "n2": "aa", "n3": "bb"},
    )  # fmt: skip
    (found,) = catalog_conditions([NodeView(node="n1", address="a:1", status=leader)])
    assert (found.alert, found.severity) == ("NeedleReplicaDivergence", "critical")
    assert found.subject.startswith("catalog: at index 9 n1 has aa") and "n3 differs from most" in found.subject
