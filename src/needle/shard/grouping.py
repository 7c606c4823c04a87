"""The nearest documents by groups: of each value of a field, the nearest that have it.

Invariants: never fewer than k groups where k have a document that counts; each has its nearest documents, by (distance,
id), as far as the vectors find them: exactly with `exact`, and always for those of a group that were looked for alone.

How: the nearest documents are looked at in portions, each twice as large as the one before. What belongs to the groups
that are known is left out of the next portion, so each brings another group, or shows documents that have several
values. A group that shows fewer documents than wanted is then looked for alone: its documents are known by the field's
index, and most often few, which are scored exactly.

It must not know SQLite, faiss or the log: where it looks is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Sources(NamedTuple):
    """nearest: (k, of these) -> ordinals and distances, near first, of those within the search's bounds, and whether
    there may be more. read: their documents with metadata. matching: (condition, of these) -> those that match.
    several: those of them that may have more than one value. go_on: called every now and then; what it raises ends the
    work."""

    nearest: Callable[[int, BitMap], tuple[list[int], list[float], bool]]
    read: Callable[[list[int]], dict[int, StoredDocument]]
    matching: Callable[[Node, BitMap], BitMap]
    several: Callable[[BitMap], BitMap]
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
    whole = [looked.filled(group, among) for group in groups]
    found = sorted((group for group in whole if group.members), key=_nearness)
    kept = {member.ordinal for group in found for member in group.members}
    return found, {ordinal: looked.documents[ordinal] for ordinal in kept}


def _nearness(group: Group) -> tuple[Member, tuple[int, Any]]:
    """By which groups are ordered: those of one document by their values."""
    return group.members[0], rank(group.value)


class _Looked:
    """What the portions have shown."""

    def __init__(self, wish: Wish, sources: Sources) -> None:
        self._wish, self._sources = wish, sources
        self.groups: dict[Mark, Group] = {}
        self.documents: dict[int, StoredDocument] = {}

    def look(self, among: BitMap) -> None:
        """Until there are groups enough, or no more."""
        wish, sources = self._wish, self._sources
        left, portion = among.copy(), max(PORTION_MIN, 2 * wish.k)
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
            portion = min(2 * portion, PORTION_MAX)

    def _members(self, k: int, among: BitMap) -> tuple[list[Member], bool]:
        """The nearest, and whether there may be more."""
        ordinals, distances, more = self._sources.nearest(k + bool(self._wish.skip), among)
        documents = self._sources.read(ordinals)
        self.documents |= documents
        members = [Member(at, documents[one].id, one) for one, at in zip(ordinals, distances, strict=True)]
        return sorted(members), more

    def _put(self, members: list[Member]) -> list[Value]:
        """Into their groups; the values of those that are new."""
        new, kept = list[Value](), set[int]()
        for member in members:
            if member.id == self._wish.skip:
                continue
            metadata = decode_metadata(self.documents[member.ordinal].metadata)
            for mark, value in values_of(metadata, self._wish.path).items():
                group = self.groups.get(mark)
                if group is None:
                    group = self.groups[mark] = Group(value, [])
                    new.append(value)
                if len(group.members) < self._wish.size:
                    group.members.append(member)
                    kept.add(member.ordinal)
        for member in members:
            if member.ordinal not in kept:
                del self.documents[member.ordinal]
        return new

    def filled(self, group: Group, among: BitMap) -> Group:
        """With as many documents as are wanted and there are."""
        size, skip = self._wish.size, self._wish.skip
        if len(group.members) >= size:
            return group
        self._sources.go_on()
        own = self._sources.matching(has_any(self._wish.path, [group.value]), among)
        if len(own) <= len(group.members):
            return group
        members, _ = self._members(size, own)
        return Group(group.value, [member for member in members if member.id != skip][:size])
