"""Which vectors to index next: sealing, merging and purging as pure decisions over the manifest.

The manifest is the list of published segments of one collection incarnation; it is replicated state, so every function
here must give the same answer on every replica. Invariant (`check_manifest`): the segments are sorted, disjoint and
gap-free from ordinal 0, so each ordinal below `covered(manifest)` lies in exactly one segment.

An HNSW graph takes new rows without touching the old ones' cost, so a task may name a `base`: the segment whose graph
is extended. Then only the rows after it are inserted. With GROWTH = 8:
- a base is rewritten (disk and network) only when at least 1/8 of its rows come on top: bytes written <= 9 x inserts;
- a row is inserted again only when its segment joins one at least 8 times larger: inserts per row <= 1 + log8(n/seal).
Every graph costs a search nearly as much as one that holds all, so after a longer time without writes a base may be 32
times larger: then at most 33 bytes are written for each inserted.

When to seal (unless `seal_rows` says it): once an exact scan of what waits costs as much as a search of a graph, and,
when no write comes any more, already at an eighth of that. A scan's cost goes with its bytes (docs/adr/0008).

It does not know files, threads or Raft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from needle.base.config import SegmentConfig
from needle.base.errors import Internal

GROWTH = 8
BUILD_ROWS_MAX = 65_536
"""A seal takes so many waiting rows at a time: a build that ends with its node is lost."""
GROWTH_IDLE = 32
SEAL_BYTES = 4 << 20
SEAL_ROWS_MIN = 2_000
QUIET_SHARE = 8


class PublishedSegment(msgspec.Struct, frozen=True, array_like=True):
    """One manifest entry: the ordinals [first, last] of a collection incarnation are indexed in one file.

    rows: vectors in the file (ordinals that were dead when it was built may be left out). size: bytes of the file.
    checksum: 32 hex digits, see docs/segments.md.
    """

    collection_id: int
    first: int
    last: int
    rows: int
    size: int
    checksum: str


class SegmentLoad(msgspec.Struct, frozen=True):
    """A manifest entry as the planner sees it. dead: rows of it that are tombstoned. here: its file is attached."""

    segment: PublishedSegment
    dead: int
    here: bool


class BuildTask(msgspec.Struct, frozen=True):
    """Build one segment of the ordinals [first, last]. base: extend this segment's graph with the rows after it
    (None: insert every live row). inserts: rows that will be inserted, for the log."""

    first: int
    last: int
    base: PublishedSegment | None
    inserts: int


def covered(manifest: Sequence[PublishedSegment]) -> int:
    """The first ordinal that no segment covers."""
    return manifest[-1].last + 1 if manifest else 0


def check_manifest(manifest: Sequence[PublishedSegment]) -> None:
    """Raise Internal unless the segments cover [0, covered) without gap or overlap."""
    at = 0
    for segment in manifest:
        if segment.first != at or segment.last < segment.first:
            raise Internal(f"segment manifest: [{segment.first}, {segment.last}] follows ordinal {at - 1}")
        at = segment.last + 1


def with_published(
    manifest: Sequence[PublishedSegment], segment: PublishedSegment, next_ordinal: int
) -> list[PublishedSegment] | None:
    """The manifest after `segment` is published, or None when it does not fit and must be ignored.

    It fits when it replaces whole segments, or extends the covered range without a gap, within the ordinals that
    exist; a second build of a range that is one segment already counts only if it has fewer rows (a purge). Two
    leaders may build at once; the log's order decides, equally on every replica.
    """
    end = covered(manifest)
    if not 0 <= segment.first <= segment.last < next_ordinal or segment.first > end:
        return None
    before = [s for s in manifest if s.last < segment.first]
    inside = [s for s in manifest if segment.first <= s.first and s.last <= segment.last]
    after = [s for s in manifest if s.first > segment.last]
    if len(before) + len(inside) + len(after) != len(manifest) or covered(before) != segment.first:
        return None
    if len(inside) == 1 and inside[0].last == segment.last and segment.rows >= inside[0].rows:
        return None
    return [*before, segment, *after]


def may_publish(manifest: Sequence[PublishedSegment], first: int, last: int, next_ordinal: int) -> bool:
    """Whether a segment of these ordinals could still be published, however few rows it has."""
    if any(segment.first == first and segment.last == last for segment in manifest):
        return True  # a purge
    return with_published(manifest, PublishedSegment(0, first, last, 0, 0, ""), next_ordinal) is not None


def seal_at(config: SegmentConfig, dimensions: int) -> int:
    """How many waiting rows are sealed while writes go on."""
    if config.seal_rows is not None:
        return config.seal_rows
    return min(max(SEAL_BYTES // (4 * dimensions), SEAL_ROWS_MIN), config.rows_max)


def seal_when_quiet_at(config: SegmentConfig, dimensions: int) -> int:
    """How many waiting rows are sealed once no write comes any more; an explicit seal_rows knows no such time."""
    rows = seal_at(config, dimensions)
    return rows if config.seal_rows is not None else -(-rows // QUIET_SHARE)


def plan(
    loads: Sequence[SegmentLoad],
    next_ordinal: int,
    waiting_rows: int,
    config: SegmentConfig,
    *,
    dimensions: int,
    quiet: bool,
    idle: bool = False,
    apart: bool = False,
    ordinal_of: Callable[[int], int] | None = None,
) -> BuildTask | None:
    """What the leader should build next, or None.

    loads: the manifest in order. next_ordinal: ordinals below it exist. waiting_rows: live rows that no segment covers.
    quiet: no vector has come for a while. idle: nor for a much longer one. apart: what is indexed stays as it is, and
    what waits becomes a file of its own. ordinal_of: of waiting rows by their number, where many ordinals have none.
    """
    if waiting_rows >= (seal_when_quiet_at if quiet else seal_at)(config, dimensions):
        return _seal(loads, next_ordinal, waiting_rows, config, apart=apart, ordinal_of=ordinal_of)
    if apart:
        return None
    growth = GROWTH_IDLE if idle and config.seal_rows is None else GROWTH
    return _purge(loads, config) or _merge(loads, config, growth)


def _live(load: SegmentLoad) -> int:
    return load.segment.rows - load.dead


def _extendable(load: SegmentLoad, config: SegmentConfig) -> bool:
    return load.here and load.dead <= config.dead_ratio_max * load.segment.rows


def _seal(
    loads: Sequence[SegmentLoad],
    next_ordinal: int,
    waiting_rows: int,
    config: SegmentConfig,
    *,
    apart: bool,
    ordinal_of: Callable[[int], int] | None,
) -> BuildTask:
    """Seal what waits, together with every tail segment that is at most GROWTH times what would be added to it."""
    first = covered([load.segment for load in loads])
    last = next_ordinal - 1
    most = min(config.rows_max, BUILD_ROWS_MAX)
    if waiting_rows > most:
        # Dead ordinals may make this range hold fewer rows; never more.
        last, waiting_rows = first + most - 1 if ordinal_of is None else ordinal_of(most - 1), most
    added, total, best = waiting_rows, waiting_rows, BuildTask(first, last, None, waiting_rows)
    for load in () if apart else reversed(loads):
        total += load.segment.rows
        if total > config.rows_max or not load.here:
            break
        if load.segment.rows <= GROWTH * added:
            base = load.segment if _extendable(load, config) else None
            inserts = added + (0 if base else _live(load))
            best = BuildTask(load.segment.first, last, base, inserts)
        added += _live(load)
    return best


def _purge(loads: Sequence[SegmentLoad], config: SegmentConfig) -> BuildTask | None:
    for load in loads:
        if load.here and load.dead > config.dead_ratio_max * load.segment.rows:
            return BuildTask(load.segment.first, load.segment.last, None, _live(load))
    return None


def _merge(loads: Sequence[SegmentLoad], config: SegmentConfig, growth: int) -> BuildTask | None:
    """Join neighbours that purging, a former configuration or the end of writing left too alike in size."""
    for left, right in pairwise(loads):
        fits = left.segment.rows + _live(right) <= config.rows_max
        if left.here and right.here and fits and left.segment.rows <= growth * max(_live(right), 1):
            base = left.segment if _extendable(left, config) and left.segment.rows >= _live(right) else None
            inserts = _live(right) + (0 if base else _live(left))
            return BuildTask(left.segment.first, right.segment.last, base, inserts)
    return None
