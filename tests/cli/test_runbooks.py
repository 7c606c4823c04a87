"""The commands of docs/operations.md about nodes and shards, as they are written there, one after the other, against a
cluster of processes: what they say is so afterwards, nothing is lost, and none of them is refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from harness.commands import Run, until
from needle.cli.app import main
from needle.local.process_cluster import ProcessCluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
CHAPTERS = ("Start a cluster", "Restart and upgrade nodes", "Add, replace and remove nodes")
DOCUMENTS = 300
SSH = """#!/bin/sh
# ssh HOST systemctl VERB... needle@NODE, as an operator's machines would have it
for last; do :; done
echo "$3 ${last#needle@}" > DIRECTORY/$$.new
mv DIRECTORY/$$.new DIRECTORY/$$.asked
until [ -e DIRECTORY/$$.done ]; do sleep 0.05; done
"""


class Runbooks:
    """The page's world: node-N is at 10.0.0.N:5000 there, and a process of this machine here; its settings file is the
    page's node-N.toml."""

    def __init__(self, cluster: ProcessCluster, directory: Path, run: Run) -> None:
        self.cluster, self.directory, self.run = cluster, directory, run
        self.verbs: list[str] = []
        self.key = ""
        (directory / "ssh").write_text(SSH.replace("DIRECTORY", str(directory)))
        (directory / "ssh").chmod(0o755)

    def line(self, text: str) -> None:
        """One line of a block."""
        here = re.sub(r"10\.0\.0\.(\d):5000", lambda found: self.cluster.addresses[f"node-{found[1]}"], text)
        words = shlex.split(here.replace("ndl_...", self.key), comments=True)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            os.environ[name] = value
        elif words[:3] == ["needle", "serve", "--config"]:
            self.cluster.restart(words[3].removesuffix(".toml"))  # it is what that runs
        else:
            assert words[0] in ("needle", "ssh"), text
            self._watched(words)

    def _watched(self, words: list[str]) -> None:
        """Runs a command in a thread; what ssh is asked meanwhile is done here: a node ends with the thread that
        started it."""
        with ThreadPoolExecutor(1) as threads:
            ends = threads.submit(self._command, words)
            while not ends.done():
                for asked in self.directory.glob("*.asked"):
                    verb, node = asked.read_text().split()
                    self._systemctl(verb, node)
                    asked.rename(asked.with_suffix(".done"))
                wait([ends], 0.05)
            ends.result()

    def _command(self, words: list[str]) -> None:
        if words[0] == "ssh":
            subprocess.run([self.directory / "ssh", *words[1:]], check=True, timeout=60)
        elif words[1:] == ["status"]:  # which fails while a leader is elected
            until(lambda: main(words[1:]) == 0)
        else:
            if found := re.search(r"ndl_\S{43}", self.run(*words[1:])):
                self.key = found[0]

    def _systemctl(self, verb: str, node: str) -> None:
        self.verbs.append(f"{verb} {node}")
        if verb in ("stop", "restart", "disable"):
            self.cluster.terminate(node)
        if verb in ("start", "restart"):
            self.cluster.restart(node)

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


def blocks() -> list[str]:
    """The blocks of commands in those chapters of the page."""
    chapters = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    text = "".join(chapters[name] for name in CHAPTERS)
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


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
    elif "drain node-2" in block:
        assert nodes["node-2"]["state"] == "active" and nodes["node-2"]["shards"]
    elif "remove node-3" in block:
        assert nodes.keys() == {"node-1", "node-2", "node-4"}
        assert all(node["shards"] == shards for node in nodes.values())
    elif "replace node-2" in block:
        assert nodes.keys() == {"node-1", "node-4", "node-5"}
        assert nodes["node-5"]["shards"] == shards and nodes["node-5"]["catalog"]


def test_the_runbooks_do_what_they_say(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    safe = {"cluster_secret": "s" * 64, "require_keys": True}
    shards = {"shards": 2, "replicas": 3}
    cluster = ProcessCluster(
        tmp_path, 3, as_user=True, election_timeout=0.6, heartbeat_interval=0.1, sharding=shards, **safe
    )
    book = Runbooks(cluster, tmp_path, run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("NEEDLE_CLUSTER", "NEEDLE_API_KEY"):
        monkeypatch.setenv(name, cluster.cluster)
    first, *others = blocks()
    assert len(others) == 8
    try:
        cluster.start_nodes()
        until(lambda: main(["keys", "list", "--config", "node-1.toml"]) == 0)
        for line in first.splitlines():
            book.line(line)
        with needle.connect_sync(cluster.cluster) as client:
            vectors = np.random.default_rng(1).normal(size=(DOCUMENTS, 8)).astype(np.float32)
            client.insert_batch(ids=[f"doc-{n}" for n in range(DOCUMENTS)], vectors=vectors, timeout=30)
        for _ in range(2):
            cluster.add(sharding={"join": [cluster.addresses["node-1"]]})
        for block in others:
            book.line("needle status")  # as the page says: what a busy machine's nodes do not answer in time is refused
            for line in block.splitlines():
                book.line(line)
            after(book, block)
        until(book.whole)
    finally:
        cluster.stop()
