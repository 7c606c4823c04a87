"""The pieces that get another owner, as moves of key ranges of a bounded size. Pure.

Invariant: each piece is in one move, whole, or cut in pieces that are all in moves between the same two shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from needle.base.errors import invalid
from needle.catalog.planning.pieces import Piece, as_ranges, cut
from needle.routing.key_space import KeySpace
from needle.routing.planned_moves import MoveRange

MOVES_MAX = 4000
"""Of one plan: it keeps the time that it takes, and its size as a message, small."""


def range_moves(space: KeySpace, spread: Sequence[Piece], bytes_max: int) -> list[tuple[MoveRange, list[Piece]]]:
    """The moves with their pieces, one after the other for each source, so that several sources take turns. bytes_max:
    of one move. Raises InvalidArgument for more than MOVES_MAX."""
    small = sum(p.bytes for p in spread if p.owner != p.home and not p.held) // max(1, bytes_max)
    if small > MOVES_MAX:
        raise invalid("range_bytes_max", bytes_max, f"so many that {MOVES_MAX} moves are enough")
    between: dict[tuple[int, int], list[Piece]] = {}
    for piece in spread:
        if piece.owner != piece.home and not piece.held:
            between.setdefault((piece.home, piece.owner), []).extend(_small(space, piece, max(1, bytes_max)))
    turns: Counter[int] = Counter()
    made: list[tuple[int, int, MoveRange, list[Piece]]] = []
    for (source, target), pieces in sorted(between.items()):
        batch: list[Piece] = []
        size = 0
        for at, piece in enumerate(pieces):
            batch.append(piece)
            size += piece.bytes
            if at + 1 == len(pieces) or size + pieces[at + 1].bytes > bytes_max:
                turns[source] += 1
                documents = sum(one.documents for one in batch)
                move = MoveRange(source=source, target=target, ranges=as_ranges(batch), documents=documents, bytes=size)
                made.append((turns[source], source, move, batch))
                batch, size = [], 0
    return [(move, batch) for _, _, move, batch in sorted(made, key=lambda turn: turn[:2])]


def _small(space: KeySpace, piece: Piece, limit: int) -> list[Piece]:
    """Pieces of at most `limit` bytes, where they can be cut."""
    made = []
    while piece.bytes > limit:
        parts = cut(space, piece, piece.weight * limit // piece.bytes)
        if parts is None or not parts[0].bytes:
            break
        made.append(parts[0])
        piece = parts[1]
    return [*made, piece]
