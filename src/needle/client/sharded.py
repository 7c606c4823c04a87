"""The client of a sharded cluster: documents straight to the shards' leaders, by a router; and what operators ask.

An operator's call names its shard or its node; a cluster of several shards has no default one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from needle.base.errors import InvalidArgument, NeedleError, TransferFailed, Unavailable, invalid
from needle.base.ids import CATALOG_GROUP, NodeId, shard_group
from needle.base.model import RaftStatus, WriteResult
from needle.base.runtime import Rng
from needle.client import values
from needle.client.assigning import assign
from needle.client.client import Client
from needle.client.directory import Caller
from needle.client.documents import TIMEOUT
from needle.client.health import ClusterHealth, ReplicaStatus, judge
from needle.client.replicas import ask_replicas
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import DigestAnswer, GroupCall, StatusCall
from needle.protocol.catalog_commands import CatalogCommand, RemoveNode
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall, no_members
from needle.routing.topology import ShardInfo, Topology

STATUS_SECONDS = 2.0


class ShardedClient(Client):
    """A client of one sharded cluster. Made by `needle.connect`, which recognises one."""

    def __init__(self, caller: Caller, addresses: Iterable[str], shards: ClusterShards, router: Router, rng: Rng):
        super().__init__(caller, addresses, rng=rng, documents=router)
        self._shards = shards
        self.router = router

    def topology(self) -> Topology:
        """What this client knows of the cluster: settings, nodes, shards, map, collections."""
        return self._shards.topology()

    async def refresh_topology(
        self, version: int | None = None, *, confirmed: bool = False, timeout: float = STATUS_SECONDS
    ) -> Topology:
        """Ask for a newer topology; `topology` is at least as new from then on.

        version: wait up to `timeout` seconds for one of at least this version, by default for any newer one; the newest
        known if no node has one by then. confirmed: one that holds everything committed before the call, as the
        catalog's leader says; raises NoQuorum or DeadlineExceeded when it does not answer in time.
        """
        seconds = values.check_timeout(timeout)
        if values.check_flag(confirmed, "confirmed"):
            return await self._shards.confirmed(seconds)
        wanted = self.topology().version + 1 if version is None else values.check_count(version, "version", 0)
        return await self._shards.refresh(wanted, seconds)

    async def change_catalog(self, command: CatalogCommand, *, timeout: float = TIMEOUT) -> WriteResult:
        """Execute a command of needle.protocol.catalog_commands, once: which nodes there are, which of them hold a
        shard, which ranges move. For operators; the catalog refuses what cannot be. Raises OutcomeUnknown when it was
        sent and no answer came in time."""
        return await self._shards.command(command, values.check_timeout(timeout))

    async def describe_node(self, node: str, *, timeout: float = STATUS_SECONDS) -> WhoAnswer:
        """What a node says of itself: its id, its cluster, its failure domain. node: its id or its address."""
        seconds = values.check_timeout(timeout)
        return await self._ask_who(await self._where(node), seconds)

    async def _ask_who(self, address: str, seconds: float) -> WhoAnswer:
        return calls.decode(await self._caller.call(address, WHO, calls.encode(WhoCall()), seconds), WhoAnswer)

    # --- the nodes ---------------------------------------------------------------------------------------------------
    async def probe(self, timeout: float = 1.0) -> NodeId | None:
        """The node that leads the catalog; None if none says so in time."""
        group = self._shards.group(-1)
        address = await group._directory.find_leader(group.group, timeout)
        by_address = {there: node for node, there in self.topology().addresses().items()}
        return by_address.get(address or "")

    async def leader(self) -> NodeId | None:
        """The node that leads the catalog, or None if no node names one now; for the shards see `health_check`."""
        self._shards.group(-1)._directory.set_leader(0, None)
        return await self.probe()

    def nodes(self) -> dict[NodeId, str]:
        """The nodes of the cluster and their addresses."""
        return self.topology().addresses()

    async def _is_elsewhere(self, node: NodeId, address: str) -> bool:
        """Whether another node answers at `address`; one that is silent now will fail the call that follows."""
        try:
            return (await self._ask_who(address, 1.0)).node_id != node
        except NeedleError:
            return False

    async def _where(self, node: str) -> str:
        known = self.nodes()
        if node in known:
            # Asked first who it is: what concerns one node must not reach another that has its address now.
            if not await self._is_elsewhere(node, known[node]):
                return known[node]
            known = (await self._shards.refresh(self.topology().version + 1, 1.0)).addresses()
            if node in known and not await self._is_elsewhere(node, known[node]):
                return known[node]
            raise Unavailable(f"node {node} is not where the catalog has it: another one answers there", node=node)
        if ":" in node:
            return node
        raise invalid("node", node, f"one of {', '.join(known)}")

    async def status(self, *, timeout: float = TIMEOUT) -> RaftStatus:
        """The catalog's group as its leader sees it. `cluster_status` has the shards."""
        data = calls.encode(StatusCall(0))
        answer = await self._shards.group(-1).ask_leader(calls.STATUS, lambda _: data, values.check_timeout(timeout))
        return calls.decode(answer, RaftStatus)

    def _shard(self, shard: int | None) -> ShardInfo:
        """The shard that an operator's call is about: a cluster of several has no default. Raises InvalidArgument."""
        shards = self.topology().shards
        if shard is None and len(shards) == 1:
            return shards[0]
        if not shards:
            raise Unavailable("this cluster has no shards yet: `needle cluster create` makes them")
        if shard is None:
            raise InvalidArgument(
                f"which shard is meant? This cluster has {len(shards)}: name one, from 0 to {len(shards) - 1}",
                field="shard",
            )
        if not 0 <= values.check_count(shard, "shard", 0) < len(shards):
            raise invalid("shard", shard, f"the number of a shard, from 0 to {len(shards) - 1}")
        return shards[shard]

    async def shard_leader(self, shard: int | None = None, *, timeout: float = 1.0) -> NodeId | None:
        """The node that leads a shard; None if its replicas name none in time. shard: may be left out if there is only
        one."""
        group = self._shards.group(self._shard(shard).shard)
        group._directory.set_leader(group.group, None)
        address = await group._directory.find_leader(group.group, values.check_timeout(timeout))
        return next((node for node, there in self.nodes().items() if there == address), None)

    async def node_status(
        self, node: str, *, digest: bool = False, shard: int | None = None, timeout: float = TIMEOUT
    ) -> RaftStatus:
        """As Client.node_status: its view of a shard of which it holds a replica. shard: may be left out if there is
        only one."""
        body = calls.encode(StatusCall(shard_group(self._shard(shard).shard), digest))
        answer = await self._caller.call(await self._where(node), calls.STATUS, body, values.check_timeout(timeout))
        return calls.decode(answer, RaftStatus)

    async def force_new_election(
        self, node: str | None = None, *, shard: int | None = None, timeout: float = TIMEOUT
    ) -> None:
        """As Client.force_new_election, of a shard; node: one of its replicas. shard: may be left out if there is only
        one."""
        info = self._shard(shard)
        if node is None:
            leader = await self.shard_leader(info.shard)
            node = next((one for one in info.replicas if one != leader), info.replicas[0])
        if node not in info.replicas:
            raise invalid("node", node, f"one with a replica of shard {info.shard}: {', '.join(info.replicas)}")
        body = calls.encode(GroupCall(shard_group(info.shard), timeout))
        await self._caller.call(await self._where(node), calls.FORCE_ELECTION, body, values.check_timeout(timeout))
        group = self._shards.group(info.shard)
        group._directory.set_leader(group.group, None)

    async def change_membership(
        self,
        voters: Iterable[NodeId],
        learners: Iterable[NodeId] = (),
        *,
        addresses: Mapping[NodeId, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Raises InvalidArgument: which nodes hold a shard, or the catalog, is for the catalog to say."""
        raise no_members()

    async def set_replicas(self, shard: int | None, nodes: Iterable[NodeId], *, timeout: float = 60.0) -> None:
        """Have `nodes`, the preferred leader first, hold the replicas of a shard, while it serves: a new one fetches
        its data before it counts, then the one that it replaces goes. Returns when it is done. Raises InvalidArgument
        for nodes that the cluster does not have, DeadlineExceeded when it takes longer: the cluster goes on with it,
        and the call may be repeated. shard: None if there is only one."""
        group = shard_group(self._shard(shard).shard)
        await assign(self._shards, group, nodes, values.check_timeout(timeout))

    async def set_catalog_nodes(self, nodes: Iterable[NodeId], *, timeout: float = 60.0) -> None:
        """Have `nodes` hold the catalog; as `set_replicas`."""
        await assign(self._shards, CATALOG_GROUP, nodes, values.check_timeout(timeout))

    async def remove_node(self, node: NodeId, *, timeout: float = TIMEOUT) -> None:
        """Have the cluster forget a node that holds nothing any more; its id is never used again. Raises
        InvalidArgument for a node that holds a replica of a shard or of the catalog: `set_replicas` moves them."""
        await self._shards.command(RemoveNode(values.check_id(node, "node")), values.check_timeout(timeout))

    async def step_down(
        self, to: NodeId | None = None, *, shard: int | None = None, timeout: float = TIMEOUT
    ) -> NodeId:
        """Hand the leadership of a shard to `to`, or to its most caught-up voter. The cluster gives it back to the
        preferred leader after a while. shard: may be left out if there is only one."""
        number = self._shard(shard).shard
        group = self._shards.group(number)
        answer = await group.ask_leader(
            calls.STEP_DOWN,
            lambda left: calls.encode(calls.StepDownCall(shard_group(number), to, left)),
            values.check_timeout(timeout),
            (TransferFailed,),
        )
        group._directory.set_leader(group.group, None)
        return calls.decode(answer, calls.LeaderAnswer).leader or ""

    async def cluster_status(self, *, timeout: float = STATUS_SECONDS) -> list[ReplicaStatus]:
        """Every replica of every shard as its own node sees it, in order; `status` is None where none answered."""
        topology = await self._shards.refresh(self.topology().version + 1, min(0.2, timeout / 4))
        return await ask_replicas(self._caller, topology, values.check_timeout(timeout))

    async def health_check(self, *, timeout: float = STATUS_SECONDS) -> ClusterHealth:
        """Whether every shard has a leader and all its replicas, and what is not redundant."""
        replicas = await self.cluster_status(timeout=timeout)
        return judge(self.topology(), replicas)

    async def digests(self, *, timeout: float = TIMEOUT) -> dict[NodeId, DigestAnswer]:
        """As Client.digests, of each replica that the topology names: keys are "node/shard"."""
        seconds = values.check_timeout(timeout)

        async def one(shard: int, node: NodeId) -> DigestAnswer:
            body = calls.encode(GroupCall(shard_group(shard), seconds))
            data = await self._caller.call(await self._where(node), calls.DIGEST, body, seconds)
            return calls.decode(data, DigestAnswer)

        pairs = [(info.shard, node) for info in self.topology().shards for node in info.replicas]
        answers = await asyncio.gather(*(one(shard, node) for shard, node in pairs))
        return {f"{node}/{shard}": answer for (shard, node), answer in zip(pairs, answers, strict=True)}
