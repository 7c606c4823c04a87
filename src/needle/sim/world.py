"""One run: machines, network, nodes, clients and faults on one loop; then the liveness phase; then the last checks.

Invariant: everything that happens follows from the Spec. A violation anywhere ends the run at once and is returned in
the Report, with the story so far. It must not know how a node is put together (nodes.py does).
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np

from needle.base.commands import CreateCollection, Delete, Insert, decode
from needle.base.errors import CorruptLog, InvalidArgument, NeedleError, OutcomeUnknown, StorageError, Unavailable
from needle.base.ids import GroupId
from needle.base.model import ReadMode, WriteResult
from needle.client.client import Client as AdminClient
from needle.raft import lease
from needle.sim.checkers import linearizability
from needle.sim.checkers.committed import CommittedEntry
from needle.sim.checkers.leases import Leases
from needle.sim.checkers.replay import LogModel, ModelDocument, check_get, check_search
from needle.sim.event_loop import SimLoop, SimulationError
from needle.sim.history import History
from needle.sim.injector import Injector
from needle.sim.machine import stream
from needle.sim.machines import SimMachine, majority
from needle.sim.network import SimNetwork
from needle.sim.nodes import DATA_GROUP, SimNode, administrate, connect
from needle.sim.observer import Counts, Observer
from needle.sim.process import Killed, Process
from needle.sim.spec import Spec, profile
from needle.sim.trace import Trace
from needle.sim.violation import Violation
from needle.sim.workload import COLLECTION, Budget, Client, Workload

T = TypeVar("T")

RESTART_SECONDS = 1.0
LIVENESS_SECONDS = 40.0
ADMIN_SECONDS = 5.0
REPLACEMENTS_MAX = 2
LAZINESS = 6.0


class Report(msgspec.Struct, kw_only=True):
    """What a run came to. failure: None, or the violated promise and the evidence."""

    spec: Spec
    counts: Counts
    faults: dict[str, int]
    trace_hash: str
    failure: str | None = None
    checker: str = ""
    story: list[str] = []
    history: list[str] = []
    given_up: int = 0


class World:
    """See the module. Use `run` once."""

    def __init__(self, spec: Spec, *, keep_trace: bool = False) -> None:
        self.spec = spec
        self.profile = profile(spec.seed)
        self.loop = SimLoop(stream(spec.seed, "schedule"))
        self.trace = Trace(self.loop.time, keep_all=keep_trace)
        self.network = SimNetwork(self.loop, stream(spec.seed, "network"), self.trace)
        self.network.faults.delay = self.profile.delay
        self._root = tempfile.mkdtemp(prefix="needle-sim-", dir=_fast_directory())
        self.machines: dict[str, SimMachine] = {}
        self.founders = [self._add_machine() for _ in range(spec.nodes)]
        self.members = list(self.founders)
        self.nodes: dict[str, SimNode] = {}
        self.observer = Observer(self.machines, self.trace)
        self.observer.committed.on_new = self._committed
        self.leases = Leases()
        self.model = LogModel()
        self.history = History()
        self.injector = Injector(spec.seed, self.loop, self.network, self, self.trace)
        budget = Budget(spec.operations_max)
        self.work = Workload(self.loop, self.history, self.trace, self.profile, spec.seed, budget)
        self.work.on_ack = self._acknowledged
        self.work.latest = lambda: self.observer.committed.last(DATA_GROUP)
        self.restarts = 0
        self.retired: set[str] = set()
        self._armed: dict[str, tuple[str, int, bool]] = {}
        self._held_down: Counter[str] = Counter()
        self._graves: list[SimNode] = []
        self._clients: list[Client] = []
        self._processes: dict[str, Process] = {}
        self._operator = self._operator_client()
        self.metric = self.profile.metric
        self._violation: BaseException | None = None
        self._given_up = 0
        self.loop.after_step = self._after_step
        self.loop.on_unhandled = self._unhandled
        self.network.tap = self._tap

    # --- the run ------------------------------------------------------------------------------------------------------
    def run(self) -> Report:
        """Run to the end, or to the first violation."""
        collecting = gc.isenabled()
        gc.disable()
        failure: BaseException | None = None
        try:
            self.loop.run_until_complete(self._main())
            gc.collect()  # a task whose exception nobody retrieved says so when it is collected
        except (Violation, SimulationError) as error:
            failure = error
        finally:
            self._tear_down()
            if collecting:
                gc.enable()
            gc.collect()
        failure = self._violation or failure
        if failure is not None:
            self.trace.tell(f"VIOLATION {failure}")
        return self._report(failure)

    async def _main(self) -> None:
        for name in self.machines:
            self.start(name)
        self._clients = [self._client(f"c{number}") for number in range(self.spec.clients)]
        await self._until("the first leader", LIVENESS_SECONDS, self._serves)
        self.injector.begin(self.spec.schedule())
        workers: list[asyncio.Task[None]] = [self._ask(client.name, client.run()) for client in self._clients]
        watch = self.loop.create_task(self._watch())
        await asyncio.sleep(self.spec.seconds)
        self.work.stopping = True
        await self.injector.stop()
        self._armed.clear()
        await self._recover()
        await asyncio.gather(*workers)
        await self._read_everything()
        await self._converge()
        watch.cancel()
        self._check_history()

    def _client(self, name: str) -> Client:
        """A client on a machine of its own. The last one is slow: it knows who led, not who leads."""
        lazy = LAZINESS if name == f"c{self.spec.clients - 1}" else 1.0
        process, rng = Process(name, 1), stream(self.spec.seed, name)
        self._processes[name] = process
        endpoint = self.network.endpoint(name, process)
        return Client(name, lambda: connect(endpoint, self._addresses(), rng), self.work, lazy)

    def _operator_client(self) -> AdminClient:
        process = self._processes["operator"] = Process("operator", 1)
        endpoint = self.network.endpoint("operator", process)
        return administrate(endpoint, self._addresses(), stream(self.spec.seed, "operator"))

    async def _write(self, key: str) -> bool:
        return await self._ask("c0", self._clients[0].put(key))

    def _ask(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run in the process of client `name`."""
        return self.loop.spawn(self._processes[name], work)

    def _addresses(self) -> list[str]:
        return [machine.address for machine in self.machines.values()]

    async def _serves(self) -> bool:
        """Whether a leader has created the first collection, and takes a write."""
        ready = any(replica.machine.collections() for replica in self._replicas().get(DATA_GROUP, {}).values())
        return ready and await self._write("first")

    async def _watch(self) -> None:
        """Now and then, compare what is costly to compare after each step."""
        tick = 0
        while True:
            await asyncio.sleep(1.0)
            tick += 1
            self.observer.compare_logs(self._replicas())
            if tick % 5 == 0:
                self.observer.compare_digests(self._replicas())

    # --- liveness -----------------------------------------------------------------------------------------------------
    async def _recover(self) -> None:
        """Heal a random majority only: it alone must serve again."""
        self.network.heal()
        await self._until("all nodes to be voters again", LIVENESS_SECONDS, self._all_vote)
        good = [name for name in self.members if name not in self.retired]
        rng = stream(self.spec.seed, "recover")
        alive = majority(rng, self.members) if good == self.members else good
        rest = [name for name in good if name not in alive]
        self.trace.tell(f"faults end; only {', '.join(alive)} may go on")
        for name in rest:
            self.hold(name)
            self.crash(name, power_cut=True, why="left out")
        await self._until(
            f"a write by {alive} alone", LIVENESS_SECONDS, lambda: self._ask("c0", self._clients[0].put("fresh"))
        )
        for name in rest:
            self.release(name)
        self.trace.tell("every node is back")

    async def _all_vote(self) -> bool:
        if self._all_are_voters():
            return True
        await self.admin("", "restore")
        await asyncio.sleep(1.0)
        return False

    async def _read_everything(self) -> None:
        """Every acknowledged write must still be there: read each key once more, into the history."""
        reader = self._clients[0]

        async def read(key: str) -> bool:
            return await self._ask(reader.name, reader.get(key, ReadMode.STRONG))

        for key in sorted(self.history.by_key()):
            await self._until(f"a read of {key}", LIVENESS_SECONDS, partial(read, key))
        for _ in range(3):
            await self._ask(reader.name, reader.search(ReadMode.STRONG))

    async def _converge(self) -> None:
        """All nodes apply everything, and hold the same documents."""

        async def equal() -> bool:
            replicas = self._replicas().get(DATA_GROUP, {})
            applied = {replica.machine.applied_index() for replica in replicas.values()}
            return len(applied) == 1 and len(replicas) == len(set(self.members) - self.retired)

        await self._until("every replica to catch up", LIVENESS_SECONDS, equal)
        self.observer.compare_logs(self._replicas())
        self.observer.compare_digests(self._replicas())

    async def _until(self, what: str, seconds: float, holds: Any) -> None:
        deadline = self.loop.time() + seconds
        while not await holds():
            if self.loop.time() > deadline:
                raise Violation("liveness", f"waited {seconds:g} s in vain for {what}")
            await asyncio.sleep(0.25)

    # --- machines, as the injector sees them --------------------------------------------------------------------------
    def leader(self) -> str | None:
        """The node that leads the data group in the highest term."""
        best: tuple[int, str] | None = None
        for name, node in self.nodes.items():
            replica = node.groups().get(DATA_GROUP)
            if replica is not None and replica.raft.role.name == "LEADER":
                best = max(best or (0, ""), (replica.raft.term, name))
        return best[1] if best else None

    def start(self, name: str) -> None:
        """Boot the node, unless it runs, is held down or gone for good."""
        machine = self.machines[name]
        if machine.process is not None or self._held_down[name] or name in self.retired:
            return
        self.observer.booted(name, DATA_GROUP)
        process = machine.boot()
        node = self.nodes[name] = SimNode(self, machine, process)
        self.trace.note(f"{name} boots, incarnation {machine.incarnation}")
        self.loop.spawn(process, self._boot(name, node, process))

    async def _boot(self, name: str, node: SimNode, process: Process) -> None:
        try:
            await node.start()
        except NeedleError as error:
            self.loop.call_soon(self._exited, name, process, error, context=self.loop.root.context)
        except Exception as error:  # noqa: BLE001  # a bug of the product: it ends the run
            self._unhandled(process, error, "start")
        else:
            self.trace.tell(f"{name} is up, incarnation {process.incarnation}")

    def crash(self, name: str, *, power_cut: bool, why: str) -> None:
        """End the node's process at once."""
        machine = self.machines[name]
        process = machine.process
        if process is None:
            return
        self.trace.tell(f"{name} dies ({why}{', power cut' if power_cut else ''})")
        machine.crash(power_cut=power_cut)
        self.network.process_died(process)
        self._graves.append(self.nodes.pop(name))

    def hold(self, name: str) -> None:
        """Keep the node down until `release`."""
        self._held_down[name] += 1

    def release(self, name: str) -> None:
        self._held_down[name] -= 1
        self.start(name)

    def fatal(self, name: str, process: Process, error: NeedleError) -> None:
        """The node says that it cannot go on; `needle serve` would exit now."""
        self.loop.call_soon(self._exited, name, process, error, context=self.loop.root.context)

    def _exited(self, name: str, process: Process, error: NeedleError) -> None:
        if self.machines[name].process is not process:
            return
        self.trace.tell(f"{name} stops: {error}")
        self.crash(name, power_cut=False, why=error.code)
        if isinstance(error, CorruptLog) and name in self.observer.rotten:
            self.retired.add(name)
            self.trace.tell(f"{name} is out for good: its disk lost what it promised")
        else:
            self.loop.call_in(self.loop.root, RESTART_SECONDS, self._restart, name)

    def _restart(self, name: str) -> None:
        self.restarts += 1
        self.start(name)

    def arm(self, name: str, failpoint: str, hits: int, *, power_cut: bool) -> None:
        """Kill the node when it passes `failpoint` for the hits-th time."""
        self._armed[name] = (failpoint, hits, power_cut)

    def disarm(self, name: str) -> None:
        self._armed.pop(name, None)
        self.start(name)

    def failpoint(self, name: str, process: Process, place: str) -> None:
        """The node passes a failpoint."""
        armed = self._armed.get(name)
        if armed is None or armed[0] != place or not process.alive:
            return
        if armed[1] > 1:
            self._armed[name] = (place, armed[1] - 1, armed[2])
            return
        del self._armed[name]
        self.crash(name, power_cut=armed[2], why=f"at {place}")
        self.loop.call_in(self.loop.root, 3 * RESTART_SECONDS, self._restart, name)
        raise Killed(f"{name} at {place}")

    def may_lose(self, name: str) -> bool:
        """Whether a good quorum remains without this node's data."""
        return self._may_shrink([node for node in self.members if node != name])

    def rotted(self, name: str) -> None:
        """Bits of the node's log are damaged from now on: it need not hold what it once did."""
        self.observer.rotten.add(name)

    async def admin(self, name: str, what: str) -> None:
        """An operator's command; it may be refused or time out."""
        self._ask("operator", self._administer(name, what))
        await asyncio.sleep(0)

    async def _administer(self, name: str, what: str) -> None:
        client = self._operator
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
                await client.exit_maintenance_mode(name, timeout=ADMIN_SECONDS)
            elif what == "demote":
                await client.change_membership(rest, [name], timeout=ADMIN_SECONDS)
            elif what == "remove":
                await client.change_membership(rest, timeout=ADMIN_SECONDS)
            elif what == "replace":
                await self._replace(client, name, rest)
            else:
                await client.change_membership(self.members, addresses=self._book(), timeout=ADMIN_SECONDS)
        except (Unavailable, OutcomeUnknown, InvalidArgument, StorageError) as error:
            self.trace.note(f"{what} of {name}: {error.code}")
        else:
            self.trace.tell(f"{what} of {name or 'all'} is done")

    def _may_shrink(self, rest: list[str]) -> bool:
        """Nobody in their senses takes a voter from a group that lacks one already: what remains could be stuck."""
        return self._all_are_voters() and not any(node in self.retired for node in rest)

    def _all_are_voters(self) -> bool:
        name = self.leader()
        conf = self.nodes[name].groups()[DATA_GROUP].raft.conf if name else None
        return conf is not None and sorted(conf.voters) == self.members and not conf.voters_outgoing

    async def _replace(self, client: AdminClient, name: str, rest: list[str]) -> None:
        """A member's machine is lost: a new one with a new name takes its place, as a learner first."""
        if name not in self.members or len(self.machines) >= self.spec.nodes + REPLACEMENTS_MAX:
            return
        self.retired.add(name)
        self.crash(name, power_cut=True, why="lost for good")
        fresh = self._add_machine()
        self.members = sorted([*rest, fresh])
        self.start(fresh)
        await client.change_membership([*rest, name], [fresh], addresses=self._book(), timeout=ADMIN_SECONDS)
        await asyncio.sleep(2.0)
        await client.change_membership(self.members, addresses=self._book(), timeout=ADMIN_SECONDS)

    def _add_machine(self) -> str:
        name = f"n{len(self.machines) + 1}"
        self.machines[name] = SimMachine(
            name, f"{name}:7000", self._root, self.loop, self.spec.seed, self.profile.clock_error
        )
        return name

    def _book(self) -> dict[str, str]:
        return {name: self.machines[name].address for name in self.members}

    # --- watching -----------------------------------------------------------------------------------------------------
    def _replicas(self) -> dict[GroupId, dict[str, Any]]:
        found: dict[GroupId, dict[str, Any]] = {}
        for name in sorted(self.nodes):
            for group, replica in self.nodes[name].groups().items():
                found.setdefault(group, {})[name] = replica
        return found

    def _after_step(self, process: Process) -> None:
        node = self.nodes.get(process.name)
        if node is not None and process.alive and node.process is process:
            for group, replica in node.groups().items():
                self.observer.look(process.name, process.incarnation, group, replica)
        self._violation = self._violation or self.work.broken or self.observer.broken
        if self._violation is not None:
            raise Violation("run ends", str(self._violation))

    def _tap(self, sender: str, address: str, body: bytes) -> None:
        if sender in self.machines:
            self._guard(lambda: self.observer.sent(sender, body))

    def observe(self, action: Any) -> Any:
        """Run a checker on behalf of a port: a violation is kept, and the process goes on until the step ends."""
        return self._guard(action)

    def _guard(self, action: Any) -> Any:
        try:
            return action()
        except Violation as violation:
            self._violation = self._violation or violation
            return None

    def _unhandled(self, process: Process | None, error: BaseException | None, message: str) -> None:
        if isinstance(error, Violation):
            self._violation = self._violation or error
        else:
            self._violation = self._violation or Violation("no unhandled exception", f"{process}: {message}: {error!r}")

    def _acknowledged(self, index: int) -> None:
        name = self.leader()
        replica = self.nodes[name].groups()[DATA_GROUP] if name else None
        if replica is None:
            return
        # While joint, the entry may have been committed under the old configuration alone, or the new one since.
        conf = replica.raft.conf
        sets = [list(voters) for voters in (conf.voters, conf.voters_outgoing) if voters]
        self._guard(lambda: self.observer.write_acknowledged(DATA_GROUP, index, sets))

    def _leases(self, group: GroupId) -> list[tuple[str, int, float]]:
        """(node, term, seconds) of every leader that would answer a leased read now."""
        found = []
        for name, node in self.nodes.items():
            replica = node.groups().get(group)
            if replica is None or replica.raft.role.name != "LEADER":
                continue
            state = replica.raft._s
            if not state.lease_suspended and state.has_committed_in_term():
                left = lease.end(state) - self.machines[name].clock.monotonic()
                found.append((name, state.term, left))
        return found

    def _committed(self, group: GroupId, index: int, entry: CommittedEntry, result: Any) -> None:
        if self.leases.is_new_term(group, entry.term):
            self.leases.check(group, entry.term, self._leases(group))
        if group != DATA_GROUP or not entry.data or entry.data.startswith(b"conf:"):
            return
        command = decode(entry.data)
        if isinstance(command, CreateCollection) and command.spec.name == COLLECTION:
            self.metric = str(command.spec.metric)
        if not isinstance(result, WriteResult) or result.index != index:
            return  # refused, or a repeated write that is answered again
        if isinstance(command, Insert):
            vectors = np.frombuffer(command.vectors, np.float32).reshape(len(command.ids), -1)
            for key, vector, metadata in zip(command.ids, vectors, command.metadata, strict=True):
                value = msgspec.json.decode(metadata) if metadata else None
                self.model.write(index, key, ModelDocument(result.version, vector, value))
        elif isinstance(command, Delete):
            for key in command.ids:
                self.model.write(index, key, None)

    def _check_history(self) -> None:
        self._given_up = linearizability.check(self.history)
        for seen in self.work.searches:
            check_search(self.model, seen, self.metric)
        for get in self.work.gets:
            check_get(self.model, get)

    # --- the end ------------------------------------------------------------------------------------------------------
    def _tear_down(self) -> None:
        self.loop.after_step = None
        self.injector.over = True
        self.loop.on_unhandled = lambda process, error, message: None
        for name in sorted(self.nodes):
            machine = self.machines[name]
            if machine.process is not None:
                self.loop.kill(machine.process)
        self.loop.kill(self.loop.root)
        self._graves.extend(self.nodes.values())
        self.loop.bury()
        for node in self._graves:
            node.discard()
        self._graves.clear()
        self.loop.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def _operations_of(self, failure: BaseException | None) -> list[str]:
        """What clients did to the key of a violation."""
        key = getattr(failure, "key", "")
        return [linearizability.describe(op) for op in self.history.operations if key and op.key == key]

    def _report(self, failure: BaseException | None) -> Report:
        outcomes = Counter(op.outcome for op in self.history.operations)
        counts = Counts(
            virtual_seconds=self.loop.time(),
            operations=len(self.history.operations),
            answered=outcomes["ok"],
            refused=outcomes["refused"],
            failed=outcomes["failed"],
            unknown=outcomes["unknown"] + outcomes["open"],
            elections=self.observer.elections.count,
            snapshots=self.observer.snapshots_installed,
            entries=len(self.observer.committed.log(DATA_GROUP)),
            restarts=sum(machine.incarnation - 1 for machine in self.machines.values()),
            messages=self.network.counts["messages"],
            steps=self.loop.steps,
            searches=len(self.work.searches),
        )
        return Report(
            spec=self.spec,
            counts=counts,
            faults=dict(sorted(self.injector.counts.items())),
            trace_hash=self.trace.digest(),
            failure=None if failure is None else str(failure),
            checker=getattr(failure, "checker", type(failure).__name__) if failure is not None else "",
            story=self.trace.story if failure is not None else [],
            history=self._operations_of(failure),
            given_up=self._given_up,
        )


def _fast_directory() -> str | None:
    """Memory, where the system has a directory for it: SQLite syncs there for nothing."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None
