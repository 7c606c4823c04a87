"""Bringing a shard's collections up to date: whoever asked for it may be gone when it fails."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import Unavailable
from needle.server.catalog.collections import Reconciler


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
    host: Any = SimpleNamespace(stopped=False, status=lambda group: SimpleNamespace(current_term=1))

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
