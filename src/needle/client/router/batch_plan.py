"""How a batch of documents is cut: by the shard that owns them, and so that each part is one log entry; and which of
them a shard may refuse. Pure.

Invariant: every document is in one part, in order within its shard, or has no home.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from needle.base.config import Limits
from needle.base.errors import NeedleError
from needle.client.router.merge import by_owner
from needle.client.router.routes import owner_of
from needle.routing.topology import Ownership

SQUARE_MAX = float(np.finfo(np.float32).max) / 16
"""A vector whose square is larger may be refused: no metric takes one that is longer."""
DEFAULTS = Limits()


class BatchPlan(msgspec.Struct, frozen=True):
    """parts: places of documents in the batch, by shard. homeless: why others belong to no shard."""

    parts: dict[int, list[list[int]]]
    homeless: dict[int, NeedleError]


def plan_batch(
    owned: Ownership, ids: Sequence[str], metadata: Sequence[bytes], row_bytes: int, part_bytes_max: int, rows_max: int
) -> BatchPlan:
    """Cut a batch. row_bytes: of each vector. part_bytes_max: about so many bytes make a part; rows_max: or so many
    documents."""
    owners: list[int] = []
    routed: list[int] = []
    homeless: dict[int, NeedleError] = {}
    for at, name in enumerate(ids):
        try:
            owners.append(owner_of(owned, name, metadata[at]))
            routed.append(at)
        except NeedleError as error:
            homeless[at] = error
    parts: dict[int, list[list[int]]] = {}
    for shard, members in by_owner(owners).items():
        parts[shard] = [[]]
        filled = 0
        for at in (routed[n] for n in members):
            weight = row_bytes + 16 + len(ids[at]) + len(metadata[at])
            if parts[shard][-1] and (filled + weight > part_bytes_max or len(parts[shard][-1]) >= rows_max):
                parts[shard].append([])
                filled = 0
            parts[shard][-1].append(at)
            filled += weight
    return BatchPlan(parts, homeless)


def doubtful(ids: Sequence[str], rows: memoryview, metadata: Sequence[bytes], limits: Limits) -> set[int]:
    """Places of documents that a shard with these limits may refuse: their ids or metadata are long, their vectors have
    no direction or are very long. A node may have other limits, and says so only when it is asked."""
    found: set[int] = set()
    if ids and 4 * max(map(len, ids)) > limits.id_bytes_max:
        found.update(at for at, name in enumerate(ids) if len(name.encode()) > limits.id_bytes_max)
    if metadata and max(map(len, metadata)) > limits.metadata_bytes_max:
        found.update(at for at, json in enumerate(metadata) if len(json) > limits.metadata_bytes_max)
    width = len(ids) and rows.nbytes // len(ids)
    if width and not width % 4 and rows.nbytes == width * len(ids):  # all of them are refused otherwise
        vectors = np.frombuffer(rows, "<f4").reshape(len(ids), -1)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", vectors, vectors)
        found.update(np.flatnonzero(~((squares > 0) & (squares <= SQUARE_MAX))).tolist())
    return found
