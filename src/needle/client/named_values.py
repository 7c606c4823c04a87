"""Named vectors as callers give them, and get them. Pure. Bad input raises InvalidArgument, as in values.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from needle.base.dtypes import DType
from needle.base.errors import invalid
from needle.base.model import Metric, VectorChange, VectorSpec
from needle.base.plain import refused
from needle.client import values
from needle.client.values import FLOAT32
from needle.protocol.calls import DocumentBatch
from needle.protocol.commands import Named


def _by_name(vectors: Any, allowed: str) -> list[tuple[str, Any]]:
    if vectors is None:
        return []
    if not isinstance(vectors, Mapping):
        raise refused("vectors", vectors, allowed)
    return [(values.check_name(name, "vectors"), vectors[name]) for name in sorted(vectors, key=str)]


def of_one(vectors: Any) -> list[Named]:
    """Of one document: {name: numbers}; None for one that it does not have."""
    if vectors is None:
        return []
    named = _by_name(vectors, "a vector by each name")
    return [Named(name, [0], values.vector_bytes(one, f"vectors[{name!r}]")) for name, one in named if one is not None]


def of_batch(vectors: Any, count: int) -> list[Named]:
    """Of `count` documents: by name a 2-d array, or a list with a vector or None for each."""
    found: list[Named] = []
    for name, rows in _by_name(vectors, "by each name a list with a vector, or None, for each document"):
        field = f"named_vectors[{name!r}]"
        if isinstance(rows, np.ndarray) and rows.dtype != object:
            there, listed = list(range(len(rows))), values.as_array(rows, field, 2)
        elif isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
            there = [at for at, row in enumerate(rows) if row is not None]
            listed = values.as_array([rows[at] for at in there], field, 2) if there else np.zeros((0, 0), FLOAT32)
        else:
            raise refused(field, rows, "a 2-d array, or a list with a vector or None for each document")
        if len(rows) != count:
            raise invalid(field, f"{len(rows)} rows", f"one row for each of the {count} ids")
        if there:
            found.append(Named(name, there, listed.tobytes()))
    return found


def sparse_names(names: Any) -> list[str]:
    """Of the fields that are sparse vectors."""
    if names is None:
        return []
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise refused("sparse", names, "a list of names")
    return sorted({values.check_name(name, "sparse") for name in names})


def specs(vectors: Any) -> list[tuple[str, VectorSpec]]:
    """What named vectors are like: {name: VectorSpec}."""
    named = _by_name(vectors, "a VectorSpec by each name")
    return [(name, spec_of(one, f"vectors[{name!r}]")) for name, one in named]


def spec_of(spec: Any, field: str = "spec") -> VectorSpec:
    """One VectorSpec, whose index may be in words."""
    if not isinstance(spec, VectorSpec):
        raise refused(field, spec, "a VectorSpec")
    return VectorSpec(
        dimensions=values.check_count(spec.dimensions, f"{field}.dimensions"),
        metric=values.choose(spec.metric, Metric, f"{field}.metric"),
        index=values.check_index(spec.index),
        dtype=values.choose(spec.dtype, DType, f"{field}.dtype"),
    )


def names(vectors: Any, field: str = "vectors") -> list[str]:
    """Which named vectors are wanted, each once."""
    return list(dict.fromkeys(values.check_ids(vectors, field, "a list of names of vectors")))


def by_row(batch: DocumentBatch) -> list[dict[str, Any]]:
    """The named vectors of each document of a batch."""
    found: list[dict[str, Any]] = [{} for _ in batch.ids]
    for one in batch.named:
        rows = np.frombuffer(one.vectors, FLOAT32).reshape(len(one.rows), -1)
        for at, row in zip(one.rows, rows, strict=True):
            found[at][one.vector] = row
    return found


def wanted(vectors: Iterable[str] | None) -> tuple[str, ...]:
    """Names for a request; () for None."""
    return () if vectors is None else tuple(names(vectors))


def changes(vectors: Any) -> list[VectorChange]:
    """What is altered of named vectors: {name: {"index": ..., "ef_search": ...}}."""
    allowed = 'an object with "index", "ef_search" or both'
    found = []
    for name, given in _by_name(vectors, f"{allowed} by the name of each vector"):
        field = f"vectors[{name!r}]"
        if not isinstance(given, Mapping) or not given or not set(given) <= {"index", "ef_search"}:
            raise refused(field, given, allowed)
        effort, index = given.get("ef_search"), given.get("index")
        change = VectorChange(
            name=name,
            index=None if index is None else values.check_index(index),
            ef_search=0 if effort is None else values.check_count(effort, f"{field}.ef_search"),
        )
        if change == VectorChange(name=name):
            raise refused(field, given, allowed)
        found.append(change)
    return found
