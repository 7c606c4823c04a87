"""The promise that the cluster makes up for a node that is gone for good, by itself, while writes go on.

A machine dies and nobody says so to the cluster. All that it held must be held by others, with as many voters as
before, within a bound; meanwhile, in some runs, whoever leads the catalog dies, too, and comes back. Invariant: no
other fault is there, and no operator does anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from needle.base.ids import GroupId
from proof.sim.machine import stream
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

REPLACE_SECONDS = 6.0
"""After which the nodes of these runs are replaced."""
BOUND_SECONDS = 150.0
"""A start that came to nothing is repeated after a minute."""
LEADER_SHARE = 0.5


class GoneForGood:
    """See the module. Use `run` once. settled: whether a group's configuration is what the catalog says."""

    def __init__(self, stage: Stage, truth: Truth, settled: Callable[[GroupId], bool]) -> None:
        self._stage = stage
        self._truth = truth
        self._settled = settled

    async def run(self, members: Sequence[str], catalog: GroupId) -> str | None:
        """The node that died; None if there was none that the others can make up for. Raises Violation."""
        stage, fleet, truth = self._stage, self._stage.fleet, self._truth
        rng = stream(stage.spec.seed, "gone for good")
        if fleet.retired.intersection(members) or fleet.forgetful or stage.observer.rotten or fleet.spoilt:
            return None
        counts = {group: len(truth.wanted(group)) for group in truth.groups()}
        if min(counts.values()) < 3:
            return None
        # Where all members hold a group nobody can take over: it has one less then, and loses another one at the end.
        # A shard that has more than an operator asked for meanwhile has enough without it.
        enough = {group: len(members) if group == catalog else truth.now.replication_factor + 1 for group in counts}
        full = {group: count for group, count in counts.items() if count < min(len(members), enough[group])}
        if any(count - 2 <= count // 2 for group, count in counts.items() if group not in full):
            return None
        held = [name for name in members if any(name in truth.nodes_of(group) for group in full)]
        if not held:
            return None
        name = rng.choice(held)
        fleet.retired.add(name)
        fleet.crash(name, power_cut=True, why="gone for good")
        if rng.random() < LEADER_SHARE:
            await asyncio.sleep(REPLACE_SECONDS + 4.0 * rng.random())
            leader = fleet.leader(catalog)
            if leader is not None:
                fleet.crash(leader, power_cut=True, why="it leads the catalog")
                fleet.start(leader)

        async def whole() -> bool:
            return all(
                name not in truth.nodes_of(group) and len(truth.wanted(group)) >= count and self._settled(group)
                for group, count in full.items()
                if group in truth.groups()
            )

        await stage.until(f"others in the place of {name}", BOUND_SECONDS, whole)
        stage.trace.tell(f"{name} was replaced")
        return name
