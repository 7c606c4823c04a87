"""The earliest of many instants is what a look at all of them would find, and costs what changes."""

from __future__ import annotations

import random

from needle.shard.soonest import SPARE, Soonest


def test_it_is_what_a_look_at_all_of_them_would_find() -> None:
    rng, soonest, known = random.Random(7), Soonest(), dict[int, int]()
    assert soonest.first() is None
    for _ in range(5000):
        id_, when = rng.randrange(40), rng.choice((0, 0, rng.randrange(1, 1000)))
        known[id_] = when
        soonest.put(id_, when)
        there = [(at, one) for one, at in known.items() if at]
        assert soonest.first() == min(there, default=None)


def test_what_counts_no_more_takes_no_memory() -> None:
    soonest = Soonest()
    for when in range(1, 10_000):
        soonest.put(1, when)
        soonest.put(2, 10_000 + when)
    assert soonest.first() == (9_999, 1)
    assert len(soonest._heap) <= 2 * 2 + SPARE + 1


def test_a_look_costs_no_look_at_the_others() -> None:
    """It was one at all collections, each second, on each replica."""
    soonest = Soonest()
    for id_ in range(1000):
        soonest.put(id_, 5 + id_)
    looked = list[int]()

    class Counted(dict[int, int]):
        def get(self, key: int, default: int | None = None) -> int | None:  # type: ignore[override]
            looked.append(key)
            return super().get(key, default)

    soonest._at = Counted(soonest._at)
    assert soonest.first() == (5, 0)
    soonest.put(0, 0)
    assert soonest.first() == (6, 1)
    assert len(looked) < 10
