"""What a search asked for and was answered, as the history and the checkers have it."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from needle.base.model import ReadMode
from proof.checkers.history import Operation
from proof.checkers.scatter import ScatterSeen
from proof.checkers.shaping import PLAIN, Shaping
from proof.sim.machine import stream
from proof.sim.workload import Answer, Keep


class Asked(NamedTuple):
    """k: hits. keep: what the filter lets through. required: by shard, what the answer has to hold. shaping:
    which of the nearest are asked for, and in which order."""

    k: int
    keep: Keep | None
    exact: bool
    required: dict[int, int]
    shaping: Shaping = PLAIN


EVERYTHING = Asked(10_000, None, True, {})
GROUP_SIZES = (0, 0, 0, 1, 3)
VARIED_SHARE, ORDERED_SHARE = 0.4, 0.35
"""Of searches that are not by groups."""
ORDERS = ("n", "n", "odd", "tag", "added")
"""Fields of documents: of few values and of many, and one that only those have that were patched."""


class Shapings:
    """Draws what one client's searches ask for beside the nearest."""

    def __init__(self, seed: int, client: str) -> None:
        self._grouping, self._rest = stream(seed, "grouping", client), stream(seed, "shaping", client)

    def draw(self, k: int) -> Shaping:
        """For a search of k hits."""
        if of_each := self._grouping.choice(GROUP_SIZES):
            return Shaping(of_each=of_each)
        rng, shaping = self._rest, PLAIN
        if rng.random() < VARIED_SHARE:
            pool = rng.choice([None, k, k + 2, 3 * k])
            shaping = Shaping(diversify=rng.choice([0.0, 0.3, 0.5, 0.9, 1.0]), pool=pool)
        if rng.random() < ORDERED_SHARE:
            shaping = replace(shaping, order_by=rng.choice(ORDERS), descending=rng.random() < 0.5)
        return shaping


def several_vectors(rng: Random, count: int, dimensions: int) -> Any:
    """(count, dimensions) float32."""
    return np.array([[rng.gauss(0, 1) for _ in range(dimensions)] for _ in range(count)], np.float32)


def told(asked: Asked, mode: ReadMode, filter_: Any, vector: Any) -> dict[str, Any]:
    """What was asked, as the history has it."""
    shaping = msgspec.to_builtins(asked.shaping)
    how = {"mode": str(mode), "k": asked.k, "filter": filter_, "exact": asked.exact, "required": asked.required}
    return {**how, **shaping, "vector": vector.tolist()}


def seen(op: Operation, answer: Answer, vector: Any, asked: Asked, latest: dict[int, int]) -> ScatterSeen:
    """Put an answer down in its operation's details, and for the checkers. latest: the end of each shard's log now."""
    found = answer.batch
    hits = list(zip(found.ids, found.versions, found.distances, strict=True))
    tags = [msgspec.json.decode(metadata).get("tag", "") for metadata in found.metadata]
    gaps = [[start.hex(), end if end is None else end.hex()] for start, end in answer.gaps]
    op.details |= {"applied": answer.applied, "missing": list(answer.missing), "gaps": gaps}
    op.details["hits"] = [[*hit, tag] for hit, tag in zip(hits, tags, strict=True)]
    if asked.shaping.of_each:
        op.details["groups"] = list(found.groups)
    return ScatterSeen(
        mode=op.details["mode"],
        vector=vector,
        k=asked.k,
        shaping=asked.shaping,
        groups=found.groups,
        keep=asked.keep,
        exact=asked.exact,
        hits=hits,
        applied=answer.applied,
        required=asked.required,
        latest=latest,
        partial=op.details["partial"],
        missing=answer.missing,
        gaps=answer.gaps,
        epoch=answer.epoch,
        label=f"search #{op.id} by {op.client}",
    )
