"""What is written to the fields that are sparse vectors, before it goes into the log.

It is the leader's to refuse: a shard's log takes whatever metadata there is, as of documents that were written before
the catalog said that a field has sparse vectors, and such a document is no hit (base/sparse.py). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle.base.decoding import routed_metadata
from needle.base.errors import invalid
from needle.base.sparse import Wrong, check_metadata, read
from needle.protocol import commands
from needle.routing.stored_collections import StoredCollections
from needle.routing.topology import Topology

_CHANGES = commands.Patch, commands.ChangeWhere
_WITH_FIELDS = commands.Insert, *_CHANGES


def check_sparse_of(command: commands.Command, topology: Topology, known: StoredCollections) -> None:
    """By what the catalog says of its collection. known: what was found of collections before. Raises
    InvalidArgument."""
    if isinstance(command, _WITH_FIELDS):
        info = known.find(topology, command.collection)
        if info is not None and info.sparse:
            check_sparse(command, info.sparse)


def check_sparse(command: commands.Command, names: Sequence[str]) -> None:
    """Raises InvalidArgument for a document, or a change, whose sparse vectors are none. names: of the collection."""
    if isinstance(command, commands.Insert):
        for id_, metadata in zip(command.ids, command.metadata, strict=False):
            check_metadata(f"metadata of {id_[:80]!r}", metadata, names)
    elif isinstance(command, _CHANGES) and command.change is not None:
        _check_change(command.change, names)


def _check_change(change: commands.Change, names: Sequence[str]) -> None:
    if change.whole is not None:
        check_metadata("metadata", change.whole, names)
    for path, data in change.set:
        if path in names:
            _check("change", path, routed_metadata(data))
    parts = [*(path for path, _ in (*change.set, *change.append, *change.remove)), *change.unset]
    for path in parts:
        head, dot, _ = path.partition(".")
        if dot and head in names:
            raise invalid("change", path, f"the whole of the sparse vector {head!r}, set or unset")
    for path, _ in (*change.append, *change.remove):
        if path in names:
            raise invalid("change", path, "no sparse vector: set the whole of it")


def _check(field: str, name: str, value: Any) -> None:
    """None, like a field that is not there, is no sparse vector and no mistake."""
    if value is not None and isinstance(found := read(value), Wrong):
        raise found.error(f"{field}: {name}")
