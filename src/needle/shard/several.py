"""A search of several replicas of one node as one: the nearest of all of them, and only their documents are read.

Invariant: of the replicas that answered, the hits are the k nearest by (distance, id, place of the replica), as if each
had answered alone and all answers had been merged. One that cannot answer gives no hits, and does not say why: it has
to be asked alone: so does one that lacks the index of a field, which takes seconds to make. Each is searched at one
applied index, which the answer tells.

Threads: any. It must not know nodes, leases or the event loop.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import chain, repeat
from typing import Final, NamedTuple, Protocol

from needle.base.config import Limits
from needle.base.errors import DeadlineExceeded, NeedleError
from needle.base.model import Claim, CollectionSpec, HitBatch, SearchRequest, near_enough
from needle.shard.documents.projection import projection
from needle.shard.fields.builders import NoBuilders
from needle.shard.hits import columns
from needle.shard.query import Checked, alike, checked
from needle.shard.reads import Reads
from needle.shard.search_batcher import TOO_LATE
from needle.shard.searching import Documents, Found, while_wanted

Took = Callable[["Several", int], AbstractContextManager[None]]
"""Is told of so many searches that are made at once; of one of them."""
Row = tuple[float, int, int]
"""Of a hit: distance, the place of its replica, ordinal."""
_LEFT_TO_OTHERS: Final = NoBuilders()
_NOTHING: Final = HitBatch([], [], [], [], b"", 0)


class Served(Protocol):
    """A replica, as far as this needs it."""

    def reads(self) -> Reads:
        """Raises NeedleError if nothing may be answered."""
        ...


class Searched(Protocol):
    """A replica that a node hosts."""

    @property
    def replica(self) -> Served: ...
    @property
    def stopping(self) -> bool:
        """Nothing of it may be begun any more: it is about to be closed."""
        ...


class Member(NamedTuple):
    """One of the replicas of a search, and what it must own to answer."""

    of: Searched
    claim: Claim


class Members:
    """The replicas of a search. Searches go together if they have the very same one: to compare replicas and claims
    would cost each of them more than all else that is done for a further replica."""

    __slots__ = ("_parts", "each")

    def __init__(self, each: Sequence[Member]) -> None:
        self.each = tuple(each)
        self._parts: dict[int, tuple[Members, ...]] = {}

    def __len__(self) -> int:
        return len(self.each)

    def parts(self, size: int) -> tuple[Members, ...]:
        """The same, in their order, so many together at most; each time the same parts."""
        if size >= len(self.each):
            return (self,)
        found = self._parts.get(size)
        if found is None:
            each = (self.each[first : first + size] for first in range(0, len(self.each), size))
            found = self._parts[size] = tuple(map(Members, each))
        return found


class Several(NamedTuple):
    """A search of several replicas, by one vector."""

    request: SearchRequest
    members: Members

    @property
    def collection(self) -> str:
        """By the name in the shards."""
        return self.request.collection


class Together(NamedTuple):
    """What several replicas have found. places: of each hit the place of its replica among the members. applied: of
    each member the log index at which it was searched; None if it has not answered."""

    hits: HitBatch
    places: list[int]
    applied: Sequence[int | None]


def search_several(asked: Sequence[Several], wanted: Callable[[int], bool], took: Took) -> list[Together | NeedleError]:
    """Those that ask the same replicas, and differ in their vectors only, are searched at once. wanted: as of
    `state_machine.Replica.search_many`. took: is told of them when they begin and when they have ended."""
    groups: dict[Members, list[int]] = {}
    for at, one in enumerate(asked):
        groups.setdefault(one.members, []).append(at)
    results: dict[int, Together | NeedleError] = {}
    for members, places in groups.items():
        for grouped in alike([asked[at].request for at in places]):
            those = [at for at in (places[each] for each in grouped) if wanted(at)]
            if those:
                go_on = partial(while_wanted, those, wanted)
                found: Sequence[Together | NeedleError]
                try:
                    with took(asked[those[0]], len(those)):
                        found = _search(members.each, [asked[at].request for at in those], go_on)
                except NeedleError as error:  # of what these ask for: others in the job have their answers
                    found = [error.with_traceback(None)] * len(those)
                results.update(zip(those, found, strict=True))
    late = DeadlineExceeded(TOO_LATE)
    return [results.get(at, late) for at in range(len(asked))]


class _Checks:
    """Vectors are checked once for all replicas whose collection takes the same."""

    def __init__(self, requests: Sequence[SearchRequest]) -> None:
        self._requests = requests
        self._last: tuple[object, Checked] | None = None

    def of(self, spec: CollectionSpec, limits: Limits) -> Checked:
        """See `query.checked`."""
        key = spec.dimensions, spec.metric, spec.dtype, limits
        if self._last is None or self._last[0] != key:
            self._last = key, checked(self._requests, spec, limits)
        return self._last[1]


class _Part(NamedTuple):
    """What one replica has found."""

    reads: Reads
    found: Found


def _search(members: Sequence[Member], requests: Sequence[SearchRequest], go_on: Callable[[], None]) -> list[Together]:
    """Of requests that differ in their vectors only."""
    parts: dict[int, _Part] = {}
    with ExitStack() as held:
        checks = _Checks(requests)
        for place, (of, claim) in enumerate(members):
            if of.stopping:
                continue
            try:
                reads = of.replica.reads()
            except NeedleError:
                continue
            held.enter_context(reads.entered())
            found = reads.find(requests, claim, checks.of, _LEFT_TO_OTHERS, go_on)
            first = next(iter(parts.values()), None)  # all others are like it
            if found is not None and (first is None or _is_like(found, first.found)):
                parts[place] = _Part(reads, found)
        rows, documents = _nearest(parts, requests)
    spec = next((found.of.spec for _, found in parts.values()), None)
    shown, answers = projection(requests[0].fields), list[Together]()
    seen = [parts[place].found.applied if place in parts else None for place in range(len(members))]
    last = max([part.found.applied for part in parts.values()], default=0)
    wrong = {place: part.found.wrong for place, part in parts.items() if part.found.wrong}
    for at, hits in enumerate(rows):
        batch, applied = _NOTHING, seen
        if spec is not None:
            listed, distances = [documents[place][ordinal] for _, place, ordinal in hits], [far for far, _, _ in hits]
            batch = columns(listed, distances, requests[at], last, spec, shown)
        if wrong:
            applied = [None if at in wrong.get(place, ()) else index for place, index in enumerate(seen)]
        answers.append(Together(batch, [place for _, place, _ in hits], applied))
    return answers


def _is_like(found: Found, other: Found) -> bool:
    """Whether hits of both can stand in one answer. They cannot while a shard still has a collection of before."""
    mine, its = found.of.spec, other.of.spec
    return mine is its or (mine.metric, mine.form) == (its.metric, its.form)


def _nearest(
    parts: dict[int, _Part], requests: Sequence[SearchRequest]
) -> tuple[list[list[Row]], dict[int, Documents]]:
    """The k nearest of each request, by (distance, id, place), and their documents by place. A part whose documents
    cannot be read is taken out of `parts`."""
    first = requests[0]
    metadata = first.with_metadata or bool(first.order_by)
    while True:
        rows = [_nearer(parts, at, request) for at, request in enumerate(requests)]
        # Of those that may fall out, being as near as the k-th, only the ids are read.
        tied = [row for hits in rows if len(hits) > first.k for row in hits if not row[0] < hits[-1][0]]
        ids, failed = _documents(parts, tied, metadata=False, vectors=False)
        if not failed:
            if tied:
                rows = [_cut(hits, first.k, ids) if len(hits) > first.k else hits for hits in rows]
            documents, failed = _documents(parts, chain(*rows), metadata=metadata, vectors=first.with_vectors)
        if not failed:
            break
        for place in failed:
            del parts[place]
    for hits in rows:
        if len({far for far, _, _ in hits}) < len(hits):  # ties stand in the order of their places so far
            hits.sort(key=lambda row: (row[0], documents[row[1]][row[2]].id, row[1]))
    return rows, documents


def _nearer(parts: dict[int, _Part], at: int, request: SearchRequest) -> list[Row]:
    """Hits of a request, nearest first: k, and all that are as near as the k-th; fewer if there are fewer."""
    found: list[tuple[int, list[int], list[float]]] = []
    bounded = request.max_distance is not None or request.min_score is not None
    for place, (_, part) in parts.items():
        ordinals, distances = part.nearest[at]
        if bounded:
            distances = distances[: near_enough(distances, part.of.spec.metric, request)]
        if distances:
            found.append((place, ordinals, distances))
    every = sorted(chain.from_iterable([distances for _, _, distances in found]))  # runs, which are merged
    rows: list[Row] = []
    for place, ordinals, distances in found:
        near = len(distances) if len(every) <= request.k else bisect_right(distances, every[request.k - 1])
        rows += zip(distances[:near], repeat(place), ordinals, strict=False)
    rows.sort()
    return rows


def _cut(hits: list[Row], k: int, ids: dict[int, Documents]) -> list[Row]:
    """Without what is as near as the k-th and has a greater id. ids: of all that are as near."""
    last = hits[-1][0]
    tied = [row for row in hits if not row[0] < last]
    tied.sort(key=lambda row: (ids[row[1]][row[2]].id, row[1]))
    return [*hits[: len(hits) - len(tied)], *tied][:k]


def _documents(
    parts: dict[int, _Part], rows: Iterable[Row], *, metadata: bool, vectors: bool
) -> tuple[dict[int, Documents], list[int]]:
    """Of these hits, by place; and the places of those whose documents cannot be read."""
    wanted: dict[int, set[int]] = {}
    for _, place, ordinal in rows:
        wanted.setdefault(place, set()).add(ordinal)
    found: dict[int, Documents] = {}
    failed: list[int] = []
    for place, ordinals in wanted.items():
        reads, part = parts[place]
        documents = reads.documents(part, sorted(ordinals), metadata=metadata, vectors=vectors)
        if documents is None:
            failed.append(place)
        else:
            found[place] = documents
    return found, failed
