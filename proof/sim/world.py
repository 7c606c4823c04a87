"""One run of a single-group cluster: nodes, clients and faults on one stage; the liveness phase; the last checks.

Invariant: everything that happens follows from the Spec. A violation anywhere ends the run at once and is returned in
the Report, with the story so far. It must not know how a node is put together (nodes.py does).
"""

from __future__ import annotations

import asyncio
from functools import partial

from needle.base.model import ReadMode
from needle.server.node import Node
from proof.checkers import linearizability
from proof.checkers.replay import check_get, check_search
from proof.sim.administration import Operator
from proof.sim.catching_up import WRITERS, CatchingUp
from proof.sim.databases import connect
from proof.sim.history import History
from proof.sim.injector import Injector
from proof.sim.machine import stream
from proof.sim.machines import SimMachine, majority
from proof.sim.nodes import DATA_GROUP, SimNode, single_config
from proof.sim.process import Process
from proof.sim.report import Report, report_of
from proof.sim.spec import Spec, profile
from proof.sim.stage import Stage
from proof.sim.trace import Trace
from proof.sim.watch import Watch
from proof.sim.workload import COLLECTION, Budget, Client, Workload

LIVENESS_SECONDS = 40.0
LAZINESS = 6.0
CATCHING_UP_SHARE = 0.5


