"""Restores into running clusters of other shards and nodes, by a command that is killed on its way, as are nodes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import needle
from needle.backup.one_collection import MARK
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH
from proof.checkers.violation import Violation
from proof.operator import Operator
from proof.restore_drill.model import SEAL_ROWS, Found, Key, served

SETTINGS: dict[str, Any] = {
    "sharding": {"zone": "a"},
    "election_timeout": 0.5,
    "heartbeat_interval": 0.1,
    "segments": {"seal_rows": SEAL_ROWS},
}
RESTORE_SECONDS = 120.0


class Shape(NamedTuple):
    """Of a cluster that is restored into; instants: how many, beside one backup."""

    nodes: int
    shards: int
    instants: int

    def __str__(self) -> str:
        return f"{self.shards} shards on {self.nodes} nodes"


class Returning:
    """directory: of this drill. target: where the backups are."""

    def __init__(self, directory: Path, target: str, rng: random.Random) -> None:
        self._directory, self._target, self._rng = directory, target, rng
        self._shapes: list[Shape] = []
        self.restored, self.killed, self.nodes_killed = 0, 0, 0

    def told(self) -> str:
        """What was done, as the rest of a line."""
        if not self._shapes:
            return ""
        return (
            f"; {self.restored} restores into {', '.join(map(str, self._shapes))} as the model says, commands killed "
            f"{self.killed}, nodes killed {self.nodes_killed}"
        )

    async def into(self, shape: Shape, restores: list[str]) -> AsyncIterator[tuple[str, dict[Key, Found]]]:
        """What a cluster of this shape serves after each of these: options of `needle restore`."""
        self._shapes.append(shape)
        place = self._directory / f"into-{len(self._shapes)}"
        place.mkdir()
        async with ProcessCluster(place, shape.nodes, **SETTINGS) as cluster:
            await cluster.create(shape.shards, shape.nodes, CONSISTENT_HASH)
            async with cluster.connect() as client:
                for words in restores:
                    await self._restore(cluster, client, words)
                    yield words, await served(client)
                    self.restored += 1
                    for spec in await client.collections():
                        await client.drop_collection(spec.name, timeout=RESTORE_SECONDS)

    async def _restore(self, cluster: ProcessCluster, client: needle.Client, words: str) -> None:
        """Killed once while it writes; a node is killed under the one after it, if others can go on without it. That
        one has to come to its end."""
        operator = Operator({"NEEDLE_CLUSTER": cluster.cluster})
        command = ["restore", self._target, *words.split(), "--timeout", f"{RESTORE_SECONDS:g}"]
        first = operator.popen(*command)
        try:
            await self._begun(client, first)
            self.killed += first.poll() is None
        finally:
            first.kill()
            first.communicate()
        second = operator.popen(*command)
        try:
            victim = self._rng.choice(list(cluster.nodes)) if len(cluster.nodes) > 2 else ""
            if victim:
                cluster.kill(victim)
                self.nodes_killed += 1
                await asyncio.sleep(self._rng.uniform(0.2, 1.0))
                cluster.restart(victim)
            out, err = await asyncio.to_thread(second.communicate)
        finally:
            second.kill()
            second.communicate()
        # The first one may have been quicker than its end: then nothing is left to do, and the second is refused.
        whole = second.returncode == 1 and not await _under_way(client)
        if second.returncode and not whole:
            raise Violation("restore", f"needle restore {words} ended with {second.returncode}: {out}{err}")

    async def _begun(self, client: needle.Client, process: Any) -> None:
        """Until a restore has begun to write, and a little longer."""
        deadline = time.monotonic() + RESTORE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if await _under_way(client):
                await asyncio.sleep(self._rng.uniform(0.0, 0.1))
                return
            await asyncio.sleep(0.01)


async def _under_way(client: needle.Client) -> bool:
    return any(spec.name.startswith(MARK) for spec in await client.collections(timeout=RESTORE_SECONDS))
