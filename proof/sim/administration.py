"""The operator of a single-group cluster: step-downs, elections, maintenance, membership, replacing a lost machine.

Invariant: it never takes a voter from a group that lacks one already. It must not know clients or checkers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from needle.base.errors import InvalidArgument, OutcomeUnknown, StorageError, Unavailable
from needle.base.ids import GroupId
from needle.client.client import Client
from needle.protocol import calls
from needle.protocol.calls import Freshness, GetCall
from proof.sim.databases import administrate
from proof.sim.machine import stream
from proof.sim.network import SimEndpoint
from proof.sim.nodes import DATA_GROUP
from proof.sim.stage import Stage
from proof.sim.workload import COLLECTION

ADMIN_SECONDS = 5.0
REPEAT_SECONDS = 1.0
REPLACEMENTS_MAX = 2
NAME = "operator"


class Operator:
    """See the module. members: the nodes that should be voters."""

    def __init__(self, stage: Stage, founders: list[str]) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self.members = list(founders)
        self._configured = tuple(founders)
        endpoint = stage.network.endpoint(NAME, stage.client_process(NAME))
        self._endpoint = endpoint
        self._client = administrate(endpoint, stage.fleet.addresses(), stream(stage.spec.seed, NAME))

    def leader(self, hint: int = 0) -> str | None:
        """The node that leads. hint: which group, where there are several."""
        return self._fleet.leader(DATA_GROUP)

    def may_lose(self, name: str) -> bool:
        """Whether a good quorum remains without this node's data."""
        return self._may_shrink([node for node in self.members if node != name])

    def sharing(self, name: str) -> set[str]:
        """The nodes with which this one shares the group."""
        return {node for node in self.members if node != name}

    def finds_others(self, name: str) -> bool:
        """Whether this node, with nothing but its configuration, knows where one is that is still there."""
        return any(node in self.members for node in self._configured if node != name)

    async def admin(self, name: str, what: str) -> None:
        """An operator's command; it may be refused or time out."""
        self._stage.ask(NAME, self._administer(name, what))
        await asyncio.sleep(0)

    async def _administer(self, name: str, what: str) -> None:
        client, trace = self._client, self._stage.trace
        rest = [node for node in self.members if node != name]
        if what in ("demote", "remove", "replace") and not self._may_shrink(rest):
            return
        try:
            if what == "step-down":
                await client.step_down(timeout=ADMIN_SECONDS)
            elif what == "force-election":
                await client.force_new_election(name, timeout=ADMIN_SECONDS)
            elif what == "maintenance":
                await client.enter_maintenance_mode(name, timeout=ADMIN_SECONDS)
            elif what == "end-maintenance":
                await end_maintenance(client.exit_maintenance_mode, name, lambda: name in self._fleet.retired)
            elif what == "read-there":
                await read_there(self._endpoint, self._fleet.machines[name].address, DATA_GROUP, COLLECTION)
            elif what == "demote":
                await client.change_membership(rest, [name], timeout=ADMIN_SECONDS)
            elif what == "remove":
                await client.change_membership(rest, timeout=ADMIN_SECONDS)
            elif what == "replace":
                await self._replace(client, name, rest)
            else:
                self._give_up_lost()
                await self._restore(client)
        except (Unavailable, OutcomeUnknown, InvalidArgument, StorageError) as error:
            trace.note(f"{what} of {name}: {error.code}")
        else:
            trace.tell(f"{what} of {name or 'all'} is done")

    def _may_shrink(self, rest: list[str]) -> bool:
        """Nobody in their senses takes a voter from a group that lacks one already: what remains could be stuck."""
        retired, rotten = self._fleet.retired, self._fleet.observer.rotten | self._fleet.spoilt
        lost = self._fleet.forgetful.intersection(self.members)
        return self.all_are_voters() and not lost and not retired.intersection(rest) and keeps_quorum(rest, rotten)

    def _give_up_lost(self) -> None:
        """A node with other disks than before cannot be added again under its name."""
        name = self.leader()
        conf = self._fleet.nodes[name].groups()[DATA_GROUP].raft.conf if name else None
        if conf is not None:
            self.members = [m for m in self.members if m in conf.voters or m not in self._fleet.forgetful]

    def all_are_voters(self) -> bool:
        """Whether the group's configuration is what it should be."""
        name = self.leader()
        conf = self._fleet.nodes[name].groups()[DATA_GROUP].raft.conf if name else None
        return conf is not None and sorted(conf.voters) == self.members and not conf.voters_outgoing

    async def _restore(self, client: Client) -> None:
        """Everybody is a voter again; where too few of them answer because they are no members, as learners first."""
        book = self._book()
        try:
            await client.change_membership(self.members, addresses=book, timeout=ADMIN_SECONDS)
        except InvalidArgument:
            name = self.leader()
            voters = self._fleet.nodes[name].groups()[DATA_GROUP].raft.conf.voters if name else ()
            new = [member for member in self.members if member not in voters]
            if not voters or not new:
                raise
            await client.change_membership(list(voters), new, addresses=book, timeout=ADMIN_SECONDS)
            await client.change_membership(self.members, addresses=book, timeout=ADMIN_SECONDS)

    async def _replace(self, client: Client, name: str, rest: list[str]) -> None:
        """A member's machine is lost: a new one with a new name takes its place, as a learner first."""
        fleet = self._fleet
        if name not in self.members or len(fleet.machines) >= self._stage.spec.nodes + REPLACEMENTS_MAX:
            return
        fleet.retired.add(name)
        fleet.crash(name, power_cut=True, why="lost for good")
        fresh = fleet.add()
        self.members = sorted([*rest, fresh])
        fleet.start(fresh)
        await client.change_membership([*rest, name], [fresh], addresses=self._book(), timeout=ADMIN_SECONDS)
        await asyncio.sleep(2.0)
        await client.change_membership(self.members, addresses=self._book(), timeout=ADMIN_SECONDS)

    def _book(self) -> dict[str, str]:
        return {name: self._fleet.machines[name].address for name in self.members}


async def read_there(endpoint: SimEndpoint, address: str, group: GroupId, collection: str) -> None:
    """A strong read by a client that takes the node at `address` for the leader; the observer checks its index."""
    call = GetCall(group, collection, ["first"], False, Freshness(timeout=ADMIN_SECONDS))
    await endpoint.call(address, calls.GET, calls.encode(call), ADMIN_SECONDS)


async def end_maintenance(leave: Callable[..., Awaitable[None]], name: str, is_gone: Callable[[], bool]) -> None:
    """An operator repeats this until the node has heard it: a node that is forgotten would never vote or lead again."""
    while not is_gone():
        try:
            await leave(name, timeout=ADMIN_SECONDS)
            return
        except (Unavailable, OutcomeUnknown):
            await asyncio.sleep(REPEAT_SECONDS)


def keeps_quorum(voters: Sequence[str], rotten: Collection[str]) -> bool:
    """Whether a majority of `voters` has disks that keep what they promised: nodes with others may be out for good."""
    return 2 * sum(node not in rotten for node in voters) > len(voters)
