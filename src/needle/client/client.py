"""The asynchronous client: documents and collections in, hits out; and looking after the nodes.

Every method is safe to call concurrently from one event loop. Reads are strong unless another mode is asked for. Raises
only NeedleErrors. It is handed its network (a `Caller`) and its randomness; `needle.connect` makes both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from needle.base.errors import InvalidArgument, TransferFailed, Unavailable, invalid
from needle.base.ids import GroupId, NodeId, shard_group
from needle.base.model import RaftStatus
from needle.base.parts import Payload
from needle.base.runtime import Blocking, Rng
from needle.client import values
from needle.client.batches import BatchMethods
from needle.client.directory import Caller, Directory
from needle.client.document_calls import DocumentCalls
from needle.client.documents import TIMEOUT
from needle.client.group import GroupClient, MakeBody
from needle.client.one_group import OneGroup
from needle.protocol import calls
from needle.protocol.calls import (
    DigestAnswer,
    GroupCall,
    LeaderAnswer,
    MaintenanceCall,
    MembershipCall,
    StatusCall,
    StepDownCall,
)

BATCH_BYTES_MAX = 1 << 20


class Client(BatchMethods):
    """A client of one cluster. Made by `needle.connect`; use as an async context manager or call `close`."""

    def __init__(
        self,
        caller: Caller,
        addresses: Iterable[str],
        *,
        rng: Rng,
        prefer: str | None = None,
        batch_bytes_max: int = BATCH_BYTES_MAX,
        blocking: Blocking | None = None,
        documents: DocumentCalls | None = None,
    ) -> None:
        """addresses: of some or all nodes, "host:port"; the others are learned. prefer: the address that eventual
        reads ask first. batch_bytes_max: insert_batch splits what is larger into several log entries. blocking: threads
        for large answers; without them the event loop waits while they are read. documents: where the calls about
        documents go; to the one group of a fixed cluster by default."""
        self._caller = caller
        self._directory = Directory(caller, addresses)
        self._rng = rng
        self._prefer = prefer
        self._groups: dict[GroupId, GroupClient] = {}
        size = values.check_count(batch_bytes_max, "batch_bytes_max")
        self.documents = documents if documents is not None else OneGroup(self._data(), size, blocking)

    async def _documents(self) -> DocumentCalls:
        return self.documents

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Calls in flight end soon: reads with ClientClosed, writes that were sent with
        OutcomeUnknown. Idempotent."""
        await self._caller.close()

    async def probe(self, timeout: float = 1.0) -> NodeId | None:
        """Ask every known node who leads; None if none says so in time. Raises only when all nodes refuse to talk
        (WrongCluster, UnsupportedVersion)."""
        directory = self._directory
        address = await directory.find_leader(shard_group(0), timeout)
        if address is None and directory.refusal and directory.all_failed():
            raise directory.refusal
        return next((node for node, there in directory.nodes().items() if there == address), None)

    def group(self, group: GroupId) -> GroupClient:
        """The calls to one Raft group."""
        client = self._groups.get(group)
        if client is None:
            client = self._groups[group] = GroupClient(group, self._directory, self._rng, self._prefer)
        return client

    def _data(self) -> GroupClient:
        return self.group(shard_group(0))

    # --- the nodes ---------------------------------------------------------------------------------------------------
    async def leader(self) -> NodeId | None:
        """The id of the node that leads, or None if no node names one now."""
        self._directory.set_leader(shard_group(0), None)
        return await self.probe()

    def nodes(self) -> dict[NodeId, str]:
        """The nodes that this client knows of, and their addresses."""
        return self._directory.nodes()

    async def status(self, *, timeout: float = TIMEOUT) -> RaftStatus:
        """The leader's view: term, commit, and every peer's lag."""
        return calls.decode(await self._ask(calls.STATUS, StatusCall(shard_group(0)), timeout), RaftStatus)

    async def node_status(self, node: str, *, digest: bool = False, timeout: float = TIMEOUT) -> RaftStatus:
        """One node's own view. node: its id or its address. digest: also of all its documents."""
        body = calls.encode(StatusCall(shard_group(0), digest))
        answer = await self._caller.call(await self._where(node), calls.STATUS, body, values.check_timeout(timeout))
        return calls.decode(answer, RaftStatus)

    async def digests(self, *, timeout: float = TIMEOUT) -> dict[NodeId, DigestAnswer]:
        """A digest of every member's documents, with the log index it stands for; equal indexes mean equal digests.
        Raises if a member does not answer; nodes that were removed, whose addresses are still known, are not asked."""
        status = await self.status(timeout=timeout)
        body = calls.encode(GroupCall(shard_group(0), timeout))
        seconds = values.check_timeout(timeout)
        nodes = {node: await self._where(node) for node in sorted([*status.voters, *status.learners])}
        answers = await asyncio.gather(
            *(self._caller.call(address, calls.DIGEST, body, seconds) for address in nodes.values())
        )
        return dict(zip(nodes, (calls.decode(answer, DigestAnswer) for answer in answers), strict=True))

    async def step_down(self, to: NodeId | None = None, *, timeout: float = TIMEOUT) -> NodeId:
        """Hand leadership to `to`, or to the most caught-up voter; writes in flight are not lost. Returns who leads.

        Raises InvalidArgument for a node that is no other voter or does not answer the leader, TransferFailed if it did
        not take over; the message says why.
        """
        answer = await self._data().ask_leader(
            calls.STEP_DOWN,
            lambda left: calls.encode(StepDownCall(shard_group(0), to, left)),
            timeout,
            (TransferFailed,),
        )
        led_by = calls.decode(answer, LeaderAnswer)
        self._directory.set_leader(shard_group(0), None)
        return led_by.leader or ""

    async def force_new_election(self, node: str | None = None, *, timeout: float = TIMEOUT) -> None:
        """Make `node` (default: one that does not lead) campaign now. Safe: a live leader with a quorum stays unless it
        is outvoted by Raft's rules, and at most one leader can ever commit."""
        if node is None:
            leader = await self.probe()
            others = [name for name in self.nodes() if name != leader]
            node = others[0] if others else leader
        if node is None:
            raise InvalidArgument("no node answers, so none can be told to campaign", field="node")
        body = calls.encode(GroupCall(shard_group(0), timeout))
        await self._caller.call(await self._where(node), calls.FORCE_ELECTION, body, values.check_timeout(timeout))
        self._directory.set_leader(shard_group(0), None)

    async def enter_maintenance_mode(self, node: str, *, timeout: float = TIMEOUT) -> None:
        """Move leadership off `node` and keep it off; its reads drain. It still replicates and votes."""
        await self._maintenance(node, True, timeout)

    async def exit_maintenance_mode(self, node: str, *, timeout: float = TIMEOUT) -> None:
        """End maintenance; returns once the node has caught up."""
        await self._maintenance(node, False, timeout)

    async def _maintenance(self, node: str, on: bool, timeout: float) -> None:
        body = calls.encode(MaintenanceCall(on, values.check_timeout(timeout)))
        await self._caller.call(await self._where(node), calls.MAINTENANCE, body, timeout)

    async def change_membership(
        self,
        voters: Iterable[NodeId],
        learners: Iterable[NodeId] = (),
        *,
        addresses: Mapping[NodeId, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Make exactly these nodes the voters and learners (joint consensus). addresses: of nodes that are new, and of
        members that have another address from now on.

        A node is added as a learner first, and promoted once `status()` shows that it has caught up. Raises
        InvalidArgument, naming the nodes that do not answer the leader, when no majority of `voters` does.
        """
        body = MembershipCall(shard_group(0), list(voters), list(learners), dict(addresses or {}), timeout)
        await self._ask(calls.MEMBERSHIP, body, timeout)

    async def _ask(self, method: str, body: object, timeout: float) -> Payload:
        data = calls.encode(body)
        make: MakeBody = lambda _: data  # noqa: E731
        return await self._data().ask_leader(method, make, values.check_timeout(timeout))

    async def _is_elsewhere(self, node: NodeId, address: str) -> bool:
        """Whether another node answers at `address`; one that is silent now will fail the call that follows."""
        answer = await self._directory.ask(address, shard_group(0))
        return answer is not None and answer.node_id != node

    async def _where(self, node: str) -> str:
        """The address of a node given by id or address."""
        if node in self._directory.addresses():
            return node
        # Asked first who it is: what concerns one node must not reach another that has its address now.
        for again in (False, True):
            if again:
                await self.probe()
            address = self._directory.address_of(node)
            if address is not None and not await self._is_elsewhere(node, address):
                return address
        if ":" in node:
            return node
        if address is not None:
            raise Unavailable(f"node {node} is not at {address}, and no node says where else", node=node)
        raise invalid("node", node, f"one of {', '.join(self.nodes()) or 'the nodes that answer (none does)'}")
