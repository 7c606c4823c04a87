"""Changing the index of a collection while it is used, as pure decisions over replicated state.

A change goes on beside the manifest (plan.py): files of the wanted index are *staged*, each named by the log, until
they cover what the manifest covers; then one entry makes them the manifest. Every replica decides alike.

Invariants: staged files are sorted, disjoint and gap-free from ordinal 0, and where a file of the manifest begins, a
staged one begins or none covers that ordinal yet (the manifest only ever loses such borders, or gets them behind what
is covered). A file that was built for an index of before a switch is never taken: it says its `generation`.

It does not know files, threads or Raft.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from needle.base.collection_sizes import IndexProgress
from needle.base.model import IndexParams
from needle.shard.plan import BuildTask, PublishedSegment, SegmentLoad, covered, with_published


class Switched(msgspec.Struct, frozen=True, array_like=True):
    """The last switch: the recall of the index before and after it, over so many queries (0: nothing to measure)."""

    before: float
    after: float
    queries: int


class IndexState(msgspec.Struct, frozen=True, array_like=True):
    """What the log says of a collection's index beside its manifest. generation: the entry of the last switch, 0 for
    none. wanted, staged: the index that it is to get, and the files of it that are there; None if it is to keep its."""

    generation: int = 0
    wanted: IndexParams | None = None
    staged: list[PublishedSegment] = []
    last: Switched | None = None
    loaded: str = ""


AS_MADE = IndexState()


def decode_index_state(data: bytes) -> IndexState:
    return msgspec.msgpack.decode(data, type=IndexState)


def encode_index_state(state: IndexState) -> bytes:
    """As releases before wrote it, which know no bulk loads, unless there was one."""
    fields = msgspec.structs.astuple(state)
    return msgspec.msgpack.encode(fields if state.loaded else fields[:-1])


def with_staged(
    state: IndexState,
    index: IndexParams,
    segment: PublishedSegment,
    manifest: Sequence[PublishedSegment],
    next_ordinal: int,
) -> IndexState | None:
    """The state with one more file of `index`; None when it does not fit. Files of another index that were staged
    before are given up: whoever asks last is followed."""
    staged = state.staged if state.wanted is not None and state.wanted.built == index.built else []
    found = with_published(staged, segment, next_ordinal) if segment.last < covered(manifest) else None
    return None if found is None else msgspec.structs.replace(state, wanted=index, staged=found)


def is_staged(state: IndexState, index: IndexParams, manifest: Sequence[PublishedSegment]) -> bool:
    """Whether files of `index` cover what those of the manifest do."""
    there = state.staged if state.wanted is not None and state.wanted.built == index.built else []
    return covered(there) == covered(manifest)


def next_stage(state: IndexState, index: IndexParams, loads: Sequence[SegmentLoad]) -> BuildTask | None:
    """The next file to build for `index`: of the ordinals of one file of the manifest; None if all are there."""
    same = state.wanted is not None and state.wanted.built == index.built
    at = covered(state.staged) if same else 0
    for load in loads:
        if load.segment.first <= at <= load.segment.last:
            return BuildTask(load.segment.first, load.segment.last, None, load.segment.rows - load.dead)
    return None


def progress_of(state: IndexState, index: IndexParams, manifest: Sequence[PublishedSegment]) -> IndexProgress:
    """index: that of the manifest's files."""
    last = state.last if state.last is not None and state.last.queries else None
    done = covered(state.staged)
    return IndexProgress(
        now=[index.built],
        wanted=[] if state.wanted is None else [state.wanted.built],
        vectors=sum(segment.rows for segment in manifest),
        done=sum(segment.rows for segment in manifest if segment.last < done),
        recall_before=None if last is None else last.before,
        recall_after=None if last is None else last.after,
        queries=0 if last is None else last.queries,
    )
