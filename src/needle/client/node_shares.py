"""What share of the replicas a node takes, and in which zone it is, whatever its own settings say."""

from __future__ import annotations

from needle.base.errors import NeedleError, Unavailable, invalid
from needle.base.ids import NodeId
from needle.base.versions import EMPTIES
from needle.client import values
from needle.client.nodes import address_of
from needle.client.rebalancing import check_config, check_emptied, plan_of
from needle.client.shards import OverShards
from needle.client.values import Seconds
from needle.protocol.catalog_commands import StartRebalance, WeighNode, ZoneNode
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.jobs import RebalanceConfig, check_over
from needle.routing.plans import Wish


class ShareMethods(OverShards):
    """A part of `Client`."""

    async def weigh_node(self, node: NodeId, weight: float | None, *, timeout: Seconds = 10.0) -> None:
        """Have a node's share of replicas be `weight` beside that of others, 0 for none, whatever its own setting says;
        None: its setting counts again. Nothing moves until the next rebalance."""
        await self._shards.command(_weighed(node, weight), values.check_timeout(timeout))

    async def zone_node(self, node: NodeId, zone: str | None, *, timeout: Seconds = 10.0) -> None:
        """Have a node be in this zone, its failure domain, whatever its own setting says; None: its setting counts
        again. Nothing moves until the next rebalance."""
        await self._shards.command(_zoned(node, zone), values.check_timeout(timeout))

    async def rebalance_by_weight(
        self, node: NodeId, weight: float | None, config: RebalanceConfig | None = None, *, timeout: Seconds = 10.0
    ) -> int:
        """`weigh_node` and the rebalance that follows from it: what `start_rebalance` would refuse changes nothing, nor
        does 0 where other nodes cannot take all that the node holds (Unavailable, as of `drain_node`).
        While nodes of a release before are in the cluster these are two commands, and the weight stays if the second
        one is refused. None: as the node's setting says, if it answers; else no plan is looked at. Returns the
        rebalance's id."""
        seconds, command = values.check_timeout(timeout), _weighed(node, weight)
        own = command.weight
        if own is None and (said := await self._said(command.node, seconds)) is not None:
            own = said.weight
        wish = Wish() if own is None else Wish(weights={node: own})
        return await self._rebalance_by(command, wish, config, seconds)

    async def _said(self, node: NodeId, seconds: float) -> WhoAnswer | None:
        """What a node says of itself, its own settings too; None of one that does not answer."""
        try:
            return await self._shards.describe(await address_of(self._shards, node), seconds)
        except NeedleError as error:
            if not error.retryable:
                raise
            return None

    async def rebalance_by_zone(
        self, node: NodeId, zone: str | None, config: RebalanceConfig | None = None, *, timeout: Seconds = 10.0
    ) -> int:
        """`zone_node` and the rebalance that follows from it, as `rebalance_by_weight`."""
        seconds, command = values.check_timeout(timeout), _zoned(node, zone)
        own = command.zone
        if own is None and (said := await self._said(command.node, seconds)) is not None:
            own = said.zone
        wish = Wish() if own is None else Wish(zones={node: own})
        return await self._rebalance_by(command, wish, config, seconds)

    async def _rebalance_by(
        self, command: WeighNode | ZoneNode, wish: Wish, config: RebalanceConfig | None, seconds: float
    ) -> int:
        made = check_config(config)
        now = await self._shards.confirmed(seconds)
        check_over(now.rebalance)
        if isinstance(command, WeighNode) and wish.weights.get(command.node) == 0:
            await check_emptied(self._shards, command.node, seconds)
        if wish != Wish():  # else its own setting counts again, and nobody says what that is
            plan = await plan_of(self._shards, wish, seconds)
            if why := plan.missing():
                raise Unavailable(f"nothing can be moved now, so nothing was changed: {why}")
        if now.cluster_version >= EMPTIES:
            return (await self._shards.command(StartRebalance(wish, made, first=command), seconds)).version
        await self._shards.command(command, seconds)
        return (await self._shards.command(StartRebalance(wish, made), seconds)).version


def _weighed(node: NodeId, weight: float | None) -> WeighNode:
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (number and 0 <= weight <= 1000):
        raise invalid("weight", weight, "a number from 0 to 1000, or None")
    return WeighNode(values.check_id(node, "node"), None if weight is None else float(weight))


def _zoned(node: NodeId, zone: str | None) -> ZoneNode:
    if zone is not None and not isinstance(zone, str):
        raise invalid("zone", zone, "text, or None")
    if zone is not None and not zone.isprintable():  # people read it in tables
        raise invalid("zone", zone, "printable characters")
    return ZoneNode(values.check_id(node, "node"), zone)
