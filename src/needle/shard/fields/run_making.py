"""Runs of a field's values, made of decoded documents. Pure.

It must not know how documents are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyroaring import BitMap

from needle.base.filters.nodes import lookup
from needle.base.instants import instant_key
from needle.base.sparse import SPARSE_KIND, Sparse, read
from needle.base.text import TextField
from needle.shard.analysis import analyzed
from needle.shard.fields.field_index import COLUMNS, FALSE, NULL, PRESENT, TRUE, Path, Run
from needle.shard.fields.value_columns import Column, Floats, Integers, LargeIntegers, Texts, Times, Words
from needle.shard.fields.weight_columns import Weights


class _Collector:
    """Values of one run, as they come."""

    def __init__(self) -> None:
        self.marks: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        self.odd: list[int] = []
        self.keys: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.owners: dict[str, list[int]] = {name: [] for name in COLUMNS}

    def put(self, column: str, key: Any, ordinal: int) -> None:
        self.keys[column].append(key)
        self.owners[column].append(ordinal)

    def value(self, value: Any, ordinal: int) -> None:
        """A scalar that the field stands for."""
        if value is None:
            self.marks[NULL].append(ordinal)
        elif isinstance(value, bool):
            self.marks[TRUE if value else FALSE].append(ordinal)
        elif isinstance(value, str):
            self.text(value, ordinal)
        else:
            self.number(value, ordinal)

    def text(self, value: str, ordinal: int) -> None:
        data = value.encode()
        if b"\0" in data:
            self.odd.append(ordinal)
        else:
            self.put("texts", Texts.key(data), ordinal)

    def number(self, value: int | float, ordinal: int) -> None:
        whole = int(value)
        if whole != value:
            self.put("floats", value, ordinal)
        elif Integers.low <= whole < Integers.high:
            self.put("integers", whole, ordinal)
        elif LargeIntegers.low <= whole < LargeIntegers.high:
            self.put("large", whole, ordinal)
        elif isinstance(value, float):
            self.put("floats", value, ordinal)
        else:
            self.odd.append(ordinal)

    def instant(self, value: Any, ordinal: int) -> None:
        """The same for an index of instants: texts that are none are not in it."""
        at = instant_key(value) if isinstance(value, str) else None
        if at is None:
            return
        micros, exact = Times.key(at)
        if exact:
            self.put("times", micros, ordinal)
        else:
            self.odd.append(ordinal)


def run_of(
    path: Path, first: int, end: int, ordinals: Sequence[int], documents: Sequence[Any], *, kind: bool | str
) -> Run:
    """The field in decoded documents, whose ordinals ascend in [first, end). kind: what of it, as in Key: of instants
    the texts that are RFC 3339 date-times, as such; nothing else."""
    if kind == SPARSE_KIND:
        return sparse_run(path, first, end, ordinals, documents)
    if isinstance(kind, str):
        return _words_run(path, first, end, ordinals, documents, kind)
    if not kind and len(path) == 1 and (alike := _alike(path[0], first, end, ordinals, documents)) is not None:
        return alike
    to = _Collector()
    take = to.instant if kind else to.value
    for ordinal, document in zip(ordinals, documents, strict=True):
        present, found = lookup(document, path)
        if present:
            to.marks[PRESENT].append(ordinal)
            for value in found:
                take(value, ordinal)
    columns = {name: kind_.made(to.keys[name], to.owners[name]) for name, kind_ in COLUMNS.items() if to.keys[name]}
    return Run(first, end, len(ordinals), [BitMap(mark) for mark in to.marks], BitMap(to.odd), columns)


def _alike(key: str, first: int, end: int, ordinals: Sequence[int], documents: Sequence[Any]) -> Run | None:
    """The same where each document has a value of one simple type: in a third of the time. None: not so here."""
    if set(map(type, documents)) != {dict}:
        return None
    values = [document.get(key) for document in documents]
    types = set(map(type, values))
    if types == {str}:
        texts = [value.encode() for value in values]
        if any(b"\0" in text for text in texts):
            return None
        columns = {"texts": Texts.made([Texts.key(text) for text in texts], ordinals)}
    elif types == {int}:
        if min(values) < Integers.low or max(values) >= Integers.high:
            return None
        columns = {"integers": Integers.made(values, ordinals)}
    elif types == {float}:
        numbers, owners = np.array(values), np.array(ordinals, np.uint32)
        whole = (np.floor(numbers) == numbers) & (np.abs(numbers) < Integers.high)
        if np.any(np.abs(numbers[~whole]) >= Integers.high):
            return None
        parts = {"floats": Floats.made(numbers[~whole], owners[~whole])} if not whole.all() else {}
        ints = {"integers": Integers.made(numbers[whole].astype(np.int64), owners[whole])} if whole.any() else {}
        columns = {**parts, **ints}
    else:
        return None
    marks = [BitMap(ordinals), BitMap(), BitMap(), BitMap()]
    return Run(first, end, len(ordinals), marks, BitMap(), columns)


def kind_of(text: TextField) -> str:
    """How the analyzer of a text is called among the kinds of a field's indexes."""
    return f"{text.language}-{text.version}"