class World:
    """See the module. Use `run` once."""

    def __init__(self, spec: Spec, *, keep_trace: bool = False) -> None:
        self.spec = spec
        self.stage = stage = Stage(spec, profile(spec.seed), keep_trace=keep_trace)
        self.loop = stage.loop
        self.fleet = fleet = stage.fleet
        self.founders = [fleet.add() for _ in range(spec.nodes)]
        fleet.make = self._node
        self.watch = Watch(stage)
        self.history = History()
        self.operator = Operator(stage, self.founders)
        self.injector = Injector(spec.seed, self.loop, stage.network, fleet, self.operator, stage.trace)
        budget = Budget(spec.operations_max)
        self.work = Workload(self.loop, self.history, stage.trace, stage.profile, spec.seed, budget)
        self.work.changes = True
        self.work.on_ack = lambda _, index: self.watch.acknowledged(DATA_GROUP, index)
        self.work.latest = lambda _: self.watch.last(DATA_GROUP)
        stage.broken = lambda: self.work.broken
        self._clients: list[Client] = []
        self._given_up = 0

    @property
    def trace(self) -> Trace:
        """What happened."""
        return self.stage.trace

    def _node(self, machine: SimMachine, process: Process) -> SimNode:
        config = single_config(self.stage, machine, self.founders)
        return SimNode(self.stage, machine, process, lambda ports, _: Node(config, ports))

    # --- the run ------------------------------------------------------------------------------------------------------
    def run(self) -> Report:
        """Run to the end, or to the first violation."""
        failure = self.stage.run(self._main(), lambda: setattr(self.injector, "over", True))
        return report_of(
            self.stage,
            self.history,
            self.injector,
            failure,
            groups=[DATA_GROUP],
            searches=len(self.work.searches),
            given_up=self._given_up,
        )

    async def _main(self) -> None:
        for name in self.fleet.machines:
            self.fleet.start(name)
        self._clients = [self._client(f"c{number}") for number in range(self.spec.clients)]
        await self.stage.until("the first leader", LIVENESS_SECONDS, self._serves)
        self.injector.begin(self.spec.schedule())
        workers: list[asyncio.Task[None]] = [self.stage.ask(client.name, client.run()) for client in self._clients]
        together = [self._client(f"b{number}") for number in range(self.stage.profile.burst_clients)]
        workers.extend(self.stage.ask(client.name, client.run_in_bursts()) for client in together)
        watch = self.loop.create_task(self.stage.watch())
        await asyncio.sleep(self.spec.seconds)
        await self.injector.stop()
        self.fleet.disarm_all()
        if stream(self.spec.seed, "catching-up").random() < CATCHING_UP_SHARE and not self.spec.calm:
            self.stage.network.heal()
            await self.stage.until("all nodes to be voters again", LIVENESS_SECONDS, self._all_vote)
            await self.stage.until("damaged documents to be had again", LIVENESS_SECONDS, self.stage.stored_is_whole)
            self.injector.spoilt.clear()
            writers = [self._client(f"w{number}") for number in range(WRITERS)]
            await CatchingUp(self.stage, self.operator.members, DATA_GROUP, writers).run(self.spec.seed)
        self.work.stopping = True
        await self._recover()
        await asyncio.gather(*workers)
        await self._read_everything()
        await self._converge()
        watch.cancel()
        self._check_history()

    def _client(self, name: str) -> Client:
        """A client on a machine of its own. The last one is slow: it knows who led, not who leads."""
        lazy = LAZINESS if name == f"c{self.spec.clients - 1}" else 1.0
        process, rng = self.stage.client_process(name), stream(self.spec.seed, name)
        endpoint = self.stage.network.endpoint(name, process)
        return Client(name, lambda: connect(endpoint, self.fleet.addresses(), rng), self.work, lazy)

    async def _write(self, key: str) -> bool:
        return await self.stage.ask("c0", self._clients[0].put(key))

    async def _serves(self) -> bool:
        """Whether a leader has created the first collection, and takes a write."""
        ready = any(replica.machine.collections() for replica in self.fleet.replicas().get(DATA_GROUP, {}).values())
        return ready and await self._write("first")

    # --- liveness -----------------------------------------------------------------------------------------------------
    async def _recover(self) -> None:
        """Heal a random majority only: it alone must serve again."""
        self.stage.network.heal()
        await self.stage.until("all nodes to be voters again", LIVENESS_SECONDS, self._all_vote)
        await self.stage.until("other disks than before to be noticed", LIVENESS_SECONDS, self._all_noticed)
        here = [name for name in self.operator.members if name not in self.fleet.retired]
        good = [name for name in here if name not in self.injector.spoilt]
        rng = stream(self.spec.seed, "recover")
        alive = majority(rng, self.operator.members) if good == self.operator.members else good
        rest = [name for name in here if name not in alive]
        self.stage.trace.tell(f"faults end; only {', '.join(alive)} may go on")
        for name in rest:
            self.fleet.hold(name)
            self.fleet.crash(name, power_cut=True, why="left out")
        if self.fleet.retired:
            # Who was away while nodes were replaced may know none of those that are left: it is told again.
            self._clients[0].renew()
        await self.stage.until(
            f"a write by {alive} alone", LIVENESS_SECONDS, lambda: self.stage.ask("c0", self._clients[0].put("fresh"))
        )
        for name in rest:
            self.fleet.release(name)
        self.stage.trace.tell("every node is back")

    async def _all_noticed(self) -> bool:
        for name in self.fleet.forgetful:
            self.fleet.start(name)
        return self.fleet.forgetful <= self.fleet.retired

    async def _all_vote(self) -> bool:
        if self.operator.all_are_voters():
            return True
        await self.operator.admin("", "restore")
        await asyncio.sleep(1.0)
        return False

    async def _read_everything(self) -> None:
        """Every acknowledged write must still be there: read each key once more, into the history."""
        reader = self._clients[0]

        async def read(key: str) -> bool:
            return await self.stage.ask(reader.name, reader.get(key, ReadMode.STRONG))

        for key in sorted(self.history.by_key()):
            await self.stage.until(f"a read of {key}", LIVENESS_SECONDS, partial(read, key))
        for _ in range(3):
            await self.stage.ask(reader.name, reader.search(ReadMode.STRONG))

    async def _converge(self) -> None:
        """All nodes apply everything, and hold the same documents."""

        async def equal() -> bool:
            if not await self._all_vote():  # the answer to an operator's "remove" may have come behind "restore"
                return False
            replicas = self.fleet.replicas().get(DATA_GROUP, {})
            applied = {replica.machine.applied_index() for replica in replicas.values()}
            return len(applied) == 1 and len(replicas) == len(set(self.operator.members) - self.fleet.retired)

        async def whole() -> bool:
            return await equal() and await self.stage.stored_is_whole()

        await self.stage.until("every replica to catch up", LIVENESS_SECONDS, equal)
        await self.stage.until("damaged documents to be had again", LIVENESS_SECONDS, whole)
        self.stage.observer.compare_logs(self.fleet.replicas())
        self.stage.observer.compare_digests(self.fleet.replicas())

    def _check_history(self) -> None:
        self._given_up = linearizability.check(self.history)
        model = self.watch.model(DATA_GROUP, COLLECTION)
        metric = self.watch.metrics.get(COLLECTION, self.stage.profile.metric)
        for seen in self.work.searches:
            check_search(model, seen, metric)
        for get in self.work.gets:
            check_get(model, get)
