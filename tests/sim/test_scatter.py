"""The checker of scatter-gather searches: what it accepts, and each way in which an answer can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from needle.routing.shard_map import initial_map, uncovered
from needle.routing.strategy import RANGE
from proof.checkers.replay import LogModel, ModelDocument
from proof.checkers.scatter import ScatterSeen, check_by_maps, check_scatter
from proof.checkers.shaping import Shaping
from proof.checkers.violation import Violation

MAP = initial_map(RANGE, 2, boundaries=["m"])


def models() -> dict[int, LogModel]:
    """a, b in shard 0 and x, y in shard 1; b is replaced at 7, y deleted at 8."""
    made = {0: LogModel(), 1: LogModel()}
    for shard, index, key, place in ((0, 3, "a", 1), (0, 4, "b", 2), (1, 3, "x", 3), (1, 4, "y", 4), (0, 7, "b", 5)):
        made[shard].write(index, key, ModelDocument(index, np.array([place], np.float32), {}))
    made[1].write(8, "y", None)
    return made


BEFORE = [("a", 3, 1.0), ("b", 4, 2.0), ("x", 3, 3.0), ("y", 4, 4.0)]
AFTER = [("a", 3, 1.0), ("x", 3, 3.0), ("b", 7, 5.0)]
SEEN = ScatterSeen(
    mode="strong",
    vector=np.array([0], np.float32),
    k=10,
    keep=None,
    exact=True,
    hits=BEFORE,
    applied={0: 4, 1: 4},
    required={0: 4, 1: 4},
    latest={0: 9, 1: 9},
    label="search",
)


def check(**changed: Any) -> None:
    owner: Callable[[str], int] = lambda key: int(key >= "m")  # noqa: E731
    check_scatter(models(), MAP, owner, msgspec.structs.replace(SEEN, **changed), "l2")


def test_it_accepts_what_the_logs_say() -> None:
    check()
    check(applied={0: 7, 1: 9}, hits=AFTER)
    check(k=2, hits=BEFORE[:2])
    check(exact=False, hits=BEFORE[1:])
    check(keep=lambda _: False, hits=[])
    # a client that is not told the indices: some state of each shard will do, not the same in all
    check(applied=None)
    check(applied=None, hits=[("a", 3, 1.0), ("x", 3, 3.0), ("y", 4, 4.0), ("b", 7, 5.0)])
    check(partial=True, missing=(1,), gaps=MAP.ranges(1), applied={0: 4}, hits=BEFORE[:2])


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("missing", {"hits": BEFORE[:3]}),
        ("missing", {"hits": [BEFORE[0], BEFORE[2]], "k": 2}),
        ("asked for 10 and got", {"hits": [*BEFORE, BEFORE[3]]}),
        ("asked for 3", {"k": 3}),
        ("order of distance", {"hits": BEFORE[::-1]}),
        ("absent", {"applied": {0: 4, 1: 9}}),
        ("the log: 7", {"applied": {0: 7, 1: 4}}),
        ("truly", {"hits": [("a", 3, 1.5), *BEFORE[1:]]}),
        ("before 4 which it had to see", {"applied": {0: 3, 1: 4}, "hits": [BEFORE[0], *BEFORE[2:]]}),
        ("without being asked", {"missing": (1,), "applied": {0: 4}, "hits": BEFORE[:2]}),
        ("should have", {"applied": {0: 4}}),
        ("names the gaps", {"partial": True, "missing": (1,), "applied": {0: 4}, "hits": BEFORE[:2]}),
        ("names the gaps", {"partial": True, "gaps": MAP.ranges(0)}),
        (
            "as missing, and has hits",
            {"partial": True, "missing": (1,), "gaps": MAP.ranges(1), "applied": {0: 4}, "hits": BEFORE[:3]},
        ),
        ("the log: 4", {"applied": None, "hits": AFTER, "required": {0: 4, 1: 4}, "latest": {0: 6, 1: 9}}),
    ],
)
def test_it_refuses(what: str, changed: dict[str, Any]) -> None:
    with pytest.raises(Violation, match=what):
        check(**changed)


def test_the_gaps_of_the_test_are_those_of_the_map() -> None:
    assert uncovered(MAP.ranges(0)) == MAP.ranges(1)


GROUPS = msgspec.structs.replace(SEEN, shaping=Shaping(of_each=1), hits=[BEFORE[0], BEFORE[1]], groups=[1, 2])
VALUES = {"a": 1, "b": 2, "x": 1, "y": 2}


def grouped(**changed: Any) -> None:
    made = {0: LogModel(), 1: LogModel()}
    for shard, index, key, place in ((0, 3, "a", 1), (0, 4, "b", 2), (1, 3, "x", 3), (1, 4, "y", 4)):
        made[shard].write(index, key, ModelDocument(index, np.array([place], np.float32), {"n": VALUES[key]}))
    check_scatter(made, MAP, lambda key: int(key >= "m"), msgspec.structs.replace(GROUPS, **changed), "l2")


def test_each_group_has_its_nearest() -> None:
    grouped()
    grouped(shaping=Shaping(of_each=2), hits=[BEFORE[0], BEFORE[2], BEFORE[1], BEFORE[3]], groups=[1, 1, 2, 2])
    for what, changed in (
        ("missing", {"hits": [BEFORE[0], BEFORE[3]]}),
        ("missing", {"shaping": Shaping(of_each=2), "hits": [BEFORE[0], BEFORE[2], BEFORE[1]], "groups": [1, 1, 2]}),
        ("missing", {"hits": [BEFORE[0]], "groups": [1]}),
        ("other values", {"groups": [2, 1]}),
        ("order of distance", {"hits": [BEFORE[1], BEFORE[0]], "groups": [2, 1]}),
        ("of each 1", {"hits": [BEFORE[0], BEFORE[2], BEFORE[1]], "groups": [1, 1, 2]}),
        ("in 1 groups", {"groups": [1]}),
    ):
        with pytest.raises(Violation, match=what):
            grouped(**changed)


def by_maps(**changed: Any) -> None:
    seen = msgspec.structs.replace(SEEN, epoch=-1, **changed)
    check_by_maps(models(), {1: MAP}, lambda shard, _: MAP.ranges(shard), str.encode, seen, "l2")


def test_an_answer_of_nobody_needs_no_map_that_was() -> None:
    """A client that knew an old ring asked, and no shard answered in time: seed 80132."""
    nobody = {"hits": [], "applied": {}, "partial": True, "missing": (0, 1), "gaps": [(b"", None)]}
    by_maps(**nobody)
    for wrong in ({"partial": False}, {"hits": BEFORE}, {"applied": {0: 4}}, {"gaps": [(b"", b"m")]}):
        with pytest.raises(Violation, match="which never was"):
            by_maps(**{**nobody, **wrong})


A, B, X, Y, Z = [("a", 3, 1.0), ("b", 4, 1.4), ("x", 3, 2.0), ("y", 4, 9.5), ("z", 5, 10.0)]
"""Far from each other are only a, y and z; the values are those of VARIED."""
VARIED = {"a": 3, "b": "t", "x": None, "y": 3, "z": True}


def varied(*hits: tuple[str, int, float], k: int = 3, **changed: Any) -> None:
    made = {0: LogModel(), 1: LogModel()}
    for key, version, place in (A, B, X, Y, Z):
        metadata = {} if VARIED[key] is None else {"in": {"n": [VARIED[key], None]}}
        made[int(key >= "m")].write(version, key, ModelDocument(version, np.array([place], np.float32), metadata))
    how = {name: changed.pop(name) for name in ("diversify", "pool", "order_by", "descending") if name in changed}
    changed = {"k": k, "hits": list(hits), "applied": {0: 4, 1: 5}, "shaping": Shaping(**how), **changed}
    seen = msgspec.structs.replace(SEEN, **changed)
    check_scatter(made, MAP, lambda key: int(key >= "m"), seen, "l2")


def test_hits_that_are_unlike_each_other_are_each_worth_most_of_the_pool() -> None:
    varied(A, Z, X, diversify=1.0)  # y is too near to z by then
    varied(A, X, B, diversify=1.0, pool=3)
    varied(A, B, X, diversify=0.0)
    varied(A, Z, X, Y, B, diversify=1.0, k=10)
    varied(A, Y, diversify=1.0, k=2, exact=False)  # z may not have been a candidate
    varied(A, Y, diversify=1.0, k=2, applied=None)
    for what, hits, changed in (
        ("z was worth 9", (A, Y, X), {}),  # not the farthest of the pool
        ("z at 10.000000 is none of the 4 nearest", (A, Z, X), {"pool": 4}),
        ("was taken behind", (A, X, Z), {}),  # the right ones in the order of their distances
        ("was taken behind", (A, X, Z), {"exact": False}),
        ("was taken behind", (A, X, Z), {"applied": None, "required": {0: 4, 1: 5}}),
        ("'a'. are missing", (Z, X, B), {}),  # the nearest comes first
        ("missing", (A, Z), {}),  # fewer than there are
        ("asked for 3", (A, Z, X, B), {}),
    ):
        with pytest.raises(Violation, match=what):
            varied(*hits, diversify=1.0, **changed)


def test_hits_in_the_order_of_a_field_are_the_nearest_and_as_near_as_they_are() -> None:
    varied(A, Y, B, X, order_by="in.n", k=4)
    varied(A, Y, B, Z, X, order_by="in.n", k=10)
    varied(Z, B, A, Y, X, order_by="in.n", k=10, descending=True)
    varied(A, B, X, order_by="nowhere")
    varied(A, Z, X, order_by="in.n", diversify=1.0)
    for what, hits, changed in (
        ("came", (B, A, X), {}),
        ("came", (X, A, B), {}),  # what has no value is last
        ("came", (Y, A, B, X), {"k": 4}),  # of equal ones the nearer first
        ("came", (X, Z, B, Y, A), {"k": 10, "descending": True}),  # also from the greatest
        ("'x'. are missing", (A, Y, B), {}),  # not the least of the collection
        ("missing", (A, B), {}),  # a hit without a value is a hit
        ("z was worth", (A, Y, X), {"diversify": 1.0}),  # in whatever order they came
    ):
        with pytest.raises(Violation, match=what):
            varied(*hits, order_by="in.n", **changed)
