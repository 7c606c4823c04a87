"""Bringing a shard's collections up to date: whoever asked for it may be gone when it fails."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from client.fake_shards import virtually
from needle.base.errors import Unavailable
from needle.protocol.peer_calls import TopologyCall
from needle.routing.topology import Topology
from needle.server.catalog.collections import Reconciler
from needle.server.service.catalog import CatalogCalls


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
    reconciler = Reconciler(
        SimpleNamespace(host=host, groups=groups, topology=SimpleNamespace(version=1), now=lambda: 0.0)
    )  # type: ignore[arg-type]
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

    reconciler = Reconciler(
        SimpleNamespace(host=host, groups={1: None, 2: None}, topology=SimpleNamespace(version=1), now=lambda: 0.0)
    )  # type: ignore[arg-type]
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
        node = SimpleNamespace(
            host=host, groups={1: None, 2: None, 3: None}, topology=SimpleNamespace(version=1), now=loop.time
        )
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
