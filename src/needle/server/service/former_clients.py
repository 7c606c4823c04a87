"""What clients of a release before can read: a value that came with a later version of commands and formats ends their
reading of the whole answer that has it, and with that each of their calls.

So they do not hear of what has such a value, which to them is a collection, or a named vector, that is not there; all
else serves them. Clients say in their hello which version they know. Nodes never need this: no such value is written
before all nodes know it. Pure.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from needle.base.dtypes import DType
from needle.base.versions import BITS
from needle.protocol import calls
from needle.protocol.peer_calls import TOPOLOGY
from needle.routing.topology import CollectionInfo, Topology

TELLS: Final = frozenset((TOPOLOGY, calls.COLLECTIONS))
"""Methods whose answers say what collections are like."""


def reads(knows: int, spec: Any) -> bool:
    """Whether who knows that version can read what vectors are like, of a collection or by a name."""
    return knows >= BITS or spec.dtype is not DType.BIT


def readable(known: Topology, knows: int) -> Topology:
    """What such a client is told of a topology."""
    if knows >= BITS:
        return known
    whole = known.collections
    left = tuple(_with_vectors(info, knows) for info in whole if reads(knows, info.spec))
    if len(left) == len(whole) and all(one is other for one, other in zip(left, whole, strict=True)):
        return known
    names = {info.spec.name for info in left}
    aliases = tuple(alias for alias in known.aliases if alias.collection in names)
    return msgspec.structs.replace(known, collections=left, aliases=aliases)


def _with_vectors(info: CollectionInfo, knows: int) -> CollectionInfo:
    left = tuple(one for one in info.vectors if reads(knows, one.spec))
    return info if len(left) == len(info.vectors) else msgspec.structs.replace(info, vectors=left)
