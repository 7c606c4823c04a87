"""`python -m proof.chaos.at_phases`: kill -9 of whoever takes part in a move of key ranges, at each of its phases.

A cluster of processes gets a shard more and gives one up in turn. Once a move is seen in the phase, the coordinator
(which leads the catalog), the source's leader or the target's leader is killed and started again. Meanwhile documents
are written, read, searched and counted (owned.py), and others that nobody changes are searched (kept.py). Each
rebalance must come to its end, also one that is cancelled after the kill. Invariant: nothing outlives the run.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from needle.base.errors import InvalidArgument, NeedleError
from needle.client.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.routing.jobs import RebalanceConfig
from needle.routing.topology import MoveState, Topology
from proof.chaos.kept import Kept
from proof.chaos.owned import Owned
from proof.checkers.violation import Violation

NODES, REPLICAS, FIRST_SHARDS = 4, 3, 2
KEPT_DOCUMENTS, OWNERS, OWNED_DOCUMENTS = 600, 3, 40
PHASES = ("prepare", "copy", "switch", "clean up", "between")
VICTIMS = ("coordinator", "source", "target")
CALL_SECONDS, READY_SECONDS, END_SECONDS = 5.0, 90.0, 180.0
COPIED_SECONDS = 0.3
"""A move that is seen for so long is copying; before that it is prepared."""
DOWN_SECONDS = 0.5
TRIES = 6
"""Rebalances in which a phase may be over before it is seen."""
CANCEL_SHARE = 0.25
PACE = RebalanceConfig(max_concurrent_moves=2, batch_size=50, throttle_rate=0.1)
Cell = tuple[str, str]
Say = Callable[[str], None]


def cells() -> list[Cell]:
    """Each phase with each victim."""
    return [(phase, victim) for phase in PHASES for victim in VICTIMS]


class AtPhases:
    """One cluster. kills: by phase and victim. ended: rebalances, by how they ended."""

    settings: Mapping[str, Any] = {}
    """Of its nodes."""

    def __init__(self, directory: Path, seed: int, say: Say) -> None:
        self._directory, self._rng, self._say = directory, random.Random(seed), say
        self.kills: Counter[Cell] = Counter()
        self.ended: Counter[str] = Counter()
        self.owners: list[Owned] = []

    async def run(self, wanted: Sequence[Cell]) -> None:
        """Raises Violation."""
        sharding = {"shards": FIRST_SHARDS, "replicas": REPLICAS}
        async with ProcessCluster(self._directory, NODES, sharding=sharding, **self.settings) as cluster:
            await cluster.ready()
            async with cluster.connect() as operator, cluster.connect() as caller:
                kept = Kept(caller, KEPT_DOCUMENTS, self._rng)
                await kept.fill()
                await self._fill(operator)
                self.owners = [Owned(f"o{n}", caller, OWNED_DOCUMENTS, self._rng) for n in range(OWNERS)]
                loads: list[Kept | Owned] = [kept, *self.owners]
                load = [asyncio.create_task(one.run()) for one in loads]
                steps = asyncio.create_task(self._steps(cluster, operator, wanted))
                try:
                    await asyncio.wait([*load, steps], return_when=asyncio.FIRST_COMPLETED)
                    for task in load:
                        if task.done():
                            await task  # it ends by itself where it has found something
                    await steps
                    for one in loads:
                        one.ending = True
                    await asyncio.gather(*load)
                finally:
                    for task in [*load, steps]:
                        task.cancel()
                    await asyncio.gather(*load, steps, return_exceptions=True)
                await self._all_is_there(kept)

    async def _all_is_there(self, kept: Kept) -> None:
        for owner in self.owners:
            for what in ("get", "search", "count"):
                await wait_for(lambda owner=owner, what=what: owner.look(what), READY_SECONDS, f"a {what}")  # type: ignore[misc]
        await kept.look()

    async def _steps(self, cluster: ProcessCluster, operator: Client, wanted: Sequence[Cell]) -> None:
        for cell in wanted:
            for _ in range(TRIES):
                job = await self._begin(operator)
                victim = await self._seen(operator, job, cell)
                if victim is not None:
                    await self._kill(cluster, operator, victim, cell)
                state = await self._over(operator, job)
                self.ended[state] += 1
                if victim is not None:
                    self._say(f"{cell[0]}, {cell[1]} ({victim}): the rebalance is {state}")
                    break
            else:
                raise Violation("liveness", f"no move was seen in phase {cell[0]!r} in {TRIES} rebalances")

    async def _begin(self, operator: Client) -> int:
        async def begun() -> int | None:
            try:
                return await self._change(operator)
            except NeedleError as error:
                if not error.retryable and not isinstance(error, InvalidArgument) and error.code != "outcome_unknown":
                    raise
                return None

        made: int = await wait_for(begun, READY_SECONDS, "a rebalance to begin")
        return made

    async def _fill(self, operator: Client) -> None:
        """What else there is; nothing here."""

    async def _change(self, operator: Client) -> int:
        """A shard more, or one less; the rebalance."""
        serving = (await self._now(operator)).serving
        if len(serving) <= FIRST_SHARDS:
            return await operator.add_shard(PACE, timeout=CALL_SECONDS)
        return await operator.remove_shard(serving[-1].shard, PACE, timeout=CALL_SECONDS)

    async def _now(self, operator: Client) -> Topology:
        return await operator.refresh_topology(confirmed=True, timeout=CALL_SECONDS)

    async def _seen(self, operator: Client, job: int, cell: Cell) -> str | None:
        """Who is to be killed, once a move is in the phase; None if the rebalance was over before."""
        loop, first = asyncio.get_running_loop(), dict[int, float]()
        leaders: dict[str, str | None] = {}
        phase, victim = cell
        while True:
            with suppress(NeedleError):
                now = await self._now(operator)
                if now.rebalance is None or now.rebalance.id != job or now.rebalance.over:
                    return None
                for move in now.moves[:1]:
                    if move.id not in first:
                        leaders = {
                            "coordinator": await operator.catalog_leader(),
                            "source": await operator.leader(move.source),
                            "target": await operator.leader(move.target),
                        }
                        first[move.id] = loop.time()
                    copied = loop.time() - first[move.id] > COPIED_SECONDS
                    here = {
                        "prepare": move.state is MoveState.COPYING and not copied,
                        "copy": move.state is MoveState.COPYING and copied,
                        "switch": move.state is MoveState.FREEZING,
                        "clean up": move.state is MoveState.SWITCHED,
                    }
                    if here.get(phase) and leaders[victim] is not None:
                        return leaders[victim]
                if phase == "between" and first and not now.moves and leaders[victim] is not None:
                    return leaders[victim]

    async def _kill(self, cluster: ProcessCluster, operator: Client, victim: str, cell: Cell) -> None:
        cluster.kill(victim)
        self.kills[cell] += 1
        if self._rng.random() < CANCEL_SHARE:
            with suppress(NeedleError):  # it may be over, or nobody leads the catalog
                await operator.cancel_rebalance(timeout=CALL_SECONDS)
        await asyncio.sleep(DOWN_SECONDS)
        cluster.restart(victim)
        await cluster.ready(victim, deadline=READY_SECONDS)

    async def _over(self, operator: Client, job: int) -> str:
        async def over() -> str | None:
            with suppress(NeedleError):
                found = (await self._now(operator)).rebalance
                if found is not None and found.id == job and found.over:
                    return str(found.state)
            return None

        try:
            state: str = await wait_for(over, END_SECONDS, f"the end of rebalance {job}")
        except (TimeoutError, AssertionError) as error:
            raise Violation("liveness", str(error)) from error
        return state


def main() -> int:
    """0 if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each phase with each victim")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    return told(AtPhases, cells() * given.rounds, given.seed)


def told(kind: type[AtPhases], wanted: list[Cell], seed: int) -> int:
    """Run it and print what came of it; 0 if every promise held."""
    random.Random(seed).shuffle(wanted)
    with tempfile.TemporaryDirectory(prefix="needle-phases-") as directory:
        run = kind(Path(directory), seed, print)
        try:
            asyncio.run(run.run(wanted))
        except Violation as violation:
            print(f"FAILED {violation}")
            return 1
    done = sum((owner.done for owner in run.owners), Counter[str]())
    unknown, ended = sum(owner.unknown for owner in run.owners), dict(run.ended)
    print(f"{sum(run.kills.values())} kills at phases, rebalances {ended}, calls {dict(done)}, {unknown} unknown")
    return 0


if __name__ == "__main__":
    sys.exit(main())
