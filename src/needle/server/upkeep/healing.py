"""Replicas of a node that is gone for long are rebuilt elsewhere, by a rebalance that the catalog's leader starts.

A node is gone when it does not answer, or its directory is not the one that the cluster counts on; for how long, the
leader counts itself, by its own clock and from when it began to lead. Invariants: it counts and acts only in looks in
which the catalog's majority confirmed that it leads; it does nothing while half of the nodes or more are missed
(`routing.gone`), for then it is perhaps this node that is cut off; the start is one command of the catalog, which
refuses a second one, so nothing is rebuilt twice. While another rebalance is under way, that one rebuilds it, too
(`coordinator`). When a node is back, what has not arrived elsewhere is taken back. A node in maintenance is not gone.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final, Protocol

from needle.base.errors import NeedleError
from needle.base.events import HEALING_BEGUN, HEALING_STOPPED, tell
from needle.base.ids import CATALOG_GROUP, NodeId
from needle.base.news import FOR_EVER, News
from needle.catalog.machine import CatalogMachine
from needle.client.directory import Caller
from needle.client.measuring import ask_nodes
from needle.multiraft.host import Host
from needle.protocol.catalog_commands import AskRebalance, StartRebalance
from needle.routing.gone import missed, too_many
from needle.routing.jobs import Job, RebalanceConfig
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Plan, Wish
from needle.routing.topology import NodeState, Topology
from needle.server.beats import Beats
from needle.server.ports import Catalog

log = logging.getLogger("needle.server")

LOOKS: Final = 10
"""In the time after which a node is replaced."""
LOOK_SECONDS: Final = (0.25, 10.0)
ASK_SECONDS: Final = 2.0
STEP_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = 60.0
"""At least so long after a start the next one for the same nodes waits: one that failed, or was cancelled, is not begun
over and over."""


class Planner(Protocol):
    """server.upkeep.coordinator.Coordinator."""

    async def plan(self, wish: Wish, timeout: float) -> Plan: ...


class HealingNode(Protocol):
    """The node, which leads the catalog at times."""

    node_id: NodeId
    host: Host
    caller: Caller
    catalog: CatalogMachine | None
    beats: Beats

    @property
    def coordinator(self) -> Planner: ...
    @property
    def shards(self) -> Catalog: ...
    def now(self) -> float: ...
    async def confirmed(self, timeout: float) -> Topology: ...


class Healing:
    """See the module."""

    def __init__(self, node: HealingNode, replace_after: float, throttle: float) -> None:
        """replace_after: seconds; 0 for never. throttle: `throttle_rate` of the rebalances that it starts."""
        self._node = node
        self._replace_after = replace_after
        self._config = RebalanceConfig(throttle_rate=throttle)
        self._gone: dict[NodeId, float] = {}
        """Since when, by this node's clock; empty on a node that does not lead the catalog."""
        self._tried, self._not_before = frozenset[NodeId](), float("-inf")
        """For which nodes it began the last one, and when it may again."""
        self._said = News(FOR_EVER, keys_max=1)

    async def run(self) -> None:
        """Until the node stops."""
        node, every = self._node, min(max(self._replace_after / LOOKS, LOOK_SECONDS[0]), LOOK_SECONDS[1])
        while self._replace_after > 0 and not node.host.stopped:
            await node.beats.next(every)
            if node.catalog is None or not node.host.is_leader(CATALOG_GROUP):
                self._gone.clear()
                continue
            try:
                await self.look()
            except NeedleError as error:
                self._gone.clear()  # it could not confirm that it leads: what it saw may be its own fault
                log.debug("node %s does not look after lost replicas now: %s", node.node_id, error)

    def due(self, topology: Topology) -> tuple[NodeId, ...]:
        """The nodes to replace, by the last look."""
        return due(topology, self._gone, self._node.now(), self._replace_after)

    async def look(self) -> None:
        """One look, on the catalog's leader. Raises what says that it cannot confirm that it leads."""
        node = self._node
        asked = await node.confirmed(STEP_SECONDS)
        alive = {one.node for one in await ask_nodes(node.caller, asked, ASK_SECONDS) if one.alive}
        topology = await node.confirmed(STEP_SECONDS)
        now = node.now()
        self._gone = still_gone(topology, alive | {node.node_id}, self._gone, now)
        try:
            await self._act(topology, now)
        except NeedleError as error:
            self._say(f"what is gone is not replaced now: {error.message}")

    async def _act(self, topology: Topology, now: float) -> None:
        job = topology.rebalance
        if job is not None and not job.over:
            await self._stop(job, topology)
            return
        gone = ripe(topology, self._gone, now, self._replace_after)
        if not gone or (now < self._not_before and self._tried.issuperset(gone)):
            return
        if too_many(topology, self._gone):
            self._say(
                f"{', '.join(gone)} stay without replacement: half of the nodes or more do not answer, so it may be "
                f"{self._node.node_id} that is cut off"
            )
            return
        wish = Wish(lost=gone, balance=False)
        plan = await self._node.coordinator.plan(wish, STEP_SECONDS)
        if not any(isinstance(move, MoveReplicas) and move.added for move in plan.moves):
            why = "; ".join([*plan.beyond_help, *plan.unmet, *plan.waiting]) or "nothing is missing"
            self._say(f"nobody takes the place of {', '.join(gone)}: {why}")
            return
        command = StartRebalance(wish, self._config, True)
        id_ = (await self._node.shards.command(command, STEP_SECONDS)).version
        self._tried, self._not_before = frozenset(gone), self._node.now() + max(AGAIN_SECONDS, self._replace_after)
        names, after = ", ".join(gone), self._replace_after
        tell(HEALING_BEGUN, node_names=names, seconds=after, rebalance=id_)

    async def _stop(self, job: Job, topology: Topology) -> None:
        """A rebalance that replaces a node which is back takes back what has not arrived. Who was removed meanwhile is
        not back."""
        there = topology.addresses()
        back = [node for node in job.wish.lost if node in there and node not in self._gone] if job.healing else []
        if back:
            tell(HEALING_STOPPED, node_names=", ".join(back), rebalance=job.id)
            await self._node.shards.command(AskRebalance(job.id, "cancel"), STEP_SECONDS)

    def _say(self, what: str) -> None:
        if self._said.is_news(what):
            log.warning("%s", what)


def still_gone(
    topology: Topology, alive: Collection[NodeId], before: Mapping[NodeId, float], now: float
) -> dict[NodeId, float]:
    """Since when each node is gone that is not back, not removed, and not in maintenance."""
    counted = (info for info in topology.nodes if info.state is not NodeState.REMOVED and not info.maintenance)
    return {info.id: before.get(info.id, now) for info in counted if info.id not in alive}


def due(topology: Topology, gone: Mapping[NodeId, float], now: float, after: float) -> tuple[NodeId, ...]:
    """The nodes to replace: `ripe`, unless too many are gone."""
    return () if too_many(topology, gone) else ripe(topology, gone, now, after)


def ripe(topology: Topology, gone: Mapping[NodeId, float], now: float, after: float) -> tuple[NodeId, ...]:
    """The nodes that are gone for `after` seconds, and hold something."""
    return tuple(node for node in missed(topology, gone) if now - gone[node] >= after)
