"""The catalog's commands about the named vectors of a collection (docs/adr/0118), and sparse ones (docs/adr/0120)."""

from __future__ import annotations

from typing import ClassVar

from needle.base.model import VectorSpec
from needle.base.versions import NAMED, SPARSE
from needle.protocol.spec_versions import OF_BITS
from needle.protocol.versioned import Versioned


class AddVector(Versioned, frozen=True, tag="add-vector"):
    """From now on documents of the collection `name` with that id may have a vector of this name. if_absent: fine if
    there is an equal one. The answer's version is the id of the vector."""

    SINCE: ClassVar[int] = NAMED
    NEWER: ClassVar[dict[str, int]] = OF_BITS

    name: str
    id: int
    vector: str
    spec: VectorSpec
    if_absent: bool = False


class DropVector(Versioned, frozen=True, tag="drop-vector"):
    """Documents have no such vector any more; refused if there is none of this name."""

    SINCE: ClassVar[int] = NAMED

    name: str
    id: int
    vector: str


class DeclareSparse(Versioned, frozen=True, tag="declare-sparse"):
    """From now on documents of the collection `name` with that id are found by the sparse vectors in their field
    `vector`, of which every replica keeps an index; or, declared being false, not any more: the field stays."""

    SINCE: ClassVar[int] = SPARSE

    name: str
    id: int
    vector: str
    declared: bool


VectorCommand = AddVector | DropVector | DeclareSparse
