"""Makes the collections of the shards that this node leads those of the catalog.

Invariant: a shard's collection is dropped only by what the catalog's leader confirmed after the shard's list was taken,
and made only in the term in which it was confirmed. It must not know how the catalog is followed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Protocol

from needle.base.errors import NeedleError, Unavailable
from needle.base.ids import GroupId, NodeId
from needle.base.runtime import micros_of
from needle.multiraft.host import Host
from needle.protocol import commands
from needle.routing.collection_names import dropped_as, readable
from needle.routing.stored_collections import StoredNames
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.catalog.shard_names import ShardNames
from needle.server.cluster_files import check_founding
from needle.server.ports import NodePorts
from needle.server.replica import HostedReplica

log = logging.getLogger("needle.server")

PAUSE_SECONDS = 0.2
WAIT_SECONDS = 5.0
AT_ONCE = 16
"""So many shards: one that waits for the catalog, or for its own log, holds up no others."""


class ReconcilingNode(Protocol):
    """What this needs of its node."""

    node_id: NodeId
    host: Host
    groups: dict[GroupId, HostedReplica]
    topology: Topology
    ports: NodePorts
    beats: Beats

    def hosted(self, group: GroupId) -> HostedReplica: ...
    async def confirmed(self, timeout: float) -> Topology:
        """At least as new as everything committed before the call."""
        ...


class Reconciler:
    """See the module. unknown: collections that a shard holds and the catalog neither lists nor says were dropped, by
    group."""

    def __init__(self, node: ReconcilingNode) -> None:
        self.unknown: dict[GroupId, list[str]] = {}
        self._node = node
        self._names = StoredNames()
        self._compared: dict[GroupId, ShardNames] = {}
        self._done: dict[GroupId, tuple[int, int]] = {}
        """The version of the catalog whose collections a shard has, and the term in which it was seen to."""
        self._reconciling: dict[GroupId, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Give the shards that this node leads their collections, whenever the catalog or a leader changes."""
        while not self._node.host.stopped:
            due = self._due()
            for first in range(0, len(due), AT_ONCE):
                await asyncio.gather(*map(self._look_after, due[first : first + AT_ONCE]))
            for known in (self._compared, self._done):
                for group in known.keys() - self._node.groups.keys():
                    del known[group]
            await self._node.beats.next(PAUSE_SECONDS, self._rests)

    def _due(self) -> list[GroupId]:
        """Looked at before a task is begun for each: five times a second there is nothing to do for any."""
        return [group for group in self._node.groups if self._state(group) not in (None, self._done.get(group))]

    def _rests(self) -> bool:
        here = self._node.groups.keys()
        return self._done.keys() <= here and self._compared.keys() <= here and not self._due()

    def _state(self, group: GroupId) -> tuple[int, int] | None:
        """What the shard's collections are to be those of, and the term; None if it is led elsewhere."""
        node = self._node
        if group not in node.groups or not node.host.is_leader(group):
            return None
        return node.topology.version, node.host.term(group)

    async def _look_after(self, group: GroupId) -> None:
        state = self._state(group)
        if state is None:  # since it was looked at
            return
        try:
            await self.reconcile(group, WAIT_SECONDS)
            self._done[group] = max(state, self._done.get(group, state))  # it may have been seen to for a newer one
        except NeedleError as error:
            log.info("shard %d does not have the catalog's collections yet: %s", group - 1, error)

    async def reconcile(self, group: GroupId, timeout: float) -> None:
        """Make the shard's collections those of the catalog, as this node knew it at the call or newer; this node leads
        the shard. One runs at a time, and concurrent calls share the next."""
        running = self._reconciling.get(group)
        if running is not None:
            done, _ = await asyncio.wait((running,), timeout=timeout)  # it may have begun with an older topology
            if not done:
                raise Unavailable(f"the collections of shard {group - 1} are still being brought up to date")
        task = self._reconciling.get(group)
        if task is None:
            task = self._reconciling[group] = asyncio.get_running_loop().create_task(self._reconcile(group, timeout))
            task.add_done_callback(functools.partial(self._reconciled, group))
        await asyncio.shield(task)

    def _reconciled(self, group: GroupId, task: asyncio.Task[None]) -> None:
        self._reconciling.pop(group, None)
        if not task.cancelled():
            task.exception()  # also when nobody waits any more, it counts as seen

    async def _reconcile(self, group: GroupId, timeout: float) -> None:
        """Only what the catalog says was dropped is dropped: one that it merely does not list may be of before the
        catalog was restored from an older copy, or made again.

        A dropped collection must not come back in a shard that was told to drop it, so one is only made when the
        catalog confirmed it in the term in which the making is proposed: a leader of a later term has seen the end of
        it, and this one lets it be applied before it looks what is there."""
        host, term = self._node.host, self._node.host.term(group)
        await host.read_index(group, timeout)
        await host.wait_applied(group, host.status(group).last_index, timeout)
        replica, now = self._node.hosted(group).replica, self._node.topology
        here = replica.view
        names = self._compared.setdefault(group, ShardNames(self._names))
        if names.compare(here, now):
            self._note_unknown(group, [])
            self._done[group] = now.version, term
            return
        # `here` was taken before: what the confirmed catalog names as dropped does not return, nor does its id.
        newest = await self._node.confirmed(timeout)
        check_founding(self._node.node_id, self._node.topology, newest)
        names.compare(here, newest)
        surplus, missing = sorted(names.surplus, reverse=True), sorted(names.missing)  # vectors go before collections
        dropped = [name for name in surplus if dropped_as(name) in newest.dropped]
        self._note_unknown(group, [name for name in surplus if name not in dropped])
        for name in dropped:
            await host.propose(group, self._entry(commands.DropCollection(name)), timeout)
        for spec in [self._names.spec(newest, name) for name in missing]:
            command = self._entry(replica.validate(commands.CreateCollection(spec, True)))
            if host.term(group) != term:
                raise Unavailable(f"shard {group - 1} got another leader while its collections were brought up to date")
            await host.propose(group, command, timeout)
        self._done[group] = newest.version, term

    def _entry(self, command: commands.Command) -> bytes:
        return commands.entry(command, self._node.topology, micros_of(self._node.ports.clock))

    def _note_unknown(self, group: GroupId, names: list[str]) -> None:
        names = sorted(names)
        if names and names != self.unknown.get(group):
            log.error(
                "shard %d holds collections of which the catalog knows nothing: %s. They are kept, and not served. Was "
                "the catalog restored from an older copy?", group - 1, ", ".join(map(readable, names))
            )  # fmt: skip
        self.unknown[group] = names
