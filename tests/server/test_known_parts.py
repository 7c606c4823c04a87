"""Where the ids of a shard lie: parts of about as many documents, of what the shard owns, looked at now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from needle.routing.shard_map import KeyRange
from needle.server.known_parts import LOOK_SECONDS, LOOK_SHARE, PARTS, KnownParts, parts_of

IDS = st.lists(st.text(max_size=4), max_size=300)


@given(IDS, st.integers(1, 50), st.sets(st.text(max_size=3).map(str.encode), max_size=6))
def test_parts_are_of_what_is_owned_and_count_each_id_once(ids: list[str], each: int, edges: set[bytes]) -> None:
    bounds = [b"", *sorted(edges - {b""}), None]
    owned: list[KeyRange] = [
        (low, high) for low, high in zip(bounds[::2], bounds[1::2], strict=False) if low is not None
    ]
    parts = parts_of(ids, each, owned)
    for start, end in owned:
        inside = [name for name in ids if start <= name.encode() and (end is None or name.encode() < end)]
        made = [part for part in parts if start <= part[0] and (end is None or part[0] < end)]
        assert sum(count for _, _, count in made) == each * len(inside)
        assert bool(made) == bool(inside)
        for part, following in pairwise(made):
            assert part[1] == following[0] and part[0] < following[0]
        if made:
            assert (made[0][0], made[-1][1]) == (start, end)


def test_a_large_shard_is_some_parts_and_a_small_one_a_part_for_each_document() -> None:
    many = parts_of([f"doc-{n:06d}" for n in range(512)], 1000, [(b"", None)])
    assert len(many) == PARTS
    assert {count for _, _, count in many} == {8000}
    assert parts_of(["a", "b"], 1, [(b"", None)]) == [(b"", b"b", 1), (b"b", None, 1)]
    assert parts_of(["a"], 1, [(b"", None)]) == [(b"", None, 1)]
    assert parts_of(["a", "a"], 1, [(b"a", None)]) == [(b"a", None, 2)]


class Looked:
    """A replica of 2,000 documents; each look takes as long as it is told."""

    def __init__(self) -> None:
        self.now, self.takes, self.looks = 100.0, 0.0, 0

    def count(self) -> int:
        return 2000

    def look(self, at: Callable[..., Any], step: int) -> list[str]:
        self.looks += 1
        self.now += self.takes
        return list(at(SimpleNamespace(store=SimpleNamespace(some_ids=lambda step: [f"{step}-{self.looks}"])), step))


async def blocking(function: Callable[..., Any], *arguments: Any) -> Any:
    await asyncio.sleep(0)
    return function(*arguments)


async def test_it_is_looked_at_once_in_a_while() -> None:
    shard: Any = Looked()
    known = KnownParts()

    async def ask() -> Any:
        return await known.of(shard, [(b"", None)], blocking, lambda: shard.now)

    assert await ask() == [(b"", None, 3)]  # one id in three, so each stands for three
    await ask()
    assert shard.looks == 1
    shard.now += LOOK_SECONDS
    await asyncio.gather(ask(), ask())
    assert shard.looks == 2
    shard.takes, shard.now = 3.0, shard.now + LOOK_SECONDS
    await ask()
    shard.now += LOOK_SHARE * 3.0 - 1
    await ask()
    assert shard.looks == 3
    shard.now += 1
    await ask()
    assert shard.looks == 4
