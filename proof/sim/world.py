"""One run of a cluster: nodes with catalog and shards, clients and faults on one stage; the end, and the last checks.

Invariant: everything that happens follows from the Spec. A violation anywhere ends the run at once and is returned in
the Report, with the story so far. What runs is the composition root of `needle serve`; how much of everything there is,
one shard or several, is the Shape's to say.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import cast

import needle
from needle.base.ids import CATALOG_GROUP
from needle.base.model import ReadMode
from needle.routing.topology import NodeState, Topology, public_name
from needle.server.node import Node
from needle.server.ports import NodePorts
from proof.checkers import linearizability, lives
from proof.checkers.history import History
from proof.checkers.violation import Violation
from proof.sim.administration import DATA_GROUP, Operator
from proof.sim.assigning import keeps_quorum
from proof.sim.catching_up import WRITERS, CatchingUp
from proof.sim.client import Client
from proof.sim.databases import Homed, Proxied, ShardAware
from proof.sim.gone_for_good import GoneForGood
from proof.sim.injector import Injector
from proof.sim.last_checks import check_reads, find_versions
from proof.sim.machine import stream
from proof.sim.machines import SimMachine
from proof.sim.nodes import SimNode, node_config
from proof.sim.process import Process
from proof.sim.report import Report, report_of
from proof.sim.searches_seen import EVERYTHING
from proof.sim.shards.altering import ServedIndexes
from proof.sim.shards.faults import ShardFaults
from proof.sim.shards.others import Other, Others
from proof.sim.shards.profile import shape_of
from proof.sim.shards.truth import Truth
from proof.sim.spec import Spec, profile
from proof.sim.stage import Stage
from proof.sim.trace import Trace
from proof.sim.watch import Watch
from proof.sim.workload import COLLECTION, Budget, Database, Workload

LIVENESS_SECONDS = 40.0
LOST_SECONDS = 20.0
"""So long a node that lost its data stays up before somebody stops it."""
JOINING_SHARE = 0.5
LATE_SECONDS = 8.0
LAZINESS = 6.0


class World:
    """See the module. Use `run` once."""

    def __init__(self, spec: Spec, *, keep_trace: bool = False) -> None:
        self.spec = spec
        self.shape = shape_of(spec)
        self.stage = stage = Stage(spec, profile(spec.seed), keep_trace=keep_trace)
        self.loop = stage.loop
        self.fleet = fleet = stage.fleet
        self.founders = [fleet.add() for _ in range(spec.nodes)]
        fleet.make, fleet.lost_seconds = self._node, LOST_SECONDS
        self.watch = Watch(stage)
        self.truth = Truth(stage, self.watch)
        self.indexes = ServedIndexes(stage, self.watch.indexes, lambda: self.truth.now)
        self.history = History()
        self.operator = Operator(stage, self.truth, self.shape, self.founders)
        self.injector = Injector(spec.seed, self.loop, stage.network, fleet, self.operator, stage.trace)
        self.faults = ShardFaults(stage, self.truth, self.operator, [f"c{number}" for number in range(spec.clients)])
        self.injector.more |= self.faults.handlers()
        budget = Budget(spec.operations_max)
        work = Workload(self.loop, self.history, stage.trace, stage.profile, spec.seed, budget, self.truth, wide=True)
        work.on_ack = self._acknowledged
        self.watch.on_expired = self._expired
        self.work = work
        self.clients: list[Client] = []
        self._given_up = 0
        self.beside: Others | None = None
        stage.broken = self._broken

    @property
    def trace(self) -> Trace:
        """What happened."""
        return self.stage.trace

    def _acknowledged(self, key: str, index: int) -> None:
        if index:  # 0: of a write to all shards, see databases.Homed
            self.watch.acknowledged(self.truth.wrote(key, index), index)

    def _expired(self, collection: str, key: str) -> None:
        """To clients the same as a delete that nobody has heard of: it takes effect at any time from now on."""
        if public_name(collection) == COLLECTION:
            op = self.history.invoke("expiry", "delete", key, self.loop.time())
            self.history.finish(op, "unknown", self.loop.time())
            self.trace.note(f"{key} expired")

    @property
    def others(self) -> Sequence[Other]:
        """Who works beside the clients."""
        return () if self.beside is None else self.beside.all

    def _broken(self) -> Violation | None:
        for name in self.fleet.observer.emptied & self.fleet.nodes.keys():
            if opened := lives.opened(name, self.fleet.nodes[name].groups().keys()):
                return opened
        return next((one.broken for one in (self.work, *self.others) if one.broken is not None), None)

    # --- nodes and clients --------------------------------------------------------------------------------------------
    def _node(self, machine: SimMachine, process: Process) -> SimNode:
        name = machine.name
        moved = machine.address != f"{name}:7000"
        seeds: tuple[str, ...] = ()
        emptied = name in self.fleet.observer.emptied and stream(self.spec.seed, "joining").random() < JOINING_SHARE
        if moved or emptied or name not in self.founders:  # an operator says where nodes are now
            seeds = tuple(address for address in self.fleet.addresses() if address != machine.address)
        config = node_config(self.stage, machine, self.shape, self.founders, seeds)

        def build(ports: NodePorts, process: Process) -> Node:
            clients = partial(self.stage.network.endpoint, name, process)
            return Node(config, ports, clients, move_rows=self.shape.move_rows)

        return SimNode(self.stage, machine, process, build)

    def _client(self, name: str) -> Client:
        """A client on a machine of its own. The last one is slow."""
        lazy = LAZINESS if name == f"c{self.spec.clients - 1}" else 1.0
        endpoint = self.stage.network.endpoint(name, self.stage.client_process(name))
        rng = stream(self.spec.seed, name)

        def connect() -> Database:
            made = session()
            return cast("Database", Homed(made)) if self.shape.strategy.kind == "custom" else made

        def session() -> Database:
            if name in self.shape.unaware:
                known = [
                    at for name, at in sorted(self.truth.now.addresses().items()) if name not in self.fleet.retired
                ]
                pinned = [known[rng.randrange(len(known))]] if rng.random() < 0.7 else known
                return Proxied(endpoint, pinned, rng)
            old = self._old_map(rng)
            made = self.truth.known.client(ShardAware(endpoint, self._seeds(), old, rng))
            # Spread by a ring that no shard ever had, a delete by a filter would ask the owners by ranges, and only a
            # shard that took part in a move knows its documents' keys.
            made.by_filter = old.settings is None or old.version >= self.truth.topologies[1].version
            return made

        return Client(name, connect, self.work, lazy)

    def _seeds(self) -> list[str]:
        """Where a client looks first: where the catalog has the nodes, and if they moved, which it may not have heard,
        also where their owner has them."""
        moved = self.fleet.addresses() if self.faults.scattered else []
        return list(dict.fromkeys([*self.truth.now.addresses().values(), *moved]))

    def _old_map(self, rng: random.Random) -> Topology:
        """What a client that has just come back knows: the newest map, one of the last, none, or one of a ring from
        before."""
        draw = rng.random()
        if draw < 0.4:
            return self.truth.now
        if draw < 0.7:
            return self.truth.topologies[-1 - rng.randrange(min(8, len(self.truth.topologies)))]
        return Topology() if draw < 0.8 else self.truth.before_the_first()

    # --- the run ------------------------------------------------------------------------------------------------------
    def run(self) -> Report:
        """Run to the end, or to the first violation."""
        failure = self.stage.run(self._main(), lambda: setattr(self.injector, "over", True))
        return report_of(
            self.stage,
            self.history,
            self.injector,
            failure,
            groups=self.truth.groups(),
            searches=len(self.work.scatters),
            given_up=self._given_up,
            moves=self.truth.moved(),
        )

    async def _main(self) -> None:
        work, stage = self.work, self.stage
        late = self.founders[-1:] if self.shape.late else []
        for name in self.founders:
            if name in late:
                self.loop.call_in(self.loop.root, LATE_SECONDS, self.fleet.start, name)
            else:
                self.fleet.start(name)
        rough = self.loop.create_task(self._trouble())
        await stage.until("the cluster to be created", 2 * LIVENESS_SECONDS, self.operator.create)
        rough.cancel()
        self.trace.tell(f"{self.shape.shards} shards, {self.shape.replicas} replicas, {self.shape.strategy.kind}")
        self.clients = [self._client(f"c{number}") for number in range(self.spec.clients)]
        await stage.until("the first writes", LIVENESS_SECONDS, partial(self._serve, "first"))
        workers = self._workers()
        self.injector.begin(self.spec.schedule())
        watch = self.loop.create_task(stage.watch())
        await asyncio.sleep(self.spec.seconds)
        await self.injector.stop()
        self.fleet.disarm_all()
        if stream(self.spec.seed, "catching-up").random() < self.shape.catching_up:
            await self._catch_up()
        if self.spec.heals:
            await self._lose_a_node()
        for one in (work, *self.others):
            one.stopping = True
        await self._recover()
        await asyncio.gather(*workers)
        await self._read_everything()
        await self._converge()
        watch.cancel()
        self._check_history()

    def _workers(self) -> list[asyncio.Task[None]]:
        """All that clients do from now on."""
        stage = self.stage
        workers = [stage.ask(client.name, client.run()) for client in self.clients]
        if self.shape.bursts:
            together = [self._client(f"b{number}") for number in range(stage.profile.burst_clients)]
            workers += [stage.ask(client.name, client.run_in_bursts()) for client in together]
        self.beside = Others(stage, self.shape, self.truth, self._churning, self._aware)
        workers += self.beside.work
        return workers

    async def _catch_up(self) -> None:
        """A member of the one shard is away for a while, and comes back behind slow links."""
        stage = self.stage
        stage.network.heal()
        await stage.until("every group to have its voters again", LIVENESS_SECONDS, self.operator.restored)
        await self._mended()
        writers = [self._client(f"w{number}") for number in range(WRITERS)]
        await CatchingUp(stage, self.truth.wanted(DATA_GROUP), DATA_GROUP, writers).run(self.spec.seed)

    async def _lose_a_node(self) -> None:
        """A node is gone for good, and nobody does anything about it but the cluster."""
        await self._heal()
        await self._mended()
        holders = self.operator.holders
        gone = await GoneForGood(self.stage, self.truth, holders.all_are_voters).run(holders.members, CATALOG_GROUP)
        holders.members = [name for name in holders.members if name != gone]

    async def _heal(self) -> None:
        """The network carries all again, every node is started, and the cluster has the shape that it is to have."""
        stage = self.stage
        stage.network.heal()
        for name in self.fleet.machines:
            self.fleet.start(name)
        await stage.until("the rebalance to end", LIVENESS_SECONDS, self.operator.resized)
        await stage.until("every group to have its voters again", LIVENESS_SECONDS, self.operator.restored)

    async def _mended(self) -> None:
        await self.stage.until("damaged documents to be had again", LIVENESS_SECONDS, self.stage.stored_is_whole)
        self.injector.spoilt.clear()

    async def _trouble(self) -> None:
        """Nodes die while the cluster is made."""
        rng = stream(self.spec.seed, "rough start")
        while self.shape.rough_start:
            await asyncio.sleep(rng.expovariate(1 / 1.5))
            name = self.founders[rng.randrange(len(self.founders))]
            self.fleet.crash(name, power_cut=rng.random() < 0.5, why="rough start")
            self.loop.call_in(self.loop.root, 0.5, self.fleet.start, name)
            if rng.random() < 0.3:
                return

    def _churning(self, known: Topology) -> needle.Client:
        at = self.stage.network.endpoint("churn", self.stage.client_process("churn"))
        return self.truth.known.client(ShardAware(at, self._seeds(), known, stream(self.spec.seed, "churning"))).client

    def _aware(self, name: str, known: Topology, *number: int) -> ShardAware:
        endpoint = self.stage.network.endpoint(name, self.stage.client_process(name))
        rng = stream(self.spec.seed, name, *number)
        return self.truth.known.client(ShardAware(endpoint, self._seeds(), known, rng))

    async def _serve(self, stem: str) -> bool:
        """Whether every shard takes a write."""
        client = self.clients[0]
        for shard in sorted(set(self.truth.map.owners)):
            names = (key for n in range(1000) if self.truth.owner(key := self._name(stem, n)) == shard)
            found = next(names, None)  # a shard may own little
            if found is not None and not await self.stage.ask(client.name, client.put(found)):
                return False
        return True

    def _name(self, stem: str, n: int) -> str:
        return f"k{n % (self.shape.shards + 1)}.{stem}{n}"

    # --- liveness -----------------------------------------------------------------------------------------------------
    async def _recover(self) -> None:
        """Heal, but leave out a minority of every group: the rest alone must serve again. All nodes with bad disks,
        if there are any: no majority is promised without good ones."""
        stage = self.stage
        await self._heal()
        await self._lost_stay_lost()
        members = self.operator.members()
        bad = self.fleet.observer.rotten | self.injector.spoilt | self.fleet.retired
        rng, minority = stream(self.spec.seed, "recover"), (self.shape.replicas - 1) // 2
        rest = sorted(bad.intersection(members)) or sorted(rng.sample(members, minority))
        if not all(keeps_quorum(list(self.truth.nodes_of(group)), rest) for group in self.truth.groups()):
            rest = []  # the operator had a shard have two replicas, one of which this would be
        stage.trace.tell(f"faults end; {', '.join(rest) or 'nobody'} is left out")
        for name in rest:
            self.fleet.hold(name)
            self.fleet.crash(name, power_cut=True, why="left out")
        # Those that know the addresses of nodes only that all moved, or were replaced, are lost: they are told again.
        if self.faults.scattered or members != self.founders:
            for client in self.clients:
                client.renew()
        await stage.until(f"writes without {rest}", LIVENESS_SECONDS, partial(self._serve, "fresh"))
        for name in rest:
            self.fleet.release(name)
        stage.trace.tell("every node is back")

    async def _lost_stay_lost(self) -> None:
        """Nodes with other disks than before notice it; who starts them once more hears it again. One that holds
        nothing any more meets nobody who could tell it, and does no harm."""
        fleet, truth = self.fleet, self.truth

        async def noticed() -> bool:
            for name in fleet.forgetful:
                fleet.start(name)
            held = {name for group in truth.groups() for name in truth.nodes_of(group)}
            return fleet.forgetful & held <= fleet.retired

        async def reported(name: str) -> bool:
            fleet.start_lost(name)
            return await self.operator.told_lost(name)

        await self.stage.until("other disks than before to be noticed", LIVENESS_SECONDS, noticed)
        for name in sorted(fleet.forgetful & fleet.retired - fleet.turned_away):
            await self.stage.until(f"{name} to be reported as lost", LIVENESS_SECONDS, partial(reported, name))
            fleet.crash(name, power_cut=False, why="lost for good")

    async def _read_everything(self) -> None:
        """Every acknowledged write must still be there, for gets and for an exact search of everything."""

        async def read(key: str) -> bool:
            return await self.stage.ask(self.clients[0].name, self.clients[0].get(key, ReadMode.STRONG))

        async def search(who: Client) -> bool:
            return await self.stage.ask(who.name, who.find(ReadMode.STRONG, None, EVERYTHING, partial=False))

        for key in sorted(self.history.by_key()):
            await self.stage.until(f"a read of {key}", LIVENESS_SECONDS, partial(read, key))
        for client in self.clients:
            if client.name in self.shape.unaware:
                client.renew()  # the one address that it had may be of a node that moved
            await self.stage.until(f"a search by {client.name}", LIVENESS_SECONDS, partial(search, client))

    async def _converge(self) -> None:
        """Moves end, all replicas hold the same, shards have the catalog's collections, nodes its topology."""
        await self.stage.until("every move to end, and all nodes to take data", LIVENESS_SECONDS, self._settled)
        self.truth.logs.check_map(self.truth.map)
        await self.stage.until("the catalog's indexes", LIVENESS_SECONDS, self.indexes.follow_the_catalog)
        await self.stage.until("every replica to catch up", LIVENESS_SECONDS, self._equal)
        await self.stage.until("damaged documents to be had again", LIVENESS_SECONDS, self._whole)
        await self.stage.until("files of replicas that were given up to be gone", LIVENESS_SECONDS, self._tidy)
        if self.beside is not None:
            await self.beside.end(self.history, LIVENESS_SECONDS)
        self.stage.observer.compare_logs(self.fleet.replicas())
        self.stage.observer.compare_digests(self.fleet.replicas())

    async def _settled(self) -> bool:
        return not self.truth.now.moves and not any(node.refuses_data() for node in self._nodes())

    async def _equal(self) -> bool:
        if not await self.operator.restored():  # an operator's earlier command may have come behind "restore"
            return False
        replicas, now = self.fleet.replicas(), self.truth.now
        wanted = sorted(name for info in now.collections for name in info.stored_names)
        for group, here in [(group, replicas.get(group, {})) for group in self.truth.groups()]:
            applied = {replica.machine.applied_index() for replica in here.values()}
            if len(applied) != 1 or sorted(here) != sorted(set(self.truth.nodes_of(group)) - self.fleet.retired):
                return False
            shards = [replica.machine for replica in here.values() if group != CATALOG_GROUP]
            if any(sorted(spec.name for spec in shard.collections()) != wanted for shard in shards):
                return False
        return all(node.topology() == now for node in self._nodes())

    async def _whole(self) -> bool:
        return await self._equal() and await self.stage.stored_is_whole()

    async def _tidy(self) -> bool:
        members = {info.id for info in self.truth.now.nodes if info.state is not NodeState.REMOVED}
        nodes = {name: self.fleet.nodes[name] for name in members & self.fleet.nodes.keys() - self.fleet.retired}
        return not any(node.left_behind() for node in nodes.values() if isinstance(node, SimNode))

    def _nodes(self) -> list[SimNode]:
        return [node for node in self.fleet.nodes.values() if isinstance(node, SimNode)]

    def _check_history(self) -> None:
        find_versions(self.work, self.truth)
        self._given_up = linearizability.check(self.history)
        check_reads(self.work, self.truth, self.stage.profile.metric)
