"""What of named vectors goes along with some of a batch's documents."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from needle.protocol.named import Named, taken, taken_of


class Rows(list[int]):
    """Whose places are found, and not all walked."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("all rows of the batch are looked at for one of its parts")


def test_they_are_those_of_the_documents_that_are_kept() -> None:
    rng = random.Random(1)
    for _ in range(200):
        rows, keep = (sorted(rng.sample(range(30), rng.randrange(1, 30))) for _ in range(2))
        found = taken(Named("v", rows, b"".join(b"%02d" % row for row in rows)), keep)
        wanted = [row for row in keep if row in rows]
        assert found.rows == [keep.index(row) for row in wanted]
        assert found.vectors == b"".join(b"%02d" % row for row in wanted)
    assert taken_of([Named("v", [1, 2], b"ab")], [0, 3]) == []


def test_a_part_costs_what_it_has_and_not_what_the_batch_has() -> None:
    rows: Any = Rows(range(0, 100_000, 2))
    (found,) = taken_of([Named("v", rows, bytes(50_000))], [7, 10, 99_998])
    assert (found.rows, found.vectors) == ([1, 2], bytes(2))
