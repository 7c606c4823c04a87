"""The checker of searches by words: what it accepts, and each way in which an answer can be wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from needle.base.text import TextField
from needle.routing.shard_map import initial_map
from needle.routing.strategy import RANGE
from proof.checkers.replay import LogModel, ModelDocument
from proof.checkers.violation import Violation
from proof.checkers.word_searches import Round, WordsSeen, check_fused, check_words
from proof.checkers.words import fused, ranked, ranked_by, weighed

TEXT = TextField(field="body", language="none")
MAP = initial_map(RANGE, 2, boundaries=["m"])
MAPS = {MAP.epoch: MAP}
BODIES = {"a": "red fox", "b": "fox fox", "x": "fox red red", "y": "blue"}
LATER = BODIES | {"b": "blue fox blue"}


def models() -> dict[int, LogModel]:
    """a, b in shard 0 and x, y in shard 1; b is replaced at 7, y deleted at 8."""
    made = {0: LogModel(), 1: LogModel()}
    written = ((0, 3, "a"), (0, 4, "b"), (1, 3, "x"), (1, 4, "y"), (0, 7, "b"))
    for shard, index, key in written:
        body = (LATER if index == 7 else BODIES)[key]
        made[shard].write(index, key, ModelDocument(index, np.zeros(1, np.float32), {"body": body, "n": len(body)}))
    made[1].write(8, "y", None)
    return made


def hits(counted: dict[str, str], found: dict[str, str], versions: dict[str, int]) -> list[tuple[str, int, float]]:
    weights = weighed(counted, "fox red", TEXT)
    return [(name, versions[name], score) for name, score in ranked_by(weights, found, TEXT)]


VERSIONS = {"a": 3, "b": 4, "x": 3, "y": 4}
BEFORE = hits(BODIES, BODIES, VERSIONS)
AT_4 = Round({0: 4, 1: 4}, MAP.epoch)
SEEN = WordsSeen(
    label="search",
    text=TEXT,
    keywords="fox red",
    k=10,
    keep=None,
    counted=AT_4,
    found=AT_4,
    hits=BEFORE,
    required={0: 4, 1: 4},
)


def check(**changed: Any) -> None:
    check_words(models(), MAPS, lambda shard, _: MAP.ranges(shard), msgspec.structs.replace(SEEN, **changed))


def test_it_accepts_what_the_logs_say() -> None:
    assert {name for name, _, _ in BEFORE} == {"a", "b", "x"}
    check()
    check(k=2, hits=BEFORE[:2])
    check(keep=lambda metadata: metadata["n"] < 8, hits=[hit for hit in BEFORE if hit[0] != "x"])
    # counted before b was replaced, and searched after: by the weights of before
    check(found=Round({0: 7, 1: 4}, MAP.epoch), hits=hits(BODIES, LATER, VERSIONS | {"b": 7}))
    without = {name: body for name, body in BODIES.items() if name != "y"}
    check(counted=Round({0: 4, 1: 8}, MAP.epoch), hits=hits(without, BODIES, VERSIONS))
    of_one = {name: body for name, body in BODIES.items() if name < "m"}
    check(
        partial=True,
        missing=[1],
        counted=Round({0: 4}, MAP.epoch),
        hits=hits(of_one, BODIES, VERSIONS),
    )


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("found", {"hits": BEFORE[:2]}),
        ("found", {"hits": [*BEFORE, BEFORE[0]]}),
        ("found", {"hits": BEFORE[::-1]}),
        ("found", {"hits": [(name, version, 2 * score) for name, version, score in BEFORE]}),
        ("found", {"hits": hits({name: BODIES[name] for name in "ab"}, BODIES, VERSIONS)}),
        ("found", {"hits": hits(BODIES | {"z": "fox"}, BODIES, VERSIONS)}),
        ("found", {"hits": hits(BODIES, BODIES, VERSIONS | {"b": 7})}),
        ("before 4 which it had to see", {"counted": Round({0: 3, 1: 4}, MAP.epoch)}),
        ("before 4 which it had to see", {"found": Round({0: 4, 1: 3}, MAP.epoch)}),
        ("as missing", {"counted": Round({0: 4}, MAP.epoch)}),
        ("as missing", {"partial": True, "found": Round({0: 4}, MAP.epoch)}),
        ("as missing", {"partial": True, "missing": [1]}),
        ("which never was", {"found": Round({0: 4, 1: 4}, 99)}),
        ("which own nothing", {"counted": Round({0: 4, 1: 4, 2: 4}, MAP.epoch)}),
    ],
)
def test_it_refuses(what: str, changed: dict[str, Any]) -> None:
    with pytest.raises(Violation, match=what):
        check(**changed)


def test_a_shard_that_does_not_own_what_the_map_says_is_seen() -> None:
    with pytest.raises(Violation, match="does not own what the map says"):
        check_words(models(), MAPS, lambda shard, _: MAP.ranges(1 - shard), SEEN)


def test_fused_lists() -> None:
    assert fused("ab", "ba", 60, (1, 1)) == [("a", 1 / 61 + 1 / 62, (1, 2)), ("b", 1 / 62 + 1 / 61, (2, 1))]
    hits = fused(["a", "b"], ["b", "c"], 1, (1, 0.5))
    assert [(name, ranks) for name, _, ranks in hits] == [("b", (2, 1)), ("a", (1, None)), ("c", (None, 2))]
    check_fused("search", (["a", "b"], ["b", "c"]), 1, (1, 0.5), hits[:2], 2)
    for wrong in (hits, hits[1:], [(name, score, ranks[::-1]) for name, score, ranks in hits[:2]]):
        with pytest.raises(Violation, match="fused"):
            check_fused("search", (["a", "b"], ["b", "c"]), 1, (1, 0.5), wrong, 2)


def test_one_round_is_both_where_nothing_changes() -> None:
    assert ranked(BODIES, "fox red", TEXT) == ranked_by(weighed(BODIES, "fox red", TEXT), BODIES, TEXT)
    assert ranked({}, "fox", TEXT) == [] and ranked(BODIES, "green", TEXT) == []
