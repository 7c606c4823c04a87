"""Bringing a shard's collections up to date: whoever asked for it may be gone when it fails."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from client.fake_shards import virtually
from needle.base.errors import Unavailable
from needle.base.model import CollectionSpec
from needle.protocol.peer_calls import TopologyCall
from needle.routing.topology import CollectionInfo, Topology
from needle.server.beats import Beats
from needle.server.catalog.collections import Reconciler
from needle.server.service.catalog import CatalogCalls
from needle.shard.name_changes import NameChanges


async def test_a_failure_that_nobody_waits_for_is_no_unseen_exception() -> None:
    stopping = asyncio.Event()

    async def read_index(group: int, timeout: float) -> None:
        await stopping.wait()
        raise Unavailable("this node is stopping")

    node: Any = SimpleNamespace(host=SimpleNamespace(term=lambda group: 1, read_index=read_index))
    reconciler, unseen = Reconciler(node), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    asking = asyncio.get_running_loop().create_task(reconciler.reconcile(1, 5.0))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    stopping.set()
    await asyncio.wait(reconciler._reconciling.values())
    gc.collect()
    await asyncio.sleep(0)
    assert not unseen
    with pytest.raises(Unavailable, match="stopping"):
        await reconciler.reconcile(1, 5.0)


async def test_a_shard_that_leaves_while_another_one_is_brought_up_to_date_does_not_end_the_node() -> None:
    groups, asked = {1: None, 2: None}, list[int]()
    host: Any = SimpleNamespace(stopped=False, term=lambda group: 1)

    def is_leader(group: int) -> bool:
        if group not in groups:
            raise Unavailable("it has no replica here")
        return True

    async def reconcile(group: int, timeout: float) -> None:
        asked.append(group)
        groups.pop(2, None)
        host.stopped = True

    host.is_leader = is_leader
    beats, topology = Beats(lambda: 0.0, lambda: host.stopped), SimpleNamespace(version=1)
    node: Any = SimpleNamespace(host=host, groups=groups, topology=topology, beats=beats)
    reconciler = Reconciler(node)
    reconciler.reconcile = reconcile  # type: ignore[method-assign]
    await reconciler.run()
    assert asked == [1]


async def test_a_shard_that_waits_holds_up_no_other_one() -> None:
    """They came one after the other: with many shards, one whose log could not confirm held up all behind it."""
    host: Any = SimpleNamespace(stopped=False, is_leader=lambda group: True, term=lambda group: 1)
    first_may_go_on = asyncio.Event()

    async def reconcile(group: int, timeout: float) -> None:
        if group == 1:
            await first_may_go_on.wait()
        else:
            first_may_go_on.set()
            host.stopped = True

    beats, topology = Beats(lambda: 0.0, lambda: host.stopped), SimpleNamespace(version=1)
    node: Any = SimpleNamespace(host=host, groups={1: None, 2: None}, topology=topology, beats=beats)
    reconciler = Reconciler(node)
    reconciler.reconcile = reconcile  # type: ignore[method-assign]
    async with asyncio.timeout(30):
        await reconciler.run()


def test_shards_that_have_what_the_catalog_says_cost_an_idle_node_no_tasks() -> None:
    """There was one for each shard, five times a second."""
    looks, tasks = list[int](), list[object]()
    host: Any = SimpleNamespace(stopped=False, term=lambda group: 1)

    def is_leader(group: int) -> bool:
        looks.append(group)
        host.stopped = len(looks) >= 30
        return group < 3

    async def reconcile(group: int, timeout: float) -> None:
        assert group < 3

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def begun(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
            tasks.append(work)
            return asyncio.Task(work, loop=loop, **options)

        loop.set_task_factory(begun)
        beats, topology = Beats(loop.time, lambda: host.stopped), SimpleNamespace(version=1)
        node = SimpleNamespace(host=host, groups={1: None, 2: None, 3: None}, topology=topology, beats=beats)
        reconciler = Reconciler(node)  # type: ignore[arg-type]
        reconciler.reconcile = reconcile  # type: ignore[method-assign]
        await reconciler.run()

    host.is_leader = is_leader
    virtually(run())
    assert len(looks) >= 30 and len(tasks) == 2


async def test_a_topology_that_the_caller_has_does_not_travel_to_be_confirmed() -> None:
    """Each shard of a node asked for the whole of it at each change."""
    newest = Topology(version=7, founding=5)

    async def confirmed(timeout: float) -> Topology:
        return newest

    node: Any = SimpleNamespace(
        node_id="n1", catalog=object(), confirmed=confirmed, host=SimpleNamespace(is_leader=lambda group: True)
    )
    calls = CatalogCalls(node)
    for call, travels in (
        (TopologyCall(7, 0.0, True, 5), False),
        (TopologyCall(6, 0.0, True, 5), True),
        (TopologyCall(7, 0.0, True, 4), True),  # of a catalog that was made again: it must be seen
        (TopologyCall(0, 0.0, True), True),
    ):
        assert ((await calls.topology(call)).topology is newest) == travels


def test_who_had_a_shard_brought_up_to_date_spares_the_next_look() -> None:
    """After each change the shard was looked at once more, which asks all its replicas for a round."""
    rounds, spec = list[float](), CollectionInfo(id=3, spec=CollectionSpec(name="books", dimensions=2))
    names = NameChanges(of=object())

    async def run() -> None:
        loop = asyncio.get_running_loop()

        async def read_index(group: int, timeout: float) -> None:
            rounds.append(loop.time())

        async def wait_applied(group: int, index: int, timeout: float) -> None:
            pass

        view = SimpleNamespace(collections={spec.stored_name: None}, names=names.with_one(spec.stored_name))
        hosted = SimpleNamespace(replica=SimpleNamespace(view=view))
        host = SimpleNamespace(
            stopped=False, term=lambda group: 1, is_leader=lambda group: True, read_index=read_index,
            wait_applied=wait_applied, status=lambda group: SimpleNamespace(last_index=9),
        )  # fmt: skip
        beats, now = Beats(loop.time, lambda: host.stopped), Topology(version=1)
        node: Any = SimpleNamespace(
            host=host, groups={1: hosted}, hosted=lambda group: hosted, beats=beats, topology=now
        )
        reconciler = Reconciler(node)
        node.topology = Topology(version=2, collections=(spec,))
        await reconciler.reconcile(1, 5.0)  # as `sync` has it
        looking = loop.create_task(reconciler.run())
        await asyncio.sleep(5.0)
        assert len(rounds) == 1
        node.topology = Topology(version=3, collections=(spec,))
        await asyncio.sleep(5.0)
        assert len(rounds) == 2
        node.groups = {}
        await asyncio.sleep(5.0)
        node.groups = {1: hosted}  # another replica of it, opened again
        await asyncio.sleep(5.0)
        assert len(rounds) == 3
        host.stopped = True
        await looking

    virtually(run())
