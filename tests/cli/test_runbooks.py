"""The commands of docs/operations.md about nodes and shards, as they are written there, one after the other, against a
cluster of processes: what they say is so afterwards, nothing is lost, and none of them is refused."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from harness.calm import CALM
from harness.commands import Run, until
from harness.page_commands import PageCommands, blocks, chapter
from needle.cli.app import main
from needle.local.process_cluster import ProcessCluster

CHAPTERS = ("Start a cluster", "Restart and upgrade nodes", "Add, replace and remove nodes")
DOCUMENTS = 300


class Runbooks(PageCommands):
    """A node's settings file is the page's node-N.toml. key: the last one that was made."""

    key = ""

    async def run_line(self, text: str) -> None:
        """One line of a block."""
        words = self.words(text.replace("ndl_...", self.key))
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            os.environ[name] = value
        elif words[:3] == ["needle", "serve", "--config"]:
            self.cluster.restart(words[3].removesuffix(".toml"))  # it is what that runs
        else:
            await self.line(text.replace("ndl_...", self.key))

    def command(self, words: list[str], expect: int | None) -> str:
        if words[1:] == ["status"]:  # which fails while a leader is elected
            until(lambda: main(words[1:]) == 0)
            return ""
        said = super().command(words, expect)
        if found := re.search(r"ndl_\S{43}", said):
            self.key = found[0]
        return said

    # --- what is so --------------------------------------------------------------------------------------------------
    def shown(self, *words: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*words, "--json"))

    def nodes(self) -> dict[str, Any]:
        return {node["id"]: node for node in self.shown("node", "list") if node["state"] != "removed"}

    def whole(self) -> bool:
        with needle.connect_sync(os.environ["NEEDLE_CLUSTER"]) as client:
            hits = client.search(np.ones(8, np.float32), DOCUMENTS + 1, exact=True)
        return sorted(hit.id for hit in hits) == sorted(f"doc-{n}" for n in range(DOCUMENTS))


def after(book: Runbooks, block: str) -> None:
    """What a block's commands say must be so."""
    nodes, shards = book.nodes(), [0, 1, 2]
    if "rolling-restart" in block:
        assert sorted(book.verbs) == ["restart node-1", "restart node-2", "restart node-3"]
    elif "maintenance" in block:
        assert book.verbs[-2:] == ["stop node-2", "start node-2"]
        assert not any(node["maintenance"] for node in nodes.values())
    elif "node add node-4" in block:
        assert nodes["node-4"]["shards"]
    elif "shard add" in block:
        assert [shard["shard"] for shard in book.shown("shard", "list")] == shards
    elif "rebalance" in block:  # a shard was added before, and node-4 has joined
        ended = book.shown("rebalance", "--status")
        assert ended["is_complete"] and ended["state"] == "done"
        stats = book.shown("cluster", "stats")
        assert sorted(map(int, stats["shard_sizes"])) == shards and not stats["unknown"]
        assert all(one["documents"] for one in stats["shard_sizes"].values())
        assert sum(one["documents"] for one in stats["shard_sizes"].values()) == DOCUMENTS
        held = [load["replicas"] for load in stats["nodes"].values() if load["replicas"]]
        assert sum(held) == 3 * len(shards) and max(held) - min(held) <= 1
        assert not book.shown("rebalance", "--dry-run")["moves"], "it is even"
    elif "drain node-2" in block:
        assert nodes["node-2"]["state"] == "active" and nodes["node-2"]["shards"]
    elif "remove node-3" in block:
        assert nodes.keys() == {"node-1", "node-2", "node-4"}
        assert all(node["shards"] == shards for node in nodes.values())
    elif "replace node-2" in block:
        assert nodes.keys() == {"node-1", "node-4", "node-5"}
        assert nodes["node-5"]["shards"] == shards and nodes["node-5"]["catalog"]


@pytest.mark.runbook
async def test_the_runbooks_do_what_they_say(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    safe = {"cluster_secret": "s" * 64, "require_keys": True}
    shards = {"shards": 2, "replicas": 3}
    cluster = ProcessCluster(tmp_path, 3, as_user=True, **CALM, sharding=shards, **safe)
    book = Runbooks(cluster, tmp_path, run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("NEEDLE_CLUSTER", "NEEDLE_API_KEY"):
        monkeypatch.setenv(name, cluster.cluster)
    first, *others = [block for name in CHAPTERS for block in blocks(chapter("operations.md", name))]
    assert len(others) == 8
    try:
        cluster.start_nodes()
        await asyncio.to_thread(until, lambda: main(["keys", "list", "--config", "node-1.toml"]) == 0)
        for line in first.splitlines():
            await book.run_line(line)
        async with needle.connect(cluster.cluster) as client:
            vectors = np.random.default_rng(1).normal(size=(DOCUMENTS, 8)).astype(np.float32)
            await client.insert_batch(ids=[f"doc-{n}" for n in range(DOCUMENTS)], vectors=vectors, timeout=30)
        for _ in range(2):
            cluster.add(sharding={"join": [cluster.addresses["node-1"]]})
        for block in others:
            await book.run_line("needle status")  # as the page says: a node that does not answer in time is refused
            for line in block.splitlines():
                await book.run_line(line)
            await asyncio.to_thread(after, book, block)
        await asyncio.to_thread(until, book.whole)
    finally:
        cluster.stop()
