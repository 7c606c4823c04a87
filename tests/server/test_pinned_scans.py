"""How consistent scans end: by their time, by what is kept for them, by a disk without room; what the wire takes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from client.fake_shards import virtually
from needle.base.config import Limits
from needle.base.errors import DiskFull, InvalidArgument, NotLeader
from needle.base.model import VectorSpec
from needle.base.versions import KNOWN
from needle.protocol import commands
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.chores.context import ChoreContext
from needle.server.chores.pinned_scans import LOOK_SECONDS, PinnedScans, kept_bytes
from needle.server.machine.disk_space import DiskSpace, Endless
from needle.server.service.documents import judged
from shard.replica_util import Log, open_replica, put, spec


class World:
    """One replica, the log that it leads, and virtual time (the running loop's)."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.replica, self.log = open_replica(path), Log()
        self.replica.apply(self.log.add(commands.CreateCollection(spec())))
        self.stopped = self.low = False
        self.leads = True
        self.fails = 0
        self.ahead = 0.0
        self.ended: list[tuple[float, list[int]]] = []
        self._now = asyncio.get_running_loop().time
        clock: Any = SimpleNamespace(monotonic=self._now, wall=lambda: self._now() + self.ahead)
        host: Any = self
        pool: Any = SimpleNamespace(run=self._run)
        topology = Topology(cluster_version=KNOWN)
        self.pinned = PinnedScans(
            ChoreContext(1, self.replica, host, clock, pool, lambda: topology, Beats(self._now)),
            limits,
            lambda: self.low,
        )

    async def _run(self, call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    def is_leader(self, _: int) -> bool:
        return self.leads

    async def propose(self, group: int, data: bytes, timeout: float) -> Any:
        if self.fails:
            self.fails -= 1
            raise NotLeader("not any more")
        command: Any = commands.decode_logged(data)
        self.ended.append((self._now(), command.pins))
        return self.replica.apply(self.log.add(command))[0]

    def pin(self, seconds: float) -> int:
        until = int((self._now() + seconds) * 1e6)
        index: int = self.replica.apply(self.log.add(commands.PinScan("c", len(self.log.entries), 0, until, 9)))[
            0
        ].index
        return index

    def overwrite(self, count: int) -> None:
        names = [f"d{n}" for n in range(count)]
        self.replica.apply(self.log.add(put(names, [[1, 2, 3]] * count, [{"text": "x" * 500}] * count)))

    async def run(self, seconds: float) -> None:
        task = asyncio.get_running_loop().create_task(self.pinned.run())
        await asyncio.sleep(seconds)
        task.cancel()


def test_a_scan_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path, Limits())
        await world.run(20)
        start = world._now()
        first, second = world.pin(3.5), world.pin(10)
        world.ahead = -100.0
        await world.run(20)
        world.ahead, world.leads = 0.0, False
        await world.run(2)
        assert world.ended == []  # neither by a clock that is behind, nor by a follower
        world.leads, world.fails = True, 2
        await world.run(5)
        assert [pins for _, pins in world.ended] == [[first, second]]
        third = world.pin(4)
        start = world._now()
        await world.run(9)
        assert world.ended[1][1] == [third] and 4 <= world.ended[1][0] - start <= 4 + LOOK_SECONDS
        assert world.replica.view.pins.open == ()

    virtually(work())


def test_the_oldest_scan_ends_while_too_much_is_kept(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path, Limits(pinned_scan_bytes_max=70_000))
        world.overwrite(50)
        first, second = world.pin(1000), world.pin(1000)
        world.overwrite(50)
        kept = world.replica.look(kept_bytes, first, 10**6)
        assert 50 * 512 <= kept <= 50 * 700
        await world.run(10)
        assert world.ended == []
        third = world.pin(1000)
        world.overwrite(50)
        fourth = world.pin(1000)
        world.overwrite(50)
        await world.run(10)
        assert [pins for _, pins in world.ended] == [[first], [second]]  # for the third, what died before is not kept
        assert [pin.index for pin in world.replica.view.pins.open] == [third, fourth]
        world.low = True
        await world.run(10)
        assert [pins for _, pins in world.ended[2:]] == [[third], [fourth]]
        while world.replica.tidy(all_of_it=True):
            pass
        assert world.replica.look(kept_bytes, 0, 10**6) == 0

    virtually(work())


def test_none_begins_on_a_disk_without_room() -> None:
    space = DiskSpace(Endless(), "nowhere")
    space.check(commands.PinScan("c", 1, 0, 0, 9))
    space.low = True
    with pytest.raises(DiskFull):
        space.check(commands.PinScan("c", 1, 0, 0, 9))
    space.check(commands.EndPins([1]))


@pytest.mark.parametrize(
    "command", [commands.PinScan("c", 1, 0, 0, 9), commands.EndPins([1]), commands.KnowCatalog(1, 2)]
)
def test_the_wire_takes_no_such_command_as_a_write(command: Any) -> None:
    with pytest.raises(InvalidArgument, match="by leaders only"):
        judged(SimpleNamespace(), SimpleNamespace(), command)  # type: ignore[arg-type]
    assert commands.decode(commands.encode(command)) == command
    assert command.needs() == 3
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(commands.encode(command)[1:]), 1])
    with pytest.raises(Exception, match="does not decode"):
        commands.decode(commands.FORMAT + longer)


def test_what_is_kept_of_named_vectors_counts(tmp_path: Path) -> None:
    """A change of a named vector keeps a row of it and one of the document."""

    async def work() -> None:
        world = World(tmp_path, Limits())
        named = VectorSpec(dimensions=1000).stored_as("c/title", "c")
        world.replica.apply(world.log.add(commands.CreateCollection(named)))
        world.overwrite(10)
        rows = np.ones((10, 1000), "<f4").tobytes()
        fill = commands.UpdateVectors("c", [f"d{n}" for n in range(10)], rows, name="c/title")
        world.replica.apply(world.log.add(fill))
        pinned = world.pin(100)
        world.replica.apply(world.log.add(fill))
        assert kept_bytes(world.replica.view, pinned, 1000) > len(rows)

    virtually(work())
