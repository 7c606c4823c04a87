"""Nodes of another cluster, whose addresses lead to this one by mistake, do it no harm, whatever their names are."""

from __future__ import annotations

import time
from pathlib import Path

from harness.calm import CALM
from needle.local.process_cluster import ProcessCluster

ROW = [1.0] * 8
TOLD = "has another data directory"


async def test_strangers_with_the_names_of_members_are_sent_away_and_take_nobodys_place(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    async with ProcessCluster(tmp_path / "ours", **CALM) as ours, ours.connect() as client:
        await client.insert("before", ROW)
        theirs = ProcessCluster(tmp_path / "theirs", **CALM)
        strangers = [theirs.nodes["node-1"], theirs.nodes["node-3"]]
        wrong = {name: node.address for name, node in theirs.nodes.items()} | {"node-2": ours.nodes["node-2"].address}
        try:
            for stranger in strangers:
                stranger.settings["cluster_nodes"] = [f"{name}={address}" for name, address in wrong.items()]
                stranger.start()
            until, written = time.monotonic() + 60, 0
            while any(stranger.running() for stranger in strangers):  # a write that fails, or is late, is an error
                assert time.monotonic() < until, "strangers go on"
                await client.insert(f"during-{written}", ROW, timeout=10)
                written += 1
            assert all(TOLD in stranger.log.read_text() for stranger in strangers)
        finally:
            theirs.stop()
        await client.insert("after", ROW, timeout=10)
        assert await client.count() == written + 2
        for node in ours.nodes.values():
            assert "is refused" not in node.log.read_text(), node.name
