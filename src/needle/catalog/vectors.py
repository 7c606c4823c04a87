"""Named vectors of the catalog's collections, and which of their fields are sparse ones. Pure.

Invariant: ids of vectors are never used again; what was dropped is among `Topology.dropped`, below zero.
"""

from __future__ import annotations

import msgspec

from needle.base.errors import CollectionExists, invalid
from needle.catalog.changed import Changed, done
from needle.catalog.collections import DROPPED_MAX, VECTORS_MAX, found_in, with_collection
from needle.protocol.vector_commands import AddVector, DeclareSparse, DropVector
from needle.routing.topology import NamedVector, Topology, vector_id


def add(now: Topology, index: int, command: AddVector) -> Changed:
    found = found_in(now, command)
    there = next((one for one in found.vectors if one.name == command.vector), None)
    if there is not None:
        if command.if_absent and there.is_made_as(command.spec):
            return done(now, index, there.id, existed=True)
        how = "with the same" if there.is_made_as(command.spec) else "with other"
        name = f"{command.name}/{command.vector}"
        raise CollectionExists(f"vector {name!r} exists {how} parameters", collection=command.name)
    if len(found.vectors) >= VECTORS_MAX:
        raise invalid("name", command.vector, f"one of at most {VECTORS_MAX} named vectors of a collection")
    made = NamedVector(command.vector, vector_id(index, 0), command.spec)
    vectors = tuple(sorted([*found.vectors, made], key=lambda one: one.name))
    return done(with_collection(now, found, msgspec.structs.replace(found, vectors=vectors)), index)


def drop(now: Topology, index: int, command: DropVector) -> Changed:
    found = found_in(now, command)
    gone = found.vector(command.vector)
    left = msgspec.structs.replace(found, vectors=tuple(one for one in found.vectors if one is not gone))
    made = with_collection(now, found, left)
    dropped = (*now.dropped, -gone.id)[-DROPPED_MAX:]
    return done(msgspec.structs.replace(made, dropped=dropped), index, existed=True)


def declare_sparse(now: Topology, index: int, command: DeclareSparse) -> Changed:
    found, name = found_in(now, command), command.vector
    if command.declared == (name in found.sparse):
        if not command.declared:
            raise invalid("sparse", name, f"one of {', '.join(map(repr, found.sparse)) or 'none: there are none'}")
        return done(now, index, now.version, existed=True)
    if command.declared and len(found.sparse) >= VECTORS_MAX:
        raise invalid("sparse", name, f"one of at most {VECTORS_MAX} sparse vectors of a collection")
    left = {*found.sparse, name} if command.declared else set(found.sparse) - {name}
    made = with_collection(now, found, msgspec.structs.replace(found, sparse=tuple(sorted(left))))
    return done(made, index, existed=not command.declared)
