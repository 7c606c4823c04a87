"""What a leader puts into writes by its clock, and when it has documents deleted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import spec, topology
from client.fake_shards import virtually
from needle.base.config import RaftConfig
from needle.base.errors import InvalidArgument, NeedleError, NotLeader
from needle.base.versions import KNOWN
from needle.catalog.state import execute
from needle.protocol import commands
from needle.protocol.calls import WriteCall
from needle.protocol.catalog_commands import AlterCollection, CreateCollection, decode, encode
from needle.protocol.commands import NEVER, Change, ChangeWhere, Delete, Insert, Patch, UpdateVectors
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.chores.context import ChoreContext
from needle.server.chores.expiry import LOOK_SECONDS, MORE_SECONDS, ROWS_MAX, Expiry, timed
from needle.server.service.documents import judged
from needle.server.service.proxy import Proxy
from shard.replica_util import Log, open_replica, put
from shard.replica_util import spec as shard_spec

NOW = 1_000_000_000
CLOCK: Any = SimpleNamespace(wall=lambda: NOW / 1e6)


def after(*made: Any) -> Topology:
    now = topology()
    for index, command in enumerate([CreateCollection(spec("a"), False, 1), *made], start=2):
        now, result = execute(now, index, command)
        assert not isinstance(result, NeedleError), result
    return now


PLAIN = after()
BRIEF = after(AlterCollection("a", 2, 0, 5.0))
UNTIL = NOW + 5_000_000


def filled(command: Any, where: Topology = BRIEF) -> Any:
    made = timed(command, where, CLOCK)
    return made.change.expires if isinstance(made, Patch | ChangeWhere) else getattr(made, "expires", None)


def test_a_ttl_takes_the_place_of_what_is_left_open() -> None:
    assert BRIEF.named("a").spec.ttl == 5.0  # type: ignore[union-attr]
    three = Insert("a@2", ["x", "y", "z"], b"", [b""] * 3)
    assert filled(three) == [UNTIL] * 3
    some = Insert("a@2", ["x", "y", "z"], b"", [b""] * 3, expires=[0, NEVER, NOW + 1])
    assert filled(some) == [UNTIL, NEVER, NOW + 1]
    for said, then in ((0, UNTIL), (NEVER, NEVER), (NOW + 9, NOW + 9)):
        assert filled(Patch("a@2", ["x"], Change(expires=said))) == then
        assert filled(ChangeWhere("a@2", b"{}", Change(expires=said))) == then
        assert filled(UpdateVectors("a@2", ["x"], b"", expires=said)) == then
    for command in (Delete("a@2", ["x"]), ChangeWhere("a@2", b"{}", None)):
        assert timed(command, BRIEF, CLOCK) is command
    another = Insert("a@77", ["x"], b"", [b""])  # of that name, before it was dropped and made again
    assert timed(another, BRIEF, CLOCK) is another


def test_without_a_ttl_writes_stay_as_they_are() -> None:
    for command in (three := Insert("a@2", ["x"], b"", [b""]), Patch("a@2", ["x"], Change(unset=["y"]))):
        assert timed(command, PLAIN, CLOCK) is command
    assert timed(three, PLAIN, CLOCK) is three


@pytest.mark.parametrize("instant", [NOW, NOW - 1, 1, -2, 10**18])
def test_an_instant_that_has_passed_or_is_none_is_refused_by_name(instant: int) -> None:
    for command in (
        Insert("a@2", ["x", "y"], b"", [b"", b""], expires=[NOW + 1, instant]),
        Patch("a@2", ["x"], Change(expires=instant)),
        ChangeWhere("a@2", b"{}", Change(expires=instant)),
        UpdateVectors("a@2", ["x"], b"", expires=instant),
    ):
        with pytest.raises(InvalidArgument, match="expires_at"):
            timed(command, PLAIN, CLOCK)


def test_a_changed_ttl_makes_an_epoch_and_ef_search_does_not() -> None:
    epochs = []
    for made in (
        (),
        (AlterCollection("a", 2, 99),),
        (AlterCollection("a", 2, 0, 5.0),),
        (AlterCollection("a", 2, 0, 0.0),),
    ):
        now = after(*made)
        assert now.map is not None
        epochs.append(now.map.epoch)
        assert now.named("a").stored_spec.ttl == 0  # type: ignore[union-attr]  # shards are not told
    assert [epoch - epochs[0] for epoch in epochs] == [0, 0, 1, 0]
    both = after(AlterCollection("a", 2, 99, 5.0), AlterCollection("a", 2, 98)).named("a")
    assert both is not None and (both.spec.index.ef_search, both.spec.ttl) == (98, 5.0)
    old = encode(AlterCollection("a", 2, 99))
    assert msgspec.msgpack.decode(old[1:]) == ["alter", "a", 2, 99]  # without what came later
    assert decode(old) == AlterCollection("a", 2, 99)


# --- the driver ---
class World:
    """One replica, the log that it leads, and virtual time (the running loop's)."""

    def __init__(self, path: Path) -> None:
        self.replica, self.log = open_replica(path), Log()
        self.replica.apply(self.log.add(commands.CreateCollection(shard_spec())))
        self.stopped = False
        self.leads = True
        self.fails = 0
        self.ahead = 0.0
        self.proposed: list[tuple[float, int]] = []
        """When, and how many documents it deleted."""
        self._now = asyncio.get_running_loop().time
        clock: Any = SimpleNamespace(monotonic=self._now, wall=lambda: self._now() + self.ahead)
        host: Any = self
        pool: Any = SimpleNamespace(run=self._run)
        topology = Topology(cluster_version=KNOWN)
        at = ChoreContext(1, self.replica, host, clock, pool, lambda: topology, Beats(self._now))
        self.expiry = Expiry(at)

    async def _run(self, call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    def is_leader(self, _: int) -> bool:
        return self.leads

    async def propose(self, group: int, data: bytes, timeout: float) -> Any:
        if self.fails:
            self.fails -= 1
            raise NotLeader("not any more")
        result = self.replica.apply(self.log.add(commands.decode_logged(data)))[0]
        self.proposed.append((self._now(), result.count))
        return result

    def put(self, first: int, count: int, at: float) -> None:
        names = [f"d{n}" for n in range(first, first + count)]
        self.replica.apply(self.log.add(put(names, [[1, 2, 3]] * count, expires=[int(at * 1e6)] * count)))

    async def run(self, seconds: float) -> None:
        task = asyncio.get_running_loop().create_task(self.expiry.run())
        await asyncio.sleep(seconds)
        task.cancel()


def test_it_deletes_what_has_passed_bounded_paced_and_idle_otherwise(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        await world.run(30)
        assert world.proposed == []
        start = world._now()
        world.put(0, 10, start + 3.5)
        world.put(10, 2 * ROWS_MAX + 5, start + 10)
        await world.run(9)
        assert [count for _, count in world.proposed] == [10]
        assert 3.5 <= world.proposed[0][0] - start <= 3.5 + LOOK_SECONDS
        await world.run(30)
        counts = [count for _, count in world.proposed[1:]]
        assert counts == [ROWS_MAX, ROWS_MAX, 5]
        times = [at for at, _ in world.proposed[1:]]
        assert all(later - earlier > 0.99 * MORE_SECONDS for earlier, later in pairwise(times))
        assert world.replica.count() == 0
        # A clock that goes back, a follower, a leader that loses its office: nothing happens before its time.
        world.put(0, 3, world._now() + 5)
        world.ahead, before = -100.0, len(world.proposed)
        await world.run(50)
        world.ahead, world.leads = 0.0, False
        await world.run(20)
        assert len(world.proposed) == before and world.replica.count() == 3
        world.leads, world.fails = True, 2
        await world.run(5)
        assert [count for _, count in world.proposed[before:]] == [3]

    virtually(work())


def test_the_wire_takes_no_expire() -> None:
    expire = commands.Expire("c", 1, 1)
    with pytest.raises(InvalidArgument, match="by leaders only"):
        judged(SimpleNamespace(), SimpleNamespace(), expire)  # type: ignore[arg-type]

    async def at_once(_size: int, fn: Callable[..., Any], *arguments: object) -> Any:
        return fn(*arguments)

    async def routed() -> None:
        node = SimpleNamespace(config=RaftConfig(node_id="n", cluster_nodes=["n=h:1"], data_dir="unused"))
        proxy = Proxy(node, random.Random(1), at_once)  # type: ignore[arg-type]
        await proxy.write(WriteCall(1, commands.encode(expire), 1.0))

    with pytest.raises(InvalidArgument, match="by leaders only"):
        virtually(routed())
