"""Rows that a move took away and that feeds may still read: how many stay."""

from __future__ import annotations

import pytest

from needle.shard.moved_rows import MovedRows

COLLECTIONS, ROWS = 200, 10


def filled() -> MovedRows:
    rows = MovedRows(10**6)
    for collection in range(COLLECTIONS):
        rows.wrote(collection, 0)
        rows.left(collection, range(ROWS), [100 + at for at in range(ROWS)])  # each with a vector of its own
    assert rows.count == 2 * ROWS * COLLECTIONS
    return rows


@pytest.mark.parametrize("rows_max", [0, 1, 999, 2 * ROWS * COLLECTIONS - 1])
def test_no_more_stay_than_may_and_the_oldest_of_a_collection_go_first(rows_max: int) -> None:
    rows = filled()
    rows.limit(rows_max)
    assert rows_max - 2 * ROWS < rows.count <= rows_max
    for ordinals in rows.held().values():
        documents = [at for at in ordinals if at < 100]
        assert documents == list(range(ROWS - len(documents), ROWS))
