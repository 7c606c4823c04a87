"""Searches of several replicas of one node: those that begin together go to a thread together, as searches of one
replica do, and of each one answer comes back for all replicas that a job has time for.

Replicas are searched one after another while a search takes no longer than PART_SECONDS by what searches took lately;
more are several parts, each a search by itself, whose hits are merged by who asks: then nobody else waits longer for a
thread than for a batch of such searches of one replica. Where workers have nothing to do, they share what takes longer
than a hand-over, if that pays (search_costs.py); where it does not, parts are longer, for they are in each other's way.

Invariant: that of `SearchBatcher`; no part holds more than HITS_MAX hits of one vector. It must not know leases.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from needle.base.errors import NeedleError
from needle.base.model import Claim, SearchRequest
from needle.shard.joined_calls import JOB_SECONDS, Calls
from needle.shard.search_batcher import SearchBatcher, Wanted
from needle.shard.search_costs import SearchCosts
from needle.shard.searching import SHORT_BYTES
from needle.shard.several import Member, Members, Searched, Several, Together, search_several

PART_SECONDS: Final = 0.002
WHOLE_SECONDS: Final = 0.005
"""So long instead of PART_SECONDS where parts that run beside each other do not pay."""
HITS_MAX: Final = 20_000
BATCH: Final = 16
"""So many searches of one replica are a job, too."""
SHORT_REPLICAS: Final = 16
"""A search of more is not short: each takes some fifty microseconds whatever it holds, and many times that at first."""
SHORT_SECONDS: Final = 0.001
"""Nor is one that takes longer by what such searches took lately: a few may be made on the event loop in one turn."""
LONG_SECONDS: Final = 0.02
"""A search that takes longer is divided whatever that costs: to learn more is not worth a job of all its replicas."""
KNOWN_MAX: Final = 64
"""So many sets of replicas that were searched together are remembered."""
COSTS_MAX: Final = 1024
"""Of so many collections how long searches take: those that were searched first are forgotten first."""


class Part(NamedTuple):
    """Some of the replicas of a call, which are searched together. first: the place of the first of them among all.
    found: of each vector."""

    first: int
    members: Members
    found: list[asyncio.Future[Together]]


class SeveralSearches:
    """Those of one node."""

    def __init__(self, pool: Calls, threads: int, spent: Callable[[], float]) -> None:
        """threads: so many jobs at once. spent: the processor time of the calling thread, in seconds: on a busy machine
        the clock says little of how long a search is."""
        self._spent = spent
        self._costs: dict[str, SearchCosts] = {}
        """By collection."""
        self._running: set[object] = set()
        """Jobs, in threads."""
        self._latest: object = None
        """The job that began last."""
        self._known: dict[tuple[int, ...], Members] = {}
        self._known_by: object = None
        self._batcher: SearchBatcher[Several, Together] = SearchBatcher(
            self._search, pool, in_flight_max=threads, short=self._is_short, turn=_turn
        )

    def members(self, by: object, replicas: Mapping[int, Searched], claim: Callable[[int], Claim]) -> Members:
        """These replicas, by their groups: the same each time as long as nothing has changed. by: the map that says
        what each of them is taken to own, as `claim` tells."""
        key = tuple(replicas)
        if self._known_by is not by or len(self._known) >= KNOWN_MAX:
            self._known_by = by
            self._known.clear()
        found = self._known.get(key)
        if found is None or [one.of for one in found.each] != [*replicas.values()]:
            found = self._known[key] = Members([Member(of, claim(group)) for group, of in replicas.items()])
        return found

    def begin(self, requests: Sequence[SearchRequest], members: Members, timeout: float) -> list[Part]:
        """Search replicas by each of some vectors. timeout: seconds within which it must have begun. Who does not wait
        any more calls `forget`. Raises Overloaded; nothing has begun then."""
        parts: list[Part] = []
        first = 0
        try:
            for some in members.parts(self._size(len(members), requests[0])):
                parts.append(Part(first, some, []))
                first += len(some)
                for request in requests:
                    parts[-1].found.append(self._batcher.begin(Several(request, some), timeout))
        except NeedleError:
            self.forget(requests[0].collection, parts)
            raise
        return parts

    def _size(self, members: int, request: SearchRequest) -> int:
        """How many replicas go together. There are 1, 2, 4, 8, ... parts, so that searches which come one after another
        have the same, and can go together."""
        most, costs, takes = max(1, HITS_MAX // request.k), self._costs.get(request.collection), 0.0
        shares, longest = 1, PART_SECONDS
        if costs is not None:
            takes, longest = costs.takes, PART_SECONDS if costs.pays else WHOLE_SECONDS
            if takes * members > JOB_SECONDS and (idle := self._batcher.idle_workers) > 1:
                if takes * members > LONG_SECONDS or costs.shares():
                    shares = idle
                elif members <= BATCH:  # no longer than a batch of one replica's, and nobody waits
                    longest = BATCH * takes
        parts, size = 1, members
        while size > 1 and (size > most or parts < shares or takes * size > longest):
            parts *= 2
            size = -(-members // parts)
        return size

    def forget(self, collection: str, parts: Sequence[Part]) -> None:
        """Nobody waits for what is not done yet."""
        for part in parts:
            for found in part.found:
                if not found.done() or found.cancelled():  # it may be the caller's task that was cancelled in it
                    self._batcher.forget((collection, part.members), found)

    def _is_short(self, asked: Several) -> bool:
        """Whether a search of all these takes less than to hand it to a thread and back."""
        count, costs = len(asked.members), self._costs.get(asked.collection)
        if count > SHORT_REPLICAS or (costs is not None and costs.takes * count > SHORT_SECONDS):
            return False
        left = SHORT_BYTES
        try:
            for member in asked.members.each:
                left -= member.of.replica.reads().short_bytes(asked.request)
                if left < 0:
                    return False
        except NeedleError:  # the search itself leaves the replica out
            return False
        return True

    def _search(self, asked: list[Several], wanted: Wanted) -> Sequence[Together | NeedleError]:
        """In a thread."""
        return search_several(asked, wanted, self._took)

    @contextmanager
    def _took(self, one: Several, count: int) -> Iterator[None]:
        job, alone = object(), not self._running
        self._running.add(job)
        self._latest, began = job, self._spent()
        try:
            yield
        finally:
            self._running.discard(job)
        took = (self._spent() - began) / (count * len(one.members))
        costs = self._costs.get(one.collection)
        if costs is None:
            if len(self._costs) >= COSTS_MAX:
                self._costs.pop(next(iter(self._costs)), None)
            costs = self._costs[one.collection] = SearchCosts()
        costs.note(took, alone=alone and self._latest is job)

    async def passed(self) -> None:
        """Returns once the jobs that run now have ended: what begins later leaves replicas out that are stopping."""
        self._known.clear()  # they hold what is about to be closed
        await self._batcher.passed()

    async def close(self) -> None:
        """Refuse what waits and let running jobs end."""
        await self._batcher.close()


def _turn(asked: Several) -> Hashable:
    return asked.collection, asked.members
