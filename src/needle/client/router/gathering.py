"""The answers of several shards that are asked at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from needle.base.errors import NeedleError, StaleEpoch
from needle.client.router.hedging import forget

T = TypeVar("T")


async def gather(
    asking: dict[int, Coroutine[Any, Any, T]], partial: bool
) -> tuple[dict[int, T], dict[int, NeedleError]]:
    """All results by shard; the first error ends it, unless `partial` and the error may pass."""
    if len(asking) == 1 and not partial:  # without a task
        [(shard, work)] = asking.items()
        return {shard: await work}, {}
    loop = asyncio.get_running_loop()
    tasks = {loop.create_task(work): shard for shard, work in asking.items()}
    waiting, failed = set(tasks), dict[int, NeedleError]()
    done: set[asyncio.Task[T]] = set()
    task: asyncio.Task[T] | None = None
    error: BaseException | None = None
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=tasks.__getitem__):
                error = task.exception()
                if error is None:
                    continue
                if not partial or not isinstance(error, NeedleError) or isinstance(error, StaleEpoch):
                    raise error
                if not error.retryable:
                    raise error
                failed[tasks[task]] = error
        found = {shard: task.result() for task, shard in tasks.items() if shard not in failed}
        return found, dict(sorted(failed.items()))
    finally:
        forget(tasks)
        del tasks, waiting, done, task, error, failed  # an error that is raised holds this frame, and these hold it
