"""What changed of a topology from one version to another, so that one change travels, and is written, as one change.

Invariant: changes make either the topology that their sender has, or nothing: they name the sum over it, and who puts
them into what it knows compares. So it does not matter of which node, release or moment the known one is. A sum is over
the fields, and over the rows of the collections, each for itself: it follows a change at the cost of that. Changes name
what is so now of all that has changed since a version, not what to do. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec
import xxhash

from needle.base.decoding import DECODE_ERRORS
from needle.routing.topology import CollectionInfo, Topology

FORM: Final = 0x7A8BAAF2
"""Of a topology as this release knows it: one with other fields has other sums. A test says what it is to be."""
ROWS_MAX: Final = 512
"""Collections that are named in changes; of more the whole topology is told."""
STEPS_MAX: Final = 1024
NAMES_MAX: Final = 8192
"""Changes that are remembered, and names of collections in all of them."""
SUM_MASK: Final = (1 << 64) - 1
REMEMBERED: Final = 32
"""Differences that are known without a look."""
_SMALL: Final = 8
_ROWS: Final = "collections"
_KINDS: Final = {field.name: field.type for field in msgspec.structs.fields(Topology) if field.name != _ROWS}
_DECODERS: Final = {name: msgspec.msgpack.Decoder(kind) for name, kind in _KINDS.items()}
_of_rows: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_encode = msgspec.msgpack.Encoder().encode
_name = attrgetter("spec.name")


Rows = tuple[CollectionInfo, ...]
"""By name."""


class Changes(msgspec.Struct, frozen=True, array_like=True):
    """since: of which version the topology is, at least, that they are put into. version, sum: of the one that they
    make. fields: those that are others, as they are now. rows: collections that came, or are others. gone: names of
    those that are not there any more."""

    since: int
    version: int
    sum: int
    fields: dict[str, msgspec.Raw]
    rows: tuple[CollectionInfo, ...] = ()
    gone: tuple[str, ...] = ()


class Difference(NamedTuple):
    """Between two topologies. gone, came: rows of the one that are not in the other; of a changed collection both."""

    fields: tuple[str, ...]
    gone: tuple[CollectionInfo, ...]
    came: tuple[CollectionInfo, ...]

    @property
    def names(self) -> set[str]:
        """Of the collections."""
        return {_name(info) for info in (*self.gone, *self.came)}


class Summed:
    """A topology and the sum over it."""

    __slots__ = ("_fields", "_rows", "topology")

    def __init__(self, topology: Topology, fields: dict[str, int], rows: int) -> None:
        """As `of` makes it."""
        self.topology, self._fields, self._rows = topology, fields, rows

    @classmethod
    def of(cls, topology: Topology) -> Summed:
        """Takes half a millisecond for each thousand collections."""
        fields = {name: _field_sum(name, getattr(topology, name)) for name in _KINDS}
        return cls(topology, fields, rows_sum(topology.collections))

    @property
    def sum(self) -> int:
        """64 bits."""
        return (sum(self._fields.values()) + self._rows) & SUM_MASK

    def next(self, now: Topology) -> tuple[Summed, Difference]:
        """Another topology, at the cost of what is another object in it, and what differs."""
        before = self.topology
        others = [name for name in _KINDS if getattr(now, name) is not getattr(before, name)]
        fields = tuple(name for name in others if getattr(now, name) != getattr(before, name))
        gone, came = differing(before.collections, now.collections)
        sums = {**self._fields, **{name: _field_sum(name, getattr(now, name)) for name in fields}}
        rows = (self._rows - rows_sum(gone) + rows_sum(came)) & SUM_MASK
        return Summed(now, sums, rows), Difference(fields, gone, came)


def differing(before: Rows, now: Rows) -> tuple[Rows, Rows]:
    """The rows of each that are not in the other; both are by name. Every part of a node looks at the same change, and
    mostly whoever made it knows this: see `remember`."""
    if before is now:
        return (), ()
    if not before or not now:
        return before, now
    steps = _steps(before, now)
    if len(steps) == 1:
        return steps[0].gone, steps[0].came
    gone, came = _together(steps) if steps else _looked_through(before, now)
    remember(before, now, gone, came)
    return gone, came


class _Remembered(NamedTuple):
    before: Rows
    now: Rows
    gone: Rows
    came: Rows


class _Recent:
    """steps: the newest first. One assignment, so that no thread sees half of it."""

    steps: tuple[_Remembered, ...] = ()


_recent: Final = _Recent()


def _steps(before: Rows, now: Rows) -> list[_Remembered]:
    """What is remembered of the way from one to the other, the first step first; [] if some of it is not. To one there
    may be several: parts of a node that have seen different ones ask for the same, and each answer is remembered."""
    ways: dict[int, list[_Remembered]] = {id(now): []}
    for one in _recent.steps:
        way = ways.get(id(one.now))
        if way is None or id(one.before) in ways:
            continue
        way = ways[id(one.before)] = [one, *way]
        if one.before is before:
            return way
    return []


def _together(steps: Sequence[_Remembered]) -> tuple[Rows, Rows]:
    """What steps one after the other come to."""
    was: dict[str, CollectionInfo | None] = {}
    now: dict[str, CollectionInfo | None] = {}
    for step in steps:
        for info in step.gone:
            was.setdefault(_name(info), info)
            now[_name(info)] = None
        for info in step.came:
            was.setdefault(_name(info), None)
            now[_name(info)] = info
    others = [name for name in was if was[name] != now[name]]
    gone, came = (tuple(one for name in others if (one := each[name]) is not None) for each in (was, now))
    return gone, came


def remember(before: Rows, now: Rows, gone: Rows, came: Rows) -> None:
    """What `differing` says of these two very objects, to whom asks soon, in any thread: one may be forgotten for
    another at any time, which costs a look through both."""
    _recent.steps = (_Remembered(before, now, gone, came), *_recent.steps[: REMEMBERED - 1])


def _looked_through(before: Rows, now: Rows) -> tuple[Rows, Rows]:
    """Equal stretches are passed over by comparing tuples, which looks at identity first: some nanoseconds a row that
    stayed, up to forty where its memory is not at hand."""
    gone: list[CollectionInfo] = []
    came: list[CollectionInfo] = []
    due = [(before, now)]
    while due:
        old, new = due.pop()
        if old == new:
            continue
        if max(len(old), len(new)) > _SMALL and old and new:
            longer = old if len(old) > len(new) else new
            name = _name(longer[len(longer) // 2])
            i, j = bisect_left(old, name, key=_name), bisect_left(new, name, key=_name)
            if 0 < i + j < len(old) + len(new):  # or they are not by name, and would be parted like this forever
                due += (old[:i], new[:j]), (old[i:], new[j:])
                continue
        left = {_name(info): info for info in old}
        for info in new:
            if (other := left.get(_name(info))) is not None and other == info:
                del left[_name(info)]
            else:
                came.append(info)
        gone += left.values()
    return tuple(gone), tuple(came)


def changed(known: Summed, changes: Changes) -> Summed | None:
    """What a topology is with these changes; None if that is not what their sender has: then the whole is to be asked
    for."""
    topology = known.topology
    if not changes.since <= topology.version < changes.version:
        return None
    try:
        fields = {name: _DECODERS[name].decode(data) for name, data in changes.fields.items()}
    except (KeyError, *DECODE_ERRORS):  # of another release
        return None
    rows = _with(topology.collections, changes.rows, changes.gone)
    made, _ = known.next(msgspec.structs.replace(topology, collections=rows, **fields))
    return made if made.sum == changes.sum else None


def joined(changes: Sequence[Changes]) -> Changes:
    """What makes the same of a topology as all of these, one after the other; at least one."""
    fields, rows = dict[str, msgspec.Raw](), dict[str, CollectionInfo | None]()
    for one in changes:
        fields |= one.fields
        rows |= dict.fromkeys(one.gone)
        rows |= {_name(info): info for info in one.rows}
    came = tuple(info for info in rows.values() if info is not None)
    gone = tuple(name for name, info in rows.items() if info is None)
    return Changes(changes[0].since, changes[-1].version, changes[-1].sum, fields, came, gone)


def _with(known: Rows, rows: Sequence[CollectionInfo], gone: Sequence[str]) -> Rows:
    if not rows and not gone:
        return known
    made, old, new = list(known), list[CollectionInfo](), list[CollectionInfo]()
    for name in gone:
        at = bisect_left(made, name, key=_name)
        if at < len(made) and _name(made[at]) == name:
            old.append(made.pop(at))
    for info in rows:
        name = _name(info)
        at = bisect_left(made, name, key=_name)
        if at == len(made) or _name(made[at]) != name:
            made.insert(at, info)
        elif made[at] != info:
            old.append(made[at])
            made[at] = info
        else:
            continue
        new.append(info)
    now = tuple(made)
    if len({*gone, *map(_name, rows)}) == len(gone) + len(rows):  # else some came and went here
        remember(known, now, tuple(old), tuple(new))
    return now


def _field_sum(name: str, value: object) -> int:
    return xxhash.xxh3_64_intdigest(_encode((name, value)))


def rows_sum(rows: Sequence[CollectionInfo]) -> int:
    """Over collections, of each for itself, wherever it stands: 64 bits."""
    return bytes_sum(_of_rows.decode(_encode(rows))) if rows else 0


def bytes_sum(rows: Iterable[bytes | msgspec.Raw]) -> int:
    """The same, of collections as they are encoded."""
    return sum(map(xxhash.xxh3_64_intdigest, rows)) & SUM_MASK


class _Step(NamedTuple):
    """What came with a version: which fields, and which collections. before: the version that was known before; what
    changed between the two and back again is not told."""

    before: int
    version: int
    fields: tuple[str, ...]
    names: frozenset[str]


class History:
    """What changed of a cluster's topology, version by version, as far as it was seen here: the newest changes, of
    STEPS_MAX and NAMES_MAX at most. Names only: what is so now is in the topology."""

    def __init__(self) -> None:
        self.now = Summed.of(Topology())
        self._steps: deque[_Step] = deque()
        self._names = 0
        self._from = 0
        """The version since which no change is missing."""

    def follow(self, topology: Topology) -> None:
        """A topology that is known now. An older one than the last is passed over."""
        before = self.now.topology
        if topology.version <= before.version:
            return
        self.now, difference = self.now.next(topology)
        names = frozenset(difference.names)
        if len(names) > ROWS_MAX or topology.founding != before.founding:
            self._steps.clear()
            self._names, self._from = 0, topology.version
            return
        self._steps.append(_Step(before.version, topology.version, difference.fields, names))
        self._names += len(names)
        while len(self._steps) > STEPS_MAX or self._names > NAMES_MAX:
            gone = self._steps.popleft()
            self._names -= len(gone.names)
            self._from = gone.version

    def since(self, version: int, founding: int, told: Topology) -> Changes | None:
        """What makes `told` of one of `version` and `founding`; None if that is not known any more, or as much as the
        whole. told: the newest topology, or what a caller may know of it, which may lack what is no row."""
        now = self.now.topology
        if told.version != now.version or told.collections is not now.collections:
            return None
        if not founding or founding != told.founding or not self._from <= version < told.version:
            return None
        fields, names = {name for name in _KINDS if getattr(told, name) is not getattr(now, name)}, set[str]()
        first = told.version
        for step in reversed(self._steps):
            if step.version <= version:
                break
            first = step.before
            fields.update(step.fields)
            names |= step.names
        if first != version:  # one that was not seen here: what it has may have been otherwise before, and be so again
            return None
        if len(names) > min(ROWS_MAX, max(1, len(told.collections) // 2)):
            return None
        if names and not told.collections:  # who may hear of some collections, and who of all, have the same ()
            return None
        return _changes(version, self.now.next(told)[0], fields, names)


def changes_between(before: Summed, now: Topology) -> tuple[Summed, Changes | None]:
    """What makes one topology of another, with the sum over it; None if that is as much as the whole."""
    made, difference = before.next(now)
    names = difference.names
    if len(names) > ROWS_MAX:
        return made, None
    return made, _changes(before.topology.version, made, difference.fields, names)


def _changes(since: int, made: Summed, fields: Iterable[str], names: Iterable[str]) -> Changes:
    topology = made.topology
    found = {name: topology.named(name) for name in sorted(names)}
    rows = tuple(info for info in found.values() if info is not None)
    gone = tuple(name for name, info in found.items() if info is None)
    encoded = {name: msgspec.Raw(_encode(getattr(topology, name))) for name in sorted(fields)}
    return Changes(since, topology.version, made.sum, encoded, rows, gone)
