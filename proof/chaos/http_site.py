"""A chaos run whose clients speak HTTP: the same faults, the same history, the same judgement.

Beside what the workload does, a collection is filled, changed, read, exported and emptied again all the time, words are
appended to documents by requests that are sent until they are answered, and each node's memory and open files are
looked at. Probes, and the reading of replicas at the end, go by the binary protocol.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from needle.local.node_process import NodeProcess
from proof.chaos.clients import ShardRecorder
from proof.chaos.http_database import HttpDatabase, HttpDoor
from proof.chaos.http_door import Connections, Documented
from proof.chaos.http_load import Ledger, Mixed
from proof.chaos.site import FINAL_SECONDS, Site, timed
from proof.chaos.spec import ChaosSpec
from proof.checkers.violation import Violation
from proof.sim.client import Client
from proof.sim.machine import stream
from proof.sim.spec import Profile
from proof.sim.workload import Workload

LOOK_SECONDS = 1.0
MEMORY_MAX = 600 << 20
"""Bytes of a node's own memory."""
FILES_MAX = 400
"""A node's descriptors."""


class Held(msgspec.Struct):
    """The most that one process of a node held: bytes of memory of its own, open files."""

    memory: int = 0
    files: int = 0


class HttpSite(Site):
    """See the module. held: by minute of the run, of whichever node held most."""

    aware, plain = (), ("h0", "h1", "h2", "h3", "h4", "h5")
    documented: Documented
    ledger: Ledger
    mixed: Mixed

    def __init__(self, spec: ChaosSpec, profile: Profile, directory: Path) -> None:
        super().__init__(spec, profile, directory)
        self.held: list[Held] = []
        self._doors: list[HttpDoor] = []
        self._beside: list[asyncio.Task[None]] = []

    async def open(self, history: ShardRecorder) -> None:
        """As Site; the nodes' own document says what they may answer."""
        await super().open(history)
        connections, address = Connections(), next(iter(self.cluster.nodes.values())).http
        _, _, document = await connections.ask(address, "GET", "/openapi.json", None, {}, FINAL_SECONDS)
        connections.close()
        self.documented = Documented(msgspec.json.decode(document))

    async def close(self) -> None:
        await self._end()
        for door in self._doors:
            door.close()
        await super().close()

    def _door(self, name: str, nodes: list[str]) -> HttpDoor:
        def addresses() -> dict[str, str]:
            return {node: self.cluster.nodes[node].http for node in nodes}

        door = HttpDoor(addresses, self.documented, stream(self.spec.seed, "door", name))
        self._doors.append(door)
        return door

    def _plain(self, name: str, work: Workload, nodes: list[str]) -> Client:
        rng, door = stream(self.spec.seed, "session", name), self._door(name, nodes)

        def session() -> HttpDatabase:
            return HttpDatabase(door, rng, self.owner, self._map.ranges, self.first.founding)

        return Client(name, lambda: timed(name, session()), work)

    def prepare(self, work: Workload) -> None:
        super().prepare(work)
        rngs = [stream(self.spec.seed, "http", what) for what in ("ledger", "mixed")]
        self.ledger = Ledger(self._door("ledger", self.names), rngs[0])
        self.mixed = Mixed(self._door("mixed", self.names), rngs[1])
        self._beside = [asyncio.create_task(one) for one in (self.ledger.run(), self.mixed.run(), self._look())]

    def check(self) -> None:
        """Raises what the load beside the workload has met."""
        for task in self._beside:
            if task.done() and not task.cancelled():
                task.result()

    async def _look(self) -> None:
        began = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            minute = int((asyncio.get_running_loop().time() - began) // 60)
            while len(self.held) <= minute:
                self.held.append(Held())
            most = self.held[minute]
            for node in self.cluster.nodes.values():
                memory, files = await asyncio.to_thread(_held, node)
                most.memory, most.files = max(most.memory, memory), max(most.files, files)
                if memory > MEMORY_MAX or files > FILES_MAX:
                    raise Violation(
                        "bounded memory and descriptors", f"{node.name} holds {memory} bytes, {files} files"
                    )

    async def final(self, history: ShardRecorder) -> None:
        """As Site; and each word was appended once."""
        self.check()
        await self._end()
        await self.ledger.check(FINAL_SECONDS)
        await self.mixed.check(FINAL_SECONDS)
        await super().final(history)

    async def _end(self) -> None:
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)

    def told(self) -> list[str]:
        """What the run showed besides what every chaos run does, line by line."""
        errors = ", ".join(f"{error} {count}" for error, count in self.documented.told.most_common())
        memory = " ".join(f"{one.memory >> 20}" for one in self.held)
        files = " ".join(str(one.files) for one in self.held)
        again = sum(door.sent_again for door in self._doors)
        return [
            f"errors           {errors or 'none'}",
            f"words            {self.ledger.told()}; {again} requests of the run were sent again with their keys",
            f"beside           {self.mixed.told()}",
            f"memory           MB of the node with most, by minute: {memory} (at most {MEMORY_MAX >> 20})",
            f"open files       likewise: {files} (at most {FILES_MAX})",
        ]


def _held(node: NodeProcess) -> tuple[int, int]:
    """Memory of its own and open files of a node; 0 of one that does not run."""
    process = node.process
    if process is None:
        return 0, 0
    try:
        files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0, 0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines.get("RssAnon", "0 kB").split()[0]) << 10, files
