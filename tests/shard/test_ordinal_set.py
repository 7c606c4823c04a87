"""The set of live ordinals: right, immutable, and as dear as what changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.shard.ordinal_set import BLOCK, OrdinalSet


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * BLOCK), st.integers(0, 200), st.lists(st.integers(0, 6 * BLOCK)))))
def test_the_same_as_a_set_of_integers(steps: list[tuple[int, int, list[int]]]) -> None:
    held, model, end = OrdinalSet(), set[int](), 0
    for gap, count, without in steps:
        before, kept = held, frozenset(model)
        first = end + gap
        end = first + count
        held = held.changed(first, end, without)
        model = (model | set(range(first, end))) - set(without)
        assert set(before.bitmap()) == kept, "a set that somebody holds does not change"
    ordered = sorted(model)
    assert list(held.bitmap()) == ordered and len(held) == len(model)
    assert OrdinalSet.of(np.array(ordered[::-1], np.uint32)).bitmap() == held.bitmap()
    low, high = BLOCK // 2, 2 * BLOCK + 5
    assert held.between(low, high).tolist() == [o for o in ordered if low <= o <= high]
    pages = list(held.pages(low, high, 64))
    assert all(0 < len(page) <= 64 for page in pages)
    assert [ordinal for page in pages for ordinal in page.tolist()] == held.between(low, high).tolist()
    assert all(ordinal in held for ordinal in ordered[:20]) and end + 1 not in held


def test_a_change_shares_what_it_does_not_touch_and_forgets_what_is_used_up() -> None:
    held = OrdinalSet().changed(0, 100 * BLOCK, [])
    after = held.changed(100 * BLOCK, 100 * BLOCK + 1, [5 * BLOCK + 7])
    shared = [at for at, block in after._blocks.items() if held._blocks.get(at) is block]
    assert len(shared) == 99, "two blocks are new: that of the deleted one and that of the added one"
    empty = after.changed(0, 0, [*range(5 * BLOCK, 6 * BLOCK)])
    assert len(empty._blocks) == 100 and 5 not in empty._blocks
