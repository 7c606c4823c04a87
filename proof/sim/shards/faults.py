"""Faults beside those of one group: the catalog's leader, a whole shard, routers and clients with old maps,
partial partitions between a router and one shard, nodes that come back elsewhere, join and leave.

Invariant: what it cuts or holds down is given back when the fault is over or cancelled; at most one node is on the move
at a time, or several at once that are told each other's new addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping

from needle.base.errors import NeedleError
from needle.base.ids import CATALOG_GROUP
from needle.protocol.move_commands import Confirm, Freeze, GiveUp, Import, Own, PrepareMove, Release
from needle.protocol.peer_calls import CATALOG
from needle.routing.topology import MoveInfo
from proof.sim.administration import Operator
from proof.sim.faults import Handler, both, each
from proof.sim.machine import stream
from proof.sim.shards.phases import PhaseFaults
from proof.sim.shards.troubles import Troubles
from proof.sim.shards.truth import Truth
from proof.sim.spec import BY_HAND_KINDS, RESIZE_KINDS, TURNOVER_KINDS, Fault
from proof.sim.stage import Stage

JOINS_MAX = 2
COMMANDS_KEPT = 30
LATE = "late"
LATE_SECONDS = 5.0
MOVE_SECONDS, MOVE_WAIT_SECONDS = 0.02, 20.0
"""How soon after a step of a move something happens; how long a fault waits for such a step."""


class ShardFaults:
    """See the module. clients: names of the clients' machines."""

    def __init__(self, stage: Stage, truth: Truth, operator: Operator, clients: list[str]) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._network = stage.network
        self._truth = truth
        self._operator = operator
        self._clients = clients
        self._moves = 0
        self._moving = False
        self.scattered = False
        """Whether nodes moved at the same time: then a client that knows old addresses only may find nobody."""
        self.joined: list[str] = []
        self._commands: deque[bytes] = deque(maxlen=COMMANDS_KEPT)
        self._network.on_call = self._overhear
        self._late = self._network.endpoint(LATE, stage.client_process(LATE))

    def handlers(self) -> Mapping[str, Handler]:
        """By kind of fault."""
        return {
            "catalog-leader": self._catalog_leader,
            "shard-down": self._shard_down,
            "client-off-catalog": self._client_off_catalog,
            "node-off-catalog": self._node_off_catalog,
            "client-off-shard": self._client_off_shard,
            "node-off-shard": self._node_off_shard,
            "move": self._move,
            "move-many": self._move_many,
            "move-replica": self._move_replica,
            "join": self._join,
            "leave": self._leave,
            "prefer": self._prefer,
            "move-range": self._move_range,
            "late-command": self._late_command,
            "cancel-move": self._cancel_move,
            "target-down": self._target_down,
            **dict.fromkeys((*RESIZE_KINDS, *BY_HAND_KINDS), self._resize),
            **dict.fromkeys(TURNOVER_KINDS, self._turn_over),
            "at-a-step": PhaseFaults(self._stage, self._truth).at_a_step,
            **Troubles(self._stage, self._truth).handlers(),
        }

    # --- processes ----------------------------------------------------------------------------------------------------
    async def _catalog_leader(self, fault: Fault, name: str) -> None:
        """The catalog's leader dies."""
        name = self._fleet.leader(CATALOG_GROUP) or name
        self._fleet.crash(name, power_cut=fault.amount < 0.5, why=fault.kind)
        await self._hold(fault.seconds, [name])

    async def _shard_down(self, fault: Fault, name: str) -> None:
        """A majority of one shard's replicas is away: its range has no leader, the others go on."""
        replicas = self._truth.now.serving[fault.number % len(self._truth.now.serving)].replicas
        rng = stream(self._stage.spec.seed, "shard-down", fault.number)
        names = sorted(rng.sample(replicas, len(replicas) // 2 + 1))
        for one in names:
            self._fleet.crash(one, power_cut=fault.amount < 0.5, why=fault.kind)
        await self._hold(fault.seconds + 3.0, names)

    async def _hold(self, seconds: float, names: list[str]) -> None:
        for name in names:
            self._fleet.hold(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            each(self._fleet.release, names)

    # --- maps that grow old -------------------------------------------------------------------------------------------
    async def _client_off_catalog(self, fault: Fault, name: str) -> None:
        await self._cut(self._a_client(fault), self._operator.catalog_nodes(), fault.seconds + 4.0)

    async def _node_off_catalog(self, fault: Fault, name: str) -> None:
        """A router that cannot follow the catalog. Where every node holds the catalog: away from its leader."""
        others = [node for node in self._operator.catalog_nodes() if node != name]
        if name in self._operator.catalog_nodes():
            leader = self._fleet.leader(CATALOG_GROUP)
            others = [leader] if leader is not None and leader != name else others
        await self._cut(name, others, fault.seconds + 4.0)

    async def _client_off_shard(self, fault: Fault, name: str) -> None:
        await self._cut(self._a_client(fault), self._a_shard(fault), fault.seconds)

    async def _node_off_shard(self, fault: Fault, name: str) -> None:
        await self._cut(name, [node for node in self._a_shard(fault) if node != name], fault.seconds)

    def _a_client(self, fault: Fault) -> str:
        return self._clients[fault.number % len(self._clients)]

    def _a_shard(self, fault: Fault) -> list[str]:
        """The replicas of one shard, or only its leader."""
        shards = self._truth.now.serving
        info = shards[int(fault.amount * 997) % len(shards)]
        leader = self._fleet.leader(info.shard + 1)
        return [leader] if fault.amount < 0.4 and leader is not None else list(info.replicas)

    async def _cut(self, name: str, others: list[str], seconds: float) -> None:
        links = both(name, others)
        each(lambda link: self._network.block(*link), links)
        try:
            await asyncio.sleep(seconds)
        finally:
            each(lambda link: self._network.unblock(*link), links)

    # --- where nodes are ----------------------------------------------------------------------------------------------
    async def _move(self, fault: Fault, name: str) -> None:
        """The node comes back with another address."""
        machine = self._fleet.machines[name]
        if self._moving or name in self._fleet.retired or not self._operator.knows(name):
            return
        self._moving = True
        try:
            self._fleet.crash(name, power_cut=fault.amount < 0.3, why=fault.kind)
            self._moves += 1
            machine.address = f"{name}:{7000 + self._moves}"
            await self._hold(min(fault.seconds, 5.0), [name])
            while True:
                await asyncio.sleep(0.2)
                if self._operator.knows(name):
                    return
        finally:
            self._moving = False

    async def _move_many(self, fault: Fault, name: str) -> None:
        """Several nodes, or all, come back with other addresses at once. Whoever starts a moved node tells it where the
        others are now (`--join`): those that it knew may all have moved as well."""
        names = [one for one in self._operator.members() if one not in self._fleet.retired]
        rng = stream(self._stage.spec.seed, "move-many", fault.number)
        names = sorted(names if fault.amount < 0.6 else rng.sample(names, min(2, len(names))))
        if self._moving or not all(map(self._operator.knows, names)):
            return
        self._moving = self.scattered = True
        try:
            for one in names:
                self._fleet.crash(one, power_cut=rng.random() < 0.3, why=fault.kind)
                self._moves += 1
                self._fleet.machines[one].address = f"{one}:{7000 + self._moves}"
            each(lambda one: self._start_in(one, rng.random() * 3.0), names)
            while True:
                await asyncio.sleep(0.2)
                if all(map(self._operator.knows, names)):
                    return
        finally:
            self._moving = False

    def _start_in(self, name: str, seconds: float) -> None:
        self._stage.loop.call_in(self._stage.loop.root, seconds, self._fleet.start, name)

    async def _join(self, fault: Fault, name: str) -> None:
        """A node joins that holds no shard: it is a router, and may become one of placement's choices. Where shards
        come and go it gets its share of them with the next rebalance."""
        if len(self.joined) < JOINS_MAX:
            fresh = self._fleet.add()
            self.joined.append(fresh)
            self._fleet.start(fresh)
            if self._stage.spec.resizes:
                self._operator.turnover.joined(fresh)
        await asyncio.sleep(0)

    async def _leave(self, fault: Fault, name: str) -> None:
        """A node that joined is removed; its id is never used again."""
        here = [node for node in self.joined if node not in self._fleet.retired and self._operator.knows(node)]
        if not here:
            return
        gone = here[fault.number % len(here)]
        self._fleet.retired.add(gone)
        self._fleet.crash(gone, power_cut=False, why=fault.kind)
        await self._operator.admin(gone, "leave")

    # --- what comes twice ---------------------------------------------------------------------------------------------
    def _overhear(self, method: str, body: bytes) -> None:
        if method == CATALOG:
            self._commands.append(body)

    async def _late_command(self, fault: Fault, name: str) -> None:
        """A copy of a command to the catalog comes once more, after others that were executed since; truth.py sees
        whether it takes effect again."""
        rng = stream(self._stage.spec.seed, "late-command", fault.number)
        if self._commands:
            body = self._commands[rng.randrange(len(self._commands))]
            await asyncio.sleep(fault.seconds)
            for node in self._operator.catalog_nodes():
                self._stage.ask(LATE, self._deliver(self._fleet.machines[node].address, body))

    async def _deliver(self, address: str, body: bytes) -> None:
        with contextlib.suppress(NeedleError):
            await self._late.call(address, CATALOG, body, LATE_SECONDS)

    async def _move_range(self, fault: Fault, name: str) -> None:
        """Keys change their shard."""
        await self._operator.admin("a range", "move-range")

    async def _cancel_move(self, fault: Fault, name: str) -> None:
        """A move of keys is given up, in any of its states."""
        info = await self._a_move(fault)
        if info is not None:
            await self._operator.admin(str(info.id), fault.kind)

    async def _target_down(self, fault: Fault, name: str) -> None:
        """A majority of the shard that keys move to goes away, in any state of the move: it dies, or is cut off."""
        info = await self._a_move(fault)
        if info is None:
            return
        replicas = self._truth.now.shards[info.target].replicas
        rng = stream(self._stage.spec.seed, fault.kind, fault.number)
        names = sorted(rng.sample(replicas, len(replicas) // 2 + 1))
        if fault.amount < 0.5:
            for one in names:
                self._fleet.crash(one, power_cut=fault.amount < 0.25, why=fault.kind)
            await self._hold(fault.seconds + 3.0, names)
        else:
            others = [node for node in self._operator.members() if node not in names]
            links = [link for one in names for link in both(one, others)]
            each(lambda link: self._network.block(*link), links)
            try:
                await asyncio.sleep(fault.seconds + 3.0)
            finally:
                each(lambda link: self._network.unblock(*link), links)

    async def _a_move(self, fault: Fault) -> MoveInfo | None:
        """The next move that makes the step that the fault draws, soon after it; None if none does for a while."""
        rng = stream(self._stage.spec.seed, fault.kind, fault.number)
        step = rng.choice([PrepareMove, Import, Import, Freeze, Freeze, Confirm, Release, Own, GiveUp])
        try:
            async with asyncio.timeout(MOVE_WAIT_SECONDS):
                happening = await self._truth.after({step.__name__})
        except TimeoutError:
            return None
        await asyncio.sleep(rng.random() * rng.choice([0.0, MOVE_SECONDS]))
        return self._truth.now.move(happening.move)

    async def _move_replica(self, fault: Fault, name: str) -> None:
        """A replica of a group goes to this node, perhaps others to others."""
        await self._operator.admin(name, "move-replica")

    async def _prefer(self, fault: Fault, name: str) -> None:
        await self._operator.admin("a shard", "prefer")

    async def _resize(self, fault: Fault, name: str) -> None:
        """The cluster is to grow, shrink, or be more even; or that is paused or given up."""
        await self._operator.admin("the cluster", fault.kind)

    async def _turn_over(self, fault: Fault, name: str) -> None:
        """A node is replaced or removed, or all are restarted one after the other."""
        await self._operator.admin(name, fault.kind)
