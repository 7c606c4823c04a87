"""Make a failing run small: fewer faults, fewer operations, less time, as long as it still fails.

Zeller and Hildebrandt's ddmin over the list of faults, then bisection of the number of operations. Deterministic; it
must not know what a fault is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def fewest(items: Sequence[int], fails: Callable[[tuple[int, ...]], bool], tries_max: int) -> tuple[int, ...]:
    """A small subset of `items` for which `fails` still holds; at most `tries_max` calls."""
    kept = tuple(items)
    parts = 2
    while kept and tries_max > 0:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            tries_max -= 1
            if fails(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
            if tries_max <= 0:
                return kept
        else:
            if size == 1:
                return kept
            parts = min(parts * 2, len(kept))
    return kept


def smallest(high: int, fails: Callable[[int], bool], tries_max: int) -> int:
    """A small n <= high with fails(n), by bisection (fails need not be monotone: the answer does fail)."""
    low = 0
    while low < high and tries_max > 0:
        middle = (low + high) // 2
        tries_max -= 1
        if fails(middle):
            high = middle
        else:
            low = middle + 1
    return high
