"""The recall of the searches that a replica really answers: a few of them are asked again, exactly, in the background.

Invariant: it takes at most CPU_SHARE of a core, in the thread that file checks use; it begins nothing while this node
answers a search, or anything else waits for its threads, and then drops what it has to do rather than let it wait. Only
a node that has had no moment for it in PATIENCE measures one all the same, of BUSY_BYTES at most. What is measured is
kept for an hour and for a bounded number of collections.
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
from needle.shard.recall import BYTES_MAX, Measured, recall_of

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 1.0
CPU_SHARE: Final = 0.01
KEPT_SECONDS: Final = 3600.0
PATIENCE: Final = 60.0
BUSY_BYTES: Final = 32 << 20
"""Of vectors that are scored, as float32: some 30 ms of a core."""
SAMPLES_MIN: Final = 20
"""Of fewer searches nothing is told."""
SAMPLES_MAX: Final = 200
COLLECTIONS_MAX: Final = 100
RECORDED_MAX: Final = 16
"""Vectors of searches that are kept of a collection."""


class _Samples:
    """Of one collection: when, and what. Their sums are kept, for they are asked for often."""

    def __init__(self) -> None:
        self.kept: deque[tuple[float, Measured]] = deque()
        self.found = self.near = 0.0

    def add(self, now: float, one: Measured) -> None:
        self.kept.append((now, one))
        self.found += one.found
        self.near += one.near
        self.drop(now - KEPT_SECONDS)

    def drop(self, since: float) -> None:
        """What is older, and all but the last SAMPLES_MAX."""
        while self.kept and (self.kept[0][0] < since or len(self.kept) > SAMPLES_MAX):
            _, one = self.kept.popleft()
            self.found -= one.found
            self.near -= one.near

    def recall(self) -> float:
        """Of all together: of a few of them alone an estimate says little."""
        return min(1.0, max(0.0, self.found / self.near)) if self.near > 0 else 1.0


class Recall:
    """Of one replica. samples: how many searches were measured so far."""

    def __init__(self, at: ChoreContext, rng: Rng, config: RaftConfig, busy: Callable[[], bool]) -> None:
        """config: says which share of the searches is measured. busy: whether this node answers searches now."""
        self._at = at
        self._rng = rng
        self._share = share = config.segments.recall_share
        self._limits = config.limits
        self._busy = busy
        self.samples = self._asked = 0
        self._found: dict[str, _Samples] = {}
        """By the collection's name in the shard, or that of the named vector that was searched."""
        self._recorded: dict[str, deque[bytes]] = {}
        """The vectors of some searches, by the collection's name in the shard."""
        self._waits: SearchRequest | None = None
        self._rests_until = 0.0
        self._due = at.clock.monotonic() + PATIENCE
        """From then on it is not put off any more."""
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
        name = _searched(request)
        if name not in self._recorded and len(self._recorded) >= COLLECTIONS_MAX:
            del self._recorded[next(iter(self._recorded))]
        self._recorded.setdefault(name, deque(maxlen=RECORDED_MAX)).append(bytes(request.vector))

    def recorded(self, name: str) -> list[bytes]:
        """The vectors of some searches of a collection, or of a named vector, the latest last: float32 as they came."""
        return list(self._recorded.get(name, ()))

    def told(self) -> dict[str, float]:
        """The recall of what was measured within the last hour, by the collection's name in the shard; of those with
        enough of it, and that are still there."""
        since, there = self._at.clock.monotonic() - KEPT_SECONDS, self._at.replica.view.collections
        found = {}
        for name, samples in list(self._found.items()):
            samples.drop(since)
            if not samples.kept or name not in there:
                del self._found[name]
            elif len(samples.kept) >= SAMPLES_MIN:
                found[name] = samples.recall()
        return found

    async def run(self) -> None:
        """Until the node stops."""
        while self._share and not self._at.host.stopped:
            await self._at.beats.next(LOOK_SECONDS)
            now = self._at.clock.monotonic()
            if self._waits is None or now < self._rests_until or self._put_off():
                continue
            request, self._waits = self._waits, None
            self._asked += 1
            share, look = None, self._at.replica.look
            part = self._asked, BUSY_BYTES if self._busy() else BYTES_MAX
            try:
                share = await self._at.pool.run(look, recall_of, request, self._limits, self._go_on, *part)
            except NeedleError as error:
                if self._at.replica.damage is not None:
                    raise
                log.debug("%s: the recall of a search is not known: %s", self._at.name, error)
            except Exception:  # a search that meets a bug, or no memory, ends no node: nor does asking it again
                log.exception("%s: the recall of a search cannot be measured", self._at.name)
            took = self._at.clock.monotonic() - now
            self._rests_until = now + took / CPU_SHARE
            if share is not None or now >= self._due:  # one that told nothing was an attempt, too
                self._due = self._rests_until + PATIENCE
            if share is not None:
                self._note(_searched(request), share)

    def _put_off(self) -> bool:
        return self._busy() and self._at.clock.monotonic() < self._due

    def _go_on(self) -> None:
        """Called in the thread, between two parts of the work."""
        if self._put_off():
            raise Unavailable("the node has got searches to answer")

    def _note(self, name: str, share: Measured) -> None:
        self.samples += 1
        if name not in self._found and len(self._found) >= COLLECTIONS_MAX:
            self.told()  # which drops what is old
            if len(self._found) >= COLLECTIONS_MAX:
                return
        self._found.setdefault(name, _Samples()).add(self._at.clock.monotonic(), share)


def _searched(request: SearchRequest) -> str:
    """What was searched, by its name in the shard."""
    return request.vector_name or request.collection
