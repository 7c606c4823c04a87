"""When a node deletes the files of a replica that it has given up, and when it keeps them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import node, topology
from client.fake_shards import virtually
from needle.base.errors import DiskFailed, NotLeader, WrongCluster
from needle.base.ids import GroupId
from needle.base.model import RaftStatus
from needle.client.health import ReplicaStatus
from needle.protocol import calls
from needle.protocol.calls import StatusCall
from needle.routing.topology import NodeState, ShardInfo, Topology
from needle.server.beats import Beats
from needle.server.upkeep.given_up import STEP_FILES, GivenUp, why_kept, why_not_elsewhere
from needle.shard.disk import ReplicaDisk

ME, FOUNDING = "node-6", 77


def shards(now: Topology, *held: tuple[str, ...], **changes: Any) -> Topology:
    infos = tuple(
        ShardInfo(shard=at, replicas=nodes, founders=(), assigned=5, retired=not nodes) for at, nodes in enumerate(held)
    )
    return msgspec.structs.replace(now, shards=infos, **changes)


OTHERS = ("node-1", "node-2", "node-3")
NOW = shards(topology(), OTHERS, ("node-4", ME), (), version=9, founding=FOUNDING)


def status(of: str, group: int, **changes: Any) -> RaftStatus:
    values: dict[str, Any] = {
        "node_id": of, "group": group, "state": "Leader" if of == OTHERS[0] else "Follower", "current_term": 3,
        "leader": OTHERS[0], "commit_index": 50, "last_applied": 50, "first_index": 1, "last_index": 50, "peers": [],
        "learners": [], "lease_remaining": 0, "leader_changes": 0, "voters": list(OTHERS),
    }  # fmt: skip
    return RaftStatus(**{**values, **changes})


class World:
    """node-6, with the files of some shards; it holds shard 1, and knew 50 entries of shard 0 to be committed."""

    node_id = ME
    cluster = SimpleNamespace(incarnation=1006)

    def __init__(self, root: Path, *held: int) -> None:
        self.config = SimpleNamespace(data_dir=str(root))
        self.root, self.groups, self.topology, self.truth = root / "shards", {GroupId(2): object()}, NOW, NOW
        self.disk = ReplicaDisk()
        self.ports = SimpleNamespace(file_pool=self, disk=self.disk)
        self.host = SimpleNamespace(stopped=False, known_commit=lambda _: 50, forget_state=self.forget)
        self.caller = self
        self.shards = SimpleNamespace(topology=lambda: self.topology)
        self.forgotten: list[int] = []
        self.told: dict[str, Any] = {}
        self.steps: list[str] = []
        self.in_between: Callable[[], None] = lambda: None
        self.leads = True
        for shard in (1, *held):
            self.add(str(shard))

    def add(self, name: str, files: int = 3) -> None:
        (self.root / name / "state-1" / "segments").mkdir(parents=True)
        for number in range(files):
            (self.root / name / "state-1" / "segments" / f"file-{number}").write_bytes(b"x")

    def names(self) -> list[str]:
        return sorted(os.listdir(self.root))

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        before = sum(len(files) for _, _, files in os.walk(self.root))
        found = function(*arguments)
        deleted = before - sum(len(files) for _, _, files in os.walk(self.root))
        assert deleted <= STEP_FILES
        return found

    @cached_property
    def beats(self) -> Beats:
        return Beats(self.now, lambda: self.host.stopped)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def forget(self, group: int) -> None:
        assert str(group - 1) in self.names()  # before the files go
        self.forgotten.append(group)

    @asynccontextmanager
    async def unmoved(self) -> AsyncIterator[None]:
        self.in_between()
        yield

    async def confirmed(self, timeout: float) -> Topology:
        if not self.leads:
            raise NotLeader("no majority has confirmed it")
        return self.truth

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        of = next(info.id for info in self.topology.nodes if info.address == address)
        return calls.encode(status(of, calls.decode(body, StatusCall).group, **self.told))

    def look(self) -> GivenUp:
        made = GivenUp(self)  # type: ignore[arg-type]
        virtually(made.look())
        return made


def test_what_others_hold_and_what_is_retired_goes_and_what_it_holds_stays(tmp_path: Path) -> None:
    world = World(tmp_path, 0, 2)
    assert world.look().kept == {}
    assert world.names() == ["1"] and world.forgotten == [1, 3]


def test_many_files_go_in_small_steps(tmp_path: Path) -> None:
    """`World.run` counts them."""
    world = World(tmp_path)
    world.add("0", files=5 * STEP_FILES)
    world.look()
    assert world.names() == ["1"]


def test_a_deletion_that_a_crash_has_broken_off_is_finished(tmp_path: Path) -> None:
    """Also while the catalog does not answer: it was certain already."""
    world = World(tmp_path)
    world.add("0.gone")
    world.leads = False
    world.look()
    assert world.names() == ["1"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shards": NOW.shards[:2]}, "does not know that shard"),  # a catalog that was restored from an older copy
        ({"version": 8}, "older than what this node has heard"),
        ({"settings": None}, "older than"),
        ({"nodes": tuple(one for one in NOW.nodes if one.id != ME)}, "does not know this node"),
        ({"nodes": (*NOW.nodes[:5], node(6, incarnation=5))}, "does not know this node"),
        ({"nodes": (*NOW.nodes[:5], node(6, state=NodeState.REMOVED))}, "was removed"),
        ({"shards": (*NOW.shards[:2], ShardInfo(shard=2, replicas=(ME,), founders=()))}, "is to hold it"),
    ],
)
def test_what_the_catalog_does_not_say_of_this_node_and_shard_deletes_nothing(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    world = World(tmp_path, 2)
    world.truth = msgspec.structs.replace(NOW, **change)
    assert why in world.look().kept[2]
    assert world.names() == ["1", "2"] and not world.forgotten
    assert why_kept(NOW, 9, ME, 1006, 2) == ""


def test_a_catalog_that_was_made_again_deletes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, 0, 2)
    world.truth = msgspec.structs.replace(NOW, founding=FOUNDING + 1, version=100)
    with pytest.raises(WrongCluster):
        world.look()
    assert world.names() == ["0", "1", "2"]


def test_without_the_catalogs_majority_nothing_is_deleted(tmp_path: Path) -> None:
    world = World(tmp_path, 0)
    world.leads = False
    with pytest.raises(NotLeader):
        world.look()
    assert world.names() == ["0", "1"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"state": "Follower"}, "no leader"),
        ({"commit_index": 49}, "has committed 49 entries, and this node knew of 50"),
        ({"voters": ["node-1", "node-2", ME]}, "not yet the nodes"),
        ({"learners": [ME]}, "not yet the nodes"),
    ],
)
def test_it_stays_until_the_others_have_all_that_it_had(tmp_path: Path, told: dict[str, Any], why: str) -> None:
    world = World(tmp_path, 0)
    world.told = told
    assert why in world.look().kept[0]
    assert world.names() == ["0", "1"]
    world.told = {}
    world.look()
    assert world.names() == ["1"]


def test_of_two_that_say_they_lead_the_later_one_counts() -> None:
    said = (
        status("node-2", 1, state="Leader", current_term=2, commit_index=90),
        status("node-1", 1, current_term=3, commit_index=40),
    )
    old, new = (ReplicaStatus(shard=0, node=one.node_id, address="", status=one) for one in said)
    assert "40 entries" in why_not_elsewhere(NOW.shards[0], [old, new], ME, 50)
    assert why_not_elsewhere(NOW.shards[0], [old, new], ME, 40) == ""


def test_a_shard_that_comes_back_meanwhile_keeps_its_files(tmp_path: Path) -> None:
    """It may have been opened between the question and the deletion."""
    world = World(tmp_path, 0)
    back = shards(NOW, (*OTHERS, ME), ("node-4", ME), (), version=10)

    def comes_back() -> None:
        world.topology = back

    world.in_between = comes_back
    world.look()
    assert world.names() == ["0", "1"] and not world.forgotten


def test_a_node_that_does_not_act_on_the_confirmed_catalog_yet_waits(tmp_path: Path) -> None:
    world = World(tmp_path, 0)
    world.truth = msgspec.structs.replace(NOW, version=12)
    world.look()
    assert world.names() == ["0", "1"]


def test_it_looks_again_until_they_are_gone_and_less_often_while_they_cannot_go(tmp_path: Path) -> None:
    world = World(tmp_path, 0)
    asked: list[float] = []
    world.told = {"state": "Follower"}

    async def work() -> GivenUp:
        confirmed = world.confirmed

        async def counted(timeout: float) -> Topology:
            asked.append(world.now())
            return await confirmed(timeout)

        world.confirmed = counted  # type: ignore[method-assign]
        made = GivenUp(world)  # type: ignore[arg-type]
        running = asyncio.get_running_loop().create_task(made.run())
        await asyncio.sleep(200)
        assert world.names() == ["0", "1"] and "no leader" in made.kept[0]
        world.told = {}
        await asyncio.sleep(40)
        world.host.stopped = True
        await running
        return made

    assert virtually(work()).kept == {}
    assert world.names() == ["1"]
    assert len(asked) < 25


class _FailingDisk(ReplicaDisk):
    """remove fails on some paths, and sync if it is told so."""

    def __init__(self, stuck: str = "nothing", *, syncs: bool = True) -> None:
        self.stuck, self.syncs = stuck, syncs

    def remove(self, path: str) -> None:
        if self.stuck in path:
            raise DiskFailed(f"cannot delete {path}", path=path)
        super().remove(path)

    def sync(self, path: str) -> None:
        if not self.syncs:
            raise DiskFailed(f"cannot sync {path}", path=path)
        super().sync(path)


def running_on(world: World, disk: ReplicaDisk) -> GivenUp:
    world.ports.disk = disk
    made = GivenUp(world)  # type: ignore[arg-type]

    async def some_time() -> None:
        asyncio.get_running_loop().call_later(60, lambda: setattr(world.host, "stopped", True))
        await made.run()

    virtually(some_time())
    return made


def test_what_cannot_be_deleted_is_told_of_and_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was tried in silence, and nothing else was deleted any more, nor told of."""
    world = World(tmp_path, 0, 2)
    with caplog.at_level("INFO"):
        made = running_on(world, _FailingDisk("0.gone"))
    assert world.names() == ["0.gone", "1"]
    assert made.told()[0][0] == 0 and "cannot delete" in made.told()[0][1]
    assert caplog.text.count("cannot delete") == 1
    world.host.stopped = False
    assert running_on(world, ReplicaDisk()).kept == {}
    assert world.names() == ["1"]


def test_a_shard_is_given_up_again_where_the_first_time_left_files(tmp_path: Path) -> None:
    world = World(tmp_path, 0)
    world.add("0.gone")
    assert "cannot delete" in running_on(world, _FailingDisk("0.gone")).kept[0]
    assert world.names() == ["0", "0.gone", "1"]


def test_a_failed_fsync_ends_the_node_here_too(tmp_path: Path) -> None:
    """What it was to make durable may be gone: it is not tried again."""
    with pytest.raises(DiskFailed, match="cannot sync"):
        running_on(World(tmp_path, 0), _FailingDisk(syncs=False))


def test_what_is_no_replica_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mine.gone")
    world.look()
    assert world.names() == ["1", "mine.gone"]
