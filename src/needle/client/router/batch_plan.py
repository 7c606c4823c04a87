"""How a batch of documents is cut: by the shard that owns them, and so that each part is one log entry. Pure.

Invariant: every document is in one part, in order within its shard, or has no home.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from needle.base.errors import NeedleError
from needle.client.router.merge import by_owner
from needle.client.router.routes import owner_of
from needle.routing.topology import Ownership

BATCH_DOCUMENTS_MAX = 10_000


class BatchPlan(msgspec.Struct, frozen=True):
    """parts: places of documents in the batch, by shard. homeless: why others belong to no shard."""

    parts: dict[int, list[list[int]]]
    homeless: dict[int, NeedleError]


def plan_batch(
    owned: Ownership, ids: Sequence[str], metadata: Sequence[bytes], row_bytes: int, part_bytes_max: int
) -> BatchPlan:
    """Cut a batch. row_bytes: of each vector. part_bytes_max: about so many bytes make a part."""
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
            if parts[shard][-1] and (filled + weight > part_bytes_max or len(parts[shard][-1]) >= BATCH_DOCUMENTS_MAX):
                parts[shard].append([])
                filled = 0
            parts[shard][-1].append(at)
            filled += weight
    return BatchPlan(parts, homeless)
