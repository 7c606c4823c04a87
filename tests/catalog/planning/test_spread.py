"""What goes from heavy shards to light ones is found without a look at all pairs of them, and is the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from needle.catalog.planning.pieces import Piece
from needle.catalog.planning.spread import Spread
from needle.routing.key_space import KeySpace
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH

SPACE = KeySpace(initial_map(CONSISTENT_HASH, 1, 1))


class AllPairs(Spread):
    """As it is defined: the first pair, from the heaviest and to the lightest, between which something can go."""

    def _even_out(self, order: list[tuple[int, int]]) -> bool:
        low, high = self._bounds(self.goal)
        ascending = sorted(self.staying, key=lambda shard: (self.weight[shard], shard))
        for source in reversed(ascending):
            for target in ascending:
                amount = self._amount(source, target, low, high)
                if amount > self.sliver and self._transfer(source, target, amount):
                    return True
        return False


def pieces(weights: list[list[int]], cut: bool) -> list[Piece]:
    """weights: of each shard's pieces."""
    count, made = sum(map(len, weights)), list[Piece]()
    for shard, ones in enumerate(weights):
        for weight in ones:
            low, high = (len(made) + n << 32 for n in (0, 1))
            span = (SPACE.key(low), SPACE.key(high) if len(made) + 1 < count else None)
            made.append(Piece(span=span, owner=shard, home=shard, documents=0, bytes=weight, weight=weight, cut=cut))
    return made


WEIGHTS = st.lists(st.lists(st.integers(0, 100_000), max_size=5), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@example([[], [], [], [], [], [0], [7951]], True, 0.05, 0.02, 1)  # a byte went to and fro
@given(WEIGHTS, st.booleans(), st.sampled_from([0.05, 0.2]), st.sampled_from([0.0, 0.02]), st.integers(0, 2))
def test_the_same_goes_as_by_a_look_at_all_pairs(
    weights: list[list[int]], cut: bool, threshold: float, goal: float, more: int
) -> None:
    given, staying = pieces(weights, cut), range(len(weights) + more)
    found = Spread(SPACE, staying, threshold, goal).run(given)
    assert found == AllPairs(SPACE, staying, threshold, goal).run(given)


def test_a_thousand_uneven_shards_are_looked_at_a_few_times_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, amount = 0, Spread._amount

    def counted(self: Spread, source: int, target: int, low: int, high: int) -> int:
        nonlocal looks
        looks += 1
        return amount(self, source, target, low, high)

    monkeypatch.setattr(Spread, "_amount", counted)
    rng, count = random.Random(1), 1000
    given = pieces([[rng.choice([200_000, 1_000_000, 3_000_000])] for _ in range(count)], cut=True)
    spread = Spread(SPACE, range(count), 0.2, 0.02)
    spread.run(given)
    mean = sum(spread.weight.values()) / count
    assert max(spread.weight.values()) < 1.03 * mean
    assert count / 2 < looks < 4 * count
