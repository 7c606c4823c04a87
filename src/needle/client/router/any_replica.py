"""A read of one shard that any of its replicas may answer: they are asked until one does, or the time is over.

Invariant: what every replica would answer alike is raised at once; of the rest the caller hears in the end what each
has said last. It must not know what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn

from needle.base.errors import (
    DeadlineExceeded,
    NeedleError,
    Overloaded,
    TooManyRequests,
    TooStale,
    in_seconds,
)
from needle.base.parts import Payload
from needle.client.router.by_node import Before, Led
from needle.client.router.hedging import Hedging, answers_of_all
from needle.client.waiting import wait_of, waited_for
from needle.routing.topology import Topology

LOOK_SECONDS = 0.02
"""For a newer topology, before all are asked again."""


class AnyReplica:
    """The reads of one router."""

    def __init__(
        self, topology: Callable[[], Topology], refresh: Callable[[int, float], Coroutine[Any, Any, Topology]]
    ) -> None:
        """As of FanOut."""
        self._topology = topology
        self._refresh = refresh
        self.hedging = Hedging()

    async def ask(
        self,
        shard: int,
        group: Led,
        method: str,
        body: Callable[[float], bytes],
        timeout: float,
        after: Before | None = None,
    ) -> Payload:
        """The answer. after: if the shard was asked together with others before. Raises TooStale, Overloaded or
        DeadlineExceeded if no replica answers in time, and what all of them would say."""
        loop = asyncio.get_running_loop()
        deadline, whole = loop.time() + timeout, timeout
        failures: dict[str, NeedleError] = {}
        try:
            if after is not None:
                whole += after.spent
                if after.error is not None:
                    answers_of_all(after.error)
                    failures[after.at] = after.error
            while (left := deadline - loop.time()) > 0:
                answer = await self.hedging.ask(group, group.replicas(), method, body, left, failures)
                if answer is not None:
                    return answer
                await self._pause(failures, deadline)
            _give_up(shard, whole, failures)
        finally:
            failures.clear()
            del after  # an error of theirs may be raised, and hold this frame

    async def _pause(self, failures: Mapping[str, NeedleError], deadline: float) -> None:
        """Before all are asked again. Raises TooManyRequests where none would have room again in what is left."""
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        busy = [error for error in failures.values() if isinstance(error, TooManyRequests)]
        try:
            if busy and len(busy) == len(failures):
                await asyncio.sleep(waited_for(min(busy, key=wait_of), left))
            else:  # nodes may have moved since this topology: a newer one tells where to
                await self._refresh(self._topology().version + 1, min(left, LOOK_SECONDS))
        finally:
            busy.clear()  # as above


def _give_up(shard: int, whole: float, failures: Mapping[str, NeedleError]) -> NoReturn:
    """failures: by address. whole: the seconds that the caller gave."""
    told = "; ".join(f"{address}: {error.message}" for address, error in sorted(failures.items()))
    stale = next((error.details for error in failures.values() if isinstance(error, TooStale)), None)
    if stale is not None:
        raise TooStale(f"no replica of shard {shard} is fresh enough after {in_seconds(whole)} ({told})", **stale)
    if failures and all(isinstance(error, Overloaded) for error in failures.values()):
        raise next(iter(failures.values()))  # by its name: it was like this until the end
    raise DeadlineExceeded(
        f"no replica of shard {shard} answered within {in_seconds(whole)} ({told or 'none reached'})"
    )
