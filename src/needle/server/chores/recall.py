"""The recall of the searches that a replica really answers: a few of them are asked again, exactly, in the background.

Invariant: it takes at most CPU_SHARE of a core, in the thread that file checks use; it begins nothing while this node
answers a search, or anything else waits for its threads, and then drops what it has to do rather than let it wait. What
is measured is kept for an hour and for a bounded number of collections.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from needle.base.config import RaftConfig
from needle.base.errors import NeedleError, Unavailable
from needle.base.model import SearchRequest
from needle.base.runtime import Rng
from needle.server.chores.context import ChoreContext
from needle.server.lasting import next_beat
from needle.shard.recall import recall_of

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 1.0
CPU_SHARE: Final = 0.01
KEPT_SECONDS: Final = 3600.0
SAMPLES_MIN: Final = 20
"""Of fewer searches nothing is told."""
SAMPLES_MAX: Final = 200
COLLECTIONS_MAX: Final = 100
RECORDED_MAX: Final = 16
"""Vectors of searches that are kept of a collection."""


class _Samples:
    """Of one collection: when, and what share. Their sum is kept, for it is asked for often."""

    def __init__(self) -> None:
        self.kept: deque[tuple[float, float]] = deque()
        self.total = 0.0

    def add(self, now: float, share: float) -> None:
        self.kept.append((now, share))
        self.total += share
        self.drop(now - KEPT_SECONDS)

    def drop(self, since: float) -> None:
        """What is older, and all but the last SAMPLES_MAX."""
        while self.kept and (self.kept[0][0] < since or len(self.kept) > SAMPLES_MAX):
            self.total -= self.kept.popleft()[1]


class Recall:
    """Of one replica. samples: how many searches were measured so far."""

    def __init__(self, at: ChoreContext, rng: Rng, config: RaftConfig, busy: Callable[[], bool]) -> None:
        """config: says which share of the searches is measured. busy: whether this node answers searches now."""
        self._at = at
        self._rng = rng
        self._share = share = config.segments.recall_share
        self._limits = config.limits
        self._busy = busy
        self.samples = 0
        self._found: dict[str, _Samples] = {}
        """By the collection's name in the shard."""
        self._recorded: dict[str, deque[bytes]] = {}
        """The vectors of some searches, by the collection's name in the shard."""
        self._waits: SearchRequest | None = None
        self._rests_until = 0.0
        self._left = self._draw() if share else 0

    def _draw(self) -> int:
        """After how many searches the next one is taken: 1 / share of them on average, never at a fixed step."""
        return max(1, round(self._rng.random() * 2 / self._share))

    def saw(self, request: SearchRequest) -> None:
        """This replica has answered a search. (Of most of them nothing but their number is taken.)"""
        if self._left:
            self._left -= 1
            if not self._left:
                self._left, self._waits = self._draw(), request
                self._record(request)

    def _record(self, request: SearchRequest) -> None:
        if request.collection not in self._recorded and len(self._recorded) >= COLLECTIONS_MAX:
            del self._recorded[next(iter(self._recorded))]
        self._recorded.setdefault(request.collection, deque(maxlen=RECORDED_MAX)).append(bytes(request.vector))

    def recorded(self, name: str) -> list[bytes]:
        """The vectors of some searches of a collection, the latest last: float32 as they came."""
        return list(self._recorded.get(name, ()))

    def told(self) -> dict[str, float]:
        """The mean of what was measured within the last hour, by the collection's name in the shard; of those with
        enough of it, and that are still there."""
        since, there = self._at.clock.monotonic() - KEPT_SECONDS, self._at.replica.view.collections
        found = {}
        for name, samples in list(self._found.items()):
            samples.drop(since)
            if not samples.kept or name not in there:
                del self._found[name]
            elif len(samples.kept) >= SAMPLES_MIN:
                found[name] = min(1.0, samples.total / len(samples.kept))
        return found

    async def run(self) -> None:
        """Until the node stops."""
        while self._share and not self._at.host.stopped:
            await next_beat(self._at.clock.monotonic(), LOOK_SECONDS)
            now = self._at.clock.monotonic()
            if self._waits is None or now < self._rests_until or self._busy():
                continue
            request, self._waits = self._waits, None
            try:
                share = await self._at.pool.run(self._at.replica.look, recall_of, request, self._limits, self._go_on)
            except NeedleError as error:
                if self._at.replica.damage is not None:
                    raise
                log.debug("%s: the recall of a search is not known: %s", self._at.name, error)
                share = None
            except Exception:  # a search that meets a bug, or no memory, ends no node: nor does asking it again
                log.exception("%s: the recall of a search cannot be measured", self._at.name)
                share = None
            took = self._at.clock.monotonic() - now
            self._rests_until = now + took / CPU_SHARE
            if share is not None:
                self._note(request.collection, share)

    def _go_on(self) -> None:
        """Called in the thread, between two parts of the work."""
        if self._busy():
            raise Unavailable("the node has got searches to answer")

    def _note(self, name: str, share: float) -> None:
        self.samples += 1
        if name not in self._found and len(self._found) >= COLLECTIONS_MAX:
            self.told()  # which drops what is old
            if len(self._found) >= COLLECTIONS_MAX:
                return
        self._found.setdefault(name, _Samples()).add(self._at.clock.monotonic(), share)
