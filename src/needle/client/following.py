"""Hearing in time where a cluster's nodes are, while nobody calls: an idle client asks one of them now and then.

A client learns of other nodes when a call finds that something has changed. One that rests while all the nodes that it
knows are replaced would find nobody afterwards. So every few seconds it asks a node for a topology newer than its own;
the answer is a few bytes where there is none.

Invariants: one timer and one question at a time; it ends with the client, closed or forgotten. It asks nodes to which
there are connections already, once there are enough of these: an idle client of a large cluster opens no more.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Final, Protocol

from needle.base.runtime import Rng

FOLLOW_SECONDS: Final = 10.0
"""Between two questions, on average: clients that began together do not ask together."""
NEAR: Final = 3
"""Connections that are enough to hear of news: so many nodes are not all cut off from the others at once."""


class Followed(Protocol):
    """`known_topology.AskedTopology`."""

    def look(self, *, near: bool = False) -> None:
        """Ask for news in the background. near: where there are connections already."""
        ...


class Following:
    """Has `known` look from now on, until `stop`, or nobody else has it any more. Within a running event loop."""

    def __init__(self, known: Followed, rng: Rng) -> None:
        self._known = weakref.ref(known)
        self._rng = rng
        self._timer = self._later()

    def _later(self) -> asyncio.TimerHandle:
        seconds = FOLLOW_SECONDS * (0.5 + self._rng.random())
        return asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        known = self._known()
        if known is not None:
            known.look(near=True)
            self._timer = self._later()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._timer.cancel()
