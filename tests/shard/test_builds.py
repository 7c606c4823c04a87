"""Builds of index files: what is remembered of others' builds."""

from __future__ import annotations

from typing import Any, cast

from needle.shard.segments.builds import KeeperStats, Progress, SegmentBuilds


class Stopped:
    def monotonic(self) -> float:
        return 0.0


async def test_of_a_dropped_collection_nothing_is_remembered() -> None:
    async def ask_building(peer: str, collection_id: int) -> Progress | None:
        return (1, 2, 3)

    rest = dict.fromkeys(("publish", "build_pool", "file_pool", "disk", "files", "pause"))
    builds = SegmentBuilds(
        peers=lambda: ["b", "c"],
        ask_building=ask_building,
        clock=cast(Any, Stopped()),
        stats=KeeperStats(),
        **cast(Any, rest),
    )
    for collection_id in (1, 2):
        assert await builds.elsewhere(collection_id)
    builds.forget(1)
    assert set(builds._seen) == {("b", 2), ("c", 2)}
