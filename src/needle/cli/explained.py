"""The table of how a search was answered: one row for each part of each shard's vectors. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from needle.base.explain import ShardExplanation
from needle.cli.common import table


def explained(shards: Sequence[ShardExplanation]) -> Table:
    """A shard's row, and one below it for each part of its vectors."""
    rows = table("shard", "node", "applied", "part", "way", "rows", "allowed", "ef", "ms")
    for shard in shards:
        total = shard.filter_milliseconds + shard.vectors_milliseconds + shard.documents_milliseconds
        counts = (str(shard.documents), str(shard.allowed), "")
        rows.add_row(str(shard.shard), shard.node, str(shard.applied_index), "all", "", *counts, f"{total:.2f}")
        for part in shard.segments:
            span, ef = f"{part.first}-{part.last}", str(part.ef) if part.ef else ""
            told = (str(part.way), str(part.rows), str(part.allowed), ef, f"{part.milliseconds:.2f}")
            rows.add_row("", "", "", span, *told)
    return rows


def remarks(shards: Sequence[ShardExplanation]) -> list[str]:
    """What all shards remark, if each has something to: what one of them has is not missing."""
    told = [shard.notes for shard in shards]
    return list(told[0]) if told and all(told) else []
