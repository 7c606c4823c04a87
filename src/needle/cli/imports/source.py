"""What all sources of `needle import` have in common. Nothing here knows about clusters.

A source is read more than once, and is never written.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from needle.base.errors import ConfigError, InvalidArgument
from needle.base.model import Metric
from needle.cli.inputs import Record, refuse

KEY_VARIABLE = "NEEDLE_SOURCE_API_KEY"
EXPIRES = "says when it expires, which `needle insert` takes and an import does not"
"""Why a document of a source is refused."""


class Asked(NamedTuple):
    """What the command line says of a source. collection: in the source; vector, id: names there; ids: a file.
    rows: of one batch."""

    place: str
    collection: str | None = None
    vector: str | None = None
    id: str | None = None
    ids: str | None = None
    key: str | None = None
    rows: int = 500


class Shape(NamedTuple):
    """What a source holds. documents: how many, None if that is not cheap to know. metric: None if the source has none.
    mapped: what becomes of its parts, for people. named: of named vectors, as far as it is cheap to know."""

    documents: int | None
    dimensions: int
    metric: Metric | None
    mapped: tuple[tuple[str, str], ...]
    named: Mapping[str, int] = MappingProxyType({})


class Source(Protocol):
    """Documents somewhere else. exact: whether `nearest` looks at every vector."""

    shape: Shape
    exact: bool

    def batches(self) -> Iterator[list[Record]]:
        """All documents, from the first one on each time it is called. Raises InvalidArgument naming one that has no
        counterpart."""
        ...

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        """Ids of the nearest as the source itself finds them; None if it does not search."""
        ...

    def close(self) -> None: ...


def library(name: str, extra: str) -> Any:
    """A source's library. Raises ConfigError that names the extra which has it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"this source needs {name}: pip install 'needle-vdb[{extra}]'; {error}"
        raise ConfigError(text, field=extra) from None


@contextmanager
def in_words(where: str, *errors: type[BaseException]) -> Iterator[None]:
    """What the source's library raises, as an error of the tree."""
    try:
        yield
    except errors as error:
        raise refuse(where, f"cannot be read: {' '.join(str(error).split())[:400] or type(error).__name__}") from error


def one_of(where: str, option: str, wanted: str | None, names: list[str]) -> str:
    """The name that was asked for, or the only one."""
    shown = ", ".join(sorted(names)[:20]) or "none"
    if wanted is not None:
        if wanted not in names:
            raise refuse(where, f"there is no {wanted!r} for {option}, only: {shown}")
        return wanted
    if len(names) != 1:
        raise refuse(where, f"choose one by {option}; there are: {shown}")
    return names[0]


def metric_of(where: str, name: str, known: Mapping[str, Metric]) -> Metric:
    """The source's metric here."""
    found = known.get(name.lower())
    if found is None:
        raise refuse(where, f"its metric {name} has no counterpart; there are: {', '.join(Metric)}")
    return found


def joined(where: str, metadata: dict[str, Any] | None, **others: Any) -> dict[str, Any] | None:
    """Metadata with what the source keeps beside it, where it has a value."""
    added = {name: value for name, value in others.items() if value is not None}
    both = sorted(added.keys() & (metadata or {}).keys())
    if both:
        raise refuse(where, f"its metadata has a key {both[0]!r} already, which the source's {both[0]} would become")
    return {**(metadata or {}), **added} or None


def refuse_pickle(where: str) -> InvalidArgument:
    """It may run code when it is read."""
    return refuse(
        where,
        "is a pickle, which runs whatever code its author put into it when it is read; it is not opened. Where you "
        "trust it: load it by what wrote it (LangChain: FAISS.load_local), and write its documents as JSON lines with "
        '"id", "vector" (store.index.reconstruct(row)) and "metadata"; then: needle import FILE.jsonl',
    )
