"""The commands that a shard's leader proposes by itself, or for a read: they write no documents that a caller sent.

They are a part of `commands`, which has the forms of an entry.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from needle.base.model import IndexParams
from needle.protocol.versioned import Versioned


class Expire(Versioned, frozen=True, tag="expire"):
    """The leader's clock has passed `before` (microseconds since 1970): delete the documents of a collection that
    expire then or earlier, at most `limit` of them, the earliest first. Those whose keys are frozen by a move stay, for
    the copy of them in another shard is complete. Found when it is applied, so who was given a later instant meanwhile
    stays. The answer's count: how many."""

    SINCE: ClassVar[int] = 2

    collection: str
    before: int
    limit: int


class PinScan(Versioned, frozen=True, tag="pin"):
    """Keep what a collection holds at this entry for a scan, until EndPins names it; the answer's version is this
    entry's index, which is the pin's. token: drawn by who scans; an open pin of the same one is answered again. owned:
    fingerprint of the ranges that the shard was asked for. until: microseconds since 1970 by the leader's clock, when a
    leader ends it. pins_max: refused if so many are open in the shard."""

    SINCE: ClassVar[int] = 3

    collection: str
    token: int
    owned: int
    until: int
    pins_max: int


class EndPins(Versioned, frozen=True, tag="unpin"):
    """What these pins see need not be kept any more."""

    SINCE: ClassVar[int] = 3

    pins: list[int]


class KnowCatalog(Versioned, frozen=True, tag="know"):
    """Whoever serves this shard must know the catalog of this founding at least as of `version`: something that the
    shard's own log does not hold, the meaning of an alias or a time to live, changed there."""

    SINCE: ClassVar[int] = 3

    founding: int
    version: int


class Compare(Versioned, frozen=True, tag="compare"):
    """Each replica notes the digest that it has at this entry, so that they can be compared: it changes nothing."""

    SINCE: ClassVar[int] = 4


class PublishSegment(Versioned, frozen=True, tag="segment"):
    """The leader built a segment of the ordinals [first, last] of a collection incarnation; all replicas switch to
    it at this log index. It replaces every segment inside that range. Derived data: a replica without the file
    fetches it or rebuilds it, and scores those ordinals exactly meanwhile. generation: the entry of the SwitchIndex
    that the collection had when the build began, 0 for none: after another one it is of the index of before."""

    NEWER: ClassVar[dict[str, int]] = {"generation": 4}

    collection_id: int
    first: int
    last: int
    rows: int
    size: int
    checksum: str
    generation: int = 0


class StageSegment(Versioned, frozen=True, tag="stage"):
    """As PublishSegment, of another index that the collection is to get: replicas fetch the file, and no search uses it
    before SwitchIndex. Files that were staged for yet another index are given up."""

    SINCE: ClassVar[int] = 4

    collection_id: int
    index: IndexParams
    first: int
    last: int
    rows: int
    size: int
    checksum: str


class SwitchIndex(Versioned, frozen=True, tag="switch-index"):
    """At this entry all replicas go over to `index`: the staged files, which must cover what the files of now do, take
    their place. before, after: the recall of both indexes, measured by the leader over `queries` queries."""

    SINCE: ClassVar[int] = 4

    collection_id: int
    index: IndexParams
    before: float
    after: float
    queries: int


class KeepIndex(Versioned, frozen=True, tag="keep-index"):
    """The collection keeps the index that it has: what was staged is given up."""

    SINCE: ClassVar[int] = 4

    collection_id: int


class LoadedFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An index file of a bulk load: of the ordinals [first, last]; rows, size, checksum as in PublishSegment."""

    first: int
    last: int
    rows: int
    size: int
    checksum: str


class LoadRows(Versioned, frozen=True, tag="load"):
    """At this entry a collection that was never written to holds all documents of a file (docs/adr/0119): row i has
    ordinal i. rows, size, checksum: of that file, which a majority of the replicas holds before this is proposed; a
    replica without it fetches it before it applies this. owned: fingerprint of the ranges of keys that the file was
    made for; generation: as in PublishSegment; refused where either is another one by now. indexes: files that serve
    its first rows, or all. A repetition is answered as what it repeats."""

    SINCE: ClassVar[int] = 6

    collection_id: int
    rows: int
    size: int
    checksum: str
    owned: int
    generation: int = 0
    indexes: list[LoadedFile] = []


INDEX_COMMANDS = (PublishSegment, StageSegment, SwitchIndex, KeepIndex)
"""What any replica that has led may have proposed by whoever leads: they name files, and write no documents."""
