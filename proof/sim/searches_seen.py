"""What a search asked for and was answered, as the history and the checkers have it."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np

from proof.checkers.history import Operation
from proof.checkers.scatter import ScatterSeen
from proof.sim.workload import Answer, Keep


class Asked(NamedTuple):
    """k: hits. keep: what the filter lets through. required: by shard, what the answer has to hold. of_each: hits of
    each group, in place of k."""

    k: int
    keep: Keep | None
    exact: bool
    required: dict[int, int]
    of_each: int = 0


EVERYTHING = Asked(10_000, None, True, {})


def several_vectors(rng: Random, count: int, dimensions: int) -> Any:
    """(count, dimensions) float32."""
    return np.array([[rng.gauss(0, 1) for _ in range(dimensions)] for _ in range(count)], np.float32)


def seen(op: Operation, answer: Answer, vector: Any, asked: Asked, latest: dict[int, int]) -> ScatterSeen:
    """Put an answer down in its operation's details, and for the checkers. latest: the end of each shard's log now."""
    found = answer.batch
    hits = list(zip(found.ids, found.versions, found.distances, strict=True))
    tags = [msgspec.json.decode(metadata).get("tag", "") for metadata in found.metadata]
    gaps = [[start.hex(), end if end is None else end.hex()] for start, end in answer.gaps]
    op.details |= {"applied": answer.applied, "missing": list(answer.missing), "gaps": gaps}
    op.details["hits"] = [[*hit, tag] for hit, tag in zip(hits, tags, strict=True)]
    return ScatterSeen(
        mode=op.details["mode"],
        vector=vector,
        k=asked.k,
        of_each=asked.of_each,
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
