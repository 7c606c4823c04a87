"""The key space as pieces of known size, each of one owner: what the planner gives from one shard to another. Pure.

Invariant: the pieces cover the key space once, in order; a cut keeps the sums of documents, bytes and weight.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from needle.catalog.planning.heat import warmed
from needle.routing.key_space import KeySpace
from needle.routing.ranges import difference, intersection, union
from needle.routing.shard_map import KeyRange
from needle.routing.stats import ClusterStats, RangeStats, ShardStats
from needle.routing.topology import ENDING, MoveState, Topology

_replace = msgspec.structs.replace

EMPTY_SPACE_BYTES = 256 << 20
"""What the whole key space weighs without a document, spread evenly: so an empty cluster is spread by keys, and a few
documents do not move half of them."""


class Piece(msgspec.Struct, frozen=True):
    """weight: what is evened out. cut: whether it may be cut in two. held: a move that is under way is about it, so it
    stays where that brings it. home: who owned it when planning began."""

    span: KeyRange
    owner: int
    home: int
    documents: int
    bytes: int
    weight: int
    cut: bool
    held: bool = False

    def to(self, shard: int) -> Piece:
        """The same, of another owner."""
        return _replace(self, owner=shard)


def pieces_of(topology: Topology, stats: ClusterStats, heat: float = 0.0) -> list[Piece]:
    """All of the key space. A range that is being moved counts as its target's. heat: the fraction of the weight that
    is calls a second instead of bytes, 0 to 1; by `stats.calls` if there are any, else by those of shards' ranges."""
    shard_map = topology.map
    if shard_map is None:
        return []
    space = KeySpace(shard_map)
    made: list[Piece] = []
    total = sum(one.bytes for one in stats.shards) + EMPTY_SPACE_BYTES
    moving = [
        (info.source if info.state in ENDING else info.target, list(info.ranges))
        for info in topology.moves
        if info.state is not MoveState.SWITCHED
    ]
    known, by_owner = stats.by_shard(), shard_map.by_owner()
    parts = {
        shard: _measured(space, by_owner.get(shard, []), known.get(shard, ShardStats(shard=shard)))
        for shard in (info.shard for info in topology.serving)
    }
    if heat and stats.calls:
        parts = {shard: warmed(space, ones, stats.calls) for shard, ones in parts.items()}
    calls = sum(part.heat for ones in parts.values() for part in ones)
    heat = heat if calls else 0.0  # where nothing is called, sizes are all there is to go by
    for info in topology.serving:
        for part in parts[info.shard]:
            spread = EMPTY_SPACE_BYTES * space.length(part.span) // space.size if space.even else 0
            weight = part.bytes + spread
            if heat:
                weight = round((1 - heat) * weight) + round(heat * total * part.heat / calls)
            piece = Piece(
                span=part.span,
                owner=info.shard,
                home=info.shard,
                documents=part.documents,
                bytes=part.bytes,
                weight=weight,
                cut=space.even and not part.whole,
            )
            made += _under_way(space, piece, moving) if moving else (piece,)
    return sorted(made, key=lambda piece: piece.span[0])


def _measured(space: KeySpace, owned: Sequence[KeyRange], one: ShardStats) -> list[RangeStats]:
    """What a shard owns as parts that do not overlap; what was measured for none of them is spread over the rest."""
    starts = [start for start, _ in owned]
    known: list[RangeStats] = []
    for stats in one.ranges:
        low, high = stats.span
        first, end = bisect_right(starts, low) - 1, len(owned) if high is None else bisect_left(starts, high)
        known += _clipped(space, stats, intersection([stats.span], owned[max(0, first) : end]))
    rest = difference(owned, union([part.span for part in known])) if known else list(owned)
    left = RangeStats(
        span=(b"", None),
        documents=max(0, one.documents - sum(part.documents for part in known)),
        bytes=max(0, one.bytes - sum(part.bytes for part in known)),
    )
    return sorted(known + _clipped(space, left, rest, whole=True), key=lambda part: part.span[0])


def _clipped(space: KeySpace, stats: RangeStats, spans: Sequence[KeyRange], whole: bool = False) -> list[RangeStats]:
    """The parts of `stats` that are `spans`; whole: these are all of it."""
    lengths = [space.length(span) if space.even else 1 for span in spans]
    size = sum(lengths) if whole else max(sum(lengths), space.length(stats.span) if space.even else len(spans))
    made, at, size = [], 0, max(1, size)
    documents = size_bytes = 0  # up to `at`, so that parts add up to the whole
    for span, length in zip(spans, lengths, strict=True):
        share, at = length / size, at + length
        before, before_bytes = documents, size_bytes
        documents, size_bytes = stats.documents * at // size, stats.bytes * at // size
        made.append(
            RangeStats(
                span=span,
                documents=documents - before,
                bytes=size_bytes - before_bytes,
                writes=stats.writes * share,
                searches=stats.searches * share,
                whole=stats.whole,
            )
        )
    return made


def _part(amount: int, at: int, length: int, size: int) -> int:
    """Of an amount that lies evenly over `size`: what is in [at, at + length). Parts add up to the whole."""
    return amount * (at + length) // size - amount * at // size if size else 0


def _under_way(space: KeySpace, piece: Piece, moving: Iterable[tuple[int, list[KeyRange]]]) -> list[Piece]:
    """The piece, cut where moves that are under way begin and end."""
    for target, ranges in moving:
        inside = intersection([piece.span], ranges)
        if inside:
            made, rest = [], difference([piece.span], inside)
            for span, part in _parts(space, piece, sorted([*inside, *rest], key=lambda one: one[0])):
                made.append(_replace(part, owner=target, held=True) if span in inside else part)
            return [one for part in made for one in ([part] if part.held else _under_way(space, part, moving))]
    return [piece]


def _parts(space: KeySpace, piece: Piece, spans: Sequence[KeyRange]) -> list[tuple[KeyRange, Piece]]:
    """A piece as these spans, which are all of it."""
    lengths = [space.length(span) if space.even else 1 for span in spans]
    size, at, made = sum(lengths), 0, []
    for span, length in zip(spans, lengths, strict=True):
        documents, size_bytes, weight = (
            _part(amount, at, length, size) for amount in (piece.documents, piece.bytes, piece.weight)
        )
        made.append((span, _replace(piece, span=span, documents=documents, bytes=size_bytes, weight=weight)))
        at += length
    return made


def cut(space: KeySpace, piece: Piece, weight: int) -> tuple[Piece, Piece] | None:
    """A piece in two, of which the first has about that weight; None if no key is between them, or not one document
    where documents are most of what it weighs: where keys are, it is those to come that are shared out."""
    low, high = space.position(piece.span[0]), space.position(piece.span[1])
    at = low + (high - low) * weight // max(1, piece.weight)
    if not piece.cut or not low < at < high:
        return None
    key = space.key(at)
    (_, first), (_, second) = _parts(space, piece, [(piece.span[0], key), (key, piece.span[1])])
    few = not piece.documents or 2 * EMPTY_SPACE_BYTES * (high - low) >= piece.weight * space.size
    return (first, second) if few or (first.documents and second.documents) else None


def as_ranges(pieces: Iterable[Piece]) -> tuple[KeyRange, ...]:
    """What pieces cover, as a move names it."""
    return tuple(union([piece.span for piece in pieces]))
