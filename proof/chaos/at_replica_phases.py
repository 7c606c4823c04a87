"""`python -m proof.chaos.at_replica_phases`: kill -9 of whoever takes part in a move of a replica, at each phase of it.

The same cluster, documents and promises as in at_phases.py, but a replica of a shard, or of the catalog, goes to the
node that has none. The coordinator, the group's leader, the node that gets it or the one that gives it up is killed
once the move is seen in the phase.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from needle.base.errors import NeedleError
from needle.base.ids import CATALOG_GROUP
from needle.client.client import Client
from needle.routing.jobs import Phase, RebalanceConfig
from needle.routing.planned_moves import MoveReplicas
from proof.chaos.at_phases import CALL_SECONDS, READY_SECONDS, AtPhases, Cell, told

PHASES = tuple(str(phase) for phase in Phase)
VICTIMS = ("coordinator", "leader", "target", "leaving")
CATALOG_SHARE, LOOK_SECONDS = 0.2, 0.005
PACE = RebalanceConfig(batch_size=100, throttle_rate=0.05)
BALLAST, BALLAST_DIMENSIONS, AT_ONCE = 8000, 128, 500
"""Documents that nobody reads, so that a replica comes in many pieces."""


def cells() -> list[Cell]:
    """Each phase with each victim."""
    return [(phase, victim) for phase in PHASES for victim in VICTIMS]


class AtReplicaPhases(AtPhases):
    """One cluster."""

    settings: Mapping[str, Any] = {"snapshot_threshold": 50}  # new replicas come as snapshots

    async def _fill(self, operator: Client) -> None:
        await operator.create_collection(
            "ballast", dimensions=BALLAST_DIMENSIONS, if_absent=True, timeout=READY_SECONDS
        )
        rows = np.random.default_rng(1).normal(size=(AT_ONCE, BALLAST_DIMENSIONS)).astype(np.float32)
        for first in range(0, BALLAST, AT_ONCE):
            ids = [f"b{n}" for n in range(first, first + AT_ONCE)]
            await operator.insert_batch(ids=ids, vectors=rows, collection="ballast", timeout=READY_SECONDS)

    async def _change(self, operator: Client) -> int:
        now = await self._now(operator)
        info = self._rng.choice(now.serving)
        shard: int | Literal["catalog"] = info.shard
        held = info.wanted
        if self._rng.random() < CATALOG_SHARE and len(now.catalog) < len(now.addresses()):
            shard, held = "catalog", now.catalog
        target = self._rng.choice([node for node in now.addresses() if node not in held])
        return await operator.move_replica(shard, self._rng.choice(held), target, PACE, timeout=CALL_SECONDS)

    async def _seen(self, operator: Client, job: int, cell: Cell) -> str | None:
        (phase, victim), before = cell, ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(NeedleError):
                now = (await self._now(operator)).rebalance
                if now is None or now.id != job or now.over:
                    return None
                found = await operator.rebalance_progress(timeout=CALL_SECONDS)
                moves = [one for one in now.running if isinstance(one.move, MoveReplicas)]
                if found is None or not moves or moves[0].id not in found.phases:
                    continue
                seen = str(found.phases[moves[0].id])
                # The switch takes some milliseconds: between two looks it has just been.
                just = phase == Phase.SWITCH and seen == Phase.CLEAN_UP and before in (Phase.COPY, Phase.CATCH_UP)
                if seen == phase or just:
                    return await self._victim(operator, moves[0].move, victim)
                before = seen

    async def _victim(self, operator: Client, move: object, victim: str) -> str | None:
        assert isinstance(move, MoveReplicas)
        if victim == "coordinator":
            return await operator.catalog_leader()
        if victim == "leader":
            of_catalog = move.group == CATALOG_GROUP
            return await (operator.catalog_leader() if of_catalog else operator.leader(move.group - 1))
        return move.added[0] if victim == "target" else move.removed[0]


def main() -> int:
    """0 if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each phase with each victim")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    return told(AtReplicaPhases, cells() * given.rounds, given.seed)


if __name__ == "__main__":
    sys.exit(main())
