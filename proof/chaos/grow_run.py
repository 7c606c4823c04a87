"""One chaos run of a cluster that grows and shrinks: processes, clients, operator and kills; then rest and judge.

Every write and read of the clients is in the file, and judged from it alone (check.py); besides, documents that nobody
changes are found by every search (kept.py), and at the end the replicas of each shard are equal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

import needle
from needle.base.model import ReadMode
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.routing.topology import Topology
from needle.rpc.transport import RpcClient
from needle.system import SystemClock
from proof.chaos import check
from proof.chaos.clients import Balanced, Balancer
from proof.chaos.growing import Growth, Lives
from proof.chaos.history_file import Recorder
from proof.chaos.kept import DIMENSIONS, Kept
from proof.chaos.spec import ChaosSpec, profile, settings
from proof.checkers.violation import Violation
from proof.sim.client import Client
from proof.sim.databases import ShardAware
from proof.sim.machine import stream
from proof.sim.trace import Trace
from proof.sim.workload import Budget, Workload

CLUSTER_ID = "needle"
FOUNDERS, JOINING = 3, 3
KEPT_DOCUMENTS = 1500
FINAL_SECONDS = 90.0
AWARE, PLAIN = ("c0", "c1", "c2"), ("n0", "n1")
Say = Callable[[str], None]


class GrowOutcome(msgspec.Struct):
    """What a run showed. steps: what was done, by kind; refused: steps that could not be then."""

    seed: int
    kills: dict[str, int] = {}
    cuts: dict[str, int] = {}
    steps: dict[str, int] = {}
    refused: int = 0
    searches: int = 0
    shards: int = 0
    verdict: check.Verdict | None = None
    failure: Violation | None = None
    story: list[str] = []


class GrowRecorder(Recorder):
    """A history that says nothing of shards: a key's is another one from time to time."""

    def owner(self, name: str) -> int:
        return 0

    def last(self) -> dict[int, int]:
        return Counter()

    def contended(self) -> bool:
        return False


