"""Which key ranges go from which shard to which, so that all shards weigh about the same. Pure.

Invariants: nothing moves while no shard is more than `threshold` above the mean, or EMPTIER times that below it,
unless a shard is to own nothing; else as little as brings them within `goal`. Each step is a function of the pieces
alone and makes the shards more even, so it ends, and begun once more from its end it moves nothing. What a piece is,
and where it may be cut, is given.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from needle.base.errors import invalid
from needle.catalog.planning.pieces import Piece, cut
from needle.catalog.planning.placement import EMPTIER
from needle.routing.key_space import KeySpace

PARTS_MAX = 4000
"""Transfers between shards of one plan: each is a move, or a part of one."""
PARTS_ENOUGH = PARTS_MAX // 2
"""After so many it is enough that all are within the threshold."""
SLIVER = 1000
"""Less than this part of a fair share is not worth a range of its own."""
NOISE = 2
"""Nor are so few documents where ranges are cut between ids: how many are in a part is an estimate there. Beside a
shard that stays too heavy two others gave each other one document for good."""
ROUNDING = 2
"""Bytes by which a cut may miss what it is to give, so that fewer are never given: they would come back."""


@dataclass
class Spread:
    """The shards' pieces, changed in place. staying: the shards that are to own something; all others give all away."""

    space: KeySpace
    staying: Sequence[int]
    threshold: float
    goal: float
    held: dict[int, dict[bytes, Piece]] = field(default_factory=dict)
    weight: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.staying:
            raise invalid("shards", list(self.staying), "at least one shard that stays")
        if not 0 <= self.goal <= self.threshold:
            raise invalid("goal", self.goal, f"a number from 0 to the threshold, {self.threshold}")
        self.mean = self.sliver = 0.0

    def run(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces with the owners that they should have, in order."""
        self.held = {shard: {} for shard in self.staying}
        self.weight = dict.fromkeys(self.staying, 0)
        for piece in pieces:
            self._keep(piece)
        self.mean = sum(self.weight.values()) / len(self.staying)
        documents, size = sum(piece.documents for piece in pieces), sum(piece.bytes for piece in pieces)
        noise = NOISE * size / documents if documents and self.space.even else 0.0
        self.sliver = max(self.mean / SLIVER, noise, ROUNDING)
        leaving = sorted(self.held.keys() - set(self.staying))
        emptied = self._empty(leaving)
        if emptied or self._uneven():
            order = sorted((self.weight[shard], shard) for shard in self.staying)
            for made in range(PARTS_MAX):
                if not self._even_out(order) or (made >= PARTS_ENOUGH and not self._uneven()):
                    break
            else:
                raise invalid(
                    "wish",
                    f"{PARTS_MAX} transfers between {len(self.weight)} shards",
                    "less at once: go there in steps",
                )
        return sorted(
            (piece for ones in self.held.values() for piece in ones.values()), key=lambda piece: piece.span[0]
        )

    def _uneven(self) -> bool:
        weights = [self.weight[shard] for shard in self.staying]
        high = self._bounds(self.threshold)[1]
        return max(weights) > high or min(weights) < int(self.mean * (1 - EMPTIER * self.threshold))

    def _bounds(self, tolerance: float) -> tuple[int, int]:
        return int(self.mean * (1 - tolerance)), int(self.mean * (1 + tolerance)) + 1

    # --- shards that are to own nothing ------------------------------------------------------------------------------
    def _empty(self, leaving: Collection[int]) -> bool:
        """Give their pieces to the lightest, the heaviest first, cut where that fills one."""
        high, emptied = self._bounds(self.goal)[1], False
        waiting = sorted(
            (piece for shard in leaving for piece in self.held[shard].values() if not piece.held),
            key=lambda piece: (piece.weight, piece.span[0]),
        )
        while waiting:
            piece, emptied = waiting.pop(), True
            target = min(self.staying, key=lambda shard: (self.weight[shard], shard))
            room = high - self.weight[target]
            parts = cut(self.space, piece, room) if self.sliver < room < piece.weight else None
            if parts is not None:
                self._drop(piece)
                for part in parts:
                    self._keep(part)
                waiting.append(parts[1])
                piece = parts[0]
            self._give(piece, target)
        return emptied

    # --- shards that stay --------------------------------------------------------------------------------------------
    def _even_out(self, order: list[tuple[int, int]]) -> bool:
        """From a heavy shard to a light one; False if nothing would make them more even. order: (weight, shard),
        ascending, and kept so. As a rule the first pair will do: to look at all would take the square of their
        number."""
        (low, high), sliver = self._bounds(self.goal), self.sliver
        for heavy, source in reversed(order):
            if heavy <= min(high, low + sliver):
                break  # neither this one nor a lighter one has anything to give
            if high < heavy <= high + sliver:
                continue
            for light, target in order:
                if light >= (high if heavy > high else low) - sliver:
                    break  # neither this one nor a heavier one lacks anything
                amount = self._amount(source, target, low, high)
                if amount > sliver and self._transfer(source, target, amount):
                    for before in ((heavy, source), (light, target)):
                        del order[bisect_left(order, before)]
                        insort(order, (self.weight[before[1]], before[1]))
                    return True
        return False

    def _amount(self, source: int, target: int, low: int, high: int) -> int:
        """What should go: no more than a shard has too much, or one lacks, so that nothing goes that need not."""
        heavy, light = self.weight[source], self.weight[target]
        if heavy > high:  # who was filled up to `low` may lack a little, where that is where a piece was cut
            return min(heavy - high, (low if light < low - self.sliver else high) - light)
        return min(low - light, heavy - low) if light < low else 0

    def _transfer(self, source: int, target: int, amount: int) -> bool:
        free = sorted(
            (piece for piece in self.held[source].values() if not piece.held and piece.weight),
            key=lambda piece: (-piece.weight, piece.span[0]),
        )
        left = amount
        for piece in free:
            if piece.weight <= left:
                self._give(piece, target)
                left -= piece.weight
        if left < amount and left <= self.sliver:
            return True
        for piece in reversed(free):
            if piece.weight > left and piece.span[0] in self.held[source]:
                parts = cut(self.space, piece, left)
                if parts is not None:
                    self._drop(piece)
                    for part in parts:
                        self._keep(part)
                    self._give(parts[0], target)
                    return True
        if left < amount:
            return True
        # Nothing can be cut: a piece that is too large is better there, if the two end nearer to each other.
        for piece in reversed(free):
            if self.weight[target] + piece.weight < self.weight[source]:
                self._give(piece, target)
                return True
        return False

    def _give(self, piece: Piece, shard: int) -> None:
        self._drop(piece)
        self._keep(piece.to(shard))

    def _drop(self, piece: Piece) -> None:
        del self.held[piece.owner][piece.span[0]]
        self.weight[piece.owner] -= piece.weight

    def _keep(self, piece: Piece) -> None:
        self.held.setdefault(piece.owner, {})[piece.span[0]] = piece
        self.weight[piece.owner] = self.weight.get(piece.owner, 0) + piece.weight


def least(weights: Sequence[int], leaving: int, heaviest: int, lightest: int) -> int:
    """What must move at least until no shard weighs more than `heaviest` and none less than `lightest`. weights: of the
    shards that stay, before; leaving: of all others together."""
    too_much = sum(max(0, weight - heaviest) for weight in weights)
    too_little = sum(max(0, lightest - weight) for weight in weights)
    return max(leaving + too_much, too_little)
