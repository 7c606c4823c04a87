"""How many replicas each shard should have, after the cluster was created.

Invariant: the number and the rebalance that follows from it are one entry of the catalog, so where the second is
refused nothing is changed.
"""

from __future__ import annotations

from needle.base.errors import Unavailable
from needle.client import values
from needle.client.rebalancing import check_config, plan_of
from needle.client.shards import OverShards
from needle.client.values import Seconds
from needle.protocol.catalog_commands import SetReplication, StartRebalance
from needle.protocol.versioned import check_known
from needle.routing.jobs import RebalanceConfig, check_over
from needle.routing.plans import Plan, Wish
from needle.routing.replication import check_replication
from needle.routing.topology import Topology


class ReplicationMethods(OverShards):
    """A part of `Client`."""

    async def set_replication_factor(
        self, replicas: int, config: RebalanceConfig | None = None, *, timeout: Seconds = 10.0
    ) -> int | None:
        """Have each shard have so many replicas from now on, 1 to 7 and one on each node at most, and start the
        rebalance that adds them, or takes those away that are too many; returns its id, None if nothing has to move.

        Raises InvalidArgument for a number that cannot be, and while another rebalance is not over; ClusterTooOld while
        nodes of a release before are in the cluster; Unavailable, with the reasons, if a shard that is to get replicas
        cannot get them now. Then nothing is changed."""
        number, made = values.check_count(replicas, "replicas"), check_config(config)
        seconds = values.check_timeout(timeout)
        now = await self._may_have(number, seconds)
        check_over(now.rebalance)
        plan = await plan_of(self._shards, Wish(replicas=number), seconds)
        if why := not_replicated(now, number, plan):
            raise Unavailable(f"the replication factor stays {now.replication_factor}: {why}")
        command = SetReplication(number)
        if not plan.moves and not plan.waiting:
            await self._shards.command(command, seconds)
            return None
        wish = Wish(replicas=number)
        return (await self._shards.command(StartRebalance(wish, made, first=command), seconds)).version

    async def plan_replication_factor(self, replicas: int, *, timeout: Seconds = 10.0) -> Plan:
        """What `set_replication_factor` would move. Nothing does. Raises InvalidArgument and ClusterTooOld as that."""
        number, seconds = values.check_count(replicas, "replicas"), values.check_timeout(timeout)
        await self._may_have(number, seconds)
        return await plan_of(self._shards, Wish(replicas=number), seconds)

    async def _may_have(self, replicas: int, seconds: float) -> Topology:
        now = await self._shards.confirmed(seconds)
        check_known(SetReplication(replicas), now)
        check_replication(now, replicas, "replicas")
        return now


def not_replicated(now: Topology, replicas: int, plan: Plan) -> str:
    """Why a replication factor would not be set, "" if it would: shards that are to get replicas must get them. What is
    left of a plan that only takes some away is no reason."""
    grows = any(len(info.wanted) < replicas for info in now.serving)
    return plan.missing(unmet=True, waiting=True) if grows and (plan.unmet or plan.waiting) else ""
