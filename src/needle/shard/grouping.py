"""The nearest documents by groups: of each value of a field, the nearest that have it.

Invariants: never fewer than k groups where k have a document that counts; each has its nearest documents, by (distance,
id), as far as the vectors find them: exactly with `exact`, and always for those of a group that were looked for alone.

How: the nearest documents are looked at in portions, each twice as large as the one before. What belongs to the groups
that are known is left out of the next portion, so each brings another group, or shows documents that have several
values. Groups that show fewer documents than wanted are then filled: their documents are known by the field's index.
Where these are few, those of many groups are scored together, exactly; else those of one are looked for alone.

It must not know SQLite, faiss or the log: where it looks is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

import msgspec
from pyroaring import BitMap

from needle.base.config import Limits
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import invalid
from needle.base.filters.builder import field_path
from needle.base.filters.nodes import Node
from needle.base.filters.values import Mark, Value, has_any, has_value, marked, rank, values_of
from needle.base.model import SearchRequest
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import StoredDocument

PORTION_MIN: Final = 64
PORTION_MAX: Final = 8192
"""Documents that are looked at together."""
GROUP_ROWS: Final = 64
"""Where a portion shows fewer groups than one in so many documents, to look at large ones would cost more than to ask
more often: all that they bring is farther documents of the same groups."""
LOOKED_SHARE: Final = 4
"""But a portion is at least as large as one in so many of all that was looked at: each is a search among all that is
left, so that there are few of them whatever documents lie together."""
TOGETHER_ROWS: Final = 1024
"""A group of more documents is looked for alone: to score them all may take longer than a search among them."""
SCORED_ROWS: Final = 65_536
"""Documents of several groups that are scored together, at most about."""
READ_ROWS: Final = 1024
"""Documents of several groups that are read together, at most about: of those at equal distance some may fall out."""
GO_ON_ROWS: Final = 64
"""A document may have tens of thousands of values."""


class Sources(NamedTuple):
    """nearest: (k, of these) -> ordinals and distances, near first, of those within the search's bounds, and whether
    there may be more. read: their documents with metadata. matching: (condition, of these) -> those that match.
    several: those of them that may have more than one value. owned: (values, of these) -> for each of the values those
    that have it, one after the other. scored: as `nearest`, all of these, exactly. go_on: called every now and then;
    what it raises ends the work."""

    nearest: Callable[[int, BitMap], tuple[list[int], list[float], bool]]
    read: Callable[[list[int]], dict[int, StoredDocument]]
    matching: Callable[[Node, BitMap], BitMap]
    several: Callable[[BitMap], BitMap]
    owned: Callable[[Sequence[Value], BitMap], Iterable[BitMap]]
    scored: Callable[[BitMap], tuple[list[int], list[float]]]
    go_on: Callable[[], None]


class Wish(NamedTuple):
    """path: the field's. k: groups. size: of each, documents at most. also: groups that are wanted beside the k
    nearest. skip: the id of a document that does not count, "" for none."""

    path: tuple[str, ...]
    k: int
    size: int
    also: Sequence[Value] = ()
    skip: str = ""


def wish_of(request: SearchRequest, limits: Limits) -> Wish:
    """What a search by groups asks for. Raises InvalidArgument."""
    path, size = field_path(request.group_by), request.group_size
    if not 1 <= request.k * size <= limits.k_max:
        raise invalid("group_size", size, f"at least 1, and with k (and offset) multiplied at most {limits.k_max}")
    try:
        also = msgspec.json.decode(request.groups, type=list[Value]) if request.groups else []
    except DECODE_ERRORS as error:
        raise invalid("groups", request.groups[:60], f"a list of values in JSON ({error})") from None
    if len(also) > request.k:
        raise invalid("groups", f"{len(also)} values", f"at most k, which is {request.k}")
    return Wish(path, request.k, size, also, request.like)


class Member(NamedTuple):
    """A document of a group. As tuples they are ordered as hits are."""

    distance: float
    id: str
    ordinal: int


class Group(NamedTuple):
    """A value and its nearest documents, near first."""

    value: Value
    members: list[Member]


def nearest_groups(wish: Wish, among: BitMap, sources: Sources) -> tuple[list[Group], dict[int, StoredDocument]]:
    """The groups by their nearest documents, and the documents of all. among: the ordinals that count."""
    among = sources.matching(has_value(wish.path), among)
    looked = _Looked(wish, sources)
    looked.look(among)
    groups = sorted(looked.groups.values(), key=_nearness)[: wish.k]
    known = {marked(group.value) for group in groups}
    groups += [Group(value, []) for value in wish.also if marked(value) not in known]
    found = sorted((group for group in looked.filled(groups, among) if group.members), key=_nearness)
    kept = {member.ordinal for group in found for member in group.members}
    return found, {ordinal: looked.documents[ordinal] for ordinal in kept}


def _nearness(group: Group) -> tuple[Member, tuple[int, Any]]:
    """By which groups are ordered: those of one document by their values."""
    return group.members[0], rank(group.value)


def _by_value(told: tuple[Mark, Value]) -> tuple[int, Any]:
    return rank(told[1])


class _Looked:
    """What the portions have shown."""

    def __init__(self, wish: Wish, sources: Sources) -> None:
        self._wish, self._sources = wish, sources
        self.groups: dict[Mark, Group] = {}
        self.documents: dict[int, StoredDocument] = {}

    def look(self, among: BitMap) -> None:
        """Until there are groups enough, or no more."""
        wish, sources = self._wish, self._sources
        left, portion, looked = among.copy(), min(max(PORTION_MIN, 2 * wish.k), PORTION_MAX), 0
        while left and len(self.groups) < wish.k:
            sources.go_on()
            members, more = self._members(min(portion, len(left)), left)
            new = self._put(members)
            if not more:
                break
            left -= BitMap([member.ordinal for member in members])
            if new and len(self.groups) < wish.k:
                theirs = sources.matching(has_any(wish.path, new), left)
                left -= theirs - sources.several(theirs)
            looked += len(members)
            portion = max(_next(portion, len(new)), min(looked // LOOKED_SHARE, PORTION_MAX))

    def _members(self, k: int, among: BitMap) -> tuple[list[Member], bool]:
        """The nearest, and whether there may be more."""
        ordinals, distances, more = self._sources.nearest(k + bool(self._wish.skip), among)
        documents = self._sources.read(ordinals)
        self.documents |= documents
        members = [Member(at, documents[one].id, one) for one, at in zip(ordinals, distances, strict=True)]
        return sorted(members), more

    def _put(self, members: list[Member]) -> list[Value]:
        """Into their groups, near first; the values of those that are new, k at most: all others are farther."""
        wish, new, kept = self._wish, list[Value](), set[int]()
        for at, member in enumerate(members):
            if not at % GO_ON_ROWS:
                self._sources.go_on()
            if member.id == wish.skip:
                continue
            values = values_of(decode_metadata(self.documents[member.ordinal].metadata), wish.path)
            told = values.items() if len(new) + len(values) <= wish.k else sorted(values.items(), key=_by_value)
            for mark, value in told:
                group = self.groups.get(mark)
                if group is None:
                    if len(new) == wish.k:
                        continue
                    group = self.groups[mark] = Group(value, [])
                    new.append(value)
                if len(group.members) < wish.size:
                    group.members.append(member)
                    kept.add(member.ordinal)
            if len(new) == wish.k and wish.size == 1:
                break  # nobody behind this one is in any group
        for member in members:
            if member.ordinal not in kept:
                del self.documents[member.ordinal]
        return new

    def filled(self, groups: Sequence[Group], among: BitMap) -> list[Group]:
        """Each with as many documents as are wanted and there are."""
        lacking = [group for group in groups if len(group.members) < self._wish.size]
        found: dict[Mark, Group] = {}
        small, rows = list[tuple[Group, BitMap]](), 0
        if lacking:
            for group, own in zip(lacking, self._sources.owned([one.value for one in lacking], among), strict=True):
                self._sources.go_on()
                if len(own) <= len(group.members):
                    continue
                if len(own) > TOGETHER_ROWS:
                    members, _ = self._members(self._wish.size, own)
                    found[marked(group.value)] = self._cut(group, members)
                    continue
                small.append((group, own))
                rows += len(own)
                if rows >= SCORED_ROWS:
                    found |= self._together(small)
                    small, rows = [], 0
        found |= self._together(small)
        return [found.get(marked(group.value), group) for group in groups]

    def _together(self, owned: Sequence[tuple[Group, BitMap]]) -> dict[Mark, Group]:
        """Each group with the nearest of its own documents, of which there are few."""
        near = dict(zip(*self._sources.scored(BitMap.union(BitMap(), *(own for _, own in owned))), strict=True))
        found: dict[Mark, Group] = {}
        some, rows = list[tuple[Group, list[int]]](), 0
        for group, own in owned:
            some.append((group, _nearest_of(own, near, self._wish.size + bool(self._wish.skip))))
            rows += len(some[-1][1])
            if rows >= READ_ROWS:
                found |= self._read(some, near)
                some, rows = [], 0
        return found | self._read(some, near)

    def _read(self, some: Sequence[tuple[Group, list[int]]], near: Mapping[int, float]) -> dict[Mark, Group]:
        """Groups of these documents, which are those wanted, and others at the distance of the last."""
        self._sources.go_on()
        unknown = {one for _, ordinals in some for one in ordinals} - self.documents.keys()
        read = self._sources.read(sorted(unknown))
        found: dict[Mark, Group] = {}
        for group, ordinals in some:
            documents = ((one, self.documents.get(one) or read[one]) for one in ordinals)
            found[marked(group.value)] = self._cut(group, sorted(Member(near[at], one.id, at) for at, one in documents))
        kept = {member.ordinal for group in found.values() for member in group.members}
        self.documents |= {ordinal: document for ordinal, document in read.items() if ordinal in kept}
        return found

    def _cut(self, group: Group, members: Sequence[Member]) -> Group:
        """With the first of these that count, as many as are wanted."""
        return Group(group.value, [one for one in members if one.id != self._wish.skip][: self._wish.size])


def _next(portion: int, new: int) -> int:
    """How many documents to look at after so many have shown so many new groups."""
    if not new or new * (GROUP_ROWS // 4) >= portion:
        return min(2 * portion, PORTION_MAX)
    return max(portion // 2, PORTION_MIN) if new * GROUP_ROWS < portion else portion


def _nearest_of(own: BitMap, near: Mapping[int, float], k: int) -> list[int]:
    """The k nearest of a group's documents of which distances are known, and all that are as near as the last."""
    order = sorted((near[ordinal], ordinal) for ordinal in own if ordinal in near)
    if len(order) > k:
        last = order[k - 1][0]
        order = order[:k] + list(takewhile(lambda one: one[0] == last, order[k:]))
    return [ordinal for _, ordinal in order]