class GrowRun:
    """One run. `await run()`."""

    def __init__(self, spec: ChaosSpec, directory: Path, say: Say = lambda line: None, steps: int = 0) -> None:
        """steps: the least that come to their end, whatever the time."""
        self.spec = msgspec.structs.replace(spec, nodes=FOUNDERS, shards=1)
        self.file = directory / "history.jsonl"
        self._directory, self._steps = directory, steps
        self._profile = msgspec.structs.replace(profile(self.spec), dimensions=DIMENSIONS, metric="l2", key_slots=24)
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._trace, self._print = Trace(lambda: self._loop.time() - self._began), say
        self._callers: list[RpcClient] = []
        self.outcome = GrowOutcome(spec.seed)

    async def run(self) -> GrowOutcome:
        """Raises only what is no verdict on the product."""
        outcome = self.outcome
        with self.file.open("w") as file:
            history = GrowRecorder(file, **msgspec.structs.asdict(self.spec), growing=True)
            try:
                await self._in_cluster(history)
                history.note("end")
            except Violation as violation:
                outcome.failure = violation
            except (TimeoutError, AssertionError) as error:
                outcome.failure = Violation("liveness", str(error))
        check.judge(outcome, self.file, self._trace.story)
        return outcome

    def _say(self, text: str) -> None:
        self._trace.tell(text)
        self._print(self._trace.story[-1])

    async def _in_cluster(self, history: GrowRecorder) -> None:
        values = settings(self.spec, self._profile)
        founding = {**values, "sharding": {"shards": 1, "replicas": 3}}
        cluster = ProcessCluster(self._directory, FOUNDERS, linked=True, **founding)
        try:
            await cluster.start()
            join = [node.address for node in cluster.nodes.values()]
            for _ in range(JOINING):
                name = cluster.add(sharding={"join": join})
                await cluster.link(name)
                cluster.restart(name)
            await cluster.ready()
            async with cluster.connect() as operator, cluster.connect() as searcher:
                await wait_for(lambda: _has(operator, FOUNDERS + JOINING), FINAL_SECONDS, "all nodes")
                rng = stream(self.spec.seed, "chaos", "growing")
                lives = Lives(cluster, operator, rng, self._say)
                growth, kept = Growth(lives, operator, rng, self._say), Kept(searcher, KEPT_DOCUMENTS, rng)
                await kept.fill()
                await self._load(history, lives, growth, kept)
                self.outcome.shards = len(operator.topology().serving)
                await self._final(history, lives, growth, kept)
        finally:
            await cluster.close()
            for caller in self._callers:
                await caller.close()

    # --- load --------------------------------------------------------------------------------------------------------
    async def _load(self, history: GrowRecorder, lives: Lives, growth: Growth, kept: Kept) -> None:
        work = self._work = Workload(
            self._loop, history, self._trace, self._profile, self.spec.seed, Budget(1 << 60), history, wide=False
        )
        clients = [self._aware(name, lives) for name in AWARE] + [self._plain(name, lives) for name in PLAIN]
        growing = asyncio.create_task(growth.run(self._steps))
        killing = asyncio.create_task(lives.run())
        searching = asyncio.create_task(kept.run())
        working = [asyncio.create_task(self._work_on(client)) for client in clients]

        async def steer() -> None:
            await asyncio.sleep(self.spec.seconds)
            growth.ending = True
            await growing
            lives.ending = True
            await killing
            work.stopping = kept.ending = True

        tasks = [growing, killing, searching, *working, asyncio.create_task(steer())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            if work.broken is not None:
                raise work.broken
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            outcome = self.outcome
            outcome.kills, outcome.steps, outcome.refused = dict(lives.kills), dict(growth.done), growth.refused
            outcome.cuts = dict(lives.cuts)
            outcome.searches = kept.searches

    async def _work_on(self, client: Client) -> None:
        """Writes and strong reads of single documents. Other reads name places in logs, which here change."""
        work, rng = self._work, stream(self.spec.seed, "growing", client.name)
        while not work.stopping:
            if work.broken is not None:
                raise work.broken
            key, draw = work.keys.draw(rng), rng.random()
            if draw < 0.3:
                await client.put(key)
            elif draw < 0.4:
                await client.insert(key)
            elif draw < 0.55:
                await client.compare_and_set(key)
            elif draw < 0.65:
                await client.delete(key)
            else:
                await client.get(key, ReadMode.STRONG)
            await asyncio.sleep(rng.expovariate(1 / self.spec.think_seconds))

    def _caller(self, name: str) -> RpcClient:
        made = RpcClient(cluster_id=CLUSTER_ID, rng=stream(self.spec.seed, "rpc", name), clock=SystemClock())
        self._callers.append(made)
        return made

    def _aware(self, name: str, lives: Lives) -> Client:
        """One that knew the cluster at its beginning, and is told nothing by hand afterwards."""
        caller, rng = self._caller(name), stream(self.spec.seed, "session", name)
        seeds = [lives.cluster.nodes[node].address for node in lives.names]
        session = ShardAware(caller, seeds, Topology(), rng)
        return Client(name, lambda: session, self._work)

    def _plain(self, name: str, lives: Lives) -> Client:
        caller, rng = self._caller(name), stream(self.spec.seed, "session", name)

        def addresses() -> dict[str, str]:
            return {node: lives.cluster.nodes[node].address for node in lives.names}

        return Client(name, lambda: Balanced(Balancer(caller, addresses, rng), rng), self._work)

    # --- the end -----------------------------------------------------------------------------------------------------
    async def _final(self, history: GrowRecorder, lives: Lives, growth: Growth, kept: Kept) -> None:
        """Nothing moves any more: replicas are equal, and every key is read once more."""
        self._say("kills are over; waiting for equal replicas, then reading everything")
        lives.check()
        await lives.cluster.ready(*lives.names, deadline=FINAL_SECONDS)
        await growth.end()
        reader = self._aware(check.FINAL, lives)
        for key in sorted(history.by_key()):
            await wait_for(lambda key=key: reader.get(key, ReadMode.STRONG), FINAL_SECONDS, f"a read of {key}")  # type: ignore[misc]
        await wait_for(lambda: self._equal(growth), FINAL_SECONDS, "equal replicas of each shard")
        await kept.look()

    async def _equal(self, growth: Growth) -> bool:
        operator = growth.operator
        for info in operator.topology().serving:
            found = await operator.digests(info.shard)
            if sorted(found) != sorted(info.replicas) or len({one.applied_index for one in found.values()}) > 1:
                return False
            if len({one.digest for one in found.values()}) > 1:
                raise Violation("equal replicas", f"shard {info.shard}: {found}")
        return True


async def _has(operator: needle.Client, nodes: int) -> bool:
    return len((await operator.refresh_topology(confirmed=True, timeout=2.0)).addresses()) == nodes


def table(outcome: GrowOutcome, seconds: float) -> list[str]:
    """The summary, line by line."""
    lines = [f"growing          seed {outcome.seed}, {seconds:.0f} s, {outcome.shards} shards at the end"]
    for what, counts in (("kill -9", outcome.kills), ("links", outcome.cuts), ("steps", outcome.steps)):
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
        lines.append(f"{what:<16} {sum(counts.values())} ({told})")
    lines.append(f"refused          {outcome.refused} steps that could not be just then")
    lines.append(f"kept documents   {outcome.searches} exact searches found each of them once")
    if outcome.verdict is not None:
        told = ", ".join(f"{count} {kind}" for kind, count in outcome.verdict.operations.items())
        lines.append(f"operations       {sum(outcome.verdict.operations.values())} ({told})")
        lines.append(f"linearizable     {outcome.verdict.keys} keys, {outcome.verdict.given_up} given up")
    if outcome.failure is None:
        return [*lines, "verdict          every promise held"]
    return [*lines, f"verdict          FAILED {outcome.failure}", *(f"  {line}" for line in outcome.story)]
