"""How a search was answered, as callers get to see it. Plain values; made only when somebody asks."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Way(StrEnum):
    """How one part of a shard's vectors was searched. graph, lists: by the index file's graph or lists. exact: by
    scoring each row of an index file that counts, because few do, because the file has nothing else, or because it was
    asked for. both: by the index, and then exactly, because that could not show that enough rows that count lie near.
    growing: rows that no index file has yet, which are scored exactly. skipped: the filter allows nothing in it."""

    GRAPH = "graph"
    LISTS = "lists"
    EXACT = "exact"
    BOTH = "both"
    GROWING = "growing"
    SKIPPED = "skipped"


class SegmentExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a shard's vectors in a search. first, last: the ordinals that it spans. rows: its live vectors.
    allowed: how many of them the filter leaves. ef: the width of the beam, which filters and codes widen; 0 if the
    index was not searched. milliseconds: for all queries that were searched together."""

    way: Way
    first: int
    last: int
    rows: int
    allowed: int
    ef: int
    milliseconds: float


class ShardExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """One shard in a search. applied_index: of its log; exactly that state was searched. documents: that it has.
    allowed: how many of them the filter leaves. together: how many queries were searched at once; the milliseconds are
    for all of them: of the filter, of the vectors, and of reading the documents that were found. node: whose replica
    answered, "" if its release does not say. notes: where the filter leaves nothing, what its caller may have meant."""

    shard: int
    applied_index: int
    documents: int
    allowed: int
    together: int
    filter_milliseconds: float
    vectors_milliseconds: float
    documents_milliseconds: float
    segments: list[SegmentExplanation]
    node: str = ""
    notes: list[str] = []
