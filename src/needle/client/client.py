"""The asynchronous client: documents and collections in, hits out; and looking after the nodes and shards.

Every method is safe to call concurrently from one event loop. Reads are strong unless another mode is asked for. Raises
only NeedleErrors. It is handed its network (a `Caller`) and its way to the shards; `needle.connect` makes both. An
operator's call names its shard or its node; a cluster of several shards has no default one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from needle.base.errors import InvalidArgument, TransferFailed, invalid
from needle.base.ids import CATALOG_GROUP, NodeId, group_name, shard_group
from needle.base.model import RaftStatus, WriteResult
from needle.client import everywhere, values
from needle.client.activity import Activity, activity
from needle.client.assigning import assign
from needle.client.batches import BatchMethods
from needle.client.cluster_conditions import look
from needle.client.directory import Caller
from needle.client.document_calls import DocumentCalls
from needle.client.embedding import Embedder
from needle.client.examining import examine, loads, look_at_activity
from needle.client.feeds import TIMEOUT
from needle.client.fitness import Diagnosis
from needle.client.group import GroupClient
from needle.client.health import ClusterHealth, ReplicaStatus
from needle.client.keys import KeyMethods
from needle.client.node_shares import ShareMethods
from needle.client.nodes import NodeMethods, address_of
from needle.client.rebalancing import RebalanceMethods
from needle.client.replacing import ReplaceMethods
from needle.client.replicas import ask_catalog, ask_replicas
from needle.client.replication import ReplicationMethods
from needle.client.restarting import RestartMethods
from needle.client.shards import ClusterShards
from needle.client.values import Seconds
from needle.protocol import calls
from needle.protocol.calls import (
    DigestAnswer,
    GroupCall,
    LeaderAnswer,
    StatusCall,
    StepDownCall,
)
from needle.protocol.catalog_commands import FORGET, CatalogCommand, NoteBackup, RemoveNode
from needle.protocol.probe_calls import LoadAnswer
from needle.routing.meant import not_made, shard_meant
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import CATALOG
from needle.routing.topology import ShardInfo, Topology

STATUS_SECONDS = 2.0
MADE_SECONDS = 0.2


class Client(
    BatchMethods,
    ReplaceMethods,
    ShareMethods,
    ReplicationMethods,
    RebalanceMethods,
    RestartMethods,
    NodeMethods,
    KeyMethods,
):
    """A client of one cluster. Made by `needle.connect`; use as an async context manager or call `close`."""

    def __init__(
        self, caller: Caller, shards: ClusterShards, documents: DocumentCalls, embedder: Embedder | None = None
    ) -> None:
        """shards: who is asked about nodes and shards; documents: answers the methods for documents, the router to the
        same shards. embedder: makes vectors of texts; None: WordLlama."""
        self._caller = caller
        self._shards = shards
        self.documents = documents
        self.embedder = embedder

    async def _documents(self) -> DocumentCalls:
        return self.documents

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Calls in flight end soon: reads with ClientClosed, writes that were sent with
        OutcomeUnknown. Idempotent."""
        self._shards.close()
        await self._caller.close()

    # --- what there is -----------------------------------------------------------------------------------------------
    def topology(self) -> Topology:
        """What this client knows of the cluster: settings, nodes, shards, map, collections."""
        return self._shards.topology()

    async def refresh_topology(
        self, version: int | None = None, *, confirmed: bool = False, timeout: Seconds = STATUS_SECONDS
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

    async def change_catalog(self, command: CatalogCommand, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Execute a command of needle.protocol.catalog_commands, once: which nodes there are, which of them hold a
        shard, which ranges move. For operators; the catalog refuses what cannot be. Raises OutcomeUnknown when it was
        sent and no answer came in time."""
        return await self._shards.command(command, values.check_timeout(timeout))

    def nodes(self) -> dict[NodeId, str]:
        """The nodes of the cluster that this client knows of, and their addresses."""
        return self.topology().addresses()

    async def cluster_status(self, *, timeout: Seconds = STATUS_SECONDS) -> list[ReplicaStatus]:
        """Every replica of every shard as its own node sees it, in order; `status` is None where none answered.
        Raises Forbidden for a key of some collections only."""
        seconds = values.check_timeout(timeout)
        topology = await self._shards.refresh(self.topology().version + 1, min(0.2, seconds / 4))
        return await ask_replicas(self._caller, topology, seconds, for_client=True)

    async def health_check(self, *, timeout: Seconds = STATUS_SECONDS) -> ClusterHealth:
        """Whether every shard has a leader and all its replicas, what is not redundant, and the alert conditions that
        hold now, as `needle status` says them. Raises Forbidden for a key of some collections only."""
        return (await look(self, values.check_timeout(timeout))).health

    async def doctor(self, *, timeout: Seconds = 15.0) -> Diagnosis:
        """Measure links, clocks, disks and machines of all nodes, for some two seconds, and say what is not fit for a
        cluster, as `needle doctor` does; all conditions of `health_check` are among it. timeout: seconds for each
        answer of a node. Needs the role admin; raises Forbidden for another one, Unavailable if the cluster is not
        made yet."""
        seconds = values.check_timeout(timeout)
        if not (await self._founded()).shards:
            raise not_made()
        return await examine(self, self._caller, seconds)

    async def node_loads(self, *, timeout: Seconds = STATUS_SECONDS) -> dict[NodeId, LoadAnswer]:
        """How much each node has done since its start, and what it uses; nodes that do not answer are left out. Raises
        Forbidden for a key of some collections only."""
        await self._founded()
        return await loads(self.topology(), self._caller, values.check_timeout(timeout))

    async def activity(self, since: Activity | None = None, *, timeout: Seconds = STATUS_SECONDS) -> Activity:
        """What the cluster does now, as `needle top` shows it: shards, leaders, lags, calls, nodes, moves. since: an
        earlier one, of which on calls and CPU are counted; without it these are not known. Raises Forbidden for a key
        of some collections only; Unavailable if the cluster is not made yet."""
        seconds = values.check_timeout(timeout)
        if not (await self._founded()).shards:
            raise not_made()
        found = await look_at_activity(self, self._caller, seconds)
        return activity(found, since.looked if since is not None else None)

    # --- the catalog's group -----------------------------------------------------------------------------------------
    async def catalog_leader(self, *, timeout: Seconds = 1.0) -> NodeId | None:
        """The node that leads the catalog; None if none says so in time, or while the cluster is not founded yet."""
        seconds, topology = values.check_timeout(timeout), await self._founded()
        return await self._led_by(CATALOG, seconds) if topology.catalog else None

    async def catalog_status(self, *, timeout: Seconds = TIMEOUT) -> RaftStatus:
        """The view of the catalog's leader: term, commit, and every peer's lag."""
        seconds = values.check_timeout(timeout)
        return await (await self._catalog()).leaders_status(seconds)

    async def catalog_replicas(self, *, timeout: Seconds = STATUS_SECONDS) -> list[ReplicaStatus]:
        """As `cluster_status`, every replica of the catalog; their `shard` is -1."""
        seconds = values.check_timeout(timeout)
        return await ask_catalog(self._caller, await self._founded(), seconds)

    # --- a shard -----------------------------------------------------------------------------------------------------
    async def _founded(self) -> Topology:
        """The topology, asked for again if the cluster was not made when this client heard of it."""
        found = self.topology()
        return found if found.shards else await self._shards.refresh(1, MADE_SECONDS)

    async def _catalog(self) -> GroupClient:
        await self._founded()
        return self._shards.group(CATALOG)

    async def _shard(self, shard: int | str | None) -> ShardInfo:
        """The shard that an operator's call is about: a cluster of several has no default. Raises InvalidArgument."""
        return shard_meant(await self._founded(), shard)

    async def _meant(self, shard: int | str | None) -> tuple[int, Sequence[NodeId]]:
        """The number and the replicas of a shard, or of the catalog."""
        if shard == "catalog":
            return CATALOG, (await self._founded()).catalog
        info = await self._shard(shard)
        return info.shard, info.replicas

    async def leader(self, shard: int | str | None = None, *, timeout: Seconds = 1.0) -> NodeId | None:
        """The node that leads a shard; None if its replicas name none in time, or while the cluster is not founded yet.
        shard: may be left out if there is only one; "catalog" for the catalog's group. Raises what nodes answer if all
        refuse to talk."""
        seconds, topology = values.check_timeout(timeout), await self._founded()
        return await self._led_by((await self._meant(shard))[0], seconds) if topology.shards else None

    async def status(self, shard: int | None = None, *, timeout: Seconds = TIMEOUT) -> RaftStatus:
        """The view of a shard's leader: term, commit, and every peer's lag. shard: may be left out if there is only
        one."""
        seconds = values.check_timeout(timeout)
        return await self._shards.group((await self._shard(shard)).shard).leaders_status(seconds)

    async def step_down(
        self, to: NodeId | None = None, *, shard: int | str | None = None, timeout: Seconds = TIMEOUT
    ) -> NodeId:
        """Hand the leadership of a shard to `to`, or to its most caught-up voter; writes in flight are not lost.
        Returns who leads. Of several shards, each goes back to the preferred leader after a while. shard: as for
        `leader`.

        Raises InvalidArgument for a node that is no other voter or does not answer the leader, TransferFailed if it did
        not take over; the message says why.
        """
        group = self._shards.group((await self._meant(shard))[0])
        answer = await group.ask_leader(
            calls.STEP_DOWN,
            lambda left: calls.encode(StepDownCall(group.group, to, left)),
            values.check_timeout(timeout),
            (TransferFailed,),
        )
        group.forget_leader()
        return calls.decode(answer, LeaderAnswer).leader or ""

    async def force_new_election(
        self, node: str | None = None, *, shard: int | str | None = None, timeout: Seconds = TIMEOUT
    ) -> None:
        """Make `node`, one with a replica of the shard (default: one that does not lead), campaign now. shard: as for
        `leader`. Safe: a live leader with a quorum stays unless it is outvoted by Raft's rules,
        and at most one leader can ever commit."""
        (number, replicas), seconds = await self._meant(shard), values.check_timeout(timeout)
        leader = await self._led_by(number, 1.0) if node is None else None
        if node is None:
            node = next((one for one in replicas if one != leader), leader)
        if node is None:
            raise InvalidArgument("no node answers, so none can be told to campaign", field="node")
        if node not in replicas:
            raise invalid(
                "node", node, f"one with a replica of {group_name(shard_group(number))}: {', '.join(replicas)}"
            )
        body = calls.encode(GroupCall(shard_group(number), seconds))
        await self._caller.call(await address_of(self._shards, node), calls.FORCE_ELECTION, body, seconds)
        self._shards.group(number).forget_leader()

    async def digests(self, shard: int | None = None, *, timeout: Seconds = TIMEOUT) -> dict[NodeId, DigestAnswer]:
        """A digest of the documents of each member of a shard, with the log index it stands for; equal indexes mean
        equal digests. shard: may be left out if there is only one. Raises if a member does not answer; nodes that were
        removed, whose addresses are still known, are not asked."""
        number, seconds = (await self._shard(shard)).shard, values.check_timeout(timeout)
        status = await self._shards.group(number).leaders_status(seconds)
        body = calls.encode(GroupCall(shard_group(number), seconds))
        nodes = {node: await address_of(self._shards, node) for node in sorted([*status.voters, *status.learners])}
        answers = await asyncio.gather(
            *(self._caller.call(address, calls.DIGEST, body, seconds) for address in nodes.values())
        )
        return dict(zip(nodes, (calls.decode(answer, DigestAnswer) for answer in answers), strict=True))

    async def set_replicas(
        self, shard: int | None, nodes: Iterable[NodeId], *, wait: bool = True, timeout: Seconds = 60.0
    ) -> None:
        """Have `nodes`, the preferred leader first, hold the replicas of a shard, while it serves: a new one fetches
        its data before it counts, then the one that it replaces goes. Returns when it is done, with
        wait=False when it is decided. Raises InvalidArgument for nodes that the cluster does not have; DeadlineExceeded
        when it takes longer: the cluster goes on with it, and the call may be repeated. shard: None if there is only
        one."""
        group = shard_group((await self._shard(shard)).shard)
        await assign(self._shards, group, nodes, values.check_timeout(timeout), wait=wait)

    async def set_catalog_nodes(self, nodes: Iterable[NodeId], *, wait: bool = True, timeout: Seconds = 60.0) -> None:
        """Have `nodes` hold the catalog; as `set_replicas`."""
        await assign(self._shards, CATALOG_GROUP, nodes, values.check_timeout(timeout), wait=wait)

    async def plan_everywhere(self, node: NodeId) -> list[MoveReplicas]:
        """What `hold_everywhere` would move. Nothing does."""
        return await everywhere.sized(self, await everywhere.joining(self, node))

    async def hold_everywhere(self, node: NodeId, *, timeout: Seconds = 600.0) -> list[int]:
        """Have `node`, which has joined, hold the catalog and a replica of every shard, beside the nodes that do, as
        `needle node add --everywhere`; the numbers of the shards. All of it is decided first, then waited for. Raises
        InvalidArgument if shards are on different nodes; DeadlineExceeded as `set_replicas`: it may be repeated."""
        seconds = values.check_timeout(timeout)
        decisions = await everywhere.joining(self, node)
        await everywhere.raise_factor(self, decisions)
        return await everywhere.carry_out(self, decisions, seconds)

    async def plan_fewer_replicas(self, node: NodeId) -> list[MoveReplicas]:
        """What `hold_fewer_replicas` would move. Nothing does."""
        return await everywhere.sized(self, await everywhere.leaving(self, node))

    async def hold_fewer_replicas(self, node: NodeId, *, timeout: Seconds = 600.0) -> list[int]:
        """Have `node`, dead or alive, hold nothing: other nodes take over what they can, and of the rest there is one
        replica less, as for `needle node remove --fewer-replicas`; `remove_node` forgets it then. Raises
        InvalidArgument if nobody else holds the data, or a rebalance is under way; DeadlineExceeded as `set_replicas`:
        it may be repeated."""
        seconds = values.check_timeout(timeout)
        return await everywhere.carry_out(self, await everywhere.leaving(self, node), seconds)

    async def forget_backups(self, *, timeout: Seconds = TIMEOUT) -> None:
        """Have the cluster expect no backups, and no archive of its logs, until it is told of the next one: no alert
        tells of their age. As `needle backup forget`."""
        await self._shards.command(NoteBackup(FORGET, FORGET), values.check_timeout(timeout))

    async def remove_node(self, node: NodeId, *, timeout: Seconds = TIMEOUT) -> None:
        """Have the cluster forget a node that holds nothing any more; its id is never used again. Raises
        InvalidArgument for a node that holds a replica of a shard or of the catalog: `set_replicas` moves them."""
        await self._shards.command(RemoveNode(values.check_id(node, "node")), values.check_timeout(timeout))

    # --- a node ------------------------------------------------------------------------------------------------------
    async def node_status(
        self, node: str, *, digest: bool = False, shard: int | str | None = None, timeout: Seconds = TIMEOUT
    ) -> RaftStatus:
        """One node's own view of a shard of which it holds a replica. node: its id or its address. digest: also of all
        its documents. shard: as for `leader`."""
        body = calls.encode(StatusCall(shard_group((await self._meant(shard))[0]), digest))
        answer = await self._caller.call(
            await address_of(self._shards, node), calls.STATUS, body, values.check_timeout(timeout)
        )
        return calls.decode(answer, RaftStatus)

    async def _led_by(self, shard: int, timeout: float) -> NodeId | None:
        group = self._shards.group(shard)
        group.forget_leader()
        address = await group.find_leader(timeout)
        return next((node for node, there in self.nodes().items() if there == address), None)