def analyzer_of(path: Path, kind: str) -> TextField:
    """What `kind_of` named."""
    language, _, version = kind.rpartition("-")
    return TextField(field=".".join(path), language=language, version=int(version))


def _words_run(path: Path, first: int, end: int, ordinals: Sequence[int], documents: Sequence[Any], kind: str) -> Run:
    """Of the words of a text: present are documents with one at least."""
    text, present = analyzer_of(path, kind), list[int]()
    words, owners = list[bytes](), list[int]()
    for ordinal, document in zip(ordinals, documents, strict=True):
        if found := words_in(document, path, text):
            present.append(ordinal)
            words += found
            owners += [ordinal] * len(found)
    columns: dict[str, Column] = {"words": Words.made(words, owners)} if words else {}
    return Run(first, end, len(ordinals), [BitMap(present), BitMap(), BitMap(), BitMap()], BitMap(), columns)


def words_in(document: Any, path: Path, text: TextField) -> list[bytes]:
    """The words of one decoded document, as the index has them, in their order."""
    return [Texts.key(word.encode()) for value in lookup(document, path)[1] for word in analyzed(value, text)]


def sparse_run(path: Path, first: int, end: int, ordinals: Sequence[int], documents: Sequence[Any]) -> Run:
    """Of the sparse vectors of a field, which is in no other."""
    found = [(ordinal, sparse_in(one, path)) for ordinal, one in zip(ordinals, documents, strict=True)]
    return run_of_sparse(first, end, found)


def sparse_in(document: Any, path: Path) -> Sparse | None:
    """The sparse vector of one decoded document. What is none is as if it were not there."""
    value = document.get(path[0]) if isinstance(document, dict) else None
    found = None if value is None else read(value)
    return found if isinstance(found, Sparse) else None


def run_of_sparse(first: int, end: int, vectors: Sequence[tuple[int, Sparse | None]]) -> Run:
    """vectors: of the documents with ordinals in [first, end), which ascend; present are those with one."""
    there = [(ordinal, one) for ordinal, one in vectors if one is not None]
    present, parts = [ordinal for ordinal, _ in there], [one for _, one in there]
    columns: dict[str, Column] = {}
    if any(len(one.indices) for one in parts):
        owners = np.repeat(np.array(present, np.uint32), [len(one.indices) for one in parts])
        indices = np.concatenate([one.indices for one in parts])
        columns["sparse"] = Weights.of(indices, owners, np.concatenate([one.values for one in parts]))
    return Run(first, end, len(vectors), [BitMap(present), BitMap(), BitMap(), BitMap()], BitMap(), columns)
